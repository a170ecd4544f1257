//! A plain session in the engine: hearing its client if need be, connecting, then relaying. What it does when its
//! sockets are ready or its alarm rings; what becomes of it is the engine's part.

use std::{
    cell::Cell,
    io,
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
};

use rustix::event::epoll::EventFlags;
use tokio::time::Instant;

use super::slots::Which;
use crate::{
    net,
    proxy::{
        connect::{self, Attempt, GLANCE},
        entry::Hearing,
        peer::Peer,
        relay::{self, Relay, Socket, Turn},
        session::Books,
    },
    state::SessionLimits,
    telemetry::{Cause, End, Side, Stage as At},
};

/// A session that the engine carries.
pub(super) struct Session {
    pub(super) client: Peer,
    /// None while the client is heard.
    pub(super) upstream: Option<Peer>,
    client_ready: Ready,
    upstream_ready: Ready,
    pub(super) stage: Stage,
    pub(super) books: Books,
    /// When its alarm rings, if it is set.
    pub(super) alarm: Option<Instant>,
    /// Waits for its turn already.
    pub(super) queued: bool,
    /// Its upstream connection was a spare, and nothing has come of it yet.
    on_spare: bool,
}

/// How far it has come.
pub(super) enum Stage {
    /// The client has to say where it wants to go.
    Hearing(Box<Hearing>),
    Connecting(Attempt),
    Relaying(Relay),
    /// Nothing is left to do here.
    Leaving,
}

/// What a turn has come to.
pub(super) enum Outcome {
    /// Nothing to do until a socket is ready or this time has come.
    Waiting(Instant),
    /// There is more to do, after the others.
    Again,
    /// It is over.
    Ended(End),
    /// The client has said what it had to: an endpoint is to be chosen.
    Heard,
    /// Its spare has ended before anything was sent over it: a connection is to be dialled, as if there had been none.
    Redial,
    /// Its endpoint has reset it before a byte was exchanged: tokio looks for another one.
    Lost,
    /// The attempt has failed, or is late: tokio goes on with it.
    Handover(Attempt, Result<(), End>),
}

impl Session {
    /// A session whose client has to say more first.
    pub(super) fn hearing(client: Peer, hearing: Box<Hearing>, books: Books) -> Self {
        Self::new(client, None, Stage::Hearing(hearing), books)
    }

    /// A session whose upstream connection is under way.
    pub(super) fn connecting(client: Peer, upstream: Peer, attempt: Attempt, books: Books) -> Self {
        Self::new(client, Some(upstream), Stage::Connecting(attempt), books)
    }

    /// A session whose connections are established.
    pub(super) fn relaying(
        client: Peer,
        upstream: Peer,
        limits: Arc<SessionLimits>,
        mut books: Books,
        now: Instant,
    ) -> Self {
        let relay = books.relay(now, limits);
        Self::new(client, Some(upstream), Stage::Relaying(relay), books)
    }

    /// The same, on a connection that was a spare.
    pub(super) fn on_spare(self) -> Self {
        Self { on_spare: true, ..self }
    }

    fn new(client: Peer, upstream: Option<Peer>, stage: Stage, books: Books) -> Self {
        Self {
            client,
            upstream,
            // A fresh connection takes what is written to it; of reading, the first event tells. The client's socket has
            // its options from the listener.
            client_ready: Ready::new(Ready::WRITE | Ready::NODELAY),
            upstream_ready: Ready::new(Ready::ASKED),
            stage,
            books,
            alarm: None,
            queued: false,
            on_spare: false,
        }
    }

    /// What epoll is to watch each socket for. The client is watched for room only once it had none.
    pub(super) const WATCH_CLIENT: EventFlags =
        EventFlags::IN.union(EventFlags::PRI).union(EventFlags::RDHUP).union(EventFlags::ET);
    pub(super) const WATCH: EventFlags = Self::WATCH_CLIENT.union(EventFlags::OUT);

    /// Takes note of an event.
    pub(super) fn note(&self, which: Which, event: EventFlags) {
        match which {
            Which::Client => self.client_ready.note(event),
            Which::Upstream => self.upstream_ready.note(event),
        }
    }

    /// True when epoll is to be told, once, that the client is to be watched for room.
    pub(super) fn asks_for_room(&self) -> bool {
        self.client_ready.asks()
    }

    /// True while it moves more at a time than fits into the worker's buffer.
    pub(super) const fn is_bulk(&self) -> bool {
        match &self.stage {
            Stage::Relaying(relay) => relay.splices(),
            Stage::Hearing(_) | Stage::Connecting(_) | Stage::Leaving => false,
        }
    }

    /// True if nothing is left on its upstream socket that the next session would find there.
    pub(super) fn leaves_upstream_as_it_was(&self) -> bool {
        match &self.stage {
            Stage::Relaying(relay) => relay.leaves_upstream_as_it_was(),
            Stage::Hearing(_) | Stage::Connecting(_) | Stage::Leaving => false,
        }
    }

    /// Does what can be done now.
    pub(super) fn run(&mut self, now: Instant) -> Outcome {
        let outcome = match self.stage {
            Stage::Hearing(_) => self.hear(now),
            Stage::Connecting(_) => self.connect(now),
            Stage::Relaying(_) | Stage::Leaving => None,
        };
        if let Some(outcome) = outcome {
            return outcome;
        }
        let (Stage::Relaying(relay), Some(upstream)) = (&mut self.stage, &self.upstream) else {
            return Outcome::Ended(End { side: Side::Proxy, stage: At::Connect, cause: Cause::Panic });
        };
        if self.on_spare {
            // Later than this it is the endpoint's word on a session, and passed on.
            self.on_spare =
                relay.is_untouched() && now < self.books.connected.unwrap_or(self.books.started) + GLANCE;
            let over = self.upstream_ready.has(Ready::ENDED | Ready::FAILED | Ready::GONE);
            if self.on_spare && over && !connect::has_sent(upstream) {
                return Outcome::Redial;
            }
        }
        let client = Half { peer: &self.client, ready: &self.client_ready };
        let upstream = Half { peer: upstream, ready: &self.upstream_ready };
        let pair = relay::Pair { client: &client, upstream: &upstream };
        let mut turn = relay.turn(&pair, now);
        let mut deadline = relay.deadline();
        if deadline <= now && !matches!(turn, Turn::Ended(_)) {
            turn = match relay.expired(&pair, now) {
                Some(end) => Turn::Ended(end),
                None => relay.turn(&pair, now),
            };
            deadline = relay.deadline();
        }
        if turn == Turn::Waiting && relay.overlooks_resets() {
            let dead = match () {
                () if self.client_ready.has(Ready::FAILED) => Some(Side::Client),
                () if self.upstream_ready.has(Ready::FAILED) => Some(Side::Upstream),
                () => None,
            };
            if let Some(dead) = dead {
                turn = relay.reset(dead, &pair, now);
                deadline = relay.deadline();
            }
        }
        self.books.account(relay.moved());
        match turn {
            Turn::Waiting => Outcome::Waiting(deadline),
            Turn::Again => Outcome::Again,
            Turn::Ended(end) if self.books.lose(relay, end, now) => Outcome::Lost,
            Turn::Ended(end) => Outcome::Ended(end),
        }
    }

    /// `None` if it is not at this stage.
    fn hear(&mut self, now: Instant) -> Option<Outcome> {
        let Stage::Hearing(hearing) = &mut self.stage else {
            return None;
        };
        let over = self.client_ready.has(Ready::ENDED | Ready::FAILED | Ready::GONE);
        if !over && !self.client_ready.has(Ready::READ) && now < hearing.deadline() {
            return Some(Outcome::Waiting(hearing.deadline()));
        }
        Some(match hearing.hear(&self.client, &mut self.books, over, now) {
            Some(Ok(())) => Outcome::Heard,
            Some(Err(end)) => Outcome::Ended(end),
            None => Outcome::Waiting(hearing.deadline()),
        })
    }

    /// `None` once the connection is established.
    fn connect(&mut self, now: Instant) -> Option<Outcome> {
        let Some(upstream) = &mut self.upstream else { return None };
        let Stage::Connecting(attempt) = std::mem::replace(&mut self.stage, Stage::Leaving) else {
            return None;
        };
        let glance = attempt.begun + GLANCE;
        let late = attempt.late.map_or(glance, |late| late.min(glance)).min(attempt.deadline);
        let failed = self.upstream_ready.has(Ready::FAILED | Ready::GONE);
        if self.client_ready.has(Ready::FAILED | Ready::GONE) {
            return Some(Outcome::Ended(End { side: Side::Client, stage: At::Connect, cause: Cause::Reset }));
        }
        // An error comes with readiness for everything, so it is asked about first.
        if failed || self.upstream_ready.has(Ready::WRITE) {
            if let Err(end) = connect::outcome(&attempt.plan.endpoint, &*upstream, failed) {
                return Some(Outcome::Handover(attempt, Err(end)));
            }
            attempt.connected(&mut self.books, now);
            upstream.begin();
            // Its bytes, or its end, take the last segment of the handshake along.
            if !self.client_ready.has(Ready::READ | Ready::ENDED) {
                net::acknowledge(&*upstream);
            }
            self.stage = Stage::Relaying(Relay::new(now, attempt.plan.limits));
            return None;
        }
        if now >= late {
            net::acknowledge(&*upstream);
            return Some(Outcome::Handover(attempt, Ok(())));
        }
        self.stage = Stage::Connecting(attempt);
        Some(Outcome::Waiting(late))
    }
}

/// What is known of a socket's readiness, from events and from what reads and writes have said since.
struct Ready(Cell<u16>);

impl Ready {
    const READ: u16 = 1;
    const WRITE: u16 = 2;
    /// The peer has ended its direction: a read finds at least that.
    const ENDED: u16 = 4;
    /// The connection has an error to tell.
    const FAILED: u16 = 8;
    /// The connection is over in both directions.
    const GONE: u16 = 16;
    /// A write found no room.
    const FULL: u16 = 32;
    /// Epoll watches for room.
    const ASKED: u16 = 64;
    /// Something was written.
    const WROTE: u16 = 128;
    /// Nagle's algorithm is off.
    const NODELAY: u16 = 256;
    /// An urgent byte has come, now or earlier.
    const URGENT: u16 = 512;

    const fn new(flags: u16) -> Self {
        Self(Cell::new(flags))
    }

    fn has(&self, flags: u16) -> bool {
        self.0.get() & flags != 0
    }

    fn add(&self, flags: u16) {
        self.0.set(self.0.get() | flags);
    }

    fn note(&self, event: EventFlags) {
        let flags = [
            (EventFlags::IN, Self::READ),
            (EventFlags::OUT, Self::WRITE),
            (EventFlags::RDHUP, Self::ENDED),
            (EventFlags::ERR, Self::FAILED),
            (EventFlags::HUP, Self::GONE),
            (EventFlags::PRI, Self::URGENT),
        ];
        let seen = flags.into_iter().filter(|(flag, _)| event.contains(*flag));
        self.0.set(seen.fold(self.0.get(), |sum, (_, flag)| sum | flag));
    }

    fn asks(&self) -> bool {
        let asks = self.0.get() & (Self::FULL | Self::ASKED) == Self::FULL;
        if asks {
            self.0.set(self.0.get() | Self::ASKED);
        }
        asks
    }

    fn blocked<T>(&self, tried: io::Result<T>, cleared: u16, noted: u16) -> io::Result<T> {
        if let Err(error) = &tried
            && error.kind() == io::ErrorKind::WouldBlock
        {
            self.0.set(self.0.get() & !cleared | noted);
        }
        tried
    }
}

/// A socket with its readiness.
struct Half<'a> {
    peer: &'a Peer,
    ready: &'a Ready,
}

impl AsFd for Half<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.peer.as_fd()
    }
}

impl Socket for Half<'_> {
    fn readable(&self) -> io::Result<bool> {
        Ok(self.ready.has(Ready::READ | Ready::ENDED | Ready::FAILED | Ready::GONE))
    }

    fn writable(&self) -> io::Result<bool> {
        Ok(self.ready.has(Ready::WRITE | Ready::FAILED | Ready::GONE))
    }

    fn may_be_urgent(&self) -> bool {
        self.ready.has(Ready::URGENT)
    }

    fn try_read<T>(&self, _anyway: bool, read: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        self.ready.blocked(read(), Ready::READ, 0)
    }

    fn try_write<T>(&self, write: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        // Most sessions with one request need no call for this.
        if !self.ready.has(Ready::NODELAY) {
            let again = self.ready.has(Ready::WROTE);
            if again {
                net::set_nodelay(self.peer);
            }
            self.ready.add(if again { Ready::NODELAY } else { Ready::WROTE });
        }
        self.ready.blocked(write(), Ready::WRITE, Ready::FULL)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_takes_less_than_the_half_kilobyte_that_it_may() {
        // Beside it: 16 bytes of its slot, 16 of its alarm, and what the allocator adds.
        let size = size_of::<Session>();
        assert!((200..=400).contains(&size), "{size} bytes");
        assert_eq!(size_of::<Option<Peer>>(), size_of::<Peer>(), "none costs nothing");
    }
}

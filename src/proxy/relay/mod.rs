//! Moving bytes between two plain connections: one state for both directions, no memory while nothing waits.
//!
//! Manners (RFC 9293): a direction that ends is passed on as an end once its last byte is delivered, and the other
//! direction goes on for as long as it moves. A reset is passed on as a reset, after whatever the dead side had sent
//! before. Must never answer a loss with a clean end.

mod flow;
mod pace;
mod patience;
mod polled;
mod splice;
mod streams;
mod watch;

use std::{io, os::fd::AsFd, sync::Arc, time::Duration};

use tokio::time::Instant;

use self::{
    flow::{Broken, Flow, Step},
    patience::{Done, Patience},
};
pub(super) use self::{
    pace::Pace,
    polled::{Watched, relay},
    splice::{keeps_pipes, trim},
    streams::{Below, Outcome, relay_streams},
};
use super::session::Moved;
use crate::{
    net,
    state::SessionLimits,
    telemetry::{Cause, End, Side, Stage},
};

/// Bytes that a short session moves at most: too few for the kernel to give the socket larger buffers, which it would keep
/// (24 KB in both directions never did, 32 KB in small pieces did).
const SHORT: u64 = 16 * 1024;

/// How long the last bytes of a reset client may take to reach the endpoint before it is reset too.
const CLIENT_GONE: Duration = Duration::from_secs(1);

/// Between looks at whether the last bytes have arrived; doubles up to [`LOOK_MOST`]. The kernel has no event for it.
const LOOK_FIRST: Duration = Duration::from_millis(1);
const LOOK_MOST: Duration = Duration::from_millis(50);

/// What the relay asks of a connection beside its descriptor: what the driver knows of its readiness. There are two
/// drivers: the worker's engine, and tokio.
pub(super) trait Socket: AsFd {
    /// True when a read may find something. Otherwise the driver runs the session again once that has changed.
    fn readable(&self) -> io::Result<bool>;

    /// True when a write may find room, in the same way.
    fn writable(&self) -> io::Result<bool>;

    /// True unless it is known that no urgent byte has come.
    fn may_be_urgent(&self) -> bool;

    /// Does one read, and takes note when it would block: there is nothing more to read until the next edge. `anyway`:
    /// even if nothing is there as far as the driver knows.
    fn try_read<T>(&self, anyway: bool, read: impl FnOnce() -> io::Result<T>) -> io::Result<T>;

    /// Does one write, and takes note when it would block.
    fn try_write<T>(&self, write: impl FnOnce() -> io::Result<T>) -> io::Result<T>;
}

/// The two connections of a session.
#[derive(Debug)]
pub(super) struct Pair<'a, S> {
    pub(super) client: &'a S,
    pub(super) upstream: &'a S,
}

/// What a turn has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Nothing to do until a socket is ready or the deadline comes.
    Waiting,
    /// There is more to do, after the others.
    Again,
    /// The session is over. When the end is not a clean one, both connections are to be reset.
    Ended(End),
}

/// A session's relay: both directions, without the sockets. It does no waiting of its own: the driver calls [`Relay::turn`]
/// when a socket is ready, and [`Relay::expired`] when [`Relay::deadline`] has come.
#[derive(Debug)]
pub(super) struct Relay {
    patience: Patience,
    to_upstream: Flow,
    to_client: Flow,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Both directions may move.
    Open,
    /// One direction has ended.
    HalfClosed,
    /// One side is dead.
    Aborting(Box<Abort>),
}

/// What a dead side sent before goes to the other side, which is then reset.
#[derive(Debug)]
struct Abort {
    dead: Side,
    end: End,
    deadline: Instant,
    /// When to look next whether the last bytes have arrived, and the pause before that.
    look: Option<(Instant, Duration)>,
    /// Bytes that had not arrived when it was last looked.
    left: Option<usize>,
    /// Bytes that had arrived when the deadline was set.
    arrived: u64,
}

impl Relay {
    /// A relay that begins now.
    pub(super) fn new(now: Instant, limits: Arc<SessionLimits>) -> Self {
        Self {
            patience: Patience::new(now, limits),
            to_upstream: Flow::default(),
            to_client: Flow::default(),
            state: State::Open,
        }
    }

    /// A relay of a session whose client has ended its direction, which the endpoint knows.
    pub(super) fn half_closed_by_client(now: Instant, limits: Arc<SessionLimits>) -> Self {
        let mut relay = Self { to_upstream: Flow::done(), ..Self::new(now, limits) };
        relay.half_closed(Side::Client, now);
        relay
    }

    /// A relay of a session of whose client these bytes were taken already, and are to go to the endpoint first.
    pub(super) fn owing(bytes: Box<[u8]>, now: Instant, limits: Arc<SessionLimits>) -> Self {
        Self { to_upstream: Flow::owing(bytes), ..Self::new(now, limits) }
    }

    /// After an end: what the client has sent, if the endpoint was sent nothing and has sent nothing, so that another one
    /// may have the session.
    pub(super) fn undelivered(&mut self) -> Option<Box<[u8]>> {
        if self.to_client.moved > 0 || self.to_client.is_stalled() {
            return None;
        }
        self.to_upstream.undelivered()
    }

    /// Moves what can be moved now.
    pub(super) fn turn<S: Socket>(&mut self, pair: &Pair<'_, S>, now: Instant) -> Turn {
        let before = self.moved();
        let turn = self.step(pair, now);
        if self.moved() != before {
            self.patience.moved(now);
        }
        turn
    }

    /// True while a reset would not be noticed by reading: a side is not read once it has ended, or while the other side
    /// takes nothing. The driver then reports errors itself, with [`Relay::reset`].
    pub(super) fn overlooks_resets(&self) -> bool {
        match self.state {
            State::Open => self.to_upstream.is_stalled() || self.to_client.is_stalled(),
            State::HalfClosed => true,
            State::Aborting(_) => false,
        }
    }

    /// The driver has learnt that this side's connection has failed.
    pub(super) fn reset<S: Socket>(&mut self, dead: Side, pair: &Pair<'_, S>, now: Instant) -> Turn {
        let socket = if dead == Side::Client { pair.client } else { pair.upstream };
        let cause = net::take_error(socket).map_or(Cause::Reset, |error| Cause::of(&error));
        self.die(dead, End { side: dead, stage: Stage::Relay, cause }, pair, now)
    }

    /// True until a byte was taken from a peer, or an end was passed on.
    pub(super) fn is_untouched(&self) -> bool {
        let stalled = self.to_upstream.is_stalled() || self.to_client.is_stalled();
        matches!(self.state, State::Open) && self.moved() == Moved::default() && !stalled
    }

    /// True after a short session whose client has ended first, which was passed on before the endpoint ended too. Nothing of
    /// it is left on the socket towards the endpoint but that Nagle's algorithm may be off.
    pub(super) fn leaves_upstream_as_it_was(&self) -> bool {
        let Moved { to_upstream, to_client } = self.moved();
        to_upstream + to_client <= SHORT && self.patience.was_short(Side::Client)
    }

    /// True while a direction is spliced.
    pub(super) const fn splices(&self) -> bool {
        self.to_upstream.splices() || self.to_client.splices()
    }

    /// Bytes delivered so far.
    pub(super) const fn moved(&self) -> Moved {
        Moved { to_upstream: self.to_upstream.moved, to_client: self.to_client.moved }
    }

    fn step<S: Socket>(&mut self, pair: &Pair<'_, S>, now: Instant) -> Turn {
        if let State::Aborting(_) = self.state {
            return self.abort(pair, now);
        }
        let up = match self.to_upstream.step(pair.client, pair.upstream, self.to_client.is_done()) {
            Ok(step) => step,
            Err(broken) => return self.broken(Side::Client, &broken, pair, now),
        };
        let down = match self.to_client.step(pair.upstream, pair.client, self.to_upstream.is_done()) {
            Ok(step) => step,
            Err(broken) => return self.broken(Side::Upstream, &broken, pair, now),
        };
        match (up, down) {
            (Step::Ended, Step::Ended) => {
                self.patience.leave(pair.client, pair.upstream);
                return Turn::Ended(End::closed(self.patience.first_end()));
            }
            (Step::Ended, _) => self.half_closed(Side::Client, now),
            (_, Step::Ended) => self.half_closed(Side::Upstream, now),
            _ => {}
        }
        if up == Step::Again || down == Step::Again { Turn::Again } else { Turn::Waiting }
    }

    fn half_closed(&mut self, ended: Side, now: Instant) {
        if let State::Open = self.state {
            self.patience.ended(ended, now);
            self.state = State::HalfClosed;
        }
    }

    /// A flow whose source is `source` broke.
    fn broken<S: Socket>(&mut self, source: Side, broken: &Broken, pair: &Pair<'_, S>, now: Instant) -> Turn {
        let other = if source == Side::Client { Side::Upstream } else { Side::Client };
        let (dead, error) = match broken {
            Broken::Source(error) => (source, error),
            Broken::Sink(error) => (other, error),
        };
        let end = End { side: dead, stage: Stage::Relay, cause: Cause::of(error) };
        self.die(dead, end, pair, now)
    }

    fn die<S: Socket>(&mut self, dead: Side, end: End, pair: &Pair<'_, S>, now: Instant) -> Turn {
        // A slow client may take as long for its last bytes as a living one may stay silent.
        let patience = if dead == Side::Client { CLIENT_GONE } else { self.patience.limits.user_timeout };
        let arrived = if dead == Side::Client { 0 } else { arrived(&self.to_client, pair.client) };
        let abort = Abort { dead, end, deadline: now + patience, look: None, left: None, arrived };
        self.state = State::Aborting(Box::new(abort));
        self.abort(pair, now)
    }

    /// Delivers what the dead side had sent, then ends the session; the caller resets the survivor.
    fn abort<S: Socket>(&mut self, pair: &Pair<'_, S>, now: Instant) -> Turn {
        let State::Aborting(abort) = &mut self.state else {
            return Turn::Waiting;
        };
        let (flow, source, sink) = match abort.dead {
            Side::Client => (&mut self.to_upstream, pair.client, pair.upstream),
            Side::Upstream | Side::Proxy | Side::Operator => {
                (&mut self.to_client, pair.upstream, pair.client)
            }
        };
        if abort.look.is_none() {
            match flow.deliver(source, sink) {
                Ok(Step::Waiting) => return Turn::Waiting,
                Ok(Step::Again) => return Turn::Again,
                Err(Broken::Sink(_)) => return Turn::Ended(abort.end),
                Ok(Step::Ended) | Err(Broken::Source(_)) => {}
            }
        }
        // With SO_LINGER 0 the kernel drops what its peer has not acknowledged, so that is waited for.
        let waiting = net::waiting(sink);
        if now >= abort.deadline || waiting == 0 {
            return Turn::Ended(abort.end);
        }
        if abort.dead == Side::Upstream && abort.left != Some(waiting) {
            // A slow client is served for as long as it reads.
            abort.deadline = now + self.patience.limits.user_timeout;
        }
        abort.left = Some(waiting);
        let pause = abort.look.map_or(LOOK_FIRST, |(_, pause)| (pause * 2).min(LOOK_MOST));
        if abort.look.is_none_or(|(at, _)| now >= at) {
            abort.look = Some((now + pause, pause));
        }
        Turn::Waiting
    }

    /// When something is due at the latest.
    pub(super) fn deadline(&self) -> Instant {
        match &self.state {
            State::Open | State::HalfClosed => self.patience.deadline(),
            State::Aborting(abort) => {
                let look = abort.look.map(|(at, _)| at);
                [self.patience.dies(), look].into_iter().flatten().fold(abort.deadline, Instant::min)
            }
        }
    }

    /// What a deadline that has come means: the session's end, or another turn.
    pub(super) fn expired<S: Socket>(&mut self, pair: &Pair<'_, S>, now: Instant) -> Option<End> {
        if let Some(end) = self.patience.outlived(now) {
            return Some(end);
        }
        if let State::Aborting(abort) = &mut self.state {
            if now >= abort.deadline && abort.dead == Side::Upstream {
                let before = std::mem::replace(&mut abort.arrived, arrived(&self.to_client, pair.client));
                if abort.arrived > before {
                    // A slow client is served for as long as it reads.
                    abort.deadline = now + self.patience.limits.user_timeout;
                }
            }
            return (now >= abort.deadline).then_some(abort.end);
        }
        if self.patience.is_look_due(now) {
            self.to_upstream.poke();
            self.to_client.poke();
        }
        let Moved { to_upstream, to_client } = self.moved();
        let stalled = self.to_upstream.is_stalled() || self.to_client.is_stalled();
        let done = Done { moved: to_upstream + to_client, stalled };
        self.patience.expired(now, done, pair.client, pair.upstream)
    }
}

/// Bytes of this direction that its sink has acknowledged.
fn arrived(flow: &Flow, sink: impl AsFd) -> u64 {
    flow.moved.saturating_sub(net::waiting(sink) as u64)
}

#[cfg(test)]
mod tests;

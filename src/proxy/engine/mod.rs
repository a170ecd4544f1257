//! The engine: one loop a worker that owns its plain sessions. It accepts, asks `route`, begins the first connect, relays,
//! and keeps coarse timers, with a system call for nothing that can be known without. Whatever needs more goes to the
//! worker's tokio half and comes back as an established pair. It must never wait for anything but events.

mod alone;
mod listeners;
mod live;
mod mailbox;
mod poll;
mod rest;
mod session;
mod slots;
mod spares;
mod timer;
mod trial;
mod used;
mod wheel;

use std::{
    io,
    net::SocketAddr,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use rustix::event::epoll::{Event, EventFlags};
use tokio::time::Instant;

pub use self::alone::{Alone, Newcomer};
use self::{
    listeners::{Accepted, Listeners},
    live::Counting,
    mailbox::Pair,
    poll::{BELL, Poll, TIMER},
    rest::Rest,
    session::{Outcome, Session},
    slots::Which,
    spares::Spares,
    timer::Timer,
    used::Used,
};
pub(super) use self::{
    mailbox::{Command, Handovers, Mailbox},
    slots::{Slots, Token},
};
use super::{
    connect::{self, First, Place},
    peer::Peer,
    relay,
    session::{Books, Handover},
    spread::Spread,
};
use crate::{
    state::{ListenerCell, Phase, Shared, SlowSession, SocketCommand, WorkerCell},
    telemetry::{Cause, End, Side, Stage},
};

/// How often pipes and memory that are not needed any more are given back.
const TIDY: Duration = Duration::from_secs(1);

/// A worker's loop.
pub(super) struct Engine {
    number: usize,
    shared: Arc<Shared>,
    /// Every worker's mailbox; this one's is at `number`.
    crew: Arc<[Arc<Mailbox>]>,
    /// Where sessions go that need more.
    tokio: Arc<Handovers>,
    poll: Poll,
    timer: Timer,
    listeners: Listeners,
    sessions: Slots<Session>,
    spares: Spares,
    used: Used,
    runnable: Vec<Token>,
    rest: Rest,
    now: Instant,
    spread: Spread,
    tidying: bool,
    stopped: bool,
    /// Questions about its sessions that are not answered yet.
    censuses: Vec<Counting>,
}

impl Engine {
    /// # Errors
    /// Descriptors ran out.
    pub(super) fn new(
        number: usize,
        shared: Arc<Shared>,
        crew: Arc<[Arc<Mailbox>]>,
        tokio: Arc<Handovers>,
    ) -> io::Result<Self> {
        let now = Instant::now();
        let used = Used::new(crew.len());
        let (poll, timer) = (Poll::new()?, Timer::new(now)?);
        if let Some(mailbox) = crew.get(number) {
            poll.add(mailbox, BELL, EventFlags::IN | EventFlags::ET)?;
        }
        poll.add(timer.kernel(), TIMER, EventFlags::IN | EventFlags::ET)?;
        Ok(Self {
            number,
            shared,
            crew,
            tokio,
            poll,
            timer,
            listeners: Listeners::default(),
            sessions: Slots::new(),
            spares: Spares::new(number),
            used,
            runnable: Vec::new(),
            rest: Rest::default(),
            now,
            spread: Spread::new(number),
            tidying: false,
            stopped: false,
            censuses: Vec::new(),
        })
    }

    /// Runs until it is told to stop. Sessions that are left then are reset.
    pub(super) fn run(mut self) {
        let mut events = Poll::room();
        let mut accepted = Vec::new();
        let mut busy = false;
        Rest::be_exact();
        while !self.stopped {
            if let Err(error) = self.poll.wait(&mut events, busy) {
                tracing::error!(%error, "a worker cannot wait for events");
                return;
            }
            self.now = Instant::now();
            for event in events.drain(..) {
                self.note(event);
            }
            self.run_sessions();
            busy = self.accept(&mut accepted) | self.count_sessions() || !self.runnable.is_empty();
            if let Some(at) = self.spares.tend(&self.poll, &self.shared, self.now) {
                self.timer.chore(at);
            }
            self.used.give_way(&self.shared);
            self.timer.arm(self.now);
            self.rest.take(busy, self.now);
        }
    }

    fn note(&mut self, event: Event) {
        match event.data.u64() {
            BELL => self.read_mail(),
            TIMER => self.ring(),
            word => match Token::from_word(word) {
                Some((token, which)) => {
                    if let Some(session) = self.sessions.get(token) {
                        session.note(which, event.flags);
                        enqueue(&mut self.runnable, token, session);
                    }
                }
                None => match Token::from_spare_word(word) {
                    Some(token) => self.spares.note(token, event.flags, &self.shared, self.now),
                    None => self.listeners.ready(word),
                },
            },
        }
    }

    fn run_sessions(&mut self) {
        // Those that come meanwhile have their turn after the next look at events.
        let mut runnable = std::mem::take(&mut self.runnable);
        runnable.drain(..).for_each(|token| self.turn(token));
        if self.runnable.is_empty() {
            self.runnable = runnable;
        }
    }

    /// A session's turn. A panic ends the session in which it happens, and no other.
    fn turn(&mut self, token: Token) {
        if catch_unwind(AssertUnwindSafe(|| self.run_session(token))).is_err()
            && let Some(session) = self.take(token)
        {
            let stage = if session.books.connected.is_some() { Stage::Relay } else { Stage::Connect };
            session.books.close(End { side: Side::Proxy, stage, cause: Cause::Panic });
        }
    }

    fn run_session(&mut self, token: Token) {
        let Some(session) = self.sessions.get(token) else {
            return;
        };
        session.queued = false;
        let before = session.books.moved;
        let outcome = session.run(self.now);
        self.rest.moved(session.books.moved.since(before), session.is_bulk());
        match outcome {
            Outcome::Waiting(until) => {
                if session.alarm.is_none_or(|alarm| until < alarm) {
                    session.alarm = Some(until);
                    self.timer.set(token.slot, until);
                }
                if session.asks_for_room() {
                    let word = token.word(Which::Client);
                    // It is watched already, so this takes no memory and cannot fail.
                    self.poll.modify(&session.client, word, Session::WATCH).unwrap_or_default();
                }
            }
            Outcome::Again => enqueue(&mut self.runnable, token, session),
            Outcome::Ended(end) => self.end(token, end),
            Outcome::Heard => {
                if let Some((client, _, mut books)) = self.take_apart(token) {
                    let first = connect::first_of_heard(&mut books);
                    self.go_on(client, books, first);
                }
            }
            Outcome::Redial => {
                if let Some((client, upstream, mut books)) = self.take_apart(token) {
                    upstream.into_iter().for_each(Peer::close);
                    books.connected = None;
                    self.begin(client, books);
                }
            }
            Outcome::Lost => {
                if let Some((client, _, books)) = self.take_apart(token) {
                    self.hand_over(client, books, None);
                }
            }
            Outcome::Handover(attempt, connecting) => {
                if let Some((client, upstream, books)) = self.take_apart(token) {
                    let begun = upstream.map(|upstream| (attempt, connecting.map(|()| upstream)));
                    self.hand_over(client, books, begun);
                }
            }
        }
    }

    fn take_apart(&mut self, token: Token) -> Option<(Peer, Option<Peer>, Books)> {
        let Session { client, upstream, books, .. } = *self.take(token)?;
        // Epoll would go on watching what has another owner.
        self.poll.delete(&client).unwrap_or_default();
        if let Some(upstream) = &upstream {
            self.poll.delete(upstream).unwrap_or_default();
        }
        Some((client, upstream, books))
    }

    fn hand_over(&self, client: Peer, books: Books, begun: Option<connect::Begun>) {
        if let Some(cell) = self.cell() {
            cell.handed_over.fetch_add(1, Relaxed);
        }
        let slow = SlowSession::begin(&self.shared, self.number);
        self.tokio.put(Handover { client, books, begun, slow });
    }

    fn end(&mut self, token: Token, end: End) {
        if let Some(session) = self.take(token) {
            let again = end.is_clean() && session.leaves_upstream_as_it_was();
            let Session { client, upstream, books, .. } = *session;
            if end.is_clean() {
                client.close();
                match (upstream, &books.endpoint) {
                    (Some(upstream), Some(endpoint)) if again => self.used.keep(endpoint.address(), upstream),
                    (upstream, _) => upstream.into_iter().for_each(Peer::close),
                }
            }
            books.close(end);
        }
    }

    fn take(&mut self, token: Token) -> Option<Box<Session>> {
        let session = self.sessions.take(token)?;
        self.timer.clear(token.slot);
        self.count();
        if !self.tidying {
            self.tidying = true;
            self.timer.chore(self.now + TIDY);
        }
        Some(session)
    }

    /// Accepts what this turn allows. True when there is more to take.
    fn accept(&mut self, accepted: &mut Vec<Accepted>) -> bool {
        let next = self.listeners.accept(&self.poll, &self.shared, self.now, accepted);
        for (client, address, listener) in accepted.drain(..) {
            // As for a session's turn: the books close on unwinding.
            drop(catch_unwind(AssertUnwindSafe(|| self.admit(client, address, listener))));
        }
        if let Some(at) = next.look {
            self.timer.chore(at);
            // Descriptors are short.
            self.used.clear();
        }
        (0..next.closed).for_each(|_| self.shared.sessions.finish_accepting());
        next.busy
    }

    /// A client was accepted: carries it, or has a worker carry it that has less to do.
    fn admit(&mut self, client: Peer, address: SocketAddr, listener: Arc<ListenerCell>) {
        let books = Books::open(address, listener, Arc::clone(&self.shared));
        match self.lighter() {
            Some(mailbox) => {
                mailbox.post(Command::Begin(client, books));
                if let Some(cell) = self.cell() {
                    cell.passed_on.fetch_add(1, Relaxed);
                }
            }
            None => self.begin(client, books),
        }
    }

    /// The mailbox of a worker that has clearly fewer sessions than this one.
    fn lighter(&mut self) -> Option<&Mailbox> {
        let coming = |worker: usize| self.crew.get(worker).map_or(0, |mailbox| mailbox.coming());
        let other = self.spread.lighter(&self.shared.workers, coming)?;
        self.crew.get(other).map(|mailbox| &**mailbox)
    }

    /// Carries a session from its beginning.
    fn begin(&mut self, client: Peer, mut books: Books) {
        let first = connect::first(&mut books, &client);
        self.go_on(client, books, first);
    }

    fn go_on(&mut self, client: Peer, mut books: Books, first: First) {
        let plan = match first {
            First::Dial(plan) => plan,
            First::Hear(hearing) => return self.insert(Session::hearing(client, hearing, books)),
            // The wait for a first byte is the tokio half's.
            First::Slow => return self.hand_over(client, books, None),
            First::Over(end) => return books.close(end),
        };
        // A spare that has ended under a session was enough.
        let wanted = (books.attempts == 0).then_some((&*plan.endpoint, books.generation));
        let spare = wanted.and_then(|wanted| self.spares.take(wanted, &self.poll, &self.shared, self.now));
        if let Some(mut upstream) = spare {
            upstream.begin();
            let limits = connect::begin_on_spare(&mut books, plan, self.now);
            let session = Session::relaying(client, upstream, limits, books, self.now);
            return self.insert(session.on_spare());
        }
        let Some(place) = Place::take(&plan) else {
            return self.hand_over(client, books, None);
        };
        let used = if plan.takes_used() { self.used.take(plan.endpoint.address()) } else { None };
        match connect::begin(&mut books, plan, place, used, self.now) {
            (attempt, Ok(upstream)) => {
                self.insert(Session::connecting(client, upstream, attempt, books));
            }
            (attempt, Err(end)) => {
                self.used.clear(); // descriptors may be short
                self.hand_over(client, books, Some((attempt, Err(end))));
            }
        }
    }

    fn insert(&mut self, session: Session) {
        let token = match self.sessions.insert(Box::new(session)) {
            Ok(token) => token,
            Err(session) => return session.books.close(connect::EXHAUSTED),
        };
        self.count();
        self.rest.disturb();
        let Some(session) = self.sessions.get(token) else {
            return;
        };
        // The client first: what it has sent is then known when its endpoint has connected.
        let client = self.poll.add(&session.client, token.word(Which::Client), Session::WATCH_CLIENT);
        let watched = client.and_then(|()| match &session.upstream {
            Some(used) if used.is_used() => self.poll.put(used, token.word(Which::Upstream), Session::WATCH),
            Some(upstream) => self.poll.add(upstream, token.word(Which::Upstream), Session::WATCH),
            None => Ok(()),
        });
        if watched.is_err() {
            return self.end(token, connect::EXHAUSTED);
        }
        // Sets its alarm.
        self.turn(token);
    }

    fn count(&self) {
        if let Some(cell) = self.cell() {
            cell.sessions.store(self.sessions.len() as u64, Relaxed);
        }
    }

    fn cell(&self) -> Option<&WorkerCell> {
        self.shared.workers.get(self.number)
    }

    fn read_mail(&mut self) {
        let Some(commands) = self.crew.get(self.number).map(|mailbox| mailbox.take()) else {
            return;
        };
        for command in commands {
            // As for a session's turn: what a panic leaves behind ends on unwinding, and the other commands are obeyed.
            drop(catch_unwind(AssertUnwindSafe(|| self.carry_out(command))));
        }
    }

    fn carry_out(&mut self, command: Command) {
        match command {
            Command::Socket(command) => self.obey(command),
            Command::Begin(client, books) => {
                if let Some(mailbox) = self.crew.get(self.number) {
                    mailbox.arrived();
                }
                self.begin(client, books);
            }
            Command::Adopt(pair) => {
                let Pair { client, upstream, books, limits, slow } = *pair;
                self.insert(Session::relaying(client, upstream, limits, books, self.now));
                // It counts as the engine's by now.
                drop(slow);
            }
            Command::Look => self.spares.wake(self.now),
            Command::Drain => {
                self.spares.close(&self.shared);
                self.listeners.close(None, &self.poll, self.now);
            }
            Command::Stop => {
                self.spares.close(&self.shared);
                self.stopped = true;
            }
        }
    }

    fn obey(&mut self, command: SocketCommand) {
        match command {
            SocketCommand::Open { .. } if self.shared.sessions.phase() >= Phase::Draining => {
                self.shared.sessions.finish_accepting();
            }
            SocketCommand::Open { listener, socket } => {
                if let Err(error) = self.listeners.open(Arc::clone(&listener), socket, &self.poll) {
                    tracing::error!(listener = %listener.name, %error, "cannot accept on a bound socket");
                    self.shared.sessions.finish_accepting();
                }
            }
            SocketCommand::Reapply { listener, options } => self.listeners.reapply(&listener, &options),
            SocketCommand::Rename { from, to } => self.listeners.rename(&from, &to),
            SocketCommand::Close { listener } => self.listeners.close(Some(&listener), &self.poll, self.now),
            SocketCommand::Census(census) => self.censuses.push(Counting::new(census)),
            SocketCommand::Kill(kill) => self.kill(kill),
        }
    }

    /// The timer has rung.
    fn ring(&mut self) {
        let mut rung = Vec::new();
        let chore = self.timer.rang(self.now, &mut rung);
        for slot in rung {
            let Some(token) = self.sessions.token(slot) else { continue };
            if let Some(session) = self.sessions.get(token) {
                session.alarm = None;
                enqueue(&mut self.runnable, token, session);
            }
        }
        if chore && self.tidying {
            relay::trim();
            self.sessions.shrink();
            self.timer.shrink();
            let keeps_used = self.used.tidy();
            // Once more after everything has gone: pipes are kept for a while.
            self.tidying = self.sessions.len() > 0 || relay::keeps_pipes() || keeps_used;
            if self.tidying {
                self.timer.chore(self.now + TIDY);
            }
        }
    }
}

fn enqueue(runnable: &mut Vec<Token>, token: Token, session: &mut Session) {
    if !session.queued {
        session.queued = true;
        runnable.push(token);
    }
}

//! The sessions in a worker's tokio half: each task has a seat here from its beginning to its end, or until the engine
//! takes its session. What an operator asks about them is answered from the seats, without a word to the tasks.

use std::{
    fmt,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::task::AbortHandle;

use super::{
    engine::{Slots, Token},
    session::{Books, Moved},
};
use crate::{
    ids::SessionHandle,
    state::{Census, Kill, LiveSession, SlowSession, Traits},
    telemetry::Stage,
};

/// The sessions of one worker's tokio half. Only that half's thread locks it, so nobody ever waits.
#[derive(Debug)]
pub(super) struct Seats {
    worker: u32,
    taken: Mutex<Slots<Taken>>,
}

/// What is known of a task's session.
#[derive(Debug)]
struct Taken {
    session: LiveSession,
    task: Option<AbortHandle>,
    /// An operator ends it.
    killed: bool,
}

/// A session's own end of its seat, which is free again when this has gone. In the books, so that they keep it.
pub(super) struct Seat {
    seats: Arc<Seats>,
    token: Token,
    /// It counts for the worker; nothing once that has been taken elsewhere.
    slow: Option<SlowSession>,
}

impl Seats {
    pub(super) fn new(worker: usize) -> Arc<Self> {
        let worker = u32::try_from(worker).unwrap_or(u32::MAX);
        Arc::new(Self { worker, taken: Mutex::new(Slots::new()) })
    }

    /// Has tokio carry a session. Its first poll comes after this call, as this thread runs it.
    pub(super) fn spawn<F>(
        self: &Arc<Self>,
        mut books: Books,
        slow: SlowSession,
        story: impl FnOnce(Books) -> F,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        let unknown = SessionHandle { worker: self.worker, slow: true, slot: 0, generation: 0 };
        let taken = Taken { session: books.tell(unknown), task: None, killed: false };
        // Without a seat, where there are 2^30, it is carried all the same.
        let token = self.lock().insert(Box::new(taken)).ok();
        books.seat = token.map(|token| Box::new(Seat { seats: Arc::clone(self), token, slow: Some(slow) }));
        // A panic ends this task alone; its books close on unwinding.
        let task = tokio::spawn(story(books));
        if let Some(token) = token
            && let Some(taken) = self.lock().get(token)
        {
            taken.session.handle = self.handle(token);
            taken.task = Some(task.abort_handle());
        }
    }

    /// Adds these sessions to an answer.
    pub(super) fn count(&self, census: &mut Census) {
        let taken = self.lock();
        let all = taken.stretch(0, usize::MAX).into_iter().flatten();
        for (_, Taken { session, .. }) in all.filter(|(_, taken)| !taken.killed) {
            let traits = session.traits();
            census.look(&traits, || session.clone());
        }
    }

    /// Ends the session in a seat: its task is dropped before it runs again, which resets both sides.
    pub(super) fn kill(&self, kill: Kill) {
        let SessionHandle { slot, generation, .. } = kill.handle;
        // Until its task is dropped, one that was ended already is still there.
        let found = self.lock().get(Token { slot, generation }).filter(|taken| !taken.killed).map(|taken| {
            taken.killed = true;
            (taken.session.clone(), taken.task.clone())
        });
        let ended = found.map(|(session, task)| {
            if let Some(task) = task {
                task.abort();
            }
            session
        });
        kill.answer(ended);
    }

    /// Gives back the memory of seats, when all of them are free.
    pub(super) fn shrink(&self) {
        self.lock().shrink();
    }

    fn handle(&self, token: Token) -> SessionHandle {
        SessionHandle { worker: self.worker, slow: true, slot: token.slot, generation: token.generation }
    }

    fn lock(&self) -> MutexGuard<'_, Slots<Taken>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seat {
    /// Frees the seat. The session counts on for as long as the caller says.
    pub(super) fn leave(mut self) -> Option<SlowSession> {
        self.slow.take()
    }

    /// More is known of the session.
    pub(super) fn show(&self, books: &Books) {
        let session = books.tell(self.seats.handle(self.token));
        if let Some(taken) = self.seats.lock().get(self.token) {
            taken.session = session;
        }
    }

    /// It has moved this much.
    pub(super) fn moved(&self, moved: Moved) {
        if let Some(taken) = self.seats.lock().get(self.token) {
            (taken.session.to_upstream, taken.session.to_client) = (moved.to_upstream, moved.to_client);
        }
    }

    /// True when an operator ends the session.
    pub(super) fn is_killed(&self) -> bool {
        self.seats.lock().get(self.token).is_some_and(|taken| taken.killed)
    }
}

impl Books {
    /// What an operator is told of the session.
    pub(super) fn tell(&self, handle: SessionHandle) -> LiveSession {
        LiveSession {
            handle,
            session: self.number(),
            client: self.client,
            listener: self.listener.name.clone(),
            pool: self.pool.clone(),
            endpoint: self.endpoint.as_ref().map(|endpoint| Arc::clone(&endpoint.identity)),
            generation: self.generation,
            stage: if self.connected.is_some() { Stage::Relay } else { Stage::Connect },
            started: self.started,
            to_upstream: self.moved.to_upstream,
            to_client: self.moved.to_client,
            attempts: self.attempts,
        }
    }

    /// What is looked at to find out whether it is meant.
    pub(super) fn traits(&self) -> Traits<'_> {
        Traits {
            session: self.number(),
            client: self.client,
            pool: self.pool.as_ref(),
            endpoint: self.endpoint.as_ref().map(|endpoint| &*endpoint.identity),
            started: self.started,
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let taken = self.seats.lock().take(self.token);
        // Without the lock.
        drop(taken);
    }
}

impl fmt::Debug for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.seats.handle(self.token).fmt(f)
    }
}

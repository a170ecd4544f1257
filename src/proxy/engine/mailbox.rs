//! What others ask of an engine: its own tokio half, and the engines of the other workers.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use rustix::event::{EventfdFlags, eventfd};
use tokio::sync::Notify;

use crate::{
    proxy::{
        peer::Peer,
        session::{Books, Handover},
    },
    state::{SessionLimits, SlowSession, SocketCommand},
};

/// Something for the engine to do.
pub(in crate::proxy) enum Command {
    /// Open, change or close a listener's socket, or answer about single sessions.
    Socket(SocketCommand),
    /// Carry a session from its beginning: another worker that has more of them has accepted it.
    Begin(Peer, Books),
    /// Carry a session whose connections are established.
    Adopt(Box<Pair>),
    /// Look at the snapshot: it asks for spares.
    Look,
    /// Take what waits in the accept queues, and then no new session.
    Drain,
    /// Reset what is left, and end.
    Stop,
}

/// Two established connections.
pub(in crate::proxy) struct Pair {
    pub(super) client: Peer,
    pub(super) upstream: Peer,
    pub(super) books: Books,
    pub(super) limits: Arc<SessionLimits>,
    /// It counts as the tokio half's until the engine has it.
    pub(super) slow: Option<SlowSession>,
}

/// An engine's inbox. It holds at most an entry a session and one for each order of the control plane, so it is bounded
/// by what bounds those; nothing put into it is lost, not even when the engine ends: sessions end with it.
pub(in crate::proxy) struct Mailbox {
    commands: Mutex<Vec<Command>>,
    /// Sessions among them that another worker has passed on.
    coming: AtomicU64,
    bell: OwnedFd,
}

impl Mailbox {
    /// # Errors
    /// Descriptors ran out.
    pub(in crate::proxy) fn new() -> io::Result<Self> {
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { commands: Mutex::default(), coming: AtomicU64::new(0), bell })
    }

    /// Puts a command in, and wakes the engine.
    pub(in crate::proxy) fn post(&self, command: Command) {
        if let Command::Begin(..) = command {
            self.coming.fetch_add(1, Relaxed);
        }
        let mut commands = self.commands.lock().unwrap_or_else(PoisonError::into_inner);
        commands.push(command);
        if commands.len() == 1 {
            // Fails only when the count is full: it rings already then.
            rustix::io::write(&self.bell, &1_u64.to_ne_bytes()).unwrap_or_default();
        }
    }

    /// Gives an established pair to the engine.
    pub(in crate::proxy) fn adopt(
        &self,
        client: Peer,
        upstream: Peer,
        mut books: Books,
        limits: Arc<SessionLimits>,
    ) {
        // It is the engine's from here on, and has a handle there.
        let slow = books.seat.take().and_then(|seat| seat.leave());
        self.post(Command::Adopt(Box::new(Pair { client, upstream, books, limits, slow })));
    }

    /// Sessions that were passed on to this engine and that it has not begun yet: they count as its own.
    pub(super) fn coming(&self) -> u64 {
        self.coming.load(Relaxed)
    }

    /// One of them is about to begin.
    pub(super) fn arrived(&self) {
        self.coming.fetch_sub(1, Relaxed);
    }

    /// Takes everything that was put in.
    pub(super) fn take(&self) -> Vec<Command> {
        std::mem::take(&mut *self.commands.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl AsFd for Mailbox {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}

/// Sessions on their way from the engine to its tokio half: at most every session that is connecting.
#[derive(Default)]
pub(in crate::proxy) struct Handovers {
    sessions: Mutex<Vec<Handover>>,
    some: Notify,
}

impl Handovers {
    pub(in crate::proxy) fn put(&self, session: Handover) {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner).push(session);
        self.some.notify_one();
    }

    /// Waits until there is something, and takes everything. Nothing is lost when it is dropped before its end.
    pub(in crate::proxy) async fn take(&self) -> Vec<Handover> {
        loop {
            let sessions = std::mem::take(&mut *self.sessions.lock().unwrap_or_else(PoisonError::into_inner));
            if !sessions.is_empty() {
                return sessions;
            }
            self.some.notified().await;
        }
    }
}

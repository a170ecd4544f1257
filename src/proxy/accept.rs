//! Taking connections from a listener's queue, and what to do when descriptors run out. Shared by the two accept loops.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use rustix::{
    io::{Errno, retry_on_intr},
    net::{SocketFlags, acceptfrom_with},
    process::{Resource, getrlimit},
};

use super::{peer::Peer, seldom::Seldom};
use crate::{
    net,
    state::{ListenerCell, Rejection, Shared},
    telemetry::Cause,
};

/// How long to wait for descriptors or memory before the next try.
pub(super) const PAUSE: Duration = Duration::from_millis(100);

/// How long the queue of a listener that closes may take: where descriptors are short, or clients come without end.
pub(super) const FLUSH: Duration = Duration::from_secs(5);

/// Connections taken from the queue before other work gets its turn.
pub(super) const BATCH: u32 = 64;

/// Descriptors kept for everything but sessions: the admin API must answer when nothing else can.
const RESERVE: u64 = 32;

/// More of them for each worker: its two epolls, bells and timer.
const RESERVE_PER_WORKER: u64 = 11;

/// Descriptors that a session needs.
const PER_SESSION: u64 = 2;

/// The limit of descriptors when it was last asked for, without the reserve.
static LIMIT: AtomicU64 = AtomicU64::new(u64::MAX);

/// Sockets that accept, of all workers.
static SOCKETS: AtomicU64 = AtomicU64::new(0);

/// While something has run out, every look at a queue would say so.
static SHORTAGE: Seldom = Seldom::new();

/// What came of one look into a listener's queue.
pub(super) enum Taken {
    /// A client and its address.
    Client(Peer, SocketAddr),
    /// The queue is empty.
    Nothing,
    /// A connection ended before it was accepted.
    Lost,
    /// Descriptors or memory ran out.
    Short,
}

/// A socket that accepts has a descriptor that no session can have, until this is dropped.
pub(super) struct Counted(());

impl Counted {
    pub(super) fn begin() -> Self {
        SOCKETS.fetch_add(1, Relaxed);
        Self(())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        SOCKETS.fetch_sub(1, Relaxed);
    }
}

/// The descriptors that sessions may have.
fn limit() -> u64 {
    LIMIT.load(Relaxed).saturating_sub(SOCKETS.load(Relaxed))
}

/// Takes note of the descriptor limit, which may change while the process runs.
pub(super) fn renew_limit(workers: usize) {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    LIMIT.store(limit.saturating_sub(RESERVE + RESERVE_PER_WORKER * workers as u64), Relaxed);
}

/// True for a descriptor that no pipe may have: the kernel gives the lowest that is free. The last quarter is for sessions that
/// come after it; behind them is the reserve.
pub(super) fn is_reserved(descriptor: impl AsFd) -> bool {
    u64::try_from(descriptor.as_fd().as_raw_fd()).is_ok_and(|number| number >= limit() / 4 * 3)
}

/// Descriptors that sessions and spares hold.
fn taken(shared: &Shared) -> u64 {
    shared.sessions.active() * PER_SESSION + shared.spares.load(Relaxed)
}

/// True while spares may be dialled: half of the descriptors are free.
pub(super) fn is_roomy(shared: &Shared) -> bool {
    taken(shared) < limit() / 2
}

/// True when spares must give way: a quarter of the descriptors is left, which no session is to miss for them.
pub(super) fn is_tight(shared: &Shared) -> bool {
    taken(shared) >= limit() / 4 * 3
}

/// Descriptors that each worker may keep without a connection: a sixteenth for all of them.
pub(super) fn used_most(workers: usize) -> usize {
    let each = limit() / 16 / workers.max(1) as u64;
    usize::try_from(each).unwrap_or(usize::MAX)
}

/// Takes the next connection, unless the descriptors that are left are the reserve. So many were taken before it that are no
/// sessions yet, and other workers may have as many.
pub(super) fn next(socket: impl AsFd, cell: &ListenerCell, shared: &Shared, fresh: usize) -> Taken {
    let unseen = (fresh * shared.sockets.workers()) as u64;
    if taken(shared) + unseen * PER_SESSION >= limit() {
        return short(cell, &Errno::MFILE.into());
    }
    take(socket, cell)
}

/// Takes the next connection from the reserve too.
pub(super) fn take(socket: impl AsFd, cell: &ListenerCell) -> Taken {
    match retry_on_intr(|| acceptfrom_with(&socket, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC)) {
        Ok((client, address)) => {
            let client = Peer::new(client);
            match address.and_then(|address| SocketAddr::try_from(address).ok()) {
                Some(address) => Taken::Client(client, address),
                None => lost(cell, &io::ErrorKind::InvalidData.into()),
            }
        }
        Err(Errno::AGAIN) => Taken::Nothing,
        Err(errno) => {
            let error = io::Error::from(errno);
            if Cause::of(&error) == Cause::Exhausted { short(cell, &error) } else { lost(cell, &error) }
        }
    }
}

/// Sets changed options on a listener's socket.
pub(super) fn reapply(socket: &impl AsFd, cell: &ListenerCell, options: &net::Listen) {
    if let Err(error) = net::reapply(socket, options) {
        tracing::warn!(listener = %cell.name, %error, "a changed socket option was refused");
    }
}

fn lost(cell: &ListenerCell, error: &io::Error) -> Taken {
    cell.reject(Rejection::Aborted);
    tracing::debug!(listener = %cell.name, %error, "a connection ended before it was accepted");
    Taken::Lost
}

fn short(cell: &ListenerCell, error: &io::Error) -> Taken {
    cell.reject(Rejection::Exhausted);
    if SHORTAGE.is_due() {
        tracing::error!(listener = %cell.name, %error, "accept paused: raise the descriptor limit (LimitNOFILE)");
    }
    Taken::Short
}

//! What is measured at a worker.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use super::Shared;

/// What is measured at a worker. Each has cache lines of its own: it is written for every session.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct WorkerCell {
    /// Sessions that its engine carries now.
    pub sessions: AtomicU64,
    /// Sessions that its tokio half carries now, and those on their way there.
    slow: AtomicU64,
    /// Sessions that it has accepted and passed on to a worker with fewer of them.
    pub passed_on: AtomicU64,
    /// Sessions that its engine has given to its tokio half.
    pub handed_over: AtomicU64,
}

impl WorkerCell {
    /// Sessions that both of its halves carry now.
    pub fn carried(&self) -> u64 {
        self.sessions.load(Relaxed) + self.slow.load(Relaxed)
    }
}

/// A session of a worker's tokio half: it counts there until this has gone.
#[derive(Debug)]
pub struct SlowSession {
    shared: Arc<Shared>,
    worker: usize,
}

impl SlowSession {
    /// Counts one for this worker.
    #[must_use]
    pub fn begin(shared: &Arc<Shared>, worker: usize) -> Self {
        if let Some(cell) = shared.workers.get(worker) {
            cell.slow.fetch_add(1, Relaxed);
        }
        Self { shared: Arc::clone(shared), worker }
    }
}

impl Drop for SlowSession {
    fn drop(&mut self) {
        if let Some(cell) = self.shared.workers.get(self.worker) {
            cell.slow.fetch_sub(1, Relaxed);
        }
    }
}

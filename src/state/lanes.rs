//! Counters with a copy for each worker: what many sessions count at every turn is written to cache lines that no other
//! worker writes, and summed by whoever reads.

use std::{
    cell::Cell,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

/// How many copies a counter that is made from now on has: as many as the proxies of this process have workers at most.
static COUNT: AtomicUsize = AtomicUsize::new(1);

thread_local! {
    static MINE: Cell<usize> = const { Cell::new(0) };
}

/// Says that counters need a copy for each of so many workers.
pub(super) fn provide_lanes(workers: usize) {
    COUNT.fetch_max(workers, Relaxed);
}

/// Has this thread count as the worker of this number. Threads that never call it share the first copy.
pub fn use_lane(worker: usize) {
    MINE.set(worker);
}

/// A `T` for each worker.
#[derive(Debug)]
pub(super) struct Lanes<T>(Box<[Lane<T>]>);

/// Two cache lines: the processor fetches them in pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Lane<T>(T);

impl<T: Default> Default for Lanes<T> {
    fn default() -> Self {
        Self((0..COUNT.load(Relaxed).max(1)).map(|_| Lane::default()).collect())
    }
}

impl<T> Lanes<T> {
    /// Hands over this worker's copy.
    pub(super) fn with(&self, write: impl FnOnce(&T)) {
        // A worker of a proxy that was started after this counter was made shares a copy.
        if let Some(lane) = self.0.get(MINE.get()).or_else(|| self.0.first()) {
            write(&lane.0);
        }
    }

    /// The sum over all copies.
    pub(super) fn sum(&self, read: impl Fn(&T) -> u64) -> u64 {
        self.iter().fold(0, |sum, one| sum.wrapping_add(read(one)))
    }

    /// Every copy.
    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(|lane| &lane.0)
    }
}

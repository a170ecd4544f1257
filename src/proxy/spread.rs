//! How sessions spread over workers. The kernel gives connections to the workers' sockets by a hash, which is even for many
//! and uneven for a few, and sessions end as they like. So a worker that clearly has more than another passes a new one on.

use crate::state::WorkerCell;

/// Sessions that a worker may have more than another before that one is asked to take a new one; and an eighth of what
/// it has.
const SLACK: u64 = 2;

/// Other workers that are looked at for each new session.
const LOOKED_AT: usize = 4;

/// One worker's view of the others.
pub(super) struct Spread {
    number: usize,
    /// The other worker that was looked at last.
    looked_at: usize,
}

impl Spread {
    pub(super) const fn new(number: usize) -> Self {
        Self { number, looked_at: number }
    }

    /// A worker that has clearly fewer sessions than this one. `coming` tells how many are on their way to a worker: a burst
    /// would all go to the one that had least before it.
    pub(super) fn lighter(&mut self, workers: &[WorkerCell], coming: impl Fn(usize) -> u64) -> Option<usize> {
        let load = |number: usize| workers.get(number).map(|cell| cell.carried() + coming(number));
        if workers.len() < 2 {
            return None;
        }
        let mine = load(self.number)?;
        let enough = mine.checked_sub(SLACK + mine / 8)?;
        let mut least: Option<(u64, usize)> = None;
        for _ in 0..LOOKED_AT.min(workers.len() - 1) {
            self.looked_at = (self.looked_at + 1) % workers.len();
            if self.looked_at == self.number {
                self.looked_at = (self.looked_at + 1) % workers.len();
            }
            let theirs = (load(self.looked_at)?, self.looked_at);
            least = Some(least.map_or(theirs, |least| least.min(theirs)));
        }
        least.filter(|(sessions, _)| *sessions <= enough).map(|(_, number)| number)
    }
}

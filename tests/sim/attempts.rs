//! When a session dials: the data plane's own race, and the plain sequence that it is measured against.

use std::time::Duration;

use tokio::time::Instant;
use twinspan::{
    proxy::{Race, Step, Why},
    state::{Connect, Endpoint, Hedge, Pool},
};

/// A session's attempts: decides when, and not whom.
pub(crate) trait Attempts {
    /// What to do.
    fn step(&mut self, pool: &Pool, now: Instant) -> Step;
    /// True when an attempt that is to be made for this reason may be made in this pool.
    fn may_dial(&self, _pool: &Pool, _why: Why, _now: Instant) -> bool {
        true
    }
    /// An attempt begins at this endpoint; its deadline. `jitter` is between 0 and 1.
    fn begun(&mut self, endpoint: &Endpoint, jitter: f64, now: Instant) -> Instant;
    /// An attempt has failed.
    fn failed(&mut self);
    /// No endpoint is left.
    fn spent(&mut self);
}

impl Attempts for Race {
    fn step(&mut self, pool: &Pool, now: Instant) -> Step {
        Self::step(self, now, || {
            pool.connect.hedge.is_some_and(|hedge| pool.cell.may_hedge(hedge.budget, now))
        })
    }

    /// With all down, attempts in the place of failed ones are bounded, as in the data plane.
    fn may_dial(&self, pool: &Pool, why: Why, now: Instant) -> bool {
        let budget = pool.connect.hedge.map_or(Hedge::BUDGET, |hedge| hedge.budget);
        why != Why::Retry || pool.all_down.is_none() || pool.cell.may_hedge(budget, now)
    }

    fn begun(&mut self, endpoint: &Endpoint, jitter: f64, now: Instant) -> Instant {
        Self::begun(self, endpoint.cell.usual(), jitter, now)
    }

    fn failed(&mut self) {
        Self::failed(self);
    }

    fn spent(&mut self) {
        Self::spent(self);
    }
}

/// One attempt after the other, each with the whole timeout.
#[derive(Debug)]
pub(crate) struct Sequence {
    timeout: Duration,
    most: u8,
    end: Instant,
    made: u8,
    under_way: bool,
}

impl Sequence {
    /// At most so many, for a session that began at `started`.
    pub(crate) fn new(connect: Connect, most: u8, started: Instant) -> Self {
        let end = started + connect.timeout * u32::from(most);
        Self { timeout: connect.timeout, most, end, made: 0, under_way: false }
    }
}

impl Attempts for Sequence {
    fn step(&mut self, _: &Pool, now: Instant) -> Step {
        match self.made {
            _ if self.under_way => Step::Wait(None),
            0 if self.most > 0 => Step::Dial(Why::First),
            made if made < self.most && now < self.end => Step::Dial(Why::Retry),
            _ => Step::Over,
        }
    }

    fn begun(&mut self, _: &Endpoint, _: f64, now: Instant) -> Instant {
        self.made += 1;
        self.under_way = true;
        (now + self.timeout).min(self.end)
    }

    fn failed(&mut self) {
        self.under_way = false;
    }

    fn spent(&mut self) {
        self.made = self.most.max(1);
    }
}

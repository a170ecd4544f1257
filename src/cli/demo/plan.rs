//! What a run is: the load, the steps, and what it has to show.

use std::time::Duration;

use super::{
    judge::{Limits, milliseconds},
    load::Demand,
};

/// The cloud that comes first in the failover order, and that is killed.
pub(super) const PREFERRED: usize = 0;

/// The other one.
pub(super) const SURVIVOR: usize = 1;

/// What a run is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub(super) demand: Demand,
    /// When what is done, from the start of the load. `None`: whatever keys say, for ever.
    pub(super) steps: Option<Steps>,
    /// The time before the end in which the preferred cloud has its share again.
    pub(super) last: Duration,
    /// From the kill to traffic that goes elsewhere.
    pub(super) failover: Duration,
}

/// Times of a run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Steps {
    pub(super) kill: Duration,
    pub(super) refuse: Duration,
    pub(super) revive: Duration,
    pub(super) end: Duration,
}

impl Plan {
    /// The run of `twinspan demo`.
    pub(super) const fn script() -> Self {
        Self {
            steps: Some(Steps {
                kill: Duration::from_secs(4),
                refuse: Duration::from_secs(9),
                revive: Duration::from_secs(13),
                end: Duration::from_secs(19),
            }),
            ..Self::serve()
        }
    }

    /// The run of `twinspan demo --serve`.
    pub(super) const fn serve() -> Self {
        Self {
            demand: Demand { rate: 300, long: 50, pause: Duration::from_millis(50) },
            steps: None,
            last: Duration::from_secs(2),
            failover: Duration::from_secs(3),
        }
    }

    pub(super) fn limits(&self) -> Limits {
        let wanted = u64::from(self.demand.rate) * u64::try_from(self.last.as_millis()).unwrap_or(u64::MAX);
        Limits {
            failover_ms: milliseconds(self.failover),
            // Half of what the shortest phase is due: a busy machine may be late, not absent.
            sessions: (wanted / 2_000).max(1),
            share: 0.9,
            survivors: 1,
        }
    }
}

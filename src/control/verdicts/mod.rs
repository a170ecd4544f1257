//! The judge: who may be used, and how much of it. It has neither sockets nor a clock, and the same calls with the same
//! seed give the same verdicts.

mod facts;
mod finding;

pub use facts::{
    CloudFacts, CloudStanding, Explanation, Kept, MemberFacts, PATIENCE, PoolFacts, Reading, Standing,
};
pub use finding::{Decision, Finding, FindingKind};

use std::sync::Arc;

use rand::{SeedableRng as _, rngs::SmallRng};
use tokio::time::Instant;

use super::health::Verdict;
use crate::ids::{CloudName, EndpointKey, PoolName};

/// What is known of endpoints and clouds, and what follows from it.
#[derive(Debug)]
pub struct Verdicts {
    rng: SmallRng,
}

impl Verdicts {
    /// Knows nothing. The seed is for jitter.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { rng: SmallRng::seed_from_u64(seed) }
    }

    /// Takes the pools and clouds there are now: at the start, after a reload, and after names have resolved anew.
    /// Endpoints that are known keep everything, also those that were gone for less than ten minutes.
    pub fn configure(&mut self, pools: Vec<PoolFacts>, clouds: Vec<CloudFacts>, now: Instant) {
        drop((pools, clouds));
        let _ = (now, &mut self.rng);
    }

    /// Takes what probes say of an endpoint. `answered`: it answered, and wrongly. `began`: when the last probe
    /// began. May be called again for each further failed probe.
    pub fn probed(&mut self, key: &EndpointKey, opinion: Opinion, now: Instant) {
        drop(opinion);
        let _ = (key, now, &mut self.rng);
    }

    /// Takes what the cell of an endpoint has counted.
    pub fn observe(&mut self, key: &EndpointKey, reading: Reading, now: Instant) {
        drop(reading);
        let _ = (key, now, &mut self.rng);
    }

    /// Takes how many new sessions a pool has had since it exists.
    pub fn arrivals(&mut self, pool: &PoolName, sessions: u64, now: Instant) {
        let _ = (pool, sessions, now, &mut self.rng);
    }

    /// Draws the conclusions. To be called after the calls above, and when [`due`](Self::due) says so.
    pub fn decide(&mut self, now: Instant) -> Decision {
        let _ = (now, &mut self.rng);
        Decision::default()
    }

    /// When to call [`decide`](Self::decide) at the latest though nothing has happened.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        None
    }

    /// What holds of an endpoint; [`Standing::New`] for one that is not known.
    #[must_use]
    pub fn standing(&self, key: &EndpointKey) -> Standing {
        let _ = key;
        Standing::New
    }

    /// The weight of an endpoint in percent of its own: less than 100 in its slow start, never 0.
    #[must_use]
    pub fn weight_percent(&self, key: &EndpointKey, now: Instant) -> u32 {
        let _ = (key, now);
        100
    }

    /// What holds of a cloud.
    #[must_use]
    pub fn cloud(&self, name: &CloudName) -> CloudStanding {
        let _ = name;
        CloudStanding::Up
    }

    /// The share of its usual new sessions that a cloud gets from a pool, 0 to 100: less while it comes back, 0 while
    /// it is down and the pool has another.
    #[must_use]
    pub fn cloud_percent(&self, pool: &PoolName, cloud: &CloudName) -> u32 {
        let _ = (pool, cloud);
        100
    }

    /// True when a pool has nothing left that may be used: its `when_all_down` decides.
    #[must_use]
    pub fn all_lost(&self, pool: &PoolName) -> bool {
        let _ = pool;
        false
    }

    /// True while probes are not believed: those of the pool, or all.
    #[must_use]
    pub fn frozen(&self, pool: &PoolName) -> bool {
        let _ = pool;
        false
    }

    /// Everything about an endpoint; `None` for one that is not known.
    #[must_use]
    pub fn explain(&self, key: &EndpointKey, now: Instant) -> Option<Explanation> {
        let _ = (key, now);
        None
    }
}

/// What probes say of an endpoint.
#[derive(Clone, Debug)]
pub struct Opinion {
    /// The verdict.
    pub verdict: Verdict,
    /// The evidence, for people: `3 probes failed: connect: connection refused`.
    pub reason: Arc<str>,
    /// True if the endpoint answered, and wrongly: its own word.
    pub answered: bool,
    /// When the last probe of the run began.
    pub began: Instant,
}

//! What people ask of a pool: how much of it is out, and why probes are not believed.

use std::sync::Arc;

use tokio::time::Instant;

use super::Verdicts;
use crate::ids::PoolName;

/// What is out of a pool, in percent of the weight that its limits go by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Endpoints that may not be used.
    pub out: u8,
    /// Those of them that sessions took out.
    pub ejected: u8,
    /// What probes alone have removed within the last minute, back or not.
    pub by_checks: u8,
}

impl Verdicts {
    /// How much of a pool is out; nothing of one that is not known.
    #[must_use]
    pub fn taken(&self, pool: &PoolName, now: Instant) -> Taken {
        let pool = self.places.get(pool).and_then(|place| self.pools.get(*place));
        let weights = pool.map(|pool| pool.weights(now)).unwrap_or_default();
        let share = |part: u64| {
            let percent = part.saturating_mul(100).checked_div(weights.base).unwrap_or_default();
            u8::try_from(percent.min(100)).unwrap_or(100)
        };
        Taken {
            out: share(weights.base.saturating_sub(weights.used)),
            ejected: share(weights.ejected),
            by_checks: share(weights.charged),
        }
    }

    /// Why probes are not believed; `None` while they are.
    #[must_use]
    pub fn doubt(&self, pool: &PoolName) -> Option<Arc<str>> {
        if self.frozen {
            return Some(Arc::clone(&self.note));
        }
        let pool = self.places.get(pool).and_then(|place| self.pools.get(*place))?;
        pool.frozen.then(|| Arc::from(pool.freeze_reason()))
    }
}

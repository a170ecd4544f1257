//! What the opinions about an endpoint and its cloud come to: may it be used, with how much of its weight, and how much
//! of its share does the cloud get. The compiler asks here and nowhere else.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use tokio::time::Instant;

use super::{
    health::Verdict,
    inputs::{Inputs, Member},
};
use crate::{
    config,
    ids::{CloudName, PoolName},
};

/// Steps of a slow start.
const RAMP_STEPS: u32 = 10;

/// Whether new sessions may be given to an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// They may.
    Yes,
    /// While the pool has no better one.
    AtNeed,
    /// Only when all is lost.
    No,
}

/// Whether this endpoint may be used.
pub(super) fn usage(inputs: &Inputs, member: &Member) -> Use {
    match inputs.opinions.get(&member.identity.key()).map(|opinion| opinion.verdict) {
        Some(Verdict::Up) => Use::Yes,
        Some(Verdict::Unknown) => Use::AtNeed,
        Some(Verdict::Down) | None => Use::No,
    }
}

/// The part of its weight that an endpoint has now, in percent.
pub(super) fn weight_percent(inputs: &Inputs, pool: &config::Pool, member: &Member, now: Instant) -> u32 {
    let returned = inputs.opinions.get(&member.identity.key()).and_then(|opinion| opinion.returned);
    ramp_percent(returned.map(|at| now.duration_since(at)), pool.slow_start)
}

/// The part of its share that a cloud has now in a pool, in percent.
pub(super) const fn share_percent(_: &Inputs, _: &config::Pool, _: &CloudName, _: Instant) -> u32 {
    100
}

/// The pools in which one of these parts grows by itself, and when the next step of one of them is due.
pub(super) fn ramping(inputs: &Inputs, now: Instant) -> Option<(HashSet<PoolName>, Instant)> {
    let slow_starts: HashMap<&PoolName, Duration> =
        inputs.config.pools.iter().map(|pool| (&pool.name, pool.slow_start)).collect();
    let mut pools = HashSet::new();
    let mut due: Option<Instant> = None;
    for (key, opinion) in &inputs.opinions {
        let (Some(returned), Some(slow_start)) = (opinion.returned, slow_starts.get(&key.pool)) else {
            continue;
        };
        let elapsed = now.duration_since(returned);
        if elapsed < *slow_start {
            let step = *slow_start / RAMP_STEPS;
            let done = u32::try_from(elapsed.as_nanos() / step.as_nanos().max(1)).unwrap_or(RAMP_STEPS);
            let next = returned + step * (done + 1);
            due = Some(due.map_or(next, |due| due.min(next)));
            pools.insert(key.pool.clone());
        }
    }
    due.map(|due| (pools, due))
}

/// The weight of an endpoint in percent of its own, `elapsed` after it came back.
fn ramp_percent(elapsed: Option<Duration>, slow_start: Duration) -> u32 {
    let Some(elapsed) = elapsed.filter(|elapsed| *elapsed < slow_start) else {
        return 100;
    };
    let step = (elapsed.as_secs_f64() / slow_start.as_secs_f64() * f64::from(RAMP_STEPS)).floor();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 9")]
    let step = step as u32;
    (step + 1) * 100 / RAMP_STEPS
}

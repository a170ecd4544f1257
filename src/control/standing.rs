//! What the verdicts about an endpoint and its cloud come to: may it be used, with how much of its weight, and how much
//! of its share does the cloud get. The compiler asks here and nowhere else.

use tokio::time::Instant;

use super::{
    inputs::{Inputs, Member},
    verdicts::Standing,
};
use crate::{
    config,
    ids::{CloudName, PoolName},
};

/// Whether new sessions may be given to an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// They may.
    Yes,
    /// While the pool has no better one.
    AtNeed,
    /// One at a time, to see whether it serves.
    Trial,
    /// Only when all is lost.
    No,
}

/// Whether this endpoint may be used.
pub(super) fn usage(inputs: &Inputs, member: &Member) -> Use {
    match inputs.verdicts.standing(&member.identity.key()) {
        Standing::In { .. } => Use::Yes,
        Standing::New => Use::AtNeed,
        Standing::Trial => Use::Trial,
        Standing::Out { .. } => Use::No,
    }
}

/// True when the pool has nothing left that may be used.
pub(super) fn is_lost(inputs: &Inputs, pool: &PoolName) -> bool {
    inputs.verdicts.all_lost(pool)
}

/// True while a pool that had lost everything has less than its floor again.
pub(super) fn regains(inputs: &Inputs, pool: &PoolName) -> bool {
    inputs.verdicts.regains(pool)
}

/// The part of its weight that an endpoint has now, in percent.
pub(super) fn weight_percent(inputs: &Inputs, member: &Member, now: Instant) -> u32 {
    inputs.verdicts.weight_percent(&member.identity.key(), now)
}

/// The part of its share that a cloud has now in a pool, in percent. A pool that wants no slow start of its endpoints
/// wants none of a cloud either, unless the cloud says otherwise.
pub(super) fn share_percent(inputs: &Inputs, pool: &config::Pool, cloud: &CloudName) -> u32 {
    let paced = || {
        let cloud = inputs.config.clouds.iter().find(|known| known.name == *cloud);
        cloud.is_some_and(|cloud| cloud.domain.recovery_time.is_some() || cloud.domain.capacity.is_some())
    };
    match inputs.verdicts.cloud_percent(&pool.name, cloud) {
        percent @ 1..100 if !pool.slow_start.is_zero() || paced() => percent,
        0 => 0,
        _ => 100,
    }
}

//! From inputs and snapshot to what people are shown.

use std::{collections::HashMap, sync::Arc, time::SystemTime};

use tokio::time::Instant;

use super::{
    EndpointView, ListenerView, Overview, PoolView,
    inputs::{Inputs, Member},
    standing,
};
use crate::{
    config,
    ids::CloudName,
    state::{Pool, Snapshot},
};

/// The same moment, for decisions and for people.
pub(super) type Now = (Instant, SystemTime);

/// A picture of this generation.
pub(super) fn overview(inputs: &Inputs, snapshot: &Snapshot, now: Now) -> Overview {
    let compiled: HashMap<_, _> = snapshot.pools.iter().map(|pool| (&pool.name, pool)).collect();
    let pools = inputs
        .config
        .pools
        .iter()
        .filter_map(|pool| Some(pool_view(inputs, pool, compiled.get(&pool.name)?, now)))
        .collect();
    let listeners = inputs
        .listeners
        .iter()
        .map(|listener| ListenerView { cell: Arc::clone(&listener.cell), pool: listener.config.pool.clone() })
        .collect();
    Overview { generation: snapshot.generation, config: Arc::clone(&inputs.config), listeners, pools }
}

fn pool_view(inputs: &Inputs, pool: &config::Pool, compiled: &Pool, now: Now) -> PoolView {
    let members = inputs.members.get(&pool.name).map(Vec::as_slice).unwrap_or_default();
    PoolView {
        name: pool.name.clone(),
        policy: pool.policy.clone(),
        balance: pool.balance,
        all_down: compiled.all_down,
        shares: shares(compiled),
        endpoints: members.iter().filter_map(|member| endpoint_view(inputs, compiled, member, now)).collect(),
        unresolved: inputs.unresolved.get(&pool.name).cloned().unwrap_or_default(),
        cell: Arc::clone(&compiled.cell),
        hedge: compiled.connect.hedge,
    }
}

/// The part of new sessions that each cloud of the first tier takes.
fn shares(pool: &Pool) -> Vec<(CloudName, f64)> {
    let Some(tier) = pool.tiers.first() else {
        return Vec::new();
    };
    tier.groups.iter().zip(tier.shares.fractions()).map(|(group, part)| (group.cloud.clone(), part)).collect()
}

fn endpoint_view(
    inputs: &Inputs,
    compiled: &Pool,
    member: &Member,
    (now, wall): Now,
) -> Option<EndpointView> {
    let opinion = inputs.opinions.get(&member.identity.key())?;
    let percent = standing::weight_percent(inputs, member, now);
    let first = compiled.tiers.first();
    let in_use = first.is_some_and(|tier| {
        let mut endpoints = tier.groups.iter().flat_map(|group| &group.endpoints);
        endpoints.any(|endpoint| endpoint.identity.address == member.identity.address)
    });
    Some(EndpointView {
        identity: Arc::clone(&member.identity),
        host: member.host.clone(),
        region: member.region.clone(),
        zone: member.zone.clone(),
        weight: member.weight,
        ramp_percent: u8::try_from(percent).unwrap_or(100),
        cell: Arc::clone(&member.cell),
        verdict: opinion.verdict,
        reason: Arc::clone(&opinion.reason),
        since: wall - now.duration_since(opinion.since),
        transitions: opinion.transitions,
        in_use,
    })
}

//! From inputs and snapshot to what people are shown, and the sentence for traffic that moved.

use std::{collections::HashMap, sync::Arc};

use tokio::time::Instant;

use super::{
    EndpointView, Failover, ListenerView, Overview, PoolView, View,
    compile::ramp_percent,
    inputs::{Inputs, Member},
};
use crate::{
    config,
    ids::{CloudName, Generation},
    state::{AllDown, Pool, Snapshot},
};

/// A picture of this generation.
pub(super) fn overview(inputs: &Inputs, snapshot: &Snapshot, now: Instant) -> Overview {
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

/// Pools whose first tier stands in other clouds than before.
pub(super) fn moves(before: &Snapshot, after: &Snapshot) -> Vec<Failover> {
    let old: HashMap<_, _> = before.pools.iter().map(|pool| (&pool.name, pool)).collect();
    after
        .pools
        .iter()
        .filter_map(|pool| {
            let was = old.get(&pool.name).filter(|was| !Arc::ptr_eq(was, pool))?;
            let (from, to) = (clouds(was), clouds(pool));
            (from != to && !from.is_empty()).then(|| Failover { pool: pool.name.clone(), from, to })
        })
        .collect()
}

/// Logs, counts and records a move.
pub(super) fn tell(failover: &Failover, generation: Generation, view: &View) {
    let Failover { pool, from, to } = failover;
    let target = if to.is_empty() { "nowhere: every endpoint is down" } else { to };
    tracing::warn!(%pool, from, to, %generation, "traffic of the pool moved");
    view.journal.record(generation, format!("pool {pool}: new sessions moved from {from} to {target}"));
    view.failed_over(failover.clone());
}

/// The clouds of the first tier, joined with `+`; nothing when new sessions are refused or tried in vain.
fn clouds(pool: &Pool) -> String {
    if pool.all_down == Some(AllDown::Refuse) {
        return String::new();
    }
    let names = |tier: &crate::state::Tier| {
        tier.groups.iter().map(|group| group.cloud.as_str()).collect::<Vec<_>>().join("+")
    };
    pool.tiers.first().map(names).unwrap_or_default()
}

fn pool_view(inputs: &Inputs, pool: &config::Pool, compiled: &Pool, now: Instant) -> PoolView {
    let members = inputs.members.get(&pool.name).map(Vec::as_slice).unwrap_or_default();
    PoolView {
        name: pool.name.clone(),
        policy: pool.policy.clone(),
        balance: pool.balance,
        all_down: compiled.all_down,
        shares: shares(compiled),
        endpoints: members
            .iter()
            .filter_map(|member| endpoint_view(inputs, pool, compiled, member, now))
            .collect(),
        unresolved: inputs.unresolved.get(&pool.name).cloned().unwrap_or_default(),
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
    pool: &config::Pool,
    compiled: &Pool,
    member: &Member,
    now: Instant,
) -> Option<EndpointView> {
    let opinion = inputs.opinions.get(&member.identity.key())?;
    let percent = ramp_percent(opinion.returned.map(|at| now.duration_since(at)), pool.slow_start);
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
        since: opinion.since,
        transitions: opinion.transitions,
        in_use,
    })
}

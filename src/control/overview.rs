//! From inputs, snapshot and verdicts to what people are shown.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    sync::Arc,
    time::SystemTime,
};

use tokio::time::Instant;

use super::{
    CloudVerdict, CloudView, EndpointView, Judged, ListenerView, Overview, PoolView, Word,
    inputs::{Inputs, Member},
    standing,
    verdicts::{CloudStanding, Explanation, Standing},
};
use crate::{
    config,
    ids::CloudName,
    state::{Pool, Snapshot},
};

/// The same moment, for decisions and for people.
pub(super) type Now = (Instant, SystemTime);

/// A picture of this generation, without the certificates, of which only the reconciler knows.
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
        .map(|listener| ListenerView {
            cell: Arc::clone(&listener.cell),
            target: listener.config.target.clone(),
            pools: listener.config.pools().cloned().collect(),
        })
        .collect();
    Overview {
        certificates: Arc::default(),
        generation: snapshot.generation,
        config: Arc::clone(&inputs.config),
        listeners,
        clouds: inputs.config.clouds.iter().map(|cloud| cloud_view(inputs, &cloud.name, now)).collect(),
        pools,
    }
}

fn cloud_view(inputs: &Inputs, name: &CloudName, now: Now) -> CloudView {
    let verdict = match inputs.verdicts.cloud(name) {
        CloudStanding::Up => CloudVerdict::Up,
        CloudStanding::Down { since, evidence } => {
            CloudVerdict::Down { since: on_the_wall(since, now), evidence }
        }
        CloudStanding::Recovering { percent } => CloudVerdict::Recovering { percent },
    };
    CloudView { name: name.clone(), verdict }
}

fn pool_view(inputs: &Inputs, pool: &config::Pool, compiled: &Pool, now: Now) -> PoolView {
    let members = inputs.members.get(&pool.name).map(Vec::as_slice).unwrap_or_default();
    let used = used(compiled);
    PoolView {
        name: pool.name.clone(),
        policy: pool.policy.clone(),
        balance: pool.balance,
        all_down: compiled.all_down,
        shares: shares(compiled),
        paced: paced(inputs, pool, members),
        frozen: inputs.verdicts.doubt(&pool.name),
        taken: inputs.verdicts.taken(&pool.name, now.0),
        limits: (pool.ejection, pool.restraint),
        endpoints: members.iter().filter_map(|member| endpoint_view(inputs, &used, member, now)).collect(),
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

/// The clouds of a pool that come back, and how much of their share they get.
fn paced(inputs: &Inputs, pool: &config::Pool, members: &[Member]) -> Vec<(CloudName, u32)> {
    let used = |cloud: &CloudName| members.iter().any(|member| member.identity.cloud == *cloud);
    let clouds = inputs.config.clouds.iter().map(|cloud| &cloud.name).filter(|cloud| used(cloud));
    let recovering =
        clouds.filter(|cloud| matches!(inputs.verdicts.cloud(cloud), CloudStanding::Recovering { .. }));
    recovering.map(|cloud| (cloud.clone(), standing::share_percent(inputs, pool, cloud))).collect()
}

/// What sessions may be given to at the first attempt.
fn used(pool: &Pool) -> HashSet<SocketAddr> {
    let groups = pool.tiers.first().into_iter().flat_map(|tier| &tier.groups);
    groups.flat_map(|group| &group.endpoints).map(|endpoint| endpoint.address()).collect()
}

fn endpoint_view(
    inputs: &Inputs,
    used: &HashSet<SocketAddr>,
    member: &Member,
    now: Now,
) -> Option<EndpointView> {
    let key = member.identity.key();
    let opinion = inputs.opinions.get(&key)?;
    let percent = standing::weight_percent(inputs, member, now.0);
    let judged = inputs.verdicts.explain(&key, now.0);
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
        since: on_the_wall(opinion.since, now),
        transitions: opinion.transitions,
        in_use: used.contains(&member.identity.address),
        judged: judged.map(|judged| self::judged(judged, now)).unwrap_or_default(),
    })
}

fn judged(judged: Explanation, now: Now) -> Judged {
    let (standing, until) = match judged.standing {
        Standing::In { .. } if judged.kept.is_some() => (Word::Kept, None),
        Standing::In { .. } => (Word::In, None),
        Standing::Out { until, .. } => (Word::Out, until),
        Standing::Trial => (Word::Trial, None),
        Standing::New => (Word::New, None),
    };
    Judged {
        standing,
        reason: judged.reason,
        until: until.map(|until| on_the_wall(until, now)),
        kept: judged.kept.filter(|_| standing == Word::Kept),
        ejections: judged.ejections_total,
        flaps: judged.flaps_total,
        row: judged.consecutive_failures,
        attempts: judged.attempts,
        failures: judged.failures,
    }
}

/// A moment as people tell it.
fn on_the_wall(at: Instant, (now, wall): Now) -> SystemTime {
    if at > now { wall + at.duration_since(now) } else { wall - now.duration_since(at) }
}

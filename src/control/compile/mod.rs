//! Inputs to snapshot. No I/O and no clock: the same inputs give the same routing. A pool in which nothing has changed
//! is taken over from the snapshot before.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use tokio::time::Instant;

use super::{
    inputs::{Inputs, Member, OpenListener},
    policy,
    standing::{self, Use},
};
use crate::{
    balance::{Balance, Maglev, Shares},
    config::{self, WhenAllDown},
    ids::{CloudName, Generation, PoolName},
    state::{
        AllDown, Connect, Endpoint, Group, Hedge, Listener, Pool, Replay, SessionLimits, Snapshot, Tier,
    },
};

/// Which pools must be compiled anew.
#[derive(Debug)]
pub(super) enum Dirty {
    All,
    Pools(HashSet<PoolName>),
}

/// Compiles generation `generation`.
pub(super) fn compile(
    inputs: &mut Inputs,
    before: &Snapshot,
    dirty: &Dirty,
    generation: Generation,
    now: Instant,
) -> Snapshot {
    let config = Arc::clone(&inputs.config);
    let old: HashMap<&PoolName, &Arc<Pool>> = before.pools.iter().map(|pool| (&pool.name, pool)).collect();
    let pools: Vec<Arc<Pool>> = config
        .pools
        .iter()
        .map(|pool| match (dirty, old.get(&pool.name)) {
            (Dirty::Pools(dirty), Some(same)) if !dirty.contains(&pool.name) => Arc::clone(same),
            _ => Arc::new(compile_pool(inputs, pool, now)),
        })
        .collect();
    let by_name: HashMap<&PoolName, &Arc<Pool>> = pools.iter().map(|pool| (&pool.name, pool)).collect();
    let mut listeners: Vec<Arc<Listener>> =
        inputs.listeners.iter().filter_map(|listener| compile_listener(listener, &by_name, before)).collect();
    listeners.extend(inputs.retired.iter().cloned());
    Snapshot { generation, listeners, pools }
}

fn compile_listener(
    listener: &OpenListener,
    pools: &HashMap<&PoolName, &Arc<Pool>>,
    before: &Snapshot,
) -> Option<Arc<Listener>> {
    let pool = pools.get(&listener.config.pool)?;
    let config = &listener.config;
    let limits = SessionLimits {
        idle: config.idle_timeout,
        half_closed: config.half_close_timeout,
        lifetime: config.max_lifetime,
        user_timeout: config.user_timeout,
        upstream_timeout: config.user_timeout,
        keepalive: config.keepalive,
    };
    let same =
        before.listener(&listener.cell).filter(|old| Arc::ptr_eq(&old.pool, pool) && *old.limits == limits);
    Some(same.map_or_else(
        || {
            Arc::new(Listener {
                cell: Arc::clone(&listener.cell),
                pool: Arc::clone(pool),
                limits: Arc::new(limits),
            })
        },
        Arc::clone,
    ))
}

fn compile_pool(inputs: &mut Inputs, pool: &config::Pool, now: Instant) -> Pool {
    let members = inputs.members.get(&pool.name).cloned().unwrap_or_default();
    let (usable, all_down) = usable(inputs, pool, &members);
    let balance = balance(pool.balance);
    let tiers = policy::tiers(&pool.policy)
        .into_iter()
        .enumerate()
        .filter_map(|(place, clouds)| {
            let groups: Vec<(Group, u32)> = clouds
                .into_iter()
                .filter_map(|(cloud, weight)| {
                    let percent = standing::share_percent(inputs, pool, &cloud, now);
                    let group = compile_group(inputs, pool, balance, &cloud, &usable, now)?;
                    Some((group, weight.saturating_mul(percent)))
                })
                .collect();
            let shares = Shares::new(groups.iter().map(|(_, weight)| *weight));
            let groups: Vec<Group> = groups.into_iter().map(|(group, _)| group).collect();
            let cell = inputs.tier_cells.entry((pool.name.clone(), place)).or_default();
            (!groups.is_empty()).then(|| Tier { groups, shares, cell: Arc::clone(cell) })
        })
        .collect();
    Pool {
        name: pool.name.clone(),
        balance,
        tiers,
        connect: connect(pool),
        all_down,
        trials: Vec::new(),
        cell: Arc::clone(inputs.pool_cells.entry(pool.name.clone()).or_default()),
    }
}

fn connect(pool: &config::Pool) -> Connect {
    let how = &pool.connecting;
    Connect {
        spares: pool.preconnect,
        hedge: how.hedge.then_some(Hedge { budget: how.hedge_budget }),
        first_byte: how.first_byte,
        replay: (how.replay == config::Replay::UntilFirstByte).then_some(Replay { limit: how.replay_bytes }),
        dials: how.most,
        queue: how.queue,
        ..Connect::plain(pool.connect_timeout, pool.attempts, pool.connect_timeout * u32::from(pool.attempts))
    }
}

/// The members that may be used; if none may, those that do at need; if there are none of these, what the pool says.
fn usable(inputs: &Inputs, pool: &config::Pool, members: &[Member]) -> (Vec<Member>, Option<AllDown>) {
    for wanted in [Use::Yes, Use::AtNeed] {
        let fits = |member: &&Member| standing::usage(inputs, member) == wanted;
        let found: Vec<Member> = members.iter().filter(fits).cloned().collect();
        if !found.is_empty() {
            return (found, None);
        }
    }
    match pool.when_all_down {
        WhenAllDown::TryAnyway => (members.to_vec(), Some(AllDown::TryAnyway)),
        WhenAllDown::Refuse => (Vec::new(), Some(AllDown::Refuse)),
    }
}

fn compile_group(
    inputs: &mut Inputs,
    pool: &config::Pool,
    balance: Balance,
    cloud: &CloudName,
    usable: &[Member],
    now: Instant,
) -> Option<Group> {
    let socket = inputs.socket(cloud);
    let endpoints: Vec<Arc<Endpoint>> = usable
        .iter()
        .filter(|member| member.identity.cloud == *cloud)
        .map(|member| {
            Arc::new(Endpoint {
                identity: Arc::clone(&member.identity),
                cell: Arc::clone(&member.cell),
                weight: member.weight * standing::weight_percent(inputs, pool, member, now),
                socket: Arc::clone(&socket),
            })
        })
        .collect();
    if endpoints.is_empty() {
        return None;
    }
    let key = (pool.name.clone(), cloud.clone());
    let maglev = (balance == Balance::SourceHash).then(|| maglev(inputs, &key, usable, cloud));
    let cell = Arc::clone(inputs.group_cells.entry(key).or_default());
    let shares = Shares::new(endpoints.iter().map(|endpoint| endpoint.weight));
    Some(Group { cloud: cloud.clone(), endpoints, shares, maglev, cell })
}

/// The group's hash table: the one before if the members are the same. Slow start does not change it, as every change of
/// the table moves clients.
fn maglev(
    inputs: &mut Inputs,
    key: &(PoolName, CloudName),
    usable: &[Member],
    cloud: &CloudName,
) -> Arc<Maglev> {
    let members: Vec<(Vec<u8>, u32)> = usable
        .iter()
        .filter(|member| member.identity.cloud == *cloud)
        .map(|member| (member.identity.address.to_string().into_bytes(), member.weight))
        .collect();
    match inputs.maglevs.get(key) {
        Some((same, table)) if *same == members => Arc::clone(table),
        _ => {
            let table = Arc::new(Maglev::new(&members));
            inputs.maglevs.insert(key.clone(), (members, Arc::clone(&table)));
            table
        }
    }
}

const fn balance(balance: config::Balance) -> Balance {
    match balance {
        config::Balance::LeastSessions => Balance::LeastSessions,
        config::Balance::LeastLatency => Balance::LeastLatency,
        config::Balance::RoundRobin => Balance::RoundRobin,
        config::Balance::Random => Balance::Random,
        config::Balance::SourceHash => Balance::SourceHash,
    }
}

#[cfg(test)]
mod tests;

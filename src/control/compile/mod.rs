//! Inputs to snapshot. No I/O and no clock: the same inputs give the same routing. A pool in which nothing has changed
//! is taken over from the snapshot before.

mod entry;

pub(super) use entry::{as_asked, manner};

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
        AllDown, Connect, Endpoint, Group, Hedge, Listener, Pool, Replay, SessionLimits, Snapshot, Target,
        Tier,
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
    let open = inputs.listeners.clone();
    let mut listeners: Vec<Arc<Listener>> =
        open.iter().map(|listener| compile_listener(inputs, listener, &by_name, before)).collect();
    listeners.extend(inputs.retired.iter().cloned());
    Snapshot { generation, listeners, pools, own: Arc::clone(&inputs.own) }
}

fn compile_listener(
    inputs: &mut Inputs,
    listener: &OpenListener,
    pools: &HashMap<&PoolName, &Arc<Pool>>,
    before: &Snapshot,
) -> Arc<Listener> {
    let config = &listener.config;
    let limits = SessionLimits {
        idle: config.idle_timeout,
        half_closed: config.half_close_timeout,
        lifetime: config.max_lifetime,
        user_timeout: config.user_timeout,
        upstream_timeout: config.user_timeout,
        keepalive: config.keepalive,
    };
    let entry = entry::entry(inputs, &listener.cell, &config.entry);
    let target = |target: &config::Target| match target {
        config::Target::Refuse => Target::Refuse,
        config::Target::AsAsked => Target::AsAsked(Arc::clone(&inputs.as_asked)),
        config::Target::Pool(name) => {
            pools.get(name).map_or(Target::Refuse, |pool| Target::Pool(Arc::clone(pool)))
        }
    };
    let routed: Box<[Target]> = config.entry.routes.iter().map(|route| target(&route.target)).collect();
    let target = target(&config.target);
    let same = before.listener(&listener.cell).filter(|old| {
        old.target.is(&target)
            && *old.limits == limits
            && entry::is_same(old.entry.as_ref(), entry.as_ref())
            && old.routed.len() == routed.len()
            && old.routed.iter().zip(&routed).all(|(a, b)| a.is(b))
    });
    same.map_or_else(
        || {
            let (cell, limits) = (Arc::clone(&listener.cell), Arc::new(limits));
            Arc::new(Listener { cell, target, routed, limits, entry })
        },
        Arc::clone,
    )
}

fn compile_pool(inputs: &mut Inputs, pool: &config::Pool, now: Instant) -> Pool {
    let members = inputs.members.get(&pool.name).cloned().unwrap_or_default();
    let (usable, all_down) = usable(inputs, pool, &members);
    let mut compiler = PoolCompiler {
        inputs,
        pool,
        balance: balance(pool.balance),
        usable: &usable,
        as_if_up: all_down.is_some(),
        now,
    };
    let (mut tiers, spilled) = compiler.tiers();
    let trials = compiler.trials(&members);
    let mut reserve = if all_down == Some(AllDown::Refuse) { Vec::new() } else { compiler.reserve(&members) };
    if pool.when_all_down == WhenAllDown::TryAnyway && all_down.is_none() {
        tiers.extend(compiler.last_tier(&mut reserve));
    }
    let towards = entry::towards(inputs, pool, &members, now);
    Pool {
        name: pool.name.clone(),
        balance: balance(pool.balance),
        tiers,
        connect: connect(pool),
        all_down,
        spilled,
        reserve,
        trials,
        cell: Arc::clone(inputs.pool_cells.entry(pool.name.clone()).or_default()),
        towards,
    }
}

/// A cloud in a tier: its group, its weight, and how much of that it takes now, in percent.
type Share = (Group, u32, u32);

struct PoolCompiler<'a> {
    inputs: &'a mut Inputs,
    pool: &'a config::Pool,
    balance: Balance,
    usable: &'a [Member],
    /// All are down, and tried anyway.
    as_if_up: bool,
    now: Instant,
}

impl PoolCompiler<'_> {
    /// The tiers, and the number of groups at the end of the first that only fill up what its own leave.
    fn tiers(&mut self) -> (Vec<Tier>, usize) {
        let policy = policy::tiers(&self.pool.policy);
        let mut spilled = 0;
        let mut tiers = Vec::new();
        for (place, clouds) in policy.iter().enumerate() {
            let mut shares = self.shares(clouds);
            if shares.is_empty() {
                continue;
            }
            // Clouds that come back take less than their share; what they leave goes to the next tier. Later tiers are
            // asked by retries alone, which take what is left.
            let own = shares.len();
            if tiers.is_empty() && shares.iter().all(|(_, _, percent)| *percent < 100) {
                let later = policy.iter().skip(place + 1).map(|clouds| self.shares(clouds));
                let next = later.into_iter().find(|next| !next.is_empty()).unwrap_or_default();
                spill(&mut shares, next);
            }
            if tiers.is_empty() {
                spilled = shares.len() - own;
            }
            let weights =
                Shares::new(shares.iter().map(|(_, weight, percent)| weight.saturating_mul(*percent)));
            let cell = self.inputs.tier_cells.entry((self.pool.name.clone(), place)).or_default();
            let groups = shares.into_iter().map(|(group, ..)| group).collect();
            tiers.push(Tier { groups, shares: weights, cell: Arc::clone(cell) });
        }
        (tiers, spilled)
    }

    /// The clouds of a tier that have an endpoint to use.
    fn shares(&mut self, clouds: &[(CloudName, u32)]) -> Vec<Share> {
        let share = |(cloud, weight): &(CloudName, u32)| {
            let percent =
                if self.as_if_up { 100 } else { standing::share_percent(self.inputs, self.pool, cloud) };
            Some((self.group(cloud, self.usable, self.balance)?, *weight, percent))
        };
        clouds.iter().filter_map(share).collect()
    }

    /// Endpoints that one session may try.
    fn trials(&mut self, members: &[Member]) -> Vec<Arc<Endpoint>> {
        let on_trial = members.iter().filter(|member| standing::usage(self.inputs, member) == Use::Trial);
        on_trial.map(|member| self.endpoint(member)).collect()
    }

    /// The endpoints that are in no tier.
    fn reserve(&mut self, members: &[Member]) -> Vec<Group> {
        let is_used =
            |member: &Member| self.usable.iter().any(|used| used.identity.address == member.identity.address);
        let out: Vec<Member> = members.iter().filter(|member| !is_used(member)).cloned().collect();
        let clouds = policy::tiers(&self.pool.policy).into_iter().flatten();
        // Without a hash table: who comes here has left the endpoint that is its own.
        clouds.filter_map(|(cloud, _)| self.group(&cloud, &out, Balance::Random)).collect()
    }

    /// While a pool that had lost everything has little again, the rest is tried anyway, behind what is good.
    fn last_tier(&mut self, rest: &mut Vec<Group>) -> Option<Tier> {
        if rest.is_empty() || !standing::regains(self.inputs, &self.pool.name) {
            return None;
        }
        let place = policy::tiers(&self.pool.policy).len();
        let cell = self.inputs.tier_cells.entry((self.pool.name.clone(), place)).or_default();
        let (groups, cell) = (std::mem::take(rest), Arc::clone(cell));
        let shares = Shares::new(groups.iter().map(|_| 1));
        Some(Tier { groups, shares, cell })
    }

    fn group(&mut self, cloud: &CloudName, members: &[Member], balance: Balance) -> Option<Group> {
        let here = members.iter().filter(|member| member.identity.cloud == *cloud);
        let endpoints: Vec<Arc<Endpoint>> = here.map(|member| self.endpoint(member)).collect();
        if endpoints.is_empty() {
            return None;
        }
        let key = (self.pool.name.clone(), cloud.clone());
        let maglev = (balance == Balance::SourceHash).then(|| maglev(self.inputs, &key, members, cloud));
        let cell = Arc::clone(self.inputs.group_cells.entry(key).or_default());
        let shares = Shares::new(endpoints.iter().map(|endpoint| endpoint.weight));
        Some(Group { cloud: cloud.clone(), endpoints, shares, maglev, cell })
    }

    fn endpoint(&self, member: &Member) -> Arc<Endpoint> {
        Arc::new(Endpoint {
            identity: Arc::clone(&member.identity),
            cell: Arc::clone(&member.cell),
            weight: member.weight * standing::weight_percent(self.inputs, member, self.now),
            socket: self.inputs.socket(&member.identity.cloud),
        })
    }
}

/// Has the clouds of the next tier take what those of this one leave, each in proportion to its own weight.
fn spill(shares: &mut Vec<Share>, next: Vec<Share>) {
    let of = |shares: &[Share], part: fn(u32) -> u32| -> u64 {
        shares.iter().map(|(_, weight, percent)| u64::from(*weight) * u64::from(part(*percent))).sum()
    };
    let left = of(shares, |percent| 100_u32.saturating_sub(percent));
    let room = of(&next, |percent| percent).max(1);
    for (group, weight, percent) in next {
        let part = u64::from(weight) * u64::from(percent) * left / room;
        // Weights are multiplied by a percentage later on; this one has it in it.
        shares.push((group, u32::try_from(part.max(1)).unwrap_or(u32::MAX), 1));
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
    let wanted: &[Use] = if standing::is_lost(inputs, &pool.name) { &[] } else { &[Use::Yes, Use::AtNeed] };
    for wanted in wanted {
        let fits = |member: &&Member| standing::usage(inputs, member) == *wanted;
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

//! Facts and snapshot to an endpoint: synchronous, without I/O, the same for every attempt of a session.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use rand::{Rng, RngExt};
use xxhash_rust::xxh3::xxh3_64;

use crate::{
    balance::{Balance, Load, Shares, lighter},
    ids::{CloudName, EndpointIdentity},
    state::{Endpoint, Group, Pool, Tier},
};

/// Failed attempts in one cloud after which a session looks at the other clouds first, if its attempts reach every cloud
/// all the same.
const ATTEMPTS_PER_CLOUD: usize = 2;

/// The share of sessions that leave an endpoint which seems dead alone, where all are down.
const ASKED_ELSEWHERE: (u32, u32) = (9, 10);

/// What is known of a client before it is routed.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// Its address.
    pub client: SocketAddr,
    /// Endpoints that this session has tried: in vain, or it is trying them still.
    pub tried: &'a [Arc<EndpointIdentity>],
    /// The next attempt is made beside one that is late: another cloud is better than another endpoint.
    pub spread: bool,
}

impl Facts<'_> {
    /// True if the session has not tried this endpoint.
    fn left(&self, endpoint: &Endpoint) -> bool {
        self.tried.iter().all(|tried| tried.address != endpoint.address())
    }
}

/// Chooses the endpoint for a session's next attempt: never one it has tried, from the first tier that has one left, and
/// from another cloud once two attempts in one have failed (one, if the attempts must do for many clouds), or if the attempts are to spread. An endpoint on trial takes a
/// session's first attempt, if it has a permit for one. One that has as many sessions as it may is passed over, unless all
/// have: then the session has to wait. `None` when nothing is left.
#[must_use]
pub fn choose<'p>(pool: &'p Pool, facts: &Facts<'_>, rng: &mut impl Rng) -> Option<&'p Arc<Endpoint>> {
    let found = choose_any(pool, facts, rng)?;
    if found.cell.is_full(pool.towards.endpoint_sessions) {
        return with_room(pool, facts, rng).or(Some(found));
    }
    Some(found)
}

/// An endpoint that has fewer sessions than it may, of those that are in use.
#[cold]
fn with_room<'p>(pool: &'p Pool, facts: &Facts<'_>, rng: &mut impl Rng) -> Option<&'p Arc<Endpoint>> {
    let has_room = |endpoint: &Arc<Endpoint>| !endpoint.cell.is_full(pool.towards.endpoint_sessions);
    let left = |endpoint: &Arc<Endpoint>| facts.left(endpoint) && has_room(endpoint);
    pool.tiers.iter().find_map(|tier| next_of(pool.balance, &tier.groups, facts, rng, |_, one| left(one)))
}

fn choose_any<'p>(pool: &'p Pool, facts: &Facts<'_>, rng: &mut impl Rng) -> Option<&'p Arc<Endpoint>> {
    if facts.tried.is_empty() {
        if !pool.trials.is_empty()
            && let Some(trial) = pool.trials.iter().find(|endpoint| endpoint.cell.take_permit())
        {
            return Some(trial);
        }
        let group = first_group(pool, pool.tiers.first()?, facts)?;
        let first = group.endpoints.get(first_endpoint(pool.balance, group, facts, rng));
        return if pool.all_down.is_none() { first } else { answering(pool, first, facts, rng) };
    }
    let enough = if facts.spread { 1 } else { attempts_per_cloud(pool) };
    let fresh = |cloud: &CloudName| facts.tried.iter().filter(|tried| tried.cloud == *cloud).count() < enough;
    next(pool, facts, rng, fresh).or_else(|| next(pool, facts, rng, |_| true))
}

/// Where all are down, the last attempts tell more than any opinion. Some sessions go on asking the others.
#[cold]
fn answering<'p>(
    pool: &'p Pool,
    first: Option<&'p Arc<Endpoint>>,
    facts: &Facts<'_>,
    rng: &mut impl Rng,
) -> Option<&'p Arc<Endpoint>> {
    let in_vain = first.is_some_and(|first| first.cell.seems_dead());
    let better = (in_vain && rng.random_ratio(ASKED_ELSEWHERE.0, ASKED_ELSEWHERE.1))
        .then(|| next(pool, facts, rng, |_| true).filter(|other| other.cell.answers()));
    better.flatten().or(first)
}

/// Fewer than usual where the last cloud would have no attempt left.
fn attempts_per_cloud(pool: &Pool) -> usize {
    let clouds: usize = pool.tiers.iter().map(|tier| tier.groups.len()).sum();
    let reach = usize::from(pool.connect.attempts.saturating_sub(1)).checked_div(clouds.saturating_sub(1));
    reach.map_or(ATTEMPTS_PER_CLOUD, |reach| reach.clamp(1, ATTEMPTS_PER_CLOUD))
}

/// A client's hash: its address without its port, the same for IPv4 and IPv4-mapped addresses.
#[must_use]
pub fn hash(client: SocketAddr) -> u64 {
    match client.ip().to_canonical() {
        IpAddr::V4(ip) => xxh3_64(&ip.octets()),
        IpAddr::V6(ip) => xxh3_64(&ip.octets()),
    }
}

fn first_group<'p>(pool: &Pool, tier: &'p Tier, facts: &Facts<'_>) -> Option<&'p Group> {
    let place = match pool.balance {
        _ if tier.groups.len() == 1 => 0,
        // A client keeps its cloud as it keeps its endpoint.
        Balance::SourceHash => tier.shares.at(hash(facts.client)),
        Balance::LeastSessions | Balance::LeastLatency | Balance::RoundRobin | Balance::Random => {
            tier.shares.nth(tier.cell.next())
        }
    };
    tier.groups.get(place)
}

fn first_endpoint(balance: Balance, group: &Group, facts: &Facts<'_>, rng: &mut impl Rng) -> usize {
    if group.endpoints.len() == 1 {
        return 0;
    }
    match balance {
        Balance::LeastSessions | Balance::LeastLatency => {
            let first = group.shares.at(rng.random());
            let second = another(&group.shares, first, rng);
            better(balance, &group.endpoints, first, second)
        }
        Balance::RoundRobin => group.shares.nth(group.cell.next()),
        Balance::Random => group.shares.at(rng.random()),
        Balance::SourceHash => {
            let member =
                |maglev: &Arc<crate::balance::Maglev>| maglev.member(hash(facts.client).rotate_left(32));
            group.maglev.as_ref().map_or(0, member)
        }
    }
}

/// A second draw that is not the first: by weight while luck allows, else the neighbour.
fn another(shares: &Shares, first: usize, rng: &mut impl Rng) -> usize {
    let second = shares.at(rng.random());
    if second != first { second } else { (first + 1 + rng.random_range(0..shares.len() - 1)) % shares.len() }
}

fn better(balance: Balance, endpoints: &[Arc<Endpoint>], first: usize, second: usize) -> usize {
    let load = |place: usize| {
        endpoints.get(place).map(|endpoint| {
            let active = endpoint.cell.active();
            let cost = match balance {
                Balance::LeastLatency => {
                    let usual = u64::try_from(endpoint.cell.connect_ewma().as_nanos()).unwrap_or(u64::MAX);
                    usual.saturating_mul(active + 1)
                }
                _ => active,
            };
            Load { cost, weight: endpoint.weight }
        })
    };
    match (load(first), load(second)) {
        (Some(a), Some(b)) if lighter(b, a) => second,
        _ => first,
    }
}

/// The choice after a failure: what is left, tier by tier, and at last those that are out: an opinion may be wrong, or old.
/// Within a tier, those that seem dead come last.
fn next<'p>(
    pool: &'p Pool,
    facts: &Facts<'_>,
    rng: &mut impl Rng,
    fresh: impl Fn(&CloudName) -> bool,
) -> Option<&'p Arc<Endpoint>> {
    let left = |endpoint: &Arc<Endpoint>| facts.left(endpoint);
    let alive = |endpoint: &Arc<Endpoint>| left(endpoint) && !endpoint.cell.seems_dead();
    let tiers = pool.tiers.iter().map(|tier| &tier.groups);
    tiers.chain([&pool.reserve]).find_map(|groups| {
        next_of(pool.balance, groups, facts, rng, |cloud, endpoint| fresh(cloud) && alive(endpoint)).or_else(
            || next_of(pool.balance, groups, facts, rng, |cloud, endpoint| fresh(cloud) && left(endpoint)),
        )
    })
}

fn next_of<'p>(
    balance: Balance,
    groups: &'p [Group],
    facts: &Facts<'_>,
    rng: &mut impl Rng,
    may: impl Fn(&CloudName, &Arc<Endpoint>) -> bool,
) -> Option<&'p Arc<Endpoint>> {
    let may_in = |group: &Group, endpoint: &Arc<Endpoint>| may(&group.cloud, endpoint);
    let groups: Vec<&Group> =
        groups.iter().filter(|group| group.endpoints.iter().any(|one| may_in(group, one))).collect();
    let weight = |group: &Group| {
        let members = group.endpoints.iter().filter(|endpoint| may_in(group, endpoint));
        members.fold(0_u32, |sum, one| sum.saturating_add(one.weight))
    };
    let group = *groups.get(Shares::new(groups.iter().map(|group| weight(group))).at(rng.random()))?;
    next_endpoint(balance, group, facts, rng, |endpoint| may_in(group, endpoint))
}

fn next_endpoint<'p>(
    balance: Balance,
    group: &'p Group,
    facts: &Facts<'_>,
    rng: &mut impl Rng,
    left: impl Fn(&Arc<Endpoint>) -> bool,
) -> Option<&'p Arc<Endpoint>> {
    if let (Balance::SourceHash, Some(maglev)) = (balance, &group.maglev) {
        let mut walk = maglev.walk(hash(facts.client).rotate_left(32));
        return walk.find_map(|place| group.endpoints.get(place).filter(|endpoint| left(endpoint)));
    }
    let endpoints: Vec<&Arc<Endpoint>> = group.endpoints.iter().filter(|endpoint| left(endpoint)).collect();
    let place = Shares::new(endpoints.iter().map(|endpoint| endpoint.weight)).at(rng.random());
    endpoints.get(place).copied()
}

#[cfg(test)]
mod tests;

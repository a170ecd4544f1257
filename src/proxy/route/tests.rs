//! The choice of an endpoint, for every way to balance.

use std::{collections::BTreeMap, time::Duration};

use rand::{SeedableRng, rngs::SmallRng};

use super::*;
use crate::{
    balance::Maglev,
    ids::{EndpointIdentity, PoolName},
    state::Connect,
};

/// A pool of tiers of (cloud, share, endpoints).
fn pool(balance: Balance, tiers: &[&[(&str, u32, usize)]]) -> Pool {
    let mut number = 0_u8;
    let tiers = tiers
        .iter()
        .map(|groups| Tier {
            shares: Shares::new(groups.iter().map(|(_, share, _)| *share)),
            groups: groups
                .iter()
                .map(|(cloud, _, count)| {
                    number += 1;
                    group(balance, cloud, number, *count)
                })
                .collect(),
            cell: Arc::default(),
        })
        .collect();
    let connect = Connect::plain(Duration::from_secs(1), 4, Duration::from_secs(4));
    Pool::new(PoolName::from("p"), balance, tiers, connect)
}

fn group(balance: Balance, cloud: &str, number: u8, count: usize) -> Group {
    let endpoints: Vec<_> = (0..count)
        .map(|n| {
            let address = SocketAddr::from(([10, number, 0, u8::try_from(n).unwrap()], 5432));
            let identity =
                EndpointIdentity { pool: PoolName::from("p"), cloud: CloudName::from(cloud), address };
            Arc::new(Endpoint {
                identity: Arc::new(identity),
                cell: Arc::default(),
                weight: 100,
                socket: Arc::default(),
            })
        })
        .collect();
    let names: Vec<_> =
        endpoints.iter().map(|endpoint| (endpoint.address().to_string().into_bytes(), 1)).collect();
    Group {
        cloud: CloudName::from(cloud),
        shares: Shares::new(endpoints.iter().map(|endpoint| endpoint.weight)),
        maglev: (balance == Balance::SourceHash).then(|| Arc::new(Maglev::new(&names))),
        endpoints,
        cell: Arc::default(),
    }
}

fn client(n: u32) -> SocketAddr {
    SocketAddr::new(std::net::Ipv4Addr::from(0xC000_0000 + n).into(), 40_000)
}

fn rng() -> SmallRng {
    SmallRng::seed_from_u64(7)
}

const ALL: [Balance; 5] = [
    Balance::LeastSessions,
    Balance::LeastLatency,
    Balance::RoundRobin,
    Balance::Random,
    Balance::SourceHash,
];

#[test]
fn the_first_tier_takes_every_first_attempt() {
    for balance in ALL {
        let pool = pool(balance, &[&[("aws", 1, 3)], &[("gcp", 1, 3)]]);
        let mut rng = rng();
        for n in 0..1000 {
            let endpoint =
                choose(&pool, &Facts { client: client(n), tried: &[], spread: false }, &mut rng).unwrap();
            assert_eq!(endpoint.identity.cloud.as_str(), "aws");
        }
    }
}

#[test]
fn shares_between_clouds_are_exact_within_two_percent() {
    for balance in ALL {
        let pool = pool(balance, &[&[("aws", 90, 2), ("gcp", 10, 2)]]);
        let mut rng = rng();
        let mut counts: BTreeMap<&str, u32> = BTreeMap::new();
        for n in 0..10_000 {
            let endpoint =
                choose(&pool, &Facts { client: client(n * 7919), tried: &[], spread: false }, &mut rng)
                    .unwrap();
            *counts.entry(endpoint.identity.cloud.as_str()).or_default() += 1;
        }
        // A hash is as even as its clients; the others are exact.
        let slack = if balance == Balance::SourceHash { 150 } else { 20 };
        assert!(counts["gcp"].abs_diff(1000) <= slack, "{balance:?}: {counts:?}");
    }
}

#[test]
fn attempts_visit_every_endpoint_once_and_then_end() {
    for balance in ALL {
        let pool = pool(balance, &[&[("aws", 1, 3)], &[("gcp", 1, 2), ("oci", 2, 2)]]);
        let mut rng = rng();
        for n in 0..200 {
            let mut tried = Vec::new();
            while let Some(endpoint) =
                choose(&pool, &Facts { client: client(n), tried: &tried, spread: false }, &mut rng)
            {
                assert!(!tried.contains(&endpoint.identity), "{balance:?} tried {} twice", endpoint.identity);
                tried.push(Arc::clone(&endpoint.identity));
            }
            assert_eq!(tried.len(), 7, "{balance:?}");
        }
    }
}

/// The clouds of a session's attempts, one after the other.
fn clouds_tried(pool: &Pool, attempts: usize) -> Vec<String> {
    let (mut rng, mut tried, mut clouds) = (rng(), Vec::new(), Vec::new());
    for _ in 0..attempts {
        let facts = Facts { client: client(1), tried: &tried, spread: false };
        let identity = Arc::clone(&choose(pool, &facts, &mut rng).unwrap().identity);
        clouds.push(identity.cloud.as_str().to_owned());
        tried.push(identity);
    }
    clouds
}

#[test]
fn the_third_attempt_goes_to_another_cloud() {
    for balance in ALL {
        let pool = pool(balance, &[&[("aws", 1, 10)], &[("gcp", 1, 10)]]);
        assert_eq!(clouds_tried(&pool, 5), ["aws", "aws", "gcp", "gcp", "aws"], "{balance:?}");
    }
}

#[test]
fn the_attempts_of_a_session_reach_every_cloud() {
    for balance in ALL {
        let mut pool = pool(balance, &[&[("aws", 1, 10)], &[("gcp", 1, 10)], &[("azure", 1, 10)]]);
        assert_eq!(clouds_tried(&pool, 4), ["aws", "gcp", "azure", "aws"], "{balance:?}");
        pool.connect.attempts = 6;
        assert_eq!(clouds_tried(&pool, 6), ["aws", "aws", "gcp", "gcp", "azure", "azure"], "{balance:?}");
    }
}

#[test]
fn least_sessions_evens_out_what_is_uneven() {
    let pool = pool(Balance::LeastSessions, &[&[("aws", 1, 4)]]);
    let mut rng = rng();
    for _ in 0..100 {
        pool.tiers[0].groups[0].endpoints[0].cell.begin();
    }
    for n in 0..400 {
        choose(&pool, &Facts { client: client(n), tried: &[], spread: false }, &mut rng)
            .unwrap()
            .cell
            .begin();
    }
    let active: Vec<u64> =
        pool.tiers[0].groups[0].endpoints.iter().map(|endpoint| endpoint.cell.active()).collect();
    assert!(active.iter().max().unwrap() - active.iter().min().unwrap() < 25, "{active:?}");
}

#[test]
fn least_latency_prefers_the_endpoint_that_connects_sooner() {
    let pool = pool(Balance::LeastLatency, &[&[("aws", 1, 2)]]);
    let endpoints = &pool.tiers[0].groups[0].endpoints;
    endpoints[0].cell.connected(Duration::from_millis(80));
    endpoints[1].cell.connected(Duration::from_millis(10));
    let mut rng = rng();
    for n in 0..100 {
        let chosen =
            choose(&pool, &Facts { client: client(n), tried: &[], spread: false }, &mut rng).unwrap();
        assert_eq!(chosen.address(), endpoints[1].address());
    }
}

#[test]
fn round_robin_takes_turns() {
    let pool = pool(Balance::RoundRobin, &[&[("aws", 1, 3)]]);
    let mut rng = rng();
    let last: Vec<u8> = (0..6)
        .map(|n| {
            let endpoint =
                choose(&pool, &Facts { client: client(n), tried: &[], spread: false }, &mut rng).unwrap();
            match endpoint.address().ip() {
                IpAddr::V4(ip) => ip.octets()[3],
                IpAddr::V6(_) => unreachable!(),
            }
        })
        .collect();
    assert_eq!(last, [0, 1, 2, 0, 1, 2]);
}

#[test]
fn a_client_keeps_its_endpoint_whatever_its_port_and_family() {
    let pool = pool(Balance::SourceHash, &[&[("aws", 1, 5), ("gcp", 1, 5)]]);
    let mut rng = rng();
    for n in 0..100 {
        let IpAddr::V4(ip) = client(n).ip() else { unreachable!() };
        let of = |address: SocketAddr, rng: &mut SmallRng| {
            choose(&pool, &Facts { client: address, tried: &[], spread: false }, rng).unwrap().address()
        };
        let first = of(client(n), &mut rng);
        assert_eq!(of(SocketAddr::new(ip.into(), 5), &mut rng), first);
        assert_eq!(of(SocketAddr::new(ip.to_ipv6_mapped().into(), 6), &mut rng), first);
    }
}

#[test]
fn an_empty_pool_offers_nothing() {
    let pool = pool(Balance::LeastSessions, &[]);
    assert!(choose(&pool, &Facts { client: client(1), tried: &[], spread: false }, &mut rng()).is_none());
}

#[test]
fn with_nothing_to_do_the_weights_decide() {
    let mut pool = pool(Balance::LeastSessions, &[&[("aws", 1, 2)]]);
    let group = &mut pool.tiers[0].groups[0];
    for (endpoint, weight) in group.endpoints.iter_mut().zip([3, 1]) {
        Arc::get_mut(endpoint).unwrap().weight = weight;
    }
    group.shares = Shares::new([3, 1]);
    let heavy = group.endpoints[0].address();
    let mut rng = rng();
    let count = (0..4000)
        .filter(|n| {
            let facts = Facts { client: client(*n), tried: &[], spread: false };
            choose(&pool, &facts, &mut rng).unwrap().address() == heavy
        })
        .count();
    assert!((2800..3200).contains(&count), "{count} of 4000");
}

#[test]
fn where_all_are_down_the_last_attempts_decide() {
    let mut pool = pool(Balance::LeastSessions, &[&[("aws", 1, 2), ("gcp", 1, 2)]]);
    let mut rng = rng();
    let facts = Facts { client: client(1), tried: &[], spread: false };
    let groups = &pool.tiers[0].groups;
    let (aws, gcp) = (groups[0].endpoints.clone(), groups[1].endpoints.clone());
    for endpoint in &aws {
        (0..5).for_each(|_| endpoint.cell.connect_failed(crate::telemetry::Cause::Refused));
    }
    gcp.iter().for_each(|endpoint| endpoint.cell.connected(Duration::from_millis(1)));
    let mut in_aws = |pool: &Pool| {
        (0..1000)
            .filter(|_| choose(pool, &facts, &mut rng).unwrap().identity.cloud == aws[0].identity.cloud)
            .count()
    };
    assert_eq!(in_aws(&pool), 500, "the judge decides");
    pool.all_down = Some(crate::state::AllDown::TryAnyway);
    assert!((20..80).contains(&in_aws(&pool)), "some find out whether it is well again");
    aws.iter().for_each(|endpoint| endpoint.cell.connected(Duration::from_millis(1)));
    assert_eq!(in_aws(&pool), 500);
}

#[test]
fn what_seems_dead_comes_last_within_its_tier() {
    let pool = pool(Balance::Random, &[&[("aws", 1, 3)], &[("gcp", 1, 1)]]);
    let members = &pool.tiers[0].groups[0].endpoints;
    (0..5).for_each(|_| members[1].cell.overtaken());
    let tried = [Arc::clone(&members[0].identity)];
    let facts = Facts { client: client(1), tried: &tried, spread: false };
    for _ in 0..50 {
        assert_eq!(choose(&pool, &facts, &mut rng()).unwrap().address(), members[2].address());
    }
    let tried = [Arc::clone(&members[0].identity), Arc::clone(&members[2].identity)];
    let facts = Facts { tried: &tried, ..facts };
    assert_eq!(choose(&pool, &facts, &mut rng()).unwrap().identity.cloud, CloudName::from("gcp"));
}

#[test]
fn an_endpoint_with_all_its_sessions_is_passed_over_unless_all_have_theirs() {
    for balance in [
        Balance::LeastSessions,
        Balance::LeastLatency,
        Balance::RoundRobin,
        Balance::Random,
        Balance::SourceHash,
    ] {
        let mut pool = pool(balance, &[&[("aws", 1, 2)], &[("gcp", 1, 1)]]);
        let (aws, gcp) =
            (pool.tiers[0].groups[0].endpoints.clone(), pool.tiers[1].groups[0].endpoints.clone());
        let mut rng = rng();
        let mut chosen = |pool: &Pool, tried: &[Arc<EndpointIdentity>], n| {
            choose(pool, &Facts { client: client(n), tried, spread: false }, &mut rng).unwrap().address()
        };
        aws[0].cell.begin();
        aws[0].cell.begin();
        pool.towards.endpoint_sessions = Some(2);
        assert!((0..100).all(|n| chosen(&pool, &[], n) == aws[1].address()), "{balance:?}");
        (0..2).for_each(|_| aws[1].cell.begin());
        assert!((0..100).all(|n| chosen(&pool, &[], n) == gcp[0].address()), "{balance:?}");
        (0..2).for_each(|_| gcp[0].cell.begin());
        assert!(
            (0..100).all(|n| chosen(&pool, &[], n) != gcp[0].address()),
            "{balance:?}: waits in its own tier"
        );
        let tried = [Arc::clone(&aws[0].identity)];
        aws[0].cell.finish();
        assert!((0..100).all(|n| chosen(&pool, &tried, n) == aws[1].address()), "{balance:?}");
        pool.towards.endpoint_sessions = None;
        (0..2).for_each(|_| aws[0].cell.begin());
        assert!((0..100).any(|n| chosen(&pool, &[], n) == aws[1].address()), "{balance:?}");
    }
}

//! What a pool compiles to as endpoints go and come back.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use super::*;
use crate::{
    config::{Address, Admin, AdminBind, Config, Log, Policy, SessionLines, Telemetry, defaults},
    control::{
        Name, Notice,
        health::Verdict,
        verdicts::{Opinion, Reading},
    },
    ids::{EndpointKey, ListenerName},
    net::Bind,
    state::{ListenerCell, Take, Termination, Ticket},
};

fn health() -> config::Health {
    config::Health {
        probe: config::Probe::Tcp { send: Vec::new(), expect: Vec::new() },
        port: None,
        tls: false,
        interval: defaults::PROBE_INTERVAL,
        fast_interval: defaults::PROBE_FAST_INTERVAL,
        timeout: defaults::PROBE_TIMEOUT,
        rise: 2,
        fall: 3,
        jitter: 0.1,
    }
}

/// A config of one pool `p` behind one listener: (address, cloud) each.
fn config(policy: Policy, probed: bool, endpoints: &[(&str, &str)]) -> Config {
    let health = probed.then(health);
    Config {
        workers: Some(1),
        pin_workers: None,
        engine: true,
        drain_timeout: defaults::DRAIN_TIMEOUT,
        max_memory: config::MaxMemory::Off,
        log: Log {
            level: config::Level::Info,
            format: config::LogFormat::Auto,
            sessions: SessionLines::All,
            file: None,
        },
        admin: Admin { bind: AdminBind::Off, explicit: true },
        telemetry: Telemetry { bind: None, explicit: true },
        spiffe: None,
        clouds: Vec::new(),
        pools: vec![config::Pool {
            name: PoolName::from("p"),
            policy,
            balance: config::Balance::RoundRobin,
            when_all_down: WhenAllDown::TryAnyway,
            ejection: config::Ejection::default(),
            restraint: config::Restraint::default(),
            connect_timeout: defaults::CONNECT_TIMEOUT,
            attempts: 4,
            preconnect: 0,
            towards: config::Towards::default(),
            connecting: config::Connecting::default(),
            slow_start: Duration::from_secs(10),
            health,
            endpoints: endpoints.iter().map(|(address, cloud)| endpoint(address, cloud)).collect(),
        }],
        listeners: vec![config::Listener {
            name: ListenerName::from("l"),
            bind: Bind { address: "127.0.0.1:5000".parse().unwrap(), only_v6: false },
            target: config::Target::Pool(PoolName::from("p")),
            entry: config::Entry::default(),
            idle_timeout: defaults::IDLE_TIMEOUT,
            half_close_timeout: defaults::HALF_CLOSE_TIMEOUT,
            max_lifetime: None,
            backlog: 16,
            keepalive: defaults::KEEPALIVE,
            user_timeout: defaults::USER_TIMEOUT,
            fast_open: None,
            tuning: config::Tuning::default(),
        }],
    }
}

fn endpoint(address: &str, cloud: &str) -> config::Endpoint {
    config::Endpoint {
        address: address.parse().map_or_else(
            |_| {
                let (host, port) = address.rsplit_once(':').unwrap();
                Address::Name { host: host.to_owned(), port: port.parse().unwrap() }
            },
            Address::Socket,
        ),
        cloud: CloudName::from(cloud),
        region: None,
        zone: None,
        weight: 1,
    }
}

fn failover() -> Policy {
    Policy::Failover { order: vec![CloudName::from("aws"), CloudName::from("gcp")] }
}

const FOUR: [(&str, &str); 4] =
    [("10.0.0.1:1", "aws"), ("10.0.0.2:1", "aws"), ("10.1.0.1:1", "gcp"), ("10.1.0.2:1", "gcp")];

struct Bed {
    inputs: Inputs,
    snapshot: Snapshot,
    now: Instant,
    cell: Arc<ListenerCell>,
    told: Vec<Notice>,
}

impl Bed {
    fn new(config: Config) -> Self {
        let cell = Arc::new(ListenerCell::new(ListenerName::from("l"), "127.0.0.1:5000".parse().unwrap()));
        let mut bed = Self {
            inputs: Inputs::new(Arc::new(config.clone()), vec!["127.0.0.1:7700".parse().unwrap()], 1),
            snapshot: Snapshot::default(),
            now: Instant::now(),
            cell,
            told: Vec::new(),
        };
        bed.configure(config);
        bed
    }

    fn configure(&mut self, config: Config) {
        let open = OpenListener { config: config.listeners[0].clone(), cell: Arc::clone(&self.cell) };
        self.told.extend(self.inputs.configure(Arc::new(config), vec![open], Vec::new(), self.now));
        self.compile(&Dirty::All);
    }

    fn compile(&mut self, dirty: &Dirty) {
        let generation = self.snapshot.generation.next();
        self.inputs.verdicts.decide(self.now);
        self.snapshot = compile(&mut self.inputs, &self.snapshot, dirty, generation, self.now);
    }

    /// True when the addresses are news.
    fn resolve(&mut self, name: Name, addresses: Vec<SocketAddr>) -> bool {
        let told = self.inputs.resolve(name, addresses, self.now);
        let news = told.is_some();
        self.told.extend(told.unwrap_or_default());
        news
    }

    /// With every endpoint found up.
    fn up(config: Config) -> Self {
        let mut bed = Self::new(config);
        for (address, _) in FOUR {
            bed.judge(address, Verdict::Up);
        }
        bed
    }

    fn judge(&mut self, address: &str, verdict: Verdict) -> bool {
        let key = EndpointKey { pool: PoolName::from("p"), address: address.parse().unwrap() };
        let opinion = Opinion { verdict, reason: Arc::from("because"), answered: false, began: self.now };
        let news = self.inputs.judge(&key, opinion, self.now).is_some();
        self.compile(&Dirty::Pools(HashSet::from([PoolName::from("p")])));
        news
    }

    /// Tiers as (cloud, endpoints) each.
    fn tiers(&self) -> Vec<BTreeMap<String, usize>> {
        let groups = |tier: &Tier| {
            tier.groups.iter().map(|group| (group.cloud.to_string(), group.endpoints.len())).collect()
        };
        self.snapshot.pools[0].tiers.iter().map(groups).collect()
    }

    fn weights(&self) -> Vec<u32> {
        let endpoints = self.snapshot.pools[0].tiers.iter().flat_map(|tier| &tier.groups);
        endpoints.flat_map(|group| &group.endpoints).map(|endpoint| endpoint.weight).collect()
    }
}

fn tier(groups: &[(&str, usize)]) -> BTreeMap<String, usize> {
    groups.iter().map(|(cloud, count)| ((*cloud).to_owned(), *count)).collect()
}

#[test]
fn a_cloud_whose_endpoints_are_down_is_no_tier() {
    let mut bed = Bed::up(config(failover(), true, &FOUR));
    assert_eq!(bed.tiers(), [tier(&[("aws", 2)]), tier(&[("gcp", 2)])]);
    bed.judge("10.0.0.1:1", Verdict::Down);
    assert_eq!(bed.tiers(), [tier(&[("aws", 1)]), tier(&[("gcp", 2)])]);
    bed.judge("10.0.0.2:1", Verdict::Down);
    assert_eq!(bed.tiers(), [tier(&[("gcp", 2)])]);
}

#[test]
fn with_everything_down_the_pool_tries_anyway_or_refuses() {
    let mut bed = Bed::new(config(failover(), true, &FOUR));
    for (address, _) in FOUR {
        bed.judge(address, Verdict::Down);
    }
    assert_eq!(bed.snapshot.pools[0].all_down, Some(AllDown::TryAnyway));
    assert_eq!(bed.tiers(), [tier(&[("aws", 2)]), tier(&[("gcp", 2)])]);
    let mut refusing = config(failover(), true, &FOUR);
    refusing.pools[0].when_all_down = WhenAllDown::Refuse;
    bed.configure(refusing);
    assert_eq!(bed.snapshot.pools[0].all_down, Some(AllDown::Refuse));
    assert!(bed.tiers().is_empty());
}

#[test]
fn an_endpoint_not_probed_yet_is_used_only_while_none_is_up() {
    let mut bed = Bed::new(config(failover(), true, &FOUR));
    assert_eq!(bed.snapshot.pools[0].all_down, None);
    assert_eq!(bed.tiers(), [tier(&[("aws", 2)]), tier(&[("gcp", 2)])]);
    bed.judge("10.1.0.1:1", Verdict::Up);
    assert_eq!(bed.tiers(), [tier(&[("gcp", 1)])]);
}

#[test]
fn a_weighted_cloud_that_is_down_gives_its_share_to_the_others() {
    let weights = vec![(CloudName::from("aws"), 90), (CloudName::from("gcp"), 10)];
    let mut bed = Bed::up(config(Policy::Weighted { weights }, true, &FOUR));
    let parts = |bed: &Bed| bed.snapshot.pools[0].tiers[0].shares.fractions().collect::<Vec<_>>();
    assert_eq!(parts(&bed), [0.9, 0.1]);
    bed.judge("10.0.0.1:1", Verdict::Down);
    assert_eq!(parts(&bed), [0.9, 0.1], "half a cloud still takes the cloud's share");
    bed.judge("10.0.0.2:1", Verdict::Down);
    assert_eq!(parts(&bed), [1.0]);
}

#[test]
fn with_everything_down_each_cloud_has_its_share_again() {
    let weights = vec![(CloudName::from("aws"), 90), (CloudName::from("gcp"), 10)];
    let policies =
        [(Policy::Weighted { weights }, vec![vec![0.9, 0.1]]), (failover(), vec![vec![1.0], vec![1.0]])];
    for (policy, wanted) in policies {
        for order in [[2, 3, 0, 1], [0, 1, 2, 3]] {
            let mut bed = Bed::up(config(policy.clone(), true, &FOUR));
            for place in order {
                let key = EndpointKey { pool: PoolName::from("p"), address: FOUR[place].0.parse().unwrap() };
                // Without a session that failed as well, it would be the probes that are in doubt.
                for failed in [0, 1] {
                    let reading = Reading { failed, ..Reading::default() };
                    bed.inputs.verdicts.observe(&key, reading, bed.now);
                }
                bed.judge(FOUR[place].0, Verdict::Down);
            }
            let pool = &bed.snapshot.pools[0];
            assert_eq!(pool.all_down, Some(AllDown::TryAnyway));
            let parts = pool.tiers.iter().map(|tier| tier.shares.fractions().collect::<Vec<_>>());
            assert_eq!((parts.collect::<Vec<_>>(), pool.spilled), (wanted.clone(), 0), "{order:?}");
        }
    }
}

#[test]
fn an_endpoint_that_comes_back_starts_slowly() {
    let mut bed = Bed::up(config(failover(), true, &FOUR));
    bed.judge("10.0.0.1:1", Verdict::Down);
    bed.judge("10.0.0.1:1", Verdict::Up);
    assert_eq!(bed.weights(), [10, 100, 100, 100]);
    let start = bed.now;
    let mut seen = vec![10];
    while let Some(due) = bed.inputs.verdicts.due().filter(|_| seen.last() != Some(&100)) {
        assert!(due > bed.now);
        bed.now = due;
        bed.compile(&Dirty::Pools(HashSet::from([PoolName::from("p")])));
        seen.push(bed.weights()[0]);
    }
    assert_eq!(seen, [10, 20, 30, 40, 50, 60, 70, 80, 90, 100]);
    assert_eq!(bed.now - start, Duration::from_secs(9));
}

#[test]
fn health_and_counters_survive_a_reload() {
    let mut bed = Bed::new(config(failover(), true, &FOUR));
    bed.judge("10.0.0.1:1", Verdict::Down);
    bed.judge("10.1.0.1:1", Verdict::Up);
    let cell = Arc::clone(&bed.snapshot.pools[0].tiers[0].groups[0].endpoints[0].cell);
    cell.begin();
    let mut turned = FOUR;
    turned.reverse();
    let order = vec![CloudName::from("gcp"), CloudName::from("aws")];
    bed.configure(config(Policy::Failover { order }, true, &turned));
    assert_eq!(bed.tiers(), [tier(&[("gcp", 1)])]);
    assert!(Arc::ptr_eq(&bed.snapshot.pools[0].tiers[0].groups[0].endpoints[0].cell, &cell));
}

#[test]
fn endpoints_of_a_cloud_share_its_socket_options_and_a_reload_changes_them() {
    let cloud = |name: &str, fast_open| config::Cloud {
        name: CloudName::from(name),
        region: None,
        egress_usd_per_gb: None,
        domain: config::Domain::default(),
        socket: Arc::new(config::Outgoing { fast_open, ..config::Outgoing::default() }),
    };
    let with = |aws| Config {
        clouds: vec![cloud("aws", aws), cloud("gcp", false)],
        ..config(failover(), false, &FOUR)
    };
    let sockets = |bed: &Bed, tier: usize| -> Vec<_> {
        let endpoints = &bed.snapshot.pools[0].tiers[tier].groups[0].endpoints;
        endpoints.iter().map(|endpoint| Arc::clone(&endpoint.socket)).collect()
    };
    let mut bed = Bed::new(with(true));
    let aws = sockets(&bed, 0);
    assert!(aws[0].fast_open && Arc::ptr_eq(&aws[0], &aws[1]));
    assert!(!sockets(&bed, 1)[0].fast_open);
    bed.configure(with(false));
    assert!(!sockets(&bed, 0)[0].fast_open);
}

#[test]
fn addresses_of_a_name_that_the_source_of_a_cloud_cannot_reach_are_left_out() {
    let socket = config::Outgoing { source_v4: Some([10, 0, 0, 5].into()), ..config::Outgoing::default() };
    let cloud = config::Cloud {
        name: CloudName::from("aws"),
        region: None,
        egress_usd_per_gb: None,
        domain: config::Domain::default(),
        socket: Arc::new(socket),
    };
    let policy = Policy::Failover { order: vec![CloudName::from("aws")] };
    let mut bed = Bed::new(Config { clouds: vec![cloud], ..config(policy, false, &[("db.test:1", "aws")]) });
    let addresses = vec!["10.0.0.1:1".parse().unwrap(), "[2001:db8::1]:1".parse().unwrap()];
    bed.resolve((PoolName::from("p"), Arc::from("db.test"), 1), addresses);
    bed.compile(&Dirty::All);
    assert_eq!(bed.tiers(), [tier(&[("aws", 1)])]);
}

#[test]
fn a_pool_in_which_nothing_changed_is_the_same_object() {
    let mut two = config(failover(), false, &FOUR);
    two.pools.push(config::Pool { name: PoolName::from("q"), ..two.pools[0].clone() });
    let mut bed = Bed::new(two);
    let before = bed.snapshot.pools.clone();
    bed.judge("10.0.0.1:1", Verdict::Down);
    assert!(!Arc::ptr_eq(&before[0], &bed.snapshot.pools[0]));
    assert!(Arc::ptr_eq(&before[1], &bed.snapshot.pools[1]));
}

#[test]
fn limits_are_kept_while_they_are_the_same_and_the_bucket_of_a_pool_always() {
    let with = |sessions, deny: &[&str], rate| {
        let mut config = config(failover(), false, &FOUR);
        let entry = &mut config.listeners[0].entry;
        entry.admission.sessions = sessions;
        entry.access.deny = deny.iter().map(|network| network.parse().unwrap()).collect();
        config.pools[0].towards.bandwidth = rate;
        config
    };
    let limits = |bed: &Bed| bed.snapshot.listeners[0].entry.as_ref().unwrap().admission.clone().unwrap();
    let bucket = |bed: &Bed| bed.snapshot.pools[0].towards.bandwidth.clone();
    let mut bed = Bed::new(with(Some(1), &[], Some(1_000)));
    let (first, shared) = (limits(&bed), bucket(&bed).unwrap());
    bed.configure(with(Some(1), &["10.0.0.0/8"], Some(2_000_000)));
    assert!(Arc::ptr_eq(&first, &limits(&bed)));
    let entry = bed.snapshot.listeners[0].entry.clone().unwrap();
    assert!(!entry.access.admits("10.0.0.1".parse().unwrap()) && !entry.is_slow());
    assert!(Arc::ptr_eq(&shared, &bucket(&bed).unwrap()));
    assert_eq!(
        shared.to_client.take(usize::MAX, bed.now, &mut Ticket::default()),
        Take::Now(200_000),
        "at the new rate"
    );
    let inside = first.admit("192.0.2.1".parse().unwrap(), bed.now).unwrap();
    bed.configure(with(Some(2), &[], None));
    assert!(!Arc::ptr_eq(&first, &limits(&bed)) && bucket(&bed).is_none());
    let second = limits(&bed).admit("192.0.2.1".parse().unwrap(), bed.now);
    assert!(second.is_ok() && limits(&bed).admit("192.0.2.1".parse().unwrap(), bed.now).is_err());
    drop(inside);
    bed.configure(with(None, &[], None));
    assert!(bed.snapshot.listeners[0].entry.is_none());
}

#[test]
fn a_look_at_files_that_have_not_changed_leaves_a_listener_as_it_is() {
    let settings = |config| Arc::new(Termination { config, clients: None });
    let made = || {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = rustls::ServerConfig::builder_with_provider(provider);
        let nobody = Arc::new(rustls::server::ResolvesServerCertUsingSni::new());
        let builder = builder.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
        Arc::new(builder.with_cert_resolver(nobody))
    };
    let mut config = config(failover(), false, &FOUR);
    config.listeners[0].entry.tls = Some(config::ListenerTls {
        certificates: Vec::new(),
        min_version: config::TlsVersion::V12,
        alpn: Vec::new(),
        clients: config::ClientCertificates::Off,
        tickets: None,
    });
    let mut bed = Bed::new(config);
    let mut look = |made: &Arc<rustls::ServerConfig>| {
        bed.inputs.tls.servers.insert(ListenerName::from("l"), settings(Arc::clone(made)));
        bed.compile(&Dirty::All);
        bed.snapshot.listeners[0].entry.clone().unwrap()
    };
    let first = made();
    let entry = look(&first);
    assert!(Arc::ptr_eq(&entry, &look(&first)));
    assert!(!Arc::ptr_eq(&entry, &look(&made())));
}

#[test]
fn a_name_gets_its_addresses_and_keeps_them() {
    let mut bed = Bed::new(config(failover(), false, &[("db.internal:5432", "aws"), ("10.1.0.1:1", "gcp")]));
    assert_eq!(bed.tiers(), [tier(&[("gcp", 1)])]);
    assert_eq!(bed.inputs.unresolved[&PoolName::from("p")], ["db.internal:5432"]);
    let name = bed.inputs.names().remove(0);
    let addresses: Vec<SocketAddr> = vec!["10.9.0.1:5432".parse().unwrap(), "10.9.0.2:5432".parse().unwrap()];
    assert!(bed.resolve(name.clone(), addresses.clone()));
    assert!(!bed.resolve(name, addresses), "the same addresses are no news");
    bed.compile(&Dirty::All);
    assert_eq!(bed.tiers(), [tier(&[("aws", 2)]), tier(&[("gcp", 1)])]);
    let same = config(failover(), false, &[("db.internal:5432", "aws"), ("10.1.0.1:1", "gcp")]);
    bed.configure(same);
    assert_eq!(bed.tiers(), [tier(&[("aws", 2)]), tier(&[("gcp", 1)])], "a reload keeps them");
}

#[test]
fn a_name_that_points_at_us_is_left_out() {
    for (own, kept) in [("127.0.0.1:5000", false), ("127.0.0.1:7700", false), ("127.0.0.1:7701", true)] {
        let mut bed =
            Bed::new(config(failover(), false, &[("loop.internal:5000", "aws"), ("10.1.0.1:1", "gcp")]));
        let name = bed.inputs.names().remove(0);
        bed.resolve(name, vec![own.parse().unwrap()]);
        bed.compile(&Dirty::All);
        assert_eq!(bed.tiers()[0] == tier(&[("aws", 1)]), kept, "{own}");
    }
}

#[test]
fn a_name_that_points_at_us_is_told_once() {
    let looping = config(failover(), false, &[("loop.internal:5000", "aws"), ("10.1.0.1:1", "gcp")]);
    let mut bed = Bed::new(looping.clone());
    let name = bed.inputs.names().remove(0);
    let own = "127.0.0.1:7700".parse().unwrap();
    bed.resolve(name.clone(), vec![own]);
    bed.resolve(name, vec![own, "10.9.0.1:1".parse().unwrap()]);
    bed.configure(looping);
    let (pool, host) = (PoolName::from("p"), Arc::from("loop.internal"));
    assert_eq!(bed.told, [Notice::Loops { pool, host, address: own }]);
}

#[test]
fn what_a_name_no_longer_has_is_forgotten() {
    let mut bed = Bed::new(config(failover(), true, &[("db.internal:5432", "aws"), ("10.1.0.1:1", "gcp")]));
    let name = bed.inputs.names().remove(0);
    for last in 1..100_u8 {
        bed.resolve(name.clone(), vec![SocketAddr::from(([10, 9, 0, last], 5432))]);
    }
    assert_eq!(bed.inputs.opinions.len(), 2);
    let kept = EndpointKey { pool: PoolName::from("p"), address: "10.9.0.99:5432".parse().unwrap() };
    assert!(bed.inputs.opinions.contains_key(&kept));
}

#[test]
fn to_be_found_alive_at_first_is_no_change() {
    let mut bed = Bed::new(config(failover(), true, &FOUR));
    let transitions = |bed: &Bed, address: &str| {
        let key = EndpointKey { pool: PoolName::from("p"), address: address.parse().unwrap() };
        bed.inputs.opinions[&key].transitions
    };
    bed.judge("10.0.0.1:1", Verdict::Up);
    bed.judge("10.0.0.2:1", Verdict::Down);
    assert_eq!((transitions(&bed, "10.0.0.1:1"), transitions(&bed, "10.0.0.2:1")), (0, 1));
    bed.judge("10.0.0.1:1", Verdict::Down);
    assert_eq!(transitions(&bed, "10.0.0.1:1"), 1);
}

#[test]
fn generations_grow_and_verdicts_that_are_no_news_change_nothing() {
    let mut bed = Bed::new(config(failover(), false, &FOUR));
    assert!(!bed.judge("10.0.0.1:1", Verdict::Up));
    assert!(bed.judge("10.0.0.1:1", Verdict::Down));
    assert!(!bed.judge("10.0.0.9:1", Verdict::Down), "nobody knows this endpoint");
    assert_eq!(bed.snapshot.generation, Generation(4));
}

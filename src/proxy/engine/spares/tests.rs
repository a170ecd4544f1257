//! The store against a model, in virtual time, and how a number is shared out.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
};

use rand::{RngExt, SeedableRng, rngs::SmallRng};

use super::{
    store::{AGE, PAUSE_FIRST, PAUSE_MOST, STAGGER, STEADY},
    *,
};
use crate::{
    balance::{Balance, Shares},
    ids::{CloudName, EndpointIdentity, ListenerName, PoolName},
    net::Outgoing,
    proxy::tests::entries::{by_name, entry},
    state::{
        AllDown, Bandwidth, Connect, Listener, ListenerCell, ProxyIn, ProxyOut, Replay, SessionLimits, Tier,
        Towards,
    },
};

const SECOND: Duration = Duration::from_secs(1);

fn endpoint(number: u8, weight: u32) -> Arc<Endpoint> {
    let address = SocketAddr::from(([10, 0, 0, number], 5432));
    let identity = EndpointIdentity { pool: PoolName::from("p"), cloud: CloudName::from("aws"), address };
    Arc::new(Endpoint { identity: Arc::new(identity), cell: Arc::default(), weight, socket: Arc::default() })
}

fn want(endpoint: &Arc<Endpoint>, count: usize) -> Wanted {
    Wanted {
        endpoint: Arc::clone(endpoint),
        socket: Arc::clone(&endpoint.socket),
        keepalive: None,
        timeout: 3 * SECOND,
        count,
    }
}

/// A store with sockets that are numbers, and what must be true of it.
struct Model {
    store: Store<u32>,
    now: Instant,
    endpoints: Vec<Arc<Endpoint>>,
    wanted: HashMap<SocketAddr, usize>,
    /// Every spare: its token, its endpoint, and since when it is established.
    spares: BTreeMap<u32, (Token, SocketAddr, Option<Instant>)>,
    next: u32,
    dials: Vec<(Instant, SocketAddr)>,
}

impl Model {
    fn new(endpoints: u8) -> Self {
        Self {
            store: Store::new(),
            now: Instant::now(),
            endpoints: (0..endpoints).map(|number| endpoint(number, 1)).collect(),
            wanted: HashMap::new(),
            spares: BTreeMap::new(),
            next: 0,
            dials: Vec::new(),
        }
    }

    fn follow(&mut self, counts: &[usize]) {
        let wanted: Vec<Wanted> =
            self.endpoints.iter().zip(counts).map(|(endpoint, count)| want(endpoint, *count)).collect();
        self.wanted = wanted.iter().map(|one| (one.endpoint.address(), one.count)).collect();
        let gone = self.store.follow(wanted, self.now);
        self.gone(gone);
    }

    fn gone(&mut self, gone: impl IntoIterator<Item = Gone<u32>>) {
        for gone in gone {
            let (_, address, since) = self.spares.remove(&gone.socket).expect("it was there");
            assert_eq!((address, since.is_some()), (gone.endpoint.address(), gone.idle));
        }
    }

    /// Dials all that is due; some of the dials fail at once.
    fn dial(&mut self, mut refused: impl FnMut() -> bool) {
        while let Some(dial) = self.store.due(self.now) {
            self.dials.push((self.now, dial.endpoint.address()));
            if refused() {
                self.store.refused(dial.place, self.now);
                continue;
            }
            self.next += 1;
            let token = self.store.dialling(dial.place, self.next, self.now).unwrap();
            self.spares.insert(self.next, (token, dial.endpoint.address(), None));
            self.check();
        }
    }

    fn establish(&mut self, socket: u32) {
        let (token, _, since) = self.spares.get_mut(&socket).unwrap();
        assert!(self.store.establish(*token, self.now).is_some());
        *since = Some(self.now);
    }

    fn end(&mut self, socket: u32) {
        let gone = self.store.end(self.spares[&socket].0, self.now);
        self.gone(gone);
    }

    fn over(&mut self) {
        for token in self.store.over(self.now) {
            let (_, _, idle) = self.store.get(token).unwrap();
            let gone = if idle { self.store.retire(token) } else { self.store.end(token, self.now) };
            self.gone(gone);
        }
    }

    fn check(&self) {
        assert_eq!(self.store.len(), self.spares.len());
        let mut counts: HashMap<SocketAddr, usize> = HashMap::new();
        for (_, address, since) in self.spares.values() {
            *counts.entry(*address).or_default() += 1;
            assert!(since.is_none_or(|since| self.now < since + AGE_MOST), "one is too old");
        }
        for (address, count) in counts {
            let wanted = self.wanted.get(&address).copied().unwrap_or(0);
            assert!(count <= wanted, "{count} of {wanted} at {address}");
        }
    }
}

#[test]
fn whatever_happens_there_are_never_too_many_nor_any_that_nobody_wants() {
    for seed in 0..300 {
        println!("seed {seed}");
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut model = Model::new(4);
        for _ in 0..400 {
            let some = {
                let live: Vec<u32> = model.spares.keys().copied().collect();
                (!live.is_empty()).then(|| live[rng.random_range(0..live.len())])
            };
            match (rng.random_range(0..10), some) {
                (0, _) => {
                    let counts: Vec<usize> =
                        (0..4).map(|_| if rng.random() { rng.random_range(0..6) } else { 0 }).collect();
                    model.follow(&counts);
                }
                (1, _) => {
                    let gone = model.store.withdraw();
                    model.gone(gone);
                    assert_eq!(model.store.len(), 0);
                }
                (2 | 3, _) => {
                    let endpoint = Arc::clone(&model.endpoints[rng.random_range(0..4)]);
                    let youngest =
                        model.store.youngest(&endpoint, model.now).map(|(token, socket)| (token, *socket));
                    let idle = |(_, address, since): &&(Token, SocketAddr, Option<Instant>)| {
                        *address == endpoint.address() && since.is_some()
                    };
                    if let Some((token, socket)) = youngest {
                        let since = model.spares[&socket].2;
                        assert_eq!(since, model.spares.values().filter(idle).map(|one| one.2).max().unwrap());
                        let gone = model.store.give(token);
                        model.gone(gone);
                    }
                }
                (4, Some(socket)) => model.end(socket),
                (5 | 6, Some(socket)) if model.spares[&socket].2.is_none() => model.establish(socket),
                _ => {
                    model.now += Duration::from_millis(rng.random_range(0..3_000));
                    model.over();
                }
            }
            let unlucky = rng.random_range(0..4) == 0;
            model.dial(|| unlucky && rng.random());
            model.check();
        }
    }
}

#[test]
fn an_endpoint_that_closes_at_once_is_tried_once_in_16_seconds_in_the_end() {
    for refuses in [true, false] {
        let mut model = Model::new(1);
        model.follow(&[8]);
        for _ in 0..3_000 {
            model.over();
            model.dial(|| refuses);
            for socket in model.spares.keys().copied().collect::<Vec<_>>() {
                model.establish(socket);
                model.end(socket);
            }
            model.now += SECOND / 10;
        }
        let dials = &model.dials;
        // Those that were dialled together count once. A refusal at once is enough to dial no other.
        let together = if refuses { 1 } else { 8 };
        assert!(dials[..together].iter().all(|(at, _)| *at == dials[0].0));
        let gaps: Vec<Duration> = dials[together - 1..].windows(2).map(|two| two[1].0 - two[0].0).collect();
        let wanted = [1, 2, 4, 8, 16, 16, 16].map(Duration::from_secs);
        assert_eq!(gaps[..wanted.len()], wanted);
        assert!(gaps[wanted.len()..].iter().all(|gap| *gap == PAUSE_MOST), "{gaps:?}");
        assert_eq!(gaps[0], PAUSE_FIRST);
    }
}

#[test]
fn after_trouble_one_spare_that_stays_or_is_used_brings_back_the_others() {
    for used in [true, false] {
        let mut model = Model::new(1);
        model.follow(&[5]);
        model.dial(|| true);
        model.now += PAUSE_FIRST;
        model.over();
        model.dial(|| false);
        assert_eq!(model.store.len(), 1, "one to try");
        model.establish(1);
        model.now += STEADY - SECOND;
        model.over();
        model.dial(|| false);
        assert_eq!(model.store.len(), 1, "too soon to say");
        if used {
            let (token, _) = model.store.youngest(&model.endpoints[0], model.now).unwrap();
            let gone = model.store.give(token);
            model.gone(gone);
        } else {
            model.now += SECOND;
            model.over();
        }
        model.dial(|| false);
        assert_eq!(model.store.len(), 5);
    }
}

#[test]
fn an_endpoint_that_closes_what_is_idle_for_long_is_dialled_again_at_once() {
    let mut model = Model::new(1);
    model.follow(&[3]);
    model.dial(|| false);
    (1..=3).for_each(|socket| model.establish(socket));
    model.now += STEADY;
    model.end(1);
    model.dial(|| false);
    assert_eq!(model.store.len(), 3);
}

#[test]
fn where_an_endpoint_closes_what_is_idle_only_spares_of_half_that_age_are_used() {
    let mut model = Model::new(1);
    let endpoint = Arc::clone(&model.endpoints[0]);
    model.follow(&[2]);
    model.dial(|| false);
    (1..=2).for_each(|socket| model.establish(socket));
    model.now += 12 * SECOND;
    assert!(model.store.youngest(&endpoint, model.now).is_some());
    model.end(1);
    assert!(model.store.youngest(&endpoint, model.now).is_none(), "the other one is as old");
    model.dial(|| false);
    model.establish(3);
    model.now += 5 * SECOND;
    assert!(model.store.youngest(&endpoint, model.now).is_some());
    model.now += SECOND;
    assert!(model.store.youngest(&endpoint, model.now).is_none());
    // One that lives on shows that there is no such limit: 18 s, after 12.
    model.over();
    assert!(model.store.youngest(&endpoint, model.now).is_some());
}

#[test]
fn spares_that_were_dialled_together_do_not_grow_old_together() {
    let mut model = Model::new(1);
    model.follow(&[20]);
    model.dial(|| false);
    (1..=20).for_each(|socket| model.establish(socket));
    let mut least = 20;
    for _ in 0..u32::try_from(AGE.as_secs()).unwrap() + STAGGER {
        model.now += SECOND;
        model.over();
        least = least.min(model.store.len());
        model.dial(|| false);
        for socket in model.spares.keys().copied().collect::<Vec<_>>() {
            if model.spares[&socket].2.is_none() {
                model.establish(socket);
            }
        }
        model.check();
    }
    assert_eq!(least, 18, "two a second");
}

#[test]
fn a_dial_that_takes_too_long_is_a_failed_one() {
    let mut model = Model::new(1);
    model.follow(&[2]);
    model.dial(|| false);
    model.now += 3 * SECOND;
    model.over();
    model.dial(|| false);
    assert_eq!((model.store.len(), model.dials.len()), (0, 2), "a pause follows");
}

#[test]
fn spares_whose_cloud_has_other_settings_now_are_replaced() {
    let mut model = Model::new(1);
    model.follow(&[2]);
    model.dial(|| false);
    let same = Outgoing::default();
    let other = Outgoing { source_v4: Some("192.0.2.1".parse().unwrap()), ..Outgoing::default() };
    for (socket, gone) in [(same, 0), (other, 2)] {
        let wanted = Wanted { socket: Arc::new(socket), ..want(&model.endpoints[0], 2) };
        assert_eq!(model.store.follow(vec![wanted], model.now).len(), gone);
    }
}

fn group(weights: &[u32]) -> Group {
    Group {
        cloud: CloudName::from("aws"),
        endpoints: weights.iter().zip(0..).map(|(weight, number)| endpoint(number, *weight)).collect(),
        shares: Shares::new(weights.iter().copied()),
        maglev: None,
        cell: Arc::default(),
    }
}

#[test]
fn the_workers_parts_add_up_and_follow_the_weights() {
    for weights in [&[1][..], &[1, 1], &[1, 1, 1], &[3, 1], &[100, 10, 1]] {
        let group = group(weights);
        let sum: u32 = weights.iter().sum();
        for total in [0, 1, 2, 3, 7, 64, 1_024] {
            for workers in [1, 2, 3, 16] {
                let parts: Vec<Vec<usize>> =
                    (0..workers).map(|worker| counts(&group, total, worker, workers)).collect();
                let of_worker: Vec<usize> = parts.iter().map(|part| part.iter().sum()).collect();
                assert_eq!(of_worker.iter().sum::<usize>() as u64, total);
                assert!(of_worker.is_sorted_by(|a, b| a >= b) && of_worker[0] - of_worker[workers - 1] <= 1);
                for (place, weight) in weights.iter().enumerate() {
                    let got: usize = parts.iter().map(|part| part[place]).sum();
                    let ideal = total as f64 * f64::from(*weight) / f64::from(sum);
                    assert!(
                        (got as f64 - ideal).abs() <= 3.0,
                        "{got} of {total} for {weight} of {weights:?}"
                    );
                }
            }
        }
    }
    // No worker has all of one endpoint and none of another.
    assert_eq!(counts(&group(&[1, 1]), 4, 0, 2), [1, 1]);
    assert_eq!(counts(&group(&[1, 1]), 4, 1, 2), [1, 1]);
}

/// A pool of tiers of one cloud each, as a snapshot has it.
fn pool(spares: u16, all_down: Option<AllDown>, tiers: Vec<Group>) -> Arc<Pool> {
    let connect = Connect { spares, ..Connect::plain(SECOND, 1, SECOND) };
    let made = Pool::new(PoolName::from("p"), Balance::Random, self::tiers(tiers), connect);
    Arc::new(Pool { all_down, ..made })
}

fn tiers(groups: Vec<Group>) -> Vec<Tier> {
    let tier = |group| Tier { groups: vec![group], shares: Shares::new([1]), cell: Arc::default() };
    groups.into_iter().map(tier).collect()
}

fn listener(pool: &Arc<Pool>, idle: Duration) -> Arc<Listener> {
    let limits = SessionLimits {
        idle: SECOND,
        half_closed: SECOND,
        lifetime: None,
        user_timeout: SECOND,
        upstream_timeout: SECOND,
        keepalive: Keepalive { idle, interval: SECOND, count: 3 },
    };
    let cell = ListenerCell::new(ListenerName::from("l"), "127.0.0.1:1".parse().unwrap());
    Arc::new(Listener::plain(Arc::new(cell), Arc::clone(pool), limits))
}

fn with_socket(mut group: Group, socket: &Outgoing) -> Group {
    for endpoint in &mut group.endpoints {
        Arc::get_mut(endpoint).unwrap().socket = Arc::new(socket.clone());
    }
    group
}

/// What one worker wants of these pools, each behind a listener with its keepalive.
fn of(pools: &[(Arc<Pool>, Duration)]) -> Vec<Wanted> {
    let snapshot = Snapshot {
        generation: Generation(1),
        listeners: pools.iter().map(|(pool, idle)| listener(pool, *idle)).collect(),
        pools: pools.iter().map(|(pool, _)| Arc::clone(pool)).collect(),
        ..Snapshot::default()
    };
    wanted(&snapshot, 0, 1)
}

#[test]
fn spares_are_wanted_in_the_tier_in_use_of_pools_that_somebody_uses() {
    let minute = 60 * SECOND;
    let some = |spares, all_down| pool(spares, all_down, vec![group(&[1, 1]), group(&[1])]);
    let counts = |wanted: Vec<Wanted>| wanted.iter().map(|one| one.count).collect::<Vec<_>>();
    assert_eq!(counts(of(&[(some(4, None), minute)])), [2, 2], "the first tier only");
    assert_eq!(counts(of(&[(some(0, None), minute)])), [0; 0]);
    assert_eq!(counts(of(&[(some(4, Some(AllDown::TryAnyway)), minute)])), [0; 0]);
    assert_eq!(counts(of(&[(pool(4, Some(AllDown::Refuse), Vec::new()), minute)])), [0; 0]);
    let unused = Snapshot { pools: vec![some(4, None)], ..Snapshot::default() };
    assert!(wanted(&unused, 0, 1).is_empty());
}

#[test]
fn a_pool_whose_sessions_the_engine_does_not_begin_wants_no_spares() {
    let with = |towards: Towards, connect: Connect| {
        let pool = Pool::new(PoolName::from("p"), Balance::Random, tiers(vec![group(&[1])]), connect);
        !of(&[(Arc::new(Pool { towards, ..pool }), SECOND)]).is_empty()
    };
    let connect = Connect { spares: 4, ..Connect::plain(SECOND, 1, SECOND) };
    assert!(with(Towards::default(), connect));
    for towards in [
        Towards { proxy_header: Some(ProxyOut::V1), ..Towards::default() },
        Towards { bandwidth: Some(Arc::new(Bandwidth::new(1 << 20, Instant::now()))), ..Towards::default() },
        Towards { client_source: true, ..Towards::default() },
        Towards { endpoint_sessions: Some(9), ..Towards::default() },
    ] {
        assert!(!with(towards.clone(), connect), "{towards:?}");
    }
    for connect in [
        Connect { first_byte: Some(SECOND), ..connect },
        Connect { replay: Some(Replay { limit: 1 }), ..connect },
    ] {
        assert!(!with(Towards::default(), connect), "{connect:?}");
    }
}

#[test]
fn spares_are_wanted_as_long_as_the_engine_begins_the_sessions_of_one_listener() {
    let pool = pool(4, None, vec![group(&[1])]);
    let behind = |entries: Vec<Option<Entry>>| {
        let listener = |entry: Option<Entry>| {
            let plain = Arc::into_inner(listener(&pool, SECOND)).unwrap();
            Arc::new(Listener { entry: entry.map(Arc::new), ..plain })
        };
        let listeners = entries.into_iter().map(listener).collect();
        let pools = vec![Arc::clone(&pool)];
        !wanted(&Snapshot { listeners, pools, ..Snapshot::default() }, 0, 1).is_empty()
    };
    let slow = || Some(Entry { bandwidth: Some(1 << 20), ..entry() });
    let header = || Some(Entry { proxy_header: ProxyIn::Required(Vec::new()), ..entry() });
    let hears = || Some(Entry { routes: by_name(), ..entry() });
    assert!(!behind(vec![slow()]));
    assert!(!behind(vec![slow(), header()]));
    for good in [|| None, || Some(entry()), hears] {
        assert!(behind(vec![slow(), good()]) && behind(vec![good()]));
    }
}

#[test]
fn spares_are_dialled_without_fast_open_and_kept_alive_where_that_is_soon() {
    let how = |idle| Keepalive { idle, interval: SECOND, count: 3 };
    let fast = Outgoing { fast_open: true, ..Outgoing::default() };
    let own = Outgoing { keepalive: Some(how(9 * SECOND)), ..Outgoing::default() };
    for (socket, idle, wanted) in [
        (fast, 60 * SECOND, None),
        (Outgoing::default(), 10 * SECOND, Some(how(10 * SECOND))),
        (own.clone(), 60 * SECOND, Some(how(9 * SECOND))),
        (own, 5 * SECOND, Some(how(9 * SECOND))),
    ] {
        let found = of(&[(pool(1, None, vec![with_socket(group(&[1]), &socket)]), idle)]);
        assert!(!found[0].socket.fast_open);
        assert_eq!(found[0].keepalive, wanted);
    }
}

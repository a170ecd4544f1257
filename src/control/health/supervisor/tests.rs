//! Paused time and a made-up endpoint: what a loop asks, when, and what it concludes.

use std::{
    net::Ipv4Addr,
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
    time::Duration,
};

use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};

use super::*;
use crate::{
    control::{
        Change,
        health::Verdict,
        testing::{Lines, alone},
    },
    ids::PoolName,
};

const SECOND: Duration = Duration::from_secs(1);
const FAST: Duration = Duration::from_millis(100);

/// How the made-up endpoint at an address behaves: how long it takes, and how that ends.
type Script = Box<dyn Fn(SocketAddr) -> (Duration, Outcome) + Send + Sync>;

/// Probes that only this test sees.
struct Fake {
    script: Mutex<Script>,
    probes: Mutex<Vec<(SocketAddr, Instant)>>,
    in_flight: AtomicUsize,
    most: AtomicUsize,
}

struct Bench {
    fake: Arc<Fake>,
    health: HealthHandle,
    inbox: mpsc::Receiver<Change>,
}

impl Fake {
    fn behave(&self, script: impl Fn(SocketAddr) -> (Duration, Outcome) + Send + Sync + 'static) {
        *self.script.lock().unwrap() = Box::new(script);
    }

    fn prober(self: &Arc<Self>) -> Prober {
        let fake = Arc::clone(self);
        Box::new(move |address, _| {
            let fake = Arc::clone(&fake);
            Box::pin(async move {
                fake.probes.lock().unwrap().push((address, Instant::now()));
                let now = fake.in_flight.fetch_add(1, SeqCst) + 1;
                fake.most.fetch_max(now, SeqCst);
                let (took, outcome) = (fake.script.lock().unwrap())(address);
                sleep(took).await;
                fake.in_flight.fetch_sub(1, SeqCst);
                outcome
            })
        })
    }

    fn times(&self, address: SocketAddr) -> Vec<Instant> {
        let probes = self.probes.lock().unwrap();
        probes.iter().filter(|(probed, _)| *probed == address).map(|(_, at)| *at).collect()
    }

    fn count(&self) -> usize {
        self.probes.lock().unwrap().len()
    }
}

impl Bench {
    fn new(script: impl Fn(SocketAddr) -> (Duration, Outcome) + Send + Sync + 'static) -> Self {
        Self::with_inbox(script, 4096)
    }

    fn with_inbox(
        script: impl Fn(SocketAddr) -> (Duration, Outcome) + Send + Sync + 'static,
        room: usize,
    ) -> Self {
        let fake = Arc::new(Fake {
            script: Mutex::new(Box::new(script)),
            probes: Mutex::default(),
            in_flight: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
        });
        let (changes, inbox) = mpsc::channel(room);
        let health = HealthHandle::new(changes, Box::new(|_| ()), fake.prober(), 7);
        Self { fake, health, inbox }
    }

    async fn next(&mut self) -> (SocketAddr, Verdict, String) {
        loop {
            let change = timeout(60 * SECOND, self.inbox.recv()).await.expect("no change in a minute");
            let news = unpack(change.unwrap());
            if !is_again(&news) {
                return news;
            }
        }
    }

    /// What is in the inbox already.
    fn waiting(&mut self) -> Vec<(SocketAddr, Verdict, String)> {
        let all = std::iter::from_fn(|| self.inbox.try_recv().ok()).map(unpack);
        all.filter(|news| !is_again(news)).collect()
    }
}

/// Another bad probe of an endpoint that is down already.
fn is_again((_, _, reason): &(SocketAddr, Verdict, String)) -> bool {
    reason.starts_with("probes fail: ")
}

fn unpack(change: Change) -> (SocketAddr, Verdict, String) {
    let Change::Verdict { endpoint, verdict, reason, .. } = change else { panic!("{change:?}") };
    (endpoint.address, verdict, reason.to_string())
}

fn settings() -> config::Health {
    config::Health {
        probe: config::Probe::Tcp { send: Vec::new(), expect: Vec::new() },
        port: None,
        tls: false,
        interval: SECOND,
        fast_interval: FAST,
        timeout: Duration::from_millis(500),
        rise: 2,
        fall: 3,
        jitter: 0.0,
    }
}

fn address(n: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, n))
}

fn target(n: u16, settings: &config::Health) -> Target {
    let key = EndpointKey { pool: PoolName::from("pool"), address: address(n) };
    Target { key, settings: Arc::new(settings.clone()), socket: Arc::default(), manner: Manner::default() }
}

fn quick(outcome: Outcome) -> (Duration, Outcome) {
    (Duration::from_millis(1), outcome)
}

fn good(_: SocketAddr) -> (Duration, Outcome) {
    quick(Outcome::Good)
}

fn refused(_: SocketAddr) -> (Duration, Outcome) {
    quick(Outcome::Bad("connect: connection refused".into()))
}

#[tokio::test(start_paused = true)]
async fn the_first_probe_decides_and_then_runs_do() {
    let mut bench = Bench::new(good);
    bench.health.set_targets(vec![target(1, &settings())]);
    assert_eq!(bench.next().await, (address(1), Verdict::Up, "1 probe good".into()));
    sleep(5 * SECOND).await;
    assert_eq!(bench.waiting(), []);

    bench.fake.behave(refused);
    let down = (address(1), Verdict::Down, "3 probes failed: connect: connection refused".into());
    assert_eq!(bench.next().await, down);
    let times = bench.fake.times(address(1));
    let [.., first, second, third] = times[..] else { panic!("{times:?}") };
    assert_eq!((second - first, third - second), (FAST, FAST), "doubt is looked into quickly");

    bench.fake.behave(good);
    assert_eq!(bench.next().await, (address(1), Verdict::Up, "2 probes good".into()));
}

#[tokio::test(start_paused = true)]
async fn a_hint_shortens_the_time_to_notice() {
    let slow = config::Health { interval: 30 * SECOND, ..settings() };
    let mut bench = Bench::new(good);
    bench.health.set_targets(vec![target(1, &slow)]);
    bench.next().await;
    // Past the first, random phase.
    sleep(31 * SECOND).await;
    bench.fake.behave(refused);
    let died = Instant::now();
    bench.health.hint(&target(1, &slow).key);
    assert_eq!(bench.next().await.1, Verdict::Down);
    assert!(died.elapsed() < 3 * FAST, "{:?}", died.elapsed());
}

#[tokio::test(start_paused = true)]
async fn hints_alone_change_nothing_and_cost_little() {
    let mut bench = Bench::new(good);
    let key = target(1, &settings()).key;
    bench.health.set_targets(vec![target(1, &settings())]);
    bench.next().await;
    let before = bench.fake.count();
    for _ in 0..10_000 {
        bench.health.hint(&key);
        sleep(Duration::from_millis(1)).await;
    }
    let probes = bench.fake.count() - before;
    assert!((90..=101).contains(&probes), "{probes} probes in 10 s of hints, at most one in 100 ms");
    assert_eq!(bench.waiting(), []);
    bench.health.hint(&target(2, &settings()).key);
}

#[tokio::test(start_paused = true)]
async fn probes_in_flight_are_bounded_and_come_in_turn() {
    let bench = Bench::new(|_| (Duration::from_millis(50), Outcome::Good));
    bench.health.set_targets((1..=1000).map(|n| target(n, &settings())).collect());
    let start = Instant::now();
    assert!(bench.health.first_round(start + 10 * SECOND).await);
    assert_eq!(start.elapsed().as_millis(), 800, "16 rounds of 64");
    assert_eq!(bench.fake.most.load(SeqCst), 64);
    // Second probes queue up behind the first ones.
    let early = bench.fake.count();
    assert!((1000..=1000 + 64).contains(&early), "{early} probes in the first round");
}

#[tokio::test(start_paused = true)]
async fn a_thousand_endpoints_do_not_beat_in_step() {
    let bench = Bench::new(good);
    let settings = config::Health { jitter: 0.1, ..settings() };
    bench.health.set_targets((1..=1000).map(|n| target(n, &settings)).collect());
    assert!(bench.health.first_round(Instant::now() + SECOND).await);
    let start = Instant::now();
    sleep(5 * SECOND).await;
    let mut buckets = [0_u32; 501];
    for (_, at) in bench.fake.probes.lock().unwrap().iter().filter(|(_, at)| *at > start) {
        buckets[usize::try_from((*at - start).as_millis() / 10).unwrap()] += 1;
    }
    let total: u32 = buckets.iter().sum();
    let most = buckets.iter().max().unwrap();
    assert!((4800..=5200).contains(&total), "{total} probes in 5 s");
    assert!(*most <= 30, "{most} probes within 10 ms, where 10 is the mean");
}

#[tokio::test(start_paused = true)]
async fn a_slow_endpoint_delays_no_other() {
    let mut bench = Bench::new(|probed| match probed == address(1) {
        true => (Duration::from_millis(900), Outcome::Good),
        false => quick(Outcome::Good),
    });
    bench.health.set_targets((1..=20).map(|n| target(n, &settings())).collect());
    for _ in 0..20 {
        bench.next().await;
    }
    sleep(SECOND).await;
    let before = bench.fake.count();
    sleep(10 * SECOND).await;
    let probes = bench.fake.count() - before;
    assert!((199..=201).contains(&probes), "{probes}");
}

#[tokio::test(start_paused = true)]
async fn a_dead_cloud_leaves_room_to_watch_the_living() {
    let dead = |probed: SocketAddr| probed.port() <= 500;
    let script = move |probed| match dead(probed) {
        true => (Duration::from_millis(500), Outcome::Bad("silent".into())),
        false => quick(Outcome::Good),
    };
    let mut bench = Bench::new(script);
    bench.health.set_targets((1..=550).map(|n| target(n, &settings())).collect());
    assert!(bench.health.first_round(Instant::now() + 60 * SECOND).await);
    assert_eq!(bench.waiting().len(), 550);
    let start = Instant::now();
    sleep(10 * SECOND).await;
    let times = bench.fake.times(address(550));
    let gaps: Vec<_> =
        times.windows(2).filter(|pair| pair[0] > start).map(|pair| pair[1] - pair[0]).collect();
    assert!(gaps.len() >= 8 && gaps.iter().all(|gap| gap.as_millis() == 1000), "{gaps:?}");

    bench.fake.behave(move |probed| match probed == address(550) {
        true => refused(probed),
        false => script(probed),
    });
    let died = Instant::now();
    assert_eq!(bench.next().await.0, address(550));
    assert!(died.elapsed() < 2 * SECOND, "{:?}", died.elapsed());
    assert!(bench.fake.most.load(SeqCst) <= 64);
}

#[tokio::test(start_paused = true)]
async fn the_same_targets_again_change_nothing() {
    let mut bench = Bench::new(good);
    let targets = || (1..=3).map(|n| target(n, &settings())).collect::<Vec<_>>();
    bench.health.set_targets(targets());
    for _ in 0..3 {
        bench.next().await;
    }
    sleep(SECOND).await;
    let before = bench.fake.count();
    for _ in 0..100 {
        bench.health.set_targets(targets());
        sleep(FAST).await;
    }
    let probes = bench.fake.count() - before;
    assert!((28..=32).contains(&probes), "{probes} probes of 3 endpoints in 10 s");
    assert_eq!(bench.waiting(), [], "no verdict was given twice");
    assert!(bench.health.first_round(Instant::now()).await, "nobody starts over");
}

#[tokio::test(start_paused = true)]
async fn new_settings_take_over_at_once_and_keep_the_verdict() {
    let mut bench = Bench::new(good);
    bench.health.set_targets(vec![target(1, &config::Health { interval: 3600 * SECOND, ..settings() })]);
    bench.next().await;
    let changed = config::Health { port: Some(99), interval: 2 * SECOND, fall: 1, ..settings() };
    bench.health.set_targets(vec![target(1, &changed)]);
    sleep(11 * SECOND).await;
    assert_eq!(bench.waiting(), []);
    assert!((5..=6).contains(&bench.fake.times(address(99)).len()));

    bench.fake.behave(refused);
    let (who, _, reason) = bench.next().await;
    assert_eq!((who, &*reason), (address(1), "1 probe failed: connect: connection refused"));
}

#[tokio::test(start_paused = true)]
async fn who_is_not_wanted_any_more_is_left_alone() {
    let mut bench = Bench::new(good);
    bench.health.set_targets(vec![target(1, &settings()), target(2, &settings())]);
    bench.next().await;
    bench.next().await;
    bench.health.set_targets(vec![target(2, &settings())]);
    let before = bench.fake.times(address(1)).len();
    sleep(5 * SECOND).await;
    assert_eq!(bench.fake.times(address(1)).len(), before);
    assert!(bench.fake.times(address(2)).len() >= 5);

    bench.health.set_targets(vec![target(1, &settings())]);
    assert_eq!(bench.next().await, (address(1), Verdict::Up, "1 probe good".into()));
    drop(bench.health);
    let before = bench.fake.count();
    sleep(5 * SECOND).await;
    assert_eq!(bench.fake.count(), before, "stopped with its handle");
}

#[tokio::test(start_paused = true)]
async fn the_first_round_waits_for_the_last_but_not_for_ever() {
    let bench = Bench::new(|probed| (Duration::from_millis(100) * u32::from(probed.port()), Outcome::Good));
    let start = Instant::now();
    bench.health.set_targets((1..=4).map(|n| target(n, &settings())).collect());
    assert!(!bench.health.first_round(start + Duration::from_millis(350)).await);
    let over = bench.health.first_round(start + 5 * SECOND);
    assert!(over.await);
    assert_eq!(start.elapsed().as_millis() / 10, 40);

    // An endpoint that is taken away is not waited for.
    bench.health.set_targets(vec![target(600, &settings())]);
    let over = tokio::spawn(bench.health.first_round(Instant::now() + 5 * SECOND));
    sleep(FAST).await;
    bench.health.set_targets(Vec::new());
    assert!(over.await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_shortage_of_our_own_is_no_evidence() {
    let short = |_| quick(Outcome::Local("connect: too many open files".into()));
    let mut bench = Bench::new(short);
    bench.health.set_targets(vec![target(1, &settings())]);
    assert!(bench.health.first_round(Instant::now() + SECOND).await, "it was tried");
    sleep(10 * SECOND).await;
    assert_eq!(bench.waiting(), []);
    assert!(bench.fake.count() <= 12, "a shortage is not made worse: {} probes", bench.fake.count());

    bench.fake.behave(good);
    assert_eq!(bench.next().await.1, Verdict::Up);
    // Nor in the middle of a doubt, which stays for as long as the shortage.
    let asked = AtomicUsize::new(0);
    bench
        .fake
        .behave(move |probed| if asked.fetch_add(1, SeqCst) < 2 { refused(probed) } else { short(probed) });
    let before = bench.fake.count();
    sleep(10 * SECOND).await;
    assert_eq!(bench.waiting(), []);
    let probes = bench.fake.count() - before;
    assert!((8..=13).contains(&probes), "{probes} probes in 10 s");
    bench.fake.behave(refused);
    let down = (address(1), Verdict::Down, "3 probes failed: connect: connection refused".into());
    assert_eq!(bench.next().await, down);
}

#[tokio::test(start_paused = true)]
async fn a_busy_reconciler_holds_up_only_who_has_something_to_say() {
    let mut bench = Bench::with_inbox(good, 1);
    bench.health.set_targets((1..=3).map(|n| target(n, &settings())).collect());
    sleep(10 * SECOND).await;
    let busy = (1..=3).filter(|n| bench.fake.times(address(*n)).len() >= 10).count();
    assert_eq!(busy, 1, "the one whose change found room goes on");
    for _ in 0..3 {
        assert_eq!(bench.next().await.1, Verdict::Up);
    }
    sleep(5 * SECOND).await;
    assert!((1..=3).all(|n| bench.fake.times(address(n)).len() >= 5));
}

#[tokio::test]
async fn real_probes_of_real_sockets_reach_the_reconciler() {
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let key = EndpointKey { pool: PoolName::from("pool"), address: listener.local_addr().unwrap() };
    let settings = config::Health { interval: FAST, fast_interval: FAST / 5, ..settings() };
    let (changes, inbox) = mpsc::channel(16);
    let probes = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&probes);
    let observe = move |outcome: ProbeOutcome| {
        assert!(outcome.took < 5 * SECOND);
        seen.fetch_add(1, SeqCst);
    };
    let health = Health::start(changes, observe, 1);
    health.set_targets(vec![Target {
        key: key.clone(),
        settings: Arc::new(settings),
        socket: Arc::default(),
        manner: Manner::default(),
    }]);
    let fake = Arc::new(Fake {
        script: Mutex::new(Box::new(good)),
        probes: Mutex::default(),
        in_flight: AtomicUsize::new(0),
        most: AtomicUsize::new(0),
    });
    let mut bench = Bench { fake, health, inbox };
    assert_eq!(bench.next().await, (key.address, Verdict::Up, "1 probe good".into()));
    drop(listener);
    let reason = "3 probes failed: connect: connection refused".to_owned();
    assert_eq!(bench.next().await, (key.address, Verdict::Down, reason));
    let _again = tokio::net::TcpListener::bind(key.address).await.unwrap();
    assert_eq!(bench.next().await, (key.address, Verdict::Up, "2 probes good".into()));
    assert!(probes.load(SeqCst) >= 6);
}

#[tokio::test(start_paused = true)]
async fn shortages_are_logged_not_too_often() {
    if !alone("control::health::supervisor::tests::shortages_are_logged_not_too_often") {
        return;
    }
    let lines = Lines::default();
    let _guard = lines.capture();
    let bench = Bench::new(good);
    bench.health.set_targets((1..=10).map(|n| target(n, &settings())).collect());
    assert!(bench.health.first_round(Instant::now() + SECOND).await);
    bench.fake.behave(|_| quick(Outcome::Local("connect: too many open files".into())));
    sleep(30 * SECOND).await;
    let shortages = lines.with("this machine cannot probe");
    assert!((2..=4).contains(&shortages.len()), "{shortages:?}");
    assert!(
        shortages[0].contains("too many open files") && shortages[1].contains("unsaid="),
        "{shortages:?}"
    );

    // Who takes the verdicts tells of them.
    assert_eq!(lines.with(""), shortages);
}

//! Paused time and a made-up resolver: when a name is looked up, and what of it gets to the reconciler.

use std::{
    io,
    net::SocketAddr,
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
    time::Duration,
};

use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};

use super::*;
use crate::control::{
    Change,
    testing::{Lines, alone},
};

const SECOND: Duration = Duration::from_secs(1);

/// What the made-up resolver says of a host, and how long it thinks about it.
type Script = Box<dyn Fn(&str) -> (Duration, io::Result<Vec<SocketAddr>>) + Send + Sync>;

struct Fake {
    script: Mutex<Script>,
    lookups: Mutex<Vec<(String, Instant)>>,
    in_flight: AtomicUsize,
    most: AtomicUsize,
}

struct Bench {
    fake: Arc<Fake>,
    discovery: DiscoveryHandle,
    inbox: mpsc::Receiver<Change>,
}

/// A change: pool, host and port as one word, and the addresses.
type Told = (String, String, Vec<SocketAddr>);

impl Fake {
    fn answer(
        &self,
        script: impl Fn(&str) -> (Duration, io::Result<Vec<SocketAddr>>) + Send + Sync + 'static,
    ) {
        *self.script.lock().unwrap() = Box::new(script);
    }

    fn resolver(self: &Arc<Self>) -> Resolver {
        let fake = Arc::clone(self);
        Resolver::new(Arc::new(move |host, _| {
            let fake = Arc::clone(&fake);
            Box::pin(async move {
                fake.lookups.lock().unwrap().push((host.to_string(), Instant::now()));
                let now = fake.in_flight.fetch_add(1, SeqCst) + 1;
                fake.most.fetch_max(now, SeqCst);
                let (took, answer) = (fake.script.lock().unwrap())(&host);
                sleep(took).await;
                fake.in_flight.fetch_sub(1, SeqCst);
                answer
            })
        }))
    }

    fn times(&self, host: &str) -> Vec<Instant> {
        let lookups = self.lookups.lock().unwrap();
        lookups.iter().filter(|(looked_up, _)| looked_up == host).map(|(_, at)| *at).collect()
    }
}

impl Bench {
    fn new(script: impl Fn(&str) -> (Duration, io::Result<Vec<SocketAddr>>) + Send + Sync + 'static) -> Self {
        let fake = Arc::new(Fake {
            script: Mutex::new(Box::new(script)),
            lookups: Mutex::default(),
            in_flight: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
        });
        let (changes, inbox) = mpsc::channel(64);
        let discovery = DiscoveryHandle::new(changes, Arc::default(), fake.resolver(), 7);
        Self { fake, discovery, inbox }
    }

    async fn next(&mut self) -> Told {
        unpack(timeout(120 * SECOND, self.inbox.recv()).await.expect("no change in two minutes").unwrap())
    }

    /// What is in the inbox already.
    fn waiting(&mut self) -> Vec<Told> {
        std::iter::from_fn(|| self.inbox.try_recv().ok()).map(unpack).collect()
    }
}

fn unpack(change: Change) -> Told {
    let Change::Resolved { pool, host, port, addresses } = change else { panic!("{change:?}") };
    assert!(!addresses.is_empty());
    (pool.to_string(), format!("{host}:{port}"), addresses)
}

fn name(pool: &str, host: &str) -> Name {
    Name { pool: PoolName::from(pool), host: host.into(), port: 80 }
}

fn told(pool: &str, host: &str, last: &[u8]) -> Told {
    (pool.into(), format!("{host}:80"), addresses(last))
}

fn addresses(last: &[u8]) -> Vec<SocketAddr> {
    last.iter().map(|last| SocketAddr::from(([10, 0, 0, *last], 80))).collect()
}

fn quick(last: &[u8]) -> (Duration, io::Result<Vec<SocketAddr>>) {
    (Duration::from_millis(1), Ok(addresses(last)))
}

fn failing(_: &str) -> (Duration, io::Result<Vec<SocketAddr>>) {
    (Duration::from_millis(1), Err(io::Error::other("temporary failure in name resolution")))
}

#[tokio::test(start_paused = true)]
async fn addresses_are_told_when_they_change_and_only_then() {
    let mut bench = Bench::new(|_| quick(&[2, 1]));
    bench.discovery.set_names(vec![name("web", "a.test")]);
    assert_eq!(bench.next().await, told("web", "a.test", &[1, 2]));
    bench.fake.answer(|_| quick(&[1, 2, 1]));
    sleep(300 * SECOND).await;
    assert_eq!(bench.waiting(), [], "another order is the same answer");
    let lookups = bench.fake.times("a.test").len();
    assert!((9..=12).contains(&lookups), "{lookups} lookups in five minutes");

    bench.fake.answer(|_| quick(&[3]));
    assert_eq!(bench.next().await, told("web", "a.test", &[3]));
}

#[tokio::test(start_paused = true)]
async fn failures_and_empty_answers_leave_the_last_addresses() {
    let mut bench = Bench::new(|_| quick(&[1]));
    bench.discovery.set_names(vec![name("web", "a.test")]);
    bench.next().await;
    bench.fake.answer(failing);
    sleep(600 * SECOND).await;
    bench.fake.answer(|_| quick(&[]));
    sleep(600 * SECOND).await;
    bench.fake.answer(|_| (SECOND, Ok(vec![SocketAddr::from(([0, 0, 0, 0], 80))])));
    sleep(600 * SECOND).await;
    assert_eq!(bench.waiting(), []);

    bench.fake.answer(|_| quick(&[1]));
    sleep(60 * SECOND).await;
    assert_eq!(bench.waiting(), [], "recovered with the addresses it had");
    bench.fake.answer(|_| quick(&[1, 2]));
    assert_eq!(bench.next().await, told("web", "a.test", &[1, 2]));
}

#[tokio::test(start_paused = true)]
async fn a_name_is_shown_as_failing_until_it_resolves_or_nobody_wants_it() {
    let mut bench = Bench::new(|_| quick(&[1]));
    let shown = Arc::clone(&bench.discovery.failing);
    bench.discovery.set_names(vec![name("web", "a.test")]);
    bench.next().await;
    assert_eq!(shown.all(), [""; 0]);
    bench.fake.answer(failing);
    sleep(60 * SECOND).await;
    assert_eq!(shown.all(), ["a.test:80"]);
    bench.fake.answer(|_| quick(&[1]));
    sleep(60 * SECOND).await;
    assert_eq!(shown.all(), [""; 0]);

    // One that never answers is failing, too.
    bench.fake.answer(|_| (600 * SECOND, Ok(addresses(&[1]))));
    sleep(60 * SECOND).await;
    assert_eq!(shown.all(), ["a.test:80"]);
    bench.discovery.set_names(Vec::new());
    sleep(SECOND).await;
    assert_eq!(shown.all(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_failing_name_is_asked_for_less_and_less_often() {
    let mut bench = Bench::new(failing);
    bench.discovery.set_names(vec![name("web", "a.test")]);
    sleep(200 * SECOND).await;
    let times = bench.fake.times("a.test");
    let gaps: Vec<_> = times.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect();
    let wanted = [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0];
    assert!(gaps.len() >= wanted.len(), "{gaps:?}");
    for (gap, wanted) in gaps.iter().zip(wanted) {
        assert!((wanted * 0.9..=wanted * 1.1 + 0.01).contains(gap), "{gap} for {wanted}");
    }

    bench.fake.answer(|_| quick(&[1]));
    assert_eq!(bench.next().await, told("web", "a.test", &[1]));
    bench.fake.answer(failing);
    sleep(29 * SECOND).await;
    let before = bench.fake.times("a.test").len();
    sleep(20 * SECOND).await;
    assert!(bench.fake.times("a.test").len() >= before + 3, "after a success it starts from one second");
}

#[tokio::test(start_paused = true)]
async fn every_pool_is_told_and_names_are_looked_up_once() {
    let mut bench = Bench::new(|host| quick(if host == "a.test" { &[1] } else { &[2] }));
    bench.discovery.set_names(vec![
        name("web", "a.test"),
        name("api", "a.test"),
        name("web", "b.test"),
        name("web", "a.test"),
    ]);
    let mut all = vec![bench.next().await, bench.next().await, bench.next().await];
    all.sort();
    let wanted = [told("api", "a.test", &[1]), told("web", "a.test", &[1]), told("web", "b.test", &[2])];
    assert_eq!(all, wanted);
    assert_eq!(bench.fake.times("a.test").len(), 1);
    assert_eq!(bench.waiting(), []);
}

#[tokio::test(start_paused = true)]
async fn a_pool_that_comes_later_is_told_what_is_known() {
    let mut bench = Bench::new(|_| quick(&[1]));
    bench.discovery.set_names(vec![name("web", "a.test")]);
    bench.next().await;
    let start = Instant::now();
    bench.discovery.set_names(vec![name("api", "a.test"), name("web", "a.test")]);
    assert_eq!(bench.next().await, told("api", "a.test", &[1]));
    assert_eq!(start.elapsed().as_millis(), 0);

    // Left and back before the task has noticed: told anew, as whoever left may have forgotten.
    bench.discovery.set_names(vec![name("api", "a.test")]);
    bench.discovery.set_names(vec![name("api", "a.test"), name("web", "a.test")]);
    assert_eq!(bench.next().await, told("web", "a.test", &[1]));
    assert_eq!(bench.fake.times("a.test").len(), 1);

    // While the resolver is slow, the last answer is there for whoever comes.
    bench.fake.answer(|_| (100 * SECOND, Ok(addresses(&[1]))));
    sleep(40 * SECOND).await;
    bench.discovery.set_names(vec![name("late", "a.test")]);
    let start = Instant::now();
    assert_eq!(bench.next().await, told("late", "a.test", &[1]));
    assert_eq!(start.elapsed().as_millis(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_name_that_nobody_wants_is_forgotten() {
    let mut bench = Bench::new(|_| quick(&[1]));
    bench.discovery.set_names(vec![name("web", "a.test"), name("web", "b.test")]);
    bench.next().await;
    bench.next().await;
    bench.discovery.set_names(vec![name("web", "b.test")]);
    sleep(100 * SECOND).await;
    assert_eq!(bench.fake.times("a.test").len(), 1);
    assert!(bench.fake.times("b.test").len() > 2);
    bench.discovery.set_names(vec![name("web", "a.test")]);
    assert_eq!(bench.next().await, told("web", "a.test", &[1]));

    drop(bench.discovery);
    let before = bench.fake.lookups.lock().unwrap().len();
    sleep(100 * SECOND).await;
    assert_eq!(bench.fake.lookups.lock().unwrap().len(), before);
}

#[tokio::test(start_paused = true)]
async fn a_hanging_resolver_gets_few_lookups_and_one_for_each_name() {
    let bench = Bench::new(|_| (3600 * SECOND, Ok(addresses(&[1]))));
    let names = || (0..100).map(|n| name("web", &format!("{n}.test"))).collect::<Vec<_>>();
    for _ in 0..10 {
        bench.discovery.set_names(names());
        sleep(30 * SECOND).await;
        // Names that come and go do not add to it either: their lookups go on.
        bench.discovery.set_names(Vec::new());
        sleep(SECOND).await;
    }
    assert_eq!(bench.fake.most.load(SeqCst), 32);
    assert_eq!(bench.fake.lookups.lock().unwrap().len(), 32);
}

#[tokio::test(start_paused = true)]
async fn names_that_nobody_answers_for_do_not_hold_up_those_that_are_answered() {
    let mut bench = Bench::new(|host| match host {
        "good.test" => quick(&[1]),
        _ => (10 * SECOND, Err(io::Error::other("no answer"))),
    });
    let mut names: Vec<_> = (0..30).map(|n| name("dead", &format!("{n}.test"))).collect();
    names.push(name("web", "good.test"));
    let start = Instant::now();
    bench.discovery.set_names(names.clone());
    assert_eq!(bench.next().await, told("web", "good.test", &[1]));
    assert!(start.elapsed() < SECOND, "{:?}", start.elapsed());
    // A whole zone more of them.
    names.extend((30..200).map(|n| name("dead", &format!("{n}.test"))));
    bench.discovery.set_names(names);
    sleep(100 * SECOND).await;
    let known = bench.fake.times("good.test").len();
    sleep(1000 * SECOND).await;
    let times = bench.fake.times("good.test").split_off(known);
    let late = times.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
    assert!(late < 35 * SECOND, "{late:?} between two lookups");
    assert!(bench.fake.most.load(SeqCst) <= 32 + 4);
}

#[tokio::test(start_paused = true)]
async fn a_late_answer_is_used_and_then_refreshed_as_usual() {
    let mut bench = Bench::new(|_| (10 * SECOND, Ok(addresses(&[1]))));
    let start = Instant::now();
    bench.discovery.set_names(vec![name("web", "a.test")]);
    assert!(bench.discovery.first_round(start + 60 * SECOND).await);
    assert_eq!(start.elapsed().as_secs(), 5, "late is a result, too");
    assert_eq!(bench.next().await, told("web", "a.test", &[1]));
    assert_eq!(start.elapsed().as_secs(), 10);
    sleep(100 * SECOND).await;
    assert_eq!(bench.fake.most.load(SeqCst), 1);
    let gaps: Vec<_> = bench.fake.times("a.test").windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(!gaps.is_empty() && gaps.iter().all(|gap| *gap >= 37 * SECOND), "{gaps:?}");
}

#[tokio::test(start_paused = true)]
async fn a_slow_name_delays_no_other() {
    let mut bench = Bench::new(|host| match host {
        "slow.test" => (10 * SECOND, Ok(addresses(&[9]))),
        _ => quick(&[1]),
    });
    let start = Instant::now();
    let mut names = vec![name("web", "slow.test")];
    names.extend((0..10).map(|n| name("web", &format!("{n}.test"))));
    bench.discovery.set_names(names);
    for _ in 0..10 {
        assert_eq!(bench.next().await.2, addresses(&[1]));
    }
    assert!(start.elapsed() < SECOND);
}

#[tokio::test(start_paused = true)]
async fn the_first_round_is_over_when_each_name_has_answered_or_failed() {
    let mut bench = Bench::new(|host| match host {
        "bad.test" => failing(host),
        _ => (2 * SECOND, Ok(addresses(&[1]))),
    });
    let start = Instant::now();
    bench.discovery.set_names(vec![name("web", "bad.test"), name("web", "a.test")]);
    assert!(!bench.discovery.first_round(start + SECOND).await);
    assert!(bench.discovery.first_round(start + 60 * SECOND).await);
    assert_eq!(start.elapsed().as_secs(), 2);
    assert_eq!(bench.waiting(), [told("web", "a.test", &[1])], "and what was learned is in the inbox");
    bench.discovery.set_names(Vec::new());
    assert!(bench.discovery.first_round(Instant::now()).await);
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_logged_when_it_begins_and_when_it_ends() {
    if !alone("control::discovery::tests::a_failure_is_logged_when_it_begins_and_when_it_ends") {
        return;
    }
    let lines = Lines::default();
    let _guard = lines.capture();
    let mut bench = Bench::new(|_| quick(&[1, 2]));
    bench.discovery.set_names(vec![name("web", "a.test"), name("api", "a.test")]);
    bench.next().await;
    bench.fake.answer(failing);
    sleep(200 * SECOND).await;
    // Another kind of failure is the same state.
    bench.fake.answer(|_| (10 * SECOND, Ok(addresses(&[1, 2]))));
    sleep(200 * SECOND).await;
    let warnings = lines.with("WARN");
    let [warning] = &warnings[..] else { panic!("{warnings:?}") };
    for part in
        ["keeping the last 2 addresses", "a.test:80", "api, web", "temporary failure in name resolution"]
    {
        assert!(warning.contains(part), "{part}: {warning}");
    }
    assert!(lines.with("resolves again").is_empty());

    bench.fake.answer(|_| quick(&[1, 2]));
    sleep(200 * SECOND).await;
    let infos = lines.with("name resolves again");
    assert!(infos.len() == 1 && infos[0].contains("2 addresses"), "{infos:?}");
    assert_eq!(lines.with("WARN").len(), 1);
}

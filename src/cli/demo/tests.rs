//! The demo against proxies that deserve its praise and proxies that do not.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::SystemTime,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time,
};
use tokio_util::sync::CancellationToken;

use super::{
    load::Demand,
    plan::Steps,
    proxy::{CloudSample, Sample},
    *,
};

/// A small proxy in place of the real one, so that the demo can be tested alone, and with a proxy that is bad.
struct StandIn {
    address: SocketAddr,
    state: Arc<State>,
    stop: CancellationToken,
    thread: Option<thread::JoinHandle<()>>,
}

struct State {
    clouds: Vec<(String, SocketAddr)>,
    up: Vec<AtomicBool>,
    sessions: Vec<AtomicU64>,
    manners: Manners,
}

/// What is wrong with the stand-in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Manners {
    Good,
    /// Never leaves the first cloud.
    Stubborn,
    /// Spoils a byte of each answer.
    Garbles,
    /// Refuses everyone.
    Absent,
}

impl StandIn {
    fn start(clouds: &[Cloud; 2], manners: Manners) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State {
            clouds: clouds.iter().map(|one| (one.name().to_string(), one.endpoints()[0].address())).collect(),
            up: clouds.iter().map(|_| AtomicBool::new(true)).collect(),
            sessions: clouds.iter().map(|_| AtomicU64::new(0)).collect(),
            manners,
        });
        let stop = CancellationToken::new();
        let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (served, stopped) = (Arc::clone(&state), stop.clone());
        let thread = thread::spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = stopped.cancelled() => {}
                    () = serve(listener, served) => {}
                }
            });
        });
        Self { address, state, stop, thread: Some(thread) }
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        self.stop.cancel();
        self.thread.take().unwrap().join().unwrap();
    }
}

impl Proxy for StandIn {
    fn address(&self) -> SocketAddr {
        self.address
    }

    fn sample(&self) -> Sample {
        let first = self.state.first();
        let clouds = self.state.clouds.iter().enumerate().map(|(place, (name, _))| CloudSample {
            name: name.clone(),
            endpoints: 1,
            up: usize::from(self.state.up[place].load(Relaxed)),
            share: if place == first { 1.0 } else { 0.0 },
            sessions: self.state.sessions[place].load(Relaxed),
            ..CloudSample::default()
        });
        Sample { at: time::Instant::now(), clouds: clouds.collect() }
    }

    fn happened(&self, _since: SystemTime) -> Vec<(SystemTime, String)> {
        Vec::new()
    }
}

impl State {
    fn first(&self) -> usize {
        let up = self.up.iter().position(|up| up.load(Relaxed));
        if self.manners == Manners::Stubborn { 0 } else { up.unwrap_or(0) }
    }

    async fn dial(&self) -> io::Result<TcpStream> {
        let first = self.first();
        let places = if self.manners == Manners::Stubborn { vec![0] } else { vec![first, 1 - first] };
        for place in places {
            let connecting = TcpStream::connect(self.clouds[place].1);
            if let Ok(Ok(stream)) = time::timeout(Duration::from_millis(500), connecting).await {
                self.sessions[place].fetch_add(1, Relaxed);
                return Ok(stream);
            }
        }
        Err(io::ErrorKind::TimedOut.into())
    }

    async fn probe(&self, place: usize) {
        let address = self.clouds[place].1;
        let mut pauses = time::interval(Duration::from_millis(50));
        loop {
            pauses.tick().await;
            let answer = async {
                let mut stream = TcpStream::connect(address).await?;
                stream.read_u8().await
            };
            let answered = time::timeout(Duration::from_secs(1), answer).await;
            self.up[place].store(answered.is_ok_and(|answer| answer.is_ok()), Relaxed);
        }
    }
}

async fn serve(listener: std::net::TcpListener, state: Arc<State>) {
    if state.manners == Manners::Absent {
        drop(listener);
        return std::future::pending().await;
    }
    let listener = TcpListener::from_std(listener).unwrap();
    tokio::join!(state.probe(0), state.probe(1), async {
        loop {
            let (client, _) = listener.accept().await.unwrap();
            drop(tokio::spawn(relay(client, Arc::clone(&state))));
        }
    });
}

async fn relay(mut client: TcpStream, state: Arc<State>) -> io::Result<()> {
    let mut upstream = state.dial().await?;
    if state.manners == Manners::Garbles {
        let mut asked = [0; 1];
        client.read_exact(&mut asked).await?;
        upstream.write_all(&[!asked[0]]).await?;
    }
    tokio::io::copy_bidirectional(&mut client, &mut upstream).await.map(drop)
}

/// A short script: long enough for each phase to be seen.
fn plan() -> Plan {
    let milliseconds = Duration::from_millis;
    Plan {
        demand: Demand { rate: 100, long: 5, pause: milliseconds(20) },
        steps: Some(Steps {
            kill: milliseconds(800),
            refuse: milliseconds(5_500),
            revive: milliseconds(6_000),
            end: milliseconds(8_000),
        }),
        last: milliseconds(500),
        ..Plan::script()
    }
}

async fn outcome(manners: Manners) -> Report {
    let lab = Lab::start().unwrap();
    let clouds = clouds(&lab).unwrap();
    let proxy = StandIn::start(&clouds, manners);
    let (ended, report) = play(&proxy, &clouds, plan(), &mut Screen::Nothing).await.unwrap();
    assert_eq!(ended, Ended::Finished);
    report.unwrap()
}

fn broken(report: &Report) -> Vec<&str> {
    report.assertions.iter().filter(|one| !one.ok).map(|one| one.name).collect()
}

#[tokio::test]
async fn a_proxy_that_fails_over_is_found_good() {
    let report = outcome(Manners::Good).await;
    assert!(report.ok, "{}", report.line());
    assert!(report.line().starts_with("RESULT  ok  failover "), "{}", report.line());
    let object = serde_json::to_value(&report).unwrap();
    assert_eq!(object["ok"], true);
    assert_eq!(object["sessions"]["failed"], 0);
    assert!(object["sessions"]["started"].as_u64() >= Some(700));
    assert!(object["failover_ms"].as_f64() > Some(0.0));
    assert!(object["long"]["died_with_cloud"].as_u64() >= Some(1), "{object}");
    assert!(object["long"]["through_revival"].as_u64() >= Some(1), "{object}");
    let p50 = |when: &str| object["connect_ms"][when]["p50"].as_f64().unwrap();
    assert!(p50("before") >= 2.0 && p50("after") >= 18.0, "{object}");
    let events: Vec<_> =
        object["events"].as_array().unwrap().iter().map(|one| one["text"].as_str().unwrap()).collect();
    assert!(events.contains(&"aws killed (simulated: SYNs unanswered)"), "{events:?}");
    assert!(events.contains(&"aws revived"), "{events:?}");
}

#[tokio::test]
async fn a_proxy_that_does_not_fail_over_is_found_out() {
    let report = outcome(Manners::Stubborn).await;
    let broken = broken(&report);
    for name in ["sessions_in_outage", "failover_ms", "sessions_failed", "long_sessions_through_revival"] {
        assert!(broken.contains(&name), "{name} is not among {broken:?}");
    }
    assert!(report.line().starts_with("RESULT  FAILED  "), "{}", report.line());
    assert!(report.line().contains("failover_ms never seen (at most 3000)"), "{}", report.line());
}

#[tokio::test]
async fn a_proxy_that_spoils_bytes_is_found_out() {
    let report = outcome(Manners::Garbles).await;
    assert!(broken(&report).contains(&"wrong_bytes"), "{}", report.line());
}

#[tokio::test]
async fn a_proxy_that_refuses_everyone_is_found_out() {
    let report = outcome(Manners::Absent).await;
    let broken = broken(&report);
    for name in ["sessions_before_kill", "sessions_failed", "failover_ms", "preferred_share_before_kill"] {
        assert!(broken.contains(&name), "{name} is not among {broken:?}");
    }
}

#[tokio::test]
async fn nothing_measured_is_not_reported() {
    let lab = Lab::start().unwrap();
    let clouds = clouds(&lab).unwrap();
    let proxy = StandIn::start(&clouds, Manners::Good);
    let run =
        Run::start(&proxy, &clouds, plan(), &mut Screen::Nothing).await.map(|run| run.findings().map(drop));
    assert_eq!(run.unwrap().unwrap_err().to_string(), "the script did not run to its end");
}

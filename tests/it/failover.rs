//! Clouds that die, come back, hang, or lie; and the shares that each gets while all are well.

use std::{net::SocketAddr, time::Duration};

use rustix::process::Signal;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    process::Command,
    task::JoinSet,
    time::Instant,
};

use crate::harness::{
    Backend, Load, Outcome, Place, Process, Proxy, Setup, ask, connect, eventually, is_reset, listener,
    missing, pool, skip, soon,
};

const PROBES: &str = "[pool.health.tcp]\ninterval = \"200ms\"\nfast_interval = \"50ms\"\ntimeout = \"500ms\"\nrise = 2\nfall = 2";

/// An endpoint that is a process: it can be killed, stopped, and started again at the same address.
async fn endpoint(address: SocketAddr, name: &str) -> Process {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/backend.py");
    let mut command = Command::new("python3");
    command.arg(script).arg(address.ip().to_string()).arg(address.port().to_string()).arg(name);
    let process = Process::start(command);
    process.line("ready", |line| (line == "ready").then_some(())).await;
    process
}

/// A long session: who serves it.
async fn long_session(address: SocketAddr) -> (TcpStream, String) {
    let mut stream = connect(address).await;
    stream.write_all(b"?").await.unwrap();
    let mut name = [0; 4];
    soon("a name", stream.read_exact(&mut name)).await.unwrap();
    (stream, String::from_utf8(name.to_vec()).unwrap())
}

async fn still_talks(stream: &mut TcpStream) -> bool {
    let mut echo = [0; 5];
    stream.write_all(b"hello").await.is_ok()
        && soon("an echo", stream.read_exact(&mut echo)).await.is_ok()
        && echo == *b"hello"
}

/// The share of `outcomes` that clouds whose endpoints' names start with `cloud` answered.
fn share(outcomes: &[&Outcome], cloud: &str) -> f64 {
    let by = |outcome: &&&Outcome| outcome.answer.as_ref().is_ok_and(|name| name.starts_with(cloud));
    let count = u32::try_from(outcomes.iter().filter(by).count()).unwrap();
    f64::from(count) / f64::from(u32::try_from(outcomes.len()).unwrap())
}

struct Clouds {
    aws: [SocketAddr; 2],
    processes: Vec<Process>,
    proxy: Proxy,
    bind: SocketAddr,
}

/// Two clouds with two endpoints each, half of the sessions for each cloud.
async fn two_clouds(place: &Place) -> Clouds {
    let aws = [place.free(), place.free()];
    let gcp = [place.free(), place.free()];
    let mut processes = Vec::new();
    for (address, name) in [(aws[0], "aws1"), (aws[1], "aws2"), (gcp[0], "gcp1"), (gcp[1], "gcp2")] {
        processes.push(endpoint(address, name).await);
    }
    let bind = place.free();
    let settings =
        format!("policy = \"weighted\"\nweights = {{ aws = 50, gcp = 50 }}\nslow_start = \"0s\"\n{PROBES}");
    let endpoints = [("aws", aws[0]), ("aws", aws[1]), ("gcp", gcp[0]), ("gcp", gcp[1])];
    let tables = pool("web", &settings, &endpoints) + &listener(bind, "web", "");
    let proxy = Proxy::start(Setup::new(place, tables)).await;
    proxy.judges(&[aws[0], aws[1], gcp[0], gcp[1]], "up").await;
    Clouds { aws, processes, proxy, bind }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killing_a_cloud_under_500_new_sessions_a_second_loses_none_of_them() {
    if let Some(reason) = missing(&["python3"]) {
        return skip("killing_a_cloud", &reason);
    }
    let place = Place::new();
    let Clouds { aws, mut processes, proxy, bind } = Box::pin(two_clouds(&place)).await;
    let mut long = Vec::new();
    for _ in 0..40 {
        long.push(long_session(bind).await);
    }
    let load = Load::start(bind, 500);
    let accepted = async || proxy.metric("twinspan_connections_accepted_total", &[]).await;
    let sessions_pass = async |number: u64| {
        let goal = accepted().await + number;
        eventually("load", async || (accepted().await >= goal).then_some(())).await;
    };

    sessions_pass(1_000).await;
    let killed = Instant::now();
    for process in processes.iter_mut().take(2) {
        process.kill().await;
    }
    let dead = Instant::now();
    proxy.judges(&aws, "down").await;
    sessions_pass(1_000).await;
    let revived = Instant::now();
    for (address, name) in [(aws[0], "aws1"), (aws[1], "aws2")] {
        processes.push(endpoint(address, name).await);
    }
    proxy.uses(&aws).await;
    let back = Instant::now();
    sessions_pass(2_000).await;
    let outcomes = load.stop().await;

    let (mut before, mut during, mut meanwhile, mut again, mut after) =
        (vec![], vec![], vec![], vec![], vec![]);
    for outcome in &outcomes {
        let kind = match outcome.begun {
            begun if begun >= back => &mut after,
            begun if begun >= revived => &mut again,
            begun if begun >= dead => &mut meanwhile,
            begun if begun + outcome.took >= killed => &mut during,
            _ => &mut before,
        };
        kind.push(outcome);
    }
    for outcome in before.iter().chain(&meanwhile).chain(&again).chain(&after) {
        assert!(outcome.answer.is_ok(), "a session failed that no dying endpoint had taken: {outcome:?}");
    }
    // Alive at the moment of the kill: those may have been in the hands of an endpoint that died.
    let lost = during.iter().filter(|outcome| outcome.answer.is_err()).count();
    assert!(lost <= 50, "{lost} of {} sessions lost in the instant of the kill", during.len());
    assert!((0.4..0.6).contains(&share(&before, "aws")), "{}", share(&before, "aws"));
    assert!(share(&meanwhile, "gcp") > 0.9, "{}", share(&meanwhile, "gcp"));
    assert!((0.4..0.6).contains(&share(&after, "aws")), "{}", share(&after, "aws"));

    let mut kept = 0;
    for (mut stream, name) in long {
        let alive = still_talks(&mut stream).await;
        assert_eq!(alive, name.starts_with("gcp"), "a session with {name}");
        kept += u32::from(alive);
    }
    assert!((10..=30).contains(&kept), "{kept} of 40 long sessions were with gcp");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_process_is_found_by_a_probe_that_wants_an_answer() {
    if let Some(reason) = missing(&["python3"]) {
        return skip("a_stopped_process", &reason);
    }
    let place = Place::new();
    let (aws, gcp) = (place.free(), place.free());
    let hung = endpoint(aws, "aws1").await;
    let _well = endpoint(gcp, "gcp1").await;
    let bind = place.free();
    let settings =
        format!("policy = \"failover\"\norder = [\"aws\", \"gcp\"]\n{PROBES}\nsend = \"?\"\nexpect = \"1\"");
    let tables = pool("web", &settings, &[("aws", aws), ("gcp", gcp)]) + &listener(bind, "web", "");
    let proxy = Proxy::start(Setup::new(&place, tables)).await;
    proxy.judges(&[aws, gcp], "up").await;
    assert_eq!(ask(bind).await.unwrap(), "aws1");
    hung.signal(Signal::STOP);
    proxy.judges(&[aws], "down").await;
    assert_eq!(soon("an answer from gcp", ask(bind)).await.unwrap(), "gcp1");
    hung.signal(Signal::CONT);
    proxy.judges(&[aws], "up").await;
    eventually("aws takes over again", async || (ask(bind).await.ok()? == "aws1").then_some(())).await;
}

#[tokio::test]
async fn with_every_endpoint_down_sessions_are_tried_anyway_or_reset_at_once() {
    let place = Place::new();
    let backend = Backend::named(&place, "aws1").await;
    let (anyway, refuse) = (place.free(), place.free());
    // Probes ask for a word that no endpoint says: every verdict is down while the traffic would work.
    let probes = format!("{PROBES}\nsend = \"?\"\nexpect = \"password\"");
    let tables =
        pool("anyway", &format!("when_all_down = \"try_anyway\"\n{probes}"), &[("aws", backend.address)])
            + &pool("refuse", &format!("when_all_down = \"refuse\"\n{probes}"), &[("aws", backend.address)])
            + &listener(anyway, "anyway", "")
            + &listener(refuse, "refuse", "");
    let proxy = Proxy::start(Setup::new(&place, tables)).await;
    let all_down = async || {
        let status = proxy.status().await;
        let mut endpoints = status["pools"].as_array().unwrap().iter().map(|pool| &pool["endpoints"][0]);
        endpoints.all(|endpoint| endpoint["verdict"] == "down").then_some(())
    };
    eventually("both pools are down", all_down).await;

    for _ in 0..20 {
        assert_eq!(ask(anyway).await.unwrap(), "aws1");
        let before = proxy.lines();
        let start = Instant::now();
        assert!(is_reset(refuse).await);
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
        let find = |line: &str| line.contains("\"no_endpoint\"").then_some(());
        proxy.line_from(before, "the reason", find).await;
    }
}

#[tokio::test]
async fn shares_are_exact_to_two_percent_over_10000_sessions() {
    const SESSIONS: u32 = 10_000;
    let place = Place::new();
    let aws = [Backend::named(&place, "aws1").await, Backend::named(&place, "aws2").await];
    let gcp = Backend::named(&place, "gcp1").await;
    let bind = place.free();
    let tables = pool(
        "web",
        "policy = \"weighted\"\nweights = { aws = 70, gcp = 30 }",
        &[("aws", aws[0].address), ("aws", aws[1].address), ("gcp", gcp.address)],
    ) + &listener(bind, "web", "");
    let _proxy = Proxy::start(Setup::new(&place, tables)).await;
    let mut clients = JoinSet::new();
    for _ in 0..50 {
        clients.spawn(async move {
            for _ in 0..SESSIONS / 50 {
                ask(bind).await.unwrap();
            }
        });
    }
    clients.join_all().await;
    let [first, second] = [&aws[0], &aws[1]].map(Backend::accepted);
    let other = gcp.accepted();
    assert_eq!(first + second + other, u64::from(SESSIONS));
    assert!((6_800..=7_200).contains(&(first + second)), "aws has {first} + {second}, gcp {other}");
    assert!(first.abs_diff(second) < 1_000, "within aws {first} and {second}");
}

#[tokio::test]
async fn without_probes_the_next_cloud_serves_what_the_first_refuses() {
    let place = Place::new();
    let gcp = Backend::named(&place, "gcp1").await;
    let bind = place.free();
    let tables = pool(
        "web",
        "policy = \"failover\"\norder = [\"aws\", \"gcp\"]",
        &[("aws", place.free()), ("aws", place.free()), ("gcp", gcp.address)],
    ) + &listener(bind, "web", "");
    let _proxy = Proxy::start(Setup::new(&place, tables)).await;
    for _ in 0..200 {
        assert_eq!(ask(bind).await.unwrap(), "gcp1");
    }
    // Gone for a while, and back at the same address: nothing has to be told.
    let address = gcp.address;
    drop(gcp);
    eventually("gcp is gone", async || TcpStream::connect(address).await.is_err().then_some(())).await;
    assert!(ask(bind).await.is_err());
    let _back = Backend::serve_at(address, |mut stream| async move {
        drop(stream.read(&mut [0]).await);
        drop(stream.write_all(b"back").await);
    })
    .await;
    assert_eq!(ask(bind).await.unwrap(), "back");
}

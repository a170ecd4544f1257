//! The timeline of a running proxy: what a follower hears while clouds go and come back, over restarts and to the end.

use std::{net::SocketAddr, process::Stdio, time::Duration};

use rustix::process::Signal;
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    process::Command,
    time::{Instant, timeout},
};

use crate::harness::{
    Backend, Place, Process, Proxy, Setup, binary, connect, eventually, listener, pool, run, soon,
};

const PROBES: &str = "slow_start = \"0s\"\n[pool.health.tcp]\ninterval = \"100ms\"\nfast_interval = \"50ms\"\n\
                      timeout = \"500ms\"\nrise = 2\nfall = 2";

/// A follower that knows nothing of twinspan but the protocol.
struct Follower {
    stream: BufReader<TcpStream>,
    /// The number of the last event.
    id: String,
}

impl Follower {
    async fn start(admin: SocketAddr, last: Option<&str>) -> Self {
        let mut stream = connect(admin).await;
        let id = last.map_or_else(String::new, |id| format!("Last-Event-ID: {id}\r\n"));
        let request =
            format!("GET /api/v1/events HTTP/1.1\r\nHost: {admin}\r\nAccept: text/event-stream\r\n{id}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        Self { stream: BufReader::new(stream), id: String::new() }
    }

    /// The next event; `None` at the end.
    async fn next(&mut self) -> Option<Value> {
        let mut kind = String::new();
        loop {
            let mut line = String::new();
            if soon("a line of the stream", self.stream.read_line(&mut line)).await.unwrap() == 0 {
                return None;
            }
            let line = line.trim_end();
            if let Some(id) = line.strip_prefix("id: ") {
                self.id = id.to_owned();
            } else if let Some(word) = line.strip_prefix("event: ") {
                word.clone_into(&mut kind);
            } else if let Some(data) = line.strip_prefix("data: ") {
                let event: Value = serde_json::from_str(data).unwrap();
                assert_eq!(event["kind"], kind.as_str(), "{event}");
                return Some(event);
            }
        }
    }

    /// The next event of this kind that came to this.
    async fn hears(&mut self, kind: &str, after: &str) -> Value {
        // Comments that keep the stream alive must not keep a test alive.
        let heard = async {
            loop {
                let event = self.next().await.expect("the stream goes on");
                if event["kind"] == kind && event["after"] == after {
                    return event;
                }
            }
        };
        soon(format!("{kind} {after}"), heard).await
    }
}

struct Scene {
    aws: [Backend; 2],
    gcp: Backend,
    proxy: Proxy,
    admin: SocketAddr,
}

/// aws with two endpoints is preferred, gcp has one.
async fn scene(place: &Place) -> Scene {
    let aws = [Backend::named(place, "aws1").await, Backend::named(place, "aws2").await];
    let gcp = Backend::named(place, "gcp1").await;
    let [first, second] = [&aws[0], &aws[1]].map(|backend| backend.address);
    let settings = format!("policy = \"failover\"\norder = [\"aws\", \"gcp\"]\n{PROBES}");
    let tables = pool("web", &settings, &[("aws", first), ("aws", second), ("gcp", gcp.address)])
        + &listener(place.free(), "web", "");
    let setup = Setup::new(place, tables);
    let admin = setup.admin;
    let proxy = Proxy::start(setup).await;
    proxy.judges(&[first, second, gcp.address], "up").await;
    Scene { aws, gcp, proxy, admin }
}

async fn twinspan_events(admin: SocketAddr, more: &[&str]) -> String {
    let admin = admin.to_string();
    let output = run(binary(), &[&["events", "--admin", &admin], more].concat()).await;
    assert_eq!(output.code, Some(0), "{output:?}");
    output.stdout
}

/// The same event is a line of the log.
async fn is_a_line_of_the_log(down: &Value, proxy: &Proxy, before: usize) {
    let told = |line: &str| {
        let value: Value = serde_json::from_str(line).ok()?;
        (value["event"] == down["id"]).then_some(value)
    };
    let line = proxy.line_from(before, "the line of the verdict", told).await;
    assert_eq!((&line["level"], &line["message"]), (&"WARN".into(), &down["text"]), "{line}");
    for field in ["kind", "pool", "endpoint", "cloud", "before", "after", "generation"] {
        assert_eq!(line[field], down[field], "{field}: {line}");
    }
}

#[tokio::test]
async fn a_cloud_that_goes_and_comes_back_is_a_timeline_that_can_be_resumed() {
    let place = Place::new();
    let Scene { aws, gcp: _gcp, proxy, admin } = scene(&place).await;
    let [aws1, aws2] = aws;
    let (address, second) = (aws1.address, aws2.address);
    let mut follower = Follower::start(admin, None).await;
    follower.hears("start", "ready").await;

    let before = proxy.lines();
    drop(aws1);
    let down = follower.hears("verdict", "down").await;
    assert_eq!(
        (&down["before"], &down["cloud"], &down["pool"]),
        (&"up".into(), &"aws".into(), &"web".into())
    );
    assert_eq!(down["endpoint"], address.to_string(), "{down}");
    assert!(down["evidence"].as_str().unwrap().contains("refused"), "{down}");
    // With the last of them the cloud is down: one verdict for all of it.
    drop(aws2);
    let lost = follower.hears("domain", "down").await;
    assert_eq!((&lost["before"], &lost["cloud"]), (&"up".into(), &"aws".into()), "{lost}");
    assert_eq!(lost["text"], "cloud aws is down: 2 of 2 endpoints: 2 refuse");
    let moved = follower.hears("failover", "gcp").await;
    assert_eq!((&moved["before"], &moved["generation"]), (&"aws".into(), &lost["generation"]), "{moved}");
    assert_eq!(moved["evidence"], "aws 0 of 2 up, gcp 1 of 1 up");
    assert!(down["id"].as_u64() < lost["id"].as_u64() && lost["id"].as_u64() < moved["id"].as_u64());
    is_a_line_of_the_log(&down, &proxy, before).await;
    let id = down["id"].to_string();
    let lines =
        proxy.said().lines().filter(|line| line.contains("\"verdict\"") && line.contains("\"down\"")).count();
    assert_eq!(lines, 1, "told once: {}", proxy.said());

    // Away while it comes back; then exactly what was missed.
    let place_in_time = std::mem::take(&mut follower.id);
    drop(follower);
    let _back =
        [Backend::serve_at(address, |_| async {}).await, Backend::serve_at(second, |_| async {}).await];
    proxy.judges(&[address, second], "up").await;
    let mut follower = Follower::start(admin, Some(&place_in_time)).await;
    let first = follower.next().await.unwrap();
    assert_eq!(first["id"].as_u64().unwrap(), moved["id"].as_u64().unwrap() + 1, "{first}");
    assert_eq!(
        (&first["kind"], &first["before"], &first["after"]),
        (&"verdict".into(), &"down".into(), &"up".into())
    );
    assert!(first["generation"].as_u64() > down["generation"].as_u64(), "{first}");
    let back = follower.hears("failover", "aws").await;
    assert_eq!(back["before"], "gcp", "{back}");

    let text = twinspan_events(admin, &["--last", "50"]).await;
    let sentence = format!("endpoint {address} (pool web) down: ");
    assert!(text.lines().any(|line| line.contains("~ verdict") && line.contains(&sentence)), "{text}");
    assert!(
        text.contains("pool web: new sessions moved from aws to gcp (aws 0 of 2 up, gcp 1 of 1 up)"),
        "{text}"
    );
    let json =
        twinspan_events(admin, &["--json", "--kind=verdict", "--cloud=aws", "--since=1h", "--level=warn"])
            .await;
    assert_eq!(json.lines().count(), 1, "{json}");
    assert!(json.contains(&format!("\"id\":{id}")), "{json}");
}

#[tokio::test]
async fn a_follower_holds_up_no_end_and_hears_of_it() {
    let place = Place::new();
    let Scene { mut proxy, admin, aws: _aws, gcp: _gcp } = scene(&place).await;
    let mut follower = Follower::start(admin, None).await;
    // It reads nothing at all.
    let _mute = Follower::start(admin, None).await;
    follower.hears("start", "ready").await;
    let start = Instant::now();
    proxy.signal(Signal::TERM);
    let drain = follower.hears("drain", "draining").await;
    assert_eq!(drain["before"], "ready");
    follower.hears("stop", "stopping").await;
    assert!(follower.next().await.is_none(), "the stream ends");
    assert_eq!(proxy.end().await.code(), Some(0));
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

#[tokio::test]
async fn the_command_ends_with_who_reads_it() {
    let place = Place::new();
    let Scene { proxy, admin, .. } = scene(&place).await;
    let mut command = Command::new(binary());
    command.args(["events", "-f", "--kind", "start,failover", "--admin", &admin.to_string()]);
    let mut events = command.stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    let mut lines = BufReader::new(events.stdout.take().unwrap()).lines();
    assert!(lines.next_line().await.unwrap().is_some());
    drop(lines);
    // No event comes any more.
    let status = timeout(Duration::from_secs(10), events.wait()).await.expect("it ends").unwrap();
    assert_eq!(status.code(), Some(0));
    drop(proxy);
}

#[tokio::test]
async fn the_command_follows_over_a_restart_and_ends_with_the_keyboard() {
    let place = Place::new();
    let Scene { mut proxy, admin, aws, gcp } = scene(&place).await;
    let setup = proxy.setup().clone();
    let mut command = Command::new(binary());
    command.args(["events", "-f", "--json", "--kind", "start,stop", "--admin", &admin.to_string()]);
    let mut events = Process::start(command);
    let kinds = |said: &str| {
        let events = said.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        events.map(|event| event["kind"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let follows = async |events: &Process, wanted: &[&str]| {
        eventually(format!("{wanted:?}"), async || (kinds(&events.said()) == wanted).then_some(())).await;
    };
    follows(&events, &["start"]).await;
    proxy.signal(Signal::TERM);
    assert_eq!(proxy.end().await.code(), Some(0));
    follows(&events, &["start", "stop"]).await;
    let _again = Proxy::start(setup).await;
    follows(&events, &["start", "stop", "start"]).await;
    assert!(events.said().contains("is away, trying again: it has stopped"), "{}", events.said());
    events.signal(Signal::INT);
    assert_eq!(events.end().await.code(), Some(0), "{}", events.said());
    drop((aws, gcp));
}

//! The two servers, asked over real sockets, and the pieces that other tests here build views from.

mod connections;
mod sessions;

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UnixStream},
    task::JoinHandle,
    time::timeout,
};

use super::*;
use crate::{
    api::{Event, LiveSession, LiveSessions, Problem, Status},
    config::{self, AdminBind, Config, defaults},
    control::{
        self, EndpointView, Failover, Happening, ListenerView, Overview, PoolView,
        certificates::{Owner, Told},
        health::Verdict,
    },
    ids::{CloudName, EndpointIdentity, Generation, ListenerName, PoolName, SessionHandle},
    state::{self, ListenerCell, Phase, Rejection, Reports, Shared, SocketCommand, Sockets},
    telemetry::{Cause, End, SessionLog, Side, Stage},
};

/// Long enough for any machine; nothing waits for it when all is well.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

pub(in crate::control) fn endpoint(pool: &str, cloud: &str, address: &str) -> EndpointView {
    EndpointView {
        identity: Arc::new(EndpointIdentity {
            pool: PoolName::from(pool),
            cloud: CloudName::from(cloud),
            address: address.parse().unwrap(),
        }),
        host: None,
        region: None,
        zone: Some(format!("{cloud}-1a")),
        weight: 1,
        ramp_percent: 100,
        cell: Arc::default(),
        verdict: Verdict::Up,
        reason: Arc::from("2 good probes"),
        since: SystemTime::now(),
        transitions: 1,
        in_use: true,
        judged: control::Judged {
            standing: control::Word::In,
            reason: Arc::from("2 good probes"),
            ..control::Judged::default()
        },
    }
}

/// One pool, `db`, of these endpoints, in a config of the clouds `aws` and `gcp`.
pub(in crate::control) fn overview(endpoints: Vec<EndpointView>) -> Overview {
    let clouds = ["aws", "gcp"].map(CloudName::from);
    let pool = PoolView {
        name: PoolName::from("db"),
        policy: config::Policy::Failover { order: clouds.to_vec() },
        balance: config::Balance::LeastSessions,
        all_down: None,
        shares: vec![(clouds[0].clone(), 1.0)],
        paced: vec![(clouds[1].clone(), 30)],
        frozen: None,
        taken: control::verdicts::Taken { out: 50, ejected: 25, by_checks: 25 },
        limits: (config::Ejection::default(), config::Restraint::default()),
        endpoints,
        unresolved: Vec::new(),
        cell: Arc::default(),
        hedge: None,
    };
    let since = SystemTime::now();
    let evidence = Arc::from("2 of 2 endpoints: 2 refuse");
    let verdicts =
        [control::CloudVerdict::Down { since, evidence }, control::CloudVerdict::Recovering { percent: 30 }];
    let clouds = clouds.into_iter().zip(verdicts);
    Overview {
        generation: Generation(7),
        config: config(),
        listeners: Vec::new(),
        clouds: clouds.map(|(name, verdict)| control::CloudView { name, verdict }).collect(),
        pools: vec![pool],
        certificates: Arc::default(),
    }
}

pub(in crate::control) fn config() -> Arc<Config> {
    let cloud = |name: &str| config::Cloud {
        name: CloudName::from(name),
        region: Some(format!("{name}-west")),
        egress_usd_per_gb: Some("0.09".into()),
        domain: config::Domain::default(),
        socket: Arc::default(),
    };
    Arc::new(Config {
        workers: None,
        pin_workers: None,
        engine: true,
        drain_timeout: defaults::DRAIN_TIMEOUT,
        max_memory: config::MaxMemory::Off,
        log: config::Log {
            level: config::Level::Info,
            format: config::LogFormat::Auto,
            sessions: config::SessionLines::All,
            file: None,
        },
        admin: config::Admin { bind: AdminBind::Off, explicit: false },
        telemetry: config::Telemetry { bind: None, explicit: false },
        spiffe: None,
        clouds: vec![cloud("aws"), cloud("gcp")],
        pools: Vec::new(),
        listeners: Vec::new(),
    })
}

/// A listener with one certificate, named twice, whose files are wrong meanwhile; and a pool without any.
fn certificates() -> Arc<[Told]> {
    let shown = |not_after| crate::tls::Shown {
        file: "/tls/a.pem".into(),
        names: vec!["a.example".into()],
        not_before: 0,
        not_after,
        serial: "01".into(),
    };
    let listener = Told {
        owner: Owner::Listener(ListenerName::from("pg")),
        shown: vec![shown(4_000_000_001), shown(4_000_000_000)],
        alarm: Some("/tls/a.key: is empty".into()),
    };
    Arc::from([listener, Told { owner: Owner::Pool(PoolName::from("db")), shown: Vec::new(), alarm: None }])
}

/// Two clouds with two endpoints each, one of them down; a listener; a failover; and traffic.
pub(in crate::control) fn view() -> Arc<View> {
    view_over(Sockets::new(2).0)
}

/// The same, over workers that somebody plays.
fn view_over(sockets: Sockets) -> Arc<View> {
    let shared = Shared::new(Reports::new().0, sockets, SessionLog::off());
    let view = View::new(Arc::new(shared), config());
    let addresses = [("aws", "10.0.0.1:5432"), ("aws", "[2001:db8::1]:5432"), ("gcp", "10.1.0.1:5432")];
    let mut endpoints: Vec<_> =
        addresses.into_iter().map(|(cloud, address)| endpoint("db", cloud, address)).collect();
    for endpoint in &endpoints {
        endpoint.cell.begin();
        endpoint.cell.connected(Duration::from_millis(3));
        endpoint.cell.moved(1000, 2000);
    }
    endpoints[1].verdict = Verdict::Down;
    endpoints[1].reason = Arc::from("3 probes failed: connect: connection refused");
    endpoints[1].cell.connect_failed(Cause::Refused);
    endpoints[1].judged = control::Judged {
        standing: control::Word::Kept,
        reason: Arc::from("kept: the pool would fall below its floor (probes: 3 probes failed)"),
        kept: Some(control::verdicts::Kept::Floor),
        flaps: 3,
        ..control::Judged::default()
    };
    let cell = ListenerCell::new(ListenerName::from("pg"), "127.0.0.1:5432".parse().unwrap());
    cell.begin();
    cell.begin();
    cell.finish(
        End { side: Side::Upstream, stage: Stage::Relay, cause: Cause::Reset },
        Duration::from_secs(2),
    );
    cell.reject(Rejection::Exhausted);
    cell.handshakes.count("resumed");
    cell.refusals.count("no_route");
    let listener = ListenerView {
        cell: Arc::new(cell),
        target: config::Target::Pool(PoolName::from("db")),
        pools: vec![PoolName::from("db")],
    };
    // First without the ejection: only what is seen to happen counts.
    view.show(overview(endpoints.clone()));
    endpoints[0].judged.ejections += 1;
    let overview = overview(endpoints);
    overview.pools[0].cell.handshakes.count("unknown_ca");
    view.show(Overview { listeners: vec![listener], certificates: certificates(), ..overview });
    view.failed_over(Failover { pool: PoolName::from("db"), from: "aws".into(), to: "gcp".into() });
    view.journal.record(Generation(6), Happening::new(control::Kind::Failover).said("pool db: aws is down"));
    view.journal.record(Generation(7), Happening::new(control::Kind::Failover).said("pool db: aws is back"));
    view.reloaded(None);
    view.reloaded(Some("line 3: unknown key\nline 4: unknown key".into()));
    Arc::new(view)
}

pub(super) struct Served {
    pub(super) address: SocketAddr,
    pub(super) view: Arc<View>,
    pub(super) shutdown: CancellationToken,
    task: JoinHandle<std::io::Result<()>>,
}

impl Served {
    pub(super) fn start(kind: Kind, limits: Limits) -> Self {
        Self::start_over(view(), kind, limits)
    }

    fn start_over(view: Arc<View>, kind: Kind, limits: Limits) -> Self {
        let listener = bind_tcp("127.0.0.1:0".parse().unwrap()).unwrap();
        let (address, shutdown) = (listener.address().unwrap(), CancellationToken::new());
        let served = serve_within(listener, Arc::clone(&view), kind, limits, shutdown.clone());
        Self { address, view, shutdown, task: tokio::spawn(served) }
    }

    pub(super) fn admin() -> Self {
        Self::start(Kind::Admin, Limits::default())
    }

    fn telemetry() -> Self {
        Self::start(Kind::Telemetry, Limits::default())
    }

    /// Sends these bytes on a connection of their own and reads until the server closes it.
    pub(super) async fn send(&self, request: &[u8]) -> Answer {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(request).await.unwrap();
        Answer::read(stream).await
    }

    pub(super) async fn get(&self, path: &str) -> Answer {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").as_bytes())
            .await
    }

    async fn delete(&self, path: &str, fields: &str) -> Answer {
        let request = format!("DELETE {path} HTTP/1.1\r\n{fields}Connection: close\r\n\r\n");
        self.send(request.as_bytes()).await
    }

    pub(super) async fn stop(self) {
        self.shutdown.cancel();
        timeout(PATIENCE, self.task).await.unwrap().unwrap().unwrap();
    }
}

#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) head: String,
    pub(super) body: String,
}

impl Answer {
    pub(super) async fn read(mut stream: impl tokio::io::AsyncRead + Unpin) -> Self {
        let mut bytes = Vec::new();
        // A server that refuses a head closes with bytes unread, and the reset may overtake the end.
        drop(timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.expect("the server closes"));
        let text = String::from_utf8(bytes).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
        Self { status, head: head.to_ascii_lowercase(), body: body.to_owned() }
    }

    pub(super) fn problem(&self) -> String {
        serde_json::from_str::<Problem>(&self.body).unwrap().error
    }
}

#[tokio::test]
async fn the_status_says_what_the_view_holds() {
    let served = Served::admin();
    let answer = served.get("/api/v1/status").await;
    assert_eq!(answer.status, 200);
    assert!(answer.head.contains("content-type: application/json"), "{}", answer.head);
    let status: Status = serde_json::from_str(&answer.body).unwrap();
    assert_eq!((status.process.generation, status.process.workers), (7, 2));
    assert_eq!((status.process.reloads.applied, status.process.reloads.refused), (1, 1));
    assert!(!status.process.last_reload.unwrap().ok);
    let states: Vec<_> =
        status.clouds.iter().map(|cloud| (cloud.name.as_str(), cloud.state.as_str())).collect();
    assert_eq!(states, [("aws", "degraded"), ("gcp", "up")]);
    assert_eq!((status.clouds[0].sessions_total, status.clouds[0].to_client), (2, 4000));
    let pool = &status.pools[0];
    assert_eq!(
        (pool.policy.as_str(), pool.order.as_slice()),
        ("failover", ["aws".to_owned(), "gcp".into()].as_slice())
    );
    let down = &pool.endpoints[1];
    assert_eq!((down.address.as_str(), down.verdict.as_str()), ("[2001:db8::1]:5432", "down"));
    assert_eq!(down.reason, "3 probes failed: connect: connection refused");
    assert_eq!(down.connect_failures["refused"], 1);
    assert_eq!(down.connect_ms.usual, Some(3.0));
    let listener = &status.listeners[0];
    assert_eq!((listener.accepted, listener.active, listener.rejected["exhausted"]), (2, 1, 1));
    assert_eq!(listener.ends[0].cause, "reset");
    assert_eq!(status.events.last().unwrap().text, "pool db: aws is back");
    served.stop().await;
}

#[tokio::test]
async fn events_come_in_the_number_asked_for() {
    let served = Served::admin();
    let last: Vec<Event> = serde_json::from_str(&served.get("/api/v1/events?last=1").await.body).unwrap();
    assert_eq!(last.iter().map(|event| event.text.as_str()).collect::<Vec<_>>(), ["pool db: aws is back"]);
    let all: Vec<Event> = serde_json::from_str(&served.get("/api/v1/events").await.body).unwrap();
    assert_eq!(all.len(), 2);
    let wrong = served.get("/api/v1/events?last=-1").await;
    assert_eq!((wrong.status, wrong.problem().as_str()), (400, "`last` must be a number of events"));
    served.stop().await;
}

#[tokio::test]
async fn readiness_follows_the_phase_and_liveness_does_not() {
    let served = Served::telemetry();
    let sessions = &served.view.shared.sessions;
    for (phase, status, word) in [
        (Phase::Starting, 503, "not ready: starting"),
        (Phase::Ready, 200, "ready"),
        (Phase::Draining, 503, "not ready: draining"),
        (Phase::Stopping, 503, "not ready: stopping"),
    ] {
        sessions.advance(phase);
        let ready = served.get("/readyz").await;
        assert_eq!(ready.status, status, "{phase:?}");
        assert!(ready.body.starts_with(word) && ready.body.lines().count() == 1, "{}", ready.body);
        for path in ["/livez", "/healthz"] {
            let alive = served.get(path).await;
            assert_eq!((alive.status, alive.body.as_str()), (200, "ok\n"));
        }
    }
    let verbose = served.get("/readyz?verbose").await;
    assert!(verbose.body.contains("[-] phase: stopping\n"), "{}", verbose.body);
    assert!(verbose.body.contains("[i] last reload: refused\n"), "{}", verbose.body);
    served.stop().await;
}

#[tokio::test]
async fn telemetry_says_nothing_but_health_and_counters() {
    let served = Served::telemetry();
    for path in ["/api/v1/status", "/api/v1/events", "/config", "/config/effective", "/"] {
        assert_eq!(served.get(path).await.status, 404, "{path}");
    }
    let metrics = served.get("/metrics").await;
    assert_eq!(metrics.status, 200);
    let typed = "content-type: application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert!(metrics.head.contains(typed), "{}", metrics.head);
    assert!(metrics.body.ends_with("# EOF\n"));
    // A kubelet asks under the pod's address, a Prometheus under any name.
    let named = served.send(b"GET /livez HTTP/1.1\r\nHost: pod.example\r\nConnection: close\r\n\r\n").await;
    assert_eq!(named.status, 200);
    served.stop().await;
}

#[tokio::test]
async fn admin_serves_what_telemetry_serves_and_the_config() {
    let served = Served::admin();
    for path in ["/livez", "/metrics", "/config", "/config/effective"] {
        let answer = served.get(path).await;
        assert_eq!(answer.status, 200, "{path}");
        assert!(!answer.head.contains("access-control-allow"), "{}", answer.head);
    }
    served.stop().await;
}

#[tokio::test]
async fn what_is_not_there_and_what_is_not_allowed_are_told_apart() {
    let served = Served::admin();
    let missing = served.get("/api/v2/status").await;
    assert_eq!((missing.status, missing.problem().as_str()), (404, "there is nothing at /api/v2/status"));
    let post =
        b"POST /api/v1/status HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    let post = served.send(post).await;
    assert_eq!((post.status, post.problem().as_str()), (405, "this path takes GET only"));
    assert!(post.head.contains("allow: get"), "{}", post.head);
    for path in ["/..%2f..%2fetc/passwd", "/%00", "/\\..\\", "//livez"] {
        assert!((400..500).contains(&served.get(path).await.status), "{path}");
    }
    served.stop().await;
}

#[tokio::test]
async fn a_foreign_host_is_refused_by_admin() {
    let served = Served::admin();
    let port = served.address.port();
    let ask = async |host: &str| {
        served.send(format!("GET /livez HTTP/1.1\r\n{host}Connection: close\r\n\r\n").as_bytes()).await.status
    };
    let ours = [
        "localhost",
        "LOCALHOST",
        "localhost.",
        "127.0.0.1",
        "127.9.9.9",
        "[::1]",
        &format!("localhost:{port}"),
        "[::1]:1",
    ];
    for host in ours {
        assert_eq!(ask(&format!("Host: {host}\r\n")).await, 200, "{host}");
    }
    for host in ["evil.example", "localhost.evil.example", "10.0.0.1", "127.0.0.1.evil.example", "[::2]:9797"]
    {
        assert_eq!(ask(&format!("Host: {host}\r\n")).await, 403, "{host}");
    }
    assert_eq!(ask("").await, 400, "no Host at all");
    assert_eq!(ask("Host: localhost\r\nHost: localhost\r\n").await, 400, "two of them");
    assert_eq!(ask("Host: \"\r\n").await, 400, "unreadable");
    let absolute = b"GET http://evil.example/livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    assert_eq!(served.send(absolute).await.status, 403);
    served.stop().await;
}

#[tokio::test(start_paused = true)]
async fn rates_appear_once_the_sampler_has_run() {
    let (view, sampler) = (view(), Arc::new(Sampler::default()));
    assert_eq!(status::status(&view, &sampler).pools[0].endpoints[0].rates, None);
    let watched = async {
        tokio::time::sleep(Duration::from_millis(2_500)).await;
        let overview = view.overview.load_full();
        overview.pools[0].endpoints[0].cell.connected(Duration::from_millis(1));
        overview.listeners[0].cell.begin();
        status::status(&view, &sampler)
    };
    let status = tokio::select! {
        never = Arc::clone(&sampler).run(Arc::clone(&view)) => match never {},
        status = watched => status,
    };
    assert_eq!(status.pools[0].endpoints[0].rates.unwrap().sessions_per_second, 0.4);
    assert_eq!(status.clouds[0].rates.unwrap().sessions_per_second, 0.4);
    assert_eq!(status.listeners[0].accepted_per_second, Some(0.4));
}

//! Who is put to the test: twinspan, HAProxy and nginx with the same endpoints and, where they have any, the same
//! probes; and what each says of its sessions, in the same words.

use std::{collections::HashMap, fmt::Write as _, path::Path, time::Duration};

use rustix::process::Signal;
use tempfile::TempDir;
use tokio::process::Command;

use super::{
    ground::{BIND, CLOUDS, COMMON, EDGE, NAMES, address, at, cloud_of, named},
    traffic::client,
};
use crate::harness::{Process, Proxy, Setup, listener, pool};

/// A program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Twinspan,
    Haproxy,
    Nginx,
}

/// A running one.
#[derive(Debug)]
pub(super) enum Subject {
    Twinspan(Proxy),
    Peer { kind: Kind, process: Process, folder: TempDir },
}

/// What a session's line in its proxy's log says.
#[derive(Clone, Debug)]
pub(super) struct Line {
    /// Where it was connected, or tried last.
    pub(super) endpoint: Option<usize>,
    /// From the accept to an established connection, if there was one.
    pub(super) connect: Option<Duration>,
    pub(super) attempts: u32,
    /// Bytes sent to the endpoint; of HAProxy, those that the client has sent.
    pub(super) to_upstream: u64,
    /// How it ended, in the words of the program.
    pub(super) end: String,
}

impl Kind {
    /// The name of the program.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Twinspan => "twinspan",
            Self::Haproxy => "haproxy",
            Self::Nginx => "nginx",
        }
    }
}

impl Subject {
    /// Starts it.
    pub(super) async fn start(kind: Kind) -> Self {
        if kind == Kind::Twinspan {
            let proxy = Proxy::start(Setup::at(EDGE, tables())).await;
            proxy.judges(&[0, 1, 2, 3].map(address), "up").await;
            return Self::Twinspan(proxy);
        }
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("config");
        let mut command = Command::new(Path::new("/usr/sbin").join(kind.name()));
        if kind == Kind::Haproxy {
            std::fs::write(&config, haproxy()).unwrap();
            command.arg("-db").arg("-f").arg(&config);
        } else {
            std::fs::write(&config, nginx(folder.path())).unwrap();
            command.arg("-e").arg(folder.path().join("error.log")).arg("-c").arg(&config);
        }
        let process = Process::start(command).farewell(Signal::TERM).listens(BIND).await;
        Self::Peer { kind, process, folder }
    }

    /// All that it has said.
    pub(super) fn said(&self) -> String {
        match self {
            Self::Twinspan(proxy) => proxy.said(),
            Self::Peer { process, .. } => process.said(),
        }
    }

    /// The lines of the short sessions so far, by the number of the client.
    pub(super) fn lines(&self) -> HashMap<u32, Line> {
        let collect =
            |text: &str, read: fn(&str) -> Option<(u32, Line)>| text.lines().filter_map(read).collect();
        match self {
            Self::Twinspan(proxy) => collect(&proxy.said(), of_twinspan),
            Self::Peer { kind: Kind::Nginx, folder, .. } => {
                collect(&std::fs::read_to_string(folder.path().join("access.log")).unwrap(), of_nginx)
            }
            Self::Peer { process, .. } => collect(&process.said(), of_haproxy),
        }
    }

    /// What it counts of hedges, if it does: each counter that has one.
    pub(super) async fn hedges(&self) -> String {
        let Self::Twinspan(proxy) = self else { return String::new() };
        let (_, page) = proxy.get("/metrics").await.unwrap();
        let counted = page.lines().filter(|line| !line.starts_with('#') && line.contains("hedge"));
        counted.fold(String::new(), |text, line| text + "  " + line + "\n")
    }
}

/// twinspan's pool and listener: the defaults, but for probes that want an answer. `TWINSPAN_FAULTS_POOL` adds keys to
/// the pool.
fn tables() -> String {
    let more = std::env::var("TWINSPAN_FAULTS_POOL").unwrap_or_default();
    let settings = format!(
        "policy = \"weighted\"\nweights = {{ aws = 50, gcp = 50 }}\n{more}\n[pool.health.tcp]\ninterval = \"500ms\"\n\
         fast_interval = \"100ms\"\ntimeout = \"300ms\"\nrise = 2\nfall = 3\nsend = \"?\"\nexpect = \"{COMMON}\""
    );
    let endpoints: Vec<_> =
        (0..NAMES.len()).map(|endpoint| (CLOUDS[cloud_of(endpoint)], address(endpoint))).collect();
    pool("web", &settings, &endpoints) + &listener(BIND, "web", "")
}

fn haproxy() -> String {
    let mut text = format!(
        "global
    nbthread 2
    maxconn 8000
    log stdout format raw local0

listen web
    bind {BIND}
    mode tcp
    log global
    log-format \"%ci %s %Tw %Tc %U %rc %ts\"
    option redispatch 1
    retries 3
    timeout connect 1s
    timeout client 1m
    timeout server 1m
    timeout check 300ms
    option tcp-check
    tcp-check send ?
    tcp-check expect string {COMMON}
    default-server check inter 500ms fastinter 100ms fall 3 rise 2 weight 1
"
    );
    for (endpoint, name) in NAMES.iter().enumerate() {
        writeln!(text, "    server {name} {}", address(endpoint)).unwrap();
    }
    text
}

fn nginx(folder: &Path) -> String {
    let module = Path::new("/usr/lib/nginx/modules/ngx_stream_module.so");
    let load = if module.is_file() { format!("load_module {};", module.display()) } else { String::new() };
    let servers = (0..NAMES.len()).fold(String::new(), |mut text, endpoint| {
        write!(text, "server {} max_fails=1 fail_timeout=10s; ", address(endpoint)).unwrap();
        text
    });
    let folder = folder.display();
    format!(
        "{load}
daemon off;
worker_processes 2;
pid {folder}/pid;
error_log {folder}/error.log error;
events {{ worker_connections 8192; }}
stream {{
    log_format line '$remote_addr|$upstream_addr|$upstream_connect_time|$upstream_session_time|$upstream_bytes_sent|$status';
    access_log {folder}/access.log line;
    upstream web {{ zone web 64k; {servers} }}
    server {{
        listen {BIND} backlog=4096 reuseport;
        proxy_pass web;
        proxy_connect_timeout 1s;
        proxy_next_upstream on;
        proxy_timeout 1m;
    }}
}}
"
    )
}

fn of_twinspan(line: &str) -> Option<(u32, Line)> {
    let line: serde_json::Value = serde_json::from_str(line).ok()?;
    let number = client(line["client"].as_str()?.split(':').next()?)?;
    let seconds = line["connect_ms"].as_f64().map(|milliseconds| milliseconds / 1e3);
    let attempts = u32::try_from(line["attempts"].as_u64()?).ok()?;
    let to_upstream = line["to_upstream"].as_u64()?;
    let endpoint = line["endpoint"].as_str().and_then(at);
    let connect = seconds.map(Duration::from_secs_f64);
    let end = ["side", "stage", "cause"].map(|key| line[key].as_str().unwrap_or_default()).join("/");
    Some((number, Line { endpoint, connect, attempts, to_upstream, end }))
}

/// Times in milliseconds, -1 for what did not happen; `+` before the retries tells of another server.
fn of_haproxy(line: &str) -> Option<(u32, Line)> {
    let mut words = line.split(' ');
    let number = client(words.next()?)?;
    let endpoint = named(words.next()?);
    let times: [Option<u64>; 2] = [words.next()?.parse().ok(), words.next()?.parse().ok()];
    let connect = times[0].zip(times[1]).map(|(queue, connect)| Duration::from_millis(queue + connect));
    let to_upstream = words.next()?.parse().ok()?;
    let retries: u32 = words.next()?.trim_start_matches('+').parse().ok()?;
    let (attempts, end) = (retries + u32::from(endpoint.is_some()), words.next()?.to_owned());
    Some((number, Line { endpoint, connect, attempts, to_upstream, end }))
}

/// Lists hold what was tried, in order, with times in seconds and `-` for what did not happen.
fn of_nginx(line: &str) -> Option<(u32, Line)> {
    let mut fields = line.split('|').map(|field| field.split(", ").collect::<Vec<_>>());
    let number = client(fields.next()?[0])?;
    let tried = fields.next()?;
    let [connects, sessions] = [fields.next()?, fields.next()?]
        .map(|list| list.iter().map(|time| time.parse::<f64>().ok()).collect::<Vec<_>>());
    let endpoint = at(tried.last()?);
    let before: f64 = sessions.iter().take(tried.len() - 1).flatten().sum();
    let connect = connects.last()?.map(|last| Duration::from_secs_f64(before + last));
    let to_upstream = fields.next()?.last()?.parse().unwrap_or_default();
    let attempts = u32::try_from(tried.iter().filter(|text| at(text).is_some()).count()).unwrap();
    let end = fields.next()?.concat();
    Some((number, Line { endpoint, connect, attempts, to_upstream, end }))
}

#[test]
fn lines_of_all_three_say_the_same() {
    let twinspan = r#"{"client":"127.64.0.7:4000","endpoint":"127.0.0.12:7002","to_upstream":1,"connect_ms":1001.5,"attempts":2}"#;
    let haproxy = "127.64.0.7 gcp-2 0 1001 1 +1 --";
    let nginx = "127.64.0.7|127.0.0.11:7001, 127.0.0.12:7002|-, 0.000|1.001, 0.010|0, 1|200";
    for line in [of_twinspan(twinspan), of_haproxy(haproxy), of_nginx(nginx)] {
        let (number, line) = line.unwrap();
        assert_eq!((number, line.endpoint, line.attempts, line.to_upstream), (7, Some(3), 2, 1), "{line:?}");
        assert_eq!(line.connect.unwrap().as_millis(), 1001);
    }
    let twinspan = r#"{"client":"127.64.0.7:4000","to_upstream":0,"attempts":0}"#;
    for line in [
        of_twinspan(twinspan),
        of_haproxy("127.64.0.7 <NOSRV> -1 -1 0 0 SC"),
        of_nginx("127.64.0.7|web|-|0.000|0|502"),
    ] {
        let (_, line) = line.unwrap();
        assert_eq!((line.endpoint, line.attempts, line.connect), (None, 0, None), "{line:?}");
    }
}

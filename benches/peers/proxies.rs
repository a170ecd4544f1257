//! The peers: how each is configured, started with one worker on its CPU, and ended. Every one gets what it needs to do
//! the same work and nothing that its users would not have; twinspan gets what a default install has switched on.

use std::{
    fs,
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::Context;

use crate::{
    account, host,
    load::{self, PATIENCE},
};

/// Something to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum Kind {
    /// No proxy: what the load and the target cost.
    Direct,
    Twinspan,
    Haproxy,
    /// HAProxy with `option splice-request` and `option splice-response`. Not `splice-auto`: 2.6 decides on it only when
    /// a transfer pauses, so that a steady one is copied to its end.
    HaproxySplice,
    Nginx,
    Envoy,
}

/// What the configs are made from.
#[derive(Clone, Copy)]
pub(crate) struct Site<'a> {
    pub(crate) cpus: host::Cpus,
    pub(crate) target: SocketAddr,
    /// The twinspan binary.
    pub(crate) twinspan: &'a Path,
    /// Sessions that must fit at once.
    pub(crate) sessions: u64,
}

/// A running proxy; dropping it ends it.
pub(crate) struct Proxy {
    pub(crate) kind: Kind,
    /// Where the load goes.
    pub(crate) address: SocketAddr,
    process: Option<Process>,
}

struct Process {
    child: Child,
    family: Vec<u32>,
    dir: tempfile::TempDir,
}

impl Kind {
    /// The name in options and tables.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Twinspan => "twinspan",
            Self::Haproxy => "haproxy",
            Self::HaproxySplice => "haproxy-splice",
            Self::Nginx => "nginx",
            Self::Envoy => "envoy",
        }
    }

    fn program(self, site: Site<'_>) -> Option<PathBuf> {
        match self {
            Self::Direct => None,
            Self::Twinspan => Some(site.twinspan.to_owned()),
            Self::Haproxy | Self::HaproxySplice => host::find("haproxy"),
            Self::Nginx => host::find("nginx"),
            Self::Envoy => host::find("envoy"),
        }
    }

    /// True when it is installed.
    pub(crate) fn is_here(self, site: Site<'_>) -> bool {
        self == Self::Direct || self.program(site).is_some_and(|program| program.is_file())
    }

    /// What it says of itself.
    pub(crate) fn version(self, site: Site<'_>) -> Option<String> {
        let flag = match self {
            Self::Direct => return None,
            Self::Twinspan | Self::Envoy => "--version",
            Self::Haproxy | Self::HaproxySplice | Self::Nginx => "-v",
        };
        let program = self.program(site)?;
        let said = Command::new(&program).arg(flag).output().ok()?;
        let said = if said.stdout.is_empty() { said.stderr } else { said.stdout };
        let said = String::from_utf8_lossy(&said).into_owned();
        let line = said.lines().map(str::trim).find(|line| !line.is_empty())?;
        // Envoy says where it lies, which is nobody's business.
        Some(line.trim_start_matches(&*program.to_string_lossy()).trim().to_owned())
    }

    fn config(self, site: Site<'_>, dir: &Path, port: u16, health: u16) -> String {
        match self {
            Self::Direct => String::new(),
            Self::Twinspan => twinspan(site, dir, port, health),
            Self::Haproxy => haproxy(site, port, ""),
            Self::HaproxySplice => haproxy(site, port, "option splice-request\n    option splice-response"),
            Self::Nginx => nginx(site, dir, port),
            Self::Envoy => envoy(site, port),
        }
    }

    fn arguments(self, command: &mut Command, dir: &Path, config: &Path) {
        match self {
            Self::Direct => {}
            Self::Twinspan => drop(command.arg("run").arg("-c").arg(config)),
            // -db: one process, in the foreground.
            Self::Haproxy | Self::HaproxySplice => drop(command.arg("-db").arg("-f").arg(config)),
            Self::Nginx => drop(command.arg("-e").arg(dir.join("error.log")).arg("-c").arg(config)),
            Self::Envoy => drop(
                command
                    .args(["--concurrency", "1", "--disable-hot-restart", "--log-level", "error", "-c"])
                    .arg(config),
            ),
        }
    }
}

impl Proxy {
    /// Starts it and waits until an exchange has gone through.
    pub(crate) fn start(kind: Kind, site: Site<'_>) -> anyhow::Result<Self> {
        let Some(program) = kind.program(site) else {
            return Ok(Self { kind, address: site.target, process: None });
        };
        let dir = host::directory()?;
        let (port, health) = (host::free_port()?, host::free_port()?);
        // Envoy takes the format from the suffix.
        let config = dir.path().join("proxy.yaml");
        fs::write(&config, kind.config(site, dir.path(), port, health))?;
        let mut command = host::alone(&program);
        kind.arguments(&mut command, dir.path(), &config);
        let output = fs::File::create(dir.path().join("output"))?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        // A child inherits the CPU of the thread that starts it.
        host::pin(site.cpus.proxy)?;
        let child = command.spawn();
        host::pin(site.cpus.load)?;
        let child = child.with_context(|| format!("cannot start {}", program.display()))?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut process = Process { child, family: Vec::new(), dir };
        process.wait_ready(kind, address, health)?;
        Ok(Self { kind, address, process: Some(process) })
    }

    /// Its processes; empty when there is no proxy.
    pub(crate) fn family(&self) -> &[u32] {
        self.process.as_ref().map_or(&[], |process| &process.family)
    }
}

impl Process {
    fn wait_ready(&mut self, kind: Kind, address: SocketAddr, health: u16) -> anyhow::Result<()> {
        let ready = host::eventually(2 * PATIENCE, || {
            if let Some(status) = self.child.try_wait()? {
                anyhow::bail!("{} ended with {status}: {}", kind.name(), self.output());
            }
            let healthy = kind != Kind::Twinspan || says_ready(health).unwrap_or_default();
            Ok(healthy && load::exchange_once(address).is_ok())
        })?;
        anyhow::ensure!(ready, "{} does not answer: {}", kind.name(), self.output());
        self.family = account::family(self.child.id());
        host::prefer(self.child.id());
        Ok(())
    }

    fn output(&self) -> String {
        let read = |name| fs::read_to_string(self.dir.path().join(name)).unwrap_or_default();
        format!("{}{}", read("output"), read("error.log")).trim().to_owned()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        use rustix::process::{Pid, Signal, kill_process};
        // Asked first, because nginx leaves its worker behind when it is killed. Failures mean that it has ended.
        let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        let ended = host::eventually(Duration::from_secs(2), || Ok(self.child.try_wait()?.is_some()));
        if !matches!(ended, Ok(true)) {
            for pid in self.family.iter().filter_map(|pid| Pid::from_raw(i32::try_from(*pid).ok()?)) {
                let _ = kill_process(pid, Signal::KILL);
            }
            drop(self.child.kill());
            drop(self.child.wait());
        }
    }
}

fn says_ready(port: u16) -> io::Result<bool> {
    let mut stream = load::connect((Ipv4Addr::LOCALHOST, port).into())?;
    stream.write_all(b"GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
    let mut status = [0; 12];
    stream.read_exact(&mut status)?;
    Ok(status.ends_with(b" 200"))
}

fn twinspan(site: Site<'_>, dir: &Path, port: u16, health: u16) -> String {
    let (target, log) = (site.target, dir.join("sessions.log"));
    format!(
        r#"version = 1
workers = 1

[log]
sessions = "all"
file = "{}"

[admin]
bind = "off"

[telemetry]
bind = "127.0.0.1:{health}"

[cloud.aws]

[[pool]]
name = "p"

[[pool.endpoint]]
address = "{target}"
cloud = "aws"

[pool.health.tcp]
interval = "1s"

[[listener]]
bind = "127.0.0.1:{port}"
pool = "p"
"#,
        log.display()
    )
}

fn haproxy(site: Site<'_>, port: u16, option: &str) -> String {
    let (target, sessions) = (site.target, site.sessions + 64);
    format!(
        "global
    nbthread 1
    maxconn {sessions}
    maxpipes 64

defaults
    mode tcp
    {option}
    timeout connect 5s
    timeout client 1m
    timeout server 1m

listen p
    bind 127.0.0.1:{port}
    server s {target} check inter 1s
"
    )
}

fn nginx(site: Site<'_>, dir: &Path, port: u16) -> String {
    let module = Path::new("/usr/lib/nginx/modules/ngx_stream_module.so");
    let load = if module.is_file() { format!("load_module {};", module.display()) } else { String::new() };
    let (target, connections, dir) = (site.target, site.sessions * 2 + 128, dir.display());
    format!(
        "{load}
daemon off;
worker_processes 1;
pid {dir}/pid;
error_log {dir}/error.log error;
events {{
    worker_connections {connections};
}}
stream {{
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        proxy_pass {target};
        proxy_timeout 1m;
    }}
}}
"
    )
}

fn envoy(site: Site<'_>, port: u16) -> String {
    let (ip, target) = (site.target.ip(), site.target.port());
    format!(
        r#"static_resources:
  listeners:
  - name: p
    address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }}
    filter_chains:
    - filters:
      - name: envoy.filters.network.tcp_proxy
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: p
          cluster: p
  clusters:
  - name: p
    type: STATIC
    connect_timeout: 5s
    circuit_breakers: {{ thresholds: [{{ max_connections: 100000, max_pending_requests: 100000 }}] }}
    health_checks:
    - {{ timeout: 1s, interval: 1s, unhealthy_threshold: 3, healthy_threshold: 2, tcp_health_check: {{}} }}
    load_assignment:
      cluster_name: p
      endpoints:
      - lb_endpoints:
        - endpoint: {{ address: {{ socket_address: {{ address: {ip}, port_value: {target} }} }} }}
"#
    )
}

//! The peers: how each is started and ended. Every measurement has a proxy and a target of its own, on an address of its
//! own: what an earlier one has left in the kernel or in an allocator is nobody's burden.

use std::{
    fs,
    io::{self, Read, Write},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::Context;

use crate::{
    account,
    configs::{self, Front, Setting},
    host::{self, Crew, Ground},
    load::{self, PATIENCE},
    target::{ByHand, Serves, Target},
};

/// Something to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum Kind {
    /// No proxy: what the load and the target cost.
    Direct,
    Twinspan,
    /// twinspan with `engine = false`: tokio carries every session. Only when asked for.
    TwinspanTokio,
    /// twinspan with `hedge = false` and `ejection.enabled = false`: what racing and judging cost while all is well. Only when
    /// asked for.
    TwinspanPlain,
    Haproxy,
    /// HAProxy with `option splice-request` and `option splice-response`. Not `splice-auto`: 2.6 decides on it only when
    /// a transfer pauses, so that a steady one is copied to its end.
    HaproxySplice,
    Nginx,
    Envoy,
}

/// What is the same for all measurements.
#[derive(Clone, Copy)]
pub(crate) struct Site<'a> {
    pub(crate) cpus: host::Cpus,
    /// The twinspan binary.
    pub(crate) twinspan: &'a Path,
    /// Sessions that must fit at once.
    pub(crate) sessions: u64,
}

/// A running proxy and its target; dropping it ends both.
pub(crate) struct Proxy {
    /// Where the load goes.
    pub(crate) address: SocketAddr,
    process: Option<Process>,
    /// None once it was taken.
    target: Option<Target>,
}

/// A running process; dropping it ends it.
pub(crate) struct Process {
    pub(crate) child: Child,
    /// With those below it.
    pub(crate) family: Vec<u32>,
    pub(crate) dir: tempfile::TempDir,
}

impl Kind {
    /// The name in options and tables.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Twinspan => "twinspan",
            Self::TwinspanTokio => "twinspan-tokio",
            Self::TwinspanPlain => "twinspan-plain",
            Self::Haproxy => "haproxy",
            Self::HaproxySplice => "haproxy-splice",
            Self::Nginx => "nginx",
            Self::Envoy => "envoy",
        }
    }

    /// True when it is ours.
    pub(crate) const fn is_twinspan(self) -> bool {
        matches!(self, Self::Twinspan | Self::TwinspanTokio | Self::TwinspanPlain)
    }

    /// True when it takes part without being asked for.
    pub(crate) fn is_usual(self) -> bool {
        !matches!(self, Self::TwinspanTokio | Self::TwinspanPlain)
    }

    fn program(self, site: Site<'_>) -> Option<PathBuf> {
        match self {
            Self::Direct => None,
            Self::Twinspan | Self::TwinspanTokio | Self::TwinspanPlain => Some(site.twinspan.to_owned()),
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
            Self::Twinspan | Self::TwinspanTokio | Self::TwinspanPlain | Self::Envoy => "--version",
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

    pub(crate) fn config(self, setting: &Setting<'_>) -> String {
        match self {
            Self::Direct => String::new(),
            Self::Twinspan => configs::twinspan(setting, true),
            Self::TwinspanTokio => configs::twinspan(setting, false),
            Self::TwinspanPlain => configs::twinspan_plain(setting),
            Self::Haproxy => configs::haproxy(setting, ""),
            Self::HaproxySplice => {
                configs::haproxy(setting, "option splice-request\n    option splice-response")
            }
            Self::Nginx => configs::nginx(setting),
            Self::Envoy => configs::envoy(setting),
        }
    }

    fn arguments(self, command: &mut Command, setting: &Setting<'_>, config: &Path) {
        match self {
            Self::Direct => {}
            Self::Twinspan | Self::TwinspanTokio | Self::TwinspanPlain => {
                command.arg("run").arg("-c").arg(config);
            }
            // -db: one process, in the foreground.
            Self::Haproxy | Self::HaproxySplice => drop(command.arg("-db").arg("-f").arg(config)),
            Self::Nginx => drop(command.arg("-e").arg(setting.dir.join("error.log")).arg("-c").arg(config)),
            Self::Envoy => drop(
                command
                    .args(["--concurrency", &setting.workers.to_string()])
                    .args(["--disable-hot-restart", "--log-level", "error", "-c"])
                    .arg(config),
            ),
        }
    }
}

impl Proxy {
    /// Starts it with its target and waits until an exchange has gone through.
    pub(crate) fn start(kind: Kind, crew: Crew, site: Site<'_>) -> anyhow::Result<Self> {
        let answers = |to| load::exchange_once(to).is_ok();
        Self::start_with(kind, crew, site, (host::directory()?, Front::Plain, Serves::Asked), answers)
    }

    /// The same with a front of its own: `answers` says whether it does what it is for.
    pub(crate) fn start_with(
        kind: Kind,
        crew: Crew,
        site: Site<'_>,
        (dir, front, serves): (tempfile::TempDir, Front, Serves),
        answers: impl Fn(SocketAddr) -> bool,
    ) -> anyhow::Result<Self> {
        let mut ground = Ground::fresh();
        let target = Target::start(ground.address()?, serves, crew, site.cpus)?;
        let Some(program) = kind.program(site) else {
            return Ok(Self { address: target.address, process: None, target: Some(target) });
        };
        let (workers, sessions, target_at) = (crew.workers(), site.sessions, target.address);
        let (listen, health) = (ground.address()?, ground.address()?);
        let setting =
            Setting { listen, health, target: target_at, front, dir: dir.path(), workers, sessions };
        // Envoy takes the format from the suffix.
        let config = dir.path().join("proxy.yaml");
        fs::write(&config, kind.config(&setting))?;
        let mut command = host::alone(&program);
        kind.arguments(&mut command, &setting, &config);
        let output = fs::File::create(dir.path().join("output"))?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let mut process = Process::start(&mut command, dir, crew, site)?;
        process.wait_ready(kind, crew, (listen, health), answers)?;
        Ok(Self { address: listen, process: Some(process), target: Some(target) })
    }

    /// Its target, to be served by the load from now on.
    pub(crate) fn target(&mut self) -> anyhow::Result<ByHand> {
        self.target.take().context("the target was taken before")?.by_hand()
    }

    /// Its processes; empty when there is no proxy.
    pub(crate) fn family(&self) -> &[u32] {
        self.process.as_ref().map_or(&[], |process| &process.family)
    }
}

impl Process {
    /// Starts it where proxies run.
    pub(crate) fn start(
        command: &mut Command,
        dir: tempfile::TempDir,
        crew: Crew,
        site: Site<'_>,
    ) -> anyhow::Result<Self> {
        // A child inherits the CPUs of the thread that starts it.
        site.cpus.go_to_proxy(crew)?;
        let child = command.spawn();
        site.cpus.go_to_load(crew)?;
        let child = child.with_context(|| format!("cannot start {:?}", command.get_program()))?;
        Ok(Self { child, family: Vec::new(), dir })
    }

    fn wait_ready(
        &mut self,
        kind: Kind,
        crew: Crew,
        (listen, health): (SocketAddr, SocketAddr),
        answers: impl Fn(SocketAddr) -> bool,
    ) -> anyhow::Result<()> {
        // A worker of nginx is a process, and the first answers before the second is there.
        let processes = if kind == Kind::Nginx { 1 + crew.workers() } else { 1 };
        let ready = host::eventually(2 * PATIENCE, || {
            if let Some(status) = self.child.try_wait()? {
                anyhow::bail!("{} ended with {status}: {}", kind.name(), self.output());
            }
            let healthy = !kind.is_twinspan() || says_ready(health).unwrap_or_default();
            self.family = account::family(self.child.id());
            let complete = self.family.len() >= usize::try_from(processes)?;
            Ok(healthy && complete && answers(listen))
        })?;
        anyhow::ensure!(ready, "{} does not answer: {}", kind.name(), self.output());
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

fn says_ready(address: SocketAddr) -> io::Result<bool> {
    let mut stream = load::connect(address)?;
    stream.write_all(b"GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
    let mut status = [0; 12];
    stream.read_exact(&mut status)?;
    Ok(status.ends_with(b" 200"))
}

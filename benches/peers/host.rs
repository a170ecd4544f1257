//! The machine: a network namespace of our own, CPUs, limits, and what to say about it all.

use std::{
    ffi::OsString,
    fs, io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    time::Duration,
};

use anyhow::Context;
use rustix::{
    process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit},
    thread::{CpuSet, sched_getaffinity, sched_setaffinity},
};
use serde::Serialize;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::Instant,
};

use crate::account;

/// The CPUs of a run: what is measured has one, everything else another, unless they are to share all of them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cpus {
    proxy: usize,
    load: usize,
    all: CpuSet,
}

/// How many workers a proxy has, and where they run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Crew {
    /// One, on the proxy's CPU.
    Pinned,
    /// Two, wherever the kernel puts them; load and target too.
    Free,
}

/// An address of loopback that no other measurement of this run has, and the ports on it. TIME_WAIT keeps pairs of
/// addresses and ports, so what one measurement leaves behind cannot be in the way of another.
pub(crate) struct Ground {
    ip: Ipv4Addr,
    next: u16,
}

/// What the figures were measured on.
#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    pub(crate) date: String,
    pub(crate) kernel: String,
    pub(crate) cpu: String,
    pub(crate) cpus: usize,
    pub(crate) congestion_control: String,
    pub(crate) namespace: bool,
    pub(crate) load_average_before: String,
    pub(crate) load_average_after: String,
}

/// Runs the same program inside namespaces of its own, if this user may make them; `None` if not.
///
/// The network namespace keeps other traffic out and lets us choose the congestion control: BBR, the default of many
/// machines, paces with timers, and on loopback those would be measured. The process namespace makes the kernel end
/// every proxy when this program ends, whatever ends it.
pub(crate) fn isolate() -> anyhow::Result<Option<ExitCode>> {
    let Some(unshare) = find("unshare").filter(|_| rustix::process::geteuid().is_root()) else {
        return Ok(None);
    };
    let inside = || {
        let mut command = alone(&unshare);
        command.args(["--net", "--pid", "--fork", "--kill-child", "--mount-proc", "--"]);
        command
    };
    let possible = inside().arg("true").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if !possible.is_ok_and(|status| status.success()) {
        return Ok(None);
    }
    let program = std::env::current_exe().context("cannot tell where this program is")?;
    let arguments = std::env::args_os().skip(1);
    let child = inside().arg(program).args(arguments).arg("--inside").spawn()?;
    shepherd(child).map(Some)
}

/// Waits for the isolated run and tells it of an interrupt: a session of its own hears nothing from the terminal.
fn shepherd(mut child: Child) -> anyhow::Result<ExitCode> {
    let mut told = false;
    loop {
        if let Some(status) = child.try_wait()? {
            let code = status.code().and_then(|code| u8::try_from(code).ok());
            return Ok(code.map_or(ExitCode::FAILURE, ExitCode::from));
        }
        if interrupted() && !told {
            // unshare itself ignores signals; its child is the run.
            let run = account::family(child.id()).get(1).and_then(|pid| i32::try_from(*pid).ok());
            if let Some(run) = run.and_then(Pid::from_raw) {
                let _ = kill_process(run, Signal::TERM);
            }
            told = true;
        }
        std::thread::park_timeout(Duration::from_millis(50));
    }
}

/// Where a program is, if it is installed.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    let mut dirs: Vec<PathBuf> =
        std::env::var_os("PATH").map(|path| std::env::split_paths(&path).collect()).unwrap_or_default();
    // Where Debian puts servers, and where a user's PATH does not look.
    dirs.push("/usr/sbin".into());
    dirs.into_iter().map(|dir| dir.join(name)).find(|path| path.is_file())
}

/// A command whose process the kernel ends when the thread that started it ends, in a session of its own: the kernel
/// shares CPUs between sessions first (autogroups), so only a session can take precedence.
pub(crate) fn alone(program: &Path) -> Command {
    let mut words: Vec<OsString> = Vec::new();
    if let Some(setpriv) = find("setpriv") {
        words.extend([setpriv.into(), "--pdeathsig".into(), "KILL".into(), "--".into()]);
    }
    words.extend(find("setsid").map(OsString::from));
    words.push(program.into());
    let mut command = Command::new(words.remove(0));
    command.args(words);
    command
}

/// Sets the fresh namespace up.
pub(crate) fn furnish() -> anyhow::Result<()> {
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status().context("cannot start ip")?;
    anyhow::ensure!(up.success(), "ip could not bring up the loopback interface");
    for (name, value) in [
        ("tcp_congestion_control", "reno"),
        ("ip_local_port_range", &format!("{FIRST_OUTGOING} 65535")),
        ("tcp_tw_reuse", "1"),
    ] {
        let path = format!("/proc/sys/net/ipv4/{name}");
        fs::write(&path, value).with_context(|| format!("cannot write {value} to {path}"))?;
    }
    // Tens of thousands of connections a second leave as many ports in TIME_WAIT. The kernel looks at half of the ports,
    // and would reuse none for a second: more than some 27,000 connections a second to one address would measure its
    // search. Before Linux 6.14 this cannot be chosen.
    drop(fs::write("/proc/sys/net/ipv4/tcp_tw_reuse_delay", "1"));
    Ok(())
}

impl Cpus {
    /// The first two CPUs that this process may use; the same one twice where there is only one.
    pub(crate) fn choose() -> io::Result<Self> {
        let all = sched_getaffinity(None)?;
        let mut usable = (0..CpuSet::MAX_CPU).filter(|cpu| all.is_set(*cpu));
        let proxy = usable.next().unwrap_or_default();
        let load = usable.next().unwrap_or(proxy);
        Ok(Self { proxy, load, all })
    }

    /// True when there is only one.
    pub(crate) const fn is_one(self) -> bool {
        self.proxy == self.load
    }

    /// Keeps this thread, and what it starts from now on, where proxies run.
    pub(crate) fn go_to_proxy(self, crew: Crew) -> io::Result<()> {
        self.go(crew, self.proxy)
    }

    /// Keeps this thread, and what it starts from now on, where load and target run.
    pub(crate) fn go_to_load(self, crew: Crew) -> io::Result<()> {
        self.go(crew, self.load)
    }

    fn go(self, crew: Crew, cpu: usize) -> io::Result<()> {
        let mut set = CpuSet::new();
        set.set(cpu);
        Ok(sched_setaffinity(None, if crew == Crew::Pinned { &set } else { &self.all })?)
    }
}

impl Crew {
    pub(crate) const fn workers(self) -> u32 {
        match self {
            Self::Pinned => 1,
            Self::Free => 2,
        }
    }
}

impl Ground {
    /// The next one.
    pub(crate) fn fresh() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(u32::from_be_bytes([127, 1, 0, 1]));
        Self { ip: NEXT.fetch_add(1, Relaxed).into(), next: FIRST_PORT }
    }

    /// Its next free port, below the range that outgoing connections take theirs from.
    pub(crate) fn address(&mut self) -> anyhow::Result<SocketAddr> {
        loop {
            anyhow::ensure!(self.next < FIRST_OUTGOING, "no free port on {}", self.ip);
            let address = SocketAddr::from((self.ip, self.next));
            self.next += 1;
            if TcpListener::bind(address).is_ok() {
                return Ok(address);
            }
        }
    }
}

const FIRST_PORT: u16 = 10_000;
const FIRST_OUTGOING: u16 = 11_000;

/// Puts this thread, and what it starts from now on, before other work in its session; false without permission.
pub(crate) fn take_precedence() -> bool {
    rustix::process::setpriority_process(None, NICE).is_ok()
}

/// Puts the session of a process before other sessions. Kernels without autogroups do not need it.
pub(crate) fn prefer(pid: u32) {
    drop(fs::write(format!("/proc/{pid}/autogroup"), NICE.to_string()));
}

const NICE: i32 = -15;

/// Raises the limit of open descriptors as far as it goes, for us and the proxies; returns it.
pub(crate) fn raise_descriptors() -> io::Result<u64> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?;
    Ok(limit.maximum.unwrap_or(1 << 20))
}

/// A directory that goes when it is dropped.
pub(crate) fn directory() -> io::Result<tempfile::TempDir> {
    tempfile::Builder::new().prefix("twinspan-peers-").tempdir()
}

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// True once the user wants it to end.
pub(crate) fn interrupted() -> bool {
    INTERRUPTED.load(Relaxed)
}

/// Notes SIGINT and SIGTERM from now on, so that everything is taken down in order.
pub(crate) fn heed_signals() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let (mut interrupt, mut terminate) = {
        let _entered = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        runtime.block_on(async {
            tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
        });
        INTERRUPTED.store(true, Relaxed);
    })?;
    Ok(())
}

/// Asks `what` every 5 ms until it answers `true`; false when `patience` ends first. For things that other processes
/// do without telling anybody.
pub(crate) fn eventually(
    patience: Duration,
    mut what: impl FnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<bool> {
    let end = Instant::now() + patience;
    while !what()? {
        anyhow::ensure!(!interrupted(), "interrupted");
        if Instant::now() > end {
            return Ok(false);
        }
        std::thread::park_timeout(Duration::from_millis(5));
    }
    Ok(true)
}

impl Machine {
    pub(crate) fn describe(namespace: bool) -> Self {
        let cpuinfo = read("/proc/cpuinfo");
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let average = load_average();
        Self {
            date: jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M UTC").to_string(),
            kernel: read("/proc/sys/kernel/osrelease"),
            cpu: model.map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, model)| model.to_owned()),
            cpus: cpuinfo.lines().filter(|line| line.starts_with("processor")).count().max(1),
            congestion_control: read("/proc/sys/net/ipv4/tcp_congestion_control"),
            namespace,
            load_average_after: average.clone(),
            load_average_before: average,
        }
    }
}

/// The load average of the last minute.
pub(crate) fn load_average() -> String {
    read("/proc/loadavg").split(' ').next().unwrap_or_default().to_owned()
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

//! Programs: which are here, and how they are run and ended. None outlives its test.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex},
};

use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, BufReader},
    process::{Child, Command},
    sync::Notify,
    task::JoinHandle,
};

use super::{eventually, soon};

/// The proxy's binary.
pub(crate) fn binary() -> PathBuf {
    std::env::var_os("TWINSPAN_BIN").map_or_else(built_here, PathBuf::from)
}

/// The proxy's binary as it was built with these tests: with the same features.
pub(crate) fn built_here() -> PathBuf {
    env!("CARGO_BIN_EXE_twinspan").into()
}

/// Names those of `programs` that this machine lacks.
pub(crate) fn missing(programs: &[&str]) -> Option<String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    folders.extend(["/usr/sbin", "/sbin"].map(PathBuf::from));
    let absent: Vec<_> = programs
        .iter()
        .copied()
        .filter(|program| !folders.iter().any(|folder| folder.join(program).is_file()))
        .collect();
    (!absent.is_empty()).then(|| format!("not installed: {}", absent.join(", ")))
}

/// What a program left behind.
#[derive(Debug)]
pub(crate) struct Output {
    /// Its exit code; `None` if a signal ended it.
    pub(crate) code: Option<i32>,
    /// Its standard output.
    pub(crate) stdout: String,
    /// Its standard error.
    pub(crate) stderr: String,
}

/// Runs a program to its end.
pub(crate) async fn run<A: AsRef<OsStr>>(program: impl AsRef<OsStr>, arguments: &[A]) -> Output {
    let mut command = Command::new(program.as_ref());
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    let output = soon(format!("the end of {command:?}"), command.output()).await.unwrap();
    Output {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// A running program. What it says, on either output, is kept.
#[derive(Debug)]
pub(crate) struct Process {
    name: String,
    child: Child,
    said: Arc<Said>,
    readers: Vec<JoinHandle<()>>,
    farewell: Signal,
}

/// User memory in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    /// Resident (RSS).
    pub(crate) resident: u64,
    /// Resident, and no part of a file (anonymous PSS).
    pub(crate) own: u64,
}

#[derive(Debug, Default)]
struct Said {
    lines: Mutex<Vec<String>>,
    more: Notify,
}

impl Process {
    /// Starts it, with nothing on standard input.
    pub(crate) fn start(mut command: Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let name = Path::new(command.as_std().get_program()).display().to_string();
        let mut child = command.spawn().unwrap_or_else(|error| panic!("start {name}: {error}"));
        let said = Arc::new(Said::default());
        let readers = vec![
            tokio::spawn(listen(child.stdout.take().unwrap(), Arc::clone(&said))),
            tokio::spawn(listen(child.stderr.take().unwrap(), Arc::clone(&said))),
        ];
        Self { name, child, said, readers, farewell: Signal::KILL }
    }

    /// Ends it with this signal instead of SIGKILL when it is dropped: for a parent that must clean up after itself.
    pub(crate) fn farewell(mut self, signal: Signal) -> Self {
        self.farewell = signal;
        self
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id().unwrap_or_else(|| panic!("{} has ended:\n{}", self.name, self.said()))
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(pid(self.pid()), signal).unwrap();
    }

    /// Waits for its end.
    pub(crate) async fn end(&mut self) -> ExitStatus {
        let status = soon(format!("the end of {}", self.name), self.child.wait()).await.unwrap();
        for reader in self.readers.drain(..) {
            soon("the last lines", reader).await.unwrap();
        }
        status
    }

    /// Fails with what it said if it has ended.
    pub(crate) async fn lives(&mut self) {
        if self.child.try_wait().unwrap().is_some() {
            let status = self.end().await;
            panic!("{} has ended, {status}:\n{}", self.name, self.said());
        }
    }

    /// Ends it with SIGKILL and waits until it is gone.
    pub(crate) async fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.end().await;
    }

    /// Everything it has said.
    pub(crate) fn said(&self) -> String {
        self.said.lines.lock().unwrap().join("\n")
    }

    /// The first line, said or still to come, for which `wanted` gives something.
    pub(crate) async fn line<T>(&self, what: &str, wanted: impl Fn(&str) -> Option<T>) -> T {
        self.line_from(0, what, wanted).await
    }

    /// The same, without the first `start` lines.
    pub(crate) async fn line_from<T>(
        &self,
        start: usize,
        what: &str,
        wanted: impl Fn(&str) -> Option<T>,
    ) -> T {
        let waiting = async {
            loop {
                let more = self.said.more.notified();
                tokio::pin!(more);
                more.as_mut().enable();
                let found = self.said.lines.lock().unwrap().iter().skip(start).find_map(|line| wanted(line));
                if let Some(found) = found {
                    return found;
                }
                more.await;
            }
        };
        soon(format!("a line of {} with {what}", self.name), waiting).await
    }

    /// How many lines it has said.
    pub(crate) fn lines(&self) -> usize {
        self.said.lines.lock().unwrap().len()
    }

    /// Open sockets.
    pub(crate) fn sockets(&self) -> usize {
        self.descriptors().iter().filter(|target| target.starts_with("socket:")).count()
    }

    /// Open pipes, both of their ends counted. A worker may keep a few for its next sessions.
    pub(crate) fn pipe_ends(&self) -> usize {
        self.descriptors().iter().filter(|target| target.starts_with("pipe:")).count()
    }

    fn descriptors(&self) -> Vec<String> {
        let entries = std::fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap();
        // One that was closed meanwhile has no target.
        let targets = entries.filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok());
        targets.map(|target| target.to_string_lossy().into_owned()).collect()
    }

    /// Time on a CPU so far, in ticks of 10 ms.
    pub(crate) fn ticks(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        // After the name, which may hold anything: utime and stime are the fields 14 and 15 of proc(5).
        let fields = stat.rsplit(") ").next().unwrap().split(' ').skip(11).take(2);
        fields.map(|field| field.parse::<u64>().unwrap()).sum()
    }

    /// Resident memory in KiB.
    pub(crate) fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// Memory: all that is resident, and what is its own and no file's, in bytes.
    pub(crate) fn memory(&self) -> Memory {
        let path = format!("/proc/{}/smaps_rollup", self.pid());
        let rollup = std::fs::read_to_string(path).unwrap();
        let bytes = |key: &str| {
            let line = rollup.lines().find_map(|line| line.strip_prefix(key)).unwrap();
            line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024
        };
        Memory { resident: bytes("Rss:"), own: bytes("Pss_Anon:") }
    }

    /// Waits until something listens at `address`, or fails with what the program said.
    pub(crate) async fn listens(mut self, address: std::net::SocketAddr) -> Self {
        eventually(format!("{} at {address}", self.name), async || {
            self.lives().await;
            tokio::net::TcpStream::connect(address).await.ok()
        })
        .await;
        self
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let lines = self.said.lines.lock().unwrap();
            let last = lines.len().saturating_sub(20);
            eprintln!("last words of {}:", self.name);
            lines.iter().skip(last).for_each(|line| eprintln!("  {line}"));
        }
        if self.farewell == Signal::KILL {
            return; // kill_on_drop does it
        }
        if let Some(id) = self.child.id() {
            // It may have ended by itself.
            let _ = kill_process(pid(id), self.farewell);
            // Waits here, without a runtime: a parent that is killed at once would leave its children behind.
            let gone = std::time::Duration::from_millis(10);
            for _ in 0..500 {
                if !matches!(self.child.try_wait(), Ok(None)) {
                    return;
                }
                std::thread::park_timeout(gone);
            }
        }
    }
}

fn pid(id: u32) -> Pid {
    Pid::from_raw(i32::try_from(id).unwrap()).unwrap()
}

async fn listen(output: impl AsyncRead + Unpin, said: Arc<Said>) {
    let mut lines = BufReader::new(output).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        said.lines.lock().unwrap().push(line);
        said.more.notify_waiters();
    }
}

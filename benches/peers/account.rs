//! What a proxy used: CPU time, memory and system calls of its process and all processes below it.

use std::{
    fs,
    io::{self, BufRead, BufReader, Write},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::Context;
use rustix::fs::{CWD, FileType, Mode};

use crate::host;

/// User memory in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Memory {
    /// Resident.
    pub(crate) rss: u64,
    /// Resident, with pages that processes share counted in part.
    pub(crate) pss: u64,
}

/// A process and those below it.
pub(crate) fn family(pid: u32) -> Vec<u32> {
    let mut family = vec![pid];
    let mut seen = 0;
    while let Some(parent) = family.get(seen).copied() {
        seen += 1;
        for task in entries(&format!("/proc/{parent}/task")) {
            let children = fs::read_to_string(format!("/proc/{parent}/task/{task}/children"));
            family.extend(
                children.unwrap_or_default().split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()),
            );
        }
    }
    family
}

/// CPU time that all threads have had.
pub(crate) fn cpu(family: &[u32]) -> anyhow::Result<Duration> {
    cpu_of(family, |_| true)
}

/// CPU time that the threads with a name that `counts` have had. The kernel counts it at every switch (schedstat), not by
/// sampling ticks.
pub(crate) fn cpu_of(family: &[u32], counts: impl Fn(&str) -> bool) -> anyhow::Result<Duration> {
    let mut nanos = 0;
    for pid in family {
        for task in entries(&format!("/proc/{pid}/task")) {
            // A thread may end in between.
            let read = |what| fs::read_to_string(format!("/proc/{pid}/task/{task}/{what}"));
            let (Ok(name), Ok(stat)) = (read("comm"), read("schedstat")) else { continue };
            if !counts(name.trim_end()) {
                continue;
            }
            let first = stat.split(' ').next().unwrap_or_default();
            nanos += first.parse::<u64>().context("the kernel has no schedstat")?;
        }
    }
    anyhow::ensure!(nanos > 0, "the process is gone");
    Ok(Duration::from_nanos(nanos))
}

/// Memory of all processes together.
pub(crate) fn memory(family: &[u32]) -> anyhow::Result<Memory> {
    let mut sum = Memory::default();
    for pid in family {
        let path = format!("/proc/{pid}/smaps_rollup");
        let rollup = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        let kilobytes = |key: &str| {
            let line = rollup.lines().find_map(|line| line.strip_prefix(key))?;
            line.trim().strip_suffix(" kB")?.parse::<u64>().ok()
        };
        sum.rss += kilobytes("Rss:").context("no Rss in smaps_rollup")? * 1024;
        sum.pss += kilobytes("Pss:").context("no Pss in smaps_rollup")? * 1024;
    }
    Ok(sum)
}

/// Open descriptors of all processes together.
pub(crate) fn descriptors(family: &[u32]) -> usize {
    family.iter().map(|pid| entries(&format!("/proc/{pid}/fd")).len()).sum()
}

fn entries(path: &str) -> Vec<String> {
    let names = |dir: fs::ReadDir| dir.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    fs::read_dir(path).map(names).into_iter().flatten().collect()
}

/// perf, counting the system calls of a family between [`Calls::start`] and [`Calls::finish`].
pub(crate) struct Calls {
    perf: Child,
    control: fs::File,
    answers: BufReader<fs::File>,
    _dir: tempfile::TempDir,
}

impl Calls {
    /// `None` where there is no perf or no permission to use it.
    pub(crate) fn start(family: &[u32]) -> anyhow::Result<Option<Self>> {
        let dir = host::directory()?;
        let (control, answers) = (dir.path().join("control"), dir.path().join("answers"));
        let pids: Vec<String> = family.iter().map(u32::to_string).collect();
        let (control, answers) = (pipe(&control)?, pipe(&answers)?);
        let spawned = Command::new("perf")
            .args(["stat", "--field-separator", ",", "--delay", "-1", "--event", "raw_syscalls:sys_enter"])
            .arg(format!(
                "--control=fifo:{},{}",
                dir.path().join("control").display(),
                dir.path().join("answers").display()
            ))
            .args(["--pid", &pids.join(",")])
            .env("LC_ALL", "C")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn();
        let Ok(perf) = spawned else { return Ok(None) };
        let mut calls = Self { perf, control, answers: BufReader::new(answers), _dir: dir };
        if calls.tell("enable")? { Ok(Some(calls)) } else { Ok(None) }
    }

    /// The number of calls.
    pub(crate) fn finish(mut self) -> anyhow::Result<u64> {
        self.tell("disable")?;
        let pid = rustix::process::Pid::from_child(&self.perf);
        rustix::process::kill_process(pid, rustix::process::Signal::INT)?;
        let report = io::read_to_string(self.perf.stderr.take().context("perf has no output")?)?;
        self.perf.wait()?;
        let line = report.lines().find(|line| line.contains("sys_enter"));
        let count = line.and_then(|line| line.split(',').next()?.parse().ok());
        count.with_context(|| format!("perf did not count: {}", report.trim()))
    }

    /// Gives a command and waits until it was carried out; false if perf ended instead.
    fn tell(&mut self, command: &str) -> anyhow::Result<bool> {
        writeln!(self.control, "{command}")?;
        let mut answer = String::new();
        host::eventually(Duration::from_secs(5), || {
            match self.answers.read_line(&mut answer) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
            Ok(answer.contains("ack") || self.perf.try_wait()?.is_some())
        })?;
        Ok(answer.contains("ack"))
    }
}

impl Drop for Calls {
    fn drop(&mut self) {
        // Both fail when it has ended already.
        drop(self.perf.kill());
        drop(self.perf.wait());
    }
}

/// A named pipe, open for reading and writing so that neither side waits for the other to open it.
fn pipe(path: &Path) -> anyhow::Result<fs::File> {
    rustix::fs::mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?.into())
}

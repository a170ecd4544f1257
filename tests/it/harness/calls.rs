//! System calls of a running program, counted by strace: it needs no tracefs and no performance counters, so it counts
//! in a container too, and what it slows down is not what is counted.

use std::{collections::BTreeMap, fmt};

use rustix::process::Signal;
use tokio::process::Command;

use super::{Process, missing, skip, skip_on_this_machine};

/// strace at work.
#[derive(Debug)]
pub(crate) struct Calls {
    strace: Process,
}

/// Calls by name.
#[derive(Debug, Default)]
pub(crate) struct Counted(BTreeMap<String, u64>);

impl Calls {
    /// Counts the calls of all threads of this process from now on; `None`, with `test` reported as skipped, where that
    /// cannot be.
    pub(crate) async fn start(test: &str, pid: u32) -> Option<Self> {
        Self::attach(test, pid, &[]).await
    }

    /// The same of one call, and has it fail as `failure` says: `splice:error=EPERM` (strace(1), `--inject`).
    pub(crate) async fn inject(test: &str, pid: u32, failure: &str) -> Option<Self> {
        let (name, _) = failure.split_once(':').expect("a call and how it fails");
        Self::attach(test, pid, &[&format!("--trace={name}"), &format!("--inject={failure}")]).await
    }

    async fn attach(test: &str, pid: u32, more: &[&str]) -> Option<Self> {
        if let Some(reason) = missing(&["strace"]) {
            skip(test, &reason);
            return None;
        }
        let mut command = Command::new("strace");
        command.args(["--follow-forks", "--summary-only", "--summary-columns=calls,name"]);
        command.args(more).args(["--attach", &pid.to_string()]);
        // Ends by SIGINT: what it traces goes on without it.
        let strace = Process::start(command).farewell(Signal::INT);
        let said = strace.line("its success or failure", |line| Some(line.to_owned())).await;
        if said.contains("attached") {
            return Some(Self { strace });
        }
        skip_on_this_machine(test, &said);
        None
    }

    /// What was counted.
    pub(crate) async fn finish(mut self) -> Counted {
        self.strace.signal(Signal::INT);
        self.strace.end().await;
        let said = self.strace.said();
        let rows = said.lines().filter_map(|line| {
            let (count, name) = line.trim().split_once(' ')?;
            Some((name.trim().to_owned(), count.parse().ok()?))
        });
        let counted = Counted(rows.filter(|(name, _)| name != "total").collect());
        assert!(!counted.0.is_empty(), "strace did not count:\n{said}");
        counted
    }
}

impl Counted {
    /// All calls.
    pub(crate) fn total(&self) -> u64 {
        self.0.values().sum()
    }

    /// Those of this name.
    pub(crate) fn of(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or_default()
    }

    /// Those that wait for something to do. How many it takes depends on how much has come when one returns.
    pub(crate) fn waits(&self) -> u64 {
        self.0
            .iter()
            .filter(|(name, _)| name.starts_with("epoll_") && name.contains("wait"))
            .map(|(_, count)| count)
            .sum()
    }
}

impl fmt::Display for Counted {
    /// The most frequent first.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rows: Vec<_> = self.0.iter().collect();
        rows.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        rows.iter().try_for_each(|(name, count)| writeln!(f, "{count:10} {name}"))
    }
}

//! What every load has: whom, how long, on how many threads, and how it is told.

use std::{
    io::{self, IsTerminal as _},
    net::{SocketAddr, TcpStream, ToSocketAddrs as _},
    process::ExitCode,
    sync::atomic::Ordering::Relaxed,
    thread,
    time::Duration,
};

use anyhow::Context as _;
use rustix::process::{Resource, getrlimit};
use serde_json::{Value, json};

use super::{
    report::{Figures, Report},
    signals, words,
};
use crate::lab::load::{self, Course, Failure, Job, Kind, Live, Tally};

/// Descriptors that are not connections of the load.
const OTHER_DESCRIPTORS: u64 = 32;

/// What every load takes.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct ClientArgs {
    /// Whom to load: HOST:PORT
    #[arg(value_name = "ADDR", value_parser = words::address)]
    address: String,
    /// How long to measure
    #[arg(short, long, value_name = "TIME", default_value = "10s", value_parser = words::span)]
    duration: Duration,
    /// Threads that work; one is enough until it is busy all the time
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: u16,
    /// Longest wait for a connection, for a reply, or for the next bytes of bulk
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = words::span)]
    timeout: Duration,
    /// Print the result as one JSON object
    #[arg(long)]
    json: bool,
    /// Say once a second on standard error how it goes, though that is no terminal
    #[arg(long)]
    progress: bool,
}

/// What goes before a measurement.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(super) struct WarmupArgs {
    /// Work that goes before and does not count
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = words::time)]
    pub(super) warmup: Duration,
}

/// When units begin.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(super) struct RateArgs {
    /// Open loop: this many a second, of all threads. Latency counts from the moment when each was to begin; late ones
    /// are not left out
    #[arg(long, value_name = "N", value_parser = words::rate)]
    pub(super) rate: Option<u64>,
    /// Do not sleep between the units of a rate: more exact, and takes a whole CPU a thread
    #[arg(long, requires = "rate")]
    pub(super) spin: bool,
}

/// A load, as its verb has made it up.
pub(super) struct Bench<'a> {
    pub(super) name: &'static str,
    pub(super) client: &'a ClientArgs,
    pub(super) connections: u32,
    pub(super) kind: Kind,
    pub(super) warmup: Duration,
    pub(super) pace: Option<RateArgs>,
    /// What is special about it, for the first line.
    pub(super) what: String,
    /// The same as fields.
    pub(super) settings: Value,
    /// What is done a second, for the progress: `req`.
    pub(super) unit: &'static str,
    pub(super) figures: fn(&Tally) -> Figures,
    pub(super) worked: fn(&Tally) -> bool,
    /// What may help when nothing worked, or bytes were wrong.
    pub(super) hint: &'static str,
}

impl Bench<'_> {
    /// Does it, and prints what came out.
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        crate::cli::raise_descriptor_limit();
        self.has_room()?;
        signals::heed(thread::current()).context("cannot heed signals")?;
        let to = match self.reach() {
            Ok(to) => to,
            Err((failure, error)) => {
                let mut tally = Tally::new()?;
                failure.into_iter().for_each(|failure| tally.failures.count(failure));
                return Ok(self.report(&tally, Some(error)).print());
            }
        };
        let rate = self.pace.and_then(|pace| pace.rate);
        let course = Course {
            threads: usize::from(self.client.threads),
            warmup: self.warmup,
            length: self.client.duration,
            rate,
            spin: self.pace.is_some_and(|pace| pace.spin),
        };
        let connections = usize::try_from(self.connections)?;
        let job = Job { to, connections, timeout: self.client.timeout, kind: self.kind.clone() };
        let live = Live::new(signals::interrupted);
        let shown = self.client.progress || io::stderr().is_terminal();
        let mut progress = Progress { unit: self.unit, ..Progress::default() };
        let tally = load::run(&job, &course, &live, |time| {
            if shown {
                super::say(&progress.line(time, &live));
            }
        })?;
        Ok(self.report(&tally, self.fault(&tally)).print())
    }

    /// Why it cannot be called a success, if it cannot.
    fn fault(&self, tally: &Tally) -> Option<String> {
        let (address, hint, wrong) = (&self.client.address, self.hint, tally.failures.wrong_bytes);
        if !(self.worked)(tally) {
            return Some(format!("nothing worked at {address}{hint}"));
        }
        if wrong > 0 {
            return Some(format!("wrong bytes came from {address}, {wrong} times{hint}"));
        }
        let died = matches!(self.kind, Kind::Hold(_)) && tally.units == 0;
        died.then(|| format!("no connection to {address} lived to the end"))
    }

    /// Before thousands of connections fail one by one.
    fn has_room(&self) -> anyhow::Result<()> {
        let needed = u64::from(self.connections) + OTHER_DESCRIPTORS;
        if let Some(limit) = getrlimit(Resource::Nofile).current.filter(|limit| *limit < needed) {
            anyhow::bail!(
                "{} connections need {needed} descriptors, and the limit is {limit} (ulimit -n)",
                self.connections
            );
        }
        Ok(())
    }

    /// The first address of the target that takes a connection, or why none does.
    fn reach(&self) -> Result<SocketAddr, (Option<Failure>, String)> {
        let text = &self.client.address;
        let addresses =
            text.to_socket_addrs().map_err(|error| (None, format!("cannot resolve {text}: {error}")))?;
        let mut last = (None, format!("{text} has no address"));
        for address in addresses {
            match TcpStream::connect_timeout(&address, self.client.timeout) {
                Ok(_) => return Ok(address),
                Err(error) => last = self.unreachable(address, &error),
            }
        }
        Err(last)
    }

    fn unreachable(&self, address: SocketAddr, error: &io::Error) -> (Option<Failure>, String) {
        let failure = Failure::of(error);
        let text = match failure {
            Failure::Refused => format!(
                "nobody listens at {address}\n  hint: `twinspan bench echo` is a target; its first line says where"
            ),
            Failure::TimedOut => {
                format!("no answer from {address} within {} s", self.client.timeout.as_secs_f64())
            }
            _ => format!("cannot reach {address}: {error}"),
        };
        (Some(failure), text)
    }

    fn report(&self, tally: &Tally, error: Option<String>) -> Report {
        let (client, rate) = (self.client, self.pace.and_then(|pace| pace.rate));
        let pace = match (self.pace, rate) {
            (None, _) => String::new(),
            (Some(_), None) => ", closed loop".to_owned(),
            (Some(_), Some(rate)) => format!(", {rate} {}/s wanted", self.unit),
        };
        let threads = crate::config::counted(usize::from(client.threads), "thread");
        let connections =
            crate::config::counted(usize::try_from(self.connections).unwrap_or(usize::MAX), "connection");
        let title =
            format!("{} {}: {connections}, {threads}, {}{pace}", self.name, client.address, self.what);
        let mut settings = json!({
            "bench": self.name,
            "target": client.address,
            "connections": self.connections,
            "threads": client.threads,
            "duration_s": client.duration.as_secs_f64(),
            "warmup_s": self.warmup.as_secs_f64(),
            "rate": rate,
        });
        super::report::put(&mut settings, self.settings.clone());
        Report {
            json: client.json,
            title,
            settings,
            figures: (self.figures)(tally),
            failures: tally.failures,
            elapsed: tally.elapsed,
            interrupted: signals::interrupted(),
            error,
        }
    }
}

/// What was told last.
#[derive(Default)]
struct Progress {
    unit: &'static str,
    time: Duration,
    units: u64,
    bytes: u64,
}

impl Progress {
    /// The last second, and the errors so far.
    fn line(&mut self, time: Duration, live: &Live) -> String {
        let (units, bytes) = (live.units.load(Relaxed), live.bytes.load(Relaxed));
        let seconds = time.saturating_sub(self.time).as_secs_f64().max(1e-3);
        #[expect(clippy::cast_precision_loss, reason = "more than 2^53 of anything will not be counted")]
        let a_second = |now: u64, before: u64| now.saturating_sub(before) as f64 / seconds;
        let speed = if bytes > 0 {
            format!("{:.2} Gbit/s", a_second(bytes, self.bytes) * 8e-9)
        } else {
            format!("{:.0} {}/s", a_second(units, self.units), self.unit)
        };
        (self.time, self.units, self.bytes) = (time, units, bytes);
        format!("{:>5.0} s  {speed:>16}  {} errors", time.as_secs_f64(), live.failures.load(Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_that_of_the_last_second() {
        let live = Live::new(|| false);
        let mut progress = Progress { unit: "req", ..Progress::default() };
        live.units.store(1000, Relaxed);
        assert_eq!(progress.line(Duration::from_secs(1), &live), "    1 s        1000 req/s  0 errors");
        live.units.store(3000, Relaxed);
        live.failures.store(2, Relaxed);
        assert_eq!(progress.line(Duration::from_secs(2), &live), "    2 s        2000 req/s  2 errors");
        live.bytes.store(1_250_000_000, Relaxed);
        assert_eq!(progress.line(Duration::from_secs(3), &live), "    3 s      10.00 Gbit/s  2 errors");
    }
}

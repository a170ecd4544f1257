//! twinspan beside HAProxy, nginx and no proxy at all, on this machine:
//! `cargo bench --bench peers -- [--rounds 5] [--seconds 1] [--quick] [--write docs/performance.md]`.
//!
//! Every proxy has one worker on one CPU; the load and the target share another; some scenarios have two workers and pin
//! nothing. Each round runs every scenario against
//! every proxy in turn, so that a slow minute of the machine meets all of them. docs/performance.md tells how to read
//! the figures.

mod account;
mod configs;
mod host;
mod load;
mod measure;
mod proxies;
mod ratios;
mod swaps;
mod table;
mod target;
mod tls;

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context;
use clap::{Parser, ValueEnum};

use measure::{Metric, Sample, Scenario, measure};
use proxies::{Kind, Site};
use table::{Reading, Report};

/// Sessions of the idle scenario where the limit of descriptors allows them.
const IDLE_SESSIONS: u64 = 9_500;
const QUICK_IDLE_SESSIONS: u64 = 500;
/// Descriptors that are not sessions.
const OTHER_DESCRIPTORS: u64 = 1_000;

/// What `cargo bench` adds to the arguments.
const FROM_CARGO: &str = "--bench";

const BEGIN: &str = "<!-- peers: begin, written by `cargo bench --bench peers -- --write` -->";
const END: &str = "<!-- peers: end -->";

/// twinspan beside its peers.
#[derive(Debug, Parser)]
#[command(name = "peers")]
struct Options {
    /// Interleaved rounds.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Length of one measurement.
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// One round of 0.3 s with few idle sessions: does it all work?
    #[arg(long)]
    quick: bool,
    /// Only these scenarios.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Scenario>,
    /// Only these proxies; by default all that are installed, twinspan-tokio and twinspan-plain left out.
    #[arg(long, value_enum, value_delimiter = ',')]
    proxies: Vec<Kind>,
    /// Whose ratios to the others are shown.
    #[arg(long, value_enum, default_value = "twinspan")]
    subject: Kind,
    /// The twinspan binary, if not the one that cargo has built.
    #[arg(long, default_value = env!("CARGO_BIN_EXE_twinspan"))]
    twinspan: PathBuf,
    /// Print every reading as JSON in place of the tables.
    #[arg(long)]
    json: bool,
    /// Replace the marked section of this file.
    #[arg(long)]
    write: Option<PathBuf>,
    /// Serve this config and swap generations when told to.
    #[arg(long, hide = true, requires = "spare")]
    serve: Option<PathBuf>,
    /// The endpoint that goes and comes back while generations are swapped.
    #[arg(long, hide = true)]
    spare: Option<SocketAddr>,
    /// Already in its own namespaces.
    #[arg(long, hide = true)]
    inside: bool,
}

fn main() -> ExitCode {
    // `cargo test --benches` starts this too, and means something shorter.
    if !std::env::args().any(|argument| argument == FROM_CARGO) {
        return ExitCode::SUCCESS;
    }
    let arguments = std::env::args_os().filter(|argument| argument != FROM_CARGO);
    match run(&Options::parse_from(arguments)) {
        Ok(code) => code,
        Err(error) => {
            say(&format!("peers: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> anyhow::Result<ExitCode> {
    if let (Some(config), Some(spare)) = (&options.serve, options.spare) {
        return swaps::serve(config, spare).map(|()| ExitCode::SUCCESS);
    }
    anyhow::ensure!(options.rounds > 0, "--rounds must be at least 1");
    anyhow::ensure!((0.05..=60.0).contains(&options.seconds), "--seconds must be from 0.05 to 60");
    // Minutes of work should not end in a file that cannot take them.
    options.write.as_deref().map(around_section).transpose()?;
    host::heed_signals()?;
    if options.inside {
        host::furnish()?;
        host::prefer(std::process::id());
    } else if let Some(code) = host::isolate()? {
        return Ok(code);
    }
    let report = Rig::new(options)?.run()?;
    if let Some(path) = &options.write {
        replace_section(path, &report.markdown())?;
    }
    let text = if options.json { serde_json::to_string_pretty(&report)? } else { report.markdown() };
    match writeln!(io::stdout().lock(), "{text}") {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ if report.failures > 0 => Ok(ExitCode::FAILURE),
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// A run with its choices made.
struct Rig<'a> {
    options: &'a Options,
    cpus: host::Cpus,
    rounds: u32,
    seconds: f64,
    sessions: u64,
    scenarios: Vec<Scenario>,
    notes: Vec<String>,
    /// Measurements that failed.
    failures: u32,
}

impl<'a> Rig<'a> {
    fn new(options: &'a Options) -> anyhow::Result<Self> {
        let cpus = host::Cpus::choose()?;
        let mut notes = Vec::new();
        if !options.inside {
            notes.push(
                "not isolated: only root may make namespaces, so other traffic may have mixed in and the \
                 machine's congestion control was used"
                    .to_owned(),
            );
        }
        if cpus.is_one() {
            notes.push("one CPU only: proxy, load and target shared it, so rates say little".to_owned());
        }
        if cfg!(debug_assertions) {
            notes.push("the load was built without optimisation".to_owned());
        }
        let most = host::raise_descriptors()?.saturating_sub(OTHER_DESCRIPTORS) / 2;
        let wanted = if options.quick { QUICK_IDLE_SESSIONS } else { IDLE_SESSIONS };
        let (rounds, seconds) = if options.quick { (1, 0.3) } else { (options.rounds, options.seconds) };
        let scenarios =
            if options.only.is_empty() { Scenario::value_variants().to_vec() } else { options.only.clone() };
        Ok(Self { options, cpus, rounds, seconds, sessions: wanted.min(most), scenarios, notes, failures: 0 })
    }

    fn run(mut self) -> anyhow::Result<Report> {
        if !host::take_precedence() {
            self.notes.push("ran at ordinary priority: other work of the machine counts more".to_owned());
        }
        let mut machine = host::Machine::describe(self.options.inside);
        let site = Site { cpus: self.cpus, twinspan: &self.options.twinspan, sessions: self.sessions };
        let kinds = self.kinds(site)?;
        let versions = kinds.iter().map(|kind| (kind.name(), kind.version(site))).collect();
        let mut readings = Vec::new();
        for round in 0..self.rounds {
            self.round(round, &kinds, site, &mut readings)?;
        }
        machine.load_average_after = host::load_average();
        Ok(Report {
            machine,
            proxies: versions,
            subject: self.options.subject.name(),
            rounds: self.rounds,
            seconds: self.seconds,
            idle_sessions: self.sessions,
            readings,
            notes: self.notes,
            failures: self.failures,
        })
    }

    /// What was asked for, or whatever is installed.
    fn kinds(&mut self, site: Site<'_>) -> anyhow::Result<Vec<Kind>> {
        if let Some(missing) = self.options.proxies.iter().find(|kind| !kind.is_here(site)) {
            anyhow::bail!("{} is not installed", missing.name());
        }
        if !self.options.proxies.is_empty() {
            return Ok(self.options.proxies.clone());
        }
        let (here, missing): (Vec<_>, Vec<_>) = Kind::value_variants()
            .iter()
            .copied()
            .filter(|kind| kind.is_usual())
            .partition(|kind| kind.is_here(site));
        self.notes.extend(missing.iter().map(|kind| format!("{}: not installed", kind.name())));
        Ok(here)
    }

    fn round(
        &mut self,
        round: u32,
        kinds: &[Kind],
        site: Site<'_>,
        readings: &mut Vec<Reading>,
    ) -> anyhow::Result<()> {
        let work = Duration::from_secs_f64(self.seconds);
        for (place, scenario) in self.scenarios.clone().into_iter().enumerate() {
            // Counts are the same in every round.
            if scenario == Scenario::Calls && round > 0 {
                continue;
            }
            // Another one begins each time, so that none is always measured after the same other one.
            let first = (place + usize::try_from(round)?) % kinds.len().max(1);
            for kind in kinds.iter().copied().cycle().skip(first).take(kinds.len()) {
                let name = kind.name();
                say(&format!("round {} of {}: {scenario:?}, {name}", round + 1, self.rounds));
                let sample = measure(scenario, kind, site, scenario.spans(work));
                anyhow::ensure!(!host::interrupted(), "interrupted");
                let figures = self.judge(round, scenario, name, sample);
                readings.extend(figures.into_iter().map(|(metric, value)| Reading {
                    round,
                    proxy: name,
                    scenario,
                    metric,
                    value,
                }));
            }
        }
        Ok(())
    }

    /// The figures of a measurement; what was wrong with it is noted.
    fn judge(
        &mut self,
        round: u32,
        scenario: Scenario,
        proxy: &str,
        sample: anyhow::Result<Sample>,
    ) -> BTreeMap<Metric, f64> {
        match sample {
            Ok(sample) => {
                if sample.errors > 0 {
                    self.note(round, scenario, proxy, &format!("{} connections failed", sample.errors));
                }
                if let Some(lack) = sample.lacks {
                    self.note(round, scenario, proxy, lack);
                }
                sample.figures
            }
            Err(error) => {
                self.failures += 1;
                self.note(round, scenario, proxy, &format!("failed: {error:#}"));
                BTreeMap::new()
            }
        }
    }

    fn note(&mut self, round: u32, scenario: Scenario, proxy: &str, what: &str) {
        let note = format!("round {}, {scenario:?}, {proxy}: {what}", round + 1);
        say(&note);
        self.notes.push(note);
    }
}

fn replace_section(path: &Path, text: &str) -> anyhow::Result<()> {
    let (before, after) = around_section(path)?;
    fs::write(path, format!("{before}{BEGIN}\n\n{text}\n{END}{after}"))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// What stands before and after the marked section of a file.
fn around_section(path: &Path) -> anyhow::Result<(String, String)> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let parts = text.split_once(BEGIN).and_then(|(before, rest)| Some((before, rest.split_once(END)?.1)));
    let (before, after) = parts.with_context(|| format!("{} has no section `{BEGIN}`", path.display()))?;
    Ok((before.to_owned(), after.to_owned()))
}

/// Progress goes to stderr; nobody reading it is no reason to stop.
fn say(line: &str) {
    drop(writeln!(io::stderr().lock(), "{line}"));
}

//! From text to [`Config`]: every problem in one run.
//!
//! The order: what is not TOML (`syntax`), every key and value by itself (`sift`), then what only makes sense together
//! (`pools`, `listeners`, `addresses`). Each step goes on with what the step before could use.

mod abilities;
mod addresses;
mod connecting;
mod edge;
mod health;
mod judging;
mod listeners;
mod machine;
mod place;
mod pools;
mod sift;
mod sockets;
mod spares;
mod spiffe;
mod syntax;
mod tls;

use std::{collections::HashSet, ops::Range};

use serde::Deserialize as _;
use toml::de::{DeTable, Deserializer};

use self::{
    sift::{ROOT, Sifted},
    syntax::Syntax,
};
use super::{
    Admin, AdminBind, Config, Loaded, Log, MaxMemory, Refused, Report, Telemetry, defaults,
    file::File,
    finding::Places,
    problem::{Code, Problem, Severity},
};
use crate::net::Abilities;

/// Larger files are refused before they are read: no config is that long.
pub(super) const MOST_BYTES: usize = 16 * 1024 * 1024;

/// What the process may do, and what the program can, that is to serve a config.
#[derive(Clone, Copy, Debug)]
pub(super) struct Here {
    /// `None` where the kernel does not tell.
    pub(super) abilities: Option<Abilities>,
    /// The build has a SPIFFE Workload API.
    pub(super) spiffe: bool,
}

/// Makes a config of `text`, or says everything that is wrong with it. `here`: what is to serve it, if that is this
/// process.
pub(super) fn parse(text: &str, name: &str, here: Option<Here>) -> Result<Loaded, Refused> {
    if text.len() > MOST_BYTES {
        let problem = Problem::of_file(Code::Unreadable, format!("{name} is larger than 16 MiB"));
        return Err(Refused(Report::new(name, "", vec![problem])));
    }
    let (mut tree, errors) = DeTable::parse_recoverable(text);
    let syntax = syntax::judge(text, &tree, &errors);
    let sifted = sift::sift(&mut tree, &syntax.broken);
    let mut build = Build { sifted: &sifted, problems: Vec::new() };
    let config = match File::deserialize(Deserializer::from(tree)) {
        Ok(file) => {
            if let Some(here) = here {
                build.machine(&file);
                if let Some(abilities) = here.abilities {
                    build.abilities(&file, abilities);
                }
                if !here.spiffe {
                    build.not_built(&file);
                }
            }
            build.config(&file).map(|config| (config, Places::new(&file)))
        }
        Err(error) => {
            let span = error.span().unwrap_or(0..0);
            build.tell(Problem::at(Code::BadValue, span, error.message()));
            None
        }
    };
    let mut problems = build.problems;
    problems.extend(sifted.problems);
    settle(&mut problems, syntax);
    let refused = problems.iter().any(|problem| problem.severity() == Severity::Error);
    let report = Report::new(name, text, problems);
    match config {
        Some((config, places)) if !refused => Ok(Loaded { config, warnings: report, places }),
        _ => Err(Refused(report)),
    }
}

/// Drops what only follows from another problem.
fn settle(problems: &mut Vec<Problem>, syntax: Syntax) {
    if let Some(damage) = syntax.damage {
        problems.retain(|problem| {
            !problem.code.is_absence() && problem.span.as_ref().is_some_and(|span| span.start < damage)
        });
    }
    problems.extend(syntax.problems);
    // Without a name of its own a listener has its address for one; that it is taken says enough.
    let taken: HashSet<Option<Range<usize>>> = problems
        .iter()
        .filter(|problem| problem.code == Code::AddressTaken)
        .map(|problem| problem.span.clone())
        .collect();
    problems.retain(|problem| problem.code != Code::DuplicateName || !taken.contains(&problem.span));
    if problems.iter().any(|problem| problem.severity() == Severity::Error) {
        // The listener or endpoint that uses it may be the one that is wrong.
        problems.retain(|problem| {
            !matches!(problem.code, Code::UnusedPool | Code::UnusedCloud | Code::NoListener)
        });
    }
}

/// The making of a config out of what the sift has left.
struct Build<'a> {
    sifted: &'a Sifted,
    problems: Vec<Problem>,
}

impl Build<'_> {
    /// `None` only where a problem was told.
    fn config(&mut self, file: &File) -> Option<Config> {
        let (version, version_at) = (file.version.get(), file.version.span());
        if let Some((version, at)) = version.zip(version_at).filter(|(version, _)| **version != 1) {
            self.tell(
                Problem::at(
                    Code::Version,
                    at,
                    format!("this program does not know version {version} of the file"),
                )
                .label("not known")
                .hint("write 1, or use a newer twinspan".to_owned()),
            );
        }
        let spiffe = self.spiffe(file);
        let clouds = self.clouds(file);
        let admin = admin(file);
        let telemetry = telemetry(file);
        let pools = self.pools(file);
        let listeners = self.listeners(file);
        self.sources(file);
        self.addresses(file, &admin, &telemetry);
        self.links(file);
        Some(Config {
            workers: file.workers.get().copied(),
            pin_workers: file.pin_workers.get().copied(),
            engine: file.engine.get().copied().unwrap_or(defaults::ENGINE),
            drain_timeout: file.drain_timeout.get().map_or(defaults::DRAIN_TIMEOUT, |time| time.0),
            max_memory: match file.max_memory.get().map(|count| count.0) {
                None => MaxMemory::OfCgroup,
                Some(None) => MaxMemory::Off,
                Some(Some(bytes)) => MaxMemory::Bytes(bytes),
            },
            log: log(file),
            admin,
            telemetry,
            spiffe,
            clouds,
            pools: pools?,
            listeners: listeners?,
        })
    }

    fn tell(&mut self, problem: Problem) {
        self.problems.push(problem);
    }

    /// True if the file has `key` at the top, but with a value that could not be used.
    fn lost(&self, key: &str) -> bool {
        self.sifted.lost(ROOT, key)
    }
}

fn log(file: &File) -> Log {
    let log = file.log.get();
    Log {
        level: log.and_then(|log| log.level.get()).map_or(defaults::LOG_LEVEL, |word| word.0),
        format: log.and_then(|log| log.format.get()).map_or(defaults::LOG_FORMAT, |word| word.0),
        sessions: log.and_then(|log| log.sessions.get()).map_or(defaults::LOG_SESSIONS, |word| word.0),
        file: log.and_then(|log| log.file.get()).map(|path| path.0.clone()),
    }
}

fn admin(file: &File) -> Admin {
    match file.admin.get().and_then(|admin| admin.bind.get()) {
        Some(bind) => Admin { bind: bind.0.clone(), explicit: true },
        None => Admin { bind: AdminBind::Tcp(defaults::ADMIN), explicit: false },
    }
}

fn telemetry(file: &File) -> Telemetry {
    match file.telemetry.get().and_then(|telemetry| telemetry.bind.get()) {
        Some(bind) => Telemetry { bind: bind.0, explicit: true },
        None => Telemetry { bind: Some(defaults::TELEMETRY), explicit: false },
    }
}

/// The place of a value, for a problem with it.
fn place(span: Option<Range<usize>>) -> Range<usize> {
    span.unwrap_or(0..0)
}

//! What a run was worth: each session's fate, from what its client saw and what the proxy's log says of it.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    time::Duration,
};

use tokio::time::Instant;

use super::{
    ground::{NAMES, cloud_of},
    plan::{Fault, Kind},
    subject::Line,
    traffic::{Broken, Session},
};

/// What a run left behind.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) seed: u64,
    pub(super) faults: Vec<Fault>,
    pub(super) sessions: Vec<Session>,
    pub(super) lines: HashMap<u32, Line>,
    pub(super) broken: Vec<Broken>,
    pub(super) exchanges: u64,
    pub(super) hedges: String,
    /// What the machine took: clients that began late, and sessions without a proxy; when each was due, and when it was
    /// there.
    pub(super) witnessed: Vec<(Instant, Instant)>,
}

/// The longest of something, and when it was.
#[derive(Clone, Debug, Default)]
pub(super) struct Longest {
    pub(super) time: Duration,
    /// The lateness of clients and of sessions without a proxy meanwhile: what the machine, not the proxy, has to answer for.
    pub(super) machine: Duration,
    pub(super) fault: String,
}

/// Sums and extremes. Those of several runs add up.
#[derive(Clone, Debug, Default)]
pub(super) struct Figures {
    pub(super) faults: usize,
    pub(super) sessions: usize,
    /// No connection to an endpoint was established.
    pub(super) before: usize,
    /// Established to an endpoint that failed meanwhile, and no byte had been sent to it.
    pub(super) unsent: usize,
    /// The request had been sent to an endpoint that failed meanwhile.
    pub(super) handed: usize,
    /// Its endpoint was well all the time, or the log does not know the session.
    pub(super) unexplained: usize,
    /// While the machine stood still.
    stalled: usize,
    /// From the moment a session was meant to begin to its first byte.
    latencies: Vec<Duration>,
    /// The slowest connect while packets were lost.
    pub(super) slowest_connect: Longest,
    /// From the fault of a whole cloud to the last session that tried it, without those that were stopped.
    pub(super) left: Longest,
    /// Sessions that tried it later than [`CLOUD_LEFT`].
    pub(super) late: usize,
    /// From the stop of processes to the last session that tried one.
    pub(super) left_stopped: Longest,
    /// Sessions that tried one later than [`PROCESS_LEFT`].
    pub(super) late_stopped: usize,
    pub(super) extra_attempts: u64,
    /// Long sessions that broke though no fault had struck their endpoint, and the others.
    pub(super) broken_well: usize,
    pub(super) broken_hit: usize,
    exchanges: u64,
    /// The latest start of a client.
    machine: Duration,
    /// What clients of failed sessions saw, and during what.
    failures: BTreeMap<String, usize>,
    hedges: String,
}

/// When nobody tries a failed cloud any more, as is hoped.
const CLOUD_LEFT: Duration = Duration::from_secs(1);

/// The same of a stopped process.
const PROCESS_LEFT: Duration = Duration::from_secs(2);

/// A machine that takes this long for a session without a proxy stands still.
const STANDSTILL: Duration = Duration::from_secs(1);

/// Kinds of failures that are told in full.
const TOLD: usize = 20;

impl Figures {
    /// Counts one run.
    pub(super) fn of(run: &Run) -> Self {
        let mut figures = Self {
            faults: run.faults.len(),
            sessions: run.sessions.len(),
            latencies: run.sessions.iter().filter(|s| s.outcome.is_ok()).map(Session::took).collect(),
            exchanges: run.exchanges,
            machine: run.machine(None),
            extra_attempts: run.lines.values().map(|line| u64::from(line.attempts.saturating_sub(1))).sum(),
            hedges: run.hedges.clone(),
            ..Self::default()
        };
        for session in &run.sessions {
            if let Err(seen) = session.outcome {
                figures.count_failure(run, session, seen);
            }
        }
        for broken in &run.broken {
            if strikes(&run.faults, broken.endpoint, broken.well, broken.ended).is_some() {
                figures.broken_hit += 1;
            } else {
                figures.broken_well += 1;
                let name = NAMES[broken.endpoint];
                *figures.failures.entry(format!("long session with {name}: {}", broken.why)).or_default() +=
                    1;
            }
        }
        for fault in &run.faults {
            figures.measure(run, fault);
        }
        figures
    }

    fn count_failure(&mut self, run: &Run, session: &Session, seen: &str) {
        let line = run.lines.get(&session.number);
        let place = line.and_then(|line| line.connect.and(line.endpoint));
        let fault = place.and_then(|endpoint| strikes(&run.faults, endpoint, session.begun, session.ended));
        let (count, kind) = match (line, place, fault) {
            _ if run.machine(Some((session.begun, session.ended))) >= STANDSTILL => {
                (&mut self.stalled, "standstill")
            }
            (Some(line), None, _) if line.connect.is_none() => (&mut self.before, "before"),
            (Some(line), Some(_), Some(_)) if line.to_upstream == 0 => (&mut self.unsent, "unsent"),
            (Some(_), Some(_), Some(_)) => (&mut self.handed, "handed"),
            _ => (&mut self.unexplained, "unexplained"),
        };
        *count += 1;
        let last = run.faults.iter().rev().find(|fault| fault.begun <= session.ended);
        let when = last.map_or_else(|| "in the calm".to_owned(), |fault| fault.title(run.seed));
        let said = line.map_or_else(
            || "not in the log".to_owned(),
            |line| format!("{} after {} attempts", line.end, line.attempts),
        );
        *self.failures.entry(format!("{kind}: {seen}, {said}; last fault: {when}")).or_default() += 1;
    }

    fn measure(&mut self, run: &Run, fault: &Fault) {
        let during = || {
            let alive = |session: &&Session| session.ended >= fault.begun && session.begun <= fault.healing;
            run.sessions.iter().filter(alive)
        };
        let begun = || during().filter(|session| session.begun >= fault.begun);
        let machine = run.machine(Some((fault.begun, fault.healing)));
        let longest = |time| Longest { time, machine, fault: fault.title(run.seed) };
        if fault.step.kind.is_silent() {
            let connects = during().filter_map(|session| run.lines.get(&session.number)?.connect);
            self.slowest_connect.take(longest(connects.max().unwrap_or_default()));
        }
        // During a fault, an attempt that another one follows went to what is at fault.
        let tried = |session: &&Session| {
            let line = run.lines.get(&session.number);
            let more = line.is_some_and(|line| line.attempts > 1);
            let place = session.outcome.ok().or_else(|| line?.endpoint);
            more || place.is_some_and(|endpoint| fault.step.hits(endpoint))
        };
        let after = |session: &Session| session.begun - fault.begun;
        let last = begun().filter(tried).map(after).max().unwrap_or_default();
        let later = |than| begun().filter(tried).filter(|session| after(session) > than).count();
        let stopped = fault.step.kind == Kind::Stop;
        if fault.step.endpoint.is_none() && !stopped {
            self.left.take(longest(last));
            self.late += later(CLOUD_LEFT);
        }
        if stopped {
            self.left_stopped.take(longest(last));
            self.late_stopped += later(PROCESS_LEFT);
        }
    }

    /// Adds another run of the same program.
    pub(super) fn add(&mut self, other: Self) {
        self.faults += other.faults;
        self.sessions += other.sessions;
        self.before += other.before;
        self.unsent += other.unsent;
        self.handed += other.handed;
        self.unexplained += other.unexplained;
        self.stalled += other.stalled;
        self.latencies.extend(other.latencies);
        self.slowest_connect.take(other.slowest_connect);
        self.left.take(other.left);
        self.late += other.late;
        self.left_stopped.take(other.left_stopped);
        self.late_stopped += other.late_stopped;
        self.extra_attempts += other.extra_attempts;
        self.broken_well += other.broken_well;
        self.broken_hit += other.broken_hit;
        self.exchanges += other.exchanges;
        self.machine = self.machine.max(other.machine);
        for (what, count) in other.failures {
            *self.failures.entry(what).or_default() += count;
        }
        self.hedges += &other.hedges;
    }

    fn rows(&self) -> Vec<(&'static str, String)> {
        let mut sorted = self.latencies.clone();
        sorted.sort_unstable();
        let quantile = |thousandths: usize| {
            let place = (sorted.len() * thousandths / 1000).min(sorted.len().saturating_sub(1));
            milliseconds(sorted.get(place).copied().unwrap_or_default())
        };
        vec![
            ("faults", self.faults.to_string()),
            ("sessions", self.sessions.to_string()),
            ("failed before an endpoint was connected", self.before.to_string()),
            ("failed with nothing sent to its endpoint", self.unsent.to_string()),
            ("failed with its request at an endpoint that failed", self.handed.to_string()),
            ("failed otherwise", self.unexplained.to_string()),
            ("failed while the machine stood still", self.stalled.to_string()),
            ("first byte, p50 (the endpoint takes 10 ms)", quantile(500)),
            ("first byte, p99", quantile(990)),
            ("first byte, p99.9", quantile(999)),
            ("first byte, max", quantile(1000)),
            ("slowest connect while packets are lost", milliseconds(self.slowest_connect.time)),
            ("last session that tried a failed cloud", milliseconds(self.left.time)),
            ("sessions that tried it after more than 1 s", self.late.to_string()),
            ("last session that tried a stopped process", milliseconds(self.left_stopped.time)),
            ("sessions that tried one after more than 2 s", self.late_stopped.to_string()),
            ("attempts beyond the first", self.extra_attempts.to_string()),
            ("long sessions broken at a well endpoint", self.broken_well.to_string()),
            ("long sessions broken by a fault", self.broken_hit.to_string()),
            ("answered messages of long sessions", self.exchanges.to_string()),
            ("slowest of the machine, without a proxy", milliseconds(self.machine)),
        ]
    }
}

/// One table, with a column for each program; then the details of each.
pub(super) fn print(columns: &[(&'static str, Figures)]) {
    let mut table = format!("{:<52}", "");
    columns.iter().for_each(|(name, _)| table += &format!("{name:>14}"));
    let rows: Vec<_> = columns.iter().map(|(_, figures)| figures.rows()).collect();
    for (place, (title, _)) in rows.first().into_iter().flatten().enumerate() {
        table += &format!("\n{title:<52}");
        rows.iter().for_each(|column| table += &format!("{:>14}", column[place].1));
    }
    println!("{table}");
    for (name, figures) in columns {
        println!("{name}:");
        println!("  slowest connect: {}", figures.slowest_connect);
        println!("  last to try a failed cloud: {}", figures.left);
        println!("  last to try a stopped process: {}", figures.left_stopped);
        let mut failures: Vec<_> = figures.failures.iter().collect();
        failures.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        failures.iter().take(TOLD).for_each(|(what, count)| println!("  {count} x {what}"));
        if failures.len() > TOLD {
            println!("  and so on: {} kinds", failures.len());
        }
        print!("{}", figures.hedges);
    }
}

fn milliseconds(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

/// The fault that struck this endpoint at some moment of this time.
fn strikes(faults: &[Fault], endpoint: usize, from: Instant, to: Instant) -> Option<&Fault> {
    faults.iter().find(|fault| fault.step.hits(endpoint) && fault.begun <= to && from <= fault.healed)
}

impl Run {
    /// The most that the machine was late, at all or in this time.
    fn machine(&self, during: Option<(Instant, Instant)>) -> Duration {
        let meant = self
            .witnessed
            .iter()
            .filter(|(due, over)| during.is_none_or(|(from, to)| *due <= to && from <= *over));
        meant.map(|(due, over)| *over - *due).max().unwrap_or_default()
    }
}

impl Fault {
    fn title(&self, seed: u64) -> String {
        format!("seed {seed}, fault {}: {}", self.number, self.step)
    }
}

impl Session {
    fn took(&self) -> Duration {
        self.ended - self.begun
    }
}

impl Longest {
    fn take(&mut self, other: Self) {
        if other.time > self.time {
            *self = other;
        }
    }
}

impl fmt::Display for Longest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { time, machine, fault } = self;
        write!(f, "{} ({fault}; the machine was late by {})", milliseconds(*time), milliseconds(*machine))
    }
}

#[test]
fn a_failure_is_told_by_what_the_proxy_knows_of_it() {
    let step = super::plan::schedule(1, 1)[0];
    let start = Instant::now();
    let at = |milliseconds| start + Duration::from_millis(milliseconds);
    let fault = Fault { number: 1, step, begun: at(100), healing: at(200), healed: at(210) };
    let sick = step.targets().next().unwrap();
    let well = (0..NAMES.len()).find(|endpoint| cloud_of(*endpoint) != step.cloud).unwrap();
    let session = |number, begun| Session {
        number,
        begun: at(begun),
        ended: at(begun + 10),
        late: Duration::ZERO,
        outcome: Err("reset"),
    };
    let line = |endpoint, connect: Option<u64>, to_upstream| Line {
        endpoint: Some(endpoint),
        connect: connect.map(Duration::from_millis),
        attempts: 1,
        to_upstream,
        end: String::new(),
    };
    let run = Run {
        seed: 1,
        faults: vec![fault],
        sessions: vec![
            session(0, 150),
            session(1, 95),
            session(2, 150),
            session(3, 150),
            session(4, 300),
            session(5, 150),
            session(6, 1450),
        ],
        lines: HashMap::from([
            (0, line(sick, None, 0)),
            (1, line(sick, Some(1), 1)),
            (2, line(sick, Some(1), 0)),
            (3, line(well, Some(1), 1)),
            (4, line(sick, Some(1), 1)),
        ]),
        broken: [(sick, 95), (sick, 220), (well, 150)]
            .map(|(endpoint, well)| Broken { endpoint, well: at(well), ended: at(well + 10), why: "reset" })
            .to_vec(),
        exchanges: 0,
        hedges: String::new(),
        witnessed: vec![(at(300), at(301)), (at(400), at(1500))],
    };
    let figures = Figures::of(&run);
    assert_eq!((figures.before, figures.handed, figures.unsent, figures.unexplained), (1, 1, 1, 3));
    assert_eq!(figures.stalled, 1);
    assert_eq!((figures.broken_hit, figures.broken_well), (1, 2));
}

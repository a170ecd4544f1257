//! The result: one line for people, one object for machines.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use serde::Serialize;

use super::{
    books::{Kind, Quantiles, Session},
    findings::Findings,
    judge::{Assertion, Limits, Wanted, judge, milliseconds},
    script::{Event, seconds},
};

/// A first byte later than this is felt.
const SLOW: Duration = Duration::from_millis(250);

/// The result as `--json` prints it.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// True when every assertion holds.
    pub(super) ok: bool,
    /// From the kill until the dead cloud was out of the routing and the other one had answered.
    failover_ms: Option<f64>,
    /// From the kill to the first answer of the surviving cloud to a session begun since.
    first_answer_ms: Option<f64>,
    /// From the revival until the cloud was given sessions again.
    back_ms: Option<f64>,
    limits: Limits,
    sessions: Sessions,
    long: Long,
    connect_ms: Connect,
    events: Vec<Line>,
    pub(super) assertions: Vec<Assertion>,
}

/// Short sessions: connect, ask, compare the answer, end.
#[derive(Debug, Serialize)]
struct Sessions {
    started: u64,
    ok: u64,
    failed: u64,
    /// On the dead cloud, or on the way to it, when it was killed.
    died_with_cloud: u64,
    slow_over_250ms: u64,
    /// Failures of all that failed or died, by kind.
    failures: BTreeMap<&'static str, u64>,
}

/// Long sessions: ask again and again.
#[derive(Debug, Serialize)]
struct Long {
    /// On a live cloud; or they could not be opened.
    failed: u64,
    died_with_cloud: u64,
    through_revival: u64,
}

/// From the due start of a session to its first byte.
#[derive(Debug, Serialize)]
struct Connect {
    before: Option<Quantiles>,
    after: Option<Quantiles>,
}

#[derive(Debug, Serialize)]
struct Line {
    time: String,
    text: String,
}

impl Report {
    /// Judges the findings.
    pub(super) fn new<'a>(findings: &Findings, events: impl Iterator<Item = &'a Event>) -> Self {
        let measured = &findings.measured;
        let assertions = judge(measured, &findings.limits);
        let of = |sessions: &[Session], kind| sessions.iter().filter(|one| one.kind == kind).count() as u64;
        let short = || findings.sessions.iter().filter(|one| one.kind == Kind::Short);
        let mut failures = BTreeMap::new();
        for failure in short().filter_map(|one| one.failure) {
            *failures.entry(failure.as_str()).or_default() += 1;
        }
        let mut events: Vec<_> = events.collect();
        events.sort_by_key(|event| event.time);
        Self {
            ok: assertions.iter().all(|assertion| assertion.ok),
            failover_ms: measured.failover().map(milliseconds),
            first_answer_ms: measured.first_answer.map(milliseconds),
            back_ms: findings.back.map(milliseconds),
            limits: findings.limits,
            sessions: Sessions {
                started: findings.started,
                ok: short().filter(|one| one.failure.is_none()).count() as u64,
                failed: of(&findings.failed, Kind::Short),
                died_with_cloud: of(&findings.cut, Kind::Short),
                slow_over_250ms: short().filter(|one| one.first_byte > Some(SLOW)).count() as u64,
                failures,
            },
            long: Long {
                failed: of(&findings.failed, Kind::Long),
                died_with_cloud: of(&findings.cut, Kind::Long),
                through_revival: measured.survivors,
            },
            connect_ms: Connect { before: findings.first_bytes[0], after: findings.first_bytes[1] },
            events: events.into_iter().map(Line::from).collect(),
            assertions,
        }
    }

    /// The line for people.
    pub(super) fn line(&self) -> String {
        if !self.ok {
            let broken = self.assertions.iter().filter(|assertion| !assertion.ok).map(Assertion::to_string);
            return format!("RESULT  FAILED  {}", broken.collect::<Vec<_>>().join(" · "));
        }
        let time = |milliseconds: Option<f64>| {
            seconds(Duration::from_secs_f64(milliseconds.unwrap_or_default().max(0.0) / 1e3))
        };
        let p50 = |times: Option<Quantiles>| {
            times.map_or_else(|| "-".to_owned(), |times| format!("{:.1}", times.p50))
        };
        format!(
            "RESULT  ok  failover {} (limit {}) · {} of {} new sessions failed · {} lost on the live cloud · \
             {} died with the dead one · answer p50 {} → {} ms · back after {}",
            time(self.failover_ms),
            time(Some(self.limits.failover_ms)),
            self.sessions.failed + self.long.failed,
            self.sessions.started,
            self.long.failed,
            self.sessions.died_with_cloud + self.long.died_with_cloud,
            p50(self.connect_ms.before),
            p50(self.connect_ms.after),
            time(self.back_ms),
        )
    }
}

impl std::fmt::Display for Assertion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)?;
        match self.measured {
            Some(measured) => write!(f, " {}", rounded(measured))?,
            None => f.write_str(" never seen")?,
        }
        let side = match self.wanted {
            Wanted::AtMost => "at most",
            Wanted::AtLeast => "at least",
        };
        write!(f, " ({side} {})", rounded(self.limit))
    }
}

/// Two digits after the point, if they say anything.
fn rounded(number: f64) -> f64 {
    (number * 100.0).round() / 100.0
}

impl From<&Event> for Line {
    fn from(event: &Event) -> Self {
        let time = Timestamp::try_from(event.time).map_or_else(|_| String::new(), |time| time.to_string());
        Self { time, text: event.text.clone() }
    }
}

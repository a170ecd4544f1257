//! The verdict on a run: what was measured against what was promised. Pure, so that each way to fail can be tested.

use std::time::Duration;

use serde::Serialize;

/// What a run has to show, and by how much.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Limits {
    /// From the kill to traffic that goes elsewhere.
    pub(super) failover_ms: f64,
    /// Short sessions in each phase; fewer have not measured anything.
    pub(super) sessions: u64,
    /// Share of sessions on the preferred cloud before the kill and after the revival.
    pub(super) share: f64,
    /// Long sessions on the surviving cloud that saw the revival.
    pub(super) survivors: u64,
}

/// What was measured.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Measured {
    /// Before the kill.
    pub(super) before: Phase,
    /// Between the kill and the revival.
    pub(super) outage: Phase,
    /// The last seconds.
    pub(super) revived: Phase,
    /// From the kill to the first answer of the surviving cloud to a session begun since.
    pub(super) first_answer: Option<Duration>,
    /// From the kill to a routing without the dead cloud.
    pub(super) moved: Option<Duration>,
    /// Sessions that failed and were not on the dead cloud when it was killed.
    pub(super) failed: u64,
    /// Long ones among them: lost although their cloud lived.
    pub(super) lost: u64,
    /// Sessions whose answer was not what had been sent.
    pub(super) wrong: u64,
    /// Long sessions on the surviving cloud that lived through the revival.
    pub(super) survivors: u64,
}

/// Short sessions begun in a part of the run that ended well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Phase {
    /// All.
    pub(super) sessions: u64,
    /// Those that the preferred cloud served.
    pub(super) on_preferred: u64,
}

/// One promise, and whether it was kept.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Assertion {
    /// What was promised.
    pub(super) name: &'static str,
    /// Kept?
    pub(super) ok: bool,
    /// `None`: never seen.
    pub(super) measured: Option<f64>,
    /// Which side of the limit is good: `at_most` or `at_least`.
    pub(super) wanted: Wanted,
    /// The limit.
    pub(super) limit: f64,
}

/// Which side of a limit is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Wanted {
    /// The limit or less.
    AtMost,
    /// The limit or more.
    AtLeast,
}

/// Holds what was measured against the limits.
pub(super) fn judge(measured: &Measured, limits: &Limits) -> Vec<Assertion> {
    use Wanted::{AtLeast, AtMost};
    let enough = count(limits.sessions);
    let assertion = |name, wanted, limit: f64, measured: Option<f64>| {
        let ok = measured.is_some_and(|measured| match wanted {
            AtMost => measured <= limit,
            AtLeast => measured >= limit,
        });
        Assertion { name, ok, measured, wanted, limit }
    };
    vec![
        assertion("sessions_before_kill", AtLeast, enough, Some(count(measured.before.sessions))),
        assertion("sessions_in_outage", AtLeast, enough, Some(count(measured.outage.sessions))),
        assertion("sessions_after_revival", AtLeast, enough, Some(count(measured.revived.sessions))),
        assertion("preferred_share_before_kill", AtLeast, limits.share, measured.before.share()),
        assertion("failover_ms", AtMost, limits.failover_ms, measured.failover().map(milliseconds)),
        assertion("sessions_on_dead_cloud", AtMost, 0.0, Some(count(measured.outage.on_preferred))),
        assertion("sessions_failed", AtMost, 0.0, Some(count(measured.failed))),
        assertion("long_sessions_lost_on_live_cloud", AtMost, 0.0, Some(count(measured.lost))),
        assertion("wrong_bytes", AtMost, 0.0, Some(count(measured.wrong))),
        assertion(
            "long_sessions_through_revival",
            AtLeast,
            count(limits.survivors),
            Some(count(measured.survivors)),
        ),
        assertion("preferred_share_after_revival", AtLeast, limits.share, measured.revived.share()),
    ]
}

impl Measured {
    /// When the last of both had happened: an answer from the surviving cloud, and a routing without the dead one.
    pub(super) fn failover(&self) -> Option<Duration> {
        Some(self.first_answer?.max(self.moved?))
    }
}

impl Phase {
    /// The part of the preferred cloud, 0 to 1; `None` without sessions.
    pub(super) fn share(self) -> Option<f64> {
        (self.sessions > 0).then(|| count(self.on_preferred) / count(self.sessions))
    }
}

pub(super) fn milliseconds(duration: Duration) -> f64 {
    // Whole microseconds: more digits would say more than is known.
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

#[expect(clippy::cast_precision_loss, reason = "counts of one run are far below 2^52")]
pub(super) const fn count(number: u64) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { failover_ms: 3_000.0, sessions: 100, share: 0.9, survivors: 1 };

    fn good() -> Measured {
        Measured {
            before: Phase { sessions: 1_000, on_preferred: 1_000 },
            outage: Phase { sessions: 2_000, on_preferred: 0 },
            revived: Phase { sessions: 600, on_preferred: 598 },
            first_answer: Some(Duration::from_millis(320)),
            moved: Some(Duration::from_millis(1_100)),
            failed: 0,
            lost: 0,
            wrong: 0,
            survivors: 50,
        }
    }

    fn broken(measured: &Measured) -> Vec<&'static str> {
        let assertions = judge(measured, &LIMITS);
        assertions.into_iter().filter(|one| !one.ok).map(|one| one.name).collect()
    }

    #[test]
    fn a_good_run_keeps_every_promise() {
        assert_eq!(broken(&good()), [""; 0]);
        assert_eq!(good().failover(), Some(Duration::from_millis(1_100)));
    }

    #[test]
    fn a_run_that_measured_nothing_fails() {
        assert_eq!(
            broken(&Measured::default()),
            [
                "sessions_before_kill",
                "sessions_in_outage",
                "sessions_after_revival",
                "preferred_share_before_kill",
                "failover_ms",
                "long_sessions_through_revival",
                "preferred_share_after_revival",
            ]
        );
    }

    #[test]
    fn each_broken_promise_is_named() {
        type Spoil = fn(&mut Measured);
        let cases: [(&str, Spoil); 10] = [
            ("sessions_before_kill", |run| run.before = Phase { sessions: 99, on_preferred: 99 }),
            ("preferred_share_before_kill", |run| run.before.on_preferred = 899),
            ("failover_ms", |run| run.moved = Some(Duration::from_millis(3_001))),
            ("failover_ms", |run| run.first_answer = None),
            ("sessions_on_dead_cloud", |run| run.outage.on_preferred = 1),
            ("sessions_failed", |run| run.failed = 1),
            ("long_sessions_lost_on_live_cloud", |run| run.lost = 1),
            ("wrong_bytes", |run| run.wrong = 1),
            ("long_sessions_through_revival", |run| run.survivors = 0),
            ("preferred_share_after_revival", |run| run.revived.on_preferred = 539),
        ];
        for (name, spoil) in cases {
            let mut run = good();
            spoil(&mut run);
            assert_eq!(broken(&run), [name]);
        }
    }
}

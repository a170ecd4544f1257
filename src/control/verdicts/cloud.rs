//! A cloud as one failure domain: when it is down as a whole, when it comes back, and how fast.

use std::{fmt::Write as _, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    ejection::Flaps,
    endpoint::{Held, Record, SUSPICION},
};
use crate::{config::Domain, ids::CloudName};

/// Steps in which the share of a cloud that comes back rises.
const STEPS: u32 = 10;

/// While its cloud is down, an endpoint is suspect for longer: no session asks it again.
pub(super) const LONG_SUSPICION: Duration = Duration::from_secs(5);

/// One cloud.
#[derive(Debug)]
pub(super) struct Cloud {
    pub(super) name: CloudName,
    pub(super) domain: Domain,
    pub(super) state: State,
    pub(super) flaps: Flaps,
    /// While down: since enough of it is good, and when that has lasted long enough.
    pub(super) good: Option<Instant>,
    /// What the last finding about it said.
    pub(super) shown: String,
    /// Why it is what it is.
    pub(super) note: Arc<str>,
}

/// What holds of a cloud.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Up,
    Down {
        since: Instant,
        /// No session had failed: only probes say so.
        by_checks: bool,
    },
    Recovering {
        since: Instant,
        percent: u32,
    },
}

impl Cloud {
    pub(super) fn new(name: CloudName, domain: Domain) -> Self {
        Self {
            name,
            domain,
            state: State::Up,
            flaps: Flaps::default(),
            good: None,
            shown: State::Up.words(),
            note: Arc::from("nothing is held against it"),
        }
    }

    pub(super) const fn is_down(&self) -> bool {
        matches!(self.state, State::Down { .. })
    }

    /// When it was found to be down.
    pub(super) const fn down_since(&self) -> Option<Instant> {
        match self.state {
            State::Down { since, .. } => Some(since),
            State::Up | State::Recovering { .. } => None,
        }
    }

    /// One look at a cloud that comes back. `arrivals`: new sessions a second of the pools that use it.
    pub(super) fn recover(&mut self, arrivals: f64, now: Instant) {
        let State::Recovering { since, .. } = self.state else {
            return;
        };
        let elapsed = now.duration_since(since);
        let done = self.steps_done(elapsed);
        let bound = self.bound(arrivals);
        if done >= STEPS && bound >= 100 {
            self.state = State::Up;
            self.note = Arc::from(format!("its share rose over {}", seconds(self.domain.recovery())));
            return;
        }
        let paced = ((done + 1) * 100 / STEPS).min(100);
        let percent = paced.min(bound);
        self.note = if bound < paced {
            let capacity = self.domain.capacity.unwrap_or_default();
            Arc::from(format!("held by its capacity of {capacity} new sessions a second"))
        } else {
            Arc::from(format!("its share rises over {}", seconds(self.domain.recovery())))
        };
        self.state = State::Recovering { since, percent };
    }

    /// When its next step is due.
    pub(super) fn step_due(&self, now: Instant) -> Option<Instant> {
        let State::Recovering { since, .. } = self.state else {
            return None;
        };
        let done = self.steps_done(now.duration_since(since));
        (done < STEPS).then(|| {
            let step = (self.domain.recovery() / STEPS).max(Duration::from_nanos(1));
            let next = if done + 1 == STEPS { self.domain.recovery() } else { step * (done + 1) };
            (since + next).max(now + Duration::from_millis(1))
        })
    }

    fn steps_done(&self, elapsed: Duration) -> u32 {
        if elapsed >= self.domain.recovery() {
            return STEPS;
        }
        let step = (self.domain.recovery() / STEPS).max(Duration::from_nanos(1));
        u32::try_from(elapsed.as_nanos() / step.as_nanos()).unwrap_or(STEPS).min(STEPS - 1)
    }

    /// The share that its capacity allows, in percent: in steps, so that it does not change all the time.
    fn bound(&self, arrivals: f64) -> u32 {
        let Some(capacity) = self.domain.capacity.filter(|_| arrivals > 0.0) else {
            return 100;
        };
        let share = (f64::from(capacity) * 100.0 / arrivals).clamp(1.0, 100.0);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "1 to 100")]
        let share = share as u32;
        if share < 10 { share } else { share / 5 * 5 }
    }
}

impl State {
    /// As findings tell it.
    pub(super) fn words(&self) -> String {
        match self {
            Self::Up => "up".to_owned(),
            Self::Down { .. } => "down".to_owned(),
            Self::Recovering { percent, .. } => format!("recovering: {percent} %"),
        }
    }
}

/// The members of a cloud over all pools, counted.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    pub(super) total: u32,
    pub(super) bad: u32,
    /// Probes or sessions fail, but bytes speak against that.
    pub(super) contradicted: u32,
    /// Good by all that must be good before the cloud comes back.
    pub(super) good: u32,
    /// At least one should go now.
    pub(super) held: bool,
    /// Some session had failed.
    pub(super) corroborated: bool,
    refuse: u32,
    silent: u32,
    wrong: u32,
    fail: u32,
    ejected: u32,
    suspect: u32,
}

impl Tally {
    pub(super) fn count(&mut self, record: &Record, frozen: bool, down: bool, now: Instant) {
        if !record.proven {
            return;
        }
        let fails = record.fails_probes(frozen, now);
        let suspect = record.is_suspect(if down { LONG_SUSPICION } else { SUSPICION }, now);
        self.total += 1;
        let condemned = record.ejection.is_some() || matches!(record.held, Some(Held::Sessions(_)));
        // A dial of before may fail only now.
        let clear = !suspect || record.outlives_failures(now);
        self.good += u32::from(!record.is_down() && !condemned && clear);
        self.held |= record.held.is_some();
        let doubted = record.is_down() || suspect && record.ejection.is_none();
        let moves = if record.is_down() {
            // A probe that began between two readings may fail though bytes come, and a dial of long ago may end only now.
            !fails && record.contradicted || record.carries(now)
        } else {
            record.outlives_failures(now)
        };
        self.contradicted += u32::from(doubted && moves);
        if !fails && !condemned && !suspect {
            return;
        }
        self.bad += 1;
        self.corroborated |= suspect || condemned;
        *self.cause(record, fails) += 1;
    }

    /// True if less than `percent` of it is healthy.
    pub(super) const fn is_below(&self, percent: u8) -> bool {
        self.total.saturating_sub(self.bad) as u64 * 100 < percent as u64 * self.total as u64
    }

    /// True if more than `percent` of it is good.
    pub(super) const fn is_good(&self, percent: u8) -> bool {
        self.good as u64 * 100 > percent as u64 * self.total as u64
    }

    /// The share that is healthy, in thousandths.
    pub(super) fn health(&self) -> u64 {
        u64::from(self.total - self.bad) * 1000 / u64::from(self.total.max(1))
    }

    /// `6 of 6 endpoints: 4 refuse, 2 silent`.
    pub(super) fn words(&self) -> String {
        let mut text = format!("{} of {} endpoints", self.bad, self.total);
        let causes = [
            (self.refuse, "refuse"),
            (self.silent, "silent"),
            (self.wrong, "answer wrongly"),
            (self.fail, "fail probes"),
            (self.ejected, "ejected"),
            (self.suspect, "fail sessions"),
        ];
        let mut mark = ": ";
        for (count, what) in causes.iter().filter(|(count, _)| *count > 0) {
            // Writing to a String does not fail.
            let _ = write!(text, "{mark}{count} {what}");
            mark = ", ";
        }
        text
    }

    fn cause(&mut self, record: &Record, fails: bool) -> &mut u32 {
        let reason = &*record.opinion.reason;
        if !fails {
            return if record.ejection.is_some() { &mut self.ejected } else { &mut self.suspect };
        }
        if record.opinion.answered {
            &mut self.wrong
        } else if reason.contains("refused") {
            &mut self.refuse
        } else if reason.contains("no answer") || reason.contains("timed out") {
            &mut self.silent
        } else {
            &mut self.fail
        }
    }
}

/// A time in words.
pub(super) fn seconds(time: Duration) -> String {
    if time.subsec_nanos() == 0 { format!("{} s", time.as_secs()) } else { format!("{time:.1?}") }
}

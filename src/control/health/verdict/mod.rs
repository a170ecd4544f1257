//! How probe results become an opinion, and how soon to look again. No sockets and no clock: time is passed in.

#[cfg(test)]
mod tests;

use std::time::Duration;

use tokio::time::Instant;

use super::Verdict;

/// The evidence about one endpoint and what follows from it.
#[derive(Debug, Default)]
pub struct Judge {
    verdict: Verdict,
    /// Probe results in a row that contradict the verdict.
    contrary: u32,
    /// A hint that no probe has answered yet.
    hinted: bool,
    /// When the last probe started that a hint had asked for.
    last_hinted: Option<Instant>,
}

/// A change of mind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turn {
    /// The new opinion.
    pub verdict: Verdict,
    /// The evidence, for people.
    pub reason: String,
}

/// Time from the start of one probe to the start of the next, jitter included.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// When there is no doubt.
    pub interval: Duration,
    /// When there is; also the least time between two probes that hints asked for.
    pub fast: Duration,
}

impl Judge {
    /// The opinion.
    #[must_use]
    pub const fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// True while results contradict the verdict, but not yet often enough.
    #[must_use]
    pub const fn in_doubt(&self) -> bool {
        self.contrary > 0
    }

    /// A session could not connect, or not soon enough. That never changes the verdict: it makes the next probe come at once. Where the
    /// verdict is down it is no news.
    pub fn hint(&mut self) {
        self.hinted |= self.verdict != Verdict::Down;
    }

    /// A probe starts, and answers the hints so far. Hints that come while it runs may know more than it does: they
    /// ask for another.
    pub fn probing(&mut self, now: Instant) {
        if self.hinted {
            self.hinted = false;
            self.last_hinted = Some(now);
        }
    }

    /// The endpoint answered as it should.
    pub fn good(&mut self, rise: u32) -> Option<Turn> {
        let run = self.count(Verdict::Up, rise)?;
        let probes = if run == 1 { "probe" } else { "probes" };
        Some(self.turn(Verdict::Up, format!("{run} {probes} good")))
    }

    /// It did not.
    pub fn bad(&mut self, fall: u32, why: &str) -> Option<Turn> {
        let run = self.count(Verdict::Down, fall)?;
        let probes = if run == 1 { "probe" } else { "probes" };
        let turn = self.turn(Verdict::Down, format!("{run} {probes} failed: {why}"));
        self.hinted = false;
        Some(turn)
    }

    /// The opinion as it stands, after another bad probe.
    #[must_use]
    pub fn again(&self, why: &str) -> Turn {
        Turn { verdict: self.verdict, reason: format!("probes fail: {why}") }
    }

    /// When to start the next probe, after the last started at `started`. Never before `now`.
    #[must_use]
    pub fn next(&self, started: Instant, now: Instant, pace: Pace) -> Instant {
        let due = started + if self.in_doubt() { pace.fast } else { pace.interval };
        if !self.hinted {
            return due.max(now);
        }
        let earliest = self.last_hinted.map_or(now, |last| last + pace.fast);
        due.min(earliest).max(now)
    }

    /// Counts a result that speaks for `side`. `Some(run)`: that many in a row, enough to change the verdict.
    fn count(&mut self, side: Verdict, threshold: u32) -> Option<u32> {
        if self.verdict == side {
            self.contrary = 0;
            return None;
        }
        self.contrary = self.contrary.saturating_add(1);
        // Without any opinion one result is better than none.
        (self.verdict == Verdict::Unknown || self.contrary >= threshold).then_some(self.contrary)
    }

    fn turn(&mut self, verdict: Verdict, reason: String) -> Turn {
        self.verdict = verdict;
        self.contrary = 0;
        Turn { verdict, reason }
    }
}

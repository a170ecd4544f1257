//! The turns of one endpoint: how it comes back, how a trial begins and ends, and why it should go.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    cloud::LONG_SUSPICION,
    ejection::TRIAL_PATIENCE,
    endpoint::{Held, LATELY, Record, Removal, Use},
    facts::Kept,
};
use crate::{config::Ejection, control::health::Verdict};

impl Record {
    /// The first word of probes about an endpoint that was never in.
    pub(super) fn first(&mut self, now: Instant) {
        if self.proven {
            return;
        }
        match self.opinion.verdict {
            Verdict::Up => {
                self.proven = true;
                if self.out.is_none() {
                    let note = format!("first found good: {}", self.opinion.reason);
                    self.enter(Arc::from(note), None, now);
                }
            }
            Verdict::Down if self.out.is_none() => self.out = Some(Removal { at: now, corroborated: false }),
            Verdict::Down | Verdict::Unknown => {}
        }
    }

    /// Good probes take back what bad ones did. Where all is lost and everything is tried anyway, a session that went
    /// well is as good as a trial.
    pub(super) fn readmit(&mut self, lost: Option<Instant>, slow: bool, now: Instant) {
        let returned = slow.then_some(now);
        let trial = self.ejection.as_ref().and_then(|ejection| ejection.trial.as_ref());
        let ejected = self.ejection.as_ref().map(|ejection| ejection.tried);
        let out_since = self.out.map(|out| out.at).max(ejected).max(trial.map(|trial| trial.since));
        let since = lost.zip(out_since).map(|(lost, out)| lost.max(out));
        let succeeded = self.detector.last_success.zip(since).is_some_and(|(at, since)| at > since);
        let calm = || self.detector.last_failure < self.detector.last_success;
        // What is part of a verdict on its cloud ends as that does: with bytes.
        let quiet = self.ejection.as_ref().is_some_and(|ejection| ejection.quiet) && self.is_ready(now);
        let since = if quiet { since.max(out_since) } else { since };
        let serves = since.is_some_and(|since| self.own_use() != Use::In && self.serves_since(since, now));
        if self.proven && (succeeded && calm() || serves) {
            let note = if serves { "sessions move bytes" } else { "a session went well" };
            self.enter(Arc::from(note), returned, now);
            return;
        }
        if self.out.is_some() && self.opinion.verdict == Verdict::Up && self.is_ready(now) {
            if self.ejection.is_some() {
                // Probes are content; sessions are asked next.
                self.out = None;
                return;
            }
            let flaps = self.flaps.recent(now);
            let damped = if flaps > 2 { format!(", after {flaps} returns in 10 min") } else { String::new() };
            let note = format!("probes: {}{damped}", self.opinion.reason);
            self.enter(Arc::from(note), returned, now);
        }
    }

    /// Ends a trial whose outcome is known.
    pub(super) fn judge_trial(&mut self, patience: Duration, slow: bool, now: Instant) -> Option<bool> {
        let probed = self.probed && self.opinion.verdict == Verdict::Up;
        let ejection = self.ejection.as_mut()?;
        let silence = ejection.silence;
        let trial = ejection.trial.as_mut()?;
        let waited = now.duration_since(trial.since) >= TRIAL_PATIENCE;
        let outcome = trial.outcome(&self.last, silence, patience, now);
        let note = match outcome {
            Some(true) => "the trial session went well",
            // Nobody wants it just now: the word of probes must do.
            None if probed && waited && trial.due(patience) <= now => {
                "no session came to try it, and its probes are good"
            }
            Some(false) | None => return outcome,
        };
        self.enter(Arc::from(note), slow.then_some(now), now);
        Some(true)
    }

    pub(super) fn begin_trial(&mut self, now: Instant) {
        let over =
            self.ejection.as_ref().is_some_and(|ejection| ejection.trial.is_none() && now >= ejection.until);
        if over && self.out.is_none() && self.is_ready(now) {
            self.try_out(now);
        } else if self.ejection.is_some() && self.is_down() && self.out.is_none() {
            // It is not in use: that probes hold it for bad too removes nothing.
            self.out = Some(Removal { at: now, corroborated: true });
        }
    }

    /// Finds why it should go. `left`: its cloud is down, and its pool does without it.
    pub(super) fn hold(&mut self, rules: &Ejection, left: bool, frozen: bool, now: Instant) {
        self.held = None;
        let kept = self.kept.take();
        if left || !self.is_in() {
            self.held_at = None;
            return;
        }
        let cause = self.detector.ejects(rules, now);
        // While bytes come, or if they came after it, a failed session proves nothing: the removal is charged to checks.
        self.held = if self.is_down() && self.detector.corroborates(now) {
            let doubtful = self.carries(now) || self.has_moved_since_failure() && !self.detector.silenced;
            Some(if doubtful { Held::Checks } else { Held::Corroborated })
        } else if let Some(cause) = cause {
            self.held_at = Some(now);
            Some(Held::Sessions(cause))
        } else if self.is_down() && self.contradicted {
            self.kept = Some(Kept::Contradicted);
            None
        } else if self.is_down() && frozen {
            self.kept = Some(Kept::Frozen);
            None
        } else {
            let held = if self.detector.silenced { Held::Corroborated } else { Held::Checks };
            self.is_down().then_some(held)
        };
        let lately = self.held_at.is_some_and(|at| now.duration_since(at) < LATELY);
        if self.held.is_none() && self.kept.is_none() && kept.is_some() && lately {
            self.kept = Some(Kept::Lately);
        }
    }

    /// Its cloud comes back, and it is still bad: it goes on not to be used.
    pub(super) fn stay_out(&mut self, now: Instant) {
        if self.published.0 != Use::In && self.is_in() && self.is_down() {
            self.out = Some(Removal { at: now, corroborated: self.detector.corroborates(now) });
        }
    }

    /// Its cloud comes back, and it is good: what sessions held against it before is over.
    pub(super) fn begin_anew(&mut self, now: Instant) {
        if self.is_in() && !self.is_down() && !self.is_suspect(LONG_SUSPICION, now) {
            self.detector.forgive();
        }
    }
}

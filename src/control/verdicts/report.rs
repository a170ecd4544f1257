//! What a decision tells: the difference between what was told last and what holds now. A finding's `before` is
//! therefore always the `after` of the one before.

use std::sync::Arc;

use tokio::time::Instant;

use super::{
    Verdicts,
    cloud::{Cloud, State, seconds},
    ejection::{Ejection, ramp},
    endpoint::{LATELY, Record, Shown, Use},
    facts::{Kept, Standing},
    finding::{Decision, Finding, FindingKind},
    pool::{MINUTE, Pool},
};

impl Verdicts {
    /// Tells what is otherwise, clouds first.
    pub(super) fn report(&mut self, now: Instant) -> Decision {
        let mut decision = Decision::default();
        if self.frozen != self.shown_frozen {
            self.shown_frozen = self.frozen;
            decision.findings.push(freezing(self.frozen, None, &self.note));
        }
        decision.findings.extend(self.clouds.iter_mut().filter_map(Cloud::tell));
        let clouds = &self.clouds;
        for pool in &mut self.pools {
            if pool.frozen != pool.shown_frozen {
                pool.shown_frozen = pool.frozen;
                decision.findings.push(freezing(pool.frozen, Some(pool), pool.freeze_reason()));
            }
            pool.tell(clouds, &mut decision.findings);
            if pool.publish(now) {
                decision.dirty.insert(pool.name.clone());
            }
        }
        self.due = self.next_due(now);
        decision
    }

    fn next_due(&self, now: Instant) -> Option<Instant> {
        let clouds = self.clouds.iter().filter_map(|cloud| match cloud.state {
            State::Down { .. } => cloud.good,
            State::Recovering { .. } => cloud.step_due(now),
            State::Up => None,
        });
        let pools = self.pools.iter().filter_map(|pool| pool.due(now));
        clouds.chain(pools).min().map(|due| due.max(now))
    }
}

fn freezing(frozen: bool, pool: Option<&Pool>, evidence: &str) -> Finding {
    let (before, after) = if frozen { ("believed", "frozen") } else { ("frozen", "believed") };
    Finding {
        kind: if frozen { FindingKind::Freeze } else { FindingKind::Thaw },
        pool: pool.map(|pool| pool.name.clone()),
        endpoint: None,
        cloud: None,
        before: before.to_owned(),
        after: after.to_owned(),
        evidence: evidence.to_owned(),
    }
}

impl Cloud {
    fn tell(&mut self) -> Option<Finding> {
        let after = self.state.words();
        if after == self.shown {
            return None;
        }
        let before = std::mem::replace(&mut self.shown, after.clone());
        let cloud_kind = self.is_down() || before == "down" && after == "up";
        Some(Finding {
            kind: if cloud_kind { FindingKind::Cloud } else { FindingKind::Recovery },
            pool: None,
            endpoint: None,
            cloud: Some(self.name.clone()),
            before,
            evidence: format!("{} is {after}: {}", self.name, self.note),
            after,
        })
    }
}

impl Pool {
    pub(super) const fn freeze_reason(&self) -> &'static str {
        if self.frozen {
            "probes fail for half of the pool or more while sessions with the same endpoints move bytes"
        } else {
            "hardly any failed probe is contradicted by bytes now"
        }
    }

    fn tell(&mut self, clouds: &[Cloud], findings: &mut Vec<Finding>) {
        let left: Vec<usize> = self.seats.iter().filter(|seat| seat.left).map(|seat| seat.cloud).collect();
        for record in self.members.iter_mut().filter(|record| !left.contains(&record.cloud)) {
            let after = record.to_show();
            if after == record.shown {
                continue;
            }
            let before = std::mem::replace(&mut record.shown, after);
            let early = record.ejection.as_ref().is_some_and(Ejection::was_tried_early);
            findings.push(Finding {
                kind: kind(before, after, early),
                pool: Some(self.name.clone()),
                endpoint: Some(record.key.address),
                cloud: clouds.get(record.cloud).map(|cloud| cloud.name.clone()),
                before: before.as_str().to_owned(),
                after: after.as_str().to_owned(),
                evidence: record.evidence(),
            });
        }
        if self.lost.is_some() != self.shown_lost {
            self.shown_lost = self.lost.is_some();
            let (before, after) =
                if self.shown_lost { ("serving", "all lost") } else { ("all lost", "serving") };
            let out = self.members.iter().filter(|record| !record.is_in()).count();
            findings.push(Finding {
                kind: FindingKind::Verdict,
                pool: Some(self.name.clone()),
                endpoint: None,
                cloud: None,
                before: before.to_owned(),
                after: after.to_owned(),
                evidence: format!("{out} of {} endpoints are out one by one", self.members.len()),
            });
        }
    }

    /// True if routing is no longer what it was.
    fn publish(&mut self, now: Instant) -> bool {
        let (mut dirty, loss) = (false, self.loss());
        for record in &mut self.members {
            let seat = self.seats.iter().find(|seat| seat.cloud == record.cloud);
            let left = seat.is_some_and(|seat| seat.left);
            let what = if left && record.own_use() == Use::In { Use::Out } else { record.own_use() };
            let percent = record.ramp(self.slow_start, now).0;
            let published = (what, percent, seat.map_or(100, |seat| seat.percent), loss);
            dirty |= std::mem::replace(&mut record.published, published) != published;
        }
        dirty
    }

    /// When something changes by time alone.
    fn due(&self, now: Instant) -> Option<Instant> {
        let charged = self.members.iter().filter(|record| record.is_charged(now));
        let first = charged.filter_map(|record| record.charged).min().map(|at| at + MINUTE);
        let mut due: Option<Instant> = None;
        let mut at = |time: Option<Instant>| {
            if let Some(time) = time.filter(|time| *time > now) {
                due = Some(due.map_or(time, |due| due.min(time)));
            }
        };
        for record in &self.members {
            at(record.ramp(self.slow_start, now).1);
            if record.out.is_some() && !record.is_down() {
                at(Some(record.ready));
            }
            if let Some(ejection) = &record.ejection {
                at(ejection
                    .trial
                    .as_ref()
                    .map_or(Some(ejection.until), |trial| Some(trial.due(self.patience))));
            }
            match record.kept {
                Some(Kept::Contradicted) => at(record.contradicted_until()),
                Some(Kept::Velocity) => at(first),
                Some(Kept::LastCloud) => at(record.carries_until()),
                Some(Kept::Lately) => at(record.held_at.map(|at| at + LATELY)),
                Some(Kept::Frozen | Kept::Floor | Kept::Cap) | None => {}
            }
        }
        due
    }
}

/// `early`: it was tried while its back-off went on, which goes on after that.
const fn kind(before: Shown, after: Shown, early: bool) -> FindingKind {
    match (before, after) {
        (Shown::Trial, Shown::Ejected) if early => FindingKind::Trial,
        (_, Shown::Kept) | (Shown::Kept, Shown::In) => FindingKind::Kept,
        (_, Shown::Out | Shown::New) | (Shown::New, Shown::In) => FindingKind::Verdict,
        (_, Shown::Ejected) => FindingKind::Ejection,
        (_, Shown::Trial) => FindingKind::Trial,
        (_, Shown::In) => FindingKind::Readmission,
    }
}

impl Record {
    /// Its weight in percent of its own, and when that changes.
    pub(super) fn ramp(&self, slow_start: std::time::Duration, now: Instant) -> (u32, Option<Instant>) {
        let Some(returned) = self.returned else {
            return (100, None);
        };
        let (percent, next) = ramp(now.saturating_duration_since(returned), slow_start);
        (percent, next.map(|next| now + next))
    }

    /// Why it is what it is, in one sentence.
    pub(super) fn evidence(&self) -> String {
        let reason = &self.opinion.reason;
        if let Some(out) = self.out {
            let sessions = if out.corroborated { ", and sessions fail too" } else { "" };
            return format!("probes: {reason}{sessions}");
        }
        match (&self.ejection, self.kept) {
            (Some(ejection), _) if ejection.trial.is_some() => {
                let now =
                    if ejection.was_tried_early() { "what is in use is bad" } else { "its back-off is over" };
                format!("{now}: one session at a time may try it ({})", ejection.why)
            }
            (Some(ejection), _) => {
                let back_off = seconds(ejection.until.duration_since(ejection.at));
                let count = self.back_off.last();
                let tried = if ejection.was_tried_early() { ", tried early in vain" } else { "" };
                format!("{}; back-off {back_off}, number {count}{tried}", ejection.why)
            }
            (None, Some(kept)) => format!("kept: {} ({})", kept.as_str(), self.complaint()),
            (None, None) if self.proven => self.note.to_string(),
            (None, None) => format!("probes: {reason}"),
        }
    }

    /// What is held against it.
    fn complaint(&self) -> String {
        let causes = self.detector.causes();
        if self.is_down() || causes.is_empty() {
            format!("probes: {}", self.opinion.reason)
        } else {
            format!("sessions: {causes}")
        }
    }

    /// What holds of it. `left`: what its cloud is down for, if it is and the pool does without it.
    pub(super) fn standing(&self, left: Option<Arc<str>>) -> Standing {
        match (self.own_use(), left) {
            (Use::In, Some(reason)) => Standing::Out { reason, until: None },
            (Use::In, None) => Standing::In { since: self.since },
            (Use::New, _) => Standing::New,
            (Use::Trial, _) => Standing::Trial,
            (Use::Out, _) => {
                let until = match (&self.out, &self.ejection) {
                    (Some(_), _) if self.is_down() => None,
                    (Some(_), _) => Some(self.ready),
                    (None, ejection) => ejection.as_ref().map(|ejection| ejection.until),
                };
                Standing::Out { reason: Arc::from(self.evidence()), until }
            }
        }
    }
}

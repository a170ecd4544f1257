//! All that is known of one endpoint, and its standing that follows from it.

use std::{sync::Arc, time::Duration};

use rand::rngs::SmallRng;
use tokio::time::Instant;

use super::{
    Opinion,
    ejection::{BackOff, Ejection, Flaps, Trial},
    facts::{Kept, MemberFacts, Reading},
    pool::{Loss, MINUTE},
    sessions::{Cause, Detector, Tick},
};
use crate::{config, control::health::Verdict, ids::EndpointKey};

/// How long bytes speak against a failed probe.
pub(super) const CONTRADICTION: Duration = Duration::from_secs(5);

/// Bytes come as long as no more than this has gone by since the last were seen: two ticks and a little.
const FRESH: Duration = Duration::from_millis(250);

/// Bytes have come steadily if they did for this long, and have stopped if none has come for this long.
const SILENCE: Duration = Duration::from_millis(500);

/// So many sessions that hear nothing speak against an endpoint.
const UNHEARD: u64 = 3;

/// A failed session makes an endpoint suspect for this long.
pub(super) const SUSPICION: Duration = Duration::from_secs(2);

/// What was kept in use against the word of sessions is called so for this long after it was bad.
pub(super) const LATELY: Duration = Duration::from_secs(10);

/// One endpoint.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) key: EndpointKey,
    /// Its cloud, by number.
    pub(super) cloud: usize,
    pub(super) weight: u32,
    pub(super) probed: bool,
    /// It had a good probe, or nobody probes it.
    pub(super) proven: bool,
    pub(super) opinion: Opinion,
    /// When the opinion became another one.
    pub(super) changed: Instant,
    pub(super) flaps: Flaps,
    /// When good probes have lasted long enough.
    pub(super) ready: Instant,
    pub(super) detector: Detector,
    /// Taken out because of its probes.
    pub(super) out: Option<Removal>,
    /// When probes alone last took it out.
    pub(super) charged: Option<Instant>,
    pub(super) ejection: Option<Ejection>,
    pub(super) back_off: BackOff,
    /// In use since.
    pub(super) since: Instant,
    /// The start of its slow start.
    pub(super) returned: Option<Instant>,
    /// Why it should go, if it should: found anew by each decision.
    pub(super) held: Option<Held>,
    /// Why it stays nevertheless.
    pub(super) kept: Option<Kept>,
    /// When sessions last held it for bad.
    pub(super) held_at: Option<Instant>,
    pub(super) contradicted: bool,
    /// Why it is in use again.
    pub(super) note: Arc<str>,
    /// What the last finding about it said.
    pub(super) shown: Shown,
    /// What the last decision made of it: its use, its weight, the share of its cloud, and whether all is lost.
    pub(super) published: (Use, u32, u32, Loss),
    pub(super) last: Reading,
    ticked: Instant,
    bytes: Option<Bytes>,
    /// Sessions that were connected since the last of them.
    unheard: u64,
}

/// A removal because of probes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Removal {
    pub(super) at: Instant,
    /// Sessions had failed too.
    pub(super) corroborated: bool,
}

/// Bytes from the endpoint to clients.
#[derive(Clone, Copy, Debug)]
struct Bytes {
    /// They came after this.
    after: Instant,
    /// They were seen then.
    seen: Instant,
    /// They have come again and again since then.
    since: Instant,
}

/// Why an endpoint should go.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Held {
    /// Probes, and a session that failed.
    Corroborated,
    /// Probes alone.
    Checks,
    /// Sessions.
    Sessions(Cause),
}

/// What may be done with an endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Use {
    #[default]
    New,
    In,
    Out,
    Trial,
}

/// A standing, as findings tell it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shown {
    New,
    In,
    Kept,
    Out,
    Ejected,
    Trial,
}

impl Shown {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::In => "in",
            Self::Kept => "kept",
            Self::Out => "out",
            Self::Ejected => "ejected",
            Self::Trial => "trial",
        }
    }
}

impl Record {
    pub(super) fn new(facts: &MemberFacts, cloud: usize, probed: bool, now: Instant) -> Self {
        let (verdict, reason) =
            if probed { (Verdict::Unknown, "not probed yet") } else { (Verdict::Up, "not probed") };
        Self {
            key: facts.key.clone(),
            cloud,
            weight: facts.weight,
            probed,
            proven: !probed,
            opinion: Opinion { verdict, reason: Arc::from(reason), answered: false, began: now },
            changed: now,
            flaps: Flaps::default(),
            ready: now,
            detector: Detector::default(),
            out: None,
            charged: None,
            ejection: None,
            back_off: BackOff::default(),
            since: now,
            returned: None,
            held: None,
            kept: None,
            held_at: None,
            contradicted: false,
            note: Arc::from(reason),
            shown: if probed { Shown::New } else { Shown::In },
            published: (Use::default(), 0, 0, Loss::None),
            last: Reading::default(),
            ticked: now,
            bytes: None,
            unheard: 0,
        }
    }

    /// Takes what the config says of it now.
    pub(super) fn reconfigure(&mut self, facts: &MemberFacts, cloud: usize, probed: bool, now: Instant) {
        self.weight = facts.weight;
        self.cloud = cloud;
        if self.probed == probed {
            return;
        }
        // Probed from now on, it goes on as what it is; without probes, nothing they said counts.
        let fresh = Self::new(facts, cloud, probed, now);
        self.probed = probed;
        self.opinion = fresh.opinion;
        self.changed = now;
        self.ready = now;
        if !probed {
            self.proven = true;
            if self.out.take().is_some() {
                self.enter(Arc::clone(&fresh.note), None, now);
            }
        }
    }

    /// Takes what probes say.
    pub(super) fn probe(&mut self, opinion: Opinion, rng: &mut SmallRng, now: Instant) {
        if !self.probed || opinion.verdict == Verdict::Unknown {
            return;
        }
        let before = std::mem::replace(&mut self.opinion, opinion).verdict;
        let after = self.opinion.verdict;
        if before == after {
            return;
        }
        self.changed = now;
        if after == Verdict::Up {
            let delay = if before == Verdict::Down { self.flaps.damp(rng, now) } else { Duration::ZERO };
            self.ready = now + delay;
        } else {
            self.dissolve();
        }
    }

    /// Takes a reading.
    pub(super) fn observe(&mut self, reading: Reading, patience: Duration, now: Instant) {
        let tick = Tick::between(&self.last, &reading);
        let anew =
            Tick::begins_anew(&self.last, &reading) || reading.connect.count() < self.last.connect.count();
        if anew && let Some(trial) = self.ejection.as_mut().and_then(|ejection| ejection.trial.as_mut()) {
            trial.rebase();
        }
        self.unheard = self.unheard.saturating_add(tick.connected);
        if tick.bytes > 0 {
            let since = self.bytes.filter(|_| self.carries(now)).map_or(now, |bytes| bytes.since);
            self.bytes = Some(Bytes { after: self.ticked, seen: now, since });
            self.unheard = 0;
        }
        self.detector.tick(tick, patience, now);
        self.detector.connects(&reading.connect, anew, now);
        self.last = reading;
        self.ticked = now;
    }

    /// What may be done with it, whatever holds of its cloud.
    pub(super) const fn own_use(&self) -> Use {
        if self.out.is_some() {
            return Use::Out;
        }
        match &self.ejection {
            Some(Ejection { trial: Some(_), .. }) => Use::Trial,
            Some(_) => Use::Out,
            None if self.proven => Use::In,
            None => Use::New,
        }
    }

    /// True if it may be used, whatever holds of its cloud.
    pub(super) fn is_in(&self) -> bool {
        self.own_use() == Use::In
    }

    /// How findings call it now.
    pub(super) const fn to_show(&self) -> Shown {
        if self.out.is_some() {
            return Shown::Out;
        }
        match (&self.ejection, self.kept) {
            (Some(Ejection { trial: Some(_), .. }), _) => Shown::Trial,
            (Some(_), _) => Shown::Ejected,
            (None, Some(_)) => Shown::Kept,
            (None, None) if self.proven => Shown::In,
            (None, None) => Shown::New,
        }
    }

    /// True if probes alone took it out within the last minute.
    pub(super) fn is_charged(&self, now: Instant) -> bool {
        self.charged.is_some_and(|at| now.duration_since(at) < MINUTE)
    }

    pub(super) fn is_down(&self) -> bool {
        self.opinion.verdict == Verdict::Down
    }

    /// True if probes have been good for as long as they must.
    pub(super) fn is_ready(&self, now: Instant) -> bool {
        !self.is_down() && now >= self.ready
    }

    /// True if bytes came after the last failed probe began, and not long ago.
    pub(super) fn moves_bytes(&self, now: Instant) -> bool {
        self.bytes.is_some_and(|bytes| {
            bytes.after >= self.opinion.began && now.duration_since(bytes.seen) <= CONTRADICTION
        })
    }

    /// True if bytes came after the last failed session, and not long ago.
    pub(super) fn outlives_failures(&self, now: Instant) -> bool {
        let recent = self.bytes.is_some_and(|bytes| now.duration_since(bytes.seen) <= CONTRADICTION);
        recent && self.has_moved_since_failure()
    }

    /// True if bytes came after the last failed session.
    pub(super) fn has_moved_since_failure(&self) -> bool {
        let failure = self.detector.last_failure;
        self.bytes.is_some_and(|bytes| failure.is_none_or(|failure| bytes.after >= failure))
    }

    /// True if bytes came after that time.
    pub(super) fn has_moved_since(&self, then: Instant) -> bool {
        self.bytes.is_some_and(|bytes| bytes.after >= then)
    }

    /// True while bytes come to clients.
    pub(super) fn carries(&self, now: Instant) -> bool {
        self.carries_until().is_some_and(|until| now < until)
    }

    /// True if bytes have come again and again, and none for a while now, whatever sessions are given to it.
    pub(super) fn is_silent(&self, now: Instant) -> bool {
        self.unheard >= UNHEARD
            && self.bytes.is_some_and(|bytes| {
                let silence = now.duration_since(bytes.seen);
                bytes.seen.duration_since(bytes.since) >= SILENCE && silence >= SILENCE && silence <= LATELY
            })
    }

    /// When that ends, unless more bytes come.
    pub(super) fn carries_until(&self) -> Option<Instant> {
        self.bytes.map(|bytes| bytes.seen + FRESH)
    }

    /// True if bytes came after that time and after the last failed session, and not long ago.
    pub(super) fn serves_since(&self, then: Instant, now: Instant) -> bool {
        self.outlives_failures(now) && self.bytes.is_some_and(|bytes| bytes.after > then)
    }

    /// When bytes last came to clients.
    pub(super) fn answered(&self) -> Option<Instant> {
        self.bytes.map(|bytes| bytes.seen)
    }

    /// True if it may be used and nothing that is believed is held against it.
    pub(super) fn is_good(&self, now: Instant) -> bool {
        self.is_in() && (!self.is_down() || self.contradicted) && !self.detector.failing(SUSPICION, now)
    }

    /// When sessions have taken it out because they could not reach it: before now, but not long ago, and it has shown no
    /// life since.
    pub(super) fn died(&self, now: Instant) -> Option<Instant> {
        let ejection = self.ejection.as_ref().filter(|ejection| ejection.trial.is_none())?;
        let just = ejection.at < now && now.duration_since(ejection.at) < SUSPICION;
        let dead = self.detector.is_out_of_reach()
            && self.detector.failing(SUSPICION, now)
            && !self.has_moved_since_failure();
        (just && dead).then_some(ejection.at)
    }

    /// When the bytes that speak against its probes no longer do.
    pub(super) fn contradicted_until(&self) -> Option<Instant> {
        self.bytes.map(|bytes| bytes.seen + CONTRADICTION)
    }

    /// True if a session has failed within `span`, none has gone well since, and its probes have not found it good again
    /// since then.
    pub(super) fn is_suspect(&self, span: Duration, now: Instant) -> bool {
        let returned = self.probed && self.opinion.verdict == Verdict::Up;
        let cleared = returned && self.detector.last_failure.is_some_and(|failure| failure < self.changed);
        self.detector.failing(span, now) && !cleared
    }

    /// True if probes hold it for bad, and nothing speaks against them.
    pub(super) fn fails_probes(&self, frozen: bool, now: Instant) -> bool {
        self.is_down() && (self.detector.corroborates(now) || !(self.contradicted || frozen))
    }

    /// Sessions have taken it out.
    pub(super) fn eject(&mut self, why: Arc<str>, quiet: bool, back_off: Duration, now: Instant) {
        let silence = self.detector.is_silence();
        let until = now + back_off;
        self.ejection = Some(Ejection { at: now, until, why, silence, quiet, tried: now, trial: None });
        self.kept = None;
        self.held = None;
        if self.is_down() {
            // Probes hold it for bad, too: good ones must come before a trial.
            self.out = Some(Removal { at: now, corroborated: true });
        }
    }

    /// Another back-off after a trial that went wrong.
    pub(super) fn eject_again(&mut self, rules: &config::Ejection, rng: &mut SmallRng, now: Instant) {
        if let Some(ejection) = self.ejection.as_mut().filter(|ejection| now < ejection.until) {
            // It was tried early: the back-off goes on.
            (ejection.trial, ejection.tried) = (None, now);
            return;
        }
        let back_off = self.back_off.next(rules, rng, now);
        let causes = self.detector.causes();
        let causes = if causes.is_empty() { String::new() } else { format!(": {causes}") };
        let silence = self.ejection.as_ref().is_some_and(|old| old.silence) || self.detector.is_silence();
        self.eject(Arc::from(format!("the trial session failed{causes}")), false, back_off, now);
        if let Some(ejection) = &mut self.ejection {
            ejection.silence = silence;
        }
    }

    /// It is in use again.
    pub(super) fn enter(&mut self, note: Arc<str>, returned: Option<Instant>, now: Instant) {
        self.out = None;
        self.ejection = None;
        self.kept = None;
        self.held_at = None;
        self.since = now;
        self.note = note;
        self.returned = returned;
        self.back_off.good(now);
        self.detector.forgive();
    }

    /// One session at a time may try it.
    pub(super) fn try_out(&mut self, now: Instant) {
        self.detector.forgive();
        if let Some(ejection) = &mut self.ejection {
            ejection.trial = Some(Trial::begin(&self.last, now));
        }
    }

    /// Probes are down: they explain what was held against it quietly, and no trial makes sense.
    fn dissolve(&mut self) {
        match &mut self.ejection {
            Some(ejection) if ejection.quiet => {
                self.ejection = None;
                self.back_off.good(self.changed);
            }
            Some(ejection) => ejection.trial = None,
            None => {}
        }
    }
}

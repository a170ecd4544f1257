//! What waits though its probes are good is taken back early where what is in use is bad: damping and back-off spare
//! those who have something better, and nobody else.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{Verdicts, cloud::LONG_SUSPICION, ejection::Trial, endpoint::Record, facts::Kept, pool::Pool};
use crate::control::health::Verdict;

/// Time between two early trials of the same endpoint.
const PAUSE: Duration = Duration::from_secs(1);

impl Verdicts {
    /// Takes back what is good for long enough, and what waits for it where a pool has nothing better.
    pub(super) fn relieve(&mut self, now: Instant) {
        let mut wanted = vec![false; self.clouds.len()];
        let mut relieved = false;
        for pool in self.pools.iter_mut().filter(|pool| pool.needy == Some((now, true))) {
            let returned = (!pool.slow_start.is_zero()).then_some(now);
            for record in &mut pool.members {
                relieved |= record.hurry(returned, now);
            }
            for seat in pool.seats.iter().filter(|seat| seat.left) {
                if let Some(wanted) = wanted.get_mut(seat.cloud) {
                    *wanted = true;
                }
            }
        }
        if relieved {
            self.settle(now);
        }
        self.revive(&wanted, now);
    }
}

impl Pool {
    /// Finds whether nothing in use is good, or something bad stayed in use because too little else was. Once for each
    /// moment: what a decision makes of it is for the next one.
    pub(super) fn look(&mut self, now: Instant) {
        if self.needy.is_some_and(|(at, _)| at == now) {
            self.needy = Some((now, false));
            return;
        }
        let used = || self.members.iter().filter(|record| record.is_in() && !self.has_left(record.cloud));
        let stuck = |record: &Record| {
            matches!(record.kept, Some(Kept::Velocity | Kept::Floor | Kept::Cap | Kept::LastCloud))
        };
        let needy = used().any(stuck) || !used().any(|record| record.is_good(now));
        self.needy = Some((now, needy));
    }
}

impl Record {
    /// Takes it back before its time if its probes have become good since it went. If they have been good all the time,
    /// a session may try it. True if either is new.
    fn hurry(&mut self, returned: Option<Instant>, now: Instant) -> bool {
        if !self.probed || !self.proven || self.opinion.verdict != Verdict::Up {
            return false;
        }
        let ejected = self.ejection.as_ref().map(|ejection| ejection.at);
        // A dial of before may fail only now.
        let clear = !self.is_suspect(LONG_SUSPICION, now) || self.outlives_failures(now);
        let fresh = ejected.is_none_or(|at| self.changed > at);
        if fresh && clear && (ejected.is_some() || self.out.is_some()) {
            let note = format!("probes: {}, and what is in use is bad", self.opinion.reason);
            self.enter(Arc::from(note), returned, now);
            return true;
        }
        let reading = &self.last;
        match &mut self.ejection {
            Some(ejection) if ejection.trial.is_none() && now >= ejection.tried + PAUSE => {
                self.out = None;
                ejection.tried = now;
                ejection.trial = Some(Trial::begin(reading, now));
                self.detector.forgive();
                true
            }
            _ => false,
        }
    }
}

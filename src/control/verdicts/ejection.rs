//! Back-off that grows and decays, the trial that ends an ejection, damped flaps, and the slow start after all that.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use rand::{RngExt as _, rngs::SmallRng};
use tokio::time::Instant;

use super::facts::Reading;
use crate::config::Ejection as Rules;

/// Good standing of this long takes one ejection off the count.
const DECAY: Duration = Duration::from_secs(60);

/// The most that a time is jittered by.
const JITTER: f64 = 0.1;

/// How long a return from being down counts as a flap.
const FLAP_WINDOW: Duration = Duration::from_secs(600);

/// The longest time that good probes must last.
const LONGEST_DAMP: Duration = Duration::from_secs(60);

/// A trial that no session comes for ends after this, if probes are good.
pub(super) const TRIAL_PATIENCE: Duration = Duration::from_secs(60);

/// Steps of a slow start.
const RAMP_STEPS: u32 = 10;

/// An endpoint that sessions have taken out.
#[derive(Debug)]
pub(super) struct Ejection {
    pub(super) at: Instant,
    /// When it may be tried.
    pub(super) until: Instant,
    pub(super) why: Arc<str>,
    /// Its sessions connected well: only bytes or time show that it is good again.
    pub(super) silence: bool,
    /// Part of a verdict on its cloud: less was held against it than an ejection takes.
    pub(super) quiet: bool,
    /// When it began, or an early trial last began or failed.
    pub(super) tried: Instant,
    pub(super) trial: Option<Trial>,
}

impl Ejection {
    /// True if a session may try it, or last might, though its back-off is not over.
    pub(super) fn was_tried_early(&self) -> bool {
        match &self.trial {
            Some(trial) => trial.since < self.until,
            None => self.tried > self.at,
        }
    }
}

/// What a trial began with.
#[derive(Debug)]
pub(super) struct Trial {
    pub(super) since: Instant,
    connected: u64,
    bad: u64,
    to_client: u64,
    /// No other session was live: bytes are those of the trial.
    alone: bool,
    connected_at: Option<Instant>,
}

impl Trial {
    pub(super) fn begin(reading: &Reading, now: Instant) -> Self {
        Self {
            since: now,
            connected: reading.connected,
            bad: bad(reading),
            to_client: reading.to_client,
            alone: reading.active == 0,
            connected_at: None,
        }
    }

    /// The counters begin anew.
    pub(super) const fn rebase(&mut self) {
        (self.connected, self.bad, self.to_client) = (0, 0, 0);
    }

    /// How it went, once that is known.
    pub(super) fn outcome(
        &mut self,
        reading: &Reading,
        silence: bool,
        patience: Duration,
        now: Instant,
    ) -> Option<bool> {
        if bad(reading) > self.bad {
            return Some(false);
        }
        if reading.connected <= self.connected {
            return None;
        }
        let connected_at = *self.connected_at.get_or_insert(now);
        let heard = self.alone && reading.to_client > self.to_client;
        let good = !silence || heard || now.duration_since(connected_at) >= patience;
        good.then_some(true)
    }

    /// When time alone ends it.
    pub(super) fn due(&self, patience: Duration) -> Instant {
        self.connected_at.map_or(self.since + TRIAL_PATIENCE, |at| at + patience)
    }
}

const fn bad(reading: &Reading) -> u64 {
    reading
        .failed
        .saturating_add(reading.overtaken)
        .saturating_add(reading.empty)
        .saturating_add(reading.mute)
}

/// The count of ejections that the next back-off goes by.
#[derive(Debug, Default)]
pub(super) struct BackOff {
    count: u32,
    good_since: Option<Instant>,
    pub(super) total: u64,
}

impl BackOff {
    /// The count now.
    pub(super) fn count(&self, now: Instant) -> u32 {
        let minutes = self.good_since.map_or(0, |at| now.duration_since(at).as_secs() / DECAY.as_secs());
        self.count.saturating_sub(u32::try_from(minutes).unwrap_or(u32::MAX))
    }

    /// The count when it was last ejected.
    pub(super) const fn last(&self) -> u32 {
        self.count
    }

    /// One more ejection: how long it lasts.
    pub(super) fn next(&mut self, rules: &Rules, rng: &mut SmallRng, now: Instant) -> Duration {
        self.count = self.count(now).saturating_add(1);
        self.good_since = None;
        self.total += 1;
        let doubled = rules.base.saturating_mul(1 << (self.count - 1).min(20)).min(rules.max);
        jittered(doubled, rng).min(rules.max)
    }

    /// It is in good standing again.
    pub(super) const fn good(&mut self, now: Instant) {
        self.good_since = Some(now);
    }
}

/// Returns from being down.
#[derive(Debug, Default)]
pub(super) struct Flaps {
    recent: VecDeque<Instant>,
    pub(super) total: u64,
}

impl Flaps {
    /// One more return: how long what is good must last before it counts.
    pub(super) fn damp(&mut self, rng: &mut SmallRng, now: Instant) -> Duration {
        while self.recent.front().is_some_and(|at| now.duration_since(*at) > FLAP_WINDOW) {
            self.recent.pop_front();
        }
        // More than this many do not make it any longer.
        if self.recent.len() > 32 {
            self.recent.pop_front();
        }
        self.recent.push_back(now);
        self.total += 1;
        let Some(doublings) = self.recent.len().checked_sub(3) else {
            return Duration::ZERO;
        };
        let factor = 1 << doublings.min(6);
        jittered((Duration::from_secs(1) * factor).min(LONGEST_DAMP), rng).min(LONGEST_DAMP)
    }

    /// Those that count.
    pub(super) fn recent(&self, now: Instant) -> u32 {
        let recent = self.recent.iter().filter(|at| now.duration_since(**at) <= FLAP_WINDOW).count();
        u32::try_from(recent).unwrap_or(u32::MAX)
    }
}

/// The time, give or take a tenth.
fn jittered(time: Duration, rng: &mut SmallRng) -> Duration {
    time.mul_f64(rng.random_range(1.0 - JITTER..=1.0 + JITTER))
}

/// The weight of an endpoint in percent of its own, `elapsed` after it came back, and how long that holds.
pub(super) fn ramp(elapsed: Duration, slow_start: Duration) -> (u32, Option<Duration>) {
    if elapsed >= slow_start {
        return (100, None);
    }
    let step = (slow_start / RAMP_STEPS).max(Duration::from_nanos(1));
    let done = u32::try_from(elapsed.as_nanos() / step.as_nanos()).unwrap_or(RAMP_STEPS).min(RAMP_STEPS - 1);
    // The last step ends with the slow start, which a division need not hit.
    let next = if done + 1 == RAMP_STEPS { slow_start } else { step * (done + 1) };
    ((done + 1) * 100 / RAMP_STEPS, Some(next.saturating_sub(elapsed).max(Duration::from_nanos(1))))
}

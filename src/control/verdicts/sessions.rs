//! What sessions say of an endpoint: how many of them failed of late, and whether one has gone well since.

use std::{collections::VecDeque, fmt::Write as _, time::Duration};

use tokio::time::Instant;

use super::facts::Reading;
use crate::{config::Ejection, state::HistogramReading};

/// How far back the share of failures looks.
const WINDOW: Duration = Duration::from_secs(10);

/// A slot of that window.
const SLOT: Duration = Duration::from_secs(1);

/// Fewer attempts than this in the window say nothing about a share.
const FEWEST_ATTEMPTS: u64 = 10;

/// How long a failed session speaks for what probes say.
const CORROBORATION: Duration = Duration::from_secs(10);

/// Time between two looks at connect times, at least.
const LATENCY_TICK: Duration = Duration::from_secs(1);

/// Fewer connects than this say nothing about how long they take.
const FEWEST_CONNECTS: u64 = 5;

/// An endpoint that shows no life for this long after an attempt was overtaken has not merely been slow.
const GRACE: Duration = Duration::from_millis(250);

/// As many failures in a row are enough while one of the same cloud has just died.
const ENOUGH_AFTER_ANOTHER: u32 = 2;

/// Looks in a row at which an endpoint must be slow.
const SLOW_TICKS: u8 = 3;

/// What has been counted since the reading before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tick {
    pub(super) connected: u64,
    pub(super) heard: u64,
    pub(super) failed: u64,
    pub(super) overtaken: u64,
    pub(super) empty: u64,
    pub(super) mute: u64,
    pub(super) bytes: u64,
}

impl Tick {
    /// The difference of two readings. Counters that have fallen belong to another cell: then all of it is new.
    pub(super) fn between(before: &Reading, after: &Reading) -> Self {
        let none = Reading::default();
        let before = if Self::begins_anew(before, after) { &none } else { before };
        Self {
            connected: after.connected.saturating_sub(before.connected),
            heard: after.heard.saturating_sub(before.heard),
            failed: after.failed.saturating_sub(before.failed),
            overtaken: after.overtaken.saturating_sub(before.overtaken),
            empty: after.empty.saturating_sub(before.empty),
            mute: after.mute.saturating_sub(before.mute),
            bytes: after.to_client.saturating_sub(before.to_client),
        }
    }

    /// True if a counter of `after` is below that of `before`: it belongs to another cell.
    pub(super) fn begins_anew(before: &Reading, after: &Reading) -> bool {
        let all = |one: &Reading| {
            [one.connected, one.heard, one.failed, one.overtaken, one.empty, one.mute, one.to_client]
        };
        all(before).iter().zip(all(after)).any(|(before, after)| after < *before)
    }

    const fn silent(self) -> u64 {
        self.empty.saturating_add(self.mute)
    }

    pub(super) const fn bad(self) -> u64 {
        self.failed.saturating_add(self.overtaken).saturating_add(self.silent())
    }

    fn add(&mut self, other: Self) {
        self.connected = self.connected.saturating_add(other.connected);
        self.failed = self.failed.saturating_add(other.failed);
        self.overtaken = self.overtaken.saturating_add(other.overtaken);
        self.empty = self.empty.saturating_add(other.empty);
        self.mute = self.mute.saturating_add(other.mute);
    }
}

/// Why sessions hold an endpoint for bad.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Cause {
    /// This many in a row failed.
    Row(u32),
    /// This many of so many failed.
    Share { bad: u64, attempts: u64 },
    /// It takes much longer to connect than its siblings, in seconds.
    Slow { own: f64, siblings: f64 },
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    start: Instant,
    attempts: u64,
    bad: u64,
}

/// The detector: counters in, an opinion out.
#[derive(Debug, Default)]
pub(super) struct Detector {
    window: VecDeque<Slot>,
    /// Overtaken, and no sign of life since: a slow endpoint serves late, a dead one never.
    doubts: VecDeque<(Instant, u64)>,
    /// Others of the pool answer: silence is this endpoint's own, and not the way of the protocol.
    pub(super) others_answer: bool,
    /// It has fallen silent while others speak.
    pub(super) silenced: bool,
    /// One of its cloud has just died, and it has been silent since: less is needed to believe the same of it.
    pub(super) warned: bool,
    /// Connected, but neither heard of nor silent for long enough: no successes yet.
    pending: VecDeque<(Instant, u64)>,
    /// Failures since the last success.
    row: u32,
    /// What they were.
    causes: Tick,
    pub(super) last_failure: Option<Instant>,
    pub(super) last_success: Option<Instant>,
    last_silent: Option<Instant>,
    latency: Latency,
}

#[derive(Debug, Default)]
struct Latency {
    from: HistogramReading,
    from_at: Option<Instant>,
    p95: Option<f64>,
    /// Seen since the last comparison.
    fresh: bool,
    streak: u8,
    siblings: f64,
}

impl Detector {
    /// Takes what was counted.
    pub(super) fn tick(&mut self, mut tick: Tick, patience: Duration, now: Instant) {
        let doubted = self.doubt(&mut tick, now);
        if tick.silent() > 0 {
            self.last_silent = Some(now);
            self.forget_pending(tick.silent());
        }
        if tick.connected > tick.silent() {
            self.pending.push_back((now, tick.connected - tick.silent()));
        }
        let success = self.success(tick, patience, now);
        if !self.others_answer {
            tick = Tick { empty: 0, mute: 0, ..tick };
        }
        self.slot(tick, now);
        let failure = if tick.bad() > tick.overtaken { Some(now) } else { doubted };
        self.last_failure = self.last_failure.max(failure);
        if let Some(at) = success {
            self.last_success = Some(self.last_success.map_or(at, |last| last.max(at)));
            if self.last_failure.is_none_or(|failure| failure <= at) {
                self.row = 0;
                self.causes = Tick::default();
                return;
            }
        }
        self.row = self.row.saturating_add(u32::try_from(tick.bad()).unwrap_or(u32::MAX));
        self.causes.add(tick);
    }

    /// Puts those that were overtaken off until it is known whether the endpoint lives. What is left of them in the tick
    /// counts; the time of the last of these.
    fn doubt(&mut self, tick: &mut Tick, now: Instant) -> Option<Instant> {
        if tick.bytes > 0 || tick.connected > 0 {
            self.doubts.clear();
        }
        let overtaken = std::mem::take(&mut tick.overtaken);
        let mut last = None;
        let grace = if self.warned { Duration::ZERO } else { GRACE };
        while let Some((at, count)) = self.doubts.pop_front_if(|(at, _)| now.duration_since(*at) >= grace) {
            tick.overtaken = tick.overtaken.saturating_add(count);
            last = Some(at);
        }
        if overtaken > 0 {
            self.doubts.push_back((now, overtaken));
        }
        last
    }

    /// Takes connect times.
    pub(super) fn connects(&mut self, reading: &HistogramReading, anew: bool, now: Instant) {
        let latency = &mut self.latency;
        let Some(from_at) = latency.from_at.filter(|_| !anew) else {
            latency.from_at = Some(now);
            latency.from = reading.clone();
            return;
        };
        let elapsed = now.duration_since(from_at);
        if elapsed < LATENCY_TICK {
            return;
        }
        let recent = reading.since(&latency.from);
        if recent.count() >= FEWEST_CONNECTS {
            latency.p95 = recent.quantile(0.95);
            latency.fresh = true;
        } else if elapsed < WINDOW {
            return;
        } else {
            latency.p95 = None;
            latency.streak = 0;
        }
        latency.from = reading.clone();
        latency.from_at = Some(now);
    }

    /// The connect time that one of twenty exceeds, in seconds.
    pub(super) const fn p95(&self) -> Option<f64> {
        self.latency.p95
    }

    /// True if connect times were seen since the last comparison.
    pub(super) const fn is_fresh(&self) -> bool {
        self.latency.fresh
    }

    /// Compares with the siblings; `None`: there are too few of them.
    pub(super) fn compare(&mut self, siblings: Option<f64>) {
        const FACTOR: f64 = 3.0;
        const ABOVE: f64 = 0.05;
        if !std::mem::take(&mut self.latency.fresh) {
            return;
        }
        let slow = self.latency.p95.zip(siblings).is_some_and(|(own, siblings)| {
            self.latency.siblings = siblings;
            own > FACTOR * siblings && own > siblings + ABOVE
        });
        self.latency.streak = if slow { self.latency.streak.saturating_add(1) } else { 0 };
    }

    /// True while a session has failed lately and none has gone well since.
    pub(super) fn corroborates(&self, now: Instant) -> bool {
        self.failing(CORROBORATION, now)
    }

    /// True if a session has failed within `span` and none has gone well since.
    pub(super) fn failing(&self, span: Duration, now: Instant) -> bool {
        self.last_failure.is_some_and(|at| {
            now.duration_since(at) <= span && self.last_success.is_none_or(|success| success < at)
        })
    }

    /// Why the endpoint should be ejected, if it should.
    pub(super) fn ejects(&self, rules: &Ejection, now: Instant) -> Option<Cause> {
        let (attempts, bad) = self.recent(now);
        let enough = if self.warned { ENOUGH_AFTER_ANOTHER.min(rules.failures) } else { rules.failures };
        if !rules.enabled {
            None
        } else if self.row >= enough {
            Some(Cause::Row(self.row))
        } else if attempts >= FEWEST_ATTEMPTS && bad.saturating_mul(2) >= attempts {
            Some(Cause::Share { bad: bad.min(attempts), attempts })
        } else if self.latency.streak >= SLOW_TICKS {
            self.latency.p95.map(|own| Cause::Slow { own, siblings: self.latency.siblings })
        } else {
            None
        }
    }

    /// Attempts of the window, and those of them that failed.
    pub(super) fn recent(&self, now: Instant) -> (u64, u64) {
        let slots = self.window.iter().filter(|slot| now.duration_since(slot.start) < WINDOW);
        slots.fold((0, 0), |(attempts, bad), slot| (attempts + slot.attempts, bad + slot.bad))
    }

    /// Failures since the last success.
    pub(super) const fn row(&self) -> u32 {
        self.row
    }

    /// True if most failures of the row were silence after a good connect.
    pub(super) const fn is_silence(&self) -> bool {
        self.causes.silent() > self.causes.failed.saturating_add(self.causes.overtaken)
    }

    /// True if several sessions in a row have failed, and most of them did not connect.
    pub(super) const fn is_out_of_reach(&self) -> bool {
        self.row >= ENOUGH_AFTER_ANOTHER && !self.is_silence()
    }

    /// What the failures of the row were: `3 refused or timed out, 2 mute`.
    pub(super) fn causes(&self) -> String {
        let causes = [
            (self.causes.failed, "failed to connect"),
            (self.causes.overtaken, "overtaken"),
            (self.causes.empty, "closed without an answer"),
            (self.causes.mute, "mute"),
        ];
        let mut text = String::new();
        for (count, what) in causes.iter().filter(|(count, _)| *count > 0) {
            let comma = if text.is_empty() { "" } else { ", " };
            // Writing to a String does not fail.
            let _ = write!(text, "{comma}{count} {what}");
        }
        text
    }

    /// Forgets what was held against the endpoint.
    pub(super) fn forgive(&mut self) {
        let latency = std::mem::take(&mut self.latency);
        *self =
            Self { last_success: self.last_success, others_answer: self.others_answer, ..Self::default() };
        self.latency.from = latency.from;
        self.latency.from_at = latency.from_at;
    }

    fn slot(&mut self, tick: Tick, now: Instant) {
        while self.window.front().is_some_and(|slot| now.duration_since(slot.start) >= WINDOW) {
            self.window.pop_front();
        }
        let attempts = tick.connected.saturating_add(tick.failed).saturating_add(tick.overtaken);
        if attempts == 0 && tick.bad() == 0 {
            return;
        }
        match self.window.back_mut().filter(|slot| now.duration_since(slot.start) < SLOT) {
            Some(slot) => {
                slot.attempts = slot.attempts.saturating_add(attempts);
                slot.bad = slot.bad.saturating_add(tick.bad());
            }
            None => self.window.push_back(Slot { start: now, attempts, bad: tick.bad() }),
        }
    }

    fn forget_pending(&mut self, mut count: u64) {
        while let Some((_, waiting)) = self.pending.front_mut() {
            let less = count.min(*waiting);
            *waiting -= less;
            count -= less;
            if *waiting > 0 {
                break;
            }
            self.pending.pop_front();
        }
    }

    /// When a session went well, if one did. A first byte proves it at once. Other bytes do too, unless some sessions are silent
    /// just now: then they may be those of an older one, and only time tells.
    fn success(&mut self, tick: Tick, patience: Duration, now: Instant) -> Option<Instant> {
        if tick.heard > 0 {
            self.forget_pending(tick.heard);
            return Some(now);
        }
        let doubtful = self.last_silent.is_some_and(|at| now.duration_since(at) < WINDOW);
        if tick.bytes > 0 && !doubtful && !self.pending.is_empty() {
            self.pending.clear();
            return Some(now);
        }
        let mut success = None;
        while let Some((at, _)) = self.pending.front().filter(|(at, _)| now.duration_since(*at) >= patience) {
            success = Some(*at);
            self.pending.pop_front();
        }
        success
    }
}

impl Cause {
    /// In words; `causes` are those of [`Detector::causes`].
    pub(super) fn words(self, causes: &str) -> String {
        let of_them = if causes.is_empty() { String::new() } else { format!(": {causes}") };
        let milliseconds = |seconds: f64| (seconds * 1000.0).round();
        match self {
            Self::Row(row) => format!("{row} sessions in a row failed{of_them}"),
            Self::Share { bad, attempts } => {
                format!("{bad} of {attempts} sessions failed within 10 s{of_them}")
            }
            Self::Slow { own, siblings } => format!(
                "connects take {} ms, those of its siblings {} ms",
                milliseconds(own),
                milliseconds(siblings)
            ),
        }
    }
}

//! How long connects usually take: the 95th percentile of each group's successful attempts of the last half minute. The
//! data plane goes by it to tell an attempt that is late. No clock: time is passed in.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    ids::{CloudName, PoolName},
    state::HistogramReading,
};

/// How far back attempts count.
const WINDOW: Duration = Duration::from_secs(30);

/// Time between two readings that are kept.
const STEP: Duration = Duration::from_secs(2);

/// Fewer attempts than this say too little: what was known before stays.
const ENOUGH: u64 = 20;

/// The share of attempts that are quicker.
const QUANTILE: f64 = 0.95;

/// A pool in a cloud.
pub(super) type Group = (PoolName, CloudName);

/// The usual connect times of every group.
#[derive(Debug, Default)]
pub(super) struct Usual {
    groups: HashMap<Group, Track>,
}

#[derive(Debug, Default)]
struct Track {
    readings: VecDeque<(Instant, HistogramReading)>,
    usual: Duration,
}

impl Usual {
    /// Takes what the endpoints of a group have counted since the start, and gives back what is usual: zero as long as
    /// too few attempts have connected.
    pub(super) fn observe(&mut self, group: Group, reading: HistogramReading, now: Instant) -> Duration {
        let track = self.groups.entry(group).or_default();
        match track.readings.back() {
            Some((at, _)) if now.saturating_duration_since(*at) < STEP => return track.usual,
            Some(_) => {}
            None => track.readings.push_back((now, HistogramReading::default())),
        }
        // The oldest that is kept is the last one from before the window.
        while track.readings.get(1).is_some_and(|(at, _)| now.saturating_duration_since(*at) >= WINDOW) {
            track.readings.pop_front();
        }
        let recent = track.readings.front().map(|(_, before)| reading.since(before));
        if let Some(recent) = recent.filter(|recent| recent.count() >= ENOUGH)
            && let Some(seconds) = recent.quantile(QUANTILE)
        {
            track.usual = Duration::from_secs_f64(seconds.max(0.0));
        }
        track.readings.push_back((now, reading));
        track.usual
    }

    /// Forgets groups that are gone.
    pub(super) fn keep(&mut self, is_there: impl Fn(&Group) -> bool) {
        self.groups.retain(|group, _| is_there(group));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::Histogram;

    const SECOND: Duration = Duration::from_secs(1);

    fn group() -> Group {
        (PoolName::from("p"), CloudName::from("aws"))
    }

    fn add(histogram: &Histogram, count: usize, millis: u64) {
        (0..count).for_each(|_| histogram.observe(Duration::from_millis(millis)));
    }

    #[test]
    fn nothing_is_usual_before_there_were_enough() {
        let (mut usual, histogram, now) = (Usual::default(), Histogram::default(), Instant::now());
        add(&histogram, 19, 7);
        assert_eq!(usual.observe(group(), histogram.read(), now), Duration::ZERO);
        add(&histogram, 1, 7);
        let known = usual.observe(group(), histogram.read(), now + 2 * SECOND);
        assert!((Duration::from_millis(5)..=Duration::from_millis(10)).contains(&known), "{known:?}");
    }

    #[test]
    fn what_is_usual_follows_the_last_half_minute_and_stays_when_nobody_connects() {
        let (mut usual, histogram, mut now) = (Usual::default(), Histogram::default(), Instant::now());
        let mut after = |seconds: u32, millis: u64| {
            let mut known = Duration::ZERO;
            for _ in 0..seconds {
                if millis > 0 {
                    add(&histogram, 10, millis);
                }
                now += SECOND;
                known = usual.observe(group(), histogram.read(), now);
            }
            known
        };
        assert!(after(60, 7) <= Duration::from_millis(10));
        let slow = after(40, 200);
        assert!((Duration::from_millis(100)..=Duration::from_millis(250)).contains(&slow), "{slow:?}");
        assert_eq!(after(60, 0), slow);
        assert!(after(40, 7) <= Duration::from_millis(10));
    }

    #[test]
    fn one_slow_attempt_in_a_hundred_is_not_usual() {
        let (mut usual, histogram, now) = (Usual::default(), Histogram::default(), Instant::now());
        add(&histogram, 99, 3);
        add(&histogram, 1, 1100);
        assert!(usual.observe(group(), histogram.read(), now) <= Duration::from_millis(5));
    }

    #[test]
    fn groups_that_are_gone_are_forgotten() {
        let (mut usual, histogram, now) = (Usual::default(), Histogram::default(), Instant::now());
        add(&histogram, 30, 3);
        assert!(usual.observe(group(), histogram.read(), now) > Duration::ZERO);
        usual.keep(|_| false);
        assert_eq!(usual.observe(group(), HistogramReading::default(), now + SECOND), Duration::ZERO);
    }
}

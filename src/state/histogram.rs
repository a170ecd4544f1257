//! A histogram of durations that many threads add to without a lock. The bounds are fixed, so that a label set
//! costs a known amount of memory and a scrape is a walk over an array.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// Upper bounds of the buckets in seconds; one more bucket takes the rest. From half a millisecond (one machine) over
/// tens of milliseconds (two clouds) to an hour (a session).
pub const BUCKETS_SECONDS: [f64; 18] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 300.0,
    1800.0, 3600.0,
];

/// Counts of durations by bucket.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; BUCKETS_SECONDS.len() + 1],
    /// Nanoseconds would be too many after five million sessions of an hour.
    sum_micros: AtomicU64,
}

/// What a histogram held when it was read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HistogramReading {
    /// Samples in each bucket (not cumulative), the last without an upper bound.
    pub counts: [u64; BUCKETS_SECONDS.len() + 1],
    /// Sum of all samples in seconds.
    pub sum_seconds: f64,
}

impl Histogram {
    /// Adds one duration.
    pub fn observe(&self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        let place = BUCKETS_SECONDS.partition_point(|bound| *bound < seconds);
        if let Some(bucket) = self.buckets.get(place) {
            bucket.fetch_add(1, Relaxed);
        }
        let rounded = u64::from((duration.subsec_nanos() + 500) / 1000);
        let micros = duration.as_secs().saturating_mul(1_000_000).saturating_add(rounded);
        self.sum_micros.fetch_add(micros, Relaxed);
    }

    /// Reads every bucket.
    #[must_use]
    pub fn read(&self) -> HistogramReading {
        let mut counts = [0; BUCKETS_SECONDS.len() + 1];
        for (count, bucket) in counts.iter_mut().zip(&self.buckets) {
            *count = bucket.load(Relaxed);
        }
        HistogramReading {
            counts,
            sum_seconds: Duration::from_micros(self.sum_micros.load(Relaxed)).as_secs_f64(),
        }
    }
}

impl HistogramReading {
    /// All samples.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The samples that came after `earlier` was read.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let mut counts = self.counts;
        for (count, before) in counts.iter_mut().zip(earlier.counts) {
            *count = count.saturating_sub(before);
        }
        Self { counts, sum_seconds: (self.sum_seconds - earlier.sum_seconds).max(0.0) }
    }

    /// Adds another reading to this one.
    pub fn add(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(other.counts) {
            *count += more;
        }
        self.sum_seconds += other.sum_seconds;
    }

    /// The duration below which the share `q` (0 to 1) of the samples lies, interpolated within its bucket, in seconds.
    /// `None` without samples.
    #[must_use]
    pub fn quantile(&self, q: f64) -> Option<f64> {
        let total = self.count();
        if total == 0 {
            return None;
        }
        #[expect(clippy::cast_precision_loss, reason = "a count of samples, for a display")]
        let (rank, as_float) = (q * total as f64, |count: u64| count as f64);
        let mut below = 0.0;
        for (place, count) in self.counts.iter().enumerate() {
            let here = as_float(*count);
            if below + here >= rank && here > 0.0 {
                let low = if place == 0 { 0.0 } else { *BUCKETS_SECONDS.get(place - 1)? };
                let high = BUCKETS_SECONDS.get(place).copied().unwrap_or(low);
                return Some(low + (high - low) * ((rank - below) / here).clamp(0.0, 1.0));
            }
            below += here;
        }
        BUCKETS_SECONDS.last().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_lands_in_the_bucket_that_bounds_it() {
        let histogram = Histogram::default();
        histogram.observe(Duration::from_micros(500));
        histogram.observe(Duration::from_micros(501));
        histogram.observe(Duration::from_secs(7200));
        let reading = histogram.read();
        assert_eq!((reading.counts[0], reading.counts[1], reading.counts[18]), (1, 1, 1));
        assert_eq!(reading.count(), 3);
        assert!((reading.sum_seconds - 7_200.001_001).abs() < 1e-6);
    }

    #[test]
    fn the_sum_of_many_long_sessions_does_not_begin_anew() {
        let histogram = Histogram::default();
        let days = |days: u64| Duration::from_hours(24 * days);
        for _ in 0..1_000 {
            histogram.observe(days(365));
        }
        assert!((histogram.read().sum_seconds / days(365_000).as_secs_f64() - 1.0).abs() < 1e-9);
    }

    #[test]
    fn quantiles_interpolate_within_a_bucket() {
        let histogram = Histogram::default();
        assert_eq!(histogram.read().quantile(0.5), None);
        for _ in 0..100 {
            histogram.observe(Duration::from_millis(7));
        }
        let p50 = histogram.read().quantile(0.5).unwrap();
        assert!((0.005..=0.01).contains(&p50), "{p50}");
    }
}

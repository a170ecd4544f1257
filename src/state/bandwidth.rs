//! How many bytes may flow: a token bucket for each direction. Pure: time is passed in, and who has to wait is told until
//! when.

use std::{
    sync::atomic::{
        AtomicU64,
        Ordering::{AcqRel, Acquire, Relaxed},
    },
    time::Duration,
};

use tokio::time::Instant;

/// The time whose bytes may flow at once.
const BURST: Duration = Duration::from_millis(100);

/// A burst has at least so many bytes, or a slow rate would move single packets.
const LEAST_BURST: u64 = 64 * 1024;

/// Less than this part of a burst is not worth a system call, unless less is wanted.
const WORTH: u64 = 16;

const SECOND: u64 = 1_000_000_000;

/// A bucket for each direction, with the same rate.
#[derive(Debug)]
pub struct Bandwidth {
    /// What goes to endpoints.
    pub to_upstream: Bucket,
    /// What goes to clients.
    pub to_client: Bucket,
}

/// What flows in one direction, of one session or of many: any thread may take from it.
#[derive(Debug)]
pub struct Bucket {
    /// Bytes a second; none: everything may flow.
    rate: AtomicU64,
    start: Instant,
    /// When what was taken has been paid for, in nanoseconds after the start.
    paid: AtomicU64,
}

/// What may be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Take {
    /// So many bytes now, and they are taken: at least one, and at most what was wanted.
    Now(usize),
    /// None before this time.
    At(Instant),
}

impl Bandwidth {
    /// So many bytes a second in each direction.
    #[must_use]
    pub fn new(rate: u64, now: Instant) -> Self {
        Self { to_upstream: Bucket::new(rate, now), to_client: Bucket::new(rate, now) }
    }

    /// So many bytes a second from now on; `None` is no limit.
    pub fn set(&self, rate: Option<u64>) {
        for bucket in [&self.to_upstream, &self.to_client] {
            bucket.rate.store(rate.unwrap_or_default(), Relaxed);
        }
    }
}

impl Bucket {
    /// So many bytes a second (0: no limit), and a burst of those of 100 ms, or 64 KiB if that is more.
    #[must_use]
    pub const fn new(rate: u64, now: Instant) -> Self {
        Self { rate: AtomicU64::new(rate), start: now, paid: AtomicU64::new(0) }
    }

    /// Takes up to `want` bytes. Who moves fewer than were taken gives the rest back.
    pub fn take(&self, want: usize, now: Instant) -> Take {
        let rate = self.rate.load(Relaxed);
        let want = u64::try_from(want).unwrap_or(u64::MAX);
        if rate == 0 || want == 0 {
            return Take::Now(usize::try_from(want).unwrap_or(usize::MAX));
        }
        let burst = (rate / (SECOND / nanos(BURST))).max(LEAST_BURST);
        // A whole burst takes so long.
        let window = cost(burst, rate);
        let worth = want.min((burst / WORTH).max(1));
        let now = nanos(now.saturating_duration_since(self.start));
        let mut paid = self.paid.load(Acquire);
        loop {
            let owed = paid.saturating_sub(now);
            let room = flow(window.saturating_sub(owed), rate);
            if room < worth {
                let wait = (owed + cost(worth, rate)).saturating_sub(window).max(1);
                return Take::At(self.start + Duration::from_nanos(now.saturating_add(wait)));
            }
            let taken = want.min(room);
            let after = paid.max(now).saturating_add(cost(taken, rate));
            match self.paid.compare_exchange_weak(paid, after, AcqRel, Acquire) {
                Ok(_) => return Take::Now(usize::try_from(taken).unwrap_or(usize::MAX)),
                Err(other) => paid = other,
            }
        }
    }

    /// Gives back what was taken and did not flow.
    pub fn give_back(&self, bytes: usize) {
        let rate = self.rate.load(Relaxed);
        if rate > 0 && bytes > 0 {
            let unpaid = cost(u64::try_from(bytes).unwrap_or(u64::MAX), rate);
            let less = |paid: u64| Some(paid.saturating_sub(unpaid));
            // Never fails, as there is always a value.
            self.paid.fetch_update(AcqRel, Acquire, less).unwrap_or_default();
        }
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// How long so many bytes take, in nanoseconds, rounded up.
fn cost(bytes: u64, rate: u64) -> u64 {
    let nanos = (u128::from(bytes) * u128::from(SECOND)).div_ceil(u128::from(rate.max(1)));
    u64::try_from(nanos).unwrap_or(u64::MAX)
}

/// How many bytes flow in so many nanoseconds.
fn flow(nanos: u64, rate: u64) -> u64 {
    u64::try_from(u128::from(nanos) * u128::from(rate) / u128::from(SECOND)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KIB: u64 = 1024;

    /// Takes all that can be had until `end`, in pieces of `want`.
    fn drain(bucket: &Bucket, want: usize, mut now: Instant, end: Instant) -> u64 {
        let mut taken = 0;
        while now < end {
            match bucket.take(want, now) {
                Take::Now(bytes) => {
                    assert!((1..=want).contains(&bytes), "{bytes}");
                    taken += bytes as u64;
                }
                Take::At(at) => {
                    assert!(at > now, "a time that is over");
                    now = at;
                }
            }
        }
        taken
    }

    #[test]
    fn a_burst_flows_at_once_and_the_rate_from_then_on() {
        for (rate, burst) in [(10 * KIB, 64 * KIB), (10_000_000, 1_000_000), (10_000_000_000, 1_000_000_000)]
        {
            let start = Instant::now();
            let bucket = Bucket::new(rate, start);
            assert_eq!(bucket.take(usize::MAX, start), Take::Now(usize::try_from(burst).unwrap()));
            assert!(matches!(bucket.take(usize::MAX, start), Take::At(at) if at > start));
            let flowed = drain(&bucket, 16 * 1024, start, start + Duration::from_secs(10));
            assert!((flowed.abs_diff(10 * rate)) <= 10 * rate / 100 + burst, "{flowed} at {rate}");
        }
    }

    #[test]
    fn who_waits_until_the_time_that_was_told_gets_what_is_worth_it() {
        let start = Instant::now();
        let bucket = Bucket::new(100 * KIB, start);
        assert_eq!(bucket.take(64 * 1024, start), Take::Now(64 * 1024));
        let Take::At(at) = bucket.take(64 * 1024, start) else { panic!("more than a burst") };
        assert!(matches!(bucket.take(64 * 1024, at - Duration::from_millis(1)), Take::At(_)));
        assert_eq!(bucket.take(64 * 1024, at), Take::Now(4 * 1024));
        // Single bytes need no more than that.
        let Take::At(at) = bucket.take(1, at) else { panic!("nothing is left") };
        assert!(at - start < Duration::from_millis(41), "{:?}", at - start);
        assert_eq!(bucket.take(1, at), Take::Now(1));
    }

    #[test]
    fn what_did_not_flow_is_given_back() {
        let start = Instant::now();
        let bucket = Bucket::new(KIB, start);
        assert_eq!(bucket.take(64 * 1024, start), Take::Now(64 * 1024));
        bucket.give_back(60 * 1024);
        assert_eq!(bucket.take(64 * 1024, start), Take::Now(60 * 1024));
        bucket.give_back(usize::MAX);
        assert_eq!(bucket.take(usize::MAX, start), Take::Now(64 * 1024), "and no more than a burst");
    }

    #[test]
    fn another_rate_is_in_force_at_once_and_none_lets_everything_flow() {
        let start = Instant::now();
        let both = Bandwidth::new(KIB, start);
        assert_eq!(drain(&both.to_client, 65_536, start, start + Duration::from_millis(1)), 64 * KIB);
        assert_eq!(both.to_upstream.take(1, start), Take::Now(1), "each direction has its own");
        both.set(None);
        assert_eq!(both.to_client.take(usize::MAX, start), Take::Now(usize::MAX));
        both.set(Some(1_000_000));
        let later = start + Duration::from_secs(100);
        assert_eq!(both.to_client.take(usize::MAX, later), Take::Now(100_000));
    }

    #[test]
    fn many_threads_take_no_more_than_one_would() {
        let start = Instant::now();
        let bucket = Bucket::new(1_000_000, start);
        let taken: u64 = std::thread::scope(|scope| {
            let takers: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| drain(&bucket, 1500, start, start + Duration::from_secs(1))))
                .collect();
            takers.into_iter().map(|taker| taker.join().unwrap()).sum()
        });
        assert!(taken <= 1_100_000 && taken > 900_000, "{taken}");
    }

    proptest! {
        #[test]
        fn never_more_than_the_burst_and_the_rate(
            rate in 1_u64..=100_000_000_000,
            steps in proptest::collection::vec((0_u64..2_000_000_000, 1_usize..10_000_000), 1..50),
        ) {
            let start = Instant::now();
            let bucket = Bucket::new(rate, start);
            let (mut now, mut taken) = (start, 0_u128);
            for (gap, want) in steps {
                now += Duration::from_nanos(gap);
                if let Take::Now(bytes) = bucket.take(want, now) {
                    prop_assert!(bytes <= want && bytes > 0);
                    taken += bytes as u128;
                }
                let burst = u128::from((rate / 10).max(LEAST_BURST));
                let most = burst + (now - start).as_nanos() * u128::from(rate) / u128::from(SECOND) + 1;
                prop_assert!(taken <= most, "{} of {}", taken, most);
            }
        }
    }
}

//! How many bytes may flow: a token bucket for each direction, with a line for those who have to wait. Pure: time is passed
//! in, and who has to wait is told until when.

use std::{
    sync::atomic::{
        AtomicU64,
        Ordering::{AcqRel, Acquire, Relaxed, Release},
    },
    time::Duration,
};

use tokio::time::Instant;

/// The time whose bytes may flow at once.
const BURST: Duration = Duration::from_millis(100);

/// A burst has at least so many bytes, or a slow rate would move single packets.
const LEAST_BURST: u64 = 64 * 1024;

/// The time whose bytes are worth a system call, unless fewer are wanted; who has to wait waits for no more at a time, so that
/// others have their turns.
const WORTH: Duration = Duration::from_millis(10);

/// Fewer bytes than these are not worth a system call however slow the rate.
const LEAST_WORTH: u64 = 512;

/// The longest wait that is told: meanwhile another rate may have come into force.
const LOOK: Duration = Duration::from_secs(1);

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
    /// When what was taken or promised has been paid for, in nanoseconds after the start.
    paid: AtomicU64,
    /// The number of the line; each rate has its own.
    line: AtomicU64,
}

/// A place in the line of a bucket. Those who come later are served later, however often they ask.
#[derive(Debug, Default)]
pub struct Ticket(Option<Promise>);

/// Bytes that were paid for and not taken yet.
#[derive(Debug, Clone, Copy)]
struct Promise {
    line: u64,
    bytes: u64,
    /// When they may be taken, in nanoseconds after the start of the bucket.
    at: u64,
}

/// What may be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Take {
    /// So many bytes now, and they are taken: at least one, and at most what was wanted.
    Now(usize),
    /// None before this time. Ask again then, with the same ticket.
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
            bucket.set(rate.unwrap_or_default());
        }
    }
}

impl Bucket {
    /// So many bytes a second (0: no limit), and a burst of those of 100 ms, or 64 KiB if that is more.
    #[must_use]
    pub const fn new(rate: u64, now: Instant) -> Self {
        let (rate, paid, line) = (AtomicU64::new(rate), AtomicU64::new(0), AtomicU64::new(0));
        Self { rate, start: now, paid, line }
    }

    /// What was promised at another rate is void, and who waited for it asks anew.
    fn set(&self, rate: u64) {
        if self.rate.swap(rate, AcqRel) != rate {
            self.line.fetch_add(1, AcqRel);
            self.paid.store(0, Release);
        }
    }

    /// Takes up to `want` bytes. Who moves fewer than were taken gives the rest back. Who has to wait takes a place in the line,
    /// and `ticket` stands for it.
    pub fn take(&self, want: usize, now: Instant, ticket: &mut Ticket) -> Take {
        let (line, rate) = (self.line.load(Acquire), self.rate.load(Acquire));
        let want = u64::try_from(want).unwrap_or(u64::MAX);
        if rate == 0 || want == 0 {
            self.leave(ticket);
            return Take::Now(usize::try_from(want).unwrap_or(usize::MAX));
        }
        let now = nanos(now.saturating_duration_since(self.start));
        if let Some(promise) = ticket.0.filter(|promise| promise.line == line) {
            if now < promise.at {
                return self.wait(now, promise.at);
            }
            ticket.0 = None;
            let taken = promise.bytes.min(want);
            self.refund(promise.bytes - taken, rate);
            return Take::Now(usize::try_from(taken).unwrap_or(usize::MAX));
        }
        let burst = (rate / (SECOND / nanos(BURST))).max(LEAST_BURST);
        // A whole burst takes so long.
        let window = cost(burst, rate);
        let worth = want.min((rate / (SECOND / nanos(WORTH))).max(LEAST_WORTH));
        let mut paid = self.paid.load(Acquire);
        loop {
            let owed = paid.saturating_sub(now);
            let room = flow(window.saturating_sub(owed), rate);
            let taken = if room < worth { worth } else { want.min(room) };
            let after = paid.max(now).saturating_add(cost(taken, rate));
            match self.paid.compare_exchange_weak(paid, after, AcqRel, Acquire) {
                Ok(_) if room < worth => {
                    let at = after.saturating_sub(window).max(now + 1);
                    ticket.0 = Some(Promise { line, bytes: taken, at });
                    return self.wait(now, at);
                }
                Ok(_) => return Take::Now(usize::try_from(taken).unwrap_or(usize::MAX)),
                Err(other) => paid = other,
            }
        }
    }

    fn wait(&self, now: u64, until: u64) -> Take {
        Take::At(self.start + Duration::from_nanos(until.min(now.saturating_add(nanos(LOOK)))))
    }

    /// Gives back what was taken and did not flow.
    pub fn give_back(&self, bytes: usize) {
        self.refund(u64::try_from(bytes).unwrap_or(u64::MAX), self.rate.load(Relaxed));
    }

    /// Gives a place in the line up.
    pub fn leave(&self, ticket: &mut Ticket) {
        let line = self.line.load(Acquire);
        if let Some(promise) = ticket.0.take().filter(|promise| promise.line == line) {
            self.refund(promise.bytes, self.rate.load(Relaxed));
        }
    }

    fn refund(&self, bytes: u64, rate: u64) {
        if rate > 0 && bytes > 0 {
            let unpaid = cost(bytes, rate);
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
        let (mut taken, mut ticket) = (0, Ticket::default());
        while now < end {
            match bucket.take(want, now, &mut ticket) {
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
            let (bucket, mut ticket) = (Bucket::new(rate, start), Ticket::default());
            assert_eq!(
                bucket.take(usize::MAX, start, &mut ticket),
                Take::Now(usize::try_from(burst).unwrap())
            );
            assert!(matches!(bucket.take(usize::MAX, start, &mut ticket), Take::At(at) if at > start));
            bucket.leave(&mut ticket);
            let flowed = drain(&bucket, 16 * 1024, start, start + Duration::from_secs(10));
            assert!((flowed.abs_diff(10 * rate)) <= 10 * rate / 100 + burst, "{flowed} at {rate}");
        }
    }

    #[test]
    fn who_waits_until_the_time_that_was_told_gets_what_is_worth_it() {
        let start = Instant::now();
        let (bucket, mut ticket) = (Bucket::new(100 * KIB, start), Ticket::default());
        assert_eq!(bucket.take(64 * 1024, start, &mut ticket), Take::Now(64 * 1024));
        let Take::At(at) = bucket.take(64 * 1024, start, &mut ticket) else { panic!("more than a burst") };
        let soon = at - Duration::from_millis(1);
        assert_eq!(bucket.take(64 * 1024, soon, &mut ticket), Take::At(at), "its place is kept");
        assert_eq!(bucket.take(64 * 1024, at, &mut ticket), Take::Now(1024));
        // Single bytes need no more than that.
        let Take::At(next) = bucket.take(1, at, &mut ticket) else { panic!("nothing is left") };
        assert!(next - at < Duration::from_millis(1), "{:?}", next - at);
        assert_eq!(bucket.take(1, next, &mut ticket), Take::Now(1));
    }

    #[test]
    fn what_did_not_flow_is_given_back() {
        let start = Instant::now();
        let (bucket, mut ticket) = (Bucket::new(KIB, start), Ticket::default());
        let mut take = |want| bucket.take(want, start, &mut ticket);
        assert_eq!(take(64 * 1024), Take::Now(64 * 1024));
        bucket.give_back(60 * 1024);
        assert_eq!(take(64 * 1024), Take::Now(60 * 1024));
        bucket.give_back(usize::MAX);
        assert_eq!(take(usize::MAX), Take::Now(64 * 1024), "and no more than a burst");
        // A place in the line is bytes too.
        assert!(matches!(take(usize::MAX), Take::At(_)));
        bucket.leave(&mut ticket);
        bucket.give_back(512);
        assert_eq!(bucket.take(usize::MAX, start, &mut ticket), Take::Now(512));
        // Who wants less when it is served leaves the rest to others.
        let Take::At(at) = bucket.take(usize::MAX, start, &mut ticket) else { panic!("nothing is left") };
        assert_eq!(bucket.take(100, at, &mut ticket), Take::Now(100));
        assert_eq!(bucket.take(412, at, &mut ticket), Take::Now(412));
    }

    #[test]
    fn another_rate_is_in_force_at_once_and_none_lets_everything_flow() {
        let start = Instant::now();
        let both = Bandwidth::new(KIB, start);
        let mut waits = Ticket::default();
        assert_eq!(drain(&both.to_client, 65_536, start, start + Duration::from_millis(1)), 64 * KIB);
        let mut told = start;
        for _ in 0..20 {
            // A long line, at half a second each.
            match both.to_client.take(512, start, &mut Ticket::default()) {
                Take::At(at) => told = at,
                Take::Now(bytes) => panic!("{bytes}"),
            }
        }
        assert_eq!(told, start + LOOK, "it is to look in between");
        assert_eq!(both.to_client.take(512, start, &mut waits), Take::At(start + LOOK));
        assert_eq!(both.to_client.take(512, start + LOOK, &mut waits), Take::At(start + 2 * LOOK));
        assert_eq!(both.to_upstream.take(1, start, &mut Ticket::default()), Take::Now(1), "it has its own");
        both.set(Some(KIB));
        assert_eq!(
            both.to_client.take(512, start + LOOK, &mut waits),
            Take::At(start + 2 * LOOK),
            "no change"
        );
        both.set(Some(1_000_000));
        assert_eq!(both.to_client.take(512, start + LOOK, &mut waits), Take::Now(512), "no line any more");
        both.set(None);
        assert_eq!(both.to_client.take(usize::MAX, start + LOOK, &mut waits), Take::Now(usize::MAX));
        both.set(Some(1_000_000));
        let later = start + Duration::from_secs(100);
        assert_eq!(both.to_client.take(usize::MAX, later, &mut waits), Take::Now(100_000));
    }

    /// Each of `takers` wants everything at all times; the same ones are always asked first. What each of them got.
    fn share(takers: usize, rate: u64, length: Duration) -> Vec<(u64, Duration)> {
        let start = Instant::now();
        let bucket = Bucket::new(rate, start);
        let mut all: Vec<_> =
            (0..takers).map(|_| (Ticket::default(), start, 0, start, Duration::ZERO)).collect();
        let mut now = start;
        while now < start + length {
            for (ticket, due, got, last, gap) in &mut all {
                // A turn of a session.
                for _ in 0..32 {
                    if *due > now {
                        break;
                    }
                    match bucket.take(16 * 1024, now, ticket) {
                        Take::Now(bytes) => {
                            *got += bytes as u64;
                            *gap = (*gap).max(now - *last);
                            *last = now;
                        }
                        Take::At(at) => *due = at,
                    }
                }
            }
            now = all.iter().map(|(_, due, ..)| *due).min().unwrap().max(now + Duration::from_nanos(1));
        }
        all.into_iter().map(|(.., got, last, gap)| (got, gap.max(now - last))).collect()
    }

    #[test]
    fn who_waits_has_a_place_in_the_line() {
        for (takers, rate) in
            [(2, 10 << 20), (10, 10 << 20), (100, 10 << 20), (1000, 100 << 20), (7, 100 << 10)]
        {
            let length = Duration::from_secs(20);
            let got = share(takers, rate, length);
            let burst = (rate / 10).max(LEAST_BURST);
            let fair = rate * length.as_secs() / takers as u64;
            let total: u64 = got.iter().map(|(bytes, _)| bytes).sum();
            assert!(
                total <= rate * length.as_secs() + burst && total >= rate * length.as_secs() * 99 / 100,
                "{total}"
            );
            for (bytes, gap) in got {
                assert!(
                    bytes >= fair * 9 / 10 && bytes <= fair * 11 / 10 + burst,
                    "{bytes} of {fair}, {takers} at {rate}"
                );
                assert!(gap < Duration::from_millis(400), "{gap:?}, {takers} at {rate}");
            }
        }
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
            steps in proptest::collection::vec((0_u64..2_000_000_000, 1_usize..10_000_000), 1..80),
        ) {
            let start = Instant::now();
            let bucket = Bucket::new(rate, start);
            let (mut now, mut taken) = (start, 0_u128);
            let mut tickets = [Ticket::default(), Ticket::default(), Ticket::default()];
            for (turn, (gap, want)) in steps.into_iter().enumerate() {
                now += Duration::from_nanos(gap);
                if let Take::Now(bytes) = bucket.take(want, now, &mut tickets[turn * 7 / 3 % 3]) {
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

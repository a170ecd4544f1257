//! The schedule of an open loop: intended start times at a fixed rate. They do not wait for answers: a late answer makes
//! the next unit late, and that counts (no coordinated omission).

use std::time::Duration;

use tokio::time::Instant;

/// Nanoseconds of a second.
const SECOND: u128 = 1_000_000_000;

/// At most so many spans stand for what never began: of more units than these, several share an intended time.
const SPANS: u128 = 10_000;

/// A rate that several threads keep together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Units a second, of all threads.
    pub per_second: u64,
    /// How many threads share it.
    pub threads: usize,
    /// Which of them this one is.
    pub thread: usize,
}

/// When units are to start.
#[derive(Clone, Copy)]
pub(super) struct Pace {
    start: Instant,
    rate: u128,
    /// The number of this thread's next unit, among those of all threads.
    number: u128,
    step: u128,
    next: Instant,
}

impl Pace {
    pub(super) fn new(start: Instant, rate: Rate) -> Self {
        let number = rate.thread as u128;
        let step = rate.threads.max(1) as u128;
        let mut pace = Self { start, rate: u128::from(rate.per_second.max(1)), number, step, next: start };
        pace.next = pace.time(number);
        pace
    }

    /// The intended time of the next unit, once it has come.
    pub(super) fn due(&mut self, now: Instant) -> Option<Instant> {
        let due = self.next;
        (due <= now).then(|| {
            self.number += self.step;
            self.next = self.time(self.number);
            due
        })
    }

    /// The units due before `end` that have not begun: how many, and the intended time of the one in their middle. Each
    /// by itself, unless they are more than 10,000.
    pub(super) fn left(&self, end: Instant) -> impl Iterator<Item = (u64, Instant)> {
        let before_end = (end.saturating_duration_since(self.start).as_nanos() * self.rate).div_ceil(SECOND);
        let left = before_end.saturating_sub(self.number).div_ceil(self.step);
        let span = left.div_ceil(SPANS).max(1);
        (0..left.div_ceil(span)).map(move |place| {
            let (first, behind) = (place * span, ((place + 1) * span).min(left));
            let middle = first + (behind - first - 1) / 2;
            (u64::try_from(behind - first).unwrap_or(u64::MAX), self.time(self.number + middle * self.step))
        })
    }

    /// The intended time of the next unit.
    pub(super) const fn next(&self) -> Instant {
        self.next
    }

    /// From the number and not from the time before it: roundings must not add up.
    fn time(&self, number: u128) -> Instant {
        let passed = number * SECOND / self.rate;
        self.start + Duration::from_nanos(u64::try_from(passed).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(rate: Rate, until: Duration) -> Vec<Duration> {
        let start = Instant::now();
        let mut pace = Pace::new(start, rate);
        std::iter::from_fn(|| pace.due(start + until)).map(|due| due - start).collect()
    }

    #[test]
    fn a_rate_that_does_not_divide_a_second_is_kept_exactly() {
        let rate = Rate { per_second: 15_007, threads: 1, thread: 0 };
        let minute = times(rate, Duration::from_nanos(59_999_999_999));
        assert_eq!(minute.len(), 60 * 15_007);
        assert_eq!(minute[15_007], Duration::from_secs(1));
    }

    #[test]
    fn threads_take_turns() {
        let of = |thread| {
            times(Rate { per_second: 10, threads: 2, thread }, Duration::from_millis(450))
                .iter()
                .map(Duration::as_millis)
                .collect::<Vec<_>>()
        };
        assert_eq!((of(0), of(1)), (vec![0, 200, 400], vec![100, 300]));
    }

    #[test]
    fn late_units_keep_their_intended_times() {
        let start = Instant::now();
        let mut pace = Pace::new(start, Rate { per_second: 1_000, threads: 1, thread: 0 });
        assert_eq!(pace.due(start), Some(start));
        assert_eq!(pace.due(start), None);
        let stalled = start + Duration::from_millis(3);
        let due: Vec<_> = std::iter::from_fn(|| pace.due(stalled)).map(|due| stalled - due).collect();
        assert_eq!(due, [2, 1, 0].map(Duration::from_millis));
        assert_eq!(pace.next(), start + Duration::from_millis(4));
    }

    #[test]
    fn what_is_left_is_what_would_have_been_due_before_the_end() {
        for (per_second, threads, thread, begun) in
            [(10, 1, 0, 0), (10, 1, 0, 4), (15_007, 3, 2, 50), (1, 2, 1, 0)]
        {
            let start = Instant::now();
            let mut pace = Pace::new(start, Rate { per_second, threads, thread });
            for _ in 0..begun {
                pace.due(start + Duration::from_mins(1)).unwrap();
            }
            for millis in [0, 100, 300, 450, 600] {
                let end = start + Duration::from_millis(millis);
                let left: Vec<_> = pace.left(end).collect();
                let mut one_by_one = pace;
                let due = std::iter::from_fn(|| one_by_one.due(end)).filter(|due| *due < end);
                assert_eq!(left, due.map(|due| (1, due)).collect::<Vec<_>>(), "{per_second} {millis} ms");
            }
        }
    }

    #[test]
    fn a_rate_that_nobody_keeps_is_summed_up() {
        let start = Instant::now();
        let pace = Pace::new(start, Rate { per_second: 1_000_000_000, threads: 1, thread: 0 });
        let left: Vec<_> = pace.left(start + Duration::from_millis(1_000)).collect();
        assert_eq!(left.len(), 10_000);
        assert_eq!(left.iter().map(|(count, _)| count).sum::<u64>(), 1_000_000_000);
        assert_eq!(left[0], (100_000, start + Duration::from_nanos(49_999)));
        assert!(left.is_sorted_by(|a, b| a.1 < b.1));
    }
}

//! The verdict against a shadow model, and its rules one by one.

use std::collections::VecDeque;

use proptest::prelude::*;
use rand::{Rng, RngExt, SeedableRng, rngs::SmallRng};

use super::*;

const SECOND: Duration = Duration::from_secs(1);
const FAST: Duration = Duration::from_millis(100);
const PACE: Pace = Pace { interval: SECOND, fast: FAST };

fn up() -> Judge {
    let mut judge = Judge::default();
    judge.good(2).unwrap();
    judge
}

fn down() -> Judge {
    let mut judge = Judge::default();
    judge.bad(3, "refused").unwrap();
    judge
}

#[test]
fn the_first_probe_decides() {
    let mut judge = Judge::default();
    let turn = judge.good(2).unwrap();
    assert_eq!((turn.verdict, &*turn.reason), (Verdict::Up, "1 probe good"));

    let mut judge = Judge::default();
    let turn = judge.bad(3, "connect: connection refused").unwrap();
    assert_eq!((turn.verdict, &*turn.reason), (Verdict::Down, "1 probe failed: connect: connection refused"));
}

#[test]
fn bad_probes_in_a_row_bring_it_down_with_the_last_reason() {
    let mut judge = up();
    assert_eq!(judge.bad(3, "a"), None);
    assert_eq!(judge.bad(3, "b"), None);
    let turn = judge.bad(3, "c").unwrap();
    assert_eq!((turn.verdict, &*turn.reason), (Verdict::Down, "3 probes failed: c"));
    assert_eq!(judge.bad(3, "d"), None, "down is down already");
}

#[test]
fn good_probes_in_a_row_bring_it_up() {
    let mut judge = down();
    assert_eq!(judge.good(2), None);
    let turn = judge.good(2).unwrap();
    assert_eq!((turn.verdict, &*turn.reason), (Verdict::Up, "2 probes good"));
}

#[test]
fn a_run_that_is_broken_counts_from_one_again() {
    let mut judge = up();
    for _ in 0..50 {
        assert_eq!(judge.bad(3, "lost"), None);
        assert_eq!(judge.bad(3, "lost"), None);
        assert_eq!(judge.good(2), None);
    }
    assert_eq!(judge.verdict(), Verdict::Up);
}

#[test]
fn a_threshold_lowered_by_a_reload_holds_from_the_next_probe_on() {
    let mut judge = up();
    assert_eq!(judge.bad(10, "a"), None);
    assert_eq!(judge.bad(10, "a"), None);
    assert_eq!(judge.bad(2, "a").unwrap().reason, "3 probes failed: a");
}

#[test]
fn doubt_is_looked_into_quickly() {
    let start = Instant::now();
    let mut judge = up();
    assert_eq!(judge.next(start, start, PACE), start + SECOND);
    judge.bad(3, "x");
    assert_eq!(judge.next(start, start, PACE), start + FAST);
    judge.good(2);
    assert_eq!(judge.next(start, start, PACE), start + SECOND);
    // A probe that took longer than the interval is followed at once, not in the past.
    assert_eq!(judge.next(start, start + 3 * SECOND, PACE), start + 3 * SECOND);
}

#[test]
fn a_hint_brings_one_probe_forward_and_changes_no_verdict() {
    let start = Instant::now();
    let now = start + Duration::from_millis(300);
    let mut judge = up();
    judge.hint();
    assert_eq!(judge.verdict(), Verdict::Up);
    assert_eq!(judge.next(start, now, PACE), now);
    judge.probing(now);
    assert_eq!(judge.next(now, now, PACE), now + SECOND);

    // The next hint waits until the fast interval has passed.
    let soon = now + Duration::from_millis(1);
    judge.hint();
    assert_eq!(judge.next(now, soon, PACE), now + FAST);
}

#[test]
fn a_hint_about_an_endpoint_that_is_down_is_no_news() {
    let start = Instant::now();
    let mut judge = down();
    judge.hint();
    assert_eq!(judge.next(start, start, PACE), start + SECOND);
}

/// The opinion by definition: look at the whole run of equal results that the history ends with.
struct Shadow {
    history: VecDeque<bool>,
    verdict: Verdict,
}

impl Shadow {
    fn observe(&mut self, good: bool, rise: u32, fall: u32) {
        self.history.push_front(good);
        let run = self.history.iter().take_while(|result| **result == good).count();
        let (side, threshold) = if good { (Verdict::Up, rise) } else { (Verdict::Down, fall) };
        if self.verdict == Verdict::Unknown || run >= threshold as usize {
            self.verdict = side;
        }
    }
}

fn seed() -> u64 {
    std::env::var("TWINSPAN_SEED").ok().map_or_else(rand::random, |seed| seed.parse().unwrap())
}

/// An endpoint that works and fails in phases, sessions that hint, a clock that only goes forward.
fn simulate(rng: &mut impl Rng) {
    let (rise, fall) = (rng.random_range(1..5), rng.random_range(1..5));
    let fast = Duration::from_millis(rng.random_range(10..200));
    let pace = Pace { interval: fast * rng.random_range(1..20), fast };
    let mut judge = Judge::default();
    let mut shadow = Shadow { history: VecDeque::new(), verdict: Verdict::Unknown };
    let mut now = Instant::now();
    let mut share_good = 0.5;
    let (mut hinted, mut last_hinted) = (false, None::<Instant>);
    for _ in 0..rng.random_range(50..500) {
        if rng.random_bool(0.05) {
            share_good = [0.0, 0.1, 0.5, 0.9, 1.0][rng.random_range(0..5)];
        }
        if std::mem::take(&mut hinted) {
            assert!(last_hinted.is_none_or(|last| now >= last + fast), "hinted probes too close");
            last_hinted = Some(now);
        }
        judge.probing(now);
        let (started, before) = (now, judge.verdict());
        now += Duration::from_millis(rng.random_range(0..300));
        let good = rng.random_bool(share_good);
        let turn = if good { judge.good(rise) } else { judge.bad(fall, "no") };
        shadow.observe(good, rise, fall);
        assert_eq!(judge.verdict(), shadow.verdict, "history, newest first: {:?}", shadow.history);
        assert_eq!(turn.map(|turn| turn.verdict), (before != shadow.verdict).then_some(shadow.verdict));
        let doubt = good != (judge.verdict() == Verdict::Up);
        assert_eq!(judge.in_doubt(), doubt);
        let due = judge.next(started, now, pace);
        assert_eq!(due, now.max(started + if doubt { fast } else { pace.interval }));
        let verdict = judge.verdict();
        if rng.random_bool(0.3) {
            // Sessions fail while the endpoint waits for its probe, the first of them somewhere before that.
            let at = now + due.saturating_duration_since(now).mul_f64(rng.random());
            judge.hint();
            let sooner = judge.next(started, at, pace);
            assert!(at <= sooner && sooner <= due.max(at), "a hint never postpones");
            hinted = verdict != Verdict::Down;
            now = sooner;
        } else {
            now = due;
        }
        assert_eq!(judge.verdict(), verdict, "only probes change a verdict");
    }
}

#[test]
fn a_simulated_endpoint_is_judged_as_the_definition_says() {
    let seed = seed();
    println!("TWINSPAN_SEED={seed}");
    let mut rng = SmallRng::seed_from_u64(seed);
    for _ in 0..500 {
        simulate(&mut rng);
    }
}

proptest! {
    #[test]
    fn flapping_faster_than_the_thresholds_changes_nothing(
        rise in 2_u32..6,
        fall in 2_u32..6,
        runs in prop::collection::vec((1_u32..6, 1_u32..6), 1..50),
        starts_up: bool,
    ) {
        let mut judge = if starts_up { up() } else { down() };
        for (bad, good) in runs {
            for _ in 0..bad.min(fall - 1) {
                prop_assert_eq!(judge.bad(fall, "no"), None);
            }
            for _ in 0..good.min(rise - 1) {
                prop_assert_eq!(judge.good(rise), None);
            }
        }
    }
}

//! Whether rests cost throughput. A stream gains by them; two peers that take turns with large messages would wait for each
//! rest. Which of the two it is shows only in the rate, so the one that is not in force is tried for a moment now and
//! then.

use std::{mem, time::Duration};

use tokio::time::Instant;

/// How long a rate is measured.
const WINDOW: Duration = Duration::from_millis(10);

/// A window that lasted longer had pauses, which say nothing.
const PAUSED: Duration = Duration::from_millis(30);

/// Bytes a second from which on rests are worth it: 2 Gbit/s. Less is no load for a worker.
const FAST: f64 = 256e6;

/// Rests pay while this part of the rate without them is left. Measured on loopback: streams one way 1.0 to 1.3, both ways
/// 0.8 to 1.8; messages of 64 KiB in turns on one to four connections 0.5 to 0.7, on eight 1.1, on more 1.2 to 1.5.
const ENOUGH: f64 = 0.9;

/// Windows between two trials: after one that contradicts what was found before, while rests pay, and at most while they do
/// not, as a trial then costs throughput.
const AT_ONCE: u32 = 2;
const OFTEN: u32 = 16;
const SELDOM: u32 = 128;

/// What was found so far.
#[derive(Debug)]
pub(super) struct Trial {
    window: Option<Window>,
    /// The last window was fast.
    fast: bool,
    /// Rests are in force.
    pays: bool,
    /// This window does without what is in force, or with what is not.
    trying: bool,
    /// Bytes a second with what is in force.
    usual: Option<f64>,
    /// The rate with rests over the one without, of late. Streams both ways vary by a third from window to window.
    gain: f64,
    /// Windows until the next trial, and between the last two.
    left: u32,
    pause: u32,
}

#[derive(Debug)]
struct Window {
    since: Instant,
    bytes: u64,
    /// It was to have rests and had none.
    spoilt: bool,
}

impl Default for Trial {
    fn default() -> Self {
        Self {
            window: None,
            fast: false,
            pays: false,
            trying: false,
            usual: None,
            gain: 1.0,
            left: 0,
            pause: 0,
        }
    }
}

impl Trial {
    /// So many bytes were carried. True if a rest may follow. `calm`: it would.
    pub(super) fn carried(&mut self, bytes: u64, calm: bool, now: Instant) -> bool {
        let denied = self.rests() && !calm;
        let window = self.window.get_or_insert(Window { since: now, bytes: 0, spoilt: false });
        window.bytes = window.bytes.saturating_add(bytes);
        window.spoilt |= denied;
        let passed = now.saturating_duration_since(window.since);
        if passed >= WINDOW {
            let rate = window.bytes as f64 / passed.as_secs_f64();
            let tells = !window.spoilt && passed < PAUSED;
            *window = Window { since: now, bytes: 0, spoilt: false };
            // After a slow window there are no rests. A rate that they have made slow tells most of all.
            let was_fast = mem::replace(&mut self.fast, rate >= FAST);
            if tells && was_fast && (self.fast || self.pays != self.trying) {
                self.learn(rate);
            }
        }
        self.rests()
    }

    const fn rests(&self) -> bool {
        self.fast && self.pays != self.trying
    }

    fn learn(&mut self, rate: f64) {
        let usual = *self.usual.get_or_insert(rate);
        if !self.trying {
            self.usual = Some(f64::midpoint(usual, rate));
            self.left = self.left.saturating_sub(1);
            self.trying = self.left == 0;
            return;
        }
        self.trying = false;
        let gain = if self.pays { usual / rate } else { rate / usual };
        self.gain += (gain - self.gain) / 4.0;
        let pays = self.gain >= ENOUGH;
        self.pause = if (gain >= ENOUGH) != pays {
            AT_ONCE
        } else if pays || self.pays {
            OFTEN
        } else {
            (self.pause * 2).clamp(OFTEN, SELDOM)
        };
        if pays != self.pays {
            (self.pays, self.usual) = (pays, Some(rate));
        }
        self.left = self.pause;
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng, rngs::SmallRng};

    use super::*;

    /// A load, and what was made of it.
    struct Load {
        trial: Trial,
        now: Instant,
    }

    impl Load {
        const TURN: Duration = Duration::from_micros(100);

        fn new() -> Self {
            Self { trial: Trial::default(), now: Instant::now() }
        }

        /// Carries so many bytes a turn of 100 us, with rests and without. Returns the part of the time that had rests.
        fn run(&mut self, time: Duration, bytes: impl Fn(bool) -> u64) -> f64 {
            let (end, mut resting, mut rested, mut turns) = (self.now + time, false, 0, 0);
            while self.now < end {
                self.now += Self::TURN;
                resting = self.trial.carried(bytes(resting), true, self.now);
                rested += u32::from(resting);
                turns += 1;
            }
            f64::from(rested) / f64::from(turns)
        }
    }

    const SECOND: Duration = Duration::from_secs(1);

    /// The part of the time that had rests, once it was found out whether they pay.
    fn in_the_long_run(bytes: impl Fn(bool) -> u64) -> f64 {
        let mut load = Load::new();
        load.run(SECOND, &bytes);
        load.run(SECOND * 10, &bytes)
    }

    #[test]
    fn a_stream_has_rests_most_of_the_time_and_soon() {
        let mut load = Load::new();
        let first = load.run(SECOND / 10, |resting| if resting { 620_000 } else { 560_000 });
        assert!(first > 0.6, "{first}");
        let later = load.run(SECOND, |resting| if resting { 620_000 } else { 560_000 });
        assert!(later > 0.9, "{later}");
    }

    #[test]
    fn peers_that_take_turns_lose_little_by_trials() {
        let rested = in_the_long_run(|resting| if resting { 40_000 } else { 80_000 });
        assert!((0.001..0.02).contains(&rested), "{rested}");
    }

    #[test]
    fn a_load_that_only_rests_make_slow_is_left_alone_as_well() {
        let rested = in_the_long_run(|resting| if resting { 24_000 } else { 35_000 });
        assert!(rested < 0.02, "{rested}");
    }

    #[test]
    fn a_stream_whose_rate_varies_by_a_third_keeps_its_rests() {
        let mut load = Load::new();
        let mut rng = SmallRng::seed_from_u64(7);
        let mut rested = 0.0;
        for _ in 0..500 {
            let gust = rng.random_range(70..130);
            rested += load.run(WINDOW, |resting| if resting { 5_500 * gust } else { 5_000 * gust });
        }
        assert!(rested / 500.0 > 0.75, "{rested}");
    }

    #[test]
    fn what_was_found_is_unlearnt_when_the_load_changes() {
        let mut load = Load::new();
        let stream = |resting| if resting { 600_000 } else { 550_000 };
        let turns = |resting| if resting { 40_000 } else { 80_000 };
        load.run(SECOND, stream);
        load.run(SECOND, turns);
        assert!(load.run(SECOND, turns) < 0.05);
        load.run(SECOND * 3, stream);
        assert!(load.run(SECOND, stream) > 0.9);
    }

    #[test]
    fn a_rate_that_drifts_is_not_taken_for_the_rests_fault() {
        let mut load = Load::new();
        load.run(SECOND, |_| 600_000);
        for step in 1..=50 {
            let rested = load.run(SECOND / 10, |_| 600_000 - step * 10_000);
            assert!(rested > 0.8, "{rested} at step {step}");
        }
    }

    #[test]
    fn little_needs_no_rests_and_pauses_say_nothing() {
        let mut load = Load::new();
        assert_eq!(load.run(SECOND, |_| 20_000), 0.0);
        load.run(SECOND, |_| 100_000);
        let gain = load.trial.gain;
        for _ in 0..100 {
            load.now += SECOND;
            load.run(WINDOW / 2, |_| 100_000);
        }
        assert!((load.trial.gain - gain).abs() < 1e-9);
    }
}

//! When a session dials: the first attempt, another in the place of one that has failed, another beside one that is late.
//! No sockets, no clock and no choice of endpoints; after RFC 8305, section 5, between endpoints instead of the
//! addresses of one.

use std::time::Duration;

use tokio::time::Instant;

use crate::state::{Connect, Hedge};

/// Attempts under way at once at the most.
const ABREAST: u8 = 3;

/// A session's attempts.
#[derive(Debug)]
pub struct Race {
    connect: Connect,
    /// The end of all attempts.
    end: Instant,
    made: u8,
    under_way: u8,
    /// An attempt has failed, and nothing has taken its place.
    owed: bool,
    /// When the next attempt is due though none has failed.
    hedge: Option<Instant>,
}

/// What to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Dial; then tell with [`Race::begun`], or with [`Race::spent`] that no endpoint is left, or with
    /// [`Race::put_off`] that none has room now.
    Dial(Why),
    /// Wait until an attempt has ended, or until this time.
    Wait(Option<Instant>),
    /// No attempt is under way and none may be made.
    Over,
}

/// Why an attempt is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// There was none.
    First,
    /// One has failed.
    Retry,
    /// One is late, and goes on.
    Hedge,
}

impl Race {
    /// Of a session that began at `started`.
    #[must_use]
    pub fn new(connect: Connect, started: Instant) -> Self {
        Self { connect, end: started + connect.total, made: 0, under_way: 0, owed: false, hedge: None }
    }

    /// Of a session whose first attempt is under way, and counts as late at `late`.
    #[must_use]
    pub fn resumed(connect: Connect, started: Instant, late: Option<Instant>) -> Self {
        Self { made: 1, under_way: 1, hedge: late, ..Self::new(connect, started) }
    }

    /// Of a session that so many attempts were made for earlier: the next one takes the place of the last.
    #[must_use]
    pub fn again(connect: Connect, started: Instant, made: u8) -> Self {
        Self { made, ..Self::new(connect, started) }
    }

    /// What to do. `may_hedge` is asked when an attempt is late, and no more often than that.
    pub fn step(&mut self, now: Instant, may_hedge: impl FnOnce() -> bool) -> Step {
        let may_dial = self.may_dial(now);
        if self.under_way == 0 {
            return match (may_dial, self.made) {
                (false, _) => Step::Over,
                (true, 0) => Step::Dial(Why::First),
                (true, _) => Step::Dial(Why::Retry),
            };
        }
        if !may_dial || self.under_way >= ABREAST {
            return Step::Wait(None);
        }
        if self.owed {
            return Step::Dial(Why::Retry);
        }
        match self.hedge {
            Some(due) if due > now => Step::Wait(Some(due)),
            Some(_) if may_hedge() => Step::Dial(Why::Hedge),
            Some(_) => {
                // The budget is spent for now; it may have grown when as much time has gone by again.
                self.hedge = Some(now + Hedge::LATEST);
                Step::Wait(self.hedge)
            }
            None => Step::Wait(None),
        }
    }

    /// True while there may be another attempt.
    #[must_use]
    pub fn may_dial(&self, now: Instant) -> bool {
        self.made == 0 || self.made < self.connect.attempts && now < self.end
    }

    /// An attempt begins, in a group whose usual connect time is `usual`; its deadline. `jitter` (0 to 1) varies the time
    /// at which it counts as late by a tenth either way.
    pub fn begun(&mut self, usual: Duration, jitter: f64, now: Instant) -> Instant {
        self.made = self.made.saturating_add(1);
        self.under_way += 1;
        self.owed = false;
        let delay = Hedge::delay(usual).mul_f64(0.9 + 0.2 * jitter.clamp(0.0, 1.0));
        self.hedge = self.connect.hedge.filter(|_| self.connect.attempts > self.made).map(|_| now + delay);
        (now + self.connect.timeout).min(self.end)
    }

    /// When the attempts so far count as late; `None` when nothing will race them.
    #[must_use]
    pub const fn late(&self) -> Option<Instant> {
        self.hedge
    }

    /// An attempt has failed.
    pub fn failed(&mut self) {
        self.under_way = self.under_way.saturating_sub(1);
        self.owed = true;
    }

    /// No endpoint has room for another attempt now, while one is under way: it may have when that has failed, or when as
    /// much time has gone by as between two looks at the budget.
    pub fn put_off(&mut self, now: Instant) {
        self.owed = false;
        self.hedge = self.connect.hedge.map(|_| now + Hedge::LATEST);
    }

    /// No endpoint is left to dial: what is under way goes on.
    pub fn spent(&mut self) {
        self.made = self.made.max(self.connect.attempts).max(1);
        self.owed = false;
        self.hedge = None;
    }

    /// The attempts so far.
    #[must_use]
    pub const fn made(&self) -> u8 {
        self.made
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const USUAL: Duration = Duration::from_millis(40);

    fn connect() -> Connect {
        let hedge = Some(Hedge { budget: 20 });
        Connect { hedge, ..Connect::plain(1000 * MS, 4, 4000 * MS) }
    }

    fn race(connect: Connect) -> (Race, Instant) {
        let now = Instant::now();
        (Race::new(connect, now), now)
    }

    #[test]
    fn a_late_attempt_is_raced_and_goes_on() {
        let (mut race, now) = race(connect());
        assert_eq!(race.step(now, || true), Step::Dial(Why::First));
        assert_eq!(race.begun(USUAL, 0.5, now), now + 1000 * MS);
        assert_eq!(race.step(now, || true), Step::Wait(Some(now + 60 * MS)));
        assert_eq!(race.step(now + 60 * MS, || true), Step::Dial(Why::Hedge));
        race.begun(USUAL, 0.5, now + 60 * MS);
        assert_eq!(race.step(now + 60 * MS, || true), Step::Wait(Some(now + 120 * MS)));
    }

    #[test]
    fn a_failure_is_answered_at_once_and_without_the_budget() {
        let (mut race, now) = race(connect());
        race.begun(USUAL, 0.5, now);
        race.failed();
        assert_eq!(race.step(now, || false), Step::Dial(Why::Retry));
        race.begun(USUAL, 0.5, now);
        assert_eq!(race.step(now + 60 * MS, || true), Step::Dial(Why::Hedge));
        race.begun(USUAL, 0.5, now + 60 * MS);
        race.failed();
        assert_eq!(race.step(now + 61 * MS, || false), Step::Dial(Why::Retry), "while another is under way");
    }

    #[test]
    fn a_budget_that_is_spent_puts_the_race_off() {
        let (mut race, now) = race(connect());
        race.begun(USUAL, 0.5, now);
        let later = now + 60 * MS;
        assert_eq!(race.step(later, || false), Step::Wait(Some(later + Hedge::LATEST)));
        assert_eq!(race.step(later + Hedge::LATEST, || true), Step::Dial(Why::Hedge));
    }

    #[test]
    fn without_hedging_an_attempt_is_followed_only_when_it_has_failed() {
        let (mut race, now) = race(Connect { hedge: None, ..connect() });
        race.begun(USUAL, 0.5, now);
        assert_eq!(race.step(now + 999 * MS, || true), Step::Wait(None));
        race.failed();
        assert_eq!(race.step(now + 1000 * MS, || true), Step::Dial(Why::Retry));
    }

    #[test]
    fn nothing_is_dialled_after_the_end_of_all_attempts() {
        let (mut race, now) = race(connect());
        race.begun(USUAL, 0.5, now);
        race.failed();
        assert_eq!(race.step(now + 4000 * MS, || true), Step::Over);
        let deadline = race.begun(USUAL, 0.5, now + 3900 * MS);
        assert_eq!(deadline, now + 4000 * MS);
    }

    #[test]
    fn with_no_endpoint_left_what_is_under_way_goes_on() {
        let (mut race, now) = race(connect());
        race.begun(USUAL, 0.5, now);
        assert_eq!(race.step(now + 60 * MS, || true), Step::Dial(Why::Hedge));
        race.spent();
        assert_eq!(race.step(now + 60 * MS, || true), Step::Wait(None));
        race.failed();
        assert_eq!(race.step(now + 61 * MS, || true), Step::Over);
    }

    #[test]
    fn attempts_that_were_made_earlier_count() {
        let now = Instant::now();
        let mut race = Race::again(connect(), now, 3);
        assert_eq!(race.step(now, || true), Step::Dial(Why::Retry));
        race.begun(USUAL, 0.5, now);
        race.failed();
        assert_eq!(race.step(now, || true), Step::Over);
        assert_eq!(Race::again(connect(), now, 4).step(now, || true), Step::Over);
    }

    #[test]
    fn a_path_that_is_known_to_be_long_is_given_its_time() {
        assert_eq!(Hedge::delay(Duration::ZERO), Hedge::UNKNOWN);
        assert_eq!(Hedge::delay(MS), Hedge::SOONEST);
        assert_eq!(Hedge::delay(100 * MS), 150 * MS);
        assert_eq!(Hedge::delay(800 * MS), Hedge::LATEST);
    }

    #[test]
    fn where_nobody_has_room_it_is_looked_again_later_and_at_once_when_an_attempt_fails() {
        let (mut race, now) = race(connect());
        race.begun(USUAL, 0.5, now);
        race.begun(USUAL, 0.5, now);
        race.failed();
        assert_eq!(race.step(now, || true), Step::Dial(Why::Retry));
        race.put_off(now);
        assert_eq!(race.step(now, || true), Step::Wait(Some(now + Hedge::LATEST)));
        race.failed();
        assert_eq!(race.step(now, || true), Step::Dial(Why::Retry));
    }

    proptest! {
        /// Whatever happens when, the bounds hold and the race comes to an end.
        #[test]
        fn every_race_keeps_its_bounds(attempts in 1_u8..8, hedged: bool, events in prop::collection::vec((0_u64..400, 0..4_u8), 1..200)) {
            let hedge = hedged.then_some(Hedge { budget: 20 });
            let (mut race, start) = race(Connect { attempts, hedge, ..connect() });
            let (mut now, mut under_way, mut made) = (start, 0_u8, 0_u8);
            for (pass, event) in events {
                now += Duration::from_millis(pass);
                match race.step(now, || event != 3) {
                    Step::Dial(why) => {
                        prop_assert!(made < attempts);
                        prop_assert!(made == 0 || now < start + 4000 * MS);
                        prop_assert_eq!(why == Why::First, made == 0);
                        prop_assert!(why != Why::Hedge || hedged && under_way > 0);
                        if event == 2 && made > 0 {
                            race.spent();
                            made = attempts;
                        } else {
                            prop_assert!(race.begun(USUAL, 0.1, now) <= start + 4000 * MS);
                            made += 1;
                            under_way += 1;
                        }
                        prop_assert!(under_way <= ABREAST);
                    }
                    Step::Wait(until) => {
                        prop_assert!(under_way > 0);
                        prop_assert!(until.is_none_or(|until| until > now));
                        if event == 1 {
                            race.failed();
                            under_way -= 1;
                        }
                    }
                    Step::Over => {
                        prop_assert_eq!(under_way, 0);
                        prop_assert!(made == attempts || now >= start + 4000 * MS);
                    }
                }
            }
        }
    }
}

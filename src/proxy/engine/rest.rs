//! Rests between turns while a worker carries nothing but bulk, so that more comes together for the next one: as network
//! cards do with their interrupts (`ethtool -C`). To be woken for each segment costs the sender a wake-up and this
//! thread a turn. Must never delay anything but bulk: one small message ends it for a while.

use std::{mem, num::NonZeroU64, time::Duration};

use rustix::thread::{Timespec, nanosleep, set_current_timer_slack};
use tokio::time::Instant;

use super::trial::Trial;

/// How long a rest is. Measured on loopback with four connections: of what HAProxy takes with splice, 50 us leave 0.78 (0.93
/// with both directions busy), 100 us 0.72 (0.83), 150 us 0.67 (0.79), at no rate less than without.
const REST: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000 };

/// For so long nothing but bulk must have been carried. Many transfers are over before.
const CALM: Duration = Duration::from_millis(5);

/// A rest that took longer than this has found the CPU taken: whoever took it has been moving bytes meanwhile, so that
/// there was no wake-up to save.
const OVERSLEPT: Duration = Duration::from_micros(500);

/// How long none follows then.
const SHARED: Duration = Duration::from_millis(50);

/// What has been carried of late.
#[derive(Debug, Default)]
pub(super) struct Rest {
    /// Sessions that carry bulk had a turn since the last look at events.
    bulk: bool,
    /// Bytes that they have moved.
    bytes: u64,
    /// Since when there is nothing but bulk, or from when on it counts.
    calm: Option<Instant>,
    trial: Trial,
}

impl Rest {
    /// Has the kernel end the rests of this thread on time: by default they may take half as long again.
    pub(super) fn be_exact() {
        // Otherwise a rest is longer, and nothing is lost.
        set_current_timer_slack(NonZeroU64::new(1)).unwrap_or_default();
    }

    /// A session has had a turn, and this is what it has moved. `bulk`: it moves more than fits into a buffer.
    pub(super) const fn moved(&mut self, bytes: u64, bulk: bool) {
        if bulk {
            self.bulk = true;
            self.bytes = self.bytes.saturating_add(bytes);
        } else if bytes > 0 {
            self.calm = None;
        }
    }

    /// There is something else to do than bulk.
    pub(super) const fn disturb(&mut self) {
        self.calm = None;
    }

    /// Rests if that pays, and counts anew. `busy`: there is work that needs no event.
    pub(super) fn take(&mut self, busy: bool, now: Instant) {
        if self.pays(busy, now) {
            let from = Instant::now();
            // A signal may cut it short.
            let _ = nanosleep(&REST);
            self.rested(from, Instant::now());
        }
    }

    fn rested(&mut self, from: Instant, until: Instant) {
        if until.duration_since(from) > OVERSLEPT {
            self.calm = Some(until + SHARED);
        }
    }

    fn pays(&mut self, busy: bool, now: Instant) -> bool {
        if !mem::take(&mut self.bulk) {
            return false;
        }
        let since = *self.calm.get_or_insert(now);
        let calm = now.saturating_duration_since(since) >= CALM;
        self.trial.carried(mem::take(&mut self.bytes), calm, now) && calm && !busy
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Carried at once, it is fast enough for any trial.
    const MUCH: u64 = 1 << 30;

    const SOON: Duration = Duration::from_millis(1);

    /// A worker that has carried bulk for long enough, and has found that rests pay.
    fn calm() -> (Rest, Instant) {
        let (mut rest, mut now) = (Rest::default(), Instant::now());
        for _ in 0..100 {
            now += SOON;
            rest.moved(MUCH, true);
            if rest.pays(false, now) {
                return (rest, now);
            }
        }
        panic!("it never rests");
    }

    fn after(rest: &mut Rest, now: &mut Instant, millis: u64) -> bool {
        for _ in 0..millis {
            rest.moved(MUCH, true);
            rest.pays(false, *now);
            *now += SOON;
        }
        rest.moved(MUCH, true);
        rest.pays(false, *now)
    }

    #[test]
    fn a_worker_rests_once_it_has_carried_nothing_but_bulk_for_a_while() {
        let (mut rest, now) = calm();
        assert!(!rest.pays(false, now), "nothing had a turn");
        rest.moved(0, false);
        assert!(!rest.pays(false, now), "an event without bytes is no message, and no bulk");
        rest.moved(1, true);
        assert!(rest.pays(false, now), "bulk comes in small pieces too");
        rest.moved(MUCH, true);
        assert!(!rest.pays(true, now), "there is work");
    }

    #[test]
    fn a_rest_that_lasts_too_long_is_the_last_for_a_while() {
        let (mut rest, from) = calm();
        let mut until = from + OVERSLEPT;
        rest.rested(from, until);
        rest.moved(MUCH, true);
        assert!(rest.pays(false, until), "a little more than asked for is usual");
        rest.rested(from, until + Duration::from_micros(1));
        assert!(!after(&mut rest, &mut until, 54));
        assert!(after(&mut rest, &mut until, 2));
    }

    #[test]
    fn a_small_message_or_a_new_session_ends_the_rests_for_a_while() {
        let disturbances: [fn(&mut Rest); 2] = [|rest| rest.moved(128, false), Rest::disturb];
        for disturb in disturbances {
            let (mut rest, mut now) = calm();
            disturb(&mut rest);
            assert!(!after(&mut rest, &mut now, 4));
            assert!(after(&mut rest, &mut now, 2));
        }
    }
}

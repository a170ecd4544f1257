//! Rests between turns while a worker carries nothing but bulk, so that more comes together for the next one: as network
//! cards do with their interrupts (`ethtool -C`). To be woken for each segment costs the sender a wake-up and this
//! thread a turn. Must never delay anything but bulk: one small message ends it for a while.

use std::{num::NonZeroU64, time::Duration};

use rustix::thread::{Timespec, nanosleep, set_current_timer_slack};
use tokio::time::Instant;

/// How long a rest is. Measured on loopback with four connections: 20 us save 40 % of the CPU, 30 us and more 45 %.
const REST: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000 };

/// Bytes for each session that had a turn; where fewer come together it is not the wake-ups that cost.
const WORTH: u64 = 32 * 1024;

/// For so long nothing but bulk must have been carried. Many transfers are over before.
const CALM: Duration = Duration::from_millis(5);

/// A rest that took longer than this has found the CPU taken: whoever took it has been moving bytes meanwhile, so that
/// there was no wake-up to save.
const OVERSLEPT: Duration = Duration::from_micros(400);

/// How long none follows then.
const SHARED: Duration = Duration::from_millis(50);

/// What has been carried of late.
#[derive(Debug, Default)]
pub(super) struct Rest {
    /// Sessions that had a turn since the last look at events.
    turns: u64,
    /// Bytes that they have moved.
    bytes: u64,
    /// Since when there is nothing but bulk, or from when on it counts.
    calm: Option<Instant>,
}

impl Rest {
    /// Has the kernel end the rests of this thread on time: by default they may take twice as long.
    pub(super) fn be_exact() {
        // Otherwise a rest is longer, and nothing is lost.
        set_current_timer_slack(NonZeroU64::new(1)).unwrap_or_default();
    }

    /// A session has had a turn, and this is what it has moved. `bulk`: it moves more than fits into a buffer.
    pub(super) const fn moved(&mut self, bytes: u64, bulk: bool) {
        if bytes > 0 && !bulk {
            self.calm = None;
        }
        self.turns += 1;
        self.bytes = self.bytes.saturating_add(bytes);
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
        let Self { turns, bytes, calm } = std::mem::take(self);
        let much = turns > 0 && bytes / turns >= WORTH;
        self.calm = calm.or_else(|| much.then_some(now));
        much && !busy && self.calm.is_some_and(|since| now.duration_since(since) >= CALM)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MUCH: u64 = 64 * 1024;

    /// A worker that has carried bulk for long enough.
    fn calm() -> (Rest, Instant) {
        let (mut rest, now) = (Rest::default(), Instant::now());
        rest.moved(MUCH, true);
        assert!(!rest.pays(false, now));
        (rest, now + CALM)
    }

    #[test]
    fn a_worker_rests_once_it_has_carried_nothing_but_bulk_for_a_while() {
        let (mut rest, now) = calm();
        rest.moved(MUCH, true);
        rest.moved(0, false);
        assert!(rest.pays(false, now), "an event without bytes is no message");
        assert!(!rest.pays(false, now), "nothing had a turn");
        rest.moved(WORTH - 1, true);
        assert!(!rest.pays(false, now), "so little needs no rest");
        rest.moved(MUCH, true);
        assert!(rest.pays(false, now), "and does not end the calm");
        rest.moved(MUCH, true);
        assert!(!rest.pays(true, now), "there is work");
    }

    #[test]
    fn a_rest_that_lasts_too_long_is_the_last_for_a_while() {
        let (mut rest, from) = calm();
        let until = from + OVERSLEPT;
        rest.rested(from, until);
        rest.moved(MUCH, true);
        assert!(rest.pays(false, until), "a little more than asked for is usual");
        rest.rested(from, until + Duration::from_micros(1));
        for (after, pays) in [(1, false), (49, false), (54, false), (56, true)] {
            rest.moved(MUCH, true);
            assert_eq!(rest.pays(false, until + Duration::from_millis(after)), pays, "{after} ms");
        }
    }

    #[test]
    fn a_small_message_or_a_new_session_ends_the_rests_for_a_while() {
        let disturbances: [fn(&mut Rest); 2] = [|rest| rest.moved(128, false), Rest::disturb];
        for disturb in disturbances {
            let (mut rest, now) = calm();
            disturb(&mut rest);
            for (after, pays) in [(0, false), (1, false), (4, false), (6, true)] {
                rest.moved(MUCH, true);
                assert_eq!(rest.pays(false, now + Duration::from_millis(after)), pays, "{after} ms");
            }
        }
    }
}

//! What is measured at a pool, and the budget of extra attempts that is made of it: how many sessions began in the last
//! seconds, and how many attempts were made beside another that was still under way.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::Instant;

use super::{Handshakes, lanes::Lanes};

/// Seconds that the budget looks back.
const WINDOW: u64 = 10;

/// Slots of a window: more than it has seconds, so that a second that has passed is not written to again soon.
const SLOTS: usize = 16;

/// Between two attempts that are made to find out whether anybody answers.
const LOOK: Duration = Duration::from_millis(100);

/// Extra attempts in a window that are allowed however few sessions there are.
pub const ALWAYS: u64 = 10;

/// What is measured at a pool; lives as long as its name.
#[derive(Debug, Default)]
pub struct PoolCell {
    /// TLS handshakes with endpoints, by how they went.
    pub handshakes: Handshakes,
    lanes: Lanes<PoolLane>,
    extra: Window,
    hedges: AtomicU64,
    won: AtomicU64,
    denied: AtomicU64,
    retries: AtomicU64,
    waited: AtomicU64,
    overflowed: AtomicU64,
    replayed: AtomicU64,
    /// When the next look may be taken, in milliseconds.
    next_look: AtomicU64,
}

#[derive(Debug, Default)]
struct PoolLane {
    /// Sessions that began since the start, and of late.
    begun: AtomicU64,
    recent: Window,
}

impl PoolCell {
    /// A session of this pool begins.
    pub fn begin(&self, now: Instant) {
        let second = second(now);
        self.lanes.with(|lane| {
            lane.begun.fetch_add(1, Relaxed);
            lane.recent.add(second);
        });
    }

    /// Asks for an extra attempt, which is made if it is allowed; `percent` is the share of sessions that may have one.
    /// False, and counted, when the budget of the last ten seconds is spent.
    pub fn may_hedge(&self, percent: u8, now: Instant) -> bool {
        let granted = self.allows(percent, now);
        if granted {
            self.hedged(now);
        }
        granted
    }

    /// The same, where it is not certain that one is made: who makes it says so with [`PoolCell::hedged`].
    pub fn allows(&self, percent: u8, now: Instant) -> bool {
        let granted = self.left(percent, now) > 0;
        if !granted {
            self.denied.fetch_add(1, Relaxed);
        }
        granted
    }

    /// An extra attempt begins.
    pub fn hedged(&self, now: Instant) {
        self.extra.add(second(now));
        self.hedges.fetch_add(1, Relaxed);
    }

    /// True for one session every tenth of a second: who has nobody to go to may find out whether somebody answers again,
    /// whatever the budget.
    pub fn may_look(&self, now: Instant) -> bool {
        let now = milliseconds(now);
        let due = self.next_look.load(Relaxed);
        let next = now + u64::try_from(LOOK.as_millis()).unwrap_or(u64::MAX);
        now >= due && self.next_look.compare_exchange(due, next, Relaxed, Relaxed).is_ok()
    }

    /// An attempt beside another is made that needs no budget.
    pub fn hedged_for_certain(&self) {
        self.hedges.fetch_add(1, Relaxed);
    }

    /// Extra attempts that may be made now.
    pub fn left(&self, percent: u8, now: Instant) -> u64 {
        let (sessions, extra) = self.recent(now);
        (ALWAYS + sessions * u64::from(percent) / 100).saturating_sub(extra)
    }

    /// Sessions that began since the start.
    pub fn sessions(&self) -> u64 {
        self.lanes.sum(|lane| lane.begun.load(Relaxed))
    }

    /// Sessions that began in the last ten seconds, and extra attempts in the same time.
    pub fn recent(&self, now: Instant) -> (u64, u64) {
        let second = second(now);
        (self.lanes.sum(|lane| lane.recent.sum(second)), self.extra.sum(second))
    }

    /// An extra attempt was the first to connect.
    pub fn hedge_won(&self) {
        self.won.fetch_add(1, Relaxed);
    }

    /// An attempt takes the place of one that failed.
    pub fn retried(&self) {
        self.retries.fetch_add(1, Relaxed);
    }

    /// A session waits for its turn to dial.
    pub fn waits(&self) {
        self.waited.fetch_add(1, Relaxed);
    }

    /// A session found no room to wait, or waited too long.
    pub fn overflows(&self) {
        self.overflowed.fetch_add(1, Relaxed);
    }

    /// A session was moved to another endpoint with what its client had sent.
    pub fn replays(&self) {
        self.replayed.fetch_add(1, Relaxed);
    }

    /// What was counted since the start.
    #[must_use]
    pub fn counts(&self) -> PoolCounts {
        PoolCounts {
            hedges: self.hedges.load(Relaxed),
            won: self.won.load(Relaxed),
            denied: self.denied.load(Relaxed),
            retries: self.retries.load(Relaxed),
            waited: self.waited.load(Relaxed),
            overflowed: self.overflowed.load(Relaxed),
            replayed: self.replayed.load(Relaxed),
        }
    }
}

/// What a pool has counted since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolCounts {
    /// Attempts beside another that was still under way.
    pub hedges: u64,
    /// Those of them that were the first to connect.
    pub won: u64,
    /// Those that the budget did not allow.
    pub denied: u64,
    /// Attempts in the place of one that had failed.
    pub retries: u64,
    /// Sessions that waited for their turn to dial.
    pub waited: u64,
    /// Sessions that found no room to wait, or waited too long.
    pub overflowed: u64,
    /// Sessions that were moved to another endpoint with what their client had sent.
    pub replayed: u64,
}

/// Counts by second. Writers of one slot may meet at the turn of a second; nothing is lost but a count at the worst.
#[derive(Debug, Default)]
struct Window {
    /// The second in the upper half, the count in the lower.
    slots: [AtomicU64; SLOTS],
}

impl Window {
    #[expect(clippy::cast_possible_truncation, reason = "below SLOTS")]
    fn add(&self, second: u64) {
        let Some(slot) = self.slots.get((second % SLOTS as u64) as usize) else { return };
        let old = slot.load(Relaxed);
        if old >> 32 > second {
            // It passed so long ago that its slot is another's: whoever counts it has waited for its turn to dial.
            return;
        }
        let is_first =
            old >> 32 != second && slot.compare_exchange(old, second << 32 | 1, Relaxed, Relaxed).is_ok();
        if !is_first {
            slot.fetch_add(1, Relaxed);
        }
    }

    fn sum(&self, second: u64) -> u64 {
        let recent = |word: u64| second.checked_sub(word >> 32).is_some_and(|age| age < WINDOW);
        let words = self.slots.iter().map(|slot| slot.load(Relaxed));
        words.filter(|word| recent(*word)).map(|word| word & u64::from(u32::MAX)).sum()
    }
}

/// Seconds since the first question. They begin far from zero, which an empty slot stands for.
fn second(now: Instant) -> u64 {
    since_start(now).as_secs() + 2 * WINDOW
}

/// Milliseconds since the first question.
fn milliseconds(now: Instant) -> u64 {
    u64::try_from(since_start(now).as_millis()).unwrap_or(u64::MAX)
}

fn since_start(now: Instant) -> Duration {
    static START: OnceLock<Instant> = OnceLock::new();
    let start = *START.get_or_init(|| now - Duration::from_secs(0));
    now.saturating_duration_since(start)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_first_few_are_always_allowed_and_then_a_share_of_the_sessions() {
        let (cell, now) = (PoolCell::default(), Instant::now());
        for _ in 0..ALWAYS {
            assert!(cell.may_hedge(20, now));
        }
        assert!(!cell.may_hedge(20, now));
        (0..5).for_each(|_| cell.begin(now));
        assert!(cell.may_hedge(20, now));
        assert!(!cell.may_hedge(20, now));
        let counts = cell.counts();
        assert_eq!((counts.hedges, counts.denied), (ALWAYS + 1, 2));
    }

    #[test]
    fn a_look_is_taken_ten_times_a_second_at_the_most() {
        let (cell, now) = (PoolCell::default(), Instant::now());
        let looks = (0..1000).filter(|n| cell.may_look(now + *n * Duration::from_millis(1)));
        assert_eq!(looks.count(), 10);
    }

    #[test]
    fn what_is_older_than_the_window_counts_no_more() {
        let (cell, now) = (PoolCell::default(), Instant::now());
        (0..1000).for_each(|_| cell.begin(now));
        for _ in 0..ALWAYS + 200 {
            assert!(cell.may_hedge(20, now + 5 * SECOND));
        }
        assert_eq!(cell.left(20, now + 9 * SECOND), 0);
        // The sessions have gone, the extra attempts have not.
        assert_eq!(cell.left(20, now + 11 * SECOND), 0);
        assert_eq!(cell.left(20, now + 16 * SECOND), ALWAYS);
        assert_eq!(cell.recent(now + 30 * SECOND), (0, 0));
    }

    #[test]
    fn nothing_is_allowed_at_zero_but_the_first_few() {
        let (cell, now) = (PoolCell::default(), Instant::now());
        (0..1000).for_each(|_| cell.begin(now));
        assert_eq!(cell.left(0, now), ALWAYS);
    }

    #[test]
    fn a_session_that_began_long_ago_takes_no_count_from_the_present() {
        let (cell, now) = (PoolCell::default(), Instant::now());
        let later = now + 20 * SECOND;
        // The first question is second zero.
        assert_eq!(cell.recent(now).0, 0);
        (0..1000).for_each(|_| cell.begin(later));
        // Sixteen seconds before: the same slot.
        cell.begin(later - 16 * SECOND);
        assert_eq!(cell.recent(later).0, 1000);
    }

    #[test]
    fn workers_count_together() {
        let cell = PoolCell::default();
        let now = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..1000).for_each(|_| cell.begin(now)));
            }
        });
        // A count may be lost where two meet at a slot's first use.
        assert!((3990..=4000).contains(&cell.recent(now).0), "{:?}", cell.recent(now));
    }
}

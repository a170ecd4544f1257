//! The engine's timers: one coarse wheel a worker, in the manner of Varghese and Lauck, "Hashed and Hierarchical Timing
//! Wheels" (SOSP 1987). Each slot has at most one alarm. Setting and clearing cost a few stores and no memory; an alarm
//! that is far away rings early, at the start of the span it was filed under, and is then set again: whoever sets alarms
//! knows the real time and asks once more.

/// Levels of the wheel; each spans 64 times what the one below it does.
const LEVELS: u32 = 6;

/// Bits of a tick that one level looks at.
const BITS: u32 = 6;

/// Buckets of a level.
const BUCKETS: usize = 1 << BITS;

/// The last tick that can be filed: 21 years of ticks of 10 ms.
const LAST: u64 = (1 << (BITS * LEVELS)) - 1;

const NONE: u32 = u32::MAX;

/// A wheel whose time is counted in ticks from 0.
#[derive(Debug)]
pub(super) struct Wheel {
    now: u64,
    /// The first slot of each bucket's list.
    heads: Box<[[u32; BUCKETS]; LEVELS as usize]>,
    /// The buckets that hold something, a bit each.
    occupied: [u64; LEVELS as usize],
    links: Vec<Link>,
}

/// A slot's place in a bucket's list.
#[derive(Clone, Copy, Debug)]
struct Link {
    next: u32,
    previous: u32,
    /// Level and bucket; meaningless while `filed` is false.
    level: u8,
    bucket: u8,
    filed: bool,
}

const UNFILED: Link = Link { next: NONE, previous: NONE, level: 0, bucket: 0, filed: false };

impl Wheel {
    pub(super) fn new() -> Self {
        Self {
            now: 0,
            heads: Box::new([[NONE; BUCKETS]; LEVELS as usize]),
            occupied: [0; LEVELS as usize],
            links: Vec::new(),
        }
    }

    /// Sets the slot's alarm to ring at `due`, or soon after now if that is past. Replaces the one it had.
    pub(super) fn set(&mut self, slot: u32, due: u64) {
        self.clear(slot);
        let index = slot as usize;
        if index >= self.links.len() {
            self.links.resize(index + 1, UNFILED);
        }
        let due = due.clamp(self.now + 1, LAST);
        let (level, bucket) = place(self.now, due);
        let Some(head) = self.heads.get_mut(level).and_then(|heads| heads.get_mut(bucket)) else {
            return;
        };
        let next = std::mem::replace(head, slot);
        if let Some(occupied) = self.occupied.get_mut(level) {
            *occupied |= 1 << bucket;
        }
        if let Some(link) = self.links.get_mut(next as usize) {
            link.previous = slot;
        }
        if let Some(link) = self.links.get_mut(index) {
            let (level, bucket) =
                (u8::try_from(level).unwrap_or_default(), u8::try_from(bucket).unwrap_or_default());
            *link = Link { next, previous: NONE, level, bucket, filed: true };
        }
    }

    /// Clears the slot's alarm, if it has one.
    pub(super) fn clear(&mut self, slot: u32) {
        let Some(link) = self.links.get_mut(slot as usize).filter(|link| link.filed) else {
            return;
        };
        let link = std::mem::replace(link, UNFILED);
        if let Some(next) = self.links.get_mut(link.next as usize) {
            next.previous = link.previous;
        }
        if let Some(previous) = self.links.get_mut(link.previous as usize) {
            previous.next = link.next;
            return;
        }
        let (level, bucket) = (usize::from(link.level), usize::from(link.bucket));
        if let Some(head) = self.heads.get_mut(level).and_then(|heads| heads.get_mut(bucket)) {
            *head = link.next;
        }
        if link.next == NONE
            && let Some(occupied) = self.occupied.get_mut(level)
        {
            *occupied &= !(1 << bucket);
        }
    }

    /// The tick at which the next alarm rings; `None` when none is set.
    pub(super) fn next(&self) -> Option<u64> {
        // What is filed on a lower level is due before everything on a higher one.
        let (level, occupied) = self.occupied.iter().enumerate().find(|(_, occupied)| **occupied != 0)?;
        let shift = BITS * u32::try_from(level).unwrap_or_default();
        let span = (self.now >> shift) & !(BUCKETS as u64 - 1);
        Some((span | u64::from(occupied.trailing_zeros())) << shift)
    }

    /// Goes on to `now`, and takes the slots whose alarms ring until then.
    pub(super) fn advance(&mut self, now: u64, rung: &mut Vec<u32>) {
        while let Some(next) = self.next().filter(|next| *next <= now) {
            let (level, occupied) =
                self.occupied.iter_mut().enumerate().find(|(_, occupied)| **occupied != 0).unzip();
            let (Some(level), Some(occupied)) = (level, occupied) else {
                break;
            };
            let bucket = occupied.trailing_zeros() as usize;
            *occupied &= *occupied - 1;
            self.now = next;
            let head = self.heads.get_mut(level).and_then(|heads| heads.get_mut(bucket));
            let mut slot = head.map_or(NONE, |head| std::mem::replace(head, NONE));
            while let Some(link) = self.links.get_mut(slot as usize) {
                rung.push(slot);
                slot = std::mem::replace(link, UNFILED).next;
            }
        }
        self.now = self.now.max(now.min(LAST - 1));
    }

    /// Gives back the memory of slots that are not in use, when no alarm is set.
    pub(super) fn shrink(&mut self) {
        if self.next().is_none() {
            self.links = Vec::new();
        }
    }
}

/// Level and bucket of a tick after `now`: the level is that of the highest group of bits in which they differ.
fn place(now: u64, due: u64) -> (usize, usize) {
    let level = (63 - ((now ^ due) | 1).leading_zeros()) / BITS;
    let bucket = (due >> (level * BITS)) & (BUCKETS as u64 - 1);
    (level as usize, usize::try_from(bucket).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_near_alarm_rings_at_its_tick_and_once() {
        let mut wheel = Wheel::new();
        wheel.set(3, 5);
        let mut rung = Vec::new();
        wheel.advance(4, &mut rung);
        assert!(rung.is_empty());
        assert_eq!(wheel.next(), Some(5));
        wheel.advance(5, &mut rung);
        assert_eq!(rung, [3]);
        wheel.advance(500, &mut rung);
        assert_eq!((rung.len(), wheel.next()), (1, None));
    }

    #[test]
    fn an_alarm_beyond_the_last_tick_is_kept() {
        let mut wheel = Wheel::new();
        wheel.set(0, u64::MAX);
        assert!(wheel.next().is_some());
        let mut rung = Vec::new();
        wheel.advance(1 << 30, &mut rung);
        assert!(rung.is_empty());
    }

    #[derive(Clone, Debug)]
    enum Step {
        Set(u32, u64),
        Clear(u32),
        Advance(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..40_u32, prop_oneof![0..70_u64, 0..5000_u64, 0..2_000_000_u64])
                .prop_map(|(slot, after)| Step::Set(slot, after)),
            2 => (0..40_u32).prop_map(Step::Clear),
            3 => prop_oneof![0..3_u64, 0..100_u64, 0..10_000_u64, 0..1_000_000_u64].prop_map(Step::Advance),
        ]
    }

    proptest! {
        // Whoever sets an alarm that rings early again, as the engine does, is rung at its tick: never before, and
        // never later than the advance that passes it.
        #[test]
        fn every_alarm_rings_when_it_is_due(steps in proptest::collection::vec(step(), 1..200)) {
            let mut wheel = Wheel::new();
            let mut now = 0_u64;
            let mut due: BTreeMap<u32, u64> = BTreeMap::new();
            for step in steps {
                match step {
                    Step::Set(slot, after) => {
                        wheel.set(slot, now + after);
                        due.insert(slot, (now + after).max(now + 1));
                    }
                    Step::Clear(slot) => {
                        wheel.clear(slot);
                        due.remove(&slot);
                    }
                    Step::Advance(by) => {
                        let to = now + by;
                        // The engine sleeps until `next`, and advances to where it wakes.
                        while let Some(next) = wheel.next().filter(|next| *next <= to) {
                            prop_assert!(next > now || by == 0 || next >= now);
                            let mut rung = Vec::new();
                            wheel.advance(next, &mut rung);
                            now = next;
                            for slot in rung {
                                match due.get(&slot) {
                                    Some(at) if *at > now => wheel.set(slot, *at),
                                    Some(at) => { prop_assert_eq!(*at, now); due.remove(&slot); }
                                    None => prop_assert!(false, "slot {} has no alarm", slot),
                                }
                            }
                        }
                        let mut rung = Vec::new();
                        wheel.advance(to, &mut rung);
                        prop_assert!(rung.is_empty());
                        now = to;
                        prop_assert!(due.values().all(|at| *at > now));
                    }
                }
                let earliest = due.values().min().copied();
                prop_assert_eq!(wheel.next().is_some(), earliest.is_some());
                prop_assert!(wheel.next() <= earliest || earliest.is_none());
            }
        }

        // One long sleep rings all that was due, whatever the level.
        #[test]
        fn a_long_sleep_rings_everything_that_was_due(
            alarms in proptest::collection::vec(1..3_000_000_u64, 1..100), sleep in 1..3_000_000_u64,
        ) {
            let mut wheel = Wheel::new();
            for (slot, due) in alarms.iter().enumerate() {
                wheel.set(u32::try_from(slot).unwrap(), *due);
            }
            let mut rung = Vec::new();
            wheel.advance(sleep, &mut rung);
            for (slot, due) in alarms.iter().enumerate() {
                let slot = u32::try_from(slot).unwrap();
                prop_assert!(*due > sleep || rung.contains(&slot), "slot {} due at {}", slot, due);
            }
        }
    }
}

//! What is known of where a listener's sessions come from: how many each source has, and how much of its rate it has
//! spent. Bounded, whatever comes; time is passed in.
//!
//! The rule where the room is spent: a source with live sessions is never forgotten. Of the others those go first whose
//! rate is whole again, and then those that owe least. Where all have live sessions, a source that nobody knows comes in
//! uncounted: to fill the table takes as many sources with a session each, and those must lock nobody else out. The
//! listener's own limits bound them all together.

use std::{
    collections::{HashMap, hash_map::RandomState},
    hash::BuildHasher as _,
    net::{IpAddr, Ipv4Addr},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use governor::{nanos::Nanos, state::StateStore};

/// Sources of a listener that are known at once.
const MOST: usize = 65_536;

/// Parts of the table, each with a lock of its own.
const SHARDS: usize = 16;

/// Between two looks for room, where there was next to none.
const SWEEP: Duration = Duration::from_millis(100);

/// Where a session comes from, as far as limits go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Source {
    /// An IPv4 address.
    V4(Ipv4Addr),
    /// The first 64 bits of an IPv6 address: what one customer has (RFC 6177).
    V6([u8; 8]),
}

impl Source {
    pub(super) fn of(client: IpAddr) -> Self {
        match client.to_canonical() {
            IpAddr::V4(client) => Self::V4(client),
            IpAddr::V6(client) => {
                let mut network = [0; 8];
                network.iter_mut().zip(client.octets()).for_each(|(to, from)| *to = from);
                Self::V6(network)
            }
        }
    }
}

/// The sources of one listener.
#[derive(Debug)]
pub(super) struct Sources {
    shards: Box<[Mutex<Shard>]>,
    hasher: RandomState,
    /// Sources that a shard may know.
    room: usize,
}

#[derive(Debug, Default)]
struct Shard {
    known: HashMap<Source, Known>,
    /// Until then a look for room would find none.
    full_until: Nanos,
}

#[derive(Debug, Default)]
struct Known {
    live: u32,
    /// When its rate is whole again, if it has spent of it.
    owes_until: Option<Nanos>,
}

/// What came of counting a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Counted {
    /// It counts, until [`Sources::leave`].
    Yes,
    /// There is no room to count it.
    Uncounted,
    /// The source has too many.
    TooMany,
}

impl Default for Sources {
    fn default() -> Self {
        Self::with_room(MOST)
    }
}

impl Sources {
    fn with_room(most: usize) -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Self { shards, hasher: RandomState::new(), room: most / SHARDS }
    }

    /// Counts a session of a source that may have `most`.
    pub(super) fn enter(&self, source: Source, most: u32, now: Nanos) -> Counted {
        let Some(mut shard) = self.shard(source) else { return Counted::Uncounted };
        if let Some(known) = shard.known.get_mut(&source) {
            if known.live >= most {
                return Counted::TooMany;
            }
            known.live += 1;
            return Counted::Yes;
        }
        if !shard.has_room(self.room, now) {
            return Counted::Uncounted;
        }
        shard.known.insert(source, Known { live: 1, owes_until: None });
        Counted::Yes
    }

    /// A session that was counted has ended.
    pub(super) fn leave(&self, source: Source) {
        let Some(mut shard) = self.shard(source) else { return };
        let Some(known) = shard.known.get_mut(&source) else { return };
        known.live = known.live.saturating_sub(1);
        // What it owes is remembered while there is room.
        if known.live == 0 && known.owes_until.is_none() {
            shard.known.remove(&source);
        }
    }

    fn shard(&self, source: Source) -> Option<MutexGuard<'_, Shard>> {
        let place = self.hasher.hash_one(source) % SHARDS as u64;
        let shard = self.shards.get(usize::try_from(place).unwrap_or_default())?;
        Some(shard.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Shard {
    /// True if there is room for one more, perhaps since others were forgotten. A look at all of them makes room for many,
    /// or is not repeated soon.
    fn has_room(&mut self, room: usize, now: Nanos) -> bool {
        if self.known.len() < room {
            return true;
        }
        if now < self.full_until {
            return false;
        }
        let enough = room - (room / 8).max(1);
        self.known.retain(|_, known| known.live > 0 || known.owes_until.is_some_and(|until| until > now));
        if let Some(excess) = self.known.len().checked_sub(enough + 1) {
            let idle = self.known.values().filter(|known| known.live == 0);
            let mut owed: Vec<Nanos> = idle.filter_map(|known| known.owes_until).collect();
            if let Some(last) = owed.len().checked_sub(1) {
                let (_, least, _) = owed.select_nth_unstable(excess.min(last));
                let least = *least;
                self.known.retain(|_, known| known.live > 0 || known.owes_until > Some(least));
            }
        }
        if self.known.len() > enough {
            self.full_until = now + Nanos::from(SWEEP);
        }
        self.known.len() < room
    }
}

/// The rates of sources: one that is not known has spent nothing.
impl StateStore for &Sources {
    type Key = Source;

    fn measure_and_replace<T, F, E>(&self, source: &Source, measure: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let mut shard = self.shard(*source);
        let known = shard.as_mut().and_then(|shard| shard.known.get_mut(source));
        let (outcome, until) = measure(known.as_ref().and_then(|known| known.owes_until))?;
        if let Some(known) = known {
            known.owes_until = Some(until);
        }
        Ok(outcome)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(number: u32) -> Source {
        Source::V4(number.into())
    }

    fn at(seconds: u64) -> Nanos {
        Nanos::from(Duration::from_secs(seconds))
    }

    fn known(sources: &Sources) -> usize {
        sources.shards.iter().map(|shard| shard.lock().unwrap().known.len()).sum()
    }

    fn owe(sources: &Sources, source: Source, until: Nanos) {
        sources.measure_and_replace(&source, |_| Ok::<_, ()>(((), until))).unwrap();
    }

    #[test]
    fn a_source_is_an_ipv4_address_or_an_ipv6_network_of_64_bits() {
        let of = |client: &str| Source::of(client.parse().unwrap());
        assert_eq!(of("192.0.2.1"), of("::ffff:192.0.2.1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
        assert_eq!(of("2001:db8:1:2::1"), of("2001:db8:1:2:ffff::9"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
    }

    #[test]
    fn a_source_has_as_many_sessions_as_it_may_and_none_is_kept_of_one_that_has_left() {
        let sources = Sources::default();
        assert_eq!(sources.enter(source(1), 2, at(0)), Counted::Yes);
        assert_eq!(sources.enter(source(1), 2, at(0)), Counted::Yes);
        assert_eq!(sources.enter(source(1), 2, at(0)), Counted::TooMany);
        assert_eq!(sources.enter(source(2), 2, at(0)), Counted::Yes);
        sources.leave(source(1));
        assert_eq!(sources.enter(source(1), 2, at(0)), Counted::Yes);
        for one in [1, 1, 2] {
            sources.leave(source(one));
        }
        assert_eq!(known(&sources), 0);
    }

    #[test]
    fn a_flood_of_sources_is_bounded_evicts_nobody_with_sessions_and_locks_nobody_out() {
        let sources = Sources::with_room(64 * SHARDS);
        let victims: Vec<_> = (0..200).map(source).collect();
        victims.iter().for_each(|victim| assert_eq!(sources.enter(*victim, 1, at(0)), Counted::Yes));
        for number in 1_000..50_000 {
            // Comes, spends of its rate, and goes.
            let passing = source(number);
            if sources.enter(passing, 1, at(1)) == Counted::Yes {
                owe(&sources, passing, at(1_000));
                sources.leave(passing);
            }
            assert!(known(&sources) <= 64 * SHARDS);
        }
        victims.iter().for_each(|victim| assert_eq!(sources.enter(*victim, 1, at(2)), Counted::TooMany));
        // All stay: the table is full of live ones, and who comes then is not counted.
        let mut uncounted = 0;
        for number in 100_000..105_000 {
            match sources.enter(source(number), 1, at(3)) {
                Counted::Yes => {}
                Counted::Uncounted => uncounted += 1,
                Counted::TooMany => panic!("nobody knows {number}"),
            }
        }
        assert_eq!((known(&sources), uncounted), (64 * SHARDS, 5_000 + 200 - 64 * SHARDS));
        victims.iter().for_each(|victim| sources.leave(*victim));
        assert_eq!(sources.enter(victims[0], 1, at(3)), Counted::Yes, "as there is room again");
    }

    #[test]
    fn those_that_owe_least_are_forgotten_first() {
        let mut shard = Shard::default();
        for number in 0..16 {
            shard
                .known
                .insert(source(number), Known { live: 0, owes_until: Some(at(10 + u64::from(number))) });
        }
        assert!(shard.has_room(16, at(11)));
        // Two are whole again, which is as many as are looked for.
        assert_eq!(shard.known.len(), 14);
        for number in 20..22 {
            shard.known.insert(source(number), Known { live: 1, owes_until: None });
        }
        assert!(shard.has_room(16, at(11)));
        let left = |number| shard.known.contains_key(&source(number));
        assert_eq!([2, 3, 4, 15, 20, 21].map(left), [false, false, true, true, true, true]);
    }

    #[test]
    fn where_all_have_sessions_the_table_is_not_looked_through_for_each_newcomer() {
        let mut shard = Shard::default();
        for number in 0..16 {
            shard.known.insert(source(number), Known { live: 1, owes_until: None });
        }
        assert!(!shard.has_room(16, at(1)));
        shard.known.values_mut().for_each(|known| known.live = 0);
        assert!(!shard.has_room(16, at(1)), "not before its time");
        assert!(shard.has_room(16, at(2)));
    }
}

//! How much may come in at a listener: sessions at once and new ones a second, of all together and of each source. The
//! limits are the snapshot's; what is counted is the listener's own, and stays what it is when the limits change.

use std::{
    net::IpAddr,
    num::NonZeroU32,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use governor::{
    Quota, RateLimiter,
    clock::Clock,
    middleware::NoOpMiddleware,
    nanos::Nanos,
    state::{InMemoryState, NotKeyed, StateStore},
};
use tokio::time::Instant;

use super::{
    ListenerCell,
    sources::{Counted, Source, Sources},
};

/// Why a session is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Its address may not come in, or may not use the route.
    Denied,
    /// The listener has as many sessions as it may.
    Sessions,
    /// The listener has had as many new sessions of late as it may.
    Rate,
    /// Its source has as many sessions as it may.
    SourceSessions,
    /// Its source has had as many new sessions of late as it may.
    SourceRate,
    /// The process takes as much memory as it may.
    Memory,
    /// Too many sessions have not told yet what they want.
    Handshakes,
}

impl Refusal {
    /// Every reason.
    pub const ALL: [Self; 7] = [
        Self::Denied,
        Self::Sessions,
        Self::Rate,
        Self::SourceSessions,
        Self::SourceRate,
        Self::Memory,
        Self::Handshakes,
    ];

    /// The word in labels.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Denied => "denied",
            Self::Sessions => "sessions",
            Self::Rate => "rate",
            Self::SourceSessions => "source_sessions",
            Self::SourceRate => "source_rate",
            Self::Memory => "memory",
            Self::Handshakes => "handshakes",
        }
    }

    /// It in a sentence, for the session's line.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Denied => "this address may not come in",
            Self::Sessions => "the listener has max_sessions",
            Self::Rate => "more than max_rate new sessions a second",
            Self::SourceSessions => "the source has max_source_sessions",
            Self::SourceRate => "more than max_source_rate new sessions a second from the source",
            Self::Memory => "the process takes max_memory",
            Self::Handshakes => "max_handshakes are under way",
        }
    }
}

/// How much may come in. `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Sessions at once.
    pub sessions: Option<u32>,
    /// New sessions a second, with a burst of as many.
    pub rate: Option<NonZeroU32>,
    /// Sessions of one source at once: an IPv4 address, or an IPv6 network of 64 bits.
    pub source_sessions: Option<u32>,
    /// New sessions of one source a second, with a burst of as many.
    pub source_rate: Option<NonZeroU32>,
}

/// The limits of a listener.
#[derive(Debug)]
pub struct Admission {
    cell: Arc<ListenerCell>,
    limits: Limits,
    rate: Option<Rate<NotKeyed, Spent>>,
    source_rate: Option<Rate<Source, OfListener>>,
}

type Rate<Key, State> = RateLimiter<Key, State, Hands, NoOpMiddleware<Nanos>>;

/// What a listener counts for its limits. Nothing while it has none.
#[derive(Debug, Default)]
pub(super) struct Census {
    /// Sessions that came in under limits.
    admitted: AtomicU64,
    /// At most so many sessions came in when there were none, and live.
    before: AtomicU64,
    at_entry: AtomicU64,
    /// Of the rate of all together. Every rate has a burst of a second, so that it means the same under another one.
    spent: InMemoryState,
    sources: OnceLock<Box<(Instant, Sources)>>,
}

/// A session that was let in: it counts until this is dropped.
#[derive(Debug)]
pub struct Admitted {
    cell: Arc<ListenerCell>,
    counts: bool,
    source: Option<Source>,
}

/// A session that has not told yet what it wants: it counts as such until this is dropped.
#[derive(Debug)]
pub struct AtEntry(Arc<ListenerCell>);

impl Limits {
    /// True if there is none.
    #[must_use]
    pub fn are_none(&self) -> bool {
        *self == Self::default()
    }
}

impl Admission {
    /// Limits for this listener. What it has counted under other limits counts under these, and what of its rates is spent
    /// is spent; by source it counts from when there first is a limit by source.
    #[must_use]
    pub fn new(cell: &Arc<ListenerCell>, limits: Limits) -> Arc<Self> {
        cell.census.take_over(cell.active());
        let rate = limits
            .rate
            .map(|rate| RateLimiter::new(Quota::per_second(rate), Spent(Arc::clone(cell)), Hands::default()));
        let source_rate = limits.source_rate.map(|rate| {
            RateLimiter::new(Quota::per_second(rate), OfListener(Arc::clone(cell)), Hands::default())
        });
        Arc::new(Self { cell: Arc::clone(cell), limits, rate, source_rate })
    }

    /// Lets a session of this client in.
    ///
    /// # Errors
    /// A limit is reached. What its source may do is asked first, so that a source beyond its own limits takes nothing from
    /// others.
    pub fn admit(&self, client: IpAddr, now: Instant) -> Result<Admitted, Refusal> {
        let mut admitted = self.nobody();
        self.count_source(&mut admitted, client, now)?;
        self.count(&mut admitted, now)?;
        Ok(admitted)
    }

    /// Lets a session in whose client is not known yet: [`Admission::count_source`] is to follow.
    ///
    /// # Errors
    /// A limit of the listener is reached.
    pub fn admit_unknown(&self, now: Instant) -> Result<Admitted, Refusal> {
        let mut admitted = self.nobody();
        self.count(&mut admitted, now)?;
        Ok(admitted)
    }

    /// Counts a session for the source of this client, once.
    ///
    /// # Errors
    /// A limit of its source is reached.
    pub fn count_source(&self, admitted: &mut Admitted, client: IpAddr, now: Instant) -> Result<(), Refusal> {
        let limits = &self.limits;
        if admitted.source.is_some() || limits.source_sessions.is_none() && limits.source_rate.is_none() {
            return Ok(());
        }
        let (source, (_, sources)) = (Source::of(client), self.cell.census.sources(now));
        let now = self.cell.census.since(now);
        match sources.enter(source, limits.source_sessions.unwrap_or(u32::MAX), now) {
            Counted::Yes => admitted.source = Some(source),
            Counted::Uncounted => return Ok(()),
            Counted::TooMany => return Err(Refusal::SourceSessions),
        }
        match &self.source_rate {
            Some(rate) => {
                rate.clock().set(now);
                rate.check_key(&source).map_err(|_| Refusal::SourceRate)
            }
            None => Ok(()),
        }
    }

    /// True if these are the limits of this listener.
    #[must_use]
    pub fn is_of(&self, cell: &Arc<ListenerCell>, limits: Limits) -> bool {
        Arc::ptr_eq(&self.cell, cell) && self.limits == limits
    }

    fn nobody(&self) -> Admitted {
        Admitted { cell: Arc::clone(&self.cell), counts: false, source: None }
    }

    fn count(&self, admitted: &mut Admitted, now: Instant) -> Result<(), Refusal> {
        let most = self.limits.sessions.map_or(u64::MAX, u64::from);
        if !self.cell.census.enter(most, || self.cell.active()) {
            return Err(Refusal::Sessions);
        }
        admitted.counts = true;
        match &self.rate {
            Some(rate) => {
                rate.clock().set(self.cell.census.since(now));
                rate.check().map_err(|_| Refusal::Rate)
            }
            None => Ok(()),
        }
    }
}

impl Census {
    /// Limits come into force at a listener that has `live` sessions: those that were not counted count from now on.
    fn take_over(&self, live: u64) {
        self.before.store(live.saturating_sub(self.admitted.load(Relaxed)), Relaxed);
    }

    /// Counts a session that was begun already, unless there are `most`.
    fn enter(&self, most: u64, live: impl FnOnce() -> u64) -> bool {
        let mut before = self.before.load(Relaxed);
        if before > 0 {
            // Those who ask are among the living as well: it may be too many, but never more than there were.
            let left = live().saturating_sub(self.admitted.load(Relaxed) + 1);
            before = self.before.fetch_min(left, Relaxed).min(left);
        }
        let one_more = |admitted: u64| (admitted + before < most).then_some(admitted + 1);
        self.admitted.fetch_update(Relaxed, Relaxed, one_more).is_ok()
    }

    fn sources(&self, now: Instant) -> &(Instant, Sources) {
        self.sources.get_or_init(|| Box::new((now, Sources::default())))
    }

    /// Time on the clock of the limiters.
    fn since(&self, now: Instant) -> Nanos {
        now.saturating_duration_since(self.sources(now).0).into()
    }

    /// Sessions that have not told yet what they want.
    pub(super) fn at_entry(&self) -> u64 {
        self.at_entry.load(Relaxed)
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let census = &self.cell.census;
        if self.counts {
            census.admitted.fetch_sub(1, Relaxed);
        }
        if let Some((source, known)) = self.source.zip(census.sources.get()) {
            known.1.leave(source);
        }
    }
}

impl AtEntry {
    /// Counts a session of this listener, of which `most` may be there at once.
    ///
    /// # Errors
    /// As many are there.
    pub fn take(cell: &Arc<ListenerCell>, most: u32) -> Result<Self, Refusal> {
        let one_more = |there: u64| (there < u64::from(most)).then_some(there + 1);
        match cell.census.at_entry.fetch_update(Relaxed, Relaxed, one_more) {
            Ok(_) => Ok(Self(Arc::clone(cell))),
            Err(_) => Err(Refusal::Handshakes),
        }
    }
}

impl Drop for AtEntry {
    fn drop(&mut self) {
        self.0.census.at_entry.fetch_sub(1, Relaxed);
    }
}

/// What of a listener's rate is spent.
#[derive(Debug)]
struct Spent(Arc<ListenerCell>);

impl StateStore for Spent {
    type Key = NotKeyed;

    fn measure_and_replace<T, F, E>(&self, key: &NotKeyed, measure: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        self.0.census.spent.measure_and_replace(key, measure)
    }
}

/// The rates of a listener's sources.
#[derive(Debug)]
struct OfListener(Arc<ListenerCell>);

impl StateStore for OfListener {
    type Key = Source;

    fn measure_and_replace<T, F, E>(&self, source: &Source, measure: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        match self.0.census.sources.get() {
            Some(known) => (&known.1).measure_and_replace(source, measure),
            None => measure(None).map(|(outcome, _)| outcome),
        }
    }
}

/// A clock that shows what it was set to last. It is never set back, and starts at zero.
#[derive(Debug, Default)]
struct Hands(AtomicU64);

impl Hands {
    fn set(&self, now: Nanos) {
        self.0.fetch_max(now.as_u64(), Relaxed);
    }
}

impl Clock for Hands {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        self.0.load(Relaxed).into()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        ids::ListenerName,
        telemetry::{End, Side},
    };

    const SECOND: Duration = Duration::from_secs(1);

    fn cell() -> Arc<ListenerCell> {
        Arc::new(ListenerCell::new(ListenerName::from("l"), "127.0.0.1:1".parse().unwrap()))
    }

    fn client(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    fn per_second(rate: u32) -> Option<NonZeroU32> {
        NonZeroU32::new(rate)
    }

    /// How many of so many are let in at once and stay.
    fn let_in(admission: &Admission, client: IpAddr, many: u32, now: Instant) -> Vec<Admitted> {
        (0..many).filter_map(|_| admission.admit(client, now).ok()).collect()
    }

    #[test]
    fn sessions_at_once_are_limited_and_one_that_ends_makes_room() {
        let (cell, now) = (cell(), Instant::now());
        let limits = Limits { sessions: Some(3), ..Limits::default() };
        let admission = Admission::new(&cell, limits);
        let mut inside = let_in(&admission, client(1), 5, now);
        assert_eq!(inside.len(), 3);
        assert_eq!(admission.admit(client(2), now).unwrap_err(), Refusal::Sessions);
        inside.pop();
        inside.push(admission.admit_unknown(now).unwrap());
        assert_eq!(admission.admit_unknown(now).unwrap_err(), Refusal::Sessions);
        drop(inside);
        assert_eq!(let_in(&admission, client(1), 5, now).len(), 3);
    }

    #[test]
    fn a_rate_is_a_burst_of_as_many_and_then_as_many_a_second() {
        let start = Instant::now();
        let admission = Admission::new(&cell(), Limits { rate: per_second(10), ..Limits::default() });
        assert_eq!(let_in(&admission, client(1), 50, start).len(), 10);
        assert_eq!(admission.admit(client(2), start).unwrap_err(), Refusal::Rate);
        assert_eq!(let_in(&admission, client(1), 50, start + SECOND / 2).len(), 5);
        let mut more = 0;
        for tenth in 6..106_u32 {
            more += let_in(&admission, client(1), 50, start + SECOND * tenth / 10).len();
        }
        assert_eq!(more, 100, "in ten seconds");
    }

    #[test]
    fn what_is_spent_of_a_rate_stays_spent_when_limits_change() {
        let (cell, start) = (cell(), Instant::now());
        let limits = |rate, sessions| Limits { rate: per_second(rate), sessions, ..Limits::default() };
        let admission = Admission::new(&cell, limits(20, None));
        assert_eq!(let_in(&admission, client(1), 50, start).len(), 20);
        for (rate, sessions, half_a_second) in
            [(20, Some(1_000), 10), (21, None, 10), (100, None, 50), (2, None, 1)]
        {
            let admission = Admission::new(&cell, limits(rate, sessions));
            assert_eq!(admission.admit(client(1), start).unwrap_err(), Refusal::Rate, "{rate}");
            // Of a cell of its own, as this one goes on from where it is.
            let other = self::cell();
            drop(let_in(&Admission::new(&other, limits(20, None)), client(1), 50, start));
            let later = Admission::new(&other, limits(rate, sessions));
            assert_eq!(let_in(&later, client(1), 500, start + SECOND / 2).len(), half_a_second, "{rate}");
        }
    }

    #[test]
    fn a_source_beyond_its_limits_takes_nothing_from_others() {
        let start = Instant::now();
        let limits = Limits {
            sessions: Some(100),
            rate: per_second(20),
            source_sessions: Some(4),
            source_rate: per_second(5),
        };
        let admission = Admission::new(&cell(), limits);
        let flood = let_in(&admission, client(1), 1_000, start);
        assert_eq!(flood.len(), 4);
        assert_eq!(admission.admit(client(1), start).unwrap_err(), Refusal::SourceSessions);
        drop(flood);
        assert_eq!(let_in(&admission, client(1), 1_000, start).len(), 1);
        assert_eq!(admission.admit(client(1), start).unwrap_err(), Refusal::SourceRate);
        // What was refused has cost the listener's rate nothing.
        assert_eq!(let_in(&admission, client(2), 4, start).len(), 4);
        assert_eq!(let_in(&admission, client(1), 1_000, start + SECOND).len(), 4);
    }

    #[test]
    fn a_network_of_64_bits_is_one_source() {
        let limits = Limits { source_sessions: Some(1), ..Limits::default() };
        let (admission, now) = (Admission::new(&cell(), limits), Instant::now());
        let _first = admission.admit("2001:db8::1".parse().unwrap(), now).unwrap();
        assert!(admission.admit("2001:db8::2".parse().unwrap(), now).is_err());
        assert!(admission.admit("2001:db8:0:1::2".parse().unwrap(), now).is_ok());
    }

    #[test]
    fn a_client_that_is_known_later_counts_once_and_goes_if_its_source_has_too_many() {
        let limits = Limits { sessions: Some(3), source_sessions: Some(1), ..Limits::default() };
        let (cell, now) = (cell(), Instant::now());
        let admission = Admission::new(&cell, limits);
        let mut first = admission.admit_unknown(now).unwrap();
        admission.count_source(&mut first, client(1), now).unwrap();
        admission.count_source(&mut first, client(1), now).unwrap();
        let mut second = admission.admit_unknown(now).unwrap();
        let refused = admission.count_source(&mut second, client(1), now);
        assert_eq!(refused.unwrap_err(), Refusal::SourceSessions);
        drop(second);
        drop(first);
        let mut third = admission.admit_unknown(now).unwrap();
        assert!(admission.count_source(&mut third, client(1), now).is_ok());
    }

    #[test]
    fn sessions_count_under_the_next_limits_too() {
        let limits = |sessions| Limits { sessions, source_sessions: Some(2), ..Limits::default() };
        let (cell, now) = (cell(), Instant::now());
        let before = Admission::new(&cell, limits(Some(5)));
        let mut inside = let_in(&before, client(1), 2, now);
        inside.extend(let_in(&before, client(2), 2, now));
        inside.iter().for_each(|_| cell.begin());
        let after = Admission::new(&cell, limits(Some(4)));
        cell.begin();
        assert_eq!(after.admit(client(3), now).unwrap_err(), Refusal::Sessions);
        cell.finish(End::closed(Side::Client), SECOND);
        let wider = Admission::new(&cell, limits(None));
        assert_eq!(wider.admit(client(1), now).unwrap_err(), Refusal::SourceSessions);
        drop(inside);
        assert_eq!(let_in(&wider, client(1), 5, now).len(), 2);
    }

    #[test]
    fn sessions_that_came_when_there_were_no_limits_count_until_they_end() {
        let (cell, now) = (cell(), Instant::now());
        (0..3).for_each(|_| cell.begin());
        let admission = Admission::new(&cell, Limits { sessions: Some(4), ..Limits::default() });
        let mut inside = Vec::new();
        let mut ask = || {
            cell.begin();
            let admitted = admission.admit(client(1), now);
            if admitted.is_err() {
                cell.finish(End::closed(Side::Client), SECOND);
            }
            inside.extend(admitted.ok());
            inside.len()
        };
        assert_eq!((ask(), ask()), (1, 1));
        cell.finish(End::closed(Side::Client), SECOND);
        assert_eq!((ask(), ask()), (2, 2));
        (0..2).for_each(|_| cell.finish(End::closed(Side::Client), SECOND));
        assert_eq!((ask(), ask(), ask()), (3, 4, 4));
    }

    #[test]
    fn so_many_may_be_at_the_entry() {
        let cell = cell();
        let first = AtEntry::take(&cell, 2).unwrap();
        let _second = AtEntry::take(&cell, 2).unwrap();
        assert_eq!(AtEntry::take(&cell, 2).unwrap_err(), Refusal::Handshakes);
        drop(first);
        assert!(AtEntry::take(&cell, 2).is_ok());
        assert_eq!(cell.at_entry(), 1);
    }
}

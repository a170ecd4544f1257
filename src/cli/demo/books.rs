//! What the load saw: every session with its cloud, its times and its failure. The panel reads totals and the last
//! seconds; the judge reads everything.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use hdrhistogram::Histogram;
use tokio::time::Instant;

use super::judge::milliseconds;

/// Sessions kept: a whole run of the script many times over. Served for longer, the oldest go.
const KEPT: usize = 65_536;

/// A client of the load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Comes, asks once, goes.
    Short,
    /// Stays and asks again and again.
    Long,
}

/// Why a session failed, as its client saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The proxy refused the connection.
    Refused,
    /// Reset.
    Reset,
    /// Ended before the answer did.
    Ended,
    /// No answer in time.
    TimedOut,
    /// The answer was not what had been sent.
    WrongBytes,
    /// Another error on this machine.
    Io,
}

/// A session that is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Session {
    /// Which client.
    pub(super) kind: Kind,
    /// When it was due to begin: a load that comes late does not look quick.
    pub(super) begun: Instant,
    /// When it was over.
    pub(super) ended: Instant,
    /// From `begun` to the first byte of the answer.
    pub(super) first_byte: Option<Duration>,
    /// The cloud that answered, by its place.
    pub(super) cloud: Option<usize>,
    /// Why it failed.
    pub(super) failure: Option<Failure>,
}

/// A cloud was killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Outage {
    /// Which, by its place.
    pub(super) cloud: usize,
    /// When the kill was begun.
    pub(super) began: Instant,
    /// When nothing could connect any more.
    pub(super) in_force: Option<Instant>,
}

/// Counts since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    /// Short sessions that were begun.
    pub(super) started: u64,
    /// Short sessions that ended well.
    pub(super) ok: u64,
    /// Sessions of both kinds that failed and need not have.
    pub(super) failed: u64,
    /// Short sessions that were on a cloud when it was killed.
    pub(super) cut: u64,
    /// Long sessions now.
    pub(super) long: u64,
    /// Long sessions that were on a cloud when it was killed.
    pub(super) long_cut: u64,
}

/// Times in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub(super) struct Quantiles {
    /// The median.
    pub(super) p50: f64,
    /// All but the slowest hundredth.
    pub(super) p99: f64,
}

/// The load writes, everyone reads.
#[derive(Debug, Default)]
pub(super) struct Books(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    totals: Totals,
    over: VecDeque<Session>,
    /// Long sessions now: since when, and on which cloud.
    long: Vec<(Instant, usize)>,
    outages: Vec<Outage>,
}

impl Failure {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Reset => "reset",
            Self::Ended => "ended",
            Self::TimedOut => "timed_out",
            Self::WrongBytes => "wrong_bytes",
            Self::Io => "io",
        }
    }
}

impl Outage {
    /// True for a session that could not outlive the kill: begun before it was in force, not over when it began, and
    /// not known to be on another cloud.
    pub(super) fn excuses(&self, session: &Session) -> bool {
        session.cloud.is_none_or(|cloud| cloud == self.cloud)
            && session.ended >= self.began
            && self.in_force.is_none_or(|in_force| session.begun < in_force)
            && session.failure != Some(Failure::WrongBytes)
    }
}

impl Books {
    /// A short session was begun.
    pub(super) fn started(&self) {
        self.inner().totals.started += 1;
    }

    /// A long session has had its first answer.
    pub(super) fn opened(&self, begun: Instant, cloud: usize) {
        self.inner().long.push((begun, cloud));
    }

    /// A session is over.
    pub(super) fn over(&self, session: Session) {
        let mut inner = self.inner();
        if session.kind == Kind::Long {
            let live = inner
                .long
                .iter()
                .position(|(begun, on)| *begun == session.begun && Some(*on) == session.cloud);
            if let Some(place) = live {
                inner.long.swap_remove(place);
            }
        }
        let excused = inner.outages.iter().any(|outage| outage.excuses(&session));
        let totals = &mut inner.totals;
        let count = match (session.failure, session.kind) {
            (None, Kind::Short) => Some(&mut totals.ok),
            (None, Kind::Long) => None,
            (Some(_), Kind::Short) if excused => Some(&mut totals.cut),
            (Some(_), Kind::Long) if excused => Some(&mut totals.long_cut),
            (Some(_), _) => Some(&mut totals.failed),
        };
        if let Some(count) = count {
            *count += 1;
        }
        if inner.over.len() == KEPT {
            inner.over.pop_front();
        }
        inner.over.push_back(session);
    }

    /// A kill is about to begin.
    pub(super) fn outage(&self, cloud: usize) {
        self.inner().outages.push(Outage { cloud, began: Instant::now(), in_force: None });
    }

    /// The last kill has been in force since then.
    pub(super) fn outage_in_force(&self, since: Instant) {
        if let Some(outage) = self.inner().outages.last_mut() {
            outage.in_force = Some(since);
        }
    }

    /// The last kill.
    pub(super) fn last_outage(&self) -> Option<Outage> {
        self.inner().outages.last().copied()
    }

    /// Counts now.
    pub(super) fn totals(&self) -> Totals {
        let inner = self.inner();
        Totals { long: inner.long.len() as u64, ..inner.totals }
    }

    /// Every session that is over.
    pub(super) fn sessions(&self) -> Vec<Session> {
        self.inner().over.iter().copied().collect()
    }

    /// When the first answer of a short session came that was begun after `since` and that this cloud served.
    pub(super) fn first_answer(&self, cloud: usize, since: Instant) -> Option<Instant> {
        let inner = self.inner();
        let answers = inner.over.iter().filter(|session| {
            session.kind == Kind::Short && session.cloud == Some(cloud) && session.begun >= since
        });
        answers.filter_map(|session| Some(session.begun + session.first_byte?)).min()
    }

    /// Times to the first byte of sessions of a cloud that were over after `since`.
    pub(super) fn first_bytes(&self, cloud: usize, since: Instant) -> Option<Quantiles> {
        let inner = self.inner();
        let recent = inner.over.iter().rev().take_while(|session| session.ended >= since);
        Quantiles::of(
            recent
                .filter(|session| {
                    session.kind == Kind::Short && session.cloud == Some(cloud) && session.failure.is_none()
                })
                .filter_map(|session| session.first_byte),
        )
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Quantiles {
    /// `None` without a duration.
    pub(super) fn of(durations: impl Iterator<Item = Duration>) -> Option<Self> {
        // Microseconds up to a minute; three digits are more than a panel shows.
        let mut histogram = Histogram::<u64>::new_with_bounds(1, 60_000_000, 3).ok()?;
        for duration in durations {
            histogram.saturating_record(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX).max(1));
        }
        if histogram.is_empty() {
            return None;
        }
        let milliseconds =
            |quantile| milliseconds(Duration::from_micros(histogram.value_at_quantile(quantile)));
        Some(Self { p50: milliseconds(0.5), p99: milliseconds(0.99) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(cloud: Option<usize>, begun: Instant, ended: Instant) -> Session {
        let failure = Some(Failure::TimedOut);
        Session { kind: Kind::Short, begun, ended, first_byte: None, cloud, failure }
    }

    #[test]
    fn only_sessions_that_the_kill_met_on_its_cloud_are_excused() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let outage = Outage { cloud: 0, began: at(10), in_force: Some(at(11)) };
        assert!(outage.excuses(&failed(Some(0), at(9), at(15))));
        assert!(outage.excuses(&failed(None, at(9), at(15))), "on its way to a cloud nobody knows");
        assert!(!outage.excuses(&failed(Some(1), at(9), at(15))), "on the other cloud");
        assert!(!outage.excuses(&failed(Some(0), at(5), at(9))), "over before");
        assert!(!outage.excuses(&failed(None, at(11), at(16))), "begun when nothing could connect any more");
        let wrong = Session { failure: Some(Failure::WrongBytes), ..failed(Some(0), at(9), at(15)) };
        assert!(!outage.excuses(&wrong), "wrong bytes have no excuse");
    }

    #[test]
    fn each_session_is_counted_once_and_where_it_belongs() {
        let books = Books::default();
        let begun = Instant::now();
        let session = |failure| Session { failure, ..failed(Some(0), begun, Instant::now()) };
        (0..3).for_each(|_| books.started());
        books.opened(begun, 0);
        assert_eq!(books.totals().long, 1);
        books.over(session(None));
        books.over(session(Some(Failure::Reset)));
        books.outage(0);
        books.over(session(Some(Failure::TimedOut)));
        books.over(Session { kind: Kind::Long, ..session(Some(Failure::TimedOut)) });
        let wanted = Totals { started: 3, ok: 1, failed: 1, cut: 1, long: 0, long_cut: 1 };
        assert_eq!(books.totals(), wanted);
        assert_eq!(books.sessions().len(), 4);
    }

    #[test]
    fn quantiles_need_a_duration() {
        assert_eq!(Quantiles::of(std::iter::empty()), None);
        let times = Quantiles::of((1..=100).map(Duration::from_millis)).unwrap();
        assert!((times.p50 - 50.0).abs() < 0.1 && (times.p99 - 99.0).abs() < 0.1, "{times:?}");
    }
}

//! What a span of work came to.

use std::{
    io,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use hdrhistogram::Histogram;

use super::{Failure, Failures};

/// Figures of a span, of one thread or of several.
#[derive(Clone, Debug)]
pub struct Tally {
    /// Exchanges or sessions that were completed; connections that are held.
    pub units: u64,
    /// Bytes that came, where bytes are the work.
    pub down: u64,
    /// Bytes that went, where bytes are the work.
    pub up: u64,
    /// What failed.
    pub failures: Failures,
    /// Units of an open loop that were due and had not begun when the span ended.
    pub unsent: u64,
    /// Connections held at first, where holding is the work.
    pub held: u64,
    /// How long it took.
    pub elapsed: Duration,
    /// Nanoseconds from the intended start of a unit to its end.
    pub latency: Histogram<u64>,
    /// Nanoseconds from the start of a connect to the established connection.
    pub connect: Histogram<u64>,
}

/// What a run is told and tells while it works: all threads share one.
#[derive(Debug)]
pub struct Live {
    /// True once the run is to end early.
    pub stop: fn() -> bool,
    /// Units so far.
    pub units: AtomicU64,
    /// Bytes so far, both ways.
    pub bytes: AtomicU64,
    /// Failures so far.
    pub failures: AtomicU64,
}

/// What a thread has told [`Live`] already.
#[derive(Default)]
pub(super) struct Told {
    units: u64,
    bytes: u64,
    failures: u64,
}

impl Tally {
    /// Nothing yet.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new() -> io::Result<Self> {
        let histogram = || Histogram::new_with_bounds(100, 600_000_000_000, 3).map_err(io::Error::other);
        Ok(Self {
            units: 0,
            down: 0,
            up: 0,
            failures: Failures::default(),
            unsent: 0,
            held: 0,
            elapsed: Duration::ZERO,
            latency: histogram()?,
            connect: histogram()?,
        })
    }

    /// Adds what another thread did in the same span.
    ///
    /// # Errors
    /// Never: the histograms have the same bounds.
    pub fn add(&mut self, more: &Self) -> io::Result<()> {
        self.units += more.units;
        self.down += more.down;
        self.up += more.up;
        self.failures.add(more.failures);
        self.unsent += more.unsent;
        self.held += more.held;
        self.elapsed = self.elapsed.max(more.elapsed);
        self.latency.add(&more.latency).map_err(io::Error::other)?;
        self.connect.add(&more.connect).map_err(io::Error::other)
    }

    /// A unit that is complete.
    pub(super) fn done(&mut self, took: Duration) {
        self.units += 1;
        self.waited(took);
    }

    /// A unit that has taken this long so far.
    pub(super) fn waited(&mut self, time: Duration) {
        self.latency.saturating_record(nanoseconds(time));
    }

    /// Units that were due so long ago and have not begun.
    pub(super) fn not_begun(&mut self, units: u64, waited: Duration) {
        self.unsent += units;
        self.latency.saturating_record_n(nanoseconds(waited), units);
    }

    /// Nothing came in time. A unit that was given up has waited at least until then: left out, the worst would be missing.
    pub(super) fn timed_out(&mut self, waited: Option<Duration>) {
        self.failed(Failure::TimedOut);
        if let Some(waited) = waited {
            self.waited(waited);
        }
    }

    pub(super) fn connected(&mut self, took: Duration) {
        self.connect.saturating_record(nanoseconds(took));
    }

    pub(super) const fn failed(&mut self, failure: Failure) {
        self.failures.count(failure);
    }
}

impl Live {
    /// Ends early once `stop` says so.
    #[must_use]
    pub const fn new(stop: fn() -> bool) -> Self {
        Self { stop, units: AtomicU64::new(0), bytes: AtomicU64::new(0), failures: AtomicU64::new(0) }
    }

    pub(super) fn tell(&self, tally: &Tally, told: &mut Told) {
        let now = Told { units: tally.units, bytes: tally.down + tally.up, failures: tally.failures.total() };
        self.units.fetch_add(now.units.saturating_sub(told.units), Relaxed);
        self.bytes.fetch_add(now.bytes.saturating_sub(told.bytes), Relaxed);
        self.failures.fetch_add(now.failures.saturating_sub(told.failures), Relaxed);
        *told = now;
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

//! Live numbers of a listener, as those of the other cells: who came, how sessions ended, and who was not let in.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use super::{
    Handshakes, Histogram, HistogramReading, Refusal, Refusals, admission::Census, cell::sum_of, lanes::Lanes,
};
use crate::{ids::ListenerName, telemetry::End};

/// What is measured at a listener.
#[derive(Debug)]
pub struct ListenerCell {
    /// Its name.
    pub name: ListenerName,
    /// Where it accepts.
    pub address: SocketAddr,
    /// TLS handshakes with clients, by how they went.
    pub handshakes: Handshakes,
    /// Sessions refused for what their client said before they had a pool, by reason.
    pub refusals: Refusals,
    lanes: Lanes<ListenerLane>,
    /// What counts for its limits.
    pub(super) census: Census,
}

#[derive(Debug)]
struct ListenerLane {
    accepted: AtomicU64,
    finished: AtomicU64,
    rejected: [AtomicU64; Rejection::ALL.len()],
    refused: [AtomicU64; Refusal::ALL.len()],
    ends: Box<[AtomicU64]>,
    duration: Histogram,
}

impl Default for ListenerLane {
    fn default() -> Self {
        Self {
            accepted: AtomicU64::new(0),
            finished: AtomicU64::new(0),
            rejected: Default::default(),
            refused: Default::default(),
            ends: (0..End::COUNT).map(|_| AtomicU64::new(0)).collect(),
            duration: Histogram::default(),
        }
    }
}

/// Why a connection was not turned into a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// `accept` failed for this connection alone.
    Aborted,
    /// Descriptors or memory ran out.
    Exhausted,
}

impl Rejection {
    /// Every reason.
    pub const ALL: [Self; 2] = [Self::Aborted, Self::Exhausted];

    /// The word in logs and labels.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Aborted => "aborted",
            Self::Exhausted => "exhausted",
        }
    }
}

impl ListenerCell {
    /// A cell without counts.
    #[must_use]
    pub fn new(name: ListenerName, address: SocketAddr) -> Self {
        Self {
            name,
            address,
            handshakes: Handshakes::default(),
            refusals: Refusals::default(),
            lanes: Lanes::default(),
            census: Census::default(),
        }
    }

    /// A client was accepted.
    pub fn begin(&self) {
        self.lanes.with(|lane| {
            lane.accepted.fetch_add(1, Relaxed);
        });
    }

    /// Its session ended.
    pub fn finish(&self, end: End, lasted: Duration) {
        self.lanes.with(|lane| {
            lane.finished.fetch_add(1, Relaxed);
            lane.duration.observe(lasted);
            if let Some(count) = lane.ends.get(end.index()) {
                count.fetch_add(1, Relaxed);
            }
        });
    }

    /// A connection could not be accepted.
    pub fn reject(&self, reason: Rejection) {
        self.lanes.with(|lane| {
            if let Some(count) = lane.rejected.get(reason as usize) {
                count.fetch_add(1, Relaxed);
            }
        });
    }

    /// A session was not let in.
    pub fn refuse(&self, reason: Refusal) {
        self.lanes.with(|lane| {
            if let Some(count) = lane.refused.get(reason as usize) {
                count.fetch_add(1, Relaxed);
            }
        });
    }

    /// Sessions that were not let in, by reason.
    pub fn refused(&self) -> impl Iterator<Item = (Refusal, u64)> {
        Refusal::ALL.into_iter().enumerate().map(|(place, reason)| {
            let count = |lane: &ListenerLane| lane.refused.get(place).map_or(0, |count| count.load(Relaxed));
            (reason, self.lanes.sum(count))
        })
    }

    /// Sessions that have not told yet what they want.
    pub fn at_entry(&self) -> u64 {
        self.census.at_entry()
    }

    /// Clients accepted since the start.
    pub fn accepted(&self) -> u64 {
        self.lanes.sum(|lane| lane.accepted.load(Relaxed))
    }

    /// Sessions now.
    pub fn active(&self) -> u64 {
        // What has finished is read first, so that it is never more than what has begun.
        let finished = self.lanes.sum(|lane| lane.finished.load(Relaxed));
        self.accepted().saturating_sub(finished)
    }

    /// How long sessions lasted.
    #[must_use]
    pub fn duration(&self) -> HistogramReading {
        sum_of(self.lanes.iter().map(|lane| &lane.duration))
    }

    /// Connections not accepted, by reason.
    pub fn rejected(&self) -> impl Iterator<Item = (Rejection, u64)> {
        Rejection::ALL.into_iter().enumerate().map(|(place, reason)| {
            let count = |lane: &ListenerLane| lane.rejected.get(place).map_or(0, |count| count.load(Relaxed));
            (reason, self.lanes.sum(count))
        })
    }

    /// Ended sessions by end; only ends that were seen.
    pub fn ends(&self) -> impl Iterator<Item = (End, u64)> {
        let count =
            |place: usize| self.lanes.sum(|lane| lane.ends.get(place).map_or(0, |count| count.load(Relaxed)));
        End::all().enumerate().map(move |(place, end)| (end, count(place))).filter(|(_, count)| *count > 0)
    }
}

//! Live numbers: written by the data plane with relaxed atomics, read by whoever asks. A cell belongs to an identity,
//! not to a generation, so a reload neither loses nor repeats a count. Never a decision: those go into the snapshot.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use super::Histogram;
use crate::{
    ids::ListenerName,
    telemetry::{Cause, End},
};

/// What is measured at an endpoint.
#[derive(Debug, Default)]
pub struct EndpointCell {
    active: AtomicU64,
    sessions: AtomicU64,
    to_upstream: AtomicU64,
    to_client: AtomicU64,
    connect_failures: [AtomicU64; Cause::ALL.len()],
    connect_ewma_nanos: AtomicU64,
    /// Durations of attempts that connected.
    pub connect: Histogram,
}

impl EndpointCell {
    /// A session was given to this endpoint: it counts as active from its attempt on, so that a burst spreads.
    pub fn begin(&self) {
        self.active.fetch_add(1, Relaxed);
    }

    /// The attempt failed or the session ended.
    pub fn finish(&self) {
        self.active.fetch_sub(1, Relaxed);
    }

    /// An attempt connected after `took`.
    pub fn connected(&self, took: Duration) {
        self.sessions.fetch_add(1, Relaxed);
        self.connect.observe(took);
        let sample = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let old = self.connect_ewma_nanos.load(Relaxed);
        // Peak EWMA (Finagle): a slower answer counts at once, a quicker one by an eighth.
        let new = if sample > old { sample } else { old - (old - sample) / 8 };
        self.connect_ewma_nanos.store(new, Relaxed);
    }

    /// An attempt failed.
    pub fn connect_failed(&self, cause: Cause) {
        if let Some(count) = self.connect_failures.get(cause as usize) {
            count.fetch_add(1, Relaxed);
        }
    }

    /// Bytes were moved.
    pub fn moved(&self, to_upstream: u64, to_client: u64) {
        if to_upstream > 0 {
            self.to_upstream.fetch_add(to_upstream, Relaxed);
        }
        if to_client > 0 {
            self.to_client.fetch_add(to_client, Relaxed);
        }
    }

    /// Sessions now, attempts included.
    pub fn active(&self) -> u64 {
        self.active.load(Relaxed)
    }

    /// Sessions that connected, since the start.
    pub fn sessions(&self) -> u64 {
        self.sessions.load(Relaxed)
    }

    /// Bytes to the endpoint and bytes to its clients, since the start.
    pub fn bytes(&self) -> (u64, u64) {
        (self.to_upstream.load(Relaxed), self.to_client.load(Relaxed))
    }

    /// Failed attempts by cause.
    pub fn connect_failures(&self) -> impl Iterator<Item = (Cause, u64)> {
        Cause::ALL.into_iter().zip(self.connect_failures.iter().map(|count| count.load(Relaxed)))
    }

    /// The usual connect time; zero before the first.
    pub fn connect_ewma(&self) -> Duration {
        Duration::from_nanos(self.connect_ewma_nanos.load(Relaxed))
    }
}

/// Counts the choices made in a tier or group, so that shares come out exactly.
#[derive(Debug, Default)]
pub struct GroupCell {
    cursor: AtomicU64,
}

impl GroupCell {
    /// The number of this choice.
    pub fn next(&self) -> u64 {
        self.cursor.fetch_add(1, Relaxed)
    }
}

/// What is measured at a worker. Each has cache lines of its own: it is written for every session.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct WorkerCell {
    /// Sessions that its engine carries now.
    pub sessions: AtomicU64,
    /// Sessions that it has accepted and passed on to a worker with fewer of them.
    pub passed_on: AtomicU64,
    /// Sessions that needed more than one plain connect.
    pub handed_over: AtomicU64,
}

/// What is measured at a listener.
#[derive(Debug)]
pub struct ListenerCell {
    /// Its name.
    pub name: ListenerName,
    /// Where it accepts.
    pub address: SocketAddr,
    accepted: AtomicU64,
    active: AtomicU64,
    rejected: [AtomicU64; Rejection::ALL.len()],
    ends: Box<[AtomicU64]>,
    /// How long sessions lasted.
    pub duration: Histogram,
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
            accepted: AtomicU64::new(0),
            active: AtomicU64::new(0),
            rejected: Default::default(),
            ends: (0..End::COUNT).map(|_| AtomicU64::new(0)).collect(),
            duration: Histogram::default(),
        }
    }

    /// A client was accepted.
    pub fn begin(&self) {
        self.accepted.fetch_add(1, Relaxed);
        self.active.fetch_add(1, Relaxed);
    }

    /// Its session ended.
    pub fn finish(&self, end: End, lasted: Duration) {
        self.active.fetch_sub(1, Relaxed);
        self.duration.observe(lasted);
        if let Some(count) = self.ends.get(end.index()) {
            count.fetch_add(1, Relaxed);
        }
    }

    /// A connection could not be accepted.
    pub fn reject(&self, reason: Rejection) {
        if let Some(count) = self.rejected.get(reason as usize) {
            count.fetch_add(1, Relaxed);
        }
    }

    /// Clients accepted since the start.
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Relaxed)
    }

    /// Sessions now.
    pub fn active(&self) -> u64 {
        self.active.load(Relaxed)
    }

    /// Connections not accepted, by reason.
    pub fn rejected(&self) -> impl Iterator<Item = (Rejection, u64)> {
        Rejection::ALL.into_iter().zip(self.rejected.iter().map(|count| count.load(Relaxed)))
    }

    /// Ended sessions by end; only ends that were seen.
    pub fn ends(&self) -> impl Iterator<Item = (End, u64)> {
        End::all().zip(self.ends.iter().map(|count| count.load(Relaxed))).filter(|(_, count)| *count > 0)
    }
}

//! The bridge between the planes, with five doors and no sixth: the snapshot (decisions, down), cells
//! (measurements, up), reports (rare events, up), sessions (stop signals, down) and sockets (open listeners and what is
//! asked about single sessions, down and, later, aside). Neither plane knows the other; both know this room.

mod access;
mod admission;
mod bandwidth;
mod budget;
mod cell;
mod entry;
mod histogram;
mod lanes;
mod listener;
mod live;
mod memory;
mod own;
mod reports;
mod routes;
mod sessions;
mod snapshot;
mod sockets;
mod sources;
mod spare;
mod words;
mod worker;

pub use access::Access;
pub use admission::{Admission, Admitted, AtEntry, Limits, Refusal};
pub use bandwidth::{Bandwidth, Bucket, Take, Ticket};
pub use budget::{ALWAYS as HEDGES_ALWAYS, PoolCell, PoolCounts};
pub use cell::{EndpointCell, GroupCell, Queued, Room};
pub use entry::{Entry, Origination, ProxyIn, ProxyOut, Target, Termination, Towards};
pub use histogram::{BUCKETS_SECONDS, Histogram, HistogramReading};
pub use lanes::use_lane;
pub use listener::{ListenerCell, Rejection};
pub use live::{
    Census, Kill, LiveSession, NotEnded, NotWhereabouts, Population, SessionFilter, Traits, Whereabouts,
};
pub use memory::MemoryCell;
pub use own::Own;
pub use reports::{Report, ReportReceiver, Reports};
pub use routes::{Condition, Routes, ServerName, Told};
pub use sessions::{Phase, Sessions};
pub use snapshot::{
    AllDown, Connect, Endpoint, Group, Hedge, Listener, Pool, Replay, SessionLimits, Snapshot, Tier,
};
pub use sockets::{SocketCommand, Sockets};
pub use spare::{SpareCell, SpareEnd};
pub use words::{HANDSHAKES, Handshakes, REFUSALS, Refusals, Words};
pub use worker::{SlowSession, WorkerCell};

use std::{
    net::TcpListener,
    sync::{Arc, atomic::AtomicU64},
};

use arc_swap::{ArcSwap, Guard};

use crate::telemetry::SessionLog;

/// What both planes hold.
#[derive(Debug)]
pub struct Shared {
    snapshot: ArcSwap<Snapshot>,
    /// Rare events from the data plane.
    pub reports: Reports,
    /// How far the process has come, and how many sessions are alive.
    pub sessions: Sessions,
    /// The workers' open listeners.
    pub sockets: Sockets,
    /// Whether the process takes as much memory as it may.
    pub memory: MemoryCell,
    /// Descriptors that the workers' spares hold.
    pub spares: AtomicU64,
    /// What each worker measures of itself.
    pub workers: Box<[WorkerCell]>,
    /// Where a session's line goes when it ends.
    pub session_log: SessionLog,
}

impl Shared {
    /// A bridge with an empty snapshot of generation 0.
    #[must_use]
    pub fn new(reports: Reports, sockets: Sockets, session_log: SessionLog) -> Self {
        lanes::provide_lanes(sockets.workers());
        Self {
            snapshot: ArcSwap::from_pointee(Snapshot::default()),
            reports,
            sessions: Sessions::new(),
            workers: (0..sockets.workers()).map(|_| WorkerCell::default()).collect(),
            sockets,
            memory: MemoryCell::default(),
            spares: AtomicU64::new(0),
            session_log,
        }
    }

    /// Borrows the current snapshot. Decide and drop it before the first await (clippy holds us to that).
    #[must_use]
    pub fn snapshot(&self) -> Guard<Arc<Snapshot>> {
        self.snapshot.load()
    }

    /// Hands a listener's sockets to the workers, one each.
    pub async fn open(&self, listener: &Arc<ListenerCell>, sockets: Vec<TcpListener>) {
        sockets.iter().for_each(|_| self.sessions.begin_accepting());
        self.sockets.open(listener, sockets).await;
    }

    /// Swaps a new snapshot in. Only the reconciler does this.
    pub fn publish(&self, snapshot: Arc<Snapshot>) {
        self.snapshot.store(snapshot);
    }
}

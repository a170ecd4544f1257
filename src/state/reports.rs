//! Rare events from the data plane to the control plane. The queue is bounded and may drop: a report only makes the
//! control plane look sooner, it never carries the only copy of a fact.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use tokio::sync::mpsc;

use crate::{ids::EndpointIdentity, telemetry::Cause};

/// Reports that may wait for the control plane.
const CAPACITY: usize = 1024;

/// Something the control plane should look at.
#[derive(Clone, Debug)]
pub enum Report {
    /// An attempt to connect to an endpoint failed.
    ConnectFailed {
        /// Which endpoint.
        endpoint: Arc<EndpointIdentity>,
        /// Why.
        cause: Cause,
    },
    /// An attempt was still under way when a later one, at another endpoint, connected.
    Overtaken {
        /// Which endpoint was late.
        endpoint: Arc<EndpointIdentity>,
    },
}

impl Report {
    /// Which endpoint it is about.
    #[must_use]
    pub const fn endpoint(&self) -> &Arc<EndpointIdentity> {
        match self {
            Self::ConnectFailed { endpoint, .. } | Self::Overtaken { endpoint } => endpoint,
        }
    }
}

/// The data plane's end.
#[derive(Clone, Debug)]
pub struct Reports {
    sender: mpsc::Sender<Report>,
    dropped: Arc<AtomicU64>,
}

/// The control plane's end.
pub type ReportReceiver = mpsc::Receiver<Report>;

impl Reports {
    /// Both ends of a new queue.
    #[must_use]
    pub fn new() -> (Self, ReportReceiver) {
        let (sender, receiver) = mpsc::channel(CAPACITY);
        (Self { sender, dropped: Arc::default() }, receiver)
    }

    /// Sends a report, or counts it as dropped when the queue is full.
    pub fn send(&self, report: Report) {
        if self.sender.try_send(report).is_err() {
            self.dropped.fetch_add(1, Relaxed);
        }
    }

    /// Reports that found the queue full.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }
}

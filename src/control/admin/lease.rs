//! The time that a connection has: a request is answered and gone, a stream of events lives on while it moves.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::Relaxed},
};

use tokio_util::sync::CancellationToken;

/// A connection's lease: the accept loop, the connection and whoever answers share it.
#[derive(Clone, Debug)]
pub(super) struct Lease {
    state: Arc<State>,
    shutdown: CancellationToken,
}

#[derive(Debug, Default)]
struct State {
    stream: AtomicBool,
    moved: AtomicBool,
}

impl Lease {
    /// That of a new connection, which ends with `shutdown` at the latest.
    pub(super) fn new(shutdown: CancellationToken) -> Self {
        Self { state: Arc::default(), shutdown }
    }

    /// The connection is a stream from here on, to its end. Whoever says so bounds how many there are.
    pub(super) fn stream(&self) {
        self.state.stream.store(true, Relaxed);
    }

    /// The client has taken what it was given, and wants more.
    pub(super) fn moved(&self) {
        self.state.moved.store(true, Relaxed);
    }

    /// True for a stream.
    pub(super) fn is_stream(&self) -> bool {
        self.state.stream.load(Relaxed)
    }

    /// True for a stream that has moved since this was asked last.
    pub(super) fn has_moved(&self) -> bool {
        self.is_stream() && self.state.moved.swap(false, Relaxed)
    }

    /// Waits until the server is told to stop.
    pub(super) async fn over(&self) {
        self.shutdown.cancelled().await;
    }
}

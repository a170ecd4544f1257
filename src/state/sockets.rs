//! Open listening sockets on their way to the workers, and what an operator asks about sessions. The control plane binds (binding can fail, and then a reload
//! is refused whole), each worker accepts on its own socket.

use std::{net::TcpListener, sync::Arc};

use tokio::sync::mpsc;

use super::{Census, Kill, ListenerCell};
use crate::net::Listen;

/// What a worker is to do with a listener or, rarely, with a single session.
#[derive(Debug)]
pub enum SocketCommand {
    /// Accept on this socket.
    Open {
        /// Whose socket it is.
        listener: Arc<ListenerCell>,
        /// Bound, listening and non-blocking.
        socket: TcpListener,
    },
    /// Set changed options on this listener's socket.
    Reapply {
        /// Whose socket it is.
        listener: Arc<ListenerCell>,
        /// The options.
        options: Listen,
    },
    /// This listener's socket is another one's from now on.
    Rename {
        /// Whose socket it was.
        from: Arc<ListenerCell>,
        /// Whose it is, at the same address.
        to: Arc<ListenerCell>,
    },
    /// Accept what waits in the queue, then close this listener's socket.
    Close {
        /// Whose socket it is.
        listener: Arc<ListenerCell>,
    },
    /// Say which sessions it carries.
    Census(Box<Census>),
    /// End one of them.
    Kill(Kill),
}

/// Commands that may wait for one worker: more listeners than a config is likely to have, as a worker drains its queue
/// whenever it runs.
const CAPACITY: usize = 4096;

/// The way to every worker.
#[derive(Clone, Debug)]
pub struct Sockets {
    workers: Vec<mpsc::Sender<SocketCommand>>,
}

impl Sockets {
    /// A queue for each of `workers` workers.
    #[must_use]
    pub fn new(workers: usize) -> (Self, Vec<mpsc::Receiver<SocketCommand>>) {
        let (senders, receivers) = (0..workers).map(|_| mpsc::channel(CAPACITY)).unzip();
        (Self { workers: senders }, receivers)
    }

    /// How many sockets a listener needs: one a worker.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.workers.len()
    }

    /// The way to each of them.
    pub(super) fn queues(&self) -> &[mpsc::Sender<SocketCommand>] {
        &self.workers
    }

    /// Hands one socket to each worker. ([`super::Shared::open`] also counts them.)
    pub(super) async fn open(&self, listener: &Arc<ListenerCell>, sockets: Vec<TcpListener>) {
        for (worker, socket) in self.workers.iter().zip(sockets) {
            // A worker that is gone has stopped: the process is ending.
            drop(worker.send(SocketCommand::Open { listener: Arc::clone(listener), socket }).await);
        }
    }

    /// Has every worker set changed options on its socket of this listener.
    pub async fn reapply(&self, listener: &Arc<ListenerCell>, options: &Listen) {
        for worker in &self.workers {
            let (listener, options) = (Arc::clone(listener), options.clone());
            drop(worker.send(SocketCommand::Reapply { listener, options }).await);
        }
    }

    /// Has every worker accept for another listener on its socket of this one.
    pub async fn rename(&self, from: &Arc<ListenerCell>, to: &Arc<ListenerCell>) {
        for worker in &self.workers {
            let (from, to) = (Arc::clone(from), Arc::clone(to));
            drop(worker.send(SocketCommand::Rename { from, to }).await);
        }
    }

    /// Has every worker close its socket of this listener.
    pub async fn close(&self, listener: &Arc<ListenerCell>) {
        for worker in &self.workers {
            drop(worker.send(SocketCommand::Close { listener: Arc::clone(listener) }).await);
        }
    }
}

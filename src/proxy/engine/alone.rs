//! One established session without a loop around it, for counting what a turn costs.

use std::{os::fd::OwnedFd, sync::Arc};

use rustix::event::epoll::EventFlags;
use tokio::time::Instant;

use super::{session::Session, slots::Which};
use crate::{
    proxy::{peer::Peer, session::Books},
    state::{Endpoint, Listener, Shared},
};

/// A session as the engine carries it.
pub struct Alone {
    session: Session,
    now: Instant,
}

impl Alone {
    /// A session between two connected, non-blocking sockets.
    #[must_use]
    pub fn new(
        client: OwnedFd,
        upstream: OwnedFd,
        shared: &Arc<Shared>,
        listener: &Listener,
        endpoint: Arc<Endpoint>,
    ) -> Self {
        let now = Instant::now();
        let mut books = Books::open(listener.cell.address, Arc::clone(&listener.cell), Arc::clone(shared));
        books.attempt(endpoint);
        let (client, upstream) = (Peer::new(client), Peer::new(upstream));
        let session = Session::relaying(client, upstream, Arc::clone(&listener.limits), books, now);
        Self { session, now }
    }

    /// The turn that follows the event that the client has sent something.
    pub fn client_has_sent(&mut self) {
        self.session.note(Which::Client, EventFlags::IN);
        drop(self.session.run(self.now));
    }
}

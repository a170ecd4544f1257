//! One session without a loop around it, for counting what its beginning and its turns cost.

use std::{os::fd::OwnedFd, sync::Arc};

use rustix::event::epoll::EventFlags;
use tokio::time::Instant;

use super::{session::Session, slots::Which};
use crate::{
    proxy::{
        connect::{self, First},
        peer::Peer,
        session::Books,
    },
    state::{Endpoint, Listener, ListenerCell, Shared},
};

/// A client as it is when it was just accepted.
pub struct Newcomer {
    client: Peer,
    cell: Arc<ListenerCell>,
    shared: Arc<Shared>,
}

impl Newcomer {
    /// A client of this listener, on a connected socket.
    #[must_use]
    pub fn new(client: OwnedFd, cell: &Arc<ListenerCell>, shared: &Arc<Shared>) -> Self {
        Self { client: Peer::new(client), cell: Arc::clone(cell), shared: Arc::clone(shared) }
    }

    /// Opens the books of a session, lets it in, chooses its endpoint, and closes the books. True if there is an endpoint
    /// that can be dialled at once.
    #[must_use]
    pub fn arrives(&self) -> bool {
        let mut books = Books::open(self.cell.address, Arc::clone(&self.cell), Arc::clone(&self.shared));
        let found = matches!(connect::first(&mut books, &self.client), First::Dial(..));
        books.close(connect::NO_ENDPOINT);
        found
    }
}

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

//! The accept loop of one listener on one worker, where the engine is off. It never stops and never spins: a bad
//! connection is skipped, and when descriptors or memory run out it pauses, while the kernel keeps new clients waiting.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    os::fd::AsFd,
    pin::pin,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use tokio::{
    io::Interest,
    sync::watch,
    task::yield_now,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use super::{
    accept::{self, BATCH, Counted, FLUSH, PAUSE, Taken},
    admit,
    engine::Handovers,
    peer::Peer,
    seats::Seats,
    session::{self, Books, Handover},
    spread::Spread,
};
use crate::{
    state::{ListenerCell, Shared, SlowSession},
    sys,
};

/// Who may carry what is accepted: this worker's tokio half, or another's.
pub(super) struct Takers {
    pub(super) number: usize,
    pub(super) seats: Arc<Seats>,
    /// Where every worker takes sessions.
    pub(super) crew: Arc<[Arc<Handovers>]>,
    pub(super) spread: Spread,
}

impl Takers {
    /// Carries a session, or has a worker carry it that has less to do.
    fn give(&mut self, client: Peer, books: Books) {
        let shared = Arc::clone(&books.shared);
        // What is on its way counts there already.
        let lighter = self.spread.lighter(&shared.workers, |_| 0);
        match lighter.and_then(|other| Some((other, self.crew.get(other)?))) {
            Some((other, handovers)) => {
                let slow = SlowSession::begin(&shared, other);
                handovers.put(Handover { client, books, begun: None, slow });
                if let Some(cell) = shared.workers.get(self.number) {
                    cell.passed_on.fetch_add(1, Relaxed);
                }
            }
            None => {
                let slow = SlowSession::begin(&shared, self.number);
                self.seats.spawn(books, slow, |books| session::serve(client, books));
            }
        }
    }
}

/// Accepts until `stop`, then takes what still waits in the queue, so that nobody whose handshake was done is refused.
pub(super) async fn accept(
    socket: Arc<TcpListener>,
    whose: watch::Receiver<Arc<ListenerCell>>,
    shared: Arc<Shared>,
    mut takers: Takers,
    stop: CancellationToken,
) {
    let _counts = Counted::begin();
    let mut begin = |client, address, cell| {
        let mut books = Books::open(address, cell, Arc::clone(&shared));
        if let Err(end) = admit::come_in(&mut books) {
            return books.close(end);
        }
        takers.give(client, books);
    };
    if let Err(error) = until_stop(&socket, &whose, &shared, &mut begin, &stop).await {
        tracing::error!(listener = %whose.borrow().name, %error, "cannot accept on a bound socket");
    }
    flush(&socket, &whose, &mut begin).await;
    drop(socket);
    shared.sessions.finish_accepting();
}

async fn until_stop(
    socket: &TcpListener,
    whose: &watch::Receiver<Arc<ListenerCell>>,
    shared: &Shared,
    begin: &mut impl FnMut(Peer, SocketAddr, Arc<ListenerCell>),
    stop: &CancellationToken,
) -> io::Result<()> {
    let readiness = sys::readiness(socket.as_fd(), Interest::READABLE)?;
    let mut stopped = pin!(stop.cancelled());
    loop {
        let mut ready = tokio::select! {
            biased;
            () = &mut stopped => return Ok(()),
            ready = readiness.readable() => ready?,
        };
        let cell = Arc::clone(&whose.borrow());
        for _ in 0..BATCH {
            match accept::next(socket, &cell, shared, 0) {
                Taken::Client(client, address) => begin(client, address, Arc::clone(&cell)),
                Taken::Nothing => {
                    ready.clear_ready();
                    break;
                }
                Taken::Lost => {}
                Taken::Short => {
                    sleep(PAUSE).await;
                    break;
                }
            }
        }
        yield_now().await;
    }
}

/// Takes everything that waits in the queue, for as long as [`FLUSH`] allows.
async fn flush(
    socket: &TcpListener,
    whose: &watch::Receiver<Arc<ListenerCell>>,
    begin: &mut impl FnMut(Peer, SocketAddr, Arc<ListenerCell>),
) {
    let cell = Arc::clone(&whose.borrow());
    let give_up = Instant::now() + FLUSH;
    let mut taken: u32 = 0;
    loop {
        match accept::take(socket, &cell) {
            Taken::Client(client, address) => begin(client, address, Arc::clone(&cell)),
            Taken::Nothing => return,
            Taken::Lost => {}
            Taken::Short if Instant::now() >= give_up => return,
            Taken::Short => sleep(PAUSE).await,
        }
        taken += 1;
        if taken.is_multiple_of(BATCH) {
            // Clients who come faster than they are taken must not hold up the end.
            if Instant::now() >= give_up {
                return;
            }
            yield_now().await;
        }
    }
}

//! The accept loop of one listener on one worker, where the engine is off. It never stops and never spins: a bad
//! connection is skipped, and when descriptors or memory run out it pauses, while the kernel keeps new clients waiting.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    os::fd::AsFd,
    pin::pin,
    sync::Arc,
};

use tokio::{
    io::Interest,
    task::yield_now,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use super::{
    accept::{self, BATCH, FLUSH, PAUSE, Taken},
    admit,
    peer::Peer,
    seats::Seats,
    session::{self, Books},
};
use crate::{
    state::{ListenerCell, Shared},
    sys,
};

/// Accepts until `stop`, then takes what still waits in the queue, so that nobody whose handshake was done is refused.
pub(super) async fn accept(
    socket: Arc<TcpListener>,
    cell: Arc<ListenerCell>,
    shared: Arc<Shared>,
    seats: Arc<Seats>,
    stop: CancellationToken,
) {
    let begin = |client, address| {
        let mut books = Books::open(address, Arc::clone(&cell), Arc::clone(&shared));
        if let Err(end) = admit::come_in(&mut books) {
            return books.close(end);
        }
        seats.spawn(books, |books| session::serve(client, books));
    };
    if let Err(error) = until_stop(&socket, &cell, &shared, &begin, &stop).await {
        tracing::error!(listener = %cell.name, %error, "cannot accept on a bound socket");
    }
    flush(&socket, &cell, &begin).await;
    drop(socket);
    shared.sessions.finish_accepting();
}

async fn until_stop(
    socket: &TcpListener,
    cell: &ListenerCell,
    shared: &Shared,
    begin: &impl Fn(Peer, SocketAddr),
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
        for _ in 0..BATCH {
            match accept::next(socket, cell, shared) {
                Taken::Client(client, address) => begin(client, address),
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
async fn flush(socket: &TcpListener, cell: &ListenerCell, begin: &impl Fn(Peer, SocketAddr)) {
    let give_up = Instant::now() + FLUSH;
    let mut taken: u32 = 0;
    loop {
        match accept::take(socket, cell) {
            Taken::Client(client, address) => begin(client, address),
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

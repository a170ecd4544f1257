//! The accept loop of one listener on one worker. It never stops and never spins: a bad connection is skipped, and when
//! descriptors or memory run out it pauses, while the kernel keeps new clients waiting.

use std::{future::poll_fn, io, net::SocketAddr, pin::pin, sync::Arc, task::Poll, time::Duration};

use tokio::{
    net::{TcpListener, TcpStream},
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use super::session;
use crate::{
    state::{ListenerCell, Rejection, Shared},
    telemetry::Cause,
};

/// How long to wait for descriptors or memory before the next try.
const PAUSE: Duration = Duration::from_millis(100);

/// At most one line in this time about what ran out.
const LINE_EVERY: Duration = Duration::from_secs(1);

/// Accepts until `stop`, then takes what still waits in the queue, so that nobody whose handshake was done is refused.
pub(super) async fn accept(
    socket: Arc<TcpListener>,
    cell: Arc<ListenerCell>,
    shared: Arc<Shared>,
    stop: CancellationToken,
) {
    let mut last_line: Option<Instant> = None;
    let mut stopped = pin!(stop.cancelled());
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut stopped => break,
            accepted = socket.accept() => accepted,
        };
        match accepted {
            Ok((client, address)) => begin(client, address, &cell, &shared),
            Err(error) if is_shortage(&error) => {
                cell.reject(Rejection::Exhausted);
                if last_line.is_none_or(|at| at.elapsed() >= LINE_EVERY) {
                    last_line = Some(Instant::now());
                    tracing::error!(listener = %cell.name, %error, "accept paused: raise the descriptor limit (LimitNOFILE)");
                }
                sleep(PAUSE).await;
            }
            Err(error) => {
                cell.reject(Rejection::Aborted);
                tracing::debug!(listener = %cell.name, %error, "a connection ended before it was accepted");
            }
        }
    }
    while let Some(Ok((client, address))) = waiting(&socket).await {
        begin(client, address, &cell, &shared);
    }
    drop(socket);
    shared.sessions.finish_accepting();
}

fn begin(client: TcpStream, address: SocketAddr, cell: &Arc<ListenerCell>, shared: &Arc<Shared>) {
    // A panic ends this task alone; its books close on unwinding.
    drop(tokio::spawn(session::serve(client, address, Arc::clone(cell), Arc::clone(shared))));
}

/// The next connection of the queue, without waiting for one.
async fn waiting(socket: &TcpListener) -> Option<io::Result<(TcpStream, SocketAddr)>> {
    poll_fn(|context| match socket.poll_accept(context) {
        Poll::Ready(accepted) => Poll::Ready(Some(accepted)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

fn is_shortage(error: &io::Error) -> bool {
    Cause::of(error) == Cause::Exhausted
}

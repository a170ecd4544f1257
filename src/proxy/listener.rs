//! The accept loop of one listener on one worker. It never stops and never spins: a bad connection is skipped, and when
//! descriptors or memory run out it pauses, while the kernel keeps new clients waiting.

use std::{
    cell::Cell,
    io,
    net::SocketAddr,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rustix::{
    io::Errno,
    net::{SocketFlags, acceptfrom_with},
    process::{Resource, getrlimit},
};
use tokio::{
    net::{TcpListener, TcpStream},
    task::yield_now,
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

/// Descriptors kept for everything but sessions: the admin API must answer when nothing else can.
const RESERVE: u64 = 32;

/// Descriptors that a session needs.
const PER_SESSION: u64 = 2;

/// Connections taken from the queue before other tasks run.
const BATCH: u32 = 64;

/// How long the queue of a listener that closes may take where descriptors are short.
const FLUSH: Duration = Duration::from_secs(5);

thread_local! {
    static LIMIT: Cell<u64> = const { Cell::new(u64::MAX) };
}

/// When it was last said that something ran out, by any worker.
static LAST_LINE: Mutex<Option<Instant>> = Mutex::new(None);

fn a_line_is_due() -> bool {
    let mut last = LAST_LINE.lock().unwrap_or_else(PoisonError::into_inner);
    let due = last.is_none_or(|at| at.elapsed() >= LINE_EVERY);
    if due {
        *last = Some(Instant::now());
    }
    due
}

/// Takes note of the descriptor limit, which may change while the process runs.
pub(super) fn renew_limit() {
    LIMIT.set(getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX));
}

/// Accepts until `stop`, then takes what still waits in the queue, so that nobody whose handshake was done is refused.
pub(super) async fn accept(
    socket: Arc<TcpListener>,
    cell: Arc<ListenerCell>,
    shared: Arc<Shared>,
    stop: CancellationToken,
) {
    let mut stopped = pin!(stop.cancelled());
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut stopped => break,
            accepted = next(&socket, &shared) => accepted,
        };
        match accepted {
            Ok((client, address)) => begin(client, address, &cell, &shared),
            Err(error) if is_shortage(&error) => {
                cell.reject(Rejection::Exhausted);
                if a_line_is_due() {
                    tracing::error!(listener = %cell.name, %error, "accept paused: raise the descriptor limit (LimitNOFILE)");
                }
                sleep(PAUSE).await;
            }
            Err(error) => {
                cell.reject(Rejection::Aborted);
                tracing::debug!(listener = %cell.name, %error, "a connection ended before it was accepted");
                yield_now().await;
            }
        }
    }
    flush(&socket, &cell, &shared).await;
    drop(socket);
    shared.sessions.finish_accepting();
}

/// The next connection; a shortage while the descriptors that are left are the reserve.
async fn next(socket: &TcpListener, shared: &Shared) -> io::Result<(TcpStream, SocketAddr)> {
    if shared.sessions.active() * PER_SESSION + RESERVE >= LIMIT.get() {
        return Err(io::Error::from_raw_os_error(libc::EMFILE));
    }
    socket.accept().await
}

fn begin(client: TcpStream, address: SocketAddr, cell: &Arc<ListenerCell>, shared: &Arc<Shared>) {
    // A panic ends this task alone; its books close on unwinding.
    drop(tokio::spawn(session::serve(client, address, Arc::clone(cell), Arc::clone(shared))));
}

/// Takes everything that waits in the queue. The kernel is asked itself: the driver may not have heard of the last ones.
async fn flush(socket: &TcpListener, cell: &Arc<ListenerCell>, shared: &Arc<Shared>) {
    let give_up = Instant::now() + FLUSH;
    let mut taken: u32 = 0;
    loop {
        match take(socket) {
            Ok(Some((client, address))) => begin(client, address, cell, shared),
            Ok(None) => return,
            Err(error) if is_shortage(&error) => {
                if Instant::now() >= give_up {
                    return;
                }
                sleep(PAUSE).await;
            }
            Err(_) => cell.reject(Rejection::Aborted),
        }
        taken += 1;
        if taken.is_multiple_of(BATCH) {
            yield_now().await;
        }
    }
}

/// One connection from the queue; `None` when it is empty.
fn take(socket: &TcpListener) -> io::Result<Option<(TcpStream, SocketAddr)>> {
    match acceptfrom_with(socket, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
        Ok((client, address)) => {
            let address = address.and_then(|address| SocketAddr::try_from(address).ok());
            let address = address.ok_or(io::ErrorKind::InvalidData)?;
            Ok(Some((TcpStream::from_std(client.into())?, address)))
        }
        Err(Errno::AGAIN) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn is_shortage(error: &io::Error) -> bool {
    Cause::of(error) == Cause::Exhausted
}

//! The accept loop: HTTP/1.1 with every resource bounded, so that slow or hostile clients cost little and keep nobody
//! out. When every place is taken, the oldest connection gives its place to the newest: a request that comes now is
//! answered within milliseconds, whoever else holds on.

use std::{
    collections::VecDeque,
    future::poll_fn,
    io,
    pin::pin,
    task::{Context, Poll},
    time::Duration,
};

use axum::Router;
use hyper::{
    Request,
    body::Incoming,
    server::conn::http1,
    service::{Service, service_fn},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::{
    AdminListener,
    kept::{Connection, Kept},
    lease::Lease,
};

/// Pause after a failed `accept`, when descriptors have run out: long enough not to spin, short enough for a probe.
const PAUSE: Duration = Duration::from_millis(100);

/// A shortage may last.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// What a client may cost.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Connections at once: Prometheus, a kubelet and a few people.
    pub(super) connections: usize,
    /// Time for the head of a request, also the time that a connection may idle between two.
    pub(super) head: Duration,
    /// The longest life of a connection: ends readers that stop reading. A stream of events lives on for as long as it
    /// moves within this time.
    pub(super) life: Duration,
    /// Time for answers under way, at the end of a connection's life and at shutdown.
    pub(super) finish: Duration,
}

/// The largest head of a request in bytes.
const HEAD_BYTES: usize = 16 * 1024;

/// The most header fields of a request.
const HEAD_FIELDS: usize = 64;

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 64,
            head: Duration::from_secs(10),
            life: Duration::from_secs(60),
            finish: Duration::from_secs(2),
        }
    }
}

/// Accepts and serves until `shutdown`.
pub(super) async fn run(
    listener: AdminListener,
    router: Router,
    limits: Limits,
    shutdown: CancellationToken,
) -> io::Result<()> {
    match listener {
        AdminListener::Tcp(listener) => {
            let listener = TcpListener::from_std(listener)?;
            let accept = |cx: &mut Context<'_>| listener.poll_accept(cx).map_ok(|(stream, _)| stream);
            accept_loop(accept, Kept::new(&listener)?, router, limits, shutdown).await;
        }
        AdminListener::Unix(socket) => {
            let listener = UnixListener::from_std(socket.listener)?;
            let accept = |cx: &mut Context<'_>| listener.poll_accept(cx).map_ok(|(stream, _)| stream);
            accept_loop(accept, Kept::new(&listener)?, router, limits, shutdown).await;
            // Removed only now, so that `status` works to the end.
            drop(socket.file);
        }
    }
    Ok(())
}

async fn accept_loop<S>(
    mut accept: impl FnMut(&mut Context<'_>) -> Poll<io::Result<S>>,
    kept: Kept,
    router: Router,
    limits: Limits,
    shutdown: CancellationToken,
) where
    S: Connection,
{
    let mut connections = JoinSet::new();
    let mut oldest_first: VecDeque<(AbortHandle, Lease)> = VecDeque::new();
    let mut warned: Option<Instant> = None;
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            Some(_) = connections.join_next() => continue,
            accepted = poll_fn(|cx| kept.serve(|| accept(cx))) => accepted,
        };
        match accepted {
            Ok(stream) => {
                make_room(&mut oldest_first, limits.connections);
                let lease = Lease::new(shutdown.clone());
                let connection =
                    connection(kept.lend(stream, lease.clone()), router.clone(), limits, lease.clone());
                oldest_first.push_back((connections.spawn(connection), lease));
            }
            // That client is gone; the next one has nothing to do with it.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                if warned.is_none_or(|at| at.elapsed() >= WARN_EVERY) {
                    warn!(%error, "the admin or telemetry listener cannot accept; trying again");
                    warned = Some(Instant::now());
                }
                sleep(PAUSE).await;
            }
        }
    }
    drop(timeout(limits.finish, async { while connections.join_next().await.is_some() {} }).await);
}

/// Forgets the connections that have ended, and those that have become streams, as their places are counted elsewhere.
/// Ends the oldest if there is no place for one more.
fn make_room(oldest_first: &mut VecDeque<(AbortHandle, Lease)>, places: usize) {
    if oldest_first.len() < places {
        return;
    }
    oldest_first.retain(|(connection, lease)| !connection.is_finished() && !lease.is_stream());
    if oldest_first.len() >= places
        && let Some((oldest, _)) = oldest_first.pop_front()
    {
        debug!("every place is taken: the oldest connection is closed");
        oldest.abort();
    }
}

async fn connection<S>(stream: S, router: Router, limits: Limits, lease: Lease)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (router, of_requests) = (TowerToHyperService::new(router), lease.clone());
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(of_requests.clone());
        router.call(request)
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .max_headers(HEAD_FIELDS)
        .max_header_size(HEAD_BYTES)
        .max_buf_size(HEAD_BYTES)
        // Such as socat's, after a request from a pipe.
        .half_close(true)
        .serve_connection(TokioIo::new(stream), service);
    let mut served = pin!(served);
    let mut end = Instant::now() + limits.life;
    let result = loop {
        tokio::select! {
            result = served.as_mut() => break Some(result),
            () = lease.over() => break None,
            () = sleep_until(end) => {
                if !lease.has_moved() {
                    break None;
                }
                end += limits.life;
            }
        }
    };
    let result = match result {
        Some(result) => result,
        None => {
            served.as_mut().graceful_shutdown();
            match timeout(limits.finish, served).await {
                Ok(result) => result,
                Err(_) => return,
            }
        }
    };
    if let Err(error) = result {
        debug!(%error, "a connection to the admin or telemetry listener failed");
    }
}

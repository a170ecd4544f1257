//! Attempts: dial, and on failure the next candidate, until one connects, nothing is left or the time is up. The
//! client's bytes stay unread meanwhile, so a later attempt loses nothing. The engine begins the first attempt, with the
//! synchronous half of this file; whatever does not connect at once goes on here, in tokio.

use std::{cell::RefCell, io, os::fd::AsFd, sync::Arc, time::Duration};

use rand::{SeedableRng, rngs::SmallRng};
use rustix::net::RecvFlags;
use tokio::{
    io::Interest,
    time::{Instant, sleep, timeout_at},
};

use super::{
    peer::Peer,
    relay::Watched,
    route::{self, Facts},
    seldom::Seldom,
    session::Books,
};
use crate::{
    ids::EndpointIdentity,
    net,
    state::{Connect, Endpoint, Report, SessionLimits, Shared},
    sys,
    telemetry::{Cause, End, Side, Stage},
};

/// How often a client that has sent nothing is looked at while an attempt takes long.
pub(super) const GLANCE: Duration = Duration::from_secs(1);

/// How a session ends that was given no endpoint.
pub(super) const NO_ENDPOINT: End = End { side: Side::Proxy, stage: Stage::Route, cause: Cause::NoEndpoint };

/// How a session or a spare ends for which this machine has no room.
pub(super) const EXHAUSTED: End = End { side: Side::Proxy, stage: Stage::Connect, cause: Cause::Exhausted };

/// Every session of a cloud whose interface is gone would say so.
static REFUSED_OPTION: Seldom = Seldom::new();

thread_local! {
    static RNG: RefCell<SmallRng> = RefCell::new(SmallRng::from_rng(&mut rand::rng()));
}

/// What one look at the snapshot decided.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) endpoint: Arc<Endpoint>,
    connect: Connect,
    pub(super) limits: Arc<SessionLimits>,
}

/// One dial.
#[derive(Debug)]
pub(super) struct Attempt {
    pub(super) plan: Plan,
    begun: Instant,
    pub(super) deadline: Instant,
}

/// An attempt that was begun, and how that went: a socket that may not be connected yet.
pub(super) type Begun = (Attempt, Result<Peer, End>);

/// An upstream connection, and what the relay needs of the plan that led to it.
pub(super) struct Established {
    pub(super) upstream: Peer,
    pub(super) limits: Arc<SessionLimits>,
}

/// Finds an endpoint that takes the session, going on from an attempt that was begun already, if there is one.
pub(super) async fn connect(
    client: &Watched<'_>,
    books: &mut Books,
    mut begun: Option<Begun>,
) -> Result<Established, End> {
    let mut tried: Vec<Arc<EndpointIdentity>> = Vec::new();
    let mut last = NO_ENDPOINT;
    loop {
        let (attempt, upstream) = match begun.take() {
            Some(begun) => begun,
            None => {
                // A fresh snapshot for every attempt: it may know more than the last one did.
                let plan = plan(books, &tried).filter(|plan| !plan.is_spent(books)).ok_or(last)?;
                if books.attempts > 0 && has_left(client) {
                    return Err(End { side: Side::Client, stage: Stage::Connect, cause: Cause::Closed });
                }
                begin(books, plan, has_sent(client.get_ref()), Instant::now())
            }
        };
        let dialled = match upstream {
            Ok(upstream) => finish(client, upstream, &attempt).await,
            Err(end) => Err(end),
        };
        match dialled {
            Ok(upstream) => {
                attempt.connected(books, Instant::now());
                return Ok(Established { upstream, limits: attempt.plan.limits });
            }
            Err(end) if end.side == Side::Client => return Err(end),
            Err(end) => {
                let endpoint = attempt.plan.endpoint;
                failed(books, &endpoint, end);
                tried.push(Arc::clone(&endpoint.identity));
                last = end;
            }
        }
    }
}

/// Chooses the endpoint for the next attempt; `None` when there is none left.
pub(super) fn plan(books: &mut Books, tried: &[Arc<EndpointIdentity>]) -> Option<Plan> {
    let snapshot = books.shared.snapshot();
    let listener = snapshot.listener(&books.listener)?;
    let pool = &listener.pool;
    books.generation = snapshot.generation;
    if books.pool.as_ref() != Some(&pool.name) {
        books.pool = Some(pool.name.clone());
    }
    let facts = Facts { client: books.client, tried };
    let endpoint = RNG.with_borrow_mut(|rng| route::choose(pool, &facts, rng))?;
    let limits = listener.limits.towards(&endpoint.socket);
    Some(Plan { endpoint: Arc::clone(endpoint), connect: pool.connect, limits })
}

/// Begins an attempt for a client that has sent something already, or not. The books know of it from here on.
pub(super) fn begin(books: &mut Books, plan: Plan, eager: bool, now: Instant) -> Begun {
    books.attempt(Arc::clone(&plan.endpoint));
    let upstream = net::begin(plan.endpoint.address(), &plan.endpoint.socket, eager);
    let upstream = upstream.map(Peer::new).map_err(|error| refusal(&plan.endpoint, &error));
    let deadline = (now + plan.connect.timeout).min(books.started + plan.connect.total);
    (Attempt { plan, begun: now, deadline }, upstream)
}

/// A session begins on a connection that is established already. The books know of it from here on; what the endpoint's
/// connect times are was learnt when it was dialled.
pub(super) fn begin_on_spare(books: &mut Books, plan: Plan, now: Instant) -> Arc<SessionLimits> {
    books.attempt(Arc::clone(&plan.endpoint));
    plan.endpoint.cell.given_spare();
    books.connected = Some(now.max(books.started));
    plan.limits
}

/// Begins a connection that no session waits for.
pub(super) fn begin_spare(endpoint: &Endpoint, socket: &net::Outgoing) -> Result<Peer, End> {
    net::begin(endpoint.address(), socket, false).map(Peer::new).map_err(|error| refusal(endpoint, &error))
}

impl Plan {
    /// True when no further attempt may be made.
    fn is_spent(&self, books: &Books) -> bool {
        books.attempts >= self.connect.attempts
            || (books.attempts > 0 && Instant::now() >= books.started + self.connect.total)
    }
}

/// How a dial that failed with this error ends.
fn refusal(endpoint: &Endpoint, error: &io::Error) -> End {
    let cause = Cause::of(error);
    if cause == Cause::Local && REFUSED_OPTION.is_due() {
        let (cloud, endpoint) = (&endpoint.identity.cloud, endpoint.identity.address);
        tracing::warn!(%cloud, %endpoint, %error, "this machine cannot dial as the cloud's settings say");
    }
    // What this machine lacks says nothing about the endpoint.
    let side = if matches!(cause, Cause::Exhausted | Cause::Local) { Side::Proxy } else { Side::Upstream };
    End { side, stage: Stage::Connect, cause }
}

impl Attempt {
    /// Notes that the attempt has connected.
    pub(super) fn connected(&self, books: &mut Books, now: Instant) {
        self.plan.endpoint.cell.connected(now.saturating_duration_since(self.begun));
        books.connected = Some(now);
    }
}

/// What a dial has come to whose socket has become writable, or has failed.
pub(super) fn outcome(endpoint: &Endpoint, upstream: impl AsFd, failed: bool) -> Result<(), End> {
    match failed.then(|| net::take_error(&upstream)).flatten() {
        Some(error) => Err(refusal(endpoint, &error)),
        None if net::met_itself(&upstream, endpoint.address()) => {
            Err(refusal(endpoint, &io::ErrorKind::ConnectionRefused.into()))
        }
        None => Ok(()),
    }
}

/// Waits until the attempt has connected or failed. Ends early when the client resets, or leaves without having sent
/// anything.
async fn finish(client: &Watched<'_>, upstream: Peer, attempt: &Attempt) -> Result<Peer, End> {
    let writable = async {
        let watched = sys::readiness(upstream.as_fd(), Interest::WRITABLE)?;
        let _ready = watched.writable().await?;
        Ok::<_, io::Error>(())
    };
    let endpoint = &attempt.plan.endpoint;
    let dialled = tokio::select! {
        biased;
        dialled = timeout_at(attempt.deadline, writable) => match dialled {
            Ok(Ok(())) => outcome(endpoint, &upstream, true),
            Ok(Err(error)) => Err(refusal(endpoint, &error)),
            Err(_) => Err(End { side: Side::Upstream, stage: Stage::Connect, cause: Cause::TimedOut }),
        },
        cause = gone(client) => Err(End { side: Side::Client, stage: Stage::Connect, cause }),
    };
    dialled.map(|()| upstream)
}

fn failed(books: &Books, endpoint: &Endpoint, end: End) {
    endpoint.cell.connect_failed(end.cause);
    report(&books.shared, endpoint, end);
}

/// Tells the control plane that a dial has failed, if that says something about the endpoint.
pub(super) fn report(shared: &Shared, endpoint: &Endpoint, end: End) {
    // Where this machine cannot dial, probes cannot either: they are to find out soon.
    if end.side == Side::Upstream || end.cause == Cause::Local {
        let report = Report::ConnectFailed { endpoint: Arc::clone(&endpoint.identity), cause: end.cause };
        shared.reports.send(report);
    }
}

/// Waits until the client has reset the connection, or has closed it without a byte for a while.
async fn gone(client: &Watched<'_>) -> Cause {
    let glances = async {
        loop {
            sleep(GLANCE).await;
            if has_left(client) {
                return;
            }
        }
    };
    tokio::select! {
        biased;
        _ = client.ready(Interest::ERROR) => Cause::Reset,
        () = glances => Cause::Closed,
    }
}

/// True when the client ended its direction and had sent nothing: nobody waits for an answer to no question, so no
/// further attempt is made for it. A client that sent something and then ended its direction is served in full.
fn has_left(client: &Watched<'_>) -> bool {
    peek(client.get_ref()) == Some(0)
}

/// True when the peer's first bytes are here.
pub(super) fn has_sent(peer: impl AsFd) -> bool {
    peek(peer) == Some(1)
}

/// The number of bytes that a read of one would get: 0 at the end of the stream, `None` while nothing has come.
fn peek(client: impl AsFd) -> Option<usize> {
    let mut byte = [0_u8; 1];
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    rustix::net::recv(client, &mut byte, flags).ok().map(|(_, length)| length)
}

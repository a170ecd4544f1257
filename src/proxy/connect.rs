//! Attempts: dial, and on failure the next candidate, until one connects, nothing is left or the time is up. The
//! client's bytes stay unread meanwhile, so a later attempt loses nothing.

use std::{cell::RefCell, io, sync::Arc, time::Duration};

use rand::{SeedableRng, rngs::SmallRng};
use tokio::{
    io::Interest,
    net::TcpStream,
    time::{Instant, sleep, timeout_at},
};

use super::{
    route::{self, Facts},
    session::Books,
};
use crate::{
    ids::EndpointIdentity,
    net,
    state::{Connect, Endpoint, EndpointCell, Report, SessionLimits},
    telemetry::{Cause, End, Side, Stage},
};

/// How often a client that has sent nothing is looked at while an attempt takes long.
const GLANCE: Duration = Duration::from_secs(1);

thread_local! {
    static RNG: RefCell<SmallRng> = RefCell::new(SmallRng::from_rng(&mut rand::rng()));
}

/// An upstream connection, and what the relay needs of the plan that led to it.
pub(super) struct Established {
    pub(super) upstream: TcpStream,
    pub(super) cell: Arc<EndpointCell>,
    pub(super) limits: Arc<SessionLimits>,
}

/// What one look at the snapshot decided.
struct Plan {
    endpoint: Arc<Endpoint>,
    connect: Connect,
    limits: Arc<SessionLimits>,
}

/// Finds an endpoint that takes the session.
pub(super) async fn connect(client: &TcpStream, books: &mut Books) -> Result<Established, End> {
    let mut tried: Vec<Arc<EndpointIdentity>> = Vec::new();
    let mut last = End { side: Side::Proxy, stage: Stage::Route, cause: Cause::NoEndpoint };
    loop {
        // A fresh snapshot for every attempt: it may know more than the last one did.
        let Some(plan) = plan(books, &tried) else {
            return Err(last);
        };
        let overall = books.started + plan.connect.total;
        if books.attempts >= plan.connect.attempts || (books.attempts > 0 && Instant::now() >= overall) {
            return Err(last);
        }
        if books.attempts > 0 && has_left(client) {
            return Err(End { side: Side::Client, stage: Stage::Connect, cause: Cause::Closed });
        }
        let endpoint = plan.endpoint;
        books.attempt(Arc::clone(&endpoint.identity), Arc::clone(&endpoint.cell));
        let begun = Instant::now();
        let deadline = (begun + plan.connect.timeout).min(overall);
        match attempt(client, &endpoint, deadline).await {
            Ok(upstream) => {
                let now = Instant::now();
                endpoint.cell.connected(now - begun);
                books.connected = Some(now);
                return Ok(Established { upstream, cell: Arc::clone(&endpoint.cell), limits: plan.limits });
            }
            Err(end) if end.side == Side::Client => return Err(end),
            Err(end) => {
                failed(books, &endpoint, end);
                tried.push(Arc::clone(&endpoint.identity));
                last = end;
            }
        }
    }
}

fn plan(books: &mut Books, tried: &[Arc<EndpointIdentity>]) -> Option<Plan> {
    let snapshot = books.shared.snapshot();
    let listener = snapshot.listener(&books.listener)?;
    let pool = &listener.pool;
    books.generation = snapshot.generation;
    if books.pool.as_ref() != Some(&pool.name) {
        books.pool = Some(pool.name.clone());
    }
    let facts = Facts { client: books.client, tried };
    let endpoint = RNG.with_borrow_mut(|rng| route::choose(pool, &facts, rng))?;
    Some(Plan { endpoint: Arc::clone(endpoint), connect: pool.connect, limits: Arc::clone(&listener.limits) })
}

/// One dial. Ends early when the client resets, or leaves without having sent anything.
async fn attempt(client: &TcpStream, endpoint: &Endpoint, deadline: Instant) -> Result<TcpStream, End> {
    let dial = net::dial(endpoint.address(), &endpoint.socket);
    tokio::select! {
        biased;
        dialled = timeout_at(deadline, dial) => match dialled {
            Ok(Ok(upstream)) => Ok(upstream),
            Ok(Err(error)) => Err(refusal(&error)),
            Err(_) => Err(End { side: Side::Upstream, stage: Stage::Connect, cause: Cause::TimedOut }),
        },
        cause = gone(client) => Err(End { side: Side::Client, stage: Stage::Connect, cause }),
    }
}

fn refusal(error: &io::Error) -> End {
    let cause = Cause::of(error);
    // Our own shortage says nothing about the endpoint.
    let side = if cause == Cause::Exhausted { Side::Proxy } else { Side::Upstream };
    End { side, stage: Stage::Connect, cause }
}

fn failed(books: &Books, endpoint: &Endpoint, end: End) {
    endpoint.cell.connect_failed(end.cause);
    if end.side == Side::Upstream {
        let report = Report::ConnectFailed { endpoint: Arc::clone(&endpoint.identity), cause: end.cause };
        books.shared.reports.send(report);
    }
}

/// Waits until the client has reset the connection, or has closed it without a byte for a while.
async fn gone(client: &TcpStream) -> Cause {
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
fn has_left(client: &TcpStream) -> bool {
    let mut byte = [0_u8; 1];
    let peeked =
        rustix::net::recv(client, &mut byte, rustix::net::RecvFlags::PEEK | rustix::net::RecvFlags::DONTWAIT);
    peeked.is_ok_and(|(_, length)| length == 0)
}

//! One attempt: plan, dial, and what came of it. The client's bytes stay unread meanwhile, so a later attempt loses
//! nothing. The engine begins the first attempt; whatever does not connect at once goes on in `racing.rs`.

use std::{cell::RefCell, io, net::IpAddr, os::fd::AsFd, sync::Arc, time::Duration};

use rand::{RngExt, SeedableRng, rngs::SmallRng};
use rustix::net::RecvFlags;
use tokio::{
    io::Interest,
    time::{Instant, sleep},
};

use super::{
    entry::{self, Glance, Hearing},
    ourselves,
    peer::Peer,
    race::Race,
    relay::{Pace, Watched},
    route::{self, Facts},
    seldom::Seldom,
    session::Books,
};
use crate::{
    ids::{CloudName, EndpointIdentity},
    net::{self, Outgoing},
    state::{
        Endpoint, Entry, Listener, Own, Pool, Queued, Report, Room, SessionLimits, Shared, Snapshot, Target,
    },
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
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) endpoint: Arc<Endpoint>,
    /// Kept while the session is connecting, and no longer.
    pub(super) pool: Arc<Pool>,
    pub(super) limits: Arc<SessionLimits>,
    /// The address to connect from, where that is the client's own.
    source: Option<IpAddr>,
    /// A firewall rule may send the connection back to us.
    intercepted: bool,
}

/// One dial.
#[derive(Debug)]
pub(super) struct Attempt {
    pub(super) plan: Plan,
    pub(super) begun: Instant,
    pub(super) deadline: Instant,
    /// When it counts as late, if another may then race it.
    pub(super) late: Option<Instant>,
    /// Its place among the attempts at this endpoint that may be under way at once.
    _place: Option<Place>,
}

/// A session's part in an endpoint's number of sessions.
#[derive(Debug)]
pub(super) struct Claim(Option<Arc<Endpoint>>);

impl Claim {
    /// A new one.
    pub(super) fn new(endpoint: Arc<Endpoint>) -> Self {
        endpoint.cell.begin();
        Self(Some(endpoint))
    }

    /// One that is counted already.
    pub(super) const fn taken(endpoint: Arc<Endpoint>) -> Self {
        Self(Some(endpoint))
    }

    /// Gives it to somebody who counts it out.
    pub(super) fn give(mut self) -> Option<Arc<Endpoint>> {
        self.0.take()
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if let Some(endpoint) = &self.0 {
            endpoint.cell.finish();
        }
    }
}

/// A place among the attempts at an endpoint that may be under way at once.
#[derive(Debug)]
pub(super) struct Place {
    endpoint: Arc<Endpoint>,
    /// Where sessions are limited, that of the attempt counts already.
    claim: Option<Claim>,
}

impl Place {
    /// Takes one; `None` when all are taken, or others wait for one.
    pub(super) fn take(plan: &Plan) -> Option<Self> {
        let room = plan.pool.room();
        plan.endpoint.cell.enter(room).then(|| Self::entered(plan, room))
    }

    /// Waits for one; `None` when too many do. `elsewhere` looks for one at another endpoint, if those of this one may be
    /// long in coming.
    pub(super) async fn wait(
        plan: Plan,
        shared: &Shared,
        elsewhere: impl FnMut() -> Option<(Plan, Self)>,
    ) -> Option<(Plan, Self)> {
        let room = || {
            let snapshot = shared.snapshot();
            let pool = snapshot.pools.iter().find(|pool| pool.name == plan.pool.name);
            pool.unwrap_or(&plan.pool).room()
        };
        match plan.endpoint.cell.queue(room, plan.pool.connect.queue, elsewhere).await {
            Queued::Entered(room) => {
                let place = Self::entered(&plan, room);
                Some((plan, place))
            }
            Queued::Elsewhere(found) => Some(found),
            Queued::TooMany => None,
        }
    }

    fn entered(plan: &Plan, room: Room) -> Self {
        let claim = room.sessions.map(|_| Claim::taken(Arc::clone(&plan.endpoint)));
        Self { endpoint: Arc::clone(&plan.endpoint), claim }
    }

    /// The part of the attempt in the endpoint's number of sessions. Once.
    pub(super) fn claim(&mut self) -> Claim {
        self.claim.take().unwrap_or_else(|| Claim::new(Arc::clone(&self.endpoint)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.endpoint.cell.leave();
    }
}

/// An attempt that was begun, and how that went: a socket that may not be connected yet.
pub(super) type Begun = (Attempt, Result<Peer, End>);

/// An upstream connection, and what the relay needs of the plan that led to it.
pub(super) struct Established {
    pub(super) upstream: Peer,
    pub(super) limits: Arc<SessionLimits>,
    /// Kept until the relay begins.
    pub(super) pool: Arc<Pool>,
}

/// What one look at the snapshot says of a session's first attempt.
pub(super) enum First {
    /// Everything is known.
    Dial(Plan),
    /// The client has to say more first, and nothing else is needed.
    Hear(Box<Hearing>),
    /// More than a plain connect is needed: the client must say something first, an endpoint must be told something, or its
    /// first byte is waited for. Nothing was chosen: that takes a turn, and perhaps the one permit of an endpoint on trial.
    Slow,
    /// It is over: it is not let in, or there is nobody to serve it.
    Over(End),
}

/// Lets a session in, and chooses the endpoint for its first attempt, if that is to be made at once.
pub(super) fn first(books: &mut Books, client: &Peer) -> First {
    let snapshot = books.shared.snapshot();
    let Some(listener) = snapshot.listener(&books.listener) else { return First::Over(NO_ENDPOINT) };
    if let Err(end) = books.come_in(listener.entry.as_deref()) {
        return First::Over(end);
    }
    let Some(entry) = listener.entry.as_ref().filter(|entry| entry.is_slow()) else {
        return dial_to(books, &snapshot, (listener, &listener.target));
    };
    books.generation = snapshot.generation;
    match entry::glance(client, books, entry) {
        Glance::Heard => lead(books, &snapshot, listener),
        Glance::Waits(hearing) => First::Hear(hearing),
        Glance::Slow => First::Slow,
        Glance::Over(end) => First::Over(end),
    }
}

/// The same for a client that was let in and has been waited for.
pub(super) fn first_of_heard(books: &mut Books) -> First {
    let snapshot = books.shared.snapshot();
    match snapshot.listener(&books.listener) {
        Some(listener) => lead(books, &snapshot, listener),
        None => First::Over(NO_ENDPOINT),
    }
}

fn lead(books: &mut Books, snapshot: &Snapshot, listener: &Listener) -> First {
    books.generation = snapshot.generation;
    match entry::aim(books, (&snapshot.own, listener)) {
        Ok(target) => dial_to(books, snapshot, (listener, target)),
        Err(end) => First::Over(end),
    }
}

fn dial_to(books: &mut Books, snapshot: &Snapshot, to: (&Listener, &Target)) -> First {
    if to.1.pool().is_some_and(|pool| !pool.is_plain()) {
        return First::Slow;
    }
    let plan = choose(books, snapshot, to, (&[], false));
    plan.map_or(First::Over(NO_ENDPOINT), First::Dial)
}

/// Chooses the endpoint for the next attempt; `None` when there is none left. `spread`: in a cloud that was not tried yet,
/// if there is one.
pub(super) fn plan(books: &mut Books, tried: &[Arc<EndpointIdentity>], spread: bool) -> Option<Plan> {
    let snapshot = books.shared.snapshot();
    let listener = snapshot.listener(&books.listener)?;
    let target = listener.route(books.client.ip(), books.told());
    choose(books, &snapshot, (listener, target), (tried, spread))
}

fn choose(
    books: &mut Books,
    snapshot: &Snapshot,
    (listener, target): (&Listener, &Target),
    (tried, spread): (&[Arc<EndpointIdentity>], bool),
) -> Option<Plan> {
    books.generation = snapshot.generation;
    let pool = target.pool()?;
    if books.pool.as_ref() != Some(&pool.name) {
        books.pool = Some(pool.name.clone());
    }
    if let Target::AsAsked(_) = target {
        return as_asked(books, pool, listener, (&snapshot.own, tried));
    }
    let facts = Facts { client: books.client, tried, spread };
    let endpoint = RNG.with_borrow_mut(|rng| route::choose(pool, &facts, rng))?;
    let limits = listener.limits.towards(&endpoint.socket);
    let source = pool.towards.client_source.then(|| books.client.ip());
    let (endpoint, pool, intercepted) = (Arc::clone(endpoint), Arc::clone(pool), snapshot.own.intercepts);
    Some(Plan { endpoint, pool, limits, source, intercepted })
}

/// What comes before a pool is chosen, if anything does.
pub(super) fn entry(books: &mut Books) -> Option<Arc<Entry>> {
    // What comes back from the engine has told what it had to.
    if books.attempts > 0 {
        return None;
    }
    let snapshot = books.shared.snapshot();
    let entry = snapshot.listener(&books.listener)?.entry.as_ref()?;
    books.generation = snapshot.generation;
    entry.comes_first().then(|| Arc::clone(entry))
}

/// How fast a session of this pool may move bytes.
pub(super) fn pace(books: &Books, pool: &Pool) -> Pace {
    let snapshot = books.shared.snapshot();
    let entry = snapshot.listener(&books.listener).and_then(|listener| listener.entry.as_ref());
    Pace::new(entry.and_then(|entry| entry.bandwidth), pool.towards.bandwidth.clone(), Instant::now())
}

/// The pool of a session, as it is now.
pub(super) fn pool(books: &Books) -> Option<Arc<Pool>> {
    let snapshot = books.shared.snapshot();
    let listener = snapshot.listener(&books.listener)?;
    listener.route(books.client.ip(), books.told()).pool().map(Arc::clone)
}

/// The address that the client asked for, as an endpoint that only this session knows.
fn as_asked(
    books: &Books,
    pool: &Arc<Pool>,
    listener: &Listener,
    (own, tried): (&Own, &[Arc<EndpointIdentity>]),
) -> Option<Plan> {
    let address = books.told().destination.filter(|_| tried.is_empty())?;
    if own.is_reached_by(address) {
        return None;
    }
    let identity =
        EndpointIdentity { pool: pool.name.clone(), cloud: CloudName::from(pool.name.as_str()), address };
    let (identity, cell, socket) = (Arc::new(identity), Arc::default(), Arc::default());
    let endpoint = Arc::new(Endpoint { identity, cell, weight: 1, socket });
    let (pool, limits, intercepted) = (Arc::clone(pool), Arc::clone(&listener.limits), own.intercepts);
    Some(Plan { endpoint, pool, limits, source: None, intercepted })
}

/// Begins the first attempt of a session. The last segment of the handshake waits for what the client has to say, or for
/// [`net::acknowledge`]. The books know of it from here on.
pub(super) fn begin(
    books: &mut Books,
    plan: Plan,
    mut place: Place,
    used: Option<Peer>,
    now: Instant,
) -> Begun {
    // One whose spare had ended under it is counted.
    if books.attempts == 0 {
        plan.pool.cell.begin(now);
    }
    books.count_attempt();
    books.carried_by(place.claim());
    let mut race = Race::new(plan.pool.connect, now);
    attempt(&mut race, plan, place, (true, used), now)
}

/// Begins an attempt.
pub(super) fn dial(race: &mut Race, plan: Plan, place: Place, eager: bool, now: Instant) -> Begun {
    attempt(race, plan, place, (eager, None), now)
}

fn attempt(
    race: &mut Race,
    plan: Plan,
    place: Place,
    (eager, used): (bool, Option<Peer>),
    now: Instant,
) -> Begun {
    let jitter = RNG.with_borrow_mut(RngExt::random);
    let deadline = race.begun(plan.endpoint.cell.usual(), jitter, now);
    let upstream = match used.filter(|used| net::again(used, plan.endpoint.address(), eager).is_ok()) {
        Some(upstream) => Ok(upstream),
        None => connect_to(&plan.endpoint, &plan.endpoint.socket, (eager, plan.source, plan.intercepted)),
    };
    (Attempt { plan, begun: now, deadline, late: race.late(), _place: Some(place) }, upstream)
}

/// A session begins on a connection that is established already. The books know of it from here on; what the endpoint's
/// connect times are was learnt when it was dialled.
pub(super) fn begin_on_spare(books: &mut Books, plan: Plan, now: Instant) -> Arc<SessionLimits> {
    books.attempt(Arc::clone(&plan.endpoint));
    plan.pool.cell.begin(now);
    plan.endpoint.cell.given_spare();
    books.connected = Some(now.max(books.started));
    plan.limits
}

/// Begins a connection that no session waits for.
pub(super) fn begin_spare(endpoint: &Endpoint, socket: &Outgoing, shared: &Shared) -> Result<Peer, End> {
    // While it waits its options may change.
    connect_to(endpoint, socket, (false, None, shared.snapshot().own.intercepts)).map(Peer::once)
}

fn connect_to(
    endpoint: &Endpoint,
    socket: &Outgoing,
    (eager, source, intercepted): (bool, Option<IpAddr>, bool),
) -> Result<Peer, End> {
    let address = endpoint.address();
    let begin = || match source {
        Some(client) => net::begin_as(client, address, socket, eager),
        None => net::begin(address, socket, eager),
    };
    let upstream = match intercepted {
        true => ourselves::dial(address, begin),
        false if source.is_none() && socket.is_plain() => begin().map(Peer::reusable),
        false => begin().map(Peer::unused),
    };
    upstream.map_err(|error| refusal(endpoint, &error))
}

/// How a dial that failed with this error ends.
pub(super) fn refusal(endpoint: &Endpoint, error: &io::Error) -> End {
    let cause = Cause::of(error);
    if cause == Cause::Local && REFUSED_OPTION.is_due() {
        let (cloud, endpoint) = (&endpoint.identity.cloud, endpoint.identity.address);
        tracing::warn!(%cloud, %endpoint, %error, "this machine cannot dial as the cloud's settings say");
    }
    let side = if cause.is_ours() { Side::Proxy } else { Side::Upstream };
    End { side, stage: Stage::Connect, cause }
}

impl Plan {
    /// True if a socket that was dialled before will do.
    pub(super) fn takes_used(&self) -> bool {
        !self.intercepted && self.source.is_none() && self.endpoint.socket.is_plain()
    }
}

impl Attempt {
    /// Notes that the attempt has connected.
    pub(super) fn connected(&self, books: &mut Books, now: Instant) {
        let cell = &self.plan.endpoint.cell;
        cell.connected(now.saturating_duration_since(self.begun));
        // Where the first byte or a handshake is waited for, that speaks for the endpoint.
        if !self.plan.pool.connect.watches() && self.plan.pool.towards.tls.is_none() {
            cell.vouch();
        }
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

pub(super) fn failed(books: &Books, endpoint: &Endpoint, end: End) {
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

/// Waits until the client has reset the connection, or has closed it without a byte for a while, if it has not `asked`
/// for anything before.
pub(super) async fn gone(client: &Watched<'_>, asked: bool) -> Cause {
    let glances = async {
        loop {
            sleep(GLANCE).await;
            if let Some(cause) = left(client, asked) {
                return cause;
            }
        }
    };
    tokio::select! {
        biased;
        _ = client.ready(Interest::ERROR) => Cause::Reset,
        cause = glances => cause,
    }
}

/// How the client has left, if it has. One that ended its direction has if it had sent nothing (`asked`: it had): nobody
/// waits for an answer to no question, so no further attempt is made for it. A client that sent something and then ended
/// its direction is served in full. A look at a socket that was reset takes its error, so this must tell of it: no event
/// will.
pub(super) fn left(client: &Watched<'_>, asked: bool) -> Option<Cause> {
    match peek(client.get_ref()) {
        Ok(0) if !asked => Some(Cause::Closed),
        Ok(_) => None,
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => None,
        Err(_) => Some(Cause::Reset),
    }
}

/// True when the peer's first bytes are here.
pub(super) fn has_sent(peer: impl AsFd) -> bool {
    matches!(peek(peer), Ok(1))
}

/// The number of bytes that a read of one would get: 0 at the end of the stream.
pub(super) fn peek(peer: impl AsFd) -> io::Result<usize> {
    let mut byte = [0_u8; 1];
    let (_, length) = rustix::net::recv(peer, &mut byte, RecvFlags::PEEK | RecvFlags::DONTWAIT)?;
    Ok(length)
}

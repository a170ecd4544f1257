//! The life of one session, top to bottom: route and dial, relay, and one line at the end. This is tokio's part: every
//! session where the engine is off, and otherwise those that need more than one plain connect. Must never hold a snapshot
//! across an await.

use std::{future::Future, net::SocketAddr, os::fd::AsFd, sync::Arc, thread, time::Duration};

use tokio::time::Instant;

use super::{
    connect::{self, Begun, Claim, Established},
    edge,
    engine::Mailbox,
    entry, first_byte,
    note::Note,
    peer::Peer,
    relay::{self, Relay, Watched},
    seats::Seat,
    towards,
};
use crate::{
    ids::{EndpointIdentity, Generation, PoolName},
    net,
    state::{Admitted, Endpoint, Entry, ListenerCell, SessionLimits, Shared, SlowSession, Told},
    sys,
    telemetry::{Cause, End, SessionRecord, Side, Stage},
};

/// An endpoint that ends a session before its first byte has not answered, if the client has asked; or if this soon. One
/// that resets it this soon, and was sent nothing, is left for another one.
pub(super) const AT_ONCE: Duration = Duration::from_secs(1);

/// Serves one accepted client to its end.
pub(super) fn serve(client: Peer, books: Books) -> impl Future<Output = ()> + Send {
    story(client, books, None, None)
}

/// A session that the engine has begun and that needs more than it can do.
pub(super) struct Handover {
    pub(super) client: Peer,
    pub(super) books: Books,
    /// The first attempt, failed or late; none where there was no place for it.
    pub(super) begun: Option<Begun>,
    /// It counts for the worker that is to go on with it.
    pub(super) slow: SlowSession,
}

/// Goes on with a session of the engine's, and gives the established pair back.
pub(super) fn resume(
    client: Peer,
    books: Books,
    begun: Option<Begun>,
    engine: Arc<Mailbox>,
) -> impl Future<Output = ()> + Send {
    story(client, books, begun.map(Box::new), Some(engine))
}

async fn story(client: Peer, mut books: Books, mut begun: Option<Box<Begun>>, engine: Option<Arc<Mailbox>>) {
    if let Some(entry) = connect::entry(&mut books)
        && let Some(Over { end, in_order }) = Box::pin(enter(&client, &mut books, &entry)).await
    {
        if in_order {
            client.close();
        }
        return books.close(end);
    }
    let Ok(mut watched) = sys::readiness(client.as_fd(), sys::EVERYTHING) else {
        return books.close(End { side: Side::Proxy, stage: Stage::Accept, cause: Cause::Exhausted });
    };
    let (upstream, end) = loop {
        // Boxed, so that an idle session does not carry the room that dialling needs.
        let reached = Box::pin(reach(&watched, &mut books, begun.take().map(|begun| *begun))).await;
        let Established { upstream, limits, pool } = match reached {
            Ok(established) => established,
            Err(end) => return books.close(end),
        };
        let pace = connect::pace(&books, &pool);
        let is_plain = pool.towards.tls.is_none() && pace.is_free();
        if is_plain && let Some(engine) = engine {
            drop(watched);
            return engine.adopt(client, upstream, books, limits);
        }
        if pool.connect.watches() {
            drop(watched);
            watched = match watch(&client) {
                Ok(watched) => watched,
                Err(end) => return books.close(end),
            };
        }
        if !is_plain {
            match Box::pin(edge::pass_on(&watched, &upstream, &mut books, (&pool, limits, pace))).await {
                Some(end) => break (upstream, end),
                None => continue,
            }
        }
        drop(pool);
        net::set_nodelay(&upstream);
        let (end, lost) = match sys::readiness(upstream.as_fd(), sys::EVERYTHING) {
            Ok(other) => relay::relay(&watched, &other, limits, &mut books).await,
            Err(_) => (connect::EXHAUSTED, false),
        };
        if !lost {
            break (upstream, end);
        }
    };
    drop(watched);
    if end.is_clean() {
        client.close();
        upstream.close();
    }
    books.close(end);
}

/// A session that came to its end before it had an endpoint, or beside the way of plain ones.
struct Over {
    end: End,
    /// The client's connection is to be closed in order.
    in_order: bool,
}

/// Hears what the client must say before it has a pool, and serves it to its end where TLS ends here.
async fn enter(client: &Peer, books: &mut Books, entry: &Entry) -> Option<Over> {
    let watched = match watch(client) {
        Ok(watched) => watched,
        Err(end) => return Some(Over { end, in_order: false }),
    };
    match entry::pass(&watched, books, entry).await {
        Ok(None) => None,
        Ok(Some(secured)) => {
            let end = Box::pin(edge::serve(&watched, secured, books)).await;
            // A client that has broken TLS was sent an alert, after which no end of its connection looks like a clean one.
            let told = end.side == Side::Client && end.cause == Cause::Handshake;
            Some(Over { end, in_order: end.is_clean() || told })
        }
        // After a failed handshake, and a hello that is none, the alert that says why is to arrive.
        Err(end) => Some(Over { end, in_order: matches!(end.cause, Cause::Handshake | Cause::BadHello) }),
    }
}

/// Watches the client anew: what was looked at raises no edge of its own, and a fresh registration does.
fn watch(client: &Peer) -> Result<Watched<'_>, End> {
    sys::readiness(client.as_fd(), sys::EVERYTHING).map_err(|_| connect::EXHAUSTED)
}

/// Finds an endpoint that takes the session, and that answers where the pool asks for that.
async fn reach(client: &Watched<'_>, books: &mut Books, begun: Option<Begun>) -> Result<Established, End> {
    let established = towards::connect(client, books, begun, books.lost_by()).await?;
    // What is not in the client's socket any more cannot be kept for another endpoint.
    let in_plain = established.pool.towards.tls.is_none();
    if established.pool.connect.watches() && in_plain && !books.owes() {
        return first_byte::settle(client, books, established).await;
    }
    Ok(established)
}

/// Bytes relayed so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Moved {
    pub(super) to_upstream: u64,
    pub(super) to_client: u64,
}

impl Moved {
    /// Bytes both ways since then.
    pub(super) const fn since(self, before: Self) -> u64 {
        self.to_upstream.saturating_sub(before.to_upstream) + self.to_client.saturating_sub(before.to_client)
    }
}

/// What few sessions have behind them before they are relayed. Boxed, as most have nothing.
#[derive(Debug, Default)]
struct Early {
    /// Bytes that were passed on before the relay began.
    passed_on: u64,
    /// Bytes that were taken from the client before, and not passed on.
    owed: Box<[u8]>,
    /// The client's end was passed on as well.
    client_ended: bool,
    /// What the client has told before it had a pool.
    told: Told,
    /// What else is known of it, for its line and for its endpoint.
    note: Note,
    /// It counts for the limits of its listener.
    admitted: Option<Admitted>,
    /// Endpoints that have reset it before a byte was exchanged.
    lost_by: Vec<Arc<EndpointIdentity>>,
    /// How it ends if nobody else takes it, and whether its endpoint has been told of that; nothing when somebody looks for
    /// another one already.
    lost: Option<(End, Counted)>,
}

/// Whether an endpoint has been told that it failed a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Counted {
    NotYet,
    Already,
}

/// The session's record: opened at the accept, closed exactly once, from `drop` if the task was cancelled or panicked.
pub(super) struct Books {
    pub(super) shared: Arc<Shared>,
    pub(super) listener: Arc<ListenerCell>,
    pub(super) client: SocketAddr,
    pub(super) started: Instant,
    pub(super) pool: Option<PoolName>,
    /// The endpoint that carries the session, or the one that was tried last.
    pub(super) endpoint: Option<Arc<Endpoint>>,
    pub(super) generation: Generation,
    pub(super) connected: Option<Instant>,
    pub(super) attempts: u8,
    pub(super) moved: Moved,
    early: Option<Box<Early>>,
    /// The client has sent something, which is not in its socket any more.
    pub(super) asked: bool,
    /// Where it is known while a task carries it.
    pub(super) seat: Option<Box<Seat>>,
    end: Option<End>,
    session: u64,
}

impl Books {
    pub(super) fn open(client: SocketAddr, listener: Arc<ListenerCell>, shared: Arc<Shared>) -> Self {
        listener.begin();
        let session = shared.sessions.begin();
        Self {
            shared,
            listener,
            client,
            started: Instant::now(),
            pool: None,
            endpoint: None,
            generation: Generation(0),
            connected: None,
            attempts: 0,
            moved: Moved::default(),
            early: None,
            asked: false,
            seat: None,
            end: None,
            session,
        }
    }

    /// An attempt at this endpoint begins: it carries the session from now on.
    pub(super) fn attempt(&mut self, endpoint: Arc<Endpoint>) {
        endpoint.cell.begin();
        self.attempts = self.attempts.saturating_add(1);
        if let Some(last) = self.endpoint.replace(endpoint) {
            last.cell.finish();
        }
        self.show();
    }

    /// The session's number.
    pub(super) const fn number(&self) -> u64 {
        self.session
    }

    /// More is known of the session: an operator who asks is to see it.
    pub(super) fn show(&self) {
        if let Some(seat) = &self.seat {
            seat.show(self);
        }
    }

    /// One more attempt begins; who makes it holds the claim to its endpoint.
    pub(super) const fn count_attempt(&mut self) {
        self.attempts = self.attempts.saturating_add(1);
    }

    /// This endpoint is being tried.
    pub(super) fn trying(&mut self, endpoint: &Arc<Endpoint>) {
        if self.seat.is_some() {
            let kept = self.endpoint.replace(Arc::clone(endpoint));
            self.show();
            self.endpoint = kept;
        }
    }

    /// Gives the claim away: others may be made beside it.
    pub(super) fn lend(&mut self) -> Option<Claim> {
        self.endpoint.take().map(Claim::taken)
    }

    /// This endpoint carries the session, or was the last that was tried.
    pub(super) fn carried_by(&mut self, claim: Claim) {
        if let Some(last) = std::mem::replace(&mut self.endpoint, claim.give()) {
            last.cell.finish();
        }
        self.show();
    }

    /// So many bytes of the client have gone to the endpoint before the relay begins, these are to follow, and its end
    /// has gone there too or not.
    pub(super) fn passed_on(&mut self, bytes: u64, owed: Box<[u8]>, ended: bool) {
        let early = self.early.get_or_insert_default();
        (early.passed_on, early.owed, early.client_ended) = (bytes, owed, ended);
    }

    /// True while bytes are here that were taken from the client and not passed on.
    fn owes(&self) -> bool {
        self.early.as_ref().is_some_and(|early| !early.owed.is_empty())
    }

    /// What is owed, for who sends it.
    pub(super) fn take_owed(&mut self) -> Vec<u8> {
        self.early.as_mut().map(|early| std::mem::take(&mut early.owed).into_vec()).unwrap_or_default()
    }

    /// A relay that goes on from where the session is.
    pub(super) fn relay(&mut self, now: Instant, limits: Arc<SessionLimits>) -> Relay {
        let Some(early) = &mut self.early else { return Relay::new(now, limits) };
        match std::mem::take(&mut early.owed) {
            _ if early.client_ended => Relay::half_closed_by_client(now, limits),
            owed if owed.is_empty() => Relay::new(now, limits),
            owed => Relay::owing(owed, now, limits),
        }
    }

    /// Takes note of the end of a relay. True when it is none of the session: the endpoint has reset the connection at
    /// once, or when the client had sent something, before a byte was exchanged, so that another one may have the session.
    /// An orderly end is its answer.
    pub(super) fn lose(&mut self, relay: &mut Relay, end: End, now: Instant) -> bool {
        if !self.may_go_elsewhere(end) {
            return false;
        }
        let Some((undelivered, endpoint)) = relay.undelivered().zip(self.endpoint.as_ref()) else {
            return false;
        };
        if undelivered.is_empty() && !self.is_new(now) {
            return false;
        }
        self.asked |= !undelivered.is_empty();
        let early = self.early.get_or_insert_default();
        early.lost_by.push(Arc::clone(&endpoint.identity));
        early.lost = Some((end, Counted::NotYet));
        early.owed = undelivered;
        true
    }

    /// True when the endpoint has reset the connection and was sent nothing of the session before the relay began.
    pub(super) fn may_go_elsewhere(&self, end: End) -> bool {
        let reset = end.is_by_endpoint() && end.cause == Cause::Reset;
        reset && !self.early.as_ref().is_some_and(|early| early.passed_on > 0 || early.client_ended)
    }

    /// True if it has connected just now. Later, a reset is the endpoint's word on a session that nobody uses.
    pub(super) fn is_new(&self, now: Instant) -> bool {
        now < self.connected.unwrap_or(self.started) + AT_ONCE
    }

    /// Endpoints that have reset it, and are not to be tried again.
    pub(super) fn lost_by(&self) -> Vec<Arc<EndpointIdentity>> {
        self.early.as_ref().map(|early| early.lost_by.clone()).unwrap_or_default()
    }

    /// What the client has told.
    pub(super) fn told(&self) -> &Told {
        static NOTHING: Told = Told::new();
        self.early.as_ref().map_or(&NOTHING, |early| &early.told)
    }

    /// What the client tells, for whoever learns more of it.
    pub(super) fn tell_more(&mut self) -> &mut Told {
        &mut self.early.get_or_insert_default().told
    }

    /// What else is known of it.
    pub(super) fn noted(&self) -> Option<&Note> {
        self.early.as_ref().map(|early| &early.note)
    }

    /// The same, for whoever knows more.
    pub(super) fn note(&mut self) -> &mut Note {
        &mut self.early.get_or_insert_default().note
    }

    /// It is refused for what its client said, for this reason: a word of [`crate::state::REFUSALS`], and a sentence.
    pub(super) fn turn_away(&mut self, word: &'static str, reason: Box<str>) {
        self.listener.refusals.count(word);
        self.note().refused = Some((word, reason));
    }

    /// The endpoint was connected to, and failed before it had the session: another one may have that.
    pub(super) fn fail(&mut self, end: End) {
        if let Some(endpoint) = self.endpoint.clone() {
            connect::failed(self, &endpoint, end);
            self.connected = None;
            self.leave(end, Counted::Already);
        }
    }

    /// The endpoint has reset it before a byte was exchanged: another one may have it, from which `asked` says whether the
    /// client has sent something.
    pub(super) fn give_up(&mut self, end: End, asked: bool) {
        self.asked |= asked;
        self.leave(end, Counted::NotYet);
    }

    fn leave(&mut self, end: End, counted: Counted) {
        if let Some(endpoint) = &self.endpoint {
            let early = self.early.get_or_insert_default();
            early.lost_by.push(Arc::clone(&endpoint.identity));
            early.lost = Some((end, counted));
        }
    }

    /// What counts it for the limits of its listener, if it was let in under any.
    pub(super) fn admitted(&mut self) -> Option<&mut Admitted> {
        self.early.as_mut()?.admitted.as_mut()
    }

    /// It was let in, and counts until its end.
    pub(super) fn let_in(&mut self, admitted: Admitted) {
        self.early.get_or_insert_default().admitted = Some(admitted);
    }

    /// How it would have ended, once for each endpoint that has reset it.
    pub(super) fn was_lost(&mut self) -> Option<(End, Counted)> {
        self.early.as_mut()?.lost.take()
    }

    /// Counts what the relay has delivered until now.
    pub(super) fn account(&mut self, moved: Moved) {
        let before = self.early.as_ref().map_or(0, |early| early.passed_on);
        let moved = Moved { to_upstream: moved.to_upstream + before, ..moved };
        if let Some(endpoint) = self.endpoint.as_ref().filter(|_| moved != self.moved) {
            if self.moved.to_client == 0 && moved.to_client > 0 {
                endpoint.cell.was_heard();
            }
            endpoint
                .cell
                .moved(moved.to_upstream - self.moved.to_upstream, moved.to_client - self.moved.to_client);
            self.moved = moved;
            if let Some(seat) = &self.seat {
                seat.moved(moved);
            }
        }
    }

    pub(super) fn close(mut self, end: End) {
        self.end = Some(end);
    }

    fn unfinished(&self) -> End {
        if !thread::panicking() && self.seat.as_ref().is_some_and(|seat| seat.is_killed()) {
            let stage = if self.connected.is_some() { Stage::Relay } else { Stage::Connect };
            return End { side: Side::Operator, stage, cause: Cause::Killed };
        }
        let stage = if self.connected.is_some() { Stage::Drain } else { Stage::Connect };
        match thread::panicking() {
            true => End { side: Side::Proxy, stage, cause: Cause::Panic },
            false => End { side: Side::Operator, stage, cause: Cause::Shutdown },
        }
    }
}

impl Drop for Books {
    fn drop(&mut self) {
        let end = self.end.unwrap_or_else(|| self.unfinished());
        let ended = Instant::now();
        let total = ended.saturating_duration_since(self.started);
        let endpoint = self.endpoint.take().map(|endpoint| {
            endpoint.cell.finish();
            if self.moved.to_client == 0
                && end.is_by_endpoint()
                && (self.moved.to_upstream > 0 || total < AT_ONCE)
            {
                endpoint.cell.was_empty();
            }
            Arc::clone(&endpoint.identity)
        });
        self.listener.finish(end, total);
        self.shared.session_log.write(SessionRecord {
            session: self.session,
            client: self.client,
            listener: self.listener.name.clone(),
            pool: self.pool.take(),
            endpoint,
            generation: self.generation,
            to_upstream: self.moved.to_upstream,
            to_client: self.moved.to_client,
            connect: self.connected.map(|at| at - self.started),
            ended,
            total,
            attempts: self.attempts,
            end,
            edge: self.early.take().and_then(|early| early.note.record(early.told)),
        });
        self.shared.sessions.finish(end.cause == Cause::Panic);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ids::ListenerName,
        state::{Reports, Sockets},
        telemetry::SessionLog,
    };

    fn bed() -> (Arc<Shared>, Arc<ListenerCell>) {
        let shared = Shared::new(Reports::new().0, Sockets::new(1).0, SessionLog::off());
        let address = "127.0.0.1:1".parse().unwrap();
        (Arc::new(shared), Arc::new(ListenerCell::new(ListenerName::from("l"), address)))
    }

    #[tokio::test]
    async fn a_panic_ends_its_own_session_only_and_is_counted() {
        let (shared, listener) = bed();
        let address = listener.address;
        let other = Books::open(address, Arc::clone(&listener), Arc::clone(&shared));
        let books = Books::open(address, Arc::clone(&listener), Arc::clone(&shared));
        let task = tokio::spawn(async move {
            let _books = books;
            panic!("a bug in a session");
        });
        assert!(task.await.unwrap_err().is_panic());
        assert_eq!((shared.sessions.panicked(), shared.sessions.active()), (1, 1));
        let ends: Vec<_> = listener.ends().collect();
        assert_eq!(ends.len(), 1);
        assert_eq!((ends[0].0.side, ends[0].0.cause), (Side::Proxy, Cause::Panic));
        drop(other);
        assert_eq!(shared.sessions.active(), 0);
    }

    #[tokio::test]
    async fn a_cancelled_session_still_closes_its_books() {
        let (shared, listener) = bed();
        drop(Books::open(listener.address, Arc::clone(&listener), Arc::clone(&shared)));
        let ends: Vec<_> = listener.ends().map(|(end, _)| end).collect();
        assert_eq!(ends, [End { side: Side::Operator, stage: Stage::Connect, cause: Cause::Shutdown }]);
        assert_eq!(listener.active(), 0);
    }

    #[tokio::test]
    async fn the_future_of_a_session_stays_small() {
        let (shared, listener) = bed();
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = std::net::TcpStream::connect(socket.local_addr().unwrap()).unwrap();
        let books = Books::open(listener.address, listener, shared);
        let future = serve(Peer::new(stream.into()), books);
        let size = size_of_val(&future);
        assert!((300..=1000).contains(&size), "{size} bytes");
    }
}

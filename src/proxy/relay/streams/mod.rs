//! The relay between streams that are more than sockets: TLS on one side or both. The manners are those of the relay between
//! sockets: ends are passed on as ends (`close_notify` where there is TLS), resets as resets, and TLS that breaks off without
//! `close_notify` is a reset (RFC 8446, section 6.1): a loss must not look like an end.

use std::{
    cell::RefCell,
    future::poll_fn,
    io,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep_until},
};

use super::{
    CLIENT_GONE, LOOK_FIRST, LOOK_MOST, Pace, Watched,
    pace::Lane,
    patience::{Done, Patience},
};
use crate::{
    net,
    proxy::session::{Books, Moved},
    state::SessionLimits,
    telemetry::{Cause, End, Side, Stage},
};

/// The room for one read: the largest record of TLS.
const ROOM: usize = 16 * 1024;

/// Reads of one direction before others have their turn.
const TURN: u32 = 32;

thread_local! {
    /// What is read goes through here; a session has memory of its own only while bytes wait for a reader.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; ROOM].into_boxed_slice());
}

/// A side's stream, and the socket below it.
pub(in crate::proxy) struct Below<'a, 'w, S> {
    pub(in crate::proxy) stream: &'a mut S,
    pub(in crate::proxy) socket: &'a Watched<'w>,
}

/// How a relay has ended.
pub(in crate::proxy) enum Outcome {
    /// When the end is not a clean one, the caller resets both connections.
    Ended(End),
    /// The endpoint has reset the connection before a byte was exchanged: another one may have the session. What was taken of
    /// the client goes with it.
    Lost(End, Vec<u8>),
}

/// Relays until the session ends, and says how. `owed` was taken of the client before and goes to the endpoint first.
pub(in crate::proxy) async fn relay_streams<C, U>(
    client: Below<'_, '_, C>,
    upstream: Below<'_, '_, U>,
    (limits, pace): (Arc<SessionLimits>, Pace),
    (books, owed): (&mut Books, Vec<u8>),
) -> Outcome
where
    C: AsyncRead + AsyncWrite + Unpin,
    U: AsyncRead + AsyncWrite + Unpin,
{
    books.show();
    let now = Instant::now();
    let mut relay = Streams {
        client,
        upstream,
        to_upstream: Flow { held: owed, ..Flow::default() },
        to_client: Flow::default(),
        patience: Patience::new(now, limits),
        pace,
    };
    let mut timer = pin!(sleep_until(relay.deadline()));
    let end = poll_fn(|context| {
        let polled = relay.poll(context, timer.as_mut());
        books.account(relay.moved());
        polled
    })
    .await;
    match end {
        Ok(end) => {
            relay.patience.leave(relay.client.socket, relay.upstream.socket);
            Outcome::Ended(end)
        }
        Err(end) if relay.is_lost(end, books) => Outcome::Lost(end, relay.to_upstream.held),
        Err(end) => {
            relay.last_words(end).await;
            books.account(relay.moved());
            Outcome::Ended(end)
        }
    }
}

struct Streams<'a, 'w, C, U> {
    client: Below<'a, 'w, C>,
    upstream: Below<'a, 'w, U>,
    to_upstream: Flow,
    to_client: Flow,
    patience: Patience,
    pace: Pace,
}

/// One direction.
#[derive(Default)]
struct Flow {
    /// What was read and not written: empty where nothing waits.
    held: Vec<u8>,
    /// So much of it was written.
    written: usize,
    state: Ends,
    /// Written, but perhaps still in the sink's own buffer.
    unflushed: bool,
    /// Nothing may be read before this time.
    paused: Option<Instant>,
    moved: u64,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Ends {
    #[default]
    Open,
    /// The source has ended, and the sink is to learn it.
    Ending,
    Ended,
}

/// A side whose stream failed.
enum Broken {
    Source(io::Error),
    Sink(io::Error),
}

/// What a turn of a direction has come to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Waiting,
    Again,
}

impl<C, U> Streams<'_, '_, C, U>
where
    C: AsyncRead + AsyncWrite + Unpin,
    U: AsyncRead + AsyncWrite + Unpin,
{
    /// Ready when both directions have ended, or with the end of a side that failed.
    fn poll(&mut self, context: &mut Context<'_>, mut timer: Pin<&mut Sleep>) -> Poll<Result<End, End>> {
        loop {
            let before = self.moved();
            let mut lane = self.pace.lane_to_upstream();
            let up = self.to_upstream.run(context, self.client.stream, self.upstream.stream, &mut lane);
            let up = match up {
                Ok(step) => step,
                Err(broken) => return Poll::Ready(Err(dead(Side::Client, &broken))),
            };
            let mut lane = self.pace.lane_to_client();
            let down = self.to_client.run(context, self.upstream.stream, self.client.stream, &mut lane);
            let down = match down {
                Ok(step) => step,
                Err(broken) => return Poll::Ready(Err(dead(Side::Upstream, &broken))),
            };
            let now = Instant::now();
            if self.moved() != before {
                self.patience.moved(now);
            }
            self.note_ends(now);
            if self.to_upstream.state == Ends::Ended && self.to_client.state == Ends::Ended {
                return Poll::Ready(Ok(End::closed(self.patience.first_end())));
            }
            if up == Step::Again || down == Step::Again {
                // Others first; this task is run again after them.
                context.waker().wake_by_ref();
            }
            let deadline = self.deadline();
            // The timer is moved only to come sooner; when it comes too soon it is set again.
            if deadline < timer.deadline() {
                timer.as_mut().reset(deadline);
            }
            if timer.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
            if let Some(end) = self.expired(Instant::now()) {
                return Poll::Ready(Err(end));
            }
            timer.as_mut().reset(self.deadline());
        }
    }

    fn note_ends(&mut self, now: Instant) {
        match (self.to_upstream.state, self.to_client.state) {
            (Ends::Open, Ends::Open) => {}
            (Ends::Open, _) => self.patience.ended(Side::Upstream, now),
            _ => self.patience.ended(Side::Client, now),
        }
    }

    /// True when the endpoint has reset the connection at once, or when the client had sent something, before a byte was
    /// exchanged.
    fn is_lost(&self, end: End, books: &Books) -> bool {
        let untouched = self.moved() == Moved::default()
            && self.to_client.held.is_empty()
            && self.to_upstream.state == Ends::Open;
        let asked = !self.to_upstream.held.is_empty();
        untouched && books.may_go_elsewhere(end) && (asked || books.is_new(Instant::now()))
    }

    /// What a dead side had sent before goes to the other one, for as long as that takes it: then a reset follows.
    async fn last_words(&mut self, end: End) {
        let patience = match end.side {
            Side::Client => CLIENT_GONE,
            Side::Upstream => self.patience.limits.user_timeout,
            Side::Proxy | Side::Operator => return,
        };
        let (flow, sink) = if end.side == Side::Client {
            (&mut self.to_upstream, self.upstream.socket)
        } else {
            (&mut self.to_client, self.client.socket)
        };
        let deliver = async {
            let delivered = if end.side == Side::Client {
                poll_fn(|context| flow.deliver(context, self.upstream.stream)).await
            } else {
                poll_fn(|context| flow.deliver(context, self.client.stream)).await
            };
            // With SO_LINGER 0 the kernel drops what its peer has not acknowledged, so that is waited for. There is no event
            // for it.
            let mut pause = LOOK_FIRST;
            while delivered.is_ok() && net::waiting(sink) > 0 {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LOOK_MOST);
            }
        };
        tokio::time::timeout(patience, deliver).await.unwrap_or_default();
    }

    const fn moved(&self) -> Moved {
        Moved { to_upstream: self.to_upstream.moved, to_client: self.to_client.moved }
    }

    fn deadline(&self) -> Instant {
        let pauses = [self.to_upstream.paused, self.to_client.paused];
        pauses.into_iter().flatten().fold(self.patience.deadline(), Instant::min)
    }

    fn expired(&mut self, now: Instant) -> Option<End> {
        if let Some(end) = self.patience.outlived(now) {
            return Some(end);
        }
        let Moved { to_upstream, to_client } = self.moved();
        if self.to_upstream.paused.is_some() || self.to_client.paused.is_some() {
            self.patience.held_back(now);
        }
        let stalled = self.to_upstream.is_stalled() || self.to_client.is_stalled();
        let done = Done { moved: to_upstream + to_client, stalled };
        self.patience.expired(now, done, self.client.socket, self.upstream.socket)
    }
}

impl Flow {
    /// Moves what can be moved now.
    fn run<R, W>(
        &mut self,
        context: &mut Context<'_>,
        source: &mut R,
        sink: &mut W,
        lane: &mut Lane<'_>,
    ) -> Result<Step, Broken>
    where
        R: AsyncRead + AsyncWrite + Unpin,
        W: AsyncWrite + Unpin,
    {
        for _ in 0..TURN {
            match self.drain(context, sink) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Err(Broken::Sink(error)),
                Poll::Pending => return Ok(Step::Waiting),
            }
            match self.state {
                Ends::Ended => return Ok(Step::Waiting),
                Ends::Ending => {
                    match Pin::new(&mut *sink).poll_shutdown(context) {
                        Poll::Ready(Ok(())) => self.state = Ends::Ended,
                        Poll::Ready(Err(error)) => return Err(Broken::Sink(error)),
                        Poll::Pending => {}
                    }
                    return Ok(Step::Waiting);
                }
                Ends::Open => {}
            }
            match self.copy(context, source, sink, lane)? {
                Poll::Ready(()) => {}
                Poll::Pending => {
                    // Nothing follows for now: what the sink keeps is to go out.
                    if let Poll::Ready(Err(error)) = self.flush(context, sink) {
                        return Err(Broken::Sink(error));
                    }
                    // Reading may have left something to say to the source itself, such as an alert of TLS.
                    if let Poll::Ready(Err(error)) = Pin::new(source).poll_flush(context) {
                        return Err(Broken::Source(error));
                    }
                    return Ok(Step::Waiting);
                }
            }
        }
        Ok(Step::Again)
    }

    /// One read, and what the sink takes of it at once. Pending when there is nothing to read.
    fn copy<R, W>(
        &mut self,
        context: &mut Context<'_>,
        source: &mut R,
        sink: &mut W,
        lane: &mut Lane<'_>,
    ) -> Result<Poll<()>, Broken>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let allowed = match lane.take(ROOM) {
            Ok(allowed) => allowed,
            Err(later) => {
                self.paused = Some(later);
                return Ok(Poll::Pending);
            }
        };
        self.paused = None;
        SCRATCH.with_borrow_mut(|scratch| {
            let mut room = ReadBuf::new(scratch.get_mut(..allowed).unwrap_or_default());
            let read = Pin::new(source).poll_read(context, &mut room);
            let mut bytes = room.filled();
            lane.give_back(allowed - bytes.len());
            match read {
                Poll::Pending => return Ok(Poll::Pending),
                Poll::Ready(Err(error)) => return Err(Broken::Source(error)),
                Poll::Ready(Ok(())) => {}
            }
            if bytes.is_empty() {
                self.state = Ends::Ending;
                return Ok(Poll::Ready(()));
            }
            while !bytes.is_empty() {
                match Pin::new(&mut *sink).poll_write(context, bytes) {
                    Poll::Ready(Ok(0)) => return Err(Broken::Sink(io::ErrorKind::WriteZero.into())),
                    Poll::Ready(Ok(length)) => {
                        self.wrote(length);
                        bytes = bytes.get(length..).unwrap_or_default();
                    }
                    Poll::Ready(Err(error)) => return Err(Broken::Sink(error)),
                    Poll::Pending => break,
                }
            }
            self.held.extend_from_slice(bytes);
            Ok(Poll::Ready(()))
        })
    }

    /// Writes what waits. Ready when nothing does.
    fn drain<W: AsyncWrite + Unpin>(
        &mut self,
        context: &mut Context<'_>,
        sink: &mut W,
    ) -> Poll<io::Result<()>> {
        while let Some(bytes) = self.held.get(self.written..).filter(|bytes| !bytes.is_empty()) {
            match Pin::new(&mut *sink).poll_write(context, bytes) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(length)) => {
                    self.written += length;
                    self.wrote(length);
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
        (self.held, self.written) = (Vec::new(), 0);
        Poll::Ready(Ok(()))
    }

    fn flush<W: AsyncWrite + Unpin>(
        &mut self,
        context: &mut Context<'_>,
        sink: &mut W,
    ) -> Poll<io::Result<()>> {
        if !self.unflushed {
            return Poll::Ready(Ok(()));
        }
        let flushed = Pin::new(sink).poll_flush(context);
        self.unflushed = flushed.is_pending();
        flushed
    }

    /// Writes what waits and what the sink keeps.
    fn deliver<W: AsyncWrite + Unpin>(
        &mut self,
        context: &mut Context<'_>,
        sink: &mut W,
    ) -> Poll<io::Result<()>> {
        match self.drain(context, sink) {
            Poll::Ready(Ok(())) => self.flush(context, sink),
            other => other,
        }
    }

    const fn wrote(&mut self, length: usize) {
        self.moved += length as u64;
        self.unflushed = true;
    }

    const fn is_stalled(&self) -> bool {
        !self.held.is_empty()
    }
}

/// How a session ends of which a side has failed. `source` is the one that was read.
fn dead(source: Side, broken: &Broken) -> End {
    let other = if source == Side::Client { Side::Upstream } else { Side::Client };
    let (side, error) = match broken {
        Broken::Source(error) => (source, error),
        Broken::Sink(error) => (other, error),
    };
    let cause = match error.kind() {
        // TLS that ends without `close_notify`.
        io::ErrorKind::UnexpectedEof => Cause::Truncated,
        io::ErrorKind::InvalidData => Cause::Handshake,
        _ => Cause::of(error),
    };
    End { side, stage: Stage::Relay, cause }
}

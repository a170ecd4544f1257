//! The relay between streams that are more than sockets: TLS on one side or both. The manners are those of the relay between
//! sockets: ends are passed on as ends (`close_notify` where there is TLS), resets as resets, and TLS that breaks off without
//! `close_notify` is a reset (RFC 8446, section 6.1): a loss must not look like an end.

mod flow;

use std::{
    future::{Future, poll_fn},
    io,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, Interest},
    time::{Instant, Sleep, sleep_until, timeout, timeout_at},
};

use self::flow::{Broken, Ends, Flow, Step};
use super::{
    CLIENT_GONE, LOOK_FIRST, LOOK_MOST, Pace, Watched,
    patience::{Done, Patience},
};
use crate::{
    net,
    proxy::session::{Books, Moved},
    state::SessionLimits,
    telemetry::{Cause, End, Side, Stage},
};

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
        to_upstream: Flow::owing(owed),
        to_client: Flow::default(),
        patience: Patience::new(now, limits),
        pace,
    };
    let mut timer = pin!(sleep_until(relay.deadline()));
    let (near, far) = (relay.client.socket, relay.upstream.socket);
    let mut client_fails = pin!(near.ready(Interest::ERROR));
    let mut upstream_fails = pin!(far.ready(Interest::ERROR));
    let end = poll_fn(|context| {
        let polled = relay.poll(context, timer.as_mut());
        books.account(relay.moved());
        if polled.is_pending() && relay.overlooks_resets() {
            if client_fails.as_mut().poll(context).is_ready() {
                return Poll::Ready(Err(failed(Side::Client, near)));
            }
            if upstream_fails.as_mut().poll(context).is_ready() {
                return Poll::Ready(Err(failed(Side::Upstream, far)));
            }
        }
        polled
    })
    .await;
    match end {
        Ok(end) => {
            relay.patience.leave(near, far);
            Outcome::Ended(end)
        }
        Err(end) => {
            // Unless it has answered: that shows only by reading.
            if relay.is_lost(end, books) {
                relay.hear_out().await;
            }
            if relay.is_lost(end, books) {
                return Outcome::Lost(end, relay.to_upstream.held);
            }
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

    /// Takes what an endpoint that has failed had sent before.
    async fn hear_out(&mut self) {
        let heard = poll_fn(|context| {
            let lane = &mut self.pace.lane_to_client();
            self.to_client.empty(context, self.upstream.stream, self.client.stream, lane, true)
        });
        drop(timeout(LOOK_MOST, heard).await);
    }

    /// What a dead side had sent before goes to the other one, for as long as that takes it: then a reset follows.
    async fn last_words(&mut self, end: End) {
        let (client, upstream) = (&mut self.client, &mut self.upstream);
        let waits = !matches!(end.cause, Cause::TimedOut | Cause::Idle | Cause::HalfClosed);
        match end.side {
            Side::Client => {
                let lane = |pace: &mut Pace, flow: &mut Flow, context: &mut Context<'_>| {
                    flow.empty(context, client.stream, upstream.stream, &mut pace.lane_to_upstream(), waits)
                };
                let patience = Patient { most: CLIENT_GONE, serves: false };
                last(&mut self.to_upstream, &mut self.pace, upstream.socket, patience, lane).await;
            }
            Side::Upstream => {
                let lane = |pace: &mut Pace, flow: &mut Flow, context: &mut Context<'_>| {
                    flow.empty(context, upstream.stream, client.stream, &mut pace.lane_to_client(), waits)
                };
                let patience = Patient { most: self.patience.limits.user_timeout, serves: true };
                last(&mut self.to_client, &mut self.pace, client.socket, patience, lane).await;
            }
            Side::Proxy | Side::Operator => {}
        }
    }

    /// True while a reset would not be noticed by reading: a side is not read once it has ended, or while the other side
    /// takes nothing.
    fn overlooks_resets(&self) -> bool {
        [&self.to_upstream, &self.to_client]
            .into_iter()
            .any(|flow| flow.is_stalled() || flow.state != Ends::Open)
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

/// How long the survivor of a session is waited for.
#[derive(Clone, Copy)]
struct Patient {
    most: Duration,
    /// Anew for as long as it takes something.
    serves: bool,
}

/// Delivers the last bytes of a direction, and waits until they have arrived.
async fn last(
    flow: &mut Flow,
    pace: &mut Pace,
    sink: &Watched<'_>,
    patience: Patient,
    mut empty: impl FnMut(&mut Pace, &mut Flow, &mut Context<'_>) -> Poll<io::Result<Option<Instant>>>,
) {
    let arrived = |flow: &Flow| flow.moved.saturating_sub(net::waiting(sink) as u64);
    let mut seen = arrived(flow);
    let mut deadline = Instant::now() + patience.most;
    // With SO_LINGER 0 the kernel drops what its peer has not acknowledged, so that is waited for. There is no event for it.
    let mut pause = LOOK_FIRST;
    loop {
        let emptied = timeout_at(deadline, poll_fn(|context| empty(pace, flow, context))).await;
        let next = match emptied {
            Ok(Err(_)) => return,
            Ok(Ok(Some(later))) => {
                deadline = deadline.max(later + patience.most);
                later
            }
            Ok(Ok(None)) if net::waiting(sink) == 0 => return,
            Ok(Ok(None)) => {
                let next = Instant::now() + pause;
                pause = (pause * 2).min(LOOK_MOST);
                next
            }
            Err(_) => deadline,
        };
        sleep_until(next.min(deadline)).await;
        let now = Instant::now();
        if patience.serves && arrived(flow) > seen {
            (seen, deadline) = (arrived(flow), now + patience.most);
        } else if now >= deadline {
            return;
        }
    }
}

/// How a session ends whose connection with this side has failed.
fn failed(side: Side, socket: &Watched<'_>) -> End {
    let cause = net::take_error(socket).map_or(Cause::Reset, |error| Cause::of(&error));
    End { side, stage: Stage::Relay, cause }
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

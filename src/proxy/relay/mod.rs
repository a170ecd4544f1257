//! Moving bytes between two plain connections: one future for both directions, no memory while nothing waits.
//!
//! Manners (RFC 9293): a direction that ends is passed on as an end once its last byte is delivered, and the other
//! direction goes on for as long as it moves. A reset is passed on as a reset, after whatever the dead side had sent
//! before. Must never answer a loss with a clean end.

mod flow;
mod splice;
mod watch;

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::Interest,
    net::TcpStream,
    time::{Instant, Sleep, sleep_until},
};

pub(super) use self::splice::trim;
use self::{
    flow::{Broken, Flow},
    watch::{Look, Watch},
};
use super::session::Moved;
use crate::{
    net,
    state::{EndpointCell, SessionLimits},
    telemetry::{Cause, End, Side, Stage},
};

/// How long the last bytes of a reset client may take to reach the endpoint before it is reset too.
const CLIENT_GONE: Duration = Duration::from_secs(1);

/// Between looks at whether the last bytes have arrived; doubles up to [`LOOK_MOST`]. The kernel has no event for it.
const LOOK_FIRST: Duration = Duration::from_millis(1);
const LOOK_MOST: Duration = Duration::from_millis(50);

/// Relays until the session ends, and says how. When the end is not a clean one, the caller resets both connections.
pub(super) async fn relay(
    client: &TcpStream,
    upstream: &TcpStream,
    limits: &SessionLimits,
    cell: &EndpointCell,
    moved: &mut Moved,
) -> End {
    let now = Instant::now();
    let mut relay = Relay {
        client,
        upstream,
        limits,
        to_upstream: Flow::default(),
        to_client: Flow::default(),
        state: State::Open,
        resets: None,
        first_end: None,
        last_moved: now,
        acknowledged: 0,
        waiting: false,
        dies: limits.lifetime.map(|lifetime| now + lifetime),
        watch: Watch::new(now, limits),
    };
    let mut timer = pin!(sleep_until(relay.deadline()));
    poll_fn(|context| {
        let polled = relay.poll(context, timer.as_mut());
        relay.account(cell, moved);
        polled
    })
    .await
}

struct Relay<'a> {
    client: &'a TcpStream,
    upstream: &'a TcpStream,
    limits: &'a SessionLimits,
    to_upstream: Flow,
    to_client: Flow,
    state: State,
    /// Waits for a reset of a side that is not being read. Made when first needed.
    resets: Option<Resets<'a>>,
    /// Who ended its direction first.
    first_end: Option<Side>,
    last_moved: Instant,
    /// Bytes that the peers had acknowledged when they were last counted.
    acknowledged: u64,
    /// Bytes that are here already waited for a peer when it was last looked.
    waiting: bool,
    dies: Option<Instant>,
    watch: Watch,
}

type Resets<'a> = Pin<Box<dyn Future<Output = Side> + Send + 'a>>;

#[derive(Clone, Copy)]
enum State {
    /// Both directions may move.
    Open,
    /// One direction has ended.
    HalfClosed,
    /// One side is dead: what it sent before goes to the other side, which is then reset.
    Aborting {
        dead: Side,
        end: End,
        deadline: Instant,
        /// When to look next whether the last bytes have arrived, and the pause before that.
        look: Option<(Instant, Duration)>,
        /// Bytes that had not arrived when it was last looked.
        left: Option<usize>,
    },
}

impl<'a> Relay<'a> {
    fn poll(&mut self, context: &mut Context<'_>, mut timer: Pin<&mut Sleep>) -> Poll<End> {
        loop {
            let before = self.moved();
            if let Poll::Ready(end) = self.turn(context) {
                return Poll::Ready(end);
            }
            if self.moved() != before {
                self.last_moved = Instant::now();
                self.watch.moved(self.last_moved, self.limits);
            }
            let deadline = self.deadline();
            // The timer is moved only to come sooner; when it comes too soon it is set again. So a busy session
            // costs no timer work.
            if deadline < timer.deadline() {
                timer.as_mut().reset(deadline);
            }
            if timer.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
            if let Some(end) = self.expired(Instant::now()) {
                return Poll::Ready(end);
            }
            timer.as_mut().reset(self.deadline());
        }
    }

    fn turn(&mut self, context: &mut Context<'_>) -> Poll<End> {
        if let State::Aborting { .. } = self.state {
            return self.abort(context);
        }
        let up = self.to_upstream.poll(context, self.client, self.upstream, self.to_client.is_done());
        if let Poll::Ready(Err(broken)) = up {
            return self.broken(Side::Client, &broken, context);
        }
        let down = self.to_client.poll(context, self.upstream, self.client, self.to_upstream.is_done());
        if let Poll::Ready(Err(broken)) = down {
            return self.broken(Side::Upstream, &broken, context);
        }
        match (up.is_ready(), down.is_ready()) {
            (true, true) => {
                self.watch.leave(self.client, self.upstream);
                return Poll::Ready(End::closed(self.first_end.unwrap_or(Side::Client)));
            }
            (true, false) => self.half_closed(Side::Client),
            (false, true) => self.half_closed(Side::Upstream),
            (false, false) => {}
        }
        self.poll_resets(context)
    }

    fn half_closed(&mut self, ended: Side) {
        if let State::Open = self.state {
            self.first_end = Some(ended);
            self.last_moved = Instant::now();
            self.state = State::HalfClosed;
        }
    }

    /// A side is not read once it has ended, or while the other side takes nothing; its reset is noticed here.
    fn poll_resets(&mut self, context: &mut Context<'_>) -> Poll<End> {
        let unread = matches!(self.state, State::HalfClosed)
            || self.to_upstream.is_stalled()
            || self.to_client.is_stalled();
        if unread && self.resets.is_none() {
            let (client, upstream) = (self.client, self.upstream);
            self.resets = Some(Box::pin(async move {
                tokio::select! {
                    _ = client.ready(Interest::ERROR) => Side::Client,
                    _ = upstream.ready(Interest::ERROR) => Side::Upstream,
                }
            }));
        }
        let Some(resets) = self.resets.as_mut().filter(|_| unread) else {
            return Poll::Pending;
        };
        let dead = std::task::ready!(resets.as_mut().poll(context));
        self.resets = None;
        let stream = if dead == Side::Client { self.client } else { self.upstream };
        let cause = stream.take_error().ok().flatten().map_or(Cause::Reset, |error| Cause::of(&error));
        self.die(dead, End { side: dead, stage: Stage::Relay, cause }, context)
    }

    /// A flow whose source is `source` broke.
    fn broken(&mut self, source: Side, broken: &Broken, context: &mut Context<'_>) -> Poll<End> {
        let other = if source == Side::Client { Side::Upstream } else { Side::Client };
        let (dead, error) = match broken {
            Broken::Source(error) => (source, error),
            Broken::Sink(error) => (other, error),
        };
        let end = End { side: dead, stage: Stage::Relay, cause: Cause::of(error) };
        self.die(dead, end, context)
    }

    fn die(&mut self, dead: Side, end: End, context: &mut Context<'_>) -> Poll<End> {
        // A slow client may take as long for its last bytes as a living one may stay silent.
        let patience = if dead == Side::Client { CLIENT_GONE } else { self.limits.user_timeout };
        self.state =
            State::Aborting { dead, end, deadline: Instant::now() + patience, look: None, left: None };
        self.abort(context)
    }

    /// Delivers what the dead side had sent, then ends the session; the caller resets the survivor.
    fn abort(&mut self, context: &mut Context<'_>) -> Poll<End> {
        let State::Aborting { dead, end, deadline, look, left } = &mut self.state else {
            return Poll::Pending;
        };
        let (flow, source, sink) = match dead {
            Side::Client => (&mut self.to_upstream, self.client, self.upstream),
            Side::Upstream | Side::Proxy | Side::Operator => {
                (&mut self.to_client, self.upstream, self.client)
            }
        };
        if look.is_none() {
            match flow.poll_last(context, source, sink) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(Broken::Sink(_))) => return Poll::Ready(*end),
                Poll::Ready(_) => {}
            }
        }
        // With SO_LINGER 0 the kernel drops what its peer has not acknowledged, so that is waited for.
        let now = Instant::now();
        let waiting = net::waiting(sink);
        if now >= *deadline || waiting == 0 {
            return Poll::Ready(*end);
        }
        if *dead == Side::Upstream && *left != Some(waiting) {
            // A slow client is served for as long as it reads.
            *deadline = now + self.limits.user_timeout;
        }
        *left = Some(waiting);
        let pause = look.map_or(LOOK_FIRST, |(_, pause)| (pause * 2).min(LOOK_MOST));
        if look.is_none_or(|(at, _)| now >= at) {
            *look = Some((now + pause, pause));
        }
        Poll::Pending
    }

    /// When something is due at the latest.
    fn deadline(&self) -> Instant {
        let (due, look) = match self.state {
            State::Open | State::HalfClosed => (self.last_moved + self.silence(), self.watch.due()),
            State::Aborting { deadline, look, .. } => (deadline, look.map(|(at, _)| at)),
        };
        [self.dies, look].into_iter().flatten().fold(due, Instant::min)
    }

    /// How long nothing may move. What waits for a slow reader is not silence of the other side.
    fn silence(&self) -> Duration {
        match self.state {
            State::HalfClosed if !self.waiting => self.limits.half_closed.min(self.limits.idle),
            _ => self.limits.idle,
        }
    }

    /// What a deadline that has come means.
    fn expired(&mut self, now: Instant) -> Option<End> {
        let end = |side, cause| Some(End { side, stage: Stage::Relay, cause });
        if self.dies.is_some_and(|at| now >= at) {
            return end(Side::Proxy, Cause::Lifetime);
        }
        if let State::Aborting { end, deadline, .. } = self.state {
            return (now >= deadline).then_some(end);
        }
        if self.watch.is_due(now) {
            self.to_upstream.poke();
            self.to_client.poke();
            match self.watch.look(now, self.limits, self.client, self.upstream) {
                Look::Dead(side) => return end(side, Cause::TimedOut),
                Look::Waiting => self.count(now),
                Look::Quiet if self.waiting => self.count(now),
                Look::Quiet => {}
            }
        }
        if now < self.last_moved + self.silence() {
            return None;
        }
        self.count(now);
        if now < self.last_moved + self.silence() {
            return None;
        }
        match self.state {
            State::HalfClosed if !self.waiting => {
                // The side that has not ended is the silent one.
                let silent = if self.first_end == Some(Side::Client) { Side::Upstream } else { Side::Client };
                end(silent, Cause::HalfClosed)
            }
            _ => end(Side::Client, Cause::Idle),
        }
    }

    /// Counts what the peers have acknowledged: bytes that leave the kernel's buffers are movement too.
    fn count(&mut self, now: Instant) {
        let left = net::waiting(self.client) + net::waiting(self.upstream);
        let waited = self.waiting;
        self.waiting = left > 0 || self.to_upstream.is_stalled() || self.to_client.is_stalled();
        let (to_upstream, to_client) = self.moved();
        let acknowledged = (to_upstream + to_client).saturating_sub(left as u64);
        if (self.waiting || waited) && acknowledged > self.acknowledged {
            self.last_moved = now;
        }
        self.acknowledged = acknowledged;
    }

    const fn moved(&self) -> (u64, u64) {
        (self.to_upstream.moved, self.to_client.moved)
    }

    fn account(&self, cell: &EndpointCell, moved: &mut Moved) {
        let (to_upstream, to_client) = self.moved();
        cell.moved(to_upstream - moved.to_upstream, to_client - moved.to_client);
        *moved = Moved { to_upstream, to_client };
    }
}

#[cfg(test)]
mod tests;

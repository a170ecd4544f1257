//! How long a session may live and be silent, the same for both relays: lifetime, silence, one ended direction, and peers
//! that are gone.

use std::{os::fd::AsFd, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::watch::{Look, Watch};
use crate::{
    net,
    state::SessionLimits,
    telemetry::{Cause, End, Side, Stage},
};

/// What is known of a session's silence.
#[derive(Debug)]
pub(super) struct Patience {
    pub(super) limits: Arc<SessionLimits>,
    last_moved: Instant,
    dies: Option<Instant>,
    /// Who ended its direction first.
    first_end: Option<Side>,
    /// Bytes that the peers had acknowledged when they were last counted.
    acknowledged: u64,
    /// Bytes that are here already waited for a peer when it was last looked.
    waiting: bool,
    watch: Watch,
}

/// What a relay has done so far.
#[derive(Clone, Copy)]
pub(super) struct Done {
    /// Bytes delivered, of both directions.
    pub(super) moved: u64,
    /// What was read waits for a reader.
    pub(super) stalled: bool,
}

impl Patience {
    /// With a session that begins now.
    pub(super) fn new(now: Instant, limits: Arc<SessionLimits>) -> Self {
        Self {
            last_moved: now,
            dies: limits.lifetime.map(|lifetime| now + lifetime),
            first_end: None,
            acknowledged: 0,
            waiting: false,
            watch: Watch::new(now, &limits),
            limits,
        }
    }

    /// Bytes were moved.
    pub(super) fn moved(&mut self, now: Instant) {
        self.last_moved = now;
        self.watch.moved(now, &self.limits);
    }

    /// Nothing was read because nothing may flow: nobody is silent.
    pub(super) fn held_back(&mut self, now: Instant) {
        self.last_moved = now;
    }

    /// This side has ended its direction. Only the first one counts.
    pub(super) fn ended(&mut self, side: Side, now: Instant) {
        if self.first_end.is_none() {
            self.first_end = Some(side);
            self.last_moved = now;
        }
    }

    /// Who has ended first, when both have.
    pub(super) fn first_end(&self) -> Side {
        self.first_end.unwrap_or(Side::Client)
    }

    /// True if this side has ended first, and the session did not last until the first look at its sockets.
    pub(super) fn was_short(&self, ended: Side) -> bool {
        self.first_end == Some(ended) && !self.watch.has_looked()
    }

    /// The end of the longest life, if there is one.
    pub(super) const fn dies(&self) -> Option<Instant> {
        self.dies
    }

    /// When something is due at the latest.
    pub(super) fn deadline(&self) -> Instant {
        let due = self.last_moved + self.silence();
        [self.dies, self.watch.due()].into_iter().flatten().fold(due, Instant::min)
    }

    /// How long nothing may move. What waits for a slow reader is not silence of the other side.
    fn silence(&self) -> Duration {
        let half_closed = self.first_end.is_some() && !self.waiting;
        if half_closed { self.limits.half_closed.min(self.limits.idle) } else { self.limits.idle }
    }

    /// The end of a session that has lived for as long as it may.
    pub(super) fn outlived(&self, now: Instant) -> Option<End> {
        let over = self.dies.is_some_and(|at| now >= at);
        over.then_some(End { side: Side::Proxy, stage: Stage::Relay, cause: Cause::Lifetime })
    }

    /// True when it is time to look at the peers.
    pub(super) fn is_look_due(&self, now: Instant) -> bool {
        self.watch.is_due(now)
    }

    /// The end of a session that was silent for too long, or of which a peer is gone.
    pub(super) fn expired<S: AsFd>(
        &mut self,
        now: Instant,
        done: Done,
        client: &S,
        upstream: &S,
    ) -> Option<End> {
        let end = |side, cause| Some(End { side, stage: Stage::Relay, cause });
        if self.watch.is_due(now) {
            match self.watch.look(now, &self.limits, client, upstream) {
                Look::Dead(side) => return end(side, Cause::TimedOut),
                Look::Waiting => self.count(now, done, client, upstream),
                Look::Quiet if self.waiting => self.count(now, done, client, upstream),
                Look::Quiet => {}
            }
        }
        if now < self.last_moved + self.silence() {
            return None;
        }
        self.count(now, done, client, upstream);
        if now < self.last_moved + self.silence() {
            return None;
        }
        match self.first_end {
            // The side that has not ended is the silent one.
            Some(Side::Client) if !self.waiting => end(Side::Upstream, Cause::HalfClosed),
            Some(_) if !self.waiting => end(Side::Client, Cause::HalfClosed),
            _ => end(Side::Client, Cause::Idle),
        }
    }

    /// Counts what the peers have acknowledged: bytes that leave the kernel's buffers are movement too.
    fn count(&mut self, now: Instant, done: Done, client: impl AsFd, upstream: impl AsFd) {
        let left = net::waiting(client) + net::waiting(upstream);
        let waited = self.waiting;
        self.waiting = left > 0 || done.stalled;
        let acknowledged = done.moved.saturating_sub(left as u64);
        if (self.waiting || waited) && acknowledged > self.acknowledged {
            self.last_moved = now;
        }
        self.acknowledged = acknowledged;
    }

    /// Leaves what is still on its way to the kernel.
    pub(super) fn leave<S: AsFd>(&self, client: &S, upstream: &S) {
        self.watch.leave(client, upstream);
    }
}

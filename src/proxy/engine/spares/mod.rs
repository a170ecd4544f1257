//! Spare connections: established before a session needs them, so that it saves the round trip of the connect. Each worker
//! keeps its part of what a pool allows, watches them, and replaces those that end or grow old. A spare is no session: it
//! counts for no balance and no drain, and gives way to sessions where descriptors become short.

mod store;
#[cfg(test)]
mod tests;

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use rustix::event::{PollFd, PollFlags, Timespec, epoll::EventFlags};
use tokio::time::Instant;

use self::store::{AGE_MOST, Dial, Gone, Store, Wanted};
use super::{poll::Poll, session::Session, slots::Token};
use crate::{
    ids::Generation,
    net::{self, Keepalive},
    proxy::{
        accept,
        connect::{self, EXHAUSTED},
        peer::Peer,
    },
    state::{Endpoint, Entry, Group, Pool, Shared, Snapshot, SpareEnd},
    telemetry::{Cause, End, Side, Stage},
};

/// How often the snapshot and the spares are looked at, while there is something to keep.
const LOOK: Duration = Duration::from_secs(1);

/// Dials in one turn of the engine; then the sessions have theirs.
const DIALS: usize = 32;

const LATE: End = End { side: Side::Upstream, stage: Stage::Connect, cause: Cause::TimedOut };

/// What says that the peer has ended or reset the connection.
const OVER: EventFlags = EventFlags::RDHUP.union(EventFlags::ERR).union(EventFlags::HUP);

/// The spares of one worker.
pub(super) struct Spares {
    number: usize,
    store: Store<Peer>,
    /// The snapshot that the store follows.
    generation: Generation,
    /// When to look next; `None` while no pool wants spares.
    look: Option<Instant>,
    /// Spares that `Shared` knows of.
    counted: usize,
    closed: bool,
}

impl Spares {
    /// Without spares, and without a look until [`Spares::wake`].
    pub(super) fn new(number: usize) -> Self {
        let generation = Generation::default();
        Self { number, store: Store::new(), generation, look: None, counted: 0, closed: false }
    }

    /// There is a snapshot that wants spares.
    pub(super) fn wake(&mut self, now: Instant) {
        if !self.closed {
            self.look = Some(now);
        }
    }

    /// No more of them.
    pub(super) fn close(&mut self, shared: &Shared) {
        (self.closed, self.look) = (true, None);
        withdraw(self.store.withdraw());
        self.count(shared);
    }

    /// An established connection to the endpoint that a session of this generation was given.
    pub(super) fn take(
        &mut self,
        (endpoint, generation): (&Endpoint, Generation),
        poll: &Poll,
        shared: &Shared,
        now: Instant,
    ) -> Option<Peer> {
        self.look?;
        if generation > self.generation {
            self.follow(&shared.snapshot(), shared, now);
        }
        let mut taken = None;
        while let Some((token, socket)) = self.store.youngest(endpoint, now) {
            if is_over(socket) {
                self.end(token, now);
                continue;
            }
            taken = self.store.give(token).map(|gone| gone.socket);
            break;
        }
        self.count(shared);
        let upstream = taken?;
        endpoint.cell.spares.finish(SpareEnd::Used);
        // Who takes it watches it under another word.
        poll.delete(&upstream).unwrap_or_default();
        Some(upstream)
    }

    /// An event of a spare. A greeting that waits is none of our business: who takes the spare reads it.
    pub(super) fn note(&mut self, token: Token, event: EventFlags, shared: &Shared, now: Instant) {
        let Some((socket, endpoint, idle)) = self.store.get(token) else {
            return;
        };
        if !idle {
            let failed = event.intersects(EventFlags::ERR | EventFlags::HUP);
            if !failed && !event.contains(EventFlags::OUT) {
                return;
            }
            let (outcome, endpoint) = (connect::outcome(endpoint, socket, failed), Arc::clone(endpoint));
            if let Err(end) = outcome {
                return self.fail(token, end, shared, now);
            }
            if let Some(took) = self.store.establish(token, now) {
                endpoint.cell.dialled(took);
                endpoint.cell.spares.begin();
            }
        }
        if event.intersects(OVER) {
            self.end(token, now);
            self.count(shared);
        }
    }

    /// Does what is due. Returns when to call again at the latest.
    pub(super) fn tend(&mut self, poll: &Poll, shared: &Shared, now: Instant) -> Option<Instant> {
        let look = self.look?;
        if self.store.len() > 0 && accept::is_tight(shared) {
            withdraw(self.store.withdraw());
            self.count(shared);
        }
        if now >= look {
            self.look_around(shared, now);
        }
        let more = self.dial(poll, shared, now);
        self.count(shared);
        if more { Some(now) } else { self.look }
    }

    fn look_around(&mut self, shared: &Shared, now: Instant) {
        let snapshot = shared.snapshot();
        if snapshot.generation != self.generation {
            self.follow(&snapshot, shared, now);
        }
        for token in self.store.over(now) {
            match self.store.get(token) {
                Some((_, _, false)) => self.fail(token, LATE, shared, now),
                _ => {
                    if let Some(gone) = self.store.retire(token) {
                        finish(gone, SpareEnd::Age);
                    }
                }
            }
        }
        // A pool whose endpoints are all down for now still wants spares.
        let wanted = !self.store.is_idle() || snapshot.pools.iter().any(|pool| pool.spares() > 0);
        self.look = wanted.then(|| now + LOOK);
    }

    fn follow(&mut self, snapshot: &Snapshot, shared: &Shared, now: Instant) {
        self.generation = snapshot.generation;
        let wanted = wanted(snapshot, self.number, shared.sockets.workers());
        withdraw(self.store.follow(wanted, now));
    }

    /// Dials what is lacking. True when there is more to dial.
    fn dial(&mut self, poll: &Poll, shared: &Shared, now: Instant) -> bool {
        for _ in 0..DIALS {
            let Some(Dial { place, endpoint, socket, keepalive }) = self.store.due(now) else {
                return false;
            };
            if !accept::is_roomy(shared) {
                return false;
            }
            let begun = connect::begin_spare(&endpoint, &socket, shared)
                .inspect(|upstream| keepalive.into_iter().for_each(|how| net::guard(upstream, how)))
                .and_then(|upstream| self.store.dialling(place, upstream, now).map_err(|_| EXHAUSTED));
            let watched = begun.and_then(|token| {
                let (upstream, ..) = self.store.get(token).ok_or(EXHAUSTED)?;
                let watched = poll.add(upstream, token.spare_word(), Session::WATCH);
                watched.map_err(|_| drop(self.store.end(token, now))).map_err(|()| EXHAUSTED)
            });
            if let Err(end) = watched {
                self.store.refused(place, now);
                endpoint.cell.spares.fail();
                connect::report(shared, &endpoint, end);
            }
            self.count(shared);
        }
        true
    }

    /// A dial has failed.
    fn fail(&mut self, token: Token, end: End, shared: &Shared, now: Instant) {
        if let Some(gone) = self.store.end(token, now) {
            gone.endpoint.cell.spares.fail();
            connect::report(shared, &gone.endpoint, end);
        }
        self.count(shared);
    }

    /// The endpoint has ended an established one.
    fn end(&mut self, token: Token, now: Instant) {
        if let Some(gone) = self.store.end(token, now) {
            finish(gone, SpareEnd::Endpoint);
        }
    }

    fn count(&mut self, shared: &Shared) {
        let (before, now) = (self.counted as u64, self.store.len() as u64);
        if now > before {
            shared.spares.fetch_add(now - before, Relaxed);
        } else if now < before {
            shared.spares.fetch_sub(before - now, Relaxed);
        }
        self.counted = self.store.len();
    }
}

fn withdraw(gone: Vec<Gone<Peer>>) {
    gone.into_iter().for_each(|gone| finish(gone, SpareEnd::Withdrawn));
}

fn finish(gone: Gone<Peer>, end: SpareEnd) {
    if gone.idle {
        gone.endpoint.cell.spares.finish(end);
        // Nothing was lost, so nothing needs to be reset.
        gone.socket.close();
    }
}

/// True when the peer has ended or reset the connection, also behind a greeting that is still to be read: events of this
/// turn may not have been looked at yet.
fn is_over(socket: &Peer) -> bool {
    const AT_ONCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
    const OVER: PollFlags = PollFlags::RDHUP.union(PollFlags::ERR).union(PollFlags::HUP);
    let mut asked = [PollFd::new(socket, PollFlags::RDHUP)];
    rustix::event::poll(&mut asked, Some(&AT_ONCE)).is_err()
        || asked.iter().any(|asked| asked.revents().intersects(OVER))
}

/// The part of this worker in what a snapshot wants: in the first tier of each pool that is not all down, and that some
/// listener uses whose sessions the engine begins.
fn wanted(snapshot: &Snapshot, worker: usize, workers: usize) -> Vec<Wanted> {
    let begins = |entry: &Option<Arc<Entry>>| entry.as_ref().is_none_or(|entry| entry.only_hears());
    let listeners = || snapshot.listeners.iter().filter(|listener| begins(&listener.entry));
    let used = |pool| listeners().any(|listener| listener.pools().any(|used| Arc::ptr_eq(used, pool)));
    let pools = snapshot.pools.iter().filter(|pool| pool.spares() > 0 && pool.all_down.is_none());
    let mut wanted = Vec::new();
    for pool in pools.filter(|pool| used(pool)) {
        for group in pool.tiers.first().into_iter().flat_map(|tier| &tier.groups) {
            let counts = counts(group, pool.spares().into(), worker, workers);
            wanted.extend(group.endpoints.iter().zip(counts).map(|(endpoint, count)| Wanted {
                endpoint: Arc::clone(endpoint),
                // With Fast Open nothing would be sent before the first bytes of a client.
                socket: match endpoint.socket.fast_open {
                    true => Arc::new(endpoint.socket.without_fast_open()),
                    false => Arc::clone(&endpoint.socket),
                },
                keepalive: keepalive(endpoint, pool, snapshot),
                timeout: pool.connect.timeout,
                count,
            }));
        }
    }
    wanted
}

/// The keepalive of the cloud, or the soonest of the listeners': only where it is sooner than a spare grows old. A firewall
/// that forgets so soon would swallow the first bytes of a client.
fn keepalive(endpoint: &Endpoint, pool: &Arc<Pool>, snapshot: &Snapshot) -> Option<Keepalive> {
    let listeners =
        snapshot.listeners.iter().filter(|listener| listener.pools().any(|used| Arc::ptr_eq(used, pool)));
    let soonest = listeners.map(|listener| listener.limits.keepalive).min_by_key(|keepalive| keepalive.idle);
    endpoint.socket.keepalive.or(soonest).filter(|keepalive| keepalive.idle < AGE_MOST)
}

/// How many spares this worker keeps at each endpoint of a group that has `total` of them. The workers' parts differ by
/// one at most, the first ones have more; each part is spread over the endpoints by weight, and so is the whole, as it is
/// one row of choices, cut into pieces.
fn counts(group: &Group, total: u64, worker: usize, workers: usize) -> Vec<usize> {
    let (worker, workers) = (worker as u64, (workers as u64).max(1));
    let first = |worker: u64| worker * (total / workers) + worker.min(total % workers);
    let mut counts = vec![0; group.endpoints.len()];
    for n in first(worker)..first(worker + 1) {
        if let Some(count) = counts.get_mut(group.shares.nth(n)) {
            *count += 1;
        }
    }
    counts
}

//! Which spares a worker keeps: for which endpoint, how many, how old, and when the next one is dialled. Without I/O: the
//! sockets are anything, and the time is passed in.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::super::slots::{Slots, Token};
use crate::{
    net::{Keepalive, Outgoing},
    state::Endpoint,
};

/// A spare is used until it is this old, or up to [`STAGGER`] steps older: below the minute after which nginx, PostgreSQL
/// and HAProxy in their usual settings give up on a client that says nothing, and after which keepalive would ask for it
/// first. Those that were dialled together must not all go together, hence the steps.
pub(super) const AGE: Duration = Duration::from_secs(20);
const STEP: Duration = Duration::from_secs(1);
pub(super) const STAGGER: u32 = 10;

/// No spare is older.
pub(super) const AGE_MOST: Duration = AGE.saturating_add(STEP.saturating_mul(STAGGER));

/// The pause after a failed dial, or after a spare that the endpoint has closed early; it doubles up to the second one.
/// Meanwhile there is at most one, to try.
pub(super) const PAUSE_FIRST: Duration = Duration::from_secs(1);
pub(super) const PAUSE_MOST: Duration = Duration::from_secs(16);

/// An endpoint that leaves a spare alone for this long may have all of them: to dial one this often is not to hammer.
pub(super) const STEADY: Duration = Duration::from_secs(10);

/// What is to be kept at one endpoint.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) endpoint: Arc<Endpoint>,
    /// How it is dialled.
    pub(super) socket: Arc<Outgoing>,
    /// How it is kept in the memory of what stands between, where that is needed so soon.
    pub(super) keepalive: Option<Keepalive>,
    /// Time for one dial.
    pub(super) timeout: Duration,
    /// Spares to keep, those that are being dialled included.
    pub(super) count: usize,
}

/// The spares of one worker.
#[derive(Debug)]
pub(super) struct Store<S> {
    places: HashMap<usize, Place>,
    spares: Slots<Spare<S>>,
    /// Places that may lack spares.
    hungry: Vec<usize>,
    established: u32,
}

/// An endpoint and its spares.
#[derive(Debug)]
struct Place {
    wanted: Wanted,
    dialling: Vec<Token>,
    /// The oldest first.
    idle: Vec<Token>,
    /// Zero while all is well.
    pause: Duration,
    not_before: Instant,
    queued: bool,
    /// The shortest time after which the endpoint has closed one that was idle. A client's first bytes must not cross
    /// with such an end on their way: only spares that are younger than half of it are used.
    bears: Option<Duration>,
}

#[derive(Debug)]
struct Spare<S> {
    socket: S,
    place: usize,
    idle: bool,
    /// When it was dialled or, once idle, established.
    since: Instant,
    /// When it is late or too old.
    until: Instant,
}

/// A dial that is due.
pub(super) struct Dial {
    pub(super) place: usize,
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) socket: Arc<Outgoing>,
    pub(super) keepalive: Option<Keepalive>,
}

/// A spare that is in the store no more.
#[derive(Debug)]
pub(super) struct Gone<S> {
    pub(super) socket: S,
    pub(super) endpoint: Arc<Endpoint>,
    /// It was established.
    pub(super) idle: bool,
}

/// The address of an endpoint's cell, which is the same in every generation and lives at least as long as the store
/// holds the endpoint.
fn key(endpoint: &Endpoint) -> usize {
    Arc::as_ptr(&endpoint.cell).addr()
}

impl<S> Store<S> {
    pub(super) fn new() -> Self {
        Self { places: HashMap::new(), spares: Slots::new(), hungry: Vec::new(), established: 0 }
    }

    /// Spares, those that are being dialled included.
    pub(super) const fn len(&self) -> usize {
        self.spares.len()
    }

    /// True when there is nothing to keep.
    pub(super) fn is_idle(&self) -> bool {
        self.places.is_empty()
    }

    /// Keeps this from now on, and gives back what is not wanted any more.
    pub(super) fn follow(&mut self, wanted: Vec<Wanted>, now: Instant) -> Vec<Gone<S>> {
        let mut before = std::mem::take(&mut self.places);
        let mut gone = Vec::new();
        for wanted in wanted.into_iter().filter(|wanted| wanted.count > 0) {
            let key = key(&wanted.endpoint);
            if self.places.contains_key(&key) {
                continue;
            }
            let mut place = match before.remove(&key) {
                Some(old) if old.wanted.socket == wanted.socket => Place { wanted, ..old },
                Some(old) => {
                    self.empty(old, 0, &mut gone);
                    Place::new(wanted, now)
                }
                None => Place::new(wanted, now),
            };
            let count = place.wanted.count;
            place = self.empty(place, count, &mut gone);
            place.queued = true;
            self.hungry.push(key);
            self.places.insert(key, place);
        }
        for (_, old) in before {
            self.empty(old, 0, &mut gone);
        }
        self.hungry.sort_unstable();
        self.hungry.dedup();
        gone
    }

    /// Gives every spare back. What is to be kept stays the same.
    pub(super) fn withdraw(&mut self) -> Vec<Gone<S>> {
        let mut gone = Vec::new();
        for (key, place) in std::mem::take(&mut self.places) {
            let place = self.empty(place, 0, &mut gone);
            self.places.insert(key, place);
        }
        gone
    }

    /// Takes out what is above `count`: first what is being dialled, then the oldest.
    fn empty(&mut self, mut place: Place, count: usize, gone: &mut Vec<Gone<S>>) -> Place {
        while place.len() > count {
            let token = match place.dialling.pop() {
                Some(token) => token,
                None => place.idle.remove(0),
            };
            if let Some(spare) = self.spares.take(token) {
                let endpoint = Arc::clone(&place.wanted.endpoint);
                gone.push(Gone { socket: spare.socket, endpoint, idle: spare.idle });
            }
        }
        place
    }

    /// The next dial that is due.
    pub(super) fn due(&mut self, now: Instant) -> Option<Dial> {
        while let Some(key) = self.hungry.last().copied() {
            if let Some(place) = self.places.get_mut(&key) {
                if place.lacks(now) {
                    let Wanted { endpoint, socket, keepalive, .. } = &place.wanted;
                    let (endpoint, socket) = (Arc::clone(endpoint), Arc::clone(socket));
                    return Some(Dial { place: key, endpoint, socket, keepalive: *keepalive });
                }
                place.queued = false;
            }
            self.hungry.pop();
        }
        None
    }

    /// A dial has begun. Gives the socket back if its endpoint is not wanted any more.
    pub(super) fn dialling(&mut self, key: usize, socket: S, now: Instant) -> Result<Token, S> {
        let Some(place) = self.places.get_mut(&key) else {
            return Err(socket);
        };
        let until = now + place.wanted.timeout;
        let spare = Spare { socket, place: key, idle: false, since: now, until };
        let token = self.spares.insert(Box::new(spare)).map_err(|spare| spare.socket)?;
        place.dialling.push(token);
        Ok(token)
    }

    /// A dial has failed at once.
    pub(super) fn refused(&mut self, key: usize, now: Instant) {
        if let Some(place) = self.places.get_mut(&key) {
            place.trouble(now);
        }
    }

    /// A spare, its endpoint, and whether it is established.
    pub(super) fn get(&mut self, token: Token) -> Option<(&S, &Arc<Endpoint>, bool)> {
        let spare = self.spares.get(token)?;
        let place = self.places.get(&spare.place)?;
        Some((&spare.socket, &place.wanted.endpoint, spare.idle))
    }

    /// A dial has come to a connection. Returns the time that it took.
    pub(super) fn establish(&mut self, token: Token, now: Instant) -> Option<Duration> {
        let spare = self.spares.get(token).filter(|spare| !spare.idle)?;
        let took = now.saturating_duration_since(spare.since);
        self.established = self.established.wrapping_add(1);
        (spare.idle, spare.since) = (true, now);
        spare.until = now + AGE + STEP * (self.established % STAGGER);
        let place = self.places.get_mut(&spare.place)?;
        place.dialling.retain(|one| *one != token);
        place.idle.push(token);
        Some(took)
    }

    /// A dial has failed, or the endpoint has ended the connection.
    pub(super) fn end(&mut self, token: Token, now: Instant) -> Option<Gone<S>> {
        let lived = self.spares.get(token).map(|spare| now.saturating_duration_since(spare.since))?;
        let (gone, key) = self.remove(token)?;
        if let Some(place) = self.places.get_mut(&key) {
            if gone.idle {
                place.bears = Some(place.bears.map_or(lived, |bears| bears.min(lived)));
            }
            if gone.idle && lived >= STEADY {
                place.pause = Duration::ZERO;
            } else {
                place.trouble(now);
            }
        }
        self.queue(key);
        Some(gone)
    }

    /// It is too old.
    pub(super) fn retire(&mut self, token: Token) -> Option<Gone<S>> {
        let (gone, key) = self.remove(token)?;
        self.queue(key);
        Some(gone)
    }

    /// The spare of this endpoint that a session is to have: the youngest, which is the likeliest to be alive.
    pub(super) fn youngest(&mut self, endpoint: &Endpoint, now: Instant) -> Option<(Token, &S)> {
        let place = self.places.get(&key(endpoint))?;
        let token = place.idle.last().copied()?;
        let spare = self.spares.get(token)?;
        let safe = place.bears.is_none_or(|bears| now < spare.since + bears / 2);
        safe.then_some((token, &spare.socket))
    }

    /// A session has it.
    pub(super) fn give(&mut self, token: Token) -> Option<Gone<S>> {
        let (gone, key) = self.remove(token)?;
        if let Some(place) = self.places.get_mut(&key) {
            place.pause = Duration::ZERO;
        }
        self.queue(key);
        Some(gone)
    }

    /// Spares that are late or too old. Also has pauses end, so this is to be called now and then.
    pub(super) fn over(&mut self, now: Instant) -> Vec<Token> {
        let Self { places, spares, hungry, .. } = self;
        let mut over = Vec::new();
        for (key, place) in places {
            for token in place.dialling.iter().chain(&place.idle) {
                let Some(spare) = spares.get(*token) else { continue };
                let lived = now.saturating_duration_since(spare.since);
                if spare.idle && lived >= STEADY {
                    place.pause = Duration::ZERO;
                }
                if spare.idle {
                    // It bears more than that: what had ended the other one was no time limit.
                    place.bears = place.bears.filter(|bears| lived <= *bears * 5 / 4 + STEP);
                }
                if now >= spare.until {
                    over.push(*token);
                }
            }
            if !place.queued && place.lacks(now) {
                place.queued = true;
                hungry.push(*key);
            }
        }
        over
    }

    fn remove(&mut self, token: Token) -> Option<(Gone<S>, usize)> {
        let spare = self.spares.take(token)?;
        let place = self.places.get_mut(&spare.place)?;
        let list = if spare.idle { &mut place.idle } else { &mut place.dialling };
        // Most often it is the youngest.
        if let Some(at) = list.iter().rposition(|one| *one == token) {
            list.remove(at);
        }
        let endpoint = Arc::clone(&place.wanted.endpoint);
        Some((Gone { socket: spare.socket, endpoint, idle: spare.idle }, spare.place))
    }

    fn queue(&mut self, key: usize) {
        if let Some(place) = self.places.get_mut(&key).filter(|place| !place.queued) {
            place.queued = true;
            self.hungry.push(key);
        }
    }
}

impl Place {
    const fn new(wanted: Wanted, now: Instant) -> Self {
        Self {
            wanted,
            dialling: Vec::new(),
            idle: Vec::new(),
            pause: Duration::ZERO,
            not_before: now,
            queued: false,
            bears: None,
        }
    }

    const fn len(&self) -> usize {
        self.dialling.len() + self.idle.len()
    }

    fn lacks(&self, now: Instant) -> bool {
        let most = if self.pause.is_zero() { self.wanted.count } else { 1 };
        self.len() < most && (self.pause.is_zero() || now >= self.not_before)
    }

    /// What was dialled together fails together, and counts once.
    fn trouble(&mut self, now: Instant) {
        if self.pause.is_zero() || now >= self.not_before {
            self.pause = (self.pause * 2).clamp(PAUSE_FIRST, PAUSE_MOST);
            self.not_before = now + self.pause;
        }
    }
}

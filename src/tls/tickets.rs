//! What a listener remembers of its clients, so that they may resume: ticket keys, and sessions by id (TLS 1.2).
//!
//! Each listener has keys of its own, and gets new ones when its rule about client certificates changes: a session
//! that is resumed shows no certificate again, so a ticket must never be good where another rule holds.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rustls::{
    crypto::aws_lc_rs::Ticketer,
    server::{ProducesTickets, ServerSessionMemoryCache, StoresServerSessions},
};
use tokio::time::Instant;

use super::Error;

/// Ticket keys that live in memory alone, and sessions by id.
///
/// A ticket is good for at most `life`. A key makes tickets for half of that and opens them for all of it, then it is
/// forgotten: at the next handshake, or when [`Tickets::roll`] is called.
pub(super) struct Tickets {
    life: Duration,
    keys: Mutex<Keys>,
    sessions: Arc<ServerSessionMemoryCache>,
    began: Instant,
}

struct Keys {
    current: Arc<dyn ProducesTickets>,
    since: Instant,
    /// The one before, and until when it opens tickets.
    previous: Option<(Arc<dyn ProducesTickets>, Instant)>,
}

/// The library changes its own keys every six hours, and keeps the last ones; a ticket that must be good for longer than
/// that twice cannot be had.
const LONGEST: Duration = Duration::from_secs(12 * 3600);

/// Sessions by id of one listener.
const SESSIONS: usize = 1024;

/// The longest of them, in bytes: it holds the client's chain.
const LONGEST_SESSION: usize = 16 << 10;

impl Tickets {
    pub(super) fn new(life: Duration) -> Result<Self, Error> {
        let now = Instant::now();
        let current = Ticketer::new().map_err(Error::Settings)?;
        Ok(Self {
            life: life.clamp(Duration::from_secs(2), LONGEST),
            keys: Mutex::new(Keys { current, since: now, previous: None }),
            sessions: ServerSessionMemoryCache::new(SESSIONS),
            began: now,
        })
    }

    /// Forgets keys whose time is over.
    pub(super) fn roll(&self) {
        drop(self.keys(Instant::now()));
    }

    /// The keys at `now`. The current one may be over its time if the system has no random bytes for a new one.
    fn keys(&self, now: Instant) -> MutexGuard<'_, Keys> {
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        if keys.previous.as_ref().is_some_and(|(_, until)| *until <= now) {
            keys.previous = None;
        }
        if !self.is_fresh(&keys, now)
            && let Ok(new) = Ticketer::new()
        {
            let until = keys.since + self.life;
            let old = std::mem::replace(&mut keys.current, new);
            keys.previous = (until > now).then_some((old, until));
            keys.since = now;
        }
        keys
    }

    fn is_fresh(&self, keys: &Keys, now: Instant) -> bool {
        now.duration_since(keys.since) < self.life / 2
    }

    /// Whole seconds since this was made.
    fn age(&self) -> u64 {
        self.began.elapsed().as_secs()
    }

    fn unpack(&self, packed: &[u8]) -> Option<Vec<u8>> {
        let (stored, session) = packed.split_first_chunk()?;
        let stored = u64::from_be_bytes(*stored);
        (self.age().saturating_sub(stored) < self.life.as_secs()).then(|| session.to_vec())
    }
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        u32::try_from(self.life.as_secs()).unwrap_or(u32::MAX)
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let now = Instant::now();
        let key = {
            let keys = self.keys(now);
            self.is_fresh(&keys, now).then(|| Arc::clone(&keys.current))?
        };
        key.encrypt(plain)
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        let (current, previous) = {
            let keys = self.keys(Instant::now());
            (Arc::clone(&keys.current), keys.previous.as_ref().map(|(key, _)| Arc::clone(key)))
        };
        current.decrypt(cipher).or_else(|| previous?.decrypt(cipher))
    }
}

impl StoresServerSessions for Tickets {
    fn put(&self, key: Vec<u8>, value: Vec<u8>) -> bool {
        if value.len() > LONGEST_SESSION {
            return false;
        }
        let packed = [&self.age().to_be_bytes(), value.as_slice()].concat();
        self.sessions.put(key, packed)
    }

    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.unpack(&self.sessions.get(key)?)
    }

    fn take(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.unpack(&self.sessions.take(key)?)
    }

    fn can_cache(&self) -> bool {
        true
    }
}

impl fmt::Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tickets").field("life", &self.life).finish_non_exhaustive()
    }
}

//! How fast a session may move bytes: by its own limit and by that which its pool has for all of its sessions.

use std::sync::Arc;

use tokio::time::Instant;

use crate::state::{Bandwidth, Bucket, Take, Ticket};

/// The limits of a session, in both directions, if it has any.
#[derive(Debug, Default)]
pub(in crate::proxy) struct Pace(Option<Box<Limits>>);

/// Dropping them gives the places in the lines up.
#[derive(Debug)]
struct Limits {
    session: Option<Bandwidth>,
    pool: Option<Arc<Bandwidth>>,
    to_upstream: Places,
    to_client: Places,
}

/// The places of one direction.
#[derive(Debug, Default)]
struct Places {
    session: Ticket,
    pool: Ticket,
}

/// The limits in one direction.
pub(super) struct Lane<'a>(Option<Limited<'a>>);

struct Limited<'a> {
    session: Option<&'a Bucket>,
    pool: Option<&'a Bucket>,
    places: &'a mut Places,
}

impl Pace {
    /// At most `session` bytes a second in each direction, and what the pool has left.
    pub(in crate::proxy) fn new(session: Option<u64>, pool: Option<Arc<Bandwidth>>, now: Instant) -> Self {
        if session.is_none() && pool.is_none() {
            return Self(None);
        }
        let session = session.map(|rate| Bandwidth::new(rate, now));
        let (to_upstream, to_client) = (Places::default(), Places::default());
        Self(Some(Box::new(Limits { session, pool, to_upstream, to_client })))
    }

    /// True if bytes move as fast as they can.
    pub(in crate::proxy) const fn is_free(&self) -> bool {
        self.0.is_none()
    }

    pub(super) fn lane_to_upstream(&mut self) -> Lane<'_> {
        Lane(self.0.as_deref_mut().map(|limits| Limited {
            session: limits.session.as_ref().map(|session| &session.to_upstream),
            pool: limits.pool.as_ref().map(|pool| &pool.to_upstream),
            places: &mut limits.to_upstream,
        }))
    }

    pub(super) fn lane_to_client(&mut self) -> Lane<'_> {
        Lane(self.0.as_deref_mut().map(|limits| Limited {
            session: limits.session.as_ref().map(|session| &session.to_client),
            pool: limits.pool.as_ref().map(|pool| &pool.to_client),
            places: &mut limits.to_client,
        }))
    }
}

impl Drop for Limits {
    fn drop(&mut self) {
        if let Some(pool) = &self.pool {
            pool.to_upstream.leave(&mut self.to_upstream.pool);
            pool.to_client.leave(&mut self.to_client.pool);
        }
    }
}

impl Lane<'_> {
    /// How many of `want` bytes may be read now; what is not read of them is given back.
    ///
    /// # Errors
    /// None before this time.
    pub(super) fn take(&mut self, want: usize) -> Result<usize, Instant> {
        let Some(Limited { session, pool, places }) = &mut self.0 else { return Ok(want) };
        let (now, mut room) = (Instant::now(), want);
        if let Some(session) = session {
            match session.take(room, now, &mut places.session) {
                Take::Now(left) => room = left,
                Take::At(later) => return Err(later),
            }
        }
        let Some(pool) = pool else { return Ok(room) };
        let (left, later) = match pool.take(room, now, &mut places.pool) {
            Take::Now(left) => (left, None),
            Take::At(later) => (0, Some(later)),
        };
        if let Some(session) = session {
            session.give_back(room - left);
        }
        later.map_or(Ok(left), Err)
    }

    /// Gives back what was taken and not read.
    pub(super) fn give_back(&self, bytes: usize) {
        if let Some(Limited { session, pool, .. }) = &self.0 {
            [session, pool].into_iter().flatten().for_each(|bucket| bucket.give_back(bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_slower_limit_holds_and_the_other_gets_back_what_it_gave() {
        let now = Instant::now();
        let pool = Arc::new(Bandwidth::new(1 << 30, now));
        let mut pace = Pace::new(Some(1 << 20), Some(Arc::clone(&pool)), now);
        let mut lane = pace.lane_to_client();
        let mut taken = 0;
        let later = loop {
            match lane.take(1 << 20) {
                Ok(bytes) => taken += bytes,
                Err(later) => break later,
            }
        };
        // The burst of a tenth of a second.
        assert!((100_000..=110_000).contains(&taken), "{taken}");
        assert!(later > now);
        let mut left = 0;
        // Less than what 10 ms carry is given only to who wants no more.
        for want in [1 << 20, 64] {
            let mut ticket = Ticket::default();
            while let Take::Now(bytes) = pool.to_client.take(want, now, &mut ticket) {
                left += bytes;
            }
            pool.to_client.leave(&mut ticket);
        }
        let burst = (1 << 30) / 10;
        // Times are rounded to nanoseconds, in favour of the limit.
        assert!((burst - taken - 10_000..=burst - taken).contains(&left), "{left} of {burst}");
        assert_eq!(pace.lane_to_upstream().take(64), Ok(64), "the other direction is its own");
        assert!(Pace::default().is_free() && !pace.is_free());
    }
}

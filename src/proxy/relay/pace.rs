//! How fast a session may move bytes: by its own limit and by that which its pool has for all of its sessions.

use std::sync::Arc;

use tokio::time::Instant;

use crate::state::{Bandwidth, Bucket, Take};

/// The limits of a session, in both directions.
#[derive(Debug, Default)]
pub(in crate::proxy) struct Pace {
    session: Option<Bandwidth>,
    pool: Option<Arc<Bandwidth>>,
}

/// The limits in one direction.
pub(super) struct Lane<'a>([Option<&'a Bucket>; 2]);

impl Pace {
    /// At most `session` bytes a second in each direction, and what the pool has left.
    pub(in crate::proxy) fn new(session: Option<u64>, pool: Option<Arc<Bandwidth>>, now: Instant) -> Self {
        Self { session: session.map(|rate| Bandwidth::new(rate, now)), pool }
    }

    /// True if bytes move as fast as they can.
    pub(in crate::proxy) const fn is_free(&self) -> bool {
        self.session.is_none() && self.pool.is_none()
    }

    pub(super) fn to_upstream(&self) -> Lane<'_> {
        let pool = self.pool.as_ref().map(|pool| &pool.to_upstream);
        Lane([self.session.as_ref().map(|session| &session.to_upstream), pool])
    }

    pub(super) fn to_client(&self) -> Lane<'_> {
        let pool = self.pool.as_ref().map(|pool| &pool.to_client);
        Lane([self.session.as_ref().map(|session| &session.to_client), pool])
    }
}

impl Lane<'_> {
    /// How many of `want` bytes may be read now; what is not read of them is given back.
    ///
    /// # Errors
    /// None before this time.
    pub(super) fn take(&self, want: usize) -> Result<usize, Instant> {
        let buckets = || self.0.iter().flatten();
        if buckets().next().is_none() {
            return Ok(want);
        }
        let (now, mut room) = (Instant::now(), want);
        for (place, bucket) in buckets().enumerate() {
            let left = match bucket.take(room, now) {
                Take::Now(left) => left,
                Take::At(later) => {
                    buckets().take(place).for_each(|earlier| earlier.give_back(room));
                    return Err(later);
                }
            };
            buckets().take(place).for_each(|earlier| earlier.give_back(room - left));
            room = left;
        }
        Ok(room)
    }

    /// Gives back what was taken and not read.
    pub(super) fn give_back(&self, bytes: usize) {
        self.0.iter().flatten().for_each(|bucket| bucket.give_back(bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_slower_limit_holds_and_the_other_gets_back_what_it_gave() {
        let now = Instant::now();
        let pool = Arc::new(Bandwidth::new(1 << 30, now));
        let pace = Pace::new(Some(1 << 20), Some(Arc::clone(&pool)), now);
        let lane = pace.to_client();
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
        // Less than a sixteenth of the burst is given only to who wants no more.
        for want in [1 << 20, 64] {
            while let Take::Now(bytes) = pool.to_client.take(want, now) {
                left += bytes;
            }
        }
        let burst = (1 << 30) / 10;
        // Times are rounded to nanoseconds, in favour of the limit.
        assert!((burst - taken - 10_000..=burst - taken).contains(&left), "{left} of {burst}");
        assert_eq!(pace.to_upstream().take(64), Ok(64), "the other direction is its own");
        assert!(Pace::default().is_free() && !pace.is_free());
    }
}

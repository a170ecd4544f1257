//! A pool as the judge keeps it: its endpoints, the clouds it uses, and what restrains its removals.

use std::{collections::HashMap, net::SocketAddr, time::Duration};

use tokio::time::Instant;

use super::{
    endpoint::{Held, Record},
    facts::{Kept, PoolFacts},
};
use crate::{
    config::{Ejection, Restraint},
    ids::PoolName,
};

/// The window of the velocity limit.
pub(super) const MINUTE: Duration = Duration::from_secs(60);

/// Time between two looks at how many sessions arrive.
const RATE_TICK: Duration = Duration::from_secs(1);

/// One pool.
#[derive(Debug)]
pub(super) struct Pool {
    pub(super) name: PoolName,
    pub(super) slow_start: Duration,
    pub(super) patience: Duration,
    pub(super) ejection: Ejection,
    pub(super) restraint: Restraint,
    pub(super) members: Vec<Record>,
    pub(super) places: HashMap<SocketAddr, usize>,
    pub(super) seats: Vec<Seat>,
    /// Probes are not believed.
    pub(super) frozen: bool,
    /// Since when nothing is left that may be used.
    pub(super) lost: Option<Instant>,
    /// What the last findings said of it.
    pub(super) shown_frozen: bool,
    pub(super) shown_lost: bool,
    arrivals: Option<(u64, Instant)>,
    /// New sessions a second.
    pub(super) rate: f64,
}

/// A cloud that the pool uses.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seat {
    /// By number.
    pub(super) cloud: usize,
    /// It is down, and the pool does without it.
    pub(super) left: bool,
    /// The share that it gets.
    pub(super) percent: u32,
}

/// The weights that limits go by.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Weights {
    pub(super) base: u64,
    pub(super) used: u64,
    pub(super) ejected: u64,
    /// What probes alone have removed within the last minute.
    pub(super) charged: u64,
}

impl Pool {
    pub(super) fn new(facts: &PoolFacts) -> Self {
        Self {
            name: facts.name.clone(),
            slow_start: facts.slow_start,
            patience: facts.patience,
            ejection: facts.ejection,
            restraint: facts.restraint,
            members: Vec::new(),
            places: HashMap::new(),
            seats: Vec::new(),
            frozen: false,
            lost: None,
            shown_frozen: false,
            shown_lost: false,
            arrivals: None,
            rate: 0.0,
        }
    }

    /// Goes on as `old` did.
    pub(super) fn inherit(&mut self, old: &Self) {
        self.frozen = old.frozen;
        self.lost = old.lost;
        self.shown_frozen = old.shown_frozen;
        self.shown_lost = old.shown_lost;
        self.arrivals = old.arrivals;
        self.rate = old.rate;
    }

    pub(super) fn add(&mut self, record: Record) {
        if !self.seats.iter().any(|seat| seat.cloud == record.cloud) {
            self.seats.push(Seat { cloud: record.cloud, left: false, percent: 100 });
        }
        self.places.insert(record.key.address, self.members.len());
        self.members.push(record);
    }

    pub(super) fn arrive(&mut self, sessions: u64, now: Instant) {
        const NEWEST: f64 = 0.3;
        let Some((before, at)) = self.arrivals.filter(|(before, _)| *before <= sessions) else {
            self.arrivals = Some((sessions, now));
            return;
        };
        let elapsed = now.duration_since(at);
        if elapsed < RATE_TICK {
            return;
        }
        #[expect(clippy::cast_precision_loss, reason = "a rate needs no more")]
        let rate = (sessions - before) as f64 / elapsed.as_secs_f64();
        self.rate = if self.rate > 0.0 { self.rate + (rate - self.rate) * NEWEST } else { rate };
        self.arrivals = Some((sessions, now));
    }

    /// True if the pool does without this cloud now.
    pub(super) fn has_left(&self, cloud: usize) -> bool {
        self.seats.iter().any(|seat| seat.cloud == cloud && seat.left)
    }

    /// True if an endpoint in this cloud may be used, whatever holds of the cloud.
    pub(super) fn has_in(&self, cloud: usize) -> bool {
        self.members.iter().any(|record| record.cloud == cloud && record.is_in())
    }

    /// Leaves the clouds that are down, but not the last one. `down`: since when a cloud is, by number. True if that
    /// is not what it was.
    pub(super) fn leave(&mut self, down: &[Option<Instant>]) -> bool {
        let since = |cloud: usize| down.get(cloud).copied().flatten();
        if self.seats.iter().all(|seat| since(seat.cloud).is_none()) {
            return self
                .seats
                .iter_mut()
                .fold(false, |changed, seat| std::mem::take(&mut seat.left) | changed);
        }
        let has_in: Vec<bool> = self.seats.iter().map(|seat| self.has_in(seat.cloud)).collect();
        let seats = || self.seats.iter().zip(&has_in).enumerate();
        let other = seats().any(|(_, (seat, has_in))| *has_in && since(seat.cloud).is_none());
        let keep = if other {
            None
        } else {
            seats()
                .filter(|(_, (_, has_in))| **has_in)
                .filter_map(|(place, (seat, _))| Some((since(seat.cloud)?, place)))
                .max()
                .map(|(_, place)| place)
        };
        let mut changed = false;
        for (place, seat) in self.seats.iter_mut().enumerate() {
            let left = since(seat.cloud).is_some() && keep != Some(place);
            changed |= std::mem::replace(&mut seat.left, left) != left;
        }
        changed
    }

    /// Removes what is held for bad, as far as it may. Returns the places of what sessions take out,
    /// and whether anything goes.
    pub(super) fn remove(&mut self, down: &[Option<Instant>], now: Instant) -> (Vec<usize>, bool) {
        let mut order: Vec<(u8, u32, Instant, usize)> = Vec::new();
        for (place, record) in self.members.iter().enumerate() {
            if let Some(held) = record.held {
                let (first, row) = match held {
                    Held::Corroborated => (0, 0),
                    Held::Sessions(_) => (1, u32::MAX - record.detector.row()),
                    Held::Checks => (2, 0),
                };
                order.push((first, row, record.changed, place));
            }
        }
        if order.is_empty() {
            return (Vec::new(), false);
        }
        order.sort_unstable();
        let mut weights = self.weights(now);
        let all_bad = self.is_all_bad();
        let (mut ejected, mut removed) = (Vec::new(), false);
        for (.., place) in order {
            let allowed = self.allows(place, weights, all_bad, now);
            let Some(record) = self.members.get_mut(place) else { continue };
            let (Some(held), weight) = (record.held, u64::from(record.weight)) else { continue };
            if let Err(kept) = allowed {
                let last = kept == Kept::Floor && down.get(record.cloud).copied().flatten().is_some();
                record.kept = Some(if last { Kept::LastCloud } else { kept });
                continue;
            }
            weights.used = weights.used.saturating_sub(weight);
            removed = true;
            match held {
                Held::Sessions(_) => {
                    weights.ejected += weight;
                    ejected.push(place);
                }
                Held::Corroborated | Held::Checks => {
                    let corroborated = held == Held::Corroborated;
                    record.out = Some(super::endpoint::Removal { at: now, corroborated });
                    record.held = None;
                    if !corroborated {
                        if !record.is_charged(now) {
                            weights.charged += weight;
                        }
                        record.charged = Some(now);
                    }
                }
            }
        }
        (ejected, removed)
    }

    /// Whether the removal of what is held for bad at `place` keeps every limit.
    fn allows(&self, place: usize, weights: Weights, all_bad: bool, now: Instant) -> Result<(), Kept> {
        let Some(record) = self.members.get(place) else { return Err(Kept::Floor) };
        let weight = u64::from(record.weight);
        let share = |percent: u8| u64::from(percent) * weights.base;
        // One that comes and goes is charged once within the minute, or it would use up what others may need.
        let more = if record.is_charged(now) { 0 } else { weight };
        match record.held {
            None => return Err(Kept::Floor),
            Some(Held::Corroborated) if all_bad => return Ok(()),
            Some(Held::Corroborated) => {}
            Some(Held::Checks) if (weights.charged + more) * 100 > share(self.restraint.max_removal) => {
                return Err(Kept::Velocity);
            }
            Some(Held::Sessions(_))
                if (weights.ejected + weight) * 100 > share(self.ejection.max_ejected) =>
            {
                return Err(Kept::Cap);
            }
            Some(Held::Checks | Held::Sessions(_)) => {}
        }
        // With a floor of 0 the last one stays nevertheless: nothing would be left that could speak for the pool.
        let left = weights.used.saturating_sub(weight);
        if left == 0 || left * 100 < share(self.restraint.floor) { Err(Kept::Floor) } else { Ok(()) }
    }

    /// True if probes and sessions agree that everything is bad that is still in use.
    fn is_all_bad(&self) -> bool {
        self.members
            .iter()
            .filter(|record| record.is_in() && !self.has_left(record.cloud))
            .all(|record| record.held == Some(Held::Corroborated))
    }

    pub(super) fn weights(&self, now: Instant) -> Weights {
        let mut weights = Weights::default();
        for record in self.members.iter().filter(|record| record.proven && !self.has_left(record.cloud)) {
            let weight = u64::from(record.weight);
            weights.base += weight;
            weights.used += if record.is_in() { weight } else { 0 };
            weights.ejected += if record.ejection.is_some() { weight } else { 0 };
            weights.charged += if record.is_charged(now) { weight } else { 0 };
        }
        weights
    }
}

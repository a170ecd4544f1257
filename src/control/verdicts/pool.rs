//! A pool as the judge keeps it: its endpoints, the clouds it uses, and what restrains its removals.

use std::{collections::HashMap, net::SocketAddr, time::Duration};

use tokio::time::Instant;

use super::{
    cloud::Cloud,
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
    /// Since when all was lost, while what is back is less than the floor's share.
    pub(super) regains: Option<Instant>,
    /// Whether what is in use was bad when that was looked at last.
    pub(super) needy: Option<(Instant, bool)>,
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
    /// Since when it has done so, or did so last.
    pub(super) left_at: Option<Instant>,
    /// It is down, and the pool has nothing that is good enough in its place.
    pub(super) kept: bool,
    /// The pool has left it since it was up: its share rises when it comes back.
    pub(super) returns: bool,
    /// The share that it gets.
    pub(super) percent: u32,
}

impl Seat {
    const fn new(cloud: usize) -> Self {
        Self { cloud, left: false, left_at: None, kept: false, returns: false, percent: 100 }
    }
}

/// How much of a pool is lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Loss {
    #[default]
    None,
    /// All was, and what is back is less than the floor's share.
    Most,
    All,
}

/// The weights that limits go by.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Weights {
    pub(super) base: u64,
    pub(super) used: u64,
    pub(super) ejected: u64,
    /// What probes alone have removed within the last minute.
    pub(super) charged: u64,
    /// What is left just now with its cloud though bytes come from that cloud: the floor counts it once more.
    pub(super) leaving: u64,
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
            regains: None,
            needy: None,
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
        self.regains = old.regains;
        self.shown_frozen = old.shown_frozen;
        self.shown_lost = old.shown_lost;
        self.arrivals = old.arrivals;
        self.rate = old.rate;
    }

    /// Goes on with a cloud as `old` did.
    pub(super) fn resume(&mut self, cloud: usize, old: Seat) {
        if let Some(seat) = self.seats.iter_mut().find(|seat| seat.cloud == cloud) {
            *seat = Seat { cloud, ..old };
        }
    }

    pub(super) fn add(&mut self, record: Record) {
        if !self.seats.iter().any(|seat| seat.cloud == record.cloud) {
            self.seats.push(Seat::new(record.cloud));
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

    /// What is good of the pool in this cloud, and all of it, by weight.
    pub(super) fn good_of(&self, cloud: usize, now: Instant) -> (u64, u64) {
        let here = self.members.iter().filter(|record| record.cloud == cloud && record.proven);
        here.fold((0, 0), |(good, all), record| {
            let weight = u64::from(record.weight);
            (good + if record.is_good(now) { weight } else { 0 }, all + weight)
        })
    }

    /// True if another cloud that is not down may take the place of one that is: while the pool still uses that, one with
    /// a greater part that is good; once the pool had to keep it, and it carries nothing any more and is hardly good, one that
    /// is good for the most part; once it is left, any.
    pub(super) fn can_leave(&self, cloud: usize, clouds: &[Cloud], now: Instant) -> bool {
        let Some(seat) = self.seats.iter().find(|seat| seat.cloud == cloud) else { return false };
        let (good, all) = self.good_of(cloud, now);
        let carries = self.carries(cloud, now);
        if !seat.left && !self.is_enough_without(cloud, clouds, now) {
            return false;
        }
        let domain = clouds.get(cloud).map(|cloud| cloud.domain).unwrap_or_default();
        self.seats.iter().filter(|other| other.cloud != cloud && self.has_in(other.cloud)).any(|other| {
            let Some(rules) = clouds.get(other.cloud).filter(|other| !other.is_down()) else { return false };
            let (others_good, others) = self.good_of(other.cloud, now);
            match seat {
                Seat { left: true, .. } => true,
                // Never the last one that still carries something.
                _ if carries && !self.carries(other.cloud, now) => false,
                Seat { kept: true, .. } => {
                    let good_for_little = good * 100 < all * u64::from(domain.down_below);
                    let up_above = u64::from(rules.domain.up_above);
                    !carries && good_for_little && others_good * 100 > others * up_above
                }
                _ => others_good * all.max(1) > good * others,
            }
        })
    }

    /// Leaves the clouds that are down, but not one that nothing is good enough to take the place of. True if that is
    /// not what it was.
    pub(super) fn leave(&mut self, clouds: &[Cloud], now: Instant) -> bool {
        let since = |cloud: usize| clouds.get(cloud).and_then(Cloud::down_since);
        if self.seats.iter().all(|seat| since(seat.cloud).is_none()) {
            return self.seats.iter_mut().fold(false, |changed, seat| {
                seat.kept = false;
                std::mem::take(&mut seat.left) | changed
            });
        }
        let can: Vec<bool> = self.seats.iter().map(|seat| self.can_leave(seat.cloud, clouds, now)).collect();
        // With nothing else, the best of those that are down.
        let other = self.seats.iter().any(|seat| since(seat.cloud).is_none() && self.has_in(seat.cloud));
        let best = self
            .seats
            .iter()
            .filter(|seat| !other && self.has_in(seat.cloud))
            .max_by_key(|seat| (self.good_of(seat.cloud, now).0, seat.kept, since(seat.cloud)))
            .map(|seat| seat.cloud);
        // What is better must not take the load of all at once: what serves stays beside it.
        let serves = |seat: &&Seat| !seat.left && !self.is_enough_without(seat.cloud, clouds, now);
        let serving: Vec<usize> = self.seats.iter().filter(serves).map(|seat| seat.cloud).collect();
        let mut changed = false;
        for (seat, can) in self.seats.iter_mut().zip(can) {
            let is_down = since(seat.cloud).is_some();
            let keep = if other { !can } else { best == Some(seat.cloud) || serving.contains(&seat.cloud) };
            let left = is_down && !keep;
            seat.kept = is_down && keep;
            seat.returns = left || seat.returns && !seat.kept;
            seat.left_at = if left && !seat.left { Some(now) } else { seat.left_at };
            changed |= std::mem::replace(&mut seat.left, left) != left;
        }
        changed
    }

    /// How much of it is lost.
    pub(super) const fn loss(&self) -> Loss {
        match (self.lost, self.regains) {
            (Some(_), _) => Loss::All,
            (None, Some(_)) => Loss::Most,
            (None, None) => Loss::None,
        }
    }

    /// Finds whether all is lost. Where it was, what comes back first must not take the load of all: that ends only when
    /// the floor's share is in, and not while bytes come from others, too.
    pub(super) fn count_losses(&mut self, now: Instant) {
        self.lost = if self.has_lost() { self.lost.or(self.regains).or(Some(now)) } else { None };
        if self.lost.is_some() {
            self.regains = self.lost;
        } else if self.regains.is_some() && self.has_regained(now) {
            self.regains = None;
        }
    }

    fn has_regained(&self, now: Instant) -> bool {
        let (mut all, mut used) = (0, 0);
        let mut rest = false;
        for record in self.members.iter().filter(|record| record.proven) {
            let serves = record.is_in() && !self.has_left(record.cloud);
            let weight = u64::from(record.weight);
            all += weight;
            used += if serves { weight } else { 0 };
            rest |= !serves && record.carries(now);
        }
        used * 100 >= all * u64::from(self.restraint.floor) && !rest
    }

    /// Finds whose silence is its own: others of the pool have answered of late, or others in use do so now.
    pub(super) fn listen(&mut self, now: Instant) {
        let answers = |record: &Record| record.answered().is_some_and(|at| now.duration_since(at) < MINUTE);
        let count = self.members.iter().filter(|record| answers(record)).count();
        let speaks =
            self.members.iter().any(|one| one.is_in() && !self.has_left(one.cloud) && one.carries(now));
        for record in &mut self.members {
            record.detector.others_answer = count > usize::from(answers(record));
            record.detector.silenced = speaks && record.is_silent(now);
        }
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
        let mut crews = self.crews(now);
        // Nothing is lost for certain while bytes come.
        let all_bad = self.is_all_bad() && !crews.iter().any(|crew| crew.carries);
        let (mut ejected, mut removed) = (Vec::new(), false);
        for (.., place) in order {
            let allowed = match self.allows(place, weights, all_bad, now) {
                Ok(()) if is_last(&crews, self.members.get(place)) => Err(Kept::LastCloud),
                allowed => allowed,
            };
            let Some(record) = self.members.get_mut(place) else { continue };
            let (Some(held), weight) = (record.held, u64::from(record.weight)) else { continue };
            if let Err(kept) = allowed {
                let last = kept == Kept::Floor && down.get(record.cloud).copied().flatten().is_some();
                record.kept = Some(if last { Kept::LastCloud } else { kept });
                continue;
            }
            weights.used = weights.used.saturating_sub(weight);
            if let Some(crew) = crews.iter_mut().find(|crew| crew.cloud == record.cloud) {
                crew.used -= 1;
            }
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
        let floor = u64::from(self.restraint.floor) * (weights.base + weights.leaving);
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
        if left == 0 || left * 100 < floor { Err(Kept::Floor) } else { Ok(()) }
    }

    /// For each cloud, how many of its endpoints are in use, and whether bytes come from them.
    fn crews(&self, now: Instant) -> Vec<Crew> {
        let mut crews: Vec<Crew> =
            self.seats.iter().map(|seat| Crew { cloud: seat.cloud, used: 0, carries: false }).collect();
        for record in self.members.iter().filter(|record| !self.has_left(record.cloud)) {
            if let Some(crew) = crews.iter_mut().find(|crew| crew.cloud == record.cloud) {
                crew.used += usize::from(record.is_in());
                crew.carries |= record.carries(now);
            }
        }
        crews
    }

    /// True if bytes come from endpoints in this cloud, also from those that get no new sessions.
    fn carries(&self, cloud: usize, now: Instant) -> bool {
        self.members.iter().any(|record| record.cloud == cloud && record.carries(now))
    }

    /// True if the floor holds without this cloud. What carries nothing is no loss; while bytes come from endpoints in use,
    /// what is left must be enough without them.
    fn is_enough_without(&self, cloud: usize, clouds: &[Cloud], now: Instant) -> bool {
        let stays = |record: &Record| {
            record.cloud != cloud && clouds.get(record.cloud).is_some_and(|other| !other.is_down())
        };
        let (mut base, mut used, mut lost) = (0, 0, false);
        let counts = |record: &&Record| record.proven && !self.has_left(record.cloud);
        for record in self.members.iter().filter(counts) {
            let weight = u64::from(record.weight);
            base += weight;
            used += if record.is_in() && stays(record) { weight } else { 0 };
            lost |= record.cloud == cloud && record.is_in() && record.carries(now);
        }
        !lost || used * 100 >= base * u64::from(self.restraint.floor)
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
        let leaving = |seat: &&Seat| seat.left && seat.left_at == Some(now) && self.carries(seat.cloud, now);
        for seat in self.seats.iter().filter(leaving) {
            let here = self.members.iter().filter(|record| record.cloud == seat.cloud && record.proven);
            weights.leaving += here.map(|record| u64::from(record.weight)).sum::<u64>();
        }
        weights
    }
}

/// What a cloud has in use in a pool.
#[derive(Clone, Copy, Debug)]
struct Crew {
    cloud: usize,
    used: usize,
    carries: bool,
}

/// True if this is the last endpoint in use of its cloud, and bytes come from no other cloud. One that says itself that it
/// is not to be used is believed where another cloud is in use: the sessions that it has may be its last.
fn is_last(crews: &[Crew], record: Option<&Record>) -> bool {
    let mut carrying = crews.iter().filter(|crew| crew.carries && crew.used > 0);
    record.is_some_and(|record| {
        let resigns = record.is_down() && record.opinion.answered && !record.contradicted;
        let others = crews.iter().any(|crew| crew.cloud != record.cloud && crew.used > 0);
        if resigns && others {
            return false;
        }
        carrying.next().is_some_and(|crew| crew.cloud == record.cloud && crew.used == 1)
            && carrying.next().is_none()
    })
}

//! The judge: who may be used, and how much of it. It has neither sockets nor a clock, and the same calls with the same
//! seed give the same verdicts.

mod asked;
mod cloud;
mod decide;
mod ejection;
mod endpoint;
mod facts;
mod finding;
mod pool;
mod relief;
mod report;
mod sessions;
#[cfg(test)]
mod tests;
mod turn;

pub use asked::Taken;
pub use facts::{
    CloudFacts, CloudStanding, Explanation, Kept, MemberFacts, PATIENCE, PoolFacts, Reading, Standing,
};
pub use finding::{Decision, Finding, FindingKind};

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use rand::{SeedableRng as _, rngs::SmallRng};
use tokio::time::Instant;

use self::{
    cloud::{Cloud, State},
    endpoint::Record,
    pool::Pool,
};
use super::health::Verdict;
use crate::{
    config::Domain,
    ids::{CloudName, EndpointKey, PoolName},
};

/// How long an endpoint that is gone is remembered: discovery may bring it back.
const MEMORY: Duration = Duration::from_secs(600);

/// What is known of endpoints and clouds, and what follows from it.
#[derive(Debug)]
pub struct Verdicts {
    rng: SmallRng,
    pools: Vec<Pool>,
    places: HashMap<PoolName, usize>,
    clouds: Vec<Cloud>,
    gone: HashMap<EndpointKey, (Record, Instant)>,
    /// No probe is believed.
    frozen: bool,
    /// That everything failed at once was true: sessions failed too.
    disproved: bool,
    /// Why probes are, or are not, believed.
    note: Arc<str>,
    shown_frozen: bool,
    /// Why a cloud begins to come back, by its number, until that is told.
    evidence: HashMap<usize, String>,
    due: Option<Instant>,
}

impl Verdicts {
    /// Knows nothing. The seed is for jitter.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            rng: SmallRng::seed_from_u64(seed),
            pools: Vec::new(),
            places: HashMap::new(),
            clouds: Vec::new(),
            gone: HashMap::new(),
            frozen: false,
            disproved: false,
            note: Arc::from("nothing speaks against them"),
            shown_frozen: false,
            evidence: HashMap::new(),
            due: None,
        }
    }

    /// Takes the pools and clouds there are now: at the start, after a reload, and after names have resolved anew.
    /// Endpoints that are known keep everything, also those that were gone for less than ten minutes.
    pub fn configure(&mut self, pools: Vec<PoolFacts>, clouds: Vec<CloudFacts>, now: Instant) {
        let mut known: HashMap<PoolName, Pool> =
            self.pools.drain(..).map(|pool| (pool.name.clone(), pool)).collect();
        for record in known.values_mut().flat_map(|pool| pool.members.drain(..)) {
            self.gone.insert(record.key.clone(), (record, now));
        }
        self.gone.retain(|_, (_, since)| now.duration_since(*since) < MEMORY);
        let names: Vec<CloudName> = self.clouds.iter().map(|cloud| cloud.name.clone()).collect();
        self.reconfigure_clouds(&pools, clouds);
        let numbers: HashMap<CloudName, usize> =
            self.clouds.iter().enumerate().map(|(number, cloud)| (cloud.name.clone(), number)).collect();
        for facts in pools {
            let mut pool = Pool::new(&facts);
            if let Some(old) = known.get(&facts.name) {
                pool.inherit(old);
            }
            for member in &facts.members {
                let Some(cloud) = numbers.get(&member.cloud).copied() else { continue };
                let record = match self.gone.remove(&member.key) {
                    Some((mut record, _)) => {
                        record.reconfigure(member, cloud, facts.probed, now);
                        record
                    }
                    None => Record::new(member, cloud, facts.probed, now),
                };
                if !pool.places.contains_key(&member.key.address) {
                    pool.add(record);
                }
            }
            for seat in known.get(&facts.name).iter().flat_map(|old| &old.seats) {
                if let Some(number) = names.get(seat.cloud).and_then(|name| numbers.get(name)) {
                    pool.resume(*number, *seat);
                }
            }
            self.places.insert(pool.name.clone(), self.pools.len());
            self.pools.push(pool);
        }
        let pools = &self.pools;
        self.places.retain(|name, place| pools.get(*place).is_some_and(|pool| pool.name == *name));
        self.leave(now);
        self.pace(now);
    }

    fn reconfigure_clouds(&mut self, pools: &[PoolFacts], facts: Vec<CloudFacts>) {
        let mut known: HashMap<CloudName, Cloud> =
            self.clouds.drain(..).map(|cloud| (cloud.name.clone(), cloud)).collect();
        self.evidence.clear();
        let mut named: HashSet<CloudName> = HashSet::new();
        // A cloud that only endpoints name has the usual rules.
        let unsaid = pools.iter().flat_map(|pool| &pool.members).map(|member| member.cloud.clone());
        let unsaid = unsaid.map(|name| CloudFacts { name, domain: Domain::default() });
        for CloudFacts { name, domain } in facts.into_iter().chain(unsaid) {
            if named.insert(name.clone()) {
                let old = known.remove(&name);
                let cloud = old.map_or_else(|| Cloud::new(name, domain), |old| Cloud { domain, ..old });
                self.clouds.push(cloud);
            }
        }
    }

    /// Takes what probes say of an endpoint. May be called again for each further failed probe: bytes must come after
    /// the last of them to speak against it.
    pub fn probed(&mut self, key: &EndpointKey, opinion: Opinion, now: Instant) {
        if let Some((record, rng, _)) = self.record(key) {
            record.probe(opinion, rng, now);
        }
    }

    /// Takes what the cell of an endpoint has counted.
    pub fn observe(&mut self, key: &EndpointKey, reading: Reading, now: Instant) {
        if let Some((record, _, patience)) = self.record(key) {
            record.observe(reading, patience, now);
        }
    }

    /// Takes how many new sessions a pool has had since it exists.
    pub fn arrivals(&mut self, pool: &PoolName, sessions: u64, now: Instant) {
        if let Some(pool) = self.places.get(pool).and_then(|place| self.pools.get_mut(*place)) {
            pool.arrive(sessions, now);
        }
    }

    /// Draws the conclusions. To be called after the calls above, and when [`due`](Self::due) says so.
    pub fn decide(&mut self, now: Instant) -> Decision {
        self.conclude(now);
        self.report(now)
    }

    /// When to call [`decide`](Self::decide) at the latest though nothing has happened.
    #[must_use]
    pub const fn due(&self) -> Option<Instant> {
        self.due
    }

    /// What holds of an endpoint; [`Standing::New`] for one that is not known.
    #[must_use]
    pub fn standing(&self, key: &EndpointKey) -> Standing {
        self.known(key).map_or(Standing::New, |(pool, record)| record.standing(self.left(pool, record)))
    }

    /// The weight of an endpoint in percent of its own: less than 100 in its slow start, never 0.
    #[must_use]
    pub fn weight_percent(&self, key: &EndpointKey, now: Instant) -> u32 {
        self.known(key).map_or(100, |(pool, record)| record.ramp(pool.slow_start, now).0)
    }

    /// What holds of a cloud.
    #[must_use]
    pub fn cloud(&self, name: &CloudName) -> CloudStanding {
        let cloud = self.clouds.iter().find(|cloud| cloud.name == *name);
        match cloud.map(|cloud| (cloud.state, &cloud.note)) {
            None | Some((State::Up, _)) => CloudStanding::Up,
            Some((State::Down { since, .. }, note)) => {
                CloudStanding::Down { since, evidence: Arc::clone(note) }
            }
            Some((State::Recovering { percent, .. }, _)) => CloudStanding::Recovering { percent },
        }
    }

    /// The share of its usual new sessions that a cloud gets from a pool, 0 to 100: less while it comes back and
    /// another can take the rest, 0 while it is down and the pool has another.
    #[must_use]
    pub fn cloud_percent(&self, pool: &PoolName, cloud: &CloudName) -> u32 {
        let number = self.clouds.iter().position(|known| known.name == *cloud);
        let pool = self.places.get(pool).and_then(|place| self.pools.get(*place));
        let seat =
            pool.zip(number).and_then(|(pool, number)| pool.seats.iter().find(|seat| seat.cloud == number));
        seat.map_or(100, |seat| seat.percent)
    }

    /// True when a pool has nothing left that may be used: its `when_all_down` decides.
    #[must_use]
    pub fn all_lost(&self, pool: &PoolName) -> bool {
        self.places.get(pool).and_then(|place| self.pools.get(*place)).is_some_and(|pool| pool.lost.is_some())
    }

    /// True while a pool that had lost everything has something again, but less than its floor: what is good comes
    /// first, and the rest goes on to be offered behind it.
    #[must_use]
    pub fn regains(&self, pool: &PoolName) -> bool {
        let pool = self.places.get(pool).and_then(|place| self.pools.get(*place));
        pool.is_some_and(|pool| pool.loss() == pool::Loss::Most)
    }

    /// True while probes are not believed: those of the pool, or all.
    #[must_use]
    pub fn frozen(&self, pool: &PoolName) -> bool {
        let pool = self.places.get(pool).and_then(|place| self.pools.get(*place));
        self.frozen || pool.is_some_and(|pool| pool.frozen)
    }

    /// Everything about an endpoint; `None` for one that is not known.
    #[must_use]
    pub fn explain(&self, key: &EndpointKey, now: Instant) -> Option<Explanation> {
        let (pool, record) = self.known(key)?;
        let left = self.left(pool, record);
        let (attempts, failures) = record.detector.recent(now);
        let reason = left.as_ref().map_or_else(|| Arc::from(record.evidence()), Arc::clone);
        Some(Explanation {
            standing: record.standing(left),
            probes: record.opinion.verdict,
            probe_reason: Arc::clone(&record.opinion.reason),
            consecutive_failures: record.detector.row(),
            attempts,
            failures,
            connect_p95: record.detector.p95().map(Duration::from_secs_f64),
            ejections: record.back_off.count(now),
            ejections_total: record.back_off.total,
            back_off_until: record.ejection.as_ref().map(|ejection| ejection.until),
            flaps: record.flaps.recent(now),
            flaps_total: record.flaps.total,
            readmission_at: (record.out.is_some() && !record.is_down()).then_some(record.ready),
            corroborated: record.detector.corroborates(now),
            contradicted: record.contradicted,
            kept: record.kept,
            reason,
        })
    }

    /// What its cloud is down for, if it is and the pool does without it.
    fn left(&self, pool: &Pool, record: &Record) -> Option<Arc<str>> {
        let cloud = self.clouds.get(record.cloud).filter(|_| pool.has_left(record.cloud))?;
        Some(Arc::from(format!("{} is down: {}", cloud.name, cloud.note)))
    }

    fn known(&self, key: &EndpointKey) -> Option<(&Pool, &Record)> {
        let pool = self.pools.get(*self.places.get(&key.pool)?)?;
        Some((pool, pool.members.get(*pool.places.get(&key.address)?)?))
    }

    fn record(&mut self, key: &EndpointKey) -> Option<(&mut Record, &mut SmallRng, Duration)> {
        let pool = self.pools.get_mut(*self.places.get(&key.pool)?)?;
        let patience = pool.patience;
        let record = pool.members.get_mut(*pool.places.get(&key.address)?)?;
        Some((record, &mut self.rng, patience))
    }
}

/// What probes say of an endpoint.
#[derive(Clone, Debug)]
pub struct Opinion {
    /// The verdict.
    pub verdict: Verdict,
    /// The evidence, for people: `3 probes failed: connect: connection refused`.
    pub reason: Arc<str>,
    /// True if the endpoint answered, and wrongly: its own word.
    pub answered: bool,
    /// When the last probe of the run began.
    pub began: Instant,
}

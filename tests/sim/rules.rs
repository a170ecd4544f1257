//! What must hold in every world, at every moment.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};

use tokio::time::Instant;
use twinspan::{
    control::{Notice, health::Verdict, verdicts::FindingKind},
    ids::Generation,
    state::{AllDown, Snapshot},
};

use crate::{
    network::Fault,
    script::{CLOUDS, Scenario},
    world::{Upstream, offered},
};

/// The time over which removals are limited.
const MINUTE: Duration = Duration::from_secs(60);

/// Breaches that are kept of one run.
const MOST: usize = 10;

/// How far checks alone may go. Each is looked at only where it is promised.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Restraint {
    /// The part of a pool that stays in use.
    pub(crate) floor: Option<f64>,
    /// The part of a pool that may be removed within a minute, if no session has failed there.
    pub(crate) velocity: Option<f64>,
    /// The part of a pool that sessions may have ejected at a time, counted after each ejection.
    pub(crate) cap: Option<f64>,
    /// The last cloud that carries bytes stays in use.
    pub(crate) last_cloud: bool,
    /// A session is connected if all is well in some cloud, for so long that probes must have found it.
    pub(crate) served: bool,
    /// How soon nobody tries a cloud that has failed any more, or a process that stands still.
    pub(crate) left: Option<Left>,
}

/// Times from a fault to the last session that tries what it has struck.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Left {
    /// Where dials are refused.
    pub(crate) loud: Duration,
    /// Where nothing answers.
    pub(crate) silent: Duration,
}

impl Restraint {
    /// The usual limits.
    pub(crate) const FULL: Self = Self {
        floor: Some(0.2),
        velocity: Some(0.5),
        cap: Some(0.5),
        last_cloud: true,
        served: true,
        left: None,
    };

    /// No limits.
    pub(crate) const NONE: Self =
        Self { floor: None, velocity: None, cap: None, last_cloud: false, served: false, left: None };
}

/// Watches a run.
#[derive(Debug)]
pub(crate) struct Rules {
    restraint: Restraint,
    generation: Generation,
    offered: BTreeSet<SocketAddr>,
    /// What was in use by all that was known of it.
    stands: BTreeSet<SocketAddr>,
    /// What sessions have taken out.
    ejected: BTreeSet<SocketAddr>,
    /// Endpoints that were removed though no session had failed there, and when they were last.
    removed: BTreeMap<SocketAddr, Instant>,
    /// Clouds that are down by verdict.
    down: BTreeSet<String>,
    /// What was broken.
    pub(crate) breaches: Vec<String>,
}

impl Rules {
    /// Those of every policy, and what this one promises.
    pub(crate) const fn new(restraint: Restraint) -> Self {
        Self {
            restraint,
            generation: Generation(0),
            offered: BTreeSet::new(),
            stands: BTreeSet::new(),
            ejected: BTreeSet::new(),
            removed: BTreeMap::new(),
            down: BTreeSet::new(),
            breaches: Vec::new(),
        }
    }

    /// A snapshot comes into force.
    pub(crate) fn published(
        &mut self,
        scenario: &Scenario,
        snapshot: &Snapshot,
        upstreams: &[Upstream],
        stands: BTreeSet<SocketAddr>,

        now: Instant,
    ) {
        let last = std::mem::replace(&mut self.generation, snapshot.generation);
        self.check(last < snapshot.generation, || format!("generation {} after {last}", snapshot.generation));
        self.well_formed(scenario, snapshot);
        let offered = offered(&snapshot.pools[0], usize::MAX).collect();
        let before = std::mem::replace(&mut self.offered, offered);
        let stood = std::mem::replace(&mut self.stands, stands);
        if snapshot.pools[0].all_down.is_none() {
            self.restrained(&before, &stood, upstreams, now);
        }
    }

    fn well_formed(&mut self, scenario: &Scenario, snapshot: &Snapshot) {
        let pool = &snapshot.pools[0];
        let mut seen = BTreeSet::new();
        // What fills up the first tier stands in its own one as well.
        let own = pool.tiers.first().map_or(0, |tier| tier.groups.len() - pool.spilled);
        let filling = |(tier, group): (usize, usize)| tier == 0 && group >= own;
        let places = pool.tiers.iter().enumerate().flat_map(|(tier, all)| {
            all.groups.iter().enumerate().map(move |(place, group)| ((tier, place), group))
        });
        for (_, group) in places.filter(|(place, _)| !filling(*place)) {
            self.check(!group.endpoints.is_empty(), || format!("{} is an empty group", group.cloud));
            for endpoint in &group.endpoints {
                let (address, cloud) = (endpoint.address(), &endpoint.identity.cloud);
                self.check(seen.insert(address), || format!("{address} stands there twice"));
                self.check(endpoint.weight > 0, || format!("{address} has no weight"));
                self.check(*cloud == group.cloud, || format!("{address} stands in {}", group.cloud));
            }
        }
        let all: BTreeSet<_> =
            (0..scenario.clouds.iter().sum()).map(|endpoint| scenario.address(endpoint)).collect();
        match pool.all_down {
            Some(AllDown::Refuse) => self.check(seen.is_empty(), || "refuses, but offers".to_owned()),
            Some(AllDown::TryAnyway) => self.check(seen == all, || "does not try all anyway".to_owned()),
            None => self.check(!seen.is_empty() && seen.is_subset(&all), || format!("offers {seen:?}")),
        }
    }

    fn restrained(
        &mut self,
        before: &BTreeSet<SocketAddr>,
        stood: &BTreeSet<SocketAddr>,
        upstreams: &[Upstream],
        now: Instant,
    ) {
        let Restraint { floor, velocity, last_cloud, .. } = self.restraint;
        // A cloud that is down as a whole counts for nothing, but it is not down while bytes come from a part of it, nor
        // because all of it went one by one. Nor does what was never seen alive.
        let is_down = |cloud: usize| self.down.contains(CLOUDS[cloud].0);
        let counts = |cloud: usize, offered: &BTreeSet<SocketAddr>| {
            let members = || upstreams.iter().filter(|one| one.cloud == cloud);
            !is_down(cloud)
                || members().any(|one| offered.contains(&one.address))
                || 4 * members().filter(|one| one.carries(now)).count() >= members().count()
        };
        let either: BTreeSet<SocketAddr> = before.union(&self.offered).copied().collect();
        let alive = upstreams.iter().filter(|one| one.probes.contains(&true));
        let used =
            |cloud: usize| upstreams.iter().any(|one| one.cloud == cloud && either.contains(&one.address));
        let base: Vec<&Upstream> = alive.filter(|one| !is_down(one.cloud) || used(one.cloud)).collect();
        let part = |count: usize, part: f64, whole: usize| {
            #[expect(clippy::cast_precision_loss, reason = "a handful")]
            let (count, whole) = (count as f64, whole as f64);
            count - part * whole
        };
        // What is truly dead is no loss.
        let left = |one: &&&Upstream| self.offered.contains(&one.address) || one.seems_dead(now);
        let standing = || base.iter().filter(|one| counts(one.cloud, &self.offered));
        let (stand, offered) = (standing().count(), standing().filter(left).count());
        let gone: Vec<SocketAddr> = base
            .iter()
            // What sessions have ejected is bounded by the cap.
            .filter(|one| !self.ejected.contains(&one.address))
            // What is no longer tried anyway was removed before.
            .filter(|one| stood.contains(&one.address) && !self.offered.contains(&one.address))
            .filter(|one| counts(one.cloud, &self.offered) && !one.is_corroborated(now))
            .map(|one| one.address)
            .collect();
        let carrying = |offered: &BTreeSet<SocketAddr>, carries: fn(&Upstream, Instant) -> bool| {
            let clouds = upstreams.iter().filter(|one| offered.contains(&one.address)).map(|one| one.cloud);
            let clouds: BTreeSet<usize> = clouds.collect();
            upstreams.iter().any(|one| carries(one, now) && clouds.contains(&one.cloud))
        };
        // Nobody knows yet that bytes have stopped which came with the last two ticks.
        let lost = carrying(before, Upstream::carries) && !carrying(&self.offered, Upstream::carried);
        self.removed.extend(gone.iter().map(|address| (*address, now)));
        self.removed.retain(|_, at| now - *at < MINUTE);
        // One that comes and goes counts once. What is gone with its cloud does not: a verdict on a cloud is not charged. It
        // is a part of the whole nevertheless, as others may have gone before it in the same decision.
        let charged = base.iter().filter(|one| counts(one.cloud, &self.offered));
        let removed = charged.filter(|one| self.removed.contains_key(&one.address)).count();
        let whole = base.len();
        let dropped = base.iter().any(|one| {
            before.contains(&one.address) && !self.offered.contains(&one.address) && !one.seems_dead(now)
        });
        let fine = !dropped || floor.is_none_or(|floor| part(offered, floor, stand) >= 0.0);
        self.check(fine, || format!("{offered} of {stand} endpoints are left"));
        let fine = gone.is_empty() || velocity.is_none_or(|velocity| part(removed, velocity, whole) <= 0.0);
        self.check(fine, || format!("{removed} of {whole} endpoints removed within a minute"));
        self.check(!last_cloud || !lost, || "the last cloud that carries bytes was removed".to_owned());
    }

    /// Sessions have taken these out, and no others.
    pub(crate) fn ejects(&mut self, ejected: BTreeSet<SocketAddr>) {
        self.ejected = ejected;
    }

    /// These are told with the next snapshot: which clouds are down by verdict.
    pub(crate) fn strikes(&mut self, notices: &[Notice]) {
        for notice in notices {
            let Notice::Found(finding) = notice else { continue };
            let Some(cloud) = finding.cloud.as_ref().filter(|_| finding.endpoint.is_none()) else { continue };
            if finding.after == "down" {
                self.down.insert(cloud.as_str().to_owned());
            } else {
                self.down.remove(cloud.as_str());
            }
        }
    }

    /// Something is told: no verdict without evidence.
    pub(crate) fn told(&mut self, notice: &Notice, upstreams: &[Upstream], now: Instant) {
        let of = |address: SocketAddr| upstreams.iter().find(|upstream| upstream.address == address);
        let last = |upstream: &Upstream| upstream.probes.last().copied();
        let (evidence, said) = match notice {
            Notice::Judged { endpoint, before, verdict, reason } => {
                let evidence = match verdict {
                    Verdict::Up => of(endpoint.address).and_then(last) == Some(true),
                    Verdict::Down => of(endpoint.address).and_then(last) == Some(false),
                    // An opinion is not forgotten.
                    Verdict::Unknown => false,
                };
                (evidence && before != verdict, !reason.is_empty())
            }
            Notice::Found(finding) => {
                let one = finding.endpoint.and_then(of);
                let here = |one: &&Upstream| {
                    finding.cloud.as_ref().is_some_and(|cloud| cloud.as_str() == CLOUDS[one.cloud].0)
                };
                let evidence = match finding.kind {
                    FindingKind::Ejection => one.is_some_and(|one| one.has_complaint(now)),
                    FindingKind::Cloud if finding.after == "down" => {
                        let mut members = upstreams.iter().filter(here);
                        members.any(|one| last(one) == Some(false) || one.has_complaint(now))
                    }
                    FindingKind::Freeze => upstreams.iter().any(Upstream::is_held_for_down),
                    _ => true,
                };
                // A trial that fails takes nothing out, nor does it that probes are good again where sessions are not.
                // What is part of a verdict on its cloud is told when the pool goes on with that cloud.
                if finding.kind == FindingKind::Ejection
                    && !["trial", "out"].contains(&finding.before.as_ref())
                    && !finding.evidence.starts_with("its cloud is down")
                {
                    self.capped(upstreams);
                }
                (evidence && finding.before != finding.after, !finding.evidence.is_empty())
            }
            _ => (true, true),
        };
        self.check(evidence && said, || format!("no evidence: {notice:?}"));
    }

    /// The cap holds after an ejection: among what counts for the pool.
    fn capped(&mut self, upstreams: &[Upstream]) {
        let Some(cap) = self.restraint.cap else { return };
        // What is down as a whole and not kept counts for nothing. That all of a cloud went one by one does not make it down.
        let counts = |one: &&Upstream| {
            let used = |cloud: usize| {
                upstreams.iter().any(|other| other.cloud == cloud && self.offered.contains(&other.address))
            };
            one.probes.contains(&true) && (!self.down.contains(CLOUDS[one.cloud].0) || used(one.cloud))
        };
        let base = upstreams.iter().filter(counts).count();
        let out = upstreams.iter().filter(counts).filter(|one| self.ejected.contains(&one.address)).count();
        #[expect(clippy::cast_precision_loss, reason = "a handful")]
        let holds = out as f64 <= cap * base as f64;
        self.check(holds, || format!("{out} of {base} endpoints are ejected"));
    }

    /// A session got no connection; what has been well since `then` should have had it.
    pub(crate) fn failed(&mut self, then: Instant, upstreams: &[Upstream]) {
        let well = |cloud: usize| {
            let mut members = upstreams.iter().filter(|one| one.cloud == cloud);
            members.all(|one| one.is_well_since(then))
        };
        let cloud = upstreams.iter().map(|one| one.cloud).find(|cloud| well(*cloud));
        if let Some(cloud) = cloud.filter(|_| self.restraint.served) {
            self.check(false, || format!("a session failed though all is well in {}", CLOUDS[cloud].0));
        }
    }

    /// A session is about to try an endpoint that something is wrong with; it came so long after that began.
    pub(crate) fn tries(&mut self, place: usize, after: Duration, upstreams: &[Upstream]) {
        let Some(left) = self.restraint.left else { return };
        let one = &upstreams[place];
        let mut cloud = upstreams.iter().filter(|other| other.cloud == one.cloud);
        let most = match one.fault {
            Fault::Stopped => left.silent,
            fault if fault.is_dead() && cloud.all(|other| other.fault == fault) => {
                if fault.is_silent() {
                    left.silent
                } else {
                    left.loud
                }
            }
            _ => return,
        };
        self.check(after <= most, || format!("a session tries {place}, {:?}, after {after:?}", one.fault));
    }

    fn check(&mut self, holds: bool, breach: impl FnOnce() -> String) {
        if !holds && self.breaches.len() < MOST {
            self.breaches.push(format!("generation {}: {}", self.generation, breach()));
        }
    }
}

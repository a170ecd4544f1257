//! Who decides: the production brain, and what it is measured against.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use tokio::time::Instant;
use twinspan::{
    balance::Shares,
    config::{self, Config},
    control::{Brain, Change, Name, Notice, OpenListener, health::Verdict, verdicts::Standing},
    ids::{CloudName, EndpointIdentity, EndpointKey},
    proxy::Race,
    state::{
        AllDown, Connect, Endpoint, EndpointCell, Group, GroupCell, ListenerCell, Pool, PoolCell, Snapshot,
        Tier,
    },
};

use crate::{
    attempts::{Attempts, Sequence},
    rules::Restraint,
};

/// Something that turns changes into snapshots.
pub(crate) trait Policy {
    /// Takes a change; the snapshot is up to date afterwards.
    fn take(&mut self, change: Change, now: Instant);
    /// Ten times a second.
    fn tick(&mut self, now: Instant);
    /// What clients are routed by.
    fn snapshot(&self) -> &Arc<Snapshot>;
    /// True if sessions have taken this endpoint out.
    fn is_ejected(&self, _endpoint: &EndpointKey, _now: Instant) -> bool {
        false
    }
    /// True if this endpoint may be used by all that is known of it, and not only because something must be tried.
    fn stands(&self, endpoint: &EndpointKey, now: Instant) -> bool;
    /// What it wanted people to be told since the last time.
    fn notices(&mut self) -> Vec<Notice>;
    /// How a session that begins now dials.
    fn attempts(&self, pool: &Pool, now: Instant) -> Box<dyn Attempts>;
    /// Probes in a row that change a verdict: good ones, bad ones.
    fn thresholds(&self, health: &config::Health) -> (u32, u32) {
        (health.rise, health.fall)
    }
}

/// The policies of the scoreboard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The production brain.
    Twinspan,
    /// Rise and fall, removed at once, one attempt after the other.
    ChecksOnly,
    /// The last probe decides, one attempt.
    Naive,
}

impl Kind {
    /// Every one.
    pub(crate) const ALL: [Self; 3] = [Self::Twinspan, Self::ChecksOnly, Self::Naive];

    /// The word in the scoreboard.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Twinspan => "twinspan",
            Self::ChecksOnly => "checks only",
            Self::Naive => "naive",
        }
    }

    /// What it promises.
    pub(crate) const fn restraint(self) -> Restraint {
        match self {
            Self::Twinspan => Restraint::FULL,
            // Checks alone remove whatever they like.
            Self::ChecksOnly | Self::Naive => Restraint::NONE,
        }
    }

    /// The policy, with its first snapshot.
    pub(crate) fn start(
        self,
        config: &Arc<Config>,
        resolved: Vec<(Name, Vec<SocketAddr>)>,
        now: Instant,
    ) -> Box<dyn Policy> {
        match self {
            Self::Twinspan => Box::new(Twinspan::new(config, resolved, now)),
            Self::ChecksOnly => Box::new(Checks::new(config, resolved, false)),
            Self::Naive => Box::new(Checks::new(config, resolved, true)),
        }
    }
}

/// The brain as the reconciler drives it.
struct Twinspan(Brain);

impl Twinspan {
    fn new(config: &Arc<Config>, resolved: Vec<(Name, Vec<SocketAddr>)>, now: Instant) -> Self {
        let mut brain = Brain::new(Arc::clone(config), Vec::new(), 1);
        let open = |config: &config::Listener| {
            let cell = ListenerCell::new(config.name.clone(), config.bind.address);
            OpenListener { config: config.clone(), cell: Arc::new(cell) }
        };
        brain.configure(Arc::clone(config), config.listeners.iter().map(open).collect(), resolved, now);
        brain.compile(now);
        Self(brain)
    }
}

impl Policy for Twinspan {
    fn take(&mut self, change: Change, now: Instant) {
        self.0.take(change, now);
        self.0.compile(now);
    }

    fn tick(&mut self, now: Instant) {
        self.0.look(now);
        self.0.compile(now);
    }

    fn snapshot(&self) -> &Arc<Snapshot> {
        self.0.snapshot()
    }

    fn stands(&self, endpoint: &EndpointKey, now: Instant) -> bool {
        let standing = self.0.explain(endpoint, now).map(|known| known.standing);
        matches!(standing, Some(Standing::In { .. } | Standing::New))
    }

    fn is_ejected(&self, endpoint: &EndpointKey, now: Instant) -> bool {
        self.0.explain(endpoint, now).is_some_and(|known| known.back_off_until.is_some())
    }

    fn notices(&mut self) -> Vec<Notice> {
        self.0.notices()
    }

    fn attempts(&self, pool: &Pool, now: Instant) -> Box<dyn Attempts> {
        Box::new(Race::new(pool.connect, now))
    }
}

/// What probes say is done at once and in full, as most proxies do it.
struct Checks {
    naive: bool,
    pool: config::Pool,
    members: Vec<(Arc<Endpoint>, Verdict)>,
    cells: BTreeMap<usize, Arc<GroupCell>>,
    cell: Arc<PoolCell>,
    snapshot: Arc<Snapshot>,
    notices: Vec<Notice>,
}

impl Checks {
    fn new(config: &Config, resolved: Vec<(Name, Vec<SocketAddr>)>, naive: bool) -> Self {
        let pool = config.pools[0].clone();
        let mut named = resolved.into_iter().flat_map(|(_, addresses)| addresses);
        let members = pool.endpoints.iter().map(|endpoint| {
            let address = match &endpoint.address {
                config::Address::Socket(address) => *address,
                config::Address::Name { .. } => named.next().unwrap(),
            };
            let (pool, cloud) = (pool.name.clone(), endpoint.cloud.clone());
            let endpoint = Endpoint {
                identity: Arc::new(EndpointIdentity { pool, cloud, address }),
                cell: Arc::new(EndpointCell::default()),
                weight: endpoint.weight,
                socket: Arc::default(),
            };
            (Arc::new(endpoint), Verdict::Unknown)
        });
        let members = members.collect();
        let (cells, cell, snapshot) = (BTreeMap::new(), Arc::default(), Arc::default());
        let mut checks = Self { naive, pool, members, cells, cell, snapshot, notices: Vec::new() };
        checks.compile();
        checks
    }

    fn compile(&mut self) {
        let all_down = self.members.iter().all(|(_, verdict)| *verdict == Verdict::Down);
        let refuses = self.pool.when_all_down == config::WhenAllDown::Refuse;
        let usable = |verdict: Verdict| verdict != Verdict::Down || (all_down && !refuses);
        let orders: Vec<Vec<(CloudName, u32)>> = match &self.pool.policy {
            config::Policy::Failover { order } => {
                order.iter().map(|cloud| vec![(cloud.clone(), 1)]).collect()
            }
            config::Policy::Weighted { weights } => vec![weights.clone()],
        };
        let mut tiers = Vec::new();
        for (place, clouds) in orders.into_iter().enumerate() {
            let mut groups = Vec::new();
            let mut weights = Vec::new();
            for (number, (cloud, weight)) in clouds.into_iter().enumerate() {
                let listed = self
                    .members
                    .iter()
                    .filter(|(endpoint, verdict)| endpoint.identity.cloud == cloud && usable(*verdict));
                let endpoints: Vec<_> = listed.map(|(endpoint, _)| Arc::clone(endpoint)).collect();
                if !endpoints.is_empty() {
                    let shares = Shares::new(endpoints.iter().map(|endpoint| endpoint.weight));
                    let cell = Arc::clone(self.cells.entry(100 + 10 * place + number).or_default());
                    groups.push(Group { cloud, endpoints, shares, maglev: None, cell });
                    weights.push(weight);
                }
            }
            if !groups.is_empty() {
                let cell = Arc::clone(self.cells.entry(place).or_default());
                tiers.push(Tier { groups, shares: Shares::new(weights), cell });
            }
        }
        self.publish(tiers, all_down, refuses);
    }

    fn publish(&mut self, tiers: Vec<Tier>, all_down: bool, refuses: bool) {
        let (timeout, attempts) = (self.pool.connect_timeout, self.pool.attempts);
        let how = if refuses { AllDown::Refuse } else { AllDown::TryAnyway };
        let balance = match self.pool.balance {
            config::Balance::LeastSessions => twinspan::balance::Balance::LeastSessions,
            config::Balance::LeastLatency => twinspan::balance::Balance::LeastLatency,
            config::Balance::RoundRobin => twinspan::balance::Balance::RoundRobin,
            config::Balance::Random | config::Balance::SourceHash => twinspan::balance::Balance::Random,
        };
        let connect = Connect::plain(timeout, attempts, timeout * u32::from(attempts));
        let pool = Pool {
            all_down: all_down.then_some(how),
            cell: Arc::clone(&self.cell),
            ..Pool::new(self.pool.name.clone(), balance, tiers, connect)
        };
        let generation = self.snapshot.generation.next();
        self.snapshot = Arc::new(Snapshot {
            generation,
            listeners: Vec::new(),
            pools: vec![Arc::new(pool)],
            ..Snapshot::default()
        });
    }
}

impl Policy for Checks {
    fn take(&mut self, change: Change, _: Instant) {
        let Change::Verdict { endpoint, verdict, reason, .. } = change else { return };
        let is_it = |member: &&mut (Arc<Endpoint>, Verdict)| member.0.identity.key() == endpoint;
        let Some((_, known)) = self.members.iter_mut().find(is_it) else { return };
        let before = std::mem::replace(known, verdict);
        if before != verdict {
            self.notices.push(Notice::Judged { endpoint, before, verdict, reason });
            self.compile();
        }
    }

    fn tick(&mut self, _: Instant) {}

    fn stands(&self, endpoint: &EndpointKey, _: Instant) -> bool {
        let verdict = |(member, verdict): &(Arc<Endpoint>, Verdict)| {
            member.identity.key() == *endpoint && *verdict != Verdict::Down
        };
        self.members.iter().any(verdict)
    }

    fn snapshot(&self) -> &Arc<Snapshot> {
        &self.snapshot
    }

    fn notices(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.notices)
    }

    fn attempts(&self, pool: &Pool, now: Instant) -> Box<dyn Attempts> {
        let most = if self.naive { 1 } else { pool.connect.attempts };
        Box::new(Sequence::new(pool.connect, most, now))
    }

    fn thresholds(&self, health: &config::Health) -> (u32, u32) {
        if self.naive { (1, 1) } else { (health.rise, health.fall) }
    }
}

//! What decides: changes in, snapshots and notices out. No channels, no log and no clock (time is passed in), so that the
//! reconciler and a simulation with a time of its own drive the same decisions.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use super::{
    Change,
    compile::{self, Dirty},
    health::Verdict,
    inputs::{Inputs, Name, OpenListener, TlsInForce},
    usual::Usual,
    verdicts::{CloudStanding, Decision, Explanation, Finding, FindingKind, Opinion, Reading, Standing},
};
use crate::{
    config::Config,
    ids::{CloudName, EndpointKey, PoolName},
    state::{EndpointCell, HistogramReading, Listener, Snapshot},
};

/// An endpoint on trial that no session has tried in this time may be tried by another one.
const PERMIT: Duration = Duration::from_secs(3);

/// Everything known, the snapshot that came of it, and what has changed since.
#[derive(Debug)]
pub struct Brain {
    inputs: Inputs,
    snapshot: Arc<Snapshot>,
    dirty: Option<Dirty>,
    /// When a session was last let try an endpoint that is ejected.
    permitted: HashMap<EndpointKey, Instant>,
    notices: Vec<Notice>,
    usual: Usual,
}

/// Something that people should be told of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The opinion about an endpoint changed.
    Judged {
        /// Which one.
        endpoint: EndpointKey,
        /// The opinion before.
        before: Verdict,
        /// The opinion now.
        verdict: Verdict,
        /// The evidence.
        reason: Arc<str>,
    },
    /// A name has other addresses than before.
    Resolved {
        /// The name.
        name: Name,
        /// The addresses before.
        before: Vec<SocketAddr>,
        /// The addresses now.
        after: Vec<SocketAddr>,
    },
    /// The judge found something otherwise.
    Found(Finding),
    /// Something grew by itself: the next step of a slow start.
    Grew {
        /// In which pool.
        pool: PoolName,
    },
    /// An address was left out: the cloud's source addresses are of the other family.
    OutOfReach {
        /// Whose endpoint it would be.
        pool: PoolName,
        /// Where it would stand.
        cloud: CloudName,
        /// The address.
        address: SocketAddr,
    },
    /// An address of a name was left out: it is one of this proxy itself.
    Loops {
        /// Whose endpoint it would be.
        pool: PoolName,
        /// The name.
        host: Arc<str>,
        /// The address.
        address: SocketAddr,
    },
}

impl Brain {
    /// Knows a config and where the admin API and telemetry listen. Decides nothing before it is configured. The seed is
    /// for jitter.
    #[must_use]
    pub fn new(config: Arc<Config>, servers: Vec<SocketAddr>, seed: u64) -> Self {
        Self {
            inputs: Inputs::new(config, servers, seed),
            snapshot: Arc::default(),
            dirty: None,
            permitted: HashMap::new(),
            notices: Vec::new(),
            usual: Usual::default(),
        }
    }

    /// Takes a config whose listeners have their sockets, and the addresses of names that are new in it.
    pub fn configure(
        &mut self,
        config: Arc<Config>,
        listeners: Vec<OpenListener>,
        resolved: Vec<(Name, Vec<SocketAddr>)>,
        now: Instant,
    ) {
        let retired = self.retired(&listeners);
        self.inputs.know(resolved);
        let notices = self.inputs.configure(config, listeners, retired, now);
        self.notices.extend(notices);
        let members = &self.inputs.members;
        self.usual.keep(|(pool, cloud)| {
            members.get(pool).is_some_and(|all| all.iter().any(|one| one.identity.cloud == *cloud))
        });
        self.dirty = Some(Dirty::All);
    }

    /// Takes one change in; the pool that must be compiled anew.
    pub fn take(&mut self, change: Change, now: Instant) -> Option<PoolName> {
        let pool = match change {
            Change::Verdict { endpoint, verdict, reason, answered, began } => {
                let opinion = Opinion { verdict, reason: Arc::clone(&reason), answered, began };
                let before = self.inputs.judge(&endpoint, opinion, now)?;
                let pool = endpoint.pool.clone();
                self.notices.push(Notice::Judged { endpoint, before, verdict, reason });
                pool
            }
            Change::Resolved { pool, host, port, addresses } => {
                let name = (pool.clone(), host, port);
                let (before, after) = (self.inputs.addresses(&name).to_vec(), addresses.clone());
                let notices = self.inputs.resolve(name.clone(), addresses, now)?;
                self.notices.push(Notice::Resolved { name, before, after });
                self.notices.extend(notices);
                pool
            }
        };
        self.mark([pool.clone()]);
        Some(pool)
    }

    /// Looks at what the data plane has counted: to be called ten times a second.
    pub fn look(&mut self, now: Instant) {
        let Inputs { members, verdicts, pool_cells, .. } = &mut self.inputs;
        for (pool, members) in members {
            if let Some(cell) = pool_cells.get(pool) {
                verdicts.arrivals(pool, cell.sessions(), now);
            }
            let mut groups: HashMap<&CloudName, (HistogramReading, Vec<&EndpointCell>)> = HashMap::new();
            for member in members {
                let (reading, cells) = groups.entry(&member.identity.cloud).or_default();
                let seen = seen(&member.cell);
                reading.add(&seen.connect);
                verdicts.observe(&member.identity.key(), seen, now);
                cells.push(&member.cell);
            }
            for (cloud, (reading, cells)) in groups {
                let usual = self.usual.observe((pool.clone(), cloud.clone()), reading, now);
                cells.into_iter().for_each(|cell| cell.set_usual(usual));
            }
        }
    }

    /// When something is due without a change from outside: then it is time to compile.
    #[must_use]
    pub const fn due(&self) -> Option<Instant> {
        self.inputs.verdicts.due()
    }

    /// Takes what listeners and pools speak from now on.
    pub(super) fn secure(&mut self, tls: TlsInForce) {
        self.inputs.tls = tls;
        self.dirty = Some(Dirty::All);
    }

    /// Draws the conclusions: the next generation, if anything has changed or is due.
    pub fn compile(&mut self, now: Instant) -> Option<Arc<Snapshot>> {
        let decision = self.inputs.verdicts.decide(now);
        self.hear(decision);
        self.permit(now);
        let dirty = self.dirty.take()?;
        let generation = self.snapshot.generation.next();
        let after = compile::compile(&mut self.inputs, &self.snapshot, &dirty, generation, now);
        self.snapshot = Arc::new(after);
        Some(Arc::clone(&self.snapshot))
    }

    /// Takes in what the judge says.
    fn hear(&mut self, decision: Decision) {
        let told: HashSet<PoolName> = decision.findings.iter().filter_map(|one| one.pool.clone()).collect();
        let is_marked = |pool: &PoolName| match &self.dirty {
            Some(Dirty::All) => true,
            Some(Dirty::Pools(pools)) => pools.contains(pool),
            None => false,
        };
        let clouds = decision.findings.iter().any(|finding| finding.cloud.is_some());
        let grew = decision.dirty.iter().filter(|pool| !clouds && !told.contains(*pool) && !is_marked(pool));
        let grew: Vec<Notice> = grew.map(|pool| Notice::Grew { pool: pool.clone() }).collect();
        // What probes say of an endpoint whose cloud is down as a whole is no news of its own.
        let verdicts = &self.inputs.verdicts;
        let cells = &self.inputs;
        self.notices.retain(|notice| match notice {
            Notice::Judged { endpoint, verdict: Verdict::Down, .. } => {
                let cloud = cells.identity(endpoint).map(|identity| &identity.cloud);
                !cloud.is_some_and(|cloud| matches!(verdicts.cloud(cloud), CloudStanding::Down { .. }))
            }
            _ => true,
        });
        // Opinions of probes are told as such; of a pool that has lost everything its traffic tells.
        let news = decision.findings.into_iter().filter(|finding| finding.kind != FindingKind::Verdict);
        self.notices.extend(news.map(Notice::Found));
        self.notices.extend(grew);
        self.mark(decision.dirty);
    }

    /// Lets a session try each endpoint that is on trial: one, and another when nothing has come of it for long.
    fn permit(&mut self, now: Instant) {
        let mut on_trial = HashMap::new();
        for member in self.inputs.members.values().flatten() {
            let key = member.identity.key();
            if self.inputs.verdicts.standing(&key) != Standing::Trial {
                continue;
            }
            let last = self.permitted.get(&key).copied();
            let due = last.is_none_or(|last| now.saturating_duration_since(last) >= PERMIT);
            if due {
                member.cell.permit(1);
            }
            on_trial.insert(key, if due { now } else { last.unwrap_or(now) });
        }
        for (key, _) in self.permitted.iter().filter(|(key, _)| !on_trial.contains_key(*key)) {
            self.inputs.withdraw_permit(key);
        }
        self.permitted = on_trial;
    }

    /// Everything that explains the standing of an endpoint.
    #[must_use]
    pub fn explain(&self, endpoint: &EndpointKey, now: Instant) -> Option<Explanation> {
        self.inputs.verdicts.explain(endpoint, now)
    }

    /// The last generation.
    #[must_use]
    pub const fn snapshot(&self) -> &Arc<Snapshot> {
        &self.snapshot
    }

    /// What there is to tell since the last time, oldest first. It belongs to the generation that follows.
    pub fn notices(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.notices)
    }

    /// Everything known.
    pub(super) const fn inputs(&self) -> &Inputs {
        &self.inputs
    }

    fn mark(&mut self, pools: impl IntoIterator<Item = PoolName>) {
        let mut pools = pools.into_iter().peekable();
        if pools.peek().is_none() {
            return;
        }
        match self.dirty.get_or_insert_with(|| Dirty::Pools(HashSet::new())) {
            Dirty::All => {}
            Dirty::Pools(dirty) => dirty.extend(pools),
        }
    }

    /// Listeners that the new config no longer has: clients accepted on them are still routed, at every attempt.
    fn retired(&self, listeners: &[OpenListener]) -> Vec<Arc<Listener>> {
        let stays = |old: &&Arc<Listener>| listeners.iter().any(|new| Arc::ptr_eq(&new.cell, &old.cell));
        let is_used = |old: &&Arc<Listener>| {
            old.cell.active() > 0
                || self.inputs.listeners.iter().any(|open| Arc::ptr_eq(&open.cell, &old.cell))
        };
        self.snapshot.listeners.iter().filter(is_used).filter(|old| !stays(old)).cloned().collect()
    }
}

/// What the cell of an endpoint has counted.
fn seen(cell: &EndpointCell) -> Reading {
    let (overtaken, empty, mute) = cell.gray();
    let failed = cell.connect_failures().filter(|(cause, _)| !cause.is_ours());
    Reading {
        connected: cell.good(),
        heard: cell.heard(),
        failed: failed.map(|(_, count)| count).sum(),
        overtaken,
        empty,
        mute,
        to_client: cell.bytes().1,
        active: cell.active(),
        connect: cell.connect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::parse, ids::Generation, state::ListenerCell};

    const CONFIG: &str = "\
        version = 1\n[cloud.aws]\n[cloud.gcp]\n\
        [[pool]]\nname = \"p\"\npolicy = \"failover\"\norder = [\"aws\", \"gcp\"]\nslow_start = \"10s\"\n[pool.health.tcp]\n\
        [[pool.endpoint]]\naddress = \"10.0.0.1:1\"\ncloud = \"aws\"\n\
        [[pool.endpoint]]\naddress = \"10.0.0.2:1\"\ncloud = \"aws\"\n\
        [[pool.endpoint]]\naddress = \"10.1.0.1:1\"\ncloud = \"gcp\"\n\
        [[listener]]\nname = \"l\"\nbind = \"127.0.0.1:5000\"\npool = \"p\"\n";

    fn brain(now: Instant) -> Brain {
        let config = Arc::new(parse(CONFIG, "test").unwrap().config);
        let open = |config: &crate::config::Listener| OpenListener {
            config: config.clone(),
            cell: Arc::new(ListenerCell::new(config.name.clone(), config.bind.address)),
        };
        let mut brain = Brain::new(Arc::clone(&config), Vec::new(), 1);
        brain.configure(Arc::clone(&config), config.listeners.iter().map(open).collect(), Vec::new(), now);
        brain
    }

    fn verdict(verdict: Verdict) -> Change {
        of("10.0.0.1:1", verdict)
    }

    fn of(address: &str, verdict: Verdict) -> Change {
        let endpoint = EndpointKey { pool: PoolName::from("p"), address: address.parse().unwrap() };
        let (answered, began) = (false, Instant::now());
        Change::Verdict { endpoint, verdict, reason: Arc::from("a test"), answered, began }
    }

    #[test]
    fn changes_become_one_generation_and_nothing_becomes_none() {
        let now = Instant::now();
        let mut brain = brain(now);
        assert_eq!(brain.compile(now).unwrap().generation, Generation(1));
        assert!(brain.compile(now).is_none());
        assert!(brain.take(verdict(Verdict::Up), now).is_some());
        assert!(brain.take(verdict(Verdict::Down), now).is_some());
        assert!(brain.take(verdict(Verdict::Down), now).is_none(), "no news");
        assert_eq!(brain.compile(now).unwrap().generation, Generation(2));
        assert!(brain.compile(now).is_none());
        assert_eq!((brain.notices().len(), brain.notices().len()), (2, 0), "each is told once");
    }

    #[test]
    fn a_slow_start_is_due_by_itself() {
        let mut now = Instant::now();
        let mut brain = brain(now);
        for change in [Verdict::Up, Verdict::Down, Verdict::Up] {
            brain.take(verdict(change), now);
            brain.take(of("10.0.0.2:1", Verdict::Up), now);
            brain.compile(now);
        }
        let mut weights = Vec::new();
        while let Some(due) = brain.due().filter(|_| weights.last() != Some(&100)) {
            assert!(due > now && brain.compile(now).is_none(), "nothing before it is due");
            now = due;
            let snapshot = brain.compile(now).unwrap();
            weights.push(snapshot.pools[0].tiers[0].groups[0].endpoints[0].weight);
        }
        assert_eq!(weights, [20, 30, 40, 50, 60, 70, 80, 90, 100]);
    }
}

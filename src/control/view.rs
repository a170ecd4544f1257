//! What the control plane shows of itself: the reconciler writes it after each publish, the admin API and the metrics
//! page read it. Live numbers stand in the cells that it points to.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;

use super::{
    Journal,
    admin::Totals,
    certificates::Told,
    discovery::Failing,
    health::Verdict,
    judged::{CloudView, Judged},
    verdicts::Taken,
};
use crate::{
    config::{self, Config},
    ids::{CloudName, EndpointIdentity, EndpointKey, Generation, ListenerName, PoolName},
    state::{AllDown, EndpointCell, Hedge, Histogram, ListenerCell, PoolCell, Shared},
    telemetry::LogDropped,
};

/// Everything the admin API may look at.
#[derive(Debug)]
pub struct View {
    /// The bridge, for the phase, live sessions and dropped lines.
    pub shared: Arc<Shared>,
    /// What is in force.
    pub overview: ArcSwap<Overview>,
    /// What happened.
    pub journal: Journal,
    /// Names that do not resolve.
    pub names: Arc<Failing>,
    /// When the process started.
    pub started: SystemTime,
    /// How long probes took.
    pub probes: Histogram,
    /// How long compiling a snapshot took.
    pub compiles: Histogram,
    /// Event lines that were not written; set once logging is set up.
    pub log_dropped: OnceLock<LogDropped>,
    /// Settings that the file has otherwise, and that only a restart can change.
    pub needs_restart: ArcSwap<Vec<&'static str>>,
    /// Sums over the endpoints of a pool in a cloud, for the admin API and the metrics page.
    pub(super) totals: Totals,
    reloads: [AtomicU64; 2],
    last_reload: ArcSwap<Option<ReloadOutcome>>,
    last_applied: ArcSwap<SystemTime>,
    failovers: Mutex<BTreeMap<Failover, u64>>,
    ejections: Mutex<Ejections>,
}

/// One consistent picture of config, endpoints and verdicts.
#[derive(Debug)]
pub struct Overview {
    /// The generation it describes.
    pub generation: Generation,
    /// The config in force.
    pub config: Arc<Config>,
    /// Listeners.
    pub listeners: Vec<ListenerView>,
    /// Clouds of the config, in its order.
    pub clouds: Vec<CloudView>,
    /// Pools.
    pub pools: Vec<PoolView>,
    /// The certificates that are shown, and whether they are what there is.
    pub certificates: Arc<[Told]>,
}

/// A listener.
#[derive(Clone, Debug)]
pub struct ListenerView {
    /// Name, address and counters.
    pub cell: Arc<ListenerCell>,
    /// What serves it, where no route does.
    pub target: config::Target,
    /// Every pool that its sessions may come to.
    pub pools: Vec<PoolName>,
}

/// A pool.
#[derive(Clone, Debug)]
pub struct PoolView {
    /// Its name.
    pub name: PoolName,
    /// How clouds are chosen.
    pub policy: config::Policy,
    /// How an endpoint is chosen within a cloud.
    pub balance: config::Balance,
    /// Set when nothing is left that may be used.
    pub all_down: Option<AllDown>,
    /// The clouds that new sessions go to now, with their share (0 to 1).
    pub shares: Vec<(CloudName, f64)>,
    /// The share of its usual new sessions that each cloud gets while it comes back, in percent.
    pub paced: Vec<(CloudName, u32)>,
    /// Why its probes are not believed; `None` while they are.
    pub frozen: Option<Arc<str>>,
    /// How much of it is out.
    pub taken: Taken,
    /// What bounds that.
    pub limits: (config::Ejection, config::Restraint),
    /// Every endpoint, up or not.
    pub endpoints: Vec<EndpointView>,
    /// Names that have not been resolved yet, as `host:port`.
    pub unresolved: Vec<String>,
    /// What its sessions' attempts have come to.
    pub cell: Arc<PoolCell>,
    /// Whether late attempts are raced.
    pub hedge: Option<Hedge>,
}

/// An endpoint.
#[derive(Clone, Debug)]
pub struct EndpointView {
    /// Which one.
    pub identity: Arc<EndpointIdentity>,
    /// The name it was resolved from.
    pub host: Option<Arc<str>>,
    /// Its region.
    pub region: Option<String>,
    /// Its zone.
    pub zone: Option<String>,
    /// Its weight as configured.
    pub weight: u32,
    /// Its weight now, in percent of the configured one: below 100 during slow start.
    pub ramp_percent: u8,
    /// Its live numbers.
    pub cell: Arc<EndpointCell>,
    /// The opinion of probes about it.
    pub verdict: Verdict,
    /// Why.
    pub reason: Arc<str>,
    /// Since when.
    pub since: SystemTime,
    /// How often the verdict has changed.
    pub transitions: u64,
    /// True when new sessions of the pool may be given to it at the first attempt.
    pub in_use: bool,
    /// What the judge makes of it.
    pub judged: Judged,
}

/// Counts ejections, so that the count stays when an endpoint goes.
#[derive(Debug, Default)]
struct Ejections {
    seen: HashMap<EndpointKey, u64>,
    sums: BTreeMap<(PoolName, CloudName), u64>,
}

impl Ejections {
    fn follow(&mut self, overview: &Overview) {
        let before = std::mem::take(&mut self.seen);
        for endpoint in overview.pools.iter().flat_map(|pool| &pool.endpoints) {
            let (key, count) = (endpoint.identity.key(), endpoint.judged.ejections);
            // One that is seen for the first time is new, or has come back and was counted before.
            let more = before.get(&key).map_or(0, |seen| count.saturating_sub(*seen));
            if more > 0 {
                let group = (endpoint.identity.pool.clone(), endpoint.identity.cloud.clone());
                *self.sums.entry(group).or_default() += more;
            }
            self.seen.insert(key, count);
        }
    }
}

/// How a reload ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReloadOutcome {
    /// When.
    pub time: SystemTime,
    /// `None`: the new config is in force. Otherwise why the old one stayed.
    pub error: Option<String>,
}

/// A pool's traffic moved to other clouds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Failover {
    /// Which pool.
    pub pool: PoolName,
    /// The clouds it left.
    pub from: String,
    /// The clouds it went to.
    pub to: String,
}

impl Failover {
    /// What stands for clouds where there is none on one side.
    pub const NONE: &str = "none";
}

impl View {
    /// A view of nothing yet.
    #[must_use]
    pub fn new(shared: Arc<Shared>, config: Arc<Config>) -> Self {
        let empty = Overview {
            generation: Generation(0),
            config,
            listeners: Vec::new(),
            clouds: Vec::new(),
            pools: Vec::new(),
            certificates: Arc::default(),
        };
        let started = SystemTime::now();
        Self {
            shared,
            overview: ArcSwap::from_pointee(empty),
            journal: Journal::default(),
            names: Arc::default(),
            started,
            probes: Histogram::default(),
            compiles: Histogram::default(),
            log_dropped: OnceLock::new(),
            needs_restart: ArcSwap::default(),
            totals: Totals::default(),
            reloads: Default::default(),
            last_reload: ArcSwap::from_pointee(None),
            last_applied: ArcSwap::from_pointee(started),
            failovers: Mutex::default(),
            ejections: Mutex::default(),
        }
    }

    /// Records how a reload ended.
    pub fn reloaded(&self, error: Option<String>) {
        if let Some(count) = self.reloads.get(usize::from(error.is_some())) {
            count.fetch_add(1, Relaxed);
        }
        let time = SystemTime::now();
        if error.is_none() {
            self.last_applied.store(Arc::new(time));
        }
        self.last_reload.store(Arc::new(Some(ReloadOutcome { time, error })));
    }

    /// When the config in force was applied: by the last good reload, or at the start.
    #[must_use]
    pub fn last_applied(&self) -> SystemTime {
        **self.last_applied.load()
    }

    /// Reloads that were applied, and reloads that were refused.
    #[must_use]
    pub fn reloads(&self) -> (u64, u64) {
        let [applied, refused] = &self.reloads;
        (applied.load(Relaxed), refused.load(Relaxed))
    }

    /// How the last reload ended.
    #[must_use]
    pub fn last_reload(&self) -> Arc<Option<ReloadOutcome>> {
        self.last_reload.load_full()
    }

    /// Counts a failover.
    pub fn failed_over(&self, failover: Failover) {
        *self.failovers.lock().unwrap_or_else(PoisonError::into_inner).entry(failover).or_default() += 1;
    }

    /// Failovers so far.
    #[must_use]
    pub fn failovers(&self) -> Vec<(Failover, u64)> {
        let failovers = self.failovers.lock().unwrap_or_else(PoisonError::into_inner);
        failovers.iter().map(|(failover, count)| (failover.clone(), *count)).collect()
    }

    /// Shows another picture.
    pub(super) fn show(&self, overview: Overview) {
        let overview = Arc::new(overview);
        self.ejections.lock().unwrap_or_else(PoisonError::into_inner).follow(&overview);
        self.overview.store(Arc::clone(&overview));
        self.totals.follow(&overview);
    }

    /// Ejections so far of endpoints of a pool in a cloud, those that are gone included.
    #[must_use]
    pub fn ejections(&self, pool: &PoolName, cloud: &CloudName) -> u64 {
        let ejections = self.ejections.lock().unwrap_or_else(PoisonError::into_inner);
        ejections.sums.get(&(pool.clone(), cloud.clone())).copied().unwrap_or_default()
    }

    /// Time since the start.
    #[must_use]
    pub fn uptime(&self) -> Duration {
        self.started.elapsed().unwrap_or_default()
    }

    /// The listener of this name, if it is in force.
    #[must_use]
    pub fn listener(&self, name: &ListenerName) -> Option<Arc<ListenerCell>> {
        let overview = self.overview.load();
        overview
            .listeners
            .iter()
            .find(|listener| listener.cell.name == *name)
            .map(|found| Arc::clone(&found.cell))
    }
}

//! The only writer of snapshots: takes changes from everyone, compiles, publishes, and has told what changed. Changes that
//! wait are taken together, so a burst becomes one generation.

use std::{collections::HashSet, net::SocketAddr, sync::Arc};

use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep_until},
};

use super::{
    Change, View,
    compile::{self, Dirty},
    discovery::{DiscoveryHandle, Name},
    health::{HealthHandle, Target, Verdict},
    inputs::{self, Inputs, OpenListener},
    news::News,
    overview,
};
use crate::{
    config::Config,
    ids::{Generation, PoolName},
    state::{Listener, Phase, Report, ReportReceiver, Shared, Snapshot},
};

/// Changes taken into one generation at the most, so that a flood cannot hold the next generation back.
const BATCH: usize = 1024;

/// What the process itself asks for.
#[derive(Debug)]
pub(super) enum Request {
    /// Put a config in force.
    Config(NewConfig),
    /// Take in every change that waits already, then answer.
    Settle(oneshot::Sender<()>),
}

/// A config whose listeners have their sockets.
#[derive(Debug)]
pub(super) struct NewConfig {
    pub(super) config: Arc<Config>,
    pub(super) listeners: Vec<OpenListener>,
    /// Addresses of names that the config before did not have.
    pub(super) resolved: Vec<(inputs::Name, Vec<SocketAddr>)>,
    /// Answered once the config is in force.
    pub(super) done: oneshot::Sender<Generation>,
}

/// Where changes come from, and whom a new config concerns.
#[derive(Debug)]
pub(super) struct Doors {
    pub(super) changes: mpsc::Receiver<Change>,
    pub(super) requests: mpsc::Receiver<Request>,
    pub(super) reports: ReportReceiver,
    pub(super) health: Arc<HealthHandle>,
    pub(super) discovery: Arc<DiscoveryHandle>,
}

/// The reconciler.
#[derive(Debug)]
pub(super) struct Reconciler {
    shared: Arc<Shared>,
    view: Arc<View>,
    doors: Doors,
    inputs: Inputs,
    news: News,
    /// Pools in which an endpoint is in its slow start, and when its next step is due.
    ramp: Option<(HashSet<PoolName>, Instant)>,
}

impl Reconciler {
    /// `servers`: where the admin API and telemetry listen.
    pub(super) fn new(
        (shared, view): (Arc<Shared>, Arc<View>),
        doors: Doors,
        config: Arc<Config>,
        servers: Vec<SocketAddr>,
    ) -> Self {
        let inputs = Inputs::new(config, servers);
        Self { shared, view, doors, inputs, news: News::default(), ramp: None }
    }

    /// Runs until every sender of changes is gone.
    pub(super) async fn run(mut self) {
        loop {
            let step = self.ramp.as_ref().map(|(_, due)| *due);
            tokio::select! {
                biased;
                Some(request) = self.doors.requests.recv() => match request {
                    Request::Config(new) => self.configure(new),
                    Request::Settle(done) => self.settle(done),
                },
                Some(first) = self.doors.changes.recv() => self.change(first),
                Some(Report::ConnectFailed { endpoint, .. }) = self.doors.reports.recv() => {
                    self.doors.health.hint(&endpoint.key());
                }
                () = sleep_until(step.unwrap_or_else(Instant::now)), if step.is_some() => {
                    if let Some((pools, _)) = self.ramp.take() {
                        self.publish(&Dirty::Pools(pools));
                    }
                }
                else => return,
            }
        }
    }

    fn configure(&mut self, new: NewConfig) {
        let retired = self.retired(&new.listeners);
        self.inputs.know(new.resolved);
        self.inputs.configure(new.config, new.listeners, retired);
        self.publish(&Dirty::All);
        self.doors.discovery.set_names(
            self.inputs.names().into_iter().map(|(pool, host, port)| Name { pool, host, port }).collect(),
        );
        self.set_targets();
        // Whoever asked may have given up waiting.
        new.done.send(self.shared.snapshot().generation).unwrap_or_default();
    }

    fn settle(&mut self, done: oneshot::Sender<()>) {
        while let Ok(change) = self.doors.changes.try_recv() {
            self.change(change);
        }
        done.send(()).unwrap_or_default();
    }

    /// Listeners that the new config no longer has: clients accepted on them are still routed, at every attempt.
    fn retired(&self, listeners: &[OpenListener]) -> Vec<Arc<Listener>> {
        let stays = |old: &&Arc<Listener>| listeners.iter().any(|new| Arc::ptr_eq(&new.cell, &old.cell));
        let is_used = |old: &&Arc<Listener>| {
            old.cell.active() > 0
                || self.inputs.listeners.iter().any(|open| Arc::ptr_eq(&open.cell, &old.cell))
        };
        self.shared.snapshot().listeners.iter().filter(is_used).filter(|old| !stays(old)).cloned().collect()
    }

    fn change(&mut self, first: Change) {
        let mut dirty = HashSet::new();
        let mut resolved = false;
        let mut next = Some(first);
        let mut taken = 0;
        while let Some(change) = next {
            resolved |= matches!(change, Change::Resolved { .. });
            dirty.extend(self.take(change));
            taken += 1;
            next = if taken < BATCH { self.doors.changes.try_recv().ok() } else { None };
        }
        if !dirty.is_empty() {
            self.publish(&Dirty::Pools(dirty));
        }
        if resolved {
            self.set_targets();
        }
    }

    /// Takes one change in; the pool that must be compiled anew.
    fn take(&mut self, change: Change) -> Option<PoolName> {
        match change {
            Change::Verdict { endpoint, verdict, reason } => {
                let before = self.inputs.judge(&endpoint, verdict, Arc::clone(&reason), Instant::now())?;
                let found = before == Verdict::Unknown && verdict == Verdict::Up;
                if !found && verdict != Verdict::Unknown {
                    let generation = self.shared.snapshot().generation.next();
                    self.view
                        .journal
                        .record(generation, format!("endpoint {endpoint} {}: {reason}", verdict.as_str()));
                }
                Some(endpoint.pool)
            }
            Change::Resolved { pool, host, port, addresses } => {
                let text = format!("pool {pool}: {host}:{port} has {} addresses", addresses.len());
                let news = self.inputs.resolve((pool.clone(), host, port), addresses);
                if news {
                    self.view.journal.record(self.shared.snapshot().generation.next(), text);
                }
                news.then_some(pool)
            }
        }
    }

    fn publish(&mut self, dirty: &Dirty) {
        let started = Instant::now();
        let before: Arc<Snapshot> = Arc::clone(&self.shared.snapshot());
        let generation = before.generation.next();
        let after = Arc::new(compile::compile(&mut self.inputs, &before, dirty, generation, started));
        self.ramp = compile::ramping(&self.inputs, started);
        self.shared.publish(Arc::clone(&after));
        self.view.compiles.observe(started.elapsed());
        let overview = Arc::new(overview::overview(&self.inputs, &after, started));
        self.view.overview.store(Arc::clone(&overview));
        self.view.totals.follow(&overview);
        let ready = self.shared.sessions.phase() >= Phase::Ready;
        self.news.tell((&before, &after), ready, &self.view, started);
    }

    fn set_targets(&self) {
        let config = Arc::clone(&self.inputs.config);
        let targets = config.pools.iter().filter_map(|pool| Some((pool, Arc::new(pool.health.clone()?))));
        let targets = targets.flat_map(|(pool, settings)| {
            let members = self.inputs.members.get(&pool.name).map(Vec::as_slice).unwrap_or_default();
            members.iter().map(move |member| Target {
                key: member.identity.key(),
                settings: Arc::clone(&settings),
                socket: self.inputs.socket(&member.identity.cloud),
            })
        });
        self.doors.health.set_targets(targets.collect());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        control::{
            admin::tests::{config, view},
            discovery::Discovery,
            health::Health,
        },
        ids::ListenerName,
        net::{Bind, Keepalive},
        state::{ListenerCell, Reports},
        telemetry::{Cause, End, Side, Stage},
    };

    const SECOND: std::time::Duration = std::time::Duration::from_secs(1);

    fn pool() -> crate::config::Pool {
        crate::config::Pool {
            name: PoolName::from("db"),
            policy: crate::config::Policy::Failover { order: Vec::new() },
            balance: crate::config::Balance::Random,
            when_all_down: crate::config::WhenAllDown::TryAnyway,
            connect_timeout: SECOND,
            attempts: 1,
            preconnect: 0,
            connecting: crate::config::Connecting::default(),
            slow_start: SECOND,
            health: None,
            endpoints: Vec::new(),
        }
    }

    fn listener(name: &str) -> OpenListener {
        let address = "127.0.0.1:1".parse().unwrap();
        let config = crate::config::Listener {
            name: ListenerName::from(name),
            bind: Bind { address, only_v6: false },
            pool: PoolName::from("db"),
            idle_timeout: SECOND,
            half_close_timeout: SECOND,
            max_lifetime: None,
            backlog: 1,
            keepalive: Keepalive { idle: SECOND, interval: SECOND, count: 1 },
            user_timeout: SECOND,
            fast_open: None,
            tuning: crate::config::Tuning::default(),
        };
        OpenListener { config, cell: Arc::new(ListenerCell::new(ListenerName::from(name), address)) }
    }

    #[tokio::test]
    async fn a_listener_that_left_is_routed_as_long_as_it_has_sessions() {
        let view = view();
        let (changes, inbox) = crate::control::inbox();
        let doors = Doors {
            changes: inbox,
            requests: mpsc::channel(1).1,
            reports: Reports::new().1,
            health: Arc::new(Health::start(changes.clone(), |_| {}, 1)),
            discovery: Arc::new(Discovery::start(changes)),
        };
        let mut of_one_pool = (*config()).clone();
        of_one_pool.pools.push(pool());
        let config = Arc::new(of_one_pool);
        let shared = Arc::clone(&view.shared);
        let mut reconciler =
            Reconciler::new((Arc::clone(&shared), Arc::clone(&view)), doors, Arc::clone(&config), Vec::new());
        let mut reload = |listeners: &[&OpenListener]| {
            let listeners = listeners.iter().map(|one| (*one).clone()).collect();
            let done = oneshot::channel().0;
            reconciler.configure(NewConfig {
                config: Arc::clone(&config),
                listeners,
                resolved: Vec::new(),
                done,
            });
        };
        let (old, new) = (listener("old"), listener("new"));
        let routed = || shared.snapshot().listener(&old.cell).is_some();
        reload(&[&old]);
        old.cell.begin();
        for _ in 0..3 {
            reload(&[&new]);
            assert!(routed());
        }
        old.cell.finish(End { side: Side::Client, stage: Stage::Relay, cause: Cause::Reset }, SECOND);
        reload(&[&new]);
        assert!(!routed());
    }
}

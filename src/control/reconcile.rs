//! The only writer of snapshots: takes changes from everyone, compiles, publishes, and tells what changed. Changes that
//! wait are taken together, so a burst becomes one generation.

use std::{collections::HashSet, sync::Arc};

use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep_until},
};

use super::{
    Change, View,
    compile::{self, Dirty},
    discovery::{DiscoveryHandle, Name},
    health::{HealthHandle, Target, Verdict},
    inputs::{Inputs, OpenListener},
    overview,
};
use crate::{
    config::Config,
    ids::{Generation, PoolName},
    state::{Listener, Report, ReportReceiver, Shared, Snapshot},
};

/// Changes taken into one generation at the most, so that a flood cannot hold the next generation back.
const BATCH: usize = 1024;

/// A config whose listeners have their sockets.
#[derive(Debug)]
pub(super) struct NewConfig {
    pub(super) config: Arc<Config>,
    pub(super) listeners: Vec<OpenListener>,
    /// Answered once the config is in force.
    pub(super) done: oneshot::Sender<Generation>,
}

/// Where changes come from, and whom a new config concerns.
#[derive(Debug)]
pub(super) struct Doors {
    pub(super) changes: mpsc::Receiver<Change>,
    pub(super) configs: mpsc::Receiver<NewConfig>,
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
    /// Pools in which an endpoint is in its slow start, and when its next step is due.
    ramp: Option<(HashSet<PoolName>, Instant)>,
}

impl Reconciler {
    pub(super) fn new(shared: Arc<Shared>, view: Arc<View>, doors: Doors, config: Arc<Config>) -> Self {
        Self { shared, view, doors, inputs: Inputs::new(config), ramp: None }
    }

    /// Runs until every sender of changes is gone.
    pub(super) async fn run(mut self) {
        loop {
            let step = self.ramp.as_ref().map(|(_, due)| *due);
            tokio::select! {
                biased;
                Some(new) = self.doors.configs.recv() => self.configure(new),
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
        self.inputs.configure(new.config, new.listeners, retired);
        self.publish(&Dirty::All);
        self.doors.discovery.set_names(
            self.inputs.names().into_iter().map(|(pool, host, port)| Name { pool, host, port }).collect(),
        );
        self.set_targets();
        // Whoever asked may have given up waiting.
        new.done.send(self.shared.snapshot().generation).unwrap_or_default();
    }

    /// Listeners that the new config no longer has: clients accepted on them just now are still routed.
    fn retired(&self, listeners: &[OpenListener]) -> Vec<Arc<Listener>> {
        let stays = |old: &&Arc<Listener>| listeners.iter().any(|new| Arc::ptr_eq(&new.cell, &old.cell));
        let is_open = |old: &&Arc<Listener>| {
            self.inputs.listeners.iter().any(|open| Arc::ptr_eq(&open.cell, &old.cell))
        };
        self.shared.snapshot().listeners.iter().filter(is_open).filter(|old| !stays(old)).cloned().collect()
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
                let news = self.inputs.judge(&endpoint, verdict, Arc::clone(&reason), Instant::now());
                if news && verdict != Verdict::Unknown {
                    let generation = self.shared.snapshot().generation.next();
                    self.view
                        .journal
                        .record(generation, format!("endpoint {endpoint} {}: {reason}", verdict.as_str()));
                }
                news.then_some(endpoint.pool)
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
        self.view.overview.store(Arc::new(overview::overview(&self.inputs, &after, started)));
        for failover in overview::moves(&before, &after) {
            overview::tell(&failover, generation, &self.view);
        }
    }

    fn set_targets(&self) {
        let config = Arc::clone(&self.inputs.config);
        let targets = config.pools.iter().filter_map(|pool| Some((pool, Arc::new(pool.health.clone()?))));
        let targets = targets.flat_map(|(pool, settings)| {
            let members = self.inputs.members.get(&pool.name).map(Vec::as_slice).unwrap_or_default();
            members
                .iter()
                .map(move |member| Target { key: member.identity.key(), settings: Arc::clone(&settings) })
        });
        self.doors.health.set_targets(targets.collect());
    }
}

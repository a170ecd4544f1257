//! The task of one name: look it up, tell the pools that want it, wait, and look again.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use rand::{RngExt, rngs::SmallRng};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep_until, timeout_at},
};

use super::{Failing, Host, resolver::Resolver};
use crate::{
    control::{Change, ChangeSender, round::Turnout},
    ids::PoolName,
};

/// Time for an answer. Libc asks the next server after 5 s; an answer that comes later is used, but is a failure.
const DEADLINE: Duration = Duration::from_secs(5);

/// Time between two answers: a name follows its zone within half a minute, at two questions a minute.
const REFRESH: Duration = Duration::from_secs(30);

/// Time from a first failure to the next question. It doubles with each failure, up to [`REFRESH`].
const RETRY: Duration = Duration::from_secs(1);

/// The share by which each of these times is varied, so that names do not beat in step.
const JITTER: f64 = 0.1;

/// Who wants a name, and the number of the wish: a pool that left and came back is told anew.
pub(super) type Wanted = BTreeMap<PoolName, u64>;

/// The task of one name.
pub(super) struct Naming {
    host: Arc<str>,
    port: u16,
    wanted: watch::Receiver<Wanted>,
    changes: ChangeSender,
    failing: Arc<Failing>,
    resolver: Resolver,
    rng: SmallRng,
    /// The last answer.
    addresses: Vec<SocketAddr>,
    /// Whom it was told.
    told: Wanted,
    /// Lookups in a row that failed or were late.
    failures: u32,
    /// The last lookup failed or took too long.
    doubtful: bool,
}

/// How a lookup ended.
struct Lookup {
    answer: Result<Vec<SocketAddr>, String>,
    late: bool,
}

/// There is no reconciler left, or nobody who wants the name.
struct Gone;

impl Naming {
    /// The task of a name, to be run.
    pub(super) fn new(
        (host, port): Host,
        wanted: watch::Receiver<Wanted>,
        changes: ChangeSender,
        failing: Arc<Failing>,
        resolver: Resolver,
        rng: SmallRng,
    ) -> Self {
        let (addresses, told) = (Vec::new(), Wanted::new());
        Self {
            host,
            port,
            wanted,
            changes,
            failing,
            resolver,
            rng,
            addresses,
            told,
            failures: 0,
            doubtful: false,
        }
    }

    /// Runs until nobody wants to hear of it any more. `first` is dropped when it is known how the first lookup went.
    pub(super) async fn run(mut self, mut first: Option<Turnout>) {
        loop {
            let Ok(Lookup { answer, late }) = self.look(&mut first).await else { return };
            let mut wait = REFRESH;
            match answer {
                Ok(addresses) => {
                    if !late {
                        self.recovered(&addresses);
                    }
                    if self.learn(addresses).await.is_err() {
                        return;
                    }
                }
                Err(reason) => {
                    if !late {
                        self.failed(&reason);
                    }
                    wait = RETRY.saturating_mul(1 << (self.failures - 1).min(10)).min(REFRESH);
                }
            }
            drop(first.take());
            if self.rest(wait).await.is_err() {
                return;
            }
        }
    }

    /// Looks the name up, and waits for the end of it however late it comes: no second lookup starts meanwhile.
    async fn look(&mut self, first: &mut Option<Turnout>) -> Result<Lookup, Gone> {
        let deadline = Instant::now() + DEADLINE;
        let (host, resolver) = (Arc::clone(&self.host), self.resolver.clone());
        let (port, doubtful) = (self.port, self.doubtful);
        let mut lookup = Box::pin(async move {
            let lookup = resolver.start(&host, port, doubtful).await;
            let start = Instant::now();
            (ended(lookup).await, start.elapsed())
        });
        let mut late = false;
        loop {
            tokio::select! {
                biased;
                (answer, took) = &mut lookup => {
                    // However long it had to wait for its turn.
                    self.doubtful = answer.is_err() || took >= DEADLINE;
                    return Ok(Lookup { answer, late });
                }
                () = sleep_until(deadline), if !late => {
                    late = true;
                    self.failed(&format!("no answer within {}", humantime::format_duration(DEADLINE)));
                    drop(first.take());
                }
                changed = self.wanted.changed() => {
                    changed.map_err(|_| Gone)?;
                    self.tell().await?;
                }
            }
        }
    }

    /// Waits, and tells who comes to want the name meanwhile.
    async fn rest(&mut self, wait: Duration) -> Result<(), Gone> {
        let jittered = 1.0 + JITTER * (2.0 * self.rng.random::<f64>() - 1.0);
        let until = Instant::now() + wait.mul_f64(jittered);
        while let Ok(changed) = timeout_at(until, self.wanted.changed()).await {
            changed.map_err(|_| Gone)?;
            self.tell().await?;
        }
        Ok(())
    }

    async fn learn(&mut self, addresses: Vec<SocketAddr>) -> Result<(), Gone> {
        if addresses != self.addresses {
            self.addresses = addresses;
            self.told.clear();
        }
        self.tell().await
    }

    /// Tells every pool that wants the name and does not know the last answer.
    async fn tell(&mut self) -> Result<(), Gone> {
        let wanted = self.wanted.borrow_and_update().clone();
        if self.addresses.is_empty() {
            return Ok(());
        }
        let fresh = wanted.iter().filter(|(pool, wish)| self.told.get(*pool) != Some(*wish));
        for (pool, _) in fresh {
            let change = Change::Resolved {
                pool: pool.clone(),
                host: Arc::clone(&self.host),
                port: self.port,
                addresses: self.addresses.clone(),
            };
            self.changes.send(change).await.map_err(|_| Gone)?;
        }
        self.told = wanted;
        Ok(())
    }

    fn failed(&mut self, reason: &str) {
        self.failures = self.failures.saturating_add(1);
        if self.failures == 1 {
            self.failing.failed(self.name());
            let kept = self.addresses.len();
            tracing::warn!(
                pool = self.pools(),
                endpoint = self.name(),
                reason,
                "name does not resolve: keeping the last {kept} addresses"
            );
        }
    }

    fn recovered(&mut self, addresses: &[SocketAddr]) {
        if std::mem::take(&mut self.failures) > 0 {
            self.failing.over(&self.name());
            let found = addresses.len();
            tracing::info!(
                pool = self.pools(),
                endpoint = self.name(),
                "name resolves again: {found} addresses"
            );
        }
    }

    fn name(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    fn pools(&self) -> String {
        let wanted = self.wanted.borrow();
        wanted.keys().map(PoolName::as_str).collect::<Vec<_>>().join(", ")
    }
}

impl Drop for Naming {
    fn drop(&mut self) {
        self.failing.over(&self.name());
    }
}

async fn ended(lookup: JoinHandle<Result<Vec<SocketAddr>, String>>) -> Result<Vec<SocketAddr>, String> {
    lookup.await.unwrap_or_else(|error| Err(error.to_string()))
}

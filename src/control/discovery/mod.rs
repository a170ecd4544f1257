//! Who exists: names in place of addresses, resolved again and again.
//!
//! Only an answer with addresses is ever passed on. A resolver that fails, hangs or says nothing leaves the last
//! addresses as they are: health finds out which of them still answer.

mod failing;
mod naming;
mod resolver;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use rand::{SeedableRng, rngs::SmallRng};
use tokio::{runtime::Handle, sync::watch, time::Instant};
use tokio_util::task::AbortOnDropHandle;

pub use self::failing::Failing;
pub(super) use self::resolver::usable;
use self::{
    naming::{Naming, Wanted},
    resolver::Resolver,
};
use super::{
    ChangeSender,
    round::{Round, Turnout},
};
use crate::ids::PoolName;

/// A name to resolve for a pool.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name {
    /// Whose endpoint it is.
    pub pool: PoolName,
    /// The host name, as written.
    pub host: Arc<str>,
    /// The port, as written.
    pub port: u16,
}

/// The discovery room: start it, then steer it by its handle.
#[derive(Debug)]
pub struct Discovery;

/// Steers the resolving of names. Dropping it stops it.
pub struct DiscoveryHandle {
    names: Mutex<Names>,
    round: Round,
    changes: ChangeSender,
    resolver: Resolver,
    failing: Arc<Failing>,
    runtime: Handle,
}

/// A name, whoever wants it.
type Host = (Arc<str>, u16);

struct Names {
    running: HashMap<Host, Running>,
    rng: SmallRng,
    /// How many wishes there have been.
    wishes: u64,
}

/// The task of one name, as seen from outside.
struct Running {
    wanted: watch::Sender<Wanted>,
    task: AbortOnDropHandle<()>,
}

impl Discovery {
    /// Starts without names, with the system's resolver, on the runtime it is called on. `failing` is kept up to date.
    ///
    /// The system's resolver works on threads that nobody can stop: shut the runtime down with a timeout, or the last
    /// lookup holds it up.
    #[must_use]
    pub fn start(changes: ChangeSender, failing: Arc<Failing>) -> DiscoveryHandle {
        DiscoveryHandle::new(changes, failing, Resolver::system(), rand::random())
    }
}

impl DiscoveryHandle {
    fn new(changes: ChangeSender, failing: Arc<Failing>, resolver: Resolver, seed: u64) -> Self {
        let names = Names { running: HashMap::new(), rng: SmallRng::seed_from_u64(seed), wishes: 0 };
        Self {
            names: Mutex::new(names),
            round: Round::new(),
            changes,
            resolver,
            failing,
            runtime: Handle::current(),
        }
    }

    /// Says which names are wanted from now on. A name that was wanted before keeps its addresses and its rhythm; a pool
    /// that is new to a known name is told at once; a name that nobody wants is forgotten.
    pub fn set_names(&self, names: Vec<Name>) {
        let mut wanted: BTreeMap<Host, Vec<PoolName>> = BTreeMap::new();
        for Name { pool, host, port } in names {
            wanted.entry((host, port)).or_default().push(pool);
        }
        let mut known = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        let Names { running, rng, wishes } = &mut *known;
        // A task ends by itself only by a panic; the name must not stay unresolved for that.
        running.retain(|host, one| wanted.contains_key(host) && !one.task.is_finished());
        for (host, pools) in wanted {
            let old = running.get(&host).map(|one| one.wanted.borrow().clone()).unwrap_or_default();
            let fresh: Wanted = pools
                .into_iter()
                .map(|pool| {
                    *wishes += 1;
                    let wish = old.get(&pool).copied().unwrap_or(*wishes);
                    (pool, wish)
                })
                .collect();
            if let Some(one) = running.get(&host) {
                one.wanted.send_if_modified(|wanted| {
                    let changed = *wanted != fresh;
                    *wanted = fresh;
                    changed
                });
            } else {
                let one = self.spawn(host.clone(), fresh, SmallRng::from_rng(rng));
                running.insert(host, one);
            }
        }
    }

    /// Waits until every name has been answered, or has failed for the first time, and the changes that follow are in
    /// the reconciler's inbox (true), or until the deadline has passed (false).
    pub fn first_round(&self, deadline: Instant) -> impl Future<Output = bool> + Send + use<> {
        self.round.over(deadline)
    }

    fn spawn(&self, (host, port): Host, wanted: Wanted, rng: SmallRng) -> Running {
        let (wanted, receiver) = watch::channel(wanted);
        let first: Option<Turnout> = Some(self.round.join());
        let failing = Arc::clone(&self.failing);
        let naming =
            Naming::new((host, port), receiver, self.changes.clone(), failing, self.resolver.clone(), rng);
        let task = AbortOnDropHandle::new(self.runtime.spawn(naming.run(first)));
        Running { wanted, task }
    }
}

impl fmt::Debug for DiscoveryHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        f.debug_struct("DiscoveryHandle").field("names", &names.running.len()).finish_non_exhaustive()
    }
}

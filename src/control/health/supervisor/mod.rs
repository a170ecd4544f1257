//! One loop for each endpoint: wait, probe, judge, tell. The loops share nothing but room for probes in flight.

mod probing;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    fmt,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
};

use rand::{SeedableRng, rngs::SmallRng};
use tokio::{
    runtime::Handle,
    sync::{Notify, watch},
    time::Instant,
};
use tokio_util::task::AbortOnDropHandle;

use self::probing::{Loop, Rooms};
use super::probe::{Manner, Outcome, Way, probe};
use crate::{
    config,
    control::{
        ChangeSender, ProbeOutcome,
        round::{Round, Turnout},
    },
    ids::EndpointKey,
    net::Outgoing,
};

/// An endpoint to probe.
#[derive(Clone, Debug)]
pub struct Target {
    /// Which one. Its address is probed, at another port if the settings name one.
    pub key: EndpointKey,
    /// How.
    pub settings: Arc<config::Health>,
    /// How sockets towards it are set up.
    pub socket: Arc<Outgoing>,
    /// What it is given before it is asked.
    pub manner: Manner,
}

/// The health room: start it, then steer it by its handle.
#[derive(Debug)]
pub struct Health;

/// Steers the probe loops. Dropping it stops them all.
pub struct HealthHandle {
    loops: Mutex<Loops>,
    round: Round,
    shared: Arc<Shared>,
    runtime: Handle,
}

struct Loops {
    running: HashMap<EndpointKey, Running>,
    rng: SmallRng,
}

/// A loop as seen from outside.
struct Running {
    way: watch::Sender<Way>,
    hint: Arc<Notify>,
    task: AbortOnDropHandle<()>,
}

/// What all loops use.
struct Shared {
    changes: ChangeSender,
    prober: Prober,
    observe: Box<dyn Fn(ProbeOutcome) + Send + Sync>,
    rooms: Rooms,
}

/// How a probe is made.
type Prober = Box<dyn Fn(SocketAddr, Way) -> Probing + Send + Sync>;

/// A probe on its way.
type Probing = Pin<Box<dyn Future<Output = Outcome> + Send>>;

impl Health {
    /// Starts without targets, on the runtime it is called on. `observe` is told of every probe that says something
    /// about its endpoint; `seed` decides how probes are spread over time.
    pub fn start(
        changes: ChangeSender,
        observe: impl Fn(ProbeOutcome) + Send + Sync + 'static,
        seed: u64,
    ) -> HealthHandle {
        let prober: Prober = Box::new(|address, way| Box::pin(probe(address, way)));
        HealthHandle::new(changes, Box::new(observe), prober, seed)
    }
}

impl HealthHandle {
    fn new(
        changes: ChangeSender,
        observe: Box<dyn Fn(ProbeOutcome) + Send + Sync>,
        prober: Prober,
        seed: u64,
    ) -> Self {
        Self {
            loops: Mutex::new(Loops { running: HashMap::new(), rng: SmallRng::seed_from_u64(seed) }),
            round: Round::new(),
            shared: Arc::new(Shared { changes, prober, observe, rooms: Rooms::new() }),
            runtime: Handle::current(),
        }
    }

    /// Says who is to be probed from now on. Who was probed before keeps its loop and its verdict, and goes over to new
    /// settings at once; who is not named any more is forgotten. Of two targets with one key the first counts.
    pub fn set_targets(&self, targets: Vec<Target>) {
        let mut loops = self.loops.lock().unwrap_or_else(PoisonError::into_inner);
        let Loops { running, rng } = &mut *loops;
        let mut before = std::mem::take(running);
        for Target { key, settings, socket, manner } in targets {
            let way = Way { settings, socket, manner };
            if running.contains_key(&key) {
                continue;
            }
            // A loop ends by itself only by a panic; the endpoint must not stay unwatched for that.
            let kept = before.remove(&key).filter(|kept| !kept.task.is_finished());
            if let Some(kept) = &kept {
                kept.way.send_if_modified(|old| {
                    let changed = *old != way;
                    old.clone_from(&way);
                    changed
                });
            }
            let one = kept.unwrap_or_else(|| self.spawn(key.clone(), way, SmallRng::from_rng(rng)));
            running.insert(key, one);
        }
    }

    /// A session could not connect to this endpoint: look now instead of later. Never waits.
    pub fn hint(&self, endpoint: &EndpointKey) {
        let loops = self.loops.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = loops.running.get(endpoint) {
            running.hint.notify_one();
        }
    }

    /// Waits until every target has had its first probe and the changes that follow from it are in the reconciler's
    /// inbox (true), or until the deadline has passed (false).
    pub fn first_round(&self, deadline: Instant) -> impl Future<Output = bool> + Send + use<> {
        self.round.over(deadline)
    }

    fn spawn(&self, key: EndpointKey, way: Way, rng: SmallRng) -> Running {
        let (way, receiver) = watch::channel(way);
        let hint = Arc::new(Notify::new());
        let first: Option<Turnout> = Some(self.round.join());
        let probing = Loop::new(key, Arc::clone(&self.shared), (receiver, Arc::clone(&hint)), rng);
        let task = AbortOnDropHandle::new(self.runtime.spawn(probing.run(first)));
        Running { way, hint, task }
    }
}

impl fmt::Debug for HealthHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let loops = self.loops.lock().unwrap_or_else(PoisonError::into_inner);
        f.debug_struct("HealthHandle").field("targets", &loops.running.len()).finish_non_exhaustive()
    }
}

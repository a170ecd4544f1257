//! The loop of one endpoint.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rand::{RngExt, rngs::SmallRng};
use tokio::{
    sync::{Notify, Semaphore, SemaphorePermit, watch},
    time::{Instant, sleep_until},
};

use super::Shared;
use crate::{
    control::{
        Change, ProbeOutcome,
        health::{
            Verdict,
            probe::{Outcome, Way},
            verdict::{Judge, Pace, Turn},
        },
        round::Turnout,
    },
    ids::EndpointKey,
};

/// Probes in flight, of all endpoints together.
const IN_FLIGHT: usize = 64;

/// How many of them may be spent on endpoints that are down: those use their whole timeout, and a cloud of them would
/// hide from us what happens to the living.
const IN_FLIGHT_DOWN: usize = IN_FLIGHT / 2;

/// Bounds on the time between two probes, whatever config and jitter come to.
const BETWEEN: (Duration, Duration) = (Duration::from_millis(1), Duration::from_secs(24 * 3600));

/// Time between two lines about a shortage on this machine.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(10);

/// A probe loop.
pub(super) struct Loop {
    key: EndpointKey,
    shared: Arc<Shared>,
    way: watch::Receiver<Way>,
    hint: Arc<Notify>,
    rng: SmallRng,
    judge: Judge,
}

/// Room for probes in flight, in the order of asking, and for complaints about ourselves.
pub(super) struct Rooms {
    all: Semaphore,
    down: Semaphore,
    complaint: Mutex<Complaint>,
}

#[derive(Default)]
struct Complaint {
    last: Option<Instant>,
    unsaid: u64,
}

impl Loop {
    /// The loop of `key`, to be run; `steering` brings new settings and hints.
    pub(super) fn new(
        key: EndpointKey,
        shared: Arc<Shared>,
        steering: (watch::Receiver<Way>, Arc<Notify>),
        rng: SmallRng,
    ) -> Self {
        let (way, hint) = steering;
        Self { key, shared, way, hint, rng, judge: Judge::default() }
    }

    /// Runs until nobody wants to hear of it any more. `first` is dropped after the first probe.
    pub(super) async fn run(mut self, mut first: Option<Turnout>) {
        loop {
            let (started, outcome) = self.probe().await;
            let local = matches!(outcome, Outcome::Local(_));
            let answered = matches!(outcome, Outcome::Wrong(_));
            if let Some(turn) = self.learn(outcome)
                && !self.tell(turn, answered, started).await
            {
                return;
            }
            let was_first = first.take().is_some();
            if !self.rest(started, was_first, local).await {
                return;
            }
        }
    }

    async fn probe(&mut self) -> (Instant, Outcome) {
        let permits = self.shared.rooms.enter(self.judge.verdict()).await;
        let way = self.way.borrow_and_update().clone();
        let mut address = self.key.address;
        address.set_port(way.settings.port.unwrap_or_else(|| address.port()));
        let started = Instant::now();
        self.judge.probing(started);
        let outcome = (self.shared.prober)(address, way).await;
        drop(permits);
        if !matches!(outcome, Outcome::Local(_)) {
            let good = outcome == Outcome::Good;
            (self.shared.observe)(ProbeOutcome { took: started.elapsed(), good });
        }
        (started, outcome)
    }

    fn learn(&mut self, outcome: Outcome) -> Option<Turn> {
        let (rise, fall) = {
            let settings = &self.way.borrow().settings;
            (settings.rise, settings.fall)
        };
        match outcome {
            Outcome::Good => self.judge.good(rise),
            Outcome::Bad(why) | Outcome::Wrong(why) => {
                tracing::debug!(pool = %self.key.pool, endpoint = %self.key.address, reason = why, "probe failed");
                let down = self.judge.verdict() == Verdict::Down;
                // No news, but it tells what bytes of sessions came before it.
                self.judge.bad(fall, &why).or_else(|| down.then(|| self.judge.again(&why)))
            }
            Outcome::Local(why) => {
                self.shared.rooms.complain(&self.key, &why);
                None
            }
        }
    }

    /// False when there is no reconciler left to tell.
    async fn tell(&self, Turn { verdict, reason }: Turn, answered: bool, began: Instant) -> bool {
        let (endpoint, reason) = (self.key.clone(), reason.into());
        let change = Change::Verdict { endpoint, verdict, reason, answered, began };
        self.shared.changes.send(change).await.is_ok()
    }

    /// Sleeps until the next probe is due. False when the handle is gone.
    async fn rest(&mut self, started: Instant, first: bool, local: bool) -> bool {
        let mut pace = self.pace(first, local);
        loop {
            let due = self.judge.next(started, Instant::now(), pace);
            tokio::select! {
                biased;
                changed = self.way.changed() => {
                    if changed.is_err() {
                        return false;
                    }
                    pace = self.pace(false, local);
                }
                () = sleep_until(due) => return true,
                () = self.hint.notified() => self.judge.hint(),
            }
        }
    }

    /// The time between probes, drawn anew each time. After the first it is a random part of the interval, as all
    /// endpoints of a config had their first at once. A machine that is short of something is not asked for more of it.
    fn pace(&mut self, first: bool, local: bool) -> Pace {
        let (interval, fast, jitter) = {
            let settings = &self.way.borrow().settings;
            let fast = if local { settings.interval } else { settings.fast_interval };
            (settings.interval, fast, settings.jitter.clamp(0.0, 1.0))
        };
        let vary = |duration: Duration, factor: f64| {
            duration.min(BETWEEN.1).mul_f64(factor).clamp(BETWEEN.0, BETWEEN.1)
        };
        let jittered = 1.0 + jitter * (2.0 * self.rng.random::<f64>() - 1.0);
        let phase = if first { self.rng.random::<f64>() } else { jittered };
        Pace { interval: vary(interval, phase), fast: vary(fast, jittered) }
    }
}

impl Rooms {
    /// Room for nobody yet.
    pub(super) fn new() -> Self {
        Self {
            all: Semaphore::new(IN_FLIGHT),
            down: Semaphore::new(IN_FLIGHT_DOWN),
            complaint: Mutex::default(),
        }
    }

    /// Waits for room for one probe. The semaphores are never closed.
    async fn enter(&self, verdict: Verdict) -> (Option<SemaphorePermit<'_>>, Option<SemaphorePermit<'_>>) {
        let down = if verdict == Verdict::Down { self.down.acquire().await.ok() } else { None };
        (down, self.all.acquire().await.ok())
    }

    /// Says that this machine could not probe, and not more often than it helps.
    fn complain(&self, key: &EndpointKey, reason: &str) {
        let mut complaint = self.complaint.lock().unwrap_or_else(PoisonError::into_inner);
        if complaint.last.is_some_and(|last| last.elapsed() < COMPLAINT_INTERVAL) {
            complaint.unsaid += 1;
            return;
        }
        let unsaid = std::mem::take(&mut complaint.unsaid);
        complaint.last = Some(Instant::now());
        tracing::warn!(
            pool = %key.pool, endpoint = %key.address, reason, unsaid,
            "this machine cannot probe: verdicts stay as they are"
        );
    }
}

//! Rates over the last seconds: the counters are read once a second, and the oldest reading of the window is compared
//! with the counters of now. The data plane pays nothing for it.

use std::{
    collections::{BTreeMap, VecDeque},
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::{
    api::Rates,
    control::{Overview, View},
    ids::{EndpointKey, ListenerName},
    state::{EndpointCell, ListenerCell},
};

/// Time between readings.
const STEP: Duration = Duration::from_secs(1);

/// Readings kept: the window is one step less.
const READINGS: usize = 11;

/// Below this a rate would be chance.
const SHORTEST: Duration = Duration::from_millis(500);

/// The readings of the last seconds.
#[derive(Debug, Default)]
pub(super) struct Sampler {
    windows: Mutex<Windows>,
}

#[derive(Debug, Default)]
struct Windows {
    endpoints: BTreeMap<EndpointKey, VecDeque<Reading<3>>>,
    listeners: BTreeMap<ListenerName, VecDeque<Reading<1>>>,
}

/// Counters at one moment.
#[derive(Clone, Copy, Debug)]
struct Reading<const N: usize> {
    at: Instant,
    counts: [u64; N],
}

impl Sampler {
    /// Reads the counters once a second, for ever.
    pub(super) async fn run(self: Arc<Self>, view: Arc<View>) -> Infallible {
        let mut ticks = interval(STEP);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            let now = ticks.tick().await;
            self.sample(&view.overview.load(), now);
        }
    }

    fn sample(&self, overview: &Overview, now: Instant) {
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        for endpoint in overview.pools.iter().flat_map(|pool| &pool.endpoints) {
            let window = windows.endpoints.entry(endpoint.identity.key()).or_default();
            push(window, Reading { at: now, counts: counts(&endpoint.cell) });
        }
        for listener in &overview.listeners {
            let window = windows.listeners.entry(listener.cell.name.clone()).or_default();
            push(window, Reading { at: now, counts: [listener.cell.accepted()] });
        }
        windows.endpoints.retain(|_, window| window.back().is_some_and(|last| last.at == now));
        windows.listeners.retain(|_, window| window.back().is_some_and(|last| last.at == now));
    }

    /// The rates of an endpoint; `None` until it has been watched for a moment.
    pub(super) fn endpoint(&self, key: &EndpointKey, cell: &EndpointCell) -> Option<Rates> {
        let windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        let oldest = windows.endpoints.get(key)?.front()?;
        let [sessions, to_upstream, to_client] = oldest.rates(counts(cell))?;
        Some(Rates {
            sessions_per_second: sessions,
            to_upstream_per_second: to_upstream,
            to_client_per_second: to_client,
        })
    }

    /// Clients accepted in a second.
    pub(super) fn listener(&self, cell: &ListenerCell) -> Option<f64> {
        let windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        let [accepted] = windows.listeners.get(&cell.name)?.front()?.rates([cell.accepted()])?;
        Some(accepted)
    }
}

impl<const N: usize> Reading<N> {
    fn rates(&self, now: [u64; N]) -> Option<[f64; N]> {
        let passed = self.at.elapsed();
        if passed < SHORTEST {
            return None;
        }
        let mut rates = [0.0; N];
        for ((rate, now), before) in rates.iter_mut().zip(now).zip(self.counts) {
            // Two decimals: more would pretend to be exact. A cell that started again has no rate yet.
            let exact = now.saturating_sub(before) as f64 / passed.as_secs_f64();
            *rate = (exact * 100.0).round() / 100.0;
        }
        Some(rates)
    }
}

fn counts(cell: &EndpointCell) -> [u64; 3] {
    let (to_upstream, to_client) = cell.bytes();
    [cell.sessions(), to_upstream, to_client]
}

fn push<const N: usize>(window: &mut VecDeque<Reading<N>>, reading: Reading<N>) {
    if window.len() == READINGS {
        window.pop_front();
    }
    window.push_back(reading);
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;
    use crate::control::admin::tests::{endpoint, overview};

    #[tokio::test(start_paused = true)]
    async fn a_rate_covers_the_last_ten_seconds_and_forgets_what_was_before() {
        let sampler = Sampler::default();
        let watched = endpoint("db", "aws", "10.0.0.1:1");
        let (key, cell) = (watched.identity.key(), &watched.cell);
        let overview = overview(vec![watched.clone()]);
        assert_eq!(sampler.endpoint(&key, cell), None);
        sampler.sample(&overview, Instant::now());
        assert_eq!(sampler.endpoint(&key, cell), None, "a moment is too short");
        for _ in 0..10 {
            cell.connected(Duration::from_millis(1));
            cell.moved(1000, 50);
            advance(STEP).await;
            sampler.sample(&overview, Instant::now());
        }
        let busy = sampler.endpoint(&key, cell).unwrap();
        assert_eq!(busy.sessions_per_second, 1.0);
        assert_eq!((busy.to_upstream_per_second, busy.to_client_per_second), (1000.0, 50.0));
        for _ in 0..10 {
            advance(STEP).await;
            sampler.sample(&overview, Instant::now());
        }
        assert_eq!(sampler.endpoint(&key, cell), Some(Rates::default()));
    }

    #[tokio::test(start_paused = true)]
    async fn an_endpoint_that_left_is_forgotten() {
        let sampler = Sampler::default();
        let left = endpoint("db", "aws", "10.0.0.1:1");
        sampler.sample(&overview(vec![left.clone()]), Instant::now());
        advance(STEP).await;
        assert!(sampler.endpoint(&left.identity.key(), &left.cell).is_some());
        sampler.sample(&overview(Vec::new()), Instant::now());
        assert_eq!(sampler.endpoint(&left.identity.key(), &left.cell), None);
    }
}

//! The view as the admin API tells it.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use jiff::Timestamp;
use tokio::time::Instant;

use super::{
    edge,
    rates::Sampler,
    totals::{Group, Sums},
};
use crate::{
    api::{
        Attempts, Cloud, CloudShare, CloudVerdict, CloudWeight, ConnectTimes, EndCount, Endpoint, Event,
        Listener, Pool, Process, Rates, Reload, Reloads, Restraint, Sessions, Standing, Status,
    },
    config::{self, Policy},
    control::{
        self, EndpointView, Happening, Judged, Level, ListenerView, Overview, PoolView, View,
        health::Verdict, kept_word,
    },
    state::EndpointCell,
};

/// Events in a status.
const EVENTS: usize = 20;

/// The picture of now.
pub(super) fn status(view: &View, sampler: &Sampler) -> Status {
    let overview = view.overview.load_full();
    let totals = view.totals.read(&overview);
    let pools: Vec<Pool> = overview
        .pools
        .iter()
        .map(|pool| Pool { failing: failing(view, &overview, pool), ..self::pool(pool, sampler) })
        .collect();
    let clouds =
        overview.config.clouds.iter().map(|cloud| self::cloud(cloud, &overview, &totals, &pools)).collect();
    Status {
        process: process(view, &overview),
        sessions: sessions(view, &overview),
        clouds,
        pools,
        listeners: overview.listeners.iter().map(|one| listener(one, &overview.config, sampler)).collect(),
        certificates: edge::certificates(&overview),
        events: events(view),
    }
}

/// The last events that matter to who looks at everything.
fn events(view: &View) -> Vec<Event> {
    let all = view.journal.last(usize::MAX);
    let mut last: Vec<_> = all
        .iter()
        .rev()
        .filter(|event| event.happening.level() > Level::Debug)
        .take(EVENTS)
        .map(|one| event(one))
        .collect();
    last.reverse();
    last
}

/// An event as the API tells it.
pub(super) fn event(event: &control::Event) -> Event {
    let Happening { kind, pool, endpoint, cloud, before, after, evidence, .. } = &event.happening;
    Event {
        id: event.id,
        time: time(event.time),
        generation: event.generation.0,
        kind: kind.as_str().to_owned(),
        level: event.happening.level().as_str().to_owned(),
        pool: pool.as_ref().map(ToString::to_string),
        endpoint: endpoint.as_ref().map(ToString::to_string),
        cloud: cloud.as_ref().map(ToString::to_string),
        before: before.clone(),
        after: after.clone(),
        evidence: evidence.clone(),
        text: event.text.clone(),
    }
}

fn process(view: &View, overview: &Overview) -> Process {
    let (applied, refused) = view.reloads();
    let last_reload = view.last_reload().as_ref().as_ref().map(|outcome| Reload {
        time: time(outcome.time),
        ok: outcome.error.is_none(),
        error: outcome.error.clone(),
    });
    Process {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        phase: view.shared.sessions.phase().as_str().to_owned(),
        generation: overview.generation.0,
        started: time(view.started),
        uptime_seconds: seconds(view.uptime()),
        workers: view.shared.sockets.workers(),
        last_reload,
        reloads: Reloads { applied, refused },
        needs_restart: view.needs_restart.load().iter().map(|&setting| setting.to_owned()).collect(),
    }
}

fn sessions(view: &View, overview: &Overview) -> Sessions {
    Sessions {
        active: view.shared.sessions.active(),
        accepted: overview.listeners.iter().map(|listener| listener.cell.accepted()).sum(),
        panicked: view.shared.sessions.panicked(),
        log_lines_dropped: view.shared.session_log.dropped(),
    }
}

fn cloud(
    cloud: &config::Cloud,
    overview: &Overview,
    totals: &BTreeMap<Group, Sums>,
    pools: &[Pool],
) -> Cloud {
    let mut sums = Sums::default();
    for ((_, name), of_pool) in totals {
        if *name == cloud.name {
            sums.add(of_pool);
        }
    }
    let verdicts = || {
        let endpoints = overview.pools.iter().flat_map(|pool| &pool.endpoints);
        endpoints.filter(|endpoint| endpoint.identity.cloud == cloud.name).map(|endpoint| endpoint.verdict)
    };
    let count = |wanted| verdicts().filter(|verdict| *verdict == wanted).count() as u64;
    Cloud {
        name: cloud.name.to_string(),
        region: cloud.region.clone(),
        egress_usd_per_gb: cloud.egress_usd_per_gb.clone(),
        state: state(count(Verdict::Up), count(Verdict::Down), count(Verdict::Unknown)).to_owned(),
        judged: judged_cloud(cloud, overview),
        endpoints_up: count(Verdict::Up),
        endpoints: verdicts().count() as u64,
        sessions_active: sums.active,
        sessions_total: sums.sessions,
        to_upstream: sums.to_upstream,
        to_client: sums.to_client,
        rates: rates(cloud.name.as_str(), pools),
    }
}

fn judged_cloud(cloud: &config::Cloud, overview: &Overview) -> CloudVerdict {
    let view = overview.clouds.iter().find(|view| view.name == cloud.name);
    let verdict = view.map_or(&control::CloudVerdict::Up, |view| &view.verdict);
    let of = CloudVerdict { verdict: verdict.as_str().to_owned(), ..CloudVerdict::default() };
    match verdict {
        control::CloudVerdict::Up => of,
        control::CloudVerdict::Down { since, evidence } => {
            CloudVerdict { evidence: Some(evidence.to_string()), since: Some(time(*since)), ..of }
        }
        control::CloudVerdict::Recovering { percent } => CloudVerdict { percent: Some(*percent), ..of },
    }
}

/// What the verdicts of its endpoints say about a cloud.
fn state(up: u64, down: u64, unknown: u64) -> &'static str {
    match (up, down, unknown) {
        (0, 0, _) => "unknown",
        (0, _, _) => "down",
        (_, 0, 0) => "up",
        (_, _, _) => "degraded",
    }
}

/// The sum over the endpoints of a cloud; `None` while none has a rate.
fn rates(cloud: &str, pools: &[Pool]) -> Option<Rates> {
    let endpoints = pools.iter().flat_map(|pool| &pool.endpoints).filter(|endpoint| endpoint.cloud == cloud);
    let sum = |sum: f64, one: f64| thousandths(sum + one);
    endpoints.filter_map(|endpoint| endpoint.rates).reduce(|all, one| Rates {
        sessions_per_second: sum(all.sessions_per_second, one.sessions_per_second),
        to_upstream_per_second: sum(all.to_upstream_per_second, one.to_upstream_per_second),
        to_client_per_second: sum(all.to_client_per_second, one.to_client_per_second),
    })
}

fn pool(pool: &PoolView, sampler: &Sampler) -> Pool {
    let (policy, order, weights) = match &pool.policy {
        Policy::Failover { order } => {
            ("failover", order.iter().map(ToString::to_string).collect(), Vec::new())
        }
        Policy::Weighted { weights } => {
            let weight = |(cloud, weight): &(_, u32)| CloudWeight { cloud: named(cloud), weight: *weight };
            ("weighted", Vec::new(), weights.iter().map(weight).collect())
        }
    };
    Pool {
        name: pool.name.to_string(),
        policy: policy.to_owned(),
        order,
        weights,
        balance: pool.balance.as_str().to_owned(),
        all_down: pool.all_down.map(|all_down| all_down.as_str().to_owned()),
        shares: pool
            .shares
            .iter()
            .map(|(cloud, share)| CloudShare { cloud: named(cloud), share: *share })
            .collect(),
        restraint: restraint(pool),
        unresolved: pool.unresolved.clone(),
        failing: BTreeMap::new(),
        attempts: attempts(pool),
        endpoints: pool.endpoints.iter().map(|one| endpoint(one, sampler)).collect(),
    }
}

/// The names of a pool that do not resolve.
fn failing(view: &View, overview: &Overview, pool: &PoolView) -> BTreeMap<String, String> {
    let names = overview.config.pools.iter().filter(|known| known.name == pool.name);
    let names = names.flat_map(|known| view.names.names(known));
    names.filter_map(|(name, since)| Some((name, time(since?)))).collect()
}

fn restraint(pool: &PoolView) -> Restraint {
    let (ejection, restraint) = pool.limits;
    Restraint {
        frozen: pool.frozen.is_some(),
        frozen_because: pool.frozen.as_deref().map(str::to_owned),
        out_percent: pool.taken.out,
        ejected_percent: pool.taken.ejected,
        removed_by_checks_percent: pool.taken.by_checks,
        max_ejected_percent: ejection.max_ejected,
        max_removal_percent: restraint.max_removal,
        floor_percent: restraint.floor,
    }
}

fn attempts(pool: &PoolView) -> Attempts {
    let counts = pool.cell.counts();
    Attempts {
        hedges: counts.hedges,
        hedges_won: counts.won,
        hedges_denied: counts.denied,
        hedge_budget_left: pool.hedge.map(|hedge| pool.cell.left(hedge.budget, Instant::now())),
        retries: counts.retries,
        queued: counts.waited,
        overflowed: counts.overflowed,
        replayed: counts.replayed,
    }
}

fn endpoint(endpoint: &EndpointView, sampler: &Sampler) -> Endpoint {
    let cell = &endpoint.cell;
    let (to_upstream, to_client) = cell.bytes();
    let failures = cell.connect_failures().filter(|(_, count)| *count > 0);
    Endpoint {
        address: endpoint.identity.address.to_string(),
        host: endpoint.host.as_deref().map(str::to_owned),
        cloud: endpoint.identity.cloud.to_string(),
        region: endpoint.region.clone(),
        zone: endpoint.zone.clone(),
        weight: endpoint.weight,
        ramp_percent: endpoint.ramp_percent,
        verdict: endpoint.verdict.as_str().to_owned(),
        reason: endpoint.reason.to_string(),
        since: time(endpoint.since),
        for_seconds: seconds(endpoint.since.elapsed().unwrap_or_default()),
        transitions: endpoint.transitions,
        in_use: endpoint.in_use,
        standing: standing(&endpoint.judged),
        sessions_active: cell.active(),
        sessions_total: cell.sessions(),
        connect_failures: failures.map(|(cause, count)| (cause.as_str().to_owned(), count)).collect(),
        connect_ms: connect_times(cell),
        to_upstream,
        to_client,
        rates: sampler.endpoint(&endpoint.identity.key(), cell),
    }
}

fn standing(judged: &Judged) -> Standing {
    Standing {
        word: judged.standing.as_str().to_owned(),
        reason: judged.reason.to_string(),
        until: judged.until.map(time),
        kept_by: judged.kept.map(|kept| kept_word(kept).to_owned()),
        ejections: judged.ejections,
        flaps: judged.flaps,
        consecutive_failures: judged.row,
        recent_attempts: judged.attempts,
        recent_failures: judged.failures,
    }
}

fn connect_times(cell: &EndpointCell) -> ConnectTimes {
    let reading = cell.connect();
    let quantile = |q| reading.quantile(q).map(|seconds| thousandths(seconds * 1000.0));
    let usual = cell.connect_ewma();
    ConnectTimes {
        p50: quantile(0.5),
        p99: quantile(0.99),
        usual: (!usual.is_zero()).then(|| thousandths(usual.as_secs_f64() * 1000.0)),
    }
}

fn listener(listener: &ListenerView, config: &config::Config, sampler: &Sampler) -> Listener {
    let cell = &listener.cell;
    let rejected = cell.rejected().filter(|(_, count)| *count > 0);
    let ends = cell.ends().map(|(end, count)| EndCount {
        side: end.side.as_str().to_owned(),
        stage: end.stage.as_str().to_owned(),
        cause: end.cause.as_str().to_owned(),
        count,
    });
    Listener {
        name: cell.name.to_string(),
        address: cell.address.to_string(),
        pool: listener.target.to_string(),
        entry: edge::entry(listener, config),
        accepted: cell.accepted(),
        active: cell.active(),
        rejected: rejected.map(|(reason, count)| (reason.as_str().to_owned(), count)).collect(),
        accepted_per_second: sampler.listener(cell),
        ends: ends.collect(),
    }
}

fn named(name: &impl ToString) -> String {
    name.to_string()
}

/// RFC 3339, UTC, milliseconds.
pub(super) fn time(time: SystemTime) -> String {
    // Out of range only with a clock beyond the year 9999.
    format!("{:.3}", Timestamp::try_from(time).unwrap_or_default())
}

fn seconds(duration: Duration) -> f64 {
    thousandths(duration.as_secs_f64())
}

/// Without the digits that mean nothing.
fn thousandths(number: f64) -> f64 {
    (number * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_of_a_cloud_follows_from_its_endpoints() {
        assert_eq!(state(0, 0, 0), "unknown");
        assert_eq!(state(0, 0, 2), "unknown");
        assert_eq!(state(2, 0, 0), "up");
        assert_eq!(state(1, 1, 0), "degraded");
        assert_eq!(state(1, 0, 1), "degraded");
        assert_eq!(state(0, 1, 1), "down");
    }

    #[test]
    fn times_are_rfc_3339_in_utc() {
        assert_eq!(time(SystemTime::UNIX_EPOCH + Duration::from_millis(1_500)), "1970-01-01T00:00:01.500Z");
    }
}

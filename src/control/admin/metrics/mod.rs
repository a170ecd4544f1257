//! The metrics page. Nothing is registered and nothing is counted here: a scrape walks the view and reads the cells, so
//! that a session costs no label lookup. Families of the process come first and those of single endpoints last: with
//! more endpoints than the cap allows for, the detail goes and the picture stays.

mod attempts;
mod edge;
mod judged;
mod page;
mod process;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering::Relaxed},
    time::{SystemTime, UNIX_EPOCH},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, text},
    registry::Registry,
};

use self::page::{Family, Label, Page};
use super::totals::{Group, Sums};
use crate::{
    control::{EndpointView, Failover, Overview, PoolView, View, health::Verdict},
    state::{Phase, SpareEnd},
    telemetry::Cause,
};

/// The type of the page: without it Prometheus would read an older format, in which a counter has another name.
pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Series on a page: what a Prometheus with default settings takes without a second thought. Six for each endpoint.
const SERIES: usize = 20_000;

/// The page of now.
pub(super) fn page(view: &Arc<View>) -> Result<String, fmt::Error> {
    written(view, SERIES).map(|(page, _)| page)
}

fn written(view: &Arc<View>, cap: usize) -> Result<(String, Vec<Family>), fmt::Error> {
    let scrape = Arc::new(Scrape { view: Arc::clone(view), cap, families: Mutex::default() });
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Arc::clone(&scrape)));
    let mut page = String::new();
    text::encode(&mut page, &registry)?;
    let families = std::mem::take(&mut *scrape.families.lock().unwrap_or_else(PoisonError::into_inner));
    Ok((page, families))
}

#[derive(Debug)]
struct Scrape {
    view: Arc<View>,
    cap: usize,
    families: Mutex<Vec<Family>>,
}

impl Collector for Scrape {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let view = &*self.view;
        let overview = view.overview.load_full();
        let totals = view.totals.read(&overview);
        // One series is set aside for the count of those that were left out.
        let mut page = Page::new(encoder, self.cap.saturating_sub(1));
        process(&mut page, view)?;
        control(&mut page, view, &overview)?;
        workers(&mut page, view)?;
        listeners(&mut page, &overview)?;
        edge::of_listeners(&mut page, &overview)?;
        edge::certificates(&mut page, &overview)?;
        pools(&mut page, view, &overview)?;
        resolving(&mut page, view, &overview)?;
        judged::of_pools(&mut page, &overview)?;
        attempts::of_pools(&mut page, &overview)?;
        edge::of_pools(&mut page, &overview)?;
        groups(&mut page, &totals)?;
        judged::of_groups(&mut page, view, &overview, &totals)?;
        attempts::of_groups(&mut page, &totals)?;
        spares(&mut page, &totals)?;
        endpoints(&mut page, &overview)?;
        let dropped = view.totals.series_dropped.fetch_add(page.dropped, Relaxed) + page.dropped;
        page.make_room();
        page.counters(
            "twinspan_metrics_series_dropped",
            "Series left out of this page because of its cap.",
            [],
            [([], dropped)],
        )?;
        *self.families.lock().unwrap_or_else(PoisonError::into_inner) = page.families;
        Ok(())
    }
}

fn process(page: &mut Page<'_>, view: &View) -> fmt::Result {
    page.info("twinspan_build", "The program.", ["version"], [env!("CARGO_PKG_VERSION").into()])?;
    let seen = process::read();
    let gauge = |number: Option<u64>| number.map(|number| ([], number as f64));
    page.gauges(
        "process_start_time_seconds",
        "Start of the process, in seconds since 1970.",
        [],
        [([], since_1970(view.started))],
    )?;
    page.fraction("process_cpu_seconds", "User and system time.", seen.cpu_seconds)?;
    page.gauges("process_resident_memory_bytes", "Memory in use.", [], gauge(seen.resident_bytes))?;
    page.gauges(
        "twinspan_memory_ceiling_bytes",
        "The most memory that the process may take before new sessions are reset (`max_memory`), if there is a limit.",
        [],
        gauge(view.shared.memory.ceiling()),
    )?;
    page.gauges(
        "twinspan_memory_short",
        "1 while new sessions are reset because the process takes as much memory as it may.",
        [],
        [([], flag(view.shared.memory.is_short()))],
    )?;
    page.gauges("process_virtual_memory_bytes", "Address space.", [], gauge(seen.virtual_bytes))?;
    page.gauges("process_threads", "Threads.", [], gauge(seen.threads))?;
    page.gauges("process_open_fds", "Open descriptors.", [], gauge(seen.open_fds))?;
    page.gauges("process_max_fds", "Descriptors that may be open.", [], gauge(seen.max_fds))?;
    let sessions = &view.shared.sessions;
    let ready = sessions.phase() == Phase::Ready;
    page.gauges("twinspan_ready", "1 while sessions are accepted.", [], [([], flag(ready))])?;
    let active = sessions.active() as f64;
    page.gauges(
        "twinspan_sessions_active",
        "Sessions of every listener, old ones included.",
        [],
        [([], active)],
    )?;
    let count = |count: u64| [([], count)];
    page.counters(
        "twinspan_sessions_panicked",
        "Sessions ended by a bug of this program.",
        [],
        count(sessions.panicked()),
    )?;
    let lines = view.shared.session_log.dropped();
    page.counters("twinspan_session_log_dropped", "Session lines that were not written.", [], count(lines))?;
    let events = view.log_dropped.get().map(|dropped| ([], dropped.lines()));
    page.counters("twinspan_log_dropped", "Event lines that were not written.", [], events)?;
    page.counters(
        "twinspan_reports_dropped",
        "Attempts that failed or were overtaken of which the control plane was too busy to be told; it learns of such endpoints by probes.",
        [],
        count(view.shared.reports.dropped()),
    )
}

fn control(page: &mut Page<'_>, view: &View, overview: &Overview) -> fmt::Result {
    let generation = overview.generation.0 as f64;
    page.gauges("twinspan_generation", "The number of the snapshot in force.", [], [([], generation)])?;
    let (applied, refused) = view.reloads();
    page.counters(
        "twinspan_config_reloads",
        "Reloads of the config: applied, or refused with the old one staying.",
        ["result"],
        [(["applied".into()], applied), (["refused".into()], refused)],
    )?;
    let refused = view.last_reload().as_ref().as_ref().is_some_and(|outcome| outcome.error.is_some());
    page.gauges(
        "twinspan_config_last_reload_successful",
        "0 when the last reload was refused.",
        [],
        [([], flag(!refused))],
    )?;
    page.gauges(
        "twinspan_config_last_reload_success_timestamp_seconds",
        "When the config in force was applied, in seconds since 1970.",
        [],
        [([], since_1970(view.last_applied()))],
    )?;
    page.histograms(
        "twinspan_snapshot_compile_duration_seconds",
        "Time to compile a snapshot.",
        [],
        [([], view.compiles.read())],
    )?;
    page.histograms(
        "twinspan_health_check_duration_seconds",
        "Time that probes took, good or bad.",
        [],
        [([], view.probes.read())],
    )
}

fn workers(page: &mut Page<'_>, view: &View) -> fmt::Result {
    let cells = || {
        let numbered = view.shared.workers.iter().enumerate();
        numbered.map(|(number, cell)| ([Label::Owned(number.to_string())], cell))
    };
    page.gauges(
        "twinspan_worker_sessions",
        "Sessions that each worker carries, in its engine or beside it; far apart, they are spread unevenly.",
        ["worker"],
        cells().map(|(worker, cell)| (worker, cell.carried() as f64)),
    )?;
    page.counters(
        "twinspan_worker_sessions_passed_on",
        "Sessions that a worker accepted and gave to another one, which had clearly fewer.",
        ["worker"],
        cells().map(|(worker, cell)| (worker, cell.passed_on.load(Relaxed))),
    )?;
    page.counters(
        "twinspan_worker_sessions_handed_over",
        "Sessions that needed more than the engine can do: a first attempt that failed or was late, TLS, a PROXY header, a \
         limit of bandwidth, a watch for the first byte.",
        ["worker"],
        cells().map(|(worker, cell)| (worker, cell.handed_over.load(Relaxed))),
    )
}

fn listeners(page: &mut Page<'_>, overview: &Overview) -> fmt::Result {
    let cells =
        || overview.listeners.iter().map(|listener| (&*listener.cell, label(listener.cell.name.as_str())));
    page.counters(
        "twinspan_connections_accepted",
        "Clients accepted.",
        ["listener", "transport"],
        cells().map(|(cell, name)| ([name, "tcp".into()], cell.accepted())),
    )?;
    page.counters(
        "twinspan_connections_rejected",
        "Connections that did not become sessions.",
        ["listener", "reason"],
        cells().flat_map(|(cell, name)| {
            cell.rejected().map(move |(reason, count)| ([name.clone(), reason.as_str().into()], count))
        }),
    )?;
    page.counters(
        "twinspan_connections_refused",
        "Sessions that were reset at the entry: `denied` by address or route; at a limit of the listener (`sessions`, \
         `rate`), of one source (`source_sessions`, `source_rate`) or of unfinished `handshakes`; for want of `memory`.",
        ["listener", "reason"],
        cells().flat_map(|(cell, name)| {
            cell.refused().map(move |(reason, count)| ([name.clone(), reason.as_str().into()], count))
        }),
    )?;
    page.gauges(
        "twinspan_connections_at_entry",
        "Sessions whose PROXY header, ClientHello or handshake is still under way.",
        ["listener"],
        cells().map(|(cell, name)| ([name], cell.at_entry() as f64)),
    )?;
    page.gauges(
        "twinspan_connections_active",
        "Sessions now.",
        ["listener"],
        cells().map(|(cell, name)| ([name], cell.active() as f64)),
    )?;
    page.counters(
        "twinspan_connections_closed",
        "Ended sessions, by who ended them, when and why.",
        ["listener", "side", "stage", "cause"],
        cells().flat_map(|(cell, name)| {
            cell.ends().map(move |(end, count)| {
                let words = [end.side.as_str(), end.stage.as_str(), end.cause.as_str()];
                let [side, stage, cause] = words.map(label);
                ([name.clone(), side, stage, cause], count)
            })
        }),
    )?;
    page.histograms(
        "twinspan_connection_duration_seconds",
        "How long sessions lasted.",
        ["listener"],
        cells().map(|(cell, name)| ([name], cell.duration())),
    )
}

fn pools(page: &mut Page<'_>, view: &View, overview: &Overview) -> fmt::Result {
    let pools = || overview.pools.iter().map(|pool| (pool, label(pool.name.as_str())));
    page.gauges(
        "twinspan_pool_all_down",
        "1 while nothing of the pool may be used: its `when_all_down` decides.",
        ["pool"],
        pools().map(|(pool, name)| ([name], flag(pool.all_down.is_some()))),
    )?;
    page.gauges(
        "twinspan_pool_unresolved",
        "Names of the pool that have not been resolved yet.",
        ["pool"],
        pools().map(|(pool, name)| ([name], pool.unresolved.len() as f64)),
    )?;
    page.gauges(
        "twinspan_route_weight_ratio",
        "Share of a cloud in the new sessions of a pool, 0 to 1.",
        ["pool", "cloud"],
        pools().flat_map(|(pool, name)| {
            let mut shares: BTreeMap<&str, f64> =
                clouds(pool).into_iter().map(|cloud| (cloud, 0.0)).collect();
            shares.extend(pool.shares.iter().map(|(cloud, share)| (cloud.as_str(), *share)));
            shares.into_iter().map(move |(cloud, share)| ([name.clone(), label(cloud)], share))
        }),
    )?;
    // The first one is to be an increase, too, so those that may come are told before.
    let none = overview.pools.iter().flat_map(|pool| {
        let ends: Vec<_> = clouds(pool).into_iter().chain([Failover::NONE]).collect();
        let pairs =
            ends.clone().into_iter().flat_map(move |from| ends.clone().into_iter().map(move |to| (from, to)));
        pairs.filter(|(from, to)| from != to).map(|(from, to)| {
            let failover = Failover { pool: pool.name.clone(), from: from.to_owned(), to: to.to_owned() };
            (failover, 0)
        })
    });
    let mut failovers: BTreeMap<Failover, u64> = none.collect();
    failovers.extend(view.failovers());
    page.counters(
        "twinspan_failovers",
        "How often the new sessions of a pool moved to other clouds; `none` where there were none to go to.",
        ["pool", "from", "to"],
        failovers.into_iter().map(|(failover, count)| {
            let pool = failover.pool.as_str().to_owned().into();
            ([pool, failover.from.into(), failover.to.into()], count)
        }),
    )
}

/// The clouds that a pool has endpoints in.
fn clouds(pool: &PoolView) -> BTreeSet<&str> {
    pool.endpoints.iter().map(|endpoint| endpoint.identity.cloud.as_str()).collect()
}

fn resolving(page: &mut Page<'_>, view: &View, overview: &Overview) -> fmt::Result {
    let names = overview.config.pools.iter().flat_map(|pool| {
        let names = view.names.names(pool).into_iter();
        names.map(move |(name, since)| ([label(pool.name.as_str()), name.into()], flag(since.is_some())))
    });
    page.gauges(
        "twinspan_name_failing",
        "1 while a name of the pool does not resolve: the last lookup failed or took longer than 5 s. The addresses of \
         the last good one are kept.",
        ["pool", "name"],
        names,
    )
}

fn groups(page: &mut Page<'_>, totals: &BTreeMap<Group, Sums>) -> fmt::Result {
    let groups =
        || totals.iter().map(|((pool, cloud), sums)| (label(pool.as_str()), label(cloud.as_str()), sums));
    page.histograms(
        "twinspan_upstream_connect_duration_seconds",
        "Time that successful attempts to connect took, those of spare connections included.",
        ["pool", "cloud"],
        groups().map(|(pool, cloud, sums)| ([pool, cloud], sums.connect.clone())),
    )?;
    page.counters(
        "twinspan_upstream_connect_failures",
        "Failed attempts to connect.",
        ["pool", "cloud", "reason"],
        groups().flat_map(|(pool, cloud, sums)| {
            let seen = Cause::ALL.into_iter().zip(sums.failures).filter(|(_, count)| *count > 0);
            seen.map(move |(cause, count)| ([pool.clone(), cloud.clone(), cause.as_str().into()], count))
        }),
    )?;
    page.counters(
        "twinspan_transferred_bytes",
        "Bytes relayed.",
        ["pool", "cloud", "direction"],
        groups().flat_map(|(pool, cloud, sums)| {
            [("to_upstream", sums.to_upstream), ("to_client", sums.to_client)]
                .map(|(direction, count)| ([pool.clone(), cloud.clone(), direction.into()], count))
        }),
    )
}

/// Groups that never had a spare are left out.
fn spares(page: &mut Page<'_>, totals: &BTreeMap<Group, Sums>) -> fmt::Result {
    let groups = || {
        let had = |sums: &Sums| {
            let ended: u64 = sums.spare_ends.iter().sum();
            sums.spares + ended + sums.spare_failures > 0
        };
        totals
            .iter()
            .filter(move |(_, sums)| had(sums))
            .map(|((pool, cloud), sums)| ([label(pool.as_str()), label(cloud.as_str())], sums))
    };
    page.gauges(
        "twinspan_spare_connections",
        "Spare connections that are ready: established, without a session.",
        ["pool", "cloud"],
        groups().map(|(names, sums)| (names, sums.spares as f64)),
    )?;
    page.counters(
        "twinspan_spare_connections_ended",
        "Spare connections that a session has `used`, the `endpoint` has closed, `age` has ended, or that were `withdrawn`.",
        ["pool", "cloud", "reason"],
        groups().flat_map(|([pool, cloud], sums)| {
            let ends = SpareEnd::ALL.into_iter().zip(sums.spare_ends);
            ends.map(move |(end, count)| ([pool.clone(), cloud.clone(), end.as_str().into()], count))
        }),
    )?;
    page.counters(
        "twinspan_spare_connect_failures",
        "Spare connections that could not be established. They are not among the failed attempts of sessions.",
        ["pool", "cloud"],
        groups().map(|(names, sums)| (names, sums.spare_failures)),
    )
}

fn endpoints(page: &mut Page<'_>, overview: &Overview) -> fmt::Result {
    const LABELS: [&str; 3] = ["pool", "cloud", "endpoint"];
    let endpoints = || overview.pools.iter().flat_map(|pool| &pool.endpoints);
    page.gauges(
        "twinspan_endpoint_healthy",
        "1 while probes say that it is up.",
        LABELS,
        endpoints().map(|one| (names(one), flag(one.verdict == Verdict::Up))),
    )?;
    page.gauges(
        "twinspan_endpoint_in_use",
        "1 while new sessions may be given to it at the first attempt.",
        LABELS,
        endpoints().map(|one| (names(one), flag(one.in_use))),
    )?;
    page.counters(
        "twinspan_health_check_transitions",
        "How often the verdict of probes changed.",
        LABELS,
        endpoints().map(|one| (names(one), one.transitions)),
    )?;
    page.counters(
        "twinspan_endpoint_flaps",
        "How often the probes of an endpoint were good again after they had been bad. The more of late, the longer they must \
         be good before it is used.",
        LABELS,
        endpoints().map(|one| (names(one), one.judged.flaps)),
    )?;
    page.gauges(
        "twinspan_upstream_connections_active",
        "Sessions now, attempts included.",
        LABELS,
        endpoints().map(|one| (names(one), one.cell.active() as f64)),
    )?;
    page.counters(
        "twinspan_upstream_connections",
        "Sessions that connected.",
        LABELS,
        endpoints().map(|one| (names(one), one.cell.sessions())),
    )
}

fn names(endpoint: &EndpointView) -> [Label<'_>; 3] {
    let identity = &endpoint.identity;
    [label(identity.pool.as_str()), label(identity.cloud.as_str()), identity.address.to_string().into()]
}

fn label(text: &str) -> Label<'_> {
    text.into()
}

fn flag(set: bool) -> f64 {
    if set { 1.0 } else { 0.0 }
}

fn since_1970(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

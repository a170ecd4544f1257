//! One scenario against one proxy: warm up, read the books, work, read them again.

use std::{collections::BTreeMap, io, time::Duration};

use anyhow::Context;
use serde::Serialize;

use crate::{
    account::{self, Calls},
    configs::Front,
    host::{self, Crew},
    load::{self, Churn, Exchange, REQUEST_BYTES, Stream, Tally},
    proxies::{Kind, Proxy, Site},
    swaps,
    target::{Ask, Serves},
    tls::{Clients, Papers, Work},
};

/// Connections of the request/reply scenarios, and slots of the saturated churn.
pub(crate) const CONNECTIONS: usize = 64;
/// Connections of the bulk scenarios.
const STREAMS: usize = 4;
/// With two workers: of 4 the kernel gives all to one worker now and then.
const MORE_STREAMS: usize = 16;
/// Requests a second at a fixed rate: some fifth of what one core can do.
pub(crate) const REQUEST_RATE: u32 = 15_000;
/// New connections a second at a fixed rate.
const CONNECTION_RATE: u32 = 2_000;
/// Slots at a fixed rate: a stall of a quarter of a second keeps its full effect.
const RATE_SLOTS: usize = 512;
const BIG_REPLY: u32 = 64 << 10;

/// What is done to a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Scenario {
    /// 128 B each way on 64 connections, as fast as it goes.
    Rr,
    /// The same at 15,000 a second.
    RrRate,
    /// 128 B requests, 64 KiB replies, as fast as it goes.
    Big,
    /// Bulk from the target, 4 connections.
    Down,
    /// Bulk to the target.
    Up,
    /// Both at once.
    Both,
    /// Connect, one exchange, close; as fast as it goes.
    Churn,
    /// The same at 2,000 a second.
    ChurnRate,
    /// rr through two workers, nothing pinned.
    RrTwo,
    /// Bulk from the target through two workers, nothing pinned, 16 connections.
    DownTwo,
    /// churn through two workers, nothing pinned.
    ChurnTwo,
    /// rr-rate through twinspan while generations are swapped, and while not.
    Swaps,
    /// Thousands of connections that do nothing.
    Idle,
    /// System calls, counted by perf.
    Calls,
    /// A whole TLS handshake, one exchange, close; as fast as it goes.
    TlsFull,
    /// The same, resumed.
    TlsResumed,
    /// Bulk from the target over TLS, 4 connections.
    TlsDown,
    /// A ClientHello there and back through a plain listener, close; as fast as it goes.
    Hello,
    /// The same through a listener that routes by the server name in it.
    HelloNamed,
}

/// What comes out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Metric {
    /// Microseconds of proxy CPU a unit; for bulk, milliseconds a GB.
    Cpu,
    /// Units a second; for bulk, Gbit/s.
    Rate,
    /// Microseconds from the intended start.
    P50,
    P90,
    P99,
    /// Bytes a session.
    Pss,
    Rss,
    /// kB of the whole proxy.
    RssStart,
    RssAfter,
    /// Microseconds of CPU a request of the threads that carry traffic.
    CpuTraffic,
    /// Generations a second.
    Generations,
    /// The same as without `Still`, while no generation is swapped.
    StillCpu,
    StillCpuTraffic,
    StillP50,
    StillP99,
    /// System calls a request, with one connection.
    CallsOne,
    /// System calls a request, with 64 connections.
    CallsRr,
    /// System calls a connection.
    CallsChurn,
    /// System calls a GB downwards.
    CallsDown,
}

/// Figures of one measurement.
#[derive(Debug, Default)]
pub(crate) struct Sample {
    pub(crate) figures: BTreeMap<Metric, f64>,
    /// Connections that failed.
    pub(crate) errors: u64,
    /// Why there are no figures although nothing failed.
    pub(crate) lacks: Option<&'static str>,
}

/// How long to work.
#[derive(Clone, Copy)]
pub(crate) struct Spans {
    pub(crate) warm: Duration,
    pub(crate) work: Duration,
}

impl Metric {
    /// Of everything else less is better.
    pub(crate) const fn more_is_better(self) -> bool {
        matches!(self, Self::Rate | Self::Generations)
    }
}

impl Scenario {
    /// True when bytes are counted.
    pub(crate) const fn is_bulk(self) -> bool {
        matches!(self, Self::Down | Self::Up | Self::Both | Self::DownTwo | Self::TlsDown)
    }

    /// How long to work where others take `work`. At a fixed rate four times as long: a machine that stands still for a few
    /// milliseconds once would be one request in a hundred.
    pub(crate) fn spans(self, work: Duration) -> Spans {
        let fixed_rate = matches!(self, Self::RrRate | Self::ChurnRate | Self::Swaps);
        Spans { warm: work / 5, work: if fixed_rate { work * 4 } else { work } }
    }

    const fn has_latency(self) -> bool {
        matches!(self, Self::RrRate | Self::ChurnRate | Self::RrTwo)
    }

    /// What clients that speak TLS do, and through which front.
    const fn tls(self) -> Option<(Work, Front)> {
        match self {
            Self::TlsFull => Some((Work::Full, Front::Tls)),
            Self::TlsResumed => Some((Work::Resumed, Front::Tls)),
            Self::TlsDown => Some((Work::Down, Front::Tls)),
            Self::Hello => Some((Work::Hello, Front::Plain)),
            Self::HelloNamed => Some((Work::Hello, Front::Named)),
            _ => None,
        }
    }

    const fn crew(self) -> Crew {
        match self {
            Self::RrTwo | Self::DownTwo | Self::ChurnTwo => Crew::Free,
            _ => Crew::Pinned,
        }
    }
}

/// Runs `scenario` once. Scenarios that need a proxy give no figures without one.
pub(crate) fn measure(
    scenario: Scenario,
    kind: Kind,
    site: Site<'_>,
    spans: Spans,
) -> anyhow::Result<Sample> {
    if scenario == Scenario::Swaps {
        return if kind.is_twinspan() { swaps::measure(kind, site, spans) } else { Ok(Sample::default()) };
    }
    if kind == Kind::Direct && matches!(scenario, Scenario::Idle | Scenario::Calls) {
        return Ok(Sample::default());
    }
    if let Some((work, front)) = scenario.tls() {
        return over_tls(scenario, kind, (work, front), site, spans);
    }
    let mut proxy = Proxy::start(kind, scenario.crew(), site)?;
    let to = proxy.address;
    match scenario {
        Scenario::Rr | Scenario::RrTwo | Scenario::Big => {
            let reply = if scenario == Scenario::Big { BIG_REPLY } else { REQUEST_BYTES };
            let mut exchange = Exchange::open(to, CONNECTIONS, reply)?;
            timed(scenario, &proxy, spans, |span| exchange.run(span))
        }
        Scenario::RrRate => {
            let mut exchange = Exchange::open(to, CONNECTIONS, REQUEST_BYTES)?;
            let mut target = proxy.target()?;
            timed(scenario, &proxy, spans, |span| exchange.run_at(REQUEST_RATE, span, &mut target))
        }
        Scenario::Down | Scenario::DownTwo | Scenario::Up | Scenario::Both => {
            let ask = match scenario {
                Scenario::Up => Ask::Sink,
                Scenario::Both => Ask::Both,
                _ => Ask::Source,
            };
            let streams = if scenario == Scenario::DownTwo { MORE_STREAMS } else { STREAMS };
            let mut stream = Stream::open(to, streams, ask)?;
            timed(scenario, &proxy, spans, |span| stream.run(span))
        }
        Scenario::Churn | Scenario::ChurnTwo => {
            let mut churn = Churn::new(to, CONNECTIONS)?;
            timed(scenario, &proxy, spans, |span| churn.run(span))
        }
        Scenario::ChurnRate => {
            let mut churn = Churn::new(to, RATE_SLOTS)?;
            let mut target = proxy.target()?;
            timed(scenario, &proxy, spans, |span| churn.run_at(CONNECTION_RATE, span, &mut target))
        }
        Scenario::Idle => idle(&proxy, site),
        Scenario::Calls => calls(&proxy, spans.work),
        _ => Ok(Sample::default()),
    }
}

fn over_tls(
    scenario: Scenario,
    kind: Kind,
    (work, front): (Work, Front),
    site: Site<'_>,
    spans: Spans,
) -> anyhow::Result<Sample> {
    // Nobody ends TLS without a proxy, and Envoy is not set up for it here.
    if matches!(kind, Kind::Envoy | Kind::HaproxySplice) || kind == Kind::Direct && front == Front::Tls {
        return Ok(Sample::default());
    }
    let dir = host::directory()?;
    let papers = Papers::write(dir.path())?;
    let serves = if work == Work::Hello { Serves::Echo } else { Serves::Asked };
    let answers = |to| papers.answers(to, work);
    let proxy = Proxy::start_with(kind, scenario.crew(), site, (dir, front, serves), answers)?;
    let mut clients = Clients::new(proxy.address, &papers, work)?;
    timed(scenario, &proxy, spans, |span| clients.run(span))
}

fn timed(
    scenario: Scenario,
    proxy: &Proxy,
    spans: Spans,
    mut work: impl FnMut(Duration) -> io::Result<Tally>,
) -> anyhow::Result<Sample> {
    let family = proxy.family();
    let warm = work(spans.warm)?;
    let before = if family.is_empty() { None } else { Some(account::cpu(family)?) };
    let tally = work(spans.work)?;
    let after = if family.is_empty() { None } else { Some(account::cpu(family)?) };
    anyhow::ensure!(tally.units > 0, "nothing went through in {:?} ({} errors)", tally.elapsed, tally.errors);
    let units = tally.units as f64;
    // ns a byte to ms a GB, ns a unit to us a unit; bytes a second to Gbit/s.
    let (cpu_scale, rate_scale) = if scenario.is_bulk() { (1e3, 8e-9) } else { (1e-3, 1.0) };
    let mut figures = BTreeMap::new();
    if let (Some(before), Some(after)) = (before, after) {
        figures.insert(Metric::Cpu, after.saturating_sub(before).as_nanos() as f64 / units * cpu_scale);
    }
    figures.insert(Metric::Rate, units / tally.elapsed.as_secs_f64() * rate_scale);
    if scenario.has_latency() {
        for (metric, quantile) in [(Metric::P50, 0.5), (Metric::P90, 0.9), (Metric::P99, 0.99)] {
            figures.insert(metric, tally.latency.value_at_quantile(quantile) as f64 / 1e3);
        }
    }
    Ok(Sample { figures, errors: warm.errors + tally.errors, lacks: None })
}

fn idle(proxy: &Proxy, site: Site<'_>) -> anyhow::Result<Sample> {
    let family = proxy.family();
    let (start, descriptors) = (account::memory(family)?, account::descriptors(family));
    let mut held = Vec::new();
    for number in 0..site.sessions {
        anyhow::ensure!(!host::interrupted(), "interrupted");
        held.push(load::exchange_once(proxy.address).with_context(|| format!("session {number}"))?);
    }
    let full = account::memory(family)?;
    drop(held);
    let closed =
        host::eventually(Duration::from_secs(20), || Ok(account::descriptors(family) <= descriptors))?;
    anyhow::ensure!(closed, "{} descriptors did not go", account::descriptors(family));
    let after = account::memory(family)?;
    let each = |full: u64, start: u64| full.saturating_sub(start) as f64 / site.sessions as f64;
    let figures = BTreeMap::from([
        (Metric::Pss, each(full.pss, start.pss)),
        (Metric::Rss, each(full.rss, start.rss)),
        (Metric::RssStart, start.rss as f64 / 1024.0),
        (Metric::RssAfter, after.rss as f64 / 1024.0),
    ]);
    Ok(Sample { figures, ..Sample::default() })
}

/// Counts only: tracing slows the proxy down.
fn calls(proxy: &Proxy, span: Duration) -> anyhow::Result<Sample> {
    let mut sample = Sample::default();
    let mut count = |metric, work: &mut dyn FnMut() -> io::Result<Tally>, scale: f64| {
        let Some(calls) = Calls::start(proxy.family())? else {
            sample.lacks = Some("no figures: perf is not here or may not trace");
            return Ok(());
        };
        let tally = work()?;
        let calls = calls.finish()?;
        anyhow::ensure!(tally.units > 0, "nothing went through while counting calls");
        sample.errors += tally.errors;
        sample.figures.insert(metric, calls as f64 / tally.units as f64 * scale);
        Ok(())
    };
    let mut one = Exchange::open(proxy.address, 1, REQUEST_BYTES)?;
    count(Metric::CallsOne, &mut || one.run(span), 1.0)?;
    let mut many = Exchange::open(proxy.address, CONNECTIONS, REQUEST_BYTES)?;
    count(Metric::CallsRr, &mut || many.run(span), 1.0)?;
    let mut churn = Churn::new(proxy.address, CONNECTIONS)?;
    count(Metric::CallsChurn, &mut || churn.run(span), 1.0)?;
    let mut stream = Stream::open(proxy.address, STREAMS, Ask::Source)?;
    count(Metric::CallsDown, &mut || stream.run(span), 1e9)?;
    Ok(sample)
}

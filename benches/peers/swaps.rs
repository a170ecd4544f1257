//! Requests at a fixed rate while the routing snapshot is replaced a thousand times a second. The proxy is this program
//! itself, started once more: it serves an [`App`] as twinspan does, and sends it a change each millisecond while it is
//! told to.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, BufRead, BufReader, Lines, Write},
    net::SocketAddr,
    path::Path,
    process::{ChildStdout, Stdio},
    sync::Arc,
    thread,
    time::Duration,
};

use anyhow::Context;
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval},
};
use twinspan::{
    app::{App, Options},
    config,
    control::{Change, ChangeSender, health::Verdict},
    ids::{EndpointKey, PoolName},
};

use crate::{
    account,
    configs::{self, Front, Setting},
    host::{self, Crew, Ground},
    load::{Exchange, REQUEST_BYTES, Tally},
    measure::{CONNECTIONS, Metric, REQUEST_RATE, Sample, Spans},
    proxies::{Kind, Process, Site},
    target::{ByHand, Serves, Target},
};

/// Swaps a second.
const SWAPS: u32 = 1000;

/// The thread that sends the changes: it is the rig's, and counts nowhere.
const SWAPPER: &str = "swapper";

/// Under which names the figures of both halves go.
const SWAPPED: [Metric; 4] = [Metric::Cpu, Metric::CpuTraffic, Metric::P50, Metric::P99];
const STILL: [Metric; 4] = [Metric::StillCpu, Metric::StillCpuTraffic, Metric::StillP50, Metric::StillP99];

/// What the started program is told.
const SWAP: &str = "swap";
const REST: &str = "rest";

/// Half of the work with swaps and half without, in turn: rest, swap, swap, rest. So neither is later than the other.
pub(crate) fn measure(kind: Kind, site: Site<'_>, spans: Spans) -> anyhow::Result<Sample> {
    let mut ground = Ground::fresh();
    let target = Target::start(ground.address()?, Serves::Asked, Crew::Pinned, site.cpus)?;
    let dir = host::directory()?;
    let (listen, health, spare) = (ground.address()?, ground.address()?, ground.address()?);
    let setting = Setting {
        front: Front::Plain,
        listen,
        health,
        target: target.address,
        dir: dir.path(),
        workers: Crew::Pinned.workers(),
        sessions: site.sessions,
    };
    let config = dir.path().join("config.toml");
    fs::write(&config, configs::twinspan_with_spare(&setting, kind == Kind::Twinspan, spare))?;
    let mut served = Served::start((&config, spare), dir, site)?;
    let mut exchange = Exchange::open(listen, CONNECTIONS, REQUEST_BYTES)?;
    let mut target = target.by_hand()?;
    exchange.run_at(REQUEST_RATE, spans.warm, &mut target)?;
    let (mut still, mut swapped) = (Part::default(), Part::default());
    for swap in [false, true, true, false] {
        let part = if swap { &mut swapped } else { &mut still };
        let from = served.tell(swap)?;
        part.add((&mut exchange, &mut target), &served.process.family, spans.work / 2)?;
        part.generations += served.tell(false)?.saturating_sub(from);
    }
    anyhow::ensure!(swapped.generations > 0, "no generation came of the changes");
    let mut figures = BTreeMap::from([(Metric::Generations, swapped.per_second())]);
    figures.extend(swapped.figures(SWAPPED)?);
    figures.extend(still.figures(STILL)?);
    Ok(Sample { figures, ..Sample::default() })
}

/// What came of one half of the work.
#[derive(Default)]
struct Part {
    tally: Option<Tally>,
    /// Of all threads but the rig's.
    cpu: Duration,
    /// Of those that carry traffic.
    traffic: Duration,
    generations: u64,
}

impl Part {
    fn add(
        &mut self,
        (exchange, target): (&mut Exchange, &mut ByHand),
        family: &[u32],
        span: Duration,
    ) -> anyhow::Result<()> {
        let books = || {
            let all = account::cpu_of(family, |name| name != SWAPPER)?;
            let traffic = |name: &str| name.starts_with("worker-") || name.starts_with("slow-");
            anyhow::Ok((all, account::cpu_of(family, traffic)?))
        };
        let before = books()?;
        let tally = exchange.run_at(REQUEST_RATE, span, target)?;
        let after = books()?;
        self.cpu += after.0.saturating_sub(before.0);
        self.traffic += after.1.saturating_sub(before.1);
        match &mut self.tally {
            Some(all) => all.add(&tally)?,
            none => *none = Some(tally),
        }
        Ok(())
    }

    fn per_second(&self) -> f64 {
        let elapsed = self.tally.as_ref().map_or(0.0, |tally| tally.elapsed.as_secs_f64());
        if elapsed > 0.0 { self.generations as f64 / elapsed } else { 0.0 }
    }

    /// CPU of all and of the traffic, p50 and p99, under the given names.
    fn figures(&self, names: [Metric; 4]) -> anyhow::Result<[(Metric, f64); 4]> {
        let tally = self.tally.as_ref().filter(|tally| tally.units > 0).context("nothing went through")?;
        let each = |cpu: Duration| cpu.as_nanos() as f64 / tally.units as f64 / 1e3;
        let wait = |quantile| tally.latency.value_at_quantile(quantile) as f64 / 1e3;
        let [cpu, traffic, p50, p99] = names;
        Ok([(cpu, each(self.cpu)), (traffic, each(self.traffic)), (p50, wait(0.5)), (p99, wait(0.99))])
    }
}

/// This program, serving; told what to do on its standard input.
struct Served {
    process: Process,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Served {
    fn start(
        (config, spare): (&Path, SocketAddr),
        dir: tempfile::TempDir,
        site: Site<'_>,
    ) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("cannot tell where this program is")?;
        let mut command = host::alone(&program);
        command.arg(crate::FROM_CARGO).arg("--serve").arg(config).arg("--spare").arg(spare.to_string());
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = Process::start(&mut command, dir, Crew::Pinned, site)?;
        let answers = process.child.stdout.take().context("no output of what serves")?;
        let mut served = Self { process, answers: BufReader::new(answers).lines() };
        // Its first answer says that it serves.
        served.tell(false)?;
        served.process.family = account::family(served.process.child.id());
        host::prefer(served.process.child.id());
        Ok(served)
    }

    /// Has it swap or rest; returns the generation of that moment.
    fn tell(&mut self, swap: bool) -> anyhow::Result<u64> {
        let input = self.process.child.stdin.as_mut().context("no input of what serves")?;
        writeln!(input, "{}", if swap { SWAP } else { REST })?;
        let answer = self.answers.next().context("what serves has ended")??;
        answer.parse().with_context(|| format!("cannot serve: {answer}"))
    }
}

/// Serves `config` until the input ends. Each line of the input is answered with the generation.
pub(crate) fn serve(config: &Path, spare: SocketAddr) -> anyhow::Result<()> {
    let text = fs::read_to_string(config)?;
    let loaded = config::parse(&text, "swaps")?;
    let app = App::start(loaded.config, Options::default())?;
    let swap = watch::Sender::new(false);
    let (told, changes) = (swap.subscribe(), app.changes().clone());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let key = EndpointKey { pool: PoolName::from(configs::POOL), address: spare };
    let swapper = thread::Builder::new()
        .name(SWAPPER.to_owned())
        .spawn(move || runtime.block_on(swap_when_told(told, changes, key)))?;
    for line in io::stdin().lines() {
        swap.send_replace(line? == SWAP);
        writeln!(io::stdout().lock(), "{}", app.shared().snapshot().generation.0)?;
    }
    drop(swap);
    drop(swapper.join());
    app.drain(Duration::ZERO);
    Ok(())
}

/// Sends a change each millisecond while `told` says so: the spare endpoint goes down and comes back.
async fn swap_when_told(mut told: watch::Receiver<bool>, changes: ChangeSender, spare: EndpointKey) {
    let mut verdict = Verdict::Up;
    while told.wait_for(|swap| *swap).await.is_ok() {
        let mut tick = interval(Duration::from_secs(1) / SWAPS);
        tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
        while *told.borrow() {
            tick.tick().await;
            verdict = if verdict == Verdict::Up { Verdict::Down } else { Verdict::Up };
            let change = Change::Verdict {
                endpoint: spare.clone(),
                verdict,
                reason: Arc::from("a swap"),
                answered: false,
                began: Instant::now(),
            };
            if changes.send(change).await.is_err() {
                return;
            }
        }
    }
}

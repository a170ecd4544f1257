//! Faults at random, under load: processes that are killed or stopped, packets that vanish or are refused, for one
//! endpoint or a whole cloud, again and again. Every client is asked what it saw.
//!
//! A client that has sent its request and sees the connection end does not know whether the endpoint has read it; nor
//! does the proxy, which must not send it twice unless the pool says so. The proxy's log tells those failures from those
//! of sessions that had not yet been connected, and the latter must not happen.
//!
//! - `TWINSPAN_FAULTS=1000`: so many faults, in place of 25
//! - `TWINSPAN_FAULTS_SHARDS=4`: in so many networks side by side
//! - `TWINSPAN_FAULTS_PEERS=1`: HAProxy and nginx suffer the same
//! - `TWINSPAN_FAULTS_POOL='KEY = VALUE'`: more settings for twinspan's pool
//! - `TWINSPAN_FAULTS_TALE=FILE`: what happened, by time, for who looks for a cause
//! - `TWINSPAN_SEED=N`: other dice

mod figures;
mod ground;
mod plan;
mod subject;
mod tale;
mod traffic;

use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::time::{Instant, sleep};

use crate::harness::{Net, count_from, eventually, missing, skip};
use figures::{Figures, Longest, Run};
use ground::Endpoints;
use subject::{Kind, Subject};
use traffic::{Company, Crowd, Witness};

/// The most that may be. Those without `asserted` are goals.
struct Limit {
    what: &'static str,
    most: f64,
    asserted: bool,
}

/// Sessions that failed before an endpoint was connected.
const BEFORE: Limit = Limit { what: "failed before an endpoint was connected", most: 0.0, asserted: true };
/// Sessions that an endpoint took with it before a byte had been sent to it: another one could have had them.
const UNSENT: Limit = Limit { what: "failed with nothing sent to its endpoint", most: 0.0, asserted: true };
/// Sessions that failed though nothing had struck their endpoint.
const UNEXPLAINED: Limit = Limit { what: "failed at a well endpoint", most: 0.0, asserted: true };
/// Sessions whose request an endpoint took with it, where the pool has `replay`.
const REPLAYED: Limit = Limit { what: "failed in spite of replay", most: 0.0, asserted: true };
/// Long sessions that broke at an endpoint that was well.
const BROKEN: Limit = Limit { what: "long sessions broken at a well endpoint", most: 0.0, asserted: true };
/// Seconds of the slowest connect while packets are lost. An attempt counts as late after 0.33 s at the most.
const CONNECT: Limit = Limit { what: "slowest connect while packets are lost", most: 0.4, asserted: true };
/// What it may take more where a session that is not answered for half a second is connected once more.
const MOVE: f64 = 0.6;
/// Seconds until a failed cloud is left, though the other one has only just come back. Sessions find it sooner than three
/// probes of 0.3 s do. No fault but a stop is longer than 1.5 s.
const LEFT: Limit = Limit { what: "time until a failed cloud is left", most: 1.0, asserted: true };
/// Seconds until a stopped process is left: no session tells, and the first of three probes of 0.3 s may come after 0.55 s.
/// The rest is for a tick, bytes of before, and a busy machine. A stop lasts for up to 3 s.
const STOPPED: Limit = Limit { what: "time until a stopped process is left", most: 2.0, asserted: true };
/// The share of all sessions that tried what had failed later than 1 s, and 2 s where it had been stopped.
const LATE: Limit = Limit { what: "sessions that tried it later, of all", most: 0.005, asserted: true };
/// Attempts beyond the first for each session, after the first ten.
const EXTRA: Limit = Limit { what: "attempts beyond the first, per session", most: 0.2, asserted: true };

/// A client that is late by more than this is kept in mind.
const NOTICED: Duration = Duration::from_millis(20);

impl Limit {
    /// Says whether it is kept; an asserted one that is not is returned.
    fn judge(&self, found: f64) -> Option<String> {
        let line = format!("{}: {found:.3} of at most {}", self.what, self.most);
        let kept = found <= self.most;
        println!(
            "{} {line}",
            if kept {
                "kept:  "
            } else if self.asserted {
                "BROKEN:"
            } else {
                "goal:  "
            }
        );
        (!kept && self.asserted).then_some(line)
    }

    /// The same for a time. What the machine took is not the proxy's.
    fn judge_time(&self, found: &Longest) -> Option<String> {
        self.judge(found.time.saturating_sub(found.machine).as_secs_f64())
    }
}

#[test]
fn faults_at_random_cost_no_session_that_had_no_endpoint_yet() {
    const TEST: &str = "faults_at_random";
    if let Some(reason) = missing(&["python3"]) {
        return skip(TEST, &reason);
    }
    let kinds: &[Kind] = match count_from("TWINSPAN_FAULTS_PEERS", 0) {
        0 => &[Kind::Twinspan],
        _ => &[Kind::Twinspan, Kind::Haproxy, Kind::Nginx],
    };
    if let Some(reason) = missing(&["haproxy", "nginx"]).filter(|_| kinds.len() > 1) {
        return skip(TEST, &reason);
    }
    // A stopped cloud holds some thousand sessions; programs that are started inherit the limit.
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
    let seed = count_from("TWINSPAN_SEED", 20_261_122);
    let faults = usize::try_from(count_from("TWINSPAN_FAULTS", 25)).unwrap();
    let shards = usize::try_from(count_from("TWINSPAN_FAULTS_SHARDS", 1)).unwrap().clamp(1, faults.max(1));
    println!("seed {seed}, {faults} faults in {shards} networks");
    let mut columns = Vec::new();
    for kind in kinds {
        let Some(figures) = suffer(TEST, *kind, (seed, faults, shards)) else { return };
        columns.push((kind.name(), figures));
    }
    figures::print(&columns);
    let broken = judge(&columns[0].1);
    assert!(broken.is_empty(), "seed {seed}: {broken:#?}");
}

/// twinspan's figures beside the limits: those that are asserted and not kept.
fn judge(figures: &Figures) -> Vec<String> {
    let replays = std::env::var("TWINSPAN_FAULTS_POOL").is_ok_and(|keys| keys.contains("replay"));
    let count = |number: usize| f64::from(u32::try_from(number).unwrap());
    let extra = usize::try_from(figures.extra_attempts).unwrap().saturating_sub(10);
    let verdicts = [
        BEFORE.judge(count(figures.before)),
        UNSENT.judge(count(figures.unsent)),
        UNEXPLAINED.judge(count(figures.unexplained)),
        if replays { REPLAYED.judge(count(figures.handed)) } else { None },
        BROKEN.judge(count(figures.broken_well)),
        Limit { most: CONNECT.most + if replays { MOVE } else { 0.0 }, ..CONNECT }
            .judge_time(&figures.slowest_connect),
        LEFT.judge_time(&figures.left),
        STOPPED.judge_time(&figures.left_stopped),
        LATE.judge(count(figures.late + figures.late_stopped) / count(figures.sessions).max(1.0)),
        EXTRA.judge(count(extra) / count(figures.sessions).max(1.0)),
    ];
    verdicts.into_iter().flatten().collect()
}

/// One program through all faults: the shards' figures in one. `None` where there are no networks.
fn suffer(test: &str, kind: Kind, (seed, faults, shards): (u64, usize, usize)) -> Option<Figures> {
    let nets: Option<Vec<_>> = (0..shards).map(|_| Net::new(test)).collect();
    let nets = nets?;
    let shares = (0..shards)
        .map(|shard| (seed + shard as u64, faults / shards + usize::from(shard < faults % shards)));
    std::thread::scope(|scope| {
        let runs = nets.iter().zip(shares).map(|(net, (seed, share))| {
            scope.spawn(move || {
                let mut figures = None;
                net.run(async || figures = Some(Figures::of(&Box::pin(run(kind, seed, share)).await)));
                figures.unwrap()
            })
        });
        let mut sum = Figures::default();
        for run in runs.collect::<Vec<_>>() {
            sum.add(run.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        Some(sum)
    })
}

/// One program through the faults of one seed.
async fn run(kind: Kind, seed: u64, count: usize) -> Run {
    let mut endpoints = Endpoints::start().await;
    let subject = Subject::start(kind).await;
    let crowd = Crowd::start();
    let company = Company::start();
    let witness = Witness::start();
    eventually("long sessions with both clouds", async || company.is_complete().then_some(())).await;
    sleep(Duration::from_secs(1)).await;
    let mut faults = Vec::new();
    for (step, number) in plan::schedule(seed, count).into_iter().zip(1..) {
        faults.push(endpoints.suffer(number, step).await);
    }
    sleep(Duration::from_secs(1)).await;
    let sessions = crowd.stop().await;
    let (broken, exchanges) = company.stop().await;
    let mut witnessed = witness.stop().await;
    let late = sessions.iter().filter(|session| session.late > NOTICED);
    witnessed.extend(late.map(|session| (session.begun, session.begun + session.late)));
    let hedges = subject.hedges().await;
    // A line is written when the last packet has been answered for.
    let late = Instant::now() + Duration::from_secs(5);
    let mut lines = subject.lines();
    while lines.len() < sessions.len() && Instant::now() < late {
        sleep(Duration::from_millis(250)).await;
        lines = subject.lines();
    }
    let run = Run { seed, faults, sessions, lines, broken, exchanges, hedges, witnessed };
    tale::tell(&run, &subject.said());
    run
}

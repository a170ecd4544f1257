//! Load against targets, in this process.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use super::*;

const TIMEOUT: Duration = Duration::from_secs(10);

fn target(serves: Serves, threads: usize) -> Target {
    let address = (Ipv4Addr::LOCALHOST, 0).into();
    Target::start(&TargetOptions { address, serves, threads }).unwrap()
}

fn course(threads: usize, rate: Option<u64>) -> Course {
    let warmup = Duration::from_millis(50);
    Course { threads, warmup, length: Duration::from_millis(200), rate, spin: false }
}

fn job(to: SocketAddr, kind: Kind) -> Job {
    Job { to, connections: 6, timeout: TIMEOUT, kind }
}

fn measure(job: &Job, course: &Course) -> Tally {
    run(job, course, &Live::new(|| false), |_| {}).unwrap()
}

/// On a busy machine a short span may pass without a single turn.
fn measure_until(job: &Job, course: &Course, enough: impl Fn(&Tally) -> bool) -> Tally {
    let tallies = std::iter::repeat_with(|| measure(job, course)).take(50);
    tallies.into_iter().find(enough).unwrap_or_else(|| panic!("never enough: {job:?}"))
}

#[test]
fn every_kind_works_against_its_target() {
    let (echo, reply) = (target(Serves::Echo, 2), target(Serves::Asked, 2));
    for (to, script) in [
        (&echo, Script::echo(1)),
        (&echo, Script::echo(2_000_000)),
        (&reply, Script::reply(8, 1)),
        (&reply, Script::reply(200_000, 1)),
        (&reply, Script::reply(128, 3_000_000)),
    ] {
        for kind in [Kind::Exchange, Kind::Churn, Kind::Hold] {
            let job = job(to.address(), kind(script.clone()));
            let tally = measure_until(&job, &course(2, None), |tally| tally.units > 0);
            assert_eq!(tally.failures, Failures::default());
        }
    }
    for ask in [Ask::Source, Ask::Sink, Ask::Both] {
        let job = job(reply.address(), Kind::Stream { ask, say: true });
        let wanted = (ask != Ask::Sink, ask != Ask::Source);
        let tally = measure_until(&job, &course(2, None), |tally| (tally.down > 0, tally.up > 0) == wanted);
        assert_eq!(tally.failures, Failures::default());
    }
    let (served, asked) = (echo.finish().unwrap(), reply.finish().unwrap());
    assert!(served.connections >= 36 && served.sent > 0 && served.received >= served.sent, "{served:?}");
    assert!(asked.sent > 0 && asked.received > 0, "{asked:?}");
}

#[test]
fn an_open_loop_keeps_its_rate_and_what_it_could_not_send_has_waited() {
    let echo = target(Serves::Echo, 1);
    let script = Script::echo(64);
    let tally = measure(&job(echo.address(), Kind::Exchange(script.clone())), &course(1, Some(1_000)));
    // Whatever the machine did meanwhile, this many were due.
    let due = tally.elapsed.as_millis();
    let seen = u128::from(tally.latency.len());
    // Those under way at the end of the warm-up come on top.
    assert!(seen.abs_diff(due) <= 10, "{seen} of {due}");
    // A target that accepts and stays silent.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let to = silent.local_addr().unwrap();
    let tally = measure(&job(to, Kind::Exchange(script)), &course(1, Some(1_000)));
    assert_eq!(tally.units, 0);
    assert!(tally.unsent >= 150, "{tally:?}");
    assert!(tally.latency.max() >= 190_000_000, "{tally:?}");
}

#[test]
fn wrong_bytes_and_silence_are_found_out() {
    // It sends what nobody has asked for.
    let source = target(Serves::Source, 1);
    let tally = measure(&job(source.address(), Kind::Churn(Script::echo(64))), &course(1, None));
    assert!(tally.units == 0 && tally.failures.wrong_bytes > 0, "{tally:?}");
    let tally = measure(&job(source.address(), Kind::Exchange(Script::echo(64))), &course(1, None));
    assert!(tally.units == 0 && tally.failures.wrong_bytes > 0, "{tally:?}");
    // It never answers.
    let sink = target(Serves::Sink, 1);
    let timeout = Duration::from_millis(60);
    for kind in [Kind::Exchange, Kind::Churn, Kind::Hold] {
        let job = Job { timeout, ..job(sink.address(), kind(Script::echo(64))) };
        let tally = measure(&job, &course(1, None));
        assert!(tally.units == 0 && tally.failures.timed_out >= 6, "{kind:?}: {tally:?}");
        // What was given up has waited.
        assert!(tally.latency.len() >= 6 && tally.latency.min() >= 59_000_000, "{kind:?}: {tally:?}");
    }
}

#[test]
fn a_stop_is_heeded() {
    let echo = target(Serves::Echo, 1);
    let course = Course { length: Duration::from_secs(3600), ..course(2, None) };
    let job = job(echo.address(), Kind::Exchange(Script::echo(64)));
    let tally = run(&job, &course, &Live::new(|| true), |_| {}).unwrap();
    assert!(tally.elapsed < Duration::from_secs(60), "{tally:?}");
}

#[test]
fn a_load_serves_its_target_by_hand() {
    let threaded = target(Serves::Asked, 2);
    let mut live = Vec::new();
    for kind in [Kind::Exchange, Kind::Churn] {
        let job = job(threaded.address(), kind(Script::reply(128, 200_000)));
        let mut worker = Worker::new(&job, Share::ALL).unwrap();
        worker.open(&Live::new(|| false)).unwrap();
        live.push(worker);
    }
    let mut target = threaded.by_hand().unwrap();
    let rate = Rate { per_second: 500, threads: 1, thread: 0 };
    for mut worker in live {
        for rate in [Some(rate), None] {
            let span = Span { length: Duration::from_millis(100), rate, spin: true };
            let spans = std::iter::repeat_with(|| worker.run_beside(span, &mut target, &Live::new(|| false)));
            let tally = spans.take(50).map(Result::unwrap).find(|tally| tally.units > 0).unwrap();
            assert_eq!(tally.failures, Failures::default());
        }
    }
}

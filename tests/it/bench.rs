//! `twinspan bench`: its loads against its targets, and what it says when something is wrong.

use std::{net::SocketAddr, process::Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    net::TcpListener,
    process::{Child, ChildStderr, Command},
    time::Instant,
};

use crate::harness::{Output, Place, Process, Proxy, Setup, binary, listener, pool, run, soon};

/// A target of the bench, and where it listens.
async fn target(place: &Place, verb: &str, options: &[&str]) -> (Process, SocketAddr) {
    let mut command = Command::new(binary());
    command.args(["bench", verb, &SocketAddr::new(place.ip(), 0).to_string()]).args(options);
    let target = Process::start(command);
    let address = target.line("an address", |line| line.split(' ').nth(3)?.parse().ok()).await;
    (target, address)
}

async fn bench(arguments: &[&str]) -> Output {
    run(binary(), &[&["bench"], arguments].concat()).await
}

/// Runs a load to its end and reads its object.
async fn load(verb: &str, to: SocketAddr, options: &[&str]) -> (Option<i32>, Value) {
    let to = to.to_string();
    let output = bench(&[&[verb, &to, "--json"], options].concat()).await;
    (output.code, object(&output.stdout))
}

fn object(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn count(object: &Value, field: &str) -> u64 {
    object.pointer(field).and_then(Value::as_u64).unwrap_or_else(|| panic!("no {field}: {object:#}"))
}

fn number(object: &Value, field: &str) -> f64 {
    object.pointer(field).and_then(Value::as_f64).unwrap_or_else(|| panic!("no {field}: {object:#}"))
}

/// A load that runs.
struct Running {
    child: Child,
    progress: Lines<BufReader<ChildStderr>>,
}

impl Running {
    fn start(verb: &str, to: SocketAddr, options: &[&str]) -> Self {
        let mut command = Command::new(binary());
        command.args(["bench", verb, &to.to_string(), "--json", "--progress"]).args(options);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let progress = BufReader::new(child.stderr.take().unwrap()).lines();
        Self { child, progress }
    }

    /// Waits for a line of progress that is as it should be.
    async fn until(&mut self, what: &str, wanted: impl Fn(&str) -> bool) {
        let waiting = async {
            while let Some(line) = self.progress.next_line().await.unwrap() {
                if wanted(&line) {
                    return;
                }
            }
            panic!("it ended before {what}");
        };
        soon(what, waiting).await;
    }

    /// Waits until something has been done.
    async fn works(&mut self) {
        self.until("work", |line| line.split_whitespace().nth(2) > Some("0.00")).await;
    }

    fn interrupt(&self) {
        let id = i32::try_from(self.child.id().unwrap()).unwrap();
        kill_process(Pid::from_raw(id).unwrap(), Signal::INT).unwrap();
    }

    async fn end(self) -> (Option<i32>, Value) {
        // Its standard error has to be read to the end, or it could stall.
        let Self { child, mut progress } = self;
        let rest = async { while let Ok(Some(_)) = progress.next_line().await {} };
        let (output, ()) =
            soon("the end of the load", async { tokio::join!(child.wait_with_output(), rest) }).await;
        let output = output.unwrap();
        (output.status.code(), object(&String::from_utf8(output.stdout).unwrap()))
    }
}

const SHORT: [&str; 4] = ["--duration", "500ms", "--warmup", "50ms"];

#[tokio::test]
async fn requests_and_replies_are_counted_and_timed() {
    let place = Place::new();
    let (_echo, echo) = target(&place, "echo", &["--threads", "2"]).await;
    let (_reply, reply) = target(&place, "reply", &[]).await;
    for (verb, units) in [("rr", "requests"), ("churn", "sessions")] {
        for (to, more) in [
            (echo, ["--size", "128", "--connections", "8", "--threads", "2"].as_slice()),
            (echo, &["--size", "200KB", "--connections", "2"]),
            (reply, &["--size", "64", "--reply", "100KB", "--connections", "3"]),
            (reply, &["--ask", "--size", "2KB"]),
        ] {
            let (code, object) = load(verb, to, &[&SHORT, more].concat()).await;
            assert_eq!(code, Some(0), "{verb} {more:?}: {object:#}");
            assert_eq!((&object["ok"], &object["error"]), (&true.into(), &Value::Null));
            assert_eq!((&object["bench"], &object["target"]), (&verb.into(), &to.to_string().into()));
            assert_eq!((&object["rate"], &object["interrupted"]), (&Value::Null, &false.into()));
            assert_eq!((number(&object, "/duration_s"), number(&object, "/warmup_s")), (0.5, 0.05));
            assert_eq!(count(&object, "/errors/total"), 0, "{object:#}");
            let units = count(&object, &format!("/{units}"));
            assert!(units > 0 && count(&object, "/latency_us/count") == units, "{object:#}");
            assert!(number(&object, "/elapsed_s") >= 0.5);
            let quantiles = ["p50", "p90", "p99", "p99_9", "max"];
            let quantiles = quantiles.map(|name| number(&object, &format!("/latency_us/{name}")));
            assert!(quantiles[0] > 0.0 && quantiles.is_sorted(), "{object:#}");
            assert_eq!(object.get("connect_us").is_some(), verb == "churn");
        }
    }
}

#[tokio::test]
async fn bulk_goes_both_ways() {
    let place = Place::new();
    let (_source, source) = target(&place, "source", &[]).await;
    let (_sink, sink) = target(&place, "sink", &[]).await;
    let (_echo, echo) = target(&place, "echo", &[]).await;
    let (_reply, reply) = target(&place, "reply", &[]).await;
    for (direction, to) in [("down", source), ("up", sink), ("both", echo)] {
        for (to, ask) in [(to, None), (reply, Some("--ask"))] {
            let options: Vec<_> = SHORT.into_iter().chain(["--direction", direction]).chain(ask).collect();
            let (code, object) = load("stream", to, &options).await;
            assert_eq!(code, Some(0), "{object:#}");
            assert_eq!(object["direction"], direction);
            let moved = |way| count(&object, &format!("/bytes_{way}")) > 0;
            assert_eq!((moved("down"), moved("up")), (direction != "up", direction != "down"), "{object:#}");
            let speed = |way: &str| number(&object, &format!("/gbit_per_s{way}"));
            assert!(
                speed("") > 0.0 && (speed("_down") + speed("_up") - speed("")).abs() < 1e-4,
                "{object:#}"
            );
        }
    }
}

#[tokio::test]
async fn an_open_loop_keeps_its_rate() {
    let place = Place::new();
    let (_echo, to) = target(&place, "echo", &[]).await;
    for verb in ["rr", "churn"] {
        let options = ["--rate", "0.2k", "--connections", "4", "--duration", "1s", "--warmup", "0"];
        let (code, object) = load(verb, to, &options).await;
        assert_eq!((code, count(&object, "/rate")), (Some(0), 200), "{object:#}");
        // Every one that was due in the time it took has been done, is under way or was left: no more and no less.
        let due = number(&object, "/elapsed_s") * 200.0;
        let seen = number(&object, "/latency_us/count");
        assert!((seen - due).abs() <= 2.0, "{seen} of {due}: {object:#}");
    }
}

#[tokio::test]
async fn a_stall_counts_for_every_request_that_was_due_in_it() {
    let place = Place::new();
    let (echo, to) = target(&place, "echo", &[]).await;
    let mut load = Running::start(
        "rr",
        to,
        &["--rate", "100", "--connections", "1", "--duration", "1h", "--timeout", "1h", "--warmup", "0"],
    );
    load.works().await;
    echo.signal(Signal::STOP);
    let start = Instant::now();
    load.until("the stall", |line| line.contains("  0 req/s")).await;
    load.until("a second of it", |line| line.contains("  0 req/s")).await;
    echo.signal(Signal::CONT);
    let stalled = start.elapsed().as_secs_f64();
    load.works().await;
    load.interrupt();
    let (code, object) = load.end().await;
    assert_eq!(code, Some(0), "{object:#}");
    assert!(number(&object, "/latency_us/max") >= (stalled - 0.1) * 1e6, "{stalled} s: {object:#}");
    // One connection: left to itself the load would have seen one late reply, and not those that had to wait for it.
    assert!(number(&object, "/latency_us/p90") >= 0.1 * stalled * 1e6, "{stalled} s: {object:#}");
}

#[tokio::test]
async fn idle_sessions_live_or_are_counted_as_dead() {
    let place = Place::new();
    let (mut echo, to) = target(&place, "echo", &[]).await;
    let (code, object) = load("idle", to, &["--connections", "300", "--duration", "200ms"]).await;
    assert_eq!(code, Some(0), "{object:#}");
    let fates = |object: &Value| ["/opened", "/died", "/alive"].map(|field| count(object, field));
    assert_eq!((fates(&object), count(&object, "/latency_us/count")), ([300, 0, 300], 300), "{object:#}");

    let mut load = Running::start("idle", to, &["--connections", "20", "--duration", "1h", "--threads", "2"]);
    load.until("progress", |_| true).await;
    echo.kill().await;
    load.until("the deaths", |line| line.ends_with("  20 errors")).await;
    load.interrupt();
    let (code, object) = load.end().await;
    assert_eq!((code, &object["interrupted"]), (Some(1), &true.into()), "{object:#}");
    assert_eq!((fates(&object), count(&object, "/errors/total")), ([20, 20, 0], 20), "{object:#}");
    let told = format!("no connection to {to} lived to the end");
    assert_eq!((&object["ok"], &object["error"]), (&false.into(), &told.into()), "{object:#}");
}

#[tokio::test]
async fn bulk_that_stands_still_is_given_up_and_made_anew() {
    let place = Place::new();
    for (direction, of) in [("down", "source"), ("up", "sink"), ("both", "echo")] {
        let (target, to) = target(&place, of, &[]).await;
        let options = ["--direction", direction, "--timeout", "300ms", "--duration", "1h", "--warmup", "0"];
        let mut load = Running::start("stream", to, &options);
        load.works().await;
        target.signal(Signal::STOP);
        let errors = |line: &str| line.split_whitespace().rev().nth(1)?.parse::<u64>().ok();
        load.until("the end of all four", |line| errors(line) >= Some(4)).await;
        target.signal(Signal::CONT);
        load.works().await;
        load.interrupt();
        let (code, object) = load.end().await;
        assert_eq!(code, Some(0), "{object:#}");
        assert!(count(&object, "/errors/timed_out") >= 4, "{direction}: {object:#}");
    }
}

#[tokio::test]
async fn a_target_that_dies_is_counted_and_does_not_end_the_load() {
    let place = Place::new();
    for (verb, of) in [("rr", "echo"), ("churn", "echo"), ("stream", "source")] {
        let (mut target, to) = target(&place, of, &[]).await;
        let mut load = Running::start(verb, to, &["--duration", "1h", "--warmup", "0"]);
        load.works().await;
        target.kill().await;
        load.until("errors", |line| !line.ends_with("  0 errors")).await;
        load.until("more errors", |_| true).await;
        load.interrupt();
        let (code, object) = load.end().await;
        assert_eq!((code, &object["ok"], &object["interrupted"]), (Some(0), &true.into(), &true.into()));
        assert!(count(&object, "/errors/refused") > 0, "{verb}: {object:#}");
        assert_eq!(count(&object, "/errors/wrong_bytes"), 0, "{object:#}");
    }
}

#[tokio::test]
async fn a_load_is_ended_early_by_a_signal_and_has_its_summary() {
    let place = Place::new();
    let (_echo, to) = target(&place, "echo", &[]).await;
    // In the measurement, and in the warm-up, which then is all there is.
    for warmup in ["0", "1h"] {
        let mut load = Running::start("rr", to, &["--duration", "1h", "--warmup", warmup]);
        load.works().await;
        load.interrupt();
        let (code, object) = load.end().await;
        assert_eq!((code, &object["interrupted"]), (Some(0), &true.into()), "{object:#}");
        assert!(count(&object, "/requests") > 0 && number(&object, "/elapsed_s") < 3600.0, "{object:#}");
    }
}

#[tokio::test]
async fn nobody_there_is_told_with_code_1() {
    let place = Place::new();
    let to = place.free().to_string();
    let told = format!("error: nobody listens at {to}\n  hint: `twinspan bench echo` is a target");
    for verb in ["rr", "stream", "churn", "idle"] {
        let output = bench(&[verb, &to]).await;
        assert_eq!((output.code, output.stdout.as_str()), (Some(1), ""), "{output:?}");
        assert!(output.stderr.starts_with(&told), "{output:?}");
        let output = bench(&[verb, &to, "--json"]).await;
        let object = object(&output.stdout);
        assert_eq!(
            (output.code, &object["ok"], count(&object, "/errors/refused")),
            (Some(1), &false.into(), 1)
        );
        assert!(object["error"].as_str().unwrap().starts_with("nobody listens"), "{object:#}");
    }
}

#[tokio::test]
async fn wrong_bytes_are_a_failure() {
    let place = Place::new();
    let (_source, source) = target(&place, "source", &[]).await;
    let (_echo, echo) = target(&place, "echo", &[]).await;
    for (to, size, hint) in
        [(source, "128", "`twinspan bench echo`"), (echo, "200", "`twinspan bench reply`")]
    {
        let output = bench(
            &[&["rr", &to.to_string(), "--json", "--size", "128", "--reply", size], SHORT.as_slice()]
                .concat(),
        )
        .await;
        let object = object(&output.stdout);
        assert_eq!((output.code, &object["ok"]), (Some(1), &false.into()), "{object:#}");
        assert!(count(&object, "/errors/wrong_bytes") > 0, "{object:#}");
        assert!(output.stderr.contains(hint), "{output:?}");
        assert!(object["error"].as_str().unwrap().contains(hint), "{object:#}");
    }
    // One reply on each connection is right.
    let liar = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let to = liar.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = liar.accept().await {
            tokio::spawn(async move {
                let mut request = [0; 128];
                client.read_exact(&mut request).await?;
                client.write_all(&request).await?;
                client.read_exact(&mut request).await?;
                client.write_all(&request.map(|byte| !byte)).await
            });
        }
    });
    let (code, object) = load("rr", to, &["--duration", "500ms", "--warmup", "0"]).await;
    assert_eq!((code, &object["ok"]), (Some(1), &false.into()), "{object:#}");
    assert!(count(&object, "/requests") > 0 && count(&object, "/errors/wrong_bytes") > 0, "{object:#}");
    assert!(
        object["error"].as_str().unwrap().starts_with(&format!("wrong bytes came from {to}")),
        "{object:#}"
    );
}

#[tokio::test]
async fn a_target_says_where_it_is_and_what_it_did() {
    let place = Place::new();
    for (signal, verb) in [(Signal::INT, "echo"), (Signal::TERM, "reply")] {
        let (mut running, address) = target(&place, verb, &["--threads", "2"]).await;
        let second = bench(&[verb, &address.to_string()]).await;
        assert_eq!(second.code, Some(1), "{second:?}");
        assert!(second.stderr.contains(&format!("error: cannot listen on {address}: ")), "{second:?}");
        let (code, _) = load("idle", address, &["--ask", "--connections", "3", "--duration", "50ms"]).await;
        // An echo sends the request back, and that is not what was asked for.
        assert_eq!(code, Some(i32::from(verb == "echo")));
        running.signal(signal);
        assert_eq!(running.end().await.code(), Some(0));
        let said = running.said();
        let lines: Vec<_> = said.lines().collect();
        assert_eq!(lines[0], format!("{verb}: listening on {address} (2 threads)"));
        assert!(
            lines[1].starts_with(&format!("{verb}: 4 connections, received 384 B, sent 384 B, in ")),
            "{said}"
        );
    }
}

#[tokio::test]
async fn wrong_usage_ends_with_code_2() {
    for arguments in [
        ["rr"].as_slice(),
        &["rr", "nowhere"],
        &["rr", "127.0.0.1:1", "--rate", "0"],
        &["rr", "127.0.0.1:1", "--spin"],
        &["rr", "127.0.0.1:1", "--size", "4", "--reply", "100"],
        &["churn", "127.0.0.1:1", "--duration", "0s"],
        &["stream", "127.0.0.1:1", "--direction", "sideways"],
        &["idle", "127.0.0.1:1", "--connections", "0"],
        &["echo", "here"],
        &["echo", "--threads", "0"],
    ] {
        let output = bench(arguments).await;
        assert_eq!((output.code, output.stdout.as_str()), (Some(2), ""), "{arguments:?}: {output:?}");
        assert!(!output.stderr.is_empty());
    }
}

#[tokio::test]
async fn a_proxy_is_measured_between_load_and_target() {
    let place = Place::new();
    let (_reply, endpoint) = target(&place, "reply", &[]).await;
    let bind = place.free();
    let tables = pool("only", "", &[("aws", endpoint)]) + &listener(bind, "only", "");
    let _proxy = Proxy::start(Setup::new(&place, tables)).await;
    for (verb, more) in [
        ("rr", ["--size", "128", "--reply", "64KiB"].as_slice()),
        ("churn", &["--ask"]),
        ("stream", &["--direction", "both", "--ask"]),
    ] {
        let (code, object) = load(verb, bind, &[&SHORT, more].concat()).await;
        assert_eq!((code, count(&object, "/errors/total")), (Some(0), 0), "{verb}: {object:#}");
    }
    let (code, object) = load("idle", bind, &["--ask", "--connections", "50", "--duration", "50ms"]).await;
    assert_eq!((code, count(&object, "/alive")), (Some(0), 50), "{object:#}");
}

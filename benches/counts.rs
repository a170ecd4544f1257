//! How many instructions the choice of an endpoint takes, the arrival of a client, and a turn of a session, counted by callgrind: the same number whatever else the
//! machine does. The limits stand in `counts.toml`:
//!
//! ```text
//! cargo run --release --features counts --bin counts             compares; it fails when a limit is passed
//! cargo run --release --features counts --bin counts -- --renew  writes the limits anew
//! ```
//!
//! A case is one function below and its line in [`CASES`]; one that awaits drives its future within [`counted`]. This is
//! not a bench for cargo: those are built with everything that tests need, and this is to be quick.

mod world;

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    hint::black_box,
    io::{self, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Command, ExitCode, Stdio},
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use rand::{SeedableRng, rngs::SmallRng};
use serde::Deserialize;
use twinspan::{
    balance::{Balance, Load, Shares, lighter},
    ids::{EndpointIdentity, Generation},
    net::Intercept,
    proxy::{Alone, Facts, Newcomer, choose},
    state::{
        Access, Condition, Entry, Listener, ListenerCell, ProxyIn, Routes, ServerName, Shared, Snapshot,
        Target,
    },
};

use crate::world::{Draw, ENDPOINTS, bridge, client, maglev};

/// Name and function of everything that is counted. A function makes its world and calls [`counted`] once.
const CASES: &[(&str, fn())] = &[
    ("route_least_sessions", || route(Balance::LeastSessions)),
    ("route_least_latency", || route(Balance::LeastLatency)),
    ("route_round_robin", || route(Balance::RoundRobin)),
    ("route_random", || route(Balance::Random)),
    ("route_source_hash", || route(Balance::SourceHash)),
    ("route_after_a_failure", route_after_a_failure),
    ("pick_in_turn", || pick_in_turn(&Shares::new((0..ENDPOINTS).map(|_| 100)))),
    ("pick_in_turn_uneven", || pick_in_turn(&Shares::new(1..=u32::from(ENDPOINTS)))),
    ("pick_at_random", pick_at_random),
    ("pick_by_hash", pick_by_hash),
    ("pick_of_two", pick_of_two),
    ("arrival", || fallible(|| arrival(false))),
    ("arrival_by_name", || fallible(|| arrival(true))),
    ("relay_turn", || fallible(relay_turn)),
];

/// Operations of a case. What the loop itself takes is counted with them: a few instructions each.
const OPERATIONS: u32 = 2_000;

/// Where the limits stand.
const LIMITS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/counts.toml");

/// What a count may exceed its number by, besides the percentage: a percentage of twelve is nothing.
const SLACK: f64 = 2.0;

/// How the limits are written anew.
const RENEW: &str = "cargo run --release --features counts --bin counts -- --renew";

/// What the counted program is started with.
const COUNTED: &str = "--counted";

/// A first attempt: the snapshot is borrowed, the listener found, an endpoint chosen.
fn route(balance: Balance) {
    let (shared, listener) = bridge(balance);
    let mut rng = SmallRng::seed_from_u64(7);
    counted(|n| {
        let snapshot = shared.snapshot();
        let facts = Facts { client: client(n), tried: &[], spread: false };
        let pool = snapshot.listener(&listener)?.target.pool()?;
        choose(pool, &facts, &mut rng).map(|endpoint| endpoint.address())
    });
}

/// A second attempt, when the first endpoint has refused.
fn route_after_a_failure() {
    let (shared, listener) = bridge(Balance::LeastSessions);
    let mut rng = SmallRng::seed_from_u64(7);
    let snapshot = shared.snapshot();
    let first = snapshot.listener(&listener).and_then(|listener| {
        choose(listener.target.pool()?, &Facts { client: client(0), tried: &[], spread: false }, &mut rng)
    });
    let tried: Vec<Arc<EndpointIdentity>> = first.iter().map(|first| Arc::clone(&first.identity)).collect();
    counted(|n| {
        let pool = snapshot.listener(&listener)?.target.pool()?;
        choose(pool, &Facts { client: client(n), tried: &tried, spread: false }, &mut rng)
            .map(|endpoint| endpoint.address())
    });
}

fn pick_in_turn(shares: &Shares) {
    counted(|n| black_box(shares).nth(u64::from(n)));
}

fn pick_at_random() {
    let shares = Shares::new(1..=u32::from(ENDPOINTS));
    let mut draw = Draw(1);
    counted(|_| black_box(&shares).at(draw.next()));
}

fn pick_by_hash() {
    let maglev = maglev(ENDPOINTS.into());
    let mut draw = Draw(2);
    counted(|_| black_box(&maglev).member(draw.next()));
}

fn pick_of_two() {
    let mut draw = Draw(3);
    counted(|_| {
        let bits = draw.next();
        let load = |active: u64| Load { cost: active & 0xfff, weight: 3 };
        lighter(black_box(load(bits)), black_box(load(bits >> 12)))
    });
}

fn fallible(case: impl FnOnce() -> anyhow::Result<()>) {
    if let Err(error) = case() {
        // Nothing is counted then, which is an error in itself.
        drop(writeln!(io::stderr(), "no session to count: {error}"));
    }
}

/// From the accept to the choice of an endpoint, and the books: of any client, or of one that is sent where the server name
/// in its ClientHello says.
fn arrival(by_name: bool) -> anyhow::Result<()> {
    let (shared, cell) = bridge(Balance::RoundRobin);
    let shared = Arc::new(shared);
    if by_name {
        route_by_name(&shared, &cell);
    }
    let (mut client, near) = pair()?;
    client.write_all(&hello(NAME)?)?;
    let newcomer = Newcomer::new(near.into(), &cell, &shared);
    anyhow::ensure!(newcomer.arrives(), "it finds no endpoint");
    counted(|_| newcomer.arrives());
    Ok(())
}

/// Has this listener send its sessions where their server name says: that of its clients is one of a hundred.
fn route_by_name(shared: &Shared, cell: &Arc<ListenerCell>) {
    let snapshot = shared.snapshot();
    let Some(old) = snapshot.listener(cell) else { return };
    let Some(pool) = old.target.pool() else { return };
    let exact = |name: &str| Condition { sni: vec![ServerName::Exact(name.into())], ..Condition::default() };
    let conditions = (0..99).map(|number| exact(&format!("other-{number}.example.com"))).chain([exact(NAME)]);
    let entry = Entry {
        proxy_header: ProxyIn::Off,
        tls: None,
        routes: Routes::new(conditions.collect()),
        intercept: Intercept::Off,
        header_timeout: Duration::from_secs(5),
        handshake_timeout: Duration::from_secs(10),
        hello_bytes: 32 << 10,
        at_once: 10_000,
        access: Access::default(),
        route_access: Box::default(),
        admission: None,
        bandwidth: None,
    };
    let mut listener = Listener::plain(Arc::clone(cell), Arc::clone(pool), *old.limits);
    listener.target = Target::Refuse;
    listener.routed = (0..100).map(|_| Target::Pool(Arc::clone(pool))).collect();
    listener.entry = Some(Arc::new(entry));
    let (generation, pools) = (Generation(2), vec![Arc::clone(pool)]);
    let listeners = vec![Arc::new(listener)];
    shared.publish(Arc::new(Snapshot { generation, listeners, pools, ..Snapshot::default() }));
}

/// A server name of usual length.
const NAME: &str = "bench.example.com";

/// What a client of today says first.
fn hello(name: &'static str) -> anyhow::Result<Vec<u8>> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let mut client = rustls::ClientConnection::new(Arc::new(config), name.try_into()?)?;
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes)?;
    Ok(bytes)
}

/// A request of 128 bytes through an established session: the client's write, the session's turn, the endpoint's read.
fn relay_turn() -> anyhow::Result<()> {
    let (shared, cell) = bridge(Balance::RoundRobin);
    let shared = Arc::new(shared);
    let mut rng = SmallRng::seed_from_u64(7);
    let snapshot = shared.snapshot();
    let listener = snapshot.listener(&cell).context("no listener")?;
    let facts = Facts { client: client(0), tried: &[], spread: false };
    let endpoint = Arc::clone(
        listener.target.pool().and_then(|pool| choose(pool, &facts, &mut rng)).context("no endpoint")?,
    );
    let (mut client, near) = pair()?;
    let (mut endpoint_side, far) = pair()?;
    let mut session = Alone::new(near.into(), far.into(), &shared, listener, endpoint);
    let mut bytes = [7; 128];
    counted(|_| {
        client.write_all(&bytes)?;
        session.client_has_sent();
        endpoint_side.read_exact(&mut bytes)
    });
    Ok(())
}

/// Two ends of a connection, of which the second does not block.
fn pair() -> io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let near = TcpStream::connect(listener.local_addr()?)?;
    let (far, _) = listener.accept()?;
    far.set_nonblocking(true)?;
    Ok((near, far))
}

/// Does the operation many times, between two marks.
fn counted<T>(mut operation: impl FnMut(u32) -> T) {
    mark();
    for n in 0..OPERATIONS {
        black_box(operation(n));
    }
    mark();
}

/// Whenever this is left, callgrind writes what it has counted and begins anew.
#[inline(never)]
fn mark() {
    black_box(());
}

fn main() -> anyhow::Result<ExitCode> {
    if std::env::args().any(|argument| argument == COUNTED) {
        CASES.iter().for_each(|(_, case)| case());
        return Ok(ExitCode::SUCCESS);
    }
    let measured = measure()?;
    let compiler = compiler()?;
    if std::env::args().any(|argument| argument == "--renew") {
        fs::write(LIMITS, file(&measured, &compiler)?)?;
        writeln!(io::stdout(), "{LIMITS} is written anew")?;
        return Ok(ExitCode::SUCCESS);
    }
    let text = fs::read_to_string(LIMITS).with_context(|| format!("cannot read {LIMITS}"))?;
    let limits: Limits = toml::from_str(&text).with_context(|| format!("cannot understand {LIMITS}"))?;
    let (report, fine) = compare(&measured, &limits, &compiler);
    io::stdout().write_all(report.as_bytes())?;
    Ok(if fine { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Instructions of each case for one operation, in the order of [`CASES`].
fn measure() -> anyhow::Result<Vec<(&'static str, f64)>> {
    let program = std::env::current_exe()?;
    let output_of = |part: &str| program.with_extension(format!("callgrind{part}"));
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--dump-after=counts::mark"])
        .arg(format!("--callgrind-out-file={}", output_of("").display()))
        .arg(&program)
        .arg(COUNTED)
        .stdin(Stdio::null())
        .output()
        .context("cannot run valgrind: is it installed?")?;
    let said = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "the counted program failed, {}:\n{said}", output.status);
    // Two parts a case: what came before it, and the case.
    let totals = CASES.iter().zip((2..).step_by(2)).map(|((name, _), part)| {
        let total = total(&output_of(&format!(".{part}")));
        Ok((
            *name,
            total.with_context(|| format!("{name} was not counted:\n{said}"))? / f64::from(OPERATIONS),
        ))
    });
    totals.collect()
}

/// The total of one part of callgrind's output.
fn total(path: &Path) -> anyhow::Result<f64> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let total = text.lines().find_map(|line| line.strip_prefix("totals: ")?.trim().parse().ok());
    total.filter(|total| *total > 0.0).context("it has no total")
}

/// `counts.toml`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Limits {
    /// What they were counted with.
    rustc: String,
    /// What a count may exceed its number by.
    tolerance_percent: f64,
    /// Instructions for one operation.
    instructions: BTreeMap<String, f64>,
}

/// The table to show, and whether every count keeps to its limit.
fn compare(measured: &[(&str, f64)], limits: &Limits, compiler: &str) -> (String, bool) {
    let mut report = format!("{:24}{:>12}{:>12}\n", "instructions", "measured", "limit");
    let mut breaches = String::new();
    for (name, count) in measured {
        let Some(expected) = limits.instructions.get(*name) else {
            push(&mut breaches, format_args!("{name}: {count:.1} instructions, and no limit in counts.toml"));
            continue;
        };
        let limit = expected * (1.0 + limits.tolerance_percent / 100.0) + SLACK;
        let hint = if *count < expected * 2.0 - limit { "  (renew, to hold the gain)" } else { "" };
        push(&mut report, format_args!("{name:24}{count:12.1}{limit:12.1}{hint}"));
        if *count > limit {
            push(
                &mut breaches,
                format_args!(
                    "{name}: {count:.1} instructions an operation, the limit is {limit:.1} ({expected:.1}, {} % and {SLACK})",
                    limits.tolerance_percent
                ),
            );
        }
    }
    for name in limits.instructions.keys().filter(|name| measured.iter().all(|(case, _)| case != name)) {
        push(&mut breaches, format_args!("{name}: stands in counts.toml and is not counted any more"));
    }
    let fine = breaches.is_empty();
    if !fine {
        report.push('\n');
        report.push_str(&breaches);
        if compiler != limits.rustc {
            let note = format_args!("The limits are those of rustc {}, this is {compiler}.", limits.rustc);
            push(&mut report, note);
        }
        push(&mut report, format_args!("If it has to cost that: {RENEW}, and the commit says why."));
    }
    (report, fine)
}

fn push(text: &mut String, line: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{line}");
}

/// `counts.toml` with these counts.
fn file(measured: &[(&str, f64)], compiler: &str) -> anyhow::Result<String> {
    let mut text = format!(
        "# Instructions for one operation of benches/counts.rs in the release profile on x86-64, counted by callgrind.\n\
         # ./tests/run fails when a count exceeds its number by more than the tolerance, which is for other compilers,\n\
         # and {SLACK} instructions. To write it anew: {RENEW}\n\
         rustc = \"{compiler}\"\ntolerance_percent = 5\n\n[instructions]\n"
    );
    for (name, count) in measured {
        writeln!(text, "{name} = {count:.1}")?;
    }
    Ok(text)
}

/// The version of the compiler, such as `1.95.0`.
fn compiler() -> anyhow::Result<String> {
    let output = Command::new("rustc").arg("--version").output().context("cannot run rustc")?;
    let line = String::from_utf8(output.stdout)?;
    line.split(' ').nth(1).map(str::to_owned).with_context(|| format!("rustc says {line:?}"))
}

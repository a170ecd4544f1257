//! What a request and a session may cost: counts, which are the same on a slow machine and on a fast one.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Mutex,
    time::Instant,
};

use crate::harness::{Backend, Calls, Place, Proxy, connect, eventually, skip_on_this_machine, soon};

/// For a request and its reply on one connection, when nothing else is there to share a call: each way a wait, a read
/// and a write.
const REQUEST: Budget = Budget { calls: 6.0, without_waits: 4.0 };

/// From a session's accept to its line in the log, when nothing else is there to share a call: accept, socket, a word to
/// hold the last segment of the handshake back, connect, two calls that tell epoll of the sockets, four reads, two writes,
/// shutdown and two closes are 15, and half a one for a client whose bytes are late. Where a socket is dialled again, two
/// calls that take the connection from it stand for those that make and close one. Its waits are 5 to 6.
const SESSION: Budget = Budget { calls: 22.0, without_waits: 15.5 };

/// System calls that something may take.
struct Budget {
    calls: f64,
    without_waits: f64,
}

/// Calls that come with the time and not with the work (timers, the threads that write logs), and those that the
/// counting itself interrupts.
const CALLS_PER_SECOND: f64 = 100.0;
const CALLS_INTERRUPTED: f64 = 50.0;

/// Bytes that an idle session takes of the process's own memory.
const BYTES_PER_IDLE_SESSION: u64 = 512;

/// What may stay resident when all sessions have gone: this part of what was there before them, and so many bytes.
const KEPT_PERCENT: u64 = 120;
const KEPT_BYTES: u64 = 5_000_000;

/// Sessions that are idle at once, as far as the limit of descriptors allows.
const IDLE_SESSIONS: u64 = 5_000;

/// With fewer of them the pages that a process takes once would count for more than the sessions do.
const IDLE_SESSIONS_LEAST: u64 = 1_000;

/// Descriptors of a session: two in the proxy, and two in the test, which is client and upstream.
const PER_SESSION: u64 = 2;

/// Descriptors for everything else.
const RESERVE: u64 = 300;

#[tokio::test]
async fn a_request_alone_on_its_connection_takes_six_system_calls() {
    const REQUESTS: u64 = 5_000;
    let place = Place::new();
    let backend = Backend::echo(&place).await;
    let (proxy, address) = Proxy::before(&place, backend.address, "").await;
    let mut client = connect(address).await;
    exchange(&mut client).await;
    let client = Mutex::new(client);
    let work = async || {
        let mut client = client.lock().await;
        for _ in 0..REQUESTS {
            exchange(&mut client).await;
        }
    };
    keeps_to(&REQUEST, "a request", &proxy, REQUESTS, work).await;
}

#[tokio::test]
async fn a_session_of_one_request_keeps_to_its_budget_of_system_calls() {
    const SESSIONS: u64 = 1_000;
    if !is_release_build("a_session_of_one_request_keeps_to_its_budget_of_system_calls") {
        return;
    }
    let place = Place::new();
    let backend = Backend::echo(&place).await;
    let (proxy, address) = Proxy::before(&place, backend.address, "").await;
    visit(address).await;
    eventually("the first session's line", async || session_lines(&proxy, 1)).await;
    let visits = AtomicU64::new(1);
    let work = async || {
        for _ in 0..SESSIONS {
            visit(address).await;
        }
        let visits = visits.fetch_add(SESSIONS, Relaxed) + SESSIONS;
        eventually("a line for every session", async || session_lines(&proxy, visits)).await;
    };
    keeps_to(&SESSION, "a session", &proxy, SESSIONS, work).await;
}

#[tokio::test]
async fn idle_sessions_take_little_memory_and_leave_little_behind() {
    let test = "idle_sessions_take_little_memory_and_leave_little_behind";
    if !is_release_build(test) {
        return;
    }
    let sessions = IDLE_SESSIONS.min(descriptors().saturating_sub(RESERVE) / PER_SESSION);
    if sessions < IDLE_SESSIONS_LEAST {
        return skip_on_this_machine(test, &format!("descriptors suffice for {sessions} sessions only"));
    }
    let place = Place::new();
    let backend = Backend::echo(&place).await;
    let (proxy, address) = Proxy::before(&place, backend.address, "").await;
    visit(address).await;
    eventually("the first session's line", async || session_lines(&proxy, 1)).await;

    let start = proxy.memory();
    let clients = idle(address, sessions).await;
    let open = proxy.memory();
    let each = open.own.saturating_sub(start.own) / sessions;
    eprintln!("an idle session takes {each} bytes ({sessions} sessions)");
    assert!(
        each <= BYTES_PER_IDLE_SESSION,
        "an idle session takes {each} bytes, the limit is {BYTES_PER_IDLE_SESSION} \
         (from {} to {} with {sessions} sessions)",
        start.own,
        open.own
    );
    drop(clients);
    eventually("a line for every session", async || session_lines(&proxy, 1 + sessions)).await;
    // And once more: what the first ones left is there for the next.
    drop(idle(address, sessions).await);
    eventually("a line for every session", async || session_lines(&proxy, 1 + 2 * sessions)).await;
    let limit = start.resident * KEPT_PERCENT / 100 + KEPT_BYTES;
    // Whoever gives memory back may take a while for it.
    let (mut least, mut left) = (u64::MAX, 250);
    eventually("the memory given back", async || {
        left -= 1;
        least = least.min(proxy.memory().resident);
        (least <= limit || left == 0).then_some(())
    })
    .await;
    eprintln!("{least} bytes are resident after {sessions} idle sessions, {} were before", start.resident);
    assert!(
        least <= limit,
        "{least} bytes are resident after {sessions} idle sessions, twice: the limit is {limit} \
         ({KEPT_PERCENT} % of the {} before, and {KEPT_BYTES})",
        start.resident
    );
}

/// So many sessions, idle after a request.
async fn idle(address: SocketAddr, sessions: u64) -> Vec<TcpStream> {
    let mut clients = Vec::new();
    for _ in 0..sessions {
        let mut client = connect(address).await;
        exchange(&mut client).await;
        clients.push(client);
    }
    clients
}

/// Counts the calls of the proxy while `work` does `times` of `what`, at most three times: other work of the machine comes
/// between two halves of what would have been one wake-up, so it can add calls, and takes none away.
async fn keeps_to(budget: &Budget, what: &str, proxy: &Proxy, times: u64, work: impl AsyncFn()) {
    let mut said = String::new();
    for _ in 0..3 {
        let Some(calls) = Calls::start(&format!("system calls of {what}"), proxy.pid()).await else { return };
        let begun = Instant::now();
        work().await;
        let beside = CALLS_PER_SECOND.mul_add(begun.elapsed().as_secs_f64(), CALLS_INTERRUPTED);
        let counted = calls.finish().await;
        let each = |count: u64| (count as f64 - beside).max(0.0) / times as f64;
        let (calls, without_waits) = (each(counted.total()), each(counted.total() - counted.waits()));
        eprintln!("{what} takes {calls:.2} system calls, {without_waits:.2} without the waits");
        if calls <= budget.calls && without_waits <= budget.without_waits {
            return;
        }
        said = format!(
            "{what} takes {calls:.2} system calls, {without_waits:.2} without the waits; the limits are {} and {}. \
             All calls of {times} of them, of which {beside:.0} are not theirs:\n{counted}",
            budget.calls, budget.without_waits
        );
    }
    panic!("{said}");
}

/// True for the binary that `tests/run` names. One made for debugging takes more memory, and asks about every descriptor
/// that it closes.
fn is_release_build(test: &str) -> bool {
    let named = std::env::var_os("TWINSPAN_BIN").is_some();
    if !named {
        skip_on_this_machine(test, "TWINSPAN_BIN names no release build");
    }
    named
}

/// One session with one request.
async fn visit(address: SocketAddr) {
    let mut client = connect(address).await;
    exchange(&mut client).await;
    client.shutdown().await.unwrap();
    let rest = soon("the end of a session", client.read(&mut [0])).await.unwrap();
    assert_eq!(rest, 0);
}

/// A request, and its reply.
async fn exchange(stream: &mut TcpStream) {
    let mut bytes = [b'!'; 128];
    stream.write_all(&bytes).await.unwrap();
    soon("a reply", stream.read_exact(&mut bytes)).await.unwrap();
}

/// Something once the proxy has written this many lines about sessions.
fn session_lines(proxy: &Proxy, wanted: u64) -> Option<()> {
    let said = proxy.said();
    let lines = said.lines().filter(|line| line.contains("\"cause\":")).count() as u64;
    (lines >= wanted).then_some(())
}

/// Descriptors that this process and those it starts may have, after raising the limit as far as that goes.
fn descriptors() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

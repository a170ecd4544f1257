//! `preconnect`: connections that are there before the session is, and what becomes of them when something changes.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, prlimit};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Notify,
    time::Instant,
};

use crate::harness::{
    Backend, Ending, Load, Place, Proxy, Setup, connect, eventually, listener, pool, read_out, reset, soon,
};

const PROBES: &str = "[pool.health.tcp]\ninterval = \"100ms\"\nfast_interval = \"50ms\"\ntimeout = \"500ms\"\nrise = 1\nfall = 2";

/// An endpoint that answers the first byte of each connection with the connection's number, from 0, in 8 bytes, and then
/// sends everything back. It does nothing with a connection that says nothing, as a probe.
struct Counting {
    backend: Backend,
    /// Connections that are open and have said nothing.
    waiting: Arc<AtomicU64>,
}

impl Counting {
    async fn start(place: &Place) -> Self {
        let waiting = Arc::new(AtomicU64::new(0));
        let (now, number) = (Arc::clone(&waiting), AtomicU64::new(0));
        let backend = Backend::serve(place, move |mut stream: TcpStream| {
            let (now, number) = (Arc::clone(&now), number.fetch_add(1, Relaxed));
            async move {
                now.fetch_add(1, Relaxed);
                let first = stream.read(&mut [0]).await;
                now.fetch_sub(1, Relaxed);
                if matches!(first, Ok(1)) && stream.write_all(&number.to_be_bytes()).await.is_ok() {
                    let (mut from, mut to) = stream.split();
                    drop(tokio::io::copy(&mut from, &mut to).await);
                }
            }
        })
        .await;
        Self { backend, waiting }
    }

    async fn has(&self, waiting: u64) {
        eventually(format!("{waiting} spares at the endpoint"), async || {
            (self.waiting.load(Relaxed) == waiting).then_some(())
        })
        .await;
    }
}

/// A session with such an endpoint: itself, and the number of its connection there.
async fn session(address: SocketAddr) -> (TcpStream, u64) {
    let mut stream = connect(address).await;
    stream.write_all(b"?").await.unwrap();
    let mut number = [0; 8];
    soon("a number", stream.read_exact(&mut number)).await.unwrap();
    (stream, u64::from_be_bytes(number))
}

async fn ready(proxy: &Proxy, spares: u64) {
    eventually(format!("{spares} spares"), async || {
        (proxy.metric("twinspan_spare_connections", &[]).await == spares).then_some(())
    })
    .await;
}

async fn ended(proxy: &Proxy, reason: &str) -> u64 {
    proxy.metric("twinspan_spare_connections_ended_total", &[("reason", reason)]).await
}

/// A pool of one cloud with spares, and its listener.
fn tables(bind: SocketAddr, spares: u64, settings: &str, endpoints: &[SocketAddr]) -> String {
    let endpoints: Vec<_> = endpoints.iter().map(|address| ("aws", *address)).collect();
    pool("only", &format!("preconnect = {spares}\n{settings}"), &endpoints) + &listener(bind, "only", "")
}

async fn before(place: &Place, endpoint: SocketAddr, spares: u64) -> (Proxy, SocketAddr) {
    let bind = place.free();
    let proxy = Proxy::start(Setup::new(place, tables(bind, spares, "", &[endpoint]))).await;
    (proxy, bind)
}

#[tokio::test]
async fn a_session_is_served_over_a_connection_that_was_there_before_it() {
    let place = Place::new();
    let endpoint = Counting::start(&place).await;
    let (proxy, bind) = before(&place, endpoint.backend.address, 4).await;
    ready(&proxy, 4).await;
    endpoint.has(4).await;
    assert_eq!(endpoint.backend.accepted(), 4, "four in total, whatever the number of workers");

    // Spares are no sessions.
    let status = proxy.status().await;
    assert_eq!(status["sessions"]["active"], 0, "{status:#}");
    assert_eq!(status["pools"][0]["endpoints"][0]["sessions_active"], 0, "{status:#}");
    assert_eq!(proxy.metric("twinspan_upstream_connections_active", &[]).await, 0);
    assert_eq!(proxy.metric("twinspan_upstream_connections_total", &[]).await, 0);
    assert_eq!(proxy.metric("twinspan_upstream_connect_duration_seconds_count", &[]).await, 4);

    for n in 0..20 {
        let there = endpoint.backend.accepted();
        let lines = proxy.lines();
        let (mut client, number) = session(bind).await;
        assert!(number < there, "connection {number} was dialled for session {n}");
        client.write_all(b"hello").await.unwrap();
        client.shutdown().await.unwrap();
        assert_eq!(read_out(&mut client).await, (b"hello".to_vec(), Ending::Clean));
        let line = proxy.session_line(lines).await;
        assert_eq!((&line["attempts"], &line["cause"]), (&1.into(), &"closed".into()), "{line}");
        // The one that was used is replaced.
        endpoint.has(4).await;
        ready(&proxy, 4).await;
    }
    assert_eq!(ended(&proxy, "used").await, 20);
    assert_eq!(proxy.metric("twinspan_upstream_connections_total", &[]).await, 20);
    let dials = proxy.metric("twinspan_upstream_connect_duration_seconds_count", &[]).await;
    assert_eq!(dials, endpoint.backend.accepted(), "each dial counts once");
}

#[tokio::test]
async fn a_greeting_that_waited_on_a_spare_reaches_the_client_first() {
    let place = Place::new();
    let endpoint = Backend::serve(&place, |mut stream: TcpStream| async move {
        if stream.write_all(b"welcome ").await.is_ok() {
            let (mut from, mut to) = stream.split();
            drop(tokio::io::copy(&mut from, &mut to).await);
        }
    })
    .await;
    let (proxy, bind) = before(&place, endpoint.address, 2).await;
    ready(&proxy, 2).await;
    for used in 1..=6 {
        let mut client = connect(bind).await;
        let mut greeting = [0; 8];
        soon("a greeting", client.read_exact(&mut greeting)).await.unwrap();
        assert_eq!(&greeting, b"welcome ");
        client.write_all(b"thanks").await.unwrap();
        client.shutdown().await.unwrap();
        assert_eq!(read_out(&mut client).await, (b"thanks".to_vec(), Ending::Clean));
        ready(&proxy, 2).await;
        assert_eq!(ended(&proxy, "used").await, used);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_session_fails_where_the_endpoint_closes_or_resets_what_is_idle() {
    for rude in [false, true] {
        let place = Place::new();
        // The client of `Load` speaks at once; who says nothing for 300 ms is thrown out.
        let endpoint = Backend::serve(&place, move |mut stream: TcpStream| async move {
            let patience = Duration::from_millis(300);
            match tokio::time::timeout(patience, stream.read(&mut [0])).await {
                Ok(Ok(1)) => drop(stream.write_all(b"aws1").await),
                _ if rude => reset(stream),
                _ => {}
            }
        })
        .await;
        let (proxy, bind) = before(&place, endpoint.address, 8).await;
        // From these ends both workers learn how long a spare may be idle.
        eventually("the first ends", async || (ended(&proxy, "endpoint").await >= 8).then_some(())).await;
        let load = Load::start(bind, 100);
        eventually("spares that the endpoint has ended", async || {
            (ended(&proxy, "endpoint").await >= 11 && ended(&proxy, "used").await >= 20).then_some(())
        })
        .await;
        let outcomes = load.stop().await;
        for outcome in &outcomes {
            assert_eq!(outcome.answer.as_deref(), Ok("aws1"), "{outcome:?}");
        }
    }
}

#[tokio::test]
async fn an_endpoint_that_closes_at_once_is_not_hammered() {
    let place = Place::new();
    let mut endpoint = Backend::serve(&place, async |_stream| Instant::now()).await;
    let (_proxy, _) = before(&place, endpoint.address, 2).await;
    let first = endpoint.next().await;
    let mut last = first;
    // One for each worker at first, after a second, and two seconds after that.
    for _ in 1..6 {
        last = endpoint.next().await;
    }
    assert!(last - first >= Duration::from_millis(2_900), "six dials in {:?}", last - first);
}

#[tokio::test]
async fn a_spare_that_ends_under_a_session_that_has_sent_nothing_costs_it_another_connect_and_no_more() {
    for rude in [false, true] {
        let place = Place::new();
        let (throw_out, number) = (Arc::new(Notify::new()), AtomicU64::new(0));
        let cue = Arc::clone(&throw_out);
        let endpoint = Backend::serve(&place, move |mut stream: TcpStream| {
            let (cue, number) = (Arc::clone(&cue), number.fetch_add(1, Relaxed));
            async move {
                tokio::select! {
                    first = stream.read_u8() => if first.is_ok() {
                        drop(stream.write_all(&number.to_be_bytes()).await);
                    },
                    () = cue.notified() => if rude { reset(stream) },
                }
            }
        })
        .await;
        let (proxy, bind) = before(&place, endpoint.address, 2).await;
        // What takes this test more than a second is passed on to the client: on a busy machine it tries again.
        loop {
            ready(&proxy, 2).await;
            let (used, start) = (ended(&proxy, "used").await, Instant::now());
            let there = endpoint.accepted();
            let mut client = connect(bind).await;
            eventually("a session on a spare", async || (ended(&proxy, "used").await > used).then_some(()))
                .await;
            throw_out.notify_waiters();
            let quick = start.elapsed() < Duration::from_millis(500);
            // The first connect replaces the spare that was used. Nothing of all this reaches the client, which speaks
            // only now.
            eventually("another connect", async || (endpoint.accepted() >= there + 2).then_some(())).await;
            let sent = client.write_all(b"?").await;
            let mut answer = [0; 8];
            if soon("an answer", client.read_exact(&mut answer)).await.is_ok() {
                assert!(u64::from_be_bytes(answer) >= there, "over a new connection");
                break;
            }
            assert!(!quick, "the session ended, {sent:?}");
        }
    }
}

#[tokio::test]
async fn when_an_endpoint_goes_down_or_away_its_spares_go_too() {
    let place = Place::new();
    let (stays, falls) = (Counting::start(&place).await, Counting::start(&place).await);
    let bind = place.free();
    let both = [stays.backend.address, falls.backend.address];
    let proxy = Proxy::start(Setup::new(&place, tables(bind, 8, PROBES, &both))).await;
    ready(&proxy, 8).await;
    // Probes come and go.
    eventually("half of them each", async || {
        (stays.waiting.load(Relaxed) == 4 && falls.waiting.load(Relaxed) == 4).then_some(())
    })
    .await;

    let Counting { backend, waiting } = falls;
    let address = backend.address;
    // Its listener closes; what is established goes on.
    drop(backend);
    proxy.judges(&[address], "down").await;
    eventually("no spare at an endpoint that is down", async || (waiting.load(Relaxed) == 0).then_some(()))
        .await;
    eventually("all of them at the other one", async || (stays.waiting.load(Relaxed) == 8).then_some(()))
        .await;
    assert_eq!(ended(&proxy, "withdrawn").await, 4);

    // A reload that takes the other one out: nothing is left to keep spares at but a new one.
    let new = Counting::start(&place).await;
    proxy.reload(&proxy.setup().with(tables(bind, 8, "", &[new.backend.address])).text()).await;
    stays.has(0).await;
    new.has(8).await;
    assert_eq!(session(bind).await.1 / 8, 0);
}

#[tokio::test]
async fn a_reload_turns_spares_on_changes_their_number_and_turns_them_off() {
    let place = Place::new();
    let endpoint = Counting::start(&place).await;
    let (proxy, bind) = before(&place, endpoint.backend.address, 0).await;
    let sockets = proxy.sockets();
    for spares in [6, 3, 10, 0, 1, 0] {
        let tables = tables(bind, spares, "", &[endpoint.backend.address]);
        proxy.reload(&proxy.setup().with(tables).text()).await;
        endpoint.has(spares).await;
        ready(&proxy, spares).await;
    }
    eventually("no socket too many", async || (proxy.sockets() <= sockets).then_some(())).await;
    let used = ended(&proxy, "used").await;
    drop(session(bind).await);
    assert_eq!(ended(&proxy, "used").await, used, "dialled as before");
}

#[tokio::test]
async fn a_pool_whose_sessions_need_more_than_a_connection_keeps_no_spares_and_is_warned_of() {
    let place = Place::new();
    let (plain, told) = (Counting::start(&place).await, Counting::start(&place).await);
    let (bind, other) = (place.free(), place.free());
    let header = pool("told", "preconnect = 8\nproxy_header = \"v1\"\n", &[("aws", told.backend.address)])
        + &listener(other, "told", "");
    let with = |settings| tables(bind, 4, settings, &[plain.backend.address]) + &header;
    let proxy = Proxy::start(Setup::new(&place, with(""))).await;
    plain.has(4).await;
    ready(&proxy, 4).await;
    let warned = proxy.said();
    assert!(warned.contains("TS1106") && warned.contains("`preconnect` with `proxy_header`"), "{warned}");

    // What is kept goes with a reload that makes it of no use, and comes back with it.
    for (settings, spares) in [("bandwidth = \"1MiB\"\n", 0), ("", 4), ("first_byte_timeout = \"5s\"\n", 0)] {
        proxy.reload(&proxy.setup().with(with(settings)).text()).await;
        plain.has(spares).await;
        ready(&proxy, spares).await;
    }
    drop(session(bind).await);
    assert_eq!(told.backend.accepted(), 0);
    assert_eq!(ended(&proxy, "used").await, 0);
}

#[tokio::test]
async fn a_drain_closes_spares_at_once_while_sessions_go_on() {
    let place = Place::new();
    let endpoint = Counting::start(&place).await;
    let bind = place.free();
    let setup = Setup::new(&place, tables(bind, 4, "", &[endpoint.backend.address])).drain_timeout("60s");
    let mut proxy = Proxy::start(setup).await;
    endpoint.has(4).await;
    ready(&proxy, 4).await;
    let (mut client, _) = session(bind).await;
    endpoint.has(4).await;
    proxy.signal(Signal::TERM);
    endpoint.has(0).await;
    client.write_all(b"hello").await.unwrap();
    soon("an echo", client.read_exact(&mut [0; 5])).await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(read_out(&mut client).await, (Vec::new(), Ending::Clean));
    assert_eq!(proxy.end().await.code(), Some(0), "nothing else is waited for");
}

#[tokio::test]
async fn an_endpoint_that_refuses_spares_is_no_failure_of_a_session_and_is_not_hammered() {
    let place = Place::new();
    let (proxy, _) = before(&place, place.free(), 8).await;
    let failed = async || proxy.metric("twinspan_spare_connect_failures_total", &[]).await;
    eventually("failures", async || (failed().await > 2).then_some(())).await;
    // Eight at once, and one for each worker after 1, 2 and 4 s.
    assert!(failed().await <= 8 + 2 * 3, "{}", failed().await);
    assert_eq!(proxy.metric("twinspan_upstream_connect_failures_total", &[]).await, 0);
    assert_eq!(proxy.metric("twinspan_connections_closed_total", &[]).await, 0);
    ready(&proxy, 0).await;
}

#[tokio::test]
async fn where_descriptors_are_short_sessions_have_them_and_spares_have_not() {
    let place = Place::new();
    let endpoint = Counting::start(&place).await;
    let (proxy, bind) = before(&place, endpoint.backend.address, 200).await;
    ready(&proxy, 200).await;
    let pid = Pid::from_raw(i32::try_from(proxy.pid()).unwrap());
    let most = getrlimit(Resource::Nofile).maximum;
    // 256 of which 56 are the reserve: 200 spares are far too many.
    prlimit(pid, Resource::Nofile, Rlimit { current: Some(256), maximum: most }).unwrap();
    // They may have the third quarter, and are dialled up to the half.
    eventually("fewer spares", async || {
        (proxy.metric("twinspan_spare_connections", &[]).await < 192 - 56).then_some(())
    })
    .await;
    let mut sessions = Vec::new();
    // All that 200 descriptors are enough for, but for one.
    for _ in 0..99 {
        sessions.push(session(bind).await);
    }
    assert_eq!(proxy.metric("twinspan_connections_rejected_total", &[]).await, 0);
    ready(&proxy, 0).await;
    drop(sessions);
    eventually("spares again", async || {
        (proxy.metric("twinspan_spare_connections", &[]).await >= 64).then_some(())
    })
    .await;
}

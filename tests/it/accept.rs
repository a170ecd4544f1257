//! The queue of accepted handshakes when the process stops, and what happens when descriptors are short.

use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, prlimit};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    process::Command,
};

use super::harness::{
    Backend, Pattern, Place, Proxy, Setup, binary, connect, eventually, eventually_within, listener, pool,
    run, soon,
};

async fn pings(stream: &mut TcpStream) -> bool {
    let mut answer = [0; 4];
    let asked = async {
        stream.write_all(b"ping").await?;
        stream.read_exact(&mut answer).await
    };
    soon("an answer", asked).await.is_ok() && answer == *b"ping"
}

#[tokio::test]
async fn a_thousand_clients_in_the_queue_are_served_after_sigterm() {
    let place = Place::new();
    let backend = Backend::echo(&place).await;
    let bind = place.free();
    let tables = pool("p", "", &[("aws", backend.address)]) + &listener(bind, "p", "");
    // Sessions that live when the drain ends are reset, and a busy machine takes its time for a thousand.
    let mut proxy = Proxy::start(Setup::new(&place, tables).drain_timeout("60s")).await;
    // The kernel shakes hands for a process that does not run.
    proxy.signal(Signal::STOP);
    let mut clients = Vec::new();
    for _ in 0..1000 {
        clients.push(connect(bind).await);
    }
    proxy.signal(Signal::TERM);
    proxy.signal(Signal::CONT);
    let mut served = 0;
    for mut client in clients {
        served += u32::from(pings(&mut client).await);
    }
    assert_eq!(served, 1000);
    assert_eq!(proxy.end().await.code(), Some(0));
}

#[tokio::test]
async fn a_start_without_enough_descriptors_ends_and_says_so() {
    let place = Place::new();
    let text =
        Setup::new(&place, pool("p", "", &[("aws", place.free())]) + &listener(place.free(), "p", "")).text();
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("twinspan.toml");
    std::fs::write(&config, text).unwrap();
    let binary = binary();
    for limit in 8..24 {
        let limit = format!("--nofile={limit}:{limit}");
        let arguments = [&limit, binary.to_str().unwrap(), "run", "-c", config.to_str().unwrap()];
        let command = ["-k", "20", "3", "prlimit"].into_iter().chain(arguments);
        let output = Box::pin(soon("the end of a start", run("timeout", &command.collect::<Vec<_>>()))).await;
        // 124: it had enough after all, ran, and was told to stop; then it drained and the code is timeout's.
        assert!(matches!(output.code, Some(1 | 101 | 124)), "{limit}: {output:?}");
    }
}

#[tokio::test]
async fn at_the_descriptor_limit_sessions_live_the_proxy_answers_and_clients_wait() {
    let place = Place::new();
    let backend = Backend::echo(&place).await;
    let (proxy, bind) = Proxy::before(&place, backend.address, "").await;
    let pid = Pid::from_raw(i32::try_from(proxy.pid()).unwrap());
    // The proxy took all that its hard limit allows, which is the same as ours.
    let most = getrlimit(Resource::Nofile).maximum;
    prlimit(pid, Resource::Nofile, Rlimit { current: Some(80), maximum: most }).unwrap();
    // The limit is noticed within a second.
    let mut old = Vec::new();
    let deadline = tokio::time::Instant::now() + Duration::from_millis(1500);
    while tokio::time::Instant::now() < deadline {
        if old.len() < 10 {
            old.push(connect(bind).await);
        }
        assert!(pings(old.last_mut().unwrap()).await);
    }
    let mut waiting = Vec::new();
    for _ in 0..60 {
        waiting.push(connect(bind).await);
    }
    assert_eq!(proxy.get("/livez").await.unwrap().0, 200, "telemetry answers");
    let paused = proxy.line("a paused accept", |line| line.contains("accept paused").then_some(()));
    paused.await;
    for stream in &mut old {
        assert!(pings(stream).await, "an established session lives");
    }
    prlimit(pid, Resource::Nofile, Rlimit { current: most, maximum: most }).unwrap();
    for mut stream in waiting {
        assert!(pings(&mut stream).await, "who waited is served");
    }
    eventually("no session is left over", async || {
        drop(std::mem::take(&mut old));
        (proxy.metric("twinspan_connections_active", &[]).await == 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_burst_at_many_listeners_waits_in_their_queues_where_descriptors_are_few() {
    const LISTENERS: usize = 20;
    const CLIENTS: usize = 15;
    let place = Place::new();
    let backend = Backend::echo(&place).await;
    let addresses: Vec<_> = (0..LISTENERS).map(|_| place.free()).collect();
    let tables = pool("p", "", &[("aws", backend.address)])
        + &addresses.iter().map(|address| listener(*address, "p", "")).collect::<String>();
    let mut command = Command::new("prlimit");
    command.arg("--nofile=200:200").arg(binary());
    let mut proxy = Proxy::launch_as(command, Setup::new(&place, tables)).ready().await;
    // While it does not run, all of them come to wait at once.
    proxy.signal(Signal::STOP);
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        for address in &addresses {
            clients.push(connect(*address).await);
        }
    }
    proxy.signal(Signal::CONT);
    // Each is served, and ends; nobody is turned away.
    let mut served = tokio::task::JoinSet::new();
    for mut client in clients {
        served.spawn(async move { pings(&mut client).await });
    }
    let served = served.join_all().await.into_iter().filter(|served| *served).count();
    assert_eq!(served, LISTENERS * CLIENTS);
    assert_eq!(proxy.metric("twinspan_connections_closed_total", &[("cause", "exhausted")]).await, 0);
    proxy.signal(Signal::TERM);
    assert_eq!(proxy.end().await.code(), Some(0));
}

#[tokio::test]
async fn the_pipes_of_slow_readers_leave_descriptors_for_everything_else() {
    const BYTES: u64 = 16 * 1024 * 1024;
    let place = Place::new();
    let backend = Backend::serve(&place, |mut stream| async move {
        Pattern(6).send(&mut stream, 0, BYTES).await.unwrap();
    })
    .await;
    let (proxy, bind) = Proxy::before(&place, backend.address, "").await;
    let pid = Pid::from_raw(i32::try_from(proxy.pid()).unwrap());
    let most = getrlimit(Resource::Nofile).maximum;
    prlimit(pid, Resource::Nofile, Rlimit { current: Some(160), maximum: most }).unwrap();
    // Longer than it takes to notice the limit.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    // As many as are let in leave no room for as many pipes.
    let mut clients = Vec::new();
    for _ in 0..45 {
        clients.push(connect(bind).await);
    }
    let mut moved = u64::MAX;
    eventually_within(Duration::from_secs(60), "every transfer stalls, and telemetry answers", async || {
        let now = proxy.metric("twinspan_transferred_bytes_total", &[("direction", "to_client")]).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        (std::mem::replace(&mut moved, now) == now && backend.accepted() == 45).then_some(())
    })
    .await;
    let open: Vec<_> = [proxy.get("/livez").await, proxy.get("/livez").await].into_iter().flatten().collect();
    assert_eq!(open.len(), 2, "telemetry answers");
    assert!(proxy.sockets() + proxy.pipe_ends() < 140, "{} and {}", proxy.sockets(), proxy.pipe_ends());
    for mut client in clients.drain(..10) {
        soon("a transfer that goes on", Pattern(6).receive_all(&mut client, BYTES)).await;
    }
}

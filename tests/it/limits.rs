//! How long a session may go on, and how much of it may wait in this process.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, Interest},
    time::{Instant, sleep},
};

use crate::harness::{
    Backend, Ending, Pattern, Place, Proxy, Setup, connect, eventually_within, listener, pool, read_out,
    silent_for, soon,
};

#[tokio::test]
async fn a_half_closed_session_that_stays_silent_is_reaped_and_not_before_its_time() {
    let place = Place::new();
    let mut backend = Backend::serve(&place, |mut stream| async move {
        let request = read_out(&mut stream).await;
        // Says nothing until the proxy's reset comes.
        stream.ready(Interest::ERROR).await.unwrap();
        request
    })
    .await;
    let (proxy, address) = Proxy::before(&place, backend.address, "half_close_timeout = \"2s\"").await;
    let before = proxy.lines();
    let mut client = connect(address).await;
    client.write_all(b"request").await.unwrap();
    client.shutdown().await.unwrap();
    assert!(silent_for(&client, Duration::from_secs(1)).await, "ended before its time");
    assert_eq!(read_out(&mut client).await, (Vec::new(), Ending::Reset));
    let line = proxy.session_line(before).await;
    assert_eq!(line["cause"], "half_closed", "{line}");
    assert_eq!(backend.next().await, (b"request".to_vec(), Ending::Clean));
}

#[tokio::test]
async fn a_session_without_a_byte_is_ended_by_the_idle_timeout_and_a_busy_one_is_not() {
    let place = Place::new();
    let backend = Backend::echo(&place).await;
    let (proxy, address) = Proxy::before(&place, backend.address, "idle_timeout = \"2s\"").await;
    let mut idle = connect(address).await;
    idle.write_all(b"!").await.unwrap();
    idle.read_exact(&mut [0]).await.unwrap();
    let start = Instant::now();
    let mut busy = connect(address).await;
    let before = proxy.lines();
    while start.elapsed() < Duration::from_secs(5) {
        busy.write_all(b"!").await.unwrap();
        busy.read_exact(&mut [0]).await.unwrap();
        // The pace of a busy session, an eighth of what is allowed.
        sleep(Duration::from_millis(250)).await;
    }
    let line = proxy.session_line(before).await;
    assert_eq!(line["cause"], "idle", "{line}");
    let lived = line["total_ms"].as_f64().unwrap();
    assert!((1_900.0..5_000.0).contains(&lived), "{line}");
    assert_eq!(read_out(&mut idle).await, (Vec::new(), Ending::Reset));
    busy.write_all(b"!").await.unwrap();
    busy.read_exact(&mut [0]).await.unwrap();
}

#[tokio::test]
async fn the_longest_life_ends_a_busy_session_too() {
    let place = Place::new();
    let backend = Backend::echo(&place).await;
    let (proxy, address) = Proxy::before(&place, backend.address, "max_lifetime = \"2s\"").await;
    let before = proxy.lines();
    let mut client = connect(address).await;
    let start = Instant::now();
    let busy = async {
        loop {
            if client.write_all(b"!").await.is_err() || client.read_exact(&mut [0]).await.is_err() {
                return;
            }
        }
    };
    soon("the end of a life", busy).await;
    assert!(start.elapsed() > Duration::from_millis(1_900), "ended after {:?}", start.elapsed());
    let line = proxy.session_line(before).await;
    assert_eq!(line["cause"], "lifetime", "{line}");
}

#[tokio::test]
async fn stalled_readers_cost_less_than_64_kib_of_memory_each_and_lose_nothing() {
    const SESSIONS: u64 = 24;
    // More than the kernel's own buffers on both sides hold.
    const BYTES: u64 = 64 * 1024 * 1024;
    let place = Place::new();
    let mut backend = Backend::serve(&place, |mut stream| async move {
        Pattern(5).send(&mut stream, 0, BYTES).await.unwrap();
    })
    .await;
    let (proxy, address) = Proxy::before(&place, backend.address, "").await;
    // One session before the count, so that what a process takes once is not counted.
    let mut client = connect(address).await;
    soon("a first transfer", Pattern(5).receive_all(&mut client, BYTES)).await;
    backend.next().await;
    drop(client);

    let before = proxy.resident_kib();
    let mut clients = Vec::new();
    for _ in 0..SESSIONS {
        clients.push(connect(address).await);
    }
    let mut moved = u64::MAX;
    eventually_within(Duration::from_secs(60), "every transfer stalls", async || {
        let now = proxy.metric("twinspan_transferred_bytes_total", &[("direction", "to_client")]).await;
        sleep(Duration::from_millis(500)).await;
        (std::mem::replace(&mut moved, now) == now && backend.accepted() == SESSIONS + 1).then_some(())
    })
    .await;
    let grown = proxy.resident_kib().saturating_sub(before);
    assert!(grown < SESSIONS * 64, "{grown} KiB more for {SESSIONS} stalled sessions");
    for mut client in clients.drain(..4) {
        soon("a transfer that goes on", Pattern(5).receive_all(&mut client, BYTES)).await;
    }
}

#[tokio::test]
async fn sessions_share_the_bandwidth_of_their_pool_and_who_waits_for_a_share_is_not_idle() {
    const SESSIONS: usize = 30;
    let place = Place::new();
    let backend = Backend::serve(&place, |mut stream| async move {
        // Until its client has enough.
        while stream.write_all(&[7; 16 * 1024]).await.is_ok() {}
    })
    .await;
    let address = place.free();
    let tables = pool("p", "bandwidth = \"1MiB\"", &[("aws", backend.address)])
        + &listener(address, "p", "idle_timeout = \"1s\"");
    let proxy = Proxy::start(Setup::new(&place, tables)).await;
    let before = proxy.lines();
    let end = Instant::now() + Duration::from_secs(6);
    let mut readers = tokio::task::JoinSet::new();
    for _ in 0..SESSIONS {
        let mut client = connect(address).await;
        readers.spawn(async move {
            let (mut got, mut room) = (0, [0; 4096]);
            while let Ok(read) = tokio::time::timeout_at(end, client.read(&mut room)).await {
                // An end would be an error, or 0 bytes.
                got += read.ok().filter(|read| *read > 0)?;
            }
            Some((got, client))
        });
    }
    let all: Vec<_> = readers.join_all().await;
    let got: Vec<_> = all.iter().map(|one| one.as_ref().map_or(0, |(got, _)| *got)).collect();
    assert!(all.iter().all(Option::is_some), "ended: {got:?}, {}", proxy.session_line(before).await);
    let (fair, least) = (got.iter().sum::<usize>() / SESSIONS, *got.iter().min().unwrap());
    assert!(least >= fair / 2 && got.iter().all(|got| *got <= fair * 2), "{got:?}");
    assert!((100 * 1024..=250 * 1024).contains(&fair), "{fair}");
}

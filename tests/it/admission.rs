//! Who may come in, and how much: access lists and limits, on both carriers. Clients come from loopback addresses of
//! their own.

use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::Instant,
};

use crate::harness::{
    Backend, Carrier, Place, Proxy, Setup, connect, eventually, listener, on_both_carriers, pool, silent_for,
    soon,
};

on_both_carriers!(
    #[tokio::test]
    an_access_list_lets_in_whom_its_longest_network_allows_and_resets_the_others,
    a_listener_has_as_many_sessions_as_it_may_and_one_that_ends_makes_room,
    new_sessions_come_in_at_the_rate_of_the_listener,
    a_source_that_floods_is_held_to_its_limits_and_a_bystander_does_not_notice,
    sessions_count_under_the_limits_that_a_reload_brings,
    above_its_ceiling_of_memory_the_process_resets_new_sessions_and_serves_the_old,
    behind_a_balancer_the_address_of_the_client_itself_counts,
    so_many_may_have_said_nothing_yet_and_the_next_is_reset,
    a_route_has_a_list_of_its_own,
    who_finds_every_endpoint_full_waits_for_one_in_turn,
    who_waits_for_an_endpoint_goes_in_when_a_reload_lets_more_in,
    who_waits_too_long_for_an_endpoint_is_reset_and_the_endpoint_is_not_blamed,
);

/// A client at this address of this machine.
async fn client(source: [u8; 4], address: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from((source, 0)))?;
    soon("a connection", socket.connect(address)).await
}

/// Asks something and has it echoed.
async fn is_served(stream: &mut TcpStream) -> io::Result<()> {
    let mut answer = [0];
    soon("an answer", async {
        stream.write_all(b"?").await?;
        stream.read_exact(&mut answer).await
    })
    .await?;
    assert_eq!(&answer, b"?");
    Ok(())
}

/// A session that is served, if it is let in; one that is not is reset, and not closed.
async fn session(source: [u8; 4], address: SocketAddr) -> Option<TcpStream> {
    let mut stream = match client(source, address).await {
        Ok(stream) => stream,
        Err(error) => {
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}");
            return None;
        }
    };
    match is_served(&mut stream).await {
        Ok(()) => Some(stream),
        Err(error) => {
            let reset = [io::ErrorKind::ConnectionReset, io::ErrorKind::BrokenPipe];
            assert!(reset.contains(&error.kind()), "{error}");
            None
        }
    }
}

async fn refused(proxy: &Proxy, reason: &str) -> u64 {
    proxy.metric("twinspan_connections_refused_total", &[("reason", reason)]).await
}

const NEIGHBOUR: [u8; 4] = [127, 0, 0, 3];

async fn an_access_list_lets_in_whom_its_longest_network_allows_and_resets_the_others(carrier: Carrier) {
    let place = Place::new();
    let backend = Backend::echo(&place).await;
    let lists = "allow = [\"127.0.0.0/24\", \"127.0.1.2\"]\ndeny = [\"127.0.0.2\", \"127.0.0.128/25\"]";
    let (proxy, address) = Proxy::before_on(carrier, &place, backend.address, lists).await;
    let before = proxy.lines();
    for (source, may) in [
        ([127, 0, 0, 1], true),
        ([127, 0, 0, 2], false),
        ([127, 0, 0, 3], true),
        ([127, 0, 0, 200], false),
        ([127, 0, 1, 1], false),
        ([127, 0, 1, 2], true),
    ] {
        assert_eq!(session(source, address).await.is_some(), may, "{source:?}");
    }
    assert_eq!(refused(&proxy, "denied").await, 3);
    assert_eq!(backend.accepted(), 3);
    let line = proxy.line_from(before, "a denied session", |line| {
        let line: serde_json::Value = serde_json::from_str(line).ok()?;
        (line["cause"] == "denied").then_some(line)
    });
    let line = line.await;
    assert_eq!((&line["side"], &line["stage"]), (&"proxy".into(), &"accept".into()), "{line}");
    assert!(line["client"].as_str().unwrap().starts_with("127.0.0.2:"), "{line}");
}

async fn a_listener_has_as_many_sessions_as_it_may_and_one_that_ends_makes_room(carrier: Carrier) {
    let place = Place::new();
    let backend = Backend::echo(&place).await;
    let (proxy, address) = Proxy::before_on(carrier, &place, backend.address, "max_sessions = 3").await;
    let mut inside = Vec::new();
    for _ in 0..3 {
        inside.push(session(NEIGHBOUR, address).await.unwrap());
    }
    for _ in 0..5 {
        assert!(session(NEIGHBOUR, address).await.is_none());
    }
    assert_eq!(refused(&proxy, "sessions").await, 5);
    assert_eq!(proxy.metric("twinspan_connections_closed_total", &[("cause", "limited")]).await, 5);
    drop(inside.pop());
    inside.push(eventually("room for one more", async || session(NEIGHBOUR, address).await).await);
    for stream in &mut inside {
        is_served(stream).await.unwrap();
    }
}

async fn new_sessions_come_in_at_the_rate_of_the_listener(carrier: Carrier) {
    let place = Place::new();
    let backend = Backend::echo(&place).await;
    let (proxy, address) = Proxy::before_on(carrier, &place, backend.address, "max_rate = 20").await;
    let (start, mut inside) = (Instant::now(), 0_u32);
    while start.elapsed() < Duration::from_secs(2) {
        inside += u32::from(session(NEIGHBOUR, address).await.is_some());
    }
    // A burst of twenty, and twenty a second.
    let most = 21.0 + 20.0 * start.elapsed().as_secs_f64();
    assert!((55.0..=most).contains(&f64::from(inside)), "{inside} in {:?}", start.elapsed());
    assert!(refused(&proxy, "rate").await > 0);
}

async fn a_source_that_floods_is_held_to_its_limits_and_a_bystander_does_not_notice(carrier: Carrier) {
    let place = Place::new();
    let backend = Backend::echo(&place).await;
    let limits = "max_source_sessions = 4\nmax_source_rate = 50\nmax_sessions = 50\nmax_rate = 200";
    let (proxy, address) = Proxy::before_on(carrier, &place, backend.address, limits).await;
    let flooding = [127, 0, 0, 2];
    let mut flood = Vec::new();
    for _ in 0..4 {
        flood.push(session(flooding, address).await.unwrap());
    }
    for round in 0..20 {
        for _ in 0..10 {
            assert!(session(flooding, address).await.is_none());
        }
        assert!(session(NEIGHBOUR, address).await.is_some(), "round {round}");
    }
    assert_eq!(refused(&proxy, "source_sessions").await, 200);
    flood.clear();
    // It comes and goes now, as fast as it can.
    let (start, mut inside) = (Instant::now(), 0_u32);
    while start.elapsed() < Duration::from_secs(1) {
        inside += u32::from(session(flooding, address).await.is_some());
    }
    assert!(refused(&proxy, "source_rate").await > 0);
    assert!(inside <= 110, "{inside} in a second");
    assert_eq!((refused(&proxy, "sessions").await, refused(&proxy, "rate").await), (0, 0));
    assert!(session([127, 0, 0, 4], address).await.is_some());
}

async fn sessions_count_under_the_limits_that_a_reload_brings(carrier: Carrier) {
    let place = Place::new();
    let backend = Backend::echo(&place).await;
    let (proxy, address) = Proxy::before_on(carrier, &place, backend.address, "").await;
    let with =
        |settings: &str| proxy.setup().text().replace("[[listener]]", &format!("[[listener]]\n{settings}"));
    let mut inside = vec![connect(address).await, connect(address).await];
    for stream in &mut inside {
        is_served(stream).await.unwrap();
    }
    proxy.reload(&with("max_sessions = 3")).await;
    inside.push(session(NEIGHBOUR, address).await.unwrap());
    assert!(session(NEIGHBOUR, address).await.is_none());
    proxy.reload(&with("max_sessions = 4\nmax_source_sessions = 1")).await;
    inside.push(session(NEIGHBOUR, address).await.unwrap());
    assert!(session(NEIGHBOUR, address).await.is_none());
    assert!(session([127, 0, 0, 4], address).await.is_none());
    inside.drain(..2);
    // One of the first has gone, which had come when there was no limit.
    inside.push(eventually("room", async || session([127, 0, 0, 4], address).await).await);
    assert!(session(NEIGHBOUR, address).await.is_none(), "its source has one");
    proxy.reload(&with("")).await;
    assert!(session(NEIGHBOUR, address).await.is_some());
    for stream in &mut inside {
        is_served(stream).await.unwrap();
    }
}

async fn above_its_ceiling_of_memory_the_process_resets_new_sessions_and_serves_the_old(carrier: Carrier) {
    let place = Place::new();
    let backend = Backend::echo(&place).await;
    let (proxy, address) = Proxy::before_on(carrier, &place, backend.address, "").await;
    let with = |memory: &str| {
        proxy.setup().text().replace("workers = 2", &format!("workers = 2\nmax_memory = \"{memory}\""))
    };
    let mut inside = session(NEIGHBOUR, address).await.unwrap();
    let before = proxy.lines();
    proxy.reload(&with("1MiB")).await;
    proxy
        .line_from(before, "too much memory", |line| line.contains("new sessions are reset: ").then_some(()))
        .await;
    for _ in 0..5 {
        assert!(session(NEIGHBOUR, address).await.is_none());
    }
    is_served(&mut inside).await.unwrap();
    assert_eq!(refused(&proxy, "memory").await, 5);
    assert_eq!(proxy.metric("twinspan_connections_closed_total", &[("cause", "exhausted")]).await, 5);
    assert_eq!(proxy.metric("twinspan_memory_ceiling_bytes", &[]).await, 1 << 20);
    assert_eq!(proxy.metric("twinspan_memory_short", &[]).await, 1);
    assert!(proxy.status().await.is_object(), "the admin API answers");
    // Far above what it takes.
    proxy.reload(&with("4GiB")).await;
    proxy.line_from(before, "enough memory", |line| line.contains("let in again: ").then_some(())).await;
    assert!(session(NEIGHBOUR, address).await.is_some());
    is_served(&mut inside).await.unwrap();
    let warnings = proxy.said().lines().filter(|line| line.contains("\"kind\":\"memory_")).count();
    assert_eq!(warnings, 2, "one line for each change");
}

/// An endpoint that names itself, and then echoes.
async fn named(place: &Place, name: u8) -> Backend {
    Backend::serve(place, move |mut stream| async move {
        if stream.write_all(&[name]).await.is_ok() {
            let (mut from, mut to) = stream.split();
            drop(tokio::io::copy(&mut from, &mut to).await);
        }
    })
    .await
}

/// The name of the endpoint that serves it.
async fn name(stream: &mut TcpStream) -> io::Result<u8> {
    soon("a name", stream.read_u8()).await
}

async fn who_finds_every_endpoint_full_waits_for_one_in_turn(carrier: Carrier) {
    let place = Place::new();
    let (first, second) = (named(&place, 1).await, named(&place, 2).await);
    let bind = place.free();
    let settings = "policy = \"failover\"\norder = [\"aws\", \"gcp\"]\nmax_endpoint_sessions = 2\nconnect_timeout = \"10s\"";
    let tables = pool("web", settings, &[("aws", first.address), ("gcp", second.address)]);
    let proxy = Proxy::start(Setup::new(&place, tables + &listener(bind, "web", "")).carrier(carrier)).await;
    let mut inside = Vec::new();
    for expected in [1, 1, 2, 2] {
        let mut stream = connect(bind).await;
        assert_eq!(name(&mut stream).await.unwrap(), expected);
        inside.push(stream);
    }
    // All full. Three wait, one after the other.
    let mut waiting = Vec::new();
    for number in 1..=3 {
        waiting.push(connect(bind).await);
        eventually("one more waits", async || {
            (proxy.metric("twinspan_connect_queued_total", &[]).await == number).then_some(())
        })
        .await;
    }
    assert!(silent_for(&waiting[0], Duration::from_millis(300)).await);
    for place in 0..3_usize {
        // One that is served leaves, at either endpoint.
        drop(inside.swap_remove(if place == 1 { 0 } else { inside.len() - 1 }));
        let mut next = waiting.remove(0);
        let served = name(&mut next).await.unwrap();
        assert!([1, 2].contains(&served));
        inside.push(next);
        for later in &waiting {
            assert!(silent_for(later, Duration::from_millis(100)).await, "out of turn");
        }
        for one in [first.address, second.address] {
            let address = one.to_string();
            let active =
                proxy.metric("twinspan_upstream_connections_active", &[("endpoint", &address)]).await;
            assert!(active <= 2, "{active} at {one}");
        }
    }
    assert_eq!(proxy.metric("twinspan_connect_queue_overflowed_total", &[]).await, 0);
}

async fn who_waits_for_an_endpoint_goes_in_when_a_reload_lets_more_in(carrier: Carrier) {
    let place = Place::new();
    let backend = Backend::echo(&place).await;
    let bind = place.free();
    let with = |most: &str| {
        let settings = format!("{most}\nconnect_timeout = \"20s\"");
        pool("web", &settings, &[("aws", backend.address)]) + &listener(bind, "web", "")
    };
    let setup = Setup::new(&place, with("max_endpoint_sessions = 1")).carrier(carrier);
    let proxy = Proxy::start(setup.clone()).await;
    let _inside = session(NEIGHBOUR, bind).await.unwrap();
    let mut waiting = Vec::new();
    for number in 1..=3 {
        waiting.push(connect(bind).await);
        eventually("one more waits", async || {
            (proxy.metric("twinspan_connect_queued_total", &[]).await == number).then_some(())
        })
        .await;
    }
    let start = Instant::now();
    proxy.reload(&setup.with(with("max_endpoint_sessions = 3")).text()).await;
    let [first, second, third] = waiting.get_disjoint_mut([0, 1, 2]).unwrap();
    is_served(first).await.unwrap();
    is_served(second).await.unwrap();
    third.write_all(b"?").await.unwrap();
    assert!(silent_for(third, Duration::from_millis(200)).await);
    proxy.reload(&setup.with(with("")).text()).await;
    assert_eq!(soon("an answer", third.read_u8()).await.unwrap(), b'?');
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
}

async fn who_waits_too_long_for_an_endpoint_is_reset_and_the_endpoint_is_not_blamed(carrier: Carrier) {
    let place = Place::new();
    let backend = Backend::echo(&place).await;
    let bind = place.free();
    let settings = "max_endpoint_sessions = 1\nconnect_timeout = \"300ms\"\nattempts = 2";
    let tables = pool("web", settings, &[("aws", backend.address)]) + &listener(bind, "web", "");
    let proxy = Proxy::start(Setup::new(&place, tables).carrier(carrier)).await;
    let mut inside = session(NEIGHBOUR, bind).await.unwrap();
    for _ in 0..8 {
        let start = Instant::now();
        assert!(session(NEIGHBOUR, bind).await.is_none());
        assert!(start.elapsed() >= Duration::from_millis(550), "{:?}", start.elapsed());
    }
    assert_eq!(proxy.metric("twinspan_connections_closed_total", &[("cause", "overloaded")]).await, 8);
    // Neither ejected nor held for dead.
    assert_eq!(proxy.metric("twinspan_ejections_total", &[]).await, 0);
    assert_eq!(backend.accepted(), 1);
    is_served(&mut inside).await.unwrap();
    drop(inside);
    eventually("it is free", async || session(NEIGHBOUR, bind).await).await;
}

/// A session that a balancer passes on for this client, if it is let in.
async fn passed_on(source: &str, address: SocketAddr) -> Option<TcpStream> {
    let mut stream = match soon("a connection", TcpStream::connect(address)).await {
        Ok(stream) => stream,
        Err(error) => {
            // Who is not let in is reset, at times before it knows that it was connected.
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}");
            return None;
        }
    };
    let header = format!("PROXY TCP4 {source} 192.0.2.200 40000 5432\r\n");
    stream.write_all(header.as_bytes()).await.ok()?;
    is_served(&mut stream).await.ok().map(|()| stream)
}

async fn behind_a_balancer_the_address_of_the_client_itself_counts(carrier: Carrier) {
    let place = Place::new();
    let backend = Backend::echo(&place).await;
    let settings = "proxy_header = \"required\"\ndeny = [\"198.51.100.0/24\"]\nmax_source_sessions = 1";
    let (proxy, address) = Proxy::before_on(carrier, &place, backend.address, settings).await;
    assert!(passed_on("198.51.100.1", address).await.is_none());
    let first = passed_on("192.0.2.1", address).await.unwrap();
    assert!(passed_on("192.0.2.1", address).await.is_none());
    let _second = passed_on("192.0.2.2", address).await.unwrap();
    assert_eq!((refused(&proxy, "denied").await, refused(&proxy, "source_sessions").await), (1, 1));
    drop(first);
    eventually("room for its source", async || passed_on("192.0.2.1", address).await).await;
}

async fn so_many_may_have_said_nothing_yet_and_the_next_is_reset(carrier: Carrier) {
    let place = Place::new();
    let backend = Backend::echo(&place).await;
    let settings = "proxy_header = \"required\"\nheader_timeout = \"60s\"\nmax_handshakes = 2";
    let (proxy, address) = Proxy::before_on(carrier, &place, backend.address, settings).await;
    let _served = passed_on("192.0.2.1", address).await.unwrap();
    let mut silent = vec![connect(address).await, connect(address).await];
    eventually("both are waited for", async || {
        (proxy.metric("twinspan_connections_at_entry", &[]).await == 2).then_some(())
    })
    .await;
    assert!(passed_on("192.0.2.1", address).await.is_none());
    assert_eq!(refused(&proxy, "handshakes").await, 1);
    drop(silent.pop());
    eventually("room at the entry", async || passed_on("192.0.2.1", address).await).await;
}

async fn a_route_has_a_list_of_its_own(carrier: Carrier) {
    let place = Place::new();
    let backend = Backend::echo(&place).await;
    let route = "[[listener.route]]\nsource = [\"127.0.0.0/24\"]\npool = \"only\"\ndeny = [\"127.0.0.2\"]";
    let (proxy, address) = Proxy::before_on(carrier, &place, backend.address, route).await;
    assert!(session(NEIGHBOUR, address).await.is_some());
    assert!(session([127, 0, 0, 2], address).await.is_none());
    // Outside the route the listener's own pool takes it.
    assert!(session([127, 0, 1, 2], address).await.is_some());
    assert_eq!(refused(&proxy, "denied").await, 1);
    let ended = [("cause", "denied"), ("stage", "route")];
    assert_eq!(proxy.metric("twinspan_connections_closed_total", &ended).await, 1);
}

//! How sessions end, and that a drain and a stop find them wherever they are.

use super::*;
use crate::telemetry::{Cause, Side};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_ends_without_a_byte_gets_the_greeting() {
    for carrier in [Carrier::Engine, Carrier::Tokio] {
        let banner = endpoint(|mut stream| async move {
            stream.write_all(b"220 ready\n").await.unwrap();
            drop(stream.read_to_end(&mut Vec::new()).await);
        })
        .await;
        let plane = Plane::start(carrier, 2, &[banner]).await;
        for _ in 0..50 {
            let mut client = plane.client().await;
            client.shutdown().await.unwrap();
            let mut got = String::new();
            soon(client.read_to_string(&mut got)).await.unwrap();
            assert_eq!(got, "220 ready\n");
        }
        plane.quiet().await;
        assert_eq!(plane.ends(), [(End::closed(Side::Client), 50)]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_speaks_first_is_heard_at_once_by_silent_and_by_hasty_clients() {
    for carrier in [Carrier::Engine, Carrier::Tokio] {
        let greeter = endpoint(|mut stream| async move {
            stream.write_all(b"hello").await.unwrap();
            let (mut from, mut to) = stream.split();
            drop(tokio::io::copy(&mut from, &mut to).await);
        })
        .await;
        let plane = Plane::start(carrier, 2, &[greeter]).await;
        let mut best = [Duration::MAX; 2];
        for round in 0..40 {
            let hasty = round % 2;
            let mut client = plane.client().await;
            let start = Instant::now();
            if hasty == 1 {
                client.write_all(b"ping").await.unwrap();
            }
            let mut got = [0; 5];
            soon(client.read_exact(&mut got)).await.unwrap();
            assert_eq!(&got, b"hello");
            best[hasty] = best[hasty].min(start.elapsed());
            if hasty == 1 {
                soon(client.read_exact(&mut got[..4])).await.unwrap();
            }
            greet(&mut client).await.unwrap();
        }
        assert!(best.iter().all(|best| *best < Duration::from_millis(20)), "{best:?}");
        plane.quiet().await;
    }
}

/// Sessions in every stage: connecting, handed to tokio, idle, busy, half-closed, stalled, aborting.
async fn every_stage(plane: &Plane, silent: SocketAddr, good: SocketAddr) -> Vec<TcpStream> {
    let mut clients = Vec::new();
    let patient = Connect { timeout: Duration::from_secs(60), total: Duration::from_secs(60), ..CONNECT };
    plane.publish(&[silent], patient, LIMITS);
    for _ in 0..4 {
        clients.push(plane.client().await);
    }
    eventually(|| plane.shared.sessions.active() == 4).await;
    sleep(Duration::from_millis(1100)).await;
    for _ in 0..4 {
        clients.push(plane.client().await);
    }
    eventually(|| plane.shared.sessions.active() == 8).await;
    plane.publish(&[good], CONNECT, LIMITS);
    for number in 0..8 {
        let mut client = plane.client().await;
        greet(&mut client).await.unwrap();
        if number >= 4 {
            // The echo has nowhere to go: both directions stall.
            let fill = async {
                loop {
                    client.write_all(&[1; 65_536]).await.unwrap();
                }
            };
            assert!(timeout(Duration::from_millis(300), fill).await.is_err());
        }
        if number >= 6 {
            client.shutdown().await.unwrap();
        }
        clients.push(client);
    }
    clients
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_ends_sessions_in_every_stage_and_closes_every_book() {
    for carrier in [Carrier::Engine, Carrier::Tokio] {
        for drained in [false, true] {
            let hole = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            socket2::SockRef::from(&hole).listen(0).unwrap();
            let silent = hole.local_addr().unwrap();
            let mut held = Vec::new();
            while let Ok(stream) = timeout(Duration::from_millis(300), TcpStream::connect(silent)).await {
                held.push(stream.unwrap());
            }
            let plane = Plane::start(carrier, 2, &[silent]).await;
            let clients = every_stage(&plane, silent, echo().await).await;
            if drained {
                plane.shared.sessions.advance(Phase::Draining);
                eventually(|| std::net::TcpStream::connect(plane.address).is_err()).await;
            }
            assert_eq!(plane.shared.sessions.active(), 16);
            let (shared, cell) = (Arc::clone(&plane.shared), Arc::clone(&plane.cell));
            tokio::task::spawn_blocking(move || drop(plane)).await.unwrap();
            assert_eq!((shared.sessions.active(), cell.active()), (0, 0));
            let ends: Vec<_> = cell.ends().collect();
            let shut: u64 = ends
                .iter()
                .filter(|(end, _)| (end.side, end.cause) == (Side::Operator, Cause::Shutdown))
                .map(|(_, count)| count)
                .sum();
            assert_eq!(shut, 16, "{carrier:?}: {ends:?}");
            for mut client in clients {
                let error = loop {
                    match soon(client.read(&mut [0; 65_536])).await {
                        Ok(1..) => {}
                        Ok(0) => panic!("a clean end"),
                        Err(error) => break error,
                    }
                };
                assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_lets_sessions_in_every_stage_go_on_and_takes_nobody_new() {
    for carrier in [Carrier::Engine, Carrier::Tokio] {
        let plane = Plane::start(carrier, 2, &[echo().await]).await;
        let mut clients = Vec::new();
        for _ in 0..20 {
            let mut client = plane.client().await;
            greet(&mut client).await.unwrap();
            clients.push(client);
        }
        // These are in the queue, or just out of it.
        for _ in 0..20 {
            clients.push(plane.client().await);
        }
        plane.shared.sessions.advance(Phase::Draining);
        eventually(|| std::net::TcpStream::connect(plane.address).is_err()).await;
        for client in &mut clients {
            greet(client).await.unwrap();
        }
        drop(clients);
        soon(plane.shared.sessions.quiet()).await;
        assert!(plane.ends().iter().all(|(end, _)| end.is_clean()), "{:?}", plane.ends());
    }
}

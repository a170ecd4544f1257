//! Time limits in the engine: when attempts give up, and sessions that are connected late.

use std::sync::atomic::Ordering::Relaxed;

use super::*;
use crate::telemetry::{Cause, Side, Stage};

/// An endpoint that answers no handshake until it is opened: its queue is full.
pub(super) struct Full {
    listener: std::net::TcpListener,
    held: Vec<TcpStream>,
    pub(super) address: SocketAddr,
}

impl Full {
    pub(super) async fn hold() -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        socket2::SockRef::from(&listener).listen(0).unwrap();
        let address = listener.local_addr().unwrap();
        let mut held = Vec::new();
        while let Ok(stream) = timeout(Duration::from_millis(300), TcpStream::connect(address)).await {
            held.push(stream.unwrap());
        }
        Self { listener, held, address }
    }

    /// Takes what is in its queue, and tells of each connection how many bytes came.
    pub(super) fn tell(self, bytes: tokio::sync::mpsc::Sender<usize>) {
        drop(self.held);
        drop(std::thread::spawn(move || {
            for stream in self.listener.incoming() {
                let Ok(mut stream) = stream else { continue };
                let bytes = bytes.clone();
                drop(std::thread::spawn(move || {
                    let mut got = Vec::new();
                    drop(io::Read::read_to_end(&mut stream, &mut got));
                    bytes.blocking_send(got.len()).unwrap_or_default();
                }));
            }
        }));
    }

    /// Takes what is in its queue, and then answers: the next client is greeted.
    fn open(self) {
        // A queue that overflows again would leave some of its clients half connected.
        socket2::SockRef::from(&self.listener).listen(64).unwrap();
        drop(self.held);
        drop(std::thread::spawn(move || {
            for stream in self.listener.incoming() {
                let Ok(mut stream) = stream else { continue };
                drop(std::thread::spawn(move || {
                    let mut other = stream.try_clone().unwrap();
                    drop(io::copy(&mut stream, &mut other));
                }));
            }
        }));
    }
}

pub(super) fn handed_over(plane: &Plane) -> u64 {
    plane.shared.workers.iter().map(|cell| cell.handed_over.load(Relaxed)).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attempt_gives_up_in_its_time_and_the_next_endpoint_serves() {
    for carrier in [Carrier::Engine, Carrier::Tokio] {
        let full = Full::hold().await;
        let plane = Plane::start(carrier, 2, &[full.address, echo().await]).await;
        for timeout in [200, 35] {
            let connect = Connect { timeout: Duration::from_millis(timeout), ..CONNECT };
            let endpoints = [full.address, echo().await];
            plane.publish(&endpoints, connect, LIMITS);
            let (mut best, mut worst) = (Duration::MAX, Duration::ZERO);
            for _ in 0..10 {
                let start = Instant::now();
                let mut client = plane.client().await;
                greet(&mut client).await.unwrap();
                (best, worst) = (best.min(start.elapsed()), worst.max(start.elapsed()));
            }
            let timeout = Duration::from_millis(timeout);
            assert!(best < timeout + Duration::from_millis(20), "{carrier:?}: {best:?} for {timeout:?}");
            assert!(worst < timeout + Duration::from_millis(500), "{carrier:?}: {worst:?} for {timeout:?}");
            assert!(best + Duration::from_millis(5) > timeout, "{carrier:?}: {best:?} for {timeout:?}");
        }
        let handed = handed_over(&plane);
        assert_eq!(handed, if carrier == Carrier::Engine { 20 } else { 0 });
        plane.quiet().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connect_that_takes_more_than_a_second_succeeds_and_loses_no_early_byte() {
    for carrier in [Carrier::Engine, Carrier::Tokio] {
        let full = Full::hold().await;
        let plane = Plane::start(carrier, 2, &[full.address]).await;
        let connect = Connect { timeout: Duration::from_secs(20), total: Duration::from_secs(20), ..CONNECT };
        plane.publish(&[full.address], connect, LIMITS);
        let mut clients = Vec::new();
        for _ in 0..5 {
            let mut client = plane.client().await;
            client.write_all(b"early ").await.unwrap();
            clients.push(client);
        }
        let engine = carrier == Carrier::Engine;
        eventually(|| {
            plane.shared.workers.iter().map(|cell| cell.handed_over.load(Relaxed)).sum::<u64>() == 5
                || !engine
        })
        .await;
        full.open();
        for client in &mut clients {
            client.write_all(b"late").await.unwrap();
            let mut got = [0; 10];
            let read = soon(client.read_exact(&mut got)).await;
            assert!(read.is_ok(), "{carrier:?}: {read:?}: {:?} {:?}", plane.ends(), handed_over(&plane));
            assert_eq!(&got, b"early late");
        }
        if engine {
            // They are back where they came from.
            let engines = || plane.shared.workers.iter().map(|cell| cell.sessions.load(Relaxed)).sum::<u64>();
            eventually(|| engines() == 5 && plane.carried().iter().sum::<u64>() == 5).await;
        }
        drop(clients);
        plane.quiet().await;
        assert!(plane.ends().iter().all(|(end, _)| end.is_clean()), "{:?}", plane.ends());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_resets_while_its_endpoint_is_dialled_ends_the_session_at_once() {
    for carrier in [Carrier::Engine, Carrier::Tokio] {
        for early in [true, false] {
            let full = Full::hold().await;
            let plane = Plane::start(carrier, 1, &[full.address]).await;
            let connect =
                Connect { timeout: Duration::from_secs(20), total: Duration::from_secs(20), ..CONNECT };
            plane.publish(&[full.address], connect, LIMITS);
            let mut client = plane.client().await;
            if early {
                client.write_all(b"early").await.unwrap();
            }
            eventually(|| plane.shared.sessions.active() == 1).await;
            let start = Instant::now();
            reset(client);
            plane.quiet().await;
            assert!(start.elapsed() < Duration::from_millis(500), "{:?}", start.elapsed());
            let end = End { side: Side::Client, stage: Stage::Connect, cause: Cause::Reset };
            assert_eq!(plane.ends(), [(end, 1)]);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_of_a_client_reaches_its_endpoint_within_some_turns_of_the_wheel() {
    let (sender, mut ended) = tokio::sync::mpsc::channel(16);
    let upstream = endpoint(move |mut stream| {
        let sender = sender.clone();
        async move {
            stream.write_all(b"hello").await.unwrap();
            let outcome = stream.read_to_end(&mut Vec::new()).await;
            sender.send((Instant::now(), outcome.is_err())).await.unwrap();
        }
    })
    .await;
    let plane = Plane::start(Carrier::Engine, 1, &[upstream]).await;
    let mut best = Duration::MAX;
    for _ in 0..10 {
        let mut client = plane.client().await;
        soon(client.read_exact(&mut [0; 5])).await.unwrap();
        client.write_all(&[7; 1000]).await.unwrap();
        let start = Instant::now();
        reset(client);
        let (at, was_reset) = soon(ended.recv()).await.unwrap();
        assert!(was_reset);
        best = best.min(at - start);
        assert!(at - start < Duration::from_millis(500), "{:?}", at - start);
    }
    assert!(best < Duration::from_millis(50), "{best:?}");
    plane.quiet().await;
}

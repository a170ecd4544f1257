//! Endpoints that reset a session before a byte was exchanged: it goes on elsewhere, and nothing else does.

use super::*;
use crate::telemetry::{Cause, Side, Stage};

/// Resets what it is told to, as a process that dies before it has accepted.
struct Dying {
    address: SocketAddr,
    listener: std::net::TcpListener,
}

impl Dying {
    fn start() -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        Self { address: listener.local_addr().unwrap(), listener }
    }

    /// Its kernel has answered for it; it dies.
    fn die(self) {
        drop(self.listener);
    }
}

fn cell(plane: &Plane, place: usize) -> Arc<Endpoint> {
    Arc::clone(&plane.shared.snapshot().pools[0].tiers[place].groups[0].endpoints[0])
}

fn retries(plane: &Plane) -> u64 {
    plane.shared.snapshot().pools[0].cell.counts().retries
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_leaves_an_endpoint_that_dies_before_it_was_sent_anything() {
    for carrier in [Carrier::Engine, Carrier::Tokio] {
        let dying = Dying::start();
        let plane = Plane::start(carrier, 2, &[dying.address, echo().await]).await;
        let mut clients = Vec::new();
        for _ in 0..10 {
            clients.push(plane.client().await);
        }
        eventually(|| cell(&plane, 0).cell.sessions() == 10).await;
        dying.die();
        for client in &mut clients {
            greet(client).await.unwrap();
            greet(client).await.unwrap();
        }
        assert_eq!(retries(&plane), 10, "{carrier:?}");
        assert_eq!(cell(&plane, 0).cell.gray().1, 10, "each counts against it");
        assert_eq!((cell(&plane, 0).cell.active(), cell(&plane, 1).cell.active()), (0, 10));
        drop(clients);
        plane.quiet().await;
        assert_eq!((cell(&plane, 0).cell.active(), cell(&plane, 1).cell.active()), (0, 0));
        assert_eq!(plane.ends(), [(End::closed(Side::Client), 10)]);
        assert_eq!(cell(&plane, 1).cell.bytes(), (80, 80));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_client_says_while_its_endpoint_dies_goes_to_the_next_one() {
    for carrier in [Carrier::Engine, Carrier::Tokio] {
        for _ in 0..20 {
            let dying = Dying::start();
            let plane = Plane::start(carrier, 1, &[dying.address, echo().await]).await;
            let mut client = plane.client().await;
            eventually(|| cell(&plane, 0).cell.sessions() == 1).await;
            // The reset and the request come to the proxy at the same time, in either order.
            let death = std::thread::spawn(|| dying.die());
            let said = client.write_all(b"ping").await;
            death.join().unwrap();
            let mut answer = [0; 4];
            match soon(client.read_exact(&mut answer)).await {
                Ok(_) => assert_eq!(&answer, b"ping"),
                // The request was sent to an endpoint that still lived.
                Err(_) => assert_eq!(cell(&plane, 0).cell.bytes().0, 4, "{said:?}"),
            }
            drop(client);
            plane.quiet().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_nobody_else_a_reset_is_passed_on_and_every_endpoint_was_tried() {
    for carrier in [Carrier::Engine, Carrier::Tokio] {
        for count in 1..=2 {
            let mut endpoints = Vec::new();
            for _ in 0..count {
                endpoints.push(endpoint(|stream| async move { reset(stream) }).await);
            }
            let plane = Plane::start(carrier, 1, &endpoints).await;
            for _ in 0..5 {
                let session = async { TcpStream::connect(plane.address).await?.read_u8().await };
                let error = soon(session).await.unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
            }
            plane.quiet().await;
            // A reset may be as quick as the handshake; then the connect has failed.
            let ends: Vec<_> = plane.ends().into_iter().map(|(end, _)| (end.side, end.cause)).collect();
            assert!(ends.iter().all(|end| *end == (Side::Upstream, Cause::Reset)), "{ends:?}");
            let mut tried = 0;
            for place in 0..count {
                let endpoint = cell(&plane, place);
                let failed: u64 = endpoint.cell.connect_failures().map(|(_, count)| count).sum();
                assert_eq!(endpoint.cell.sessions(), endpoint.cell.gray().1, "each loss counts once");
                assert!(endpoint.cell.sessions() + failed >= 5);
                tried += endpoint.cell.sessions() + failed;
            }
            assert_eq!(retries(&plane), tried - 5);
            assert!(tried <= 5 * u64::from(if count == 1 { 1 } else { CONNECT.attempts }), "{tried}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_orderly_end_without_a_byte_is_the_endpoints_answer() {
    for carrier in [Carrier::Engine, Carrier::Tokio] {
        let closer = endpoint(|stream| async move { drop(stream) }).await;
        let plane = Plane::start(carrier, 1, &[closer, echo().await]).await;
        let mut client = plane.client().await;
        assert_eq!(soon(client.read(&mut [0])).await.unwrap(), 0);
        drop(client);
        plane.quiet().await;
        assert_eq!((retries(&plane), plane.ends()), (0, vec![(End::closed(Side::Upstream), 1)]));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_was_sent_something_stays_where_it_is() {
    for carrier in [Carrier::Engine, Carrier::Tokio] {
        let taker = endpoint(|mut stream| async move {
            drop(stream.read_u8().await);
            reset(stream);
        })
        .await;
        let plane = Plane::start(carrier, 1, &[taker, echo().await]).await;
        let mut client = plane.client().await;
        client.write_all(b"x").await.unwrap();
        assert!(soon(client.read_u8()).await.is_err());
        plane.quiet().await;
        let end = End { side: Side::Upstream, stage: Stage::Relay, cause: Cause::Reset };
        assert_eq!((retries(&plane), plane.ends()), (0, vec![(end, 1)]));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_is_older_than_a_second_ends_with_its_endpoint() {
    for carrier in [Carrier::Engine, Carrier::Tokio] {
        let dying = Dying::start();
        let plane = Plane::start(carrier, 1, &[dying.address, echo().await]).await;
        let mut client = plane.client().await;
        eventually(|| cell(&plane, 0).cell.sessions() == 1).await;
        sleep(Duration::from_millis(1_100)).await;
        dying.die();
        assert!(soon(client.read_u8()).await.is_err());
        plane.quiet().await;
        assert_eq!(retries(&plane), 0);
    }
}

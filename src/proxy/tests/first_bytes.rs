//! Endpoints that accept and do not answer: counted, and left where the pool allows it.

use super::{
    entries::{entry, hear},
    *,
};
use crate::state::{Entry, Replay};

const QUARTER: Duration = Duration::from_millis(250);

const WATCH: Connect = Connect {
    first_byte: Some(QUARTER),
    ..Connect::plain(Duration::from_secs(2), 3, Duration::from_secs(6))
};

const MOVE: Connect = Connect { replay: Some(Replay { limit: 4096 }), ..WATCH };

/// Reads everything and says nothing.
async fn mute() -> SocketAddr {
    endpoint(|mut stream| async move {
        drop(stream.read_to_end(&mut Vec::new()).await);
    })
    .await
}

/// Closes when the first byte has come.
async fn empty() -> SocketAddr {
    endpoint(|mut stream| async move {
        drop(stream.read_u8().await);
    })
    .await
}

/// Resets when it is connected to.
async fn resetting() -> SocketAddr {
    endpoint(|stream| async move { reset(stream) }).await
}

fn cell(plane: &Plane, place: usize) -> Arc<Endpoint> {
    Arc::clone(&plane.shared.snapshot().pools[0].tiers[place].groups[0].endpoints[0])
}

fn replayed(plane: &Plane) -> u64 {
    plane.shared.snapshot().pools[0].cell.counts().replayed
}

/// More than fits one packet, less than is kept.
fn request(length: usize) -> Vec<u8> {
    (0..length).map(|n| u8::try_from(n % 251).unwrap()).collect()
}

async fn exchange(client: &mut TcpStream, request: &[u8]) {
    soon(client.write_all(request)).await.unwrap();
    let mut answer = vec![0; request.len()];
    soon(client.read_exact(&mut answer)).await.unwrap();
    assert_eq!(answer, request);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_leaves_an_endpoint_that_does_not_answer_and_loses_nothing() {
    for carrier in [Carrier::Engine, Carrier::Tokio] {
        for bad in [mute().await, empty().await, resetting().await] {
            let plane = Plane::start(carrier, 2, &[]).await;
            plane.publish(&[bad, echo().await], MOVE, LIMITS);
            for length in [1, 100, 4096] {
                let mut client = plane.client().await;
                exchange(&mut client, &request(length)).await;
                exchange(&mut client, &request(100_000)).await;
            }
            // A reset may be as quick as the handshake; then the connect has failed.
            let retried = plane.shared.snapshot().pools[0].cell.counts().retries;
            assert_eq!(replayed(&plane) + retried, 3);
            assert_eq!((cell(&plane, 0).cell.good(), cell(&plane, 1).cell.good()), (0, 3));
            let (_, empty, mute) = cell(&plane, 0).cell.gray();
            assert_eq!(empty + mute, replayed(&plane));
            plane.quiet().await;
            assert_eq!((cell(&plane, 0).cell.active(), cell(&plane, 1).cell.active()), (0, 0));
            assert_eq!(cell(&plane, 1).cell.bytes(), (304_197, 304_197));
            assert!(plane.ends().iter().all(|(end, _)| end.is_clean()), "{:?}", plane.ends());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_replay_a_mute_endpoint_is_counted_and_the_session_stays() {
    for carrier in [Carrier::Engine, Carrier::Tokio] {
        let slow = endpoint(|mut stream| async move {
            let byte = stream.read_u8().await.unwrap();
            sleep(3 * QUARTER).await;
            stream.write_all(&[byte, byte]).await.unwrap();
            drop(stream.read_to_end(&mut Vec::new()).await);
        })
        .await;
        let plane = Plane::start(carrier, 1, &[]).await;
        plane.publish(&[slow, echo().await], WATCH, LIMITS);
        let mut client = plane.client().await;
        client.write_all(b"x").await.unwrap();
        let mut answer = [0; 2];
        soon(client.read_exact(&mut answer)).await.unwrap();
        assert_eq!(&answer, b"xx");
        assert_eq!((cell(&plane, 0).cell.gray(), replayed(&plane)), ((0, 0, 1), 0));
        drop(client);
        plane.quiet().await;
        assert_eq!(cell(&plane, 0).cell.bytes(), (1, 2));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_without_a_byte_is_passed_on_where_no_session_moves() {
    for carrier in [Carrier::Engine, Carrier::Tokio] {
        let plane = Plane::start(carrier, 1, &[]).await;
        plane.publish(&[empty().await, echo().await], WATCH, LIMITS);
        let mut client = plane.client().await;
        client.write_all(b"x").await.unwrap();
        assert_eq!(soon(client.read(&mut [0])).await.unwrap(), 0);
        drop(client);
        plane.quiet().await;
        assert_eq!(cell(&plane, 0).cell.gray().1, 1, "counted once");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_with_nowhere_else_to_go_stays_with_the_endpoint_that_is_late() {
    for carrier in [Carrier::Engine, Carrier::Tokio] {
        let slow = endpoint(|mut stream| async move {
            let byte = stream.read_u8().await.unwrap();
            sleep(3 * QUARTER).await;
            drop(stream.write_all(&[byte]).await);
            drop(stream.read_to_end(&mut Vec::new()).await);
        })
        .await;
        let plane = Plane::start(carrier, 1, &[]).await;
        plane.publish(&[slow, nobody()], MOVE, LIMITS);
        let mut client = plane.client().await;
        client.write_all(b"x").await.unwrap();
        assert_eq!(soon(client.read_u8()).await.unwrap(), b'x');
        assert_eq!(replayed(&plane), 0);
        drop(client);
        plane.quiet().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_sends_more_than_is_kept_stays_and_loses_nothing() {
    for carrier in [Carrier::Engine, Carrier::Tokio] {
        let plane = Plane::start(carrier, 1, &[]).await;
        plane.publish(&[mute().await, echo().await], MOVE, LIMITS);
        let mut client = plane.client().await;
        soon(client.write_all(&request(200_000))).await.unwrap();
        soon(client.shutdown()).await.unwrap();
        assert_eq!(soon(client.read(&mut [0])).await.unwrap(), 0);
        plane.quiet().await;
        assert_eq!((replayed(&plane), cell(&plane, 0).cell.bytes().0), (0, 200_000));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_speaks_first_and_a_client_that_ends_its_direction_are_served() {
    for carrier in [Carrier::Engine, Carrier::Tokio] {
        let greeter = endpoint(|mut stream| async move {
            stream.write_all(b"hello").await.unwrap();
            drop(stream.read_to_end(&mut Vec::new()).await);
        })
        .await;
        let plane = Plane::start(carrier, 1, &[]).await;
        plane.publish(&[greeter], MOVE, LIMITS);
        let mut client = plane.client().await;
        soon(client.read_exact(&mut [0; 5])).await.unwrap();
        drop(client);
        plane.quiet().await;

        // A request that ends with the client's direction, and moves with it.
        let counter = endpoint(|mut stream| async move {
            let mut all = Vec::new();
            stream.read_to_end(&mut all).await.unwrap();
            stream.write_all(all.len().to_string().as_bytes()).await.unwrap();
        })
        .await;
        plane.publish(&[mute_for_ever().await, counter], MOVE, LIMITS);
        let mut client = plane.client().await;
        client.write_all(&request(1000)).await.unwrap();
        client.shutdown().await.unwrap();
        let mut answer = String::new();
        soon(client.read_to_string(&mut answer)).await.unwrap();
        assert_eq!((answer.as_str(), replayed(&plane)), ("1000", 1));
        drop(client);
        plane.quiet().await;
    }
}

/// Does not even end when its client does.
async fn mute_for_ever() -> SocketAddr {
    endpoint(|mut stream| async move {
        drop(stream.read_to_end(&mut Vec::new()).await);
        std::future::pending::<()>().await;
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_resets_while_the_first_byte_is_waited_for_ends_the_session() {
    for carrier in [Carrier::Engine, Carrier::Tokio] {
        let plane = Plane::start(carrier, 1, &[]).await;
        let connect = Connect { first_byte: Some(Duration::from_secs(60)), ..MOVE };
        plane.publish(&[mute_for_ever().await], connect, LIMITS);
        for (before, sent) in [b"".as_slice(), b"x"].into_iter().enumerate() {
            let mut client = plane.client().await;
            client.write_all(sent).await.unwrap();
            eventually(|| cell(&plane, 0).cell.sessions() > before as u64).await;
            let start = Instant::now();
            reset(client);
            plane.quiet().await;
            assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
        }
        assert!(plane.ends().iter().all(|(end, _)| end.side == crate::telemetry::Side::Client));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_sessions_leave_many_bad_endpoints_at_once() {
    for carrier in [Carrier::Engine, Carrier::Tokio] {
        let plane = Plane::start(carrier, 2, &[]).await;
        plane.publish(&[mute().await, resetting().await, echo().await], MOVE, LIMITS);
        let clients: Vec<_> = (0..200_usize)
            .map(|n| {
                let address = plane.address;
                tokio::spawn(async move {
                    let mut client = soon(TcpStream::connect(address)).await.unwrap();
                    exchange(&mut client, &request(n * 20 + 1)).await;
                })
            })
            .collect();
        for client in clients {
            client.await.unwrap();
        }
        plane.quiet().await;
        let retried = plane.shared.snapshot().pools[0].cell.counts().retries;
        assert_eq!(replayed(&plane) + retried, 400);
        assert!(plane.ends().iter().all(|(end, _)| end.is_clean()), "{:?}", plane.ends());
    }
}

/// Puts endpoints of one cloud in force, to be tried in turns, and one on trial.
fn publish_turns(
    plane: &Plane,
    addresses: &[SocketAddr],
    trial: SocketAddr,
) -> (Vec<Arc<Endpoint>>, Arc<Endpoint>) {
    plane.publish(addresses, MOVE, LIMITS);
    let snapshot = plane.shared.snapshot();
    let before = &snapshot.pools[0];
    let endpoints: Vec<_> =
        before.tiers.iter().map(|tier| Arc::clone(&tier.groups[0].endpoints[0])).collect();
    let first = &before.tiers[0].groups[0];
    let identity = EndpointIdentity { address: trial, ..(*first.endpoints[0].identity).clone() };
    let trial = Arc::new(Endpoint {
        identity: Arc::new(identity),
        cell: Arc::default(),
        weight: 1,
        socket: Arc::default(),
    });
    let group = Group {
        cloud: first.cloud.clone(),
        endpoints: endpoints.clone(),
        shares: Shares::new(endpoints.iter().map(|_| 1)),
        maglev: None,
        cell: Arc::default(),
    };
    let tiers = vec![Tier { groups: vec![group], shares: Shares::new([1]), cell: Arc::default() }];
    let pool = Pool {
        trials: vec![Arc::clone(&trial)],
        cell: Arc::clone(&before.cell),
        ..Pool::new(before.name.clone(), Balance::RoundRobin, tiers, MOVE)
    };
    put_in_force(&plane.shared, &plane.cell, pool, LIMITS);
    (endpoints, trial)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_is_watched_takes_one_turn_and_one_permit() {
    for carrier in [Carrier::Engine, Carrier::Tokio] {
        let plane = Plane::start(carrier, 1, &[]).await;
        let echoes = [echo().await, echo().await];
        let (endpoints, trial) = publish_turns(&plane, &echoes, echo().await);
        for _ in 0..10 {
            exchange(&mut plane.client().await, b"ping").await;
        }
        let sessions: Vec<_> = endpoints.iter().map(|endpoint| endpoint.cell.sessions()).collect();
        assert_eq!(sessions, [5, 5], "{carrier:?}");
        trial.cell.permit(1);
        for _ in 0..3 {
            exchange(&mut plane.client().await, b"ping").await;
        }
        assert_eq!((trial.cell.sessions(), trial.cell.good()), (1, 1), "{carrier:?}");
        plane.quiet().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_without_a_word_says_nothing_about_endpoints() {
    for carrier in [Carrier::Engine, Carrier::Tokio] {
        let plane = Plane::start(carrier, 1, &[]).await;
        plane.publish(&[echo().await, echo().await], MOVE, LIMITS);
        for _ in 0..3 {
            // As balancers do that ask whether a listener is there.
            let mut client = plane.client().await;
            soon(client.shutdown()).await.unwrap();
            assert_eq!(soon(client.read(&mut [0])).await.unwrap(), 0);
        }
        plane.quiet().await;
        let gray = [0, 1].map(|place| cell(&plane, place).cell.gray());
        assert_eq!((gray, replayed(&plane)), ([(0, 0, 0); 2], 0));
        assert!(plane.ends().iter().all(|(end, _)| end.is_clean()), "{:?}", plane.ends());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_ends_a_session_nobody_used_is_not_left() {
    for carrier in [Carrier::Engine, Carrier::Tokio] {
        // As servers do whose clients ask nothing for long.
        let tired = endpoint(|mut stream| async move {
            drop(timeout(Duration::from_millis(1500), stream.read_u8()).await);
        })
        .await;
        let plane = Plane::start(carrier, 1, &[]).await;
        plane.publish(&[tired, echo().await], MOVE, LIMITS);
        let mut client = plane.client().await;
        assert_eq!(soon(client.read(&mut [0])).await.unwrap(), 0);
        drop(client);
        plane.quiet().await;
        assert_eq!((cell(&plane, 0).cell.gray(), replayed(&plane)), ((0, 0, 0), 0));
    }
}

/// Answers once the client has ended its request of this many bytes.
async fn whole(length: usize) -> SocketAddr {
    endpoint(move |mut stream| async move {
        let mut request = vec![0; length];
        if stream.read_exact(&mut request).await.is_ok() {
            drop(stream.write_all(&request).await);
        }
        drop(stream.read_to_end(&mut Vec::new()).await);
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_is_slow_with_its_request_makes_no_endpoint_mute() {
    for carrier in [Carrier::Engine, Carrier::Tokio] {
        let plane = Plane::start(carrier, 1, &[]).await;
        let connect = Connect { first_byte: Some(4 * QUARTER), ..MOVE };
        plane.publish(&[whole(10).await, whole(10).await], connect, LIMITS);
        let mut client = plane.client().await;
        for _ in 0..10 {
            client.write_all(b"x").await.unwrap();
            sleep(QUARTER / 2).await;
        }
        soon(client.read_exact(&mut [0; 10])).await.unwrap();
        let gray = [0, 1].map(|place| cell(&plane, place).cell.gray());
        assert_eq!((gray, replayed(&plane)), ([(0, 0, 0); 2], 0), "{carrier:?}");
        drop(client);
        plane.quiet().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_larger_than_the_receive_buffer_is_kept_and_moved() {
    const MOST: usize = 1024 * 1024;
    let connect = Connect { replay: Some(Replay { limit: 1024 * 1024 }), ..MOVE };
    for carrier in [Carrier::Engine, Carrier::Tokio] {
        let plane = Plane::start(carrier, 1, &[]).await;
        for (bad, moves) in [(None, 0), (Some(mute().await), 1)] {
            let endpoints: Vec<_> = bad.into_iter().chain([whole(MOST).await]).collect();
            plane.publish(&endpoints, connect, LIMITS);
            let mut client = plane.client().await;
            exchange(&mut client, &request(MOST)).await;
            let last = cell(&plane, endpoints.len() - 1);
            assert_eq!(
                (last.cell.gray(), last.cell.good(), replayed(&plane)),
                ((0, 0, 0), 1, moves),
                "{carrier:?}"
            );
            drop(client);
            plane.quiet().await;
            assert_eq!(last.cell.bytes(), (MOST as u64, MOST as u64));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_to_half_a_request_that_is_sent_again_loses_none_of_the_rest() {
    const MOST: usize = 1024 * 1024;
    let connect = Connect { replay: Some(Replay { limit: 1024 * 1024 }), ..MOVE };
    for carrier in [Carrier::Engine, Carrier::Tokio] {
        // Takes little at a time, answers at once, and reads the rest only later.
        let hasty = endpoint(|mut stream| async move {
            stream.write_all(b"!").await.unwrap();
            sleep(2 * QUARTER).await;
            let mut all = vec![0; MOST];
            stream.read_exact(&mut all).await.unwrap();
            stream.write_all(&all).await.unwrap();
            drop(stream.read_to_end(&mut Vec::new()).await);
        })
        .await;
        let plane = Plane::start(carrier, 1, &[]).await;
        plane.publish(&[mute().await, hasty], connect, LIMITS);
        let mut client = plane.client().await;
        soon(client.write_all(&request(MOST))).await.unwrap();
        let mut answer = vec![0; MOST + 1];
        soon(client.read_exact(&mut answer)).await.unwrap();
        assert!(answer[1..] == request(MOST), "{carrier:?}");
        drop(client);
        plane.quiet().await;
        assert_eq!(cell(&plane, 1).cell.bytes(), (MOST as u64, MOST as u64 + 1));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_follows_an_urgent_byte_reaches_the_endpoint() {
    for carrier in [Carrier::Engine, Carrier::Tokio] {
        let plane = Plane::start(carrier, 1, &[]).await;
        plane.publish(&[whole(6).await, whole(6).await], MOVE, LIMITS);
        let mut client = plane.client().await;
        client.write_all(b"abc").await.unwrap();
        let urgent = socket2::SockRef::from(&client).send_out_of_band(b"!").unwrap();
        assert_eq!(urgent, 1);
        client.write_all(b"def").await.unwrap();
        soon(client.read_exact(&mut [0; 6])).await.unwrap();
        let gray = [0, 1].map(|place| cell(&plane, place).cell.gray());
        assert_eq!(gray, [(0, 0, 0); 2], "{carrier:?}");
        drop(client);
        plane.quiet().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_no_time_is_set_a_silent_session_ends_as_an_idle_one() {
    let connect = Connect { first_byte: None, ..MOVE };
    for carrier in [Carrier::Engine, Carrier::Tokio] {
        let plane = Plane::start(carrier, 1, &[]).await;
        let limits = SessionLimits { idle: Duration::from_millis(500), ..LIMITS };
        plane.publish(&[mute().await, mute().await], connect, limits);
        let mut client = plane.client().await;
        client.write_all(b"x").await.unwrap();
        drop(soon(client.read(&mut [0])).await);
        plane.quiet().await;
        let gray = [0, 1].map(|place| cell(&plane, place).cell.gray());
        assert_eq!((gray, replayed(&plane)), ([(0, 0, 0); 2], 0), "{carrier:?}");
        assert_eq!(plane.ends().len(), 1);
        assert_eq!(plane.ends()[0].0.cause, crate::telemetry::Cause::Idle);
    }
}

/// The same plane, with sessions that are paced.
async fn paced(carrier: Carrier, endpoints: &[SocketAddr], connect: Connect) -> Plane {
    let plane = Plane::start(carrier, 1, &[]).await;
    plane.publish(endpoints, connect, LIMITS);
    hear(&plane.shared, &plane.cell, Entry { bandwidth: Some(1 << 24), ..entry() });
    plane
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_endpoint_was_sent_goes_to_no_other_one_in_part() {
    for carrier in [Carrier::Engine, Carrier::Tokio] {
        let asked_and_reset = endpoint(|mut stream| async move {
            stream.read_exact(&mut [0; 5]).await.unwrap();
            // It has been found mute by then.
            sleep(2 * QUARTER).await;
            reset(stream);
        });
        let plane = paced(carrier, &[asked_and_reset.await, echo().await], WATCH).await;
        let mut client = plane.client().await;
        client.write_all(b"hello").await.unwrap();
        assert!(soon(client.read(&mut [0])).await.is_err(), "the reset is passed on");
        plane.quiet().await;
        assert_eq!((cell(&plane, 0).cell.bytes(), cell(&plane, 1).cell.sessions()), ((5, 0), 0));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paced_session_goes_on_with_what_was_too_much_to_be_kept() {
    for carrier in [Carrier::Engine, Carrier::Tokio] {
        let plane = paced(carrier, &[echo().await], MOVE).await;
        for sessions in 1..=10 {
            let mut client = plane.client().await;
            // The client is silent while its endpoint is first watched.
            eventually(|| cell(&plane, 0).cell.sessions() == sessions).await;
            exchange(&mut client, &request(10_000)).await;
        }
    }
}

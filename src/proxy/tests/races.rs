//! Attempts beside one that is late: who wins, who is never dialled, what is counted, and what the losers see.

use super::*;
use crate::{
    state::{Hedge, Room},
    telemetry::{Cause, Side, Stage},
};

/// Late attempts are raced; each may take as long as it likes.
const RACE: Connect = Connect {
    hedge: Some(Hedge { budget: 20 }),
    ..Connect::plain(Duration::from_secs(20), 3, Duration::from_secs(20))
};

fn pool(plane: &Plane) -> Arc<Pool> {
    Arc::clone(&plane.shared.snapshot().pools[0])
}

fn endpoint_of(plane: &Plane, place: usize) -> Arc<Endpoint> {
    Arc::clone(&pool(plane).tiers[place].groups[0].endpoints[0])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_endpoint_costs_its_clients_a_fraction_of_a_second_and_no_byte() {
    for carrier in [Carrier::Engine, Carrier::Tokio] {
        let full = times::Full::hold().await;
        let plane = Plane::start(carrier, 2, &[]).await;
        plane.publish(&[full.address, echo().await], RACE, LIMITS);
        let mut worst = Duration::ZERO;
        for _ in 0..5 {
            let start = Instant::now();
            let mut client = plane.client().await;
            greet(&mut client).await.unwrap();
            worst = worst.max(start.elapsed());
            greet(&mut client).await.unwrap();
        }
        assert!(worst < Hedge::LATEST + Duration::from_secs(2), "{carrier:?}: {worst:?}");
        let counts = pool(&plane).cell.counts();
        assert_eq!((counts.hedges, counts.won, counts.denied, counts.retries), (5, 5, 0, 0));
        let (silent, living) = (endpoint_of(&plane, 0), endpoint_of(&plane, 1));
        assert_eq!(silent.cell.gray().0, 5, "it was overtaken each time");
        assert_eq!((silent.cell.sessions(), living.cell.sessions()), (0, 5));
        plane.quiet().await;
        assert_eq!((silent.cell.active(), living.cell.active()), (0, 0));
        assert_eq!(silent.cell.dialling().0 + living.cell.dialling().0, 0);
        assert!(plane.ends().iter().all(|(end, _)| end.is_clean()), "{:?}", plane.ends());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_that_must_not_be_raced_waits_for_its_first_attempt() {
    for carrier in [Carrier::Engine, Carrier::Tokio] {
        let full = times::Full::hold().await;
        let plane = Plane::start(carrier, 1, &[]).await;
        let connect = Connect { hedge: None, timeout: Duration::from_millis(700), ..RACE };
        plane.publish(&[full.address, echo().await], connect, LIMITS);
        let start = Instant::now();
        greet(&mut plane.client().await).await.unwrap();
        assert!(start.elapsed() >= Duration::from_millis(690), "{:?}", start.elapsed());
        let counts = pool(&plane).cell.counts();
        assert_eq!((counts.hedges, counts.retries), (0, 1));
        plane.quiet().await;
    }
}

/// So many clients at once: whether each was served.
async fn crowd(plane: &Plane, clients: usize) -> Vec<bool> {
    let greeting = |address| async move {
        let mut client = soon(TcpStream::connect(address)).await.unwrap();
        greet(&mut client).await.is_ok()
    };
    let clients: Vec<_> = (0..clients).map(|_| tokio::spawn(greeting(plane.address))).collect();
    let mut served = Vec::new();
    for client in clients {
        served.push(client.await.unwrap());
    }
    served
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_nobody_answers_no_more_attempts_are_made_than_the_budget_allows() {
    for carrier in [Carrier::Engine, Carrier::Tokio] {
        let (one, other) = (times::Full::hold().await, times::Full::hold().await);
        let plane = Plane::start(carrier, 2, &[]).await;
        let connect = Connect { attempts: 2, timeout: Duration::from_millis(900), ..RACE };
        plane.publish(&[one.address, other.address], connect, LIMITS);
        assert!(crowd(&plane, 100).await.iter().all(|served| !served));
        let counts = pool(&plane).cell.counts();
        assert!((10..=40).contains(&counts.hedges), "{counts:?}");
        assert!(counts.denied > 0, "{counts:?}");
        assert_eq!(counts.hedges + counts.retries, 100, "{counts:?}");
        plane.quiet().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_seems_dead_is_left_for_one_that_answers_whatever_the_budget() {
    for carrier in [Carrier::Engine, Carrier::Tokio] {
        let full = times::Full::hold().await;
        let plane = Plane::start(carrier, 2, &[]).await;
        let connect = Connect { hedge: Some(Hedge { budget: 0 }), ..RACE };
        plane.publish(&[full.address, echo().await], connect, LIMITS);
        // The first ten are free.
        assert!(crowd(&plane, 5).await.iter().all(|served| *served));
        let start = Instant::now();
        assert!(crowd(&plane, 100).await.iter().all(|served| *served));
        assert!(start.elapsed() < Duration::from_secs(2), "{carrier:?}: {:?}", start.elapsed());
        let counts = pool(&plane).cell.counts();
        assert_eq!((counts.hedges, counts.retries, counts.denied), (105, 0, 0));
        plane.quiet().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attempt_that_loses_late_is_closed_without_a_byte() {
    for carrier in [Carrier::Engine, Carrier::Tokio] {
        let (sender, mut seen) = tokio::sync::mpsc::channel(16);
        let full = times::Full::hold().await;
        let plane = Plane::start(carrier, 1, &[]).await;
        plane.publish(&[full.address, echo().await], RACE, LIMITS);
        let mut client = plane.client().await;
        greet(&mut client).await.unwrap();
        // Only now does the first endpoint take what waits at its door.
        full.tell(sender);
        greet(&mut client).await.unwrap();
        drop(client);
        plane.quiet().await;
        // Nothing but those that had filled its queue may come, and none of them with a byte.
        while let Ok(Some(bytes)) = timeout(Duration::from_millis(300), seen.recv()).await {
            assert_eq!(bytes, 0, "{carrier:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_every_endpoint_is_silent_the_client_is_reset_in_time() {
    for carrier in [Carrier::Engine, Carrier::Tokio] {
        let (one, other) = (times::Full::hold().await, times::Full::hold().await);
        let plane = Plane::start(carrier, 1, &[]).await;
        let half = Duration::from_millis(500);
        let connect = Connect { hedge: RACE.hedge, ..Connect::plain(half, 4, 4 * half) };
        plane.publish(&[one.address, other.address], connect, LIMITS);
        let start = Instant::now();
        let mut client = plane.client().await;
        assert!(soon(client.read_u8()).await.is_err());
        assert!(start.elapsed() < 4 * half + half, "{:?}", start.elapsed());
        plane.quiet().await;
        let end = End { side: Side::Upstream, stage: Stage::Connect, cause: Cause::TimedOut };
        assert_eq!(plane.ends(), [(end, 1)]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_resets_during_a_race_ends_it_at_once() {
    for carrier in [Carrier::Engine, Carrier::Tokio] {
        let (one, other) = (times::Full::hold().await, times::Full::hold().await);
        let plane = Plane::start(carrier, 1, &[]).await;
        plane.publish(&[one.address, other.address], RACE, LIMITS);
        let mut client = plane.client().await;
        client.write_all(b"early").await.unwrap();
        eventually(|| pool(&plane).cell.counts().hedges == 1).await;
        let start = Instant::now();
        reset(client);
        plane.quiet().await;
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
        for place in [0, 1] {
            let cell = &endpoint_of(&plane, place).cell;
            assert_eq!((cell.active(), cell.dialling().0), (0, 0));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_is_connected_a_few_at_a_time_and_nobody_is_turned_away() {
    for carrier in [Carrier::Engine, Carrier::Tokio] {
        let plane = Plane::start(carrier, 2, &[]).await;
        let connect = Connect { dials: 2, queue: 1000, ..RACE };
        plane.publish(&[echo().await], connect, LIMITS);
        let clients: Vec<_> = (0..300)
            .map(|_| {
                let address = plane.address;
                tokio::spawn(async move {
                    let mut client = soon(TcpStream::connect(address)).await.unwrap();
                    greet(&mut client).await
                })
            })
            .collect();
        for client in clients {
            client.await.unwrap().unwrap();
        }
        plane.quiet().await;
        assert_eq!(endpoint_of(&plane, 0).cell.dialling(), (0, 0));
        assert!(plane.ends().iter().all(|(end, _)| end.is_clean()), "{:?}", plane.ends());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_finds_no_room_to_wait_is_reset_and_who_waits_too_long_too() {
    for carrier in [Carrier::Engine, Carrier::Tokio] {
        let full = times::Full::hold().await;
        let plane = Plane::start(carrier, 1, &[]).await;
        let second = Duration::from_secs(1);
        let connect = Connect { dials: 1, queue: 1, ..Connect::plain(second, 1, second) };
        plane.publish(&[full.address], connect, LIMITS);
        let start = Instant::now();
        let mut clients = Vec::new();
        for _ in 0..3 {
            // The one that finds no room may be reset before its connect returns.
            clients.extend(soon(TcpStream::connect(plane.address)).await);
        }
        for client in &mut clients {
            assert!(soon(client.read_u8()).await.is_err());
        }
        assert!(start.elapsed() < 3 * second, "{:?}", start.elapsed());
        plane.quiet().await;
        let overloaded = End { side: Side::Proxy, stage: Stage::Connect, cause: Cause::Overloaded };
        let ends = plane.ends();
        assert!(ends.contains(&(overloaded, 2)) || ends.contains(&(overloaded, 1)), "{ends:?}");
        assert_eq!(endpoint_of(&plane, 0).cell.dialling(), (0, 0));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hedge_for_which_nobody_has_room_is_put_off_and_takes_nothing_from_the_budget() {
    for carrier in [Carrier::Engine, Carrier::Tokio] {
        let full = times::Full::hold().await;
        let plane = Plane::start(carrier, 1, &[]).await;
        let connect = Connect { dials: 1, timeout: Duration::from_millis(1500), ..RACE };
        plane.publish(&[full.address, echo().await, echo().await], connect, LIMITS);
        let others = [1, 2].map(|place| endpoint_of(&plane, place));
        // Others are being connected there.
        assert!(others.iter().all(|other| other.cell.enter(Room { dials: 1, sessions: None })));
        let mut client = plane.client().await;
        sleep(Duration::from_millis(700)).await;
        assert_eq!(pool(&plane).cell.counts().hedges, 0);
        // They have been, and the first attempt has still not connected.
        others.iter().for_each(|other| other.cell.leave());
        let start = Instant::now();
        greet(&mut client).await.unwrap();
        assert!(start.elapsed() < Duration::from_millis(700), "{:?}", start.elapsed());
        let counts = pool(&plane).cell.counts();
        assert_eq!((counts.hedges, counts.won, counts.retries), (1, 1, 0));
        drop(client);
        plane.quiet().await;
        assert!(others.iter().all(|other| other.cell.dialling() == (0, 0)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_session_with_nobody_else_to_try_takes_nothing_from_the_budget() {
    for carrier in [Carrier::Engine, Carrier::Tokio] {
        let full = times::Full::hold().await;
        let plane = Plane::start(carrier, 1, &[]).await;
        let connect = Connect { timeout: Duration::from_millis(400), ..RACE };
        plane.publish(&[full.address], connect, LIMITS);
        let mut client = plane.client().await;
        assert!(soon(client.read_u8()).await.is_err());
        plane.quiet().await;
        assert_eq!(pool(&plane).cell.counts().hedges, 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_ends_sessions_before_its_first_byte_is_counted() {
    for carrier in [Carrier::Engine, Carrier::Tokio] {
        let closer = endpoint(|mut stream| async move {
            drop(stream.read_u8().await);
        })
        .await;
        let plane = Plane::start(carrier, 1, &[closer]).await;
        for _ in 0..3 {
            let mut client = plane.client().await;
            client.write_all(b"?").await.unwrap();
            drop(soon(client.read_u8()).await);
        }
        plane.quiet().await;
        assert_eq!(endpoint_of(&plane, 0).cell.gray(), (0, 3, 0));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_on_trial_is_given_one_session_for_each_permit() {
    for carrier in [Carrier::Engine, Carrier::Tokio] {
        let plane = Plane::start(carrier, 2, &[]).await;
        plane.publish(&[echo().await, echo().await], RACE, LIMITS);
        let trial = endpoint_of(&plane, 1);
        let before = pool(&plane);
        let tiers = before.tiers.iter().take(1).map(|tier| Tier {
            groups: vec![Group {
                cloud: tier.groups[0].cloud.clone(),
                endpoints: tier.groups[0].endpoints.clone(),
                shares: Shares::new([1]),
                maglev: None,
                cell: Arc::default(),
            }],
            shares: Shares::new([1]),
            cell: Arc::default(),
        });
        let pool = Pool {
            trials: vec![Arc::clone(&trial)],
            cell: Arc::clone(&before.cell),
            ..Pool::new(before.name.clone(), before.balance, tiers.collect(), RACE)
        };
        put_in_force(&plane.shared, &plane.cell, pool, LIMITS);
        for (permits, sessions) in [(0, 0), (1, 1), (2, 3)] {
            trial.cell.permit(permits);
            for _ in 0..5 {
                greet(&mut plane.client().await).await.unwrap();
            }
            assert_eq!(trial.cell.sessions(), sessions);
        }
        plane.quiet().await;
    }
}

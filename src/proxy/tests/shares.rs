//! How sessions spread over workers, and how one of them leaves room for the others.

use std::sync::atomic::Ordering::Relaxed;

use super::{
    entries::{entry, hear},
    *,
};
use crate::state::Entry;

fn uneven(carried: &[u64]) -> u64 {
    carried.iter().max().unwrap() - carried.iter().min().unwrap()
}

/// Opens a session and tells which worker carries it.
async fn opens_on(plane: &Plane) -> (TcpStream, usize) {
    let before = plane.carried();
    let mut client = plane.client().await;
    greet(&mut client).await.unwrap();
    let after = plane.carried();
    (client, (0..before.len()).find(|worker| after[*worker] > before[*worker]).unwrap())
}

/// So many sessions on the first of two workers, and none on the other.
async fn all_on_the_first(plane: &Plane, count: u64) -> Vec<TcpStream> {
    let (mut kept, mut closed) = (Vec::new(), Vec::new());
    while (kept.len() as u64) < count {
        let (client, worker) = opens_on(plane).await;
        if worker == 0 { kept.push(client) } else { closed.push(client) }
    }
    drop(closed);
    eventually(|| plane.carried() == [count, 0]).await;
    kept
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_few_long_sessions_spread_evenly_whatever_the_kernel_does() {
    for workers in [2, 3, 5] {
        let plane = Plane::start(Carrier::Engine, workers, &[echo().await]).await;
        let mut clients = Vec::new();
        for _ in 0..workers * 6 {
            clients.push(opens_on(&plane).await.0);
            assert!(uneven(&plane.carried()) <= 3, "{:?}", plane.carried());
        }
        drop(clients);
        plane.quiet().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_does_not_bury_the_worker_that_had_least_to_do() {
    for _ in 0..10 {
        let plane = Plane::start(Carrier::Engine, 2, &[echo().await]).await;
        let mut kept = all_on_the_first(&plane, 30).await;
        // Both hash and hand are at work: without the hand, worker 0 would end with about 60.
        let burst = (0..60).map(|_| {
            let address = plane.address;
            tokio::spawn(async move { std::net::TcpStream::connect(address).unwrap() })
        });
        for client in burst.collect::<Vec<_>>() {
            let client = client.await.unwrap();
            client.set_nonblocking(true).unwrap();
            kept.push(TcpStream::from_std(client).unwrap());
        }
        for client in &mut kept {
            greet(client).await.unwrap();
        }
        let carried = plane.carried();
        assert_eq!(carried.iter().sum::<u64>(), 90);
        assert!(uneven(&carried) <= 12, "{carried:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_sessions_even_out_what_the_tokio_halves_carry_unevenly() {
    let paced = || Entry { bandwidth: Some(1 << 20), ..entry() };
    for (carrier, then_plain) in
        [(Carrier::Engine, false), (Carrier::Engine, true), (Carrier::Tokio, false)].repeat(3)
    {
        let endpoint = echo().await;
        let plane = Plane::start(carrier, 2, &[endpoint]).await;
        hear(&plane.shared, &plane.cell, paced());
        let mut kept = all_on_the_first(&plane, 16).await;
        if then_plain {
            plane.publish(&[endpoint], CONNECT, LIMITS);
        }
        for _ in 0..16 {
            kept.push(opens_on(&plane).await.0);
        }
        let carried = plane.carried();
        assert_eq!(carried.iter().sum::<u64>(), 32);
        // By the hash alone it would be 24 to 8.
        assert!(uneven(&carried) <= 5, "{carrier:?}, then plain ones: {then_plain}: {carried:?}");
        let passed_on = plane.shared.workers.iter().map(|cell| cell.passed_on.load(Relaxed)).sum::<u64>();
        assert!(passed_on > 0, "{carrier:?}");
        drop(kept);
        plane.quiet().await;
    }
}

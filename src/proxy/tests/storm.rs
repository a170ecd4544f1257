//! Many sessions of every kind at once, and what they leave behind.

use std::time::Duration;

use rand::{Rng, RngExt, SeedableRng, rngs::SmallRng};
use rustix::process::{Resource, getrlimit};

use super::*;
use crate::telemetry::{Cause, Side};

/// Echoes, except when the first byte asks for something else.
async fn moody() -> SocketAddr {
    endpoint(|mut stream| async move {
        stream.set_nodelay(true).unwrap();
        let mut mood = [0];
        if !matches!(stream.read(&mut mood).await, Ok(1)) {
            return;
        }
        match mood[0] {
            b'r' => reset(stream),
            b'c' => drop(stream),
            b'b' => {
                drop(stream.write_all(&[5; 700_000]).await);
                reset(stream);
            }
            _ => {
                let (mut from, mut to) = stream.split();
                drop(tokio::io::copy(&mut from, &mut to).await);
            }
        }
    })
    .await
}

/// One client with a whim; panics when bytes are wrong or a loss looks like a clean end.
async fn visit(address: SocketAddr, seed: u64) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let Ok(mut stream) = soon(TcpStream::connect(address)).await else {
        return;
    };
    match rng.random_range(0..10) {
        0 => reset(stream),
        1 => drop(stream),
        2 => {
            // Never asks anything; ends its direction.
            drop(stream.shutdown().await);
            drop(soon(stream.read_to_end(&mut Vec::new())).await);
        }
        kind @ 3..=5 => {
            let mood = b"rcb"[kind - 3];
            drop(stream.write_all(&[mood]).await);
            let mut got = Vec::new();
            let ended = soon(stream.read_to_end(&mut got)).await;
            let whole = if mood == b'b' { 700_000 } else { 0 };
            assert!(got.len() <= whole && got.iter().all(|byte| *byte == 5), "seed {seed}");
            assert!(mood == b'c' || ended.is_err(), "seed {seed}: a reset looks clean");
        }
        6 => {
            // Leaves in the middle.
            drop(stream.write_all(b"e").await);
            drop(stream.write_all(&vec![3; rng.random_range(1..200_000)]).await);
            reset(stream);
        }
        _ => {
            let length = if rng.random_bool(0.1) { 2_000_000 } else { rng.random_range(1..20_000) };
            let mut sent = vec![0; length];
            rng.fill_bytes(&mut sent);
            let expected = sent.clone();
            let (mut from, mut to) = stream.into_split();
            let writer = tokio::spawn(async move {
                to.write_all(b"e").await.unwrap();
                to.write_all(&sent).await.unwrap();
                to.shutdown().await.unwrap();
                to
            });
            let mut got = Vec::new();
            soon(from.read_to_end(&mut got)).await.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
            assert!(got == expected, "seed {seed}: {} of {} bytes", got.len(), expected.len());
            drop(soon(writer).await.unwrap());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_of_every_kind_at_once_keep_to_themselves_and_leave_nothing() {
    let seed = std::env::var("SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
    println!("SEED={seed}");
    for carrier in [Carrier::Engine, Carrier::Tokio] {
        let plane = Plane::start(carrier, 2, &[moody().await]).await;
        let mut rng = SmallRng::seed_from_u64(seed);
        let until = Instant::now() + Duration::from_secs(3);
        while Instant::now() < until {
            if rng.random_bool(0.3) {
                // The first of two endpoints refuses.
                plane.publish(&[nobody(), moody().await], CONNECT, LIMITS);
            }
            let visits: Vec<_> = (0..rng.random_range(1..150))
                .map(|_| tokio::spawn(visit(plane.address, rng.random())))
                .collect();
            for visit in visits {
                visit.await.unwrap();
            }
        }
        plane.quiet().await;
        let counted: u64 = plane.ends().iter().map(|(_, count)| count).sum();
        assert_eq!(counted, plane.cell.accepted());
        assert_eq!(plane.shared.sessions.panicked(), 0);
        let odd: Vec<_> = plane
            .ends()
            .into_iter()
            .filter(|(end, _)| {
                !matches!(end.side, Side::Client | Side::Upstream)
                    || !matches!(end.cause, Cause::Closed | Cause::Reset)
            })
            .collect();
        assert!(odd.is_empty(), "{carrier:?}: {odd:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_who_come_at_once_are_all_served_and_many_who_leave_at_once_are_not_missed() {
    let room = getrlimit(Resource::Nofile).current.unwrap_or(100_000);
    // Each session has four ends in this process.
    let most = usize::try_from((room / 6).min(3000)).unwrap();
    for carrier in [Carrier::Engine, Carrier::Tokio] {
        let plane = Plane::start(carrier, 2, &[echo().await]).await;
        let mut clients = Vec::new();
        for connecting in
            (0..most).map(|_| tokio::spawn(TcpStream::connect(plane.address))).collect::<Vec<_>>()
        {
            clients.push(connecting.await.unwrap().unwrap());
        }
        for client in &mut clients {
            greet(client).await.unwrap();
        }
        assert_eq!(plane.shared.sessions.active(), most as u64);
        for (number, client) in clients.into_iter().enumerate() {
            if number % 2 == 0 { reset(client) } else { drop(client) }
        }
        plane.quiet().await;
        assert!(plane.ends().iter().all(|(end, _)| end.side == Side::Client), "{:?}", plane.ends());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_small_sessions_are_quick_beside_a_bulk_one() {
    for carrier in [Carrier::Engine, Carrier::Tokio] {
        let bulk = endpoint(|mut stream| async move {
            let mut mood = [0];
            if stream.read(&mut mood).await.is_ok() && mood == *b"b" {
                while stream.write_all(&[0; 65_536]).await.is_ok() {}
            }
            let (mut from, mut to) = stream.split();
            drop(tokio::io::copy(&mut from, &mut to).await);
        })
        .await;
        let plane = Plane::start(carrier, 1, &[bulk]).await;
        let usual = async || {
            let mut times = Vec::new();
            let mut clients = Vec::new();
            for _ in 0..20 {
                let mut client = plane.client().await;
                client.write_all(b"e").await.unwrap();
                clients.push(client);
            }
            for _ in 0..20 {
                for client in &mut clients {
                    let start = Instant::now();
                    greet(client).await.unwrap();
                    times.push(start.elapsed());
                }
            }
            times.sort();
            times[times.len() / 2]
        };
        let alone = usual().await;
        let mut big = plane.client().await;
        big.write_all(b"b").await.unwrap();
        let reader = tokio::task::spawn_blocking(move || {
            let mut stream = big.into_std().unwrap();
            stream.set_nonblocking(false).unwrap();
            let (mut buffer, mut got) = (vec![0; 65_536], 0_u64);
            while got < 300_000_000 {
                got += io::Read::read(&mut stream, &mut buffer).unwrap() as u64;
            }
        });
        let beside = usual().await;
        reader.await.unwrap();
        // Two cores are shared by all that runs here: the bulk's own turns are what is asked about.
        assert!(
            beside < alone * 20 + Duration::from_millis(10),
            "{carrier:?}: {alone:?} alone, {beside:?} beside"
        );
        plane.quiet().await;
    }
}

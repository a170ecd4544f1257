//! Random sessions, of which every byte is compared.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpStream as StdStream},
    sync::Arc,
    thread,
    time::Duration,
};

use rand::{RngExt, SeedableRng, rngs::SmallRng};

use super::{
    super::{LIMITS, blocking, bytes},
    bed,
};

/// Runs `rounds` random two-way sessions, each with its own sizes, pauses and half-closes, and compares every byte.
async fn random_sessions(rounds: u64, most: usize) {
    let seed = std::env::var("TWINSPAN_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    let gate = Arc::new(tokio::sync::Semaphore::new(16));
    let mut sessions = tokio::task::JoinSet::new();
    for round in 0..rounds {
        let permit = Arc::clone(&gate).acquire_owned().await.unwrap();
        let bed = bed(LIMITS);
        sessions.spawn(async move {
            let context = format!("TWINSPAN_SEED={seed} round {round}");
            let relay = blocking(move || {
                let random = |salt: u64| SmallRng::seed_from_u64(seed ^ (round << 8) ^ salt);
                let up = bytes(random(1).random_range(0..most), round);
                let down = bytes(random(2).random_range(0..most), round + 1);
                let (client, upstream) = (Arc::new(bed.client), Arc::new(bed.upstream));
                let threads = [
                    writer(Arc::clone(&client), up.clone(), random(3)),
                    writer(Arc::clone(&upstream), down.clone(), random(4)),
                    reader(client, down, random(5)),
                    reader(upstream, up, random(6)),
                ];
                for thread in threads {
                    thread.join().unwrap();
                }
                bed.relay
            })
            .await;
            let (end, _) = relay.await.unwrap();
            assert!(end.is_clean(), "{context}: {end}");
            drop(permit);
        });
    }
    while let Some(done) = sessions.join_next().await {
        done.unwrap();
    }
}

fn writer(stream: Arc<StdStream>, bytes: Vec<u8>, mut rng: SmallRng) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            // Sizes around the border between copy and splice.
            let size = match rng.random_range(0..4) {
                0 => rng.random_range(1..100),
                1 => rng.random_range(16_382_usize..16_387),
                _ => rng.random_range(1..200_000),
            };
            let (now, later) = rest.split_at(size.min(rest.len()));
            (&*stream).write_all(now).unwrap();
            rest = later;
            if rng.random_ratio(1, 8) {
                thread::park_timeout(Duration::from_micros(rng.random_range(0..3000)));
            }
        }
        stream.shutdown(Shutdown::Write).unwrap();
    })
}

fn reader(stream: Arc<StdStream>, expected: Vec<u8>, mut rng: SmallRng) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        let mut got = Vec::new();
        let mut buffer = vec![0; 100_000];
        loop {
            let size = rng.random_range(1..buffer.len());
            match (&*stream).read(&mut buffer[..size]).unwrap() {
                0 => break,
                read => got.extend_from_slice(&buffer[..read]),
            }
            if rng.random_ratio(1, 8) {
                thread::park_timeout(Duration::from_micros(rng.random_range(0..3000)));
            }
        }
        assert!(got == expected, "{} of {} bytes", got.len(), expected.len());
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_sessions_are_byte_exact() {
    random_sessions(150, 600_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_small_sessions_are_byte_exact() {
    random_sessions(500, 40_000).await;
}

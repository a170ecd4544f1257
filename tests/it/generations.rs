//! Snapshots swapped in at a rate that no real fleet reaches, in process: no session may notice.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval},
};
use twinspan::{
    app::{App, Options},
    config,
    control::{Change, health::Verdict},
    ids::{EndpointKey, ListenerName, PoolName},
    lab::Lab,
};

/// New generations a second, and for how long.
const RATE: u32 = 1000;
const TIME: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_generations_a_second_fail_no_session_and_drop_none_under_load() {
    let lab = Lab::start().unwrap();
    let aws = lab.cloud("aws", 2, Duration::ZERO).unwrap();
    let gcp = lab.cloud("gcp", 2, Duration::ZERO).unwrap();
    let mut text = "version = 1\n[admin]\nbind = \"off\"\n[telemetry]\nbind = \"off\"\n[cloud.aws]\n[cloud.gcp]\n[[pool]]\nname = \"p\"\n"
        .to_owned();
    for (cloud, name) in [(&aws, "aws"), (&gcp, "gcp")] {
        for endpoint in cloud.endpoints() {
            text += &format!("[[pool.endpoint]]\naddress = \"{}\"\ncloud = \"{name}\"\n", endpoint.address());
        }
    }
    text += "[[listener]]\nname = \"l\"\nbind = \"127.0.0.1:0\"\npool = \"p\"\n";
    let loaded = config::parse(&text, "test").unwrap();
    let app = Arc::new(App::start(loaded.config, Options::default()).unwrap());
    let address = app.address(&ListenerName::from("l")).unwrap();

    let over = Arc::new(AtomicBool::new(false));
    let done = Arc::new(AtomicU64::new(0));
    let mut load = JoinSet::new();
    for client in 0..20_u8 {
        let (over, done) = (Arc::clone(&over), Arc::clone(&done));
        // Half of the clients keep one session for the whole time, the others open one after the other.
        load.spawn(async move {
            let mut stream = TcpStream::connect(address).await.unwrap();
            while !over.load(Relaxed) {
                if client % 2 == 0 {
                    stream = TcpStream::connect(address).await.unwrap();
                }
                stream.write_all(&[client; 100]).await.unwrap();
                let mut echo = [0; 100];
                stream.read_exact(&mut echo).await.unwrap();
                assert_eq!(echo, [client; 100]);
                done.fetch_add(1, Relaxed);
            }
        });
    }

    let before = app.shared().snapshot().generation;
    let first = aws.endpoints()[0].address();
    let key = EndpointKey { pool: PoolName::from("p"), address: first };
    let begun = Instant::now();
    let mut tick = interval(Duration::from_secs(1) / RATE);
    tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut verdict = Verdict::Up;
    let mut sent = 0_u64;
    while begun.elapsed() < TIME {
        tick.tick().await;
        verdict = if verdict == Verdict::Up { Verdict::Down } else { Verdict::Up };
        let change = said(&key, verdict);
        app.changes().send(change).await.unwrap();
        sent += 1;
    }
    over.store(true, Relaxed);
    while let Some(client) = load.join_next().await {
        client.unwrap();
    }
    let generations = app.shared().snapshot().generation.0 - before.0;
    let sessions = done.load(Relaxed);
    println!("{generations} generations for {sent} changes in {TIME:?}, {sessions} exchanges");
    // Changes that wait together become one generation, so a busy machine makes fewer than it was sent.
    assert!(generations > sent / 2, "{generations} generations for {sent} changes");
    assert!(sent > 25_000 && sessions > 10_000, "{sent} changes, {sessions} exchanges");
    let app = Arc::into_inner(app).unwrap();
    assert_eq!(app.drain(Duration::from_secs(5)), 0);
}

fn said(endpoint: &EndpointKey, verdict: Verdict) -> Change {
    let (endpoint, reason) = (endpoint.clone(), Arc::from("a test"));
    Change::Verdict { endpoint, verdict, reason, answered: false, began: Instant::now() }
}

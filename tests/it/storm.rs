//! Everybody at once: the clients of a cloud that dies reconnect in the same instant, to a cloud whose endpoint has a short
//! accept queue.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{Barrier, Semaphore, watch},
    task::JoinSet,
    time::{Instant, timeout},
};

use crate::harness::{
    Backend, Carrier, PATIENCE, Place, Proxy, Setup, eventually, listener, on_both_carriers, pool, reset,
};

/// Clients.
const CLIENTS: usize = 5_000;

/// What the endpoint of the surviving cloud has room for before it accepts: more at once would be dropped by the kernel,
/// and come again only a second later.
const QUEUE: i32 = 1024;

on_both_carriers!(
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    five_thousand_clients_of_a_dead_cloud_are_served_by_the_other_at_once,
);

async fn five_thousand_clients_of_a_dead_cloud_are_served_by_the_other_at_once(carrier: Carrier) {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
    let place = Place::new();
    let alive = Arc::new(watch::Sender::new(true));
    let aws = mortal(&place, &alive).await;
    let gcp = short_queue(&place).await;
    let settings = "policy = \"failover\"\norder = [\"aws\", \"gcp\"]\nmax_connecting = 64\n[pool.health.tcp]\ninterval = \"1s\"";
    let bind = place.free();
    let tables = pool("web", settings, &[("aws", aws.address), ("gcp", gcp)]) + &listener(bind, "web", "");
    let proxy = Proxy::start(Setup::new(&place, tables).carrier(carrier)).await;
    proxy.judges(&[aws.address, gcp], "up").await;

    let mut clients = JoinSet::new();
    let ready = Arc::new(Barrier::new(CLIENTS + 1));
    let door = Arc::new(Semaphore::new(50));
    for _ in 0..CLIENTS {
        let (ready, door) = (Arc::clone(&ready), Arc::clone(&door));
        clients.spawn(async move {
            let entered = door.acquire().await.unwrap();
            let (mut stream, name) = ask(bind).await;
            drop(entered);
            ready.wait().await;
            // On a busy machine a few were late at aws, and raced.
            if name == *b"gcp1" {
                return None;
            }
            assert!(timeout(2 * PATIENCE, stream.read(&mut [0])).await.unwrap().is_err());
            drop(stream);
            let begun = Instant::now();
            let (stream, name) = ask(bind).await;
            assert_eq!(&name, b"gcp1");
            Some((stream, begun.elapsed()))
        });
    }
    timeout(2 * PATIENCE, ready.wait()).await.unwrap();
    let dead = aws.address;
    drop(aws);
    // A request that is in the accept queue when that closes is lost with it.
    let refused = async || TcpStream::connect(dead).await.is_err().then_some(());
    eventually("aws refuses", refused).await;
    alive.send_replace(false);
    let (mut slowest, mut streams) = (Duration::ZERO, Vec::new());
    while let Some(served) = clients.join_next().await {
        if let Some((stream, took)) = served.unwrap() {
            slowest = slowest.max(took);
            streams.push(stream);
        }
    }
    println!("the last of {} was served after {slowest:?}", streams.len());
    assert!(streams.len() > CLIENTS / 2, "{} clients were at aws", streams.len());
    let queued = proxy.metric("twinspan_connect_queued_total", &[]).await;
    assert!(queued > 0, "nobody waited");
    assert_eq!(proxy.metric("twinspan_connect_queue_overflowed_total", &[]).await, 0);
    // Long enough for a busy machine; a queue that overflows costs a second and more each time.
    assert!(slowest < Duration::from_secs(10), "{slowest:?}");
}

/// Connects, asks, and is told by whom it is served.
async fn ask(bind: SocketAddr) -> (TcpStream, [u8; 4]) {
    let mut stream = timeout(2 * PATIENCE, TcpStream::connect(bind)).await.unwrap().unwrap();
    stream.write_all(b"?").await.unwrap();
    let mut answer = [0; 4];
    timeout(2 * PATIENCE, stream.read_exact(&mut answer)).await.unwrap().unwrap();
    (stream, answer)
}

/// An endpoint that resets its sessions when it dies.
async fn mortal(place: &Place, alive: &Arc<watch::Sender<bool>>) -> Backend {
    let told = Arc::clone(alive);
    Backend::serve(place, move |mut stream| {
        let mut alive = told.subscribe();
        async move {
            if matches!(stream.read(&mut [0]).await, Ok(1)) && stream.write_all(b"aws1").await.is_ok() {
                drop(alive.wait_for(|alive| !alive).await);
            }
            reset(stream);
        }
    })
    .await
}

/// An endpoint that lets few wait.
async fn short_queue(place: &Place) -> SocketAddr {
    let listener = TcpListener::bind(place.free()).await.unwrap();
    SockRef::from(&listener).listen(QUEUE).unwrap();
    let address = listener.local_addr().unwrap();
    drop(tokio::spawn(async move {
        loop {
            let Ok((mut stream, _)) = listener.accept().await else { continue };
            drop(tokio::spawn(async move {
                if matches!(stream.read(&mut [0]).await, Ok(1)) {
                    drop(stream.write_all(b"gcp1").await);
                    drop(stream.read(&mut [0]).await);
                }
            }));
        }
    }));
    address
}

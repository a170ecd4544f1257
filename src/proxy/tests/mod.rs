//! The whole data plane in this process, without a control plane: workers, one listener, and endpoints that play stories.

mod ends;
mod engine;
pub(in crate::proxy) mod entries;
mod first_bytes;
mod live;
mod losses;
mod paced;
mod races;
mod shares;
mod storm;
mod times;

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::{Instant, sleep, timeout},
};

use super::{Carrier, Worker};
use crate::{
    balance::{Balance, Shares},
    ids::{EndpointIdentity, Generation, ListenerName, PoolName},
    net::{self, Bind, Keepalive, Listen, Tuning},
    state::{
        Connect, Endpoint, EndpointCell, Group, GroupCell, Listener, ListenerCell, Phase, Pool, Reports,
        SessionLimits, Shared, Snapshot, Sockets, Tier, WorkerCell,
    },
    telemetry::{End, SessionLog},
};

const KEEPALIVE: Keepalive =
    Keepalive { idle: Duration::from_secs(60), interval: Duration::from_secs(10), count: 3 };

pub(super) const LIMITS: SessionLimits = SessionLimits {
    idle: Duration::from_secs(60),
    half_closed: Duration::from_secs(60),
    lifetime: None,
    user_timeout: Duration::from_secs(30),
    upstream_timeout: Duration::from_secs(30),
    keepalive: KEEPALIVE,
};

const CONNECT: Connect = Connect::plain(Duration::from_secs(2), 3, Duration::from_secs(10));

/// A data plane with one listener.
struct Plane {
    shared: Arc<Shared>,
    cell: Arc<ListenerCell>,
    address: SocketAddr,
    workers: Vec<Worker>,
}

impl Plane {
    /// Starts it with these endpoints, to be tried in this order.
    async fn start(carrier: Carrier, workers: usize, endpoints: &[SocketAddr]) -> Self {
        let options = Listen {
            bind: Bind { address: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), only_v6: false },
            backlog: 4096,
            keepalive: KEEPALIVE,
            fast_open: None,
            tuning: Tuning::default(),
            transparent: false,
        };
        let sockets = net::listen(&options, workers).unwrap();
        let address = sockets[0].local_addr().unwrap();
        let (doors, receivers) = Sockets::new(workers);
        let shared = Arc::new(Shared::new(Reports::new().0, doors, SessionLog::off()));
        let cell = Arc::new(ListenerCell::new(ListenerName::from("l"), address));
        let workers = Worker::start_all(carrier, None, &shared, receivers).unwrap();
        let plane = Self { shared, cell, address, workers };
        plane.publish(endpoints, CONNECT, LIMITS);
        plane.shared.open(&plane.cell, sockets).await;
        plane
    }

    /// Puts this in force for new sessions.
    fn publish(&self, endpoints: &[SocketAddr], connect: Connect, limits: SessionLimits) {
        publish(&self.shared, &self.cell, endpoints, connect, limits);
    }

    async fn client(&self) -> TcpStream {
        let stream = soon(TcpStream::connect(self.address)).await.unwrap();
        // Fails where the session is over already.
        stream.set_nodelay(true).unwrap_or_default();
        stream
    }

    /// Waits until every session has ended.
    async fn quiet(&self) {
        eventually(|| self.shared.sessions.active() == 0).await;
        eventually(|| self.carried().iter().all(|sessions| *sessions == 0)).await;
        assert_eq!(self.cell.active(), 0);
    }

    fn ends(&self) -> Vec<(End, u64)> {
        self.cell.ends().collect()
    }

    /// Sessions on each worker.
    fn carried(&self) -> Vec<u64> {
        self.shared.workers.iter().map(WorkerCell::carried).collect()
    }
}

impl Drop for Plane {
    fn drop(&mut self) {
        self.shared.sessions.advance(Phase::Stopping);
        self.workers.drain(..).for_each(Worker::join);
        assert!(std::thread::panicking() || self.shared.sessions.active() == 0);
    }
}

fn publish(
    shared: &Shared,
    cell: &Arc<ListenerCell>,
    endpoints: &[SocketAddr],
    connect: Connect,
    limits: SessionLimits,
) {
    let tier = |(number, address): (usize, &SocketAddr)| {
        let cloud = format!("c{number}").as_str().into();
        let identity = EndpointIdentity { pool: PoolName::from("p"), cloud, address: *address };
        let endpoint = Arc::new(Endpoint {
            identity: Arc::new(identity),
            cell: Arc::new(EndpointCell::default()),
            weight: 1,
            socket: Arc::default(),
        });
        let group = Group {
            cloud: format!("c{number}").as_str().into(),
            endpoints: vec![endpoint],
            shares: Shares::new([1]),
            maglev: None,
            cell: Arc::default(),
        };
        Tier { groups: vec![group], shares: Shares::new([1]), cell: Arc::new(GroupCell::default()) }
    };
    let tiers = endpoints.iter().enumerate().map(tier).collect();
    put_in_force(shared, cell, Pool::new(PoolName::from("p"), Balance::RoundRobin, tiers, connect), limits);
}

/// Has this pool serve the listener.
fn put_in_force(shared: &Shared, cell: &Arc<ListenerCell>, pool: Pool, limits: SessionLimits) {
    let pool = Arc::new(pool);
    let listener = Listener::plain(Arc::clone(cell), Arc::clone(&pool), limits);
    let generation = Generation(shared.snapshot().generation.0 + 1);
    shared.publish(Arc::new(Snapshot {
        generation,
        listeners: vec![Arc::new(listener)],
        pools: vec![pool],
        ..Snapshot::default()
    }));
}

/// An endpoint that plays `story` on each connection.
async fn endpoint<F>(story: impl Fn(TcpStream) -> F + Send + 'static) -> SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    socket2::SockRef::from(&listener).listen(4096).unwrap();
    let address = listener.local_addr().unwrap();
    drop(tokio::spawn(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else { continue };
            drop(tokio::spawn(story(stream)));
        }
    }));
    address
}

async fn echo() -> SocketAddr {
    endpoint(|mut stream| async move {
        stream.set_nodelay(true).unwrap();
        let (mut from, mut to) = stream.split();
        drop(tokio::io::copy(&mut from, &mut to).await);
    })
    .await
}

/// An address at which nobody listens. It stays taken, so that nobody else does either.
fn nobody() -> SocketAddr {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
    Box::leak(Box::new(socket)).local_addr().unwrap()
}

async fn greet(stream: &mut TcpStream) -> io::Result<()> {
    let mut answer = [0; 4];
    soon(async {
        stream.write_all(b"ping").await?;
        stream.read_exact(&mut answer).await
    })
    .await?;
    assert_eq!(answer, *b"ping");
    Ok(())
}

fn reset(stream: TcpStream) {
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(stream);
}

async fn soon<F: Future>(future: F) -> F::Output {
    timeout(Duration::from_secs(30), future).await.expect("not within 30 s")
}

async fn eventually(mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is_so() {
        assert!(Instant::now() < deadline, "not within 30 s");
        sleep(Duration::from_millis(5)).await;
    }
}

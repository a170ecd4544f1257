//! The relay between real sockets, over both drivers: the engine, and tokio.

use std::{
    net::{SocketAddr, TcpListener as StdListener, TcpStream as StdStream},
    sync::Arc,
};

use rand::{Rng, SeedableRng, rngs::SmallRng};
use tokio::task::JoinHandle;

use super::*;
use crate::{
    ids::{CloudName, EndpointIdentity, ListenerName, PoolName},
    proxy::{peer::Peer, session::Books, tests::LIMITS},
    state::{Endpoint, EndpointCell, ListenerCell, Reports, Shared, Sockets},
    telemetry::SessionLog,
};

/// The two ends of a relayed session, as plain blocking sockets, and the relay's outcome.
struct Bed {
    client: StdStream,
    upstream: StdStream,
    relay: JoinHandle<(End, Moved)>,
}

mod on_the_engine;
mod on_tokio;

/// A session's books, and what tells how it ended.
fn books() -> (Books, Arc<Shared>, Arc<ListenerCell>, Arc<Endpoint>) {
    let address: SocketAddr = "127.0.0.1:1".parse().unwrap();
    let shared = Arc::new(Shared::new(Reports::new().0, Sockets::new(1).0, SessionLog::off()));
    let listener = Arc::new(ListenerCell::new(ListenerName::from("l"), address));
    let identity = EndpointIdentity { pool: PoolName::from("p"), cloud: CloudName::from("c"), address };
    let endpoint = Arc::new(Endpoint {
        identity: Arc::new(identity),
        cell: Arc::new(EndpointCell::default()),
        weight: 1,
        socket: Arc::default(),
    });
    let mut books = Books::open(address, Arc::clone(&listener), Arc::clone(&shared));
    books.attempt(Arc::clone(&endpoint));
    (books, shared, listener, endpoint)
}

fn inner(stream: StdStream) -> Peer {
    stream.set_nonblocking(true).unwrap();
    stream.set_nodelay(true).unwrap();
    Peer::new(stream.into())
}

fn pair() -> (StdStream, StdStream) {
    let listener = StdListener::bind("127.0.0.1:0").unwrap();
    let near = StdStream::connect(listener.local_addr().unwrap()).unwrap();
    let (far, _) = listener.accept().unwrap();
    near.set_nodelay(true).unwrap();
    (near, far)
}

fn bytes(length: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; length];
    SmallRng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes
}

fn reset(stream: StdStream) {
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(stream);
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

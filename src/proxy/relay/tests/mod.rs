//! The relay between real sockets, over both drivers: the engine, and tokio.

use std::{
    io::Write,
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

/// A socket that is tried whatever is known of it.
struct Tried<'a>(&'a Peer);

impl AsFd for Tried<'_> {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Socket for Tried<'_> {
    fn readable(&self) -> io::Result<bool> {
        Ok(true)
    }

    fn writable(&self) -> io::Result<bool> {
        Ok(true)
    }

    fn may_be_urgent(&self) -> bool {
        false
    }

    fn try_read<T>(&self, _anyway: bool, read: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        read()
    }

    fn try_write<T>(&self, write: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        write()
    }
}

/// Whether the socket towards the endpoint may be dialled again after a session of so many bytes with these ends, between
/// which the relay has a turn.
fn may_be_dialled_again(bytes: usize, ends: &[&[Side]]) -> bool {
    let ((mut client, near), (upstream, far)) = (pair(), pair());
    let (near, far) = (inner(near), inner(far));
    let pair = Pair { client: &Tried(&near), upstream: &Tried(&far) };
    let now = Instant::now();
    let mut relay = Relay::new(now, Arc::new(LIMITS));
    client.write_all(&vec![7; bytes]).unwrap();
    let mut turn = relay.turn(&pair, now);
    for ends in ends {
        for side in *ends {
            let ending = if *side == Side::Client { &client } else { &upstream };
            ending.shutdown(std::net::Shutdown::Write).unwrap();
        }
        turn = relay.turn(&pair, now);
    }
    assert!(matches!(turn, Turn::Ended(end) if end.is_clean()), "{turn:?}");
    relay.leaves_upstream_as_it_was()
}

#[test]
fn a_socket_is_dialled_again_only_after_its_own_end_and_then_the_endpoints() {
    let (client, endpoint) = ([Side::Client], [Side::Upstream]);
    let short = 16 * 1024;
    assert!(may_be_dialled_again(short, &[&client, &endpoint]));
    assert!(!may_be_dialled_again(short + 1, &[&client, &endpoint]), "its buffers may have grown");
    // The end that is still to be passed on is left to the close: the kernel would make a reset of it.
    assert!(!may_be_dialled_again(1, &[&endpoint, &client]));
    assert!(!may_be_dialled_again(1, &[&[Side::Upstream, Side::Client]]));
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

//! Upstreams inside the test's own process: each accepted connection plays a story, and the test gets what it returns.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use socket2::{Domain, SockRef, Socket, Type};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinHandle,
    time::timeout,
};

use super::{PATIENCE, Place};

/// Stories whose results nobody has asked for yet.
const CAPACITY: usize = 65_536;

/// Room for every client of a test at once: an upstream that drops a handshake is a fault, and no test here wants it
/// by accident.
const BACKLOG: i32 = 4096;

/// A listening upstream. It stops when dropped; sessions that are open go on.
#[derive(Debug)]
pub(crate) struct Backend<T = ()> {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    accepted: Arc<AtomicU64>,
    stories: mpsc::Receiver<JoinHandle<T>>,
    acceptor: JoinHandle<()>,
}

impl<T: Send + 'static> Backend<T> {
    /// Plays `story` on each connection.
    pub(crate) async fn serve<F>(place: &Place, story: impl Fn(TcpStream) -> F + Send + 'static) -> Self
    where
        F: Future<Output = T> + Send + 'static,
    {
        Self::serve_at(place.free(), story).await
    }

    /// The same, at a known address.
    pub(crate) async fn serve_at<F>(
        address: SocketAddr,
        story: impl Fn(TcpStream) -> F + Send + 'static,
    ) -> Self
    where
        F: Future<Output = T> + Send + 'static,
    {
        let listener = TcpListener::bind(address).await.unwrap();
        SockRef::from(&listener).listen(BACKLOG).unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, stories) = mpsc::channel(CAPACITY);
        let accepted = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&accepted);
        let acceptor = tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else { continue };
                stream.set_nodelay(true).unwrap();
                counter.fetch_add(1, Relaxed);
                let handle = tokio::spawn(story(stream));
                // A test that lets this many stories pass does not want their results.
                drop(sender.try_send(handle));
            }
        });
        Self { address, accepted, stories, acceptor }
    }

    /// Connections so far.
    pub(crate) fn accepted(&self) -> u64 {
        self.accepted.load(Relaxed)
    }

    /// The result of the next story, in the order of arrival; a failure in it fails the test.
    pub(crate) async fn next(&mut self) -> T {
        self.next_within(PATIENCE).await
    }

    /// The same for a story that may take long.
    pub(crate) async fn next_within(&mut self, limit: Duration) -> T {
        let story =
            timeout(limit, self.stories.recv()).await.expect("no connection at the upstream").unwrap();
        timeout(limit, story).await.expect("the upstream's story has not ended").unwrap()
    }
}

impl Backend {
    /// Sends everything back, and ends when the peer ends.
    pub(crate) async fn echo(place: &Place) -> Self {
        Self::serve(place, echo).await
    }

    /// Says its name at the first byte, then sends everything after it back.
    pub(crate) async fn named(place: &Place, name: &'static str) -> Self {
        Self::serve(place, move |stream| named(stream, name)).await
    }
}

impl<T> Drop for Backend<T> {
    fn drop(&mut self) {
        self.acceptor.abort();
    }
}

async fn echo(mut stream: TcpStream) {
    let (mut from, mut to) = stream.split();
    // Peers of these tests leave in every way there is.
    drop(tokio::io::copy(&mut from, &mut to).await);
}

async fn named(mut stream: TcpStream, name: &'static str) {
    if matches!(stream.read(&mut [0]).await, Ok(1)) && stream.write_all(name.as_bytes()).await.is_ok() {
        echo(stream).await;
    }
}

/// An upstream that never answers a handshake: its queue of connections is full and nobody takes them out.
#[derive(Debug)]
pub(crate) struct Full {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    _socket: Socket,
    _held: Vec<TcpStream>,
}

impl Full {
    /// It stays so for as long as this lives.
    pub(crate) async fn hold(place: &Place) -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::new(place.ip(), 0).into()).unwrap();
        socket.listen(0).unwrap();
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        let mut held = Vec::new();
        // A queue of length 0 holds one connection; once a handshake stays unanswered, all do.
        while let Ok(stream) = timeout(Duration::from_millis(300), TcpStream::connect(address)).await {
            held.push(stream.unwrap());
        }
        Self { address, _socket: socket, _held: held }
    }
}

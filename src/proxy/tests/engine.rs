//! One engine by itself, with commands posted to it by hand.

use std::thread;

use super::*;
use crate::{
    proxy::{
        engine::{Command, Engine, Handovers, Mailbox},
        peer::Peer,
        session::Books,
    },
    telemetry::{Cause, Side},
};

struct Alone {
    shared: Arc<Shared>,
    cell: Arc<ListenerCell>,
    mailbox: Arc<Mailbox>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Alone {
    fn start() -> Self {
        let shared = Arc::new(Shared::new(Reports::new().0, Sockets::new(1).0, SessionLog::off()));
        let address = "127.0.0.1:1".parse().unwrap();
        let cell = Arc::new(ListenerCell::new(ListenerName::from("l"), address));
        let mailbox = Arc::new(Mailbox::new().unwrap());
        let crew = vec![Arc::clone(&mailbox)].into();
        let engine = Engine::new(0, Arc::clone(&shared), crew, Arc::new(Handovers::default())).unwrap();
        Self { shared, cell, mailbox, thread: Some(thread::spawn(move || engine.run())) }
    }

    async fn pair(&self) -> (TcpStream, Peer) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (far, _) = listener.accept().await.unwrap();
        (near, Peer::new(far.into_std().unwrap().into()))
    }

    fn books(&self) -> Books {
        Books::open(self.cell.address, Arc::clone(&self.cell), Arc::clone(&self.shared))
    }

    /// A session whose connections are established.
    async fn adopt(&self, limits: SessionLimits) -> (TcpStream, TcpStream) {
        let ((client, inner_client), (upstream, inner_upstream)) = (self.pair().await, self.pair().await);
        self.mailbox.adopt(inner_client, inner_upstream, self.books(), Arc::new(limits));
        (client, upstream)
    }

    /// A session that another worker has passed on.
    async fn begin(&self) -> TcpStream {
        let (client, inner) = self.pair().await;
        self.mailbox.post(Command::Begin(inner, self.books()));
        client
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        self.mailbox.post(Command::Stop);
        let ended = self.thread.take().unwrap().join();
        assert!(thread::panicking() || ended.is_ok(), "the engine panicked");
    }
}

async fn is_reset(mut stream: TcpStream) -> bool {
    soon(stream.read(&mut [0])).await.is_err()
}

/// Limits that no config can have, and that the arithmetic of times does not bear: stands for any bug.
const PANICS: SessionLimits = SessionLimits { lifetime: Some(Duration::MAX), ..LIMITS };

#[tokio::test]
async fn a_panic_ends_its_own_session_only_and_is_counted() {
    let engine = Alone::start();
    let endpoint = echo().await;
    let (mut client, mut upstream) = engine.adopt(LIMITS).await;
    let talk = async |client: &mut TcpStream, upstream: &mut TcpStream| {
        client.write_all(b"ping").await.unwrap();
        let mut got = [0; 4];
        soon(upstream.read_exact(&mut got)).await.unwrap();
        assert_eq!(got, *b"ping");
    };
    talk(&mut client, &mut upstream).await;
    for count in 1..=5 {
        // While its relay is made.
        publish(&engine.shared, &engine.cell, &[endpoint], CONNECT, PANICS);
        assert!(is_reset(engine.begin().await).await);
        // While it is adopted.
        let (one, other) = engine.adopt(PANICS).await;
        assert!(is_reset(one).await && is_reset(other).await);
        // While its first attempt is begun.
        let connect = Connect { timeout: Duration::MAX, ..CONNECT };
        publish(&engine.shared, &engine.cell, &[endpoint], connect, LIMITS);
        assert!(is_reset(engine.begin().await).await);

        eventually(|| engine.shared.sessions.active() == 1).await;
        assert_eq!(engine.shared.sessions.panicked(), 3 * count);
        talk(&mut client, &mut upstream).await;
    }
    publish(&engine.shared, &engine.cell, &[endpoint], CONNECT, LIMITS);
    greet(&mut engine.begin().await).await.unwrap();
    drop((client, upstream));
    eventually(|| engine.shared.sessions.active() == 0).await;
    let panics = engine.cell.ends().filter(|(end, _)| (end.side, end.cause) == (Side::Proxy, Cause::Panic));
    assert_eq!(panics.map(|(_, count)| count).sum::<u64>(), 15);
}

#[tokio::test]
async fn an_engine_that_stops_ends_what_it_carries_and_what_is_on_its_way_to_it() {
    let engine = Alone::start();
    publish(&engine.shared, &engine.cell, &[echo().await], CONNECT, LIMITS);
    let (client, upstream) = engine.adopt(LIMITS).await;
    let mut begun = engine.begin().await;
    greet(&mut begun).await.unwrap();
    engine.mailbox.post(Command::Stop);
    let late = engine.begin().await;
    for stream in [client, upstream, begun] {
        assert!(is_reset(stream).await);
    }
    let (shared, cell) = (Arc::clone(&engine.shared), Arc::clone(&engine.cell));
    drop(engine);
    assert!(is_reset(late).await);
    assert_eq!((shared.sessions.active(), cell.active()), (0, 0));
    assert!(cell.ends().all(|(end, _)| (end.side, end.cause) == (Side::Operator, Cause::Shutdown)));
}

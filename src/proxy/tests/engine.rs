//! One engine by itself, with commands posted to it by hand.

use std::thread;

use super::*;
use crate::{
    proxy::{
        engine::{Command, Engine, Handovers, Mailbox},
        peer::Peer,
        session::Books,
    },
    state::Entry,
    telemetry::{Cause, Side},
};

struct Alone {
    shared: Arc<Shared>,
    cell: Arc<ListenerCell>,
    mailbox: Arc<Mailbox>,
    thread: Option<thread::JoinHandle<()>>,
    number: rustix::thread::Pid,
}

impl Alone {
    fn start() -> Self {
        let shared = Arc::new(Shared::new(Reports::new().0, Sockets::new(1).0, SessionLog::off()));
        let address = "127.0.0.1:1".parse().unwrap();
        let cell = Arc::new(ListenerCell::new(ListenerName::from("l"), address));
        let mailbox = Arc::new(Mailbox::new().unwrap());
        let crew = vec![Arc::clone(&mailbox)].into();
        let engine = Engine::new(0, Arc::clone(&shared), crew, Arc::new(Handovers::default())).unwrap();
        let (sender, numbers) = std::sync::mpsc::sync_channel(1);
        let thread = thread::spawn(move || {
            sender.send(rustix::thread::gettid()).unwrap();
            engine.run();
        });
        Self { shared, cell, mailbox, thread: Some(thread), number: numbers.recv().unwrap() }
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

    /// CPU time of the engine's thread.
    fn cpu(&self) -> Duration {
        let path = format!("/proc/self/task/{}/schedstat", self.number.as_raw_nonzero());
        let text = std::fs::read_to_string(path).unwrap();
        Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
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

/// Writes until nothing more is taken.
async fn fill(stream: &mut TcpStream) {
    let chunk = vec![1; 65_536];
    while timeout(Duration::from_millis(200), stream.write_all(&chunk)).await.is_ok_and(|wrote| wrote.is_ok())
    {
    }
}

#[tokio::test]
async fn sessions_that_wait_cost_no_cpu_whatever_they_wait_for() {
    let engine = Alone::start();
    let mut kept = Vec::new();
    for case in 0..8 {
        let (mut client, mut upstream) = engine.adopt(LIMITS).await;
        match case {
            0 => client.shutdown().await.unwrap(),
            1 => upstream.shutdown().await.unwrap(),
            // Nobody reads.
            2 => {
                fill(&mut client).await;
                fill(&mut upstream).await;
            }
            3 => {
                fill(&mut client).await;
                client.shutdown().await.unwrap();
            }
            // Ends, with bytes that wait for a reader.
            4 => {
                fill(&mut upstream).await;
                upstream.shutdown().await.unwrap();
                client.shutdown().await.unwrap();
            }
            // Is reset, with bytes that wait for a reader.
            5 => {
                fill(&mut upstream).await;
                reset(std::mem::replace(&mut upstream, kept.pop().unwrap()));
            }
            6 => {
                upstream.shutdown().await.unwrap();
                fill(&mut client).await;
            }
            _ => {}
        }
        kept.extend([client, upstream]);
    }
    // A client that is waited for says a part of where it wants to go, and another one.
    publish(&engine.shared, &engine.cell, &[echo().await], CONNECT, LIMITS);
    let heard =
        Entry { routes: entries::by_name(), handshake_timeout: Duration::from_secs(60), ..entries::entry() };
    entries::hear(&engine.shared, &engine.cell, heard);
    let hello = entries::hello("a.example.com");
    let mut stalled = engine.begin().await;
    for half in [&hello[..5], &hello[5..hello.len() - 1]] {
        stalled.write_all(half).await.unwrap();
        sleep(Duration::from_millis(50)).await;
    }
    // Time for what goes on after a change.
    sleep(Duration::from_millis(500)).await;
    let before = engine.cpu();
    sleep(Duration::from_secs(1)).await;
    let used = engine.cpu() - before;
    assert!(used < Duration::from_millis(100), "{used:?} of CPU in a second");
    stalled.write_all(&hello[hello.len() - 1..]).await.unwrap();
    let mut back = vec![0; hello.len()];
    soon(stalled.read_exact(&mut back)).await.unwrap();
    assert_eq!(back, hello);
    drop((kept, stalled));
    eventually(|| engine.shared.sessions.active() == 0).await;
}

//! The load: short sessions at a fixed rate, and long ones that ask again and again. Every answer is compared with what
//! was asked. Runs on a thread of its own.

use std::{io, net::SocketAddr, sync::Arc, thread, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    runtime,
    sync::oneshot,
    time::{self, Instant},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::books::{Books, Failure, Kind, Session};

/// A client that waits longer than this gives up.
const PATIENCE: Duration = Duration::from_secs(5);

/// A long session whose question stays unanswered for this long counts as lost.
const ANSWER: Duration = Duration::from_secs(3);

/// Pause before a long client that lost its session comes again.
const AGAIN: Duration = Duration::from_millis(50);

/// Bytes of a long session's question.
const QUESTION: usize = 32;

/// The longest line with which an endpoint says its name.
const NAME_LINE: usize = 64;

/// How much load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Demand {
    /// New short sessions a second.
    pub(super) rate: u32,
    /// Long sessions at a time.
    pub(super) long: u32,
    /// Time between two questions of a long session.
    pub(super) pause: Duration,
}

/// A running load. Dropping it ends it at once.
#[derive(Debug)]
pub(super) struct Load {
    books: Arc<Books>,
    finish: CancellationToken,
    abort: CancellationToken,
    finished: Option<oneshot::Receiver<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

/// What each client knows.
#[derive(Debug)]
struct Target {
    address: SocketAddr,
    clouds: Vec<String>,
    books: Arc<Books>,
    finish: CancellationToken,
}

/// The first answer of a session.
struct Opening {
    first_byte: Duration,
    cloud: usize,
    /// Bytes of the echo that came with it.
    rest: Vec<u8>,
}

impl Load {
    /// Begins.
    pub(super) fn start(address: SocketAddr, clouds: Vec<String>, demand: Demand) -> io::Result<Self> {
        let books = Arc::new(Books::default());
        let (finish, abort) = (CancellationToken::new(), CancellationToken::new());
        let target = Arc::new(Target { address, clouds, books: Arc::clone(&books), finish: finish.clone() });
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let (done, finished) = oneshot::channel();
        let aborted = abort.clone();
        let thread = thread::Builder::new().name("load".to_owned()).spawn(move || {
            runtime.block_on(aborted.run_until_cancelled(generate(target, demand)));
            // Nobody waits for a load that was dropped.
            done.send(()).ok();
        })?;
        Ok(Self { books, finish, abort, finished: Some(finished), thread: Some(thread) })
    }

    /// What it has seen.
    pub(super) const fn books(&self) -> &Arc<Books> {
        &self.books
    }

    /// Begins nothing new, and waits until every session is over.
    pub(super) async fn finish(&mut self) {
        self.finish.cancel();
        if let Some(finished) = self.finished.take() {
            // Fails only if the thread has panicked; the judge then misses its sessions.
            drop(finished.await);
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.abort.cancel();
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

async fn generate(target: Arc<Target>, demand: Demand) {
    let clients = TaskTracker::new();
    for number in 0..demand.long {
        // Spread over one pause, so that they do not ask in step.
        let wait = demand.pause * number / demand.long.max(1);
        clients.spawn(long_client(Arc::clone(&target), wait, demand.pause, number));
    }
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
    let mut ticks = time::interval(Duration::from_secs(1) / demand.rate.max(1));
    while let Some(due) = target.finish.run_until_cancelled(ticks.tick()).await {
        target.books.started();
        clients.spawn(short_client(Arc::clone(&target), due, numbers.payload()));
    }
    clients.close();
    clients.wait().await;
}

async fn short_client(target: Arc<Target>, begun: Instant, payload: Vec<u8>) {
    let mut session =
        Session { kind: Kind::Short, begun, ended: begun, first_byte: None, cloud: None, failure: None };
    let course = async {
        let mut stream = TcpStream::connect(target.address).await.map_err(|error| Failure::of(&error))?;
        stream.set_nodelay(true).map_err(|error| Failure::of(&error))?;
        let opening = open(&mut stream, &target.clouds, &payload, begun).await?;
        session.first_byte = Some(opening.first_byte);
        session.cloud = Some(opening.cloud);
        compare(&mut stream, opening.rest, &payload).await?;
        close(&mut stream).await
    };
    let outcome = time::timeout(PATIENCE, course).await.unwrap_or(Err(Failure::TimedOut));
    session.failure = outcome.err();
    session.ended = Instant::now();
    target.books.over(session);
}

/// Keeps one long session open, and opens another when it is lost.
async fn long_client(target: Arc<Target>, mut wait: Duration, pause: Duration, number: u32) {
    let mut numbers = Numbers(u64::from(number));
    while target.finish.run_until_cancelled(time::sleep(wait)).await.is_some() {
        let begun = Instant::now();
        let mut cloud = None;
        let failure = long_session(&target, pause, begun, &mut numbers, &mut cloud).await.err();
        let ended = Instant::now();
        target.books.over(Session { kind: Kind::Long, begun, ended, first_byte: None, cloud, failure });
        wait = AGAIN;
    }
}

async fn long_session(
    target: &Target,
    pause: Duration,
    begun: Instant,
    numbers: &mut Numbers,
    cloud: &mut Option<usize>,
) -> Result<(), Failure> {
    let opening = async {
        let mut stream = TcpStream::connect(target.address).await.map_err(|error| Failure::of(&error))?;
        stream.set_nodelay(true).map_err(|error| Failure::of(&error))?;
        let question = numbers.bytes(QUESTION);
        let opening = open(&mut stream, &target.clouds, &question, begun).await?;
        let answered = opening.cloud;
        compare(&mut stream, opening.rest, &question).await?;
        Ok((stream, answered))
    };
    let (mut stream, answered) = time::timeout(PATIENCE, opening).await.unwrap_or(Err(Failure::TimedOut))?;
    *cloud = Some(answered);
    target.books.opened(begun, answered);
    let mut ticks = time::interval(pause);
    ticks.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
    while target.finish.run_until_cancelled(ticks.tick()).await.is_some() {
        let question = numbers.bytes(QUESTION);
        let exchange = async {
            stream.write_all(&question).await.map_err(|error| Failure::of(&error))?;
            compare(&mut stream, Vec::new(), &question).await
        };
        time::timeout(ANSWER, exchange).await.unwrap_or(Err(Failure::TimedOut))?;
    }
    time::timeout(ANSWER, close(&mut stream)).await.unwrap_or(Err(Failure::TimedOut))
}

/// Asks, and reads the line that says who answers.
async fn open(
    stream: &mut TcpStream,
    clouds: &[String],
    question: &[u8],
    begun: Instant,
) -> Result<Opening, Failure> {
    stream.write_all(question).await.map_err(|error| Failure::of(&error))?;
    let mut bytes = Vec::with_capacity(NAME_LINE + question.len());
    let mut first_byte = None;
    loop {
        let count = stream.read_buf(&mut bytes).await.map_err(|error| Failure::of(&error))?;
        let first_byte = *first_byte.get_or_insert_with(|| begun.elapsed());
        if count == 0 {
            return Err(Failure::Ended);
        }
        if let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            let rest = bytes.split_off(end + 1);
            let cloud = clouds.iter().position(|cloud| bytes.starts_with(cloud.as_bytes()));
            return Ok(Opening { first_byte, cloud: cloud.ok_or(Failure::WrongBytes)?, rest });
        }
        if bytes.len() > NAME_LINE {
            return Err(Failure::WrongBytes);
        }
    }
}

/// Reads the rest of an echo and compares it.
async fn compare(stream: &mut TcpStream, mut got: Vec<u8>, sent: &[u8]) -> Result<(), Failure> {
    while got.len() < sent.len() {
        if stream.read_buf(&mut got).await.map_err(|error| Failure::of(&error))? == 0 {
            return Err(Failure::Ended);
        }
    }
    if got == sent { Ok(()) } else { Err(Failure::WrongBytes) }
}

/// Ends our direction, and wants a clean end with nothing before it.
async fn close(stream: &mut TcpStream) -> Result<(), Failure> {
    stream.shutdown().await.map_err(|error| Failure::of(&error))?;
    match stream.read(&mut [0; 1]).await {
        Ok(0) => Ok(()),
        Ok(_) => Err(Failure::WrongBytes),
        Err(error) => Err(Failure::of(&error)),
    }
}

impl Failure {
    fn of(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Self::Refused,
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Self::Reset,
            io::ErrorKind::TimedOut => Self::TimedOut,
            _ => Self::Io,
        }
    }
}

/// Bytes that do not repeat (splitmix64): an echo of other bytes is found out.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// 64 to 512 bytes.
    fn payload(&mut self) -> Vec<u8> {
        let length = 64 + usize::try_from(self.next() % 449).unwrap_or_default();
        self.bytes(length)
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        std::iter::repeat_with(|| self.next().to_le_bytes()).flatten().take(length).collect()
    }
}

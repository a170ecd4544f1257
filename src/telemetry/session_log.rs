//! One line a session, written at its end. The data plane hands over a plain record and goes on; a thread of its own
//! builds the text. The queue is bounded: when the disk or the reader stalls, lines are dropped and counted, and
//! traffic never waits.

use std::{
    io::{ErrorKind, Write},
    mem,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{
            AtomicBool, AtomicU64, AtomicUsize,
            Ordering::{Relaxed, SeqCst},
        },
        mpsc::{Receiver, sync_channel},
    },
    thread::{self, Thread},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

use super::{
    End,
    edge::Edge,
    session_line::{Clock, line},
};
use crate::ids::{EndpointIdentity, Generation, ListenerName, PoolName};

/// Records that may wait to be written: a second of a very busy proxy.
const CAPACITY: u64 = 16_384;

/// Room for so many records is never given back; beyond that, what is left over from a burst is.
const FEW: usize = 16;

/// How long a line may wait before it is written; batching saves a wake-up a session.
const PAUSE: Duration = Duration::from_millis(50);

/// How far the writing thread stands back behind the workers.
const NICENESS: i32 = 10;

/// The longest batch handed to the output at once, in bytes.
const BATCH: usize = 64 * 1024;

/// The last lines have this long to be written. A pipe that nobody reads takes none, and must not keep the process.
const FAREWELL: Duration = Duration::from_secs(1);

/// What is said of a session.
#[derive(Clone, Debug)]
pub struct SessionRecord {
    /// The session's number, unique in this process.
    pub session: u64,
    /// The client's address.
    pub client: SocketAddr,
    /// The listener that accepted it.
    pub listener: ListenerName,
    /// The pool it was routed to.
    pub pool: Option<PoolName>,
    /// The endpoint it reached, or tried last.
    pub endpoint: Option<Arc<EndpointIdentity>>,
    /// The generation it was routed under.
    pub generation: Generation,
    /// Bytes relayed to the endpoint.
    pub to_upstream: u64,
    /// Bytes relayed to the client.
    pub to_client: u64,
    /// From the accept to an established connection, if there was one.
    pub connect: Option<Duration>,
    /// When it ended.
    pub ended: Instant,
    /// From the accept to the end.
    pub total: Duration,
    /// Attempts to connect.
    pub attempts: u8,
    /// How it ended.
    pub end: End,
    /// What the edge knows of it, where it has one.
    pub edge: Option<Box<Edge>>,
}

/// Which sessions get a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionLines {
    /// Each one.
    All,
    /// Those that did not run their course.
    Errors,
    /// None.
    Off,
}

/// The shape of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LineFormat {
    /// `key=value`.
    Text,
    /// One JSON object.
    Json,
}

/// The data plane's end: never waits for the output.
#[derive(Clone, Debug)]
pub struct SessionLog {
    lines: SessionLines,
    queue: Option<Arc<Queue>>,
    writer: Option<Thread>,
}

/// Dropping it has what is queued written, as far as a second suffices for that. A thread whose output takes nothing is
/// left behind.
#[derive(Debug)]
pub struct SessionWriter {
    stop: Arc<AtomicBool>,
    thread: Thread,
    /// Disconnected when the thread has ended.
    ended: Receiver<()>,
}

/// Records on their way to the writer: a lane for each thread that writes, so that none waits for another. Two pieces of
/// memory take turns in a lane, so that the next records find it in the CPU's caches still.
#[derive(Debug)]
struct Queue {
    lanes: Box<[Lane]>,
    waiting: AtomicU64,
    dropped: AtomicU64,
    /// The writer sleeps until it is woken. Otherwise it looks by itself before long.
    asleep: AtomicBool,
}

/// Two cache lines: the processor fetches them in pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Lane(Mutex<Records>);

#[derive(Debug, Default)]
struct Records {
    records: Vec<SessionRecord>,
    /// Nobody will read them any more.
    closed: bool,
}

impl SessionLog {
    /// Starts a thread that writes lines to `output`.
    ///
    /// # Errors
    /// The thread could not be started.
    pub fn start(
        lines: SessionLines,
        format: LineFormat,
        output: impl Write + Send + 'static,
    ) -> std::io::Result<(Self, SessionWriter)> {
        let stop = Arc::new(AtomicBool::new(false));
        let queue = Arc::new(Queue::new());
        let others = queue.lanes.iter().map(|_| Vec::new()).collect();
        let mut writer = Writer {
            queue: Arc::clone(&queue),
            format,
            output,
            stop: Arc::clone(&stop),
            records: Vec::new(),
            others,
            text: String::new(),
            clock: Clock::default(),
        };
        let (ending, ended) = sync_channel(0);
        let thread = thread::Builder::new().name("session-log".into()).spawn(move || {
            writer.run();
            drop(ending);
        })?;
        let thread = thread.thread().clone();
        let log = Self { lines, queue: Some(queue), writer: Some(thread.clone()) };
        Ok((log, SessionWriter { stop, thread, ended }))
    }

    /// A log that writes nothing.
    #[must_use]
    pub const fn off() -> Self {
        Self { lines: SessionLines::Off, queue: None, writer: None }
    }

    /// Hands a record over, or counts it as dropped when too many wait.
    pub fn write(&self, record: SessionRecord) {
        let wanted = match self.lines {
            SessionLines::All => true,
            SessionLines::Errors => !record.end.is_clean(),
            SessionLines::Off => false,
        };
        if let Some(queue) = self.queue.as_ref().filter(|_| wanted)
            && (queue.put(record) == CAPACITY / 4 || queue.asleep.load(SeqCst))
        {
            self.writer.iter().for_each(Thread::unpark);
        }
    }

    /// Records that were not written.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.queue.as_ref().map_or(0, |queue| queue.dropped.load(Relaxed))
    }
}

impl Queue {
    fn new() -> Self {
        let lanes = thread::available_parallelism().map_or(1, Into::into);
        Self {
            lanes: (0..lanes).map(|_| Lane::default()).collect(),
            waiting: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            asleep: AtomicBool::new(false),
        }
    }

    /// Adds a record, or counts it as dropped. Returns how many waited before it.
    fn put(&self, record: SessionRecord) -> u64 {
        let before = self.waiting.fetch_add(1, SeqCst);
        let taken = before < CAPACITY && self.lane().is_some_and(|lane| lane.put(record));
        if !taken {
            self.waiting.fetch_sub(1, Relaxed);
            self.dropped.fetch_add(1, Relaxed);
        }
        before
    }

    /// This thread's lane. Threads share lanes where there are more of them than CPUs.
    fn lane(&self) -> Option<&Lane> {
        static THREADS: AtomicUsize = AtomicUsize::new(0);
        thread_local! {
            static MINE: usize = THREADS.fetch_add(1, Relaxed);
        }
        self.lanes.get(MINE.with(|mine| mine % self.lanes.len()))
    }

    /// Takes all records, in the order of their ends. `others`: what the lanes go on with. `last`: none are taken in after
    /// this.
    fn take(&self, into: &mut Vec<SessionRecord>, others: &mut [Vec<SessionRecord>], last: bool) {
        let mut lanes = 0;
        for (lane, other) in self.lanes.iter().zip(others) {
            lane.exchange(other, last);
            lanes += usize::from(!other.is_empty());
            let many = other.len();
            into.append(other);
            trim(other, many);
        }
        if lanes > 1 {
            into.sort_by_key(|record| record.ended);
        }
    }
}

/// Gives back what is left over from a burst, where there were so many now.
fn trim(records: &mut Vec<SessionRecord>, many: usize) {
    if records.capacity() > many.max(FEW) * 8 {
        records.shrink_to(many * 2);
    }
}

impl Lane {
    /// Held for moments only, and by nobody who waits for anything.
    fn lock(&self) -> MutexGuard<'_, Records> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the records, and leaves room for others. `last`: there will be none.
    fn exchange(&self, other: &mut Vec<SessionRecord>, last: bool) {
        let mut records = self.lock();
        records.closed = last;
        mem::swap(&mut records.records, other);
    }

    /// False if nobody reads any more.
    fn put(&self, record: SessionRecord) -> bool {
        let mut records = self.lock();
        if !records.closed {
            records.records.push(record);
        }
        !records.closed
    }
}

impl Drop for SessionWriter {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        self.thread.unpark();
        // Nothing is ever sent: this ends with the thread, or with our patience.
        self.ended.recv_timeout(FAREWELL).unwrap_or_default();
    }
}

struct Writer<W> {
    queue: Arc<Queue>,
    format: LineFormat,
    output: W,
    stop: Arc<AtomicBool>,
    /// Taken out of the queue.
    records: Vec<SessionRecord>,
    /// What the lanes go on with.
    others: Box<[Vec<SessionRecord>]>,
    text: String,
    clock: Clock,
}

impl<W: Write> Writer<W> {
    fn run(&mut self) {
        // Formatting a batch takes a CPU that sessions may be waiting for: they go first. On Linux this is the thread's
        // own niceness; where it is refused, nothing is lost but that.
        rustix::process::setpriority_process(None, NICENESS).unwrap_or_default();
        loop {
            // Read before the queue is drained: whatever was queued before the stop is then written.
            let last = self.stop.load(Relaxed);
            let any = self.drain(last);
            if last {
                return;
            }
            if !any {
                self.sleep();
            }
            if !self.stop.load(Relaxed) {
                // Until more have come together; woken when they are very many, or the last.
                thread::park_timeout(PAUSE);
            }
        }
    }

    /// Until there is something to write, or nothing more to come.
    fn sleep(&self) {
        self.queue.asleep.store(true, SeqCst);
        // Who adds one after this look sees that the writer sleeps.
        while self.queue.waiting.load(SeqCst) == 0 && !self.stop.load(Relaxed) {
            thread::park();
        }
        self.queue.asleep.store(false, Relaxed);
    }

    /// Writes everything that waits. False if nothing did.
    fn drain(&mut self, last: bool) -> bool {
        let mut records = mem::take(&mut self.records);
        self.queue.take(&mut records, &mut self.others, last);
        let many = records.len();
        // In this order a line is never from the future.
        let (wall, now) = (Timestamp::now(), Instant::now());
        let mut lines = 0;
        for record in records.drain(..) {
            let age = SignedDuration::try_from(now.saturating_duration_since(record.ended));
            let ended = age.ok().and_then(|age| wall.checked_sub(age).ok()).unwrap_or(wall);
            line(&mut self.text, &record, self.format, (&mut self.clock, ended));
            lines += 1;
            if self.text.len() >= BATCH {
                self.output(mem::take(&mut lines));
            }
        }
        self.output(lines);
        trim(&mut records, many);
        self.records = records;
        many > 0
    }

    fn output(&mut self, lines: u64) {
        if lines == 0 {
            return;
        }
        self.queue.waiting.fetch_sub(lines, Relaxed);
        let rest = put(&mut self.output, self.text.as_bytes());
        // A line that lacks but its end is no lost line: the next one ends it.
        let lost = rest.iter().skip(1).filter(|byte| **byte == b'\n').count();
        self.queue.dropped.fetch_add(lost as u64, Relaxed);
        self.text.clear();
    }
}

/// Writes as much as the output takes; what it does not.
fn put<'a>(output: &mut impl Write, mut text: &'a [u8]) -> &'a [u8] {
    while !text.is_empty() {
        match output.write(text) {
            Ok(0) => return text,
            Ok(written) => text = text.get(written..).unwrap_or_default(),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return text,
        }
    }
    // Both outputs, a file and stderr, have nothing in a buffer of their own.
    output.flush().unwrap_or_default();
    text
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::telemetry::{
        Cause, Side, Stage,
        session_line::tests::record,
        whole::{Torn, Whole},
    };

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    const RESET: End = End { side: Side::Upstream, stage: Stage::Relay, cause: Cause::Reset };

    #[test]
    fn only_wanted_sessions_are_written_and_all_of_them() {
        let sink = Sink::default();
        let (log, writer) = SessionLog::start(SessionLines::Errors, LineFormat::Text, sink.clone()).unwrap();
        for _ in 0..1000 {
            log.write(record(End::closed(Side::Client)));
            log.write(record(RESET));
        }
        drop(writer);
        let written = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
        assert_eq!(written.lines().count(), 1000);
        assert_eq!(log.dropped(), 0);
    }

    #[test]
    fn a_full_disk_costs_lines_and_nothing_else() {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let (log, writer) = SessionLog::start(SessionLines::All, LineFormat::Json, full).unwrap();
        log.write(record(RESET));
        drop(writer);
        assert_eq!(log.dropped(), 1);
    }

    /// A disk that is full at times: takes so many bytes, refuses one write, and so on.
    struct Disk(Vec<usize>, Sink);

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let Some(room) = self.0.last_mut() else { return self.1.write(bytes) };
            if *room == 0 {
                self.0.pop();
                return Err(ErrorKind::StorageFull.into());
            }
            let taken = bytes.len().min(*room);
            *room -= taken;
            self.1.write(&bytes[..taken])
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// Three times three lines to a disk with this room for each time: what is written, and how many lines were lost.
    fn thrice(mut room: Vec<usize>) -> (String, u64) {
        room.reverse();
        let sink = Sink::default();
        let mut writer = Writer {
            queue: Arc::new(Queue::new()),
            format: LineFormat::Json,
            output: Whole::new(Disk(room, sink.clone()), Torn::default()),
            stop: Arc::default(),
            records: Vec::new(),
            others: [].into(),
            text: String::new(),
            clock: Clock::default(),
        };
        for _ in 0..3 {
            writer.queue.waiting.store(3, Relaxed);
            writer.text += "{\"a\":1}\n{\"b\":2}\n{\"c\":3}\n";
            writer.output(3);
        }
        let written = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
        (written, writer.queue.dropped.load(Relaxed))
    }

    #[test]
    fn a_line_that_a_full_disk_tore_spoils_no_other() {
        const THREE: &str = "{\"a\":1}\n{\"b\":2}\n{\"c\":3}\n";
        for (room, before, lost) in [
            // In the middle of the second line.
            (vec![11], "{\"a\":1}\n{\"b\n".to_owned() + THREE + THREE, 2),
            // The same, and the disk stays full; then it takes the newline alone.
            (vec![11, 0], "{\"a\":1}\n{\"b\n".to_owned() + THREE, 5),
            (vec![11, 1], "{\"a\":1}\n{\"b\n".to_owned() + THREE, 5),
            // Between two lines: nothing is torn.
            (vec![8], "{\"a\":1}\n".to_owned() + THREE + THREE, 2),
            // All but the newline: the line is whole once that has come.
            (vec![15], "{\"a\":1}\n{\"b\":2}\n".to_owned() + THREE + THREE, 1),
            // Nothing at all.
            (vec![0], THREE.to_owned() + THREE, 3),
        ] {
            assert_eq!(thrice(room.clone()), (before, lost), "{room:?}");
        }
    }

    struct Stalled<W>(Receiver<()>, W);

    impl<W: Write> Write for Stalled<W> {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            // Blocks until the test lets go.
            assert!(self.0.recv().is_err());
            self.1.write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn an_output_that_takes_nothing_does_not_hold_up_the_end() {
        let (release, gate) = sync_channel(0);
        let output = Stalled(gate, std::io::sink());
        let (log, writer) = SessionLog::start(SessionLines::All, LineFormat::Text, output).unwrap();
        log.write(record(RESET));
        let (ending, ended) = sync_channel::<()>(0);
        let end = thread::spawn(move || {
            drop(writer);
            drop(ending);
        });
        assert_eq!(
            ended.recv_timeout(Duration::from_secs(30)),
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected)
        );
        end.join().unwrap();
        drop(release);
    }

    #[test]
    fn a_line_that_waits_keeps_the_time_of_its_end() {
        let sink = Sink::default();
        let (release, gate) = sync_channel(0);
        let output = Stalled(gate, sink.clone());
        let (log, writer) = SessionLog::start(SessionLines::All, LineFormat::Text, output).unwrap();
        log.write(record(RESET));
        while log.queue.as_ref().unwrap().waiting.load(Relaxed) > 0 {
            thread::yield_now();
        }
        // The first line stalls; this one waits in the queue.
        log.write(record(RESET));
        let written_after = Timestamp::now();
        while Timestamp::now().duration_since(written_after) < SignedDuration::from_millis(5) {
            thread::yield_now();
        }
        drop(release);
        drop(writer);
        let text = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text.lines().count(), 2);
        for line in text.lines() {
            let time: Timestamp = line.split(' ').next().unwrap().parse().unwrap();
            assert!(time <= written_after, "{line} after {written_after}");
        }
    }

    #[test]
    fn threads_lose_no_lines_and_each_one_s_stay_in_order() {
        let sink = Sink::default();
        let (log, writer) = SessionLog::start(SessionLines::All, LineFormat::Text, sink.clone()).unwrap();
        let threads: Vec<_> = (0..8_u64)
            .map(|thread| {
                let log = log.clone();
                thread::spawn(move || {
                    for number in 0..1000 {
                        log.write(SessionRecord { session: thread * 1000 + number, ..record(RESET) });
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        drop(writer);
        log.write(record(RESET));
        assert_eq!(log.dropped(), 1, "nobody reads that one");
        let written = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
        let number = |line: &str| -> u64 {
            line.split_once("session=").unwrap().1.split(' ').next().unwrap().parse().unwrap()
        };
        let mut next: Vec<_> = (0..8).map(|thread| thread * 1000).collect();
        for line in written.lines() {
            let number = number(line);
            let expected = &mut next[usize::try_from(number / 1000).unwrap()];
            assert_eq!(number, *expected, "{line}");
            *expected += 1;
        }
        assert_eq!(next, (0..8).map(|thread| (thread + 1) * 1000).collect::<Vec<_>>());
    }

    #[test]
    fn a_stalled_reader_never_blocks_the_writer_of_records() {
        let (release, gate) = sync_channel(0);
        let (log, writer) =
            SessionLog::start(SessionLines::All, LineFormat::Text, Stalled(gate, std::io::sink())).unwrap();
        for _ in 0..4 * CAPACITY {
            log.write(record(RESET));
        }
        assert!(log.dropped() > 0);
        drop(release);
        drop(writer);
    }
}

//! One line a session, written at its end. The data plane hands over a plain record and goes on; a thread of its own
//! builds the text. The queue is bounded: when the disk or the reader stalls, lines are dropped and counted, and
//! traffic never waits.

use std::{
    fmt::Write as _,
    io::Write,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
        mpsc::{Receiver, SyncSender, TryRecvError, sync_channel},
    },
    thread::{self, Thread},
    time::{Duration, SystemTime},
};

use jiff::Timestamp;

use super::{End, edge::Edge};
use crate::ids::{EndpointIdentity, Generation, ListenerName, PoolName};

/// Records that may wait to be written: a second of a very busy proxy.
const CAPACITY: usize = 16_384;

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

/// The data plane's end: never blocks.
#[derive(Clone, Debug)]
pub struct SessionLog {
    lines: SessionLines,
    sender: Option<SyncSender<(SystemTime, SessionRecord)>>,
    dropped: Arc<AtomicU64>,
    writer: Option<Thread>,
    waiting: Arc<AtomicU64>,
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
        let (sender, receiver) = sync_channel(CAPACITY);
        let stop = Arc::new(AtomicBool::new(false));
        let waiting = Arc::new(AtomicU64::new(0));
        let dropped = Arc::new(AtomicU64::new(0));
        let mut writer = Writer {
            receiver,
            format,
            output,
            stop: Arc::clone(&stop),
            waiting: Arc::clone(&waiting),
            dropped: Arc::clone(&dropped),
            text: String::new(),
            clock: Clock::default(),
        };
        let (ending, ended) = sync_channel(0);
        let thread = thread::Builder::new().name("session-log".into()).spawn(move || {
            writer.run();
            drop(ending);
        })?;
        let thread = thread.thread().clone();
        let log = Self { lines, sender: Some(sender), dropped, writer: Some(thread.clone()), waiting };
        Ok((log, SessionWriter { stop, thread, ended }))
    }

    /// A log that writes nothing.
    #[must_use]
    pub fn off() -> Self {
        Self {
            lines: SessionLines::Off,
            sender: None,
            dropped: Arc::default(),
            writer: None,
            waiting: Arc::default(),
        }
    }

    /// Hands a record over, or counts it as dropped when the queue is full.
    pub fn write(&self, record: SessionRecord) {
        let wanted = match self.lines {
            SessionLines::All => true,
            SessionLines::Errors => !record.end.is_clean(),
            SessionLines::Off => false,
        };
        let Some(sender) = self.sender.as_ref().filter(|_| wanted) else {
            return;
        };
        // A line says when its session ended, however long it waits to be written.
        if sender.try_send((SystemTime::now(), record)).is_err() {
            self.dropped.fetch_add(1, Relaxed);
            return;
        }
        // The writer looks by itself every 50 ms; it is woken only when the queue fills quicker than that.
        if self.waiting.fetch_add(1, Relaxed) == CAPACITY as u64 / 4 {
            self.writer.iter().for_each(Thread::unpark);
        }
    }

    /// Records that were not written.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
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
    receiver: Receiver<(SystemTime, SessionRecord)>,
    format: LineFormat,
    output: W,
    stop: Arc<AtomicBool>,
    waiting: Arc<AtomicU64>,
    dropped: Arc<AtomicU64>,
    text: String,
    clock: Clock,
}

/// The written form of the last second that was asked for: most lines share it with the line before.
#[derive(Default)]
struct Clock {
    second: Option<i64>,
    text: String,
}

impl Clock {
    /// A time in RFC 3339 form, with microseconds.
    fn write(&mut self, out: &mut String, time: Timestamp) {
        let (mut second, mut nanos) = (time.as_second(), time.subsec_nanosecond());
        if nanos < 0 {
            (second, nanos) = (second - 1, nanos + 1_000_000_000);
        }
        if self.second != Some(second) {
            self.second = Some(second);
            self.text.clear();
            let whole = Timestamp::from_second(second).unwrap_or_default();
            let _ = write!(self.text, "{whole:.0}");
            let _zulu = self.text.pop();
        }
        let _ = write!(out, "{}.{:06}Z", self.text, nanos / 1000);
    }
}

impl<W: Write> Writer<W> {
    fn run(&mut self) {
        // Formatting a batch takes a CPU that sessions may be waiting for: they go first. On Linux this is the thread's
        // own niceness; where it is refused, nothing is lost but that.
        rustix::process::setpriority_process(None, NICENESS).unwrap_or_default();
        loop {
            // Read before the queue is drained: whatever was queued before the stop is then written.
            let stopping = self.stop.load(Relaxed);
            let more = self.drain();
            if stopping || !more {
                return;
            }
            thread::park_timeout(PAUSE);
        }
    }

    /// Writes everything that waits. False once every sender is gone.
    fn drain(&mut self) -> bool {
        loop {
            let mut records = 0;
            let mut connected = true;
            while self.text.len() < BATCH {
                match self.receiver.try_recv() {
                    Ok((ended, record)) => {
                        records += 1;
                        let ended = Timestamp::try_from(ended).unwrap_or_default();
                        line(&mut self.text, &record, self.format, (&mut self.clock, ended));
                    }
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => {
                        connected = false;
                        break;
                    }
                }
            }
            if records == 0 {
                return connected;
            }
            self.waiting.fetch_sub(records, Relaxed);
            if self.output.write_all(self.text.as_bytes()).and_then(|()| self.output.flush()).is_err() {
                self.dropped.fetch_add(records, Relaxed);
            }
            self.text.clear();
        }
    }
}

fn line(out: &mut String, record: &SessionRecord, format: LineFormat, (clock, now): (&mut Clock, Timestamp)) {
    match format {
        LineFormat::Text => {
            clock.write(out, now);
            text(out, record);
        }
        LineFormat::Json => {
            out.push_str(r#"{"timestamp":""#);
            clock.write(out, now);
            json(out, record);
        }
    }
    out.push('\n');
}

/// Names come from the operator's file, which allows no spaces, quotes or control characters in them; addresses and
/// numbers are ours. What a client sent stands in quotes and is escaped.
fn text(out: &mut String, record: &SessionRecord) {
    let end = record.end;
    // Writing to a String cannot fail.
    let _ = write!(
        out,
        " session={} client={} listener={}",
        record.session,
        canonical(record.client),
        record.listener
    );
    if let Some(pool) = &record.pool {
        let _ = write!(out, " pool={pool}");
    }
    if let Some(endpoint) = &record.endpoint {
        let _ = write!(out, " cloud={} endpoint={}", endpoint.cloud, endpoint.address);
    }
    let _ = write!(
        out,
        " generation={} to_upstream={} to_client={}",
        record.generation, record.to_upstream, record.to_client
    );
    if let Some(connect) = record.connect {
        let _ = write!(out, " connect_ms={}", Millis(connect));
    }
    let _ = write!(
        out,
        " total_ms={} attempts={} side={} stage={} cause={} flags={}",
        Millis(record.total),
        record.attempts,
        end.side.as_str(),
        end.stage.as_str(),
        end.cause.as_str(),
        end.flags()
    );
    if let Some(edge) = &record.edge {
        edge.text(out);
    }
}

fn json(out: &mut String, record: &SessionRecord) {
    let end = record.end;
    let _ = write!(
        out,
        r#"","target":"session","session":{},"client":"{}","listener":{}"#,
        record.session,
        canonical(record.client),
        Quoted(record.listener.as_str())
    );
    if let Some(pool) = &record.pool {
        let _ = write!(out, r#","pool":{}"#, Quoted(pool.as_str()));
    }
    if let Some(endpoint) = &record.endpoint {
        let _ =
            write!(out, r#","cloud":{},"endpoint":"{}""#, Quoted(endpoint.cloud.as_str()), endpoint.address);
    }
    let _ = write!(
        out,
        r#","generation":{},"to_upstream":{},"to_client":{}"#,
        record.generation, record.to_upstream, record.to_client
    );
    if let Some(connect) = record.connect {
        let _ = write!(out, r#","connect_ms":{}"#, Millis(connect));
    }
    let _ = write!(
        out,
        r#","total_ms":{},"attempts":{},"side":"{}","stage":"{}","cause":"{}","flags":"{}""#,
        Millis(record.total),
        record.attempts,
        end.side.as_str(),
        end.stage.as_str(),
        end.cause.as_str(),
        end.flags()
    );
    if let Some(edge) = &record.edge {
        edge.json(out);
    }
    out.push('}');
}

/// An IPv4 client of a dual-stack listener is written as IPv4.
pub(super) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// A JSON string.
pub(super) struct Quoted<'a>(pub(super) &'a str);

impl std::fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let plain = |byte: u8| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\';
        if self.0.bytes().all(plain) {
            write!(f, "\"{}\"", self.0)
        } else {
            write!(f, "{}", serde_json::Value::from(self.0))
        }
    }
}

/// Milliseconds with microsecond precision.
struct Millis(Duration);

impl std::fmt::Display for Millis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let micros = self.0.as_micros();
        write!(f, "{}.{:03}", micros / 1000, micros % 1000)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::{
        ids::CloudName,
        telemetry::{Cause, Side, Stage},
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

    fn record(end: End) -> SessionRecord {
        SessionRecord {
            session: 7,
            client: "[::ffff:192.0.2.1]:40000".parse().unwrap(),
            listener: ListenerName::from("pg"),
            pool: Some(PoolName::from("db")),
            endpoint: Some(Arc::new(EndpointIdentity {
                pool: PoolName::from("db"),
                cloud: CloudName::from("aws"),
                address: "10.0.1.10:5432".parse().unwrap(),
            })),
            generation: Generation(12),
            to_upstream: 10,
            to_client: 20,
            connect: Some(Duration::from_micros(2_100)),
            total: Duration::from_millis(1_500),
            attempts: 1,
            end,
            edge: None,
        }
    }

    const RESET: End = End { side: Side::Upstream, stage: Stage::Relay, cause: Cause::Reset };

    #[test]
    fn a_text_line_has_every_field_once() {
        let mut out = String::new();
        line(&mut out, &record(RESET), LineFormat::Text, (&mut Clock::default(), Timestamp::UNIX_EPOCH));
        assert_eq!(
            out,
            "1970-01-01T00:00:00.000000Z session=7 client=192.0.2.1:40000 listener=pg pool=db cloud=aws \
             endpoint=10.0.1.10:5432 generation=12 to_upstream=10 to_client=20 connect_ms=2.100 \
             total_ms=1500.000 attempts=1 side=upstream stage=relay cause=reset flags=SD\n"
        );
    }

    #[test]
    fn a_json_line_is_one_object_with_the_same_fields() {
        let mut out = String::new();
        line(&mut out, &record(RESET), LineFormat::Json, (&mut Clock::default(), Timestamp::UNIX_EPOCH));
        let value: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert_eq!(value["endpoint"], "10.0.1.10:5432");
        assert_eq!(value["cause"], "reset");
        assert_eq!(value["total_ms"], 1500.0);
        assert_eq!(value["generation"], 12);
    }

    #[test]
    fn times_are_written_as_the_calendar_has_them() {
        let mut clock = Clock::default();
        for (nanos, text) in [
            (1_700_000_000_000_001_999_i128, "2023-11-14T22:13:20.000001Z"),
            (1_700_000_000_999_999_999, "2023-11-14T22:13:20.999999Z"),
            (1_700_000_001_000_000_000, "2023-11-14T22:13:21.000000Z"),
            (-1_000, "1969-12-31T23:59:59.999999Z"),
            (951_782_400_500_000_000, "2000-02-29T00:00:00.500000Z"),
        ] {
            let mut out = String::new();
            clock.write(&mut out, Timestamp::from_nanosecond(nanos).unwrap());
            assert_eq!(out, text);
        }
    }

    #[test]
    fn names_that_json_must_escape_are_escaped() {
        for name in ["plain-1.x", "with \"quotes\"", "back\\slash", "new\nline", "é"] {
            let quoted = Quoted(name).to_string();
            assert_eq!(serde_json::from_str::<String>(&quoted).unwrap(), name);
        }
    }

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
        while log.waiting.load(Relaxed) > 0 {
            thread::yield_now();
        }
        // The first line stalls; this one waits in the queue.
        log.write(record(RESET));
        let written_after = Timestamp::now();
        while Timestamp::now().duration_since(written_after) < jiff::SignedDuration::from_millis(5) {
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

//! The load: one thread, three kinds of work. Each runs for a span and can be run again at once, so that a warm-up and
//! a measurement use the same connections.

mod churn;
mod exchange;
mod stream;

pub(crate) use churn::Churn;
pub(crate) use exchange::Exchange;
pub(crate) use stream::Stream;

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use hdrhistogram::Histogram;
use tokio::time::Instant;

use crate::{
    host,
    target::{Ask, REQUEST},
};

/// Longest wait for a connection, an answer or readiness: a proxy that stalls ends the measurement, not the run.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// Longest sleep of a loop, so that an interrupt is heeded.
const TICK: Duration = Duration::from_millis(50);

/// What a span of work came to.
pub(crate) struct Tally {
    /// Exchanges, connections or bytes.
    pub(crate) units: u64,
    /// Connections that failed.
    pub(crate) errors: u64,
    pub(crate) elapsed: Duration,
    /// Nanoseconds from the intended start of a unit to its end.
    pub(crate) latency: Histogram<u64>,
}

impl Tally {
    fn new() -> io::Result<Self> {
        let latency = Histogram::new_with_bounds(100, 60_000_000_000, 3).map_err(io::Error::other)?;
        Ok(Self { units: 0, errors: 0, elapsed: Duration::ZERO, latency })
    }

    fn done(&mut self, took: Duration) {
        self.units += 1;
        self.latency.saturating_record(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
    }
}

/// Intended start times at a fixed rate. They do not wait for answers: a late answer makes the next unit late, and
/// that counts (no coordinated omission).
struct Pace {
    next: Instant,
    interval: Duration,
}

impl Pace {
    fn new(start: Instant, rate: u32) -> Self {
        Self { next: start, interval: Duration::from_secs(1) / rate.max(1) }
    }

    /// The intended time of the next unit, once it has come.
    fn due(&mut self, now: Instant) -> Option<Instant> {
        let due = self.next;
        (due <= now).then(|| {
            self.next += self.interval;
            due
        })
    }
}

/// How long a loop may sleep: to the next unit if one could be started then, else to the end.
fn nap(pace: Option<&Pace>, can_start: bool, now: Instant, end: Instant) -> Duration {
    let next = pace.filter(|_| can_start).map_or(end, |pace| pace.next.min(end));
    next.saturating_duration_since(now).min(TICK)
}

/// `Some` once the span is over, as an error if the run was interrupted.
fn over(now: Instant, end: Instant) -> io::Result<bool> {
    if host::interrupted() {
        return Err(io::Error::new(io::ErrorKind::Interrupted, "interrupted"));
    }
    Ok(now >= end)
}

/// A blocking connection that gives up in time.
pub(crate) fn connect(to: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// One connection with one exchange: what readiness and idle sessions are made of.
pub(crate) fn exchange_once(to: SocketAddr) -> io::Result<TcpStream> {
    let mut stream = connect(to)?;
    stream.write_all(&Ask::Reply(REQUEST_BYTES).request())?;
    let mut reply = [0; REQUEST];
    stream.read_exact(&mut reply)?;
    Ok(stream)
}

/// [`REQUEST`] as the size of a reply.
pub(crate) const REQUEST_BYTES: u32 = 128;

fn ended() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the connection ended in the middle of the work")
}

//! The load as the bench needs it: the library's, where nothing may fail while connections stay.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::Context;
use hdrhistogram::Histogram;
use twinspan::lab::load::{self, Ask, ByHand, Job, Kind, Live, Rate, Script, Share, Span, Worker};

use crate::{host, target::REQUEST};

/// Longest wait for a connection, an answer or readiness: a proxy that stalls ends the measurement, not the run.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// [`REQUEST`] as the size of a reply.
pub(crate) const REQUEST_BYTES: u32 = 128;

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
    /// Adds what a later span came to.
    pub(crate) fn add(&mut self, more: &Self) -> anyhow::Result<()> {
        self.units += more.units;
        self.errors += more.errors;
        self.elapsed += more.elapsed;
        self.latency.add(&more.latency).context("cannot add up latencies")
    }
}

/// Connections with at most one request under way on each.
pub(crate) struct Exchange(Load);

/// Slots with one connection each.
pub(crate) struct Churn(Load);

/// Connections that move bytes as fast as they can.
pub(crate) struct Stream(Load);

impl Exchange {
    pub(crate) fn open(to: SocketAddr, connections: usize, reply: u32) -> io::Result<Self> {
        Load::open(to, connections, Kind::Exchange(script(reply))).map(Self)
    }

    /// Works for `span`: each line's next request as soon as its reply is there.
    pub(crate) fn run(&mut self, span: Duration) -> io::Result<Tally> {
        unbroken(self.0.run(span)?)
    }

    /// The same at `rate` requests a second, and serves the target.
    pub(crate) fn run_at(&mut self, rate: u32, span: Duration, target: &mut ByHand) -> io::Result<Tally> {
        unbroken(self.0.run_at(rate, span, target)?)
    }
}

impl Churn {
    pub(crate) fn new(to: SocketAddr, slots: usize) -> io::Result<Self> {
        Load::open(to, slots, Kind::Churn(script(REQUEST_BYTES))).map(Self)
    }

    /// Works for `span`: each slot's next connection as soon as the last has gone.
    pub(crate) fn run(&mut self, span: Duration) -> io::Result<Tally> {
        self.0.run(span)
    }

    /// The same at `rate` connections a second, and serves the target.
    pub(crate) fn run_at(&mut self, rate: u32, span: Duration, target: &mut ByHand) -> io::Result<Tally> {
        self.0.run_at(rate, span, target)
    }
}

impl Stream {
    pub(crate) fn open(to: SocketAddr, connections: usize, ask: Ask) -> io::Result<Self> {
        Load::open(to, connections, Kind::Stream { ask, say: true }).map(Self)
    }

    /// Works for `span` and counts bytes.
    pub(crate) fn run(&mut self, span: Duration) -> io::Result<Tally> {
        unbroken(self.0.run(span)?)
    }
}

/// The only thread of a load.
struct Load {
    worker: Worker,
    live: Live,
}

impl Load {
    fn open(to: SocketAddr, connections: usize, kind: Kind) -> io::Result<Self> {
        let mut worker = Worker::new(&Job { to, connections, timeout: PATIENCE, kind }, Share::ALL)?;
        let live = Live::new(host::interrupted);
        let failures = worker.open(&live)?.failures;
        if failures.total() > 0 {
            return Err(io::Error::other(format!("connections failed: {failures:?}")));
        }
        Ok(Self { worker, live })
    }

    fn run(&mut self, length: Duration) -> io::Result<Tally> {
        let span = Span { length, rate: None, spin: false };
        let tally = self.worker.run(span, &self.live)?;
        Self::judge(tally)
    }

    fn run_at(&mut self, rate: u32, length: Duration, target: &mut ByHand) -> io::Result<Tally> {
        let rate = Rate { per_second: rate.into(), threads: 1, thread: 0 };
        let span = Span { length, rate: Some(rate), spin: true };
        let tally = self.worker.run_beside(span, target, &self.live)?;
        Self::judge(tally)
    }

    fn judge(tally: load::Tally) -> io::Result<Tally> {
        if host::interrupted() {
            return Err(io::Error::new(io::ErrorKind::Interrupted, "interrupted"));
        }
        Ok(Tally {
            units: tally.units + tally.down + tally.up,
            errors: tally.failures.total(),
            elapsed: tally.elapsed,
            latency: tally.latency,
        })
    }
}

/// Connections that stay must all stay, or other work was measured than was meant.
fn unbroken(tally: Tally) -> io::Result<Tally> {
    if tally.errors > 0 {
        return Err(io::Error::other(format!(
            "{} connections failed in the middle of the work",
            tally.errors
        )));
    }
    Ok(tally)
}

/// Replies are not looked at: the proxy is what is to be measured, and other tests see to its bytes.
fn script(reply: u32) -> Script {
    Script::reply(REQUEST_BYTES, reply).unchecked()
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
    let mut bytes = [0; REQUEST];
    let ask = Ask::Reply { request: REQUEST_BYTES, reply: REQUEST_BYTES };
    for (byte, value) in bytes.iter_mut().zip(ask.head()) {
        *byte = value;
    }
    stream.write_all(&bytes)?;
    stream.read_exact(&mut bytes)?;
    Ok(stream)
}

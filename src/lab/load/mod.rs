//! Load, and targets for it: what `twinspan bench` and the bench beside other proxies measure with. Plain loops over
//! epoll, one to a thread, which allocate nothing while they work: what is between load and target is to be measured,
//! and not these.

mod churn;
mod drive;
mod exchange;
mod failure;
mod hold;
mod lines;
mod pace;
mod poll;
mod run;
mod script;
mod socket;
mod stream;
mod tally;
mod target;

pub use drive::Span;
pub use failure::{Failure, Failures};
pub use pace::Rate;
pub use run::{Course, Share, run};
pub use script::{Ask, HEAD, LARGEST_REQUEST, Script};
pub use tally::{Live, Tally};
pub use target::{ByHand, Served, Serves, Target, TargetOptions};

use std::{io, net::SocketAddr, time::Duration};

use churn::Churn;
use exchange::Exchange;
use hold::Hold;
use lines::Lines;
use stream::Stream;

/// Bytes that bulk transfers move at a time.
const CHUNK: usize = 256 << 10;

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Job {
    /// To whom.
    pub to: SocketAddr,
    /// How many connections, of all threads.
    pub connections: usize,
    /// Longest wait for a connection or a reply.
    pub timeout: Duration,
    /// How.
    pub kind: Kind,
}

/// A kind of load.
#[derive(Clone, Debug)]
pub enum Kind {
    /// Requests and replies on connections that stay.
    Exchange(Script),
    /// Each connection is for one exchange.
    Churn(Script),
    /// Connections that do nothing after one exchange.
    Hold(Script),
    /// Bulk.
    Stream {
        /// Which way.
        ask: Ask,
        /// Whether the target is told so first.
        say: bool,
    },
}

/// One thread's part of a job. Each run goes on with the connections of the one before.
pub struct Worker(Inner);

enum Inner {
    Exchange(Exchange),
    Churn(Churn),
    Hold(Hold),
    Stream(Stream),
}

impl Worker {
    /// Takes its share of the connections.
    ///
    /// # Errors
    /// No epoll instance could be made.
    pub fn new(job: &Job, share: Share) -> io::Result<Self> {
        let count = share.of(job.connections);
        let lines = |script: &Script| Lines::new(job.to, count, script.clone(), job.timeout);
        Ok(Self(match &job.kind {
            Kind::Exchange(script) => Inner::Exchange(Exchange::new(lines(script)?)),
            Kind::Churn(script) => Inner::Churn(Churn::new(lines(script)?)),
            Kind::Hold(script) => Inner::Hold(Hold::new(lines(script)?)),
            Kind::Stream { ask, say } => Inner::Stream(Stream::new(job.to, count, *ask, *say, job.timeout)?),
        }))
    }

    /// Makes the connections that stay, and tells what failed.
    ///
    /// # Errors
    /// The kernel does not give events.
    pub fn open(&mut self, live: &Live) -> io::Result<Tally> {
        match &mut self.0 {
            Inner::Exchange(work) => drive::open(work, live),
            Inner::Churn(work) => drive::open(work, live),
            Inner::Hold(work) => drive::open(work, live),
            Inner::Stream(work) => drive::open(work, live),
        }
    }

    /// Works for a span.
    ///
    /// # Errors
    /// The kernel does not give events.
    pub fn run(&mut self, span: Span, live: &Live) -> io::Result<Tally> {
        self.run_with(span, None, live)
    }

    /// The same, and serves the target whenever there is nothing else to do, without sleeping. What is between the two never
    /// has to wake either, which costs more than a small message where CPUs are virtual, and which nobody has to do who sends
    /// to another machine.
    ///
    /// # Errors
    /// The kernel does not give events.
    pub fn run_beside(&mut self, span: Span, target: &mut ByHand, live: &Live) -> io::Result<Tally> {
        self.run_with(span, Some(target), live)
    }

    fn run_with(&mut self, span: Span, target: Option<&mut ByHand>, live: &Live) -> io::Result<Tally> {
        match &mut self.0 {
            Inner::Exchange(work) => drive::run(work, span, target, live),
            Inner::Churn(work) => drive::run(work, span, target, live),
            Inner::Hold(work) => {
                let mut tally = drive::run(work, span, target, live)?;
                tally.units = work.alive();
                Ok(tally)
            }
            Inner::Stream(work) => drive::run(work, span, target, live),
        }
    }
}

#[cfg(test)]
mod tests;

//! A job on several threads: open, warm up, measure.

use std::{
    io,
    num::NonZeroU64,
    thread::{self, ScopedJoinHandle},
    time::Duration,
};

use rustix::thread::set_current_timer_slack;
use tokio::time::Instant;

use super::{Job, Live, Rate, Span, Tally, Worker};

/// Time between two reports of how things go.
const REPORT: Duration = Duration::from_secs(1);

/// How a job is run.
#[derive(Clone, Copy, Debug)]
pub struct Course {
    /// On how many threads; never more than connections.
    pub threads: usize,
    /// What goes before and does not count.
    pub warmup: Duration,
    /// What counts.
    pub length: Duration,
    /// Units a second; without it, as many as it can.
    pub rate: Option<u64>,
    /// See [`Span::spin`].
    pub spin: bool,
}

/// A thread's share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Which thread.
    pub thread: usize,
    /// Of how many.
    pub threads: usize,
}

impl Share {
    /// The only thread.
    pub const ALL: Self = Self { thread: 0, threads: 1 };

    /// Of so many connections.
    #[must_use]
    pub const fn of(self, all: usize) -> usize {
        all / self.threads + if self.thread < all % self.threads { 1 } else { 0 }
    }
}

/// Does the job. `report` is called once a second with the time since the start. Failures count from the first
/// connection on, everything else from the end of the warm-up on; stopped before, the warm-up is all there is.
///
/// # Errors
/// The kernel does not give threads or events.
pub fn run(job: &Job, course: &Course, live: &Live, mut report: impl FnMut(Duration)) -> io::Result<Tally> {
    let threads = course.threads.clamp(1, job.connections.max(1));
    let (start, waiter) = (Instant::now(), thread::current());
    thread::scope(|scope| {
        let mut workers: Vec<ScopedJoinHandle<'_, io::Result<Tally>>> = Vec::new();
        for thread in 0..threads {
            let waiter = waiter.clone();
            let name = format!("load-{thread}");
            let worker = thread::Builder::new().name(name).spawn_scoped(scope, move || {
                let tally = work(job, course, Share { thread, threads }, live);
                waiter.unpark();
                tally
            });
            workers.push(worker?);
        }
        let mut due = start + REPORT;
        while !workers.iter().all(ScopedJoinHandle::is_finished) {
            let now = Instant::now();
            if now >= due {
                report(now - start);
                due += REPORT;
            }
            // A thread that has ended a moment ago may not yet count as finished.
            thread::park_timeout(due.saturating_duration_since(now).min(Duration::from_millis(20)));
        }
        let mut all = Tally::new()?;
        for worker in workers {
            let tally = worker.join().map_err(|_| io::Error::other("a thread of the load panicked"))?;
            all.add(&tally?)?;
        }
        Ok(all)
    })
}

fn work(job: &Job, course: &Course, share: Share, live: &Live) -> io::Result<Tally> {
    // Sleeps end when they are to, and not up to 50 us later. Where that cannot be had it is a little less exact.
    let _ = set_current_timer_slack(NonZeroU64::new(1));
    let mut worker = Worker::new(job, share)?;
    let rate =
        course.rate.map(|per_second| Rate { per_second, threads: share.threads, thread: share.thread });
    let opened = worker.open(live)?;
    let span = |length| Span { length, rate, spin: course.spin };
    let warm = worker.run(span(course.warmup), live)?;
    let mut tally = if (live.stop)() && warm.elapsed < course.warmup {
        warm
    } else {
        let mut tally = worker.run(span(course.length), live)?;
        tally.failures.add(warm.failures);
        tally.held += warm.held;
        tally
    };
    tally.failures.add(opened.failures);
    tally.held += opened.held;
    // What is held has had its only exchange.
    tally.latency.add(&opened.latency).map_err(io::Error::other)?;
    tally.connect.add(&opened.connect).map_err(io::Error::other)?;
    Ok(tally)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_add_up() {
        for (all, threads) in [(1, 1), (7, 3), (64, 4), (5, 5)] {
            let shares: Vec<_> = (0..threads).map(|thread| Share { thread, threads }.of(all)).collect();
            assert_eq!(shares.iter().sum::<usize>(), all);
            assert!(shares.iter().max().unwrap() - shares.iter().min().unwrap() <= 1, "{shares:?}");
        }
    }
}

//! Readiness: a thin layer over epoll.

use std::{io, os::fd::AsFd, time::Duration};

use rustix::{
    buffer::spare_capacity,
    event::{PollFd, PollFlags, Timespec, epoll, poll},
    fd::OwnedFd,
    io::retry_on_intr,
};
use tokio::time::Instant;

pub(super) use rustix::event::epoll::{Event, EventFlags};

/// An epoll instance; sockets are known by a number of the caller's.
pub(super) struct Poll {
    epoll: OwnedFd,
}

impl Poll {
    /// Events taken at once.
    const BATCH: usize = 256;

    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { epoll: epoll::create(epoll::CreateFlags::CLOEXEC)? })
    }

    /// Room for the events of one turn.
    pub(super) fn room() -> Vec<Event> {
        Vec::with_capacity(Self::BATCH)
    }

    pub(super) fn add(&self, source: impl AsFd, token: usize, flags: EventFlags) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, source, epoll::EventData::new_u64(token as u64), flags)?)
    }

    pub(super) fn modify(&self, source: impl AsFd, token: usize, flags: EventFlags) -> io::Result<()> {
        Ok(epoll::modify(&self.epoll, source, epoll::EventData::new_u64(token as u64), flags)?)
    }

    pub(super) fn delete(&self, source: impl AsFd) -> io::Result<()> {
        Ok(epoll::delete(&self.epoll, source)?)
    }

    /// Fills `events`; leaves it empty when `timeout` passes first. The kernel rounds it up to a millisecond.
    pub(super) fn wait(&self, events: &mut Vec<Event>, timeout: Option<Duration>) -> io::Result<()> {
        let limit = timeout.map(timespec);
        events.clear();
        retry_on_intr(|| epoll::wait(&self.epoll, spare_capacity(events), limit.as_ref()))?;
        Ok(())
    }

    /// The same, with a timeout that is kept to the microsecond, at the price of two more system calls when nothing
    /// is there.
    pub(super) fn wait_exactly(&self, events: &mut Vec<Event>, timeout: Duration) -> io::Result<()> {
        self.wait(events, Some(Duration::ZERO))?;
        if events.is_empty() && timeout > Duration::ZERO {
            let limit = timespec(timeout);
            retry_on_intr(|| poll(&mut [PollFd::new(&self.epoll, PollFlags::IN)], Some(&limit)))?;
            self.wait(events, Some(Duration::ZERO))?;
        }
        Ok(())
    }

    /// The same as [`Poll::wait`] without sleeping: a virtual CPU that halts takes tens of microseconds to wake, and latencies would
    /// show that in place of the proxy. Each time there is nothing, `meanwhile` has a turn.
    pub(super) fn spin(
        &self,
        events: &mut Vec<Event>,
        timeout: Duration,
        mut meanwhile: impl FnMut() -> io::Result<()>,
    ) -> io::Result<()> {
        let start = Instant::now();
        loop {
            self.wait(events, Some(Duration::ZERO))?;
            if !events.is_empty() || start.elapsed() >= timeout {
                return Ok(());
            }
            meanwhile()?;
        }
    }
}

fn timespec(time: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(time.subsec_nanos()),
    }
}

/// The caller's number of this event.
pub(super) fn token(event: &Event) -> usize {
    usize::try_from(event.data.u64()).unwrap_or(usize::MAX)
}

/// `None` when the socket is not ready.
pub(super) fn ready<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

//! The relay as a tokio future: the portable driver. It takes every session where the engine is off, and those whose
//! connections are more than plain sockets; in tests it is what the engine is compared with.

use std::{
    future::{Future, poll_fn},
    io,
    os::fd::{AsFd, BorrowedFd},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Waker},
};

use tokio::{
    io::{Interest, unix::AsyncFd},
    time::{Instant, Sleep, sleep_until},
};

use super::{Pair, Relay, Socket, Turn};
use crate::{
    proxy::session::Books,
    state::SessionLimits,
    telemetry::{End, Side},
};

/// A connection that is registered with the runtime.
pub(in crate::proxy) type Watched<'a> = AsyncFd<BorrowedFd<'a>>;

/// Relays until the session ends, and says how, and whether it is lost: another endpoint may have it. When the end is not
/// a clean one, the caller resets both connections.
pub(in crate::proxy) async fn relay(
    client: &Watched<'_>,
    upstream: &Watched<'_>,
    limits: Arc<SessionLimits>,
    books: &mut Books,
) -> (End, bool) {
    books.show();
    let relay = books.relay(Instant::now(), limits);
    let mut driver = Driver { client, upstream, relay, resets: None };
    let mut timer = pin!(sleep_until(driver.relay.deadline()));
    let end = poll_fn(|context| {
        let polled = driver.poll(context, timer.as_mut());
        books.account(driver.relay.moved());
        polled
    })
    .await;
    (end, books.lose(&mut driver.relay, end, Instant::now()))
}

struct Driver<'a> {
    client: &'a Watched<'a>,
    upstream: &'a Watched<'a>,
    relay: Relay,
    /// Waits for a reset of a side that is not being read. Made when first needed.
    resets: Option<Resets<'a>>,
}

type Resets<'a> = Pin<Box<dyn Future<Output = Side> + Send + 'a>>;

impl<'a> Driver<'a> {
    fn poll(&mut self, context: &mut Context<'_>, mut timer: Pin<&mut Sleep>) -> Poll<End> {
        let waker = context.waker().clone();
        let (client, upstream) = (self.client, self.upstream);
        let (client, upstream) =
            (Polled { socket: client, waker: &waker }, Polled { socket: upstream, waker: &waker });
        let pair = Pair { client: &client, upstream: &upstream };
        loop {
            let mut turn = self.relay.turn(&pair, Instant::now());
            if turn == Turn::Waiting
                && let Some(dead) = self.failed(context)
            {
                turn = self.relay.reset(dead, &pair, Instant::now());
            }
            match turn {
                Turn::Ended(end) => return Poll::Ready(end),
                // Others first; this task is run again after them.
                Turn::Again => waker.wake_by_ref(),
                Turn::Waiting => {}
            }
            let deadline = self.relay.deadline();
            // The timer is moved only to come sooner; when it comes too soon it is set again. So a busy session
            // costs no timer work.
            if deadline < timer.deadline() {
                timer.as_mut().reset(deadline);
            }
            if timer.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
            if let Some(end) = self.relay.expired(&pair, Instant::now()) {
                return Poll::Ready(end);
            }
            timer.as_mut().reset(self.relay.deadline());
        }
    }

    /// The side that was reset, if it would not be noticed otherwise.
    fn failed(&mut self, context: &mut Context<'_>) -> Option<Side> {
        if !self.relay.overlooks_resets() {
            return None;
        }
        let (client, upstream) = (self.client, self.upstream);
        let resets = self.resets.get_or_insert_with(|| Box::pin(first_reset(client, upstream)));
        let Poll::Ready(dead) = resets.as_mut().poll(context) else {
            return None;
        };
        self.resets = None;
        Some(dead)
    }
}

async fn first_reset(client: &Watched<'_>, upstream: &Watched<'_>) -> Side {
    tokio::select! {
        _ = client.ready(Interest::ERROR) => Side::Client,
        _ = upstream.ready(Interest::ERROR) => Side::Upstream,
    }
}

/// A connection, and whom its readiness wakes.
struct Polled<'a> {
    socket: &'a Watched<'a>,
    waker: &'a Waker,
}

impl AsFd for Polled<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.get_ref().as_fd()
    }
}

impl Socket for Polled<'_> {
    fn readable(&self) -> io::Result<bool> {
        ready(self.socket.poll_read_ready(&mut Context::from_waker(self.waker)))
    }

    fn writable(&self) -> io::Result<bool> {
        ready(self.socket.poll_write_ready(&mut Context::from_waker(self.waker)))
    }

    fn may_be_urgent(&self) -> bool {
        let mut nobody = Context::from_waker(Waker::noop());
        pin!(self.socket.ready(Interest::PRIORITY)).poll(&mut nobody).is_ready()
    }

    fn try_read<T>(&self, anyway: bool, read: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        if anyway { read() } else { self.socket.try_io(Interest::READABLE, |_| read()) }
    }

    fn try_write<T>(&self, write: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        self.socket.try_io(Interest::WRITABLE, |_| write())
    }
}

fn ready<G>(polled: Poll<io::Result<G>>) -> io::Result<bool> {
    match polled {
        // The guard is not used to clear anything: `try_io` does that.
        Poll::Ready(outcome) => outcome.map(|_guard| true),
        Poll::Pending => Ok(false),
    }
}

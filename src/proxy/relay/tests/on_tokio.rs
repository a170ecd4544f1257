//! The cases over tokio.

use std::{io::Write, os::fd::AsFd, sync::Arc, thread, time::Duration};

use tokio::time::Instant;

use super::{Bed, LIMITS, books, bytes, inner, pair, reset};
use crate::{
    proxy::relay::relay,
    state::SessionLimits,
    sys,
    telemetry::{Cause, Side},
};

#[path = "cases.rs"]
mod cases;
#[path = "random.rs"]
mod random;
#[path = "slow_readers.rs"]
mod slow_readers;

/// Must be called within a runtime.
pub(super) fn bed(limits: SessionLimits) -> Bed {
    let (client, proxy_client) = pair();
    let (upstream, proxy_upstream) = pair();
    let relay = tokio::spawn(async move {
        let (mut books, ..) = books();
        let (client, upstream) = (inner(proxy_client), inner(proxy_upstream));
        let both = sys::EVERYTHING;
        let (end, _) = {
            let client = sys::readiness(client.as_fd(), both).unwrap();
            let upstream = sys::readiness(upstream.as_fd(), both).unwrap();
            relay(&client, &upstream, Arc::new(limits), &mut books).await
        };
        let moved = books.moved;
        if end.is_clean() {
            client.close();
            upstream.close();
        }
        (end, moved)
    });
    Bed { client, upstream, relay }
}

fn cpu_of_this_thread() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::try_from(now).unwrap()
}

#[tokio::test]
async fn waiting_for_a_reader_whose_endpoint_is_dead_costs_no_cpu() {
    let mut limits = LIMITS;
    limits.user_timeout = Duration::from_secs(3);
    let Bed { client, upstream, relay } = bed(limits);
    let filler = tokio::task::spawn_blocking(move || {
        upstream.set_nonblocking(true).unwrap();
        let chunk = bytes(65_536, 12);
        let until = Instant::now() + Duration::from_millis(800);
        while Instant::now() < until {
            if (&upstream).write(&chunk).is_err() {
                thread::park_timeout(Duration::from_millis(5));
            }
        }
        reset(upstream);
    });
    filler.await.unwrap();
    let before = cpu_of_this_thread();
    // The client reads nothing: the session ends when patience does.
    let (end, _) = relay.await.unwrap();
    assert_eq!((end.side, end.cause), (Side::Upstream, Cause::Reset));
    let used = cpu_of_this_thread() - before;
    assert!(used < Duration::from_millis(500), "{used:?} of CPU for waiting");
    drop(client);
}

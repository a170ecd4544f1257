//! Watches over unacknowledged bytes. TCP_USER_TIMEOUT ends silent deaths, but would also end a living peer that does not
//! read; for as long as one does not, the timeout is lifted and its answers to window probes are watched instead. The
//! client's socket has its options from the listener; the upstream one gets them here, once the session has lasted.

use std::time::Duration;

use tokio::{net::TcpStream, time::Instant};

use crate::{
    net::{self, Stall},
    state::SessionLimits,
    telemetry::Side,
};

/// A session that has lasted this long gets its upstream connection guarded, at the latest.
const LASTS: Duration = Duration::from_secs(10);

/// What is known of the two sides.
#[derive(Debug)]
pub(super) struct Watch {
    due: Option<Instant>,
    guarded: bool,
    client_lifted: bool,
    upstream_lifted: bool,
}

impl Watch {
    /// A watch over a session that begins now.
    pub(super) fn new(now: Instant, limits: &SessionLimits) -> Self {
        let due = LASTS.min(limits.user_timeout / 3).min(limits.keepalive.idle);
        Self { due: Some(now + due), guarded: false, client_lifted: false, upstream_lifted: false }
    }

    /// When the next look is due.
    pub(super) const fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Bytes were moved: a look is due before the kernel's timeout could strike.
    pub(super) fn moved(&mut self, now: Instant, limits: &SessionLimits) {
        if self.due.is_none() {
            self.due = Some(now + limits.user_timeout / 3);
        }
    }

    /// True when it is time to look.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.due.is_some_and(|due| now >= due)
    }

    /// Looks at both sides. The side that is dead, if one is.
    pub(super) fn look(
        &mut self,
        now: Instant,
        limits: &SessionLimits,
        client: &TcpStream,
        upstream: &TcpStream,
    ) -> Option<Side> {
        if !self.guarded {
            net::guard(upstream, limits.keepalive, limits.user_timeout);
            self.guarded = true;
        }
        let mut waiting = false;
        for (side, stream, lifted) in [
            (Side::Client, client, &mut self.client_lifted),
            (Side::Upstream, upstream, &mut self.upstream_lifted),
        ] {
            match net::stall(stream, limits.user_timeout) {
                Stall::Dead => return Some(side),
                Stall::Reader => {
                    if !*lifted {
                        net::set_user_timeout(stream, None);
                        *lifted = true;
                    }
                    waiting = true;
                }
                Stall::None => {
                    if *lifted {
                        net::set_user_timeout(stream, Some(limits.user_timeout));
                        *lifted = false;
                    }
                    waiting |= net::unsent(stream).is_ok_and(|bytes| bytes > 0);
                }
            }
        }
        // Nothing in flight: nothing to watch until bytes move again.
        self.due = waiting.then(|| now + limits.user_timeout / 3);
        None
    }
}

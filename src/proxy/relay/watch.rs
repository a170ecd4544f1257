//! Watches over unacknowledged bytes. TCP_USER_TIMEOUT ends silent deaths, but would also end a living peer that does not
//! read, one that reads slowly, and an idle one at its first lost keepalive probe. So it is set only while bytes are on their
//! way to a peer whose window was never closed; while it is, its answers to window probes are watched instead, and
//! afterwards its acknowledgements. The client's socket has its keepalive from the listener; the upstream one gets it here,
//! once the session has lasted.

use std::{os::fd::AsFd, time::Duration};

use tokio::time::Instant;

use crate::{
    net::{self, Stall},
    state::SessionLimits,
    telemetry::Side,
};

/// The longest time between movement and the look that follows it. A session that has lasted this long gets its upstream
/// connection guarded.
const LOOK: Duration = Duration::from_secs(10);

/// What is known of the two sides.
#[derive(Debug)]
pub(super) struct Watch {
    due: Option<Instant>,
    guarded: bool,
    client: Guard,
    upstream: Guard,
}

/// How one side is watched.
#[derive(Debug, Default)]
struct Guard {
    /// TCP_USER_TIMEOUT is set on its socket.
    armed: bool,
    /// Looks in a row that have found bytes on their way to it, where the kernel cannot be left to count the time.
    looks: u16,
}

impl Guard {
    /// Takes note of a look. True if the side is dead.
    fn saw<S: AsFd>(&mut self, stall: Stall, stream: &S, timeout: Duration, pause: Duration) -> bool {
        let flight = stall == Stall::Flight;
        if flight != self.armed {
            net::set_user_timeout(stream, flight.then_some(timeout));
            self.armed = flight;
        }
        let Stall::Slow { silent } = stall else {
            self.looks = 0;
            return stall == Stall::Dead;
        };
        // The first one begins the time.
        let passed = pause * u32::from(self.looks);
        self.looks = self.looks.saturating_add(1);
        silent && passed >= timeout
    }
}

/// What a look has shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// Nothing is unacknowledged.
    Quiet,
    /// Something is.
    Waiting,
    /// This side is dead.
    Dead(Side),
}

impl Watch {
    /// A watch over a session that begins now.
    pub(super) fn new(now: Instant, limits: &SessionLimits) -> Self {
        let due = now + pause(limits).min(limits.keepalive.idle);
        Self { due: Some(due), guarded: false, client: Guard::default(), upstream: Guard::default() }
    }

    /// True once it has changed the options of a socket.
    pub(super) const fn has_looked(&self) -> bool {
        self.guarded
    }

    /// When the next look is due.
    pub(super) const fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Bytes were moved: a look is due.
    pub(super) fn moved(&mut self, now: Instant, limits: &SessionLimits) {
        if self.due.is_none() {
            self.due = Some(now + pause(limits));
        }
    }

    /// True when it is time to look.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.due.is_some_and(|due| now >= due)
    }

    /// Looks at both sides.
    pub(super) fn look<S: AsFd>(
        &mut self,
        now: Instant,
        limits: &SessionLimits,
        client: &S,
        upstream: &S,
    ) -> Look {
        if !self.guarded {
            net::guard(upstream, limits.keepalive);
            self.guarded = true;
        }
        let mut seen = Look::Quiet;
        for (side, stream, timeout, guard) in [
            (Side::Client, client, limits.user_timeout, &mut self.client),
            (Side::Upstream, upstream, limits.upstream_timeout, &mut self.upstream),
        ] {
            let stall = net::stall(stream, timeout);
            if guard.saw(stall, stream, timeout, pause(limits)) {
                return Look::Dead(side);
            }
            if stall != Stall::None {
                seen = Look::Waiting;
            }
        }
        // Nothing in flight: nothing to watch until bytes move again.
        self.due = (seen == Look::Waiting).then(|| now + pause(limits));
        seen
    }

    /// Leaves what is still on its way to the kernel, which is to deliver it however long the peer pauses.
    pub(super) fn leave<S: AsFd>(&self, client: &S, upstream: &S) {
        for (stream, guard) in [(client, &self.client), (upstream, &self.upstream)] {
            if guard.armed {
                net::set_user_timeout(stream, None);
            }
        }
    }
}

fn pause(limits: &SessionLimits) -> Duration {
    LOOK.min(limits.user_timeout.min(limits.upstream_timeout) / 3)
}

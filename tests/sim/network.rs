//! What stands behind an endpoint's address and on the way to it, and what that does to dials, probes and bytes.

use std::time::Duration;

use rand::{Rng, RngExt};
use twinspan::telemetry::Cause;

/// When the kernel repeats a SYN that was lost.
const REPEATS: [Duration; 4] =
    [Duration::ZERO, Duration::from_secs(1), Duration::from_secs(3), Duration::from_secs(7)];

/// What an endpoint that cannot be heard any more had sent still arrives for this long.
const ECHO: Duration = Duration::from_millis(300);

/// What is wrong with an endpoint.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Fault {
    /// Nothing.
    None,
    /// The process is gone: dials are refused, and its sessions were reset when it went.
    Refuse,
    /// A firewall rejects: dials fail at once, sessions stand still.
    Reject,
    /// Packets vanish both ways.
    Blackhole,
    /// Packets vanish one way: as before, but bytes that were on their way still come.
    OneWay,
    /// The process stands still: the kernel connects, nobody answers.
    Stopped,
    /// A long path.
    Slow(Duration),
    /// Each packet is lost with this probability.
    Loss(f64),
    /// Only probes vanish.
    Unchecked,
}

/// How a dial ends, and after which time; `None`: never.
pub(crate) type Dial = (Option<Duration>, Result<(), Cause>);

impl Fault {
    /// A dial that begins now, towards an endpoint at this distance.
    pub(crate) fn dial(self, distance: Duration, rng: &mut impl Rng) -> Dial {
        let trip = |distance: Duration, rng: &mut dyn FnMut() -> f64| distance.mul_f64(0.9 + 0.3 * rng());
        let mut draw = || rng.random::<f64>();
        match self {
            Self::None | Self::Stopped | Self::Unchecked => (Some(trip(distance, &mut draw)), Ok(())),
            Self::Slow(distance) => (Some(trip(distance, &mut draw)), Ok(())),
            Self::Refuse => (Some(trip(distance, &mut draw)), Err(Cause::Refused)),
            Self::Reject => (Some(trip(distance, &mut draw)), Err(Cause::Unreachable)),
            Self::Blackhole | Self::OneWay => (None, Err(Cause::TimedOut)),
            Self::Loss(part) => {
                let arrives = (1.0 - part) * (1.0 - part);
                let after = REPEATS.into_iter().find(|_| draw() < arrives);
                (after.map(|after| after + trip(distance, &mut draw)), Ok(()))
            }
        }
    }

    /// A probe that begins now: how it ends and after which time. `answering`: it wants an answer, not only a connection.
    pub(crate) fn probe(
        self,
        distance: Duration,
        timeout: Duration,
        answering: bool,
        rng: &mut impl Rng,
    ) -> (Duration, Result<(), &'static str>) {
        let silent = (timeout, Err("connect: no answer"));
        match self.dial(distance, rng) {
            _ if self == Self::Unchecked => silent,
            (Some(after), Ok(())) if after < timeout && !(answering && self == Self::Stopped) => {
                (after, Ok(()))
            }
            (Some(after), Err(cause)) if after < timeout => (after, Err(cause.as_str())),
            _ => silent,
        }
    }

    /// True when a dial cannot lead to a session that is served.
    pub(crate) const fn is_dead(self) -> bool {
        matches!(self, Self::Refuse | Self::Reject | Self::Blackhole | Self::OneWay | Self::Stopped)
    }

    /// True when it is dead, and nothing says so.
    pub(crate) const fn is_silent(self) -> bool {
        matches!(self, Self::Blackhole | Self::OneWay | Self::Stopped)
    }

    /// True when its sessions move bytes towards clients, `since` it is so.
    pub(crate) fn flows(self, since: Duration) -> bool {
        !self.is_dead() || (self == Self::OneWay && since < ECHO)
    }

    /// Time from a request to the first byte of the answer.
    pub(crate) fn answer(self, distance: Duration, rng: &mut impl Rng) -> Duration {
        let distance = if let Self::Slow(distance) = self { distance } else { distance };
        distance + Duration::from_micros(rng.random_range(500..8000))
    }
}

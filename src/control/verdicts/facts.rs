//! What the judge is told, and what it tells when asked.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{
    config::{Domain, Ejection, Restraint},
    control::health::Verdict,
    ids::{CloudName, EndpointKey, PoolName},
    state::HistogramReading,
};

/// A pool as the judge sees it.
#[derive(Clone, Debug)]
pub struct PoolFacts {
    /// Its name.
    pub name: PoolName,
    /// Its endpoints, names resolved.
    pub members: Vec<MemberFacts>,
    /// False: nobody probes it, and its endpoints are in from the start.
    pub probed: bool,
    /// How long an endpoint that comes back gets less than its weight; zero is off.
    pub slow_start: Duration,
    /// How long a session may be silent before it counts as good for that. Above the pool's `first_byte_timeout`, if
    /// it has one; otherwise [`PATIENCE`].
    pub patience: Duration,
    /// What ejects.
    pub ejection: Ejection,
    /// What restrains.
    pub restraint: Restraint,
}

/// The usual [`PoolFacts::patience`].
pub const PATIENCE: Duration = Duration::from_secs(5);

/// An endpoint of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberFacts {
    /// Which one.
    pub key: EndpointKey,
    /// Where it stands.
    pub cloud: CloudName,
    /// Its weight, as configured.
    pub weight: u32,
}

/// A cloud as the judge sees it.
#[derive(Clone, Debug)]
pub struct CloudFacts {
    /// Its name.
    pub name: CloudName,
    /// When it is down, and how it comes back.
    pub domain: Domain,
}

/// What the cell of an endpoint has counted since it was made.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reading {
    /// Sessions that were connected.
    pub connected: u64,
    /// Sessions that had their first byte of it.
    pub heard: u64,
    /// Attempts that failed.
    pub failed: u64,
    /// Attempts that were still pending when another endpoint had connected.
    pub overtaken: u64,
    /// Sessions that the endpoint ended before its first byte, though the client had sent something.
    pub empty: u64,
    /// Sessions that had no first byte in time.
    pub mute: u64,
    /// Bytes from the endpoint to clients.
    pub to_client: u64,
    /// Live sessions, now.
    pub active: u64,
    /// Times to connect.
    pub connect: HistogramReading,
}

/// What holds of an endpoint: opinions of probes and sessions, restraint and its cloud taken together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// No probe has been good yet, and none bad: used while nothing else is in.
    New,
    /// It may be used.
    In {
        /// Since when.
        since: Instant,
    },
    /// It may not.
    Out {
        /// Why.
        reason: Arc<str>,
        /// When it may be tried again, if that is known.
        until: Option<Instant>,
    },
    /// One session at a time may try it.
    Trial,
}

/// What holds of a cloud.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CloudStanding {
    /// Its endpoints are judged one by one.
    Up,
    /// It is down as a whole. A pool that would have nothing else keeps it nevertheless.
    Down {
        /// Since when.
        since: Instant,
        /// Why.
        evidence: Arc<str>,
    },
    /// It comes back.
    Recovering {
        /// The share of its usual new sessions that it gets.
        percent: u32,
    },
}

/// Why an endpoint that is held for bad stays in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kept {
    /// Bytes of live sessions speak against its probes.
    Contradicted,
    /// Probes as a whole are not believed now.
    Frozen,
    /// Probes have removed as much as they may within a minute.
    Velocity,
    /// The pool would fall below its floor.
    Floor,
    /// The pool has as many ejected as it may.
    Cap,
    /// Its cloud is down, but the pool has no other; or it is the last one of the only cloud that bytes come from.
    LastCloud,
    /// What it was held for bad for is over, but not long enough.
    Lately,
}

impl Kept {
    /// The reason in words, to follow `kept: `.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Contradicted => "sessions still move bytes",
            Self::Frozen => "probes are not believed now",
            Self::Velocity => "as much is removed already as probes may remove within a minute",
            Self::Floor => "the pool would fall below its floor",
            Self::Cap => "as much is ejected already as may be",
            Self::LastCloud => "the pool has no other cloud that serves",
            Self::Lately => "it was bad a moment ago",
        }
    }
}

/// Everything that explains the standing of an endpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct Explanation {
    /// Its standing.
    pub standing: Standing,
    /// What probes say.
    pub probes: Verdict,
    /// Why they do.
    pub probe_reason: Arc<str>,
    /// Failed sessions since the last good one.
    pub consecutive_failures: u32,
    /// Attempts of the last ten seconds.
    pub attempts: u64,
    /// Those of them that failed.
    pub failures: u64,
    /// The connect time that one of twenty exceeds, of late.
    pub connect_p95: Option<Duration>,
    /// Ejections that count for the next back-off.
    pub ejections: u32,
    /// Ejections ever.
    pub ejections_total: u64,
    /// When the back-off is over.
    pub back_off_until: Option<Instant>,
    /// Returns from being down within the last ten minutes.
    pub flaps: u32,
    /// Returns ever.
    pub flaps_total: u64,
    /// When good probes have lasted long enough, while that is awaited.
    pub readmission_at: Option<Instant>,
    /// True while sessions have failed too.
    pub corroborated: bool,
    /// True while bytes speak against its probes.
    pub contradicted: bool,
    /// Why it stays in use though it is held for bad.
    pub kept: Option<Kept>,
    /// All of it in one sentence.
    pub reason: Arc<str>,
}

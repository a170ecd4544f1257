//! What the judge says of a decision: one finding for each thing that is now otherwise, with its evidence.

use std::{collections::HashSet, net::SocketAddr};

use crate::ids::{CloudName, PoolName};

/// What follows from everything observed so far.
#[derive(Clone, Debug, Default)]
pub struct Decision {
    /// Pools whose routing is no longer what it was.
    pub dirty: HashSet<PoolName>,
    /// What is otherwise now; all of it belongs to one generation.
    pub findings: Vec<Finding>,
}

/// Something is otherwise now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Its kind.
    pub kind: FindingKind,
    /// The pool it is about, if it is about one.
    pub pool: Option<PoolName>,
    /// The endpoint it is about, if it is about one.
    pub endpoint: Option<SocketAddr>,
    /// The cloud it is about, or that the endpoint stands in.
    pub cloud: Option<CloudName>,
    /// What was: the `after` of the finding before about the same.
    pub before: String,
    /// What is.
    pub after: String,
    /// Why, for people. Never empty.
    pub evidence: String,
}

/// The kinds of findings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FindingKind {
    /// Probes took an endpoint out, or found it at first; without an endpoint: a pool has lost everything, or has
    /// something again.
    Verdict,
    /// Sessions took an endpoint out.
    Ejection,
    /// An endpoint is used again.
    Readmission,
    /// One session at a time may try an endpoint, or has tried it in vain before its back-off was over.
    Trial,
    /// A cloud is down as a whole.
    Cloud,
    /// A cloud comes back: the share that it gets, or that it has all of it.
    Recovery,
    /// Probes are not believed: they remove nothing more.
    Freeze,
    /// They are believed again.
    Thaw,
    /// An endpoint is held for bad but stays in use, or no longer is.
    Kept,
}

impl FindingKind {
    /// The word in the journal.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Verdict => "verdict",
            Self::Ejection => "ejection",
            Self::Readmission => "readmission",
            Self::Trial => "trial",
            Self::Cloud => "cloud",
            Self::Recovery => "recovery",
            Self::Freeze => "freeze",
            Self::Thaw => "thaw",
            Self::Kept => "kept",
        }
    }
}

//! What the judge makes of endpoints and clouds, as people are shown it.

use std::{sync::Arc, time::SystemTime};

use super::verdicts::Kept;
use crate::ids::CloudName;

/// A cloud, judged as a whole.
#[derive(Clone, Debug)]
pub struct CloudView {
    /// Its name.
    pub name: CloudName,
    /// What holds of it.
    pub verdict: CloudVerdict,
}

/// What holds of a cloud as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CloudVerdict {
    /// Its endpoints are judged one by one.
    Up,
    /// It is down.
    Down {
        /// Since when.
        since: SystemTime,
        /// Why: `6 of 6 endpoints: 4 refuse, 2 silent`.
        evidence: Arc<str>,
    },
    /// It comes back.
    Recovering {
        /// The part of its usual new sessions that it gets, in percent.
        percent: u32,
    },
}

impl CloudVerdict {
    /// The word in the API and in `status`.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Down { .. } => "down",
            Self::Recovering { .. } => "recovering",
        }
    }
}

/// What holds of an endpoint, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judged {
    /// Its standing.
    pub standing: Word,
    /// Why, in one sentence.
    pub reason: Arc<str>,
    /// When it may be tried or used again, if it is out and that is known.
    pub until: Option<SystemTime>,
    /// Why it is not removed though it is held for bad.
    pub kept: Option<Kept>,
    /// How often sessions have taken it out.
    pub ejections: u64,
    /// How often its probes were good again after they had been bad.
    pub flaps: u64,
    /// Failed sessions since the last good one.
    pub row: u32,
    /// Attempts of the last ten seconds.
    pub attempts: u64,
    /// Those of them that failed.
    pub failures: u64,
}

/// A standing in one word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Word {
    /// It may be used.
    In,
    /// It may be used though it is held for bad.
    Kept,
    /// It may not be used.
    Out,
    /// One session at a time may try it.
    Trial,
    /// No probe has been good yet, and none bad.
    #[default]
    New,
}

impl Word {
    /// Every word.
    pub const ALL: [Self; 5] = [Self::In, Self::Kept, Self::Out, Self::Trial, Self::New];

    /// The word in the API, in `status` and in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::In => "in",
            Self::Kept => "kept",
            Self::Out => "out",
            Self::Trial => "trial",
            Self::New => "new",
        }
    }
}

/// The word for what keeps an endpoint in, in the API and in metrics.
#[must_use]
pub const fn kept_word(kept: Kept) -> &'static str {
    match kept {
        Kept::Contradicted => "contradicted",
        Kept::Frozen => "frozen",
        Kept::Velocity => "velocity",
        Kept::Floor => "floor",
        Kept::Cap => "cap",
        Kept::LastCloud => "last_cloud",
        Kept::Lately => "lately",
    }
}

impl Default for Judged {
    fn default() -> Self {
        Self {
            standing: Word::default(),
            reason: Arc::from("not judged yet"),
            until: None,
            kept: None,
            ejections: 0,
            flaps: 0,
            row: 0,
            attempts: 0,
            failures: 0,
        }
    }
}

//! Who answers. Each endpoint has a probe loop and a verdict; a verdict that changes goes to the reconciler.
//!
//! `probe` asks an endpoint once, `verdict` draws the conclusions, `supervisor` keeps a loop for each endpoint.

mod probe;
mod supervisor;
mod verdict;

pub use probe::{Manner, Secure};
pub use supervisor::{Health, HealthHandle, Target};
pub use verdict::{Judge, Pace, Turn};

/// The opinion about an endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// No probe has ended yet. Used only while no sibling is up.
    #[default]
    Unknown,
    /// It answers, or nobody asks it.
    Up,
    /// It does not.
    Down,
}

impl Verdict {
    /// The word in logs and in `status`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Up => "up",
            Self::Down => "down",
        }
    }
}

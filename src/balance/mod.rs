//! The arithmetic of choice: pure, without I/O, clock or names of ours. The random source is passed in.

mod maglev;
mod shares;

pub use maglev::Maglev;
pub use shares::Shares;

/// How an endpoint is chosen within a group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Balance {
    /// Two endpoints drawn by weight; the one with fewer sessions per weight wins (Mitzenmacher, "The Power of Two
    /// Choices in Randomized Load Balancing", 2001).
    #[default]
    LeastSessions,
    /// Two endpoints drawn by weight; the one with the smaller connect time times sessions wins.
    LeastLatency,
    /// Each in turn, by weight.
    RoundRobin,
    /// Drawn by weight.
    Random,
    /// By the client's address (Maglev).
    SourceHash,
}

impl Balance {
    /// The word in config and `status`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::LeastSessions => "least-sessions",
            Self::LeastLatency => "least-latency",
            Self::RoundRobin => "round-robin",
            Self::Random => "random",
            Self::SourceHash => "source-hash",
        }
    }
}

/// The load of an endpoint, for a choice between two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// Sessions now.
    pub active: u64,
    /// Usual connect time in nanoseconds; 1 where it does not count.
    pub latency: u64,
    /// Weight, at least 1.
    pub weight: u32,
}

/// True when `a` carries less than `b`, weight considered: (active + 1) x latency / weight, without the division.
#[must_use]
pub fn lighter(a: Load, b: Load) -> bool {
    let cost = |x: Load, other: Load| {
        u128::from(x.active + 1) * u128::from(x.latency.max(1)) * u128::from(other.weight.max(1))
    };
    cost(a, b) < cost(b, a)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lighter_load_counts_sessions_per_weight() {
        let load = |active, weight| Load { active, latency: 1, weight };
        assert!(lighter(load(1, 1), load(2, 1)));
        assert!(!lighter(load(1, 1), load(1, 1)));
        assert!(lighter(load(3, 10), load(1, 1)), "4/10 is less than 2/1");
        assert!(lighter(
            Load { active: 5, latency: 2, weight: 1 },
            Load { active: 0, latency: 30, weight: 1 }
        ));
    }
}

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
    /// What it carries: sessions, or sessions times connect time.
    pub cost: u64,
    /// Weight, at least 1.
    pub weight: u32,
}

/// True when `a` carries less than `b` for its weight. Two that carry nothing are equal: then the draw by weight decides,
/// or a heavier endpoint would get everything while there is little to do.
#[must_use]
pub fn lighter(a: Load, b: Load) -> bool {
    let scaled = |x: Load, other: Load| u128::from(x.cost) * u128::from(other.weight.max(1));
    scaled(a, b) < scaled(b, a)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lighter_load_counts_cost_per_weight() {
        let load = |cost, weight| Load { cost, weight };
        assert!(lighter(load(1, 1), load(2, 1)));
        assert!(!lighter(load(1, 1), load(1, 1)));
        assert!(lighter(load(3, 10), load(1, 1)), "3/10 is less than 1/1");
        assert!(!lighter(load(0, 3), load(0, 1)) && !lighter(load(0, 1), load(0, 3)));
    }
}

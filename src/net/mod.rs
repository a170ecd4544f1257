//! Sockets: how they are bound, dialled and ended, with every option in one place. Knows nothing of routing.

mod abilities;
mod dial;
mod intercept;
mod listen;
mod options;

pub use abilities::Abilities;
pub use dial::{
    Stall, begin, dial, end_of_stream, guard, met_itself, reset_on_close, set_nodelay, set_user_timeout,
    stall, take_error, waiting,
};
pub use intercept::Intercept;
pub use listen::{Listen, bind_hint, listen, reapply};
pub use options::{Dscp, Outgoing, RefusedOption, Tuning, serves_fast_open};

use std::{fmt, net::SocketAddr, time::Duration};

/// An address to accept on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Bind {
    /// Address and port.
    pub address: SocketAddr,
    /// For an IPv6 address: accept no IPv4 clients. `[::]` without it is dual-stack.
    pub only_v6: bool,
}

/// TCP keepalive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Keepalive {
    /// Silence before the first probe, whole seconds, at least 1 s.
    pub idle: Duration,
    /// Time between probes, whole seconds, at least 1 s.
    pub interval: Duration,
    /// Unanswered probes before the peer counts as dead, 1 to 127.
    pub count: u32,
}

impl Bind {
    /// True when one socket cannot be bound while the other is: the same port on the same or a wildcard address.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        if self.address.port() != other.address.port() || self.address.port() == 0 {
            return false;
        }
        let (a, b) = (self.address.ip().to_canonical(), other.address.ip().to_canonical());
        a == b || self.covers(b) || other.covers(a)
    }

    /// True when this is a wildcard that takes in `ip`.
    #[must_use]
    pub fn covers(&self, ip: std::net::IpAddr) -> bool {
        self.address.ip().is_unspecified()
            && match self.address {
                SocketAddr::V4(_) => ip.is_ipv4(),
                SocketAddr::V6(_) => ip.is_ipv6() || !self.only_v6,
            }
    }
}

impl fmt::Display for Bind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.address.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bind(address: &str, only_v6: bool) -> Bind {
        Bind { address: address.parse().unwrap(), only_v6 }
    }

    #[test]
    fn wildcards_overlap_what_they_take_in() {
        assert!(bind("0.0.0.0:80", false).overlaps(&bind("127.0.0.1:80", false)));
        assert!(bind("[::]:80", false).overlaps(&bind("0.0.0.0:80", false)));
        assert!(bind("[::]:80", false).overlaps(&bind("10.0.0.1:80", false)));
        assert!(!bind("[::]:80", true).overlaps(&bind("0.0.0.0:80", false)));
        assert!(!bind("127.0.0.1:80", false).overlaps(&bind("127.0.0.1:81", false)));
        assert!(!bind("127.0.0.1:80", false).overlaps(&bind("127.0.0.2:80", false)));
        assert!(bind("[::ffff:127.0.0.1]:80", false).overlaps(&bind("127.0.0.1:80", false)));
    }
}

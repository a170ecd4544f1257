//! Sockets: how they are bound, dialled and ended, with every option in one place. Knows nothing of routing.

mod abilities;
mod dial;
mod intercept;
mod listen;
mod options;

pub use abilities::Abilities;
pub use dial::{
    Stall, acknowledge, again, begin, begin_as, dial, dissolve, end_of_stream, guard, has_timestamps,
    met_itself, reset_on_close, set_nodelay, set_user_timeout, stall, take_error, waiting,
};
pub use intercept::{Intercept, try_transparent};
pub use listen::{Listen, Missing, bind_hint, listen, missing, reapply};
pub use options::{Dscp, Outgoing, RefusedOption, Tuning, serves_fast_open};

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    time::Duration,
};

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
    pub fn covers(&self, ip: IpAddr) -> bool {
        self.address.ip().is_unspecified()
            && match self.address {
                SocketAddr::V4(_) => ip.is_ipv4(),
                SocketAddr::V6(_) => ip.is_ipv6() || !self.only_v6,
            }
    }
}

impl Bind {
    /// True when who dials `address` on this machine ends up here.
    #[must_use]
    pub fn is_reached_by(&self, address: SocketAddr) -> bool {
        self.is_reached_if(address, is_this_machine)
    }

    fn is_reached_if(&self, address: SocketAddr, is_here: impl Fn(IpAddr) -> bool) -> bool {
        if self.address.port() != address.port() {
            return false;
        }
        let bound = self.address.ip().to_canonical();
        let ip = match address.ip().to_canonical() {
            // Who dials no address dials this machine.
            IpAddr::V4(Ipv4Addr::UNSPECIFIED) => IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(Ipv6Addr::UNSPECIFIED) => IpAddr::V6(Ipv6Addr::LOCALHOST),
            ip => ip,
        };
        bound == ip || self.covers(ip) && (ip.is_loopback() || is_here(ip))
    }
}

/// True if `ip` is an address of this machine: then the kernel would send to it from itself. Nothing is sent.
#[must_use]
pub fn is_this_machine(ip: IpAddr) -> bool {
    let any: IpAddr = if ip.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let source = || {
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect((ip, 9))?;
        socket.local_addr()
    };
    source().is_ok_and(|source| source.ip() == ip)
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

    #[test]
    fn a_wildcard_is_reached_by_the_addresses_of_this_machine_only() {
        let here = |ip: IpAddr| ip == IpAddr::from([10, 0, 0, 7]);
        let reached = |address: &str, only_v6, dialled: &str| {
            bind(address, only_v6).is_reached_if(dialled.parse().unwrap(), here)
        };
        assert!(reached("0.0.0.0:80", false, "10.0.0.7:80"));
        assert!(reached("[::]:80", false, "10.0.0.7:80"));
        assert!(reached("[::]:80", false, "[::ffff:10.0.0.7]:80"));
        assert!(reached("0.0.0.0:80", false, "127.0.0.9:80"));
        assert!(reached("10.0.0.8:80", false, "10.0.0.8:80"));
        for listener in ["0.0.0.0:80", "127.0.0.1:80", "[::]:80"] {
            assert!(reached(listener, false, "0.0.0.0:80"), "{listener}");
        }
        assert!(reached("[::1]:80", false, "[::]:80"));
        assert!(!reached("10.0.0.8:80", false, "0.0.0.0:80"));
        assert!(!reached("[::]:80", true, "10.0.0.7:80"));
        assert!(!reached("0.0.0.0:80", false, "10.0.0.7:81"));
        assert!(!reached("0.0.0.0:80", false, "10.0.0.8:80"));
        assert!(!reached("127.0.0.1:80", false, "10.0.0.7:80"));
    }
}

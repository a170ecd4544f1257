//! Connections that a firewall rule sends here on their way to others.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::AsFd,
};

use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::options;

/// How connections come that were meant for other addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Intercept {
    /// Not at all.
    #[default]
    Off,
    /// By a REDIRECT rule: the kernel knows the original destination (SO_ORIGINAL_DST).
    Redirect,
    /// By a TPROXY rule: the local address is the original destination (IP_TRANSPARENT).
    Tproxy,
}

impl Intercept {
    /// What the client of this accepted connection has asked for: where nothing was redirected, the address that it has
    /// come to. An IPv4 address comes without IPv6 clothes. `None` only where the connection is gone.
    #[must_use]
    pub fn destination(self, accepted: impl AsFd) -> Option<SocketAddr> {
        let socket = SockRef::from(&accepted);
        let here = canonical(socket.local_addr().ok()?.as_socket()?);
        if self != Self::Redirect {
            return Some(here);
        }
        // A socket of IPv6 may carry an IPv4 connection, whose translation only the IPv4 side of the kernel knows.
        let asked = match here.is_ipv4() {
            true => socket.original_dst_v4(),
            false => socket.original_dst_v6(),
        };
        // The kernel knows of no translation where no rule needs connections tracked, or of none of this one.
        Some(asked.ok().and_then(|asked| asked.as_socket()).map_or(here, canonical))
    }
}

/// An address as it is on the wire. One of IPv6 keeps its scope.
fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        ip @ IpAddr::V4(_) => SocketAddr::new(ip, address.port()),
        IpAddr::V6(_) => address,
    }
}

/// Finds out whether this process may accept for addresses, and connect from addresses, that this machine does not have.
///
/// # Errors
/// What the kernel said: the process has neither CAP_NET_RAW nor CAP_NET_ADMIN.
pub fn try_transparent() -> io::Result<()> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    options::transparent(&socket, false)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_connection_that_nobody_redirected_asked_for_where_it_came_to() {
        for bind in ["127.0.0.1:0", "[::1]:0", "[::]:0"] {
            let Ok(listener) = TcpListener::bind(bind) else { continue }; // a machine without IPv6
            let mut address = listener.local_addr().unwrap();
            if address.ip().is_unspecified() {
                address.set_ip([127, 0, 0, 1].into());
            }
            let _client = TcpStream::connect(address).unwrap();
            let (accepted, _) = listener.accept().unwrap();
            for how in [Intercept::Off, Intercept::Redirect, Intercept::Tproxy] {
                let asked = how.destination(&accepted).unwrap();
                assert_eq!((asked.ip(), asked.port()), (address.ip(), address.port()));
            }
        }
    }
}

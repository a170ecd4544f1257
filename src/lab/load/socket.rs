//! Sockets of the load.

use std::{io, net::SocketAddr};

use rustix::{
    fd::{AsFd, OwnedFd},
    io::Errno,
    net::{AddressFamily, RecvFlags, SocketFlags, SocketType, connect as start, recv, socket_with, sockopt},
};

use super::poll::ready;

/// Starts a connect that does not block.
pub(super) fn connect(to: SocketAddr) -> Result<OwnedFd, Errno> {
    let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC, None)?;
    sockopt::set_tcp_nodelay(&socket, true)?;
    match start(&socket, &to) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(error) => Err(error),
    }
}

/// Takes bytes off a socket without copying them (MSG_TRUNC on TCP), so that a bulk transfer measures what is between
/// and not this end. `None`: nothing there; 0: the end.
pub(super) fn swallow(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    ready(recv(socket, buffer, RecvFlags::TRUNC).map(|(_, all)| all).map_err(io::Error::from))
}

//! Dialling an endpoint, and ending a connection by reset.

use std::{io, net::SocketAddr, time::Duration};

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::{TcpSocket, TcpStream};

use super::{Keepalive, listen::keepalive as tcp_keepalive};

/// Connects to `address` with the session's socket options. The caller sets the deadline.
///
/// # Errors
/// What the kernel said: refused, unreachable, or a shortage on this machine (descriptors, local ports).
pub async fn dial(
    address: SocketAddr,
    keepalive: Keepalive,
    user_timeout: Duration,
) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&tcp_keepalive(keepalive))?;
    socket.set_tcp_user_timeout(Some(user_timeout))?;
    TcpSocket::from_std_stream(socket.into()).connect(address).await
}

/// Makes the coming close of `stream` a reset: what was not yet sent is dropped, and the peer learns of the loss.
pub fn reset_on_close(stream: &TcpStream) {
    // Fails only on a socket that is gone already.
    drop(SockRef::from(stream).set_linger(Some(Duration::ZERO)));
}

/// Bytes written to `stream` that its peer has not acknowledged yet.
///
/// # Errors
/// What the kernel said.
pub fn unsent(stream: &TcpStream) -> io::Result<usize> {
    crate::sys::unsent(stream)
}

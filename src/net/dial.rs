//! Dialling an endpoint, and what can be asked of or done to an established connection.

use std::{io, net::SocketAddr, os::fd::AsFd, time::Duration};

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::{TcpSocket, TcpStream};

use super::{Keepalive, listen::keepalive as tcp_keepalive};

/// The lowest port that the kernel dials from (`ip_local_port_range`, as it comes).
const EPHEMERAL: u16 = 32_768;

/// Connects to `address`, without Nagle's algorithm. The caller sets the deadline, and calls [`guard`] on a connection that
/// lasts: most sessions are over before keepalive could matter, and need not pay for setting it.
///
/// # Errors
/// What the kernel said: refused, unreachable, or a shortage on this machine (descriptors, local ports).
pub async fn dial(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_tcp_nodelay(true)?;
    let stream = TcpSocket::from_std_stream(socket.into()).connect(address).await?;
    // Where nobody listens on a port from which this machine dials, a connect can meet itself (simultaneous open).
    if address.ip().is_loopback() && address.port() >= EPHEMERAL && stream.local_addr()? == address {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    Ok(stream)
}

/// Has the kernel ask a silent peer whether it is there.
pub fn guard(stream: &impl AsFd, keepalive: Keepalive) {
    // Fails only on a socket that is gone already.
    drop(SockRef::from(stream).set_tcp_keepalive(&tcp_keepalive(keepalive)));
}

/// Makes the coming close of `stream` a reset: what was not yet sent is dropped, and the peer learns of the loss.
pub fn reset_on_close(stream: &impl AsFd) {
    // Fails only on a socket that is gone already.
    drop(SockRef::from(stream).set_linger(Some(Duration::ZERO)));
}

/// The error that the kernel holds for `stream`, which it tells once.
#[must_use]
pub fn take_error(stream: &impl AsFd) -> Option<io::Error> {
    SockRef::from(stream).take_error().ok().flatten()
}

/// Tells the peer that nothing more comes; it may go on sending.
///
/// # Errors
/// What the kernel said: the connection is gone.
pub fn end_of_stream(stream: &impl AsFd) -> io::Result<()> {
    SockRef::from(stream).shutdown(std::net::Shutdown::Write)
}

/// Bytes written to `stream` that its peer may still acknowledge: none on a connection that is over.
#[must_use]
pub fn waiting(stream: &impl AsFd) -> usize {
    match crate::sys::unsent(stream) {
        Ok(bytes) if bytes > 0 && !crate::sys::progress(stream).is_ok_and(|peer| peer.closed) => bytes,
        _ => 0,
    }
}

/// What a peer with unacknowledged bytes is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stall {
    /// Nothing is unacknowledged.
    None,
    /// Bytes are on their way to it.
    Flight,
    /// It answers, and reads nothing: its window is closed.
    Reader,
    /// It has answered nothing for `user_timeout`.
    Dead,
}

/// Tells a peer that does not read from one that is gone.
///
/// The kernel's TCP_USER_TIMEOUT makes no such difference: it also ends a connection whose peer answers every window
/// probe and merely does not read (tcp_probe_timer in net/ipv4/tcp_timer.c), such as a database client in a pager.
#[must_use]
pub fn stall(stream: &impl AsFd, user_timeout: Duration) -> Stall {
    if !crate::sys::unsent(stream).is_ok_and(|bytes| bytes > 0) {
        return Stall::None;
    }
    match crate::sys::progress(stream) {
        Ok(peer) if peer.closed => Stall::None,
        Ok(peer) if peer.window_closed && peer.unanswered >= 3 && peer.last_ack >= user_timeout => {
            Stall::Dead
        }
        Ok(peer) if peer.window_closed => Stall::Reader,
        _ => Stall::Flight,
    }
}

/// Sets TCP_USER_TIMEOUT; `None` is the kernel's default of about 15 minutes.
pub fn set_user_timeout(stream: &impl AsFd, timeout: Option<Duration>) {
    // Fails only on a socket that is gone already.
    drop(SockRef::from(stream).set_tcp_user_timeout(Some(timeout.unwrap_or_default())));
}

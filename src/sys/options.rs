//! Socket options that take an integer and that no library offers.
#![expect(unsafe_code, reason = "these options have no safe wrapper")]

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
};

/// `IP_BIND_ADDRESS_NO_PORT`: a bind to port 0 leaves the choice of the port to the connect (ip(7)).
///
/// # Errors
/// What the kernel said.
pub fn set_bind_address_no_port(socket: impl AsFd, on: bool) -> io::Result<()> {
    set(socket, libc::SOL_IP, libc::IP_BIND_ADDRESS_NO_PORT, on.into())
}

/// `TCP_FASTOPEN_CONNECT`: the connect sends nothing yet, the first write does (tcp(7)).
///
/// # Errors
/// What the kernel said.
pub fn set_fast_open_connect(socket: impl AsFd, on: bool) -> io::Result<()> {
    set(socket, libc::SOL_TCP, libc::TCP_FASTOPEN_CONNECT, on.into())
}

/// What [`set_bind_address_no_port`] has set.
///
/// # Errors
/// What the kernel said.
#[cfg(test)]
pub fn bind_address_no_port(socket: impl AsFd) -> io::Result<bool> {
    get(socket, libc::SOL_IP, libc::IP_BIND_ADDRESS_NO_PORT).map(|on| on != 0)
}

/// What [`set_fast_open_connect`] has set.
///
/// # Errors
/// What the kernel said.
#[cfg(test)]
pub fn fast_open_connect(socket: impl AsFd) -> io::Result<bool> {
    get(socket, libc::SOL_TCP, libc::TCP_FASTOPEN_CONNECT).map(|on| on != 0)
}

/// `TCP_FASTOPEN` of a listening socket: the length of its queue, 0 for off (tcp(7)).
///
/// # Errors
/// What the kernel said.
pub fn set_fast_open(socket: impl AsFd, queue: u32) -> io::Result<()> {
    set(socket, libc::SOL_TCP, libc::TCP_FASTOPEN, libc::c_int::try_from(queue).unwrap_or(libc::c_int::MAX))
}

/// What [`set_fast_open`] has set.
///
/// # Errors
/// What the kernel said.
pub fn fast_open(socket: impl AsFd) -> io::Result<u32> {
    get(socket, libc::SOL_TCP, libc::TCP_FASTOPEN).map(|queue| u32::try_from(queue).unwrap_or_default())
}

/// `SO_BUF_LOCK` of include/uapi/asm-generic/socket.h (Linux 5.14): who decides on the sizes of buffers.
const SO_BUF_LOCK: libc::c_int = 72;

/// Which of a socket's buffers keep their size. The kernel adapts the others to the connection.
///
/// # Errors
/// What the kernel said.
pub fn set_fixed_buffers(socket: impl AsFd, send: bool, receive: bool) -> io::Result<()> {
    set(socket, libc::SOL_SOCKET, SO_BUF_LOCK, libc::c_int::from(send) | libc::c_int::from(receive) << 1)
}

/// Which of a socket's buffers keep their size: the send buffer, the receive buffer.
///
/// # Errors
/// What the kernel said.
pub fn fixed_buffers(socket: impl AsFd) -> io::Result<(bool, bool)> {
    get(socket, libc::SOL_SOCKET, SO_BUF_LOCK).map(|bits| (bits & 1 != 0, bits & 2 != 0))
}

fn set(socket: impl AsFd, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let descriptor = socket.as_fd().as_raw_fd();
    let length = libc::socklen_t::try_from(size_of::<libc::c_int>()).unwrap_or_default();
    // SAFETY: the descriptor is open for as long as it is borrowed, and the kernel reads one int.
    let result = unsafe { libc::setsockopt(descriptor, level, name, (&raw const value).cast(), length) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn get(socket: impl AsFd, level: libc::c_int, name: libc::c_int) -> io::Result<libc::c_int> {
    let mut value: libc::c_int = 0;
    let mut length = libc::socklen_t::try_from(size_of::<libc::c_int>()).unwrap_or_default();
    let descriptor = socket.as_fd().as_raw_fd();
    // SAFETY: the kernel writes at most `length` bytes into `value`, an int.
    let result =
        unsafe { libc::getsockopt(descriptor, level, name, (&raw mut value).cast(), &raw mut length) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(value) }
}

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

fn set(socket: impl AsFd, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let descriptor = socket.as_fd().as_raw_fd();
    let length = libc::socklen_t::try_from(size_of::<libc::c_int>()).unwrap_or_default();
    // SAFETY: the descriptor is open for as long as it is borrowed, and the kernel reads one int.
    let result = unsafe { libc::setsockopt(descriptor, level, name, (&raw const value).cast(), length) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

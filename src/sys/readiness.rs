//! Readiness of a descriptor that somebody else owns, in tokio.
#![expect(unsafe_code, reason = "registering a descriptor asks for a promise about its owner")]

use std::{io, os::fd::BorrowedFd};

use tokio::io::{Interest, unix::AsyncFd};

/// What a session wants to know of a connection.
pub const EVERYTHING: Interest = Interest::READABLE.add(Interest::WRITABLE).add(Interest::PRIORITY);

/// Registers a non-blocking descriptor with the runtime for as long as the borrow lasts.
///
/// # Errors
/// What the kernel said: memory or epoll watches ran out, or the descriptor cannot be watched.
pub fn readiness(descriptor: BorrowedFd<'_>, interest: Interest) -> io::Result<AsyncFd<BorrowedFd<'_>>> {
    // SAFETY: a borrowed descriptor is open and stays the same one for the whole life of the borrow.
    let registered = unsafe { AsyncFd::register_with_interest(descriptor, interest) };
    Ok(registered?)
}

//! One side's connection, as its session owns it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::net;

/// A connected socket. It ends by reset unless the session ran its course: a peer must never take a loss, a panic or a
/// shutdown for a clean end.
#[derive(Debug)]
pub(super) struct Peer {
    socket: OwnedFd,
    clean: bool,
}

impl Peer {
    pub(super) const fn new(socket: OwnedFd) -> Self {
        Self { socket, clean: false }
    }

    /// A connection over which no session has begun: it ends in order, as nobody takes its end for a loss.
    pub(super) const fn unused(socket: OwnedFd) -> Self {
        Self { socket, clean: true }
    }

    /// A session begins on it.
    pub(super) const fn begin(&mut self) {
        self.clean = false;
    }

    /// Closes it in order: what the kernel still holds is delivered.
    pub(super) fn close(mut self) {
        self.clean = true;
    }
}

impl AsFd for Peer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        if !self.clean {
            net::reset_on_close(&self.socket);
        }
    }
}

//! One side's connection, as its session owns it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::ourselves::Known;
use crate::net;

/// A connected socket. It ends by reset unless the session ran its course: a peer must never take a loss, a panic or a
/// shutdown for a clean end.
#[derive(Debug)]
pub(super) struct Peer {
    socket: OwnedFd,
    clean: bool,
    /// Who asks can be told that it is ours.
    _known: Option<Box<Known>>,
}

impl Peer {
    pub(super) const fn new(socket: OwnedFd) -> Self {
        Self { socket, clean: false, _known: None }
    }

    /// A connection over which no session has begun: it ends in order, as nobody takes its end for a loss.
    pub(super) const fn unused(socket: OwnedFd) -> Self {
        Self::unused_known(socket, None)
    }

    /// The same, which is known to be ours while it is open.
    pub(super) const fn unused_known(socket: OwnedFd, known: Option<Box<Known>>) -> Self {
        Self { socket, clean: true, _known: known }
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

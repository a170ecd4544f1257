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
    reuse: Reuse,
    /// Who asks can be told that it is ours.
    _known: Option<Box<Known>>,
}

/// Whether the socket may have another connection after this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reuse {
    Never,
    /// It may, if the first one shows that the peer bears it.
    Perhaps,
    /// It had one, or more, and epoll may watch it.
    Proven,
}

impl Peer {
    pub(super) const fn new(socket: OwnedFd) -> Self {
        Self { socket, clean: false, reuse: Reuse::Never, _known: None }
    }

    /// A connection over which no session has begun: it ends in order, as nobody takes its end for a loss.
    pub(super) const fn unused(socket: OwnedFd) -> Self {
        Self::unused_known(socket, None)
    }

    /// The same, which is known to be ours while it is open.
    pub(super) const fn unused_known(socket: OwnedFd, known: Option<Box<Known>>) -> Self {
        Self { socket, clean: true, reuse: Reuse::Never, _known: known }
    }

    /// One without a session, on whose socket nothing was set, so that it may be dialled again.
    pub(super) const fn reusable(socket: OwnedFd) -> Self {
        Self { socket, clean: true, reuse: Reuse::Perhaps, _known: None }
    }

    /// The same, whose socket is never dialled again.
    pub(super) const fn once(mut self) -> Self {
        self.reuse = Reuse::Never;
        self
    }

    /// True if the socket had another connection before, and epoll may watch it.
    pub(super) const fn is_used(&self) -> bool {
        matches!(self.reuse, Reuse::Proven)
    }

    /// A session begins on it.
    pub(super) const fn begin(&mut self) {
        self.clean = false;
    }

    /// Closes it in order: what the kernel still holds is delivered.
    pub(super) fn close(mut self) {
        self.clean = true;
    }

    /// The socket without its connection, which is over in both directions, if it may be dialled again. It is watched as
    /// before. Otherwise it is closed in order.
    pub(super) fn dissolve(mut self) -> Option<Self> {
        self.clean = true;
        let may = match self.reuse {
            Reuse::Never => false,
            Reuse::Perhaps => net::has_timestamps(&self),
            Reuse::Proven => true,
        };
        self.reuse = Reuse::Proven;
        (may && net::dissolve(&self)).then_some(self)
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

//! Sockets whose connections are over, for the next dials to the same endpoints. Making, watching and closing a socket is 6 %
//! of what a short session costs. Few are kept, and those that nobody needs for a second are closed.

use std::net::SocketAddr;

use crate::{
    proxy::{accept, peer::Peer},
    state::Shared,
};

/// Sockets that are kept at most: as many sessions may end in a turn, before others begin.
const MOST: usize = 128;

/// The sockets of one worker. What was kept last is taken first.
pub(super) struct Used {
    workers: usize,
    /// With the address that each was connected to.
    kept: Vec<(SocketAddr, Peer)>,
    /// The fewest there were since the last [`Used::tidy`].
    least: usize,
}

impl Used {
    /// None yet, for one of so many workers.
    pub(super) const fn new(workers: usize) -> Self {
        Self { workers, kept: Vec::new(), least: 0 }
    }

    /// The session on this connection to `address` is over. Its socket is kept if there is room, and if the connection is
    /// over too; otherwise it is closed.
    pub(super) fn keep(&mut self, address: SocketAddr, upstream: Peer) {
        if self.kept.len() >= MOST.min(accept::used_most(self.workers)) {
            return upstream.close();
        }
        if let Some(upstream) = upstream.dissolve() {
            self.kept.push((address, upstream));
        }
    }

    /// A socket that was connected to `address` before.
    pub(super) fn take(&mut self, address: SocketAddr) -> Option<Peer> {
        let place = self.kept.iter().rposition(|(kept, _)| *kept == address)?;
        let (_, socket) = self.kept.remove(place);
        self.least = self.least.min(self.kept.len());
        Some(socket)
    }

    /// Closes as many as were never needed since the last time, the oldest first. True while some are left.
    pub(super) fn tidy(&mut self) -> bool {
        self.kept.drain(..self.least);
        self.least = self.kept.len();
        if self.kept.is_empty() {
            self.kept = Vec::new();
        }
        !self.kept.is_empty()
    }

    /// Closes them all where descriptors are short, as spares are.
    pub(super) fn give_way(&mut self, shared: &Shared) {
        if !self.kept.is_empty() && accept::is_tight(shared) {
            self.clear();
        }
    }

    /// Closes them all.
    pub(super) fn clear(&mut self) {
        (self.kept, self.least) = (Vec::new(), 0);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::Read,
        net::{TcpListener, TcpStream},
        os::fd::{AsFd, AsRawFd},
    };

    use super::*;
    use crate::net::{self, Outgoing};

    /// A connection whose ends are known to both sides.
    fn connection(address: SocketAddr, listener: &TcpListener) -> Peer {
        let begun = net::begin(address, &Outgoing::default(), false).unwrap();
        let (mut theirs, _) = listener.accept().unwrap();
        net::end_of_stream(&begun).unwrap();
        assert_eq!(theirs.read(&mut [0]).unwrap(), 0);
        drop(theirs);
        let mut ours = TcpStream::from(begun.try_clone().unwrap());
        ours.set_nonblocking(false).unwrap();
        assert_eq!(ours.read(&mut [0]).unwrap(), 0);
        Peer::reusable(begun)
    }

    fn number(peer: &Peer) -> i32 {
        peer.as_fd().as_raw_fd()
    }

    #[test]
    fn sockets_go_back_to_their_own_addresses_and_the_youngest_goes_first() {
        let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let [one, other] = [0, 1].map(|which| listeners[which].local_addr().unwrap());
        let mut used = Used::new(1);
        assert!(used.take(one).is_none());
        let mut numbers = Vec::new();
        for (address, which) in [(one, 0), (other, 1), (one, 0)] {
            let over = connection(address, &listeners[which]);
            numbers.push(number(&over));
            used.keep(address, over);
        }
        assert_eq!([one, one].map(|address| number(&used.take(address).unwrap())), [numbers[2], numbers[0]]);
        assert!(used.take(one).is_none());
        assert_eq!(number(&used.take(other).unwrap()), numbers[1]);
    }

    #[test]
    fn a_socket_with_options_of_its_own_is_closed() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let mut used = Used::new(1);
        let over = connection(address, &listener);
        used.keep(address, Peer::unused(rustix::io::dup(&over).unwrap()));
        assert!(used.take(address).is_none());
        used.keep(address, over);
        assert!(used.take(address).is_some());
    }

    #[test]
    fn what_nobody_needs_from_one_time_to_the_next_is_closed() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let mut used = Used::new(1);
        let keep = |used: &mut Used| used.keep(address, connection(address, &listener));
        (0..4).for_each(|_| keep(&mut used));
        assert!(used.tidy(), "all of them came since the last time");
        for _ in 0..2 {
            assert!(used.take(address).is_some());
        }
        (0..2).for_each(|_| keep(&mut used));
        assert!(used.tidy());
        assert_eq!(used.kept.len(), 2, "two were never needed");
        assert!(!used.tidy());
        (0..MOST + 3).for_each(|_| keep(&mut used));
        assert_eq!(used.kept.len(), MOST);
        used.clear();
        assert!(used.take(address).is_none() && !used.tidy());
    }
}

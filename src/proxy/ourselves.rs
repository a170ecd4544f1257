//! Connections of ours that a firewall rule sends back to us. Such a rule cannot tell them from those of the applications,
//! unless it leaves out our user; where it does not, each session would begin another one, for ever. One that netfilter
//! gives another source port is not known: two redirected connections to different addresses may have had the same one.
//! Its session goes round once more, with another port, and is known then.

use std::{
    collections::{BTreeSet, hash_map::DefaultHasher},
    hash::{Hash, Hasher},
    io,
    net::SocketAddr,
    os::fd::OwnedFd,
    sync::{Mutex, MutexGuard, PoisonError},
};

use socket2::SockRef;

use super::peer::Peer;

/// Where a connection comes from, and where it goes.
type Pair = (SocketAddr, SocketAddr);

/// Connections that were dialled and are open, by a part of what was dialled: a lock is held while the kernel begins to
/// connect.
static DIALLED: [Mutex<BTreeSet<Pair>>; 64] = [const { Mutex::new(BTreeSet::new()) }; 64];

/// A connection that is known here, until it is dropped.
#[derive(Debug)]
pub(super) struct Known(Pair);

/// Dials `address` and takes note of the connection, before anybody can be asked about it.
pub(super) fn dial(address: SocketAddr, begin: impl FnOnce() -> io::Result<OwnedFd>) -> io::Result<Peer> {
    let to = canonical(address);
    let mut dialled = shard(to);
    let socket = begin()?;
    let from = SockRef::from(&socket).local_addr().ok().and_then(|here| here.as_socket());
    let known = from.map(|from| {
        let pair = (canonical(from), to);
        dialled.insert(pair);
        Known(pair)
    });
    drop(dialled);
    Ok(Peer::unused_known(socket, known.map(Box::new)))
}

/// True if the client at `from` that asks for `to` is this process.
pub(super) fn is_client(from: SocketAddr, to: SocketAddr) -> bool {
    let to = canonical(to);
    shard(to).contains(&(canonical(from), to))
}

impl Drop for Known {
    fn drop(&mut self) {
        shard(self.0.1).remove(&self.0);
    }
}

fn shard(to: SocketAddr) -> MutexGuard<'static, BTreeSet<Pair>> {
    let mut hasher = DefaultHasher::new();
    to.hash(&mut hasher);
    let place = usize::try_from(hasher.finish() % 64).unwrap_or_default();
    let [first, ..] = &DIALLED;
    DIALLED.get(place).unwrap_or(first).lock().unwrap_or_else(PoisonError::into_inner)
}

/// Without IPv6 clothes, and without what only IPv6 has beside an address and a port.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::net::{self, Outgoing};

    #[test]
    fn a_connection_of_ours_is_known_while_it_is_open() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let mapped = |address: SocketAddr| {
            format!("[::ffff:{}]:{}", address.ip(), address.port()).parse::<SocketAddr>().unwrap()
        };
        let ours = dial(address, || net::begin(address, &Outgoing::default(), false)).unwrap();
        let (_accepted, from) = listener.accept().unwrap();
        assert!(is_client(from, address) && is_client(mapped(from), mapped(address)));
        let elsewhere = "192.0.2.1:1".parse().unwrap();
        assert!(!is_client(from, elsewhere) && !is_client(elsewhere, address));
        drop(ours);
        assert!(!is_client(from, address));
    }
}

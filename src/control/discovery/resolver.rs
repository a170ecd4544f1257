//! Asking for a name's addresses. The system's resolver blocks a thread for as long as it likes, so what bounds it is
//! the number of lookups under way, not their deadline.

use std::{io, net::SocketAddr, pin::Pin, sync::Arc};

use tokio::{sync::Semaphore, task::JoinHandle};

/// Lookups under way, of all names together: as many threads may hang in a resolver that does not answer.
const IN_FLIGHT: usize = 32;

/// The same of names whose last lookup failed or took too long: they wait for each other, and nobody waits for them.
const DOUBTFUL_IN_FLIGHT: usize = 4;

/// Asks for names, a few at a time.
#[derive(Clone)]
pub(super) struct Resolver {
    lookup: Arc<Lookup>,
    room: Arc<Semaphore>,
    doubtful: Arc<Semaphore>,
}

/// How a name is looked up.
pub(super) type Lookup = dyn Fn(Arc<str>, u16) -> Looking + Send + Sync;

/// A lookup on its way.
pub(super) type Looking = Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send>>;

impl Resolver {
    /// The system's: files, DNS, or whatever else it is set up with.
    pub(super) fn system() -> Self {
        Self::new(Arc::new(|host: Arc<str>, port| {
            Box::pin(async move { Ok(tokio::net::lookup_host((&*host, port)).await?.collect()) })
        }))
    }

    /// One that asks `lookup`.
    pub(super) fn new(lookup: Arc<Lookup>) -> Self {
        let room = Arc::new(Semaphore::new(IN_FLIGHT));
        Self { lookup, room, doubtful: Arc::new(Semaphore::new(DOUBTFUL_IN_FLIGHT)) }
    }

    /// Waits for room and then looks up. From there on the lookup runs to its end, even if nobody waits for it any
    /// more: a thread cannot be called back, and its room is not free before. A name is doubtful if its last lookup failed or
    /// took too long.
    pub(super) async fn start(
        &self,
        host: &Arc<str>,
        port: u16,
        doubtful: bool,
    ) -> JoinHandle<Result<Vec<SocketAddr>, String>> {
        // The semaphores are never closed.
        let room = if doubtful { &self.doubtful } else { &self.room };
        let permit = Arc::clone(room).acquire_owned().await;
        let lookup = (self.lookup)(Arc::clone(host), port);
        tokio::spawn(async move {
            let answer = lookup.await;
            drop(permit);
            usable(answer.map_err(|error| error.to_string())?)
        })
    }
}

/// The addresses that can be dialled, each once, in order. Without any of them it is no answer.
pub(in crate::control) fn usable(addresses: Vec<SocketAddr>) -> Result<Vec<SocketAddr>, String> {
    if addresses.is_empty() {
        return Err(String::from("the answer is empty"));
    }
    let mut usable: Vec<_> = addresses.into_iter().map(plain).filter(can_be_dialled).collect();
    usable.sort_unstable();
    usable.dedup();
    if usable.is_empty() {
        return Err(String::from("the answer has no address that can be dialled"));
    }
    Ok(usable)
}

/// An IPv4 address as such, however the resolver writes it. Scopes of IPv6 addresses stay.
fn plain(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        ip if ip.is_ipv4() => SocketAddr::new(ip, address.port()),
        _ => address,
    }
}

fn can_be_dialled(address: &SocketAddr) -> bool {
    let ip = address.ip();
    let broadcast = matches!(address, SocketAddr::V4(v4) if v4.ip().is_broadcast());
    !ip.is_unspecified() && !ip.is_multicast() && !broadcast
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(words: &[&str]) -> Vec<SocketAddr> {
        words.iter().map(|word| word.parse().unwrap()).collect()
    }

    #[test]
    fn addresses_are_sorted_and_each_is_there_once() {
        let answer =
            addresses(&["10.0.0.2:1", "[::ffff:10.0.0.1]:1", "10.0.0.1:1", "[2001:db8::1]:1", "10.0.0.2:1"]);
        assert_eq!(usable(answer).unwrap(), addresses(&["10.0.0.1:1", "10.0.0.2:1", "[2001:db8::1]:1"]));
    }

    #[test]
    fn what_cannot_be_dialled_is_left_out() {
        let mut useless = addresses(&[
            "0.0.0.0:1",
            "[::]:1",
            "224.0.0.1:1",
            "[ff02::1]:1",
            "255.255.255.255:1",
            "[::ffff:0.0.0.0]:1",
        ]);
        assert!(usable(useless.clone()).unwrap_err().contains("no address that can be dialled"));
        useless.extend(addresses(&["127.0.0.1:1"]));
        assert_eq!(usable(useless).unwrap(), addresses(&["127.0.0.1:1"]));
        assert!(usable(Vec::new()).unwrap_err().contains("empty"));
    }

    #[tokio::test]
    async fn the_system_knows_localhost() {
        let resolver = Resolver::system();
        let found = resolver.start(&"localhost".into(), 80, false).await.await.unwrap().unwrap();
        assert!(found.iter().all(|address| address.ip().is_loopback() && address.port() == 80), "{found:?}");
    }
}

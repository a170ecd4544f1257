//! The port of an endpoint: kept while nobody listens on it, listened on, and made deaf.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    time::{self, Instant},
};

/// Connections that wait to be accepted by a healthy endpoint; the kernel cuts it to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// A loopback handshake takes microseconds; one that takes this long is not answered.
const UNANSWERED: Duration = Duration::from_millis(50);

/// A backlog of 0 holds one connection; more than these mean that the kernel does not do as it did.
const FILLERS: usize = 16;

/// A port that stays ours: a socket is bound to it and never listens, so clients are refused and nobody else is given
/// it, while SO_REUSEPORT lets our own listener bind it again and again. (SO_REUSEADDR would let any listener that sets
/// it, as most do, take the port.)
#[derive(Debug)]
pub(super) struct Port {
    /// The address.
    pub(super) address: SocketAddr,
    _kept: Socket,
    listener: Option<TcpListener>,
    /// Our own connections in the accept queue.
    fillers: Vec<TcpStream>,
}

impl Port {
    /// Takes a free port and listens on it. Needs a runtime around it.
    pub(super) fn take(ip: IpAddr) -> io::Result<Self> {
        let kept = bind(SocketAddr::new(ip, 0))?;
        let address = kept.local_addr()?.as_socket().ok_or(io::ErrorKind::AddrNotAvailable)?;
        let mut port = Self { address, _kept: kept, listener: None, fillers: Vec::new() };
        port.listen()?;
        Ok(port)
    }

    /// Listens, on the socket there is or on a new one.
    pub(super) fn listen(&mut self) -> io::Result<()> {
        if let Some(listener) = &self.listener {
            return SockRef::from(listener).listen(BACKLOG);
        }
        let socket = bind(self.address)?;
        socket.listen(BACKLOG)?;
        self.listener = Some(TcpListener::from_std(socket.into())?);
        Ok(())
    }

    /// Refuses connections; those that wait to be accepted are reset by the kernel.
    pub(super) fn refuse(&mut self) {
        self.listener = None;
        self.fillers.clear();
    }

    /// Leaves SYNs unanswered: the backlog is set to nothing and our own connections fill what is left of the accept
    /// queue; with a full queue Linux drops SYNs. Ends when a connect has been seen to hang, and returns when that one
    /// was begun.
    pub(super) async fn deafen(&mut self) -> io::Result<Instant> {
        self.listen()?;
        if let Some(listener) = &self.listener {
            SockRef::from(listener).listen(0)?;
        }
        for _ in 0..FILLERS {
            let socket = if self.address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
            let begun = Instant::now();
            match time::timeout(UNANSWERED, socket.connect(self.address)).await {
                Ok(filler) => self.fillers.push(filler?),
                Err(_elapsed) => return Ok(begun),
            }
        }
        Err(io::Error::other(format!("{}: the accept queue does not fill", self.address)))
    }

    /// The next connection; `None` for one of our own. Waits for ever while refusing.
    pub(super) async fn accept(&mut self) -> io::Result<Option<TcpStream>> {
        let Some(listener) = &self.listener else {
            return std::future::pending().await;
        };
        let (stream, peer) = listener.accept().await?;
        let ours =
            self.fillers.iter().position(|filler| filler.local_addr().is_ok_and(|local| local == peer));
        Ok(match ours {
            Some(place) => {
                drop(self.fillers.swap_remove(place));
                None
            }
            None => Some(stream),
        })
    }
}

fn bind(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

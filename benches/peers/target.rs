//! What stands behind every proxy: one thread that answers, sends or swallows, as the first bytes of each connection
//! ask. One port serves every kind of work, so that a proxy needs one listener.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    sync::Arc,
    thread::JoinHandle,
};

use anyhow::Context;
use rustix::{
    event::{EventfdFlags, eventfd},
    fd::OwnedFd,
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, accept_with, bind, listen, recv, send,
        socket_with, sockopt,
    },
};

use crate::{
    host,
    poll::{Event, EventFlags, Poll, ready, token},
};

/// Bytes of a request.
pub(crate) const REQUEST: usize = 128;
/// Bytes that bulk transfers move at a time.
pub(crate) const CHUNK: usize = 256 << 10;

const HEAD: usize = 8;
const LISTENER: usize = usize::MAX - 1;
const STOP: usize = usize::MAX - 2;
/// Connections accepted before others get their turn.
const ACCEPTS: usize = 64;

/// What a connection asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ask {
    /// Every request of [`REQUEST`] bytes gets a reply of this many.
    Reply(u32),
    /// Bytes from the target until the connection ends.
    Source,
    /// Bytes to the target.
    Sink,
    /// Both at once.
    Both,
}

impl Ask {
    /// The first request of a connection; with [`Ask::Reply`] every one.
    pub(crate) fn request(self) -> [u8; REQUEST] {
        let (kind, size) = match self {
            Self::Reply(size) => (b'r', size),
            Self::Source => (b'<', 0),
            Self::Sink => (b'>', 0),
            Self::Both => (b'=', 0),
        };
        let mut request = [kind; REQUEST];
        for (byte, value) in request.iter_mut().skip(HEAD - 4).zip(size.to_be_bytes()) {
            *byte = value;
        }
        request
    }

    const fn parse(head: [u8; HEAD]) -> Option<Self> {
        let [kind, _, _, _, a, b, c, d] = head;
        match kind {
            b'r' => Some(Self::Reply(u32::from_be_bytes([a, b, c, d]))),
            b'<' => Some(Self::Source),
            b'>' => Some(Self::Sink),
            b'=' => Some(Self::Both),
            _ => None,
        }
    }

    const fn sends(self) -> bool {
        matches!(self, Self::Source | Self::Both)
    }
}

/// The running thread; dropping it ends it.
pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Target {
    /// Listens on `port` of loopback, on the CPU of the load.
    pub(crate) fn start(port: u16, cpus: host::Cpus) -> anyhow::Result<Self> {
        let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, port);
        let listener = listen_on(address).with_context(|| format!("target cannot listen on {address}"))?;
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let bell = stop.clone();
        let thread = std::thread::Builder::new().name("target".to_owned()).spawn(move || {
            host::pin(cpus.load)?;
            Server::new(listener, &bell)?.serve()
        })?;
        Ok(Self { address: address.into(), stop, thread: Some(thread) })
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let rung = rustix::io::write(&self.stop, &1_u64.to_ne_bytes());
        if let (Ok(_), Some(thread)) = (rung, self.thread.take()) {
            drop(thread.join());
        }
    }
}

fn listen_on(address: SocketAddrV4) -> io::Result<OwnedFd> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let listener = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
    sockopt::set_socket_reuseaddr(&listener, true)?;
    // Accepted sockets inherit it.
    sockopt::set_tcp_nodelay(&listener, true)?;
    bind(&listener, &address)?;
    listen(&listener, 4096)?;
    Ok(listener)
}

struct Server {
    poll: Poll,
    listener: OwnedFd,
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    buffer: Vec<u8>,
}

struct Connection {
    socket: OwnedFd,
    ask: Option<Ask>,
    /// Bytes of the current request that are there.
    have: usize,
    head: [u8; HEAD],
    /// Bytes of replies still to be sent.
    owed: usize,
}

impl Server {
    fn new(listener: OwnedFd, stop: &OwnedFd) -> io::Result<Self> {
        let poll = Poll::new()?;
        poll.add(&listener, LISTENER, EventFlags::IN)?;
        poll.add(stop, STOP, EventFlags::IN)?;
        Ok(Self { poll, listener, connections: Vec::new(), free: Vec::new(), buffer: vec![b'x'; CHUNK] })
    }

    fn serve(mut self) -> io::Result<()> {
        let mut events = Poll::room();
        loop {
            self.poll.wait(&mut events, None)?;
            for event in &events {
                match token(event) {
                    STOP => return Ok(()),
                    LISTENER => self.accept()?,
                    place => self.turn(place, event),
                }
            }
        }
    }

    fn accept(&mut self) -> io::Result<()> {
        for _ in 0..ACCEPTS {
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            let socket = match accept_with(&self.listener, flags) {
                Ok(socket) => socket,
                Err(rustix::io::Errno::CONNABORTED) => continue,
                Err(error) => return ready(Err(error.into())).map(|_: Option<()>| ()),
            };
            let place = self.free.pop().unwrap_or_else(|| {
                self.connections.push(None);
                self.connections.len() - 1
            });
            let edges = EventFlags::IN | EventFlags::OUT | EventFlags::ET;
            self.poll.add(&socket, place, edges)?;
            let fresh = Connection { socket, ask: None, have: 0, head: [0; HEAD], owed: 0 };
            if let Some(slot) = self.connections.get_mut(place) {
                *slot = Some(fresh);
            }
        }
        Ok(())
    }

    /// A connection that fails or ends is closed; what it did not do shows at the load's side.
    fn turn(&mut self, place: usize, event: &Event) {
        let Some(slot) = self.connections.get_mut(place) else { return };
        let Some(connection) = slot else { return };
        if !matches!(connection.turn(&self.poll, place, event.flags, &mut self.buffer), Ok(true)) {
            *slot = None;
            self.free.push(place);
        }
    }
}

impl Connection {
    /// False when the connection is over.
    fn turn(&mut self, poll: &Poll, place: usize, flags: EventFlags, buffer: &mut [u8]) -> io::Result<bool> {
        match self.ask {
            Some(ask @ (Ask::Source | Ask::Sink | Ask::Both)) => self.stream(ask, flags, buffer),
            Some(Ask::Reply(_)) | None => {
                let open = !flags.contains(EventFlags::IN) || self.requests(buffer)?;
                self.reply(buffer)?;
                if let Some(ask @ (Ask::Source | Ask::Sink | Ask::Both)) = self.ask {
                    // Streams are never drained in one turn, so edges would be lost.
                    let levels = if ask.sends() { EventFlags::IN | EventFlags::OUT } else { EventFlags::IN };
                    poll.modify(&self.socket, place, levels)?;
                }
                Ok(open)
            }
        }
    }

    /// Reads what is there and adds up what it asks for.
    fn requests(&mut self, buffer: &mut [u8]) -> io::Result<bool> {
        loop {
            let read = recv(&self.socket, &mut *buffer, RecvFlags::empty()).map(|(_, read)| read);
            let Some(read) = ready(read.map_err(io::Error::from))? else { return Ok(true) };
            if read == 0 {
                return Ok(false);
            }
            if self.ask.is_none() {
                for (byte, value) in self.head.iter_mut().skip(self.have).zip(buffer.iter().take(read)) {
                    *byte = *value;
                }
                if self.have + read >= HEAD {
                    let ask = Ask::parse(self.head);
                    self.ask = Some(ask.ok_or(io::ErrorKind::InvalidData)?);
                }
            }
            self.have += read;
            if let Some(Ask::Reply(size)) = self.ask {
                self.owed += self.have / REQUEST * usize::try_from(size).unwrap_or(usize::MAX);
                self.have %= REQUEST;
            }
            // A short read has emptied the socket: the next byte brings an edge.
            if read < buffer.len() {
                return Ok(true);
            }
        }
    }

    fn reply(&mut self, buffer: &[u8]) -> io::Result<()> {
        while self.owed > 0 {
            let part = buffer.get(..self.owed.min(buffer.len())).unwrap_or(buffer);
            let sent = send(&self.socket, part, SendFlags::NOSIGNAL).map_err(io::Error::from);
            let Some(sent) = ready(sent)? else { return Ok(()) };
            self.owed -= sent;
        }
        Ok(())
    }

    fn stream(&self, ask: Ask, flags: EventFlags, buffer: &mut [u8]) -> io::Result<bool> {
        if flags.intersects(EventFlags::ERR | EventFlags::HUP) {
            return Ok(false);
        }
        if flags.contains(EventFlags::IN) && swallow(&self.socket, buffer)? == Some(0) {
            return Ok(false);
        }
        if ask.sends() && flags.contains(EventFlags::OUT) {
            ready(send(&self.socket, &*buffer, SendFlags::NOSIGNAL).map_err(io::Error::from))?;
        }
        Ok(true)
    }
}

/// Takes bytes off a socket without copying them (MSG_TRUNC on TCP), so that a bulk transfer measures the proxy and
/// not this end. `None`: nothing there; 0: the end.
pub(crate) fn swallow(socket: impl std::os::fd::AsFd, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    ready(recv(socket, buffer, RecvFlags::TRUNC).map(|(_, all)| all).map_err(io::Error::from))
}

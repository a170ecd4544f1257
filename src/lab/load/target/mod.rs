//! Targets: threads that echo, swallow, send, or do what the first bytes of each connection ask for. Or nobody's threads: a
//! load may serve its own target by hand.

mod connection;

use std::{
    io,
    net::{SocketAddr, TcpListener},
    sync::Arc,
    thread::JoinHandle,
    time::Duration,
};

use rustix::{
    event::{EventfdFlags, eventfd},
    fd::OwnedFd,
    io::Errno,
    net::{SocketFlags, accept_with},
};
use tokio::time::Instant;

use super::{
    CHUNK,
    poll::{Event, EventFlags, Poll, ready, token},
    script::FILLER,
};
use crate::net::{self, Bind, Keepalive, Listen, Tuning};
use connection::{Connection, Desk};

const LISTENER: usize = usize::MAX - 1;
const STOP: usize = usize::MAX - 2;

/// Connections accepted before others get their turn.
const ACCEPTS: usize = 64;

/// Connections that may wait to be accepted.
const BACKLOG: u32 = 4096;

/// Time before the next accept when descriptors or memory run out.
const PAUSE: Duration = Duration::from_millis(100);

/// As the kernel has it by default.
const KEEPALIVE: Keepalive =
    Keepalive { idle: Duration::from_secs(7200), interval: Duration::from_secs(75), count: 9 };

/// What a target does with its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Serves {
    /// Sends back every byte.
    Echo,
    /// Reads and discards.
    Sink,
    /// Sends until the connection ends.
    Source,
    /// What the head of each connection asks for, see [`super::Ask`].
    Asked,
}

/// How a target is set up.
#[derive(Clone, Copy, Debug)]
pub struct TargetOptions {
    /// Where it listens; port 0 is any free one.
    pub address: SocketAddr,
    /// What it does.
    pub serves: Serves,
    /// On how many threads, each with a socket of its own.
    pub threads: usize,
}

/// What a target did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Served {
    /// Connections accepted.
    pub connections: u64,
    /// Bytes that came.
    pub received: u64,
    /// Bytes that went.
    pub sent: u64,
}

/// A running target; dropping it ends it.
#[derive(Debug)]
pub struct Target {
    address: SocketAddr,
    stop: Arc<OwnedFd>,
    threads: Vec<JoinHandle<io::Result<Server>>>,
}

/// A target without threads of its own: it serves when it is told to.
pub struct ByHand {
    servers: Vec<Server>,
    events: Vec<Event>,
}

impl Target {
    /// Listens, and serves on threads of its own.
    ///
    /// # Errors
    /// What the kernel said about the address, or it gives no threads or events.
    pub fn start(options: &TargetOptions) -> io::Result<Self> {
        let bind = Bind { address: options.address, only_v6: false };
        let listen = Listen {
            bind,
            backlog: BACKLOG,
            keepalive: KEEPALIVE,
            fast_open: None,
            tuning: Tuning::default(),
            transparent: false,
        };
        let listeners = net::listen(&listen, options.threads.max(1))?;
        let address = listeners.first().map_or(Ok(options.address), TcpListener::local_addr)?;
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let mut target = Self { address, stop, threads: Vec::new() };
        for listener in listeners {
            let server = Server::new(listener, &target.stop, options.serves)?;
            let thread =
                std::thread::Builder::new().name("target".to_owned()).spawn(move || server.serve())?;
            target.threads.push(thread);
        }
        Ok(target)
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends it and tells what it did.
    ///
    /// # Errors
    /// What ended it before.
    pub fn finish(mut self) -> io::Result<Served> {
        let mut all = Served::default();
        for Server { desk: Desk { served, .. }, .. } in self.end()? {
            all.connections += served.connections;
            all.received += served.received;
            all.sent += served.sent;
        }
        Ok(all)
    }

    /// Ends its threads. Its listeners and connections stay, and are served by [`ByHand::turn`].
    ///
    /// # Errors
    /// What ended it before.
    pub fn by_hand(mut self) -> io::Result<ByHand> {
        let servers = self.end()?;
        servers.iter().try_for_each(|server| server.poll.delete(&self.stop))?;
        Ok(ByHand { servers, events: Poll::room() })
    }

    fn end(&mut self) -> io::Result<Vec<Server>> {
        // Its level stays up, so that every thread sees it. Nothing can be wrong with the write.
        rustix::io::write(&self.stop, &1_u64.to_ne_bytes())?;
        let join = |thread: JoinHandle<_>| {
            thread.join().map_err(|_| io::Error::other("a thread of the target panicked"))?
        };
        self.threads.drain(..).map(join).collect()
    }
}

impl ByHand {
    /// Does what there is to do, and does not wait.
    ///
    /// # Errors
    /// The kernel does not give events.
    pub fn turn(&mut self) -> io::Result<()> {
        self.servers
            .iter_mut()
            .try_for_each(|server| server.attend(&mut self.events, Some(Duration::ZERO)).map(drop))
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        // What ended it before shows at the load's side.
        drop(self.end());
    }
}

struct Server {
    serves: Serves,
    poll: Poll,
    listener: TcpListener,
    /// When accepts go on, while there is no room for another connection.
    paused: Option<Instant>,
    /// Held for as long as it is polled.
    _stop: Arc<OwnedFd>,
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    desk: Desk,
}

impl Server {
    fn new(listener: TcpListener, stop: &Arc<OwnedFd>, serves: Serves) -> io::Result<Self> {
        let poll = Poll::new()?;
        poll.add(&listener, LISTENER, EventFlags::IN)?;
        poll.add(stop, STOP, EventFlags::IN)?;
        let desk = Desk { buffer: vec![FILLER; CHUNK], served: Served::default() };
        let stop = Arc::clone(stop);
        let connections = Vec::new();
        Ok(Self { serves, poll, listener, paused: None, _stop: stop, connections, free: Vec::new(), desk })
    }

    /// Serves until it is told to stop.
    fn serve(mut self) -> io::Result<Self> {
        let mut events = Poll::room();
        while self.attend(&mut events, self.paused.map(|until| until - Instant::now()))? {}
        Ok(self)
    }

    /// Waits for events, so long at most, and deals with them; false when it is told to stop.
    fn attend(&mut self, events: &mut Vec<Event>, timeout: Option<Duration>) -> io::Result<bool> {
        self.poll.wait(events, timeout)?;
        let mut goes_on = true;
        for event in &*events {
            match token(event) {
                STOP => goes_on = false,
                LISTENER => self.accept()?,
                place => self.turn(place, event),
            }
        }
        if self.paused.is_some_and(|until| until <= Instant::now()) {
            self.paused = None;
            self.poll.modify(&self.listener, LISTENER, EventFlags::IN)?;
        }
        Ok(goes_on)
    }

    fn accept(&mut self) -> io::Result<()> {
        for _ in 0..ACCEPTS {
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            let socket = match accept_with(&self.listener, flags) {
                Ok(socket) => socket,
                Err(Errno::CONNABORTED) => continue,
                Err(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
                    self.paused = Some(Instant::now() + PAUSE);
                    return self.poll.modify(&self.listener, LISTENER, EventFlags::empty());
                }
                Err(error) => return ready(Err(error.into())).map(|_: Option<()>| ()),
            };
            let place = self.free.pop().unwrap_or_else(|| {
                self.connections.push(None);
                self.connections.len() - 1
            });
            let fresh = Connection::new(socket, self.serves);
            self.poll.add(fresh.socket(), place, fresh.wanted())?;
            self.desk.served.connections += 1;
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
        if !matches!(connection.turn(&self.poll, event, &mut self.desk), Ok(true)) {
            *slot = None;
            self.free.push(place);
        }
    }
}

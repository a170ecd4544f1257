//! Bulk bytes on a few connections: down, up, or both at once. A connection that is lost, or stands still, is made anew.

use std::{collections::VecDeque, io, net::SocketAddr, time::Duration};

use rustix::{
    fd::OwnedFd,
    net::{SendFlags, send, sockopt},
};
use tokio::time::Instant;

use super::{
    Ask, CHUNK, Failure, Tally,
    drive::{Demand, Work},
    exchange::REST,
    poll::{Event, EventFlags, Poll, ready, token},
    script::FILLER,
    socket,
};

/// Connections that move bytes as fast as they can.
pub(super) struct Stream {
    to: SocketAddr,
    poll: Poll,
    flows: Vec<Flow>,
    /// The first one that was never connected.
    fresh: usize,
    opening: usize,
    resting: VecDeque<(Instant, usize)>,
    /// What each connection says first.
    head: Option<Ask>,
    wanted: EventFlags,
    timeout: Duration,
    buffer: Vec<u8>,
}

struct Flow {
    socket: Option<OwnedFd>,
    connected: bool,
    /// Whether bytes went either way since the last look.
    moved: bool,
    /// When the connect began, or the last look that found it moving.
    since: Instant,
}

impl Flow {
    const fn new(socket: Option<OwnedFd>, since: Instant) -> Self {
        Self { socket, connected: false, moved: false, since }
    }

    /// Whether it has waited longer than `timeout` for its connect or the next byte. The clock is read for a look at
    /// all, and not for each piece.
    fn is_late(&mut self, now: Instant, timeout: Duration) -> bool {
        if std::mem::take(&mut self.moved) {
            self.since = now;
        }
        self.socket.is_some() && now.duration_since(self.since) > timeout
    }
}

impl Stream {
    /// Does what `ask` says, and tells the target so if it is to `say` it.
    pub(super) fn new(
        to: SocketAddr,
        count: usize,
        ask: Ask,
        say: bool,
        timeout: Duration,
    ) -> io::Result<Self> {
        let now = Instant::now();
        let wanted = match ask {
            Ask::Sink => EventFlags::OUT,
            Ask::Both => EventFlags::IN | EventFlags::OUT,
            Ask::Source | Ask::Reply { .. } => EventFlags::IN,
        };
        Ok(Self {
            to,
            poll: Poll::new()?,
            flows: (0..count).map(|_| Flow::new(None, now)).collect(),
            fresh: 0,
            opening: 0,
            resting: VecDeque::with_capacity(count),
            head: say.then_some(ask),
            wanted,
            timeout,
            buffer: vec![FILLER; CHUNK],
        })
    }

    fn connect(&mut self, place: usize, now: Instant) -> Result<(), Failure> {
        let Some(flow) = self.flows.get_mut(place) else { return Ok(()) };
        let socket = socket::connect(self.to)?;
        self.poll.add(&socket, place, EventFlags::OUT)?;
        *flow = Flow::new(Some(socket), now);
        self.opening += 1;
        Ok(())
    }

    fn step(&mut self, event: &Event, tally: &mut Tally) -> Result<(), Failure> {
        let Some(flow) = self.flows.get_mut(token(event)) else { return Ok(()) };
        let Some(socket) = &flow.socket else { return Ok(()) };
        let flags = event.flags;
        if !flow.connected {
            sockopt::socket_error(socket)??;
            (flow.connected, flow.moved) = (true, true);
            self.opening -= 1;
            tally.connected(flow.since.elapsed());
            if let Some(ask) = self.head {
                // It fits: the socket is empty.
                send(socket, &ask.head(), SendFlags::NOSIGNAL)?;
            }
            self.poll.modify(socket, token(event), self.wanted)?;
            return Ok(());
        }
        if flags.intersects(EventFlags::IN | EventFlags::ERR | EventFlags::HUP) {
            match socket::swallow(socket, &mut self.buffer)? {
                Some(0) => return Err(Failure::ClosedEarly),
                Some(read) => {
                    flow.moved = true;
                    tally.down += read as u64;
                }
                None => {}
            }
        }
        if flags.contains(EventFlags::OUT) {
            let sent = send(socket, &self.buffer, SendFlags::NOSIGNAL).map_err(io::Error::from);
            let sent = ready(sent)?.unwrap_or_default();
            flow.moved |= sent > 0;
            tally.up += sent as u64;
        }
        Ok(())
    }

    fn lost(&mut self, place: usize, failure: Failure, tally: &mut Tally) {
        tally.failed(failure);
        if let Some(flow) = self.flows.get_mut(place) {
            if flow.socket.take().is_some() && !flow.connected {
                self.opening -= 1;
            }
            flow.connected = false;
        }
        self.resting.push_back((Instant::now() + REST, place));
    }
}

impl Work for Stream {
    fn poll(&self) -> &Poll {
        &self.poll
    }

    fn is_open(&self) -> bool {
        self.fresh == self.flows.len() && self.opening == 0
    }

    fn start(&mut self, now: Instant, _: &mut Demand, tally: &mut Tally) {
        let rested = self.resting.iter().take_while(|(due, _)| *due <= now).count();
        let again: Vec<_> = self.resting.drain(..rested).map(|(_, place)| place).collect();
        let fresh = std::mem::replace(&mut self.fresh, self.flows.len());
        for place in again.into_iter().chain(fresh..self.flows.len()) {
            if let Err(failure) = self.connect(place, now) {
                self.lost(place, failure, tally);
            }
        }
    }

    fn next(&self, _: &Demand) -> Option<Instant> {
        self.resting.front().map(|(due, _)| *due)
    }

    fn turn(&mut self, event: &Event, _: &Demand, tally: &mut Tally) {
        if let Err(failure) = self.step(event, tally) {
            self.lost(token(event), failure, tally);
        }
    }

    fn expire(&mut self, now: Instant, _: &Demand, tally: &mut Tally) {
        let late = |(place, flow): (usize, &mut Flow)| flow.is_late(now, self.timeout).then_some(place);
        let expired: Vec<_> = self.flows.iter_mut().enumerate().filter_map(late).collect();
        for place in expired {
            self.lost(place, Failure::TimedOut, tally);
        }
    }

    fn unfinished(&self, _: &mut dyn FnMut(Instant)) {}
}

//! Connections that come, ask once, and go.

use std::{
    collections::VecDeque,
    io::{self, Read},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use rustix::{
    io::Errno,
    net::{AddressFamily, SendFlags, SocketFlags, SocketType, connect, send, socket_with, sockopt},
};
use tokio::time::Instant;

use super::{Pace, REQUEST_BYTES, Tally, nap, over};
use crate::{
    poll::{EventFlags, Poll, ready, token},
    target::{Ask, REQUEST},
};

/// Slots with one connection each.
pub(crate) struct Churn {
    to: SocketAddr,
    poll: Poll,
    slots: Vec<Option<Visit>>,
    /// Slots without a connection, the longest unused first.
    free: VecDeque<usize>,
    request: [u8; REQUEST],
}

struct Visit {
    stream: TcpStream,
    /// When it was to start.
    due: Instant,
    sent: bool,
    /// Bytes of the reply still to come.
    missing: usize,
}

impl Churn {
    pub(crate) fn new(to: SocketAddr, slots: usize) -> io::Result<Self> {
        Ok(Self {
            to,
            poll: Poll::new()?,
            slots: (0..slots).map(|_| None).collect(),
            free: (0..slots).collect(),
            request: Ask::Reply(REQUEST_BYTES).request(),
        })
    }

    /// Works for `span`: at `rate` connections a second, or each slot's next connection as soon as the last has gone.
    pub(crate) fn run(&mut self, span: Duration, rate: Option<u32>) -> io::Result<Tally> {
        let start = Instant::now();
        let end = start + span;
        let mut pace = rate.map(|rate| Pace::new(start, rate));
        let mut tally = Tally::new()?;
        let mut events = Poll::room();
        loop {
            let now = Instant::now();
            if over(now, end)? {
                tally.elapsed = now - start;
                return Ok(tally);
            }
            self.start_due(pace.as_mut(), now, &mut tally);
            let timeout = nap(pace.as_ref(), !self.free.is_empty(), now, end);
            match pace {
                Some(_) => self.poll.spin(&mut events, timeout)?,
                None => self.poll.wait(&mut events, Some(timeout))?,
            }
            for event in &events {
                self.turn(token(event), &mut tally);
            }
        }
    }

    fn start_due(&mut self, mut pace: Option<&mut Pace>, now: Instant, tally: &mut Tally) {
        // Each free slot once: a slot whose connection fails at once waits for the next turn.
        for _ in 0..self.free.len() {
            let due = match &mut pace {
                Some(pace) => pace.due(now),
                None => Some(now),
            };
            let (Some(due), Some(place)) = (due, self.free.front().copied()) else { return };
            self.free.pop_front();
            match self.visit(place, due) {
                Ok(visit) => {
                    if let Some(slot) = self.slots.get_mut(place) {
                        *slot = Some(visit);
                    }
                }
                Err(_) => self.failed(place, tally),
            }
        }
    }

    /// Starts a connection and sends its request if it is already there, as it is on loopback.
    fn visit(&self, place: usize, due: Instant) -> io::Result<Visit> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
        sockopt::set_tcp_nodelay(&socket, true)?;
        match connect(&socket, &self.to) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(error) => return Err(error.into()),
        }
        let mut visit = Visit { stream: socket.into(), due, sent: false, missing: REQUEST };
        visit.send(&self.request)?;
        let wanted = if visit.sent { EventFlags::IN } else { EventFlags::IN | EventFlags::OUT };
        self.poll.add(&visit.stream, place, wanted | EventFlags::ET)?;
        Ok(visit)
    }

    fn turn(&mut self, place: usize, tally: &mut Tally) {
        let Some(Some(visit)) = self.slots.get_mut(place) else { return };
        match visit.turn(&self.request) {
            Ok(false) => {}
            Ok(true) => {
                tally.done(visit.due.elapsed());
                self.leave(place);
            }
            Err(_) => self.failed(place, tally),
        }
    }

    fn failed(&mut self, place: usize, tally: &mut Tally) {
        tally.errors += 1;
        self.leave(place);
    }

    /// Closes the connection.
    fn leave(&mut self, place: usize) {
        if let Some(slot) = self.slots.get_mut(place) {
            *slot = None;
        }
        self.free.push_back(place);
    }
}

impl Visit {
    /// True when the reply is complete.
    fn turn(&mut self, request: &[u8]) -> io::Result<bool> {
        if !self.sent {
            self.send(request)?;
        }
        let mut buffer = [0; REQUEST];
        let Some(read) = ready(self.stream.read(&mut buffer))? else { return Ok(false) };
        if read == 0 {
            return Err(super::ended());
        }
        self.missing = self.missing.saturating_sub(read);
        Ok(self.missing == 0)
    }

    fn send(&mut self, request: &[u8]) -> io::Result<()> {
        // Still connecting: EAGAIN. A short write cannot be: the socket is empty.
        self.sent =
            ready(send(&self.stream, request, SendFlags::NOSIGNAL).map_err(io::Error::from))?.is_some();
        Ok(())
    }
}

//! Requests and replies on connections that stay.

use std::{
    collections::VecDeque,
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use tokio::time::Instant;

use super::{Pace, Tally, connect, ended, nap, over};
use crate::{
    poll::{EventFlags, Poll, ready, token},
    target::{Ask, CHUNK, REQUEST},
};

/// Connections with at most one request under way on each.
pub(crate) struct Exchange {
    poll: Poll,
    lines: Vec<Line>,
    /// Lines without a request under way, the longest unused first.
    free: VecDeque<usize>,
    request: [u8; REQUEST],
    reply: usize,
    buffer: Vec<u8>,
}

struct Line {
    stream: TcpStream,
    /// When its request was to be sent.
    due: Instant,
    /// Bytes of the reply still to come.
    missing: usize,
}

impl Exchange {
    pub(crate) fn open(to: SocketAddr, connections: usize, reply: u32) -> io::Result<Self> {
        let poll = Poll::new()?;
        let mut lines = Vec::with_capacity(connections);
        for place in 0..connections {
            let stream = connect(to)?;
            stream.set_nonblocking(true)?;
            poll.add(&stream, place, EventFlags::IN | EventFlags::ET)?;
            lines.push(Line { stream, due: Instant::now(), missing: 0 });
        }
        Ok(Self {
            poll,
            lines,
            free: (0..connections).collect(),
            request: Ask::Reply(reply).request(),
            reply: usize::try_from(reply).unwrap_or(usize::MAX),
            buffer: vec![0; CHUNK],
        })
    }

    /// Works for `span`: at `rate` requests a second, or each line's next request as soon as its reply is there.
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
            self.start_due(pace.as_mut(), now)?;
            let timeout = nap(pace.as_ref(), !self.free.is_empty(), now, end);
            match pace {
                Some(_) => self.poll.spin(&mut events, timeout)?,
                None => self.poll.wait(&mut events, Some(timeout))?,
            }
            for event in &events {
                let place = token(event);
                let Some(due) = self.receive(place)? else { continue };
                let now = Instant::now();
                tally.done(now - due);
                if pace.is_some() {
                    self.free.push_back(place);
                } else {
                    self.send(place, now)?;
                }
            }
        }
    }

    fn start_due(&mut self, mut pace: Option<&mut Pace>, now: Instant) -> io::Result<()> {
        while let Some(place) = self.free.front().copied() {
            let due = match &mut pace {
                Some(pace) => pace.due(now),
                None => Some(now),
            };
            let Some(due) = due else { return Ok(()) };
            self.free.pop_front();
            self.send(place, due)?;
        }
        Ok(())
    }

    fn send(&mut self, place: usize, due: Instant) -> io::Result<()> {
        let Some(line) = self.lines.get_mut(place) else { return Ok(()) };
        line.due = due;
        line.missing = self.reply;
        // The socket is empty whenever a request is sent, so a short write is a fault.
        line.stream.write_all(&self.request)
    }

    /// The intended start of the exchange that this completes.
    fn receive(&mut self, place: usize) -> io::Result<Option<Instant>> {
        let Some(line) = self.lines.get_mut(place) else { return Ok(None) };
        while line.missing > 0 {
            let Some(read) = ready(line.stream.read(&mut self.buffer))? else { return Ok(None) };
            if read == 0 {
                return Err(ended());
            }
            line.missing = line.missing.saturating_sub(read);
            if line.missing == 0 {
                return Ok(Some(line.due));
            }
        }
        Ok(None)
    }
}

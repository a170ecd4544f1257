//! Bulk bytes on a few connections: down, up, or both at once.

use std::{
    io::{self, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use tokio::time::Instant;

use super::{Tally, connect, ended, nap, over};
use crate::{
    poll::{Event, EventFlags, Poll, ready, token},
    target::{Ask, CHUNK, swallow},
};

/// Connections that move bytes as fast as they can.
pub(crate) struct Stream {
    poll: Poll,
    streams: Vec<TcpStream>,
    buffer: Vec<u8>,
}

impl Stream {
    pub(crate) fn open(to: SocketAddr, connections: usize, ask: Ask) -> io::Result<Self> {
        let poll = Poll::new()?;
        let mut streams = Vec::with_capacity(connections);
        let flags = match ask {
            Ask::Sink => EventFlags::OUT,
            Ask::Both => EventFlags::IN | EventFlags::OUT,
            Ask::Source | Ask::Reply(_) => EventFlags::IN,
        };
        for place in 0..connections {
            let mut stream = connect(to)?;
            stream.write_all(&ask.request())?;
            stream.set_nonblocking(true)?;
            poll.add(&stream, place, flags)?;
            streams.push(stream);
        }
        Ok(Self { poll, streams, buffer: vec![b'x'; CHUNK] })
    }

    /// Works for `span` and counts bytes.
    pub(crate) fn run(&mut self, span: Duration) -> io::Result<Tally> {
        let start = Instant::now();
        let end = start + span;
        let mut tally = Tally::new()?;
        let mut events = Poll::room();
        loop {
            let now = Instant::now();
            if over(now, end)? {
                tally.elapsed = now - start;
                return Ok(tally);
            }
            self.poll.wait(&mut events, Some(nap(None, false, now, end)))?;
            for event in &events {
                tally.units += self.turn(event)? as u64;
            }
        }
    }

    /// The bytes moved in both directions.
    fn turn(&mut self, event: &Event) -> io::Result<usize> {
        let Some(stream) = self.streams.get_mut(token(event)) else { return Ok(0) };
        let flags = event.flags;
        let mut moved = 0;
        if flags.intersects(EventFlags::IN | EventFlags::ERR | EventFlags::HUP) {
            match swallow(&*stream, &mut self.buffer)? {
                Some(0) => return Err(ended()),
                Some(read) => moved += read,
                None => {}
            }
        }
        if flags.contains(EventFlags::OUT) {
            moved += ready(stream.write(&self.buffer))?.unwrap_or_default();
        }
        Ok(moved)
    }
}

//! Connections with at most one exchange under way on each: how they connect, ask, and take the answer. When that is to
//! happen is the business of the work that owns them.

use std::{io, net::SocketAddr, time::Duration};

use rustix::{
    fd::OwnedFd,
    net::{RecvFlags, SendFlags, recv, send, sockopt},
};
use tokio::time::Instant;

use super::{
    Failure, Script,
    poll::{Event, EventFlags, Poll, ready, token},
    socket,
};

/// The other side, or the kernel, has something to say that is no byte.
const GONE: EventFlags = EventFlags::RDHUP.union(EventFlags::HUP).union(EventFlags::ERR);

/// Connections, known by their place.
pub(super) struct Lines {
    pub(super) poll: Poll,
    to: SocketAddr,
    script: Script,
    timeout: Duration,
    slots: Vec<Slot>,
    /// Those whose connect is under way.
    opening: usize,
    buffer: Vec<u8>,
}

struct Slot {
    socket: Option<OwnedFd>,
    connected: bool,
    /// An exchange is under way, or waits for the connection.
    busy: bool,
    /// When the connect began.
    began: Instant,
    /// When the exchange was to begin.
    due: Instant,
    /// When it did.
    asked: Instant,
    shift: usize,
    sent: usize,
    received: usize,
}

/// What an event came to.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Step {
    /// The connection is there, after this time.
    pub(super) connected: Option<Duration>,
    /// The reply is complete, this long after its request was to be sent.
    pub(super) done: Option<Duration>,
    /// The other side has ended.
    pub(super) gone: bool,
}

impl Lines {
    pub(super) fn new(to: SocketAddr, count: usize, script: Script, timeout: Duration) -> io::Result<Self> {
        let now = Instant::now();
        let slot = |place| Slot {
            socket: None,
            connected: false,
            busy: false,
            began: now,
            due: now,
            asked: now,
            // Neighbours do not ask the same.
            shift: script.start(place),
            sent: 0,
            received: 0,
        };
        let slots = (0..count).map(slot).collect();
        let buffer = vec![0; super::CHUNK];
        Ok(Self { poll: Poll::new()?, to, script, timeout, slots, opening: 0, buffer })
    }

    pub(super) const fn len(&self) -> usize {
        self.slots.len()
    }

    pub(super) const fn opening(&self) -> usize {
        self.opening
    }

    /// True when an exchange could begin on this line.
    pub(super) fn is_free(&self, place: usize) -> bool {
        self.slots.get(place).is_some_and(|slot| slot.connected && !slot.busy)
    }

    /// Starts a connect, and with `due` an exchange as soon as it is there, which on loopback is at once; then its time
    /// is returned.
    pub(super) fn connect(
        &mut self,
        place: usize,
        now: Instant,
        due: Option<Instant>,
    ) -> Result<Option<Duration>, Failure> {
        let Some(slot) = self.slots.get_mut(place) else { return Ok(None) };
        let socket = socket::connect(self.to)?;
        (slot.connected, slot.busy, slot.began) = (false, false, now);
        let mut wanted = EventFlags::IN | EventFlags::RDHUP | EventFlags::ET;
        if let Some(due) = due {
            slot.begin(&self.script, due, now);
            slot.send(&self.script, &socket)?;
        }
        if !slot.busy || slot.sent < self.script.size() {
            wanted |= EventFlags::OUT;
        }
        self.poll.add(&socket, place, wanted)?;
        slot.socket = Some(socket);
        if slot.connected {
            return Ok(Some(now.elapsed()));
        }
        self.opening += 1;
        Ok(None)
    }

    /// Sends a request on a line that is free.
    pub(super) fn ask(&mut self, place: usize, due: Instant, now: Instant) -> Result<(), Failure> {
        let Some(slot) = self.slots.get_mut(place) else { return Ok(()) };
        let Some(socket) = slot.socket.take() else { return Ok(()) };
        slot.begin(&self.script, due, now);
        let sent = slot.send(&self.script, &socket);
        slot.socket = Some(socket);
        sent
    }

    /// Does what an event allows.
    pub(super) fn step(&mut self, event: &Event) -> Result<Step, Failure> {
        let mut step = Step::default();
        let Some(slot) = self.slots.get_mut(token(event)) else { return Ok(step) };
        let Some(socket) = &slot.socket else { return Ok(step) };
        let flags = event.flags;
        if !slot.connected && flags.intersects(EventFlags::OUT | GONE) {
            sockopt::socket_error(socket)??;
            slot.connected = true;
            self.opening -= 1;
            step.connected = Some(slot.began.elapsed());
        }
        if slot.connected && slot.busy && slot.sent < self.script.size() {
            slot.sent += transmit(socket, self.script.rest(slot.shift, slot.sent))?;
        }
        if flags.intersects(EventFlags::IN | GONE) {
            let gone = flags.intersects(GONE);
            if receive(slot, &self.script, &mut self.buffer, gone)? {
                step.done = Some(slot.due.elapsed());
                step.gone = gone;
            }
        }
        Ok(step)
    }

    /// Closes a line, whatever it does.
    pub(super) fn close(&mut self, place: usize) {
        let Some(slot) = self.slots.get_mut(place) else { return };
        if slot.socket.take().is_some() && !slot.connected {
            self.opening -= 1;
        }
        slot.connected = false;
        slot.busy = false;
    }

    /// Closes lines that have waited too long, and tells which, and how long after its intended start the unit was given up
    /// that was under way there.
    pub(super) fn expire(&mut self, now: Instant, mut expired: impl FnMut(usize, Option<Duration>)) {
        for place in 0..self.slots.len() {
            let Some(slot) = self.slots.get(place) else { return };
            let since = match (&slot.socket, slot.connected, slot.busy) {
                (Some(_), false, _) => slot.began,
                (Some(_), true, true) => slot.asked,
                _ => continue,
            };
            if now.saturating_duration_since(since) > self.timeout {
                let waited = slot.busy.then(|| now.saturating_duration_since(slot.due));
                self.close(place);
                expired(place, waited);
            }
        }
    }

    /// When the exchanges that are under way were to begin.
    pub(super) fn unfinished(&self) -> impl Iterator<Item = Instant> {
        self.slots.iter().filter(|slot| slot.busy).map(|slot| slot.due)
    }
}

impl Slot {
    const fn begin(&mut self, script: &Script, due: Instant, now: Instant) {
        (self.busy, self.due, self.asked) = (true, due, now);
        (self.shift, self.sent, self.received) = (script.next(self.shift), 0, 0);
    }

    /// Sends what the socket takes of a request that has just begun. What it takes it has a connection for.
    fn send(&mut self, script: &Script, socket: &OwnedFd) -> Result<(), Failure> {
        self.sent = transmit(socket, script.rest(self.shift, 0))?;
        self.connected |= self.sent > 0;
        Ok(())
    }
}

fn transmit(socket: &OwnedFd, bytes: &[u8]) -> Result<usize, Failure> {
    let sent = send(socket, bytes, SendFlags::NOSIGNAL).map_err(io::Error::from);
    Ok(ready(sent)?.unwrap_or_default())
}

/// True when the reply is complete.
fn receive(slot: &mut Slot, script: &Script, buffer: &mut [u8], gone: bool) -> Result<bool, Failure> {
    let Some(socket) = &slot.socket else { return Ok(false) };
    loop {
        let read = recv(socket, &mut *buffer, RecvFlags::empty()).map(|(_, read)| read);
        let Some(read) = ready(read.map_err(io::Error::from))? else { return Ok(false) };
        if read == 0 {
            return Err(Failure::ClosedEarly);
        }
        let fits = if slot.busy {
            script.fits(slot.shift, slot.received, buffer.get(..read).unwrap_or_default())
        } else {
            !script.is_checked()
        };
        if !fits {
            return Err(Failure::WrongBytes);
        }
        slot.received += read;
        if slot.busy && slot.received >= script.reply_size() {
            slot.busy = false;
            return Ok(true);
        }
        // A short read has emptied the socket, and the next byte brings an edge; an end has brought its edge already.
        if read < buffer.len() && !gone {
            return Ok(false);
        }
    }
}

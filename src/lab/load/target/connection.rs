//! One connection of a target.

use std::io;

use rustix::{
    fd::OwnedFd,
    net::{RecvFlags, SendFlags, recv, send},
};

use super::{Served, Serves};
use crate::lab::load::{
    poll::{Event, EventFlags, Poll, ready, token},
    script::{Ask, HEAD},
    socket::swallow,
};

/// What the connections of a thread share.
pub(super) struct Desk {
    /// Bytes on their way. Where a target makes up what it sends, it is the filler.
    pub(super) buffer: Vec<u8>,
    pub(super) served: Served,
}

/// An accepted connection.
pub(super) struct Connection {
    socket: OwnedFd,
    role: Role,
}

enum Role {
    /// With the bytes that the socket did not take; nothing is read before they have gone.
    Echo {
        rest: Vec<u8>,
        gone: usize,
    },
    Bulk(Ask),
    /// The head, and how much of it is there.
    Unknown {
        head: [u8; HEAD],
        have: usize,
    },
    Replies(Replies),
}

/// Requests that are counted by their size, and the replies for them.
struct Replies {
    request: usize,
    reply: usize,
    /// Bytes of the current request that are there.
    have: usize,
    /// Bytes of replies still to be sent.
    owed: usize,
}

impl Connection {
    pub(super) const fn new(socket: OwnedFd, serves: Serves) -> Self {
        let role = match serves {
            Serves::Echo => Role::Echo { rest: Vec::new(), gone: 0 },
            Serves::Sink => Role::Bulk(Ask::Sink),
            Serves::Source => Role::Bulk(Ask::Source),
            Serves::Asked => Role::Unknown { head: [0; HEAD], have: 0 },
        };
        Self { socket, role }
    }

    pub(super) const fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    /// Replies are sent until the socket takes no more, so edges will do. Bulk and echoes leave something for the next
    /// turn, so that others get theirs.
    pub(super) const fn wanted(&self) -> EventFlags {
        match &self.role {
            Role::Echo { .. } => EventFlags::IN,
            Role::Bulk(ask) if ask.sends() => EventFlags::IN.union(EventFlags::OUT),
            Role::Bulk(_) => EventFlags::IN,
            Role::Unknown { .. } | Role::Replies(_) => {
                EventFlags::IN.union(EventFlags::OUT).union(EventFlags::ET)
            }
        }
    }

    /// False when the connection is over.
    pub(super) fn turn(&mut self, poll: &Poll, event: &Event, desk: &mut Desk) -> io::Result<bool> {
        if matches!(self.role, Role::Unknown { .. }) && !self.learn(poll, event, desk)? {
            return Ok(false);
        }
        let flags = event.flags;
        match &mut self.role {
            Role::Unknown { .. } => Ok(true),
            Role::Bulk(ask) => bulk(&self.socket, *ask, flags, desk),
            Role::Replies(replies) => {
                let open = !flags.contains(EventFlags::IN) || replies.take(&self.socket, desk)?;
                replies.give(&self.socket, desk)?;
                Ok(open)
            }
            Role::Echo { rest, gone } => {
                let waited = !rest.is_empty();
                let open = echo(&self.socket, rest, gone, desk)?;
                if waited == rest.is_empty() {
                    let flags = if waited { EventFlags::IN } else { EventFlags::OUT };
                    poll.modify(&self.socket, token(event), flags)?;
                }
                Ok(open)
            }
        }
    }

    /// Reads the head, and no more; false when the connection is over.
    fn learn(&mut self, poll: &Poll, event: &Event, desk: &mut Desk) -> io::Result<bool> {
        let Role::Unknown { head, have } = &mut self.role else { return Ok(true) };
        let room = head.get_mut(*have..).unwrap_or_default();
        let read = recv(&self.socket, room, RecvFlags::empty()).map(|(_, read)| read);
        let Some(read) = ready(read.map_err(io::Error::from))? else { return Ok(true) };
        if read == 0 {
            return Ok(false);
        }
        *have += read;
        desk.served.received += read as u64;
        if *have < HEAD {
            // A short read has emptied the socket.
            return Ok(true);
        }
        let (head, have) = (*head, *have);
        self.role = match Ask::parse(head).ok_or(io::ErrorKind::InvalidData)? {
            Ask::Reply { request, reply } => {
                let (request, reply) = (request as usize, reply as usize);
                let owed = if have == request { reply } else { 0 };
                Role::Replies(Replies { request, reply, have: have % request, owed })
            }
            ask @ (Ask::Source | Ask::Sink | Ask::Both) => Role::Bulk(ask),
        };
        if matches!(self.role, Role::Bulk(_)) {
            poll.modify(&self.socket, token(event), self.wanted())?;
        }
        Ok(true)
    }
}

impl Replies {
    /// Reads what is there and adds up what it asks for; false at the end.
    fn take(&mut self, socket: &OwnedFd, desk: &mut Desk) -> io::Result<bool> {
        loop {
            let Some(read) = swallow(socket, &mut desk.buffer)? else { return Ok(true) };
            if read == 0 {
                return Ok(false);
            }
            desk.served.received += read as u64;
            self.have += read;
            self.owed += self.have / self.request * self.reply;
            self.have %= self.request;
            // A short read has emptied the socket: the next byte brings an edge.
            if read < desk.buffer.len() {
                return Ok(true);
            }
        }
    }

    fn give(&mut self, socket: &OwnedFd, desk: &mut Desk) -> io::Result<()> {
        while self.owed > 0 {
            let part = desk.buffer.get(..self.owed.min(desk.buffer.len())).unwrap_or(&desk.buffer);
            let sent = send(socket, part, SendFlags::NOSIGNAL).map_err(io::Error::from);
            let Some(sent) = ready(sent)? else { return Ok(()) };
            desk.served.sent += sent as u64;
            self.owed -= sent;
        }
        Ok(())
    }
}

fn bulk(socket: &OwnedFd, ask: Ask, flags: EventFlags, desk: &mut Desk) -> io::Result<bool> {
    if flags.intersects(EventFlags::ERR | EventFlags::HUP) {
        return Ok(false);
    }
    if flags.contains(EventFlags::IN) {
        match swallow(socket, &mut desk.buffer)? {
            Some(0) => return Ok(false),
            Some(read) => desk.served.received += read as u64,
            None => {}
        }
    }
    if ask.sends() && flags.contains(EventFlags::OUT) {
        let sent = send(socket, &desk.buffer, SendFlags::NOSIGNAL).map_err(io::Error::from);
        desk.served.sent += ready(sent)?.unwrap_or_default() as u64;
    }
    Ok(true)
}

/// One read and one write, or what is left of an earlier write; false at the end.
fn echo(socket: &OwnedFd, rest: &mut Vec<u8>, gone: &mut usize, desk: &mut Desk) -> io::Result<bool> {
    if !rest.is_empty() {
        *gone += transmit(socket, rest.get(*gone..).unwrap_or_default(), &mut desk.served)?;
        if *gone == rest.len() {
            // With its memory: a connection that waits for nothing owns none.
            (*rest, *gone) = (Vec::new(), 0);
        }
        return Ok(true);
    }
    let read = recv(socket, &mut *desk.buffer, RecvFlags::empty()).map(|(_, read)| read);
    let Some(read) = ready(read.map_err(io::Error::from))? else { return Ok(true) };
    if read == 0 {
        return Ok(false);
    }
    desk.served.received += read as u64;
    let bytes = desk.buffer.get(..read).unwrap_or_default();
    let sent = transmit(socket, bytes, &mut desk.served)?;
    rest.extend_from_slice(bytes.get(sent..).unwrap_or_default());
    Ok(true)
}

fn transmit(socket: &OwnedFd, bytes: &[u8], served: &mut Served) -> io::Result<usize> {
    let sent = send(socket, bytes, SendFlags::NOSIGNAL).map_err(io::Error::from);
    let sent = ready(sent)?.unwrap_or_default();
    served.sent += sent as u64;
    Ok(sent)
}

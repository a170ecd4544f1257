//! Clients of which nothing but a ClientHello must be known, heard without a wait: whoever carries such a session asks again
//! when more has come. The hello stays in the socket, so a client that stalls costs no memory for what it has sent.

use std::{cell::RefCell, sync::Arc};

use rustix::{
    io::Errno,
    net::{RecvFlags, recv},
};
use tokio::time::Instant;

use super::{destination, ended, hello};
use crate::{
    proxy::{peer::Peer, session::Books},
    state::{AtEntry, Entry},
    telemetry::{Cause, End, Side, Stage},
    wire::hello::{Hello, Progress},
};

/// Room for a look at a hello: nearly all of today take less.
const ROOM: usize = 4096;

thread_local! {
    static SHOWN: RefCell<[u8; ROOM]> = const { RefCell::new([0; ROOM]) };
}

/// What a look at a client has come to that was just accepted.
pub(in crate::proxy) enum Glance {
    /// All is known that has to be.
    Heard,
    /// It has not said everything yet.
    Waits(Box<Hearing>),
    /// More must come first than a hello.
    Slow,
    /// The session is over.
    Over(End),
}

/// Looks at a client that was just accepted.
pub(in crate::proxy) fn glance(client: &Peer, books: &mut Books, entry: &Arc<Entry>) -> Glance {
    if !entry.only_hears() {
        return Glance::Slow;
    }
    let mut coming = Coming { hello: Hello::new(entry.hello_bytes), seen: 0 };
    let heard = !entry.reads_hello() || {
        match coming.look(client, books, entry) {
            Ok(heard) => heard,
            Err(end) => return Glance::Over(end),
        }
    };
    let settled =
        if heard { settle(client, books, entry).map(|()| Glance::Heard) } else { wait(books, entry, coming) };
    settled.unwrap_or_else(Glance::Over)
}

/// A client that has not said everything yet.
pub(in crate::proxy) struct Hearing {
    entry: Arc<Entry>,
    coming: Coming,
    /// When it must have.
    deadline: Instant,
    /// It counts among those that have not told yet what they want.
    _there: AtEntry,
}

impl Hearing {
    /// Listens again; `None` while more must come. `over`: the client sends no more.
    pub(in crate::proxy) fn hear(
        &mut self,
        client: &Peer,
        books: &mut Books,
        over: bool,
        now: Instant,
    ) -> Option<Result<(), End>> {
        let cause = match self.coming.look(client, books, &self.entry) {
            Ok(true) => return Some(settle(client, books, &self.entry)),
            Err(end) => return Some(Err(end)),
            Ok(false) if over && self.coming.seen == 0 => Cause::Closed,
            Ok(false) if over => Cause::Truncated,
            Ok(false) if now >= self.deadline => Cause::TimedOut,
            Ok(false) => return None,
        };
        Some(Err(ended(Side::Client, Stage::Accept, cause)))
    }

    /// When it is over at the latest.
    pub(in crate::proxy) const fn deadline(&self) -> Instant {
        self.deadline
    }
}

fn wait(books: &mut Books, entry: &Arc<Entry>, coming: Coming) -> Result<Glance, End> {
    let there = entry.begin(&books.listener).map_err(|why| books.refuse(why))?;
    let (entry, deadline) = (Arc::clone(entry), Instant::now() + entry.handshake_timeout);
    Ok(Glance::Waits(Box::new(Hearing { entry, coming, deadline, _there: there })))
}

/// Learns what else routes ask for.
fn settle(client: &Peer, books: &mut Books, entry: &Entry) -> Result<(), End> {
    if entry.routes.ask_for_destination() { destination::read(client, books, entry) } else { Ok(()) }
}

/// A hello of which some may be here.
struct Coming {
    hello: Hello,
    /// What was here at the last look, in bytes.
    seen: usize,
}

impl Coming {
    /// Looks at what is here now. True if nothing has to be waited for: it is a whole one, or one that names nothing.
    fn look(&mut self, client: &Peer, books: &mut Books, entry: &Entry) -> Result<bool, End> {
        match shown(client, entry.hello_bytes, |bytes| self.judge(bytes)) {
            Ok(progress) => hello::learn(books, progress),
            Err(Errno::AGAIN | Errno::INTR) => Ok(false),
            Err(error) => Err(ended(Side::Client, Stage::Accept, Cause::of(&error.into()))),
        }
    }

    fn judge(&mut self, bytes: &[u8]) -> Progress {
        if bytes.len() <= self.seen {
            return Progress::More;
        }
        self.seen = bytes.len();
        self.hello.look(bytes)
    }
}

/// Shows `look` what the client has sent, from its first byte, and at most so many bytes; they stay where they are.
fn shown<T>(client: &Peer, most: usize, look: impl FnOnce(&[u8]) -> T) -> Result<T, Errno> {
    const FLAGS: RecvFlags = RecvFlags::PEEK.union(RecvFlags::DONTWAIT);
    SHOWN.with_borrow_mut(|room| {
        let (_, length) = recv(client, &mut room[..], FLAGS)?;
        if length < ROOM || most <= ROOM {
            return Ok(look(room.get(..length).unwrap_or_default()));
        }
        let mut room = vec![0; most];
        let (_, length) = recv(client, &mut room[..], FLAGS)?;
        Ok(look(room.get(..length).unwrap_or_default()))
    })
}

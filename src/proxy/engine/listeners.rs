//! The engine's listening sockets: accepting without a call too many, pausing where descriptors run out, and emptying the
//! queue before closing.

use std::{io, net::SocketAddr, net::TcpListener, sync::Arc};

use rustix::event::epoll::EventFlags;
use tokio::time::Instant;

use super::poll::{LISTENERS, Poll};
use crate::{
    net,
    proxy::{
        accept::{self, BATCH, Counted, FLUSH, PAUSE, Taken},
        peer::Peer,
    },
    state::{ListenerCell, Shared},
};

/// Every listener of one worker.
#[derive(Default)]
pub(super) struct Listeners {
    open: Vec<Option<Listening>>,
    /// Places in `open` that are to be looked at in the next turn: most turns have none, however many listeners there are.
    due: Vec<usize>,
    /// Counts the engine's turns.
    turn: u64,
}

struct Listening {
    cell: Arc<ListenerCell>,
    socket: TcpListener,
    /// How many connections it may take in its next turn. One, unless it was ready in the last turn too: then the queue
    /// is likely to hold more, and only then a call that finds it empty is worth its price.
    budget: u32,
    /// The turn in which it was last ready.
    ready: Option<u64>,
    state: State,
    _counts: Counted,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Accepting,
    /// Something ran out.
    Paused(Instant),
    /// Takes what still waits in the queue, and gives up at the second time; not before the first, if something ran out.
    Closing(Option<Instant>, Instant),
}

/// A client that was accepted.
pub(super) type Accepted = (Peer, SocketAddr, Arc<ListenerCell>);

impl Listeners {
    /// Accepts on this socket from now on.
    pub(super) fn open(
        &mut self,
        cell: Arc<ListenerCell>,
        socket: TcpListener,
        poll: &Poll,
    ) -> io::Result<()> {
        let place = self.open.iter().position(Option::is_none).unwrap_or(self.open.len());
        poll.add(&socket, word(place), EventFlags::IN)?;
        let counts = Counted::begin();
        let (budget, ready, state) = (1, None, State::Accepting);
        let listening = Listening { cell, socket, budget, ready, state, _counts: counts };
        match self.open.get_mut(place) {
            Some(free) => *free = Some(listening),
            None => self.open.push(Some(listening)),
        }
        Ok(())
    }

    /// Sets changed options on the sockets of one listener.
    pub(super) fn reapply(&self, cell: &Arc<ListenerCell>, options: &net::Listen) {
        for listening in self.open.iter().flatten().filter(|listening| Arc::ptr_eq(&listening.cell, cell)) {
            accept::reapply(&listening.socket, cell, options);
        }
    }

    /// What comes in at the sockets of one listener is another one's from now on.
    pub(super) fn rename(&mut self, from: &Arc<ListenerCell>, to: &Arc<ListenerCell>) {
        for listening in self.open.iter_mut().flatten().filter(|listening| Arc::ptr_eq(&listening.cell, from))
        {
            listening.cell = Arc::clone(to);
        }
    }

    /// Takes what waits in the queue of one listener, or of all, and closes it.
    pub(super) fn close(&mut self, cell: Option<&Arc<ListenerCell>>, poll: &Poll, now: Instant) {
        for (place, slot) in self.open.iter_mut().enumerate() {
            let Some(listening) = slot else { continue };
            let meant = cell.is_none_or(|cell| Arc::ptr_eq(&listening.cell, cell));
            if meant && !matches!(listening.state, State::Closing(..)) {
                // Fails only if it was not watched.
                poll.delete(&listening.socket).unwrap_or_default();
                listening.state = State::Closing(None, now + FLUSH);
                attend(&mut self.due, place);
            }
        }
    }

    /// Notes that this listener's queue holds something.
    pub(super) fn ready(&mut self, word: u64) {
        let place = usize::try_from(word - LISTENERS).unwrap_or(usize::MAX);
        if let Some(Some(listening)) = self.open.get_mut(place) {
            let again = listening.ready.is_some_and(|turn| turn + 1 == self.turn);
            listening.budget = if again { (listening.budget * 2).min(BATCH) } else { 1 };
            listening.ready = Some(self.turn);
            attend(&mut self.due, place);
        }
    }

    /// Accepts what this turn allows. Returns when to look again in any case, and whether that is now.
    pub(super) fn accept(
        &mut self,
        poll: &Poll,
        shared: &Shared,
        now: Instant,
        accepted: &mut Vec<Accepted>,
    ) -> Next {
        let mut next = Next::default();
        self.due.retain(|place| {
            let place = *place;
            let Some(slot) = self.open.get_mut(place) else { return false };
            let Some(listening) = slot else { return false };
            match listening.state {
                State::Accepting if listening.ready == Some(self.turn) => {
                    if listening.take(listening.budget, shared, accepted) == Queue::Short {
                        poll.modify(&listening.socket, word(place), EventFlags::empty()).unwrap_or_default();
                        listening.state = State::Paused(now + PAUSE);
                        next.at(now + PAUSE);
                    }
                }
                State::Accepting => {}
                State::Paused(until) if now < until => next.at(until),
                State::Paused(_) => {
                    poll.modify(&listening.socket, word(place), EventFlags::IN).unwrap_or_default();
                    listening.state = State::Accepting;
                }
                State::Closing(Some(until), _) if now < until => next.at(until),
                State::Closing(_, give_up) => match listening.take(BATCH, shared, accepted) {
                    Queue::Short if now < give_up => {
                        listening.state = State::Closing(Some(now + PAUSE), give_up);
                        next.at(now + PAUSE);
                    }
                    // Clients who come faster than they are taken must not hold up the end.
                    Queue::More if now < give_up => {
                        listening.state = State::Closing(None, give_up);
                        next.busy = true;
                    }
                    Queue::Empty | Queue::Short | Queue::More => {
                        next.closed += 1;
                        *slot = None;
                    }
                },
            }
            slot.as_ref().is_some_and(|listening| listening.state != State::Accepting)
        });
        self.turn += 1;
        next
    }
}

/// What is to be done after a turn of accepting.
#[derive(Default)]
pub(super) struct Next {
    /// There is more to take.
    pub(super) busy: bool,
    /// When to look again at the latest.
    pub(super) look: Option<Instant>,
    /// Sockets that were closed.
    pub(super) closed: usize,
}

impl Next {
    fn at(&mut self, at: Instant) {
        self.look = Some(self.look.map_or(at, |look| look.min(at)));
    }
}

/// What a queue was like when the last call was made.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Queue {
    Empty,
    More,
    Short,
}

impl Listening {
    fn take(&mut self, most: u32, shared: &Shared, accepted: &mut Vec<Accepted>) -> Queue {
        for _ in 0..most {
            // What waits in the queue of a listener that closes may have the reserve.
            let taken = match self.state {
                State::Closing(..) => accept::take(&self.socket, &self.cell),
                State::Accepting | State::Paused(_) => {
                    accept::next(&self.socket, &self.cell, shared, accepted.len())
                }
            };
            match taken {
                Taken::Client(client, address) => accepted.push((client, address, Arc::clone(&self.cell))),
                Taken::Nothing => {
                    self.budget = 1;
                    return Queue::Empty;
                }
                Taken::Lost => {}
                Taken::Short => return Queue::Short,
            }
        }
        Queue::More
    }
}

fn attend(due: &mut Vec<usize>, place: usize) {
    if !due.contains(&place) {
        due.push(place);
    }
}

fn word(place: usize) -> u64 {
    LISTENERS + place as u64
}

#[cfg(test)]
mod tests {
    use std::{net::TcpStream, time::Duration};

    use super::*;
    use crate::{
        ids::ListenerName,
        state::{Reports, Sockets},
        telemetry::SessionLog,
    };

    #[test]
    fn a_queue_that_is_filled_as_fast_as_it_is_emptied_holds_up_no_close() {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        socket2::SockRef::from(&socket).listen(1024).unwrap();
        socket.set_nonblocking(true).unwrap();
        let address = socket.local_addr().unwrap();
        let cell = Arc::new(ListenerCell::new(ListenerName::from("l"), address));
        let shared = Shared::new(Reports::new().0, Sockets::new(1).0, SessionLog::off());
        let (poll, now) = (Poll::new().unwrap(), Instant::now());
        let mut listeners = Listeners::default();
        listeners.open(cell, socket, &poll).unwrap();
        listeners.close(None, &poll, now);
        let mut accepted = Vec::new();
        let mut clients = Vec::new();
        for turn in 0..20 {
            // More than a turn takes.
            clients.extend((0..80).map(|_| TcpStream::connect(address).unwrap()));
            let next = listeners.accept(&poll, &shared, now + Duration::from_secs(turn), &mut accepted);
            if next.closed == 1 {
                assert!((5..10).contains(&turn), "after {turn} s");
                return;
            }
            assert!(next.busy);
            accepted.clear();
        }
        panic!("still open");
    }
}

//! Epoll, with the words that this engine gives to it.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use rustix::{
    buffer::spare_capacity,
    event::{
        Timespec,
        epoll::{self, CreateFlags, Event, EventData, EventFlags},
    },
    io::Errno,
};
use tokio::time::Instant;

/// Events taken at once: enough to share a wake-up, few enough that none of them waits long.
const BATCH: usize = 128;

/// The mailbox's word; words below 2^32 are no session's.
pub(super) const BELL: u64 = 0;

/// The timer's word.
pub(super) const TIMER: u64 = 1;

/// The word of the first listener.
pub(super) const LISTENERS: u64 = 2;

/// How long to look for the next event before sleeping, while much is being moved.
const BRIEFLY: Duration = Duration::from_micros(10);

/// The most chances that are left alone after misses.
const LONGEST_PAUSE: u32 = 63;

const AT_ONCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// An epoll instance.
pub(super) struct Poll {
    epoll: OwnedFd,
    brief: Brief,
}

impl Poll {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { epoll: epoll::create(CreateFlags::CLOEXEC)?, brief: Brief::default() })
    }

    /// Room for the events of one wait.
    pub(super) fn room() -> Vec<Event> {
        Vec::with_capacity(BATCH)
    }

    pub(super) fn add(&self, source: impl AsFd, word: u64, flags: EventFlags) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, source, EventData::new_u64(word), flags)?)
    }

    pub(super) fn modify(&self, source: impl AsFd, word: u64, flags: EventFlags) -> io::Result<()> {
        Ok(epoll::modify(&self.epoll, source, EventData::new_u64(word), flags)?)
    }

    pub(super) fn delete(&self, source: impl AsFd) -> io::Result<()> {
        Ok(epoll::delete(&self.epoll, source)?)
    }

    /// Fills `events` with what has happened; waits for it as long as `patience` says.
    pub(super) fn wait(&mut self, events: &mut Vec<Event>, patience: Patience) -> io::Result<()> {
        match patience {
            Patience::None => return self.look(events, Some(&AT_ONCE)),
            Patience::Brief if self.brief.is_worth_it() => {
                let until = Instant::now() + BRIEFLY;
                self.look(events, Some(&AT_ONCE))?;
                while events.is_empty() && Instant::now() < until {
                    self.look(events, Some(&AT_ONCE))?;
                }
                self.brief.learn(!events.is_empty());
                if !events.is_empty() {
                    return Ok(());
                }
            }
            Patience::Brief | Patience::Long => {}
        }
        self.look(events, None)
    }

    fn look(&self, events: &mut Vec<Event>, limit: Option<&Timespec>) -> io::Result<()> {
        events.clear();
        match epoll::wait(&self.epoll, spare_capacity(events), limit) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// How long to wait for events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Patience {
    /// Not at all: there is other work.
    None,
    /// Until one comes, which is likely to be in a moment.
    Brief,
    /// Until one comes.
    Long,
}

/// Whether to look again and again for [`BRIEFLY`] before sleeping. Where the next event comes that soon, that is cheaper
/// than to sleep and be woken, for this CPU and for the one that would have to wake it. Where it does not, it is a waste:
/// after each miss it is left alone for about twice as many times as before.
#[derive(Debug, Default)]
struct Brief {
    pause: u32,
    left: u32,
}

impl Brief {
    const fn is_worth_it(&mut self) -> bool {
        let worth = self.left == 0;
        self.left = self.left.saturating_sub(1);
        worth
    }

    fn learn(&mut self, hit: bool) {
        self.pause = if hit { 0 } else { (self.pause * 2 + 1).min(LONGEST_PAUSE) };
        self.left = self.pause;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn misses_make_brief_waits_rare_and_a_hit_makes_them_usual() {
        let mut brief = Brief::default();
        let mut tried = 0;
        for _ in 0..1000 {
            if brief.is_worth_it() {
                tried += 1;
                brief.learn(false);
            }
        }
        assert!((15..30).contains(&tried), "{tried} of 1000");
        while !brief.is_worth_it() {}
        brief.learn(true);
        for _ in 0..10 {
            assert!(brief.is_worth_it());
            brief.learn(true);
        }
    }
}

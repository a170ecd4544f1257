//! Epoll, with the words that this engine gives to it.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use rustix::{
    buffer::spare_capacity,
    event::{
        Timespec,
        epoll::{self, CreateFlags, Event, EventData, EventFlags},
    },
    io::Errno,
};

/// Events taken at once: enough to share a wake-up, few enough that none of them waits long.
const BATCH: usize = 128;

/// The mailbox's word; words below 2^32 are no session's.
pub(super) const BELL: u64 = 0;

/// The timer's word.
pub(super) const TIMER: u64 = 1;

/// The word of the first listener.
pub(super) const LISTENERS: u64 = 2;

/// An epoll instance.
pub(super) struct Poll(OwnedFd);

impl Poll {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self(epoll::create(CreateFlags::CLOEXEC)?))
    }

    /// Room for the events of one wait.
    pub(super) fn room() -> Vec<Event> {
        Vec::with_capacity(BATCH)
    }

    pub(super) fn add(&self, source: impl AsFd, word: u64, flags: EventFlags) -> io::Result<()> {
        Ok(epoll::add(&self.0, source, EventData::new_u64(word), flags)?)
    }

    pub(super) fn modify(&self, source: impl AsFd, word: u64, flags: EventFlags) -> io::Result<()> {
        Ok(epoll::modify(&self.0, source, EventData::new_u64(word), flags)?)
    }

    /// Gives a source another word that may be watched already.
    pub(super) fn put(&self, source: impl AsFd, word: u64, flags: EventFlags) -> io::Result<()> {
        match epoll::modify(&self.0, &source, EventData::new_u64(word), flags) {
            Err(Errno::NOENT) => self.add(source, word, flags),
            done => Ok(done?),
        }
    }

    pub(super) fn delete(&self, source: impl AsFd) -> io::Result<()> {
        Ok(epoll::delete(&self.0, source)?)
    }

    /// Fills `events` with what has happened; waits for it unless there is other work.
    pub(super) fn wait(&self, events: &mut Vec<Event>, busy: bool) -> io::Result<()> {
        const AT_ONCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
        events.clear();
        match epoll::wait(&self.0, spare_capacity(events), busy.then_some(&AT_ONCE)) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

//! Pipes for splice(2): bytes move from socket to socket without passing through user space. Each worker keeps a few
//! pipes; a session has one only while bytes wait in it.

use std::{
    cell::RefCell,
    io,
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use rustix::{
    io::Errno,
    pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice},
};
use tokio::time::Instant;

use crate::proxy::accept;

/// What a pipe is asked to hold. Measured against 64 KiB: no difference up to 64 KiB ready, a fifth to a third less CPU at
/// 128 to 256 KiB; 512 KiB takes another 6 % off where both directions are busy, and 1 MiB 1 % more. An unprivileged
/// user may have 128 such pipes, which readers that pause can hold on to.
const WANTED: usize = 512 * 1024;

/// With less than this, copying is as good. An unprivileged user gets one page a pipe beyond `pipe-user-pages-soft`.
pub(super) const LEAST: usize = 64 * 1024;

/// Time before a pipe is asked for again where none was to be had: asking costs more than copying.
const SHORTAGE: Duration = Duration::from_millis(100);

/// Empty pipes that a worker keeps.
const KEPT: usize = 32;

thread_local! {
    static POOL: RefCell<Pool> = const { RefCell::new(Pool { pipes: Vec::new(), unused: 0, short: None }) };
}

/// A worker's store of empty pipes.
struct Pool {
    pipes: Vec<Pipe>,
    /// Pipes that nobody has wanted since the last trim.
    unused: usize,
    /// Until when no new one is asked for, as none was to be had.
    short: Option<Instant>,
}

/// A pipe that belongs to nobody else.
#[derive(Debug)]
pub(super) struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    capacity: usize,
    held: usize,
}

/// An empty pipe from the worker's store, or a new one. `None` when there is none to be had.
pub(super) fn take() -> Option<Pipe> {
    POOL.with_borrow_mut(|pool| {
        let kept = pool.pipes.pop();
        pool.unused = pool.unused.min(pool.pipes.len());
        if kept.is_some() {
            return kept;
        }
        if pool.short.is_some_and(|until| Instant::now() < until) {
            return None;
        }
        let fresh = Pipe::new().ok().flatten();
        pool.short = fresh.is_none().then(|| Instant::now() + SHORTAGE);
        fresh
    })
}

/// Puts an empty pipe back for the next session. One that holds bytes is closed: they belong to a session that is over.
pub(super) fn give_back(pipe: Pipe) {
    if pipe.held == 0 {
        POOL.with_borrow_mut(|pool| {
            if pool.pipes.len() < KEPT {
                pool.pipes.push(pipe);
            }
        });
    }
}

/// Closes the pipes that nobody has wanted since the last call, so that descriptors come back after a burst.
pub(in crate::proxy) fn trim() {
    POOL.with_borrow_mut(|pool| {
        let keep = pool.pipes.len() - pool.unused.min(pool.pipes.len());
        pool.pipes.truncate(keep);
        pool.unused = keep;
    });
}

/// True while empty pipes are kept.
pub(in crate::proxy) fn keeps_pipes() -> bool {
    POOL.with_borrow(|pool| !pool.pipes.is_empty())
}

/// True when the kernel does not splice between such descriptors at all. Where system calls are filtered, a forbidden one says
/// that it is not permitted.
pub(super) fn is_refused(error: &io::Error) -> bool {
    let error = Errno::from_io_error(error);
    matches!(error, Some(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::PERM | Errno::ACCESS))
}

/// True when it would, and has no memory for it now.
pub(super) fn is_short(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::NOMEM | Errno::NOBUFS))
}

impl Pipe {
    /// One of this size.
    #[cfg(test)]
    pub(super) fn of(size: usize) -> io::Result<Self> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        let capacity = fcntl_setpipe_size(&write, size)?;
        Ok(Self { read, write, capacity, held: 0 })
    }

    fn new() -> io::Result<Option<Self>> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // Slow readers keep their pipes, and whoever waits to be accepted or to ask needs descriptors too.
        if accept::is_reserved(&read) || accept::is_reserved(&write) {
            return Ok(None);
        }
        // Asked for and got may differ; a refusal leaves the default of 64 KiB.
        let capacity =
            fcntl_setpipe_size(&write, WANTED).or_else(|_| rustix::pipe::fcntl_getpipe_size(&write))?;
        Ok((capacity >= LEAST).then_some(Self { read, write, capacity, held: 0 }))
    }

    /// Bytes that wait in the pipe.
    pub(super) const fn held(&self) -> usize {
        self.held
    }

    /// Takes from the socket what it has, up to the pipe's capacity; 0 at the end of the stream.
    pub(super) fn fill_from(&mut self, source: impl AsFd) -> io::Result<usize> {
        let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        let taken = splice(source, None, &self.write, None, self.capacity, flags)?;
        self.held += taken;
        Ok(taken)
    }

    /// Takes everything out of the pipe, to be copied.
    pub(super) fn take_out(&mut self) -> io::Result<Box<[u8]>> {
        let mut bytes = vec![0; self.held];
        let mut have = 0;
        while let Some(room) = bytes.get_mut(have..).filter(|room| !room.is_empty()) {
            match rustix::io::retry_on_intr(|| rustix::io::read(&self.read, &mut *room))? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => have += read,
            }
        }
        self.held = 0;
        Ok(bytes.into())
    }

    /// Gives to the socket what it takes.
    pub(super) fn drain_to(&mut self, sink: impl AsFd) -> io::Result<usize> {
        let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        let given = splice(&self.read, None, sink, None, self.held, flags)?;
        self.held -= given;
        Ok(given)
    }
}

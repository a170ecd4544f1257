//! One direction of a relay. Small amounts are copied through one buffer that all sessions of the worker share; a read
//! that fills it moves the direction to splice(2), and a few small transfers move it back. A direction owns memory or a
//! pipe only while bytes wait in it.

use std::{cell::RefCell, io};

use rustix::net::{RecvFlags, SendFlags};

use super::{
    Socket,
    splice::{self, Pipe},
};
use crate::net;

/// The worker's buffer. A read that fills it is the sign that splice pays: measured, copy and splice cost the same at
/// 16 KiB, and copy twice as much at 64 KiB.
const BUFFER: usize = 16 * 1024;

/// Bytes that one direction moves before it lets others run.
const TURN: usize = 512 * 1024;

/// What a read counts for at least, so that a turn of very small ones has an end too.
const LEAST: usize = 256;

/// Small transfers in a row after which splice no longer pays.
const SMALL_IN_A_ROW: u8 = 4;

thread_local! {
    static SHARED: RefCell<Box<[u8]>> = RefCell::new(vec![0; BUFFER].into());
}

/// One direction.
#[derive(Debug, Default)]
pub(super) struct Flow {
    /// Bytes delivered to the sink's socket.
    pub(super) moved: u64,
    /// Bytes that were taken out of the source and that the sink had no room for.
    waiting: Option<Box<Waiting>>,
    mode: Mode,
    end: Progress,
    /// Read even though the driver says that nothing is there.
    poked: bool,
}

/// What one call of [`Flow::step`] has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// A socket has no more to give or to take; the driver knows which.
    Waiting,
    /// There is more to do, after the others.
    Again,
    /// The source has ended, and everything before its end was delivered.
    Ended,
}

/// Where bytes wait.
#[derive(Debug)]
enum Waiting {
    /// Copied ones, from `start` on.
    Tail { bytes: Box<[u8]>, start: usize },
    /// Spliced ones.
    Pipe(Pipe),
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Progress {
    #[default]
    Reading,
    /// The source has ended; what waits is still to be delivered.
    Flushing,
    /// The end was passed on.
    Done,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Mode {
    #[default]
    Copy,
    /// With the number of small transfers in a row.
    Splice(u8),
    /// The kernel refused to splice between these sockets.
    CopyOnly,
}

/// Which end of a direction failed.
#[derive(Debug)]
pub(super) enum Broken {
    Source(io::Error),
    Sink(io::Error),
}

impl Flow {
    /// Moves bytes until one side has no more to give or to take, and passes the end of the source on to the sink. The
    /// `last` of two directions leaves the passing on to the close that follows.
    pub(super) fn step<S: Socket>(&mut self, source: &S, sink: &S, last: bool) -> Result<Step, Broken> {
        if self.end == Progress::Done {
            return Ok(Step::Ended);
        }
        let step = self.deliver(source, sink)?;
        if step == Step::Ended {
            self.end = Progress::Done;
            if !last {
                net::end_of_stream(sink).map_err(Broken::Sink)?;
            }
        }
        Ok(step)
    }

    /// True once the end was passed on.
    pub(super) fn is_done(&self) -> bool {
        self.end == Progress::Done
    }

    /// As [`Flow::step`], but does not pass the end on.
    pub(super) fn deliver<S: Socket>(&mut self, source: &S, sink: &S) -> Result<Step, Broken> {
        let mut turn = 0;
        loop {
            if self.waiting.is_some() && !self.flush(sink)? {
                return Ok(Step::Waiting);
            }
            if self.end != Progress::Reading {
                return Ok(Step::Ended);
            }
            if turn >= TURN {
                return Ok(Step::Again);
            }
            if !self.poked && !source.readable().map_err(Broken::Source)? {
                return Ok(Step::Waiting);
            }
            let moved = match self.mode {
                Mode::Splice(small) if !self.poked => self.splice(source, small)?,
                _ => self.copy(source, sink)?,
            };
            turn += moved.max(LEAST);
        }
    }

    /// One whose source has ended, and whose end was passed on.
    pub(super) fn done() -> Self {
        Self { end: Progress::Done, ..Self::default() }
    }

    /// One that has these bytes already.
    pub(super) fn owing(bytes: Box<[u8]>) -> Self {
        Self { waiting: Some(Box::new(Waiting::Tail { bytes, start: 0 })), ..Self::default() }
    }

    /// What was read of a source that goes on, if not a byte of it was delivered.
    pub(super) fn undelivered(&mut self) -> Option<Box<[u8]>> {
        if self.moved > 0 || self.end != Progress::Reading {
            return None;
        }
        match self.waiting.take().map(|waiting| *waiting) {
            None => Some(Box::default()),
            Some(Waiting::Tail { bytes, .. }) => Some(bytes),
            Some(Waiting::Pipe(_)) => None,
        }
    }

    /// True while bytes wait for the sink: the source is not read then.
    pub(super) const fn is_stalled(&self) -> bool {
        self.waiting.is_some()
    }

    /// True while what comes is spliced.
    pub(super) const fn splices(&self) -> bool {
        matches!(self.mode, Mode::Splice(_))
    }

    /// Has the next step read once whatever the driver says. A read stops short at an urgent mark (tcp(7)), which looks
    /// like an emptied socket; the bytes behind the mark raise no edge of their own.
    pub(super) const fn poke(&mut self) {
        self.poked = true;
    }

    /// Delivers what waits. False when the sink takes no more.
    fn flush<S: Socket>(&mut self, sink: &S) -> Result<bool, Broken> {
        while let Some(waiting) = &mut self.waiting {
            if !sink.writable().map_err(Broken::Sink)? {
                return Ok(false);
            }
            let written = match waiting.as_mut() {
                Waiting::Tail { bytes, start } => {
                    let written = try_send(sink, bytes.get(*start..).unwrap_or_default());
                    *start += written.as_ref().copied().unwrap_or_default();
                    written
                }
                Waiting::Pipe(pipe) => match sink.try_write(|| pipe.drain_to(sink)) {
                    Err(error) if is_passing(&error) => Ok(0),
                    Err(error) if splice::is_refused(&error) || splice::is_short(&error) => {
                        self.mode = if splice::is_refused(&error) { Mode::CopyOnly } else { Mode::Copy };
                        let bytes = pipe.take_out().map_err(Broken::Sink)?;
                        let pipe = std::mem::replace(waiting.as_mut(), Waiting::Tail { bytes, start: 0 });
                        pipe.release();
                        Ok(0)
                    }
                    written => written,
                },
            };
            self.moved += written.map_err(Broken::Sink)? as u64;
            if let Some(done) = self.waiting.take_if(|waiting| waiting.is_over()) {
                done.release();
            }
        }
        Ok(true)
    }

    /// One read into the shared buffer, and one write of what it got. Returns the bytes read.
    fn copy<S: Socket>(&mut self, source: &S, sink: &S) -> Result<usize, Broken> {
        let poked = std::mem::take(&mut self.poked);
        SHARED.with_borrow_mut(|buffer| {
            let read = match try_recv(source, buffer, poked) {
                Ok(Some(read)) => read,
                Ok(None) => return Ok(0),
                Err(error) => return Err(Broken::Source(error)),
            };
            let bytes = buffer.get(..read).unwrap_or_default();
            if bytes.is_empty() {
                self.end = Progress::Flushing;
                return Ok(0);
            }
            let sent = try_send(sink, bytes);
            let written = sent.as_ref().copied().unwrap_or_default();
            self.moved += written as u64;
            // The first bytes are kept even if the sink is dead: another one may take them.
            if (sent.is_ok() || self.moved == 0)
                && let Some(tail @ [_, ..]) = bytes.get(written..)
            {
                self.waiting = Some(Box::new(Waiting::Tail { bytes: tail.into(), start: 0 }));
            }
            sent.map_err(Broken::Sink)?;
            if read == BUFFER && self.mode == Mode::Copy {
                self.mode = Mode::Splice(0);
            }
            // A read stops at an urgent mark, and what is behind it raises no edge; nor does what a full buffer had no room for
            // where the driver knows of nothing.
            self.poked = if read == BUFFER { poked } else { source.may_be_urgent() };
            Ok(read)
        })
    }

    /// One splice from the source into an empty pipe. Returns the bytes taken.
    fn splice<S: Socket>(&mut self, source: &S, small: u8) -> Result<usize, Broken> {
        let Some(mut pipe) = splice::take() else {
            // Descriptors or pipe memory ran out. Copying needs neither.
            self.mode = Mode::Copy;
            return Ok(0);
        };
        // The pipe is empty here, so "would block" can only mean that the socket is.
        let taken = source.try_read(false, || pipe.fill_from(source));
        if let Ok(1..) = taken {
            self.waiting = Some(Box::new(Waiting::Pipe(pipe)));
        } else {
            splice::give_back(pipe);
        }
        match taken {
            // Nothing more, or an urgent mark, at which splice(2) stops and says the same. A plain read steps over the
            // mark, and only its word is taken for an end.
            Ok(0) => {
                self.mode = Mode::Copy;
                self.poked = true;
            }
            Ok(BUFFER..) => self.mode = Mode::Splice(0),
            Ok(_) if small + 1 < SMALL_IN_A_ROW => self.mode = Mode::Splice(small + 1),
            Ok(_) => self.mode = Mode::Copy,
            Err(ref error) if is_passing(error) => self.poked = source.may_be_urgent(),
            Err(ref error) if splice::is_refused(error) => self.mode = Mode::CopyOnly,
            Err(ref error) if splice::is_short(error) => self.mode = Mode::Copy,
            Err(error) => return Err(Broken::Source(error)),
        }
        Ok(taken.unwrap_or_default())
    }
}

impl Waiting {
    const fn is_over(&self) -> bool {
        match self {
            Self::Tail { bytes, start } => *start >= bytes.len(),
            Self::Pipe(pipe) => pipe.held() == 0,
        }
    }

    /// An empty pipe goes to the next who needs one.
    fn release(self) {
        if let Self::Pipe(pipe) = self {
            splice::give_back(pipe);
        }
    }
}

/// Reads once. `None`: nothing there after all. A short read has emptied the socket, which is told to the driver at once,
/// so that no second read is needed to learn it; bytes that come later raise a new edge.
#[inline]
fn try_recv<S: Socket>(source: &S, buffer: &mut [u8], poked: bool) -> io::Result<Option<usize>> {
    let wanted = buffer.len();
    let mut got = None;
    let tried = source.try_read(poked, || {
        let (_, read) = rustix::net::recv(source, &mut *buffer, RecvFlags::DONTWAIT)?;
        got = Some(read);
        if 0 < read && read < wanted { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
    });
    settle(tried, got)
}

/// Writes once: 0 when there is no room after all. A short write has filled the socket, which is told to the driver.
#[inline]
fn try_send<S: Socket>(sink: &S, bytes: &[u8]) -> io::Result<usize> {
    let mut done = None;
    let tried = sink.try_write(|| {
        let written = rustix::net::send(sink, bytes, SendFlags::NOSIGNAL)?;
        done = Some(written);
        if written < bytes.len() { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
    });
    settle(tried, done).map(Option::unwrap_or_default)
}

#[inline]
fn settle(tried: io::Result<()>, done: Option<usize>) -> io::Result<Option<usize>> {
    match tried {
        Ok(()) => Ok(done),
        Err(error) if is_passing(&error) => Ok(done),
        Err(error) => Err(error),
    }
}

/// Errors that only mean "later".
fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::{Read, Seek, Write},
        os::fd::{AsFd, BorrowedFd},
    };

    use super::*;

    /// What can always be spliced from or to.
    struct Endless(File);

    impl AsFd for Endless {
        fn as_fd(&self) -> BorrowedFd<'_> {
            self.0.as_fd()
        }
    }

    impl Socket for Endless {
        fn readable(&self) -> io::Result<bool> {
            Ok(true)
        }

        fn writable(&self) -> io::Result<bool> {
            Ok(true)
        }

        fn may_be_urgent(&self) -> bool {
            false
        }

        fn try_read<T>(&self, _anyway: bool, read: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
            read()
        }

        fn try_write<T>(&self, write: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
            write()
        }
    }

    /// A source of so many bytes, and a sink.
    fn ends(bytes: &[u8]) -> (Endless, Endless) {
        let mut source = tempfile::tempfile().unwrap();
        source.write_all(bytes).unwrap();
        source.rewind().unwrap();
        (Endless(source), Endless(tempfile::tempfile().unwrap()))
    }

    fn splicing() -> Flow {
        Flow { mode: Mode::Splice(0), ..Flow::default() }
    }

    #[test]
    fn a_turn_ends_though_there_is_always_more() {
        let (source, sink) = ends(&vec![7; 8 * TURN]);
        let mut flow = splicing();
        for turns in 1..=3 {
            let before = flow.moved;
            assert_eq!(flow.deliver(&source, &sink).unwrap(), Step::Again, "turn {turns}");
            let moved = usize::try_from(flow.moved - before).unwrap();
            // The last transfer of a turn may take as much as a pipe holds.
            assert!((TURN..2 * TURN).contains(&moved), "{moved}");
        }
    }

    #[test]
    fn a_smaller_pipe_than_asked_for_carries_every_byte() {
        let bytes: Vec<u8> = (0..=250).cycle().take(3 * TURN).collect();
        let (source, sink) = ends(&bytes);
        splice::give_back(Pipe::of(splice::LEAST).unwrap());
        let mut flow = splicing();
        assert_eq!(flow.deliver(&source, &sink).unwrap(), Step::Again);
        assert_eq!(usize::try_from(flow.moved).unwrap(), TURN, "in eight pipes");
        let (mut sink, mut got) = (sink.0, Vec::new());
        sink.rewind().unwrap();
        sink.read_to_end(&mut got).unwrap();
        assert!(bytes.starts_with(&got) && got.len() == TURN);
    }
}

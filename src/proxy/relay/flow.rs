//! One direction of a relay. Small amounts are copied through one buffer that all sessions of the worker share; a read
//! that fills it moves the direction to splice(2), and a few small transfers move it back. A direction owns memory or a
//! pipe only while bytes wait in it.

use std::{
    cell::RefCell,
    io,
    task::{Context, Poll},
};

use rustix::net::{RecvFlags, SendFlags};
use tokio::{io::Interest, net::TcpStream};

use super::splice::{self, Pipe};
use crate::net;

/// The worker's buffer. A read that fills it is the sign that splice pays: measured, copy and splice cost the same at
/// 16 KiB, and copy twice as much at 64 KiB.
const BUFFER: usize = 16 * 1024;

/// Bytes that one direction moves before it lets others run.
const TURN: usize = 256 * 1024;

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
    /// Bytes that were copied out of the source and that the sink had no room for.
    tail: Tail,
    /// A pipe that holds bytes; none while nothing waits in it.
    pipe: Option<Pipe>,
    mode: Mode,
    end: Progress,
    /// Read even though the driver says that nothing is there.
    poked: bool,
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

#[derive(Debug, Default)]
struct Tail {
    bytes: Box<[u8]>,
    start: usize,
}

/// Which end of a direction failed.
#[derive(Debug)]
pub(super) enum Broken {
    Source(io::Error),
    Sink(io::Error),
}

impl Flow {
    /// Moves bytes until one side has no more to give or to take. Ready when the end of the source was passed on to the
    /// sink, or when one of them broke. The `last` of two directions leaves the passing on to the close that follows.
    pub(super) fn poll(
        &mut self,
        context: &mut Context<'_>,
        source: &TcpStream,
        sink: &TcpStream,
        last: bool,
    ) -> Poll<Result<(), Broken>> {
        if self.end == Progress::Done {
            return Poll::Ready(Ok(()));
        }
        std::task::ready!(self.poll_last(context, source, sink))?;
        self.end = Progress::Done;
        if last {
            return Poll::Ready(Ok(()));
        }
        Poll::Ready(net::end_of_stream(sink).map_err(Broken::Sink))
    }

    /// True once the end was passed on.
    pub(super) fn is_done(&self) -> bool {
        self.end == Progress::Done
    }

    /// As [`Flow::poll`], but does not pass the end on.
    pub(super) fn poll_last(
        &mut self,
        context: &mut Context<'_>,
        source: &TcpStream,
        sink: &TcpStream,
    ) -> Poll<Result<(), Broken>> {
        let mut turn = 0;
        loop {
            std::task::ready!(self.poll_flush(context, sink))?;
            if self.end != Progress::Reading {
                return Poll::Ready(Ok(()));
            }
            if turn >= TURN {
                // Others first; this task is run again after them.
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            if !self.poked {
                std::task::ready!(source.poll_read_ready(context)).map_err(Broken::Source)?;
            }
            turn += match self.mode {
                Mode::Splice(small) if !self.poked => self.splice(source, small)?,
                _ => self.copy(source, sink)?,
            };
        }
    }

    /// True while bytes wait for the sink: the source is not read then.
    pub(super) fn is_stalled(&self) -> bool {
        self.waiting() > 0
    }

    /// Has the next poll read once whatever the driver says. A read stops short at an urgent mark (tcp(7)), which looks
    /// like an emptied socket; the bytes behind the mark raise no edge of their own.
    pub(super) const fn poke(&mut self) {
        self.poked = true;
    }

    fn waiting(&self) -> usize {
        self.tail.waiting().len() + self.pipe.as_ref().map_or(0, Pipe::held)
    }

    /// Delivers what waits.
    fn poll_flush(&mut self, context: &mut Context<'_>, sink: &TcpStream) -> Poll<Result<(), Broken>> {
        while self.waiting() > 0 {
            std::task::ready!(sink.poll_write_ready(context)).map_err(Broken::Sink)?;
            let bytes = self.tail.waiting();
            if bytes.is_empty() {
                self.drain(sink)?;
            } else {
                let written = try_send(sink, bytes).map_err(Broken::Sink)?;
                self.moved += written as u64;
                self.tail.advance(written);
            }
        }
        Poll::Ready(Ok(()))
    }

    /// One splice from the pipe to the sink.
    fn drain(&mut self, sink: &TcpStream) -> Result<(), Broken> {
        let Some(pipe) = &mut self.pipe else {
            return Ok(());
        };
        match sink.try_io(Interest::WRITABLE, || pipe.drain_to(sink)) {
            Ok(written) => self.moved += written as u64,
            Err(error) if is_passing(&error) => {}
            Err(error) => return Err(Broken::Sink(error)),
        }
        if let Some(empty) = self.pipe.take_if(|pipe| pipe.held() == 0) {
            splice::give_back(empty);
        }
        Ok(())
    }

    /// One read into the shared buffer, and one write of what it got. Returns the bytes read.
    fn copy(&mut self, source: &TcpStream, sink: &TcpStream) -> Result<usize, Broken> {
        let poked = std::mem::take(&mut self.poked);
        SHARED.with_borrow_mut(|buffer| {
            let read = if poked { recv(source, buffer).map(Some) } else { try_recv(source, buffer) };
            let read = match read {
                Ok(Some(read)) => read,
                Ok(None) => return Ok(0),
                Err(error) if is_passing(&error) => return Ok(0),
                Err(error) => return Err(Broken::Source(error)),
            };
            let bytes = buffer.get(..read).unwrap_or_default();
            if bytes.is_empty() {
                self.end = Progress::Flushing;
                return Ok(0);
            }
            let written = try_send(sink, bytes).map_err(Broken::Sink)?;
            self.moved += written as u64;
            self.tail = Tail { bytes: bytes.get(written..).unwrap_or_default().into(), start: 0 };
            if read == BUFFER && self.mode == Mode::Copy {
                self.mode = Mode::Splice(0);
            }
            Ok(read)
        })
    }

    /// One splice from the source into an empty pipe. Returns the bytes taken.
    fn splice(&mut self, source: &TcpStream, small: u8) -> Result<usize, Broken> {
        let Some(mut pipe) = splice::take() else {
            // Descriptors or pipe memory ran out. Copying needs neither, and asking again each time would cost more.
            self.mode = Mode::CopyOnly;
            return Ok(0);
        };
        // The pipe is empty here, so "would block" can only mean that the socket is.
        let taken = source.try_io(Interest::READABLE, || pipe.fill_from(source));
        if let Ok(1..) = taken {
            self.pipe = Some(pipe);
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
            Err(ref error) if is_passing(error) => self.poked = true,
            Err(ref error) if splice::is_refused(error) => self.mode = Mode::CopyOnly,
            Err(error) => return Err(Broken::Source(error)),
        }
        Ok(taken.unwrap_or_default())
    }
}

impl Tail {
    fn waiting(&self) -> &[u8] {
        self.bytes.get(self.start..).unwrap_or_default()
    }

    fn advance(&mut self, written: usize) {
        self.start += written;
        if self.start >= self.bytes.len() {
            *self = Self::default();
        }
    }
}

/// Reads once. `None`: nothing there after all. A short read has emptied the socket, which is told to the driver at once,
/// so that no second read is needed to learn it; bytes that come later raise a new edge.
fn try_recv(source: &TcpStream, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    let wanted = buffer.len();
    let mut got = None;
    let tried = source.try_io(Interest::READABLE, || {
        let read = recv(source, buffer)?;
        got = Some(read);
        if 0 < read && read < wanted { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
    });
    settle(tried, got)
}

/// Writes once: 0 when there is no room after all. A short write has filled the socket, which is told to the driver.
fn try_send(sink: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
    let mut done = None;
    let tried = sink.try_io(Interest::WRITABLE, || {
        let written = rustix::net::send(sink, bytes, SendFlags::NOSIGNAL)?;
        done = Some(written);
        if written < bytes.len() { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
    });
    settle(tried, done).map(Option::unwrap_or_default)
}

fn settle(tried: io::Result<()>, done: Option<usize>) -> io::Result<Option<usize>> {
    match tried {
        Ok(()) => Ok(done),
        Err(error) if is_passing(&error) => Ok(done),
        Err(error) => Err(error),
    }
}

fn recv(source: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    Ok(rustix::net::recv(source, buffer, RecvFlags::DONTWAIT)?.1)
}

/// Errors that only mean "later".
fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

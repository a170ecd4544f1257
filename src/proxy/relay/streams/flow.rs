//! One direction of a relay between streams.

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

use crate::proxy::relay::pace::Lane;

/// The room for one read: the largest record of TLS.
const ROOM: usize = 16 * 1024;

/// Reads of one direction before others have their turn.
const TURN: u32 = 32;

thread_local! {
    /// What is read goes through here; a session has memory of its own only while bytes wait for a reader.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; ROOM].into_boxed_slice());
}

/// One direction.
#[derive(Default)]
pub(super) struct Flow {
    /// What was read and not written: empty where nothing waits.
    pub(super) held: Vec<u8>,
    /// So much of it was written.
    written: usize,
    pub(super) state: Ends,
    /// Written, but perhaps still in the sink's own buffer.
    unflushed: bool,
    /// Nothing may be read before this time.
    pub(super) paused: Option<Instant>,
    pub(super) moved: u64,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Ends {
    #[default]
    Open,
    /// The source has ended, and the sink is to learn it.
    Ending,
    Ended,
}

/// A side whose stream failed.
pub(super) enum Broken {
    Source(io::Error),
    Sink(io::Error),
}

/// What a turn of a direction has come to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Waiting,
    Again,
}

impl Flow {
    /// One that has these bytes already.
    pub(super) fn owing(bytes: Vec<u8>) -> Self {
        Self { held: bytes, ..Self::default() }
    }

    /// Moves what can be moved now.
    pub(super) fn run<R, W>(
        &mut self,
        context: &mut Context<'_>,
        source: &mut R,
        sink: &mut W,
        lane: &mut Lane<'_>,
    ) -> Result<Step, Broken>
    where
        R: AsyncRead + AsyncWrite + Unpin,
        W: AsyncWrite + Unpin,
    {
        for _ in 0..TURN {
            match self.drain(context, sink) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Err(Broken::Sink(error)),
                Poll::Pending => return Ok(Step::Waiting),
            }
            match self.state {
                Ends::Ended => return Ok(Step::Waiting),
                Ends::Ending => {
                    match Pin::new(&mut *sink).poll_shutdown(context) {
                        Poll::Ready(Ok(())) => self.state = Ends::Ended,
                        Poll::Ready(Err(error)) => return Err(Broken::Sink(error)),
                        Poll::Pending => {}
                    }
                    return Ok(Step::Waiting);
                }
                Ends::Open => {}
            }
            match self.copy(context, source, sink, lane)? {
                Poll::Ready(()) => {}
                Poll::Pending => {
                    // Nothing follows for now: what the sink keeps is to go out.
                    if let Poll::Ready(Err(error)) = self.flush(context, sink) {
                        return Err(Broken::Sink(error));
                    }
                    // Reading may have left something to say to the source itself, such as an alert of TLS.
                    if let Poll::Ready(Err(error)) = Pin::new(source).poll_flush(context) {
                        return Err(Broken::Source(error));
                    }
                    return Ok(Step::Waiting);
                }
            }
        }
        Ok(Step::Again)
    }

    /// One read, and what the sink takes of it at once. Pending when there is nothing to read.
    fn copy<R, W>(
        &mut self,
        context: &mut Context<'_>,
        source: &mut R,
        sink: &mut W,
        lane: &mut Lane<'_>,
    ) -> Result<Poll<()>, Broken>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let allowed = match lane.take(ROOM) {
            Ok(allowed) => allowed,
            Err(later) => {
                self.paused = Some(later);
                return Ok(Poll::Pending);
            }
        };
        self.paused = None;
        SCRATCH.with_borrow_mut(|scratch| {
            let mut room = ReadBuf::new(scratch.get_mut(..allowed).unwrap_or_default());
            let read = Pin::new(source).poll_read(context, &mut room);
            let mut bytes = room.filled();
            lane.give_back(allowed - bytes.len());
            match read {
                Poll::Pending => return Ok(Poll::Pending),
                Poll::Ready(Err(error)) => return Err(Broken::Source(error)),
                Poll::Ready(Ok(())) => {}
            }
            if bytes.is_empty() {
                self.state = Ends::Ending;
                return Ok(Poll::Ready(()));
            }
            while !bytes.is_empty() {
                match Pin::new(&mut *sink).poll_write(context, bytes) {
                    Poll::Ready(Ok(0)) => return Err(Broken::Sink(io::ErrorKind::WriteZero.into())),
                    Poll::Ready(Ok(length)) => {
                        self.wrote(length);
                        bytes = bytes.get(length..).unwrap_or_default();
                    }
                    Poll::Ready(Err(error)) => return Err(Broken::Sink(error)),
                    Poll::Pending => break,
                }
            }
            self.held.extend_from_slice(bytes);
            Ok(Poll::Ready(()))
        })
    }

    /// Writes what waits. Ready when nothing does.
    fn drain<W: AsyncWrite + Unpin>(
        &mut self,
        context: &mut Context<'_>,
        sink: &mut W,
    ) -> Poll<io::Result<()>> {
        while let Some(bytes) = self.held.get(self.written..).filter(|bytes| !bytes.is_empty()) {
            match Pin::new(&mut *sink).poll_write(context, bytes) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(length)) => {
                    self.written += length;
                    self.wrote(length);
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
        (self.held, self.written) = (Vec::new(), 0);
        Poll::Ready(Ok(()))
    }

    fn flush<W: AsyncWrite + Unpin>(
        &mut self,
        context: &mut Context<'_>,
        sink: &mut W,
    ) -> Poll<io::Result<()>> {
        if !self.unflushed {
            return Poll::Ready(Ok(()));
        }
        let flushed = Pin::new(sink).poll_flush(context);
        self.unflushed = flushed.is_pending();
        flushed
    }

    /// Delivers what a dead source has sent, without passing an end on. `waits`: it has an end or an error to tell, which may
    /// not be known here yet. Ready once the sink has taken everything, with the time when more may be read if that is not
    /// all; with an error if the sink is dead too.
    pub(super) fn empty<R, W>(
        &mut self,
        context: &mut Context<'_>,
        source: &mut R,
        sink: &mut W,
        lane: &mut Lane<'_>,
        waits: bool,
    ) -> Poll<io::Result<Option<Instant>>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        for _ in 0..TURN {
            ready!(self.drain(context, sink))?;
            let copied = match self.state {
                Ends::Open => self.copy(context, source, sink, lane),
                Ends::Ending | Ends::Ended => Err(Broken::Source(io::ErrorKind::UnexpectedEof.into())),
            };
            let over = match copied {
                Ok(Poll::Ready(())) => continue,
                Err(Broken::Sink(error)) => return Poll::Ready(Err(error)),
                Err(Broken::Source(_)) => true,
                Ok(Poll::Pending) => self.paused.is_none() && !waits,
            };
            ready!(self.flush(context, sink))?;
            return match self.paused {
                None if !over => Poll::Pending,
                paused => Poll::Ready(Ok(paused.filter(|_| !over))),
            };
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }

    const fn wrote(&mut self, length: usize) {
        self.moved += length as u64;
        self.unflushed = true;
    }

    pub(super) const fn is_stalled(&self) -> bool {
        !self.held.is_empty()
    }
}

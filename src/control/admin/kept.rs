//! Descriptors for the day when there are none: who asks how things are is answered then too, also where the limit was
//! lowered below what is in use. Each holds a low number. A connection takes it, and when it ends the number is taken back
//! in the same step: once free it would go to whoever opens something next.

use std::{
    fmt, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use rustix::io::{DupFlags, Errno, dup3, fcntl_dupfd_cloexec};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
};

use super::lease::Lease;

/// How many each listener keeps: a probe, Prometheus and a person or two at once.
const KEPT: usize = 4;

/// What one listener keeps. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Kept(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// Something that a number can be held with: the listener.
    like: OwnedFd,
    held: Mutex<Vec<OwnedFd>>,
}

impl Kept {
    /// As many as there are to be had.
    ///
    /// # Errors
    /// There is not even one.
    pub(super) fn new(listener: impl AsFd) -> io::Result<Self> {
        let kept = Self(Arc::new(Shared { like: another(listener.as_fd())?, held: Mutex::default() }));
        kept.fill();
        Ok(kept)
    }

    /// Accepts, with a number of ours if there is no other one. Where none is left the kernel says so of an empty queue,
    /// too: the number is kept then.
    pub(super) fn serve<S>(&self, mut accept: impl FnMut() -> Poll<io::Result<S>>) -> Poll<io::Result<S>> {
        let mut accepted = accept();
        if matches!(&accepted, Poll::Ready(Err(error)) if is_shortage(error)) && self.give() {
            accepted = accept();
        }
        if !matches!(accepted, Poll::Ready(Ok(_))) {
            self.fill();
        }
        accepted
    }

    /// Gives one up: true if there was one.
    fn give(&self) -> bool {
        self.held(Vec::pop).is_some()
    }

    /// Takes what is missing, as far as there are descriptors.
    fn fill(&self) {
        self.held(|held| {
            while held.len() < KEPT
                && let Ok(one) = another(self.0.like.as_fd())
            {
                held.push(one);
            }
        });
    }

    /// A connection whose number is kept when it ends, if one is missing.
    pub(super) fn lend<S: Connection>(&self, stream: S, lease: Lease) -> Lent<S> {
        Lent { stream: Some(stream), kept: self.clone(), lease }
    }

    fn take_back(&self, mut descriptor: OwnedFd) {
        self.held(|held| {
            if held.len() < KEPT && dup3(&self.0.like, &mut descriptor, DupFlags::CLOEXEC).is_ok() {
                held.push(descriptor);
            }
        });
    }

    fn held<T>(&self, with: impl FnOnce(&mut Vec<OwnedFd>) -> T) -> T {
        with(&mut self.0.held.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn another(like: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    Ok(fcntl_dupfd_cloexec(like, 0)?)
}

/// True for an error that says that this process, or this machine, has no descriptor left.
fn is_shortage(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE))
}

/// A stream that can be taken apart.
pub(super) trait Connection: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// Its descriptor, with which the runtime has nothing to do any more.
    fn into_descriptor(self) -> io::Result<OwnedFd>;
}

impl Connection for TcpStream {
    fn into_descriptor(self) -> io::Result<OwnedFd> {
        Ok(self.into_std()?.into())
    }
}

impl Connection for UnixStream {
    fn into_descriptor(self) -> io::Result<OwnedFd> {
        Ok(self.into_std()?.into())
    }
}

/// A connection, until it is dropped.
pub(super) struct Lent<S: Connection> {
    /// There until then.
    stream: Option<S>,
    kept: Kept,
    lease: Lease,
}

impl<S: Connection> Lent<S> {
    fn stream(&mut self) -> io::Result<Pin<&mut S>> {
        self.stream.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// Fails once the client has left, and wakes `context` then.
    fn is_there(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        let mut bytes = [0; 512];
        loop {
            let mut buffer = ReadBuf::new(&mut bytes);
            match self.stream()?.poll_read(context, &mut buffer)? {
                Poll::Ready(()) if buffer.filled().is_empty() => return Err(io::ErrorKind::BrokenPipe.into()),
                Poll::Ready(()) => {}
                Poll::Pending => return Ok(()),
            }
        }
    }
}

impl<S: Connection> Drop for Lent<S> {
    fn drop(&mut self) {
        if let Some(Ok(descriptor)) = self.stream.take().map(S::into_descriptor) {
            self.kept.take_back(descriptor);
        }
    }
}

impl<S: Connection> fmt::Debug for Lent<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lent").finish_non_exhaustive()
    }
}

impl<S: Connection> AsyncRead for Lent<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.stream()?.poll_read(context, buffer)
    }
}

impl<S: Connection> AsyncWrite for Lent<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.stream()?.poll_write(context, bytes)
    }

    /// Called with each turn of a connection. That of a stream reads nothing by itself, and has nothing more to hear.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.lease.is_stream() {
            self.is_there(context)?;
        }
        self.stream()?.poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.stream()?.poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.as_ref().is_some_and(AsyncWrite::is_write_vectored)
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, os::fd::AsRawFd};

    use tokio::{io::AsyncReadExt, net::UnixListener};
    use tokio_util::sync::CancellationToken;

    use super::*;

    #[tokio::test]
    async fn a_number_is_given_for_one_connection_and_taken_back_at_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let kept = Kept::new(&listener).unwrap();
        let numbers = || kept.held(|held| held.iter().map(AsRawFd::as_raw_fd).collect::<Vec<_>>());
        assert_eq!(numbers().len(), KEPT);

        let calls = Cell::new(0);
        let mut client = UnixStream::connect(&path).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let (number, mut stream) = (stream.as_raw_fd(), Some(stream));
        let accepted = kept.serve(|| {
            calls.set(calls.get() + 1);
            Poll::Ready(if calls.get() == 1 { Err(Errno::MFILE.into()) } else { Ok(stream.take().unwrap()) })
        });
        let Poll::Ready(Ok(stream)) = accepted else { panic!("{accepted:?}") };
        assert_eq!((calls.get(), numbers().len()), (2, KEPT - 1));
        drop(kept.lend(stream, Lease::new(CancellationToken::new())));
        assert_eq!(numbers().len(), KEPT);
        assert!(numbers().contains(&number), "{number} went to somebody else");
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0, "its end came");
    }

    #[tokio::test]
    async fn an_empty_queue_costs_no_number() {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("socket")).unwrap();
        let kept = Kept::new(&listener).unwrap();
        for _ in 0..10 {
            let mut first = true;
            let accepted = kept.serve(|| {
                let answer: Poll<io::Result<()>> =
                    if first { Poll::Ready(Err(Errno::MFILE.into())) } else { Poll::Pending };
                first = false;
                answer
            });
            assert!(accepted.is_pending());
            assert_eq!(kept.held(|held| held.len()), KEPT);
        }
    }
}

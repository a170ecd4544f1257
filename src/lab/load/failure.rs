//! What can go wrong with a connection, and how often it did.

use std::io;

use rustix::io::Errno;
use serde::Serialize;

/// Why a connection, or the exchange on it, failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// Nobody listens there.
    #[error("refused")]
    Refused,
    /// No way there.
    #[error("unreachable")]
    Unreachable,
    /// The other side cut the connection.
    #[error("reset")]
    Reset,
    /// Nothing within the time limit.
    #[error("timed out")]
    TimedOut,
    /// The other side ended before its answer was complete.
    #[error("closed early")]
    ClosedEarly,
    /// The answer is not what it had to be.
    #[error("wrong bytes")]
    WrongBytes,
    /// This machine has no port, descriptor or memory left.
    #[error("no port, descriptor or memory left on this machine")]
    NoRoom,
    /// Anything else.
    #[error("another error")]
    Other,
}

/// How often each [`Failure`] happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Failures {
    /// [`Failure::Refused`].
    pub refused: u64,
    /// [`Failure::Unreachable`].
    pub unreachable: u64,
    /// [`Failure::Reset`].
    pub reset: u64,
    /// [`Failure::TimedOut`].
    pub timed_out: u64,
    /// [`Failure::ClosedEarly`].
    pub closed_early: u64,
    /// [`Failure::WrongBytes`].
    pub wrong_bytes: u64,
    /// [`Failure::NoRoom`].
    pub no_room: u64,
    /// [`Failure::Other`].
    pub other: u64,
}

impl Failure {
    /// What an error of a socket means.
    #[must_use]
    pub fn of(error: &io::Error) -> Self {
        match error.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::CONNREFUSED) => Self::Refused,
            Some(Errno::HOSTUNREACH | Errno::NETUNREACH) => Self::Unreachable,
            Some(Errno::CONNRESET | Errno::PIPE | Errno::CONNABORTED) => Self::Reset,
            Some(Errno::TIMEDOUT) => Self::TimedOut,
            Some(
                Errno::ADDRNOTAVAIL
                | Errno::MFILE
                | Errno::NFILE
                | Errno::NOBUFS
                | Errno::NOMEM
                | Errno::AGAIN,
            ) => Self::NoRoom,
            _ if error.kind() == io::ErrorKind::TimedOut => Self::TimedOut,
            _ => Self::Other,
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::of(&error)
    }
}

impl From<Errno> for Failure {
    fn from(error: Errno) -> Self {
        Self::of(&error.into())
    }
}

impl Failures {
    /// Counts one.
    pub const fn count(&mut self, failure: Failure) {
        *self.of(failure) += 1;
    }

    /// All of them.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.kinds().iter().map(|(_, count)| count).sum()
    }

    /// Each kind with its count.
    #[must_use]
    pub fn kinds(mut self) -> [(Failure, u64); 8] {
        [
            Failure::Refused,
            Failure::Unreachable,
            Failure::Reset,
            Failure::TimedOut,
            Failure::ClosedEarly,
            Failure::WrongBytes,
            Failure::NoRoom,
            Failure::Other,
        ]
        .map(|failure| (failure, *self.of(failure)))
    }

    pub(super) fn add(&mut self, more: Self) {
        for (failure, count) in more.kinds() {
            *self.of(failure) += count;
        }
    }

    const fn of(&mut self, failure: Failure) -> &mut u64 {
        match failure {
            Failure::Refused => &mut self.refused,
            Failure::Unreachable => &mut self.unreachable,
            Failure::Reset => &mut self.reset,
            Failure::TimedOut => &mut self.timed_out,
            Failure::ClosedEarly => &mut self.closed_early,
            Failure::WrongBytes => &mut self.wrong_bytes,
            Failure::NoRoom => &mut self.no_room,
            Failure::Other => &mut self.other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_counted_by_what_they_mean() {
        let mut failures = Failures::default();
        for errno in [Errno::CONNREFUSED, Errno::PIPE, Errno::CONNRESET, Errno::MFILE, Errno::INVAL] {
            failures.count(errno.into());
        }
        failures.add(failures);
        let wanted = Failures { refused: 2, reset: 4, no_room: 2, other: 2, ..Failures::default() };
        assert_eq!((failures, failures.total()), (wanted, 10));
    }
}

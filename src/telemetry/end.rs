//! How a session ended: one side, one stage, one cause. The same three words stand in the log, in the metrics
//! and in `status`; `flags` gives HAProxy's two letters for people who read those in their sleep.

use std::{fmt, io};

/// Who brought the session to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// The client closed, reset or fell silent.
    Client,
    /// The endpoint closed, refused, reset or fell silent.
    Upstream,
    /// A limit or a fault of this process.
    Proxy,
    /// A person or a supervisor: shutdown, or the end of one session.
    Operator,
}

/// How far the session had come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Just accepted.
    Accept,
    /// Choosing a pool and an endpoint.
    Route,
    /// Dialling.
    Connect,
    /// Moving bytes.
    Relay,
    /// Waiting for the last bytes while the process stops.
    Drain,
}

/// Why it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// Both directions reached their ends.
    Closed,
    /// The peer reset the connection, or closed it with our bytes unread.
    Reset,
    /// Nobody listens at the address.
    Refused,
    /// No route to the host or network.
    Unreachable,
    /// No answer in time (connect timeout, TCP user timeout, keepalive).
    TimedOut,
    /// The client began with no PROXY header, or with none that can be believed.
    BadHeader,
    /// The client began with no ClientHello that can be routed.
    BadHello,
    /// The TLS handshake failed, or TLS broke later.
    Handshake,
    /// TLS ended without `close_notify`: bytes may be missing.
    Truncated,
    /// No route is for such a session.
    NoRoute,
    /// No byte moved for the idle timeout.
    Idle,
    /// One direction had ended and the other stayed silent for the half-close timeout.
    HalfClosed,
    /// The maximum lifetime was reached.
    Lifetime,
    /// The client's address may not come in, or may not take the route.
    Denied,
    /// A limit on how much may come in was reached.
    Limited,
    /// The pool has no endpoint that may be used.
    NoEndpoint,
    /// Too many sessions wait to be connected to the endpoint.
    Overloaded,
    /// This machine ran out of descriptors, ports or memory.
    Exhausted,
    /// This machine refused an option of the cloud's sockets: its interface or source address is gone, say.
    Local,
    /// The drain deadline came, or a second signal.
    Shutdown,
    /// An operator ended this session, and no other.
    Killed,
    /// A bug in this process: the task panicked.
    Panic,
    /// An input or output error of another kind.
    Io,
}

/// The one end of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct End {
    /// Who.
    pub side: Side,
    /// When.
    pub stage: Stage,
    /// Why.
    pub cause: Cause,
}

impl Side {
    /// Every side.
    pub const ALL: [Self; 4] = [Self::Client, Self::Upstream, Self::Proxy, Self::Operator];

    /// The word in logs and labels.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Upstream => "upstream",
            Self::Proxy => "proxy",
            Self::Operator => "operator",
        }
    }

    const fn index(self) -> usize {
        self as usize
    }
}

impl Stage {
    /// Every stage, in the order of a session's life.
    pub const ALL: [Self; 5] = [Self::Accept, Self::Route, Self::Connect, Self::Relay, Self::Drain];

    /// The word in logs and labels.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Accept => "accept",
            Self::Route => "route",
            Self::Connect => "connect",
            Self::Relay => "relay",
            Self::Drain => "drain",
        }
    }
}

impl Cause {
    /// Every cause.
    pub const ALL: [Self; 23] = [
        Self::Closed,
        Self::Reset,
        Self::Refused,
        Self::Unreachable,
        Self::TimedOut,
        Self::BadHeader,
        Self::BadHello,
        Self::Handshake,
        Self::Truncated,
        Self::NoRoute,
        Self::Idle,
        Self::HalfClosed,
        Self::Lifetime,
        Self::Denied,
        Self::Limited,
        Self::NoEndpoint,
        Self::Overloaded,
        Self::Exhausted,
        Self::Local,
        Self::Shutdown,
        Self::Killed,
        Self::Panic,
        Self::Io,
    ];

    /// The word in logs and labels.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Reset => "reset",
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
            Self::TimedOut => "timed_out",
            Self::BadHeader => "bad_header",
            Self::BadHello => "bad_hello",
            Self::Handshake => "handshake",
            Self::Truncated => "truncated",
            Self::NoRoute => "no_route",
            Self::Idle => "idle",
            Self::HalfClosed => "half_closed",
            Self::Lifetime => "lifetime",
            Self::Denied => "denied",
            Self::Limited => "limited",
            Self::NoEndpoint => "no_endpoint",
            Self::Overloaded => "overloaded",
            Self::Exhausted => "exhausted",
            Self::Local => "local",
            Self::Shutdown => "shutdown",
            Self::Killed => "killed",
            Self::Panic => "panic",
            Self::Io => "io",
        }
    }

    /// True for what this machine lacks or refuses: it says nothing about an endpoint.
    #[must_use]
    pub const fn is_ours(self) -> bool {
        matches!(self, Self::Overloaded | Self::Exhausted | Self::Local)
    }

    /// What an I/O error on a peer's socket means for the session.
    #[must_use]
    pub fn of(error: &io::Error) -> Self {
        use io::ErrorKind as Kind;
        match error.kind() {
            Kind::ConnectionReset | Kind::BrokenPipe | Kind::ConnectionAborted | Kind::NotConnected => {
                Self::Reset
            }
            Kind::ConnectionRefused => Self::Refused,
            Kind::HostUnreachable | Kind::NetworkUnreachable | Kind::NetworkDown => Self::Unreachable,
            Kind::TimedOut => Self::TimedOut,
            Kind::InvalidInput => Self::Local,
            Kind::AddrNotAvailable | Kind::AddrInUse | Kind::OutOfMemory => Self::Exhausted,
            _ => match error.raw_os_error() {
                Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::EAGAIN) => Self::Exhausted,
                Some(libc::EHOSTDOWN | libc::ENONET | libc::ENOPROTOOPT | libc::EPROTO) => Self::Unreachable,
                _ => Self::Io,
            },
        }
    }
}

impl End {
    /// How many different ends there are: the length of a table indexed by [`End::index`].
    pub const COUNT: usize = Side::ALL.len() * Stage::ALL.len() * Cause::ALL.len();

    /// A session that ran its course; `side` closed first.
    #[must_use]
    pub const fn closed(side: Side) -> Self {
        Self { side, stage: Stage::Relay, cause: Cause::Closed }
    }

    /// This end's place in a table of [`End::COUNT`] counters.
    #[must_use]
    pub const fn index(self) -> usize {
        (self.side.index() * Stage::ALL.len() + self.stage as usize) * Cause::ALL.len() + self.cause as usize
    }

    /// Every end, in the order of [`End::index`].
    pub fn all() -> impl Iterator<Item = Self> {
        Side::ALL.into_iter().flat_map(|side| {
            Stage::ALL
                .into_iter()
                .flat_map(move |stage| Cause::ALL.into_iter().map(move |cause| Self { side, stage, cause }))
        })
    }

    /// True for a session that ran its course.
    #[must_use]
    pub const fn is_clean(self) -> bool {
        matches!(self.cause, Cause::Closed)
    }

    /// True when the endpoint ended an established session: without a byte from it, it has answered nothing.
    #[must_use]
    pub const fn is_by_endpoint(self) -> bool {
        matches!(
            self,
            Self { side: Side::Upstream, stage: Stage::Relay, cause: Cause::Closed | Cause::Reset }
        )
    }

    /// HAProxy's two termination letters (its `configuration.txt`, section 8.5): who (`C`lient, `S`erver, `P`roxy,
    /// `R`esource, `I`nternal, `K`illed by an operator, `c`/`s` for a timeout on that side, `-` normal) and when
    /// (`R`equest, i.e. before a choice, `Q`ueue, `C`onnect, `D`ata, `-` normal).
    #[must_use]
    pub const fn flags(self) -> &'static str {
        match (self.cause, self.side, self.stage) {
            (Cause::Closed, Side::Client, Stage::Connect) => "CC",
            (Cause::Closed | Cause::Reset | Cause::Truncated, Side::Client, Stage::Accept) => "CR",
            (Cause::TimedOut, Side::Client, Stage::Accept) => "cR",
            (Cause::BadHeader | Cause::BadHello | Cause::NoRoute, _, _) => "PR",
            (Cause::Handshake, _, Stage::Accept) => "PR",
            (Cause::Closed, _, _) => "--",
            (Cause::Denied | Cause::Limited, _, _) => "PR",
            (Cause::Exhausted, _, Stage::Accept | Stage::Route) => "RR",
            (Cause::Exhausted, _, Stage::Connect) => "RC",
            (Cause::Exhausted, _, _) => "RD",
            (Cause::Overloaded, _, _) => "sQ",
            (Cause::Panic, _, _) => "ID",
            (Cause::NoEndpoint, _, _) => "SC",
            (Cause::Shutdown | Cause::Killed, _, Stage::Accept | Stage::Route | Stage::Connect) => "KC",
            (Cause::Shutdown | Cause::Killed, _, _) => "KD",
            (Cause::TimedOut, _, Stage::Connect) => "sC",
            (Cause::TimedOut | Cause::Idle | Cause::HalfClosed | Cause::Lifetime, Side::Upstream, _) => "sD",
            (Cause::TimedOut | Cause::Idle | Cause::HalfClosed | Cause::Lifetime, _, _) => "cD",
            (_, Side::Client, Stage::Connect) => "CC",
            (_, Side::Client, _) => "CD",
            (_, Side::Upstream, Stage::Connect) => "SC",
            (_, Side::Upstream, _) => "SD",
            (_, _, Stage::Connect) => "PC",
            (_, Side::Proxy | Side::Operator, _) => "PD",
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.side.as_str(), self.stage.as_str(), self.cause.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_end_has_its_own_place() {
        let places: std::collections::BTreeSet<_> = End::all().map(End::index).collect();
        assert_eq!(places.len(), End::COUNT);
        assert_eq!(places.last(), Some(&(End::COUNT - 1)));
        assert!(End::all().enumerate().all(|(place, end)| end.index() == place));
    }

    #[test]
    fn a_socket_that_is_gone_was_reset() {
        for kind in [io::ErrorKind::ConnectionReset, io::ErrorKind::BrokenPipe, io::ErrorKind::NotConnected] {
            assert_eq!(Cause::of(&kind.into()), Cause::Reset);
        }
        assert_eq!(Cause::of(&io::Error::from_raw_os_error(libc::EMFILE)), Cause::Exhausted);
        assert_eq!(Cause::of(&io::Error::from_raw_os_error(libc::EADDRNOTAVAIL)), Cause::Exhausted);
    }

    #[test]
    fn what_this_machine_refuses_is_no_fault_of_the_endpoint() {
        let error = io::Error::new(io::ErrorKind::InvalidInput, "interface wg0: No such device");
        assert_eq!(Cause::of(&error), Cause::Local);
        // A source address of loopback and a destination elsewhere, say.
        assert_eq!(Cause::of(&io::Error::from_raw_os_error(libc::EINVAL)), Cause::Local);
        assert_eq!(End { side: Side::Proxy, stage: Stage::Connect, cause: Cause::Local }.flags(), "PC");
    }

    #[test]
    fn flags_are_the_letters_an_operator_of_haproxy_expects() {
        let end = |side, stage, cause| End { side, stage, cause }.flags();
        assert_eq!(End::closed(Side::Client).flags(), "--");
        assert_eq!(end(Side::Upstream, Stage::Connect, Cause::Refused), "SC");
        assert_eq!(end(Side::Upstream, Stage::Connect, Cause::TimedOut), "sC");
        assert_eq!(end(Side::Client, Stage::Relay, Cause::Reset), "CD");
        assert_eq!(end(Side::Upstream, Stage::Relay, Cause::Reset), "SD");
        assert_eq!(end(Side::Client, Stage::Relay, Cause::Idle), "cD");
        assert_eq!(end(Side::Proxy, Stage::Accept, Cause::Denied), "PR");
        assert_eq!(end(Side::Operator, Stage::Drain, Cause::Shutdown), "KD");
    }
}

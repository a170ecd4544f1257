//! Dialling an endpoint, and what can be asked of or done to an established connection.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, OwnedFd},
    sync::LazyLock,
    time::Duration,
};

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::TcpStream;

use super::{Keepalive, Outgoing, listen::keepalive as tcp_keepalive};
use crate::sys::Window;

/// The ports that the kernel dials from: the lowest and the highest.
const DIALLED_FROM: &str = "/proc/sys/net/ipv4/ip_local_port_range";

/// Begins to connect to `address`. The socket does not block and is closed on exec; it is writable once the connection is
/// established or has failed, which `SO_ERROR` then tells. Who keeps it asks [`met_itself`] first, and calls
/// [`set_nodelay`] before a second write.
///
/// `eager`: bytes will be sent at once, or [`acknowledge`] is called. Then the last segment of the handshake waits for them
/// and travels with them (as with Linux's TCP_QUICKACK off, and HAProxy's `tcp-smart-connect`): a packet and a wake-up
/// less. Without either it would hold up an endpoint that speaks first.
///
/// # Errors
/// What the kernel said at once: unreachable, a shortage on this machine (descriptors, local ports), or an option that
/// it does not take: a [`RefusedOption`](super::RefusedOption) of the kind `InvalidInput`. A refusal by the peer comes
/// later as a rule, from loopback too.
pub fn begin(address: SocketAddr, options: &Outgoing, eager: bool) -> io::Result<OwnedFd> {
    begin_with(address, eager, |socket| options.set(socket, address))
}

/// Begins to connect to `address` as [`begin`] does, from the address of `client` in place of the cloud's source. The port
/// is the kernel's choice and not the client's: two attempts of one session would otherwise be one connection to the
/// endpoint, and one to the address that the client asked for would be the client's own in the kernel's table of
/// connections.
///
/// # Errors
/// As [`begin`], and a [`RefusedOption`](super::RefusedOption) where the process lacks the capability, or the client and
/// the endpoint are of two families.
pub fn begin_as(client: IpAddr, address: SocketAddr, options: &Outgoing, eager: bool) -> io::Result<OwnedFd> {
    begin_with(address, eager, |socket| options.set_as(client, socket, address))
}

fn begin_with(
    address: SocketAddr,
    eager: bool,
    set: impl FnOnce(&Socket) -> io::Result<()>,
) -> io::Result<OwnedFd> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    set(&socket)?;
    connect(&socket, address, eager)?;
    Ok(socket.into())
}

fn connect(socket: &Socket, address: SocketAddr, eager: bool) -> io::Result<()> {
    if eager {
        // A refusal costs a packet.
        rustix::net::sockopt::set_tcp_quickack(socket, false).unwrap_or_default();
    }
    match socket.connect(&address.into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        _ => Ok(()),
    }
}

/// Begins to connect a socket that was [`dissolve`]d to the address that it was connected to, as [`begin`] does. Its options
/// are those of the dial before.
///
/// # Errors
/// What the kernel said at once, of which the socket may be the cause: who gets one begins with a new socket.
pub fn again(socket: impl AsFd, address: SocketAddr, eager: bool) -> io::Result<()> {
    connect(&SockRef::from(&socket), address, eager)
}

/// Takes its connection from a socket, so that it can be dialled [`again`]: connect(2) with AF_UNSPEC, which is
/// tcp_disconnect in net/ipv4/tcp.c. That spares the making and the closing of a socket. False where the connection is not
/// quite over, and the kernel must be left to it.
///
/// The caller has passed its own end on and then read the peer's. The same address only is to be dialled with the socket: the
/// sequence numbers of the next connection follow those of this one, which others are not to know (RFC 6528, section 3).
#[must_use]
pub fn dissolve(stream: impl AsFd) -> bool {
    // Our end counts among what is unacknowledged. With both ends known to both sides, nothing but TIME_WAIT is left.
    crate::sys::unsent(&stream).is_ok_and(|unsent| unsent == 0)
        && rustix::net::connect_unspec(&stream).is_ok()
}

/// True if connections of this socket to the same address may follow one another quickly. Without timestamps the peer tells
/// a new connection from an old one on the same port, of which it still has a TIME_WAIT, by the sequence number alone
/// (RFC 6191), and takes one that goes on from another connection's for a late segment in half of the cases.
#[must_use]
pub fn has_timestamps(stream: impl AsFd) -> bool {
    crate::sys::progress(stream).is_ok_and(|progress| progress.timestamps)
}

/// Nothing is here to be sent to an endpoint that was dialled eagerly: has the last segment of the handshake sent by itself,
/// now or when it is due.
pub fn acknowledge(stream: impl AsFd) {
    // What it refuses, it was refused before as well.
    rustix::net::sockopt::set_tcp_quickack(stream, true).unwrap_or_default();
}

/// True for a connection to `address` that met itself: where nobody listens on a port from which this machine dials, a
/// connect may be given that very port (simultaneous open). Nobody is at its other end.
#[must_use]
pub fn met_itself(stream: impl AsFd, address: SocketAddr) -> bool {
    let here = || SockRef::from(&stream).local_addr().ok()?.as_socket();
    address.port() >= dialled_from() && here() == Some(address)
}

/// The lowest port that the kernel dials from, as it was when it was first asked about.
fn dialled_from() -> u16 {
    static LOWEST: LazyLock<u16> = LazyLock::new(|| {
        let range = std::fs::read_to_string(DIALLED_FROM).unwrap_or_default();
        range.split_whitespace().next().and_then(|lowest| lowest.parse().ok()).unwrap_or_default()
    });
    *LOWEST
}

/// Connects to `address`, as [`begin`] does, and without Nagle's algorithm. The caller sets the deadline, and calls [`guard`] on a connection that
/// lasts: most sessions are over before keepalive could matter, and need not pay for setting it.
///
/// # Errors
/// What the kernel said: refused, unreachable, a shortage on this machine, or an option that it does not take.
pub async fn dial(address: SocketAddr, options: &Outgoing) -> io::Result<TcpStream> {
    let stream = TcpStream::from_std(begin(address, options, false)?.into())?;
    set_nodelay(&stream);
    stream.writable().await?;
    if let Some(error) = stream.take_error()? {
        return Err(error);
    }
    if met_itself(&stream, address) {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    Ok(stream)
}

/// Has the kernel send whatever is written at once, without Nagle's algorithm. The first write on a connection goes out at
/// once in any case: that algorithm waits only while something small is unacknowledged (tcp_nagle_check and
/// tcp_minshall_check in net/ipv4/tcp_output.c).
pub fn set_nodelay(stream: impl AsFd) {
    // Fails only on a socket that is gone already.
    drop(SockRef::from(&stream).set_tcp_nodelay(true));
}

/// Has the kernel ask a silent peer whether it is there.
pub fn guard(stream: impl AsFd, keepalive: Keepalive) {
    // Fails only on a socket that is gone already.
    drop(SockRef::from(&stream).set_tcp_keepalive(&tcp_keepalive(keepalive)));
}

/// Makes the coming close of `stream` a reset: what was not yet sent is dropped, and the peer learns of the loss.
pub fn reset_on_close(stream: impl AsFd) {
    // Fails only on a socket that is gone already.
    drop(SockRef::from(&stream).set_linger(Some(Duration::ZERO)));
}

/// The error that the kernel holds for `stream`, which it tells once.
#[must_use]
pub fn take_error(stream: impl AsFd) -> Option<io::Error> {
    SockRef::from(&stream).take_error().ok().flatten()
}

/// Tells the peer that nothing more comes; it may go on sending.
///
/// # Errors
/// What the kernel said: the connection is gone.
pub fn end_of_stream(stream: impl AsFd) -> io::Result<()> {
    SockRef::from(&stream).shutdown(std::net::Shutdown::Write)
}

/// Bytes written to `stream` that its peer may still acknowledge: none on a connection that is over.
#[must_use]
pub fn waiting(stream: impl AsFd) -> usize {
    match crate::sys::unsent(&stream) {
        Ok(bytes) if bytes > 0 && !crate::sys::progress(&stream).is_ok_and(|peer| peer.closed) => bytes,
        _ => 0,
    }
}

/// What a peer with unacknowledged bytes is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stall {
    /// Nothing is unacknowledged.
    None,
    /// Bytes are on their way to it.
    Flight,
    /// Bytes are on their way to it, and its window has kept some back before.
    Slow {
        /// It has acknowledged nothing for `user_timeout`, nor what was sent to it again.
        silent: bool,
    },
    /// It answers, and reads nothing: its window is closed.
    Reader,
    /// It has answered nothing for `user_timeout`.
    Dead,
}

/// Tells a peer that does not read from one that is gone.
///
/// The kernel's TCP_USER_TIMEOUT makes no such difference: it also ends a connection whose peer answers every window
/// probe and merely does not read (tcp_probe_timer in net/ipv4/tcp_timer.c), such as a database client in a pager; and as it
/// counts from the first probe of a window that opened too little for all that waited (tcp_ack_probe in
/// net/ipv4/tcp_input.c), one that reads all the time, slowly. It must not be set on a socket that is [`Stall::Slow`].
#[must_use]
pub fn stall(stream: impl AsFd, user_timeout: Duration) -> Stall {
    if !crate::sys::unsent(&stream).is_ok_and(|bytes| bytes > 0) {
        return Stall::None;
    }
    let Ok(peer) = crate::sys::progress(&stream) else {
        return Stall::Flight;
    };
    let late = peer.last_ack >= user_timeout;
    match peer.window {
        _ if peer.closed => Stall::None,
        Window::Closed if peer.unanswered >= 3 && late => Stall::Dead,
        Window::Closed => Stall::Reader,
        Window::Narrow => Stall::Slow { silent: peer.retransmits >= 3 && late },
        Window::Open => Stall::Flight,
    }
}

/// Sets TCP_USER_TIMEOUT; `None` is the kernel's default of about 15 minutes.
pub fn set_user_timeout(stream: impl AsFd, timeout: Option<Duration>) {
    // Fails only on a socket that is gone already.
    drop(SockRef::from(&stream).set_tcp_user_timeout(Some(timeout.unwrap_or_default())));
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::TcpListener,
        os::fd::AsRawFd,
    };

    use super::*;
    use crate::net::{Dscp, RefusedOption, Tuning};

    fn listener() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    #[test]
    fn a_begun_connection_does_not_block_and_is_closed_on_exec() {
        let (_listener, address) = listener();
        let begun = begin(address, &Outgoing::default(), false).unwrap();
        let socket = SockRef::from(&begun);
        assert!(socket.nonblocking().unwrap());
        let flags = rustix::io::fcntl_getfd(&begun).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC), "descriptor {}", begun.as_raw_fd());
        assert!(!met_itself(&begun, address));
    }

    #[tokio::test]
    async fn a_refusal_comes_from_the_dial_or_at_once() {
        let (listener, address) = listener();
        drop(listener);
        let error = dial(address, &Outgoing::default()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        // Nobody can be connected to at a broadcast address, which the kernel knows without asking.
        let error = begin("255.255.255.255:9".parse().unwrap(), &Outgoing::default(), false).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NetworkUnreachable);
    }

    /// A connection that both sides have ended.
    fn over(listener: &TcpListener) -> OwnedFd {
        live(begin(listener.local_addr().unwrap(), &Outgoing::default(), true).unwrap(), listener, b'?').0
    }

    /// The whole life of a connection that was begun, and the port that it came from: a word, an answer, our end, theirs.
    fn live(begun: OwnedFd, listener: &TcpListener, word: u8) -> (OwnedFd, u16) {
        let (mut theirs, from) = listener.accept().unwrap();
        let mut ours = std::net::TcpStream::from(begun);
        assert!(!met_itself(&ours, listener.local_addr().unwrap()) && ours.take_error().unwrap().is_none());
        ours.set_nonblocking(false).unwrap();
        ours.write_all(&[word; 3]).unwrap();
        let mut got = [0; 3];
        theirs.read_exact(&mut got).unwrap();
        theirs.write_all(&got).unwrap();
        ours.read_exact(&mut got).unwrap();
        assert_eq!(got, [word; 3]);
        end_of_stream(&ours).unwrap();
        assert_eq!(theirs.read(&mut [0]).unwrap(), 0, "only what this connection was given");
        drop(theirs);
        assert_eq!(ours.read(&mut [0]).unwrap(), 0);
        ours.set_nonblocking(true).unwrap();
        (ours.into(), from.port())
    }

    #[test]
    fn a_socket_whose_connection_is_over_is_dialled_again_and_is_as_good_as_new() {
        let (listener, address) = listener();
        let mut socket = over(&listener);
        let mut ports = std::collections::BTreeSet::new();
        for word in 0..20_u8 {
            assert!(dissolve(&socket));
            again(&socket, address, true).unwrap();
            let port;
            (socket, port) = live(socket, &listener, word);
            assert!(ports.insert(port), "a port of a connection that may not be forgotten yet");
        }
    }

    #[test]
    fn a_socket_that_is_dialled_again_learns_that_nobody_listens() {
        let (listener, address) = listener();
        let socket = over(&listener);
        assert!(dissolve(&socket));
        drop(listener);
        again(&socket, address, true).unwrap();
        let mut fds = [rustix::event::PollFd::new(&socket, rustix::event::PollFlags::OUT)];
        rustix::event::poll(&mut fds, None).unwrap();
        assert_eq!(take_error(&socket).unwrap().kind(), io::ErrorKind::ConnectionRefused);
    }

    #[test]
    fn a_connection_whose_end_is_still_on_its_way_is_left_to_the_kernel() {
        let (listener, address) = listener();
        let mut ours = std::net::TcpStream::from(begin(address, &Outgoing::default(), false).unwrap());
        let (mut theirs, _) = listener.accept().unwrap();
        let mut sent = 0;
        // Until the peer has no room, behind which our end waits.
        while let Ok(written) = ours.write(&[7; 65_536]) {
            sent += written;
        }
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        ours.set_nonblocking(false).unwrap();
        assert_eq!(ours.read(&mut [0]).unwrap(), 0);
        end_of_stream(&ours).unwrap();
        assert!(!dissolve(&ours));
        drop(ours);
        let mut got = Vec::new();
        theirs.read_to_end(&mut got).unwrap();
        assert_eq!(got.len(), sent);
    }

    #[tokio::test]
    async fn a_dialled_socket_has_the_options_of_its_cloud() {
        let (_listener, address) = listener();
        let options = Outgoing {
            tuning: Tuning {
                congestion: Some("reno".into()),
                send_buffer: Some(65_536),
                receive_buffer: Some(131_072),
                notsent_lowat: Some(16_384),
                dscp: Dscp::new(18),
                interface: Some("lo".into()),
            },
            source_v4: Some("127.0.0.9".parse().unwrap()),
            ..Outgoing::default()
        };
        let stream = dial(address, &options).await.unwrap();
        assert_eq!(stream.local_addr().unwrap().ip().to_string(), "127.0.0.9");
        let socket = SockRef::from(&stream);
        assert!(socket.tcp_congestion().unwrap().starts_with(b"reno"));
        assert_eq!(socket.send_buffer_size().unwrap(), 131_072);
        assert_eq!(socket.recv_buffer_size().unwrap(), 262_144);
        assert_eq!(socket.tcp_notsent_lowat().unwrap(), 16_384);
        assert_eq!(socket.tos_v4().unwrap(), 18 << 2);
        assert_eq!(socket.device().unwrap().as_deref(), Some(&b"lo"[..]));
    }

    #[tokio::test]
    async fn a_source_address_that_is_not_here_fails_the_dial_and_is_named() {
        let (_listener, address) = listener();
        let options = Outgoing { source_v4: Some("192.0.2.9".parse().unwrap()), ..Outgoing::default() };
        let error = dial(address, &options).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        assert!(error.to_string().starts_with("source address 192.0.2.9: "), "{error}");
        assert!(RefusedOption::may_come(&error));
    }

    #[tokio::test]
    async fn an_interface_or_a_congestion_control_that_is_gone_is_named() {
        let (_listener, address) = listener();
        let with = |tuning| Outgoing { tuning, ..Outgoing::default() };
        let gone = with(Tuning { interface: Some("no-such-if".into()), ..Tuning::default() });
        let error = dial(address, &gone).await.unwrap_err();
        assert!(error.to_string().starts_with("interface no-such-if: No such device"), "{error}");
        assert!(gone.try_out().is_err_and(|error| RefusedOption::may_come(&error)));

        let gone = with(Tuning { congestion: Some("no-such-cc".into()), ..Tuning::default() });
        let error = dial(address, &gone).await.unwrap_err();
        let file = "/proc/sys/net/ipv4/tcp_available_congestion_control";
        assert!(error.to_string().starts_with("congestion control no-such-cc: "), "{error}");
        assert!(error.to_string().contains(file), "{error}");
        assert!(gone.try_out().is_err_and(|error| !RefusedOption::may_come(&error)));
    }

    #[tokio::test]
    async fn an_endpoint_of_a_family_without_a_source_is_not_dialled_from_elsewhere() {
        let (_listener, address) = listener();
        let options = Outgoing { source_v6: Some("::1".parse().unwrap()), ..Outgoing::default() };
        let error = dial(address, &options).await.unwrap_err();
        assert!(error.to_string().starts_with("no source address of the family of 127.0.0.1"), "{error}");
    }

    #[tokio::test]
    async fn an_ipv4_address_in_ipv6_clothes_is_dialled_from_the_ipv4_source() {
        let (_listener, address) = listener();
        let options = Outgoing { source_v4: Some("127.0.0.9".parse().unwrap()), ..Outgoing::default() };
        let Ok(stream) =
            dial(format!("[::ffff:127.0.0.1]:{}", address.port()).parse().unwrap(), &options).await
        else {
            return; // a machine without IPv6
        };
        assert_eq!(stream.local_addr().unwrap().ip().to_canonical().to_string(), "127.0.0.9");
    }

    #[tokio::test]
    async fn a_port_is_left_to_the_connect_though_the_source_is_bound() {
        let (_listener, address) = listener();
        let options = Outgoing { source_v4: Some("127.0.0.9".parse().unwrap()), ..Outgoing::default() };
        let stream = dial(address, &options).await.unwrap();
        assert!(crate::sys::bind_address_no_port(&stream).unwrap());
    }

    #[test]
    fn the_source_of_a_client_is_of_the_family_of_the_endpoint_or_named() {
        let (_listener, address) = listener();
        let client: IpAddr = "127.0.0.9".parse().unwrap();
        if crate::net::try_transparent().is_ok() {
            let mapped =
                SocketAddr::new(std::net::Ipv4Addr::LOCALHOST.to_ipv6_mapped().into(), address.port());
            for (client, address) in
                [(client, address), ("::ffff:127.0.0.9".parse().unwrap(), address), (client, mapped)]
            {
                let begun = begin_as(client, address, &Outgoing::default(), false).unwrap();
                let here = SockRef::from(&begun).local_addr().unwrap().as_socket().unwrap();
                assert_eq!(here.ip().to_canonical().to_string(), "127.0.0.9");
            }
        }
        let error = begin_as("::1".parse().unwrap(), address, &Outgoing::default(), false).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        assert!(error.to_string().starts_with("the client's address ::1 towards 127.0.0.1"), "{error}");
    }

    #[test]
    fn fast_open_is_set_on_a_socket_that_dials() {
        let (listener, address) = listener();
        let options = Outgoing { fast_open: true, ..Outgoing::default() };
        let Ok(begun) = begin(address, &options, false) else {
            return; // net.ipv4.tcp_fastopen without the part of clients
        };
        assert!(crate::sys::fast_open_connect(&begun).unwrap());
        drop(listener);
    }
}

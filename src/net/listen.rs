//! Binding. Options that accepted sockets inherit are set here once, so that a session costs no system call for them.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    os::fd::AsFd,
};

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

use super::{Bind, Keepalive, Tuning, options};
use crate::sys;

/// How a listener's sockets are set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// Where.
    pub bind: Bind,
    /// Connections that may wait to be accepted; the kernel cuts it to `net.core.somaxconn`.
    pub backlog: u32,
    /// Inherited by accepted sockets.
    pub keepalive: Keepalive,
    /// TCP_FASTOPEN: connections that may wait for the end of their handshake with bytes in hand. `None` is off.
    pub fast_open: Option<u32>,
    /// Inherited by accepted sockets.
    pub tuning: Tuning,
    /// IP_TRANSPARENT: a TPROXY rule may give it connections to addresses that this machine does not have.
    pub transparent: bool,
}

/// Binds `count` sockets to one address, for as many workers (SO_REUSEPORT when more than one).
///
/// # Errors
/// What the kernel said: the address is in use (by whomever: another process with SO_REUSEPORT too), not ours, or not
/// permitted.
pub fn listen(options: &Listen, count: usize) -> io::Result<Vec<TcpListener>> {
    // With SO_REUSEPORT the kernel would let two processes of one user share a port without a word, so a socket without
    // it asks first; it also turns port 0 into a number.
    let first = bind(options, options.bind.address, false)?;
    if count <= 1 {
        first.listen(backlog(options))?;
        return Ok(vec![first.into()]);
    }
    let address = first.local_addr()?.as_socket().unwrap_or(options.bind.address);
    drop(first);
    (0..count)
        .map(|_| {
            let socket = bind(options, address, true)?;
            socket.listen(backlog(options))?;
            Ok(socket.into())
        })
        .collect()
}

/// Sets changed options on a socket that is already open. What is no longer set goes back to what a new socket has.
///
/// # Errors
/// What the kernel said to one of the options.
pub fn reapply(socket: &impl AsFd, options: &Listen) -> io::Result<()> {
    let socket = SockRef::from(socket);
    let address = options.bind.address;
    let new = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    options.tuning.take_back(&socket, &new, address.is_ipv6())?;
    if !options.transparent {
        options::not_transparent(&socket, address.is_ipv6())?;
    }
    if options.fast_open.is_none() && sys::fast_open(&*socket)? != 0 {
        sys::set_fast_open(&*socket, 0)?;
    }
    let mut options = options.clone();
    // Who is bound to an interface may not bind again without CAP_NET_RAW, not even to the same one.
    if options.tuning.interface.as_ref().map(|name| name.as_bytes()) == socket.device()?.as_deref() {
        options.tuning.interface = None;
    }
    inherited(&socket, &options)?;
    socket.listen(backlog(&options))
}

/// What a bind takes that a machine may not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// The interface.
    Interface,
    /// The address, or the zone of one.
    Address,
}

/// What this machine lacks to bind an address at an interface, if it lacks one of the two. Nothing listens, and no port is
/// taken.
#[must_use]
pub fn missing(address: SocketAddr, interface: Option<&str>) -> Option<Missing> {
    let domain = Domain::for_address(address);
    let socket = match Socket::new(domain, Type::STREAM, Some(Protocol::TCP)) {
        Ok(socket) => socket,
        Err(error) => return (error.raw_os_error() == Some(libc::EAFNOSUPPORT)).then_some(Missing::Address),
    };
    if let Some(Err(error)) = interface.map(|name| socket.bind_device(Some(name.as_bytes()))) {
        return (error.raw_os_error() == Some(libc::ENODEV)).then_some(Missing::Interface);
    }
    sys::set_bind_address_no_port(&socket, true).ok()?;
    let mut address = address;
    address.set_port(0);
    let error = socket.bind(&address.into()).err()?.raw_os_error();
    matches!(error, Some(libc::EADDRNOTAVAIL | libc::ENODEV)).then_some(Missing::Address)
}

/// What the kernel said about a bind, and how to mend it.
#[must_use]
pub fn bind_hint(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "permission denied: use a port above 1023, or give the capability \
            (setcap cap_net_bind_service=+ep, or AmbientCapabilities=CAP_NET_BIND_SERVICE)"
                .to_owned()
        }
        io::ErrorKind::AddrInUse => "the address is in use: `ss -ltnp` names the process".to_owned(),
        io::ErrorKind::AddrNotAvailable => "no interface of this machine has this address".to_owned(),
        _ => error.to_string(),
    }
}

fn bind(options: &Listen, address: SocketAddr, reuse_port: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(options.bind.only_v6)?;
    }
    // Lets a restart bind while old sessions are still in TIME_WAIT; two listeners still exclude each other.
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(reuse_port)?;
    inherited(&socket, options)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

fn inherited(socket: &Socket, options: &Listen) -> io::Result<()> {
    // Not TCP_USER_TIMEOUT: while it is set, the first unanswered keepalive probe ends a connection, whatever their count
    // (tcp_keepalive_timer in net/ipv4/tcp_timer.c). The relay sets it while bytes are on their way.
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&keepalive(options.keepalive))?;
    if let Some(queue) = options.fast_open {
        options::fast_open(socket, queue)?;
    }
    if options.transparent {
        options::transparent(socket, options.bind.address.is_ipv6())?;
    }
    options.tuning.set(socket, options.bind.address.is_ipv6())
}

pub(super) fn keepalive(keepalive: Keepalive) -> TcpKeepalive {
    TcpKeepalive::new()
        .with_time(keepalive.idle)
        .with_interval(keepalive.interval)
        .with_retries(keepalive.count)
}

fn backlog(options: &Listen) -> i32 {
    i32::try_from(options.backlog).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::net::{Dscp, RefusedOption};

    fn options(address: &str) -> Listen {
        Listen {
            bind: Bind { address: address.parse().unwrap(), only_v6: false },
            backlog: 128,
            keepalive: Keepalive {
                idle: Duration::from_secs(60),
                interval: Duration::from_secs(10),
                count: 3,
            },
            fast_open: None,
            tuning: Tuning::default(),
            transparent: false,
        }
    }

    #[test]
    fn several_sockets_share_one_port() {
        let sockets = listen(&options("127.0.0.1:0"), 3).unwrap();
        let ports: std::collections::BTreeSet<_> =
            sockets.iter().map(|socket| socket.local_addr().unwrap().port()).collect();
        assert_eq!((sockets.len(), ports.len()), (3, 1));
    }

    #[test]
    fn a_port_that_another_listener_shares_is_in_use() {
        let sockets = listen(&options("127.0.0.1:0"), 2).unwrap();
        let address = sockets[0].local_addr().unwrap().to_string();
        for count in [1, 2] {
            let error = listen(&options(&address), count).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        }
    }

    #[test]
    fn accepted_sockets_inherit_the_options() {
        let listener = listen(&options("127.0.0.1:0"), 1).unwrap().remove(0);
        listener.set_nonblocking(false).unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let accepted = SockRef::from(&accepted);
        assert!(accepted.tcp_nodelay().unwrap());
        assert!(accepted.keepalive().unwrap());
        assert_eq!(accepted.tcp_keepalive_time().unwrap(), Duration::from_secs(60));
        assert!(accepted.tcp_user_timeout().unwrap().is_none_or(|timeout| timeout.is_zero()));
        drop(client);
    }

    fn tuned() -> Tuning {
        Tuning {
            congestion: Some("reno".into()),
            send_buffer: Some(65_536),
            receive_buffer: Some(32_768),
            notsent_lowat: Some(16_384),
            dscp: Dscp::new(46),
            interface: may_leave_lo().then(|| "lo".into()),
        }
    }

    /// Without CAP_NET_RAW an interface is for good.
    fn may_leave_lo() -> bool {
        let lo = Tuning { interface: Some("lo".into()), ..Tuning::default() };
        Tuning::default().try_change(&lo).is_ok()
    }

    /// What a socket has of all that.
    #[derive(Debug, PartialEq, Eq)]
    struct Found {
        congestion: Vec<u8>,
        buffers: (usize, usize),
        notsent_lowat: u32,
        tos: u32,
        interface: Option<Vec<u8>>,
        fixed: (bool, bool),
    }

    fn found(socket: &impl AsFd) -> Found {
        let socket = SockRef::from(socket);
        let mut congestion = socket.tcp_congestion().unwrap();
        congestion.retain(|byte| *byte != 0);
        Found {
            congestion,
            buffers: (socket.send_buffer_size().unwrap(), socket.recv_buffer_size().unwrap()),
            notsent_lowat: socket.tcp_notsent_lowat().unwrap(),
            tos: socket.tos_v4().unwrap(),
            interface: socket.device().unwrap(),
            fixed: sys::fixed_buffers(&*socket).unwrap(),
        }
    }

    fn set() -> Found {
        Found {
            congestion: b"reno".to_vec(),
            buffers: (131_072, 65_536),
            notsent_lowat: 16_384,
            tos: 46 << 2,
            interface: may_leave_lo().then(|| b"lo".to_vec()),
            fixed: (true, true),
        }
    }

    fn accept(listener: &TcpListener) -> (std::net::TcpStream, std::net::TcpStream) {
        listener.set_nonblocking(false).unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, listener.accept().unwrap().0)
    }

    #[test]
    fn accepted_sockets_inherit_what_the_operator_has_set() {
        let options = Listen { tuning: tuned(), fast_open: Some(64), ..options("127.0.0.1:0") };
        let listener = listen(&options, 1).unwrap().remove(0);
        assert_eq!((found(&listener), sys::fast_open(&listener).unwrap()), (set(), 64));
        let (_client, accepted) = accept(&listener);
        assert_eq!(found(&accepted), set());
    }

    #[test]
    fn a_reload_sets_and_takes_back() {
        let plain = options("127.0.0.1:0");
        let listener = listen(&plain, 1).unwrap().remove(0);
        let (_client, before) = accept(&listener);
        let (new, untouched) = (found(&listener), found(&before));
        let address = listener.local_addr().unwrap();

        let mut options = Listen { tuning: tuned(), fast_open: Some(64), ..plain.clone() };
        reapply(&listener, &options).unwrap();
        let (_client, accepted) = accept(&listener);
        assert_eq!((found(&accepted), sys::fast_open(&listener).unwrap()), (set(), 64));

        reapply(&listener, &options).unwrap();
        assert_eq!(found(&listener), set(), "the same once more changes nothing");

        options.tuning.send_buffer = None;
        reapply(&listener, &options).unwrap();
        let expected = Found { buffers: (new.buffers.0, 65_536), fixed: (false, true), ..set() };
        assert_eq!(found(&listener), expected);

        reapply(&listener, &plain).unwrap();
        assert_eq!((found(&listener), sys::fast_open(&listener).unwrap()), (new, 0));
        let (_client, accepted) = accept(&listener);
        assert_eq!(found(&accepted), untouched, "as if nothing had ever been set");
        assert_eq!(found(&before), untouched, "a session that lasts keeps what it had");
        assert_eq!(listener.local_addr().unwrap(), address);
    }

    #[test]
    fn a_socket_is_transparent_as_long_as_the_config_says_so() {
        for address in ["127.0.0.1:0", "[::1]:0", "[::]:0"] {
            let plain = options(address);
            let transparent = Listen { transparent: true, ..plain.clone() };
            let listener = match listen(&transparent, 1) {
                Ok(mut sockets) => sockets.remove(0),
                Err(error) if RefusedOption::is_permission(&error) => {
                    let hint = bind_hint(&error);
                    assert!(hint.ends_with("needs CAP_NET_RAW or CAP_NET_ADMIN for it"), "{hint}");
                    return;
                }
                Err(_) => continue, // a machine without IPv6
            };
            let is = || {
                let socket = SockRef::from(&listener);
                if plain.bind.address.is_ipv6() {
                    socket.ip_transparent_v6()
                } else {
                    socket.ip_transparent_v4()
                }
            };
            assert!(is().unwrap(), "{address}");
            reapply(&listener, &plain).unwrap();
            assert!(!is().unwrap(), "{address}");
            reapply(&listener, &transparent).unwrap();
            assert!(is().unwrap(), "{address}");
        }
    }

    #[test]
    fn a_change_of_interface_is_tried_out_first() {
        let with = |name: &str| Tuning { interface: Some(name.into()), ..Tuning::default() };
        assert!(with("lo").try_change(&with("lo")).is_ok());
        assert!(with("lo").try_change(&Tuning::default()).is_ok());
        let error = with("no-such-if").try_change(&with("lo")).unwrap_err();
        assert!(error.to_string().starts_with("interface no-such-if: "), "{error}");
        if !may_leave_lo() {
            let error = Tuning::default().try_change(&with("gone")).unwrap_err().to_string();
            assert!(error.ends_with("the process needs CAP_NET_RAW for it"), "{error}");
        }
    }

    #[test]
    fn what_the_kernel_cuts_is_told() {
        let tuning = Tuning { send_buffer: Some(1 << 30), receive_buffer: Some(4096), ..Tuning::default() };
        let cut = tuning.cut();
        // Unless this machine really gives a gibibyte.
        assert!(cut.len() <= 1 && cut.iter().all(|text| text.starts_with("send_buffer: ")), "{cut:?}");
        assert_eq!(Tuning::default().cut(), Vec::<String>::new());
    }

    #[test]
    fn an_interface_that_is_not_there_refuses_the_bind_and_is_named() {
        let tuning = Tuning { interface: Some("no-such-if".into()), ..Tuning::default() };
        let error = listen(&Listen { tuning, ..options("127.0.0.1:0") }, 1).unwrap_err();
        assert!(bind_hint(&error).starts_with("interface no-such-if: No such device"), "{error}");
    }

    #[test]
    fn both_families_of_a_wildcard_are_marked() {
        let options = Listen { tuning: tuned(), ..options("[::]:0") };
        let Ok(mut sockets) = listen(&options, 1) else {
            return; // a machine without IPv6
        };
        let listener = sockets.remove(0);
        listener.set_nonblocking(false).unwrap();
        let port = listener.local_addr().unwrap().port();
        for address in ["127.0.0.1", "::1"] {
            let Ok(_client) = std::net::TcpStream::connect((address, port)) else { continue };
            let (accepted, _) = listener.accept().unwrap();
            let accepted = SockRef::from(&accepted);
            assert_eq!((accepted.tos_v4().unwrap(), accepted.tclass_v6().unwrap()), (46 << 2, 46 << 2));
        }
    }

    #[test]
    fn the_double_wildcard_takes_both_families_unless_told_not_to() {
        for only_v6 in [false, true] {
            let mut options = options("[::]:0");
            options.bind.only_v6 = only_v6;
            let Ok(mut sockets) = listen(&options, 1) else {
                return; // a machine without IPv6
            };
            let port = sockets.remove(0);
            let port_number = port.local_addr().unwrap().port();
            let reached = std::net::TcpStream::connect(("127.0.0.1", port_number)).is_ok();
            assert_eq!(reached, !only_v6);
        }
    }
}

//! What the operator may have set on a socket: types, and the calls that set them. Nothing is called for an option that
//! is not set.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::Keepalive;
use crate::sys;

/// Options that sockets towards clients and towards endpoints have in common. `None` leaves it to the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Tuning {
    /// TCP_CONGESTION: the name of a congestion control.
    pub congestion: Option<Arc<str>>,
    /// SO_SNDBUF, bytes: of data, as the kernel keeps twice this for its own books.
    pub send_buffer: Option<u32>,
    /// SO_RCVBUF, bytes.
    pub receive_buffer: Option<u32>,
    /// TCP_NOTSENT_LOWAT, bytes.
    pub notsent_lowat: Option<u32>,
    /// The DSCP mark.
    pub dscp: Option<Dscp>,
    /// SO_BINDTODEVICE: the name of an interface.
    pub interface: Option<Arc<str>>,
}

/// How a socket towards an endpoint is set up. The default sets nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Outgoing {
    /// Options of any TCP socket.
    pub tuning: Tuning,
    /// What IPv4 connections come from.
    pub source_v4: Option<Ipv4Addr>,
    /// What IPv6 connections come from.
    pub source_v6: Option<Ipv6Addr>,
    /// TCP_FASTOPEN_CONNECT: the first bytes travel with the SYN. Such a dial succeeds before anything was sent.
    pub fast_open: bool,
    /// In place of the listener's, for [`guard`](super::guard): not set by a dial.
    pub keepalive: Option<Keepalive>,
    /// In place of the listener's, while bytes are on their way: not set by a dial.
    pub user_timeout: Option<Duration>,
}

/// A differentiated services code point (RFC 2474), 0 to 63.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Dscp(u8);

impl Dscp {
    /// The code point with this number.
    #[must_use]
    pub const fn new(number: u8) -> Option<Self> {
        if number < 64 { Some(Self(number)) } else { None }
    }

    /// Its number.
    #[must_use]
    pub const fn number(self) -> u8 {
        self.0
    }

    /// The octet in the IP header, with the ECN bits at zero: the kernel keeps those of a TCP socket to itself.
    const fn octet(self) -> u32 {
        (self.0 as u32) << 2
    }
}

/// The kernel refused an option of a cloud or a listener, as for an interface that is gone.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {source}{}", hint(what, source))]
pub struct RefusedOption {
    what: String,
    source: io::Error,
}

impl RefusedOption {
    /// True where `error` is one for what may yet come while the process runs: an interface or an address.
    #[must_use]
    pub fn may_come(error: &io::Error) -> bool {
        let refused = error.get_ref().and_then(|inner| inner.downcast_ref::<Self>());
        let said = refused.and_then(|refused| refused.source.raw_os_error());
        matches!(said, Some(libc::ENODEV | libc::EADDRNOTAVAIL))
    }

    /// True where `error` is one for what takes a capability that this process does not have.
    #[must_use]
    pub fn is_permission(error: &io::Error) -> bool {
        let refused = error.get_ref().and_then(|inner| inner.downcast_ref::<Self>());
        refused.is_some_and(|refused| refused.source.kind() == io::ErrorKind::PermissionDenied)
    }
}

fn hint(what: &str, source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::ENOENT) if what.starts_with(CONGESTION) => {
            ": the kernel of this machine does not have it (/proc/sys/net/ipv4/tcp_available_congestion_control; \
             modprobe tcp_NAME loads one)"
        }
        Some(libc::EPERM) if what.starts_with(CONGESTION) => {
            ": not one that any process may use (/proc/sys/net/ipv4/tcp_allowed_congestion_control), and this one has \
             no CAP_NET_ADMIN"
        }
        Some(libc::EPERM) if what.starts_with(TRANSPARENT) => {
            ": the process needs CAP_NET_RAW or CAP_NET_ADMIN for it"
        }
        Some(libc::EPERM) if what.starts_with(INTERFACE) => ": the process needs CAP_NET_RAW for it",
        Some(libc::EOPNOTSUPP) => ": net.ipv4.tcp_fastopen lacks 1, the part of clients",
        _ => "",
    }
}

const CONGESTION: &str = "congestion control";
const INTERFACE: &str = "interface";
const TRANSPARENT: &str = "addresses of others";

impl Outgoing {
    /// The source address for connections to `address`, if there is one.
    #[must_use]
    pub fn source(&self, address: SocketAddr) -> Option<IpAddr> {
        match address.ip() {
            IpAddr::V4(_) => self.source_v4.map(IpAddr::V4),
            // An IPv4 address in the clothes of an IPv6 one is dialled from such a one.
            IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some() => {
                self.source_v4.map(|ip| IpAddr::V6(ip.to_ipv6_mapped()))
            }
            IpAddr::V6(_) => self.source_v6.map(IpAddr::V6),
        }
    }

    /// False where the source address is of the other family only.
    #[must_use]
    pub fn reaches(&self, address: SocketAddr) -> bool {
        let any = self.source_v4.is_some() || self.source_v6.is_some();
        !any || self.source(address).is_some()
    }

    /// True if a dial sets nothing on its socket, so that one of another dial is as good.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        let Self { tuning, source_v4, source_v6, fast_open, keepalive: _, user_timeout: _ } = self;
        source_v4.is_none() && source_v6.is_none() && !fast_open && *tuning == Tuning::default()
    }

    /// The same path without TCP Fast Open, for who wants to know that a connection is established.
    #[must_use]
    pub fn without_fast_open(&self) -> Self {
        Self { fast_open: false, ..self.clone() }
    }

    /// Sets the options on sockets that are thrown away.
    ///
    /// # Errors
    /// What the kernel said to one of them; of the source address, that this machine does not have it, say.
    pub fn try_out(&self) -> io::Result<()> {
        if *self == Self::default() {
            return Ok(());
        }
        let sources = [self.source_v4.map(IpAddr::V4), self.source_v6.map(IpAddr::V6)];
        let mut addresses: Vec<SocketAddr> =
            sources.into_iter().flatten().map(|ip| SocketAddr::new(ip, 0)).collect();
        if addresses.is_empty() {
            addresses.push(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0));
        }
        for address in addresses {
            let domain = Domain::for_address(address);
            self.set(&Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?, address)?;
        }
        Ok(())
    }

    /// Sets what there is to set on a socket that is about to be connected to `address`.
    pub(super) fn set(&self, socket: &Socket, address: SocketAddr) -> io::Result<()> {
        self.set_all_but_source(socket, address)?;
        let Some(source) = self.source(address) else {
            if self.reaches(address) {
                return Ok(());
            }
            let error = io::ErrorKind::AddrNotAvailable.into();
            return refused(Err(error), || format!("no source address of the family of {}", address.ip()));
        };
        refused(bind_source(socket, source), || format!("source address {source}"))
    }

    /// The same, with the address of a client as the source.
    pub(super) fn set_as(&self, client: IpAddr, socket: &Socket, address: SocketAddr) -> io::Result<()> {
        self.set_all_but_source(socket, address)?;
        let source = match (address.ip(), client.to_canonical()) {
            (IpAddr::V6(ip), IpAddr::V4(client)) if ip.to_ipv4_mapped().is_some() => {
                IpAddr::V6(client.to_ipv6_mapped())
            }
            (IpAddr::V4(_), client @ IpAddr::V4(_)) => client,
            (IpAddr::V6(ip), client @ IpAddr::V6(_)) if ip.to_ipv4_mapped().is_none() => client,
            (ip, client) => {
                let error = io::Error::other("they are of two families");
                return refused(Err(error), || format!("the client's address {client} towards {ip}"));
            }
        };
        transparent(socket, address.is_ipv6())?;
        refused(bind_source(socket, source), || format!("the client's address {source} as the source"))
    }

    fn set_all_but_source(&self, socket: &Socket, address: SocketAddr) -> io::Result<()> {
        self.tuning.set(socket, address.is_ipv6())?;
        if self.fast_open { fast_open_connect(socket) } else { Ok(()) }
    }
}

/// The port is chosen with the connect, which may use one for several destinations; a bind would take it whole.
fn bind_source(socket: &Socket, source: IpAddr) -> io::Result<()> {
    sys::set_bind_address_no_port(socket, true)?;
    socket.bind(&SocketAddr::new(source, 0).into())
}

impl Tuning {
    /// Sets the options on a socket that is thrown away.
    ///
    /// # Errors
    /// What the kernel said to one of them.
    pub fn try_out(&self) -> io::Result<()> {
        if *self == Self::default() {
            return Ok(());
        }
        self.set(&Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?, false)
    }

    /// Finds out whether a listening socket that has `before` can be given this interface.
    ///
    /// # Errors
    /// It cannot: to leave an interface takes CAP_NET_RAW.
    pub fn try_change(&self, before: &Self) -> io::Result<()> {
        let Some(old) = before.interface.as_ref().filter(|_| before.interface != self.interface) else {
            return Ok(());
        };
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
        // One that is gone by now binds nobody, but the listening socket still is bound to it.
        if socket.bind_device(Some(old.as_bytes())).is_err() {
            socket.bind_device(Some(b"lo"))?;
        }
        let new = self.interface.as_deref();
        let what =
            || new.map_or_else(|| format!("{INTERFACE} taken away"), |new| format!("{INTERFACE} {new}"));
        refused(socket.bind_device(new.map(str::as_bytes)), what)
    }

    /// Sets what there is to set. `ipv6`: the family of the socket.
    pub(super) fn set(&self, socket: &Socket, ipv6: bool) -> io::Result<()> {
        if let Some(interface) = &self.interface {
            refused(socket.bind_device(Some(interface.as_bytes())), || format!("{INTERFACE} {interface}"))?;
        }
        if let Some(name) = &self.congestion {
            refused(socket.set_tcp_congestion(name.as_bytes()), || format!("{CONGESTION} {name}"))?;
        }
        if let Some(bytes) = self.send_buffer {
            refused(socket.set_send_buffer_size(size(bytes)), || format!("send buffer of {bytes} bytes"))?;
        }
        if let Some(bytes) = self.receive_buffer {
            refused(socket.set_recv_buffer_size(size(bytes)), || format!("receive buffer of {bytes} bytes"))?;
        }
        if let Some(bytes) = self.notsent_lowat {
            refused(socket.set_tcp_notsent_lowat(bytes), || format!("notsent_lowat of {bytes} bytes"))?;
        }
        if let Some(dscp) = self.dscp {
            refused(mark(socket, dscp.octet(), ipv6), || format!("DSCP {}", dscp.number()))?;
        }
        Ok(())
    }

    /// Gives `socket` what `new` has, wherever nothing is set here.
    pub(super) fn take_back(&self, socket: &Socket, new: &Socket, ipv6: bool) -> io::Result<()> {
        let congestion = new.tcp_congestion()?;
        if self.congestion.is_none() && socket.tcp_congestion()? != congestion {
            let name = congestion.split(|byte| *byte == 0).next().unwrap_or_default();
            socket.set_tcp_congestion(name)?;
        }
        self.take_back_buffers(socket, new)?;
        if self.notsent_lowat.is_none() && socket.tcp_notsent_lowat()? != new.tcp_notsent_lowat()? {
            socket.set_tcp_notsent_lowat(new.tcp_notsent_lowat()?)?;
        }
        if self.dscp.is_none() && socket.tos_v4()? != new.tos_v4()? {
            mark(socket, new.tos_v4()?, ipv6)?;
        }
        if self.interface.is_none() && socket.device()?.is_some() {
            refused(socket.bind_device(None), || format!("{INTERFACE} taken away"))?;
        }
        Ok(())
    }

    fn take_back_buffers(&self, socket: &Socket, new: &Socket) -> io::Result<()> {
        let send = new.send_buffer_size()?;
        let receive = new.recv_buffer_size()?;
        let free_send = self.send_buffer.is_none() && socket.send_buffer_size()? != send;
        let free_receive = self.receive_buffer.is_none() && socket.recv_buffer_size()? != receive;
        // The kernel doubles what it is told.
        if free_send {
            socket.set_send_buffer_size(send / 2)?;
        }
        if free_receive {
            socket.set_recv_buffer_size(receive / 2)?;
        }
        // A size that was set keeps the kernel from adapting the buffer, until it is told that it may.
        let fixed = (self.send_buffer.is_some(), self.receive_buffer.is_some());
        let differs = sys::fixed_buffers(socket).is_ok_and(|now| now != fixed);
        if !free_send && !free_receive && !differs {
            return Ok(());
        }
        refused(sys::set_fixed_buffers(socket, fixed.0, fixed.1), || "buffers without a size".to_owned())
    }

    /// What the kernel would give less of than is set, in words.
    #[must_use]
    pub fn cut(&self) -> Vec<String> {
        if self.send_buffer.is_none() && self.receive_buffer.is_none() {
            return Vec::new();
        }
        let Ok(socket) = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)) else {
            return Vec::new();
        };
        let mut cut = Vec::new();
        // It doubles what it gives.
        let mut look = |what: &str, wanted: Option<u32>, given: io::Result<usize>, limit: &str| {
            if let Some((wanted, given)) = wanted.zip(given.ok().map(|given| given / 2))
                && given < size(wanted)
            {
                cut.push(format!("{what}: the kernel gives {given} of {wanted} bytes ({limit})"));
            }
        };
        if let Some(bytes) = self.send_buffer {
            let given = socket.set_send_buffer_size(size(bytes)).and_then(|()| socket.send_buffer_size());
            look("send_buffer", self.send_buffer, given, "net.core.wmem_max");
        }
        if let Some(bytes) = self.receive_buffer {
            let given = socket.set_recv_buffer_size(size(bytes)).and_then(|()| socket.recv_buffer_size());
            look("receive_buffer", self.receive_buffer, given, "net.core.rmem_max");
        }
        cut
    }
}

/// False where the kernel ignores [`Listen::fast_open`](super::Listen::fast_open).
#[must_use]
pub fn serves_fast_open() -> bool {
    let bits = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_fastopen").unwrap_or_default();
    // Who cannot know does not complain.
    bits.trim().parse::<u32>().map_or(true, |bits| bits & 2 != 0)
}

/// Lets a socket have addresses that this machine does not have. `ipv6`: its family.
pub(super) fn transparent(socket: &Socket, ipv6: bool) -> io::Result<()> {
    refused(set_transparent(socket, ipv6, true), || format!("{TRANSPARENT} (IP_TRANSPARENT)"))
}

/// Takes that back.
pub(super) fn not_transparent(socket: &Socket, ipv6: bool) -> io::Result<()> {
    let is = if ipv6 { socket.ip_transparent_v6()? } else { socket.ip_transparent_v4()? };
    if is { set_transparent(socket, ipv6, false) } else { Ok(()) }
}

/// Both options set the same mark on the socket (inet_sk_transparent in the kernel).
fn set_transparent(socket: &Socket, ipv6: bool, on: bool) -> io::Result<()> {
    if ipv6 { socket.set_ip_transparent_v6(on) } else { socket.set_ip_transparent_v4(on) }
}

/// Has the first bytes travel with the SYN.
pub(super) fn fast_open_connect(socket: &Socket) -> io::Result<()> {
    refused(sys::set_fast_open_connect(socket, true), || "TCP Fast Open".to_owned())
}

/// Takes first bytes that came with the SYN.
pub(super) fn fast_open(socket: &Socket, queue: u32) -> io::Result<()> {
    refused(sys::set_fast_open(socket, queue), || format!("TCP Fast Open with a queue of {queue}"))
}

/// Marks the packets of a socket. One of IPv6 may carry IPv4 connections, which take the IPv4 mark.
pub(super) fn mark(socket: &Socket, octet: u32, ipv6: bool) -> io::Result<()> {
    if ipv6 {
        SockRef::from(socket).set_tclass_v6(octet)?;
    }
    socket.set_tos_v4(octet)
}

fn refused(result: io::Result<()>, what: impl FnOnce() -> String) -> io::Result<()> {
    result.map_err(|source| {
        let what = what();
        io::Error::new(io::ErrorKind::InvalidInput, RefusedOption { what, source })
    })
}

fn size(bytes: u32) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

//! Listeners as they are written in the file, and their routes.

use schemars::JsonSchema;
use serde::Deserialize;

use super::{
    super::{
        Intercept, defaults,
        keys::{Items, Key, Mark},
        values::{
            AlpnText, BindText, CongestionText, CountText, DestinationText, InterfaceText, LongTime, Name,
            NetText, SizeText, SniText, Time, TlvText, time_text,
        },
        words::{ProxyInWord, Vocabulary as _, Word},
    },
    KeepaliveTable, ListenerTlsTable,
};

/// A listener: an address that clients connect to, and the pool that serves it.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["bind"]))]
pub(in crate::config) struct Listener {
    /// The name in logs and metrics. Unique.
    #[schemars(extend("x-default" = "the text of `bind`"))]
    pub(in crate::config) name: Key<Name>,

    /// The address: `"0.0.0.0:5432"`, `"[::]:5432"` (IPv6 and IPv4), `"127.0.0.1:5432"`. Port 0 lets the kernel choose
    /// one.
    #[schemars(extend("examples" = ["0.0.0.0:5432"]))]
    pub(in crate::config) bind: Key<BindText>,

    /// The pool that serves it; with routes, the pool for sessions that no route is for. Without it those are closed.
    #[schemars(extend("x-default" = "none: needed where there is no route", "examples" = ["web"]))]
    pub(in crate::config) pool: Key<Name>,

    /// Connect sessions that no route is for to the address that their client asked for, unless that is this proxy. Only
    /// where that address is known: with `intercept`, or with a PROXY header. In place of `pool`.
    #[schemars(extend("default" = false))]
    pub(in crate::config) as_asked: Key<bool>,

    /// Routes: where sessions go by what their client says. Of the routes that a session fits, the most specific one takes
    /// it: first the one with an exact server name, then the longest `*.` name, then one with `alpn`, then the longest
    /// `source`, then the longest `destination` (one with a port before one without), then the most `tlv`, then the first
    /// in the file.
    pub(in crate::config) route: Key<Items<Route>>,

    /// TLS that ends here: what goes to endpoints is what was in it. Without it TLS is passed on as it is, and routes can
    /// still ask for the server name.
    pub(in crate::config) tls: Key<ListenerTlsTable>,

    /// A PROXY header (version 1 or 2) at the start of each connection, from a balancer before this proxy: `off`, `required`
    /// (a connection without one is closed), or `optional`. The addresses in it are then those of the session. With
    /// `optional` a client that says nothing is waited for until `header_timeout`, then served without one.
    #[schemars(extend("default" = ProxyInWord::Off.word()))]
    pub(in crate::config) proxy_header: Key<Word<ProxyInWord>>,

    /// The networks whose PROXY headers are believed. With `required`, others are closed; with `optional`, what others send
    /// is payload, whatever it looks like. `optional` needs it: anybody could claim any address otherwise.
    #[schemars(extend("x-default" = "with `required`: every address"))]
    pub(in crate::config) proxy_header_from: Key<Items<NetText>>,

    /// Take connections that a firewall rule of this machine sends here though they were meant for other addresses:
    /// `redirect` (iptables or nft REDIRECT, DNAT) or `tproxy` (TPROXY, which takes CAP_NET_RAW or CAP_NET_ADMIN). Routes can
    /// then ask for the `destination`. A rule must leave out the connections of this proxy itself; one that does not is
    /// noticed, and what comes back is refused (`refused=loop`).
    #[schemars(extend("default" = Intercept::Off.word()))]
    pub(in crate::config) intercept: Key<Word<Intercept>>,

    /// The networks that may come in, by the address of the client itself (that of the PROXY header, where there is one).
    /// The longest network of `allow` and `deny` that holds the address decides; what none holds may come in only if
    /// `allow` is empty.
    #[schemars(extend("x-default" = "everybody"))]
    pub(in crate::config) allow: Key<Items<NetText>>,

    /// The networks that may not.
    #[schemars(extend("x-default" = "nobody"))]
    pub(in crate::config) deny: Key<Items<NetText>>,

    /// Sessions at once; further ones are reset.
    #[schemars(range(min = 1, max = 100_000_000), extend("x-default" = "no limit"))]
    pub(in crate::config) max_sessions: Key<u32>,

    /// New sessions a second, with a burst of as many; further ones are reset.
    #[schemars(range(min = 1, max = 10_000_000), extend("x-default" = "no limit"))]
    pub(in crate::config) max_rate: Key<u32>,

    /// Sessions at once from one source: an IPv4 address, or an IPv6 network of 64 bits, which is what one customer has.
    #[schemars(range(min = 1, max = 100_000_000), extend("x-default" = "no limit"))]
    pub(in crate::config) max_source_sessions: Key<u32>,

    /// New sessions a second from one source, with a burst of as many.
    #[schemars(range(min = 1, max = 10_000_000), extend("x-default" = "no limit"))]
    pub(in crate::config) max_source_rate: Key<u32>,

    /// Sessions at once whose PROXY header, ClientHello or handshake is still under way; further ones are reset. It bounds
    /// the memory that clients can hold which never finish one.
    #[schemars(range(min = 1, max = 10_000_000), extend("default" = defaults::MAX_HANDSHAKES))]
    pub(in crate::config) max_handshakes: Key<u32>,

    /// Bytes a second that one session may carry in each direction, such as `"10MiB"`. Sessions with such a limit are not
    /// carried by the engine.
    #[schemars(extend("x-default" = "no limit"))]
    pub(in crate::config) session_bandwidth: Key<CountText>,

    /// Time for a whole PROXY header. A balancer writes it at once.
    #[schemars(extend("default" = time_text(defaults::HEADER_TIMEOUT)))]
    pub(in crate::config) header_timeout: Key<Time>,

    /// Time for a whole ClientHello, and for the TLS handshake that it begins.
    #[schemars(extend("default" = time_text(defaults::HANDSHAKE_TIMEOUT)))]
    pub(in crate::config) handshake_timeout: Key<Time>,

    /// The longest ClientHello that is read, `"4KiB"` to `"64KiB"`. Those with post-quantum keys take 2 KiB. It must fit into
    /// `receive_buffer`, if that is set, as it is looked at as a whole before it is taken from there.
    #[schemars(extend("default" = "32KiB"))]
    pub(in crate::config) hello_bytes: Key<SizeText>,

    /// With no byte in either direction for this long, a session is reset. A database session may sleep for long;
    /// keepalive, not this, finds dead peers.
    #[schemars(extend("default" = time_text(defaults::IDLE_TIMEOUT)))]
    pub(in crate::config) idle_timeout: Key<LongTime>,

    /// After one direction has ended, how long the other may be silent. A peer that has ended its direction and hears
    /// nothing for a minute is a leak more often than a slow answer.
    #[schemars(extend("default" = time_text(defaults::HALF_CLOSE_TIMEOUT)))]
    pub(in crate::config) half_close_timeout: Key<Time>,

    /// The longest life of a session, after which it is reset.
    #[schemars(extend("x-default" = "no limit"))]
    pub(in crate::config) max_lifetime: Key<LongTime>,

    /// Connections that may wait to be accepted. The kernel cuts it to `net.core.somaxconn` (4096 since Linux 5.4).
    #[schemars(range(min = 1, max = 1_048_576), extend("default" = defaults::BACKLOG))]
    pub(in crate::config) backlog: Key<u32>,

    /// On an IPv6 address: accept no IPv4 clients. By default `[::]` is dual-stack, whatever `net.ipv6.bindv6only` says.
    #[schemars(extend("default" = defaults::ONLY_V6))]
    pub(in crate::config) only_v6: Key<bool>,

    /// TCP_USER_TIMEOUT on both sides: how long sent bytes may stay unacknowledged. They mean a dead peer after this,
    /// not after the kernel's 15 minutes. A cloud may have its own.
    #[schemars(extend("default" = time_text(defaults::USER_TIMEOUT)))]
    pub(in crate::config) user_timeout: Key<Time>,

    /// TCP keepalive on both sides. A cloud may have its own.
    pub(in crate::config) keepalive: Key<KeepaliveTable>,

    /// The interface that clients come in by, and answers leave by (SO_BINDTODEVICE): connections to the same address by
    /// another one are not accepted. To change it in a reload takes CAP_NET_RAW.
    #[schemars(extend("x-default" = "every one"))]
    pub(in crate::config) interface: Key<InterfaceText>,

    /// The congestion control of what is sent to clients: `bbr` for clients on paths that lose packets, `cubic`, `reno`.
    /// The machine must have it. By default that of the machine: what is best depends on the path and on who shares it.
    #[schemars(extend("x-default" = "`net.ipv4.tcp_congestion_control`"))]
    pub(in crate::config) congestion: Key<CongestionText>,

    /// The send buffer, `"4KiB"` to `"1GiB"`; the kernel cuts it to `net.core.wmem_max`. By default the kernel adapts it
    /// to each connection, which a fixed size ends: it bounds what a slow client can hold of this machine's memory.
    #[schemars(extend("x-default" = "adapted by the kernel, within `net.ipv4.tcp_wmem`"))]
    pub(in crate::config) send_buffer: Key<SizeText>,

    /// The receive buffer, likewise; the kernel cuts it to `net.core.rmem_max`.
    #[schemars(extend("x-default" = "adapted by the kernel, within `net.ipv4.tcp_rmem`"))]
    pub(in crate::config) receive_buffer: Key<SizeText>,

    /// TCP_NOTSENT_LOWAT: at most about this much waits in the kernel unsent, so that bytes wait at their origin and not
    /// here. `"128KiB"` saves memory with slow clients; less costs throughput, which is why there is no default.
    #[schemars(extend("x-default" = "`net.ipv4.tcp_notsent_lowat`: no limit"))]
    pub(in crate::config) notsent_lowat: Key<SizeText>,

    /// TCP Fast Open: clients that were here before may send their first bytes with the SYN; this many connections may
    /// wait for the end of such a handshake. It takes 2 in `net.ipv4.tcp_fastopen`. Off by default, as a network may
    /// deliver those first bytes twice, which not every service can stand.
    #[schemars(range(min = 1, max = 65535), extend("x-default" = "off"))]
    pub(in crate::config) fast_open: Key<u32>,

    /// The DSCP mark of packets to clients: a number from 0 to 63, or a class (`"EF"`, `"AF21"`, `"CS1"`, `"LE"`). By
    /// default none: most networks erase marks, and some treat them in ways of their own.
    #[schemars(extend("x-default" = "none: 0"))]
    pub(in crate::config) dscp: Key<Mark>,
}

/// A route: what a session must be like, and where it then goes. Each condition that is given must hold; at least one is.
/// What a client says is only looked at where a route or TLS asks for it.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct Route {
    /// Server names (SNI) of the ClientHello: `"db.example.com"`, or `"*.example.com"` for every name below, however deep.
    /// Upper and lower case are the same, and a dot at the end means nothing. A client of TLS that names none fits no
    /// name; one that does not speak TLS is closed.
    #[schemars(extend("x-default" = "any, or none"))]
    pub(in crate::config) sni: Key<Items<SniText>>,

    /// Protocols that the ClientHello offers (ALPN), such as `"h2"`; one of them is enough.
    #[schemars(extend("x-default" = "any, or none"))]
    pub(in crate::config) alpn: Key<Items<AlpnText>>,

    /// Networks that the client is in.
    #[schemars(extend("x-default" = "anywhere"))]
    pub(in crate::config) source: Key<Items<NetText>>,

    /// Addresses that the client asked for: `"198.18.0.0/16:5432"`, `"10.0.0.0/8"`, `":5432"`, `"[2001:db8::/32]:443"`. It is
    /// the original destination with `intercept`, that of the PROXY header, or the address of this listener.
    #[schemars(extend("x-default" = "any"))]
    pub(in crate::config) destination: Key<Items<DestinationText>>,

    /// What the PROXY header (version 2) must carry.
    pub(in crate::config) tlv: Key<TlvTable>,

    /// The pool that serves it.
    #[schemars(extend("x-default" = "none: `pool`, `as_asked` or `refuse` must be there"))]
    pub(in crate::config) pool: Key<Name>,

    /// Connect to the address that the client asked for. In place of `pool`.
    #[schemars(extend("default" = false))]
    pub(in crate::config) as_asked: Key<bool>,

    /// Close such sessions. In place of `pool`.
    #[schemars(extend("default" = false))]
    pub(in crate::config) refuse: Key<bool>,

    /// The networks that may use it, as `allow` of the listener; both must let a client in.
    #[schemars(extend("x-default" = "everybody"))]
    pub(in crate::config) allow: Key<Items<NetText>>,

    /// The networks that may not.
    #[schemars(extend("x-default" = "nobody"))]
    pub(in crate::config) deny: Key<Items<NetText>>,
}

/// Values of a PROXY header of version 2. One of the values of each key that is given must be there.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct TlvTable {
    /// PP2_TYPE_AUTHORITY: the server name that the balancer saw.
    #[schemars(extend("x-default" = "any, or none"))]
    pub(in crate::config) authority: Key<Items<TlvText>>,

    /// PP2_TYPE_ALPN: the protocol that the balancer and the client agreed on.
    #[schemars(extend("x-default" = "any, or none"))]
    pub(in crate::config) alpn: Key<Items<TlvText>>,

    /// PP2_TYPE_UNIQUE_ID: in hexadecimal digits where it is no text.
    #[schemars(extend("x-default" = "any, or none"))]
    pub(in crate::config) unique_id: Key<Items<TlvText>>,

    /// PP2_TYPE_NETNS: the network namespace of the balancer.
    #[schemars(extend("x-default" = "any, or none"))]
    pub(in crate::config) netns: Key<Items<TlvText>>,

    /// AWS: the id of the VPC endpoint that the client came through, `"vpce-08d2bf15fac5001c9"`.
    #[schemars(extend("x-default" = "any, or none"))]
    pub(in crate::config) aws_vpc_endpoint: Key<Items<TlvText>>,

    /// Google Cloud: the id of the Private Service Connect connection, a decimal number.
    #[schemars(extend("x-default" = "any, or none"))]
    pub(in crate::config) gcp_psc_connection: Key<Items<TlvText>>,

    /// Azure: the link id of the private endpoint, a decimal number.
    #[schemars(extend("x-default" = "any, or none"))]
    pub(in crate::config) azure_private_link: Key<Items<TlvText>>,
}

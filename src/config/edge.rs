//! What stands at the edge of the process, towards clients and towards endpoints: TLS, PROXY headers, routes by what a
//! client says, interception, and who may come in, and how much.

use std::{fmt, path::PathBuf, time::Duration};

use ipnet::IpNet;

use super::defaults;
use crate::{
    ids::{PoolName, Tlv},
    net::Intercept,
};

/// What a listener does with a connection before it has a pool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// Whether clients, or the balancer before us, begin with a PROXY header.
    pub proxy_header: ProxyIn,
    /// TLS, if it ends here.
    pub tls: Option<ListenerTls>,
    /// Where sessions go by what is known of them; the listener's pool takes the rest.
    pub routes: Vec<Route>,
    /// Whether the firewall sends connections here that were meant for others.
    pub intercept: Intercept,
    /// Who may come in.
    pub access: Access,
    /// How much may come in.
    pub admission: Admission,
    /// Time for what comes before the first endpoint is chosen: PROXY header, ClientHello, handshake.
    pub times: EntryTimes,
}

/// The deadlines before an endpoint is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryTimes {
    /// For a whole PROXY header.
    pub header: Duration,
    /// For a whole ClientHello, and for the whole handshake after it.
    pub handshake: Duration,
    /// The longest ClientHello that is read, in bytes.
    pub hello_bytes: u32,
    /// Sessions that may be in this state at once.
    pub at_once: u32,
}

impl Default for EntryTimes {
    fn default() -> Self {
        Self {
            header: defaults::HEADER_TIMEOUT,
            handshake: defaults::HANDSHAKE_TIMEOUT,
            hello_bytes: defaults::HELLO_BYTES,
            at_once: defaults::MAX_HANDSHAKES,
        }
    }
}

/// Whether a listener reads PROXY headers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ProxyIn {
    /// No: bytes that look like one are payload.
    #[default]
    Off,
    /// From these networks a connection begins with one, or is closed; all others are closed. Empty: from everywhere.
    Required(Vec<IpNet>),
    /// From these networks a connection may begin with one; what others send is payload. Never empty.
    Optional(Vec<IpNet>),
}

/// A version of TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    /// TLS 1.2, RFC 5246.
    #[default]
    V12,
    /// TLS 1.3, RFC 8446.
    V13,
}

/// The files of a certificate chain and of its key, PEM.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KeyPair {
    /// The chain, the certificate itself first.
    pub certificate: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// Where a certificate that we show comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// From these files.
    Files(KeyPair),
    /// From the SPIFFE Workload API: our X.509-SVID.
    Spiffe,
}

/// Whose certificates of others are right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Authority {
    /// Those of the authorities in this file, PEM.
    File(PathBuf),
    /// Those of the trust domains whose bundles the SPIFFE Workload API gives, each for its own ids only.
    Spiffe,
}

/// TLS that ends at a listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerTls {
    /// At least one. The first is shown where the client names none that another one is for.
    pub certificates: Vec<Identity>,
    /// The oldest version that is spoken.
    pub min_version: TlsVersion,
    /// The protocols that are offered, best first. Empty: ALPN is not answered.
    pub alpn: Vec<String>,
    /// Whether clients show certificates.
    pub clients: ClientCertificates,
    /// How long a ticket is good, at most; `None`: no resumption.
    pub tickets: Option<Duration>,
}

/// Whether clients show certificates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ClientCertificates {
    /// They are not asked for one.
    #[default]
    Off,
    /// A client may show one; one that it shows must be right.
    Optional(ClientTrust),
    /// Every client must show one.
    Required(ClientTrust),
}

/// Which certificates of clients are right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientTrust {
    /// Whose certificates they are.
    pub ca: Authority,
    /// Of the names in the certificate one must match one of these. Empty: every name will do; with SPIFFE, every id of
    /// our own trust domain.
    pub names: Vec<NamePattern>,
}

/// A pattern for a name in a certificate's SAN extension.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NamePattern {
    /// A DNS name, lower case, without a trailing dot.
    Dns(String),
    /// `*.suffix`: one or more labels before this. Kept with its leading dot.
    DnsBelow(String),
    /// A SPIFFE id, whole: `spiffe://trust-domain/path`.
    Spiffe(String),
    /// `spiffe://trust-domain/path/*`: any path below. Kept up to and with the last slash.
    SpiffeBelow(String),
}

/// TLS towards the endpoints of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolTls {
    /// Whose certificates are believed. `None`: those of the system's authorities.
    pub ca: Option<Authority>,
    /// The name that is asked for and that the certificate must be for. `None`: the endpoint's host name, or its IP
    /// address where it is given by address.
    pub server_name: Option<String>,
    /// Of the names in the certificate one must match one of these, in place of the server name. Empty: no such rule; with
    /// SPIFFE, every id of our own trust domain.
    pub names: Vec<NamePattern>,
    /// The certificate that we show.
    pub identity: Option<Identity>,
    /// The oldest version that is spoken.
    pub min_version: TlsVersion,
    /// The protocols that are offered, best first. Empty: the one that the client has agreed on with us, if any.
    pub alpn: Vec<String>,
}

/// A PROXY header that is written to endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyOut {
    /// Version 1: one line of text, addresses only.
    V1,
    /// Version 2, with what is known in TLVs.
    V2,
}

/// A route: what a session must be like, and where it then goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Route {
    /// One of these server names. Empty: any, or none.
    pub sni: Vec<SniPattern>,
    /// One of these protocols is offered. Empty: any, or none.
    pub alpn: Vec<String>,
    /// The client is in one of these networks. Empty: anywhere.
    pub source: Vec<IpNet>,
    /// The client asked for one of these. Empty: any.
    pub destination: Vec<Destination>,
    /// The PROXY header has each of these TLVs with one of its values.
    pub tlv: Vec<(Tlv, Vec<String>)>,
    /// Where it goes.
    pub target: Target,
    /// Who may use it.
    pub access: Access,
}

/// Where a route leads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Target {
    /// The session is closed.
    #[default]
    Refuse,
    /// A pool.
    Pool(PoolName),
    /// The address that the client asked for.
    AsAsked,
}

/// A server name in a route: lower case, without a trailing dot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SniPattern {
    /// This name.
    Exact(String),
    /// `*.suffix`: one or more labels before this. Kept with its leading dot.
    Below(String),
}

/// A destination: a network, a port, or both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destination {
    /// `None`: any address.
    pub network: Option<IpNet>,
    /// `None`: any port.
    pub port: Option<u16>,
}

/// Who may come in: the longest matching network decides; what none matches may, unless only `allow` has entries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// Networks that may.
    pub allow: Vec<IpNet>,
    /// Networks that may not.
    pub deny: Vec<IpNet>,
}

/// How much may come in. `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Admission {
    /// Sessions at once.
    pub sessions: Option<u32>,
    /// New sessions a second.
    pub rate: Option<u32>,
    /// Sessions of one source at once: an IPv4 address, or an IPv6 /64.
    pub source_sessions: Option<u32>,
    /// New sessions of one source a second.
    pub source_rate: Option<u32>,
    /// Bytes a second of one session, each direction.
    pub bandwidth: Option<u64>,
}

/// What a pool's endpoints are given besides sessions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Towards {
    /// TLS.
    pub tls: Option<PoolTls>,
    /// A PROXY header first.
    pub proxy_header: Option<ProxyOut>,
    /// The client's own address as the source of the connection.
    pub client_source: bool,
    /// Sessions of one endpoint at once.
    pub endpoint_sessions: Option<u32>,
    /// Bytes a second of all its sessions together, each direction.
    pub bandwidth: Option<u64>,
}

impl ListenerTls {
    /// True if something of it comes from the SPIFFE Workload API.
    #[must_use]
    pub fn takes_spiffe(&self) -> bool {
        let trust = match &self.clients {
            ClientCertificates::Off => None,
            ClientCertificates::Optional(trust) | ClientCertificates::Required(trust) => Some(&trust.ca),
        };
        self.certificates.contains(&Identity::Spiffe) || trust == Some(&Authority::Spiffe)
    }
}

impl PoolTls {
    /// True if something of it comes from the SPIFFE Workload API.
    #[must_use]
    pub fn takes_spiffe(&self) -> bool {
        self.identity == Some(Identity::Spiffe) || self.ca == Some(Authority::Spiffe)
    }
}

impl Entry {
    /// True if there is nothing to do: every client goes straight to the listener's pool.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        *self == Self { times: self.times, ..Self::default() }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refuse => f.write_str("-"),
            Self::Pool(pool) => pool.fmt(f),
            Self::AsAsked => f.write_str(AS_ASKED),
        }
    }
}

/// The name of the pool that stands for addresses which clients asked for.
pub const AS_ASKED: &str = "as-asked";

impl Target {
    /// The pool, if it is one of the file.
    #[must_use]
    pub const fn pool(&self) -> Option<&PoolName> {
        match self {
            Self::Pool(pool) => Some(pool),
            Self::Refuse | Self::AsAsked => None,
        }
    }
}

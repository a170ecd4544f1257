//! What a listener does with a client before it has a pool, and what a pool gives its endpoints besides sessions. The same
//! objects in every generation in which the config is the same.

use std::{
    collections::HashMap,
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use ipnet::IpNet;
use rustls::{ClientConfig, ServerConfig, pki_types::ServerName, server::danger::ClientCertVerifier};

use super::{Access, Admission, AtEntry, Bandwidth, ListenerCell, Pool, Refusal, Routes};
use crate::net::Intercept;

/// What comes before a pool is chosen.
#[derive(Debug)]
pub struct Entry {
    /// Whether clients begin with a PROXY header.
    pub proxy_header: ProxyIn,
    /// TLS, if it ends here.
    pub tls: Option<Arc<Termination>>,
    /// Which of the listener's targets takes which session.
    pub routes: Routes,
    /// Whether clients were sent here on their way to others.
    pub intercept: Intercept,
    /// Time for a whole PROXY header.
    pub header_timeout: Duration,
    /// Time for a whole ClientHello, and for the handshake.
    pub handshake_timeout: Duration,
    /// The longest ClientHello that is read, in bytes.
    pub hello_bytes: usize,
    /// Sessions that may be here at once.
    pub at_once: u32,
    /// Who may come in, by the address of the client itself.
    pub access: Access,
    /// Who may use each of the routes, in their order.
    pub route_access: Box<[Access]>,
    /// How much may come in, if that is limited.
    pub admission: Option<Arc<Admission>>,
    /// Bytes a second of one session in each direction, if they are limited.
    pub bandwidth: Option<u64>,
}

impl Entry {
    /// True if more than the client's own address must be known before a pool can be chosen.
    #[must_use]
    pub fn comes_first(&self) -> bool {
        let waits = self.proxy_header != ProxyIn::Off || self.reads_hello();
        waits || self.intercept != Intercept::Off || !self.routes.is_empty()
    }

    /// True if a session needs more than to be let in, connected and relayed as a plain one.
    #[must_use]
    pub fn is_slow(&self) -> bool {
        self.comes_first() || self.bandwidth.is_some()
    }

    /// Takes a place among the sessions that have not told yet what they want, until what this returns is dropped.
    ///
    /// # Errors
    /// All are taken.
    pub fn begin(&self, cell: &Arc<ListenerCell>) -> Result<AtEntry, Refusal> {
        AtEntry::take(cell, self.at_once)
    }

    /// True if a client may use the route of this number; without a number, the listener's own target.
    #[must_use]
    pub fn may_use(&self, route: Option<usize>, client: IpAddr) -> bool {
        route.and_then(|route| self.route_access.get(route)).is_none_or(|access| access.admits(client))
    }

    /// True if a ClientHello is all that a client may have to say before a pool can be chosen.
    #[must_use]
    pub fn only_hears(&self) -> bool {
        let more =
            self.proxy_header != ProxyIn::Off || self.tls.is_some() || self.intercept != Intercept::Off;
        !more && self.bandwidth.is_none()
    }

    /// True if a ClientHello is looked at.
    #[must_use]
    pub fn reads_hello(&self) -> bool {
        self.tls.is_some() || self.routes.ask_for_hello()
    }
}

/// Whether a listener reads PROXY headers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ProxyIn {
    /// No.
    #[default]
    Off,
    /// From these networks a connection begins with one, or is closed; all others are closed. Empty: from everywhere.
    Required(Vec<IpNet>),
    /// From these networks a connection may begin with one; what others send is payload.
    Optional(Vec<IpNet>),
}

/// TLS that ends at a listener.
pub struct Termination {
    /// How.
    pub config: Arc<ServerConfig>,
    /// Who judges the certificates of clients, if they show any: also those of sessions that are resumed.
    pub clients: Option<Arc<dyn ClientCertVerifier>>,
}

/// Without the settings, which have keys in them.
impl fmt::Debug for Termination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Termination").finish_non_exhaustive()
    }
}

/// Where sessions go.
#[derive(Clone, Debug)]
pub enum Target {
    /// Nowhere.
    Refuse,
    /// To a pool.
    Pool(Arc<Pool>),
    /// To the address that the client asked for, in the manner of this pool, which has no endpoints of its own.
    AsAsked(Arc<Pool>),
}

impl Target {
    /// The pool of its sessions.
    #[must_use]
    pub const fn pool(&self) -> Option<&Arc<Pool>> {
        match self {
            Self::Refuse => None,
            Self::Pool(pool) | Self::AsAsked(pool) => Some(pool),
        }
    }

    /// True if both are the same objects.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Refuse, Self::Refuse) => true,
            (Self::Pool(a), Self::Pool(b)) | (Self::AsAsked(a), Self::AsAsked(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }
}

/// What a pool gives its endpoints besides sessions.
#[derive(Clone, Debug, Default)]
pub struct Towards {
    /// TLS.
    pub tls: Option<Arc<Origination>>,
    /// A PROXY header first.
    pub proxy_header: Option<ProxyOut>,
    /// The client's own address as the source.
    pub client_source: bool,
    /// Sessions of one endpoint at once.
    pub endpoint_sessions: Option<u32>,
    /// What flows of all its sessions together, if that is limited. The same object in every generation.
    pub bandwidth: Option<Arc<Bandwidth>>,
}

impl Towards {
    /// True if an established connection is all that a session needs.
    #[must_use]
    pub const fn is_plain(&self) -> bool {
        self.tls.is_none() && self.proxy_header.is_none() && !self.client_source && self.bandwidth.is_none()
    }
}

/// TLS towards endpoints.
pub struct Origination {
    /// How.
    pub config: Arc<ClientConfig>,
    /// The name that each endpoint's certificate is for.
    pub names: HashMap<SocketAddr, ServerName<'static>>,
    /// What the client has agreed on is asked for.
    pub protocol_of_client: bool,
}

/// The version of a PROXY header that is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyOut {
    /// One line of text.
    V1,
    /// With TLVs.
    V2,
}

/// Without the settings, which have keys in them.
impl fmt::Debug for Origination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Origination").field("names", &self.names).finish_non_exhaustive()
    }
}

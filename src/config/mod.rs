//! The operator's words made into a [`Config`] that is complete and right, or refused with every problem at once.
//! Nothing downstream checks again: what cannot be served cannot be expressed here.

pub mod defaults;
mod edge;
mod effective;
mod file;
mod finding;
mod judging;
mod keys;
mod load;
mod names;
mod parse;
mod problem;
#[cfg(test)]
mod reference;
mod report;
mod schema;
mod sockets;
#[cfg(test)]
mod tests;
mod values;
mod words;
mod workload;

pub use crate::{
    ids::Tlv,
    net::{Bind, Intercept, Keepalive, Outgoing, Tuning},
};
pub(crate) use report::counted;
pub use {
    edge::{
        AS_ASKED, Access, Admission, Authority, ClientCertificates, ClientTrust, Destination, Entry,
        EntryTimes, Identity, KeyPair, ListenerTls, NamePattern, PoolTls, ProxyIn, ProxyOut, Route,
        SniPattern, Target, TlsVersion, Towards,
    },
    effective::effective,
    finding::{About, Finding, Role},
    judging::{Domain, Ejection, Restraint},
    load::{load, parse},
    problem::{Code, Problem, Severity},
    report::Report,
    schema::schema,
    workload::WorkloadApi,
};

use std::{fmt, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use crate::ids::{CloudName, ListenerName, PoolName};

/// A config, and what is odd about it.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The config.
    pub config: Config,
    /// Warnings only.
    pub warnings: Report,
    /// Where in the text things stand.
    places: finding::Places,
}

/// Why a config cannot be served: every reason at once.
#[derive(Clone, Debug)]
pub struct Refused(pub Report);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.one_line())
    }
}

impl std::error::Error for Refused {}

/// A config that can be served.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Data-plane workers. `None`: one for each CPU that affinity and cgroup allow.
    pub workers: Option<usize>,
    /// Keep each worker on a CPU of its own. `None`: when there is one worker for each CPU.
    pub pin_workers: Option<bool>,
    /// Carry plain sessions in the engine; otherwise in tokio.
    pub engine: bool,
    /// How long sessions may go on after SIGTERM.
    pub drain_timeout: Duration,
    /// The memory beyond which new sessions are reset.
    pub max_memory: MaxMemory,
    /// Logging.
    pub log: Log,
    /// Where `status` asks.
    pub admin: Admin,
    /// Where `/metrics`, `/livez` and `/readyz` are served.
    pub telemetry: Telemetry,
    /// Where the SPIFFE Workload API is asked; `None`: where [`WorkloadApi::VARIABLE`] says.
    pub spiffe: Option<WorkloadApi>,
    /// Clouds, in the order of the file.
    pub clouds: Vec<Cloud>,
    /// Pools, in the order of the file.
    pub pools: Vec<Pool>,
    /// Listeners, in the order of the file.
    pub listeners: Vec<Listener>,
}

/// True if this build has a SPIFFE Workload API.
pub const HAS_SPIFFE: bool = cfg!(feature = "spiffe");

impl Config {
    /// True if a listener or a pool takes its identity, or whom it believes, from a SPIFFE Workload API.
    #[must_use]
    pub fn takes_spiffe(&self) -> bool {
        let listeners = self.listeners.iter().filter_map(|listener| listener.entry.tls.as_ref());
        let pools = self.pools.iter().filter_map(|pool| pool.towards.tls.as_ref());
        listeners.into_iter().any(ListenerTls::takes_spiffe) || pools.into_iter().any(PoolTls::takes_spiffe)
    }
}

/// The memory beyond which new sessions are reset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MaxMemory {
    /// Nine tenths of what the cgroup allows, if it sets a limit.
    #[default]
    OfCgroup,
    /// So many bytes.
    Bytes(u64),
    /// None.
    Off,
}

/// What is logged, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// The lowest level written.
    pub level: Level,
    /// Text or JSON.
    pub format: LogFormat,
    /// Which sessions get a line at their end.
    pub sessions: SessionLines,
    /// Where lines go; `None` is standard error.
    pub file: Option<PathBuf>,
}

/// A log level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Someone must act.
    Error,
    /// Degraded.
    Warn,
    /// Decisions and lifecycle.
    Info,
    /// Sessions in detail.
    Debug,
    /// Bytes.
    Trace,
}

/// The shape of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Text on a terminal, JSON elsewhere.
    Auto,
    /// `key=value` text.
    Text,
    /// One JSON object a line.
    Json,
}

/// Which sessions are logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionLines {
    /// Each one.
    All,
    /// Only those that did not run their course.
    Errors,
    /// None.
    Off,
}

/// The admin API's address: loopback or a unix socket, never the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    /// Where it listens.
    pub bind: AdminBind,
    /// False for the default address: then a busy port is a warning, not a refusal to start.
    pub explicit: bool,
}

/// Where the admin API listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdminBind {
    /// Nowhere.
    Off,
    /// A loopback address.
    Tcp(SocketAddr),
    /// A unix socket, made with mode 0600.
    Unix(PathBuf),
}

/// The telemetry listener's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Telemetry {
    /// Where it listens; `None` is off.
    pub bind: Option<SocketAddr>,
    /// False for the default address: then a busy port is a warning, not a refusal to start.
    pub explicit: bool,
}

/// A cloud.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cloud {
    /// Its name.
    pub name: CloudName,
    /// Its region, as the provider names it.
    pub region: Option<String>,
    /// What a gigabyte leaving it costs, in US dollars: a decimal number as written, shown in `status`.
    pub egress_usd_per_gb: Option<String>,
    /// How sockets towards its endpoints are set up. Shared by all of them.
    pub socket: Arc<Outgoing>,
    /// When it is down as a whole, and how it comes back.
    pub domain: Domain,
}

/// A pool.
#[derive(Clone, Debug, PartialEq)]
pub struct Pool {
    /// Its name.
    pub name: PoolName,
    /// How clouds are chosen.
    pub policy: Policy,
    /// How an endpoint is chosen within a cloud.
    pub balance: Balance,
    /// What to do with every endpoint down.
    pub when_all_down: WhenAllDown,
    /// Time for one attempt to connect.
    pub connect_timeout: Duration,
    /// Attempts for one session, at least 1.
    pub attempts: u8,
    /// Connections kept ready for each cloud, by all workers together.
    pub preconnect: u16,
    /// What endpoints are given besides sessions.
    pub towards: Towards,
    /// How a session finds its endpoint: races, replays, queues.
    pub connecting: Connecting,
    /// How long an endpoint that comes back is given less than its weight; zero is off.
    pub slow_start: Duration,
    /// Probes; `None`: every endpoint counts as up.
    pub health: Option<Health>,
    /// What sessions that fail do to an endpoint.
    pub ejection: Ejection,
    /// What restrains removals.
    pub restraint: Restraint,
    /// Endpoints: at least one.
    pub endpoints: Vec<Endpoint>,
}

/// How clouds are chosen. Every cloud that has an endpoint stands in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Policy {
    /// The first cloud with an endpoint up takes everything.
    Failover {
        /// The order.
        order: Vec<CloudName>,
    },
    /// Each cloud takes its share of new sessions; a cloud that is down gives its share to the others.
    Weighted {
        /// The shares; 0 only as a fallback when nothing else is up.
        weights: Vec<(CloudName, u32)>,
    },
}

/// How an endpoint is chosen within a cloud; [`crate::balance::Balance`] says how each works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Balance {
    /// Fewer sessions of two.
    LeastSessions,
    /// Smaller connect time of two.
    LeastLatency,
    /// In turn.
    RoundRobin,
    /// By chance.
    Random,
    /// By the client's address.
    SourceHash,
}

/// How a session finds its endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connecting {
    /// Race an attempt that takes long with another one.
    pub hedge: bool,
    /// Extra attempts in percent of sessions.
    pub hedge_budget: u8,
    /// How long an endpoint may take to its first byte, if that is watched.
    pub first_byte: Option<Duration>,
    /// Whether a session may move to another endpoint before the first byte.
    pub replay: Replay,
    /// Bytes that may then be sent again.
    pub replay_bytes: u32,
    /// Attempts at one endpoint that may be under way at once.
    pub most: u32,
    /// Sessions that may wait for that.
    pub queue: u32,
}

impl Default for Connecting {
    fn default() -> Self {
        Self {
            hedge: defaults::HEDGE,
            hedge_budget: defaults::HEDGE_BUDGET,
            first_byte: None,
            replay: defaults::REPLAY,
            replay_bytes: defaults::REPLAY_BYTES,
            most: defaults::MAX_CONNECTING,
            queue: defaults::CONNECT_QUEUE,
        }
    }
}

/// Whether a session that has got no answer may move to another endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replay {
    /// No.
    Off,
    /// Until the first byte has come back.
    UntilFirstByte,
}

/// What to do with every endpoint down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenAllDown {
    /// Try all as if they were up.
    TryAnyway,
    /// Reset new sessions at once.
    Refuse,
}

/// One line of a pool: an address or a name that resolves to several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// What is dialled.
    pub address: Address,
    /// Where it stands.
    pub cloud: CloudName,
    /// Its region, if it differs from the cloud's.
    pub region: Option<String>,
    /// Its zone.
    pub zone: Option<String>,
    /// Its weight within its cloud, at least 1.
    pub weight: u32,
}

/// What is dialled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// An IP address and a port.
    Socket(SocketAddr),
    /// A name to resolve, and a port.
    Name {
        /// The host name, as written.
        host: String,
        /// The port.
        port: u16,
    },
}

/// How endpoints are probed.
#[derive(Clone, Debug, PartialEq)]
pub struct Health {
    /// What a probe does.
    pub probe: Probe,
    /// The port to probe, if it is not the endpoint's.
    pub port: Option<u16>,
    /// Whether it speaks the pool's TLS. True only where the pool has some.
    pub tls: bool,
    /// Time between probes of one endpoint.
    pub interval: Duration,
    /// Time between probes while the verdict is in doubt.
    pub fast_interval: Duration,
    /// Time for one probe.
    pub timeout: Duration,
    /// Good probes in a row that make an endpoint up.
    pub rise: u32,
    /// Bad probes in a row that make it down.
    pub fall: u32,
    /// The share by which each interval is varied, 0 to 1.
    pub jitter: f64,
}

/// What a probe does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    /// Connects; with `send` or `expect` also talks.
    Tcp {
        /// Bytes to send first.
        send: Vec<u8>,
        /// Bytes that the answer must contain.
        expect: Vec<u8>,
    },
    /// Asks over HTTP/1.1.
    Http {
        /// The path to get.
        path: String,
        /// The Host header; the endpoint's address if `None`.
        host: Option<String>,
        /// Accepted status codes, as inclusive ranges.
        status: Vec<(u16, u16)>,
        /// Text that the first 64 KiB of the body must contain.
        body: Option<String>,
    },
}

/// A listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Its name; the bind address as written if the file gives none.
    pub name: ListenerName,
    /// Where it accepts.
    pub bind: Bind,
    /// What serves it; with routes, what serves sessions that no route is for.
    pub target: Target,
    /// What comes before that.
    pub entry: Entry,
    /// With no byte in either direction for this long, a session is reset.
    pub idle_timeout: Duration,
    /// After one direction has ended, how long the other may be silent.
    pub half_close_timeout: Duration,
    /// The longest life of a session.
    pub max_lifetime: Option<Duration>,
    /// Connections that may wait to be accepted.
    pub backlog: u32,
    /// TCP keepalive on both sides.
    pub keepalive: Keepalive,
    /// TCP_USER_TIMEOUT on both sides: how long sent bytes may stay unacknowledged.
    pub user_timeout: Duration,
    /// TCP_FASTOPEN: connections that may wait for the end of their handshake with bytes in hand.
    pub fast_open: Option<u32>,
    /// Other options of its sockets, inherited by accepted ones.
    pub tuning: Tuning,
}

impl Listener {
    /// The pools that its sessions may come to: those of its routes, then its own.
    pub fn pools(&self) -> impl Iterator<Item = &PoolName> {
        let routed = self.entry.routes.iter().map(|route| &route.target);
        routed.chain([&self.target]).filter_map(Target::pool)
    }
}

impl Balance {
    /// The word in config and `status`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::LeastSessions => "least-sessions",
            Self::LeastLatency => "least-latency",
            Self::RoundRobin => "round-robin",
            Self::Random => "random",
            Self::SourceHash => "source-hash",
        }
    }
}

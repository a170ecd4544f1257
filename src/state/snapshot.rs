//! The routing snapshot: immutable, compiled by the control plane, read once per attempt by the data plane.
//! Every policy ends here as tiers of weighted groups; nothing in this file knows a policy, a price or a clock.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use super::{EndpointCell, Entry, GroupCell, ListenerCell, Own, PoolCell, Room, Target, Told, Towards};
use crate::{
    balance::{Balance, Maglev, Shares},
    ids::{CloudName, EndpointIdentity, Generation, PoolName},
    net::{Keepalive, Outgoing},
};

/// One atomic view of everything a session needs.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Its number.
    pub generation: Generation,
    /// Every listener.
    pub listeners: Vec<Arc<Listener>>,
    /// Every pool.
    pub pools: Vec<Arc<Pool>>,
    /// Where this process itself is reached.
    pub own: Arc<Own>,
}

/// Where sessions come in, and where they go.
#[derive(Debug)]
pub struct Listener {
    /// Name, address and counters; the same object in every generation.
    pub cell: Arc<ListenerCell>,
    /// What serves it, or what serves those that no route is for.
    pub target: Target,
    /// Where the routes of `entry` lead, in their order.
    pub routed: Box<[Target]>,
    /// How long its sessions may last. Shared, as a session keeps it and must not keep more of the snapshot.
    pub limits: Arc<SessionLimits>,
    /// What comes before a pool is chosen, if anything does.
    pub entry: Option<Arc<Entry>>,
}

impl Listener {
    /// One that gives every session to one pool.
    #[must_use]
    pub fn plain(cell: Arc<ListenerCell>, pool: Arc<Pool>, limits: SessionLimits) -> Self {
        let target = Target::Pool(pool);
        Self { cell, target, routed: Box::default(), limits: Arc::new(limits), entry: None }
    }

    /// Where a session goes that has told this.
    #[must_use]
    pub fn route(&self, source: IpAddr, told: &Told) -> &Target {
        self.find(source, told).0
    }

    /// The same, and whether its client may take the route that leads there.
    #[must_use]
    pub fn find(&self, source: IpAddr, told: &Told) -> (&Target, bool) {
        let Some(entry) = &self.entry else { return (&self.target, true) };
        let route = entry.routes.find(source, told);
        let target = route.and_then(|route| self.routed.get(route)).unwrap_or(&self.target);
        (target, entry.may_use(route, source))
    }

    /// The pools that its sessions may come to.
    pub fn pools(&self) -> impl Iterator<Item = &Arc<Pool>> {
        self.routed.iter().chain([&self.target]).filter_map(Target::pool)
    }
}

/// The time limits of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionLimits {
    /// With no byte in either direction for this long, the session is reset.
    pub idle: Duration,
    /// After one direction has ended, the other may be silent for this long.
    pub half_closed: Duration,
    /// The longest life of a session, if there is one.
    pub lifetime: Option<Duration>,
    /// How long bytes may stay unacknowledged before the client counts as dead.
    pub user_timeout: Duration,
    /// The same of the endpoint.
    pub upstream_timeout: Duration,
    /// How an endpoint that is silent is asked whether it is there. A client's socket has its keepalive from the listener.
    pub keepalive: Keepalive,
}

impl SessionLimits {
    /// These limits for a session with an endpoint whose cloud may have its own.
    #[must_use]
    pub fn towards(self: &Arc<Self>, socket: &Outgoing) -> Arc<Self> {
        if socket.keepalive.is_none() && socket.user_timeout.is_none() {
            return Arc::clone(self);
        }
        Arc::new(Self {
            upstream_timeout: socket.user_timeout.unwrap_or(self.upstream_timeout),
            keepalive: socket.keepalive.unwrap_or(self.keepalive),
            ..**self
        })
    }
}

/// Endpoints that serve one thing, in the order in which they are to be tried.
#[derive(Debug)]
pub struct Pool {
    /// Its name.
    pub name: PoolName,
    /// How an endpoint is chosen within a group.
    pub balance: Balance,
    /// First the tier to use, then the ones to fall back to. Only groups with an endpoint that may be used.
    pub tiers: Vec<Tier>,
    /// How to dial.
    pub connect: Connect,
    /// Set when no endpoint is up: what `tiers` then holds.
    pub all_down: Option<AllDown>,
    /// Groups at the end of the first tier that are there only while a cloud before them takes less than its share.
    pub spilled: usize,
    /// Endpoints that are out, for sessions that have tried all others.
    pub reserve: Vec<Group>,
    /// Endpoints that were ejected and that one session may try, if their cells have a permit. Usually none.
    pub trials: Vec<Arc<Endpoint>>,
    /// Its counters and its budget of extra attempts; the same object in every generation.
    pub cell: Arc<PoolCell>,
    /// What its endpoints are given besides sessions.
    pub towards: Towards,
}

impl Pool {
    /// A pool in which all is well: nothing is spilled, in reserve or on trial.
    #[must_use]
    pub fn new(name: PoolName, balance: Balance, tiers: Vec<Tier>, connect: Connect) -> Self {
        Self {
            name,
            balance,
            tiers,
            connect,
            all_down: None,
            spilled: 0,
            reserve: Vec::new(),
            trials: Vec::new(),
            cell: Arc::default(),
            towards: Towards::default(),
        }
    }
}

/// What happens to sessions of a pool whose endpoints are all down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AllDown {
    /// All endpoints are tried as if they were up.
    TryAnyway,
    /// Sessions are reset at once.
    Refuse,
}

impl Pool {
    /// The room that there is for attempts at each of its endpoints.
    #[must_use]
    pub const fn room(&self) -> Room {
        Room { dials: self.connect.dials, sessions: self.towards.endpoint_sessions }
    }

    /// True if its sessions need no more than a connection that is established, and their endpoint's first byte is not
    /// waited for: only then can the engine begin them.
    #[must_use]
    pub const fn is_plain(&self) -> bool {
        self.towards.is_plain() && !self.connect.watches()
    }

    /// Established connections that are kept ready for each group, by all workers together: none where no session could
    /// be given one. An endpoint with a limit would count them.
    #[must_use]
    pub const fn spares(&self) -> u16 {
        if self.is_plain() && self.towards.endpoint_sessions.is_none() { self.connect.spares } else { 0 }
    }

    /// Its endpoints: those in use, then those that are out.
    pub fn endpoints(&self) -> impl Iterator<Item = &Arc<Endpoint>> {
        let in_use = self.tiers.iter().flat_map(|tier| &tier.groups);
        in_use.chain(&self.reserve).flat_map(|group| &group.endpoints)
    }
}

impl AllDown {
    /// The word in the config, in events and in `status`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::TryAnyway => "try_anyway",
            Self::Refuse => "refuse",
        }
    }
}

/// How a pool's endpoints are dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connect {
    /// Time for one attempt.
    pub timeout: Duration,
    /// Attempts for one session, the first included.
    pub attempts: u8,
    /// Time for all attempts together.
    pub total: Duration,
    /// Established connections that are asked for, for each group and by all workers together: [`Pool::spares`] says how
    /// many are kept.
    pub spares: u16,
    /// Whether an attempt that takes long is raced by another one.
    pub hedge: Option<Hedge>,
    /// How long an endpoint may take to its first byte after the client has sent something, if that is watched.
    pub first_byte: Option<Duration>,
    /// Whether a session may move on while that is waited for.
    pub replay: Option<Replay>,
    /// Attempts at one endpoint that may be under way at once.
    pub dials: u32,
    /// Sessions that may wait for their turn to dial one endpoint.
    pub queue: u32,
}

impl Connect {
    /// True if sessions wait for the endpoint's first byte before they are relayed.
    #[must_use]
    pub const fn watches(&self) -> bool {
        self.first_byte.is_some() || self.replay.is_some()
    }

    /// One attempt after the other, nothing watched: what every pool begins with.
    #[must_use]
    pub const fn plain(timeout: Duration, attempts: u8, total: Duration) -> Self {
        Self {
            timeout,
            attempts,
            total,
            spares: 0,
            hedge: None,
            first_byte: None,
            replay: None,
            dials: u32::MAX,
            queue: u32::MAX,
        }
    }
}

/// When an attempt that has not connected is raced by an attempt at another endpoint (RFC 8305, section 5, in spirit).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hedge {
    /// Extra attempts in percent of the sessions of the last ten seconds.
    pub budget: u8,
}

impl Hedge {
    /// The usual budget: a slow day must not double the load.
    pub const BUDGET: u8 = 20;
    /// Sooner than this no attempt is late, however near its endpoint.
    pub const SOONEST: Duration = Duration::from_millis(20);
    /// After this an attempt is late in a cloud that was not connected to before. RFC 8305 recommends 250 ms to clients
    /// that know nothing of their network; between clouds most paths are shorter.
    pub const UNKNOWN: Duration = Duration::from_millis(150);
    /// At the latest after this an attempt is raced, however far its endpoint.
    pub const LATEST: Duration = Duration::from_millis(300);

    /// How long an attempt may take before it is raced, where the usual connect time of the group (its 95th percentile)
    /// is `usual`; zero where nothing is known. Half as long again, so that the slow twentieth does not spend the budget.
    #[must_use]
    pub fn delay(usual: Duration) -> Duration {
        if usual.is_zero() { Self::UNKNOWN } else { (usual * 3 / 2).clamp(Self::SOONEST, Self::LATEST) }
    }
}

/// Moving a session to another endpoint before the first byte from the first one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replay {
    /// Bytes of the client that may be sent again.
    pub limit: u32,
}

/// Clouds of equal preference.
#[derive(Debug)]
pub struct Tier {
    /// Its groups: at least one.
    pub groups: Vec<Group>,
    /// The share of each group in new sessions.
    pub shares: Shares,
    /// Counts the choices between groups; lives as long as the pool.
    pub cell: Arc<GroupCell>,
}

/// The endpoints of a pool in one cloud.
#[derive(Debug)]
pub struct Group {
    /// The cloud.
    pub cloud: CloudName,
    /// Its endpoints that may be used: at least one.
    pub endpoints: Vec<Arc<Endpoint>>,
    /// The share of each endpoint.
    pub shares: Shares,
    /// The hash table, for [`Balance::SourceHash`].
    pub maglev: Option<Arc<Maglev>>,
    /// Counts the choices within the group; lives as long as the group.
    pub cell: Arc<GroupCell>,
}

/// One dialable address.
#[derive(Debug)]
pub struct Endpoint {
    /// Which one.
    pub identity: Arc<EndpointIdentity>,
    /// Its live numbers; the same object in every generation.
    pub cell: Arc<EndpointCell>,
    /// Its weight in its group, slow start included. At least 1.
    pub weight: u32,
    /// How a socket towards it is set up. Shared by the endpoints of its cloud.
    pub socket: Arc<Outgoing>,
}

impl Endpoint {
    /// What is dialled.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.identity.address
    }
}

impl Snapshot {
    /// The listener that this cell belongs to, if this generation still has it.
    #[must_use]
    pub fn listener(&self, cell: &Arc<ListenerCell>) -> Option<&Arc<Listener>> {
        self.listeners.iter().find(|listener| Arc::ptr_eq(&listener.cell, cell))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cloud_may_have_limits_of_its_own_towards_its_endpoints() {
        const SECOND: Duration = Duration::from_secs(1);
        let keepalive = Keepalive { idle: SECOND, interval: SECOND, count: 1 };
        let limits = Arc::new(SessionLimits {
            idle: SECOND,
            half_closed: SECOND,
            lifetime: None,
            user_timeout: SECOND,
            upstream_timeout: SECOND,
            keepalive,
        });
        assert!(Arc::ptr_eq(&limits, &limits.towards(&Outgoing::default())));
        let keepalive = Keepalive { count: 9, ..keepalive };
        let socket =
            Outgoing { keepalive: Some(keepalive), user_timeout: Some(5 * SECOND), ..Outgoing::default() };
        let expected = SessionLimits { upstream_timeout: 5 * SECOND, keepalive, ..*limits };
        assert_eq!(*limits.towards(&socket), expected);
    }
}

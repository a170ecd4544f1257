//! Everything the control plane knows: the config, addresses of names, opinions, and the cells that outlive generations.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    net::SocketAddr,
    sync::Arc,
};

use rustls::ClientConfig;
use tokio::time::Instant;

use super::{
    brain::Notice,
    compile::as_asked,
    health::Verdict,
    verdicts::{self, CloudFacts, MemberFacts, PATIENCE, PoolFacts, Verdicts},
};
use crate::{
    balance::Maglev,
    config::{self, Address, Config},
    ids::{CloudName, EndpointIdentity, EndpointKey, ListenerName, PoolName},
    net::{Bind, Intercept, Outgoing},
    state::{
        Bandwidth, EndpointCell, Entry, GroupCell, Listener, ListenerCell, Own, Pool, PoolCell, Termination,
    },
};

/// A name as the config gives it: pool, host, port.
pub type Name = (PoolName, Arc<str>, u16);

/// What is thought of an endpoint, and why.
#[derive(Clone, Debug)]
pub(super) struct Opinion {
    pub(super) verdict: Verdict,
    pub(super) reason: Arc<str>,
    pub(super) since: Instant,
    pub(super) transitions: u64,
}

/// A listener that has its sockets.
#[derive(Clone, Debug)]
pub struct OpenListener {
    /// As in the config.
    pub config: config::Listener,
    /// Where it is bound, and its counters.
    pub cell: Arc<ListenerCell>,
}

/// An endpoint as the compiler sees it.
#[derive(Clone, Debug)]
pub(super) struct Member {
    pub(super) identity: Arc<EndpointIdentity>,
    pub(super) cell: Arc<EndpointCell>,
    pub(super) weight: u32,
    pub(super) region: Option<String>,
    pub(super) zone: Option<String>,
    pub(super) host: Option<Arc<str>>,
}

/// The table that a group had, and the members that it was made for.
pub(super) type KeptMaglev = (Vec<(Vec<u8>, u32)>, Arc<Maglev>);

/// Everything known.
#[derive(Debug)]
pub(super) struct Inputs {
    pub(super) config: Arc<Config>,
    pub(super) listeners: Vec<OpenListener>,
    /// Listeners of the last config that are gone: what was accepted on them is still routed.
    pub(super) retired: Vec<Arc<Listener>>,
    pub(super) members: HashMap<PoolName, Vec<Member>>,
    pub(super) unresolved: HashMap<PoolName, Vec<String>>,
    pub(super) opinions: HashMap<EndpointKey, Opinion>,
    /// What follows from the opinions of probes and from what sessions meet.
    pub(super) verdicts: Verdicts,
    pub(super) pool_cells: HashMap<PoolName, Arc<PoolCell>>,
    /// What flows of each pool whose bandwidth is, or was, limited.
    pub(super) bandwidths: HashMap<PoolName, Arc<Bandwidth>>,
    pub(super) tier_cells: HashMap<(PoolName, usize), Arc<GroupCell>>,
    pub(super) group_cells: HashMap<(PoolName, CloudName), Arc<GroupCell>>,
    pub(super) maglevs: HashMap<(PoolName, CloudName), KeptMaglev>,
    /// What comes before a pool, by listener, and the config that it was made of.
    pub(super) entries: HashMap<ListenerName, (config::Entry, Arc<Entry>)>,
    /// The pool of sessions that go where their client asked.
    pub(super) as_asked: Arc<Pool>,
    /// TLS as the files have it.
    pub(super) tls: TlsInForce,
    resolved: HashMap<Name, Vec<SocketAddr>>,
    cells: HashMap<EndpointKey, (Arc<EndpointIdentity>, Arc<EndpointCell>)>,
    /// Where the admin API and telemetry listen, as long as the process lives.
    servers: Vec<SocketAddr>,
    /// Addresses of ours: a name that points at one of them would loop, or let clients in where only the operator may be.
    pub(super) own: Arc<Own>,
    /// Names that point at us, so that each is told once.
    loops: HashMap<PoolName, HashSet<(Arc<str>, SocketAddr)>>,
}

/// Addresses for people, in an order that does not depend on the resolver.
pub(super) fn listed(addresses: &[SocketAddr]) -> String {
    let mut addresses = addresses.to_vec();
    addresses.sort_unstable();
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// TLS settings made of the files that the config names.
#[derive(Clone, Default)]
pub(super) struct TlsInForce {
    /// Where TLS ends, by listener.
    pub(super) servers: HashMap<ListenerName, Arc<Termination>>,
    /// Where it begins, by pool.
    pub(super) clients: HashMap<PoolName, Arc<ClientConfig>>,
}

/// Without the settings, which have keys in them.
impl fmt::Debug for TlsInForce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} listeners, {} pools", self.servers.len(), self.clients.len())
    }
}

impl Opinion {
    fn fresh(probed: bool, now: Instant) -> Self {
        let (verdict, reason) =
            if probed { (Verdict::Unknown, "not probed yet") } else { (Verdict::Up, "not probed") };
        Self { verdict, reason: Arc::from(reason), since: now, transitions: 0 }
    }
}

impl Inputs {
    /// Nothing but a config, and where the admin API and telemetry listen. The seed is for jitter.
    pub(super) fn new(config: Arc<Config>, servers: Vec<SocketAddr>, seed: u64) -> Self {
        Self {
            config,
            listeners: Vec::new(),
            retired: Vec::new(),
            members: HashMap::new(),
            unresolved: HashMap::new(),
            opinions: HashMap::new(),
            verdicts: Verdicts::new(seed),
            pool_cells: HashMap::new(),
            bandwidths: HashMap::new(),
            tier_cells: HashMap::new(),
            group_cells: HashMap::new(),
            maglevs: HashMap::new(),
            entries: HashMap::new(),
            as_asked: as_asked(),
            tls: TlsInForce::default(),
            resolved: HashMap::new(),
            cells: HashMap::new(),
            servers,
            own: Arc::default(),
            loops: HashMap::new(),
        }
    }

    /// Takes a config in force. Opinions, cells and addresses of endpoints that stay are kept. What there is to tell.
    pub(super) fn configure(
        &mut self,
        config: Arc<Config>,
        listeners: Vec<OpenListener>,
        retired: Vec<Arc<Listener>>,
        now: Instant,
    ) -> Vec<Notice> {
        self.config = config;
        let binds = listeners
            .iter()
            .map(|listener| Bind { address: listener.cell.address, ..listener.config.bind })
            .chain(self.servers.iter().map(|address| Bind { address: *address, only_v6: false }))
            .collect();
        let intercepts = listeners.iter().any(|open| open.config.entry.intercept != Intercept::Off);
        self.own = Arc::new(Own { binds, intercepts });
        self.listeners = listeners;
        self.retired = retired;
        let names: HashSet<Name> = self.names().into_iter().collect();
        self.resolved.retain(|name, _| names.contains(name));
        let config = Arc::clone(&self.config);
        let pools: HashSet<&PoolName> = config.pools.iter().map(|pool| &pool.name).collect();
        self.members.retain(|pool, _| pools.contains(pool));
        self.unresolved.retain(|pool, _| pools.contains(pool));
        self.loops.retain(|pool, _| pools.contains(pool));
        self.pool_cells.retain(|pool, _| pools.contains(pool));
        self.bandwidths.retain(|pool, _| pools.contains(pool));
        self.tier_cells.retain(|(pool, _), _| pools.contains(pool));
        self.group_cells.retain(|(pool, _), _| pools.contains(pool));
        self.maglevs.retain(|(pool, _), _| pools.contains(pool));
        let names: HashSet<&ListenerName> = self.listeners.iter().map(|open| &open.config.name).collect();
        self.entries.retain(|name, _| names.contains(name));
        let notices = config.pools.iter().flat_map(|pool| self.gather(pool, now)).collect();
        let alive: HashSet<EndpointKey> =
            self.members.values().flatten().map(|member| member.identity.key()).collect();
        self.cells.retain(|key, _| alive.contains(key));
        self.opinions.retain(|key, _| alive.contains(key));
        self.introduce(now);
        notices
    }

    /// Takes addresses of names that the next config brings, before it is configured.
    pub(super) fn know(&mut self, resolved: Vec<(Name, Vec<SocketAddr>)>) {
        self.resolved.extend(resolved);
    }

    /// The addresses that a name has so far.
    pub(super) fn addresses(&self, name: &Name) -> &[SocketAddr] {
        self.resolved.get(name).map(Vec::as_slice).unwrap_or_default()
    }

    /// Takes the addresses of a name; what there is to tell. `None` when nothing changed, or nobody asks for the name any
    /// more.
    pub(super) fn resolve(
        &mut self,
        name: Name,
        addresses: Vec<SocketAddr>,
        now: Instant,
    ) -> Option<Vec<Notice>> {
        let config = Arc::clone(&self.config);
        let pool = config.pools.iter().find(|pool| pool.name == name.0)?;
        if self.resolved.get(&name) == Some(&addresses) {
            return None;
        }
        self.resolved.insert(name, addresses);
        let notices = self.gather(pool, now);
        // What the name no longer has is forgotten, or names that rotate would fill the memory.
        let members = self.members.get(&pool.name).map(Vec::as_slice).unwrap_or_default();
        let alive: HashSet<EndpointKey> = members.iter().map(|member| member.identity.key()).collect();
        self.cells.retain(|key, _| key.pool != pool.name || alive.contains(key));
        self.opinions.retain(|key, _| key.pool != pool.name || alive.contains(key));
        self.introduce(now);
        Some(notices)
    }

    /// Takes what probes say; their verdict before. `None` when the endpoint is gone, or the verdict is no news.
    pub(super) fn judge(
        &mut self,
        endpoint: &EndpointKey,
        said: verdicts::Opinion,
        now: Instant,
    ) -> Option<Verdict> {
        let opinion = self.opinions.get_mut(endpoint)?;
        self.verdicts.probed(endpoint, said.clone(), now);
        let verdicts::Opinion { verdict, reason, .. } = said;
        if opinion.verdict == verdict {
            return None;
        }
        let before = opinion.verdict;
        // To be found alive at first is no change.
        let found = before == Verdict::Unknown && verdict == Verdict::Up;
        let transitions = opinion.transitions + u64::from(!found);
        *opinion = Opinion { verdict, reason, since: now, transitions };
        Some(before)
    }

    /// Has the judge know who there is.
    fn introduce(&mut self, now: Instant) {
        let pools = self.config.pools.iter().map(|pool| {
            let members = self.members.get(&pool.name).map(Vec::as_slice).unwrap_or_default();
            let patience = pool.connecting.first_byte.map_or(PATIENCE, |time| time + PATIENCE);
            PoolFacts {
                name: pool.name.clone(),
                members: members.iter().map(Member::facts).collect(),
                probed: pool.health.is_some(),
                slow_start: pool.slow_start,
                patience,
                ejection: pool.ejection,
                restraint: pool.restraint,
            }
        });
        let clouds = self.config.clouds.iter();
        let clouds = clouds.map(|cloud| CloudFacts { name: cloud.name.clone(), domain: cloud.domain });
        self.verdicts.configure(pools.collect(), clouds.collect(), now);
    }

    /// The settings of TLS that ends at this listener.
    pub(super) fn server_tls(&self, listener: &ListenerName) -> Option<Arc<Termination>> {
        self.tls.servers.get(listener).cloned()
    }

    /// The settings of TLS towards this pool.
    pub(super) fn client_tls(&self, pool: &PoolName) -> Option<Arc<ClientConfig>> {
        self.tls.clients.get(pool).cloned()
    }

    /// Who this is, with its cloud.
    pub(super) fn identity(&self, endpoint: &EndpointKey) -> Option<&EndpointIdentity> {
        self.cells.get(endpoint).map(|(identity, _)| &**identity)
    }

    /// No session may try this endpoint any more.
    pub(super) fn withdraw_permit(&self, endpoint: &EndpointKey) {
        if let Some((_, cell)) = self.cells.get(endpoint) {
            cell.permit(0);
        }
    }

    /// Every name in the config.
    pub(super) fn names(&self) -> Vec<Name> {
        let names = |pool: &config::Pool| {
            let pool_name = pool.name.clone();
            pool.endpoints
                .iter()
                .filter_map(|endpoint| match &endpoint.address {
                    Address::Name { host, port } => {
                        Some((pool_name.clone(), Arc::from(host.as_str()), *port))
                    }
                    Address::Socket(_) => None,
                })
                .collect::<Vec<_>>()
        };
        self.config.pools.iter().flat_map(names).collect()
    }

    /// How sockets towards a cloud are set up.
    pub(super) fn socket(&self, cloud: &CloudName) -> Arc<Outgoing> {
        let cloud = self.config.clouds.iter().find(|known| known.name == *cloud);
        cloud.map_or_else(Arc::default, |cloud| Arc::clone(&cloud.socket))
    }

    /// Lists a pool's endpoints, names replaced by addresses; what had to be left out.
    fn gather(&mut self, pool: &config::Pool, now: Instant) -> Vec<Notice> {
        let mut notices = Vec::new();
        let mut members: Vec<Member> = Vec::new();
        let mut unresolved = Vec::new();
        let mut seen = HashSet::new();
        let mut loops = HashSet::new();
        for endpoint in &pool.endpoints {
            let (host, addresses) = match &endpoint.address {
                Address::Socket(address) => (None, vec![*address]),
                Address::Name { host, port } => {
                    let host: Arc<str> = Arc::from(host.as_str());
                    let known = self.resolved.get(&(pool.name.clone(), Arc::clone(&host), *port));
                    if known.is_none() {
                        unresolved.push(format!("{host}:{port}"));
                    }
                    (Some(host), known.cloned().unwrap_or_default())
                }
            };
            let socket = self.socket(&endpoint.cloud);
            for address in addresses {
                if !socket.reaches(address) {
                    let (pool, cloud) = (pool.name.clone(), endpoint.cloud.clone());
                    notices.push(Notice::OutOfReach { pool, cloud, address });
                    continue;
                }
                if let Some(host) = host.as_ref().filter(|_| self.own.is_reached_by(address)) {
                    loops.insert((Arc::clone(host), address));
                    continue;
                }
                if seen.insert(address) {
                    members.push(self.member((pool, endpoint), address, host.clone(), now));
                }
            }
        }
        self.members.insert(pool.name.clone(), members);
        self.unresolved.insert(pool.name.clone(), unresolved);
        let told = self.loops.get(&pool.name);
        for (host, address) in loops.iter().filter(|one| !told.is_some_and(|told| told.contains(one))) {
            let (pool, host) = (pool.name.clone(), Arc::clone(host));
            notices.push(Notice::Loops { pool, host, address: *address });
        }
        self.loops.insert(pool.name.clone(), loops);
        notices
    }

    fn member(
        &mut self,
        (pool, endpoint): (&config::Pool, &config::Endpoint),
        address: SocketAddr,
        host: Option<Arc<str>>,
        now: Instant,
    ) -> Member {
        let key = EndpointKey { pool: pool.name.clone(), address };
        let probed = pool.health.is_some();
        let opinion = self.opinions.entry(key.clone()).or_insert_with(|| Opinion::fresh(probed, now));
        if !probed && opinion.verdict != Verdict::Up {
            *opinion = Opinion::fresh(false, now);
        }
        let (identity, cell) = self.cells.entry(key).or_insert_with(|| {
            let identity =
                EndpointIdentity { pool: pool.name.clone(), cloud: endpoint.cloud.clone(), address };
            (Arc::new(identity), Arc::default())
        });
        if identity.cloud != endpoint.cloud {
            *identity = Arc::new(EndpointIdentity {
                cloud: endpoint.cloud.clone(),
                ..EndpointIdentity::clone(identity)
            });
        }
        Member {
            identity: Arc::clone(identity),
            cell: Arc::clone(cell),
            weight: endpoint.weight,
            region: endpoint.region.clone(),
            zone: endpoint.zone.clone(),
            host,
        }
    }
}

impl Member {
    fn facts(&self) -> MemberFacts {
        let identity = &self.identity;
        MemberFacts { key: identity.key(), cloud: identity.cloud.clone(), weight: self.weight }
    }
}

//! Everything the control plane knows: the config, addresses of names, opinions, and the cells that outlive generations.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    sync::Arc,
    time::SystemTime,
};

use tokio::time::Instant;

use super::health::Verdict;
use crate::{
    balance::Maglev,
    config::{self, Address, Config},
    ids::{CloudName, EndpointIdentity, EndpointKey, PoolName},
    net::Bind,
    state::{EndpointCell, GroupCell, Listener, ListenerCell},
};

/// A name as the config gives it: pool, host, port.
pub(super) type Name = (PoolName, Arc<str>, u16);

/// What is thought of an endpoint, and why.
#[derive(Clone, Debug)]
pub(super) struct Opinion {
    pub(super) verdict: Verdict,
    pub(super) reason: Arc<str>,
    pub(super) since: SystemTime,
    pub(super) transitions: u64,
    /// When it came back from being down: the start of its slow start.
    pub(super) returned: Option<Instant>,
}

/// A listener that has its sockets.
#[derive(Clone, Debug)]
pub(super) struct OpenListener {
    pub(super) config: config::Listener,
    pub(super) cell: Arc<ListenerCell>,
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
    pub(super) tier_cells: HashMap<(PoolName, usize), Arc<GroupCell>>,
    pub(super) group_cells: HashMap<(PoolName, CloudName), Arc<GroupCell>>,
    pub(super) maglevs: HashMap<(PoolName, CloudName), KeptMaglev>,
    resolved: HashMap<Name, Vec<SocketAddr>>,
    cells: HashMap<EndpointKey, (Arc<EndpointIdentity>, Arc<EndpointCell>)>,
    /// Addresses of ours: a name that points at one of them would loop.
    own: Vec<Bind>,
}

impl Opinion {
    fn fresh(probed: bool) -> Self {
        let (verdict, reason) =
            if probed { (Verdict::Unknown, "not probed yet") } else { (Verdict::Up, "not probed") };
        Self { verdict, reason: Arc::from(reason), since: SystemTime::now(), transitions: 0, returned: None }
    }
}

impl Inputs {
    /// Nothing but a config.
    pub(super) fn new(config: Arc<Config>) -> Self {
        Self {
            config,
            listeners: Vec::new(),
            retired: Vec::new(),
            members: HashMap::new(),
            unresolved: HashMap::new(),
            opinions: HashMap::new(),
            tier_cells: HashMap::new(),
            group_cells: HashMap::new(),
            maglevs: HashMap::new(),
            resolved: HashMap::new(),
            cells: HashMap::new(),
            own: Vec::new(),
        }
    }

    /// Takes a config in force. Opinions, cells and addresses of endpoints that stay are kept.
    pub(super) fn configure(
        &mut self,
        config: Arc<Config>,
        listeners: Vec<OpenListener>,
        retired: Vec<Arc<Listener>>,
    ) {
        self.config = config;
        self.own = listeners
            .iter()
            .map(|listener| Bind { address: listener.cell.address, ..listener.config.bind })
            .collect();
        self.listeners = listeners;
        self.retired = retired;
        let names: HashSet<Name> = self.names().into_iter().collect();
        self.resolved.retain(|name, _| names.contains(name));
        let config = Arc::clone(&self.config);
        let pools: HashSet<&PoolName> = config.pools.iter().map(|pool| &pool.name).collect();
        self.members.retain(|pool, _| pools.contains(pool));
        self.unresolved.retain(|pool, _| pools.contains(pool));
        self.tier_cells.retain(|(pool, _), _| pools.contains(pool));
        self.group_cells.retain(|(pool, _), _| pools.contains(pool));
        self.maglevs.retain(|(pool, _), _| pools.contains(pool));
        config.pools.iter().for_each(|pool| self.gather(pool));
        let alive: HashSet<EndpointKey> =
            self.members.values().flatten().map(|member| member.identity.key()).collect();
        self.cells.retain(|key, _| alive.contains(key));
        self.opinions.retain(|key, _| alive.contains(key));
    }

    /// Takes the addresses of a name. False when nothing changed, or nobody asks for the name any more.
    pub(super) fn resolve(&mut self, name: Name, addresses: Vec<SocketAddr>) -> bool {
        let config = Arc::clone(&self.config);
        let Some(pool) = config.pools.iter().find(|pool| pool.name == name.0) else {
            return false;
        };
        if self.resolved.get(&name) == Some(&addresses) {
            return false;
        }
        self.resolved.insert(name, addresses);
        self.gather(pool);
        true
    }

    /// Takes a verdict. False when the endpoint is gone, or the verdict is no news.
    pub(super) fn judge(
        &mut self,
        endpoint: &EndpointKey,
        verdict: Verdict,
        reason: Arc<str>,
        now: Instant,
    ) -> bool {
        let Some(opinion) = self.opinions.get_mut(endpoint) else {
            return false;
        };
        if opinion.verdict == verdict {
            opinion.reason = reason;
            return false;
        }
        let came_back = opinion.verdict == Verdict::Down && verdict == Verdict::Up;
        *opinion = Opinion {
            verdict,
            reason,
            since: SystemTime::now(),
            transitions: opinion.transitions + 1,
            returned: came_back.then_some(now),
        };
        true
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

    /// Lists a pool's endpoints, names replaced by addresses.
    fn gather(&mut self, pool: &config::Pool) {
        let mut members: Vec<Member> = Vec::new();
        let mut unresolved = Vec::new();
        let mut seen = HashSet::new();
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
            for address in addresses {
                if host.is_some() && self.is_own(address) {
                    tracing::warn!(pool = %pool.name, %address, "a name resolves to a listener of ours: left out, or it would loop");
                    continue;
                }
                if seen.insert(address) {
                    members.push(self.member(pool, endpoint, address, host.clone()));
                }
            }
        }
        self.members.insert(pool.name.clone(), members);
        self.unresolved.insert(pool.name.clone(), unresolved);
    }

    fn is_own(&self, address: SocketAddr) -> bool {
        let target = Bind { address, only_v6: false };
        self.own.iter().any(|own| {
            own.address == address || (own.overlaps(&target) && address.ip().to_canonical().is_loopback())
        })
    }

    fn member(
        &mut self,
        pool: &config::Pool,
        endpoint: &config::Endpoint,
        address: SocketAddr,
        host: Option<Arc<str>>,
    ) -> Member {
        let key = EndpointKey { pool: pool.name.clone(), address };
        let probed = pool.health.is_some();
        let opinion = self.opinions.entry(key.clone()).or_insert_with(|| Opinion::fresh(probed));
        if !probed && opinion.verdict != Verdict::Up {
            *opinion = Opinion::fresh(false);
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

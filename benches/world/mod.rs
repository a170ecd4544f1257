//! The world in which a choice is made: a snapshot as a proxy in front of several services has it, its clients, and a
//! seeded stream of bits. Shared by the benches that time the choice and the one that counts its instructions.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use twinspan::{
    balance::{Balance, Maglev, Shares},
    ids::{CloudName, EndpointIdentity, Generation, ListenerName, PoolName},
    net::Keepalive,
    state::{
        Connect, Endpoint, EndpointCell, Group, Listener, ListenerCell, Pool, Reports, SessionLimits, Shared,
        Snapshot, Sockets, Tier,
    },
    telemetry::SessionLog,
};

/// Services behind the proxy: a listener and a pool each.
const SERVICES: u16 = 8;

/// Endpoints of a pool in one cloud.
pub(crate) const ENDPOINTS: u8 = 16;

/// A bridge with a snapshot in force, and the listener in its middle. Every pool sends nine tenths to one cloud and one
/// tenth to a second, and falls back to a third.
pub(crate) fn bridge(balance: Balance) -> (Shared, Arc<ListenerCell>) {
    let (reports, _) = Reports::new();
    let (sockets, _) = Sockets::new(1);
    let shared = Shared::new(reports, sockets, SessionLog::off());
    let listeners: Vec<_> = (0..SERVICES).map(|number| listener(number, balance)).collect();
    let middle = listeners.get(listeners.len() / 2).map(|listener| Arc::clone(&listener.cell));
    let pools = listeners.iter().filter_map(|listener| listener.target.pool().map(Arc::clone)).collect();
    shared.publish(Arc::new(Snapshot { generation: Generation(1), listeners, pools, ..Snapshot::default() }));
    let nobody = || Arc::new(ListenerCell::new(ListenerName::from("none"), client(0)));
    (shared, middle.unwrap_or_else(nobody))
}

fn listener(number: u16, balance: Balance) -> Arc<Listener> {
    let name = format!("service-{number}");
    let address = SocketAddr::from(([0, 0, 0, 0], 5000 + number));
    let limits = SessionLimits {
        idle: Duration::from_secs(3600),
        half_closed: Duration::from_secs(60),
        lifetime: None,
        user_timeout: Duration::from_secs(30),
        upstream_timeout: Duration::from_secs(30),
        keepalive: Keepalive { idle: Duration::from_secs(60), interval: Duration::from_secs(10), count: 3 },
    };
    let cell = Arc::new(ListenerCell::new(ListenerName::from(name.as_str()), address));
    Arc::new(Listener::plain(cell, Arc::new(pool(&name, balance)), limits))
}

fn pool(name: &str, balance: Balance) -> Pool {
    let name = PoolName::from(name);
    let tier = |clouds: &[(&str, u8, u32)]| Tier {
        groups: clouds.iter().map(|(cloud, net, _)| group(&name, cloud, *net, balance)).collect(),
        shares: Shares::new(clouds.iter().map(|(_, _, share)| *share)),
        cell: Arc::default(),
    };
    let tiers = vec![tier(&[("aws", 1, 90), ("gcp", 2, 10)]), tier(&[("azure", 3, 100)])];
    let connect = Connect::plain(Duration::from_secs(1), 4, Duration::from_secs(4));
    Pool::new(name, balance, tiers, connect)
}

fn group(pool: &PoolName, cloud: &str, net: u8, balance: Balance) -> Group {
    let endpoints: Vec<_> = (0..ENDPOINTS).map(|host| endpoint(pool, cloud, [10, net, 0, host])).collect();
    Group {
        cloud: CloudName::from(cloud),
        shares: Shares::new(endpoints.iter().map(|endpoint| endpoint.weight)),
        maglev: (balance == Balance::SourceHash).then(|| Arc::new(maglev(ENDPOINTS.into()))),
        endpoints,
        cell: Arc::default(),
    }
}

/// An endpoint that carries a few sessions, as its neighbours do.
fn endpoint(pool: &PoolName, cloud: &str, ip: [u8; 4]) -> Arc<Endpoint> {
    let address = SocketAddr::from((ip, 5432));
    let identity = EndpointIdentity { pool: pool.clone(), cloud: CloudName::from(cloud), address };
    let cell = EndpointCell::default();
    let [.., host] = ip;
    (0..host % 5).for_each(|_| cell.begin());
    cell.connected(Duration::from_micros(500 + u64::from(host)));
    Arc::new(Endpoint {
        identity: Arc::new(identity),
        cell: Arc::new(cell),
        weight: 100,
        socket: Arc::default(),
    })
}

/// A hash table of this many equal members.
pub(crate) fn maglev(members: u32) -> Maglev {
    let members: Vec<_> = (0..members).map(|n| (format!("10.0.0.{n}:5432").into_bytes(), 1)).collect();
    Maglev::new(&members)
}

/// The `n`-th client.
pub(crate) fn client(n: u32) -> SocketAddr {
    let ip = Ipv4Addr::from(0xC612_0000_u32.wrapping_add(n.wrapping_mul(7919) & 0xffff));
    SocketAddr::new(ip.into(), 40_000)
}

/// A seeded stream of bits (Marsaglia, "Xorshift RNGs", 2003): cheap beside what is measured, and the same in every run.
pub(crate) struct Draw(pub(crate) u64);

impl Draw {
    pub(crate) const fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

//! The proxy of the demo: its config, made in code, and what is read from it while it runs.

use std::{net::SocketAddr, sync::Arc, time::SystemTime};

use anyhow::Context as _;
use tokio::time::Instant;

use crate::{
    app::{App, HistogramReading, Options},
    config::{self, Config, defaults},
    ids::ListenerName,
    lab::Cloud,
};

/// The one listener and the one pool.
const NAME: &str = "demo";

/// The time in which a cloud that comes back takes all of its share again.
const RECOVERY: std::time::Duration = std::time::Duration::from_secs(2);

/// What the demo wants of a proxy. The tests have another one, which can be told to be a bad one.
pub(super) trait Proxy {
    /// Where it accepts.
    fn address(&self) -> SocketAddr;

    /// Its clouds now, in the order of the script.
    fn sample(&self) -> Sample;

    /// What it has told of itself since then.
    fn happened(&self, since: SystemTime) -> Vec<(SystemTime, String)>;
}

/// One look at the proxy.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    pub(super) at: Instant,
    pub(super) clouds: Vec<CloudSample>,
}

/// One look at a cloud. Counts are since the start.
#[derive(Clone, Debug, Default)]
pub(super) struct CloudSample {
    pub(super) name: String,
    /// Endpoints.
    pub(super) endpoints: usize,
    /// Endpoints that are up.
    pub(super) up: usize,
    /// The part of new sessions that it is to get, 0 to 1.
    pub(super) share: f64,
    /// Sessions now.
    pub(super) active: u64,
    /// Sessions that connected.
    pub(super) sessions: u64,
    /// Bytes.
    pub(super) to_upstream: u64,
    /// How long connecting took.
    pub(super) connect: HistogramReading,
}

/// The real proxy.
pub(super) struct Real {
    app: App,
    address: SocketAddr,
    clouds: Vec<String>,
}

/// Addresses for the user to play with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Doors {
    pub(super) admin: SocketAddr,
    pub(super) telemetry: SocketAddr,
}

impl Real {
    /// Starts it in front of the clouds, the first preferred.
    pub(super) fn start(clouds: &[Cloud], doors: Option<Doors>) -> anyhow::Result<Self> {
        let app = App::start(config(clouds, doors), Options::default()).context("start the proxy")?;
        let address = app.address(&ListenerName::from(NAME)).context("the proxy has no listener")?;
        let clouds = clouds.iter().map(|cloud| cloud.name().to_string()).collect();
        Ok(Self { app, address, clouds })
    }

    /// Ends it. The load has gone by then, so that there is nothing to wait for unless something is wrong.
    pub(super) fn drain(self) {
        let _ended = self.app.drain(std::time::Duration::from_secs(1));
    }
}

impl Proxy for Real {
    fn address(&self) -> SocketAddr {
        self.address
    }

    fn sample(&self) -> Sample {
        let overview = self.app.view().overview.load();
        let mut clouds: Vec<_> = self
            .clouds
            .iter()
            .map(|name| CloudSample { name: name.clone(), ..CloudSample::default() })
            .collect();
        for pool in &overview.pools {
            for cloud in &mut clouds {
                let shares = pool.shares.iter().filter(|(name, _)| name.as_str() == cloud.name);
                cloud.share += shares.map(|(_, share)| share).sum::<f64>();
                for endpoint in pool.endpoints.iter().filter(|one| one.identity.cloud.as_str() == cloud.name)
                {
                    cloud.endpoints += 1;
                    cloud.up += usize::from(endpoint.verdict.as_str() == "up");
                    cloud.active += endpoint.cell.active();
                    cloud.sessions += endpoint.cell.sessions();
                    cloud.to_upstream += endpoint.cell.bytes().0;
                    cloud.connect.add(&endpoint.cell.connect());
                }
            }
        }
        Sample { at: Instant::now(), clouds }
    }

    fn happened(&self, since: SystemTime) -> Vec<(SystemTime, String)> {
        let events = self.app.view().journal.last(usize::MAX);
        let wanted =
            events.iter().filter(|event| event.time > since && event.happening.level().as_str() != "debug");
        wanted.map(|event| (event.time, event.text.clone())).collect()
    }
}

impl CloudSample {
    /// The word for its state.
    pub(super) fn state(&self) -> String {
        match self.up {
            0 => "down".to_owned(),
            up if up == self.endpoints => "up".to_owned(),
            up => format!("{up}/{} up", self.endpoints),
        }
    }
}

impl Doors {
    /// Two ports that are free now.
    pub(super) fn find() -> std::io::Result<Self> {
        // Both held before either is let go, so that they differ.
        let (admin, telemetry) =
            (std::net::TcpListener::bind("127.0.0.1:0")?, std::net::TcpListener::bind("127.0.0.1:0")?);
        Ok(Self { admin: admin.local_addr()?, telemetry: telemetry.local_addr()? })
    }
}

fn config(clouds: &[Cloud], doors: Option<Doors>) -> Config {
    let admin = doors.map_or(config::AdminBind::Off, |doors| config::AdminBind::Tcp(doors.admin));
    Config {
        workers: None,
        pin_workers: None,
        engine: defaults::ENGINE,
        drain_timeout: defaults::DRAIN_TIMEOUT,
        max_memory: config::MaxMemory::Off,
        log: config::Log {
            level: config::Level::Error,
            format: config::LogFormat::Auto,
            sessions: config::SessionLines::Off,
            file: None,
        },
        admin: config::Admin { bind: admin, explicit: true },
        telemetry: config::Telemetry { bind: doors.map(|doors| doors.telemetry), explicit: true },
        spiffe: None,
        clouds: clouds
            .iter()
            .map(|cloud| config::Cloud {
                name: cloud.name().clone(),
                region: None,
                egress_usd_per_gb: None,
                // Short, so that a run shows all of it.
                domain: config::Domain { recovery_time: Some(RECOVERY), ..config::Domain::default() },
                socket: Arc::default(),
            })
            .collect(),
        pools: vec![pool(clouds)],
        listeners: vec![config::Listener {
            name: NAME.into(),
            bind: config::Bind { address: SocketAddr::from(([127, 0, 0, 1], 0)), only_v6: false },
            target: config::Target::Pool(NAME.into()),
            entry: config::Entry::default(),
            idle_timeout: defaults::IDLE_TIMEOUT,
            half_close_timeout: defaults::HALF_CLOSE_TIMEOUT,
            max_lifetime: None,
            backlog: defaults::BACKLOG,
            keepalive: defaults::KEEPALIVE,
            user_timeout: defaults::USER_TIMEOUT,
            fast_open: None,
            tuning: config::Tuning::default(),
        }],
    }
}

/// Loopback answers in no time, so the demo may be less patient than the defaults: a dead cloud is seen within a second.
fn pool(clouds: &[Cloud]) -> config::Pool {
    let milliseconds = std::time::Duration::from_millis;
    let endpoints = clouds.iter().flat_map(|cloud| {
        cloud.endpoints().iter().map(|endpoint| config::Endpoint {
            address: config::Address::Socket(endpoint.address()),
            cloud: cloud.name().clone(),
            region: None,
            zone: None,
            weight: defaults::WEIGHT,
        })
    });
    config::Pool {
        name: NAME.into(),
        policy: config::Policy::Failover { order: clouds.iter().map(|cloud| cloud.name().clone()).collect() },
        balance: config::Balance::LeastSessions,
        when_all_down: config::WhenAllDown::TryAnyway,
        ejection: config::Ejection::default(),
        restraint: config::Restraint::default(),
        connect_timeout: milliseconds(300),
        attempts: defaults::ATTEMPTS,
        preconnect: defaults::PRECONNECT,
        towards: config::Towards::default(),
        connecting: config::Connecting::default(),
        slow_start: milliseconds(1_000),
        health: Some(config::Health {
            // An answer, not only a connection: a frozen endpoint still connects.
            probe: config::Probe::Tcp { send: b"probe".to_vec(), expect: b"probe".to_vec() },
            port: None,
            tls: false,
            interval: milliseconds(250),
            fast_interval: milliseconds(50),
            timeout: milliseconds(250),
            rise: defaults::PROBE_RISE,
            fall: defaults::PROBE_FALL,
            jitter: defaults::PROBE_JITTER,
        }),
        endpoints: endpoints.collect(),
    }
}

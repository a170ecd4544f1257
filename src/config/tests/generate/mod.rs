//! Any config that can be served.

mod edge;

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use proptest::{collection::vec, option, prelude::*, sample::select};

use super::super::{
    Address, Admin, AdminBind, Balance, Cloud, Config, Connecting, Domain, Ejection, Endpoint, Health, Level,
    Listener, Log, LogFormat, MaxMemory, Policy, Pool, Probe, Replay, Restraint, SessionLines, Telemetry,
    WhenAllDown, WorkloadApi,
};
use crate::{
    ids::{CloudName, ListenerName, PoolName},
    net::{Bind, Dscp, Keepalive, Outgoing, Tuning},
};

pub(super) fn config() -> impl Strategy<Value = Config> {
    let clouds = prop::collection::btree_set(name(), 1..4)
        .prop_flat_map(|names| names.into_iter().map(cloud).collect::<Vec<_>>());
    let socket = prop_oneof![
        "/[^\\x00?#]{0,20}[^\\x00?#/]".prop_map(|path| WorkloadApi::Unix(path.into())),
        (any::<[u8; 4]>(), 1..u16::MAX).prop_map(|address| WorkloadApi::Tcp(address.into())),
    ];
    let own = (
        (option::of(1..1025_usize), memory(), option::of(socket)),
        any::<(Option<bool>, bool)>(),
        time(0, 86_399),
        log(),
        admin(),
        telemetry(),
    );
    (own, clouds, prop::collection::btree_set(name(), 1..4)).prop_flat_map(|(own, clouds, pools)| {
        let names: Vec<CloudName> = clouds.iter().map(|cloud| cloud.name.clone()).collect();
        let pool_names: Vec<String> = pools.iter().cloned().collect();
        let pools: Vec<_> = pools.into_iter().map(|name| pool(name, names.clone())).collect();
        (Just(own), Just(clouds), pools, listeners(pool_names)).prop_map(
            |(
                ((workers, max_memory, spiffe), (pin_workers, engine), drain_timeout, log, admin, telemetry),
                clouds,
                pools,
                listeners,
            )| Config {
                workers,
                pin_workers,
                engine,
                drain_timeout,
                max_memory,
                log,
                admin,
                telemetry,
                spiffe,
                clouds,
                pools,
                listeners,
            },
        )
    })
}

fn memory() -> impl Strategy<Value = MaxMemory> {
    prop_oneof![
        Just(MaxMemory::OfCgroup),
        Just(MaxMemory::Off),
        (1024..1_u64 << 50).prop_map(MaxMemory::Bytes)
    ]
}

fn name() -> impl Strategy<Value = String> {
    "[A-Za-z0-9._:\\[\\]-]{1,64}"
}

fn time(from: u64, to: u64) -> impl Strategy<Value = Duration> {
    (from..to, 1..1_000_000_000_u32).prop_map(|(seconds, nanos)| Duration::new(seconds, nanos))
}

fn cloud(name: String) -> impl Strategy<Value = Cloud> {
    (option::of(self::name()), option::of("[0-9]{1,4}([.][0-9]{1,4})?"), outgoing(), domain()).prop_map(
        move |(region, egress_usd_per_gb, socket, domain)| Cloud {
            name: CloudName::from(name.as_str()),
            region,
            egress_usd_per_gb,
            socket: Arc::new(socket),
            domain,
        },
    )
}

fn domain() -> impl Strategy<Value = Domain> {
    (option::of(1..10_000_001_u32), 0..99_u8, 1..100_u8, option::of(time(0, 86_399))).prop_map(
        |(capacity, down_below, more, recovery_time)| Domain {
            capacity,
            down_below,
            up_above: down_below.saturating_add(more).min(99),
            recovery_time,
        },
    )
}

fn ejection() -> impl Strategy<Value = Ejection> {
    (any::<bool>(), 1..1001_u32, time(0, 86_399), time(0, 86_399), 0..101_u8).prop_map(
        |(enabled, failures, one, other, max_ejected)| Ejection {
            enabled,
            failures,
            base: one.min(other) + Duration::from_millis(100),
            max: one.max(other) + Duration::from_millis(100),
            max_ejected,
        },
    )
}

fn restraint() -> impl Strategy<Value = Restraint> {
    (0..101_u8, 0..101_u8).prop_map(|(max_removal, floor)| Restraint { max_removal, floor })
}

/// With a source for both families or none: every endpoint can be reached.
fn outgoing() -> impl Strategy<Value = Outgoing> {
    let sources = option::of((any::<[u8; 3]>(), any::<u16>()));
    let times = (option::of(keepalive()), option::of(time(0, 86_399)));
    (tuning(), sources, any::<bool>(), times).prop_map(
        |(tuning, sources, fast_open, (keepalive, user_timeout))| Outgoing {
            tuning,
            source_v4: sources.map(|([a, b, c], _)| Ipv4Addr::new(10, a, b, c)),
            source_v6: sources.map(|(_, a)| Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, a)),
            fast_open,
            keepalive,
            user_timeout: user_timeout.map(|time| time + Duration::from_millis(1)),
        },
    )
}

fn tuning() -> impl Strategy<Value = Tuning> {
    let size = || option::of(4096..=1_u32 << 30);
    // Every kernel has it, so that no machine warns.
    let congestion = option::of(Just("reno"));
    (congestion, size(), size(), size(), option::of(0..64_u8), option::of("[a-z][a-z0-9.-]{0,14}")).prop_map(
        |(congestion, send_buffer, receive_buffer, notsent_lowat, dscp, interface)| Tuning {
            congestion: congestion.map(Into::into),
            send_buffer,
            receive_buffer,
            notsent_lowat,
            dscp: dscp.and_then(Dscp::new),
            interface: interface.map(Into::into),
        },
    )
}

fn keepalive() -> impl Strategy<Value = Keepalive> {
    (1..32_768_u64, 1..32_768_u64, 1..128_u32).prop_map(|(idle, interval, count)| Keepalive {
        idle: Duration::from_secs(idle),
        interval: Duration::from_secs(interval),
        count,
    })
}

fn log() -> impl Strategy<Value = Log> {
    let level = select(vec![Level::Error, Level::Warn, Level::Info, Level::Debug, Level::Trace]);
    let format = select(vec![LogFormat::Auto, LogFormat::Text, LogFormat::Json]);
    let sessions = select(vec![SessionLines::All, SessionLines::Errors, SessionLines::Off]);
    (level, format, sessions, option::of("/[^\\x00]{1,20}")).prop_map(|(level, format, sessions, file)| Log {
        level,
        format,
        sessions,
        file: file.map(Into::into),
    })
}

// Own ports lie below those of listeners, and those below the ones of endpoints: nothing overlaps.
fn admin() -> impl Strategy<Value = Admin> {
    prop_oneof![
        Just(Admin { bind: AdminBind::Tcp(super::super::defaults::ADMIN), explicit: false }),
        Just(Admin { bind: AdminBind::Off, explicit: true }),
        (0..100_u16).prop_map(|port| Admin {
            bind: AdminBind::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, port))),
            explicit: true
        }),
        "/[^\\x00]{0,20}[a-z]".prop_map(|path| Admin { bind: AdminBind::Unix(path.into()), explicit: true }),
    ]
}

fn telemetry() -> impl Strategy<Value = Telemetry> {
    prop_oneof![
        Just(Telemetry { bind: Some(super::super::defaults::TELEMETRY), explicit: false }),
        Just(Telemetry { bind: None, explicit: true }),
        (100..200_u16).prop_map(|port| Telemetry {
            bind: Some(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))),
            explicit: true
        }),
    ]
}

fn pool(name: String, clouds: Vec<CloudName>) -> impl Strategy<Value = Pool> {
    let endpoints = prop::collection::btree_map(address(), endpoint(clouds), 1..6).prop_map(|endpoints| {
        endpoints
            .into_iter()
            .map(|(text, endpoint)| Endpoint { address: written(&text), ..endpoint })
            .collect::<Vec<_>>()
    });
    let settings = (
        balance(),
        any::<bool>(),
        time(0, 86_399),
        (1..17_u8, 0..1025_u16, (connecting(), edge::towards())),
        time(0, 86_399),
        option::of(health()),
        (ejection(), restraint()),
    );
    (endpoints, any::<bool>(), vec(0..1001_u32, 4), settings).prop_map(
        move |(
            endpoints,
            weighted,
            shares,
            (
                balance,
                refuse,
                connect_timeout,
                (attempts, preconnect, (connecting, towards)),
                slow_start,
                health,
                (ejection, restraint),
            ),
        )| {
            let has_tls = towards.tls.is_some();
            Pool {
                name: PoolName::from(name.as_str()),
                policy: policy(&endpoints, weighted, &shares),
                balance,
                when_all_down: if refuse { WhenAllDown::Refuse } else { WhenAllDown::TryAnyway },
                connect_timeout: connect_timeout + Duration::from_millis(1),
                attempts,
                preconnect,
                connecting,
                towards,
                slow_start,
                // Without TLS of the pool a probe has none: an error.
                health: health.map(|health| Health { tls: health.tls && has_tls, ..health }),
                ejection,
                restraint,
                endpoints,
            }
        },
    )
}

/// What has no effect is left at its default: it is not written, or warned of.
fn connecting() -> impl Strategy<Value = Connecting> {
    (
        (any::<bool>(), 0..101_u8),
        option::of(time(1, 86_399)),
        (any::<bool>(), 4..1025_u32),
        1..1_000_001_u32,
        0..1_000_001_u32,
    )
        .prop_map(|((hedge, budget), first_byte, (replay, kib), most, queue)| {
            let usual = Connecting::default();
            Connecting {
                hedge,
                hedge_budget: if hedge { budget } else { usual.hedge_budget },
                first_byte,
                replay: if replay { Replay::UntilFirstByte } else { Replay::Off },
                replay_bytes: if replay { kib << 10 } else { usual.replay_bytes },
                most,
                queue,
            }
        })
}

/// The clouds in an order that is not that of the endpoints.
fn policy(endpoints: &[Endpoint], weighted: bool, shares: &[u32]) -> Policy {
    let clouds: BTreeSet<CloudName> = endpoints.iter().map(|endpoint| endpoint.cloud.clone()).collect();
    if !weighted {
        return Policy::Failover { order: clouds.into_iter().rev().collect() };
    }
    let mut weights: Vec<(CloudName, u32)> = clouds.into_iter().rev().zip(shares.iter().copied()).collect();
    weights[0].1 = weights[0].1.max(1);
    Policy::Weighted { weights }
}

fn balance() -> impl Strategy<Value = Balance> {
    select(vec![
        Balance::LeastSessions,
        Balance::LeastLatency,
        Balance::RoundRobin,
        Balance::Random,
        Balance::SourceHash,
    ])
}

fn address() -> impl Strategy<Value = String> {
    prop_oneof![
        (any::<[u8; 3]>(), 10_000..u16::MAX).prop_map(|([a, b, c], port)| format!("10.{a}.{b}.{c}:{port}")),
        (any::<u16>(), 10_000..u16::MAX).prop_map(|(a, port)| format!("[2001:db8::{a:x}]:{port}")),
        ("[a-z][a-z0-9]{0,20}(\\.[a-z0-9-]{0,5}[a-z]){0,3}", 10_000..u16::MAX)
            .prop_filter("a part starts with -", |(host, _)| !host.contains(".-"))
            .prop_map(|(host, port)| format!("{host}:{port}")),
    ]
}

fn written(text: &str) -> Address {
    match text.parse() {
        Ok(address) => Address::Socket(address),
        Err(_) => {
            let (host, port) = text.rsplit_once(':').unwrap();
            Address::Name { host: host.to_owned(), port: port.parse().unwrap() }
        }
    }
}

fn endpoint(clouds: Vec<CloudName>) -> impl Strategy<Value = Endpoint> {
    (select(clouds), option::of(name()), option::of(name()), 1..1001_u32).prop_map(
        |(cloud, region, zone, weight)| Endpoint {
            address: Address::Name { host: "x".to_owned(), port: 1 },
            cloud,
            region,
            zone,
            weight,
        },
    )
}

fn health() -> impl Strategy<Value = Health> {
    // Not longer than a probe may be, in any encoding.
    let text = || "\\PC{1,100}|[\\x00-\\x7f]{1,20}";
    let bytes = move || option::of(text()).prop_map(|text| text.unwrap_or_default().into_bytes());
    let status = (100..600_u16, 0..100_u16).prop_map(|(first, more)| (first, (first + more).min(599)));
    let probe = prop_oneof![
        (bytes(), bytes()).prop_map(|(send, expect)| Probe::Tcp { send, expect }),
        ("/[!-\"$-~]{0,20}", option::of("[a-z0-9.:-]{1,20}"), vec(status, 1..4), option::of(text()))
            .prop_map(|(path, host, status, body)| Probe::Http { path, host, status, body }),
    ];
    let times = (time(0, 86_399), time(0, 86_399), time(0, 86_399));
    (probe, (option::of(1..u16::MAX), any::<bool>()), times, 1..101_u32, 1..101_u32, 0.0..=1.0).prop_map(
        |(probe, (port, tls), (interval, fast_interval, timeout), rise, fall, jitter)| Health {
            probe,
            port,
            tls,
            interval: interval + Duration::from_millis(10),
            fast_interval: fast_interval + Duration::from_millis(10),
            timeout: timeout + Duration::from_millis(1),
            rise,
            fall,
            jitter,
        },
    )
}

fn listeners(pools: Vec<String>) -> impl Strategy<Value = Vec<Listener>> {
    prop::collection::btree_map(name(), (listener(pools), any::<(bool, bool)>()), 0..4).prop_map(
        |listeners| {
            let listeners = listeners.into_iter().zip(1000_u16..);
            listeners
                .map(|((name, (listener, (v6, only_v6))), port)| Listener {
                    name: ListenerName::from(name.as_str()),
                    bind: Bind {
                        address: if v6 {
                            (Ipv6Addr::UNSPECIFIED, port).into()
                        } else {
                            (Ipv4Addr::UNSPECIFIED, port).into()
                        },
                        only_v6: v6 && only_v6,
                    },
                    ..listener
                })
                .collect()
        },
    )
}

fn listener(pools: Vec<String>) -> impl Strategy<Value = Listener> {
    let times = (time(0, 1_000_000), time(0, 86_399), option::of(time(0, 1_000_000)), time(0, 86_399));
    let least = Duration::from_millis(1);
    let options = (option::of(1..65_536_u32), tuning());
    (edge::entry(pools), times, 1..1_048_577_u32, keepalive(), options).prop_map(
        move |(
            (target, entry),
            (idle, half_close, life, user_timeout),
            backlog,
            keepalive,
            (fast_open, tuning),
        )| {
            Listener {
                name: ListenerName::from("x"),
                bind: Bind { address: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)), only_v6: false },
                target,
                entry,
                idle_timeout: idle + least,
                half_close_timeout: half_close + least,
                max_lifetime: life.map(|life| life + least),
                backlog,
                keepalive,
                user_timeout: user_timeout + least,
                fast_open,
                tuning,
            }
        },
    )
}

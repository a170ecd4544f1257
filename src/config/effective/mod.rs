//! A config with every default spelled out, as a file that means the same.
//!
//! A default that is the absence of a value cannot be spelled out: it stands there as a comment.

mod edge;

use std::{
    fmt::{self, Display, Write as _},
    net::IpAddr,
};

use super::{
    Address, AdminBind, Cloud, Config, Connecting, Endpoint, Health, Keepalive, Listener, MaxMemory, Policy,
    Pool, Probe, Replay, Target, Tuning,
    names::count_text,
    sockets::size_text,
    values::{status_text, time_text},
    words::Vocabulary as _,
};
use crate::net::Dscp;

/// The config as TOML. Reading it gives the same config again.
#[must_use]
pub fn effective(config: &Config) -> String {
    let mut out = String::new();
    // Writing to a String does not fail.
    let _ = write(&mut out, config);
    out
}

fn write(out: &mut String, config: &Config) -> fmt::Result {
    writeln!(out, "version = 1")?;
    match config.workers {
        Some(workers) => writeln!(out, "workers = {workers}")?,
        None => writeln!(out, "# workers: one for each CPU")?,
    }
    match config.pin_workers {
        Some(pin) => writeln!(out, "pin_workers = {pin}")?,
        None => writeln!(out, "# pin_workers: when there is one worker for each CPU")?,
    }
    writeln!(out, "engine = {}", config.engine)?;
    writeln!(out, "drain_timeout = {}", text(time_text(config.drain_timeout)))?;
    match config.max_memory {
        MaxMemory::OfCgroup => writeln!(out, "# max_memory: nine tenths of the cgroup's limit")?,
        MaxMemory::Off => writeln!(out, "max_memory = \"off\"")?,
        MaxMemory::Bytes(bytes) => writeln!(out, "max_memory = {}", text(count_text(bytes)))?,
    }
    write_log(out, config)?;
    write_own(out, config)?;
    write_spiffe(out, config)?;
    for cloud in &config.clouds {
        write_cloud(out, cloud)?;
    }
    for pool in &config.pools {
        write_pool(out, pool)?;
    }
    for listener in &config.listeners {
        write_listener(out, listener)?;
    }
    Ok(())
}

fn write_log(out: &mut String, config: &Config) -> fmt::Result {
    let log = &config.log;
    writeln!(out, "\n[log]")?;
    writeln!(out, "level = {}", text(log.level.word()))?;
    writeln!(out, "format = {}", text(log.format.word()))?;
    writeln!(out, "sessions = {}", text(log.sessions.word()))?;
    let file = log.file.as_ref().map(|file| file.to_string_lossy());
    optional(out, "file", file.as_deref(), "standard error")
}

/// The proxy's own addresses. A default stays a comment: written out it would have to be free.
fn write_own(out: &mut String, config: &Config) -> fmt::Result {
    let admin = match &config.admin.bind {
        AdminBind::Off => "off".to_owned(),
        AdminBind::Tcp(address) => address.to_string(),
        AdminBind::Unix(path) => format!("unix:{}", path.to_string_lossy()),
    };
    let telemetry = config.telemetry.bind.map_or_else(|| "off".to_owned(), |address| address.to_string());
    let tables =
        [("admin", admin, config.admin.explicit), ("telemetry", telemetry, config.telemetry.explicit)];
    for (table, bind, explicit) in tables {
        let comment = if explicit { "" } else { "# default: " };
        writeln!(out, "\n[{table}]\n{comment}bind = {}", text(bind))?;
    }
    Ok(())
}

/// Left out where nothing is taken from there: a program that was built without it refuses the table.
fn write_spiffe(out: &mut String, config: &Config) -> fmt::Result {
    if config.spiffe.is_none() && !config.takes_spiffe() {
        return Ok(());
    }
    writeln!(out, "\n[spiffe]")?;
    let socket = config.spiffe.as_ref().map(ToString::to_string);
    optional(out, "socket", socket.as_deref(), "that of SPIFFE_ENDPOINT_SOCKET")
}

fn write_cloud(out: &mut String, cloud: &Cloud) -> fmt::Result {
    writeln!(out, "\n[cloud.{}]", key(cloud.name.as_str()))?;
    optional(out, "region", cloud.region.as_deref(), "none")?;
    optional(out, "egress_usd_per_gb", cloud.egress_usd_per_gb.as_deref(), "none")?;
    let socket = &cloud.socket;
    let sources: Vec<String> = [socket.source_v4.map(IpAddr::V4), socket.source_v6.map(IpAddr::V6)]
        .into_iter()
        .flatten()
        .map(text)
        .collect();
    let sources = (!sources.is_empty()).then(|| format!("[{}]", sources.join(", ")));
    bare(out, "source", sources, "the kernel chooses")?;
    let timeout = socket.user_timeout.map(time_text);
    optional(out, "user_timeout", timeout.as_deref(), "that of the listener")?;
    bare(out, "keepalive", socket.keepalive.as_ref().map(keepalive_table), "that of the listener")?;
    writeln!(out, "fast_open = {}", socket.fast_open)?;
    write_tuning(out, &socket.tuning)?;
    let domain = &cloud.domain;
    bare(out, "capacity", domain.capacity, "no limit")?;
    writeln!(out, "down_below = {}\nup_above = {}", domain.down_below, domain.up_above)?;
    let usual = format!("{} in pools with a slow start", time_text(domain.recovery()));
    optional(out, "recovery_time", domain.recovery_time.map(time_text).as_deref(), &usual)
}

fn write_tuning(out: &mut String, tuning: &Tuning) -> fmt::Result {
    optional(out, "interface", tuning.interface.as_deref(), "any")?;
    optional(out, "congestion", tuning.congestion.as_deref(), "the machine's")?;
    for (key, bytes) in [
        ("send_buffer", tuning.send_buffer),
        ("receive_buffer", tuning.receive_buffer),
        ("notsent_lowat", tuning.notsent_lowat),
    ] {
        optional(out, key, bytes.map(size_text).as_deref(), "the kernel's")?;
    }
    bare(out, "dscp", tuning.dscp.map(Dscp::number), "none")
}

fn keepalive_table(keepalive: &Keepalive) -> String {
    format!(
        "{{ idle = {}, interval = {}, count = {} }}",
        text(time_text(keepalive.idle)),
        text(time_text(keepalive.interval)),
        keepalive.count,
    )
}

fn write_pool(out: &mut String, pool: &Pool) -> fmt::Result {
    writeln!(out, "\n[[pool]]")?;
    writeln!(out, "name = {}", text(&pool.name))?;
    match &pool.policy {
        Policy::Failover { order } => {
            let order: Vec<String> = order.iter().map(text).collect();
            writeln!(out, "policy = \"failover\"\norder = [{}]", order.join(", "))?;
        }
        Policy::Weighted { weights } => {
            let weights: Vec<String> =
                weights.iter().map(|(cloud, share)| format!("{} = {share}", key(cloud.as_str()))).collect();
            writeln!(out, "policy = \"weighted\"\nweights = {{ {} }}", weights.join(", "))?;
        }
    }
    writeln!(out, "balance = {}", text(pool.balance.word()))?;
    writeln!(out, "when_all_down = {}", text(pool.when_all_down.word()))?;
    writeln!(out, "connect_timeout = {}", text(time_text(pool.connect_timeout)))?;
    writeln!(out, "attempts = {}", pool.attempts)?;
    writeln!(out, "preconnect = {}", pool.preconnect)?;
    write_connecting(out, &pool.connecting)?;
    writeln!(out, "slow_start = {}", text(time_text(pool.slow_start)))?;
    edge::write_towards(out, &pool.towards)?;
    match &pool.health {
        Some(health) => write_health(out, health)?,
        None => writeln!(out, "# health: no probes, every endpoint counts as up")?,
    }
    write_judging(out, pool)?;
    for endpoint in &pool.endpoints {
        write_endpoint(out, endpoint)?;
    }
    Ok(())
}

fn write_connecting(out: &mut String, connecting: &Connecting) -> fmt::Result {
    writeln!(out, "hedge = {}", connecting.hedge)?;
    if connecting.hedge {
        writeln!(out, "hedge_budget = {}", connecting.hedge_budget)?;
    }
    optional(out, "first_byte_timeout", connecting.first_byte.map(time_text).as_deref(), "off")?;
    writeln!(out, "replay = {}", text(connecting.replay.word()))?;
    if connecting.replay != Replay::Off {
        writeln!(out, "replay_bytes = {}", text(size_text(connecting.replay_bytes)))?;
    }
    writeln!(out, "max_connecting = {}\nconnect_queue = {}", connecting.most, connecting.queue)
}

fn write_judging(out: &mut String, pool: &Pool) -> fmt::Result {
    let (ejection, restraint) = (&pool.ejection, &pool.restraint);
    writeln!(out, "\n[pool.ejection]")?;
    writeln!(out, "enabled = {}\nfailures = {}", ejection.enabled, ejection.failures)?;
    writeln!(out, "base = {}", text(time_text(ejection.base)))?;
    writeln!(out, "max = {}", text(time_text(ejection.max)))?;
    writeln!(out, "max_ejected = {}", ejection.max_ejected)?;
    writeln!(out, "\n[pool.restraint]")?;
    writeln!(out, "max_removal = {}\nfloor = {}", restraint.max_removal, restraint.floor)
}

fn write_health(out: &mut String, health: &Health) -> fmt::Result {
    let kind = match &health.probe {
        Probe::Tcp { .. } => "tcp",
        Probe::Http { .. } => "http",
    };
    writeln!(out, "\n[pool.health.{kind}]")?;
    writeln!(out, "interval = {}", text(time_text(health.interval)))?;
    writeln!(out, "timeout = {}", text(time_text(health.timeout)))?;
    writeln!(out, "fast_interval = {}", text(time_text(health.fast_interval)))?;
    writeln!(out, "rise = {}\nfall = {}", health.rise, health.fall)?;
    // Debug keeps the point, so that it stays a float.
    writeln!(out, "jitter = {:?}", health.jitter)?;
    match health.port {
        Some(port) => writeln!(out, "port = {port}")?,
        None => writeln!(out, "# port: the port of the endpoint")?,
    }
    writeln!(out, "tls = {}", health.tls)?;
    match &health.probe {
        Probe::Tcp { send, expect } => {
            for (key, bytes) in [("send", send), ("expect", expect)] {
                let bytes = (!bytes.is_empty()).then(|| String::from_utf8_lossy(bytes));
                optional(out, key, bytes.as_deref(), "nothing")?;
            }
            Ok(())
        }
        Probe::Http { path, host, status, body } => {
            let status: Vec<String> = status.iter().map(|range| text(status_text(*range))).collect();
            writeln!(out, "path = {}", text(path))?;
            optional(out, "host", host.as_deref(), "the address of the endpoint")?;
            writeln!(out, "status = [{}]", status.join(", "))?;
            optional(out, "body", body.as_deref(), "nothing")
        }
    }
}

fn write_endpoint(out: &mut String, endpoint: &Endpoint) -> fmt::Result {
    let address = match &endpoint.address {
        Address::Socket(address) => address.to_string(),
        Address::Name { host, port } => format!("{host}:{port}"),
    };
    writeln!(out, "\n[[pool.endpoint]]")?;
    writeln!(out, "address = {}", text(address))?;
    writeln!(out, "cloud = {}", text(&endpoint.cloud))?;
    optional(out, "region", endpoint.region.as_deref(), "the region of its cloud")?;
    optional(out, "zone", endpoint.zone.as_deref(), "none")?;
    writeln!(out, "weight = {}", endpoint.weight)
}

fn write_listener(out: &mut String, listener: &Listener) -> fmt::Result {
    writeln!(out, "\n[[listener]]")?;
    writeln!(out, "name = {}", text(&listener.name))?;
    writeln!(out, "bind = {}", text(listener.bind))?;
    match &listener.target {
        Target::Pool(pool) => writeln!(out, "pool = {}", text(pool))?,
        Target::AsAsked => writeln!(out, "as_asked = true")?,
        Target::Refuse => writeln!(out, "# pool: none, what no route is for is closed")?,
    }
    writeln!(out, "idle_timeout = {}", text(time_text(listener.idle_timeout)))?;
    writeln!(out, "half_close_timeout = {}", text(time_text(listener.half_close_timeout)))?;
    let life = listener.max_lifetime.map(time_text);
    optional(out, "max_lifetime", life.as_deref(), "no limit")?;
    writeln!(out, "backlog = {}", listener.backlog)?;
    writeln!(out, "only_v6 = {}", listener.bind.only_v6)?;
    writeln!(out, "user_timeout = {}", text(time_text(listener.user_timeout)))?;
    writeln!(out, "keepalive = {}", keepalive_table(&listener.keepalive))?;
    bare(out, "fast_open", listener.fast_open, "off")?;
    write_tuning(out, &listener.tuning)?;
    edge::write_entry(out, &listener.entry)
}

pub(super) fn bare(out: &mut String, key: &str, value: Option<impl Display>, absent: &str) -> fmt::Result {
    match value {
        Some(value) => writeln!(out, "{key} = {value}"),
        None => writeln!(out, "# {key}: {absent}"),
    }
}

pub(super) fn optional(out: &mut String, key: &str, value: Option<&str>, absent: &str) -> fmt::Result {
    match value {
        Some(value) => writeln!(out, "{key} = {}", text(value)),
        None => writeln!(out, "# {key}: {absent}"),
    }
}

pub(super) fn text(value: impl Display) -> String {
    toml::Value::String(value.to_string()).to_string()
}

fn key(name: &str) -> String {
    let bare = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'));
    if bare && !name.is_empty() { name.to_owned() } else { text(name) }
}

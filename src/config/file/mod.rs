//! The file exactly as it is written. Each key is described here and nowhere else: the JSON Schema, the reference in
//! `docs/config.md` and the check of a file are all made from these types.
//!
//! `default`, `x-default` (a default in words), `x-min`, `x-below` and `x-long` (limits of times) stand in the schema.

mod listener;
mod pool;
mod tls;

pub(super) use listener::{Listener, Route, TlvTable};
pub(super) use pool::{EjectionTable, Endpoint, HealthTables, HttpHealth, Pool, RestraintTable, TcpHealth};
pub(super) use tls::{CertificateTable, ListenerTlsTable, PoolTlsTable};

use schemars::JsonSchema;
use serde::Deserialize;

use super::{
    Level, LogFormat, SessionLines, defaults,
    keys::{Items, Key, Mark, Named},
    values::{
        AdminText, CongestionText, CountText, Decimal, FilePath, InterfaceText, Name, Seconds, SizeText,
        SourceText, TelemetryText, Time, WorkloadText, time_text,
    },
    words::{Vocabulary as _, Word},
};

/// The file as a whole.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(title = "twinspan", extend("required" = ["version"]))]
pub(super) struct File {
    /// The shape of this file. A later program that reads another shape will not guess.
    #[schemars(extend("examples" = [1], "const" = 1))]
    pub(super) version: Key<u32>,

    /// Threads that carry traffic. More than there are CPUs only adds switching.
    #[schemars(
        range(min = 1, max = 1024),
        extend("x-default" = "one for each CPU that affinity and cgroup allow; a cgroup's limit is rounded down, to one at least")
    )]
    pub(super) workers: Key<usize>,

    /// Keep each worker on a CPU of its own: nothing in it is then fetched from another CPU's caches. With fewer workers
    /// than CPUs that would put the workers of several processes on the same first CPUs, so it is off then.
    #[schemars(extend("x-default" = "when there is one worker for each CPU"))]
    pub(super) pin_workers: Key<bool>,

    /// Carry plain sessions in an event loop of our own, the engine. `false` gives every session to tokio, which costs
    /// more CPU and memory: for comparing the two, and as a way out should the engine ever misbehave.
    #[schemars(extend("default" = defaults::ENGINE))]
    pub(super) engine: Key<bool>,

    /// How long sessions may go on after SIGTERM before they are reset; `"0s"` resets them at once. Kubernetes kills
    /// after 30 s, and this leaves it room to write the last lines.
    #[schemars(extend("default" = time_text(defaults::DRAIN_TIMEOUT), "x-min" = "0s"))]
    pub(super) drain_timeout: Key<Time>,

    /// The memory of the process (resident) beyond which new sessions are reset at their accept, until it is below
    /// 95 % of that again: those that are there live on. The program itself takes some 15 MB: less than twice that may
    /// stay exceeded. `"off"` for none. By default nine tenths of what the cgroup allows, where it
    /// sets a limit, so that the kernel does not end the process with every session in it.
    #[schemars(extend("x-default" = "nine tenths of the cgroup's `memory.max`, if there is one", "examples" = ["2GiB"]))]
    pub(super) max_memory: Key<CountText>,

    /// What is logged, and how.
    pub(super) log: Key<Log>,

    /// Where `twinspan status` asks.
    pub(super) admin: Key<Admin>,

    /// Where health and counters are served.
    pub(super) telemetry: Key<Telemetry>,

    /// The SPIFFE Workload API, from which listeners and pools with `spiffe = true` take who we are and whom to believe.
    pub(super) spiffe: Key<Spiffe>,

    /// Clouds: what fails as one. Each endpoint stands in one of them.
    pub(super) cloud: Key<Named<Cloud>>,

    /// Pools: endpoints that serve one thing.
    pub(super) pool: Key<Items<Pool>>,

    /// Listeners: addresses that clients connect to.
    pub(super) listener: Key<Items<Listener>>,
}

/// What is logged, and how. Logging never makes traffic wait: lines that cannot be written are dropped and counted.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Log {
    /// The lowest level that is written: `error` (someone must act), `warn` (degraded), `info` (decisions and
    /// lifecycle), `debug` (sessions in detail), `trace` (bytes). The default tells what happened without a line for
    /// each step of a session.
    #[schemars(extend("default" = defaults::LOG_LEVEL.word()))]
    pub(super) level: Key<Word<Level>>,

    /// The shape of the lines: `auto` is text on a terminal, for people, and JSON elsewhere, for collectors.
    #[schemars(extend("default" = defaults::LOG_FORMAT.word()))]
    pub(super) format: Key<Word<LogFormat>>,

    /// Which sessions get a line when they end: `all`, only those that did not run their course (`errors`), or none
    /// (`off`). One line answers most questions about a session, so it is on; a load test may want less.
    #[schemars(extend("default" = defaults::LOG_SESSIONS.word()))]
    pub(super) sessions: Key<Word<SessionLines>>,

    /// A file to write to. Service managers and containers collect standard error by themselves.
    #[schemars(extend("x-default" = "standard error"))]
    pub(super) file: Key<FilePath>,
}

/// The admin API: `twinspan status` and its kin. It asks nobody for a password, so it listens on loopback or on a unix
/// socket only.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Admin {
    /// A loopback address, `"unix:/path.sock"` (made with mode 0600), or `"off"`. The default port is away from those
    /// of other proxies. When the default address is busy the proxy starts without it and warns; an address given here
    /// must be free.
    #[schemars(extend("default" = defaults::ADMIN.to_string()))]
    pub(super) bind: Key<AdminText>,
}

/// The telemetry listener: `/livez`, `/readyz`, `/metrics`. It serves nothing that changes anything.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Telemetry {
    /// An address, or `"off"`. The default is every address, because a kubelet and a Prometheus must reach it. When
    /// the default address is busy the proxy starts without it and warns; an address given here must be free.
    #[schemars(extend("default" = defaults::TELEMETRY.to_string()))]
    pub(super) bind: Key<TelemetryText>,
}

/// The SPIFFE Workload API of this machine, as a SPIRE agent serves it: it gives our X.509-SVID and the bundles of trust
/// domains, and new ones before the old ones expire. It takes a build with `--features spiffe`; every other build refuses
/// this table and `spiffe = true`.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Spiffe {
    /// Where it is asked: `"unix:///path.sock"`, or `"tcp://IP:PORT"` (without TLS: our key travels on it).
    #[schemars(extend(
        "x-default" = "what the environment has in `SPIFFE_ENDPOINT_SOCKET`",
        "examples" = ["unix:///run/spire/agent/public/api.sock"]
    ))]
    pub(super) socket: Key<WorkloadText>,
}

/// A cloud. `[cloud.NAME]` alone is enough: the name is what endpoints, policies, logs and metrics use.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Cloud {
    /// The region, as the provider names it. For people and labels; it decides nothing.
    #[schemars(extend("x-default" = "none"))]
    pub(super) region: Key<Name>,

    /// What a gigabyte that leaves this cloud costs, in US dollars. Shown in `twinspan status`. A string, because
    /// prices are decimal and floats are not.
    #[schemars(extend("x-default" = "none"))]
    pub(super) egress_usd_per_gb: Key<Decimal>,

    /// Addresses of this machine that connections to this cloud come from, at most one of each family: for a firewall
    /// over there, or a second uplink here. Probes use them too. By default the routes decide, and they know best.
    #[schemars(length(min = 1, max = 2), extend("x-default" = "the kernel chooses by its routes"))]
    pub(super) source: Key<Items<SourceText>>,

    /// The interface that connections to this cloud leave by, whatever the routes say (SO_BINDTODEVICE): a tunnel,
    /// say. Its replies must come back by it. Probes use it too; while it is gone, the endpoints of the cloud are down.
    #[schemars(extend("x-default" = "the kernel chooses by its routes"))]
    pub(super) interface: Key<InterfaceText>,

    /// The congestion control of connections to this cloud: `bbr` for a long path that loses packets, `cubic`, `reno`.
    /// The machine must have it. By default that of the machine: what is best depends on the path and on who shares it.
    #[schemars(extend("x-default" = "`net.ipv4.tcp_congestion_control`"))]
    pub(super) congestion: Key<CongestionText>,

    /// TCP_USER_TIMEOUT towards endpoints of this cloud, in place of the listener's: how long sent bytes may stay
    /// unacknowledged. It is in force only while bytes are on their way.
    #[schemars(extend("x-default" = "that of the listener"))]
    pub(super) user_timeout: Key<Time>,

    /// TCP keepalive towards endpoints of this cloud, in place of the listener's, for a firewall between that forgets
    /// sooner or charges for packets.
    #[schemars(extend("x-default" = "that of the listener"))]
    pub(super) keepalive: Key<KeepaliveTable>,

    /// The send buffer, `"4KiB"` to `"1GiB"`; the kernel cuts it to `net.core.wmem_max`. By default the kernel adapts it
    /// to each connection, which a fixed size ends: it fits paths with more bandwidth x delay than `tcp_wmem` allows, or
    /// saves memory.
    #[schemars(extend("x-default" = "adapted by the kernel, within `net.ipv4.tcp_wmem`"))]
    pub(super) send_buffer: Key<SizeText>,

    /// The receive buffer, likewise; the kernel cuts it to `net.core.rmem_max`.
    #[schemars(extend("x-default" = "adapted by the kernel, within `net.ipv4.tcp_rmem`"))]
    pub(super) receive_buffer: Key<SizeText>,

    /// TCP_NOTSENT_LOWAT: at most about this much waits in the kernel unsent, so that bytes wait at their origin and not
    /// here. `"128KiB"` saves memory on slow paths; less costs throughput, which is why there is no default.
    #[schemars(extend("x-default" = "`net.ipv4.tcp_notsent_lowat`: no limit"))]
    pub(super) notsent_lowat: Key<SizeText>,

    /// TCP Fast Open: with an endpoint that was connected to before, the first bytes of a client travel with the SYN and
    /// save a round trip. The connect waits for those bytes: a service that speaks first would never be reached. The
    /// network may deliver them twice, and an endpoint that refuses is noticed too late to try another one, which is
    /// why it is off. Probes do without.
    #[schemars(extend("default" = defaults::FAST_OPEN))]
    pub(super) fast_open: Key<bool>,

    /// The DSCP mark of packets to this cloud: a number from 0 to 63, or a class (`"EF"`, `"AF21"`, `"CS1"`, `"LE"`). By
    /// default none: networks between clouds erase most marks, and some treat them in ways of their own.
    #[schemars(extend("x-default" = "none: 0"))]
    pub(super) dscp: Key<Mark>,

    /// New sessions a second that this cloud can take while it comes back: its share does not rise beyond that. Counted
    /// are all new sessions of the pools that use it.
    #[schemars(range(min = 1, max = 10_000_000), extend("x-default" = "no limit"))]
    pub(super) capacity: Key<u32>,

    /// With less than this share of its endpoints good, in percent, the cloud is down as a whole: every pool of which
    /// a greater part is good in another leaves it at once, instead of losing one endpoint after the other. With three of
    /// four gone, the rest would be crushed. A pool whose own endpoints there are good stays.
    #[schemars(range(min = 0, max = 99), extend("default" = defaults::DOWN_BELOW))]
    pub(super) down_below: Key<u8>,

    /// With more than this share of its endpoints good again, in percent, it comes back. It must be above `down_below`:
    /// well above, so that the cloud does not come and go with one endpoint.
    #[schemars(range(min = 1, max = 99), extend("default" = defaults::UP_ABOVE))]
    pub(super) up_above: Key<u8>,

    /// When it comes back, its share of new sessions rises from a tenth to all of it over this time, as caches fill and
    /// pools of connections grow. `"0s"` is at once. Sessions elsewhere are not cut.
    #[schemars(extend("x-default" = "30s; at once in pools with `slow_start = \"0s\"`", "x-min" = "0s"))]
    pub(super) recovery_time: Key<Time>,
}

/// TCP keepalive: of both sides of a session, or of a cloud's endpoints. A silent peer is found after 60 + 3 x 10 s: under the 350 s of AWS NLB, the
/// 4 min of Azure and the 10 min of Google firewalls, so that they never forget a live session.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct KeepaliveTable {
    /// Silence before the first probe, in whole seconds.
    #[schemars(extend("default" = time_text(defaults::KEEPALIVE.idle)))]
    pub(super) idle: Key<Seconds>,

    /// Time between probes, in whole seconds.
    #[schemars(extend("default" = time_text(defaults::KEEPALIVE.interval)))]
    pub(super) interval: Key<Seconds>,

    /// Unanswered probes after which the peer counts as dead.
    #[schemars(range(min = 1, max = 127), extend("default" = defaults::KEEPALIVE.count))]
    pub(super) count: Key<u32>,
}

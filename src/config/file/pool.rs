//! Pools as they are written in the file.

use schemars::JsonSchema;
use serde::Deserialize;

use super::{
    super::{
        Balance, Replay, WhenAllDown,
        defaults::{self, PROBE_FALL, PROBE_JITTER, PROBE_RISE, WEIGHT},
        keys::{Items, Key, Named, Share, Status},
        values::{
            AddressText, CountText, HttpHost, HttpPath, Name, ProbeText, SizeText, Time, status_text,
            time_text,
        },
        words::{PolicyWord, ProxyOutWord, Vocabulary as _, Word},
    },
    PoolTlsTable,
};

/// A pool: endpoints that serve one thing, how one of them is chosen, and how it is known which are up.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["name", "endpoint"]))]
pub(in crate::config) struct Pool {
    /// The name that listeners use. Unique.
    #[schemars(extend("examples" = ["web"]))]
    pub(in crate::config) name: Key<Name>,

    /// How a cloud is chosen for a new session: `failover` (the first cloud of `order` that has an endpoint up takes
    /// everything) or `weighted` (each cloud takes its share of `weights`). Failover is the default because it needs
    /// no numbers and sends nothing where it was not expected.
    #[schemars(extend("default" = PolicyWord::Failover.word()))]
    pub(in crate::config) policy: Key<Word<PolicyWord>>,

    /// For `failover`: every cloud of the pool, best first.
    #[schemars(extend("x-default" = "the order in which the endpoints of the pool name them"))]
    pub(in crate::config) order: Key<Items<Name>>,

    /// For `weighted`: the share of each cloud of the pool, 0 to 1000. A cloud that is down gives its share to the
    /// others; one with 0 is used only when nothing else is up.
    #[schemars(extend("x-default" = "none: `weighted` needs it"))]
    pub(in crate::config) weights: Key<Named<Share>>,

    /// How an endpoint is chosen within the cloud: `least-sessions` (fewer sessions of two random ones),
    /// `least-latency` (smaller connect time of two), `round-robin`, `random`, or `source-hash` (one client address
    /// keeps its endpoint). The default adapts to sessions of unequal length, which TCP sessions are.
    #[schemars(extend("default" = defaults::BALANCE.word()))]
    pub(in crate::config) balance: Key<Word<Balance>>,

    /// With every endpoint down: `try_anyway` (as if all were up; probes can be wrong, and an attempt costs little) or
    /// `refuse` (reset new sessions at once).
    #[schemars(extend("default" = defaults::WHEN_ALL_DOWN.word()))]
    pub(in crate::config) when_all_down: Key<Word<WhenAllDown>>,

    /// Time for one attempt to connect, after which another endpoint is tried. A round trip around the world takes 0.3 s, and
    /// the kernel repeats a lost SYN only after 1 s: by then another endpoint has answered. Where no other is up, an
    /// attempt goes on until the time for all of them is over: this time `attempts`. Then the client is reset.
    #[schemars(extend("default" = time_text(defaults::CONNECT_TIMEOUT)))]
    pub(in crate::config) connect_timeout: Key<Time>,

    /// Endpoints that one session may try, one after the other: by default two in the first cloud and two in the next.
    #[schemars(range(min = 1, max = 16), extend("default" = defaults::ATTEMPTS))]
    pub(in crate::config) attempts: Key<u8>,

    /// Spare connections: for each cloud in use the engine keeps this many established to its endpoints, unused, so that
    /// a new session need not wait for the round trip of a connect. It is the number for all workers together, whatever
    /// their count, as each costs the endpoint something; with fewer than there are workers, some sessions find none.
    /// They are spread by weight. One that is 20 to 30 s old is replaced by a fresh one.
    ///
    /// Only sessions that the engine begins are given one: those that need a connection and no more. A pool with
    /// `[pool.tls]`, `proxy_header`, `bandwidth`, `first_byte_timeout`, `replay`, `client_source` or
    /// `max_endpoint_sessions` keeps none, nor does one whose listeners all have `[listener.tls]`, `proxy_header`,
    /// `intercept` or `session_bandwidth`; `check` warns of both. Where only some have, the sessions of the others are given
    /// spares. Routes by server name do no harm.
    ///
    /// Give it only where the endpoint bears connections that say nothing for half a minute, and does nothing with one
    /// before the first byte: HTTP, TLS, Redis, memcached, PostgreSQL (a backend process each, which counts towards
    /// `max_connections`). Not with MySQL (10 s to log in, and a host that often fails to is blocked), SSH
    /// (`MaxStartups`), or a service with a thread for each connection. A greeting is kept and passed on, but may be
    /// half a minute old. Where the endpoint closes idle ones, only those are used that are younger than half that time.
    /// Fast Open is not used for them. If the endpoint dies silently, or closes its connections (a restart) less than a
    /// round trip ago, the first bytes of a client may go to a spare that nobody reads, and cannot be sent again to another
    /// endpoint: the client sees the end. A client that has sent nothing yet is given another connection.
    #[schemars(range(min = 0, max = 1024), extend("default" = defaults::PRECONNECT))]
    pub(in crate::config) preconnect: Key<u16>,

    /// Race an attempt that takes long with an attempt at another endpoint, in another cloud where there is one. The first
    /// to connect wins; the other one is closed without a byte sent. "Long" is half as long again as 95 % of the connects
    /// to the cloud took, at least 20 ms and at most 300 ms. `false` for services that do something when a client merely
    /// connects: they would be connected to twice now and then.
    #[schemars(extend("default" = defaults::HEDGE))]
    pub(in crate::config) hedge: Key<bool>,

    /// Attempts of that kind in percent of the sessions of the last ten seconds, so that a slow day does not double the
    /// load. The first ten in any ten seconds are always allowed.
    /// No budget is needed to leave an endpoint where five attempts in a row were in vain for one that answers.
    #[schemars(range(min = 0, max = 100), extend("default" = defaults::HEDGE_BUDGET))]
    pub(in crate::config) hedge_budget: Key<u8>,

    /// How long an endpoint may take to its first byte once its client has sent something; every further byte of the
    /// client starts that time anew. One that takes longer, or ends the session before, has not answered: that counts
    /// against it, as a failed connect does. Only for services of which the client speaks first and that always answer
    /// (HTTP, TLS, Redis, PostgreSQL); not for one-way protocols. Until the first byte such a session costs more CPU.
    /// Where TLS ends or begins here, it is not watched, and nothing is sent again.
    #[schemars(extend("x-default" = "off"))]
    pub(in crate::config) first_byte_timeout: Key<Time>,

    /// Whether a session may move on to another endpoint when the first one has not answered: `off`, or
    /// `until_first_byte`, which sends again what the client has sent so far, as long as no byte has come back. Only where
    /// it does no harm if two endpoints see the same request: reads, TLS handshakes. Without `first_byte_timeout` only an
    /// endpoint that ends the session is left, not one that stays silent.
    #[schemars(extend("default" = defaults::REPLAY.word()))]
    pub(in crate::config) replay: Key<Word<Replay>>,

    /// The most that is sent again, `"4KiB"` to `"1MiB"`: a client that sends more before the first byte stays where it is.
    /// A session that waits for its first byte takes as much memory as its client has sent.
    #[schemars(extend("default" = "16KiB"))]
    pub(in crate::config) replay_bytes: Key<SizeText>,

    /// Attempts at one endpoint that may be under way at once. A storm of clients after a failover then does not overrun
    /// its accept queue; they wait in `connect_queue`. At a round trip of 30 ms, 256 are 8,000 new sessions a second.
    #[schemars(range(min = 1, max = 1_000_000), extend("default" = defaults::MAX_CONNECTING))]
    pub(in crate::config) max_connecting: Key<u32>,

    /// Sessions that may wait for their turn to be connected to one endpoint, first come first served, until the time for
    /// all attempts is over. Further ones try another endpoint or are reset.
    #[schemars(range(min = 0, max = 1_000_000), extend("default" = defaults::CONNECT_QUEUE))]
    pub(in crate::config) connect_queue: Key<u32>,

    /// TLS towards the endpoints.
    pub(in crate::config) tls: Key<PoolTlsTable>,

    /// A PROXY header in front of each session, before TLS towards the endpoint, so that endpoints know the client: `off`,
    /// `v1` (a line of text) or `v2`. Every endpoint must expect it. Probes that talk send one that says they are our own.
    ///
    /// Both name two addresses: of the client, and the one that it asked for (its original destination with `intercept`,
    /// else the listener's own); where a header came in that is believed, the ones in that.
    ///
    /// `v2` says besides, where it is known: AUTHORITY, the server name in the ClientHello, if that is looked at (for TLS
    /// that ends here, or for a route); ALPN, the protocol that was agreed on in TLS that ended here; SSL, where TLS ended
    /// here: its version, whether the client showed a certificate and it was right, and the common name (SSL_CN) in that,
    /// if it has exactly one, without control characters; UNIQUE_ID; and CRC32C, always. The unique id is 16 hexadecimal
    /// digits that are others in every process, a dash, and the number of the session in the log, whose line then has it as
    /// `unique_id`.
    ///
    /// Of a header of version 2 that came in, `v2` passes on unchanged: UNIQUE_ID, in place of our own; AUTHORITY (if it is
    /// UTF-8) and ALPN, unless a ClientHello was looked at here; and the ids of private links of AWS, Google Cloud and
    /// Azure. Nothing else: neither SSL nor what is unknown. What is longer than 255 bytes (UNIQUE_ID: 128, ids of private
    /// links: 1,024) is left out.
    #[schemars(extend("default" = ProxyOutWord::Off.word()))]
    pub(in crate::config) proxy_header: Key<Word<ProxyOutWord>>,

    /// Connect to endpoints from the client's own address. Endpoints must answer by this machine, which takes routes and
    /// firewall rules, and this process CAP_NET_RAW or CAP_NET_ADMIN. It goes before the `source` of a cloud; the port is
    /// the kernel's choice. A client of one family is not connected to an endpoint of the other: such an attempt fails as
    /// `local`. Probes come from this machine.
    #[schemars(extend("default" = false))]
    pub(in crate::config) client_source: Key<bool>,

    /// Sessions of one endpoint at once. Further ones take another endpoint; where all are full they wait, as in
    /// `connect_queue`, until the time for all attempts is over. No spare connections are kept then.
    #[schemars(range(min = 1, max = 100_000_000), extend("x-default" = "no limit"))]
    pub(in crate::config) max_endpoint_sessions: Key<u32>,

    /// Bytes a second that all sessions of the pool together may carry in each direction, such as `"100MiB"`. Sessions with
    /// such a limit are not carried by the engine.
    #[schemars(extend("x-default" = "no limit"))]
    pub(in crate::config) bandwidth: Key<CountText>,

    /// How long an endpoint that comes back is given less than its weight, so that it fills its caches before it
    /// carries its full share. `"0s"` is off.
    #[schemars(extend("default" = time_text(defaults::SLOW_START), "x-min" = "0s"))]
    pub(in crate::config) slow_start: Key<Time>,

    /// Probes.
    #[schemars(extend("x-default" = "no probes: every endpoint counts as up, and `check` warns"))]
    pub(in crate::config) health: Key<HealthTables>,

    /// What sessions that fail do to an endpoint.
    pub(in crate::config) ejection: Key<EjectionTable>,

    /// What restrains removals.
    pub(in crate::config) restraint: Key<RestraintTable>,

    /// Endpoints: at least one.
    #[schemars(length(min = 1))]
    pub(in crate::config) endpoint: Key<Items<Endpoint>>,
}

/// One line of a pool: an address, or a name that resolves to several.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["address", "cloud"]))]
pub(in crate::config) struct Endpoint {
    /// `"10.0.0.1:5432"`, `"[2001:db8::1]:5432"` or `"db.example.com:5432"`. Of a name, every address is used. It
    /// is looked up every 30 s, whatever its time to live, and a second after a failure; while the resolver fails, the last known
    /// addresses are kept.
    #[schemars(extend("examples" = ["10.0.0.1:5432"]))]
    pub(in crate::config) address: Key<AddressText>,

    /// The cloud it stands in. There must be a `[cloud.NAME]` for it.
    #[schemars(extend("examples" = ["aws"]))]
    pub(in crate::config) cloud: Key<Name>,

    /// Its region.
    #[schemars(extend("x-default" = "the region of its cloud"))]
    pub(in crate::config) region: Key<Name>,

    /// Its zone. For people and labels.
    #[schemars(extend("x-default" = "none"))]
    pub(in crate::config) zone: Key<Name>,

    /// Its weight among the endpoints of its cloud. Alike unless said otherwise.
    #[schemars(range(min = 1, max = 1000), extend("default" = WEIGHT))]
    pub(in crate::config) weight: Key<u32>,
}

/// What sessions that fail do to an endpoint: too many of them take it out for a while, whatever its probes say.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct EjectionTable {
    /// `false`: sessions take nothing out. They know sooner than probes, and see what probes do not, so it is on.
    #[schemars(extend("default" = defaults::EJECTION))]
    pub(in crate::config) enabled: Key<bool>,

    /// Failed sessions in a row that eject an endpoint: those that could not connect, were overtaken by another
    /// endpoint, or got no first byte. One or two happen to a healthy one; five hardly do. Half of at least ten within
    /// 10 s eject it too. Two are enough while its cloud has just lost another one in that way and no byte has come
    /// from it since.
    #[schemars(range(min = 1, max = 1000), extend("default" = defaults::EJECTION_FAILURES))]
    pub(in crate::config) failures: Key<u32>,

    /// How long the first ejection lasts; each further one twice as long, give or take a tenth. Then one session at a
    /// time may try the endpoint, and a good one ends it. A minute of good standing takes one ejection off the count.
    #[schemars(extend("default" = time_text(defaults::EJECTION_BASE), "x-min" = "100ms"))]
    pub(in crate::config) base: Key<Time>,

    /// The longest ejection.
    #[schemars(extend("default" = time_text(defaults::EJECTION_MAX), "x-min" = "100ms"))]
    pub(in crate::config) max: Key<Time>,

    /// The share of the pool's weight, in percent, that may be ejected at a time. What is left must carry the load.
    #[schemars(range(min = 0, max = 100), extend("default" = defaults::MAX_EJECTED))]
    pub(in crate::config) max_ejected: Key<u8>,
}

/// What restrains removals: probes can be wrong about everything at once. Endpoints of a cloud that is down as a whole
/// are not counted. Nothing restrains the way back.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct RestraintTable {
    /// The share of the pool's weight, in percent, that probes may take out within a minute while no session has
    /// failed. The default leaves half of a pool for a minute, which is time to notice.
    #[schemars(range(min = 0, max = 100), extend("default" = defaults::MAX_REMOVAL))]
    pub(in crate::config) max_removal: Key<u8>,

    /// The share of the pool's weight, in percent, below which nothing more is taken out. A pool that is cut down
    /// further fails from overload, whatever the probes were right about.
    #[schemars(range(min = 0, max = 100), extend("default" = defaults::FLOOR))]
    pub(in crate::config) floor: Key<u8>,
}

/// How the endpoints of a pool are probed: one of the two tables.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct HealthTables {
    /// A probe that connects, and talks if there is something to say.
    pub(in crate::config) tcp: Key<TcpHealth>,

    /// A probe that asks over HTTP/1.1.
    pub(in crate::config) http: Key<HttpHealth>,
}

/// A probe that connects. A hung process still accepts connections, so give `expect`, and `send` if the service
/// waits to be asked.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct TcpHealth {
    /// Time between two probes of an endpoint: a failure is noticed within a second, at one small connection a second.
    #[schemars(extend("default" = time_text(defaults::PROBE_INTERVAL), "x-min" = "10ms"))]
    pub(in crate::config) interval: Key<Time>,

    /// Time for one probe: above a round trip around the world (0.3 s), below the connect timeout of a session.
    #[schemars(extend("default" = time_text(defaults::PROBE_TIMEOUT)))]
    pub(in crate::config) timeout: Key<Time>,

    /// Time between two probes while the last ones disagree with the verdict: it is wanted soon, and the doubt is
    /// short. By default not longer than `interval`.
    #[schemars(extend("default" = time_text(defaults::PROBE_FAST_INTERVAL), "x-min" = "10ms"))]
    pub(in crate::config) fast_interval: Key<Time>,

    /// Good probes in a row that make an endpoint up. One may be luck.
    #[schemars(range(min = 1, max = 100), extend("default" = PROBE_RISE))]
    pub(in crate::config) rise: Key<u32>,

    /// Bad probes in a row that make it down. One or two may be packet loss: at 3 % loss, three in a row are 1 in
    /// 37,000.
    #[schemars(range(min = 1, max = 100), extend("default" = PROBE_FALL))]
    pub(in crate::config) fall: Key<u32>,

    /// The share by which each interval is varied, so that proxies that start together drift apart.
    #[schemars(range(min = 0.0, max = 1.0), extend("default" = PROBE_JITTER))]
    pub(in crate::config) jitter: Key<f64>,

    /// The port to probe.
    #[schemars(range(min = 1, max = 65535), extend("x-default" = "the port of the endpoint"))]
    pub(in crate::config) port: Key<u16>,

    /// Whether the probe speaks TLS as `[pool.tls]` says, with the endpoint's name and without resuming anything. A probe
    /// that only connects shakes hands too: an endpoint whose TLS is broken serves nobody. Where the
    /// pool has a `proxy_header`, a probe of the endpoint's own port begins with one that names no client.
    #[schemars(extend("x-default" = "as the pool; no TLS at another `port`"))]
    pub(in crate::config) tls: Key<bool>,

    /// Text to send first. TOML escapes work: `"PING\r\n"`.
    #[schemars(extend("x-default" = "nothing"))]
    pub(in crate::config) send: Key<ProbeText>,

    /// Text that the answer must contain. Without `send` it is what the service says first.
    #[schemars(extend("x-default" = "nothing"))]
    pub(in crate::config) expect: Key<ProbeText>,
}

/// A probe that asks over HTTP/1.1. The same timings as of `tcp`, and what to ask.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct HttpHealth {
    /// Time between two probes of an endpoint: a failure is noticed within a second, at one small request a second.
    #[schemars(extend("default" = time_text(defaults::PROBE_INTERVAL), "x-min" = "10ms"))]
    pub(in crate::config) interval: Key<Time>,

    /// Time for one probe. An HTTP answer takes a second round trip and some work.
    #[schemars(extend("default" = time_text(defaults::HTTP_PROBE_TIMEOUT)))]
    pub(in crate::config) timeout: Key<Time>,

    /// Time between two probes while the last ones disagree with the verdict: it is wanted soon, and the doubt is
    /// short. By default not longer than `interval`.
    #[schemars(extend("default" = time_text(defaults::PROBE_FAST_INTERVAL), "x-min" = "10ms"))]
    pub(in crate::config) fast_interval: Key<Time>,

    /// Good probes in a row that make an endpoint up. One may be luck.
    #[schemars(range(min = 1, max = 100), extend("default" = PROBE_RISE))]
    pub(in crate::config) rise: Key<u32>,

    /// Bad probes in a row that make it down. One or two may be packet loss: at 3 % loss, three in a row are 1 in
    /// 37,000.
    #[schemars(range(min = 1, max = 100), extend("default" = PROBE_FALL))]
    pub(in crate::config) fall: Key<u32>,

    /// The share by which each interval is varied, so that proxies that start together drift apart.
    #[schemars(range(min = 0.0, max = 1.0), extend("default" = PROBE_JITTER))]
    pub(in crate::config) jitter: Key<f64>,

    /// The port to probe.
    #[schemars(range(min = 1, max = 65535), extend("x-default" = "the port of the endpoint"))]
    pub(in crate::config) port: Key<u16>,

    /// Whether the probe speaks TLS as `[pool.tls]` says, with the endpoint's name and without resuming anything. It
    /// offers `http/1.1`, whatever `alpn` says. Where the pool has a `proxy_header`, a probe of the endpoint's own port begins with one that names no client.
    #[schemars(extend("x-default" = "as the pool; no TLS at another `port`"))]
    pub(in crate::config) tls: Key<bool>,

    /// The path to get.
    #[schemars(extend("default" = defaults::HTTP_PROBE_PATH))]
    pub(in crate::config) path: Key<HttpPath>,

    /// The Host header.
    #[schemars(extend("x-default" = "the address of the endpoint"))]
    pub(in crate::config) host: Key<HttpHost>,

    /// Status codes that count as good: numbers, classes (`"2xx"`) and ranges (`"200-299"`). A redirect is an answer
    /// of a service that works.
    #[schemars(length(min = 1), extend("default" = defaults::HTTP_PROBE_STATUS.map(status_text)))]
    pub(in crate::config) status: Key<Items<Status>>,

    /// Text that the first 64 KiB of the body must contain.
    #[schemars(extend("x-default" = "nothing"))]
    pub(in crate::config) body: Key<ProbeText>,
}

//! Every default, in one place, with its reason.

use std::{net::SocketAddr, time::Duration};

use super::{Balance, Level, LogFormat, Replay, SessionLines, WhenAllDown};
use crate::net::Keepalive;

/// SIGTERM to the last reset. Kubernetes kills after 30 s; this leaves it room to write the last lines.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(25);

/// What happened, without a line for each step of a session.
pub const LOG_LEVEL: Level = Level::Info;

/// People read terminals, collectors read the rest.
pub const LOG_FORMAT: LogFormat = LogFormat::Auto;

/// It costs less CPU and memory than tokio does.
pub const ENGINE: bool = true;

/// One line answers most questions about a session.
pub const LOG_SESSIONS: SessionLines = SessionLines::All;

/// Loopback, and away from the ports of Envoy (9901), Caddy (2019), linkerd (4191), Traefik (8080), HAProxy (8404).
pub const ADMIN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9797);

/// Every address: a kubelet and a Prometheus must reach it, and it serves nothing but health and counters.
pub const TELEMETRY: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), 9798);

/// It adapts to sessions of unequal length, which TCP sessions are.
pub const BALANCE: Balance = Balance::LeastSessions;

/// Probes can be wrong, and an attempt costs little.
pub const WHEN_ALL_DOWN: WhenAllDown = WhenAllDown::TryAnyway;

/// One attempt to connect. A round trip around the world takes 0.3 s, and the kernel repeats a lost SYN only after 1 s:
/// by then another endpoint has answered.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Attempts for one session: two in the first cloud and two in the next. With three clouds it is one in each, and one more.
pub const ATTEMPTS: u8 = 4;

/// Not every endpoint bears connections that say nothing, so somebody must have said that this one does.
pub const PRECONNECT: u16 = 0;

/// Few services do anything when a client merely connects, and without it a client waits for a silent endpoint.
pub const HEDGE: bool = true;

/// A slow day may cost a fifth more connects, not twice as many.
pub const HEDGE_BUDGET: u8 = 20;

/// Whether a request may be made twice, only the operator knows.
pub const REPLAY: Replay = Replay::Off;

/// Requests and TLS hellos are smaller.
pub const REPLAY_BYTES: u32 = 16 * 1024;

/// Small enough for any accept queue, and 8,000 new sessions a second at 30 ms.
pub const MAX_CONNECTING: u32 = 256;

/// The clients of a cloud that has just failed; at 30 ms they are connected within a second.
pub const CONNECT_QUEUE: u32 = 8192;

/// An endpoint that comes back fills its caches before it carries its full share.
pub const SLOW_START: Duration = Duration::from_secs(10);

/// A database session may sleep for long; keepalive, not this, finds dead peers.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(3600);

/// A peer that has ended its direction and hears nothing for a minute is a leak more often than a slow answer.
pub const HALF_CLOSE_TIMEOUT: Duration = Duration::from_secs(60);

/// `[::]` takes both families, whatever `net.ipv6.bindv6only` says: one listener, one meaning on every machine.
pub const ONLY_V6: bool = false;

/// The kernel cuts it to `net.core.somaxconn` (4096 since Linux 5.4).
pub const BACKLOG: u32 = 4096;

/// A silent peer is found after 60 + 3 x 10 s: under the 350 s of AWS NLB, the 4 min of Azure and the 10 min of Google
/// firewalls, so that they never forget a live session.
pub const KEEPALIVE: Keepalive =
    Keepalive { idle: Duration::from_secs(60), interval: Duration::from_secs(10), count: 3 };

/// Unacknowledged bytes mean a dead peer after this, not after the kernel's 15 minutes.
pub const USER_TIMEOUT: Duration = Duration::from_secs(30);

/// A connect with first bytes in it succeeds before the endpoint has said anything: no other one could be tried.
pub const FAST_OPEN: bool = false;

/// Weight of an endpoint or a cloud.
pub const WEIGHT: u32 = 1;

/// Probes of one endpoint: a failure is noticed within a second, at one small connection a second.
pub const PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// While in doubt a verdict is wanted soon, and the doubt is short.
pub const PROBE_FAST_INTERVAL: Duration = Duration::from_millis(100);

/// Above a round trip around the world (0.3 s), below the connect timeout of a session.
pub const PROBE_TIMEOUT: Duration = Duration::from_millis(500);

/// An HTTP answer takes a second round trip and some work.
pub const HTTP_PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// One good probe may be luck.
pub const PROBE_RISE: u32 = 2;

/// One or two bad probes may be packet loss: at 3 % loss three in a row are 1 in 37,000.
pub const PROBE_FALL: u32 = 3;

/// Proxies that start together drift apart.
pub const PROBE_JITTER: f64 = 0.1;

/// What is there on most servers.
pub const HTTP_PROBE_PATH: &str = "/";

/// A redirect is an answer of a service that works.
pub const HTTP_PROBE_STATUS: [(u16, u16); 2] = [(200, 299), (300, 399)];

/// Sessions know sooner than probes, and see what probes do not.
pub const EJECTION: bool = true;

/// One or two failures in a row happen to a healthy endpoint; five hardly do.
pub const EJECTION_FAILURES: u32 = 5;

/// Long enough for a restart, short enough not to be missed.
pub const EJECTION_BASE: Duration = Duration::from_secs(5);

/// An endpoint that stays bad is tried every five minutes.
pub const EJECTION_MAX: Duration = Duration::from_secs(300);

/// What is left must carry the load of what is ejected: twice its own is what a pool is usually built for.
pub const MAX_EJECTED: u8 = 50;

/// Probes that are wrong about everything leave half of a pool for a minute, which is time to notice.
pub const MAX_REMOVAL: u8 = 50;

/// A pool that is cut down further fails from overload, whatever the probes were right about.
pub const FLOOR: u8 = 20;

/// With three of four endpoints gone the rest of a cloud would be crushed.
pub const DOWN_BELOW: u8 = 25;

/// Well above `DOWN_BELOW`, so that a cloud does not come and go with one endpoint.
pub const UP_ABOVE: u8 = 50;

/// Caches fill and pools of connections grow within half a minute.
pub const RECOVERY_TIME: Duration = Duration::from_secs(30);

/// A balancer writes its header at once; five seconds bear a lost segment or two.
pub const HEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// A handshake takes two or three round trips; ten seconds bear the worst path, and bound what a silent client holds.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Twice the longest hello that is seen in the field (post-quantum shares, a long session ticket).
pub const HELLO_BYTES: u32 = 32 * 1024;

/// A ticket key that leaks opens the sessions of half this time. rustls replaces its keys after six hours at the latest.
pub const TICKET_LIFETIME: Duration = Duration::from_secs(12 * 3600);

/// At 16 KiB each, clients that never finish a handshake can hold 160 MB.
pub const MAX_HANDSHAKES: u32 = 10_000;

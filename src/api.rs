//! What the admin API says: the JSON of `/api/v1/status`, `/api/v1/events` and `/api/v1/sessions`, for the server that writes it and
//! the CLI that reads it. Times are RFC 3339 in UTC, bytes and counts are totals since the start unless the name says
//! otherwise, and a field that is not known is `null`. A reader ignores fields that it does not know.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Everything `status` shows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The process.
    pub process: Process,
    /// Sessions of the whole process.
    pub sessions: Sessions,
    /// Clouds, in the order of the config.
    pub clouds: Vec<Cloud>,
    /// Pools, in the order of the config.
    pub pools: Vec<Pool>,
    /// Listeners.
    pub listeners: Vec<Listener>,
    /// The certificates of listeners and pools that have TLS.
    #[serde(default)]
    pub certificates: Vec<Certificates>,
    /// The last things that happened, oldest first.
    pub events: Vec<Event>,
}

/// The process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Process {
    /// The version of the program.
    pub version: String,
    /// The process's number.
    pub pid: u32,
    /// `starting`, `ready`, `draining` or `stopping`.
    pub phase: String,
    /// The number of the snapshot in force.
    pub generation: u64,
    /// When it started.
    pub started: String,
    /// Seconds since then.
    pub uptime_seconds: f64,
    /// Data-plane workers.
    pub workers: usize,
    /// How the last reload ended, if there was one.
    pub last_reload: Option<Reload>,
    /// Reloads so far.
    pub reloads: Reloads,
    /// Settings that the file has otherwise since a reload, and that take effect only at a restart.
    #[serde(default)]
    pub needs_restart: Vec<String>,
}

/// How a reload ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reload {
    /// When.
    pub time: String,
    /// True when the new config is in force.
    pub ok: bool,
    /// Why the old one stayed.
    pub error: Option<String>,
}

/// Reloads by outcome.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloads {
    /// The new config came into force.
    pub applied: u64,
    /// The old config stayed.
    pub refused: u64,
}

/// Sessions of the whole process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sessions {
    /// Alive now.
    pub active: u64,
    /// Accepted by the listeners in force.
    pub accepted: u64,
    /// Ended by a panic of their task.
    pub panicked: u64,
    /// Session lines that found the log queue full or could not be written.
    pub log_lines_dropped: u64,
}

/// A cloud. Its numbers are sums over its endpoints, those that have left the config included while they have sessions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cloud {
    /// Its name.
    pub name: String,
    /// Its region, as the provider names it.
    pub region: Option<String>,
    /// What a gigabyte leaving it costs in US dollars, as written in the config.
    pub egress_usd_per_gb: Option<String>,
    /// `up` (every endpoint is), `degraded` (some are), `down` or `unknown`.
    pub state: String,
    /// What holds of it as a whole.
    #[serde(default)]
    pub judged: CloudVerdict,
    /// Endpoints that are up.
    pub endpoints_up: u64,
    /// All its endpoints.
    pub endpoints: u64,
    /// Sessions now.
    pub sessions_active: u64,
    /// Sessions that connected.
    pub sessions_total: u64,
    /// Bytes to its endpoints.
    pub to_upstream: u64,
    /// Bytes from its endpoints.
    pub to_client: u64,
    /// The last seconds.
    pub rates: Option<Rates>,
}

/// What holds of a cloud as one failure domain.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CloudVerdict {
    /// `up`: its endpoints are judged one by one. `down`: no pool that has another cloud uses it. `recovering`: its share
    /// of new sessions rises.
    pub verdict: String,
    /// While it is down: the evidence.
    pub evidence: Option<String>,
    /// While it is down: since when.
    pub since: Option<String>,
    /// While it comes back: the part of its usual new sessions that it gets, in percent.
    pub percent: Option<u32>,
}

/// Rates over the last ten seconds; `null` until the first second has passed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Rates {
    /// New sessions.
    pub sessions_per_second: f64,
    /// Bytes to endpoints.
    pub to_upstream_per_second: f64,
    /// Bytes to clients.
    pub to_client_per_second: f64,
}

/// A pool.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pool {
    /// Its name.
    pub name: String,
    /// How clouds are chosen: `failover` or `weighted`.
    pub policy: String,
    /// The order of clouds, for `failover`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub order: Vec<String>,
    /// The weights of clouds, for `weighted`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub weights: Vec<CloudWeight>,
    /// How an endpoint is chosen within a cloud.
    pub balance: String,
    /// With nothing left that may be used, what happens to new sessions: `try_anyway` or `refuse`.
    pub all_down: Option<String>,
    /// The clouds that new sessions go to now.
    pub shares: Vec<CloudShare>,
    /// What is taken out of it, and what bounds that.
    #[serde(default)]
    pub restraint: Restraint,
    /// Names that have not been resolved yet.
    pub unresolved: Vec<String>,
    /// Names that do not resolve, and since when: what they resolved to before is kept.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub failing: BTreeMap<String, String>,
    /// What the attempts of its sessions have come to.
    #[serde(default)]
    pub attempts: Attempts,
    /// Its endpoints.
    pub endpoints: Vec<Endpoint>,
}

/// What is taken out of a pool and what bounds that, in percent of its weight. Endpoints in a cloud that is down as a whole,
/// and those that no probe has found good yet, are not counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Restraint {
    /// True while probes are not believed and remove nothing.
    pub frozen: bool,
    /// Why.
    pub frozen_because: Option<String>,
    /// What may not be used now.
    pub out_percent: u8,
    /// What sessions have taken out, of that.
    pub ejected_percent: u8,
    /// What probes alone have taken out within the last minute, back or not.
    pub removed_by_checks_percent: u8,
    /// The most that sessions may take out: `max_ejected`.
    pub max_ejected_percent: u8,
    /// The most that probes alone may take out within a minute: `max_removal`.
    pub max_removal_percent: u8,
    /// What always stays: `floor`.
    pub floor_percent: u8,
}

/// What the attempts of a pool's sessions have come to, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempts {
    /// Beside one that was late.
    pub hedges: u64,
    /// Those of them that were the first to connect.
    pub hedges_won: u64,
    /// Those that the budget did not allow.
    pub hedges_denied: u64,
    /// Those that may be made now; `null` where late attempts are not raced.
    pub hedge_budget_left: Option<u64>,
    /// In the place of one that had failed.
    pub retries: u64,
    /// Sessions that waited for their turn to be connected.
    pub queued: u64,
    /// Sessions that found no room to wait, or waited too long.
    pub overflowed: u64,
    /// Sessions that were moved to another endpoint with what their client had sent.
    pub replayed: u64,
}

/// A cloud's weight in a pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloudWeight {
    /// The cloud.
    pub cloud: String,
    /// Its weight.
    pub weight: u32,
}

/// A cloud's share in the new sessions of a pool.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CloudShare {
    /// The cloud.
    pub cloud: String,
    /// Its share, 0 to 1.
    pub share: f64,
}

/// An endpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Endpoint {
    /// What is dialled.
    pub address: String,
    /// The name that it was resolved from.
    pub host: Option<String>,
    /// The cloud it stands in.
    pub cloud: String,
    /// Its region.
    pub region: Option<String>,
    /// Its zone.
    pub zone: Option<String>,
    /// Its weight as configured.
    pub weight: u32,
    /// How much of the weight counts now, in percent: below 100 during slow start.
    pub ramp_percent: u8,
    /// What probes say: `up`, `down` or `unknown`.
    pub verdict: String,
    /// Why.
    pub reason: String,
    /// Since when.
    pub since: String,
    /// Seconds since then.
    pub for_seconds: f64,
    /// How often the verdict has changed.
    pub transitions: u64,
    /// True when new sessions of the pool may be given to it at the first attempt.
    pub in_use: bool,
    /// What holds of it, probes, sessions and limits taken together.
    #[serde(default)]
    pub standing: Standing,
    /// Sessions now, attempts included.
    pub sessions_active: u64,
    /// Sessions that connected.
    pub sessions_total: u64,
    /// Attempts that failed, by cause; only causes that were seen.
    pub connect_failures: BTreeMap<String, u64>,
    /// How long attempts took that connected.
    pub connect_ms: ConnectTimes,
    /// Bytes to it.
    pub to_upstream: u64,
    /// Bytes from it.
    pub to_client: u64,
    /// The last seconds.
    pub rates: Option<Rates>,
}

/// What holds of an endpoint, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Standing {
    /// `in`, `out`, `trial` (one session at a time may try it), `new` (no probe has been good yet), or `kept` (in though it is
    /// held for bad).
    pub word: String,
    /// Why, in one sentence.
    pub reason: String,
    /// When it may be tried or used again, if it is out and that is known.
    pub until: Option<String>,
    /// What keeps it in: `contradicted`, `frozen`, `velocity`, `floor`, `cap`, `last_cloud` or `lately`.
    pub kept_by: Option<String>,
    /// How often sessions have taken it out.
    pub ejections: u64,
    /// How often its probes were good again after they had been bad.
    pub flaps: u64,
    /// Failed sessions since the last good one.
    pub consecutive_failures: u32,
    /// Attempts of the last ten seconds.
    pub recent_attempts: u64,
    /// Those of them that failed.
    pub recent_failures: u64,
}

/// Connect times in milliseconds; `null` before the first session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ConnectTimes {
    /// Half were quicker, since the start.
    pub p50: Option<f64>,
    /// All but one in a hundred were quicker, since the start.
    pub p99: Option<f64>,
    /// A moving average that takes a slower one at once: what `least-latency` goes by.
    pub usual: Option<f64>,
}

/// A listener.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Listener {
    /// Its name.
    pub name: String,
    /// Where it accepts.
    pub address: String,
    /// The pool that serves it; with routes, the one for sessions that no route is for. `as-asked`: the address that the
    /// client asked for. `-`: such sessions are closed.
    pub pool: String,
    /// What it does before a session has a pool.
    #[serde(default)]
    pub entry: Entry,
    /// Clients accepted.
    pub accepted: u64,
    /// Sessions now.
    pub active: u64,
    /// Connections not accepted, by reason; only reasons that were seen.
    pub rejected: BTreeMap<String, u64>,
    /// Clients accepted in a second, over the last ten.
    pub accepted_per_second: Option<f64>,
    /// Ended sessions by how they ended; only ends that were seen.
    pub ends: Vec<EndCount>,
}

/// What a listener does before a session has a pool.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Entry {
    /// TLS ends here.
    pub tls: bool,
    /// Whether clients show certificates: `off`, `optional` or `required`.
    pub client_certificates: String,
    /// Whether connections begin with a PROXY header: `off`, `optional` or `required`.
    pub proxy_header: String,
    /// Whether the firewall sends connections here: `off`, `redirect` or `tproxy`.
    pub intercept: String,
    /// How many routes it has.
    pub routes: usize,
    /// Every pool that its sessions may come to.
    pub pools: Vec<String>,
}

/// What a listener with TLS shows to clients, or a pool with TLS to endpoints. One of `listener` and `pool` is `null`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Certificates {
    /// The listener.
    pub listener: Option<String>,
    /// The pool.
    pub pool: Option<String>,
    /// Why the files as they are now are not in force, or why the SPIFFE Workload API says nothing, and what was made before
    /// is in force. `null` if all is well.
    pub alarm: Option<String>,
    /// What is shown.
    pub shown: Vec<Certificate>,
}

/// A certificate in force.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Certificate {
    /// The file that it came from, or the address of the SPIFFE Workload API.
    pub file: String,
    /// Names that it is for; the first 16.
    pub names: Vec<String>,
    /// Its serial number.
    pub serial: String,
    /// The start of its time.
    pub not_before: String,
    /// The end of its time.
    pub not_after: String,
    /// Seconds until then; negative once it has expired.
    pub expires_in_seconds: i64,
    /// How near that is: `good`, `fortnight` (less than 14 days, or the last third of a shorter time), `days` (less than
    /// three, or the last twelfth) or `invalid`.
    pub state: String,
    /// The same in words: `expires in 29 days`, `expired 2 h ago`.
    pub when: String,
}

/// Sessions of a listener that ended in one way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndCount {
    /// Who: `client`, `upstream`, `proxy` or `operator`.
    pub side: String,
    /// When: `accept`, `route`, `connect`, `relay` or `drain`.
    pub stage: String,
    /// Why.
    pub cause: String,
    /// How many.
    pub count: u64,
}

/// One thing that happened. `docs/events.md` lists the kinds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Event {
    /// Its number: 1 for the first of the process, and one more for each.
    pub id: u64,
    /// When.
    pub time: String,
    /// The generation that it led to, or that was in force.
    pub generation: u64,
    /// What kind of thing.
    pub kind: String,
    /// How much it matters: `debug`, `info`, `warn` or `error`.
    pub level: String,
    /// The pool that it is about.
    pub pool: Option<String>,
    /// The endpoint that it is about.
    pub endpoint: Option<String>,
    /// The cloud that it is about, or that the endpoint stands in.
    pub cloud: Option<String>,
    /// How it was; empty where that says nothing.
    pub before: String,
    /// How it is now; empty where that says nothing.
    pub after: String,
    /// Why; empty where the kind says it all.
    pub evidence: String,
    /// What and why, in one sentence.
    pub text: String,
}

/// Sessions one by one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LiveSessions {
    /// The oldest that were asked for, oldest first. One that moves between a worker's halves meanwhile may be missing.
    pub sessions: Vec<LiveSession>,
    /// How many the filters admit, whatever the limit.
    pub total: u64,
    /// Workers that did not answer within a second: what they carry is missing.
    pub silent_workers: Vec<usize>,
}

/// A session that lives, or did when it was ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LiveSession {
    /// What ends it: worker, slot and generation, such as `0-17-3`; `s0-17-3` in the worker's tokio half. Another one
    /// once the session has moved from one half to the other.
    pub handle: String,
    /// Its number, as in the session log.
    pub session: u64,
    /// The client's address.
    pub client: String,
    /// The listener that accepted it.
    pub listener: String,
    /// The pool it was routed to.
    pub pool: Option<String>,
    /// The endpoint that carries it, or that is tried.
    pub endpoint: Option<String>,
    /// That endpoint's cloud.
    pub cloud: Option<String>,
    /// The generation it was routed under.
    pub generation: u64,
    /// `connect` or `relay`.
    pub stage: String,
    /// Seconds since it was accepted.
    pub age_seconds: f64,
    /// Bytes relayed to the endpoint.
    pub to_upstream: u64,
    /// Bytes relayed to the client.
    pub to_client: u64,
    /// Attempts to connect.
    pub attempts: u8,
}

/// What any answer but 200 says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// What is wrong.
    pub error: String,
}

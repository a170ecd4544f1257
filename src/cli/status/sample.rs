//! A status as a proxy might give it, for tests.

use std::collections::BTreeMap;

use crate::api::{
    Attempts, Certificate, Certificates, Cloud, CloudShare, CloudVerdict, CloudWeight, ConnectTimes,
    EndCount, Endpoint, Entry, Event, Listener, Pool, Process, Rates, Reload, Reloads, Restraint, Sessions,
    Standing, Status,
};

fn cloud(name: &str, state: &str, up: u64) -> Cloud {
    let rates = Rates {
        sessions_per_second: 24.0,
        to_upstream_per_second: 1.2 * 1_048_576.0,
        to_client_per_second: 10.1 * 1_048_576.0,
    };
    Cloud {
        name: name.into(),
        region: Some(format!("{name}-west-1")),
        egress_usd_per_gb: (name == "aws").then(|| "0.09".into()),
        state: state.into(),
        judged: judged(state),
        endpoints_up: up,
        endpoints: up.max(2),
        sessions_active: 181,
        sessions_total: 1_234_567,
        to_upstream: 1,
        to_client: 1,
        rates: (up > 0).then_some(rates),
    }
}

fn judged(state: &str) -> CloudVerdict {
    let of = |verdict: &str| CloudVerdict { verdict: verdict.into(), ..CloudVerdict::default() };
    match state {
        "down" => CloudVerdict {
            evidence: Some("2 of 2 endpoints: 1 refuse, 1 silent".into()),
            since: Some("2026-11-22T10:00:00.000Z".into()),
            ..of("down")
        },
        "degraded" => CloudVerdict { percent: Some(30), ..of("recovering") },
        _ => of("up"),
    }
}

fn standing(word: &str, reason: &str) -> Standing {
    Standing { word: word.into(), reason: reason.into(), ..Standing::default() }
}

fn endpoint(address: &str, cloud: &str) -> Endpoint {
    Endpoint {
        address: address.into(),
        host: None,
        cloud: cloud.into(),
        region: None,
        zone: Some(format!("{cloud}-west-1a")),
        weight: 1,
        ramp_percent: 100,
        verdict: "up".into(),
        reason: "2 good probes".into(),
        since: "2026-11-22T10:00:00.000Z".into(),
        for_seconds: 10_920.0,
        transitions: 0,
        in_use: true,
        standing: standing("in", "first found good: 2 probes good"),
        sessions_active: 90,
        sessions_total: 617_283,
        connect_failures: BTreeMap::new(),
        connect_ms: ConnectTimes { p50: Some(1.8), p99: Some(4.25), usual: Some(2.0) },
        to_upstream: 1,
        to_client: 1,
        rates: Some(Rates { sessions_per_second: 12.0, ..Rates::default() }),
    }
}

fn failover_pool() -> Pool {
    let mut down = endpoint("10.1.12.134:5432", "gcp");
    down.verdict = "down".into();
    down.reason = "3 probes failed: connect: connection refused".into();
    (down.in_use, down.for_seconds, down.transitions, down.rates) = (false, 12.0, 1, None);
    down.connect_failures = [("refused".to_owned(), 3), ("timed_out".to_owned(), 12_000)].into();
    down.connect_ms = ConnectTimes::default();
    down.standing = standing("out", "gcp is down: 2 of 2 endpoints: 1 refuse, 1 silent");
    let mut back = endpoint("10.0.12.135:5432", "aws");
    (back.ramp_percent, back.host, back.transitions) = (50, Some("db.internal:5432".into()), 2);
    back.standing = Standing { ejections: 1, flaps: 1, ..standing("in", "the trial session went well") };
    let mut ejected = endpoint("10.0.12.136:5432", "aws");
    ejected.in_use = false;
    ejected.standing = Standing {
        until: Some("2026-11-22T10:00:10.412Z".into()),
        ejections: 2,
        consecutive_failures: 5,
        recent_attempts: 6,
        recent_failures: 5,
        ..standing("out", "5 sessions in a row failed: 5 failed to connect; back-off 10.4 s, number 2")
    };
    let mut kept = endpoint("10.0.12.137:5432", "aws");
    kept.standing = Standing {
        kept_by: Some("cap".into()),
        consecutive_failures: 7,
        recent_attempts: 9,
        recent_failures: 7,
        ..standing("kept", "kept: as much is ejected already as may be (sessions: 7 mute)")
    };
    Pool {
        name: "db".into(),
        policy: "failover".into(),
        order: vec!["aws".into(), "gcp".into()],
        weights: Vec::new(),
        balance: "least-sessions".into(),
        all_down: None,
        shares: vec![CloudShare { cloud: "aws".into(), share: 1.0 }],
        restraint: limits(Restraint { out_percent: 25, ejected_percent: 25, ..Restraint::default() }),
        unresolved: Vec::new(),
        failing: [("db.internal:5432".into(), "2026-11-22T10:00:00.000Z".into())].into(),
        attempts: Attempts {
            hedges: 1200,
            hedges_won: 1150,
            hedges_denied: 3,
            hedge_budget_left: Some(40),
            retries: 7,
            ..Attempts::default()
        },
        endpoints: vec![endpoint("10.0.12.134:5432", "aws"), back, down, ejected, kept],
    }
}

fn limits(taken: Restraint) -> Restraint {
    Restraint { max_ejected_percent: 50, max_removal_percent: 50, floor_percent: 20, ..taken }
}

fn weighted_pool() -> Pool {
    let weight = |(cloud, weight): (&str, u32)| CloudWeight { cloud: cloud.into(), weight };
    Pool {
        name: "cache".into(),
        policy: "weighted".into(),
        order: Vec::new(),
        weights: [("aws", 3), ("gcp", 1)].map(weight).into(),
        balance: "round-robin".into(),
        all_down: Some("refuse".into()),
        shares: Vec::new(),
        restraint: limits(Restraint {
            frozen: true,
            frozen_because: Some("all 3 probed endpoints failed within 5 s, and no session did".into()),
            ..Restraint::default()
        }),
        unresolved: vec!["cache.internal:6379".into()],
        failing: BTreeMap::new(),
        attempts: Attempts::default(),
        endpoints: Vec::new(),
    }
}

fn listener() -> Listener {
    let end = |side: &str, cause: &str, count| EndCount {
        side: side.into(),
        stage: "relay".into(),
        cause: cause.into(),
        count,
    };
    Listener {
        name: "pg".into(),
        address: "0.0.0.0:5432".into(),
        pool: "db".into(),
        entry: Entry::default(),
        accepted: 1_234_999,
        active: 181,
        rejected: BTreeMap::new(),
        accepted_per_second: Some(24.1),
        ends: vec![
            end("client", "closed", 1_200_000),
            end("client", "idle", 2),
            end("upstream", "reset", 31),
        ],
    }
}

fn edge() -> Listener {
    Listener {
        name: "edge".into(),
        address: "[::]:443".into(),
        pool: "-".into(),
        entry: Entry {
            tls: true,
            client_certificates: "required".into(),
            proxy_header: "required".into(),
            intercept: "off".into(),
            routes: 3,
            pools: vec!["db".into(), "cache".into()],
        },
        ends: Vec::new(),
        ..listener()
    }
}

fn certificates() -> Vec<Certificates> {
    let one = |file: &str, names: &[&str], state: &str, when: &str| Certificate {
        file: file.into(),
        names: names.iter().map(|name| (*name).to_owned()).collect(),
        state: state.into(),
        when: when.into(),
        ..Certificate::default()
    };
    let shown = vec![
        one("/tls/a.pem", &["a.example"], "good", "expires in 29 days"),
        one(
            "/tls/b.pem",
            &["b.example", "*.b.example", "c.example", "d.example"],
            "fortnight",
            "expires in 12 days",
        ),
        one("/tls/old.pem", &[], "invalid", "expired 2 h ago"),
    ];
    let alarm = Some("/tls/a.key: the key does not belong to the certificate in /tls/a.pem".into());
    vec![
        Certificates { listener: Some("edge".into()), alarm, shown, ..Certificates::default() },
        Certificates { pool: Some("cache".into()), ..Certificates::default() },
        Certificates {
            pool: Some("db".into()),
            alarm: Some("/tls/ca.pem: is empty".into()),
            ..Certificates::default()
        },
    ]
}

fn process() -> Process {
    Process {
        version: "0.1.0".into(),
        pid: 4711,
        phase: "ready".into(),
        generation: 12,
        started: "2026-11-19T06:00:00.000Z".into(),
        uptime_seconds: 273_600.0,
        workers: 2,
        last_reload: Some(Reload {
            time: "2026-11-22T09:00:00.000Z".into(),
            ok: false,
            error: Some("line 3: unknown key\nline 4: unknown key".into()),
        }),
        reloads: Reloads { applied: 3, refused: 1 },
        needs_restart: vec!["workers".into(), "log".into()],
    }
}

/// Three clouds, one of them down and one on its way back; a pool of each policy, one of them in trouble.
pub(in crate::cli) fn status() -> Status {
    Status {
        process: process(),
        sessions: Sessions { active: 181, accepted: 1_234_999, panicked: 0, log_lines_dropped: 0 },
        clouds: vec![cloud("aws", "up", 4), cloud("gcp", "down", 0), cloud("ovh", "degraded", 1)],
        pools: vec![failover_pool(), weighted_pool()],
        listeners: vec![listener(), edge()],
        certificates: certificates(),
        events: vec![Event {
            time: "2026-11-22T10:00:00.000Z".into(),
            generation: 12,
            text: "endpoint 10.1.12.134:5432 (pool db, cloud gcp) is down".into(),
            ..Event::default()
        }],
    }
}

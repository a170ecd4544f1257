//! A status as text: dense like HAProxy's table, 100 columns for names of usual length, readable without colour as each
//! state has a sign and a word.

use std::fmt::Write as _;

use super::{
    edge,
    table::{Align, Cell, Paint, Table, bytes, count, duration, paint, plain, rate},
};
use crate::api::{
    Attempts, Cloud, EndCount, Endpoint, Listener, Pool, Process, Rates, Restraint, Sessions, Standing,
    Status,
};

/// Ends shown for a listener, the most frequent first.
const ENDS: usize = 3;

/// The whole picture.
pub(super) fn text(status: &Status, colours: bool) -> String {
    let mut out = String::new();
    process(&mut out, &status.process, colours);
    sessions(&mut out, &status.sessions);
    if !status.clouds.is_empty() {
        out.push('\n');
        clouds(&status.clouds).write(&mut out, "", colours);
    }
    for pool in &status.pools {
        out.push('\n');
        pool_line(&mut out, pool, colours);
        endpoints(&pool.endpoints).write(&mut out, "  ", colours);
    }
    if !status.listeners.is_empty() {
        out.push('\n');
        listeners(&status.listeners).write(&mut out, "", colours);
    }
    let certificates = edge::certificates(&status.certificates);
    if !certificates.is_empty() {
        out.push('\n');
        certificates.write(&mut out, "", colours);
    }
    if !status.events.is_empty() {
        out.push_str("\nEVENTS\n");
    }
    for event in &status.events {
        line(
            &mut out,
            format_args!("{}  gen {:<3} {}", second(&event.time), event.generation, plain(&event.text)),
        );
    }
    out
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = writeln!(out, "{text}");
}

fn process(out: &mut String, process: &Process, colours: bool) {
    let (phase, colour) = sign(&process.phase);
    line(
        out,
        format_args!(
            "twinspan {}  {}  pid {}  {} workers  generation {}  up {}",
            plain(&process.version),
            paint(&phase, colour, colours),
            process.pid,
            process.workers,
            process.generation,
            duration(process.uptime_seconds),
        ),
    );
    if !process.needs_restart.is_empty() {
        let settings = plain(&process.needs_restart.join(", "));
        line(out, format_args!("changed in the file, but takes effect only at a restart: {settings}"));
    }
    let Some(reload) = &process.last_reload else { return };
    let (applied, refused) = (process.reloads.applied, process.reloads.refused);
    let counts = format!("{applied} applied, {refused} refused");
    match &reload.error {
        None => line(out, format_args!("config: reloaded {} ({counts})", second(&reload.time))),
        Some(error) => {
            let mark = paint("x refused", Paint::Bad, colours);
            let first = plain(error.lines().next().unwrap_or_default());
            line(out, format_args!("config: reload {mark} {} ({counts}): {first}", second(&reload.time)));
        }
    }
}

fn sessions(out: &mut String, sessions: &Sessions) {
    line(
        out,
        format_args!(
            "sessions: {} now, {} accepted, {} panicked, {} log lines dropped",
            count(sessions.active),
            count(sessions.accepted),
            count(sessions.panicked),
            count(sessions.log_lines_dropped),
        ),
    );
}

fn clouds(clouds: &[Cloud]) -> Table {
    use Align::{Left, Right};
    let mut table = Table::new([
        ("CLOUD", Left),
        ("REGION", Left),
        ("STATE", Left),
        ("UP", Right),
        ("VERDICT", Left),
        ("SESS", Right),
        ("TOTAL", Right),
        ("NEW/S", Right),
        ("TO UPSTREAM", Right),
        ("TO CLIENT", Right),
        ("EGRESS", Right),
    ]);
    for cloud in clouds {
        let [new, to_upstream, to_client] = rates(cloud.rates.as_ref());
        let egress = cloud.egress_usd_per_gb.as_ref().map(|price| format!("${price}/GB"));
        table.row(
            vec![
                Cell::new(&cloud.name),
                Cell::new(cloud.region.as_deref().unwrap_or_default()),
                state(&cloud.state),
                Cell::new(format!("{}/{}", cloud.endpoints_up, cloud.endpoints)),
                verdict(cloud),
                Cell::new(count(cloud.sessions_active)),
                Cell::new(count(cloud.sessions_total)),
                new,
                to_upstream,
                to_client,
                Cell::new(egress.unwrap_or_default()),
            ],
            fallen(cloud).into_iter().collect(),
        );
    }
    table
}

/// What holds of a cloud as a whole; empty if that is not known.
fn verdict(cloud: &Cloud) -> Cell {
    match (cloud.judged.verdict.as_str(), cloud.judged.percent) {
        ("", _) => Cell::new(""),
        ("recovering", Some(percent)) => Cell::painted(format!("~ {percent} %"), Paint::Warning),
        (word, _) => state(word),
    }
}

/// Why a cloud is down as a whole, and since when; or how far it has come back.
fn fallen(cloud: &Cloud) -> Option<String> {
    let judged = &cloud.judged;
    if let Some(percent) = judged.percent {
        return Some(format!("comes back: it gets {percent} % of its usual new sessions"));
    }
    let evidence = judged.evidence.as_ref()?;
    let since = second(judged.since.as_deref().unwrap_or_default());
    Some(format!("down as a whole since {since}: {evidence}"))
}

/// `pool db: failover aws > gcp, least-sessions, new sessions to aws 100 %`.
fn pool_line(out: &mut String, pool: &Pool, colours: bool) {
    let mut clouds = pool.order.join(" > ");
    if clouds.is_empty() {
        let weights: Vec<_> =
            pool.weights.iter().map(|one| format!("{} {}", one.cloud, one.weight)).collect();
        clouds = weights.join(" : ");
    }
    let shares: Vec<_> =
        pool.shares.iter().map(|one| format!("{} {:.0} %", one.cloud, one.share * 100.0)).collect();
    let goes = if shares.is_empty() { "nowhere".to_owned() } else { shares.join(", ") };
    let heading =
        format!("pool {}: {} {clouds}, {}, new sessions to {goes}", pool.name, pool.policy, pool.balance);
    line(out, format_args!("{}", plain(&heading)));
    if let Some(all_down) = &pool.all_down {
        let mark = paint("x all down", Paint::Bad, colours);
        line(out, format_args!("  {mark}: nothing is left to use, when_all_down = {}", plain(all_down)));
    }
    restraint_lines(out, &pool.restraint, colours);
    attempts_line(out, &pool.attempts);
    if !pool.unresolved.is_empty() {
        let mark = paint("? unresolved", Paint::Warning, colours);
        line(out, format_args!("  {mark}: {}", plain(&pool.unresolved.join(", "))));
    }
    for (name, since) in &pool.failing {
        let mark = paint("! not resolving", Paint::Warning, colours);
        let kept = if pool.unresolved.contains(name) {
            "it has no address yet"
        } else {
            "the last addresses are kept"
        };
        line(out, format_args!("  {mark}: {} since {}: {kept}", plain(name), second(since)));
    }
}

/// Why probes remove nothing, if they do not; and what is out, if anything is.
fn restraint_lines(out: &mut String, restraint: &Restraint, colours: bool) {
    if restraint.frozen {
        let mark = paint("~ frozen", Paint::Warning, colours);
        let why = restraint.frozen_because.as_deref().unwrap_or_default();
        line(out, format_args!("  {mark}: {}", plain(why)));
    }
    let Restraint { out_percent, ejected_percent, removed_by_checks_percent, .. } = *restraint;
    if out_percent == 0 && ejected_percent == 0 && removed_by_checks_percent == 0 {
        return;
    }
    let Restraint { max_ejected_percent, max_removal_percent, floor_percent, .. } = *restraint;
    line(
        out,
        format_args!(
            "  out: {out_percent} % (floor: {floor_percent} % stays), ejected {ejected_percent} % (at most {max_ejected_percent} %), \
             by checks {removed_by_checks_percent} % (at most {max_removal_percent} % a minute)"
        ),
    );
}

/// What went beyond one attempt a session, if anything did.
fn attempts_line(out: &mut String, attempts: &Attempts) {
    let Attempts { hedges, hedges_won, hedges_denied, retries, queued, overflowed, replayed, .. } = *attempts;
    let mut parts = Vec::new();
    if hedges + hedges_denied > 0 {
        let left = attempts.hedge_budget_left.map(|left| format!(", {} left", count(left)));
        let (won, denied) = (count(hedges_won), count(hedges_denied));
        parts.push(format!(
            "{} raced ({won} won, {denied} over budget{})",
            count(hedges),
            left.unwrap_or_default()
        ));
    }
    for (number, what) in [
        (retries, "retried"),
        (queued, "queued"),
        (overflowed, "turned away"),
        (replayed, "moved before the first byte"),
    ] {
        if number > 0 {
            parts.push(format!("{} {what}", count(number)));
        }
    }
    if !parts.is_empty() {
        line(out, format_args!("  attempts: {}", parts.join(", ")));
    }
}

fn endpoints(endpoints: &[Endpoint]) -> Table {
    use Align::{Left, Right};
    let mut table = Table::new([
        ("ENDPOINT", Left),
        ("CLOUD", Left),
        ("ZONE", Left),
        ("STATE", Left),
        ("FOR", Right),
        ("USE", Left),
        ("WGT", Right),
        ("SESS", Right),
        ("TOTAL", Right),
        ("NEW/S", Right),
        ("CONN MS", Right),
    ]);
    for endpoint in endpoints {
        table.row(endpoint_row(endpoint), notes(endpoint));
    }
    table
}

fn endpoint_row(endpoint: &Endpoint) -> Vec<Cell> {
    let [new, ..] = rates(endpoint.rates.as_ref());
    let weight = match endpoint.ramp_percent {
        100 => endpoint.weight.to_string(),
        ramp => format!("{}@{ramp}%", endpoint.weight),
    };
    let times = match (endpoint.connect_ms.p50, endpoint.connect_ms.p99) {
        (Some(p50), Some(p99)) => format!("{}/{}", rate(p50), rate(p99)),
        (_, _) => "-".to_owned(),
    };
    vec![
        Cell::new(&endpoint.address),
        Cell::new(&endpoint.cloud),
        Cell::new(endpoint.zone.as_deref().unwrap_or_default()),
        state(&endpoint.verdict),
        Cell::new(duration(endpoint.for_seconds)),
        usage(endpoint),
        Cell::new(weight),
        Cell::new(count(endpoint.sessions_active)),
        Cell::new(count(endpoint.sessions_total)),
        new,
        Cell::new(times),
    ]
}

/// Whether it is used: `yes`, `-` while others come first, or the word for why not, or why although.
fn usage(endpoint: &Endpoint) -> Cell {
    match (endpoint.standing.word.as_str(), endpoint.in_use) {
        (word @ ("kept" | "trial" | "new"), _) => Cell::painted(word, Paint::Warning),
        (_, true) => Cell::new("yes"),
        ("out", false) => Cell::painted("out", Paint::Bad),
        (_, false) => Cell::new("-"),
    }
}

/// Why and since when, for an endpoint that is not up or has not always been; the name that it was resolved from; and
/// how attempts failed.
fn notes(endpoint: &Endpoint) -> Vec<String> {
    let mut notes = Vec::new();
    if endpoint.verdict != "up" || endpoint.transitions > 0 {
        notes.push(format!("{} since {}: {}", endpoint.verdict, second(&endpoint.since), endpoint.reason));
    }
    notes.extend(why(endpoint));
    notes.extend(record(&endpoint.standing));
    if let Some(host) = &endpoint.host {
        notes.push(format!("resolved from {host}"));
    }
    let failures: Vec<_> = endpoint
        .connect_failures
        .iter()
        .map(|(cause, number)| format!("{cause} {}", count(*number)))
        .collect();
    if !failures.is_empty() {
        notes.push(format!("attempts failed: {}", failures.join(", ")));
    }
    notes
}

/// Why it is out, or is not though it is held for bad. What probes say stands in the note before.
fn why(endpoint: &Endpoint) -> Option<String> {
    let Standing { word, reason, until, ejections, flaps, .. } = &endpoint.standing;
    let until = until.as_deref().map(|until| format!(" until {}", second(until))).unwrap_or_default();
    match word.as_str() {
        "out" if !reason.starts_with("probes: ") => Some(format!("out{until}: {reason}")),
        "out" if endpoint.verdict == "up" => {
            Some(format!("out{until}: its probes must be good for longer, after {flaps} flaps"))
        }
        "out" => {
            reason.ends_with("sessions fail too").then(|| "out: probes fail, and sessions fail too".into())
        }
        "trial" => Some(format!("trial: {reason}")),
        // It begins with the word.
        "kept" => Some(reason.clone()),
        "in" if *ejections > 0 && !reason.starts_with("probes: ") => Some(format!("in: {reason}")),
        _ => None,
    }
}

/// `record: 2 ejections, 5 failed in a row, 6 of 9 attempts failed in 10 s`, as far as there is something to tell.
fn record(standing: &Standing) -> Option<String> {
    let Standing { ejections, flaps, consecutive_failures, recent_attempts, recent_failures, .. } = standing;
    let times = |number: u64, one: &str| {
        let many = if number == 1 { "" } else { "s" };
        (number > 0).then(|| format!("{} {one}{many}", count(number)))
    };
    let row = (*consecutive_failures > 0).then(|| format!("{consecutive_failures} failed in a row"));
    let recent = (*recent_failures > 0).then(|| {
        format!("{} of {} attempts failed in 10 s", count(*recent_failures), count(*recent_attempts))
    });
    let parts: Vec<String> =
        [times(*ejections, "ejection"), times(*flaps, "flap"), row, recent].into_iter().flatten().collect();
    (!parts.is_empty()).then(|| format!("record: {}", parts.join(", ")))
}

/// A time without the fraction of its second.
fn second(time: &str) -> String {
    time.split_once('.').map_or_else(|| plain(time), |(whole, _)| format!("{}Z", plain(whole)))
}

fn listeners(listeners: &[Listener]) -> Table {
    use Align::{Left, Right};
    let mut table = Table::new([
        ("LISTENER", Left),
        ("ADDRESS", Left),
        ("POOL", Left),
        ("ENTRY", Left),
        ("SESS", Right),
        ("ACCEPTED", Right),
        ("NEW/S", Right),
        ("REJECTED", Right),
        ("CLOSED", Right),
    ]);
    for listener in listeners {
        let (closed, other): (Vec<_>, Vec<_>) = listener.ends.iter().partition(|end| end.cause == "closed");
        table.row(
            vec![
                Cell::new(&listener.name),
                Cell::new(&listener.address),
                Cell::new(edge::target(listener)),
                Cell::new(edge::entry(&listener.entry)),
                Cell::new(count(listener.active)),
                Cell::new(count(listener.accepted)),
                Cell::new(listener.accepted_per_second.map_or_else(|| "-".to_owned(), rate)),
                Cell::new(count(listener.rejected.values().sum())),
                Cell::new(count(closed.iter().map(|end| end.count).sum())),
            ],
            ends(other).into_iter().collect(),
        );
    }
    table
}

/// `other ends: upstream/relay/reset 31, client/relay/idle 2, 3 more`.
fn ends(mut ends: Vec<&EndCount>) -> Option<String> {
    ends.sort_by_key(|end| std::cmp::Reverse(end.count));
    let told = |end: &&EndCount| format!("{}/{}/{} {}", end.side, end.stage, end.cause, count(end.count));
    let mut parts: Vec<_> = ends.iter().take(ENDS).map(told).collect();
    let more: u64 = ends.iter().skip(ENDS).map(|end| end.count).sum();
    if more > 0 {
        parts.push(format!("{} more", count(more)));
    }
    (!parts.is_empty()).then(|| format!("other ends: {}", parts.join(", ")))
}

/// New sessions, bytes to endpoints and bytes to clients, in a second.
fn rates(rates: Option<&Rates>) -> [Cell; 3] {
    let Some(rates) = rates else { return ["-"; 3].map(Cell::new) };
    let moved = |number: f64| Cell::new(format!("{}/s", bytes(number)));
    [
        Cell::new(rate(rates.sessions_per_second)),
        moved(rates.to_upstream_per_second),
        moved(rates.to_client_per_second),
    ]
}

fn state(word: &str) -> Cell {
    let (text, paint) = sign(word);
    Cell::painted(text, paint)
}

/// The word of a state behind its sign, and its colour.
fn sign(word: &str) -> (String, Paint) {
    let (sign, paint) = match word {
        "up" | "ready" => ('+', Paint::Good),
        "degraded" | "draining" => ('~', Paint::Warning),
        "down" | "stopping" => ('x', Paint::Bad),
        _ => ('?', Paint::Warning),
    };
    (format!("{sign} {}", plain(word)), paint)
}

#[cfg(test)]
mod tests {
    use super::{super::sample::status, *};

    #[test]
    fn the_table_looks_like_this() {
        let found = text(&status(), false);
        let wanted = include_str!("golden.txt");
        assert!(found == wanted, "{found}");
        for line in found.lines().filter(|line| !line.starts_with("   ")) {
            assert!(line.chars().count() <= 100, "{} columns: {line}", line.chars().count());
        }
    }

    #[test]
    fn why_an_endpoint_is_out_is_told_once() {
        let mut endpoint = status().pools[0].endpoints[2].clone();
        let mut out = |verdict: &str, reason: &str, until: Option<&str>| {
            endpoint.verdict = verdict.into();
            (endpoint.standing.reason, endpoint.standing.flaps) = (reason.into(), 4);
            endpoint.standing.until = until.map(str::to_owned);
            why(&endpoint).unwrap_or_default()
        };
        assert_eq!(out("down", "probes: 3 probes failed", None), "", "the note before says it");
        assert_eq!(
            out("down", "probes: 3 probes failed, and sessions fail too", None),
            "out: probes fail, and sessions fail too"
        );
        assert_eq!(
            out("up", "probes: 2 probes good", Some("2026-11-22T10:00:10.412Z")),
            "out until 2026-11-22T10:00:10Z: its probes must be good for longer, after 4 flaps"
        );
        assert_eq!(out("up", "5 sessions in a row failed", None), "out: 5 sessions in a row failed");
    }

    #[test]
    fn colour_adds_nothing_but_colour() {
        let mut coloured = text(&status(), true);
        assert!(
            coloured.contains("\u{1b}[32m+ up\u{1b}[0m") && coloured.contains("\u{1b}[31mx down\u{1b}[0m")
        );
        for code in ["\u{1b}[31m", "\u{1b}[32m", "\u{1b}[33m", "\u{1b}[0m"] {
            coloured = coloured.replace(code, "");
        }
        assert_eq!(coloured, text(&status(), false));
    }

    #[test]
    fn what_a_proxy_sends_cannot_move_the_cursor() {
        let mut hostile = status();
        hostile.events[0].text = "\u{1b}[2Jgone".into();
        hostile.pools[0].endpoints[2].reason = "\r\u{1b}]0;x\u{7}".into();
        hostile.clouds[0].name = "a\u{9b}b".into();
        assert!(text(&hostile, false).chars().all(|char| char == '\n' || !char.is_control()));
    }
}

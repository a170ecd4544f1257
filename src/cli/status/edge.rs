//! What stands at the edge: what a listener does first, and certificates with their time.

use super::table::{Align, Cell, Paint, Table};
use crate::api::{Certificate, Certificates, Entry, Listener};

/// Names of a certificate that are shown.
const NAMES: usize = 3;

/// Where sessions go that no route is for.
pub(super) fn target(listener: &Listener) -> &str {
    if listener.pool == "-" { "by route" } else { &listener.pool }
}

/// What it does before a session has a pool: `tls+clients proxy 3 routes`; empty if that is nothing.
pub(super) fn entry(entry: &Entry) -> String {
    let on = |word: &str| !matches!(word, "" | "off");
    let mut parts = Vec::new();
    if on(&entry.intercept) {
        parts.push(entry.intercept.clone());
    }
    match entry.proxy_header.as_str() {
        "required" => parts.push("proxy".to_owned()),
        "optional" => parts.push("proxy?".to_owned()),
        _ => {}
    }
    match (entry.tls, entry.client_certificates.as_str()) {
        (true, "required") => parts.push("mtls".to_owned()),
        (true, "optional") => parts.push("mtls?".to_owned()),
        (true, _) => parts.push("tls".to_owned()),
        (false, _) => {}
    }
    match entry.routes {
        0 => {}
        1 => parts.push("1 route".to_owned()),
        routes => parts.push(format!("{routes} routes")),
    }
    parts.join(" ")
}

/// The certificates, and what is wrong with files.
pub(super) fn certificates(all: &[Certificates]) -> Table {
    let columns = ["CERTIFICATE", "OF", "NAMES", "TIME"];
    let mut table = Table::new(columns.map(|column| (column, Align::Left)));
    for Certificates { listener, pool, alarm, shown } in all {
        let owner = match (listener, pool) {
            (Some(listener), _) => format!("listener {listener}"),
            (None, Some(pool)) => format!("pool {pool}"),
            (None, None) => String::new(),
        };
        let row = |file: &str, names: String, time: Cell| {
            vec![Cell::new(file), Cell::new(&owner), Cell::new(names), time]
        };
        for one in shown {
            table.row(row(&one.file, names(one), time(one)), Vec::new());
        }
        if let Some(alarm) = alarm {
            let note = format!("what is in force stays: {alarm}");
            table.row(row("", String::new(), Cell::painted("x not renewed", Paint::Bad)), vec![note]);
        }
    }
    table
}

fn names(certificate: &Certificate) -> String {
    let names = &certificate.names;
    let mut text = names.iter().take(NAMES).map(String::as_str).collect::<Vec<_>>().join(", ");
    if names.len() > NAMES {
        text.push_str(&format!(", {} more", names.len() - NAMES));
    }
    text
}

fn time(certificate: &Certificate) -> Cell {
    let (sign, paint) = match certificate.state.as_str() {
        "good" => ('+', Paint::Good),
        "invalid" => ('x', Paint::Bad),
        "days" => ('!', Paint::Bad),
        _ => ('!', Paint::Warning),
    };
    Cell::painted(format!("{sign} {}", certificate.when), paint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_listener_does_first_stands_in_the_order_in_which_it_does_it() {
        let of = |tls, clients: &str, header: &str, intercept: &str, routes| {
            entry(&Entry {
                tls,
                client_certificates: clients.into(),
                proxy_header: header.into(),
                intercept: intercept.into(),
                routes,
                pools: Vec::new(),
            })
        };
        assert_eq!(entry(&Entry::default()), "", "of a proxy that does not tell");
        assert_eq!(of(false, "off", "off", "off", 0), "");
        assert_eq!(of(true, "optional", "optional", "tproxy", 1), "tproxy proxy? mtls? 1 route");
        assert_eq!(of(true, "off", "off", "off", 12), "tls 12 routes");
    }
}

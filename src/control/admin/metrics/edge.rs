//! What stands at the edge: TLS handshakes, refused entries, certificates.

use std::{collections::BTreeMap, fmt};

use super::{Label, Page, flag, label};
use crate::control::{
    Overview,
    certificates::{Owner, Told},
};

/// The families of every listener.
pub(super) fn of_listeners(page: &mut Page<'_>, overview: &Overview) -> fmt::Result {
    let cells =
        || overview.listeners.iter().map(|listener| (&*listener.cell, label(listener.cell.name.as_str())));
    page.counters(
        "twinspan_tls_handshakes",
        "TLS handshakes with clients: `ok`, `resumed`, or why they failed.",
        ["listener", "result"],
        cells().flat_map(|(cell, name)| {
            cell.handshakes.counts().map(move |(word, count)| ([name.clone(), word.into()], count))
        }),
    )?;
    page.counters(
        "twinspan_refused_entries",
        "Sessions refused for what their client said before they had a pool: a PROXY header or a ClientHello that is none \
         (the words of `refused` in the session log), or `no_route`.",
        ["listener", "reason"],
        cells().flat_map(|(cell, name)| {
            cell.refusals.counts().map(move |(word, count)| ([name.clone(), word.into()], count))
        }),
    )
}

/// The families of every pool.
pub(super) fn of_pools(page: &mut Page<'_>, overview: &Overview) -> fmt::Result {
    let pools = || overview.pools.iter().map(|pool| (pool, label(pool.name.as_str())));
    page.counters(
        "twinspan_upstream_tls_handshakes",
        "TLS handshakes of sessions with endpoints: `ok`, `resumed`, or why they failed.",
        ["pool", "result"],
        pools().flat_map(|(pool, name)| {
            pool.cell.handshakes.counts().map(move |(word, count)| ([name.clone(), word.into()], count))
        }),
    )
}

/// Certificates that listeners show to clients and pools to endpoints.
pub(super) fn certificates(page: &mut Page<'_>, overview: &Overview) -> fmt::Result {
    // One file may be named twice; the first certificate of it to expire counts.
    let mut ends: BTreeMap<(&Owner, String), i64> = BTreeMap::new();
    for Told { owner, shown, .. } in overview.certificates.iter() {
        for one in shown {
            let end = ends.entry((owner, one.file.display().to_string())).or_insert(one.not_after);
            *end = one.not_after.min(*end);
        }
    }
    page.gauges(
        "twinspan_certificate_expiry_timestamp_seconds",
        "When a certificate expires that a listener shows to clients, or a pool to endpoints, in seconds since 1970. One of the \
         first two labels is empty.",
        ["listener", "pool", "file"],
        ends.into_iter().map(|((owner, file), end)| {
            let [listener, pool] = owned_by(owner);
            ([listener, pool, file.into()], end as f64)
        }),
    )?;
    page.gauges(
        "twinspan_certificate_reload_failed",
        "1 while the files of a listener's or a pool's TLS are wrong, or the SPIFFE Workload API gives nothing new, and what was \
         made before stays in force.",
        ["listener", "pool"],
        overview.certificates.iter().map(|told| (owned_by(&told.owner), flag(told.alarm.is_some()))),
    )
}

fn owned_by(owner: &Owner) -> [Label<'_>; 2] {
    match owner {
        Owner::Listener(name) => [label(name.as_str()), label("")],
        Owner::Pool(name) => [label(""), label(name.as_str())],
    }
}

//! What the attempts of sessions have come to: races, retries, queues, and endpoints that do not answer.

use std::{collections::BTreeMap, fmt};

use tokio::time::Instant;

use super::{Page, label};
use crate::control::{
    Overview,
    admin::totals::{Group, Sums},
};

/// The families of every pool.
pub(super) fn of_pools(page: &mut Page<'_>, overview: &Overview) -> fmt::Result {
    let pools = || overview.pools.iter().map(|pool| (pool, label(pool.name.as_str()), pool.cell.counts()));
    page.counters(
        "twinspan_extra_attempts",
        "Attempts after the first of a session: a `hedge` beside one that was late, a `retry` in the place of one that failed.",
        ["pool", "kind"],
        pools().flat_map(|(_, name, counts)| {
            [("hedge", counts.hedges), ("retry", counts.retries)]
                .map(|(kind, count)| ([name.clone(), kind.into()], count))
        }),
    )?;
    page.counters(
        "twinspan_hedges_won",
        "Attempts beside a late one that were the first to connect.",
        ["pool"],
        pools().map(|(_, name, counts)| ([name], counts.won)),
    )?;
    page.counters(
        "twinspan_hedges_denied",
        "Attempts beside a late one that the budget did not allow.",
        ["pool"],
        pools().map(|(_, name, counts)| ([name], counts.denied)),
    )?;
    let now = Instant::now();
    page.gauges(
        "twinspan_hedge_budget_left",
        "Attempts beside a late one that may be made now.",
        ["pool"],
        pools().filter_map(|(pool, name, _)| {
            let left = pool.cell.left(pool.hedge?.budget, now);
            Some(([name], left as f64))
        }),
    )?;
    page.counters(
        "twinspan_connect_queued",
        "Sessions that waited for their turn to be connected to an endpoint.",
        ["pool"],
        pools().map(|(_, name, counts)| ([name], counts.waited)),
    )?;
    page.counters(
        "twinspan_connect_queue_overflowed",
        "Sessions that found no room in the queue of an endpoint, or waited in it until their time was up.",
        ["pool"],
        pools().map(|(_, name, counts)| ([name], counts.overflowed)),
    )?;
    page.counters(
        "twinspan_sessions_replayed",
        "Sessions that were moved to another endpoint with what their client had sent.",
        ["pool"],
        pools().map(|(_, name, counts)| ([name], counts.replayed)),
    )
}

/// Signs that endpoints do not answer, other than failed attempts.
pub(super) fn of_groups(page: &mut Page<'_>, totals: &BTreeMap<Group, Sums>) -> fmt::Result {
    page.counters(
        "twinspan_upstream_unanswered",
        "Signs of endpoints that do not answer: attempts `overtaken` by a later one elsewhere, sessions that the endpoint \
         ended before its first byte (`empty`) or that got no byte within `first_byte_timeout` (`mute`).",
        ["pool", "cloud", "sign"],
        totals.iter().flat_map(|((pool, cloud), sums)| {
            let signs = ["overtaken", "empty", "mute"].into_iter().zip(sums.gray);
            signs.map(move |(sign, count)| ([label(pool.as_str()), label(cloud.as_str()), sign.into()], count))
        }),
    )
}

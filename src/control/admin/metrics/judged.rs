//! What the judge makes of endpoints, clouds and pools.

use std::{collections::BTreeMap, fmt};

use super::{Page, flag, label};
use crate::control::{
    CloudVerdict, Overview, PoolView, View, Word,
    admin::totals::{Group, Sums},
    kept_word,
    verdicts::Kept,
};

/// Why removals are held back.
const KEPT: [Kept; 7] =
    [Kept::Contradicted, Kept::Frozen, Kept::Velocity, Kept::Floor, Kept::Cap, Kept::LastCloud, Kept::Lately];

/// The families of clouds and pools.
pub(super) fn of_pools(page: &mut Page<'_>, overview: &Overview) -> fmt::Result {
    let pools = || overview.pools.iter().map(|pool| (pool, label(pool.name.as_str())));
    page.gauges(
        "twinspan_cloud_up",
        "0 while the cloud is down as a whole, otherwise 1.",
        ["cloud"],
        overview.clouds.iter().map(|cloud| {
            let down = matches!(cloud.verdict, CloudVerdict::Down { .. });
            ([label(cloud.name.as_str())], flag(!down))
        }),
    )?;
    page.gauges(
        "twinspan_cloud_share_ratio",
        "Part of its usual new sessions that a cloud gets while it comes back, 0 to 1. Only while it does.",
        ["pool", "cloud"],
        pools().flat_map(|(pool, name)| {
            let paced = pool.paced.iter();
            paced.map(move |(cloud, percent)| {
                ([name.clone(), label(cloud.as_str())], f64::from(*percent) / 100.0)
            })
        }),
    )?;
    page.gauges(
        "twinspan_checks_frozen",
        "1 while the probes of the pool are not believed and remove nothing.",
        ["pool"],
        pools().map(|(pool, name)| ([name], flag(pool.frozen.is_some()))),
    )?;
    page.gauges(
        "twinspan_removals_held",
        "Endpoints that are held for bad and stay in use all the same, by what keeps them: bytes of live sessions \
         (`contradicted`), probes that are not believed (`frozen`), a limit (`velocity`, `floor`, `cap`), no other cloud \
         (`last_cloud`), or because they were bad a moment ago only (`lately`).",
        ["pool", "reason"],
        pools().flat_map(|(pool, name)| {
            KEPT.map(|kept| {
                let count = pool.endpoints.iter().filter(|one| one.judged.kept == Some(kept)).count();
                ([name.clone(), kept_word(kept).into()], count as f64)
            })
        }),
    )?;
    page.gauges(
        "twinspan_pool_out_ratio",
        "Part of the weight of a pool that may not be used, 0 to 1; `ejected` is what sessions took out of that, `checks` \
         what probes alone have taken out within the last minute. Clouds that are down as a whole are not counted.",
        ["pool", "by"],
        pools().flat_map(|(pool, name)| {
            let taken = pool.taken;
            [("all", taken.out), ("ejected", taken.ejected), ("checks", taken.by_checks)]
                .map(|(by, percent)| ([name.clone(), by.into()], f64::from(percent) / 100.0))
        }),
    )
}

/// The families of a pool in a cloud.
pub(super) fn of_groups(
    page: &mut Page<'_>,
    view: &View,
    overview: &Overview,
    totals: &BTreeMap<Group, Sums>,
) -> fmt::Result {
    page.counters(
        "twinspan_ejections",
        "How often endpoints were taken out because of what sessions met there.",
        ["pool", "cloud"],
        totals.keys().map(|(pool, cloud)| {
            ([label(pool.as_str()), label(cloud.as_str())], view.ejections(pool, cloud))
        }),
    )?;
    page.gauges(
        "twinspan_endpoints",
        "Endpoints by standing: `in`, `kept` (in use though held for bad), `out`, `trial` (one session at a time may try it), \
         `new` (no probe has been good yet).",
        ["pool", "cloud", "standing"],
        overview.pools.iter().flat_map(standings).map(|((pool, cloud, word), count)| {
            ([label(pool), label(cloud), word.into()], count as f64)
        }),
    )
}

/// How many endpoints have each standing, by cloud. A cloud that has endpoints has every word.
fn standings(pool: &PoolView) -> Vec<((&str, &str, &'static str), usize)> {
    let mut clouds: BTreeMap<&str, [usize; Word::ALL.len()]> = BTreeMap::new();
    for endpoint in &pool.endpoints {
        let counts = clouds.entry(endpoint.identity.cloud.as_str()).or_default();
        for (count, word) in counts.iter_mut().zip(Word::ALL) {
            *count += usize::from(endpoint.judged.standing == word);
        }
    }
    let name = pool.name.as_str();
    let mut told = Vec::new();
    for (cloud, counts) in clouds {
        told.extend(
            Word::ALL.into_iter().zip(counts).map(|(word, count)| ((name, cloud, word.as_str()), count)),
        );
    }
    told
}

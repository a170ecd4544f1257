//! What becomes of a pool from one snapshot to the next, told once in journal and metrics: traffic that moved to
//! other clouds, and outages from their start to their end.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use super::{EndpointView, Failover, Happening, Kind, View, Word};
use crate::{
    ids::{Generation, PoolName},
    state::{AllDown, Pool, Snapshot, Tier},
};

/// Tells what happens to pools. Remembers the outages under way.
#[derive(Debug, Default)]
pub(super) struct News {
    outages: HashMap<PoolName, Outage>,
}

/// Nothing of a pool may be used.
#[derive(Debug)]
struct Outage {
    since: Instant,
    how: AllDown,
    /// The clouds that had the traffic before.
    from: String,
}

impl News {
    /// Tells how the pools of `after` differ from those of `before`. Moves count from when sessions are accepted: until
    /// then nothing moved, endpoints only became known.
    pub(super) fn tell(
        &mut self,
        (before, after): (&Snapshot, &Snapshot),
        ready: bool,
        view: &View,
        now: Instant,
    ) {
        let old: HashMap<_, _> = before.pools.iter().map(|pool| (&pool.name, pool)).collect();
        self.outages.retain(|name, _| after.pools.iter().any(|pool| pool.name == *name));
        for pool in &after.pools {
            let Some(was) = old.get(&pool.name).filter(|was| !Arc::ptr_eq(was, pool)) else {
                continue;
            };
            let counted = ready.then_some(view);
            match (was.all_down, pool.all_down) {
                (None, None) => moved(was, pool, counted, after.generation),
                (Some(before), Some(how)) if before == how => {}
                (_, Some(how)) => {
                    let failover = self.begin(was, pool, how, now);
                    entered(was, pool, how, view, after.generation);
                    count(failover, counted);
                }
                (Some(_), None) => {
                    // A pool that never had an endpoint has none again: its names have just been resolved.
                    let Some(outage) = self.outages.remove(&pool.name) else { continue };
                    left(pool, (outage.how, now.duration_since(outage.since)), view, after.generation);
                    let from =
                        if outage.how == AllDown::Refuse { Failover::NONE.to_owned() } else { outage.from };
                    count(failover(&pool.name, from, clouds(pool)), counted);
                }
            }
        }
    }

    /// Notes an outage, or that one under way has another effect; the failover that it is.
    fn begin(&mut self, was: &Pool, pool: &Pool, how: AllDown, now: Instant) -> Option<Failover> {
        let fresh = || Outage { since: now, how, from: clouds(was) };
        let outage = self.outages.entry(pool.name.clone()).or_insert_with(fresh);
        outage.how = how;
        // Nobody has moved while the old clouds are tried on.
        (how == AllDown::Refuse)
            .then(|| failover(&pool.name, outage.from.clone(), Failover::NONE.to_owned()))
            .flatten()
    }
}

fn moved(was: &Pool, after: &Pool, counted: Option<&View>, generation: Generation) {
    let Some(view) = counted else { return };
    let Some(failover) = failover(&after.name, clouds(was), clouds(after)) else { return };
    let Failover { pool, from, to } = &failover;
    let event = Happening::new(Kind::Failover).pool(pool).change(from, to).because(answering(pool, view));
    let event = event.said(format!("pool {pool}: new sessions {}", motion(after, from, to)));
    view.journal.record(generation, event);
    count(Some(failover), counted);
}

/// A cloud that comes back takes its traffic in steps, while another one helps.
fn motion(pool: &Pool, from: &str, to: &str) -> String {
    let Some(tier) = pool.tiers.first().filter(|_| pool.spilled > 0) else {
        return format!("moved from {from} to {to}");
    };
    let own = tier.groups.len().saturating_sub(pool.spilled);
    let share: f64 = tier.shares.fractions().take(own).sum();
    format!("begin to move from {from} to {to}, which takes {:.0} % of them for now", share * 100.0)
}

fn entered(was: &Pool, pool: &Pool, how: AllDown, view: &View, generation: Generation) {
    let (name, before, clouds) = (&pool.name, clouds(was), clouds(pool));
    let effect = match how {
        AllDown::TryAnyway if !clouds.is_empty() => format!("are tried anyway on {clouds}"),
        AllDown::TryAnyway | AllDown::Refuse => "are refused".to_owned(),
    };
    let text = format!("every endpoint of pool {name} is out: new sessions {effect}");
    let event = Happening::new(Kind::Outage).pool(name).change(before, how.as_str());
    view.journal.record(generation, event.because(answering(name, view)).said(text));
}

fn left(pool: &Pool, (how, lasted): (AllDown, Duration), view: &View, generation: Generation) {
    let (name, clouds, lasted) = (&pool.name, clouds(pool), lasted.as_secs_f64());
    let text =
        format!("pool {name} has endpoints again: new sessions go to {clouds} (all out for {lasted:.1} s)");
    let event = Happening::new(Kind::OutageOver).pool(name).change(how.as_str(), clouds);
    view.journal.record(generation, event.because(answering(name, view)).said(text));
}

/// How many endpoints of a pool are in, in each of its clouds, and what is between in and out: `aws 0 of 2 up, gcp 1 of 2
/// up (1 kept)`.
fn answering(pool: &PoolName, view: &View) -> String {
    let overview = view.overview.load();
    let endpoints = overview.pools.iter().filter(|one| one.name == *pool).flat_map(|one| &one.endpoints);
    let mut clouds: BTreeMap<&str, Vec<&EndpointView>> = BTreeMap::new();
    for endpoint in endpoints {
        clouds.entry(endpoint.identity.cloud.as_str()).or_default().push(endpoint);
    }
    let told = clouds.iter().map(|(cloud, endpoints)| {
        let number = |word| endpoints.iter().filter(|one| one.judged.standing == word).count();
        let more = [Word::Kept, Word::Trial, Word::New].map(|word| (number(word), word.as_str()));
        let more: Vec<String> = more
            .iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, word)| format!("{count} {word}"))
            .collect();
        let more = if more.is_empty() { String::new() } else { format!(" ({})", more.join(", ")) };
        format!("{cloud} {} of {} up{more}", number(Word::In), endpoints.len())
    });
    told.collect::<Vec<_>>().join(", ")
}

fn count(failover: Option<Failover>, counted: Option<&View>) {
    if let (Some(failover), Some(view)) = (failover, counted) {
        view.failed_over(failover);
    }
}

fn failover(pool: &PoolName, from: String, to: String) -> Option<Failover> {
    (from != to && !from.is_empty() && !to.is_empty()).then(|| Failover { pool: pool.clone(), from, to })
}

/// The clouds of the first tier, joined with `+`; not those that help while one of them comes back.
fn clouds(pool: &Pool) -> String {
    let names = |tier: &Tier| {
        let own = tier.groups.len().saturating_sub(pool.spilled);
        tier.groups.iter().take(own).map(|group| group.cloud.as_str()).collect::<Vec<_>>().join("+")
    };
    pool.tiers.first().map(names).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        balance::{Balance, Shares},
        control::admin::tests::{endpoint, overview, view},
        ids::CloudName,
        state::{Connect, Group},
    };

    /// A snapshot of one pool whose first tier stands in `clouds`.
    fn snapshot(generation: u64, clouds: &[&str], all_down: Option<AllDown>) -> Snapshot {
        let group = |cloud: &&str| Group {
            cloud: CloudName::from(*cloud),
            endpoints: Vec::new(),
            shares: Shares::new([1]),
            maglev: None,
            cell: Arc::default(),
        };
        let tier = Tier {
            groups: clouds.iter().map(group).collect(),
            shares: Shares::new(clouds.iter().map(|_| 1)),
            cell: Arc::default(),
        };
        let timeout = Duration::from_secs(1);
        let tiers = if clouds.is_empty() { Vec::new() } else { vec![tier] };
        let pool = Pool {
            all_down,
            ..Pool::new(PoolName::from("p"), Balance::Random, tiers, Connect::plain(timeout, 1, timeout))
        };
        Snapshot {
            generation: Generation(generation),
            listeners: Vec::new(),
            pools: vec![Arc::new(pool)],
            ..Snapshot::default()
        }
    }

    /// The sentences and the failovers of pool `p` from a row of snapshots, 7.1 s apart.
    fn told(ready: bool, snapshots: &[Snapshot]) -> (Vec<String>, Vec<(String, String, u64)>) {
        let (view, mut news, mut now) = (view(), News::default(), Instant::now());
        let before = view.journal.last(usize::MAX).len();
        for pair in snapshots.windows(2) {
            news.tell((&pair[0], &pair[1]), ready, &view, now);
            now += Duration::from_millis(7100);
        }
        let events = view.journal.last(usize::MAX).split_off(before);
        let failovers = view.failovers().into_iter().filter(|(failover, _)| failover.pool.as_str() == "p");
        (
            events.iter().map(|event| event.text.clone()).collect(),
            failovers.map(|(failover, count)| (failover.from, failover.to, count)).collect(),
        )
    }

    #[test]
    fn an_outage_with_old_endpoints_tried_is_no_failover() {
        let how = Some(AllDown::TryAnyway);
        let all = [
            snapshot(1, &["gcp"], None),
            snapshot(2, &["aws"], how),
            snapshot(3, &["aws"], how),
            snapshot(4, &["gcp"], None),
        ];
        let (events, failovers) = told(true, &all);
        assert_eq!(
            events,
            [
                "every endpoint of pool p is out: new sessions are tried anyway on aws",
                "pool p has endpoints again: new sessions go to gcp (all out for 14.2 s)",
            ]
        );
        assert!(failovers.is_empty(), "{failovers:?}");
    }

    #[test]
    fn an_outage_that_ends_in_another_cloud_is_one_failover() {
        let all = [
            snapshot(1, &["gcp"], None),
            snapshot(2, &["aws"], Some(AllDown::TryAnyway)),
            snapshot(3, &["aws"], None),
        ];
        assert_eq!(told(true, &all).1, [("gcp".to_owned(), "aws".to_owned(), 1)]);
    }

    #[test]
    fn an_outage_that_refuses_is_told_at_both_ends_and_never_with_an_empty_label() {
        let all = [
            snapshot(1, &["gcp"], None),
            snapshot(2, &[], Some(AllDown::Refuse)),
            snapshot(3, &["gcp"], None),
        ];
        let (events, failovers) = told(true, &all);
        assert_eq!(
            events,
            [
                "every endpoint of pool p is out: new sessions are refused",
                "pool p has endpoints again: new sessions go to gcp (all out for 7.1 s)",
            ]
        );
        let one = |from: &str, to: &str| (from.to_owned(), to.to_owned(), 1);
        assert_eq!(failovers, [one("gcp", "none"), one("none", "gcp")]);
    }

    #[test]
    fn nothing_has_moved_before_sessions_are_accepted() {
        let all = [snapshot(1, &["aws"], None), snapshot(2, &["gcp"], None)];
        assert_eq!(told(false, &all), (Vec::new(), Vec::new()));
        assert_eq!(told(true, &all).0, ["pool p: new sessions moved from aws to gcp"]);
    }

    #[test]
    fn a_cloud_that_comes_back_while_another_helps_takes_its_traffic_in_steps() {
        let mut helped = snapshot(2, &["aws", "gcp"], None);
        let pool = Arc::get_mut(&mut helped.pools[0]).unwrap();
        pool.spilled = 1;
        pool.tiers[0].shares = Shares::new([10, 90]);
        let all = [snapshot(1, &["gcp"], None), helped, snapshot(3, &["aws"], None)];
        let (events, failovers) = told(true, &all);
        assert_eq!(
            events,
            ["pool p: new sessions begin to move from gcp to aws, which takes 10 % of them for now"],
            "that it has all of them is no move"
        );
        assert_eq!(failovers, [("gcp".to_owned(), "aws".to_owned(), 1)]);
    }

    #[test]
    fn the_evidence_goes_by_who_may_be_used_and_not_by_probes() {
        let mut endpoints =
            ["10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1"].map(|address| endpoint("db", "aws", address));
        endpoints[0].judged.standing = Word::Out;
        endpoints[1].judged.standing = Word::Kept;
        let view = view();
        view.overview.store(Arc::new(overview(endpoints.into())));
        assert_eq!(answering(&PoolName::from("db"), &view), "aws 1 of 3 up (1 kept)");
    }

    #[test]
    fn names_that_resolve_for_the_first_time_end_no_outage() {
        let all = [snapshot(1, &[], Some(AllDown::TryAnyway)), snapshot(2, &["aws"], None)];
        assert_eq!(told(true, &all), (Vec::new(), Vec::new()));
    }
}

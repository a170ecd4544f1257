//! Totals of a pool in a cloud that never fall. An endpoint's cell goes with the endpoint, and a sum over those that
//! are left would step back: Prometheus takes that for a restart and counts everything again. So cells are kept while
//! sessions use them, and what they held last is kept when they go.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError, atomic::AtomicU64},
};

use crate::{
    control::Overview,
    ids::{CloudName, PoolName},
    state::{EndpointCell, HistogramReading, SpareEnd},
    telemetry::Cause,
};

/// A pool in a cloud.
pub(super) type Group = (PoolName, CloudName);

/// The sums of every group, and the cells that they come from.
#[derive(Debug, Default)]
pub struct Totals {
    /// Series that the metrics page left out.
    pub(super) series_dropped: AtomicU64,
    ledger: Mutex<Ledger>,
}

/// What was counted.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Sums {
    /// Sessions now.
    pub(super) active: u64,
    /// Sessions that connected.
    pub(super) sessions: u64,
    /// Bytes to endpoints.
    pub(super) to_upstream: u64,
    /// Bytes to clients.
    pub(super) to_client: u64,
    /// Failed attempts, by place in [`Cause::ALL`].
    pub(super) failures: [u64; Cause::ALL.len()],
    /// Attempts that were overtaken, sessions ended before a first byte, sessions that got none in time.
    pub(super) gray: [u64; 3],
    /// Durations of attempts that connected.
    pub(super) connect: HistogramReading,
    /// Spares that are ready now.
    pub(super) spares: u64,
    /// What became of spares, by place in [`SpareEnd::ALL`].
    pub(super) spare_ends: [u64; SpareEnd::ALL.len()],
    /// Spares that could not be dialled.
    pub(super) spare_failures: u64,
}

#[derive(Debug, Default)]
struct Ledger {
    cells: BTreeMap<usize, Tracked>,
    closed: BTreeMap<Group, Sums>,
}

/// A cell, the group that it counts for, and what it had counted for another group before.
#[derive(Debug)]
struct Tracked {
    cell: Arc<EndpointCell>,
    group: Group,
    before: Sums,
}

impl Totals {
    /// Takes in the cells of `overview`: what comes and goes between two readings counts as well.
    pub(in crate::control) fn follow(&self, overview: &Overview) {
        let mut ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        ledger.follow(overview);
        ledger.close();
    }

    /// The sums of every group of `overview`, and of those that have left it while they have sessions.
    pub(super) fn read(&self, overview: &Overview) -> BTreeMap<Group, Sums> {
        let mut ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        ledger.follow(overview);
        ledger.close();
        let Ledger { cells, closed } = &mut *ledger;
        let mut sums: BTreeMap<Group, Sums> = BTreeMap::new();
        for tracked in cells.values() {
            sums.entry(tracked.group.clone()).or_default().add(&tracked.reading());
        }
        // A group without a cell has left for good; should it come back, it starts again, like a restart.
        closed.retain(|group, _| sums.contains_key(group));
        for (group, past) in closed {
            sums.entry(group.clone()).or_default().add(past);
        }
        sums
    }
}

impl Ledger {
    /// Takes in new cells, and cells whose endpoint was moved to another cloud.
    fn follow(&mut self, overview: &Overview) {
        for endpoint in overview.pools.iter().flat_map(|pool| &pool.endpoints) {
            let group = (endpoint.identity.pool.clone(), endpoint.identity.cloud.clone());
            let tracked = self.cells.entry(place(&endpoint.cell)).or_insert_with(|| Tracked {
                cell: Arc::clone(&endpoint.cell),
                group: group.clone(),
                before: Sums::default(),
            });
            if tracked.group != group {
                let left = std::mem::replace(&mut tracked.group, group);
                let now = Sums::of(&tracked.cell);
                self.closed.entry(left).or_default().add(&now.since(&tracked.before));
                tracked.before = now;
            }
        }
    }

    /// Lets go of the cells that nobody else holds: they cannot change any more.
    fn close(&mut self) {
        let closed = &mut self.closed;
        self.cells.retain(|_, tracked| {
            let used = Arc::strong_count(&tracked.cell) > 1;
            if !used {
                closed.entry(tracked.group.clone()).or_default().add(&tracked.counted());
            }
            used
        });
    }
}

impl Tracked {
    /// What the cell counted for its group, with the sessions of now.
    fn reading(&self) -> Sums {
        Sums { active: self.cell.active(), spares: self.cell.spares.ready(), ..self.counted() }
    }

    fn counted(&self) -> Sums {
        Sums::of(&self.cell).since(&self.before)
    }
}

impl Sums {
    fn of(cell: &EndpointCell) -> Self {
        let (to_upstream, to_client) = cell.bytes();
        let mut failures = [0; Cause::ALL.len()];
        for (count, (_, seen)) in failures.iter_mut().zip(cell.connect_failures()) {
            *count = seen;
        }
        let connect = cell.connect();
        let (overtaken, empty, mute) = cell.gray();
        Self {
            gray: [overtaken, empty, mute],
            active: 0,
            sessions: cell.sessions(),
            to_upstream,
            to_client,
            failures,
            connect,
            spares: 0,
            spare_ends: cell.spares.ends(),
            spare_failures: cell.spares.failures(),
        }
    }

    fn since(&self, before: &Self) -> Self {
        let mut failures = self.failures;
        for (count, earlier) in failures.iter_mut().zip(before.failures) {
            *count = count.saturating_sub(earlier);
        }
        let mut gray = self.gray;
        for (count, earlier) in gray.iter_mut().zip(before.gray) {
            *count = count.saturating_sub(earlier);
        }
        let mut spare_ends = self.spare_ends;
        for (count, earlier) in spare_ends.iter_mut().zip(before.spare_ends) {
            *count = count.saturating_sub(earlier);
        }
        Self {
            active: 0,
            sessions: self.sessions.saturating_sub(before.sessions),
            to_upstream: self.to_upstream.saturating_sub(before.to_upstream),
            to_client: self.to_client.saturating_sub(before.to_client),
            failures,
            gray,
            connect: self.connect.since(&before.connect),
            spares: 0,
            spare_ends,
            spare_failures: self.spare_failures.saturating_sub(before.spare_failures),
        }
    }

    /// Adds another reading to this one.
    pub(super) fn add(&mut self, other: &Self) {
        self.active += other.active;
        self.sessions += other.sessions;
        self.to_upstream += other.to_upstream;
        self.to_client += other.to_client;
        for (count, more) in self.failures.iter_mut().zip(other.failures) {
            *count += more;
        }
        for (count, more) in self.gray.iter_mut().zip(other.gray) {
            *count += more;
        }
        self.connect.add(&other.connect);
        self.spares += other.spares;
        for (count, more) in self.spare_ends.iter_mut().zip(other.spare_ends) {
            *count += more;
        }
        self.spare_failures += other.spare_failures;
    }
}

/// A number that no other live cell has.
fn place(cell: &Arc<EndpointCell>) -> usize {
    Arc::as_ptr(cell).addr()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::control::admin::tests::{endpoint, overview};

    fn group(cloud: &str) -> Group {
        (PoolName::from("db"), CloudName::from(cloud))
    }

    #[test]
    fn a_sum_does_not_fall_when_an_endpoint_goes() {
        let totals = Totals::default();
        let (stays, goes) = (endpoint("db", "aws", "10.0.0.1:1"), endpoint("db", "aws", "10.0.0.2:1"));
        for cell in [&stays.cell, &goes.cell] {
            cell.connected(Duration::from_millis(3));
            cell.moved(100, 10);
            cell.connect_failed(Cause::Refused);
        }
        let before = totals.read(&overview(vec![stays.clone(), goes.clone()]));
        assert_eq!(before[&group("aws")].to_upstream, 200);

        // A session still holds the cell of the endpoint that left: its bytes count.
        let session = Arc::clone(&goes.cell);
        session.begin();
        drop(goes);
        session.moved(5, 0);
        let during = totals.read(&overview(vec![stays.clone()]));
        assert_eq!((during[&group("aws")].to_upstream, during[&group("aws")].active), (205, 1));

        session.finish();
        session.moved(1, 0);
        drop(session);
        for _ in 0..3 {
            let after = totals.read(&overview(vec![stays.clone()]));
            let after = &after[&group("aws")];
            assert_eq!((after.to_upstream, after.sessions, after.active), (206, 2, 0));
            assert_eq!((after.failures.iter().sum::<u64>(), after.connect.count()), (2, 2));
        }
    }

    #[test]
    fn spares_of_an_endpoint_that_goes_stay_counted_and_are_no_longer_there() {
        let totals = Totals::default();
        let (stays, goes) = (endpoint("db", "aws", "10.0.0.1:1"), endpoint("db", "aws", "10.0.0.2:1"));
        for cell in [&stays.cell, &goes.cell] {
            cell.spares.begin();
            cell.spares.begin();
            cell.spares.finish(SpareEnd::Age);
            cell.spares.fail();
        }
        let seen = |overview| {
            let sums = totals.read(&overview).remove(&group("aws")).unwrap();
            (sums.spares, sums.spare_ends, sums.spare_failures, sums.sessions)
        };
        assert_eq!(seen(overview(vec![stays.clone(), goes.clone()])), (2, [0, 0, 2, 0], 2, 0));
        goes.cell.spares.finish(SpareEnd::Withdrawn);
        drop(goes);
        assert_eq!(seen(overview(vec![stays.clone()])), (1, [0, 0, 2, 1], 2, 0));
        stays.cell.spares.finish(SpareEnd::Used);
        stays.cell.given_spare();
        assert_eq!(seen(overview(vec![stays.clone()])), (0, [1, 0, 2, 1], 2, 1));
        assert_eq!(stays.cell.connect_ewma(), Duration::ZERO, "nothing was dialled");
    }

    #[test]
    fn an_endpoint_that_moves_to_another_cloud_leaves_its_past_behind() {
        let totals = Totals::default();
        let mut moving = endpoint("db", "aws", "10.0.0.1:1");
        let stays = endpoint("db", "aws", "10.0.0.2:1");
        moving.cell.moved(100, 0);
        totals.read(&overview(vec![moving.clone(), stays.clone()]));
        let mut identity = (*moving.identity).clone();
        identity.cloud = CloudName::from("gcp");
        moving.identity = Arc::new(identity);
        moving.cell.moved(7, 0);
        let moved = overview(vec![moving.clone(), stays.clone()]);
        totals.read(&moved);
        moving.cell.moved(1, 0);
        let sums = totals.read(&moved);
        // The bytes up to the moment that the move was noticed belong to the old cloud.
        assert_eq!((sums[&group("aws")].to_upstream, sums[&group("gcp")].to_upstream), (107, 1));
    }

    #[test]
    fn an_endpoint_that_comes_and_goes_between_two_readings_counts() {
        let totals = Totals::default();
        let (stays, passes) = (endpoint("db", "aws", "10.0.0.1:1"), endpoint("db", "aws", "10.0.0.2:1"));
        totals.read(&overview(vec![stays.clone()]));
        totals.follow(&overview(vec![stays.clone(), passes.clone()]));
        passes.cell.moved(100, 0);
        drop(passes);
        totals.follow(&overview(vec![stays.clone()]));
        assert_eq!(totals.read(&overview(vec![stays]))[&group("aws")].to_upstream, 100);
    }

    #[test]
    fn a_group_that_left_for_good_is_forgotten() {
        let totals = Totals::default();
        let gone = endpoint("db", "aws", "10.0.0.1:1");
        gone.cell.moved(1, 1);
        totals.read(&overview(vec![gone.clone()]));
        drop(gone);
        let empty = overview(Vec::new());
        totals.read(&empty);
        assert!(totals.read(&empty).is_empty());
    }
}

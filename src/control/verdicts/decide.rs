//! The order in which conclusions are drawn: whom to believe, who is good again, which clouds are down, who goes.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    Verdicts,
    cloud::{State, Tally, seconds},
    endpoint::{Held, Record, SUSPICION, Use},
    pool::Pool,
};

/// Within this time everything must fail for the probes to be what is broken.
pub(super) const AT_ONCE: Duration = Duration::from_secs(5);

/// Each round removes something or leaves a cloud, and few have much to remove.
const MOST_ROUNDS: usize = 16;

impl Verdicts {
    /// Everything that follows now, before it is told.
    pub(super) fn conclude(&mut self, now: Instant) {
        self.readmit(now);
        for pool in &mut self.pools {
            pool.listen(now);
            pool.contradict(now);
        }
        self.freeze(now);
        for pool in &mut self.pools {
            pool.freeze(now);
        }
        for pool in &mut self.pools {
            pool.compare();
        }
        for pool in &mut self.pools {
            pool.look(now);
        }
        self.warn(now);
        self.settle(now);
        // What is taken back counts for the limits of what goes.
        self.relieve(now);
        self.restrain(now);
        self.pace(now);
        self.pools.iter_mut().for_each(|pool| pool.count_losses(now));
    }

    /// What is in use is warned if one of the same cloud has just died and no byte has come from it since: they often die
    /// together, and each would otherwise be found out only by as many clients as the first.
    fn warn(&mut self, now: Instant) {
        let mut deaths: Vec<Option<Instant>> = vec![None; self.clouds.len()];
        for record in self.pools.iter().flat_map(|pool| &pool.members) {
            if let Some(last) = deaths.get_mut(record.cloud) {
                *last = record.died(now).max(*last);
            }
        }
        for record in self.pools.iter_mut().flat_map(|pool| &mut pool.members) {
            let death = deaths.get(record.cloud).copied().flatten();
            record.detector.warned = record.is_in() && death.is_some_and(|at| !record.has_moved_since(at));
        }
    }

    /// What should go goes, as far as it may.
    fn restrain(&mut self, now: Instant) {
        // What is removed may leave nothing but what is bad for certain, and a pool that loses its last other cloud goes
        // on with one that is down: both is judged again.
        for _ in 0..MOST_ROUNDS {
            self.strike(now);
            let removed = self.remove(now);
            if !self.leave(now) && !removed {
                break;
            }
            self.settle(now);
        }
    }

    /// Whether probes fail everywhere at once, which says more about them than about endpoints.
    fn freeze(&mut self, now: Instant) {
        let mut probed = 0_u32;
        let (mut all_down, mut corroborated) = (true, false);
        let mut span: Option<(Instant, Instant)> = None;
        let records = self.pools.iter().flat_map(|pool| &pool.members);
        for record in records.filter(|record| record.probed && record.proven) {
            probed += 1;
            all_down &= record.is_down();
            corroborated |= record.is_down() && record.detector.corroborates(now);
            span = Some(span.map_or((record.changed, record.changed), |(first, last)| {
                (first.min(record.changed), last.max(record.changed))
            }));
        }
        if !all_down || probed < 2 {
            self.unfreeze("a probe is good again");
            self.disproved = false;
            return;
        }
        if corroborated {
            self.unfreeze("a session has failed too");
            self.disproved = true;
            return;
        }
        let Some((first, last)) = span else { return };
        if self.frozen || self.disproved || last.duration_since(first) > AT_ONCE {
            return;
        }
        self.frozen = true;
        self.note = Arc::from(format!(
            "all {probed} probed endpoints failed within {}, and no session did: probes remove nothing more",
            seconds(AT_ONCE)
        ));
        for cloud in &mut self.clouds {
            if let State::Down { since, by_checks: true } = cloud.state
                && since >= first
            {
                cloud.state = State::Up;
                cloud.note = Arc::from("taken back: the probes of everything failed at once");
            }
        }
        for pool in &mut self.pools {
            pool.take_back(first, now);
        }
    }

    fn unfreeze(&mut self, why: &str) {
        if self.frozen {
            self.frozen = false;
            self.note = Arc::from(why);
        }
    }

    /// Trials begin and end, and what probes took out comes back.
    fn readmit(&mut self, now: Instant) {
        for pool in &mut self.pools {
            let (lost, patience, rules) = (pool.regains, pool.patience, pool.ejection);
            let slow = !pool.slow_start.is_zero();
            for record in &mut pool.members {
                record.first(now);
                record.readmit(lost, slow, now);
                if record.judge_trial(patience, slow, now) == Some(false) {
                    record.eject_again(&rules, &mut self.rng, now);
                }
                record.begin_trial(now);
            }
        }
    }

    /// Finds what should go, cloud by cloud and one by one.
    pub(super) fn settle(&mut self, now: Instant) {
        self.leave(now);
        let frozen = self.frozen;
        for pool in &mut self.pools {
            let frozen = frozen || pool.frozen;
            let (rules, seats) = (pool.ejection, std::mem::take(&mut pool.seats));
            for record in &mut pool.members {
                let left = seats.iter().any(|seat| seat.cloud == record.cloud && seat.left);
                record.hold(&rules, left, frozen, now);
            }
            pool.seats = seats;
        }
    }

    /// The members of each cloud, counted.
    fn tallies(&self, now: Instant) -> Vec<Tally> {
        let mut tallies = vec![Tally::default(); self.clouds.len()];
        for pool in &self.pools {
            let frozen = self.frozen || pool.frozen;
            for record in &pool.members {
                if let Some((tally, cloud)) = tallies.get_mut(record.cloud).zip(self.clouds.get(record.cloud))
                {
                    tally.count(record, frozen, cloud.is_down(), now);
                }
            }
        }
        tallies
    }

    /// Clouds that are good again come back: once that has lasted long enough, or at once if they are wanted.
    pub(super) fn revive(&mut self, wanted: &[bool], now: Instant) {
        let tallies = self.tallies(now);
        let mut revived = false;
        for (number, (cloud, tally)) in self.clouds.iter_mut().zip(&tallies).enumerate() {
            if !cloud.is_down() {
                continue;
            }
            if tally.total > 0 && !tally.is_good(cloud.domain.up_above) {
                cloud.good = None;
                continue;
            }
            let ready = *cloud.good.get_or_insert_with(|| now + cloud.flaps.damp(&mut self.rng, now));
            if now < ready && !wanted.get(number).is_some_and(|wanted| *wanted) {
                continue;
            }
            cloud.good = None;
            cloud.state = State::Recovering { since: now, percent: 0 };
            for pool in &mut self.pools {
                // What is still bad was not in use: to leave it out now removes nothing. What is good again begins anew, or
                // the failures that took the cloud down would do so at once again.
                if pool.has_left(number) {
                    for record in pool.members.iter_mut().filter(|record| record.cloud == number) {
                        record.stay_out(now);
                        record.begin_anew(now);
                    }
                }
            }
            self.evidence
                .insert(number, format!("{} of {} endpoints are good again", tally.good, tally.total));
            revived = true;
        }
        if revived {
            self.settle(now);
        }
    }

    /// Clouds that are down as a whole, the worst first: each verdict may make another cloud the last one.
    fn strike(&mut self, now: Instant) {
        if self.frozen {
            return;
        }
        let tallies = self.tallies(now);
        let mut bad: Vec<(u64, usize)> = self
            .clouds
            .iter()
            .zip(&tallies)
            .enumerate()
            .filter(|(_, (cloud, tally))| {
                tally.held
                    && !cloud.is_down()
                    && tally.is_below(cloud.domain.down_below)
                    && tally.contradicted * 4 < tally.total.max(1)
            })
            .map(|(number, (_, tally))| (tally.health(), number))
            .collect();
        bad.sort_unstable();
        for (_, number) in bad {
            let clouds = &self.clouds;
            let may =
                self.pools.iter().any(|pool| pool.has_in(number) && pool.can_leave(number, clouds, now));
            if let (true, Some(cloud), Some(tally)) = (may, self.clouds.get_mut(number), tallies.get(number))
            {
                cloud.state = State::Down { since: now, by_checks: !tally.corroborated };
                cloud.good = None;
                cloud.note = Arc::from(tally.words());
                self.evidence.remove(&number);
                self.leave(now);
                self.hush(number, now);
            }
        }
    }

    /// What sessions hold against endpoints of a cloud that is down is kept for later: a trial must clear it.
    fn hush(&mut self, number: usize, now: Instant) {
        for pool in self.pools.iter_mut().filter(|pool| pool.has_left(number)) {
            let rules = pool.ejection;
            for record in pool.members.iter_mut().filter(|record| record.cloud == number) {
                record.held = None;
                record.kept = None;
                let fails = record.detector.failing(SUSPICION, now);
                if record.is_in()
                    && !record.is_down()
                    && (fails || record.detector.ejects(&rules, now).is_some())
                {
                    let back_off = record.back_off.next(&rules, &mut self.rng, now);
                    let why =
                        format!("its cloud is down, and so were its sessions: {}", record.detector.causes());
                    record.eject(Arc::from(why), true, back_off, now);
                }
            }
        }
    }

    /// What should go goes, within the limits. True if anything did.
    fn remove(&mut self, now: Instant) -> bool {
        let down = self.down();
        let mut removed = false;
        for pool in &mut self.pools {
            let rules = pool.ejection;
            let (ejected, gone) = pool.remove(&down, now);
            removed |= gone;
            for place in ejected {
                let Some(record) = pool.members.get_mut(place) else { continue };
                let Some(Held::Sessions(cause)) = record.held else { continue };
                let back_off = record.back_off.next(&rules, &mut self.rng, now);
                let why = cause.words(&record.detector.causes());
                record.eject(Arc::from(why), false, back_off, now);
            }
        }
        removed
    }

    /// Each pool leaves the clouds that are down, but not its last. True if one did or came back.
    pub(super) fn leave(&mut self, now: Instant) -> bool {
        let clouds = &self.clouds;
        self.pools.iter_mut().fold(false, |changed, pool| pool.leave(clouds, now) | changed)
    }

    fn down(&self) -> Vec<Option<Instant>> {
        self.clouds.iter().map(super::cloud::Cloud::down_since).collect()
    }

    /// The shares of clouds that come back.
    pub(super) fn pace(&mut self, now: Instant) {
        for (number, cloud) in self.clouds.iter_mut().enumerate() {
            if matches!(cloud.state, State::Recovering { .. }) {
                let users =
                    self.pools.iter().filter(|pool| pool.seats.iter().any(|seat| seat.cloud == number));
                cloud.recover(users.map(|pool| pool.rate).sum(), now);
                if let Some(evidence) = self.evidence.remove(&number) {
                    cloud.note = Arc::from(format!("{evidence}; {}", cloud.note));
                }
            }
        }
        let clouds = &self.clouds;
        for pool in &mut self.pools {
            let mut seats = std::mem::take(&mut pool.seats);
            let usable: Vec<bool> = seats.iter().map(|seat| !seat.left && pool.has_in(seat.cloud)).collect();
            let others = usable.iter().filter(|usable| **usable).count();
            for (seat, usable) in seats.iter_mut().zip(usable) {
                let alone = others == usize::from(usable);
                seat.percent = match clouds.get(seat.cloud).map(|cloud| cloud.state) {
                    _ if seat.left => 0,
                    // Nothing else could take what it does not get.
                    Some(State::Recovering { percent, .. }) if !alone && seat.returns => percent,
                    Some(State::Recovering { .. }) => 100,
                    _ => {
                        seat.returns &= seat.left;
                        100
                    }
                };
            }
            pool.seats = seats;
        }
    }
}

impl Pool {
    /// Finds whose failed probes live sessions speak against. An answer is the endpoint's own word; only when most of
    /// the pool answers wrongly at once, the question is what is wrong.
    fn contradict(&mut self, now: Instant) {
        let proven = self.members.iter().filter(|record| record.proven).count();
        let mut answers: Vec<Instant> = self
            .members
            .iter()
            .filter(|record| record.proven && record.is_down() && record.opinion.answered)
            .map(|record| record.changed)
            .collect();
        answers.sort_unstable();
        for record in &mut self.members {
            record.contradicted = record.is_down() && record.moves_bytes(now);
            if record.contradicted && record.opinion.answered {
                let from = answers.partition_point(|at| *at + AT_ONCE < record.changed);
                let to = answers.partition_point(|at| *at <= record.changed + AT_ONCE);
                record.contradicted = (to - from) * 2 > proven;
            }
        }
    }

    /// Whether so many failed probes are contradicted that the others are not believed either.
    fn freeze(&mut self, now: Instant) {
        let proven = || self.members.iter().filter(|record| record.proven);
        let doubtful =
            proven().filter(|record| record.contradicted && !record.detector.corroborates(now)).count();
        let all = proven().count();
        if !self.frozen && doubtful >= 2 && doubtful * 2 >= all {
            self.frozen = true;
            self.take_back(now.checked_sub(AT_ONCE).unwrap_or(now), now);
        } else if self.frozen && doubtful * 4 < all.max(1) {
            self.frozen = false;
        }
    }

    /// What probes alone have removed since `from` is in use again.
    fn take_back(&mut self, from: Instant, now: Instant) {
        for record in &mut self.members {
            if record.out.is_some_and(|out| out.at >= from && !out.corroborated) && record.proven {
                record.out = None;
                record.since = now;
                record.note = Arc::from("taken back: the probes are not believed");
            }
        }
    }

    /// Compares the connect times of siblings.
    fn compare(&mut self) {
        const FEWEST_SIBLINGS: usize = 3;
        if !self.members.iter().any(|record| record.detector.is_fresh()) {
            return;
        }
        for seat in &self.seats {
            let here = |record: &&mut Record| record.cloud == seat.cloud && record.is_in();
            let mut times: Vec<f64> =
                self.members.iter_mut().filter(here).filter_map(|record| record.detector.p95()).collect();
            times.sort_unstable_by(f64::total_cmp);
            for record in self.members.iter_mut().filter(here) {
                let own = record.detector.p95();
                let siblings = times.len().saturating_sub(usize::from(own.is_some()));
                let middle = siblings / 2;
                // The list without its own time: places from that one on are one further.
                let place = own.map_or(usize::MAX, |own| times.partition_point(|time| *time < own));
                let median = times.get(if middle >= place { middle + 1 } else { middle }).copied();
                record.detector.compare(median.filter(|_| siblings >= FEWEST_SIBLINGS));
            }
        }
    }

    pub(super) fn has_lost(&self) -> bool {
        !self.members.is_empty()
            && self.members.iter().all(|record| match record.own_use() {
                Use::New => false,
                Use::In => self.has_left(record.cloud),
                Use::Out | Use::Trial => true,
            })
    }
}

//! Thousands of random inputs at random times: the rules hold after every decision.

use std::collections::HashMap;

use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};

use super::*;

/// What a finding is about.
type Subject = (Option<PoolName>, Option<std::net::SocketAddr>, Option<CloudName>, bool);

fn subject(finding: &Finding) -> Subject {
    let freeze = matches!(finding.kind, FindingKind::Freeze | FindingKind::Thaw);
    let cloud = finding.cloud.clone().filter(|_| finding.endpoint.is_none());
    (finding.pool.clone(), finding.endpoint, cloud, freeze)
}

/// What held of a pool before a decision.
struct Before {
    used: Vec<bool>,
    ejected: Vec<bool>,
}

fn look(bed: &Bed) -> Vec<Before> {
    bed.verdicts
        .pools
        .iter()
        .map(|pool| Before {
            used: pool.members.iter().map(|one| one.is_in() && !pool.has_left(one.cloud)).collect(),
            ejected: pool.members.iter().map(|one| one.ejection.is_some()).collect(),
        })
        .collect()
}

/// The limits hold for what this decision has removed, and something is left.
fn check(bed: &Bed, before: &[Before], removed: &mut HashMap<EndpointKey, Instant>) {
    for (pool, before) in bed.verdicts.pools.iter().zip(before) {
        let weight = |place: usize| u64::from(pool.members[place].weight);
        let base = |place: &usize| !pool.has_left(pool.members[*place].cloud) && pool.members[*place].proven;
        let places: Vec<usize> = (0..pool.members.len()).filter(base).collect();
        let sum = |filter: &dyn Fn(usize) -> bool| -> u64 {
            places.iter().filter(|place| filter(**place)).map(|place| weight(*place)).sum()
        };
        let all = sum(&|_| true);
        let used = sum(&|place| pool.members[place].is_in());
        let ejected = sum(&|place| pool.members[place].ejection.is_some());
        let gone = |place: usize| before.used[place] && !pool.members[place].is_in();
        let newly = |place: usize| {
            let loud = pool.members[place].ejection.as_ref().is_some_and(|ejection| !ejection.quiet);
            !before.ejected[place] && loud
        };
        // Once everything in the clouds that are up is dead for certain, what is left stands in one that is down.
        let down = |place: usize| bed.verdicts.clouds[pool.members[place].cloud].is_down();
        let last = places.iter().all(|place| !pool.members[*place].is_in() || down(*place));
        if places.iter().any(|place| gone(*place)) && !last {
            assert!(used * 100 >= all * u64::from(pool.restraint.floor), "floor: {used} of {all}");
        }
        if places.iter().any(|place| gone(*place) && newly(*place)) && !last {
            assert!(ejected * 100 <= all * u64::from(pool.ejection.max_ejected), "cap: {ejected} of {all}");
        }
        let by_checks = |place: usize| pool.members[place].out.is_some_and(|out| !out.corroborated);
        let charged = places.iter().any(|place| gone(*place) && by_checks(*place));
        let minute = |one: &Instant| bed.now.duration_since(*one) < secs(60);
        removed.extend(
            (0..pool.members.len())
                .filter(|place| gone(*place) && by_checks(*place))
                .map(|place| (pool.members[place].key.clone(), bed.now)),
        );
        let minute = sum(&|place| removed.get(&pool.members[place].key).is_some_and(minute));
        // A cloud that went down after the removal has made the base smaller since.
        let struck = bed.verdicts.clouds.iter().any(|cloud| cloud.down_since() == Some(bed.now));
        if charged && !struck {
            assert!(
                minute * 100 <= all * u64::from(pool.restraint.max_removal),
                "velocity: {minute} of {all}"
            );
        }
        let anything = pool.members.iter().any(|one| one.is_in() && !pool.has_left(one.cloud));
        let fresh = pool.members.iter().any(|one| !one.proven && one.out.is_none());
        assert!(pool.lost.is_none() || pool.regains == pool.lost);
        assert_eq!(pool.lost.is_some(), !anything && !fresh && !pool.members.is_empty());
        if pool.members.iter().any(super::super::endpoint::Record::is_in) {
            assert!(anything, "the last cloud was left");
        }
    }
}

fn consistent(bed: &Bed, decision: &Decision, told: &mut HashMap<Subject, String>) {
    for finding in &decision.findings {
        assert!(finding.evidence.len() > 3, "{finding:?}");
        if let Some(last) = told.insert(subject(finding), finding.after.clone()) {
            assert_eq!(last, finding.before, "{finding:?}");
        }
    }
    for pool in &bed.verdicts.pools {
        for record in pool.members.iter().filter(|one| !pool.has_left(one.cloud)) {
            let subject = (Some(pool.name.clone()), Some(record.key.address), None, false);
            let Some(last) = told.get(&subject) else { continue };
            let holds = match bed.verdicts.standing(&record.key) {
                Standing::New => last == "new",
                Standing::In { .. } => last == "in" || last == "kept",
                Standing::Out { .. } => last == "out" || last == "ejected",
                Standing::Trial => last == "trial",
            };
            assert!(holds, "{} is told to be {last}, but {:?}", record.key, bed.standing_of(&record.key));
        }
    }
}

impl Bed {
    fn standing_of(&self, key: &EndpointKey) -> Standing {
        self.verdicts.standing(key)
    }

    fn random_input(&mut self, rng: &mut SmallRng) {
        let number = rng.random_range(0..self.keys.len());
        match rng.random_range(0..16) {
            0..=2 => self.down(number),
            3..=5 => self.up(number),
            6 => self.wrong(number),
            7 => self.good(number, rng.random_range(1..5)),
            8 | 9 => self.fail(number, rng.random_range(1..8)),
            10 => self.readings[number].overtaken += 1,
            11 => self.readings[number].mute += rng.random_range(1..6),
            12 => self.bytes(number),
            13 => {
                // A cloud dies or comes back.
                let (half, up) = (self.keys.len() / 2, rng.random());
                let range = if rng.random() { 0..half } else { half..self.keys.len() };
                for number in range {
                    if up {
                        self.up(number);
                    } else {
                        self.down(number);
                        self.fail(number, rng.random_range(0..2));
                    }
                }
            }
            14 => self.readings[number] = Reading::default(),
            _ => {
                if rng.random_range(0..20) == 0 {
                    self.reconfigure();
                }
            }
        }
    }
}

fn run(seed: u64) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut facts = pool(rng.random_range(1..8), rng.random_range(0..8), rng.random());
    facts.members.iter_mut().for_each(|member| member.weight = rng.random_range(1..4));
    facts.restraint.floor = rng.random_range(0..60);
    facts.restraint.max_removal = rng.random_range(0..=100);
    facts.ejection.max_ejected = rng.random_range(0..=100);
    let mut other = pool(rng.random_range(0..4), rng.random_range(1..4), rng.random());
    other.name = PoolName::from("q");
    other.members.iter_mut().for_each(|member| member.key.pool = PoolName::from("q"));
    let mut clouds = clouds();
    clouds[0].domain.down_below = rng.random_range(0..60);
    clouds[0].domain.up_above = clouds[0].domain.down_below + 20;
    let pools = if rng.random() { vec![facts] } else { vec![facts, other] };
    let mut bed = Bed::of(pools, clouds);
    let (mut told, mut removed) = (HashMap::new(), HashMap::new());
    for _ in 0..1_500 {
        let before = look(&bed);
        for _ in 0..rng.random_range(0..6) {
            bed.random_input(&mut rng);
        }
        bed.now += Duration::from_millis(rng.random_range(0..3) * rng.random_range(1..2_000));
        if rng.random_range(0..4) > 0 {
            for (key, reading) in bed.keys.iter().zip(&bed.readings) {
                bed.verdicts.observe(key, reading.clone(), bed.now);
            }
        }
        let decision = bed.decide();
        check(&bed, &before, &mut removed);
        consistent(&bed, &decision, &mut told);
        assert!(bed.verdicts.due().is_none_or(|due| due >= bed.now));
        let again = bed.verdicts.decide(bed.now);
        assert!(again.findings.is_empty() && again.dirty.is_empty(), "not settled: {:?}", again.findings);
    }
}

#[test]
fn every_limit_holds_whatever_happens() {
    let seeds = std::env::var("SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(40);
    for seed in 0..seeds {
        let result = std::panic::catch_unwind(|| run(seed));
        assert!(result.is_ok(), "seed {seed}");
    }
}

#[test]
fn a_thousand_endpoints_are_judged_in_a_fraction_of_a_tick() {
    let mut bed = Bed::new(600, 400, true);
    let mut rng = SmallRng::seed_from_u64(1);
    let mut longest = Duration::ZERO;
    for _ in 0..30 {
        (0..50).for_each(|_| bed.random_input(&mut rng));
        (0..1_000).for_each(|number| bed.good(number, 2));
        let from = std::time::SystemTime::now();
        bed.decide();
        longest = longest.max(from.elapsed().unwrap());
        bed.tick();
    }
    // Without optimisation, on a machine that does other things as well.
    assert!(longest < Duration::from_millis(80), "{longest:?}");
}

#[test]
fn the_same_seed_gives_the_same_story() {
    let story = || {
        let mut bed = Bed::new(4, 4, true);
        let mut rng = SmallRng::seed_from_u64(3);
        for _ in 0..500 {
            bed.random_input(&mut rng);
            bed.tick();
        }
        bed.findings
    };
    assert_eq!(story(), story());
}

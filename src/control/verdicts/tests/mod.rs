//! The rules of the judge, one by one. Time is counted from the start of a bed; nothing waits.

mod asked;
mod clouds;
mod endpoints;
mod random;
mod relief;
mod restraint;
mod trials;

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    CloudFacts, CloudStanding, Decision, Explanation, Finding, FindingKind, MemberFacts, Opinion, PATIENCE,
    PoolFacts, Reading, Standing, Verdicts,
};
use crate::{
    config::{Domain, Ejection, Restraint},
    control::health::Verdict,
    ids::{CloudName, EndpointKey, PoolName},
};

/// A tick of the proxy.
const TICK: Duration = Duration::from_millis(100);

/// A judge, its time, and what its endpoints have counted.
struct Bed {
    verdicts: Verdicts,
    now: Instant,
    keys: Vec<EndpointKey>,
    readings: Vec<Reading>,
    findings: Vec<Finding>,
    pools: Vec<PoolFacts>,
    clouds: Vec<CloudFacts>,
}

fn key(pool: &str, number: usize) -> EndpointKey {
    let address = format!("10.0.{}.{}:80", number / 200, number % 200 + 1).parse().unwrap();
    EndpointKey { pool: PoolName::from(pool), address }
}

fn clouds() -> Vec<CloudFacts> {
    let cloud = |name: &str| CloudFacts { name: CloudName::from(name), domain: Domain::default() };
    vec![cloud("aws"), cloud("gcp")]
}

/// A pool with the first endpoints in aws, the others in gcp.
fn pool(aws: usize, gcp: usize, probed: bool) -> PoolFacts {
    let members = (0..aws + gcp).map(|number| MemberFacts {
        key: key("p", number),
        cloud: CloudName::from(if number < aws { "aws" } else { "gcp" }),
        weight: 1,
    });
    PoolFacts {
        name: PoolName::from("p"),
        members: members.collect(),
        probed,
        slow_start: Duration::from_secs(10),
        patience: PATIENCE,
        ejection: Ejection::default(),
        restraint: Restraint::default(),
    }
}

impl Bed {
    /// Of pools as given; probed endpoints are up.
    fn of(pools: Vec<PoolFacts>, clouds: Vec<CloudFacts>) -> Self {
        let keys: Vec<EndpointKey> =
            pools.iter().flat_map(|pool| &pool.members).map(|member| member.key.clone()).collect();
        let mut verdicts = Verdicts::new(7);
        let now = Instant::now();
        verdicts.configure(pools.clone(), clouds.clone(), now);
        let readings = vec![Reading::default(); keys.len()];
        let mut bed = Self { verdicts, now, keys, readings, findings: Vec::new(), pools, clouds };
        (0..bed.keys.len()).for_each(|number| bed.up(number));
        bed.decide();
        bed.findings.clear();
        bed
    }

    fn new(aws: usize, gcp: usize, probed: bool) -> Self {
        Self::of(vec![pool(aws, gcp, probed)], clouds())
    }

    fn reconfigure(&mut self) {
        self.verdicts.configure(self.pools.clone(), self.clouds.clone(), self.now);
    }

    fn say(&mut self, number: usize, verdict: Verdict, reason: &str, answered: bool) {
        let began = self.now.checked_sub(Duration::from_millis(50)).unwrap();
        let opinion = Opinion { verdict, reason: Arc::from(reason), answered, began };
        self.verdicts.probed(&self.keys[number].clone(), opinion, self.now);
    }

    fn up(&mut self, number: usize) {
        self.say(number, Verdict::Up, "2 probes good", false);
    }

    fn down(&mut self, number: usize) {
        self.say(number, Verdict::Down, "3 probes failed: connect: connection refused", false);
    }

    fn wrong(&mut self, number: usize) {
        self.say(number, Verdict::Down, "3 probes failed: status 503", true);
    }

    fn good(&mut self, number: usize, sessions: u64) {
        self.readings[number].connected += sessions;
        self.readings[number].heard += sessions;
        self.readings[number].to_client += 100 * sessions;
    }

    fn fail(&mut self, number: usize, sessions: u64) {
        self.readings[number].failed += sessions;
    }

    fn bytes(&mut self, number: usize) {
        self.readings[number].to_client += 1;
    }

    /// What waits is read, and conclusions are drawn.
    fn decide(&mut self) -> Decision {
        let decision = self.verdicts.decide(self.now);
        for finding in &decision.findings {
            assert!(!finding.evidence.is_empty() && finding.before != finding.after, "{finding:?}");
        }
        self.findings.extend(decision.findings.iter().cloned());
        decision
    }

    /// A tick passes.
    fn tick(&mut self) -> Decision {
        self.now += TICK;
        for (key, reading) in self.keys.iter().zip(&self.readings) {
            self.verdicts.observe(key, reading.clone(), self.now);
        }
        self.decide()
    }

    fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        while self.now < until {
            self.tick();
        }
    }

    fn standing(&self, number: usize) -> Standing {
        self.verdicts.standing(&self.keys[number])
    }

    fn is_in(&self, number: usize) -> bool {
        matches!(self.standing(number), Standing::In { .. })
    }

    fn used(&self) -> usize {
        (0..self.keys.len()).filter(|number| self.is_in(*number)).count()
    }

    fn explain(&self, number: usize) -> Explanation {
        self.verdicts.explain(&self.keys[number], self.now).unwrap()
    }

    fn cloud(&self, name: &str) -> CloudStanding {
        self.verdicts.cloud(&CloudName::from(name))
    }

    fn percent(&self, name: &str) -> u32 {
        self.verdicts.cloud_percent(&PoolName::from("p"), &CloudName::from(name))
    }

    fn is_lost(&self) -> bool {
        self.verdicts.all_lost(&PoolName::from("p"))
    }

    /// Findings of this kind so far.
    fn count(&self, kind: FindingKind) -> usize {
        self.findings.iter().filter(|finding| finding.kind == kind).count()
    }

    fn kinds(&self) -> Vec<FindingKind> {
        self.findings.iter().map(|finding| finding.kind).collect()
    }
}

const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

//! What will go wrong, and in which order: a deck of every fault there is, shuffled by a seed.

use std::{fmt, time::Duration};

use tokio::time::Instant;

use super::ground::{CLOUDS, NAMES, PER_CLOUD};
use crate::harness::Dice;

/// How an endpoint fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// SIGKILL: its connections end, and nobody listens until it is started again.
    Kill,
    /// SIGSTOP: the kernel goes on to accept for it, and nobody answers.
    Stop,
    /// Packets to it and from it are lost.
    Drop,
    /// Packets to it are lost; what it sends arrives.
    DropRequests,
    /// Packets to it arrive; what it sends is lost.
    DropAnswers,
    /// A firewall answers for it with resets.
    Reset,
    /// A router says that there is no such host.
    Unreachable,
}

/// A fault to be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    pub(super) kind: Kind,
    pub(super) cloud: usize,
    /// One of the cloud's endpoints, or all of them.
    pub(super) endpoint: Option<usize>,
    /// The calm before it.
    pub(super) pause: Duration,
    pub(super) lasts: Duration,
}

/// A fault that was.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fault {
    /// Its place in the schedule, from 1.
    pub(super) number: usize,
    pub(super) step: Step,
    /// Before anything was done.
    pub(super) begun: Instant,
    /// Before anything was undone.
    pub(super) healing: Instant,
    /// When all was well again.
    pub(super) healed: Instant,
}

impl Kind {
    const ALL: [Self; 7] = [
        Self::Kill,
        Self::Stop,
        Self::Drop,
        Self::DropRequests,
        Self::DropAnswers,
        Self::Reset,
        Self::Unreachable,
    ];

    /// True where a connect hears nothing.
    pub(super) const fn is_silent(self) -> bool {
        matches!(self, Self::Drop | Self::DropRequests | Self::DropAnswers)
    }

    /// The longest, in milliseconds. A stopped process is found by probes alone, and has to last for them.
    const fn longest(self) -> u64 {
        if matches!(self, Self::Stop) { 3_000 } else { 1_500 }
    }
}

impl Step {
    /// True if it strikes this endpoint.
    pub(super) fn hits(&self, endpoint: usize) -> bool {
        self.targets().any(|target| target == endpoint)
    }

    /// Whom it strikes.
    pub(super) fn targets(&self) -> impl Iterator<Item = usize> + use<> {
        let all = self.cloud * PER_CLOUD..(self.cloud + 1) * PER_CLOUD;
        let one = self.endpoint;
        all.filter(move |endpoint| one.is_none_or(|one| one == *endpoint))
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whom = self.endpoint.map_or(CLOUDS[self.cloud], |endpoint| NAMES[endpoint]);
        write!(f, "{:?} {whom} for {:.2} s", self.kind, self.lasts.as_secs_f64())
    }
}

/// `count` faults: the clouds take turns, and every kind comes as often for one endpoint as for a whole cloud.
pub(super) fn schedule(seed: u64, count: usize) -> Vec<Step> {
    let mut dice = Dice::new(seed);
    let mut deck = Vec::new();
    let first = between(&mut dice, 0, CLOUDS.len() as u64 - 1);
    let step = |number: usize| {
        if deck.is_empty() {
            deck = Kind::ALL.into_iter().flat_map(|kind| [(kind, false), (kind, true)]).collect();
        }
        let card = dice.below(deck.len() as u64);
        let (kind, whole) = deck.swap_remove(usize::try_from(card).unwrap());
        let cloud = (usize::try_from(first).unwrap() + number) % CLOUDS.len();
        let one = cloud * PER_CLOUD + usize::try_from(dice.below(PER_CLOUD as u64)).unwrap();
        let pause = Duration::from_millis(between(&mut dice, 200, 1_000));
        let lasts = Duration::from_millis(between(&mut dice, 300, kind.longest()));
        Step { kind, cloud, endpoint: (!whole).then_some(one), pause, lasts }
    };
    (0..count).map(step).collect()
}

const fn between(dice: &mut Dice, least: u64, most: u64) -> u64 {
    least + dice.below(most - least + 1)
}

#[test]
fn a_schedule_is_its_seed_and_holds_every_fault() {
    let steps = schedule(7, 14);
    assert_eq!(format!("{steps:?}"), format!("{:?}", schedule(7, 14)));
    assert_ne!(format!("{steps:?}"), format!("{:?}", schedule(8, 14)));
    for kind in Kind::ALL {
        for whole in [false, true] {
            let of = |step: &&Step| step.kind == kind && step.endpoint.is_none() == whole;
            assert_eq!(steps.iter().filter(of).count(), 1, "{kind:?}");
        }
    }
    assert!(steps.windows(2).all(|pair| pair[0].cloud != pair[1].cloud));
}

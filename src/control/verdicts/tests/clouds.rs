//! The cloud as one failure domain.

use super::*;

#[test]
fn six_of_six_dying_within_50_ms_are_one_finding_and_no_ejections() {
    let mut bed = Bed::new(6, 6, true);
    (0..12).for_each(|number| bed.good(number, 10));
    bed.tick();
    // Sessions fail all over the cloud before the first probe knows.
    (0..6).for_each(|number| bed.fail(number, 1));
    bed.tick();
    assert!(bed.findings.is_empty());
    for number in 0..6 {
        bed.now += Duration::from_millis(8);
        bed.down(number);
        bed.decide();
    }
    bed.pass(secs(2));
    assert_eq!(bed.kinds(), [FindingKind::Cloud]);
    assert_eq!(bed.used(), 6);
    assert_eq!((bed.percent("aws"), bed.percent("gcp")), (0, 100));
    assert!(bed.findings[0].evidence.contains("6 of 6 endpoints"), "{}", bed.findings[0].evidence);
}

#[test]
fn six_probes_that_fail_together_are_one_finding_in_one_decision() {
    let mut bed = Bed::new(6, 6, true);
    (0..4).for_each(|number| bed.down(number));
    let silent = "3 probes failed: connect: no answer within 500ms";
    (4..6).for_each(|number| bed.say(number, Verdict::Down, silent, false));
    bed.decide();
    assert_eq!(bed.kinds(), [FindingKind::Cloud]);
    assert_eq!(bed.findings[0].evidence, "aws is down: 6 of 6 endpoints: 4 refuse, 2 silent");
    let Standing::Out { reason, .. } = bed.standing(0) else { panic!() };
    assert!(reason.starts_with("aws is down"), "{reason}");
}

#[test]
fn sessions_alone_can_find_a_cloud_down_and_trials_bring_it_back() {
    let mut bed = Bed::new(4, 4, false);
    (0..4).for_each(|number| bed.fail(number, 2));
    bed.fail(0, 3);
    bed.tick();
    assert_eq!(bed.kinds(), [FindingKind::Cloud]);
    bed.pass(secs(6));
    assert!((0..4).all(|number| bed.standing(number) == Standing::Trial));
    assert_eq!(bed.percent("aws"), 0);
    (0..2).for_each(|number| bed.good(number, 1));
    bed.tick();
    assert_eq!(bed.percent("aws"), 0, "half is not more than half");
    bed.good(2, 1);
    bed.tick();
    assert!(matches!(bed.cloud("aws"), CloudStanding::Recovering { .. }));
    assert_eq!(bed.percent("aws"), 10);
    assert_eq!(bed.standing(3), Standing::Trial);
}

#[test]
fn a_partial_failure_drains_below_a_quarter_and_ends_above_a_half() {
    let mut bed = Bed::new(8, 8, true);
    for number in 0..6 {
        bed.down(number);
        bed.pass(secs(20));
    }
    assert_eq!(bed.cloud("aws"), CloudStanding::Up, "a quarter is healthy: not less");
    bed.down(6);
    bed.tick();
    assert_eq!(bed.percent("aws"), 0);
    for number in 0..3 {
        bed.up(number);
        bed.pass(secs(20));
    }
    assert_eq!(bed.percent("aws"), 0, "half is good: not more");
    bed.up(3);
    bed.tick();
    assert_eq!(bed.percent("aws"), 10);
    assert_eq!(bed.used(), 8 + 5, "those that are still bad stay out");
}

#[test]
fn its_share_rises_in_steps_over_the_recovery_time() {
    let mut bed = Bed::new(2, 2, true);
    (0..2).for_each(|number| bed.down(number));
    bed.tick();
    (0..2).for_each(|number| bed.up(number));
    bed.tick();
    let mut shares = vec![bed.percent("aws")];
    while bed.cloud("aws") != CloudStanding::Up {
        bed.now = bed.verdicts.due().unwrap();
        let decision = bed.decide();
        shares.push(bed.percent("aws"));
        assert_eq!(decision.dirty.is_empty(), shares.ends_with(&[100, 100]));
    }
    assert_eq!(shares, [10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 100]);
    assert_eq!(bed.count(FindingKind::Recovery), 11);
}

#[test]
fn a_cloud_that_comes_back_gets_no_more_than_its_capacity() {
    let mut facts = clouds();
    facts[0].domain.capacity = Some(40);
    let mut bed = Bed::of(vec![pool(2, 2, true)], facts);
    (0..2).for_each(|number| bed.down(number));
    bed.tick();
    (0..2).for_each(|number| bed.up(number));
    let mut sessions = 0;
    for _ in 0..400 {
        sessions += 10;
        bed.verdicts.arrivals(&PoolName::from("p"), sessions, bed.now);
        bed.tick();
        assert!(bed.percent("aws") <= 40, "{}", bed.percent("aws"));
    }
    assert_eq!(bed.cloud("aws"), CloudStanding::Recovering { percent: 40 });
    for _ in 0..200 {
        sessions += 3;
        bed.verdicts.arrivals(&PoolName::from("p"), sessions, bed.now);
        bed.tick();
    }
    assert_eq!(bed.cloud("aws"), CloudStanding::Up);
}

#[test]
fn a_cloud_that_flaps_waits_longer_each_time() {
    let mut bed = Bed::new(2, 2, true);
    let mut waits = Vec::new();
    for _ in 0..7 {
        (0..2).for_each(|number| bed.down(number));
        bed.tick();
        assert_eq!(bed.percent("aws"), 0);
        (0..2).for_each(|number| bed.up(number));
        let from = bed.now;
        bed.decide();
        while bed.percent("aws") == 0 {
            bed.tick();
        }
        waits.push((bed.now - from).as_secs_f64());
    }
    for (wait, expected) in waits.iter().zip([0.0, 0.0, 1.0, 2.0, 4.0, 8.0, 16.0]) {
        assert!((wait - expected).abs() <= expected * 0.1 + 0.11, "{waits:?}");
    }
}

#[test]
fn a_pool_keeps_its_last_cloud_and_others_leave_it() {
    let mut alone = pool(4, 0, true);
    alone.name = PoolName::from("q");
    for member in &mut alone.members {
        member.key.pool = PoolName::from("q");
    }
    let mut bed = Bed::of(vec![pool(4, 4, true), alone], clouds());
    for number in (0..4).chain(8..12) {
        bed.down(number);
    }
    bed.decide();
    assert_eq!(bed.count(FindingKind::Cloud), 1);
    assert_eq!(bed.percent("aws"), 0);
    let (q, aws) = (PoolName::from("q"), CloudName::from("aws"));
    assert_eq!(bed.verdicts.cloud_percent(&q, &aws), 100);
    assert_eq!(
        (8..12).filter(|number| bed.is_in(*number)).count(),
        2,
        "the limits of a single cloud hold there"
    );
    assert!(!bed.verdicts.all_lost(&q));
}

#[test]
fn the_second_cloud_to_fail_is_the_last_one_and_stays() {
    let mut bed = Bed::new(4, 4, true);
    (0..4).for_each(|number| bed.down(number));
    bed.tick();
    bed.pass(secs(30));
    (4..8).for_each(|number| bed.down(number));
    bed.pass(secs(300));
    assert_eq!(bed.cloud("gcp"), CloudStanding::Up);
    assert_eq!(bed.used(), 1, "the floor of what is left");
    assert!(!bed.is_lost());
}

#[test]
fn both_clouds_dead_by_probes_and_sessions_are_all_lost_in_the_same_decision() {
    let mut bed = Bed::new(2, 2, true);
    for number in 0..4 {
        bed.fail(number, 1);
        bed.down(number);
    }
    bed.tick();
    assert!(bed.is_lost());
    assert_eq!(bed.used(), 0);
    bed.up(3);
    bed.tick();
    assert!(!bed.is_lost());
    assert_eq!(bed.used(), 1);
}

#[test]
fn a_cloud_whose_bytes_still_arrive_is_not_down() {
    let mut bed = Bed::new(8, 8, true);
    bed.pass(secs(1));
    (0..8).for_each(|number| bed.down(number));
    bed.now += Duration::from_millis(60);
    for (key, reading) in bed.keys.iter().zip(&bed.readings) {
        bed.verdicts.observe(key, reading.clone(), bed.now);
    }
    (0..2).for_each(|number| bed.bytes(number));
    bed.tick();
    assert_eq!(bed.cloud("aws"), CloudStanding::Up);
    assert!(bed.is_in(0) && bed.is_in(1));
}

#[test]
fn a_cloud_is_not_down_by_its_probes_before_bytes_have_stopped() {
    let mut bed = Bed::new(4, 2, true);
    (0..4).for_each(|number| bed.bytes(number));
    bed.tick();
    (0..4).for_each(|number| bed.down(number));
    bed.decide();
    assert_eq!(bed.cloud("aws"), CloudStanding::Up, "the probes may have begun after the last reading");
    bed.pass(4 * TICK);
    assert!(matches!(bed.cloud("aws"), CloudStanding::Down { .. }), "{:?}", bed.cloud("aws"));
}

#[test]
fn a_cloud_that_is_down_does_not_count_for_the_limits_of_the_rest() {
    let mut bed = Bed::new(10, 4, true);
    (0..10).for_each(|number| bed.down(number));
    bed.tick();
    assert_eq!(bed.percent("aws"), 0);
    bed.down(10);
    bed.down(11);
    bed.tick();
    assert_eq!(bed.used(), 2, "half of what is left");
    bed.pass(secs(1));
    bed.down(12);
    bed.tick();
    assert_eq!(bed.used(), 2);
}

#[test]
fn a_cloud_is_down_for_its_sessions_only_while_its_probes_are_good_and_needs_trials() {
    let mut bed = Bed::new(4, 4, true);
    (0..4).for_each(|number| bed.fail(number, 5));
    bed.tick();
    assert_eq!(bed.kinds(), [FindingKind::Cloud]);
    bed.pass(secs(7));
    assert_eq!(bed.percent("aws"), 0, "good probes alone do not bring it back");
    assert_eq!(bed.standing(0), Standing::Trial);
    // Once probes see it too, they explain it, and good ones suffice.
    (0..4).for_each(|number| bed.down(number));
    bed.tick();
    (0..4).for_each(|number| bed.up(number));
    bed.tick();
    assert_eq!(bed.percent("aws"), 10);
}

#[test]
fn a_cloud_that_comes_back_is_not_found_down_again_for_the_failures_before() {
    let mut bed = Bed::new(2, 2, true);
    // More in a row than an ejection takes, and no session since that could go well.
    (0..2).for_each(|number| bed.fail(number, 20));
    bed.tick();
    assert_eq!(bed.kinds(), [FindingKind::Cloud]);
    (0..2).for_each(|number| bed.down(number));
    bed.pass(secs(6));
    (0..2).for_each(|number| bed.up(number));
    bed.pass(secs(1));
    assert_eq!(bed.percent("aws"), 10);
    bed.pass(secs(30));
    assert_eq!((bed.percent("aws"), bed.used()), (100, 4));
    assert_eq!(bed.count(FindingKind::Ejection), 0, "{:?}", bed.findings);
}

#[test]
fn a_cloud_whose_probes_are_good_again_does_not_wait_for_what_failed_before() {
    let mut bed = Bed::new(2, 2, true);
    (0..2).for_each(|number| bed.fail(number, 20));
    bed.tick();
    (0..2).for_each(|number| bed.down(number));
    bed.pass(secs(1));
    assert_eq!(bed.percent("aws"), 0);
    (0..2).for_each(|number| bed.up(number));
    bed.tick();
    assert_eq!(bed.percent("aws"), 10, "a second after the last failure");
    bed.pass(secs(3));
    assert!(bed.percent("aws") > 10 && bed.count(FindingKind::Ejection) == 0, "{:?}", bed.findings);
}

//! What may be removed, how fast, and when probes are not believed.

use super::*;
use crate::control::verdicts::Kept;

/// A judge with one cloud only: no verdict on it is possible.
fn one_cloud(count: usize, probed: bool) -> Bed {
    Bed::new(count, 0, probed)
}

#[test]
fn probes_remove_at_most_half_of_a_pool_within_a_minute_and_the_minute_rolls() {
    let mut bed = one_cloud(20, true);
    // One endpoint stays good, so that not everything fails.
    for number in 0..19 {
        bed.down(number);
        bed.pass(secs(1));
    }
    assert_eq!(bed.used(), 10);
    assert_eq!(bed.explain(15).kept, Some(Kept::Velocity));
    bed.pass(secs(40));
    assert_eq!(bed.used(), 10);
    let due = bed.verdicts.due().unwrap();
    bed.now = due;
    bed.decide();
    assert_eq!(bed.used(), 9, "a minute after the first removal there is room for one more");
    bed.pass(secs(60));
    assert_eq!(bed.used(), 4, "the floor");
    assert_eq!(bed.explain(18).kept, Some(Kept::Floor));
    bed.pass(secs(600));
    assert_eq!(bed.used(), 4);
}

#[test]
fn twenty_endpoints_with_a_checker_that_flaps_keep_most_of_the_pool() {
    let mut bed = one_cloud(20, true);
    for second in 0..300_usize {
        for number in 0..20 {
            if (second + number).is_multiple_of(2) { bed.up(number) } else { bed.down(number) }
        }
        bed.pass(secs(1));
        assert!(bed.used() >= 4, "{} at {second}", bed.used());
        if second < 60 {
            assert!(bed.used() >= 10, "{} at {second}", bed.used());
        }
    }
}

#[test]
fn readmission_is_not_limited() {
    let mut bed = one_cloud(20, true);
    for number in 0..10 {
        bed.down(number);
    }
    bed.tick();
    assert_eq!(bed.used(), 10);
    for number in 0..10 {
        bed.up(number);
    }
    bed.tick();
    assert_eq!(bed.used(), 20);
}

#[test]
fn what_sessions_confirm_is_not_charged_but_the_floor_holds() {
    let mut bed = one_cloud(20, true);
    for number in 0..19 {
        bed.fail(number, 1);
        bed.down(number);
    }
    bed.tick();
    assert_eq!(bed.used(), 4);
    assert!(!bed.is_lost(), "one endpoint is good");
}

#[test]
fn a_failed_session_confirms_nothing_once_bytes_have_come_after_it() {
    let mut bed = one_cloud(4, true);
    (0..4).for_each(|number| bed.fail(number, 1));
    bed.tick();
    for _ in 0..2 {
        (0..4).for_each(|number| bed.bytes(number));
        bed.tick();
    }
    (0..4).for_each(|number| bed.down(number));
    bed.decide();
    assert_eq!(
        (0..4).filter(|number| bed.is_in(*number)).count(),
        2,
        "half of it may go, as by probes alone"
    );
}

#[test]
fn the_cap_on_ejections_holds_after_the_ejection() {
    // Three endpoints: a second ejection would make it 66 %.
    let mut bed = one_cloud(3, false);
    bed.fail(0, 5);
    bed.fail(1, 5);
    bed.tick();
    assert_eq!(bed.used(), 2);
    let kept = [0, 1].map(|number| bed.explain(number).kept);
    assert!(kept.contains(&Some(Kept::Cap)), "{kept:?}");
    assert_eq!((bed.count(FindingKind::Ejection), bed.count(FindingKind::Kept)), (1, 1));
    // Four endpoints: exactly half is allowed.
    let mut bed = one_cloud(4, false);
    (0..3).for_each(|number| bed.fail(number, 5));
    bed.tick();
    assert_eq!(bed.used(), 2);
    // Weights count, not heads.
    let mut facts = pool(4, 0, false);
    facts.members[0].weight = 4;
    let mut bed = Bed::of(vec![facts], clouds());
    bed.fail(0, 5);
    bed.tick();
    assert!(bed.is_in(0), "it alone is more than half");
}

#[test]
fn the_floor_limits_ejections_too() {
    let mut facts = pool(10, 0, false);
    facts.ejection.max_ejected = 100;
    facts.restraint.floor = 35;
    let mut bed = Bed::of(vec![facts], clouds());
    (0..10).for_each(|number| bed.fail(number, 5));
    bed.tick();
    assert_eq!(bed.used(), 4);
}

#[test]
fn a_single_endpoint_is_never_removed_but_may_be_lost() {
    let mut bed = one_cloud(1, true);
    bed.down(0);
    bed.pass(secs(200));
    assert!(bed.is_in(0) && !bed.is_lost());
    bed.fail(0, 1);
    bed.tick();
    assert!(!bed.is_in(0) && bed.is_lost());
    bed.up(0);
    bed.tick();
    assert!(bed.is_in(0) && !bed.is_lost());
    let mut bed = one_cloud(1, false);
    bed.fail(0, 50);
    bed.pass(secs(1));
    assert!(bed.is_in(0) && !bed.is_lost(), "where nobody probes, sessions alone remove no last one");
}

#[test]
fn of_one_and_one_either_may_go_but_not_both() {
    let mut bed = Bed::new(1, 1, true);
    bed.down(0);
    bed.decide();
    assert!(!bed.is_in(0) && bed.is_in(1));
    bed.pass(secs(30));
    bed.down(1);
    bed.pass(secs(100));
    assert!(bed.is_in(1));
    assert!(!bed.is_lost());
    bed.up(0);
    bed.pass(secs(1));
    assert!(bed.is_in(0));
}

#[test]
fn of_two_and_two_and_of_three_and_one_the_rest_serves() {
    let mut bed = Bed::new(2, 2, true);
    bed.down(0);
    bed.tick();
    assert_eq!(bed.used(), 3);
    bed.pass(secs(10));
    bed.down(1);
    bed.tick();
    assert_eq!((bed.used(), bed.percent("aws")), (2, 0));
    bed.pass(secs(10));
    bed.down(2);
    bed.tick();
    assert_eq!(bed.used(), 1);
    let mut bed = Bed::new(3, 1, true);
    (0..3).for_each(|number| bed.down(number));
    bed.tick();
    assert_eq!((bed.used(), bed.percent("aws"), bed.percent("gcp")), (1, 0, 100));
}

#[test]
fn when_everything_fails_at_once_probes_are_not_believed() {
    let mut bed = Bed::new(3, 3, true);
    for number in 0..6 {
        bed.down(number);
        bed.tick();
    }
    assert_eq!(bed.used(), 6, "also what was removed on the way is back");
    assert_eq!(bed.count(FindingKind::Freeze), 1);
    assert!(matches!(bed.cloud("aws"), CloudStanding::Up));
    assert!(bed.verdicts.frozen(&PoolName::from("p")));
    bed.pass(secs(300));
    assert_eq!(bed.used(), 6);
    bed.up(2);
    bed.tick();
    assert_eq!(bed.count(FindingKind::Thaw), 1);
}

#[test]
fn a_session_that_fails_ends_the_freeze_for_good() {
    let mut bed = Bed::new(2, 2, true);
    (0..4).for_each(|number| bed.down(number));
    bed.tick();
    assert_eq!((bed.used(), bed.count(FindingKind::Freeze)), (4, 1));
    (0..4).for_each(|number| bed.fail(number, 1));
    bed.tick();
    assert!(bed.is_lost() && bed.used() == 0);
    bed.pass(secs(30));
    assert_eq!((bed.count(FindingKind::Freeze), bed.count(FindingKind::Thaw)), (1, 1));
    assert!(bed.is_lost());
}

#[test]
fn a_failure_of_everything_that_takes_longer_than_five_seconds_is_believed() {
    let mut bed = Bed::new(2, 2, true);
    for number in 0..4 {
        bed.down(number);
        bed.pass(secs(3));
    }
    assert_eq!(bed.count(FindingKind::Freeze), 0);
    assert!(bed.used() < 4);
}

#[test]
fn where_half_of_the_failed_probes_are_contradicted_the_pool_believes_none() {
    let mut bed = one_cloud(6, true);
    bed.pass(secs(1));
    (0..5).for_each(|number| bed.down(number));
    bed.now += Duration::from_millis(60);
    (0..3).for_each(|number| bed.bytes(number));
    for (key, reading) in bed.keys.iter().zip(&bed.readings) {
        bed.verdicts.observe(key, reading.clone(), bed.now);
    }
    (0..3).for_each(|number| bed.bytes(number));
    bed.tick();
    assert_eq!(bed.used(), 6);
    assert_eq!(bed.count(FindingKind::Freeze), 1);
    assert_eq!(bed.explain(4).kept, Some(Kept::Frozen));
    bed.pass(secs(10));
    assert_eq!(bed.count(FindingKind::Thaw), 1);
    assert_eq!(bed.used(), 3, "without bytes probes are believed again, within the limit of a minute");
}

#[test]
fn when_most_of_a_pool_answers_wrongly_at_once_bytes_speak_against_it() {
    let mut bed = one_cloud(6, true);
    bed.pass(secs(1));
    (0..5).for_each(|number| bed.wrong(number));
    bed.now += Duration::from_millis(60);
    for (key, reading) in bed.keys.iter().zip(&bed.readings) {
        bed.verdicts.observe(key, reading.clone(), bed.now);
    }
    (0..5).for_each(|number| bed.bytes(number));
    bed.tick();
    assert_eq!(bed.used(), 6);
}

#[test]
fn an_endpoint_that_resigns_is_believed_though_it_alone_moves_bytes() {
    let mut bed = Bed::new(1, 1, true);
    bed.pass(secs(1));
    bed.bytes(0);
    bed.tick();
    bed.wrong(0);
    bed.decide();
    assert!(!bed.is_in(0) && bed.is_in(1));
}

#[test]
fn a_pool_kept_by_its_cap_is_told_once_while_it_lasts() {
    let mut bed = one_cloud(1, false);
    for _ in 0..100 {
        bed.fail(0, 5);
        bed.tick();
        bed.good(0, 1);
        bed.tick();
    }
    assert_eq!(bed.kinds(), [FindingKind::Kept]);
    bed.pass(secs(30));
    assert_eq!(bed.kinds(), [FindingKind::Kept, FindingKind::Kept]);
    assert_eq!(bed.findings[1].after, "in");
}

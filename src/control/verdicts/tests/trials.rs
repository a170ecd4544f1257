//! Back-off, trials, and what ends them.

use super::*;

/// An endpoint of a pool without probes, ejected.
fn ejected() -> Bed {
    let mut bed = Bed::new(4, 4, false);
    bed.fail(0, 5);
    bed.tick();
    assert!(!bed.is_in(0));
    bed
}

fn until_trial(bed: &mut Bed) -> f64 {
    let from = bed.now;
    while bed.standing(0) != Standing::Trial {
        assert!(bed.now - from < secs(400), "no trial");
        bed.tick();
    }
    (bed.now - from).as_secs_f64()
}

#[test]
fn when_the_back_off_is_over_one_session_may_try_and_a_good_one_readmits() {
    let mut bed = ejected();
    let due = bed.verdicts.due().unwrap();
    assert!((4.5..=5.5).contains(&(due - bed.now).as_secs_f64()));
    bed.now = due;
    bed.decide();
    assert_eq!(bed.standing(0), Standing::Trial);
    bed.pass(secs(120));
    assert_eq!(bed.standing(0), Standing::Trial, "without a session nothing is known");
    bed.good(0, 1);
    bed.tick();
    assert!(bed.is_in(0));
    assert_eq!(bed.verdicts.weight_percent(&bed.keys[0], bed.now), 10, "with a slow start");
    let kinds = [FindingKind::Ejection, FindingKind::Trial, FindingKind::Readmission];
    assert_eq!(bed.kinds(), kinds);
}

#[test]
fn each_bad_trial_doubles_the_back_off_up_to_its_most_and_good_minutes_halve_it_again() {
    let mut bed = ejected();
    let mut waits = vec![until_trial(&mut bed)];
    for _ in 0..7 {
        bed.fail(0, 1);
        bed.tick();
        assert!(matches!(bed.standing(0), Standing::Out { .. }));
        waits.push(until_trial(&mut bed));
    }
    for (wait, expected) in waits.iter().zip([5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 300.0, 300.0]) {
        assert!((wait - expected).abs() <= expected * 0.1 + 0.11, "{waits:?}");
    }
    assert_eq!(bed.explain(0).ejections, 8);
    bed.good(0, 1);
    bed.tick();
    assert!(bed.is_in(0));
    bed.pass(secs(61 * 6));
    assert_eq!((bed.explain(0).ejections, bed.explain(0).ejections_total), (2, 8));
    bed.fail(0, 5);
    bed.tick();
    let wait = until_trial(&mut bed);
    assert!((17.9..=22.2).contains(&wait), "{wait}");
}

#[test]
fn who_was_ejected_for_silence_needs_a_byte_or_time_not_only_a_connection() {
    let mut bed = Bed::new(4, 4, false);
    bed.readings[0].connected += 5;
    bed.good(1, 1);
    bed.tick();
    bed.readings[0].mute += 5;
    bed.tick();
    assert!(!bed.is_in(0));
    until_trial(&mut bed);
    bed.readings[0].connected += 1;
    bed.readings[0].active = 1;
    bed.pass(secs(3));
    assert_eq!(bed.standing(0), Standing::Trial);
    bed.readings[0].mute += 1;
    bed.tick();
    assert!(matches!(bed.standing(0), Standing::Out { .. }));
    bed.readings[0].active = 0;
    until_trial(&mut bed);
    bed.good(0, 1);
    bed.tick();
    assert!(bed.is_in(0));
}

#[test]
fn a_good_probe_never_shortens_an_ejection() {
    let mut bed = Bed::new(4, 4, true);
    bed.fail(0, 5);
    bed.tick();
    bed.down(0);
    bed.tick();
    bed.up(0);
    bed.tick();
    assert!(!bed.is_in(0));
    until_trial(&mut bed);
    bed.good(0, 1);
    bed.tick();
    assert!(bed.is_in(0));
}

#[test]
fn who_is_bad_for_probes_too_needs_good_ones_first() {
    let mut bed = Bed::new(4, 4, true);
    bed.fail(0, 5);
    bed.tick();
    bed.down(0);
    bed.pass(secs(60));
    assert!(matches!(bed.standing(0), Standing::Out { until: None, .. }));
    bed.up(0);
    bed.tick();
    assert_eq!(bed.standing(0), Standing::Trial);
    bed.down(0);
    bed.tick();
    assert!(matches!(bed.standing(0), Standing::Out { .. }), "probes fail again before a session came");
}

#[test]
fn a_trial_that_no_session_wants_ends_with_the_word_of_good_probes() {
    let mut bed = Bed::new(4, 4, true);
    bed.fail(0, 5);
    bed.tick();
    until_trial(&mut bed);
    bed.pass(secs(59));
    assert_eq!(bed.standing(0), Standing::Trial);
    bed.pass(secs(2));
    assert!(bed.is_in(0));
}

#[test]
fn where_all_is_lost_and_all_is_tried_a_good_session_is_as_good_as_a_trial() {
    let mut bed = Bed::new(1, 0, true);
    bed.fail(0, 1);
    bed.down(0);
    bed.tick();
    assert!(bed.is_lost() && !bed.is_in(0));
    bed.pass(secs(3));
    bed.good(0, 1);
    bed.tick();
    assert!(bed.is_in(0) && !bed.is_lost());
}

#[test]
fn what_comes_back_first_does_not_take_the_place_of_all() {
    let mut bed = Bed::new(5, 5, true);
    (0..10).for_each(|number| {
        bed.fail(number, 1);
        bed.down(number);
    });
    bed.tick();
    let p = PoolName::from("p");
    assert!(bed.is_lost() && !bed.verdicts.regains(&p));
    bed.pass(secs(3));
    bed.up(0);
    bed.tick();
    assert!(!bed.is_lost() && bed.verdicts.regains(&p), "a tenth is less than the floor");
    bed.up(1);
    assert!(!bed.decide().dirty.is_empty());
    assert!(!bed.verdicts.regains(&p));
}

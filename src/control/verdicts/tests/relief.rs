//! What waits is taken back early where what is in use is bad.

use super::*;
use crate::control::verdicts::Kept;

/// A cloud of two that has come and gone so often that its return is damped for about 16 s; the other one serves.
fn damped() -> Bed {
    let mut bed = Bed::new(2, 2, true);
    for _ in 0..6 {
        (0..2).for_each(|number| bed.down(number));
        bed.tick();
        (0..2).for_each(|number| bed.up(number));
        bed.pass(secs(40));
    }
    (0..2).for_each(|number| bed.down(number));
    bed.tick();
    (0..2).for_each(|number| bed.up(number));
    bed.pass(secs(1));
    assert_eq!((bed.percent("aws"), bed.percent("gcp")), (0, 100), "it waits");
    bed
}

#[test]
fn a_cloud_that_waits_comes_back_at_once_when_the_sessions_of_the_other_fail() {
    let mut bed = damped();
    (2..4).for_each(|number| bed.fail(number, 1));
    bed.tick();
    assert!((0..2).all(|number| bed.is_in(number)), "{:?}", bed.findings);
    (2..4).for_each(|number| bed.fail(number, 4));
    bed.tick();
    assert_eq!((bed.percent("aws"), bed.percent("gcp")), (100, 0));
}

#[test]
fn a_cloud_that_waits_comes_back_at_once_when_the_probes_of_the_other_fail() {
    let mut bed = damped();
    (2..4).for_each(|number| bed.down(number));
    bed.pass(3 * TICK);
    assert_eq!((bed.percent("aws"), bed.percent("gcp")), (100, 0), "{:?}", bed.findings);
}

#[test]
fn a_cloud_that_waits_goes_on_to_wait_while_one_of_the_others_is_good() {
    let mut bed = damped();
    bed.fail(2, 1);
    bed.down(2);
    bed.pass(secs(2));
    assert_eq!((bed.percent("aws"), bed.used()), (0, 1));
}

#[test]
fn clouds_that_fail_by_turns_are_left_each_time() {
    let mut bed = Bed::new(2, 2, true);
    for turn in 0..30 {
        let (struck, other) = if turn % 2 == 0 { (0..2, 2..4) } else { (2..4, 0..2) };
        for _ in 0..3 {
            struck.clone().for_each(|number| bed.fail(number, 3));
            other.clone().for_each(|number| bed.good(number, 1));
            bed.tick();
        }
        struck.clone().for_each(|number| bed.down(number));
        for _ in 0..3 {
            other.clone().for_each(|number| bed.good(number, 1));
            bed.tick();
        }
        let used: Vec<usize> = (0..4).filter(|number| bed.is_in(*number)).collect();
        assert_eq!(used, other.clone().collect::<Vec<_>>(), "turn {turn}");
        struck.for_each(|number| bed.up(number));
        bed.pass(4 * TICK);
    }
}

#[test]
fn ejections_end_with_good_probes_when_the_cap_would_keep_what_is_bad() {
    let mut bed = Bed::new(2, 2, true);
    for number in 0..2 {
        bed.fail(number, 5);
        bed.good(2, 1);
        bed.good(3, 1);
        bed.tick();
        bed.pass(secs(3));
    }
    assert_eq!(bed.used(), 2);
    (0..2).for_each(|number| bed.down(number));
    bed.tick();
    (0..2).for_each(|number| bed.up(number));
    bed.tick();
    let waits = (0..2).all(|number| matches!(bed.standing(number), Standing::Out { .. }));
    assert!(waits || bed.percent("aws") == 0, "their back-off, or their cloud's");
    (2..4).for_each(|number| bed.fail(number, 6));
    bed.pass(3 * TICK);
    assert!((0..2).all(|number| bed.is_in(number)), "{:?}", bed.findings);
    assert_eq!(bed.percent("gcp"), 0);
    assert!(bed.explain(0).ejections >= 1, "what it was ejected for is not forgotten");
}

#[test]
fn where_probes_were_good_all_the_time_one_session_tries_early_and_the_back_off_goes_on_if_it_fails() {
    let mut bed = Bed::new(2, 0, true);
    bed.fail(0, 5);
    bed.good(1, 1);
    bed.tick();
    assert!(!bed.is_in(0) && bed.is_in(1));
    let last = |bed: &Bed| {
        let own = |finding: &&Finding| finding.endpoint == Some(bed.keys[0].address);
        bed.findings.iter().rev().find(own).cloned().unwrap()
    };
    let until = bed.explain(0).back_off_until;
    bed.pass(secs(1));
    bed.fail(1, 1);
    bed.pass(2 * TICK);
    assert_eq!(bed.standing(0), Standing::Trial, "what is in use is bad");
    assert!(last(&bed).evidence.starts_with("what is in use is bad: one session"), "{:?}", last(&bed));
    bed.fail(0, 1);
    bed.tick();
    assert_eq!((bed.explain(0).back_off_until, bed.explain(0).ejections), (until, 1));
    let told = last(&bed);
    assert_eq!((told.kind, told.after.as_str()), (FindingKind::Trial, "ejected"), "no other ejection");
    assert!(told.evidence.ends_with(", number 1, tried early in vain"), "{told:?}");
    bed.pass(2 * TICK);
    assert!(matches!(bed.standing(0), Standing::Out { .. }), "not again at once");
    bed.fail(1, 1);
    bed.pass(secs(1));
    assert_eq!(bed.standing(0), Standing::Trial);
    bed.good(0, 1);
    bed.tick();
    assert!(bed.is_in(0));
}

#[test]
fn what_falls_silent_while_others_speak_is_not_charged_as_checks_alone_are() {
    let mut bed = Bed::new(4, 4, true);
    let speak = |bed: &mut Bed, ticks: u32, silent: usize| {
        for _ in 0..ticks {
            (silent..8).for_each(|number| bed.good(number, 1));
            (0..silent).for_each(|number| bed.readings[number].connected += 1);
            bed.tick();
        }
    };
    speak(&mut bed, 10, 0);
    // Six of eight accept and say nothing. Checks alone could remove four.
    speak(&mut bed, 10, 6);
    (0..6).for_each(|number| bed.say(number, Verdict::Down, "3 probes failed: no answer", false));
    speak(&mut bed, 1, 6);
    assert_eq!(bed.used(), 2, "{:?}", bed.findings);
    // Without sessions that wait there, silence says nothing.
    let mut bed = Bed::new(8, 0, true);
    speak(&mut bed, 10, 0);
    for _ in 0..10 {
        (6..8).for_each(|number| bed.good(number, 1));
        bed.tick();
    }
    (0..6).for_each(|number| bed.say(number, Verdict::Down, "3 probes failed: no answer", false));
    bed.tick();
    assert_eq!(bed.used(), 4);
    assert!((0..6).any(|number| bed.explain(number).kept == Some(Kept::Velocity)));
}

#[test]
fn bytes_end_what_a_verdict_on_a_cloud_held_against_its_endpoints() {
    let mut bed = Bed::new(2, 2, true);
    (0..2).for_each(|number| bed.fail(number, 5));
    bed.tick();
    assert_eq!(bed.percent("aws"), 0);
    for _ in 0..3 {
        (0..2).for_each(|number| bed.bytes(number));
        bed.tick();
    }
    assert!((0..2).all(|number| bed.is_in(number)), "{:?}", bed.findings);
}

#[test]
fn an_old_dial_that_fails_late_does_not_keep_a_cloud_down_that_moves_bytes() {
    let mut bed = Bed::new(2, 2, true);
    (0..2).for_each(|number| {
        bed.fail(number, 1);
        bed.down(number);
    });
    bed.tick();
    assert_eq!(bed.percent("aws"), 0);
    (0..2).for_each(|number| bed.up(number));
    (0..2).for_each(|number| bed.fail(number, 1));
    bed.tick();
    for _ in 0..3 {
        (0..2).for_each(|number| bed.bytes(number));
        bed.tick();
    }
    assert_eq!(bed.percent("aws"), 10, "{:?}", bed.findings);
}

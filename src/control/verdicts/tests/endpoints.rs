//! One endpoint: what probes and sessions say of it, flaps, slow start, and what is remembered.

use super::*;
use crate::control::verdicts::Kept;

#[test]
fn an_endpoint_is_new_until_its_first_good_probe_and_then_in_at_once_at_full_weight() {
    let facts = pool(2, 2, true);
    let mut bed = Bed::of(vec![facts.clone()], clouds());
    let (mut verdicts, now) = (Verdicts::new(1), bed.now);
    verdicts.configure(vec![facts], clouds(), now);
    assert_eq!(verdicts.standing(&key("p", 0)), Standing::New);
    assert!(bed.is_in(0) && bed.tick().dirty.is_empty());
    assert_eq!(bed.verdicts.weight_percent(&key("p", 0), bed.now), 100);
}

#[test]
fn an_endpoint_that_nobody_probes_is_in_from_the_start() {
    let bed = Bed::new(1, 1, false);
    assert!(bed.is_in(0) && bed.is_in(1));
}

#[test]
fn an_endpoint_whose_first_probe_fails_is_out_and_the_first_to_come_is_used() {
    let facts = pool(1, 1, true);
    let mut verdicts = Verdicts::new(1);
    let now = Instant::now();
    verdicts.configure(vec![facts], clouds(), now);
    let say = |verdict| Opinion { verdict, reason: Arc::from("x"), answered: false, began: now };
    verdicts.probed(&key("p", 0), say(Verdict::Down), now);
    verdicts.decide(now);
    assert!(matches!(verdicts.standing(&key("p", 0)), Standing::Out { .. }));
    assert!(!verdicts.all_lost(&PoolName::from("p")), "a new one may be used");
    verdicts.probed(&key("p", 1), say(Verdict::Down), now);
    verdicts.decide(now);
    assert!(verdicts.all_lost(&PoolName::from("p")));
    verdicts.probed(&key("p", 1), say(Verdict::Up), now);
    verdicts.decide(now);
    assert!(matches!(verdicts.standing(&key("p", 1)), Standing::In { .. }));
    assert!(!verdicts.all_lost(&PoolName::from("p")));
}

#[test]
fn a_probe_down_takes_effect_in_the_same_decision() {
    let mut bed = Bed::new(4, 4, true);
    bed.down(1);
    let decision = bed.decide();
    assert!(decision.dirty.contains(&PoolName::from("p")));
    assert_eq!(bed.kinds(), [FindingKind::Verdict]);
    assert!(!bed.is_in(1) && bed.is_in(0));
}

#[test]
fn it_comes_back_with_a_slow_start_in_ten_steps() {
    let mut bed = Bed::new(4, 4, true);
    bed.down(1);
    bed.tick();
    bed.up(1);
    bed.tick();
    assert!(bed.is_in(1), "the first return is not damped");
    let percent = |bed: &Bed| bed.verdicts.weight_percent(&bed.keys[1], bed.now);
    assert_eq!(percent(&bed), 10);
    let due = bed.verdicts.due().unwrap();
    assert_eq!(due - bed.now, secs(1));
    bed.now = due;
    assert!(!bed.decide().dirty.is_empty(), "the next step is news for routing");
    assert_eq!(percent(&bed), 20);
    bed.pass(secs(9));
    assert_eq!(percent(&bed), 100);
}

#[test]
fn each_return_from_being_down_doubles_the_time_that_good_probes_must_last() {
    let mut bed = Bed::new(4, 4, true);
    let mut waits = Vec::new();
    for _ in 0..10 {
        bed.down(1);
        bed.tick();
        bed.up(1);
        let good = bed.now;
        bed.decide();
        while !bed.is_in(1) {
            bed.tick();
        }
        waits.push((bed.now - good).as_secs_f64());
    }
    let expected = [0.0, 0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0];
    for (wait, expected) in waits.iter().zip(expected) {
        assert!((wait - expected).abs() <= expected * 0.1 + 0.11, "{waits:?}");
    }
    assert_eq!((bed.explain(1).flaps, bed.explain(1).flaps_total), (10, 10));
    bed.pass(secs(601));
    assert_eq!((bed.explain(1).flaps, bed.explain(1).flaps_total), (0, 10));
}

#[test]
fn an_endpoint_that_flaps_at_any_pace_changes_its_standing_a_few_times_only() {
    for period in [100, 400, 800, 3_000, 10_000, 30_000] {
        let mut bed = Bed::new(4, 4, true);
        let mut good = true;
        while bed.now.duration_since(bed.verdicts.pools[0].members[0].since) < secs(600) {
            good = !good;
            if good {
                bed.up(1);
            } else {
                bed.down(1);
            }
            bed.decide();
            bed.pass(Duration::from_millis(period));
        }
        let changes = bed.findings.iter().filter(|finding| finding.endpoint.is_some()).count();
        assert!((3..=16).contains(&changes), "{changes} changes in 10 minutes at {period} ms");
    }
}

#[test]
fn five_failures_in_a_row_eject_and_four_do_not() {
    let mut bed = Bed::new(4, 4, false);
    bed.fail(0, 4);
    bed.tick();
    assert!(bed.is_in(0));
    assert_eq!(bed.explain(0).consecutive_failures, 4);
    bed.good(0, 1);
    bed.tick();
    assert_eq!(bed.explain(0).consecutive_failures, 0);
    bed.fail(0, 4);
    bed.tick();
    bed.readings[0].overtaken += 1;
    bed.tick();
    assert!(bed.is_in(0), "it may merely be slow");
    bed.pass(Duration::from_millis(300));
    assert_eq!(bed.kinds(), [FindingKind::Ejection]);
    assert!(bed.findings[0].evidence.contains("5 sessions in a row"), "{}", bed.findings[0].evidence);
    let Standing::Out { until: Some(until), .. } = bed.standing(0) else { panic!("{:?}", bed.standing(0)) };
    let back_off = (until - bed.now).as_secs_f64();
    assert!((4.5..=5.5).contains(&back_off), "{back_off}");
}

#[test]
fn half_of_ten_attempts_eject_and_half_of_eight_do_not() {
    let mut bed = Bed::new(4, 4, false);
    for pair in 0..5 {
        assert!(bed.is_in(0), "after {pair} pairs");
        bed.fail(0, 1);
        bed.tick();
        bed.good(0, 1);
        bed.tick();
    }
    assert!(!bed.is_in(0));
    assert!(bed.findings[0].evidence.contains("5 of 10 sessions"), "{}", bed.findings[0].evidence);
}

#[test]
fn an_endpoint_that_accepts_and_stays_mute_is_ejected_even_at_one_session_a_second() {
    let mut bed = Bed::new(4, 4, false);
    for second in 0..30_u64 {
        bed.good(1, 1);
        bed.readings[0].connected += 1;
        if second >= 3 {
            bed.readings[0].mute += 1;
        }
        bed.pass(secs(1));
        if !bed.is_in(0) {
            break;
        }
    }
    assert_eq!(bed.kinds(), [FindingKind::Ejection]);
    assert!(bed.findings[0].evidence.contains("mute"));
}

#[test]
fn a_few_sessions_without_an_answer_among_many_with_one_eject_nobody() {
    // Two of two hundred a second are closed without a word, as nonsense is.
    let mut bed = Bed::new(4, 4, false);
    for _ in 0..600 {
        for number in [0, 1] {
            bed.good(number, 20);
            bed.bytes(number);
        }
        bed.tick();
        bed.readings[0].connected += 1;
        bed.readings[0].empty += 1;
        bed.good(0, 5);
        bed.pass(Duration::from_millis(400));
    }
    assert!(bed.is_in(0) && bed.findings.is_empty(), "{:?}", bed.findings);
    // When all are, it is ejected as ever.
    for _ in 0..5 {
        bed.readings[0].connected += 1;
        bed.readings[0].empty += 1;
        bed.good(1, 1);
        bed.tick();
    }
    assert!(!bed.is_in(0));
}

#[test]
fn where_nobody_answers_silence_is_held_against_nobody() {
    let mut bed = Bed::new(4, 4, false);
    for _ in 0..60 {
        bed.readings.iter_mut().for_each(|reading| {
            reading.connected += 1;
            reading.empty += 1;
        });
        bed.pass(secs(1));
    }
    assert!(bed.findings.is_empty() && bed.used() == 8, "{:?}", bed.findings);
}

#[test]
fn who_is_overtaken_but_lives_is_slow_and_not_dead() {
    let mut bed = Bed::new(4, 4, false);
    for round in 0..100 {
        bed.readings[0].overtaken += 3;
        bed.tick();
        if round % 2 == 0 {
            bed.bytes(0);
        } else {
            bed.readings[0].connected += 1;
        }
        bed.tick();
    }
    assert!(bed.is_in(0) && bed.findings.is_empty(), "{:?}", bed.findings);
    bed.readings[0].overtaken += 5;
    bed.pass(Duration::from_millis(400));
    assert!(!bed.is_in(0), "no life since");
}

#[test]
fn what_shares_a_cloud_with_one_that_has_just_died_is_believed_to_have_died_too_after_two_sessions() {
    let overtaken = |bed: &mut Bed, number: usize, ticks: usize| {
        for _ in 0..ticks {
            bed.readings[number].overtaken += 1;
            bed.tick();
        }
    };
    let mut bed = Bed::new(2, 2, true);
    overtaken(&mut bed, 1, 3);
    bed.pass(secs(1));
    assert!(bed.is_in(1) && bed.findings.is_empty(), "two or three alone say nothing");
    // All new sessions go to one of the two first, as it has fewer.
    let mut bed = Bed::new(2, 2, true);
    bed.readings[0].overtaken += 5;
    bed.pass(Duration::from_millis(400));
    assert!(!bed.is_in(0) && bed.is_in(1));
    overtaken(&mut bed, 1, 2);
    assert!(bed.is_in(1), "it could be slow");
    bed.tick();
    assert!(!bed.is_in(1), "{:?}", bed.findings);
    assert_eq!((bed.percent("aws"), bed.percent("gcp")), (0, 100));
}

#[test]
fn what_shares_a_cloud_with_one_that_has_died_and_lives_is_not_believed_to_have_died() {
    let mut bed = Bed::new(4, 4, true);
    bed.readings[0].overtaken += 5;
    bed.pass(Duration::from_millis(400));
    assert!(!bed.is_in(0));
    for _ in 0..10 {
        bed.readings[1].overtaken += 1;
        bed.bytes(1);
        bed.tick();
    }
    for cloud_of_another in [4, 5] {
        bed.readings[cloud_of_another].overtaken += 2;
    }
    bed.pass(secs(2));
    assert!((1..8).all(|number| bed.is_in(number)), "{:?}", bed.findings);
    // Long after, nothing is held against the others for it.
    bed.readings[1].overtaken += 3;
    bed.pass(secs(1));
    assert!(bed.is_in(1), "{:?}", bed.findings);
}

#[test]
fn counters_that_have_fallen_are_those_of_another_cell() {
    let mut bed = Bed::new(4, 4, false);
    bed.good(0, 1_000);
    bed.tick();
    bed.fail(0, 4);
    bed.tick();
    // Its name has lost it and found it again: the cell is another, the memory is not.
    let facts = bed.pools.clone();
    bed.pools[0].members.remove(0);
    bed.reconfigure();
    bed.pass(secs(1));
    bed.pools = facts;
    bed.reconfigure();
    bed.readings[0] = Reading { connected: 2, failed: 1, ..Reading::default() };
    bed.tick();
    assert!(!bed.is_in(0), "four before and one since");
    bed.pass(secs(6));
    assert_eq!(bed.standing(0), Standing::Trial);
    // The same once more, in the middle of its trial.
    bed.readings[0] = Reading::default();
    bed.tick();
    assert_eq!(bed.standing(0), Standing::Trial);
    bed.good(0, 1);
    bed.tick();
    assert!(bed.is_in(0));
}

#[test]
fn sessions_that_say_nothing_but_last_are_good() {
    let mut bed = Bed::new(4, 4, false);
    for _ in 0..20 {
        bed.readings[0].connected += 1;
        bed.pass(secs(6));
        bed.fail(0, 1);
        bed.tick();
    }
    assert!(bed.is_in(0));
    assert!(bed.findings.is_empty());
}

#[test]
fn an_endpoint_that_connects_much_slower_than_its_siblings_is_ejected_after_three_looks() {
    let mut bed = Bed::new(5, 1, false);
    let mut looks = 0;
    while bed.is_in(0) && looks < 100 {
        for number in 0..6 {
            let place = if number == 0 { 8 } else { 1 };
            bed.readings[number].connect.counts[place] += 3;
            bed.good(number, 3);
        }
        bed.tick();
        looks += 1;
    }
    assert!((30..=50).contains(&looks), "{looks} ticks");
    assert_eq!(bed.kinds(), [FindingKind::Ejection]);
    assert!(bed.findings[0].evidence.starts_with("connects take"), "{}", bed.findings[0].evidence);
}

#[test]
fn with_two_siblings_nobody_is_slow() {
    let mut bed = Bed::new(3, 3, false);
    for _ in 0..100 {
        for number in 0..6 {
            bed.readings[number].connect.counts[if number == 0 { 8 } else { 1 }] += 3;
            bed.good(number, 3);
        }
        bed.tick();
    }
    assert!(bed.findings.is_empty());
}

#[test]
fn ejection_that_is_not_enabled_ejects_nothing() {
    let mut facts = pool(4, 4, false);
    facts.ejection.enabled = false;
    let mut bed = Bed::of(vec![facts], clouds());
    bed.fail(0, 100);
    bed.pass(secs(1));
    assert!(bed.is_in(0) && bed.findings.is_empty());
}

#[test]
fn a_reload_and_a_name_that_flickers_keep_everything() {
    let mut bed = Bed::new(4, 4, true);
    bed.down(0);
    bed.fail(1, 5);
    bed.tick();
    let before = (bed.standing(0), bed.standing(1), bed.explain(1).ejections);
    bed.reconfigure();
    assert!(bed.decide().findings.is_empty());
    assert_eq!((bed.standing(0), bed.standing(1), bed.explain(1).ejections), before);
    let all = bed.pools[0].members.clone();
    bed.pools[0].members.truncate(0);
    bed.pools[0].members.extend(all.iter().skip(2).cloned());
    bed.reconfigure();
    bed.decide();
    assert_eq!(bed.standing(0), Standing::New, "not known now");
    bed.now += secs(599);
    bed.pools[0].members.clone_from(&all);
    bed.reconfigure();
    assert_eq!(bed.standing(0), before.0);
    assert!(bed.is_in(2));
    bed.pools[0].members.remove(0);
    bed.reconfigure();
    bed.now += secs(601);
    bed.pools[0].members = all;
    bed.reconfigure();
    assert_eq!(bed.standing(0), Standing::New, "after ten minutes it is another one");
}

#[test]
fn without_probes_what_they_said_no_longer_counts() {
    let mut bed = Bed::new(4, 4, true);
    bed.down(0);
    bed.tick();
    bed.pools[0].probed = false;
    bed.reconfigure();
    bed.decide();
    assert!(bed.is_in(0));
}

#[test]
fn bytes_after_a_failed_probe_began_keep_an_endpoint_until_a_session_fails() {
    let mut bed = Bed::new(4, 4, true);
    bed.pass(secs(1));
    bed.down(0);
    bed.now += Duration::from_millis(1);
    let key = bed.keys[0].clone();
    bed.verdicts.observe(&key, bed.readings[0].clone(), bed.now);
    bed.bytes(0);
    bed.tick();
    assert!(bed.is_in(0));
    assert_eq!(bed.explain(0).kept, Some(Kept::Contradicted));
    assert_eq!(bed.kinds(), [FindingKind::Kept]);
    bed.fail(0, 1);
    bed.tick();
    assert!(!bed.is_in(0), "a session that fails as well settles it");
    assert_eq!(bed.kinds(), [FindingKind::Kept, FindingKind::Verdict]);
}

#[test]
fn bytes_from_before_the_probe_or_long_ago_keep_nothing() {
    let mut bed = Bed::new(4, 4, true);
    bed.bytes(0);
    bed.tick();
    bed.down(0);
    bed.tick();
    assert!(!bed.is_in(0));
    bed.down(1);
    bed.now += Duration::from_millis(1);
    for number in 0..8 {
        let key = bed.keys[number].clone();
        bed.verdicts.observe(&key, bed.readings[number].clone(), bed.now);
    }
    bed.bytes(1);
    bed.tick();
    assert!(bed.is_in(1));
    bed.pass(secs(6));
    assert!(!bed.is_in(1), "the bytes have ceased");
}

#[test]
fn a_wrong_answer_is_believed_against_bytes() {
    let mut bed = Bed::new(4, 4, true);
    bed.pass(secs(1));
    bed.wrong(0);
    bed.now += Duration::from_millis(60);
    bed.bytes(0);
    bed.tick();
    assert!(!bed.is_in(0));
}

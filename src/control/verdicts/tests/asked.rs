//! What people are told of a pool.

use super::*;
use crate::control::verdicts::Taken;

fn taken(bed: &Bed) -> Taken {
    bed.verdicts.taken(&PoolName::from("p"), bed.now)
}

#[test]
fn what_is_out_is_told_by_weight_and_by_who_took_it_out() {
    let mut bed = Bed::new(10, 0, true);
    assert_eq!(taken(&bed), Taken::default());
    bed.down(0);
    bed.fail(1, 5);
    bed.tick();
    assert_eq!(taken(&bed), Taken { out: 20, ejected: 10, by_checks: 10 });
    bed.up(0);
    bed.tick();
    assert_eq!(taken(&bed), Taken { out: 10, ejected: 10, by_checks: 10 }, "the minute is not over");
    assert_eq!(bed.verdicts.taken(&PoolName::from("q"), bed.now), Taken::default());
}

#[test]
fn a_freeze_has_a_reason_as_long_as_it_lasts() {
    let mut bed = Bed::new(2, 2, true);
    let doubt = |bed: &Bed| bed.verdicts.doubt(&PoolName::from("p"));
    assert_eq!(doubt(&bed), None);
    (0..4).for_each(|number| bed.down(number));
    bed.tick();
    let why = doubt(&bed).unwrap();
    assert!(why.starts_with("all 4 probed endpoints failed within 5 s"), "{why}");
    bed.up(0);
    bed.tick();
    assert_eq!(doubt(&bed), None);
}

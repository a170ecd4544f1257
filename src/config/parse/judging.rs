//! How endpoints and clouds are judged: ejection, restraint, and the cloud as one failure domain.

use super::{
    super::{
        Domain, Ejection, Restraint,
        file::{self, EjectionTable, RestraintTable},
        problem::{Code, Problem},
        values::time_text,
    },
    Build, place,
};

impl Build<'_> {
    pub(super) fn domain(&mut self, cloud: &file::Cloud) -> Domain {
        let usual = Domain::default();
        let domain = Domain {
            capacity: cloud.capacity.get().copied(),
            down_below: cloud.down_below.get().copied().unwrap_or(usual.down_below),
            up_above: cloud.up_above.get().copied().unwrap_or(usual.up_above),
            recovery_time: cloud.recovery_time.get().map(|time| time.0),
        };
        let Domain { down_below, up_above, .. } = domain;
        // Where a value is lost, the other cannot be said to be wrong: then neither of the two has a span.
        let at = cloud.up_above.span().or_else(|| cloud.down_below.span());
        if let Some(at) = at.filter(|_| up_above <= down_below) {
            let what =
                format!("a cloud that is down below {down_below} % cannot be up above {up_above} % already");
            self.tell(
                Problem::at(Code::Order, at, what)
                    .label("not above `down_below`")
                    .hint(format!("give `up_above` more than `down_below`, which is {down_below}")),
            );
        }
        domain
    }

    pub(super) fn ejection(&mut self, pool: &file::Pool) -> Ejection {
        let usual = Ejection::default();
        let none = EjectionTable::default();
        let table = pool.ejection.get().unwrap_or(&none);
        let base = table.base.get().map_or(usual.base, |time| time.0);
        let max = table.max.get().map(|time| time.0);
        if let Some(max) = max.filter(|max| *max < base) {
            let what = format!("the longest ejection, {}, is shorter than the first", time_text(max));
            self.tell(
                Problem::at(Code::Order, place(table.max.span()), what)
                    .label("below `base`")
                    .hint(format!("give `max` at least `base`, which is {}", time_text(base))),
            );
        }
        Ejection {
            enabled: table.enabled.get().copied().unwrap_or(usual.enabled),
            failures: table.failures.get().copied().unwrap_or(usual.failures),
            base,
            // A base beyond the usual longest one says what is meant.
            max: max.unwrap_or_else(|| usual.max.max(base)),
            max_ejected: table.max_ejected.get().copied().unwrap_or(usual.max_ejected),
        }
    }
}

pub(super) fn restraint(pool: &file::Pool) -> Restraint {
    let usual = Restraint::default();
    let none = RestraintTable::default();
    let table = pool.restraint.get().unwrap_or(&none);
    Restraint {
        max_removal: table.max_removal.get().copied().unwrap_or(usual.max_removal),
        floor: table.floor.get().copied().unwrap_or(usual.floor),
    }
}

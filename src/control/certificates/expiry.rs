//! Certificates whose time comes to its end: told once at each step.

use std::{collections::HashMap, path::PathBuf, sync::Arc};

use super::{Owner, Told};

/// How near the end of a certificate's time is. Later is worse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Less than 14 days, or the last third of a short time: whoever renews it should have done so.
    Fortnight,
    /// Less than three days, or the last twelfth.
    Days,
    /// Its time is over, or has not begun.
    Invalid,
}

/// A certificate that has come to another step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nearing {
    /// Who shows it.
    pub owner: Owner,
    /// The file it is in.
    pub file: PathBuf,
    /// The names it is for.
    pub names: Vec<String>,
    /// How near it is.
    pub step: Step,
    /// `expires in 13 days`.
    pub when: String,
}

/// What was told already.
#[derive(Debug, Default)]
pub struct Calendar(HashMap<(Owner, PathBuf, String), Step>);

const DAY: i64 = 86_400;

impl Step {
    /// The step of a certificate that is good from `from` to `to`, at `now`, all in seconds since 1970. `None` while there is
    /// nothing to tell.
    #[must_use]
    pub fn of(from: i64, to: i64, now: i64) -> Option<Self> {
        // Identities of workloads live for an hour, and are renewed at half of it.
        let life = to.saturating_sub(from);
        if now < from || now > to {
            Some(Self::Invalid)
        } else if to - now < (3 * DAY).min(life / 12) {
            Some(Self::Days)
        } else if to - now < (14 * DAY).min(life / 3) {
            Some(Self::Fortnight)
        } else {
            None
        }
    }
}

impl Calendar {
    /// The certificates that have come to a worse step since the last look, at `now` in seconds since 1970.
    pub fn look(&mut self, told: &Arc<[Told]>, now: i64) -> Vec<Nearing> {
        let before = std::mem::take(&mut self.0);
        let mut nearing = Vec::new();
        for Told { owner, shown, .. } in told.iter() {
            for one in shown {
                let Some(step) = Step::of(one.not_before, one.not_after, now) else { continue };
                let key = (owner.clone(), one.file.clone(), one.serial.clone());
                let first = !self.0.contains_key(&key);
                if first && before.get(&key).is_none_or(|old| *old < step) {
                    nearing.push(Nearing {
                        owner: owner.clone(),
                        file: one.file.clone(),
                        names: one.names.clone(),
                        step,
                        when: when(one.not_before, one.not_after, now),
                    });
                }
                self.0.insert(key, step);
            }
        }
        nearing
    }
}

/// `expires in 13 days`, `expired 2 h ago`, `is not valid before 3 h from now`.
#[must_use]
pub fn when(from: i64, to: i64, now: i64) -> String {
    if now < from {
        format!("is good only in {}", span(from.saturating_sub(now)))
    } else if now > to {
        format!("expired {} ago", span(now.saturating_sub(to)))
    } else {
        format!("expires in {}", span(to.saturating_sub(now)))
    }
}

/// The largest unit of which there are at least two: `29 days`, `47 h`, `90 min`, `5 s`.
fn span(seconds: i64) -> String {
    match seconds {
        172_800.. => format!("{} days", seconds / DAY),
        7_200.. => format!("{} h", seconds / 3600),
        120.. => format!("{} min", seconds / 60),
        _ => format!("{seconds} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::Shown;

    fn told(serial: &str, not_after: i64) -> Arc<[Told]> {
        let shown = Shown {
            file: "/a.pem".into(),
            names: vec!["a.example".into()],
            not_before: 0,
            not_after,
            serial: serial.into(),
        };
        let owner = Owner::Listener("web".into());
        Arc::from([Told { owner, shown: vec![shown], alarm: None }])
    }

    #[test]
    fn each_step_is_told_once_and_a_renewal_begins_anew() {
        let mut calendar = Calendar::default();
        let end = 100 * DAY;
        let mut steps = |serial: &str, end, now| {
            let found = calendar.look(&told(serial, end), now);
            found.into_iter().map(|one| (one.step, one.when)).collect::<Vec<_>>()
        };
        assert_eq!(steps("1", end, 0), []);
        assert_eq!(steps("1", end, end - 14 * DAY), []);
        let fortnight = (Step::Fortnight, "expires in 13 days".to_owned());
        assert_eq!(steps("1", end, end - 14 * DAY + 1), std::slice::from_ref(&fortnight));
        assert_eq!(steps("1", end, end - 10 * DAY), []);
        assert_eq!(steps("1", end, end - 3600 * 47), [(Step::Days, "expires in 47 h".to_owned())]);
        assert_eq!(steps("1", end, end), []);
        assert_eq!(steps("1", end, end + 7200), [(Step::Invalid, "expired 2 h ago".to_owned())]);
        assert_eq!(steps("1", end, end + 8000), []);
        assert_eq!(steps("2", 2 * end, end + 8000), []);
        assert_eq!(steps("2", 2 * end, 2 * end - 13 * DAY - 5), [fortnight]);
    }

    #[test]
    fn one_certificate_that_two_settings_name_is_told_once() {
        let mut twice = told("1", 10).to_vec();
        let again = twice[0].shown[0].clone();
        twice[0].shown.push(again);
        assert_eq!(Calendar::default().look(&Arc::from(twice), 9).len(), 1);
    }

    #[test]
    fn of_a_short_time_the_last_third_counts_and_the_last_twelfth() {
        let step = |now| Step::of(0, 3600, now);
        assert_eq!(
            [2400, 2401, 3300, 3301, 3601].map(step),
            [None, Some(Step::Fortnight), Some(Step::Fortnight), Some(Step::Days), Some(Step::Invalid)]
        );
    }

    #[test]
    fn a_time_that_has_not_come_is_in_words_too() {
        assert_eq!(when(500, 1000, 0), "is good only in 8 min");
        assert_eq!(Step::of(500, 1000, 0), Some(Step::Invalid));
    }
}

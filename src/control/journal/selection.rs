//! Which events somebody wants to see.

use super::{Event, Kind, Level};
use crate::ids::{CloudName, PoolName};

/// What must hold for an event to be shown. The default takes everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// One of these kinds; any, if there is none.
    pub kinds: Vec<Kind>,
    /// About this pool.
    pub pool: Option<String>,
    /// About this cloud, or an endpoint in it.
    pub cloud: Option<String>,
    /// At least this serious.
    pub min_level: Option<Level>,
}

impl Selection {
    /// True when this event is wanted.
    #[must_use]
    pub fn takes(&self, event: &Event) -> bool {
        let what = &event.happening;
        let pool = what.pool.as_ref().map(PoolName::as_str);
        let cloud = what.cloud.as_ref().map(CloudName::as_str);
        (self.kinds.is_empty() || self.kinds.contains(&what.kind))
            && self.pool.as_deref().is_none_or(|wanted| pool == Some(wanted))
            && self.cloud.as_deref().is_none_or(|wanted| cloud == Some(wanted))
            && self.min_level.is_none_or(|least| what.level() >= least)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        control::{Happening, Journal},
        ids::Generation,
    };

    #[test]
    fn every_condition_must_hold() {
        let journal = Journal::default();
        let (db, web) = (PoolName::from("db"), PoolName::from("web"));
        let (aws, gcp) = (CloudName::from("aws"), CloudName::from("gcp"));
        let generation = Generation(1);
        journal.record(
            generation,
            Happening::new(Kind::Verdict).pool(&db).cloud(&aws).change("up", "down").said("1"),
        );
        journal.record(
            generation,
            Happening::new(Kind::Verdict).pool(&web).cloud(&gcp).change("down", "up").said("2"),
        );
        journal.record(generation, Happening::new(Kind::Failover).pool(&db).said("3"));
        journal.record(generation, Happening::new(Kind::Reload).said("4"));
        let taken = |selection: Selection| {
            let events = journal.last(usize::MAX);
            events.iter().filter(|event| selection.takes(event)).map(|event| event.id).collect::<Vec<_>>()
        };
        let any = Selection::default;
        assert_eq!(taken(any()), [1, 2, 3, 4]);
        assert_eq!(taken(Selection { kinds: vec![Kind::Reload, Kind::Verdict], ..any() }), [1, 2, 4]);
        assert_eq!(taken(Selection { pool: Some("db".into()), ..any() }), [1, 3]);
        assert_eq!(taken(Selection { cloud: Some("gcp".into()), ..any() }), [2]);
        assert_eq!(taken(Selection { min_level: Some(Level::Warn), ..any() }), [1, 3]);
        let both = Selection { pool: Some("db".into()), cloud: Some("aws".into()), ..any() };
        assert_eq!(taken(both), [1]);
    }
}

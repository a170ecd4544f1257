//! What changed, when and why: a bounded ring that `status` shows and an incident is read from.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
    time::SystemTime,
};

use crate::ids::Generation;

/// Events kept.
const CAPACITY: usize = 512;

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// When.
    pub time: SystemTime,
    /// The generation that it led to, or that was in force.
    pub generation: Generation,
    /// What and why, in one sentence.
    pub text: String,
}

/// The last events.
#[derive(Debug, Default)]
pub struct Journal {
    events: Mutex<VecDeque<Event>>,
}

impl Journal {
    /// Adds an event; the oldest goes when the ring is full.
    pub fn record(&self, generation: Generation, text: String) {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        if events.len() == CAPACITY {
            events.pop_front();
        }
        events.push_back(Event { time: SystemTime::now(), generation, text });
    }

    /// The last `count` events, oldest first.
    #[must_use]
    pub fn last(&self, count: usize) -> Vec<Event> {
        let events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        events.iter().skip(events.len().saturating_sub(count)).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ring_keeps_the_newest() {
        let journal = Journal::default();
        for n in 0..CAPACITY as u64 + 5 {
            journal.record(Generation(n), format!("event {n}"));
        }
        let last = journal.last(CAPACITY * 2);
        assert_eq!(last.len(), CAPACITY);
        assert_eq!(last.first().unwrap().text, "event 5");
        assert_eq!(journal.last(1)[0].generation, Generation(CAPACITY as u64 + 4));
    }
}

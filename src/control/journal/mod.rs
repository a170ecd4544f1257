//! What changed, when and why: a bounded ring that `status` shows, `events` follows and an incident is read from. Every
//! event is written to the log too, once, here.

mod happening;
mod selection;

pub use happening::{Happening, Kind, Level, NoSuchWord};
pub use selection::Selection;

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use tokio::sync::watch;

use crate::ids::Generation;

/// Events kept: the last hours of a bad day, in a few megabytes.
const CAPACITY: usize = 4096;

/// Characters that are kept of a sentence or of evidence: a config may be refused for thousands of reasons. The log has
/// them all.
const LENGTH: usize = 4096;

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Its number: 1 for the first of the process, and one more for each.
    pub id: u64,
    /// When.
    pub time: SystemTime,
    /// The generation that it led to, or that was in force.
    pub generation: Generation,
    /// What.
    pub happening: Happening,
    /// It in one sentence.
    pub text: String,
}

/// The last events.
#[derive(Debug)]
pub struct Journal {
    ring: Mutex<Ring>,
    /// The number of the last event: who follows waits here.
    last: watch::Sender<u64>,
    /// When it began, in milliseconds since 1970: tells its numbers from those of the process before.
    run: u64,
}

#[derive(Debug)]
struct Ring {
    events: VecDeque<Arc<Event>>,
    next: u64,
}

impl Default for Journal {
    fn default() -> Self {
        let begun = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        Self {
            ring: Mutex::new(Ring { events: VecDeque::new(), next: 1 }),
            last: watch::Sender::default(),
            run: u64::try_from(begun.as_millis()).unwrap_or_default(),
        }
    }
}

impl Journal {
    /// Adds an event, and writes it to the log. The oldest goes when the ring is full.
    pub fn record(&self, generation: Generation, happening: Happening) {
        let (text, evidence) = (happening.text(), happening.evidence.clone());
        let event = {
            let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
            ring.add(generation, happening.because(kept(&evidence)), kept(&text))
        };
        log(&event, &text, &evidence);
        self.last.send_modify(|last| *last = event.id.max(*last));
    }

    /// Which run of the process it is of: a number that no other run has.
    #[must_use]
    pub const fn run(&self) -> u64 {
        self.run
    }

    /// The last `count` events, oldest first.
    #[must_use]
    pub fn last(&self, count: usize) -> Vec<Arc<Event>> {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        ring.events.iter().skip(ring.events.len().saturating_sub(count)).cloned().collect()
    }

    /// The events after number `id`, oldest first, and how many of them the ring has lost already.
    #[must_use]
    pub fn since(&self, id: u64) -> (u64, Vec<Arc<Event>>) {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let first = ring.events.front().map_or(ring.next, |event| event.id);
        let lost = first.saturating_sub(id.saturating_add(1));
        let known = usize::try_from(id.saturating_add(1).saturating_sub(first)).unwrap_or(usize::MAX);
        (lost, ring.events.iter().skip(known).cloned().collect())
    }

    /// Tells of each new event: the number of the last one.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.last.subscribe()
    }
}

impl Ring {
    fn add(&mut self, generation: Generation, happening: Happening, text: String) -> Arc<Event> {
        let event = Arc::new(Event { id: self.next, time: SystemTime::now(), generation, happening, text });
        self.next += 1;
        if self.events.len() == CAPACITY {
            self.events.pop_front();
        }
        self.events.push_back(Arc::clone(&event));
        event
    }
}

/// What is kept of a text.
fn kept(text: &str) -> String {
    match text.char_indices().nth(LENGTH) {
        None => text.to_owned(),
        Some(_) => text.chars().take(LENGTH).chain(" …".chars()).collect(),
    }
}

/// The line of an event, with all of its text and evidence. Parts that it does not have are left out.
fn log(event: &Event, text: &str, evidence: &str) {
    let happening = &event.happening;
    macro_rules! line {
        ($level:expr) => {
            tracing::event!(
                $level,
                kind = happening.kind.as_str(),
                pool = happening.pool.as_ref().map(tracing::field::display),
                endpoint = happening.endpoint.as_ref().map(tracing::field::display),
                cloud = happening.cloud.as_ref().map(tracing::field::display),
                before = filled(&happening.before),
                after = filled(&happening.after),
                evidence = filled(evidence).filter(|evidence| !text.contains(evidence)),
                generation = event.generation.0,
                event = event.id,
                "{text}"
            )
        };
    }
    match happening.level() {
        Level::Debug => line!(tracing::Level::DEBUG),
        Level::Info => line!(tracing::Level::INFO),
        Level::Warn => line!(tracing::Level::WARN),
        Level::Error => line!(tracing::Level::ERROR),
    }
}

fn filled(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        control::testing::{Lines, alone},
        ids::{CloudName, EndpointIdentity, PoolName},
    };

    fn numbered(n: u64) -> Happening {
        Happening::new(Kind::Generation).said(format!("event {n}"))
    }

    fn ids(events: &[Arc<Event>]) -> Vec<u64> {
        events.iter().map(|event| event.id).collect()
    }

    #[test]
    fn the_ring_keeps_the_newest() {
        let journal = Journal::default();
        for n in 0..CAPACITY as u64 + 5 {
            journal.record(Generation(n), numbered(n));
        }
        let last = journal.last(CAPACITY * 2);
        assert_eq!(last.len(), CAPACITY);
        assert_eq!((last[0].id, last[0].text.as_str()), (6, "event 5"));
        assert!(last.windows(2).all(|pair| pair[1].id == pair[0].id + 1));
        assert_eq!(journal.last(1)[0].generation, Generation(CAPACITY as u64 + 4));
    }

    #[test]
    fn what_came_after_a_number_is_told_exactly_and_what_is_lost_is_counted() {
        let journal = Journal::default();
        assert_eq!(journal.since(0), (0, Vec::new()));
        for n in 0..3 {
            journal.record(Generation(n), numbered(n));
        }
        let since = |id| {
            let (lost, events) = journal.since(id);
            (lost, ids(&events))
        };
        assert_eq!(since(0), (0, vec![1, 2, 3]));
        assert_eq!(since(2), (0, vec![3]));
        assert_eq!(since(3), (0, vec![]));
        assert_eq!(since(u64::MAX), (0, vec![]));
        for n in 0..CAPACITY as u64 {
            journal.record(Generation(n), numbered(n));
        }
        let (lost, events) = journal.since(1);
        assert_eq!((lost, events.len(), events[0].id), (2, CAPACITY, 4));
    }

    #[test]
    fn a_text_without_end_is_kept_in_part() {
        let journal = Journal::default();
        journal.record(Generation(1), Happening::new(Kind::ReloadRefused).because("ü".repeat(3 * LENGTH)));
        let event = &journal.last(1)[0];
        assert_eq!(event.text.chars().count(), LENGTH + 2);
        assert!(event.text.starts_with("config not reloaded: ü") && event.text.ends_with("ü …"));
        assert_eq!(event.happening.evidence.chars().count(), LENGTH + 2);
    }

    #[tokio::test]
    async fn who_follows_hears_of_each_event() {
        let journal = Journal::default();
        let mut last = journal.subscribe();
        journal.record(Generation(1), numbered(1));
        last.changed().await.unwrap();
        assert_eq!(*last.borrow_and_update(), 1);
        assert!(!last.has_changed().unwrap());
    }

    #[test]
    fn an_event_is_one_line_of_the_log_at_the_level_of_its_kind() {
        if !alone("control::journal::tests::an_event_is_one_line_of_the_log_at_the_level_of_its_kind") {
            return;
        }
        let lines = Lines::default();
        let _guard = lines.capture();
        let journal = Journal::default();
        let identity = EndpointIdentity {
            pool: PoolName::from("db"),
            cloud: CloudName::from("aws"),
            address: "10.0.0.1:5432".parse().unwrap(),
        };
        let verdict = Happening::new(Kind::Verdict).endpoint(&identity);
        journal.record(Generation(7), verdict.clone().change("up", "down").because("3 probes failed"));
        journal.record(Generation(8), verdict.change("down", "up").because("2 probes good"));
        journal.record(Generation(8), Happening::new(Kind::Stop));
        let all = lines.with("");
        assert_eq!(all.len(), 3, "{all:?}");
        let text = "endpoint 10.0.0.1:5432 (pool db) down: 3 probes failed kind=\"verdict\" pool=db \
                    endpoint=10.0.0.1:5432 cloud=aws before=\"up\" after=\"down\" generation=7 event=1";
        assert!(all[0].contains("WARN") && all[0].ends_with(text), "{}", all[0]);
        assert!(all[1].contains("INFO") && all[1].contains("2 probes good"), "{}", all[1]);
        assert!(all[2].ends_with("stopped kind=\"stop\" generation=8 event=3"), "{}", all[2]);
    }
}

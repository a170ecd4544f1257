//! Connections that come, ask once, and go.

use std::collections::VecDeque;

use tokio::time::Instant;

use super::{
    Failure, Tally,
    drive::{Demand, Work},
    exchange::REST,
    lines::Lines,
    poll::{Event, Poll, token},
};

/// Slots with one connection each.
pub(super) struct Churn {
    lines: Lines,
    /// Slots without a connection, the longest unused first.
    free: VecDeque<usize>,
    /// Slots whose connection failed, and when they may be used again.
    resting: VecDeque<(Instant, usize)>,
}

impl Churn {
    pub(super) fn new(lines: Lines) -> Self {
        let free: VecDeque<_> = (0..lines.len()).collect();
        Self { resting: VecDeque::with_capacity(free.len()), lines, free }
    }

    /// A fixed rate bounds the attempts by itself, and has to be kept whatever the target does.
    fn failed(&mut self, place: usize, failure: Failure, demand: &Demand, tally: &mut Tally) {
        tally.failed(failure);
        self.lines.close(place);
        match demand {
            Demand::Paced(_) => self.free.push_back(place),
            Demand::AtOnce | Demand::Nothing => self.resting.push_back((Instant::now() + REST, place)),
        }
    }
}

impl Work for Churn {
    fn poll(&self) -> &Poll {
        &self.lines.poll
    }

    fn is_open(&self) -> bool {
        true
    }

    fn start(&mut self, now: Instant, demand: &mut Demand, tally: &mut Tally) {
        while let Some((_, place)) = self.resting.pop_front_if(|(due, _)| *due <= now) {
            self.free.push_back(place);
        }
        // Each free slot once: one that fails at once waits for the next turn.
        for _ in 0..self.free.len() {
            let Some(place) = self.free.front().copied() else { return };
            let Some(due) = demand.due(now) else { return };
            self.free.pop_front();
            match self.lines.connect(place, Instant::now(), Some(due)) {
                Ok(connected) => connected.into_iter().for_each(|took| tally.connected(took)),
                Err(failure) => self.failed(place, failure, demand, tally),
            }
        }
    }

    fn next(&self, demand: &Demand) -> Option<Instant> {
        let rested = self.resting.front().map(|(due, _)| *due);
        let unit = demand.next().filter(|_| !self.free.is_empty());
        [rested, unit].into_iter().flatten().min()
    }

    fn turn(&mut self, event: &Event, demand: &Demand, tally: &mut Tally) {
        let place = token(event);
        match self.lines.step(event) {
            Ok(step) => {
                if let Some(took) = step.connected {
                    tally.connected(took);
                }
                if let Some(took) = step.done {
                    tally.done(took);
                    self.lines.close(place);
                    self.free.push_back(place);
                }
            }
            Err(failure) => self.failed(place, failure, demand, tally),
        }
    }

    fn expire(&mut self, now: Instant, _: &Demand, tally: &mut Tally) {
        self.lines.expire(now, |place, waited| {
            tally.timed_out(waited);
            self.free.push_back(place);
        });
    }

    fn unfinished(&self, each: &mut dyn FnMut(Instant)) {
        self.lines.unfinished().for_each(each);
    }
}

//! Requests and replies on connections that stay. A connection that is lost is made anew.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

use super::{
    Failure, Tally,
    drive::{Demand, Work},
    lines::Lines,
    poll::{Event, Poll, token},
};

/// Connects under way at a time: a target's queue of connections that wait is not endless.
pub(super) const OPENING: usize = 128;

/// Time before a lost connection is made anew: a target that refuses is not to be asked a hundred thousand times a
/// second.
pub(super) const REST: Duration = Duration::from_millis(100);

/// Connections with at most one request under way on each.
pub(super) struct Exchange {
    lines: Lines,
    /// Lines without a request under way, the longest unused first; those of them that are lost meanwhile stay in it.
    free: VecDeque<usize>,
    queued: Vec<bool>,
    /// The first line that was never connected.
    fresh: usize,
    /// Lost lines, and when they are to be made anew.
    resting: VecDeque<(Instant, usize)>,
}

impl Exchange {
    pub(super) fn new(lines: Lines) -> Self {
        let count = lines.len();
        let free = VecDeque::with_capacity(count);
        let resting = VecDeque::with_capacity(count);
        Self { lines, free, queued: vec![false; count], fresh: 0, resting }
    }

    fn connect_due(&mut self, now: Instant, tally: &mut Tally) {
        while self.lines.opening() < OPENING {
            let rested = self.resting.front().filter(|(due, _)| *due <= now).map(|(_, place)| *place);
            let place = match rested {
                Some(place) => {
                    self.resting.pop_front();
                    place
                }
                None if self.fresh < self.lines.len() => {
                    self.fresh += 1;
                    self.fresh - 1
                }
                None => return,
            };
            if let Err(failure) = self.lines.connect(place, now, None) {
                self.lost(place, failure, now, tally);
            }
        }
    }

    fn ask(&mut self, place: usize, due: Instant, now: Instant, tally: &mut Tally) {
        if let Err(failure) = self.lines.ask(place, due, now) {
            self.lost(place, failure, now, tally);
        }
    }

    /// A line that can take a request: in a closed loop it gets one.
    fn free(&mut self, place: usize, demand: &Demand, tally: &mut Tally) {
        if matches!(demand, Demand::AtOnce) {
            let now = Instant::now();
            return self.ask(place, now, now, tally);
        }
        if let Some(queued) = self.queued.get_mut(place).filter(|queued| !**queued) {
            *queued = true;
            self.free.push_back(place);
        }
    }

    fn lost(&mut self, place: usize, failure: Failure, now: Instant, tally: &mut Tally) {
        tally.failed(failure);
        self.lines.close(place);
        self.resting.push_back((now + REST, place));
    }
}

impl Work for Exchange {
    fn poll(&self) -> &Poll {
        &self.lines.poll
    }

    fn is_open(&self) -> bool {
        self.fresh == self.lines.len() && self.lines.opening() == 0
    }

    fn start(&mut self, now: Instant, demand: &mut Demand, tally: &mut Tally) {
        self.connect_due(now, tally);
        while let Some(place) = self.free.front().copied() {
            if self.lines.is_free(place) {
                let Some(due) = demand.due(now) else { return };
                self.ask(place, due, now, tally);
            }
            self.free.pop_front();
            if let Some(queued) = self.queued.get_mut(place) {
                *queued = false;
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
                }
                if step.gone {
                    self.lost(place, Failure::ClosedEarly, Instant::now(), tally);
                } else if step.done.or(step.connected).is_some() {
                    self.free(place, demand, tally);
                }
            }
            Err(failure) => self.lost(place, failure, Instant::now(), tally),
        }
    }

    fn expire(&mut self, now: Instant, _: &Demand, tally: &mut Tally) {
        self.lines.expire(now, |place, waited| {
            tally.timed_out(waited);
            self.resting.push_back((now + REST, place));
        });
    }

    fn unfinished(&self, each: &mut dyn FnMut(Instant)) {
        self.lines.unfinished().for_each(each);
    }
}

//! Connections that do nothing after one exchange: how many of them live on?

use tokio::time::Instant;

use super::{
    Failure, Tally,
    drive::{Demand, Work},
    exchange::OPENING,
    lines::Lines,
    poll::{Event, Poll, token},
};

/// Connections that are held.
pub(super) struct Hold {
    lines: Lines,
    /// The first one that was never made.
    fresh: usize,
    /// Those whose connect or exchange is under way.
    pending: usize,
    held: Vec<bool>,
    alive: u64,
}

impl Hold {
    pub(super) fn new(lines: Lines) -> Self {
        let held = vec![false; lines.len()];
        Self { lines, fresh: 0, pending: 0, held, alive: 0 }
    }

    /// Those that live now.
    pub(super) const fn alive(&self) -> u64 {
        self.alive
    }

    fn lost(&mut self, place: usize, failure: Failure, tally: &mut Tally) {
        tally.failed(failure);
        self.lines.close(place);
        self.forget(place);
    }

    fn forget(&mut self, place: usize) {
        match self.held.get_mut(place) {
            Some(held) if *held => {
                *held = false;
                self.alive -= 1;
            }
            _ => self.pending -= 1,
        }
    }
}

impl Work for Hold {
    fn poll(&self) -> &Poll {
        &self.lines.poll
    }

    fn is_open(&self) -> bool {
        self.fresh == self.lines.len() && self.pending == 0
    }

    fn start(&mut self, now: Instant, _: &mut Demand, tally: &mut Tally) {
        while self.pending < OPENING && self.fresh < self.lines.len() {
            let place = self.fresh;
            self.fresh += 1;
            self.pending += 1;
            match self.lines.connect(place, now, Some(now)) {
                Ok(connected) => connected.into_iter().for_each(|took| tally.connected(took)),
                Err(failure) => self.lost(place, failure, tally),
            }
        }
    }

    fn next(&self, _: &Demand) -> Option<Instant> {
        None
    }

    fn turn(&mut self, event: &Event, _: &Demand, tally: &mut Tally) {
        let place = token(event);
        match self.lines.step(event) {
            Ok(step) => {
                if let Some(took) = step.connected {
                    tally.connected(took);
                }
                if let Some((took, held)) = step.done.zip(self.held.get_mut(place)) {
                    *held = true;
                    self.pending -= 1;
                    self.alive += 1;
                    tally.held += 1;
                    tally.done(took);
                }
                if step.gone {
                    self.lost(place, Failure::ClosedEarly, tally);
                }
            }
            Err(failure) => self.lost(place, failure, tally),
        }
    }

    fn expire(&mut self, now: Instant, _: &Demand, tally: &mut Tally) {
        let mut expired = Vec::new();
        self.lines.expire(now, |place, waited| expired.push((place, waited)));
        for (place, waited) in expired {
            tally.timed_out(waited);
            self.forget(place);
        }
    }

    fn unfinished(&self, _: &mut dyn FnMut(Instant)) {}
}

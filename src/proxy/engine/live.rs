//! What an operator asks about single sessions, answered by the engine. A census goes over the slots a stretch a turn, so
//! that a hundred thousand sessions hold up none of them.

use super::{
    Engine,
    session::{Session, Stage},
    slots::Token,
};
use crate::{
    ids::SessionHandle,
    state::{Census, Kill},
    telemetry::{Cause, End, Side, Stage as At},
};

/// Slots that are looked at in a turn: a fraction of a millisecond, most of it cache misses.
const STRETCH: usize = if cfg!(test) { 4 } else { 1024 };

/// A census under way.
pub(super) struct Counting {
    census: Box<Census>,
    /// The slot where it goes on.
    next: usize,
}

impl Counting {
    pub(super) const fn new(census: Box<Census>) -> Self {
        Self { census, next: 0 }
    }
}

impl Engine {
    /// Does a stretch of each census that is under way. True when there is more of them.
    pub(super) fn count_sessions(&mut self) -> bool {
        if self.censuses.is_empty() {
            return false;
        }
        for mut counting in std::mem::take(&mut self.censuses) {
            if counting.census.is_moot() {
                continue;
            }
            match self.sessions.stretch(counting.next, STRETCH) {
                Some(stretch) => {
                    for (token, Session { books, .. }) in stretch {
                        counting.census.look(&books.traits(), || books.tell(self.handle(token)));
                    }
                    counting.next += STRETCH;
                    self.censuses.push(counting);
                }
                None => counting.census.finish(),
            }
        }
        !self.censuses.is_empty()
    }

    /// Resets one session on both sides, if it is still there.
    pub(super) fn kill(&mut self, kill: Kill) {
        let SessionHandle { slot, generation, .. } = kill.handle;
        let token = Token { slot, generation };
        let found = self.sessions.get(token).map(|session| {
            let relaying = matches!(session.stage, Stage::Relaying(_));
            (session.books.tell(kill.handle), if relaying { At::Relay } else { At::Connect })
        });
        let ended = found.map(|(told, stage)| {
            self.end(token, End { side: Side::Operator, stage, cause: Cause::Killed });
            told
        });
        kill.answer(ended);
    }

    fn handle(&self, token: Token) -> SessionHandle {
        let worker = u32::try_from(self.number).unwrap_or(u32::MAX);
        SessionHandle { worker, slow: false, slot: token.slot, generation: token.generation }
    }
}

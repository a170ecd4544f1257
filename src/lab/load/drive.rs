//! The loop that every kind of load runs in: start what is due, sleep until something happens, deal with it.

use std::{io, thread, time::Duration};

use tokio::time::Instant;

use super::{
    ByHand, Live, Rate, Tally,
    pace::Pace,
    poll::{Event, Poll},
    tally::Told,
};

/// How often waiting connections are looked at, figures told and a stop heeded; the longest sleep of a loop.
const TICK: Duration = Duration::from_millis(50);

/// Time to make the connections, before the rest of them is made while the work is on.
const OPENING: Duration = Duration::from_secs(30);

/// A span of work.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// How long.
    pub length: Duration,
    /// Units at a fixed rate (an open loop), or the next as soon as the last is done.
    pub rate: Option<Rate>,
    /// Poll without sleeping between the units of a fixed rate: a virtual CPU that halts takes tens of microseconds to
    /// wake, and latencies would show that.
    pub spin: bool,
}

/// When units begin.
pub(super) enum Demand {
    /// None do: connections are being made.
    Nothing,
    /// As soon as they can.
    AtOnce,
    /// On a schedule.
    Paced(Pace),
}

/// What a loop does while nothing is due and nothing has come.
pub(super) enum Pause<'a> {
    Sleep,
    /// Looks again, and lets others on this CPU have their turns.
    Look,
    /// Looks again, and serves the target meanwhile.
    Serve(&'a mut ByHand),
}

/// A kind of load.
pub(super) trait Work {
    fn poll(&self) -> &Poll;

    /// False while connections that it keeps are still to be made for the first time.
    fn is_open(&self) -> bool;

    /// Starts what can be started now.
    fn start(&mut self, now: Instant, demand: &mut Demand, tally: &mut Tally);

    /// When there will be something to start, if no event comes first.
    fn next(&self, demand: &Demand) -> Option<Instant>;

    fn turn(&mut self, event: &Event, demand: &Demand, tally: &mut Tally);

    /// Ends what has waited too long.
    fn expire(&mut self, now: Instant, demand: &Demand, tally: &mut Tally);

    /// Calls `each` with the intended start of every unit that is under way.
    fn unfinished(&self, each: &mut dyn FnMut(Instant));
}

impl Demand {
    /// The intended start of a unit that is to begin.
    pub(super) fn due(&mut self, now: Instant) -> Option<Instant> {
        match self {
            Self::Nothing => None,
            Self::AtOnce => Some(now),
            Self::Paced(pace) => pace.due(now),
        }
    }

    /// When the next unit is due.
    pub(super) const fn next(&self) -> Option<Instant> {
        match self {
            Self::Paced(pace) => Some(pace.next()),
            Self::Nothing | Self::AtOnce => None,
        }
    }
}

/// Makes the connections that the work keeps.
pub(super) fn open(work: &mut impl Work, live: &Live) -> io::Result<Tally> {
    drive(work, OPENING, Demand::Nothing, Pause::Sleep, live)
}

/// Works for a span.
pub(super) fn run(
    work: &mut impl Work,
    span: Span,
    target: Option<&mut ByHand>,
    live: &Live,
) -> io::Result<Tally> {
    let demand = span.rate.map_or(Demand::AtOnce, |rate| Demand::Paced(Pace::new(Instant::now(), rate)));
    let pause = match target {
        Some(target) => Pause::Serve(target),
        None if span.spin && span.rate.is_some() => Pause::Look,
        None => Pause::Sleep,
    };
    drive(work, span.length, demand, pause, live)
}

fn drive(
    work: &mut impl Work,
    length: Duration,
    mut demand: Demand,
    mut pause: Pause<'_>,
    live: &Live,
) -> io::Result<Tally> {
    let start = Instant::now();
    let end = start + length;
    let (mut tally, mut told) = (Tally::new()?, Told::default());
    let mut events = Poll::room();
    let mut tick = start;
    loop {
        let now = Instant::now();
        if now >= tick {
            work.expire(now, &demand, &mut tally);
            live.tell(&tally, &mut told);
            tick = now + TICK;
        }
        let open = matches!(demand, Demand::Nothing) && work.is_open();
        if now >= end || open || (live.stop)() {
            tally.elapsed = now - start;
            finish(work, &demand, (now, end), &mut tally);
            live.tell(&tally, &mut told);
            return Ok(tally);
        }
        work.start(now, &mut demand, &mut tally);
        let wake = work.next(&demand).map_or(tick, |next| next.min(tick)).min(end);
        let timeout = wake.saturating_duration_since(now);
        let poll = work.poll();
        match (&mut pause, &demand) {
            (Pause::Serve(target), _) => poll.spin(&mut events, timeout, || target.turn())?,
            (Pause::Look, _) => poll.spin(&mut events, timeout, || {
                thread::yield_now();
                Ok(())
            })?,
            (Pause::Sleep, Demand::Paced(_)) => poll.wait_exactly(&mut events, timeout)?,
            (Pause::Sleep, Demand::Nothing | Demand::AtOnce) => poll.wait(&mut events, Some(timeout))?,
        }
        for event in &events {
            work.turn(event, &demand, &mut tally);
        }
    }
}

/// What should have been done by now has waited at least this long: left out, the worst would be missing. Nothing is due
/// any more at the `end`.
fn finish(work: &impl Work, demand: &Demand, (now, end): (Instant, Instant), tally: &mut Tally) {
    if let Demand::Paced(pace) = demand {
        work.unfinished(&mut |due| tally.waited(now.saturating_duration_since(due)));
        for (units, due) in pace.left(now.min(end)) {
            tally.not_begun(units, now.saturating_duration_since(due));
        }
    }
}

//! Live numbers: written by the data plane with relaxed atomics, read by whoever asks. A cell belongs to an identity,
//! not to a generation, so a reload neither loses nor repeats a count. Never a decision: those go into the snapshot.

use std::{
    sync::atomic::{
        AtomicU64,
        Ordering::{Relaxed, SeqCst},
    },
    time::Duration,
};

use tokio::{
    sync::{Mutex, Notify},
    time::timeout,
};

use super::{Histogram, HistogramReading, SpareCell, lanes::Lanes};
use crate::telemetry::Cause;

/// Attempts in vain after which an endpoint seems dead. The judge needs as many to eject one.
const IN_VAIN: u64 = 5;

/// How often the first in a queue looks for room at other endpoints.
const LOOK: Duration = Duration::from_millis(50);

/// The room that there is for attempts at an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Attempts under way at once.
    pub dials: u32,
    /// Sessions at once, attempts included, if they are limited.
    pub sessions: Option<u32>,
}

/// What the wait for a place has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queued<T> {
    /// A place is taken, as by [`EndpointCell::enter`], of as many as there were then.
    Entered(Room),
    /// This was found at another endpoint first.
    Elsewhere(T),
    /// There was no room to wait.
    TooMany,
}

/// What is measured at an endpoint.
#[derive(Debug, Default)]
pub struct EndpointCell {
    /// Shared by all workers, as choices between endpoints depend on it.
    active: AtomicU64,
    /// In the same way.
    connect_ewma_nanos: AtomicU64,
    /// What the control plane made of the connect times of its group.
    usual_nanos: AtomicU64,
    /// Attempts under way, if they are bounded.
    dialling: AtomicU64,
    waiting: AtomicU64,
    /// Sessions that may try it although it is ejected.
    permits: AtomicU64,
    /// Who holds it is the next to get a place; it is had first come first served.
    turn: Mutex<()>,
    /// Attempts in a row that came to nothing; the next one that connects ends the row.
    in_vain: AtomicU64,
    room: Notify,
    lanes: Lanes<EndpointLane>,
    /// Its spares: connections that wait for a session.
    pub spares: SpareCell,
}

#[derive(Debug, Default)]
struct EndpointLane {
    to_upstream: AtomicU64,
    to_client: AtomicU64,
    sessions: AtomicU64,
    connect: Histogram,
    connect_failures: [AtomicU64; Cause::ALL.len()],
    good: AtomicU64,
    heard: AtomicU64,
    overtaken: AtomicU64,
    empty: AtomicU64,
    mute: AtomicU64,
}

impl EndpointCell {
    /// A session was given to this endpoint: it counts as active from its attempt on, so that a burst spreads.
    pub fn begin(&self) {
        self.active.fetch_add(1, Relaxed);
    }

    /// The attempt failed or the session ended.
    pub fn finish(&self) {
        self.active.fetch_sub(1, SeqCst);
        if self.waiting.load(SeqCst) > 0 {
            self.room.notify_one();
        }
    }

    /// True if it has as many sessions as it may.
    pub fn is_full(&self, sessions: Option<u32>) -> bool {
        sessions.is_some_and(|most| self.active() >= u64::from(most))
    }

    /// An attempt connected after `took`.
    pub fn connected(&self, took: Duration) {
        self.lanes.with(|lane| {
            lane.sessions.fetch_add(1, Relaxed);
        });
        self.dialled(took);
    }

    /// A session was given a connection that was dialled before.
    pub fn given_spare(&self) {
        self.lanes.with(|lane| {
            lane.sessions.fetch_add(1, Relaxed);
        });
    }

    /// A connection was established after `took`, for a session or as a spare.
    pub fn dialled(&self, took: Duration) {
        if self.in_vain.load(Relaxed) > 0 {
            self.in_vain.store(0, Relaxed);
        }
        self.lanes.with(|lane| lane.connect.observe(took));
        let sample = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let old = self.connect_ewma_nanos.load(Relaxed);
        // Peak EWMA (Finagle): a slower answer counts at once, a quicker one by an eighth.
        let new = if sample > old { sample } else { old - (old - sample) / 8 };
        self.connect_ewma_nanos.store(new, Relaxed);
    }

    /// True when the last attempt here has connected.
    pub fn answers(&self) -> bool {
        self.in_vain.load(Relaxed) == 0 && self.connect_ewma_nanos.load(Relaxed) > 0
    }

    /// True when so many attempts in a row were in vain that the next one is expected to be.
    pub fn seems_dead(&self) -> bool {
        self.in_vain.load(Relaxed) >= IN_VAIN
    }

    /// An attempt failed.
    pub fn connect_failed(&self, cause: Cause) {
        if !cause.is_ours() {
            self.in_vain.fetch_add(1, Relaxed);
        }
        self.lanes.with(|lane| {
            if let Some(count) = lane.connect_failures.get(cause as usize) {
                count.fetch_add(1, Relaxed);
            }
        });
    }

    /// A session has shown that it serves: it connected, or has sent its first byte where that is waited for.
    pub fn vouch(&self) {
        self.lanes.with(|lane| {
            lane.good.fetch_add(1, Relaxed);
        });
    }

    /// Sessions that have shown that it serves.
    pub fn good(&self) -> u64 {
        self.lanes.sum(|lane| lane.good.load(Relaxed))
    }

    /// A session has had its first byte of it.
    pub fn was_heard(&self) {
        self.lanes.with(|lane| {
            lane.heard.fetch_add(1, Relaxed);
        });
    }

    /// Sessions that have had a byte of it.
    pub fn heard(&self) -> u64 {
        self.lanes.sum(|lane| lane.heard.load(Relaxed))
    }

    /// An attempt was still under way when one that began later, at another endpoint, connected.
    pub fn overtaken(&self) {
        self.in_vain.fetch_add(1, Relaxed);
        self.lanes.with(|lane| {
            lane.overtaken.fetch_add(1, Relaxed);
        });
    }

    /// It ended a session before its first byte.
    pub fn was_empty(&self) {
        self.lanes.with(|lane| {
            lane.empty.fetch_add(1, Relaxed);
        });
    }

    /// It was silent for too long after a client had sent something.
    pub fn was_mute(&self) {
        self.lanes.with(|lane| {
            lane.mute.fetch_add(1, Relaxed);
        });
    }

    /// Attempts that were overtaken, sessions that it ended before its first byte, and sessions in which it was silent.
    pub fn gray(&self) -> (u64, u64, u64) {
        let sum = |count: fn(&EndpointLane) -> &AtomicU64| self.lanes.sum(|lane| count(lane).load(Relaxed));
        (sum(|lane| &lane.overtaken), sum(|lane| &lane.empty), sum(|lane| &lane.mute))
    }

    /// The usual connect time of its group; zero when nothing is known.
    pub fn usual(&self) -> Duration {
        Duration::from_nanos(self.usual_nanos.load(Relaxed))
    }

    /// Sets the usual connect time of its group.
    pub fn set_usual(&self, usual: Duration) {
        self.usual_nanos.store(u64::try_from(usual.as_nanos()).unwrap_or(u64::MAX), Relaxed);
    }

    /// Lets so many sessions try it although it is ejected.
    pub fn permit(&self, sessions: u64) {
        self.permits.store(sessions, Relaxed);
    }

    /// Takes a permit, if there is one.
    pub fn take_permit(&self) -> bool {
        self.permits.load(Relaxed) > 0
            && self.permits.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok()
    }

    /// Takes one of the places for attempts that are under way; false when all are taken, or others wait for one. Where its
    /// sessions are limited, one more has begun then.
    #[must_use]
    pub fn enter(&self, room: Room) -> bool {
        if self.waiting.load(SeqCst) > 0 {
            return false;
        }
        let entered = self.squeeze_in(room);
        // One that has begun to wait meanwhile may have found the place of a session taken that is not.
        if !entered && self.waiting.load(SeqCst) > 0 {
            self.room.notify_one();
        }
        entered
    }

    fn squeeze_in(&self, room: Room) -> bool {
        let one_more = |count: &AtomicU64, most: u32| {
            let one_more = |taken: u64| (taken < u64::from(most)).then_some(taken + 1);
            count.fetch_update(SeqCst, SeqCst, one_more).is_ok()
        };
        if room.sessions.is_some_and(|most| !one_more(&self.active, most)) {
            return false;
        }
        let entered = one_more(&self.dialling, room.dials);
        if !entered && room.sessions.is_some() {
            // Nobody is told: it may be the one who waits that tries here, and his own word would have him try for ever.
            self.active.fetch_sub(1, SeqCst);
        }
        entered
    }

    /// Gives a place back.
    pub fn leave(&self) {
        self.dialling.fetch_sub(1, SeqCst);
        if self.waiting.load(SeqCst) > 0 {
            self.room.notify_one();
        }
    }

    /// Waits for a place, first come first served, unless `most` wait already. Who stops waiting leaves the queue. The first
    /// in it asks now and then how many places there are, as a reload may change that, and, where sessions are limited,
    /// looks `elsewhere`: it may be long until one ends here.
    pub async fn queue<T>(
        &self,
        mut room: impl FnMut() -> Room,
        most: u32,
        mut elsewhere: impl FnMut() -> Option<T>,
    ) -> Queued<T> {
        let _waiting = Waiting(self);
        if self.waiting.fetch_add(1, SeqCst) >= u64::from(most) {
            return Queued::TooMany;
        }
        let _turn = self.turn.lock().await;
        // Only one waits for room, so a place that is given back between the question and the wait is not missed: the
        // word of it is kept.
        loop {
            let room = room();
            if self.squeeze_in(room) {
                return Queued::Entered(room);
            }
            if timeout(LOOK, self.room.notified()).await.is_err()
                && room.sessions.is_some()
                && let Some(found) = elsewhere()
            {
                return Queued::Elsewhere(found);
            }
        }
    }

    /// Attempts under way, and sessions that wait for a place.
    pub fn dialling(&self) -> (u64, u64) {
        (self.dialling.load(Relaxed), self.waiting.load(Relaxed))
    }

    /// Bytes were moved.
    pub fn moved(&self, to_upstream: u64, to_client: u64) {
        self.lanes.with(|lane| {
            if to_upstream > 0 {
                lane.to_upstream.fetch_add(to_upstream, Relaxed);
            }
            if to_client > 0 {
                lane.to_client.fetch_add(to_client, Relaxed);
            }
        });
    }

    /// Sessions now, attempts included.
    pub fn active(&self) -> u64 {
        self.active.load(Relaxed)
    }

    /// Sessions that connected, since the start.
    pub fn sessions(&self) -> u64 {
        self.lanes.sum(|lane| lane.sessions.load(Relaxed))
    }

    /// Bytes to the endpoint and bytes to its clients, since the start.
    pub fn bytes(&self) -> (u64, u64) {
        let to_upstream = self.lanes.sum(|lane| lane.to_upstream.load(Relaxed));
        (to_upstream, self.lanes.sum(|lane| lane.to_client.load(Relaxed)))
    }

    /// Durations of attempts that connected, those of spares included.
    #[must_use]
    pub fn connect(&self) -> HistogramReading {
        sum_of(self.lanes.iter().map(|lane| &lane.connect))
    }

    /// Failed attempts by cause.
    pub fn connect_failures(&self) -> impl Iterator<Item = (Cause, u64)> {
        Cause::ALL.into_iter().enumerate().map(|(place, cause)| {
            let count =
                |lane: &EndpointLane| lane.connect_failures.get(place).map_or(0, |count| count.load(Relaxed));
            (cause, self.lanes.sum(count))
        })
    }

    /// The usual connect time; zero before the first.
    pub fn connect_ewma(&self) -> Duration {
        Duration::from_nanos(self.connect_ewma_nanos.load(Relaxed))
    }
}

/// One that waits for a place, for as long as it does.
struct Waiting<'a>(&'a EndpointCell);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, SeqCst);
    }
}

pub(super) fn sum_of<'a>(histograms: impl Iterator<Item = &'a Histogram>) -> HistogramReading {
    histograms.fold(HistogramReading::default(), |mut sum, one| {
        sum.add(&one.read());
        sum
    })
}

/// Counts the choices made in a tier or group, so that shares come out exactly.
#[derive(Debug, Default)]
pub struct GroupCell {
    cursor: AtomicU64,
}

impl GroupCell {
    /// The number of this choice.
    pub fn next(&self) -> u64 {
        self.cursor.fetch_add(1, Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, pin::pin, sync::Arc, thread};

    use super::*;
    use crate::{
        ids::ListenerName,
        state::{ListenerCell, Rejection, lanes::provide_lanes, use_lane},
        telemetry::{End, Side, Stage},
    };

    const ONE: Room = Room { dials: 1, sessions: None };

    fn nowhere() -> Option<()> {
        None
    }

    #[test]
    fn what_workers_count_apart_is_read_as_one() {
        provide_lanes(3);
        let address = "127.0.0.1:1".parse().unwrap();
        let listener = Arc::new(ListenerCell::new(ListenerName::from("l"), address));
        let endpoint = Arc::new(EndpointCell::default());
        let end = End { side: Side::Client, stage: Stage::Relay, cause: Cause::Reset };
        // The last one has no copy of its own.
        let workers: Vec<_> = [0, 1, 2, 1000]
            .map(|number| {
                let (listener, endpoint) = (Arc::clone(&listener), Arc::clone(&endpoint));
                thread::spawn(move || {
                    use_lane(number);
                    for _ in 0..100 {
                        listener.begin();
                        listener.begin();
                        listener.finish(end, Duration::from_millis(3));
                        listener.reject(Rejection::Exhausted);
                        endpoint.connected(Duration::from_millis(3));
                        endpoint.connect_failed(Cause::Refused);
                        endpoint.moved(1, 2);
                    }
                })
            })
            .into();
        workers.into_iter().for_each(|worker| worker.join().unwrap());
        assert_eq!((listener.accepted(), listener.active()), (800, 400));
        assert_eq!(listener.ends().collect::<Vec<_>>(), [(end, 400)]);
        assert_eq!(listener.rejected().collect::<Vec<_>>().last(), Some(&(Rejection::Exhausted, 400)));
        assert_eq!((listener.duration().count(), endpoint.connect().count()), (400, 400));
        assert_eq!((endpoint.sessions(), endpoint.bytes()), (400, (400, 800)));
        assert!(endpoint.connect_failures().any(|counted| counted == (Cause::Refused, 400)));
    }

    #[tokio::test]
    async fn who_waits_for_a_place_is_served_in_turn_and_nobody_steps_in_front() {
        let cell = Arc::new(EndpointCell::default());
        assert!(cell.enter(ONE));
        let (told, mut served) = tokio::sync::mpsc::channel(100);
        let wait = |number: u32| {
            let (cell, told) = (Arc::clone(&cell), told.clone());
            drop(tokio::spawn(async move {
                assert_eq!(cell.queue(|| ONE, 100, nowhere).await, Queued::Entered(ONE));
                told.send(number).await.unwrap();
            }));
        };
        for number in 0..10 {
            wait(number);
            while cell.dialling().1 < u64::from(number) + 1 {
                tokio::task::yield_now().await;
            }
        }
        for number in 0..11 {
            // One that comes just as a place becomes free.
            if number == 0 {
                wait(10);
                cell.leave();
            } else {
                cell.leave();
            }
            assert_eq!(served.recv().await, Some(number));
        }
        cell.leave();
        assert_eq!(cell.dialling(), (0, 0));
    }

    #[tokio::test]
    async fn a_place_that_is_free_again_is_not_lost_with_one_that_stops_waiting() {
        for cancelled in 0..3 {
            let cell = Arc::new(EndpointCell::default());
            assert!(cell.enter(ONE));
            let waiters: Vec<_> = (0..3)
                .map(|_| {
                    let cell = Arc::clone(&cell);
                    tokio::spawn(async move { cell.queue(|| ONE, 100, nowhere).await })
                })
                .collect();
            while cell.dialling().1 < 3 {
                tokio::task::yield_now().await;
            }
            // Told of the place, and gone before it is taken.
            cell.leave();
            waiters[cancelled].abort();
            for (number, waiter) in waiters.into_iter().enumerate() {
                let served = timeout(Duration::from_secs(5), waiter).await.unwrap();
                if number != cancelled {
                    assert_eq!(served.unwrap(), Queued::Entered(ONE));
                    cell.leave();
                }
            }
            assert_eq!(cell.dialling(), (0, 0));
        }
    }

    #[tokio::test]
    async fn as_many_sessions_as_there_may_be_and_the_next_one_when_one_has_ended() {
        let cell = Arc::new(EndpointCell::default());
        let room = Room { dials: 10, sessions: Some(2) };
        assert!(cell.enter(room) && cell.enter(room) && !cell.enter(room));
        assert_eq!((cell.active(), cell.dialling()), (2, (2, 0)));
        // Both are connected: they live on.
        (0..2).for_each(|_| cell.leave());
        assert!(cell.is_full(room.sessions) && !cell.is_full(Some(3)) && !cell.is_full(None));
        let waiting = tokio::spawn({
            let cell = Arc::clone(&cell);
            async move { cell.queue(|| room, 10, nowhere).await }
        });
        while cell.dialling().1 < 1 {
            tokio::task::yield_now().await;
        }
        assert!(!waiting.is_finished());
        cell.finish();
        assert!(!cell.enter(room), "another one waits");
        assert_eq!(waiting.await.unwrap(), Queued::Entered(room));
        assert_eq!((cell.active(), cell.dialling()), (2, (1, 0)));
        // Without a place to dial nothing counts.
        let none = Room { dials: 1, sessions: Some(9) };
        assert!(!cell.enter(none) && cell.active() == 2);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_goes_by_how_many_places_there_are_now() {
        let few = Room { dials: 2, sessions: Some(1) };
        for more in [Room { sessions: Some(2), ..few }, Room { sessions: None, ..few }] {
            let (cell, now) = (EndpointCell::default(), Cell::new(few));
            assert!(cell.enter(few));
            let mut waiting = pin!(cell.queue(|| now.get(), 10, nowhere));
            assert!(timeout(Duration::from_mins(1), &mut waiting).await.is_err());
            now.set(more);
            let entered = timeout(Duration::from_secs(1), waiting).await;
            assert_eq!(entered, Ok(Queued::Entered(more)));
            // Only where sessions are limited has the place one in it.
            assert_eq!(cell.active(), 1 + u64::from(more.sessions.is_some()));
        }
        let (cell, now) = (EndpointCell::default(), Cell::new(ONE));
        assert!(cell.enter(ONE));
        let mut waiting = pin!(cell.queue(|| now.get(), 10, nowhere));
        assert!(timeout(Duration::from_mins(1), &mut waiting).await.is_err());
        now.set(few);
        let entered = timeout(Duration::from_secs(1), waiting).await;
        assert_eq!(entered, Ok(Queued::Entered(few)));
    }

    #[test]
    fn who_waits_for_a_place_to_dial_lets_others_run_though_more_sessions_may_be() {
        let (told, heard) = std::sync::mpsc::sync_channel(1);
        // On a thread of its own: one that never lets go cannot be stopped.
        drop(thread::spawn(move || {
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            runtime.enable_time().start_paused(true).build().unwrap().block_on(async {
                let (cell, room) = (EndpointCell::default(), Room { dials: 1, sessions: Some(9) });
                assert!(cell.enter(room));
                let mut asked = 0;
                let found = cell.queue(
                    || room,
                    1,
                    || {
                        asked += 1;
                        (asked == 3).then_some("there")
                    },
                );
                told.send((found.await, cell.active())).unwrap();
            });
        }));
        let found = heard.recv_timeout(Duration::from_secs(20));
        assert_eq!(found, Ok((Queued::Elsewhere("there"), 1)));
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_in_the_queue_takes_what_is_free_elsewhere() {
        let cell = EndpointCell::default();
        let room = Room { dials: 1, sessions: Some(1) };
        assert!(cell.enter(room));
        let mut asked = 0;
        let found = cell.queue(
            || room,
            1,
            || {
                asked += 1;
                (asked == 3).then_some("there")
            },
        );
        assert_eq!(found.await, Queued::Elsewhere("there"));
        assert_eq!(cell.dialling(), (1, 0));
        assert_eq!(cell.queue(|| room, 0, nowhere).await, Queued::TooMany);
    }
}

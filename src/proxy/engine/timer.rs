//! The wheel and the one kernel timer that drives it. Waiting for events has no timeout of its own, which would be set and
//! cleared again for each: the kernel timer is touched only when an alarm comes that is sooner than all others.

use std::{io, os::fd::OwnedFd, time::Duration};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::time::Instant;

use super::wheel::Wheel;

/// A tick of the wheel.
const TICK: Duration = Duration::from_millis(TICK_MILLIS);
const TICK_MILLIS: u64 = 10;

/// Alarms of sessions, and one of the engine's own.
pub(super) struct Timer {
    wheel: Wheel,
    kernel: OwnedFd,
    started: Instant,
    /// The tick for which the kernel timer is set.
    armed: Option<u64>,
    /// When the engine has something to do besides sessions.
    chore: Option<u64>,
}

impl Timer {
    pub(super) fn new(now: Instant) -> io::Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let kernel = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        Ok(Self { wheel: Wheel::new(), kernel, started: now, armed: None, chore: None })
    }

    /// What epoll is to watch, edge-triggered.
    pub(super) const fn kernel(&self) -> &OwnedFd {
        &self.kernel
    }

    /// Sets a session's alarm.
    pub(super) fn set(&mut self, slot: u32, at: Instant) {
        let due = self.tick_after(at);
        self.wheel.set(slot, due);
    }

    /// Clears a session's alarm.
    pub(super) fn clear(&mut self, slot: u32) {
        self.wheel.clear(slot);
    }

    /// Has the timer ring for the engine itself, at the latest at this time.
    pub(super) fn chore(&mut self, at: Instant) {
        let due = self.tick_after(at);
        self.chore = Some(self.chore.map_or(due, |chore| chore.min(due)));
    }

    /// The kernel timer has rung: takes the slots whose alarms ring. True when the engine's own does.
    pub(super) fn rang(&mut self, now: Instant, rung: &mut Vec<u32>) -> bool {
        self.armed = None;
        let tick = u64::try_from(now.saturating_duration_since(self.started).as_millis() / TICK.as_millis());
        let tick = tick.unwrap_or(u64::MAX);
        self.wheel.advance(tick, rung);
        self.chore.take_if(|chore| *chore <= tick).is_some()
    }

    /// Sets the kernel timer, if something is due before it would ring.
    pub(super) fn arm(&mut self, now: Instant) {
        let Some(next) = self.wheel.next().into_iter().chain(self.chore).min() else {
            return;
        };
        if self.armed.is_some_and(|armed| armed <= next) {
            return;
        }
        let at = self.started + Duration::from_millis(next.saturating_mul(TICK_MILLIS));
        // Not zero, which would mean never.
        let wait = at.saturating_duration_since(now).max(Duration::from_micros(1));
        let it_value = Timespec {
            tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(wait.subsec_nanos()),
        };
        let it_interval = Timespec { tv_sec: 0, tv_nsec: 0 };
        let set =
            timerfd_settime(&self.kernel, TimerfdTimerFlags::empty(), &Itimerspec { it_interval, it_value });
        self.armed = set.is_ok().then_some(next);
    }

    /// Gives memory back when no alarm is set.
    pub(super) fn shrink(&mut self) {
        self.wheel.shrink();
    }

    /// The first tick that is not before this time.
    fn tick_after(&self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.started).as_nanos();
        u64::try_from(since.div_ceil(TICK.as_nanos())).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_that_has_run_for_years_still_waits_for_its_alarms() {
        let (now, ticks) = (Instant::now(), (1_u64 << 32) + 64);
        let mut timer = Timer::new(now - Duration::from_millis(ticks * 10)).unwrap();
        let mut rung = Vec::new();
        timer.rang(now, &mut rung);
        timer.set(7, now + TICK * 20);
        timer.arm(now);
        let left = rustix::time::timerfd_gettime(timer.kernel()).unwrap().it_value;
        assert!(left.tv_nsec > 50_000_000, "{left:?}");
        timer.rang(now + TICK * 19, &mut rung);
        assert!(rung.is_empty());
        timer.rang(now + TICK * 20, &mut rung);
        assert_eq!(rung, [7]);
    }
}

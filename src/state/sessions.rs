//! How far the process has come, and how many sessions are alive: what drain waits for.

use std::sync::atomic::{
    AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed},
};

use tokio::sync::{Notify, watch};

/// The steps of the process's life, in order. Tests, `status` and `/readyz` wait on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Binding, resolving, first probes.
    Starting,
    /// Accepting.
    Ready,
    /// No new sessions; old ones may finish.
    Draining,
    /// Whatever is left is reset.
    Stopping,
}

impl Phase {
    /// The word in logs and in `status`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Draining => "draining",
            Self::Stopping => "stopping",
        }
    }
}

/// The live sessions of the process.
#[derive(Debug)]
pub struct Sessions {
    /// Tells this process from any other.
    process: u64,
    phase: watch::Sender<Phase>,
    begun: AtomicU64,
    active: AtomicU64,
    panicked: AtomicU64,
    accepting: AtomicU64,
    quiet: Notify,
}

impl Sessions {
    pub(super) fn new() -> Self {
        Self {
            process: rand::random(),
            phase: watch::Sender::new(Phase::Starting),
            begun: AtomicU64::new(0),
            active: AtomicU64::new(0),
            panicked: AtomicU64::new(0),
            accepting: AtomicU64::new(0),
            quiet: Notify::new(),
        }
    }

    /// Where the process is.
    #[must_use]
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// A receiver that sees each step.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    /// Goes on to `phase`; never back.
    pub fn advance(&self, phase: Phase) {
        self.phase.send_if_modified(|now| {
            let forward = phase > *now;
            if forward {
                *now = phase;
            }
            forward
        });
    }

    /// A session began; its number, from 1.
    pub fn begin(&self) -> u64 {
        self.active.fetch_add(1, Relaxed);
        self.begun.fetch_add(1, Relaxed) + 1
    }

    /// The id of the session of this number: the same in no other process, before or beside this one. 16 hexadecimal digits
    /// that all sessions of the process have, a dash, and the number.
    #[must_use]
    pub fn unique_id(&self, number: u64) -> String {
        format!("{:016x}-{number}", self.process)
    }

    /// A session ended.
    pub fn finish(&self, panicked: bool) {
        if panicked {
            self.panicked.fetch_add(1, Relaxed);
        }
        if self.active.fetch_sub(1, AcqRel) == 1 {
            self.quiet.notify_waiters();
        }
    }

    /// A worker's socket is about to accept.
    pub fn begin_accepting(&self) {
        self.accepting.fetch_add(1, Relaxed);
    }

    /// A worker's socket was closed, and its queue is empty.
    pub fn finish_accepting(&self) {
        if self.accepting.fetch_sub(1, AcqRel) == 1 {
            self.quiet.notify_waiters();
        }
    }

    /// Waits until nothing accepts any more and every session has ended.
    pub async fn quiet(&self) {
        loop {
            let quiet = self.quiet.notified();
            if self.accepting.load(Acquire) == 0 && self.active.load(Acquire) == 0 {
                return;
            }
            quiet.await;
        }
    }

    /// Sessions now.
    #[must_use]
    pub fn active(&self) -> u64 {
        self.active.load(Relaxed)
    }

    /// Sessions that a panic ended.
    #[must_use]
    pub fn panicked(&self) -> u64 {
        self.panicked.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_processes_and_no_two_sessions_have_the_same_id() {
        let (one, other) = (Sessions::new(), Sessions::new());
        let id = one.unique_id(42);
        let (process, number) = id.split_once('-').unwrap();
        assert!(
            process.len() == 16 && process.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'))
        );
        assert_eq!(number, "42");
        assert_ne!(one.unique_id(43), id);
        assert_ne!(other.unique_id(42), id);
        assert_eq!(one.unique_id(42), id, "whenever it is asked for");
        assert!(one.unique_id(u64::MAX).len() <= 128);
    }
}

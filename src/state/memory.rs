//! Whether the process takes as much memory as it may: measured by the control plane, asked at each accept.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

/// The ceiling, and whether it is reached.
#[derive(Debug, Default)]
pub struct MemoryCell {
    short: AtomicBool,
    /// In bytes; 0 is none.
    ceiling: AtomicU64,
}

impl MemoryCell {
    /// True while new sessions are to be reset.
    #[must_use]
    pub fn is_short(&self) -> bool {
        self.short.load(Relaxed)
    }

    /// Has new sessions reset, or let in again.
    pub fn set_short(&self, short: bool) {
        self.short.store(short, Relaxed);
    }

    /// The most memory that the process may take, in bytes.
    #[must_use]
    pub fn ceiling(&self) -> Option<u64> {
        Some(self.ceiling.load(Relaxed)).filter(|ceiling| *ceiling > 0)
    }

    /// Sets it.
    pub fn set_ceiling(&self, ceiling: Option<u64>) {
        self.ceiling.store(ceiling.unwrap_or_default(), Relaxed);
    }
}

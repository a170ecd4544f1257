//! Live numbers of spares: connections that wait for a session.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What is measured of the spares of an endpoint.
#[derive(Debug, Default)]
pub struct SpareCell {
    ready: AtomicU64,
    ends: [AtomicU64; SpareEnd::ALL.len()],
    failures: AtomicU64,
}

/// What became of a spare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpareEnd {
    /// A session took it.
    Used,
    /// The endpoint closed or reset it.
    Endpoint,
    /// It grew too old.
    Age,
    /// It was not wanted any more: another snapshot, a drain, or a shortage of descriptors.
    Withdrawn,
}

impl SpareEnd {
    /// Every one.
    pub const ALL: [Self; 4] = [Self::Used, Self::Endpoint, Self::Age, Self::Withdrawn];

    /// The word in labels.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Used => "used",
            Self::Endpoint => "endpoint",
            Self::Age => "age",
            Self::Withdrawn => "withdrawn",
        }
    }
}

impl SpareCell {
    /// One is established.
    pub fn begin(&self) {
        self.ready.fetch_add(1, Relaxed);
    }

    /// One is a spare no more.
    pub fn finish(&self, end: SpareEnd) {
        self.ready.fetch_sub(1, Relaxed);
        if let Some(count) = self.ends.get(end as usize) {
            count.fetch_add(1, Relaxed);
        }
    }

    /// One could not be dialled.
    pub fn fail(&self) {
        self.failures.fetch_add(1, Relaxed);
    }

    /// Those that are ready.
    pub fn ready(&self) -> u64 {
        self.ready.load(Relaxed)
    }

    /// What became of those before, by place in [`SpareEnd::ALL`].
    pub fn ends(&self) -> [u64; SpareEnd::ALL.len()] {
        self.ends.each_ref().map(|count| count.load(Relaxed))
    }

    /// Dials that failed.
    pub fn failures(&self) -> u64 {
        self.failures.load(Relaxed)
    }
}

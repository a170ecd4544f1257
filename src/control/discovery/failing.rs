//! Which names fail, and since when: written by their tasks, read by the admin API and the metrics page.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use crate::config::{Address, Pool};

/// Names whose last lookup failed, or took too long.
#[derive(Debug, Default)]
pub struct Failing(Mutex<BTreeMap<String, SystemTime>>);

impl Failing {
    /// Every name of a pool as `host:port`, each once, and since when its lookups have failed, if they do.
    #[must_use]
    pub fn names(&self, pool: &Pool) -> BTreeMap<String, Option<SystemTime>> {
        let failing = self.lock();
        let names = pool.endpoints.iter().filter_map(|endpoint| match &endpoint.address {
            Address::Name { host, port } => Some(format!("{host}:{port}")),
            Address::Socket(_) => None,
        });
        names
            .map(|name| {
                let since = failing.get(&name).copied();
                (name, since)
            })
            .collect()
    }

    /// The lookups of a name fail from now on.
    pub(in crate::control) fn failed(&self, name: String) {
        self.lock().insert(name, SystemTime::now());
    }

    /// The name resolves, or nobody wants it any more.
    pub(super) fn over(&self, name: &str) {
        self.lock().remove(name);
    }

    /// Held for moments only.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, SystemTime>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    pub(super) fn all(&self) -> Vec<String> {
        self.lock().keys().cloned().collect()
    }
}

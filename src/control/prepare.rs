//! What a reload takes time for, done before anything changes and given up at any moment: the file is read until it stands
//! still, and names that are new are looked up.

use std::{
    collections::{BTreeMap, HashSet},
    fs::{self, Metadata},
    io,
    net::SocketAddr,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{
    sync::Semaphore,
    task::JoinSet,
    time::{Instant, sleep, timeout, timeout_at},
};

use super::{Overview, ReloadError, discovery::usable, inputs::Name, spiffe::Agent};
use crate::{
    config::{self, Address, Config, Loaded, Report},
    ids::PoolName,
};

/// Time for reading the file: a mount that hangs must not keep the process from anything else.
const READING: Duration = Duration::from_secs(10);

/// A file that was written more recently may still be in the making.
const SETTLED: Duration = Duration::from_millis(100);

/// Readings of a file that does not come to rest.
const READINGS: u32 = 5;

/// Time for all names that are new; the old config is in force meanwhile.
const RESOLVING: Duration = Duration::from_secs(2);

/// Lookups of a reload under way at once: each may hold a thread for as long as the resolver hangs.
const LOOKUPS: usize = 16;

/// A config that can be applied.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) config: Config,
    pub(super) warnings: Report,
    /// Addresses of names that the config in force does not have.
    pub(super) resolved: Vec<(Name, Vec<SocketAddr>)>,
    /// The SPIFFE Workload API, if anything is taken from it.
    pub(super) agent: Option<Arc<Agent>>,
}

/// A name without its pool, and what was found.
type Answers = BTreeMap<(Arc<str>, u16), Result<Vec<SocketAddr>, String>>;

/// Reads the file and looks new names up.
///
/// # Errors
/// The file is refused or cannot be read, or a pool that has endpoints would have none.
pub(super) async fn prepare(path: Option<PathBuf>, now: &Overview) -> Result<Prepared, ReloadError> {
    let path = path.ok_or(ReloadError::NoFile)?;
    let reading = timeout(READING, read(path.clone())).await;
    let Loaded { config, warnings, .. } = reading.map_err(|_| ReloadError::Slow(path, READING))??;
    let answers = look_up(new_names(&config, &now.config)).await;
    if let Some(error) = emptied(&config, now, &answers) {
        return Err(error);
    }
    let resolved = names(&config).filter_map(|name| {
        let answer = answers.get(&(Arc::clone(&name.1), name.2))?;
        Some((name, answer.as_ref().ok()?.clone()))
    });
    Ok(Prepared { resolved: resolved.collect(), config, warnings, agent: None })
}

/// Reads until the file is the same before and after, and not brand new.
async fn read(path: PathBuf) -> Result<Loaded, ReloadError> {
    let mut left = READINGS;
    loop {
        let file = path.clone();
        // A large file takes a while, and the control plane has more to do.
        let once = move || {
            let before = stamp(&file);
            let loaded = config::load(&file);
            let after = stamp(&file);
            (loaded, rest(before, after, SystemTime::now()))
        };
        let (loaded, rest) = tokio::task::spawn_blocking(once).await.map_err(|_| ReloadError::Stopping)?;
        left -= 1;
        match rest {
            Some(rest) if left > 0 => sleep(rest).await,
            _ => return loaded.map_err(ReloadError::Refused),
        }
    }
}

/// What changes when a file is written or replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    modified: Option<SystemTime>,
    size: u64,
    inode: (u64, u64),
}

fn stamp(path: &Path) -> Option<Stamp> {
    let of = |found: Metadata| Stamp {
        modified: found.modified().ok(),
        size: found.len(),
        inode: (found.dev(), found.ino()),
    };
    // Only a file can be read twice.
    fs::metadata(path).ok().filter(Metadata::is_file).map(of)
}

/// How long to wait before the file should be read again; `None`: it stands still.
fn rest(before: Option<Stamp>, after: Option<Stamp>, now: SystemTime) -> Option<Duration> {
    let age = |stamp: Stamp| now.duration_since(stamp.modified?).ok();
    let young = after.and_then(age).and_then(|age| SETTLED.checked_sub(age)).filter(|rest| !rest.is_zero());
    young.or_else(|| (before != after).then_some(SETTLED))
}

fn names(config: &Config) -> impl Iterator<Item = Name> {
    config.pools.iter().flat_map(|pool| {
        pool.endpoints.iter().filter_map(|endpoint| match &endpoint.address {
            Address::Name { host, port } => Some((pool.name.clone(), Arc::from(host.as_str()), *port)),
            Address::Socket(_) => None,
        })
    })
}

/// The names that no pool of the same name has now.
fn new_names(new: &Config, old: &Config) -> HashSet<(Arc<str>, u16)> {
    let known: HashSet<Name> = names(old).collect();
    names(new).filter(|name| !known.contains(name)).map(|(_, host, port)| (host, port)).collect()
}

async fn look_up(names: HashSet<(Arc<str>, u16)>) -> Answers {
    let deadline = Instant::now() + RESOLVING;
    let room = Arc::new(Semaphore::new(LOOKUPS));
    let mut lookups = JoinSet::new();
    for (host, port) in names {
        let room = Arc::clone(&room);
        lookups.spawn(async move {
            let answer = timeout_at(deadline, async {
                let _permit = room.acquire().await.map_err(io::Error::other)?;
                Ok(tokio::net::lookup_host((&*host, port)).await?.collect())
            });
            let answer = match answer.await {
                Ok(answer) => answer.map_err(|error: io::Error| error.to_string()).and_then(usable),
                Err(_) => Err(format!("no answer within {}", humantime::format_duration(RESOLVING))),
            };
            ((host, port), answer)
        });
    }
    lookups.join_all().await.into_iter().collect()
}

/// Why a pool that has endpoints would be left with none, if one would: itself, or the one that its listener goes to.
fn emptied(new: &Config, now: &Overview, answers: &Answers) -> Option<ReloadError> {
    let has_endpoints =
        |name: &PoolName| now.pools.iter().any(|pool| pool.name == *name && !pool.endpoints.is_empty());
    let serves = |name: &PoolName| {
        let before = |listener: &&config::Listener| {
            now.listeners
                .iter()
                .any(|old| old.cell.name == listener.name && old.pools.iter().any(has_endpoints))
        };
        new.listeners
            .iter()
            .filter(|listener| listener.pools().any(|pool| pool == name))
            .any(|one| before(&one))
    };
    let kept = |pool: &config::Pool, host: &str, port| {
        let old = now.pools.iter().filter(|old| old.name == pool.name).flat_map(|old| &old.endpoints);
        let mut same = old.filter(|one| one.host.as_deref() == Some(host));
        same.any(|one| one.identity.address.port() == port)
    };
    let missing = |pool: &config::Pool| -> Option<String> {
        let mut reasons = Vec::new();
        for endpoint in &pool.endpoints {
            let Address::Name { host, port } = &endpoint.address else { return None };
            match answers.get(&(Arc::from(host.as_str()), *port)) {
                Some(Ok(_)) => return None,
                Some(Err(reason)) => reasons.push(format!("{host} does not resolve ({reason})")),
                None if kept(pool, host, *port) => return None,
                None => reasons.push(format!("{host} does not resolve")),
            }
        }
        Some(reasons.join(", "))
    };
    new.pools.iter().filter(|pool| has_endpoints(&pool.name) || serves(&pool.name)).find_map(|pool| {
        missing(pool).map(|reason| ReloadError::Emptied { pool: pool.name.to_string(), reason })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_new_or_changing_is_read_again() {
        let now = SystemTime::now();
        let stamp =
            |age, size| Some(Stamp { modified: Some(now - Duration::from_millis(age)), size, inode: (1, 2) });
        assert_eq!(rest(stamp(100, 5), stamp(100, 5), now), None);
        assert_eq!(rest(stamp(30, 5), stamp(30, 5), now), Some(Duration::from_millis(70)));
        assert_eq!(rest(stamp(500, 4), stamp(500, 5), now), Some(SETTLED));
        assert_eq!(rest(None, stamp(500, 5), now), Some(SETTLED));
        assert_eq!(rest(None, None, now), None, "no file, but a pipe, which can be read once");
        let ahead = Some(Stamp { modified: Some(now + Duration::from_secs(9)), size: 5, inode: (1, 2) });
        assert_eq!(rest(ahead, ahead, now), None, "a clock that was set back holds up no reload");
    }

    #[tokio::test]
    async fn names_are_answered_each_for_itself() {
        let names = [(Arc::from("localhost"), 9), (Arc::from("no such name"), 9)];
        let answers = look_up(names.into_iter().collect()).await;
        assert!(answers[&(Arc::from("localhost"), 9)].as_ref().unwrap()[0].ip().is_loopback());
        assert!(answers[&(Arc::from("no such name"), 9)].is_err());
    }
}

//! The TLS of every listener and pool, and the files it is made of.
//!
//! [`Certificates::load`] makes all of it or nothing, at the start and for a reload. [`Certificates::changed`] is asked
//! each second: what has new files is made anew, and what has wrong ones stays as it is, with an alarm. What the SPIFFE
//! Workload API says counts as a file does.

mod check;
mod expiry;
mod fingerprint;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, fmt, path::PathBuf, sync::Arc};

pub use check::check;
pub use expiry::{Calendar, Nearing, Step, when};
use fingerprint::Look;

use super::spiffe::{Agent, Known};
use crate::{
    config::{Config, Listener, ListenerTls, Pool, PoolTls},
    ids::{ListenerName, PoolName},
    tls::{self, Client, Server, Shown, Workload},
};

/// The settings of everything that has TLS.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Of listeners.
    pub listeners: BTreeMap<ListenerName, ListenerTls>,
    /// Of pools.
    pub pools: BTreeMap<PoolName, PoolTls>,
    /// The SPIFFE Workload API, where anything is taken from it. Not of the config.
    pub(super) agent: Option<Arc<Agent>>,
}

impl Wanted {
    /// What a config asks for.
    #[must_use]
    pub fn of(config: &Config) -> Self {
        let listener = |listener: &Listener| Some((listener.name.clone(), listener.entry.tls.clone()?));
        let pool = |pool: &Pool| Some((pool.name.clone(), pool.towards.tls.clone()?));
        Self {
            listeners: config.listeners.iter().filter_map(listener).collect(),
            pools: config.pools.iter().filter_map(pool).collect(),
            agent: None,
        }
    }
}

/// Whose TLS.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Owner {
    /// A listener's.
    Listener(ListenerName),
    /// A pool's.
    Pool(PoolName),
}

/// Why something cannot have the TLS that its settings say.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{owner}: {error}")]
pub struct Refused {
    /// Whose.
    pub owner: Owner,
    /// Why.
    pub error: tls::Error,
}

/// What a look at the files has led to.
#[derive(Clone, Debug, PartialEq)]
pub enum Notice {
    /// The files are new, and in force.
    Renewed {
        /// Whose.
        owner: Owner,
        /// The certificates that are shown from now on.
        shown: Vec<Shown>,
    },
    /// The files are new, and wrong: what was in force stays. Told once for each reason.
    Kept(Refused),
    /// What is in force is what the files say, after it was not.
    Well(Owner),
}

/// One owner's part of what there is to tell.
#[derive(Clone, Debug, PartialEq)]
pub struct Told {
    /// Whose.
    pub owner: Owner,
    /// The certificates that are shown.
    pub shown: Vec<Shown>,
    /// Why the files as they are now are not in force, if so.
    pub alarm: Option<String>,
}

/// The TLS in force.
#[derive(Clone, Debug, Default)]
pub struct Certificates {
    listeners: BTreeMap<ListenerName, Kept<Server>>,
    pools: BTreeMap<PoolName, Kept<Client>>,
    agent: Option<Arc<Agent>>,
}

impl Certificates {
    /// Makes everything that is wanted. What is in `before` with the same settings and files is taken from there; what
    /// was there with others leaves the sessions that may be resumed.
    ///
    /// # Errors
    ///
    /// Every reason why something cannot be made.
    pub fn load(wanted: &Wanted, before: Option<&Self>) -> Result<Self, Vec<Refused>> {
        let mut refused = Vec::new();
        let mut new = Self { agent: wanted.agent.clone(), ..Self::default() };
        let known = new.known();
        for (name, settings) in &wanted.listeners {
            match Kept::load(settings, &known, before.and_then(|before| before.listeners.get(name))) {
                Ok(kept) => drop(new.listeners.insert(name.clone(), kept)),
                Err(error) => refused.push(Refused { owner: Owner::Listener(name.clone()), error }),
            }
        }
        for (name, settings) in &wanted.pools {
            match Kept::load(settings, &known, before.and_then(|before| before.pools.get(name))) {
                Ok(kept) => drop(new.pools.insert(name.clone(), kept)),
                Err(error) => refused.push(Refused { owner: Owner::Pool(name.clone()), error }),
            }
        }
        if refused.is_empty() { Ok(new) } else { Err(refused) }
    }

    /// Looks at the files, and makes anew what has others. Nothing to tell means that nothing has changed. Reads files:
    /// the caller waits for the disk.
    pub fn changed(&mut self) -> Vec<Notice> {
        let mut notices = Vec::new();
        let known = self.known();
        for (name, kept) in &mut self.listeners {
            kept.made.forget_old_keys();
            kept.again(&known, &Owner::Listener(name.clone()), &mut notices);
        }
        for (name, kept) in &mut self.pools {
            kept.again(&known, &Owner::Pool(name.clone()), &mut notices);
        }
        notices
    }

    /// The SPIFFE Workload API, if anything is taken from it.
    pub(super) const fn agent(&self) -> Option<&Arc<Agent>> {
        self.agent.as_ref()
    }

    fn known(&self) -> Known {
        self.agent.as_ref().map(|agent| agent.known()).unwrap_or_default()
    }

    /// What each listener speaks where TLS ends.
    pub fn servers(&self) -> impl Iterator<Item = (&ListenerName, &Arc<Server>)> {
        self.listeners.iter().map(|(name, kept)| (name, &kept.made))
    }

    /// What is spoken with the endpoints of each pool that has TLS.
    pub fn clients(&self) -> impl Iterator<Item = (&PoolName, &Arc<Client>)> {
        self.pools.iter().map(|(name, kept)| (name, &kept.made))
    }

    /// What a listener speaks, if TLS ends there.
    #[must_use]
    pub fn server(&self, listener: &ListenerName) -> Option<&Arc<Server>> {
        self.listeners.get(listener).map(|kept| &kept.made)
    }

    /// What is spoken with a pool's endpoints, if it is TLS.
    #[must_use]
    pub fn client(&self, pool: &PoolName) -> Option<&Arc<Client>> {
        self.pools.get(pool).map(|kept| &kept.made)
    }

    /// What `status` and the metrics tell: listeners first, by name.
    #[must_use]
    pub fn told(&self) -> Vec<Told> {
        let listeners = self.listeners.iter().map(|(name, kept)| kept.told(Owner::Listener(name.clone())));
        let pools = self.pools.iter().map(|(name, kept)| kept.told(Owner::Pool(name.clone())));
        listeners.chain(pools).collect()
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Listener(name) => write!(f, "listener {name}"),
            Self::Pool(name) => write!(f, "pool {name}"),
        }
    }
}

/// What is made of settings, of the files that they name and of what the Workload API says.
trait Made: Sized {
    type Settings: Clone + PartialEq;

    fn make(
        settings: &Self::Settings,
        workload: Option<&Workload>,
        before: Option<&Self>,
    ) -> Result<Self, tls::Error>;
    fn files(settings: &Self::Settings) -> Vec<PathBuf>;
    fn takes_spiffe(settings: &Self::Settings) -> bool;
    fn shown(&self) -> Vec<Shown>;
}

impl Made for Server {
    type Settings = ListenerTls;

    fn make(
        settings: &ListenerTls,
        workload: Option<&Workload>,
        before: Option<&Self>,
    ) -> Result<Self, tls::Error> {
        tls::server_with(settings, workload, before)
    }

    fn takes_spiffe(settings: &ListenerTls) -> bool {
        settings.takes_spiffe()
    }

    fn files(settings: &ListenerTls) -> Vec<PathBuf> {
        tls::files_of_listener(settings)
    }

    fn shown(&self) -> Vec<Shown> {
        self.certificates.clone()
    }
}

impl Made for Client {
    type Settings = PoolTls;

    fn make(settings: &PoolTls, workload: Option<&Workload>, _: Option<&Self>) -> Result<Self, tls::Error> {
        tls::client_with(settings, workload)
    }

    fn takes_spiffe(settings: &PoolTls) -> bool {
        settings.takes_spiffe()
    }

    fn files(settings: &PoolTls) -> Vec<PathBuf> {
        tls::files_of_pool(settings)
    }

    fn shown(&self) -> Vec<Shown> {
        self.certificate.iter().cloned().collect()
    }
}

/// What is in force for one owner.
#[derive(Debug)]
struct Kept<T: Made> {
    settings: T::Settings,
    made: Arc<T>,
    /// The files as they were when this was made, with the stamps that they have had since.
    seen: Vec<Look>,
    /// What the Workload API had said, if anything is taken from there.
    workload: Option<Arc<Workload>>,
    /// Why what there is now is not in force, or why the Workload API says nothing, if so.
    alarm: Option<tls::Error>,
}

/// A set of files that is being replaced is looked at this often before it is judged.
const LOOKS: usize = 3;

impl<T: Made> Kept<T> {
    fn load(settings: &T::Settings, said: &Known, before: Option<&Self>) -> Result<Self, tls::Error> {
        let Known { workload, alarm } = Self::concerned(settings, said);
        let known = before.filter(|before| before.settings == *settings);
        let seen = Look::at(&T::files(settings), known.map_or(&[], |known| &known.seen));
        if let Some(known) = known
            && known.alarm == alarm
            && known.is_of(&seen, workload.as_ref())
        {
            return Ok(Self { seen, ..known.clone() });
        }
        let before = before.map(|before| &*before.made);
        let (made, seen) = Self::make(settings, workload.as_deref(), before, seen)?;
        Ok(Self { settings: settings.clone(), made: Arc::new(made), seen, workload, alarm: None })
    }

    fn again(&mut self, said: &Known, owner: &Owner, notices: &mut Vec<Notice>) {
        let Known { workload, alarm } = Self::concerned(&self.settings, said);
        let now = Look::at(&T::files(&self.settings), &self.seen);
        if self.is_of(&now, workload.as_ref()) {
            self.seen = now;
            return self.settle(alarm, owner, notices);
        }
        match Self::make(&self.settings, workload.as_deref(), Some(&self.made), now) {
            Ok((made, seen)) => {
                notices.push(Notice::Renewed { owner: owner.clone(), shown: made.shown() });
                (self.made, self.seen, self.workload) = (Arc::new(made), seen, workload);
                self.settle(alarm, owner, notices);
            }
            Err(error) => self.settle(Some(error), owner, notices),
        }
    }

    /// What the Workload API has said, as far as these settings take anything from there.
    fn concerned(settings: &T::Settings, said: &Known) -> Known {
        if T::takes_spiffe(settings) { said.clone() } else { Known::default() }
    }

    /// True if this was made of the same.
    fn is_of(&self, files: &[Look], workload: Option<&Arc<Workload>>) -> bool {
        let same = match (&self.workload, workload) {
            (Some(before), Some(now)) => Arc::ptr_eq(before, now) || before == now,
            (None, None) => true,
            _ => false,
        };
        same && Look::same(&self.seen, files)
    }

    /// Tells of an alarm that is new, or over.
    fn settle(&mut self, alarm: Option<tls::Error>, owner: &Owner, notices: &mut Vec<Notice>) {
        match &alarm {
            None if self.alarm.is_some() => notices.push(Notice::Well(owner.clone())),
            Some(error) if self.alarm != alarm => {
                notices.push(Notice::Kept(Refused { owner: owner.clone(), error: error.clone() }));
            }
            _ => {}
        }
        self.alarm = alarm;
    }

    /// Makes it of files that were seen as `seen`. If it fails and they are others meanwhile, it is tried again: a
    /// directory may have been exchanged between two of its files.
    fn make(
        settings: &T::Settings,
        workload: Option<&Workload>,
        before: Option<&T>,
        mut seen: Vec<Look>,
    ) -> Result<(T, Vec<Look>), tls::Error> {
        let mut made = T::make(settings, workload, before);
        for _ in 1..LOOKS {
            if made.is_ok() {
                break;
            }
            let now = Look::at(&T::files(settings), &seen);
            if Look::same(&seen, &now) {
                break;
            }
            seen = now;
            made = T::make(settings, workload, before);
        }
        made.map(|made| (made, seen))
    }

    fn told(&self, owner: Owner) -> Told {
        Told { owner, shown: self.made.shown(), alarm: self.alarm.as_ref().map(ToString::to_string) }
    }
}

impl<T: Made> Clone for Kept<T> {
    fn clone(&self) -> Self {
        Self {
            settings: self.settings.clone(),
            made: Arc::clone(&self.made),
            seen: self.seen.clone(),
            workload: self.workload.clone(),
            alarm: self.alarm.clone(),
        }
    }
}

//! What may happen, as a value: who decides makes it, the journal writes it down.

use std::{net::SocketAddr, str::FromStr};

use crate::ids::{CloudName, EndpointIdentity, PoolName};

/// How much an event matters. Later is worse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Of use to who looks for it.
    Debug,
    /// A decision, or a step in the life of the process.
    Info,
    /// Something works less well than it should.
    Warn,
    /// Someone must act.
    Error,
}

macro_rules! kinds {
    ($($kind:ident $word:literal $about:literal,)*) => {
        /// What kind of thing happened. The words are those of the log, the API and `docs/events.md`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Kind {
            $(#[doc = $about] $kind,)*
        }

        impl Kind {
            /// Every kind, as the documents list them.
            pub const ALL: &[Self] = &[$(Self::$kind),*];

            /// Its word.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$kind => $word,)*
                }
            }

            /// What it stands for, in one sentence.
            #[must_use]
            pub const fn about(self) -> &'static str {
                match self {
                    $(Self::$kind => $about,)*
                }
            }
        }
    };
}

kinds! {
    Verdict "verdict" "Probes have a new opinion of an endpoint.",
    Ejection "ejection" "An endpoint is taken out because of what sessions met there.",
    Trial "trial" "An ejected endpoint may be tried by one session, or was tried in vain before its back-off was over.",
    Kept "kept" "An endpoint is held for bad and stays in use all the same, or that is over: the evidence says why.",
    Readmission "readmission" "An endpoint that was out is in use again.",
    Domain "domain" "The verdict about a whole cloud has changed.",
    Recovery "recovery" "A cloud that is coming back has a larger share of new sessions, or all of it.",
    Freeze "freeze" "Checks remove nothing for now: it is they that seem to be broken.",
    Thaw "thaw" "Checks may remove endpoints again.",
    Failover "failover" "The new sessions of a pool go to other clouds.",
    Outage "outage" "Nothing of a pool may be used any more: its `when_all_down` decides.",
    OutageOver "outage_over" "A pool has endpoints again.",
    Certificate "certificate" "New certificates or keys are in force, or cannot be: then the old ones stay. Or a certificate that is shown has less than 14 \
     days left (of a short time the last third), less than 3 (the last twelfth), or is not in its time: told once at each step.",
    Addresses "addresses" "A name has other addresses than before.",
    MemoryShort "memory_short" "New sessions are reset: the process takes more memory than `max_memory`.",
    MemoryFree "memory_free" "New sessions are let in again: the process takes less than 95 % of `max_memory`.",
    Reload "reload" "A new config is in force.",
    ReloadRefused "reload_refused" "A new config was refused; the old one stays in force.",
    Start "start" "The process accepts sessions.",
    Drain "drain" "The process takes no new sessions and lets the old ones finish.",
    Stop "stop" "The process has stopped serving.",
    Generation "generation" "A new snapshot is in force for another reason, such as a step of a slow start.",
}

impl Kind {
    /// How much it matters, unless [`Kind::special`] has another word for what came of it.
    const fn level(self) -> Level {
        match self {
            Self::Outage | Self::ReloadRefused => Level::Error,
            Self::Ejection | Self::Freeze | Self::Failover | Self::MemoryShort => Level::Warn,
            Self::Generation => Level::Debug,
            Self::Verdict
            | Self::Domain
            | Self::Trial
            | Self::Kept
            | Self::Readmission
            | Self::Recovery
            | Self::Thaw
            | Self::OutageOver
            | Self::Certificate
            | Self::Addresses
            | Self::MemoryFree
            | Self::Reload
            | Self::Start
            | Self::Drain
            | Self::Stop => Level::Info,
        }
    }

    /// What, come of it, matters otherwise than the kind.
    const fn special(self) -> &'static [(&'static [&'static str], Level)] {
        match self {
            Self::Verdict | Self::Domain => &[(&["down"], Level::Warn)],
            Self::Certificate => &[(&["kept"], Level::Error), (&["expiring", "invalid"], Level::Warn)],
            _ => &[],
        }
    }
}

/// One thing that happened, before anybody says when: to whom, from what to what, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Happening {
    /// What kind of thing.
    pub kind: Kind,
    /// The pool that it is about.
    pub pool: Option<PoolName>,
    /// The endpoint that it is about.
    pub endpoint: Option<SocketAddr>,
    /// The cloud that it is about, or that the endpoint stands in.
    pub cloud: Option<CloudName>,
    /// How it was; empty where that says nothing.
    pub before: String,
    /// How it is now; empty where that says nothing.
    pub after: String,
    /// Why, for people; empty where the kind says it all.
    pub evidence: String,
    said: Option<String>,
}

impl Happening {
    /// Of this kind, about nobody in particular.
    #[must_use]
    pub const fn new(kind: Kind) -> Self {
        Self {
            kind,
            pool: None,
            endpoint: None,
            cloud: None,
            before: String::new(),
            after: String::new(),
            evidence: String::new(),
            said: None,
        }
    }

    /// About this pool.
    #[must_use]
    pub fn pool(mut self, pool: &PoolName) -> Self {
        self.pool = Some(pool.clone());
        self
    }

    /// About this cloud.
    #[must_use]
    pub fn cloud(mut self, cloud: &CloudName) -> Self {
        self.cloud = Some(cloud.clone());
        self
    }

    /// About this endpoint, its pool and its cloud.
    #[must_use]
    pub fn endpoint(mut self, endpoint: &EndpointIdentity) -> Self {
        self.endpoint = Some(endpoint.address);
        self.pool(&endpoint.pool).cloud(&endpoint.cloud)
    }

    /// From what to what.
    #[must_use]
    pub fn change(mut self, before: impl Into<String>, after: impl Into<String>) -> Self {
        (self.before, self.after) = (before.into(), after.into());
        self
    }

    /// Why.
    #[must_use]
    pub fn because(mut self, evidence: impl Into<String>) -> Self {
        self.evidence = evidence.into();
        self
    }

    /// In these words, not in those that the parts come to.
    #[must_use]
    pub fn said(mut self, text: impl Into<String>) -> Self {
        self.said = Some(text.into());
        self
    }

    /// How much it matters: its kind says so, or what came of it.
    #[must_use]
    pub fn level(&self) -> Level {
        let special = self.kind.special().iter().find(|(words, _)| words.contains(&self.after.as_str()));
        special.map_or_else(|| self.kind.level(), |(_, level)| *level)
    }

    /// It in one sentence.
    #[must_use]
    pub fn text(&self) -> String {
        if let Some(said) = &self.said {
            return said.clone();
        }
        let (who, after) = (self.who(), &self.after);
        let what = match self.kind {
            Kind::Verdict => format!("{who} {after}"),
            Kind::Ejection => format!("{who} is ejected"),
            Kind::Trial if after == "trial" => format!("{who} may be tried by one session"),
            Kind::Trial => format!("{who} was tried in vain"),
            Kind::Kept => format!("{who} is {after}"),
            Kind::Readmission => format!("{who} is in use again"),
            Kind::Domain => format!("{who} is {after}"),
            Kind::Recovery if after.is_empty() => format!("{who} is coming back"),
            Kind::Recovery => format!("{who} is coming back: {after}"),
            Kind::Freeze => format!("{who}: checks remove nothing for now"),
            Kind::Thaw => format!("{who}: checks may remove endpoints again"),
            Kind::Failover => format!("{who}: new sessions moved from {} to {after}", self.before),
            Kind::Outage => format!("every endpoint of {who} is out"),
            Kind::OutageOver => format!("{who} has endpoints again"),
            Kind::Certificate => format!("certificates are {after}"),
            Kind::Addresses => format!("{who}: a name has other addresses"),
            Kind::MemoryShort => "new sessions are reset".to_owned(),
            Kind::MemoryFree => "new sessions are let in again".to_owned(),
            Kind::Reload => "config reloaded".to_owned(),
            Kind::ReloadRefused => "config not reloaded".to_owned(),
            Kind::Start => "ready".to_owned(),
            Kind::Drain => "draining: no new sessions".to_owned(),
            Kind::Stop => "stopped".to_owned(),
            Kind::Generation => format!("{who}: new snapshot"),
        };
        if self.evidence.is_empty() { what } else { format!("{what}: {}", self.evidence) }
    }

    fn who(&self) -> String {
        match (self.endpoint, &self.pool, &self.cloud) {
            (Some(endpoint), Some(pool), _) => format!("endpoint {endpoint} (pool {pool})"),
            (Some(endpoint), None, _) => format!("endpoint {endpoint}"),
            (None, Some(pool), Some(cloud)) => format!("cloud {cloud} in pool {pool}"),
            (None, Some(pool), None) => format!("pool {pool}"),
            (None, None, Some(cloud)) => format!("cloud {cloud}"),
            (None, None, None) => "all pools".to_owned(),
        }
    }
}

impl Level {
    /// Its word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
        }
    }
}

/// Not a word of those that there are.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{word:?} is not one of: {known}")]
pub struct NoSuchWord {
    word: String,
    known: String,
}

impl NoSuchWord {
    fn of(word: &str, known: impl Iterator<Item = &'static str>) -> Self {
        Self { word: word.to_owned(), known: known.collect::<Vec<_>>().join(", ") }
    }
}

impl FromStr for Kind {
    type Err = NoSuchWord;

    fn from_str(word: &str) -> Result<Self, NoSuchWord> {
        let known = Self::ALL.iter().find(|kind| kind.as_str() == word).copied();
        known.ok_or_else(|| NoSuchWord::of(word, Self::ALL.iter().map(|kind| kind.as_str())))
    }
}

impl FromStr for Level {
    type Err = NoSuchWord;

    fn from_str(word: &str) -> Result<Self, NoSuchWord> {
        let all = [Self::Debug, Self::Info, Self::Warn, Self::Error];
        let known = all.into_iter().find(|level| level.as_str() == word);
        known.ok_or_else(|| NoSuchWord::of(word, all.into_iter().map(Self::as_str)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> EndpointIdentity {
        EndpointIdentity {
            pool: PoolName::from("db"),
            cloud: CloudName::from("aws"),
            address: "10.0.0.1:5432".parse().unwrap(),
        }
    }

    #[test]
    fn every_kind_has_a_word_of_its_own_that_is_read_back() {
        for kind in Kind::ALL {
            assert_eq!(kind.as_str().parse::<Kind>().unwrap(), *kind);
            assert!(kind.about().ends_with('.'), "{kind:?}");
        }
        let unknown = "verdikt".parse::<Kind>().unwrap_err().to_string();
        assert!(unknown.starts_with("\"verdikt\" is not one of: verdict, ejection, "), "{unknown}");
        assert_eq!("warn".parse(), Ok(Level::Warn));
        assert!("loud".parse::<Level>().is_err());
    }

    /// `REGENERATE=1 cargo test events_document` writes the table of kinds anew.
    #[test]
    fn the_events_document_has_every_kind() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/events.md");
        let mut table = String::from("| kind | level | happens when |\n| --- | --- | --- |\n");
        for kind in Kind::ALL {
            let mut levels: Vec<String> = Vec::new();
            for (words, level) in kind.special() {
                let words: Vec<_> = words.iter().map(|word| format!("`{word}`")).collect();
                levels.push(format!("`{}` for {}", level.as_str(), words.join(" or ")));
            }
            let usual = kind.level().as_str();
            levels.push(if levels.is_empty() { format!("`{usual}`") } else { format!("else `{usual}`") });
            let levels = levels.join(", ");
            table += &format!("| `{}` | {levels} | {} |\n", kind.as_str(), kind.about());
        }
        let found = std::fs::read_to_string(&path).unwrap();
        let (head, rest) = found.split_once("<!-- kinds -->\n").unwrap();
        let (old, tail) = rest.split_once("<!-- end of kinds -->").unwrap();
        if std::env::var_os("REGENERATE").is_some() {
            let text = format!("{head}<!-- kinds -->\n{table}<!-- end of kinds -->{tail}");
            std::fs::write(&path, text).unwrap();
        } else {
            assert!(old == table, "docs/events.md is old: REGENERATE=1 cargo test events_document");
        }
    }

    #[test]
    fn the_parts_come_to_a_sentence_unless_one_is_given() {
        let down = Happening::new(Kind::Verdict).endpoint(&identity()).change("up", "down");
        assert_eq!(
            down.clone().because("3 probes failed").text(),
            "endpoint 10.0.0.1:5432 (pool db) down: 3 probes failed"
        );
        assert_eq!(down.said("it is gone").text(), "it is gone");
        let cloud = Happening::new(Kind::Domain).cloud(&CloudName::from("aws")).change("up", "down");
        assert_eq!(
            cloud.because("6 of 6 endpoints: 4 refuse, 2 silent").text(),
            "cloud aws is down: 6 of 6 endpoints: 4 refuse, 2 silent"
        );
        assert_eq!(Happening::new(Kind::Freeze).text(), "all pools: checks remove nothing for now");
    }

    #[test]
    fn a_verdict_matters_by_what_it_is() {
        let verdict = |after: &str| Happening::new(Kind::Verdict).change("unknown", after).level();
        assert_eq!((verdict("down"), verdict("up")), (Level::Warn, Level::Info));
        assert!(Happening::new(Kind::Outage).level() > Happening::new(Kind::Failover).level());
    }
}

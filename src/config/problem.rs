//! What can be wrong with a config: a code that never changes its meaning, a place, and what to do about it.

use std::ops::Range;

/// Whether a config with this problem can be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// It is refused.
    Error,
    /// It is served, but something is likely not as meant.
    Warning,
}

impl Severity {
    /// The word in the output.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
        }
    }
}

macro_rules! codes {
    ($($(#[doc = $doc:literal])+ $name:ident = $number:literal,)*) => {
        /// The kind of a problem. Numbers from 1100 on are warnings.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u16)]
        pub enum Code {
            $($(#[doc = $doc])+ $name = $number,)*
        }

        impl Code {
            /// Each code with what it means.
            pub const ALL: &'static [(Self, &'static str)] = &[$((Self::$name, concat!($($doc),+)),)*];

            /// The code as it is written: `TS1004`.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => concat!("TS", $number),)*
                }
            }
        }
    };
}

codes! {
    /// The file cannot be read: missing, a directory, not permitted, not UTF-8, or larger than 16 MiB.
    Unreadable = 1001,
    /// The text is not TOML.
    Syntax = 1002,
    /// `version` names a file shape that this program does not know.
    Version = 1003,
    /// A key that no setting has.
    UnknownKey = 1004,
    /// A key that must be there is not.
    MissingKey = 1005,
    /// A value of the wrong type, such as a bare number where a duration belongs.
    WrongType = 1006,
    /// A value that cannot be read as what it should be.
    BadValue = 1007,
    /// A value outside its limits.
    OutOfRange = 1008,
    /// A name that could not stand in logs and labels.
    BadName = 1009,
    /// Two listeners or two pools with one name.
    DuplicateName = 1010,
    /// A listener names a pool that is not there.
    UndefinedPool = 1011,
    /// An endpoint names a cloud that is not there.
    UndefinedCloud = 1012,
    /// A pool without endpoints.
    NoEndpoints = 1013,
    /// One address twice in a pool.
    DuplicateEndpoint = 1014,
    /// Two sockets that cannot be bound together.
    AddressTaken = 1015,
    /// An endpoint that is this proxy itself: sessions would go round for ever.
    Loop = 1016,
    /// `order` or `weights` do not fit the policy or the clouds of the pool.
    Policy = 1017,
    /// A `[pool.health]` that says two things, or nothing.
    Health = 1018,
    /// An admin address that the network could reach.
    AdminExposed = 1019,
    /// A `source` with two addresses of one family, or none of the family of an endpoint.
    Source = 1020,
    /// Two limits in the wrong order: `up_above` not above `down_below`, or an ejection's `max` below its `base`.
    Order = 1021,
    /// A listener or a route that says two things about where its sessions go, or nothing.
    Route = 1022,
    /// Settings of TLS, of PROXY headers or of access that do not fit together.
    Edge = 1023,
    /// A certificate, a key or an authority's certificate that cannot be used: `check` looks into the files where it has them.
    Certificate = 1024,
    /// A setting for which this program was not built: a feature of the build is off.
    NotBuilt = 1025,
    /// A pool whose endpoints are never probed.
    NoHealth = 1101,
    /// A pool that no listener uses.
    UnusedPool = 1102,
    /// A cloud without endpoints.
    UnusedCloud = 1103,
    /// A time that is unusually long.
    LongTime = 1104,
    /// No listener: nothing is accepted.
    NoListener = 1105,
    /// A setting that cannot have an effect.
    NoEffect = 1106,
    /// What the machine that checks does not have: the one that serves must.
    NotHere = 1107,
    /// A certificate that has expired, or will within 14 days, or whose time has not come.
    Expiry = 1108,
    /// A route for a server name that no certificate of its listener is for.
    NotCovered = 1109,
}

impl Code {
    /// True for what follows from something that is *not* in the file. Where a broken line may hide that something,
    /// such a problem is not told.
    pub(super) const fn is_absence(self) -> bool {
        matches!(
            self,
            Self::MissingKey
                | Self::UndefinedPool
                | Self::UndefinedCloud
                | Self::NoEndpoints
                | Self::Policy
                | Self::Route
                | Self::Edge
                | Self::NoHealth
                | Self::UnusedPool
                | Self::UnusedCloud
                | Self::NoListener
        )
    }

    pub(super) const fn severity(self) -> Severity {
        if (self as u16) < 1100 { Severity::Error } else { Severity::Warning }
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Its kind.
    pub code: Code,
    /// The bytes of the text it is about; `None`: the file as a whole.
    pub span: Option<Range<usize>>,
    /// What is wrong: one sentence that stands alone.
    pub what: String,
    /// What to say right at the place.
    pub label: Option<String>,
    /// What to do about it.
    pub hint: Option<String>,
    /// A second place that has to do with it.
    pub also: Option<(Range<usize>, String)>,
}

impl Problem {
    pub(super) fn at(code: Code, span: Range<usize>, what: impl Into<String>) -> Self {
        Self { span: Some(span), ..Self::of_file(code, what) }
    }

    pub(super) fn of_file(code: Code, what: impl Into<String>) -> Self {
        Self { code, span: None, what: what.into(), label: None, hint: None, also: None }
    }

    pub(super) fn label(mut self, label: impl Into<String>) -> Self {
        self.label = Some(label.into());
        self
    }

    pub(super) fn hint(mut self, hint: impl Into<Option<String>>) -> Self {
        self.hint = hint.into();
        self
    }

    pub(super) fn also(mut self, span: Range<usize>, label: impl Into<String>) -> Self {
        self.also = Some((span, label.into()));
        self
    }

    /// Whether it stands in the way of serving.
    #[must_use]
    pub const fn severity(&self) -> Severity {
        self.code.severity()
    }
}

/// The word of `known` that is most like `word`, if one is like it at all.
pub(super) fn similar<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // A list of thousands of names would be searched once for each wrong reference.
    const MOST: usize = 256;
    if word.len() > 100 {
        return None;
    }
    known
        .into_iter()
        .take(MOST)
        .map(|candidate| {
            // In short words one slip is much of the word.
            let slip = word.len() > 2 && candidate.len() > 2 && strsim::osa_distance(word, candidate) == 1;
            (if slip { 1.0 } else { strsim::jaro_winkler(word, candidate) }, candidate)
        })
        .filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

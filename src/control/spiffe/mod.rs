//! The SPIFFE Workload API of this machine: it says who we are and whom to believe, and says it anew before that ends.
//!
//! An [`Agent`] listens to it on a thread of its own. `certificates/` looks each second at what it knows, as it looks at
//! files: what is new makes a new generation, and while the Workload API is silent or wrong, what it said last stays in
//! force. Only `feed.rs` knows the crate; a build without it has `absent.rs` in its place.

#[cfg(not(feature = "spiffe"))]
#[path = "absent.rs"]
mod feed;
#[cfg(feature = "spiffe")]
mod feed;

use std::{convert::Infallible, io, sync::Arc, thread, time::Duration};

use tokio::{
    sync::{oneshot, watch},
    time::{sleep, timeout},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use self::feed::Feed;
use crate::{
    config::{Config, WorkloadApi},
    tls::{self, Workload},
};

/// How long a start or a reload waits for the first identity. It may be that the workload was registered a moment ago.
const FIRST: Duration = Duration::from_secs(5);

/// How long one attempt may take to its first answer.
const ANSWER: Duration = Duration::from_secs(5);

/// Why nothing is known of a Workload API.
#[derive(Debug, thiserror::Error)]
pub enum Silent {
    /// Nothing says where it is.
    #[error(
        "nothing says where the SPIFFE Workload API is: set `socket` in [spiffe], or {} in the environment",
        WorkloadApi::VARIABLE
    )]
    Nowhere,
    /// The environment has something else than an address.
    #[error("{} in the environment: {what}", WorkloadApi::VARIABLE)]
    Address {
        /// What is wrong with that, and what to write.
        what: String,
    },
    /// It has not said who we are.
    #[error("the SPIFFE Workload API at {api} has given no identity: {why}")]
    NoIdentity {
        /// Which.
        api: WorkloadApi,
        /// Why, as far as that is known.
        why: String,
    },
    /// No thread for it.
    #[error("cannot start a thread for the SPIFFE Workload API: {0}")]
    Thread(#[from] io::Error),
}

/// What a Workload API has said.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    /// The last that it said and that was right.
    pub(super) workload: Option<Arc<Workload>>,
    /// Why nothing newer is known, if it says nothing or something wrong.
    pub(super) alarm: Option<tls::Error>,
}

/// One that listens to a Workload API for as long as this lives.
#[derive(Debug)]
pub(super) struct Agent {
    api: WorkloadApi,
    known: watch::Receiver<Known>,
    _stop: DropGuard,
}

/// An agent that may not know anything yet.
#[derive(Debug)]
pub(super) struct Begun {
    agent: Arc<Agent>,
    /// Answered, or dropped, when something is known or [`FIRST`] is over. `None`: something is known.
    first: Option<oneshot::Receiver<()>>,
}

/// Listens to the Workload API that a config names, if it takes anything from there. `before` is what was listened to
/// until now: it goes on if it is the same.
///
/// # Errors
/// Nothing says where it is, or there is no thread for it.
pub(super) fn begin(config: &Config, before: Option<&Arc<Agent>>) -> Result<Option<Begun>, Silent> {
    if !config.takes_spiffe() {
        return Ok(None);
    }
    let api = match &config.spiffe {
        Some(api) => api.clone(),
        None => from_environment(std::env::var_os(WorkloadApi::VARIABLE).as_deref())?,
    };
    match before.filter(|before| before.api == api) {
        Some(same) => Ok(Some(Begun { agent: Arc::clone(same), first: None })),
        None => Agent::begin(api).map(Some),
    }
}

fn from_environment(value: Option<&std::ffi::OsStr>) -> Result<WorkloadApi, Silent> {
    let value = value.filter(|value| !value.is_empty()).ok_or(Silent::Nowhere)?;
    WorkloadApi::read(&value.to_string_lossy())
        .map_err(|(what, hint)| Silent::Address { what: format!("{what}; {hint}") })
}

impl Begun {
    /// Waits for the first identity, at most [`FIRST`]. Blocks the thread.
    ///
    /// # Errors
    /// None has come.
    pub(super) fn wait(self) -> Result<Arc<Agent>, Silent> {
        if let Some(first) = self.first {
            first.blocking_recv().unwrap_or_default();
        }
        self.agent.sure()
    }

    /// The same for those who may not block.
    ///
    /// # Errors
    /// None has come.
    pub(super) async fn known(self) -> Result<Arc<Agent>, Silent> {
        if let Some(first) = self.first {
            first.await.unwrap_or_default();
        }
        self.agent.sure()
    }
}

impl Agent {
    fn begin(api: WorkloadApi) -> Result<Begun, Silent> {
        let (sender, known) = watch::channel(Known::default());
        let (told, first) = oneshot::channel();
        let stop = CancellationToken::new();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (place, mut watched, stopped) = (api.clone(), known.clone(), stop.clone());
        thread::Builder::new().name("spiffe".into()).spawn(move || {
            let first = async move {
                drop(timeout(FIRST, watched.wait_for(|known| known.workload.is_some())).await);
                told.send(()).unwrap_or_default();
            };
            let both = async { tokio::join!(first, follow(&place, &sender)) };
            let _: Option<((), Infallible)> = runtime.block_on(stopped.run_until_cancelled(both));
        })?;
        let agent = Self { api, known, _stop: stop.drop_guard() };
        Ok(Begun { agent: Arc::new(agent), first: Some(first) })
    }

    /// What is known now.
    pub(super) fn known(&self) -> Known {
        self.known.borrow().clone()
    }

    fn sure(self: Arc<Self>) -> Result<Arc<Self>, Silent> {
        let Known { workload, alarm } = self.known();
        if workload.is_some() {
            return Ok(self);
        }
        let within = || format!("no answer within {}", humantime::format_duration(FIRST));
        let why = alarm.map_or_else(within, |error| error.to_string());
        Err(Silent::NoIdentity { api: self.api.clone(), why })
    }
}

/// Listens for ever, and asks again after each end.
async fn follow(api: &WorkloadApi, known: &watch::Sender<Known>) -> Infallible {
    let mut pause = Pause::default();
    loop {
        let error = listen(api, known, &mut pause).await;
        known.send_modify(|known| known.alarm = Some(error));
        sleep(pause.next(rand::random())).await;
    }
}

/// Listens until that ends: why it has.
async fn listen(api: &WorkloadApi, known: &watch::Sender<Known>, pause: &mut Pause) -> tls::Error {
    let first = async {
        let mut feed = Feed::open(api).await?;
        let workload = feed.next().await?;
        Ok::<_, tls::Error>((feed, workload))
    };
    let (mut feed, mut workload) = match timeout(ANSWER, first).await {
        Ok(Ok(both)) => both,
        Ok(Err(error)) => return error,
        Err(_) => {
            let within = humantime::format_duration(ANSWER);
            return tls::Error::Workload(format!("{api}: no answer within {within}"));
        }
    };
    loop {
        pause.over();
        known.send_modify(|known| known.take(workload));
        workload = match feed.next().await {
            Ok(workload) => workload,
            Err(error) => return error,
        };
    }
}

impl Known {
    /// Whoever reconnects is told what is known already: that stays the same object.
    fn take(&mut self, new: Workload) {
        self.alarm = None;
        if self.workload.as_deref() != Some(&new) {
            self.workload = Some(Arc::new(new));
        }
    }
}

/// The time between attempts: twice as long after each, with jitter, as all workloads of a machine lose its agent at once.
#[derive(Debug, Default)]
struct Pause {
    attempts: u32,
}

/// The first pause and the longest, without jitter.
const PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(8));

impl Pause {
    /// The next one. `chance`, from 0 to 1, makes it half as long to half as long again.
    fn next(&mut self, chance: f64) -> Duration {
        let doubled = PAUSES.0.saturating_mul(1 << self.attempts.min(16));
        self.attempts = self.attempts.saturating_add(1);
        doubled.min(PAUSES.1).mul_f64(0.5 + chance)
    }

    const fn over(&mut self) {
        self.attempts = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_limit_and_begin_anew_after_an_answer() {
        let mut pause = Pause::default();
        let times: Vec<_> = (0..8).map(|_| pause.next(0.5).as_millis()).collect();
        assert_eq!(times, [250, 500, 1000, 2000, 4000, 8000, 8000, 8000]);
        assert_eq!((pause.next(0.0).as_millis(), pause.next(1.0).as_millis()), (4000, 12_000));
        pause.over();
        assert_eq!(pause.next(0.5).as_millis(), 250);
    }

    #[test]
    fn the_environment_says_where_it_is_or_why_not() {
        let read = |text: &str| from_environment(Some(text.as_ref()));
        assert_eq!(read("unix:///run/api.sock").unwrap(), WorkloadApi::Unix("/run/api.sock".into()));
        let words = |outcome: Result<_, Silent>| outcome.unwrap_err().to_string();
        assert!(words(read("/run/api.sock")).starts_with("SPIFFE_ENDPOINT_SOCKET in the environment: "));
        for nothing in [from_environment(None), read("")] {
            let words = words(nothing);
            assert!(words.contains("set `socket` in [spiffe], or SPIFFE_ENDPOINT_SOCKET"), "{words}");
        }
    }
}

//! The control plane: it knows everything, decides, and publishes one snapshot after another. Everything that wants a
//! change sends a [`Change`] to the reconciler, the only writer. Nothing here may end the process, and nothing here is
//! ever waited for by traffic.

pub mod admin;
mod brain;
pub mod certificates;
mod compile;
pub mod discovery;
pub mod health;
mod inputs;
mod journal;
mod judged;
mod memory;
mod news;
mod overview;
mod policy;
mod prepare;
mod reconcile;
mod reload;
mod round;
mod run;
mod spiffe;
mod standing;
#[cfg(test)]
mod testing;
mod usual;
pub mod verdicts;
mod view;

pub use self::spiffe::Silent;
pub use brain::{Brain, Notice};
pub use inputs::{Name, OpenListener};
pub use journal::{Event, Happening, Journal, Kind, Level, NoSuchWord, Selection};
pub use judged::{CloudVerdict, CloudView, Judged, Word, kept_word};
pub use reload::ReloadError;
pub use run::{Bindings, Control, Orders, StartError, Stop, bind_all};
pub use view::{EndpointView, Failover, ListenerView, Overview, PoolView, ReloadOutcome, View};

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::{sync::mpsc, time::Instant};

use crate::{
    control::health::Verdict,
    ids::{EndpointKey, PoolName},
};

/// Something that may lead to another snapshot.
#[derive(Clone, Debug)]
pub enum Change {
    /// The health room changed its mind about an endpoint, or has another bad probe of one that it holds for down.
    Verdict {
        /// Which endpoint.
        endpoint: EndpointKey,
        /// The new opinion.
        verdict: Verdict,
        /// The evidence, for people: `3 probes failed: connect: connection refused`.
        reason: Arc<str>,
        /// True if the endpoint answered the last probe, and wrongly: its own word.
        answered: bool,
        /// When the last probe began.
        began: Instant,
    },
    /// A name was resolved. Failures are not sent: the last addresses stay.
    Resolved {
        /// Whose endpoint the name is.
        pool: PoolName,
        /// The name as written.
        host: Arc<str>,
        /// The port as written.
        port: u16,
        /// Every address it has now; never empty.
        addresses: Vec<SocketAddr>,
    },
}

/// Changes that may wait for the reconciler; senders wait beyond that.
const INBOX: usize = 1024;

/// The reconciler's inbox, for everyone who wants a change. Bounded: a sender waits.
pub type ChangeSender = mpsc::Sender<Change>;

/// The reconciler's end of its inbox.
pub type ChangeReceiver = mpsc::Receiver<Change>;

/// A new inbox.
#[must_use]
pub fn inbox() -> (ChangeSender, ChangeReceiver) {
    mpsc::channel(INBOX)
}

/// How long an endpoint's probe took and how it went, for the metrics.
#[derive(Clone, Copy, Debug)]
pub struct ProbeOutcome {
    /// From the first packet to the verdict of this probe.
    pub took: Duration,
    /// True for a good one.
    pub good: bool,
}

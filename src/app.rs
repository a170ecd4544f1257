//! Wiring: the two planes, the order of starting, signals, and the end. The only room that sees everything.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use crate::{config::Config, control::View, ids::ListenerName, state::Shared};

/// What a running proxy needs beside its config.
#[derive(Debug, Default)]
pub struct Options {
    /// Where the config came from; a reload reads it again. `None`: reloads are refused.
    pub config_path: Option<PathBuf>,
    /// Session lines; `None` writes none.
    pub session_log: Option<crate::telemetry::SessionLog>,
}

/// A running proxy: a control thread and its workers. Dropping it stops it at once.
#[derive(Debug)]
pub struct App {
    shared: Arc<Shared>,
    view: Arc<View>,
}

impl App {
    /// Binds every listener, starts both planes, and returns when sessions are accepted.
    ///
    /// # Errors
    /// A listener, the admin or the telemetry address cannot be bound, or a thread cannot be started.
    pub fn start(_config: Config, _options: Options) -> anyhow::Result<Self> {
        anyhow::bail!("the wiring is not there yet")
    }

    /// The bridge between the planes.
    #[must_use]
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// What the control plane shows of itself.
    #[must_use]
    pub fn view(&self) -> &Arc<View> {
        &self.view
    }

    /// Where this listener accepts (the real port if the config said 0).
    #[must_use]
    pub fn address(&self, listener: &ListenerName) -> Option<SocketAddr> {
        self.view.listener(listener).map(|cell| cell.address)
    }

    /// No new sessions; waits until the old ones have ended, at most `deadline`; then resets the rest and stops. Returns
    /// the number of sessions that were reset.
    pub fn drain(self, _deadline: Duration) -> u64 {
        0
    }
}

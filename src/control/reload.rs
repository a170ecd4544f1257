//! From a config to one in force, whole or not at all: everything that can fail is done before anything changes.

use std::{future::Future, io, net::TcpListener, path::PathBuf, sync::Arc};

use tokio::sync::{mpsc, oneshot};

use super::{
    View,
    inputs::OpenListener,
    reconcile::{NewConfig, Request},
};
use crate::{
    config::{self, Config},
    ids::Generation,
    net::{self, Bind, Listen},
    state::{ListenerCell, Shared},
};

/// Why a config could not be put in force.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// The file has problems.
    #[error("{0}")]
    Refused(config::Refused),
    /// A listener's address cannot be bound.
    #[error("cannot bind {address} (listener {listener}): {}", net::bind_hint(.source))]
    Bind {
        /// Which listener.
        listener: String,
        /// Its address.
        address: Bind,
        /// What the kernel said.
        source: io::Error,
    },
    /// The process runs without a file.
    #[error("there is no config file to read again")]
    NoFile,
    /// The control plane is ending.
    #[error("the process is stopping")]
    Stopping,
}

/// Sockets that are bound, one for each worker.
pub(super) type Bound = (Arc<ListenerCell>, Vec<TcpListener>);

/// Puts configs in force.
#[derive(Debug)]
pub(super) struct Loader {
    shared: Arc<Shared>,
    view: Arc<View>,
    requests: mpsc::Sender<Request>,
    listeners: Vec<OpenListener>,
}

impl Loader {
    pub(super) const fn new(shared: Arc<Shared>, view: Arc<View>, requests: mpsc::Sender<Request>) -> Self {
        Self { shared, view, requests, listeners: Vec::new() }
    }

    /// How many listeners are open.
    pub(super) fn listeners(&self) -> usize {
        self.listeners.len()
    }

    /// Puts the first config in force, and opens its listeners once `known` is over.
    pub(super) async fn first(&mut self, config: Config, bound: Vec<Bound>, known: impl Future<Output = ()>) {
        let listeners: Vec<_> = config
            .listeners
            .iter()
            .zip(&bound)
            .map(|(listener, bound)| OpenListener::of(listener, bound))
            .collect();
        if let Err(error) = self.publish(config, listeners.clone()).await {
            tracing::error!(%error, "the first config was not published");
        }
        known.await;
        for (cell, sockets) in bound {
            self.shared.open(&cell, sockets).await;
        }
        self.listeners = listeners;
    }

    /// Reads the file again and puts it in force, or says why the old config stays.
    pub(super) async fn reload(&mut self, path: Option<PathBuf>) {
        match self.try_reload(path).await {
            Ok(generation) => {
                tracing::info!(%generation, "config reloaded");
                self.view.journal.record(generation, "config reloaded".to_owned());
                self.view.reloaded(None);
            }
            Err(error) => {
                tracing::error!(%error, "config not reloaded: the old one stays in force");
                let generation = self.shared.snapshot().generation;
                self.view.journal.record(generation, format!("config not reloaded: {error}"));
                self.view.reloaded(Some(error.to_string()));
            }
        }
    }

    async fn try_reload(&mut self, path: Option<PathBuf>) -> Result<Generation, ReloadError> {
        let path = path.ok_or(ReloadError::NoFile)?;
        // A large file takes a while, and the control plane has more to do.
        let loaded = tokio::task::spawn_blocking(move || config::load(&path)).await;
        let loaded = loaded.map_err(|_| ReloadError::Stopping)?.map_err(ReloadError::Refused)?;
        self.apply(loaded.config).await
    }

    async fn apply(&mut self, config: Config) -> Result<Generation, ReloadError> {
        let old = Arc::clone(&self.view.overview.load().config);
        for setting in needs_restart(&old, &config) {
            tracing::warn!(setting, "changed in the file, but takes effect only at a restart");
        }
        let mut fresh: Vec<Bound> = Vec::new();
        let mut listeners = Vec::new();
        let mut changed = Vec::new();
        for listener in &config.listeners {
            let same =
                |open: &&OpenListener| open.config.name == listener.name && open.config.bind == listener.bind;
            match self.listeners.iter().find(same) {
                Some(open) => {
                    let open = OpenListener { config: listener.clone(), cell: Arc::clone(&open.cell) };
                    changed.push(open.clone());
                    listeners.push(open);
                }
                None => {
                    let bound = bind(listener, self.shared.sockets.workers())?;
                    listeners.push(OpenListener::of(listener, &bound));
                    fresh.push(bound);
                }
            }
        }
        let generation = self.publish(config, listeners.clone()).await?;
        // Nothing fails from here on.
        for (cell, sockets) in fresh {
            self.shared.open(&cell, sockets).await;
        }
        for open in changed {
            let options = options(&open.config, open.cell.address);
            self.shared.sockets.reapply(&open.cell, options).await;
        }
        for gone in
            self.listeners.iter().filter(|old| !listeners.iter().any(|new| Arc::ptr_eq(&new.cell, &old.cell)))
        {
            self.shared.sockets.close(&gone.cell).await;
        }
        self.listeners = listeners;
        Ok(generation)
    }

    /// Puts a config in force whose listeners are bound.
    async fn publish(&self, config: Config, listeners: Vec<OpenListener>) -> Result<Generation, ReloadError> {
        let (done, answer) = oneshot::channel();
        let new = NewConfig { config: Arc::new(config), listeners, resolved: Vec::new(), done };
        self.requests.send(Request::Config(new)).await.map_err(|_| ReloadError::Stopping)?;
        answer.await.map_err(|_| ReloadError::Stopping)
    }
}

/// Binds one listener for every worker.
///
/// # Errors
/// The address cannot be bound.
pub(super) fn bind(listener: &config::Listener, workers: usize) -> Result<Bound, ReloadError> {
    let failed =
        |source| ReloadError::Bind { listener: listener.name.to_string(), address: listener.bind, source };
    let sockets = net::listen(&options(listener, listener.bind.address), workers).map_err(failed)?;
    let address =
        sockets.first().map_or(Ok(listener.bind.address), TcpListener::local_addr).map_err(failed)?;
    Ok((Arc::new(ListenerCell::new(listener.name.clone(), address)), sockets))
}

fn options(listener: &config::Listener, address: std::net::SocketAddr) -> Listen {
    Listen {
        bind: Bind { address, ..listener.bind },
        backlog: listener.backlog,
        keepalive: listener.keepalive,
    }
}

/// Settings that differ and that only a restart can change.
fn needs_restart(old: &Config, new: &Config) -> Vec<&'static str> {
    [
        ("workers", old.workers != new.workers),
        ("log", old.log != new.log),
        ("admin", old.admin != new.admin),
        ("telemetry", old.telemetry != new.telemetry),
    ]
    .into_iter()
    .filter_map(|(setting, differs)| differs.then_some(setting))
    .collect()
}

//! From a config to one in force, whole or not at all: everything that can fail is done before anything changes.

use std::{
    future::Future,
    io,
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use tokio::sync::{mpsc, oneshot};

use super::{
    Happening, Kind, View,
    certificates::{self, Certificates, Wanted},
    inputs::{Name, OpenListener},
    prepare::{Prepared, prepare},
    reconcile::{NewConfig, Request},
    spiffe::{self, Agent, Silent},
};
use crate::{
    config::{self, Config, Report},
    ids::Generation,
    net::{self, Bind, Intercept, Listen, RefusedOption},
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
    /// The kernel refuses what a cloud's sockets are to have.
    #[error("cannot dial cloud {cloud} as its settings say: {source}")]
    Dial {
        /// Which cloud.
        cloud: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A pool is to be dialled from its clients' addresses, which this process may not do.
    #[error("cannot dial pool {pool} from the addresses of its clients (`client_source`): {source}")]
    ClientSource {
        /// Which pool.
        pool: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The process runs without a file.
    #[error("there is no config file to read again")]
    NoFile,
    /// The file does not come.
    #[error("{} could not be read within {}", .0.display(), humantime::format_duration(*.1))]
    Slow(PathBuf, Duration),
    /// A pool that has endpoints would have none.
    #[error("pool {pool} would have no endpoint: {reason}")]
    Emptied {
        /// Which pool.
        pool: String,
        /// Which names do not resolve.
        reason: String,
    },
    /// An address is taken by a listener of the config in force.
    #[error(
        "cannot bind {address} (listener {listener}): listener {holder} of this proxy has {held}. Reload twice, first \
         without listener {holder} and then with listener {listener}, or restart"
    )]
    Held {
        /// Which listener.
        listener: String,
        /// Its address.
        address: Bind,
        /// The listener that is open.
        holder: String,
        /// Where it is open.
        held: SocketAddr,
    },
    /// A certificate, a key or an authority cannot be used.
    #[error("{}", told(.0))]
    Tls(Vec<certificates::Refused>),
    /// The SPIFFE Workload API has not said who we are.
    #[error(transparent)]
    Spiffe(#[from] Silent),
    /// No listener is left.
    #[error("a config without a listener would close every listener: stop the process instead")]
    NoListener,
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
    certificates: Certificates,
    /// What the process was started with: some settings stay as they are until it ends.
    started: Arc<Config>,
}

impl Loader {
    pub(super) fn new(shared: Arc<Shared>, view: Arc<View>, requests: mpsc::Sender<Request>) -> Self {
        let started = Arc::clone(&view.overview.load().config);
        let certificates = Certificates::default();
        Self { shared, view, requests, listeners: Vec::new(), certificates, started }
    }

    /// How many listeners are open.
    pub(super) fn listeners(&self) -> usize {
        self.listeners.len()
    }

    /// Puts the first config in force, and opens its listeners once `known` is over.
    pub(super) async fn first(
        &mut self,
        config: Config,
        (bound, certificates): (Vec<Bound>, Certificates),
        known: impl Future<Output = ()>,
    ) {
        self.certificates = certificates;
        let listeners: Vec<_> = config
            .listeners
            .iter()
            .zip(&bound)
            .map(|(listener, bound)| OpenListener::of(listener, bound))
            .collect();
        match self.publish(config, listeners.clone(), Vec::new()).await {
            Ok(generation) => {
                let event = Happening::new(Kind::Generation).change("", generation.to_string());
                self.view.journal.record(generation, event.because("the first config"));
            }
            Err(error) => tracing::error!(%error, "the first config was not published"),
        }
        known.await;
        for (cell, sockets) in bound {
            self.shared.open(&cell, sockets).await;
        }
        self.listeners = listeners;
    }

    /// Reads the file again and finds out what applying it takes. Changes nothing: it may be given up.
    pub(super) async fn prepare(&self, path: Option<PathBuf>) -> Result<Prepared, ReloadError> {
        let now = self.view.overview.load_full();
        let prepared = prepare(path, &now).await?;
        let agent = match spiffe::begin(&prepared.config, self.certificates.agent())? {
            Some(begun) => Some(begun.known().await?),
            None => None,
        };
        Ok(Prepared { agent, ..prepared })
    }

    /// Puts a config in force, or says why the old one stays. Must not be given up halfway.
    pub(super) async fn reload(&mut self, prepared: Result<Prepared, ReloadError>) {
        let before = self.shared.snapshot().generation;
        let outcome = match prepared {
            Ok(prepared) => self.apply(prepared).await,
            Err(error) => Err(error),
        };
        match outcome {
            Ok((generation, warnings)) => {
                for problem in warnings.problems() {
                    let line = problem.span.as_ref().map(|span| warnings.position(span.start).0);
                    tracing::warn!(line, code = problem.code.as_str(), "config: {}", problem.what);
                }
                let (evidence, count) = match warnings.warnings() {
                    0 => (String::new(), String::new()),
                    count => {
                        let count = config::counted(count, "warning");
                        (count.clone(), format!(" ({count})"))
                    }
                };
                let event = Happening::new(Kind::Reload)
                    .change(before.to_string(), generation.to_string())
                    .because(evidence)
                    .said(format!("config reloaded{count}"));
                self.view.journal.record(generation, event);
                self.view.reloaded(None);
            }
            Err(error) => {
                let event = Happening::new(Kind::ReloadRefused)
                    .change(before.to_string(), before.to_string())
                    .because(error.to_string());
                self.view.journal.record(before, event);
                self.view.reloaded(Some(error.to_string()));
            }
        }
    }

    async fn apply(&mut self, prepared: Prepared) -> Result<(Generation, Report), ReloadError> {
        let Prepared { config, warnings, resolved, agent } = prepared;
        if config.listeners.is_empty() && !self.listeners.is_empty() {
            return Err(ReloadError::NoListener);
        }
        try_out(&config)?;
        let loaded = self.load(&config, agent).await?;
        let before = std::mem::replace(&mut self.certificates, loaded);
        let applied = self.bind_and_publish(config, resolved).await;
        if applied.is_err() {
            self.certificates = before;
        }
        Ok((applied?, warnings))
    }

    /// TLS as the files have it, and as the sessions of before can go on with it.
    async fn load(&self, config: &Config, agent: Option<Arc<Agent>>) -> Result<Certificates, ReloadError> {
        let (wanted, before) = (Wanted { agent, ..Wanted::of(config) }, self.certificates.clone());
        let loading = tokio::task::spawn_blocking(move || Certificates::load(&wanted, Some(&before)));
        loading.await.map_err(|_| ReloadError::Stopping)?.map_err(ReloadError::Tls)
    }

    async fn bind_and_publish(
        &mut self,
        mut config: Config,
        resolved: Vec<(Name, Vec<SocketAddr>)>,
    ) -> Result<Generation, ReloadError> {
        let waiting = keep(&self.started, &mut config);
        let mut fresh: Vec<Bound> = Vec::new();
        let mut listeners = Vec::new();
        let (mut changed, mut renamed) = (Vec::new(), Vec::new());
        for listener in &config.listeners {
            match self.open(listener) {
                Some(open) => {
                    listener
                        .tuning
                        .try_change(&open.config.tuning)
                        .map_err(|error| failed(listener, error))?;
                    let cell = if open.config.name == listener.name {
                        Arc::clone(&open.cell)
                    } else {
                        let cell = ListenerCell::new(listener.name.clone(), open.cell.address);
                        let cell = Arc::new(cell);
                        renamed.push((Arc::clone(&open.cell), Arc::clone(&cell)));
                        cell
                    };
                    let open = OpenListener { config: listener.clone(), cell };
                    changed.push(open.clone());
                    listeners.push(open);
                }
                None => {
                    let bound = bind(listener, self.shared.sockets.workers())
                        .map_err(|error| self.held(listener, &error).unwrap_or(error))?;
                    listeners.push(OpenListener::of(listener, &bound));
                    fresh.push(bound);
                }
            }
        }
        let generation = self.publish(config, listeners.clone(), resolved).await?;
        // Nothing fails from here on.
        for (cell, sockets) in fresh {
            self.shared.open(&cell, sockets).await;
        }
        for (from, to) in &renamed {
            self.shared.sockets.rename(from, to).await;
        }
        for open in changed {
            let options = options(&open.config, open.cell.address);
            self.shared.sockets.reapply(&open.cell, &options).await;
        }
        for gone in
            self.listeners.iter().filter(|old| !listeners.iter().any(|new| Arc::ptr_eq(&new.cell, &old.cell)))
        {
            self.shared.sockets.close(&gone.cell).await;
        }
        self.listeners = listeners;
        for setting in &waiting {
            tracing::warn!(setting, "changed in the file, but takes effect only at a restart");
        }
        self.view.needs_restart.store(Arc::new(waiting));
        Ok(generation)
    }

    /// The listener whose sockets this one has: that of its name and address, or, under another name, that of its address,
    /// if it is one that only one listener can have.
    fn open(&self, listener: &config::Listener) -> Option<&OpenListener> {
        let mut here = self.listeners.iter().filter(|open| open.config.bind == listener.bind);
        if listener.bind.address.port() == 0 {
            return here.find(|open| open.config.name == listener.name);
        }
        here.next()
    }

    /// Why an address cannot be bound, if it is one of ours under another one: `0.0.0.0` in the place of `127.0.0.1`.
    fn held(&self, listener: &config::Listener, error: &ReloadError) -> Option<ReloadError> {
        let in_use = |error: &io::Error| error.kind() == io::ErrorKind::AddrInUse;
        if !matches!(error, ReloadError::Bind { source, .. } if in_use(source)) {
            return None;
        }
        let bind = |open: &OpenListener| Bind { address: open.cell.address, ..open.config.bind };
        let holder = self.listeners.iter().find(|open| bind(open).overlaps(&listener.bind))?;
        Some(ReloadError::Held {
            listener: listener.name.to_string(),
            address: listener.bind,
            holder: holder.cell.name.to_string(),
            held: holder.cell.address,
        })
    }

    /// Puts a config in force whose listeners are bound.
    async fn publish(
        &self,
        config: Config,
        listeners: Vec<OpenListener>,
        resolved: Vec<(Name, Vec<SocketAddr>)>,
    ) -> Result<Generation, ReloadError> {
        let (done, answer) = oneshot::channel();
        let certificates = self.certificates.clone();
        let new = NewConfig { config: Arc::new(config), listeners, certificates, resolved, done };
        self.requests.send(Request::Config(new)).await.map_err(|_| ReloadError::Stopping)?;
        answer.await.map_err(|_| ReloadError::Stopping)
    }
}

/// Every reason, in one line.
fn told(refused: &[certificates::Refused]) -> String {
    refused.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// Asks the kernel whether it takes the socket options of a config. An interface or an address that a cloud lacks may yet
/// come, as a tunnel does.
///
/// # Errors
/// It refuses one.
pub(super) fn try_out(config: &Config) -> Result<(), ReloadError> {
    for cloud in &config.clouds {
        match cloud.socket.try_out() {
            Ok(()) => {}
            Err(error) if RefusedOption::may_come(&error) => {
                tracing::warn!(cloud = %cloud.name, %error, "this cloud cannot be dialled now");
            }
            Err(source) => return Err(ReloadError::Dial { cloud: cloud.name.to_string(), source }),
        }
    }
    let clouds = config.clouds.iter().map(|cloud| (cloud.name.as_str(), &cloud.socket.tuning));
    let listeners = config.listeners.iter().map(|listener| (listener.name.as_str(), &listener.tuning));
    for (of, tuning) in clouds.chain(listeners) {
        for cut in tuning.cut() {
            tracing::warn!(of, "{cut}");
        }
    }
    if config.listeners.iter().any(|listener| listener.fast_open.is_some()) && !net::serves_fast_open() {
        tracing::warn!("the kernel ignores `fast_open` of listeners: net.ipv4.tcp_fastopen lacks 2");
    }
    if let Some(pool) = config.pools.iter().find(|pool| pool.towards.client_source) {
        let refused = |source| ReloadError::ClientSource { pool: pool.name.to_string(), source };
        net::try_transparent().map_err(refused)?;
    }
    config.listeners.iter().try_for_each(|listener| {
        let transparent = if is_transparent(listener) { net::try_transparent() } else { Ok(()) };
        transparent.and_then(|()| listener.tuning.try_out()).map_err(|source| failed(listener, source))
    })
}

/// True where connections to all addresses may come.
fn is_transparent(listener: &config::Listener) -> bool {
    listener.entry.intercept == Intercept::Tproxy
}

fn failed(listener: &config::Listener, source: io::Error) -> ReloadError {
    ReloadError::Bind { listener: listener.name.to_string(), address: listener.bind, source }
}

/// Binds one listener for every worker.
///
/// # Errors
/// The address cannot be bound.
pub(super) fn bind(listener: &config::Listener, workers: usize) -> Result<Bound, ReloadError> {
    let failed = |source| failed(listener, source);
    let sockets = net::listen(&options(listener, listener.bind.address), workers).map_err(failed)?;
    let address =
        sockets.first().map_or(Ok(listener.bind.address), TcpListener::local_addr).map_err(failed)?;
    Ok((Arc::new(ListenerCell::new(listener.name.clone(), address)), sockets))
}

fn options(listener: &config::Listener, address: SocketAddr) -> Listen {
    Listen {
        bind: Bind { address, ..listener.bind },
        backlog: listener.backlog,
        keepalive: listener.keepalive,
        fast_open: listener.fast_open,
        tuning: listener.tuning.clone(),
        transparent: is_transparent(listener),
    }
}

/// Settings that only a restart can change stay as they are in `started`; those that the file has otherwise.
fn keep(started: &Config, config: &mut Config) -> Vec<&'static str> {
    fn keep<T: Clone + PartialEq>(name: &'static str, from: &T, to: &mut T) -> Option<&'static str> {
        let differs = from != to;
        to.clone_from(from);
        differs.then_some(name)
    }
    [
        keep("workers", &started.workers, &mut config.workers),
        keep("pin_workers", &started.pin_workers, &mut config.pin_workers),
        keep("engine", &started.engine, &mut config.engine),
        keep("log", &started.log, &mut config.log),
        keep("admin", &started.admin, &mut config.admin),
        keep("telemetry", &started.telemetry, &mut config.telemetry),
    ]
    .into_iter()
    .flatten()
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::admin::tests::config;

    #[test]
    fn what_takes_a_restart_stays_as_the_process_was_started() {
        let started = config();
        let mut new = (*started).clone();
        new.workers = Some(7);
        new.log.level = config::Level::Trace;
        new.drain_timeout += Duration::from_secs(1);
        assert_eq!(keep(&started, &mut new), ["workers", "log"]);
        assert_eq!((new.workers, &new.log), (started.workers, &started.log));
        assert_ne!(new.drain_timeout, started.drain_timeout);
        assert!(keep(&started, &mut (*started).clone()).is_empty());
    }
}

//! The control plane's life: bind everything, start its tasks, publish the first generation, then reload and stop as told.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use tokio::{
    sync::{Notify, mpsc, oneshot, watch},
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use super::{
    ChangeReceiver, ChangeSender, Happening, Kind, View,
    admin::{self, AdminListener},
    certificates::{Certificates, Wanted},
    discovery::Discovery,
    health::Health,
    inputs::OpenListener,
    memory,
    reconcile::{Doors, Reconciler, Request},
    reload::{Bound, Loader, ReloadError, bind, try_out},
    spiffe::{self, Begun},
};
use crate::{
    config::{self, AdminBind, Config},
    net::{self, RefusedOption},
    state::{Phase, ReportReceiver, Shared},
    telemetry,
};

/// How long the start waits for names to resolve and for the first probes. Sessions wait in the backlog meanwhile; an
/// endpoint that is slower than this is used as soon as it answers.
const FIRST_ROUND: Duration = Duration::from_secs(2);

/// Everything the process listens on, bound before anything else starts, so that a conflict is found at once.
#[derive(Debug)]
pub struct Bindings {
    listeners: Vec<Bound>,
    /// TLS, made of its files: a start finds out at once whether they are right.
    certificates: Certificates,
    admin: Option<AdminListener>,
    telemetry: Option<AdminListener>,
}

/// Why the process cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A listener.
    #[error(transparent)]
    Listener(#[from] ReloadError),
    /// The admin or telemetry address.
    #[error("cannot bind {address} ({what}): {}", hint(.address, .source))]
    Address {
        /// `admin` or `telemetry`.
        what: &'static str,
        /// As in the config.
        address: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A thread or a runtime.
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
}

/// What the kernel said of an address of ours, and how to mend it.
fn hint(address: &str, error: &io::Error) -> String {
    if address.starts_with("unix:") { telemetry::path_hint(error) } else { net::bind_hint(error) }
}

impl StartError {
    /// True when the kernel did not permit a bind, or what else takes a capability.
    #[must_use]
    pub fn is_permission(&self) -> bool {
        match self {
            Self::Listener(ReloadError::Bind { source, .. } | ReloadError::ClientSource { source, .. })
            | Self::Address { source, .. }
            | Self::Thread(source) => {
                source.kind() == io::ErrorKind::PermissionDenied || RefusedOption::is_permission(source)
            }
            Self::Listener(_) => false,
        }
    }

    /// True when the config names files of certificates, keys or authorities that cannot be used.
    #[must_use]
    pub const fn is_config(&self) -> bool {
        matches!(self, Self::Listener(ReloadError::Tls(_)))
    }
}

/// How the process is told to stop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stop {
    /// Not yet.
    #[default]
    No,
    /// Let sessions finish, for at most this long; `None`: for as long as they take.
    Drain(Option<Duration>),
    /// At once.
    Now,
}

/// The orders that the control plane takes.
#[derive(Clone, Debug)]
pub struct Orders {
    /// Read the config again. Orders given while one is carried out become one.
    pub reload: Arc<Notify>,
    /// Stop.
    pub stop: watch::Sender<Stop>,
}

/// What the control plane works with.
#[derive(Debug)]
pub struct Control {
    /// The bridge.
    pub shared: Arc<Shared>,
    /// What it shows of itself.
    pub view: Arc<View>,
    /// Rare events from the data plane.
    pub reports: ReportReceiver,
    /// The reconciler's inbox, both ends.
    pub changes: (ChangeSender, ChangeReceiver),
    /// What is bound.
    pub bindings: Bindings,
    /// The first config.
    pub config: Config,
    /// Where a reload reads.
    pub path: Option<PathBuf>,
    /// What it obeys.
    pub orders: Orders,
}

/// Binds what the config names.
///
/// # Errors
/// An address cannot be bound, or the kernel refuses a socket option. The default admin and telemetry addresses are given up with a warning instead: two
/// proxies on one machine need not agree on them.
pub fn bind_all(config: &Config, workers: usize) -> Result<Bindings, StartError> {
    try_out(config)?;
    let begun = spiffe::begin(config, None).map_err(ReloadError::Spiffe)?;
    let agent = begun.map(Begun::wait).transpose().map_err(ReloadError::Spiffe)?;
    let wanted = Wanted { agent, ..Wanted::of(config) };
    let certificates = Certificates::load(&wanted, None).map_err(ReloadError::Tls)?;
    let listeners =
        config.listeners.iter().map(|listener| bind(listener, workers)).collect::<Result<_, _>>()?;
    let admin = match &config.admin.bind {
        AdminBind::Off => None,
        AdminBind::Tcp(address) => {
            optional("admin", address.to_string(), config.admin.explicit, admin::bind_tcp(*address))?
        }
        AdminBind::Unix(path) => {
            optional("admin", format!("unix:{}", path.display()), true, admin::bind_unix(path))?
        }
    };
    let telemetry = match config.telemetry.bind {
        None => None,
        Some(address) => {
            optional("telemetry", address.to_string(), config.telemetry.explicit, admin::bind_tcp(address))?
        }
    };
    Ok(Bindings { listeners, certificates, admin, telemetry })
}

fn optional(
    what: &'static str,
    address: String,
    explicit: bool,
    bound: io::Result<AdminListener>,
) -> Result<Option<AdminListener>, StartError> {
    match bound {
        Ok(listener) => Ok(Some(listener)),
        Err(source) if explicit => Err(StartError::Address { what, address, source }),
        Err(error) => {
            tracing::warn!(what, address, %error, "the default address is taken: going on without it. `status` and `health` without an address ask the process that has it");
            Ok(None)
        }
    }
}

impl Control {
    /// Runs until told to stop and until then done; `ready` is called when sessions are accepted. Returns the number of
    /// sessions that had to be reset.
    pub async fn run(self, ready: impl FnOnce()) -> u64 {
        let Self { shared, view, reports, changes: (changes, inbox), bindings, config, path, orders } = self;
        let servers = CancellationToken::new();
        let own = [&bindings.admin, &bindings.telemetry];
        let own = own.into_iter().flatten().filter_map(AdminListener::address).collect();
        told("admin", bindings.admin.as_ref(), &config);
        told("telemetry", bindings.telemetry.as_ref(), &config);
        for (listener, (cell, _)) in config.listeners.iter().zip(&bindings.listeners) {
            tracing::info!(listener = %listener.name, address = %cell.address, pool = %listener.target, "listening");
        }
        let serving = serve(&view, bindings.admin, bindings.telemetry, &servers);
        let (requests, requested) = mpsc::channel(1);
        let observer = Arc::clone(&view);
        let health =
            Health::start(changes.clone(), move |probe| observer.probes.observe(probe.took), rand::random());
        let health = Arc::new(health);
        let discovery = Arc::new(Discovery::start(changes, Arc::clone(&view.names)));
        let doors = Doors {
            changes: inbox,
            requests: requested,
            reports,
            health: Arc::clone(&health),
            discovery: Arc::clone(&discovery),
        };
        let reconciler =
            Reconciler::new((Arc::clone(&shared), Arc::clone(&view)), doors, Arc::new(config.clone()), own);
        let reconciling = tokio::spawn(reconciler.run());
        let measuring = tokio::spawn(memory::watch(Arc::clone(&view)));
        let mut loader = Loader::new(Arc::clone(&shared), Arc::clone(&view), requests.clone());
        loader
            .first(config, (bindings.listeners, bindings.certificates), async {
                let deadline = Instant::now() + FIRST_ROUND;
                discovery.first_round(deadline).await;
                // Only then are resolved names probed.
                settle(&requests).await;
                health.first_round(deadline).await;
                settle(&requests).await;
            })
            .await;
        shared.sessions.advance(Phase::Ready);
        tell_ready(&view, loader.listeners());
        ready();
        let left = Box::pin(obey(&mut loader, path, &orders, &view)).await;
        reconciling.abort();
        measuring.abort();
        servers.cancel();
        for server in serving {
            drop(server.await);
        }
        left
    }
}

fn told(what: &'static str, server: Option<&AdminListener>, config: &Config) {
    let Some(server) = server else { return };
    match (server.address(), &config.admin.bind) {
        (Some(address), _) => tracing::info!(what, %address, "listening"),
        (None, AdminBind::Unix(path)) => tracing::info!(what, address = %path.display(), "listening"),
        (None, _) => {}
    }
}

/// Waits until the changes so far are in force.
async fn settle(requests: &mpsc::Sender<Request>) {
    let (done, settled) = oneshot::channel();
    // Without a reconciler the process is ending.
    if requests.send(Request::Settle(done)).await.is_ok() {
        settled.await.unwrap_or_default();
    }
}

fn serve(
    view: &Arc<View>,
    admin: Option<AdminListener>,
    telemetry: Option<AdminListener>,
    stop: &CancellationToken,
) -> Vec<tokio::task::JoinHandle<()>> {
    [(admin, admin::Kind::Admin), (telemetry, admin::Kind::Telemetry)]
        .into_iter()
        .filter_map(|(listener, kind)| {
            let serving = admin::serve(listener?, Arc::clone(view), kind, stop.clone());
            Some(tokio::spawn(async move {
                if let Err(error) = serving.await {
                    tracing::error!(server = ?kind, %error, "nobody answers there: this server could not begin");
                }
            }))
        })
        .collect()
}

/// Carries out orders until the process has stopped; the number of sessions that had to be reset.
async fn obey(loader: &mut Loader, path: Option<PathBuf>, orders: &Orders, view: &View) -> u64 {
    let shared = &view.shared;
    let mut stop = orders.stop.subscribe();
    loop {
        let prepared = tokio::select! {
            biased;
            _ = stop.wait_for(|order| *order != Stop::No) => break,
            // A file that does not come, and a resolver that does not answer, hold up no stop.
            prepared = async {
                orders.reload.notified().await;
                loader.prepare(path.clone()).await
            } => prepared,
        };
        Box::pin(loader.reload(prepared)).await;
    }
    shared.sessions.advance(Phase::Draining);
    drain(stop, view).await;
    let left = shared.sessions.active();
    let before = shared.sessions.phase().as_str();
    shared.sessions.advance(Phase::Stopping);
    let event = Happening::new(Kind::Stop).change(before, Phase::Stopping.as_str());
    view.journal.record(shared.snapshot().generation, event.because(format!("{} reset", sessions(left))));
    left
}

/// Tells that sessions are accepted, and for whom.
fn tell_ready(view: &View, listeners: usize) {
    let overview = view.overview.load();
    let endpoints: usize = overview.pools.iter().map(|pool| pool.endpoints.len()).sum();
    let [listeners, pools, endpoints] =
        [(listeners, "listener"), (overview.pools.len(), "pool"), (endpoints, "endpoint")]
            .map(|(count, what)| config::counted(count, what));
    let evidence = format!("{listeners}, {pools}, {endpoints}");
    let event = Happening::new(Kind::Start).change(Phase::Starting.as_str(), Phase::Ready.as_str());
    view.journal.record(overview.generation, event.because(evidence));
}

fn sessions(count: u64) -> String {
    config::counted(usize::try_from(count).unwrap_or(usize::MAX), "session")
}

/// Waits until the sessions have ended, or the patience, which may change meanwhile.
async fn drain(mut stop: watch::Receiver<Stop>, view: &View) {
    let shared = &view.shared;
    let mut before = Phase::Ready;
    loop {
        let Stop::Drain(patience) = *stop.borrow_and_update() else { return };
        let limit =
            patience.map_or_else(|| "none".to_owned(), |time| humantime::format_duration(time).to_string());
        let event = Happening::new(Kind::Drain)
            .change(before.as_str(), Phase::Draining.as_str())
            .because(format!("{} may finish, patience {limit}", sessions(shared.sessions.active())));
        view.journal.record(shared.snapshot().generation, event);
        before = Phase::Draining;
        tokio::select! {
            biased;
            () = shared.sessions.quiet() => return,
            changed = stop.changed() => if changed.is_err() { return },
            () = async { sleep(patience.unwrap_or_default()).await }, if patience.is_some() => return,
        }
    }
}

impl Stop {
    /// After a signal to end within `patience`. The second of those ends at once.
    #[must_use]
    pub const fn sooner(self, patience: Duration) -> Self {
        match self {
            Self::No | Self::Drain(None) => Self::Drain(Some(patience)),
            Self::Drain(Some(_)) | Self::Now => Self::Now,
        }
    }

    /// After a signal to end without a deadline. What was to end at once still does.
    #[must_use]
    pub const fn later(self) -> Self {
        match self {
            Self::Now => Self::Now,
            Self::No | Self::Drain(_) => Self::Drain(None),
        }
    }
}

impl OpenListener {
    /// A listener with the cell that its sockets were bound for.
    pub(super) fn of(config: &config::Listener, bound: &Bound) -> Self {
        Self { config: config.clone(), cell: Arc::clone(&bound.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::admin::tests::view;

    #[test]
    fn a_second_deadline_ends_and_none_is_lifted_by_a_later_word() {
        let patience = Duration::from_secs(5);
        let deadline = Stop::Drain(Some(patience));
        assert_eq!(Stop::No.sooner(patience), deadline);
        assert_eq!(deadline.sooner(patience), Stop::Now);
        assert_eq!(Stop::No.later(), Stop::Drain(None));
        assert_eq!(Stop::Drain(None).sooner(patience), deadline);
        assert_eq!(deadline.later(), Stop::Drain(None));
        assert_eq!((Stop::Now.later(), Stop::Now.sooner(patience)), (Stop::Now, Stop::Now));
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_follows_its_patience() {
        let view = view();
        view.shared.sessions.begin();
        let (hour, second) = (Duration::from_secs(3600), Duration::from_secs(1));
        let stop = watch::Sender::new(Stop::Drain(Some(second)));
        let start = Instant::now();
        let draining = drain(stop.subscribe(), &view);
        let steering = async {
            sleep(second / 2).await;
            stop.send_replace(Stop::Drain(None));
            sleep(hour).await;
            stop.send_replace(Stop::Drain(Some(second)));
        };
        tokio::join!(draining, steering);
        assert_eq!(start.elapsed().as_millis(), (second / 2 + hour + second).as_millis());
        stop.send_replace(Stop::Now);
        drain(stop.subscribe(), &view).await;
    }

    #[test]
    fn what_a_unix_socket_needs_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("none/admin.sock");
        let address = format!("unix:{}", path.display());
        let error = optional("admin", address.clone(), true, admin::bind_unix(&path)).unwrap_err();
        let wanted = format!("cannot bind {address} (admin): No such file or directory; make its directory");
        assert_eq!(error.to_string(), wanted);
        let said =
            |source| StartError::Address { what: "admin", address: address.clone(), source }.to_string();
        let denied = said(io::ErrorKind::PermissionDenied.into());
        assert!(denied.ends_with("; let the user that twinspan runs as write there"), "{denied}");
        let busy = said(io::Error::new(io::ErrorKind::AddrInUse, "another process answers there"));
        assert!(busy.ends_with("(admin): another process answers there"), "{busy}");
    }
}

//! Wiring: the two planes, the order of starting, signals, and the end. The only room that sees everything.
//!
//! Threads: `control` (its own runtime: reconciler, probes, names, admin, signals), one `worker-N` a CPU, `session-log` and
//! `log` (writers). Traffic never waits for any of the others.

use std::{
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicI32, Ordering::Relaxed},
        mpsc::sync_channel,
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{Notify, watch},
};

/// What an endpoint's connect times are read into.
pub use crate::state::HistogramReading;
use crate::{
    config::{Config, Finding},
    control::{
        self, Bindings, ChangeReceiver, ChangeSender, Control, Orders, StartError, Stop, View, bind_all,
    },
    ids::ListenerName,
    proxy::{Carrier, Worker},
    state::{ReportReceiver, Reports, Shared, Sockets},
    telemetry::{Reopen, SessionLog},
};

/// What a running proxy needs beside its config.
#[derive(Debug, Default)]
pub struct Options {
    /// Where the config came from; a reload reads it again. `None`: reloads are refused.
    pub config_path: Option<PathBuf>,
    /// Session lines; `None` writes none.
    pub session_log: Option<SessionLog>,
    /// Obey the process's signals, and reopen this log when told to.
    pub signals: Option<Reopen>,
}

/// A running proxy: a control thread and its workers. Dropping it stops it at once.
#[derive(Debug)]
pub struct App {
    shared: Arc<Shared>,
    view: Arc<View>,
    orders: Orders,
    changes: ChangeSender,
    forced_by: Arc<AtomicI32>,
    control: Option<JoinHandle<u64>>,
    workers: Vec<Worker>,
}

/// What is odd about the files that a config names, as they are on this machine now.
#[must_use]
pub fn check_files(config: &Config) -> Vec<Finding> {
    control::certificates::check(config, jiff::Timestamp::now().as_second())
}

/// How a proxy ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Sessions that had to be reset.
    pub reset: u64,
    /// The signal that cut the drain short.
    pub forced_by: Option<i32>,
}

impl App {
    /// Binds every listener, starts both planes, and returns when sessions are accepted.
    ///
    /// # Errors
    /// A listener, the admin or the telemetry address cannot be bound, or a thread cannot be started.
    pub fn start(config: Config, options: Options) -> Result<Self, StartError> {
        let workers =
            config.workers.unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from));
        let bindings = bind_all(&config, workers)?;
        let (reports, receiver) = Reports::new();
        let (sockets, receivers) = Sockets::new(workers);
        let shared = Arc::new(Shared::new(
            reports,
            sockets,
            options.session_log.clone().unwrap_or_else(SessionLog::off),
        ));
        let view = Arc::new(View::new(Arc::clone(&shared), Arc::new(config.clone())));
        let orders = Orders { reload: Arc::new(Notify::new()), stop: watch::Sender::new(Stop::No) };
        let (changes, inbox) = control::inbox();
        let mut app = Self {
            shared,
            view,
            orders,
            changes,
            forced_by: Arc::default(),
            control: None,
            workers: Vec::new(),
        };
        let carrier = if config.engine { Carrier::Engine } else { Carrier::Tokio };
        app.workers = Worker::start_all(carrier, config.pin_workers, &app.shared, receivers)
            .map_err(StartError::Thread)?;
        app.start_control(config, bindings, (receiver, inbox), options).map_err(StartError::Thread)?;
        Ok(app)
    }

    fn start_control(
        &mut self,
        config: Config,
        bindings: Bindings,
        (reports, inbox): (ReportReceiver, ChangeReceiver),
        options: Options,
    ) -> io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let signals = options.signals.map(|reopen| Signals {
            view: Arc::clone(&self.view),
            orders: self.orders.clone(),
            forced_by: Arc::clone(&self.forced_by),
            reopen,
        });
        let control = Control {
            shared: Arc::clone(&self.shared),
            view: Arc::clone(&self.view),
            reports,
            changes: (self.changes.clone(), inbox),
            bindings,
            config,
            path: options.config_path,
            orders: self.orders.clone(),
        };
        let (ready, started) = sync_channel(1);
        let thread = thread::Builder::new().name("control".into()).spawn(move || {
            let reset = runtime.block_on(async {
                if let Some(signals) = signals {
                    drop(tokio::spawn(signals.obey()));
                }
                // The receiver is gone only if the start was given up.
                Box::pin(control.run(|| ready.send(()).unwrap_or_default())).await
            });
            // A name that is still being looked up must not hold up the end.
            runtime.shutdown_background();
            reset
        })?;
        self.control = Some(thread);
        started.recv().map_err(|_| io::Error::other("the control thread ended before it was ready"))
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

    /// The inbox of the one writer of snapshots.
    #[must_use]
    pub fn changes(&self) -> &ChangeSender {
        &self.changes
    }

    /// Where this listener accepts (the real port if the config said 0).
    #[must_use]
    pub fn address(&self, listener: &ListenerName) -> Option<SocketAddr> {
        self.view.listener(listener).map(|cell| cell.address)
    }

    /// Has the config file read again; `View::reloads` tells when and how that ended.
    pub fn reload(&self) {
        self.orders.reload.notify_one();
    }

    /// No new sessions; waits until the old ones have ended, at most `deadline`; then resets the rest and stops. Returns
    /// the number of sessions that were reset.
    pub fn drain(self, deadline: Duration) -> u64 {
        self.orders.stop.send_replace(Stop::Drain(Some(deadline)));
        self.wait().reset
    }

    /// Waits until the proxy was told to stop, by a signal, and has done so.
    #[must_use]
    pub fn wait(mut self) -> Ended {
        let reset = self.join();
        let signal = self.forced_by.load(Relaxed);
        Ended { reset, forced_by: (signal != 0).then_some(signal) }
    }

    fn join(&mut self) -> u64 {
        let reset = match self.control.take().map(JoinHandle::join) {
            Some(Ok(reset)) => reset,
            Some(Err(_)) => {
                tracing::error!("the control plane panicked");
                self.shared.sessions.active()
            }
            None => 0,
        };
        self.shared.sessions.advance(crate::state::Phase::Stopping);
        self.workers.drain(..).for_each(Worker::join);
        reset
    }
}

impl Drop for App {
    fn drop(&mut self) {
        self.orders.stop.send_replace(Stop::Now);
        self.join();
    }
}

/// The process's signals, made into orders.
struct Signals {
    view: Arc<View>,
    orders: Orders,
    forced_by: Arc<AtomicI32>,
    reopen: Reopen,
}

impl Signals {
    async fn obey(self) {
        if let Err(error) = self.listen().await {
            tracing::error!(%error, "cannot listen for signals");
        }
    }

    async fn listen(&self) -> io::Result<()> {
        let open = |kind: SignalKind| signal(kind);
        let mut terminate = open(SignalKind::terminate())?;
        let mut interrupt = open(SignalKind::interrupt())?;
        let mut quit = open(SignalKind::quit())?;
        let mut hangup = open(SignalKind::hangup())?;
        let mut reopen = open(SignalKind::user_defined1())?;
        let mut upgrade = open(SignalKind::user_defined2())?;
        loop {
            tokio::select! {
                Some(()) = terminate.recv() => self.stop("SIGTERM", SignalKind::terminate()),
                Some(()) = interrupt.recv() => self.stop("SIGINT", SignalKind::interrupt()),
                Some(()) = quit.recv() => self.orders.stop.send_modify(|stop| {
                    *stop = stop.later();
                    if *stop == Stop::Drain(None) {
                        tracing::info!("SIGQUIT: draining without a deadline");
                    }
                }),
                Some(()) = hangup.recv() => {
                    self.reopen.reopen();
                    if *self.orders.stop.borrow() == Stop::No {
                        self.orders.reload.notify_one();
                    } else {
                        tracing::info!("SIGHUP: the process is stopping, so the config is not read again");
                    }
                }
                Some(()) = reopen.recv() => self.reopen.reopen(),
                Some(()) = upgrade.recv() => tracing::warn!("SIGUSR2 is not in use yet"),
                else => return Ok(()),
            }
        }
    }

    /// The first signal drains with a deadline, the second ends.
    fn stop(&self, name: &str, kind: SignalKind) {
        self.orders.stop.send_modify(|stop| {
            *stop = stop.sooner(self.view.overview.load().config.drain_timeout);
            if let Stop::Drain(Some(patience)) = *stop {
                tracing::info!("{name}: draining for at most {patience:?}; a second signal ends at once");
            } else {
                tracing::warn!("{name}: ending at once");
                self.forced_by.store(kind.as_raw_value(), Relaxed);
            }
        });
    }
}

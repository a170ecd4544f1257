//! A worker: one thread, one current-thread runtime, sockets of its own for every listener. A session never leaves the
//! worker that accepted it.

use std::{io, sync::Arc, thread, time::Duration};

use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

use super::{listener, relay};
use crate::{
    net,
    state::{ListenerCell, Phase, Shared, SocketCommand},
};

/// How often pipes that are not needed any more are closed.
const TRIM: Duration = Duration::from_secs(1);

/// A data-plane worker's thread.
#[derive(Debug)]
pub struct Worker {
    thread: thread::JoinHandle<()>,
}

impl Worker {
    /// Starts a worker. It ends when the process's phase is [`Phase::Stopping`]; sessions that are left then are reset.
    ///
    /// # Errors
    /// The thread or its runtime could not be started.
    pub fn start(
        number: usize,
        shared: Arc<Shared>,
        commands: mpsc::Receiver<SocketCommand>,
    ) -> io::Result<Self> {
        // Seen from here on: the process may be told to stop before this thread first runs.
        let phases = shared.sessions.watch();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = thread::Builder::new().name(format!("worker-{number}")).spawn(move || {
            runtime.block_on(run(shared, phases, commands));
            // Whatever is left ends here, on this thread; the sessions' books close as their tasks are dropped.
            drop(runtime);
        })?;
        Ok(Self { thread })
    }

    /// Waits until the worker has ended.
    pub fn join(self) {
        if self.thread.join().is_err() {
            tracing::error!("a worker panicked outside a session");
        }
    }
}

async fn run(
    shared: Arc<Shared>,
    mut phases: watch::Receiver<Phase>,
    mut commands: mpsc::Receiver<SocketCommand>,
) {
    let mut open: Vec<Open> = Vec::new();
    let mut trim = interval(TRIM);
    trim.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = trim.tick() => {
                relay::trim();
                listener::renew_limit();
            }
            command = commands.recv() => match command {
                Some(command) => obey(command, &mut open, &shared),
                None => return,
            },
            changed = phases.changed() => {
                let phase = *phases.borrow_and_update();
                if changed.is_err() || phase == Phase::Stopping {
                    return;
                }
                if phase == Phase::Draining {
                    open.drain(..).for_each(|open| open.stop.cancel());
                }
            }
        }
    }
}

/// A listener that this worker accepts on.
struct Open {
    cell: Arc<ListenerCell>,
    socket: Arc<TcpListener>,
    stop: CancellationToken,
}

fn obey(command: SocketCommand, open: &mut Vec<Open>, shared: &Arc<Shared>) {
    match command {
        SocketCommand::Open { listener, socket } => open.extend(start(listener, socket, shared)),
        SocketCommand::Reapply { listener, options } => {
            for found in open.iter().filter(|open| Arc::ptr_eq(&open.cell, &listener)) {
                if let Err(error) = net::reapply(&found.socket, &options) {
                    tracing::warn!(listener = %listener.name, %error, "a changed socket option was refused");
                }
            }
        }
        SocketCommand::Close { listener } => {
            open.extract_if(.., |open| Arc::ptr_eq(&open.cell, &listener))
                .for_each(|open| open.stop.cancel());
        }
    }
}

/// Starts the accept loop of one socket; `None` when the process is stopping or the socket is unusable.
fn start(cell: Arc<ListenerCell>, socket: std::net::TcpListener, shared: &Arc<Shared>) -> Option<Open> {
    let socket = match TcpListener::from_std(socket) {
        Ok(socket) if shared.sessions.phase() < Phase::Draining => Arc::new(socket),
        Ok(_) => {
            shared.sessions.finish_accepting();
            return None;
        }
        Err(error) => {
            tracing::error!(listener = %cell.name, %error, "cannot accept on a bound socket");
            shared.sessions.finish_accepting();
            return None;
        }
    };
    let stop = CancellationToken::new();
    let accepting =
        listener::accept(Arc::clone(&socket), Arc::clone(&cell), Arc::clone(shared), stop.clone());
    drop(tokio::spawn(accepting));
    Some(Open { cell, socket, stop })
}

//! An endpoint: the handle that tests and the demo hold, and the task that owns its port.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc as std_mpsc,
    },
    time::Duration,
};

use tokio::{
    runtime,
    sync::{mpsc, watch},
    time::{self, Instant},
};

use super::{CloudOptions, Fault, Mode, ports::Port, serve};

/// Orders that may wait for an endpoint.
const ORDERS: usize = 16;

/// Longer than the slowest fault takes to come into force on a busy machine.
const PATIENCE: Duration = Duration::from_secs(10);

/// Pause after an accept that failed, so that a shortage of descriptors does not spin.
const SHORTAGE: Duration = Duration::from_millis(10);

/// One server on one port.
#[derive(Clone, Debug)]
pub struct Endpoint {
    shared: Arc<Shared>,
    orders: mpsc::Sender<Order>,
}

/// What the handle, the task and the connections of an endpoint share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) name: String,
    pub(super) mode: Mode,
    address: SocketAddr,
    condition: watch::Sender<Condition>,
    accepted: AtomicU64,
    active: AtomicU64,
    to_upstream: AtomicU64,
    to_client: AtomicU64,
}

/// How an endpoint is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Condition {
    pub(super) fault: Fault,
    base_latency: Duration,
    /// How often established connections were cut; one that was accepted at a smaller count has to go.
    pub(super) cuts: u64,
}

/// A fault that is coming into force.
#[derive(Debug)]
pub(super) struct Waiting(std_mpsc::Receiver<io::Result<Instant>>);

struct Order {
    fault: Fault,
    done: std_mpsc::SyncSender<io::Result<Instant>>,
}

impl Endpoint {
    pub(super) fn start(runtime: &runtime::Handle, name: String, options: CloudOptions) -> io::Result<Self> {
        let port = {
            let _inside = runtime.enter();
            Port::take(options.ip)?
        };
        let condition = Condition { fault: Fault::Healthy, base_latency: options.latency, cuts: 0 };
        let shared = Arc::new(Shared {
            name,
            mode: options.mode,
            address: port.address,
            condition: watch::Sender::new(condition),
            accepted: AtomicU64::new(0),
            active: AtomicU64::new(0),
            to_upstream: AtomicU64::new(0),
            to_client: AtomicU64::new(0),
        });
        let (orders, inbox) = mpsc::channel(ORDERS);
        drop(runtime.spawn(run(port, Arc::clone(&shared), inbox)));
        Ok(Self { shared, orders })
    }

    /// Its name, which [`Mode::NamedEcho`] and [`Mode::Banner`] tell.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// Its address; the port stays the same through every fault.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.shared.address
    }

    /// What is wrong with it.
    #[must_use]
    pub fn fault(&self) -> Fault {
        self.shared.condition.borrow().fault
    }

    /// Puts a fault on it, waits until it is in force, and returns since when it has been.
    ///
    /// # Errors
    /// A socket could not be put into that state, or the lab is gone.
    pub fn set(&self, fault: Fault) -> io::Result<Instant> {
        self.begin(fault)?.wait()
    }

    /// As kill -9.
    ///
    /// # Errors
    /// As [`Endpoint::set`].
    pub fn kill(&self) -> io::Result<Instant> {
        self.set(Fault::Killed)
    }

    /// Heals it, on the same port.
    ///
    /// # Errors
    /// As [`Endpoint::set`].
    pub fn revive(&self) -> io::Result<Instant> {
        self.set(Fault::Healthy)
    }

    /// Connections accepted so far.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.shared.accepted.load(Relaxed)
    }

    /// Connections now.
    #[must_use]
    pub fn active(&self) -> u64 {
        self.shared.active.load(Relaxed)
    }

    /// Bytes it has read and bytes it has written.
    #[must_use]
    pub fn bytes(&self) -> (u64, u64) {
        (self.shared.to_upstream.load(Relaxed), self.shared.to_client.load(Relaxed))
    }

    pub(super) fn begin(&self, fault: Fault) -> io::Result<Waiting> {
        // A place for the answer, so that the endpoint never waits for us.
        let (done, answer) = std_mpsc::sync_channel(1);
        let order = Order { fault, done };
        self.orders.try_send(order).map_err(|error| io::Error::other(format!("lab: {error}")))?;
        Ok(Waiting(answer))
    }
}

impl Waiting {
    pub(super) fn wait(self) -> io::Result<Instant> {
        self.0.recv_timeout(PATIENCE).map_err(|error| io::Error::other(format!("lab: {error}")))?
    }
}

impl Shared {
    pub(super) fn watch(&self) -> watch::Receiver<Condition> {
        self.condition.subscribe()
    }

    pub(super) fn read(&self, bytes: usize) {
        self.to_upstream.fetch_add(bytes as u64, Relaxed);
    }

    pub(super) fn wrote(&self, bytes: usize) {
        self.to_client.fetch_add(bytes as u64, Relaxed);
    }

    pub(super) fn finish(&self) {
        self.active.fetch_sub(1, Relaxed);
    }

    fn set(&self, fault: Fault) {
        self.condition.send_modify(|condition| {
            condition.fault = fault;
            condition.cuts += u64::from(fault.cuts());
        });
    }
}

impl Condition {
    /// Added to what is served now.
    pub(super) fn latency(&self) -> Duration {
        match self.fault {
            Fault::Slow(more) => self.base_latency + more,
            _ => self.base_latency,
        }
    }
}

impl Fault {
    /// True when established connections end with it.
    const fn cuts(self) -> bool {
        matches!(self, Self::Refused | Self::Killed | Self::Reset)
    }

    /// True when bytes stand still.
    pub(super) const fn freezes(self) -> bool {
        matches!(self, Self::Silent | Self::Frozen)
    }
}

/// Serves as long as the lab lives, with or without a handle.
async fn run(mut port: Port, shared: Arc<Shared>, mut orders: mpsc::Receiver<Order>) {
    loop {
        let condition = *shared.condition.borrow();
        tokio::select! {
            biased;
            Some(Order { fault, done }) = orders.recv() => {
                let outcome = apply(&mut port, &shared, fault).await;
                // Nobody waits any more: the fault is in force all the same.
                drop(done.try_send(outcome));
            }
            accepted = port.accept(), if !condition.fault.freezes() => match accepted {
                Ok(Some(stream)) => {
                    shared.accepted.fetch_add(1, Relaxed);
                    shared.active.fetch_add(1, Relaxed);
                    drop(tokio::spawn(serve::connection(stream, Arc::clone(&shared), condition)));
                }
                Ok(None) => {}
                Err(_) => time::sleep(SHORTAGE).await,
            },
            // Frozen, and nobody left to heal it.
            else => std::future::pending().await,
        }
    }
}

async fn apply(port: &mut Port, shared: &Shared, fault: Fault) -> io::Result<Instant> {
    match fault {
        Fault::Refused | Fault::Killed => {
            port.refuse();
            shared.set(fault);
            Ok(Instant::now())
        }
        Fault::Silent => {
            // Bytes first: what was established before must not answer while the queue fills.
            shared.set(fault);
            port.deafen().await
        }
        Fault::Healthy | Fault::Frozen | Fault::Slow(_) | Fault::Reset => {
            let outcome = port.listen();
            shared.set(fault);
            outcome.map(|()| Instant::now())
        }
    }
}

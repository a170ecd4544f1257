//! Fake clouds on loopback, for the demo, the tests and the benches: real TCP servers on a thread of their own, with
//! added latency and faults that are switched while they run. Needs no root and no tool: latency is added in user space
//! (so the kernel's handshake stays as quick as loopback is), and unanswered SYNs come from a full accept queue.

mod endpoint;
pub mod load;
mod ports;
mod serve;

pub use endpoint::Endpoint;

use std::{
    io,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    thread,
    time::Duration,
};

use tokio::{runtime, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::ids::CloudName;

/// A thread that runs fake clouds. Dropping it ends them all.
#[derive(Debug)]
pub struct Lab {
    runtime: runtime::Handle,
    stop: CancellationToken,
    thread: Option<thread::JoinHandle<()>>,
}

/// Endpoints that fail as one.
#[derive(Clone, Debug)]
pub struct Cloud {
    name: CloudName,
    endpoints: Arc<[Endpoint]>,
}

/// What a cloud is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CloudOptions {
    /// How many endpoints.
    pub endpoints: usize,
    /// Their address; the ports are free ones. Distinct clouds may have distinct 127.x.x.x.
    pub ip: IpAddr,
    /// Added before a new connection is served, and to each chunk of an echo.
    pub latency: Duration,
    /// What the endpoints do.
    pub mode: Mode,
}

/// What an endpoint does with a healthy connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Sends back every byte, and ends when the client has ended.
    #[default]
    Echo,
    /// Says its name and a newline first, then as [`Mode::Echo`]: the client learns where it is.
    NamedEcho,
    /// Says its name and a newline, ends its direction, and waits for the client's end.
    Banner,
    /// Reads to the end, then ends.
    Sink,
    /// Sends zeros until the client ends.
    Source,
}

/// What is wrong with an endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    #[default]
    Healthy,
    /// New connections are refused; established ones are reset.
    Refused,
    /// As after kill -9: new connections are refused, established ones are closed by the kernel.
    Killed,
    /// SYNs are unanswered and established connections stand still, as behind a firewall that drops everything. Healed,
    /// they go on.
    Silent,
    /// Connections are established and then stand still, as after kill -STOP. Healed, they go on.
    Frozen,
    /// Serves, with this much more latency.
    Slow(Duration),
    /// Established and new connections are reset.
    Reset,
}

impl Lab {
    /// Starts the thread.
    ///
    /// # Errors
    /// The runtime or the thread cannot be made.
    pub fn start() -> io::Result<Self> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let thread = thread::Builder::new()
            .name("lab".to_owned())
            .spawn(move || runtime.block_on(stopped.cancelled_owned()))?;
        Ok(Self { runtime: handle, stop, thread: Some(thread) })
    }

    /// Adds a cloud of echo endpoints on 127.0.0.1.
    ///
    /// # Errors
    /// A port cannot be bound.
    pub fn cloud(&self, name: &str, endpoints: usize, latency: Duration) -> io::Result<Cloud> {
        self.cloud_with(name, CloudOptions { endpoints, latency, ..CloudOptions::default() })
    }

    /// Adds a cloud.
    ///
    /// # Errors
    /// A port cannot be bound.
    pub fn cloud_with(&self, name: &str, options: CloudOptions) -> io::Result<Cloud> {
        let endpoints = (1..=options.endpoints)
            .map(|number| Endpoint::start(&self.runtime, format!("{name}-{number}"), options))
            .collect::<io::Result<Vec<_>>>()?;
        Ok(Cloud { name: name.into(), endpoints: endpoints.into() })
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            // Fails only if the thread has panicked, and then it has said so.
            drop(thread.join());
        }
    }
}

impl Cloud {
    /// Its name.
    #[must_use]
    pub const fn name(&self) -> &CloudName {
        &self.name
    }

    /// Its endpoints, called NAME-1, NAME-2 and so on.
    #[must_use]
    pub fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    /// Puts a fault on every endpoint at once, waits until it is in force everywhere, and returns since when it has been.
    ///
    /// # Errors
    /// A socket could not be put into that state; the other endpoints have their fault all the same.
    pub fn set(&self, fault: Fault) -> io::Result<Instant> {
        let begun = Instant::now();
        let waiting: Vec<_> = self.endpoints.iter().map(|endpoint| endpoint.begin(fault)).collect();
        let done: Vec<_> = waiting.into_iter().map(|waiting| waiting?.wait()).collect();
        done.into_iter().try_fold(begun, |last, done| Ok(last.max(done?)))
    }

    /// As kill -9 of every endpoint.
    ///
    /// # Errors
    /// As [`Cloud::set`].
    pub fn kill(&self) -> io::Result<Instant> {
        self.set(Fault::Killed)
    }

    /// Heals every endpoint, on the same ports.
    ///
    /// # Errors
    /// As [`Cloud::set`].
    pub fn revive(&self) -> io::Result<Instant> {
        self.set(Fault::Healthy)
    }

    /// Connections accepted by all its endpoints.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.endpoints.iter().map(Endpoint::accepted).sum()
    }

    /// Connections of all its endpoints now.
    #[must_use]
    pub fn active(&self) -> u64 {
        self.endpoints.iter().map(Endpoint::active).sum()
    }
}

impl Default for CloudOptions {
    fn default() -> Self {
        Self {
            endpoints: 1,
            ip: IpAddr::V4(Ipv4Addr::LOCALHOST),
            latency: Duration::ZERO,
            mode: Mode::default(),
        }
    }
}

#[cfg(test)]
mod tests;

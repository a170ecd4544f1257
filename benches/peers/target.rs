//! What stands behind every proxy: one thread that answers, sends or swallows, as the first bytes of each connection
//! ask. One port serves every kind of work, so that a proxy needs one listener.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Context;
use twinspan::lab::load::{self, Serves, TargetOptions};

pub(crate) use load::Ask;

use crate::host;

/// Bytes of a request.
pub(crate) const REQUEST: usize = 128;

/// The running thread; dropping it ends it.
pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    _running: load::Target,
}

impl Target {
    /// Listens on `port` of loopback, on the CPU of the load.
    pub(crate) fn start(port: u16, cpus: host::Cpus) -> anyhow::Result<Self> {
        // Its thread inherits the CPU of this one.
        host::pin(cpus.load)?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let running = load::Target::start(&TargetOptions { address, serves: Serves::Asked, threads: 1 })
            .with_context(|| format!("target cannot listen on {address}"))?;
        Ok(Self { address: running.address(), _running: running })
    }
}

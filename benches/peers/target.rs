//! What stands behind every proxy: one thread that answers, sends or swallows, as the first bytes of each connection
//! ask. One port serves every kind of work, so that a proxy needs one listener.

use std::net::SocketAddr;

use anyhow::Context;
use twinspan::lab::load::{self, TargetOptions};

pub(crate) use load::{Ask, ByHand, Serves};

use crate::host::{Cpus, Crew};

/// Bytes of a request.
pub(crate) const REQUEST: usize = 128;

/// The running thread; dropping it ends it.
pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    running: load::Target,
}

impl Target {
    /// Listens where it is told to, on the CPU of the load.
    pub(crate) fn start(address: SocketAddr, serves: Serves, crew: Crew, cpus: Cpus) -> anyhow::Result<Self> {
        // Its thread inherits the CPUs of this one.
        cpus.go_to_load(crew)?;
        let running = load::Target::start(&TargetOptions { address, serves, threads: 1 })
            .with_context(|| format!("target cannot listen on {address}"))?;
        Ok(Self { address: running.address(), running })
    }

    /// Ends its thread; the load serves in its place.
    pub(crate) fn by_hand(self) -> anyhow::Result<ByHand> {
        self.running.by_hand().context("the target has failed")
    }
}

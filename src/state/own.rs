//! Where this process can be reached: what must not be dialled for a client, as its session would come back.

use std::net::SocketAddr;

use crate::net::Bind;

/// Addresses of ours.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Own {
    /// Listeners, the admin API and telemetry.
    pub binds: Vec<Bind>,
    /// A firewall rule may send connections here that were meant for others, and so any connection of ours.
    pub intercepts: bool,
}

impl Own {
    /// True if who dials `address` from here ends up here.
    #[must_use]
    pub fn is_reached_by(&self, address: SocketAddr) -> bool {
        self.binds.iter().any(|bind| bind.is_reached_by(address))
    }
}

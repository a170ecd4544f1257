//! The admin API and the telemetry listener: two small HTTP servers that show what the control plane knows. They read
//! [`View`] and change nothing, but that the admin API ends single sessions. Telemetry may face the network and says only health and counters; admin stays on
//! loopback or a unix socket and says everything.

mod bind;
mod edge;
mod events;
mod kept;
mod lease;
mod metrics;
mod rates;
mod readiness;
mod routes;
mod server;
mod sessions;
mod status;
#[cfg(test)]
pub(super) mod tests;
mod totals;

pub use bind::{AdminListener, UnixSocket, bind_tcp, bind_unix};
pub use totals::Totals;

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use self::{rates::Sampler, server::Limits};
use super::View;

/// Which of the two servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Everything.
    Admin,
    /// Health and counters.
    Telemetry,
}

/// Serves until `shutdown`, then finishes the answers under way and returns. Must run for as long as the process is to
/// be seen draining.
///
/// # Errors
/// The socket cannot be handed to the runtime.
pub async fn serve(
    listener: AdminListener,
    view: Arc<View>,
    kind: Kind,
    shutdown: CancellationToken,
) -> std::io::Result<()> {
    serve_within(listener, view, kind, Limits::default(), shutdown).await
}

async fn serve_within(
    listener: AdminListener,
    view: Arc<View>,
    kind: Kind,
    limits: Limits,
    shutdown: CancellationToken,
) -> std::io::Result<()> {
    let sampler = Arc::new(Sampler::default());
    let router = routes::router(kind, Arc::clone(&view), Arc::clone(&sampler), listener.address());
    let serving = server::run(listener, router, limits, shutdown);
    match kind {
        Kind::Telemetry => serving.await,
        Kind::Admin => tokio::select! {
            served = serving => served,
            never = sampler.run(view) => match never {},
        },
    }
}

//! Sessions with TLS on one side or both, once the client has said what it must.

use std::{os::fd::AsFd, sync::Arc};

use tokio::io::Interest;

use super::{
    connect::{self, Established},
    entry,
    peer::Peer,
    plain::Plain,
    relay::{Below, Watched, relay_streams},
    session::Books,
    towards,
};
use crate::{
    net,
    state::{Origination, Pool, SessionLimits},
    sys,
    telemetry::End,
};

/// Serves a client with which TLS was agreed on, to the session's end.
pub(super) async fn serve<'w>(
    client: &'w Watched<'w>,
    mut secured: entry::Secured<'w>,
    books: &mut Books,
) -> End {
    loop {
        let tried = books.lost_by();
        let reached = Box::pin(towards::connect(client, books, None, tried)).await;
        let Established { upstream, limits, pool } = match reached {
            Ok(established) => established,
            Err(end) => return end,
        };
        net::set_nodelay(&upstream);
        let carried = carry(client, &mut secured, &upstream, books, (&pool, limits)).await;
        let Some(end) = carried else { continue };
        if end.is_clean() {
            upstream.close();
        }
        return end;
    }
}

/// Carries the session over this connection; `None` when the endpoint has failed before it had any of it.
async fn carry<'w>(
    client: &'w Watched<'w>,
    secured: &mut entry::Secured<'w>,
    upstream: &Peer,
    books: &mut Books,
    (pool, limits): (&Pool, Arc<SessionLimits>),
) -> Option<End> {
    let Ok(other) = sys::readiness(upstream.as_fd(), Interest::READABLE | Interest::WRITABLE) else {
        return Some(connect::EXHAUSTED);
    };
    let below = Below { stream: &mut **secured, socket: client };
    let Some(tls) = &pool.towards.tls else {
        let mut plain = Plain(&other);
        return Some(relay_streams(below, Below { stream: &mut plain, socket: &other }, limits, books).await);
    };
    match towards::secure(&other, books, tls, pool.connect.timeout).await {
        Ok(mut inner) => {
            Some(relay_streams(below, Below { stream: &mut *inner, socket: &other }, limits, books).await)
        }
        Err(end) => {
            books.fail(end);
            None
        }
    }
}

/// Carries the session of a plain client to an endpoint that is spoken to in TLS; `None` when that has failed before it had
/// any of it.
pub(super) async fn originate<'w>(
    client: &'w Watched<'w>,
    upstream: &Peer,
    books: &mut Books,
    (tls, pool, limits): (&Origination, &Pool, Arc<SessionLimits>),
) -> Option<End> {
    net::set_nodelay(upstream);
    let Ok(other) = sys::readiness(upstream.as_fd(), Interest::READABLE | Interest::WRITABLE) else {
        return Some(connect::EXHAUSTED);
    };
    match towards::secure(&other, books, tls, pool.connect.timeout).await {
        Ok(mut inner) => {
            let mut plain = Plain(client);
            let below = Below { stream: &mut plain, socket: client };
            Some(relay_streams(below, Below { stream: &mut *inner, socket: &other }, limits, books).await)
        }
        Err(end) => {
            books.fail(end);
            None
        }
    }
}

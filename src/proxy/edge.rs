//! Sessions with TLS on one side or both, once the client has said what it must.

use std::{os::fd::AsFd, sync::Arc};

use super::{
    connect::{self, Established},
    entry,
    peer::Peer,
    plain::Plain,
    relay::{Below, Outcome, Pace, Watched, relay_streams},
    session::Books,
    towards,
};
use crate::{
    net,
    state::{Pool, SessionLimits},
    sys,
    telemetry::End,
};

/// Serves a client with which TLS was agreed on, to the session's end.
pub(super) async fn serve<'w>(
    client: &'w Watched<'w>,
    mut secured: entry::Secured<'w>,
    books: &mut Books,
) -> End {
    let mut owed = Vec::new();
    loop {
        let tried = books.lost_by();
        let reached = Box::pin(towards::connect(client, books, None, tried)).await;
        let Established { upstream, limits, pool } = match reached {
            Ok(established) => established,
            Err(end) => return end,
        };
        net::set_nodelay(&upstream);
        let taken = std::mem::take(&mut owed);
        match carry(client, &mut secured, &upstream, books, (&pool, limits, taken)).await {
            Carried::Ended(end) => {
                if end.is_clean() {
                    upstream.close();
                }
                return end;
            }
            Carried::Not(bytes) => owed = bytes,
        }
    }
}

/// What has become of a session at an endpoint.
enum Carried {
    Ended(End),
    /// The endpoint has failed before it had any of it; this was taken of the client already.
    Not(Vec<u8>),
}

impl Carried {
    fn of(outcome: Outcome, books: &mut Books) -> Self {
        match outcome {
            Outcome::Ended(end) => Self::Ended(end),
            Outcome::Lost(end, owed) => {
                books.give_up(end, !owed.is_empty());
                Self::Not(owed)
            }
        }
    }
}

/// Carries the session over this connection. `owed` was taken of the client before.
async fn carry<'w>(
    client: &'w Watched<'w>,
    secured: &mut entry::Secured<'w>,
    upstream: &Peer,
    books: &mut Books,
    (pool, limits, owed): (&Pool, Arc<SessionLimits>, Vec<u8>),
) -> Carried {
    let Ok(other) = sys::readiness(upstream.as_fd(), sys::EVERYTHING) else {
        return Carried::Ended(connect::EXHAUSTED);
    };
    let below = Below { stream: &mut **secured, socket: client };
    let Some(tls) = &pool.towards.tls else {
        let mut plain = Plain(&other);
        let over = Below { stream: &mut plain, socket: &other };
        let pace = connect::pace(books, pool);
        let outcome = relay_streams(below, over, (limits, pace), (&mut *books, owed)).await;
        return Carried::of(outcome, books);
    };
    match towards::secure(&other, books, tls, pool).await {
        Ok(mut inner) => {
            let over = Below { stream: &mut *inner, socket: &other };
            let pace = connect::pace(books, pool);
            let outcome = relay_streams(below, over, (limits, pace), (&mut *books, owed)).await;
            Carried::of(outcome, books)
        }
        Err(end) => {
            books.fail(end);
            Carried::Not(owed)
        }
    }
}

/// Carries the session of a plain client that is more than plain beyond: its endpoint is spoken to in TLS, or its bytes are
/// paced. `None` when the endpoint has failed before it had any of it.
pub(super) async fn pass_on<'w>(
    client: &'w Watched<'w>,
    upstream: &Peer,
    books: &mut Books,
    (pool, limits, pace): (&Pool, Arc<SessionLimits>, Pace),
) -> Option<End> {
    net::set_nodelay(upstream);
    let Ok(other) = sys::readiness(upstream.as_fd(), sys::EVERYTHING) else {
        return Some(connect::EXHAUSTED);
    };
    let mut plain = Plain(client);
    let below = Below { stream: &mut plain, socket: client };
    let with = (limits, pace);
    let outcome = match &pool.towards.tls {
        None => {
            let mut plain = Plain(&other);
            let over = Below { stream: &mut plain, socket: &other };
            let owed = books.take_owed();
            relay_streams(below, over, with, (&mut *books, owed)).await
        }
        Some(tls) => match towards::secure(&other, books, tls, pool).await {
            Ok(mut inner) => {
                let over = Below { stream: &mut *inner, socket: &other };
                let owed = books.take_owed();
                relay_streams(below, over, with, (&mut *books, owed)).await
            }
            Err(end) => {
                books.fail(end);
                return None;
            }
        },
    };
    match outcome {
        Outcome::Ended(end) => Some(end),
        Outcome::Lost(end, owed) => {
            books.give_up(end, !owed.is_empty());
            books.passed_on(0, owed.into(), false);
            None
        }
    }
}

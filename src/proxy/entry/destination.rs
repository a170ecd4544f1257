//! What the client asked for, and whether that is ourselves.

use std::{net::SocketAddr, os::fd::AsFd};

use super::ended;
use crate::{
    net::Intercept,
    proxy::{ourselves, session::Books},
    state::{Entry, Listener, Own, Refusal, Target},
    telemetry::{Cause, End, Side, Stage},
};

/// Learns what a firewall rule has kept of it, or the address that the client has come to.
///
/// # Errors
/// The client is this process: such a rule sends our own connections back.
pub(super) fn read(client: impl AsFd, books: &mut Books, entry: &Entry) -> Result<(), End> {
    let Some(asked) = entry.intercept.destination(client) else { return Ok(()) };
    books.tell_more().destination = Some(asked);
    if entry.intercept != Intercept::Off && ourselves::is_client(books.client, asked) {
        books.note().asked_elsewhere = true;
        return Err(refused(books, "a firewall rule sends our own connections back: leave out our user"));
    }
    Ok(())
}

/// Notes whether that is elsewhere: it then stands in the session's line.
pub(super) fn compare(client: impl AsFd, books: &mut Books) {
    let (Some(asked), listener) = (books.told().destination, books.listener.address) else { return };
    let is_elsewhere = match listener.ip().is_unspecified() {
        // A wildcard has as many addresses as this machine. Where nothing was translated, that is where the client is; but
        // TPROXY translates nothing.
        true => {
            asked.port() != listener.port()
                || Intercept::Off.destination(client).is_none_or(|here| differ(here, asked))
        }
        false => differ(listener, asked),
    };
    if is_elsewhere {
        books.note().asked_elsewhere = true;
    }
}

/// Finds out whether the session has somewhere to go.
///
/// # Errors
/// No pool takes it, its client may not use the route that leads there, or it would come back to this process.
pub(super) fn lead(books: &mut Books) -> Result<(), End> {
    let snapshot = books.shared.snapshot();
    match snapshot.listener(&books.listener) {
        Some(listener) => aim(books, (&snapshot.own, listener)).map(|_| ()),
        None => Err(lost(books)),
    }
}

/// Where this listener sends the session.
///
/// # Errors
/// As for [`lead`].
pub(in crate::proxy) fn aim<'l>(
    books: &mut Books,
    (own, listener): (&Own, &'l Listener),
) -> Result<&'l Target, End> {
    match listener.find(books.client.ip(), books.told()) {
        (Target::Refuse, true) => Err(lost(books)),
        (_, false) => Err(End { stage: Stage::Route, ..books.refuse(Refusal::Denied) }),
        (target @ Target::Pool(_), true) => Ok(target),
        (target @ Target::AsAsked(_), true) => {
            let asked = books.told().destination;
            if asked.is_some_and(|address| own.is_reached_by(address)) {
                return Err(refused(books, "the client asks for an address of this proxy itself"));
            }
            Ok(target)
        }
    }
}

fn lost(books: &Books) -> End {
    books.listener.refusals.count("no_route");
    NO_ROUTE
}

const NO_ROUTE: End = ended(Side::Proxy, Stage::Route, Cause::NoRoute);

fn refused(books: &mut Books, why: &str) -> End {
    books.turn_away("loop", why.into());
    NO_ROUTE
}

fn differ(a: SocketAddr, b: SocketAddr) -> bool {
    (a.ip().to_canonical(), a.port()) != (b.ip().to_canonical(), b.port())
}

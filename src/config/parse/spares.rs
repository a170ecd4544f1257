//! Spare connections that no session could be given.

use std::ops::Range;

use toml::Spanned;

use super::{
    super::{
        Replay, defaults,
        file::{self, File},
        problem::{Code, Problem},
        words::{ProxyInWord, ProxyOutWord},
    },
    Build, place,
};
use crate::net::Intercept;

/// Why sessions that need more than a connection find no spares.
const OUTSIDE: &str = "the engine, which keeps the spares, does not begin such sessions";

/// A key that keeps sessions from spares: how it is written, where, and why it does.
type Cause = (&'static str, Option<Range<usize>>, &'static str);

impl Build<'_> {
    /// Tells of spares that nobody would keep.
    pub(super) fn preconnects(&mut self, file: &File, tables: &[Spanned<file::Pool>]) {
        let engine = file.engine.get().copied().unwrap_or(defaults::ENGINE);
        let asked = |pool: &&file::Pool| pool.preconnect.get().is_some_and(|count| *count > 0);
        for pool in tables.iter().map(Spanned::get_ref).filter(asked) {
            let at = place(pool.preconnect.span());
            let causes = if engine { causes_in(pool) } else { Vec::new() };
            match (engine, causes.as_slice()) {
                (false, _) => self.tell(
                    Problem::at(Code::NoEffect, at, "`preconnect` with `engine = false`")
                        .label("no effect: only the engine keeps spare connections")
                        .hint("remove one of the two".to_owned()),
                ),
                (true, [(_, first, why), ..]) => {
                    let keys: Vec<_> = causes.iter().map(|(key, ..)| format!("`{key}`")).collect();
                    let keys = keys.join(", ");
                    self.tell(
                        Problem::at(Code::NoEffect, at, format!("`preconnect` with {keys}"))
                            .label(format!("no effect: {why}"))
                            .hint(format!("remove `preconnect`, or {keys}"))
                            .also(place(first.clone()), "no session of this pool is given a spare"),
                    );
                }
                (true, []) => self.only_slow_listeners(file, pool),
            }
        }
    }

    /// Tells where no listener of the pool has sessions that could be given a spare.
    fn only_slow_listeners(&mut self, file: &File, pool: &file::Pool) {
        let Some(name) = pool.name.get().map(|name| name.0.as_str()) else { return };
        let listeners = file.listener.get().map(|all| all.0.as_slice()).unwrap_or_default();
        let mut causes = Vec::new();
        for listener in listeners.iter().map(Spanned::get_ref).filter(|listener| leads_to(listener, name)) {
            match slow(listener) {
                Some(cause) => causes.push(cause),
                None => return,
            }
        }
        // One that was lost may be the one that is not slow; and that nobody uses the pool is told elsewhere.
        let Some((key, first)) = causes.into_iter().next().filter(|_| !self.lost("listener")) else { return };
        let what = format!("`preconnect` where every listener of the pool has `{key}` or the like");
        self.tell(
            Problem::at(Code::NoEffect, place(pool.preconnect.span()), what)
                .label(format!("no effect: {OUTSIDE}"))
                .hint("remove `preconnect`".to_owned())
                .also(place(first), "sessions of this listener need more than a connection"),
        );
    }
}

/// What of a pool's own keys keeps its sessions from spares.
fn causes_in(pool: &file::Pool) -> Vec<Cause> {
    let header = pool.proxy_header.get().is_some_and(|word| word.0 != ProxyOutWord::Off);
    let replay = pool.replay.get().is_some_and(|word| word.0 != Replay::Off);
    let bandwidth = pool.bandwidth.get().is_some_and(|count| count.0.is_some());
    let own = pool.client_source.get() == Some(&true);
    let limited = pool.max_endpoint_sessions.get().is_some();
    [
        (own, ("client_source", pool.client_source.span(), "no client is known before it comes")),
        (
            limited,
            (
                "max_endpoint_sessions",
                pool.max_endpoint_sessions.span(),
                "a spare would take a session's place",
            ),
        ),
        (pool.tls.get().is_some(), ("[pool.tls]", pool.tls.span(), OUTSIDE)),
        (header, ("proxy_header", pool.proxy_header.span(), OUTSIDE)),
        (bandwidth, ("bandwidth", pool.bandwidth.span(), OUTSIDE)),
        (
            pool.first_byte_timeout.get().is_some(),
            ("first_byte_timeout", pool.first_byte_timeout.span(), OUTSIDE),
        ),
        (replay, ("replay", pool.replay.span(), OUTSIDE)),
    ]
    .into_iter()
    .filter_map(|(given, cause)| given.then_some(cause))
    .collect()
}

fn leads_to(listener: &file::Listener, pool: &str) -> bool {
    let routes = listener.route.get().map(|all| all.0.as_slice()).unwrap_or_default();
    let mut named = routes.iter().map(|route| &route.get_ref().pool).chain([&listener.pool]);
    named.any(|key| key.get().is_some_and(|name| name.0 == pool))
}

/// The key by which every session of a listener needs more than a ClientHello before it has a pool, or more than a plain
/// relay after that.
fn slow(listener: &file::Listener) -> Option<(&'static str, Option<Range<usize>>)> {
    let header = listener.proxy_header.get().is_some_and(|word| word.0 != ProxyInWord::Off);
    let intercepts = listener.intercept.get().is_some_and(|word| word.0 != Intercept::Off);
    let bandwidth = listener.session_bandwidth.get().is_some_and(|count| count.0.is_some());
    [
        (listener.tls.get().is_some(), ("[listener.tls]", listener.tls.span())),
        (header, ("proxy_header", listener.proxy_header.span())),
        (intercepts, ("intercept", listener.intercept.span())),
        (bandwidth, ("session_bandwidth", listener.session_bandwidth.span())),
    ]
    .into_iter()
    .find_map(|(given, cause)| given.then_some(cause))
}

//! Listeners: each with a pool that exists and times that can take effect.

use std::{
    collections::{HashMap, HashSet},
    ops::Range,
};

use toml::Spanned;

use super::{
    super::{
        Entry, Listener, Target, defaults,
        file::{self, File},
        problem::{Code, Problem, similar},
    },
    Build, place,
    pools::NameSpan,
    sockets,
};
use crate::{ids::ListenerName, net::Bind};

/// The pools of a file: where the name of each stands.
type Pools<'a> = HashMap<&'a str, Range<usize>>;

impl Build<'_> {
    /// `None` only where a problem was told.
    pub(super) fn listeners(&mut self, file: &File) -> Option<Vec<Listener>> {
        let tables = file.listener.get().map(|all| all.0.as_slice()).unwrap_or_default();
        let pool_tables = file.pool.get().map(|all| all.0.as_slice()).unwrap_or_default();
        let pools: Pools<'_> = pool_tables
            .iter()
            .filter_map(|table| Some((table.get_ref().name.get()?.0.as_str(), table.get_ref().name.span()?)))
            .collect();
        // A pool whose name could not be read may be the one that a listener means.
        let all_named = pool_tables.iter().all(|table| table.get_ref().name.get().is_some());
        let certain = all_named && !self.lost("pool");
        let mut names = HashMap::new();
        let mut used = HashSet::new();
        for table in tables {
            let listener = table.get_ref();
            self.unique("listener", name(listener), table, &mut names);
            self.effects(listener);
            self.congestion_here(&listener.congestion);
            let routes = listener.route.get().map(|all| all.0.as_slice()).unwrap_or_default();
            let named = routes.iter().map(|route| &route.get_ref().pool);
            for key in named.chain([&listener.pool]) {
                let Some(pool) = key.get() else { continue };
                used.insert(pool.0.as_str());
                if certain && !pools.contains_key(pool.0.as_str()) {
                    self.undefined_pool(&pool.0, key.span(), &pools);
                }
            }
        }
        self.unused_pools(pools, &used);
        if tables.is_empty() && !self.lost("listener") {
            self.tell(
                Problem::at(Code::NoListener, 0..0, "there is no listener: nothing is accepted")
                    .hint("add a [[listener]] with `bind` and `pool`".to_owned()),
            );
        }
        let listeners: Vec<Option<Listener>> = tables.iter().map(|table| self.listener(table)).collect();
        listeners.into_iter().collect()
    }

    fn listener(&mut self, table: &Spanned<file::Listener>) -> Option<Listener> {
        let entry = self.entry(table);
        let target = self.target(table);
        make_listener(table.get_ref(), target?, entry?)
    }

    fn undefined_pool(&mut self, pool: &str, at: Option<Range<usize>>, pools: &Pools<'_>) {
        let what = format!("pool `{pool}` is not defined");
        let problem = Problem::at(Code::UndefinedPool, place(at), what).label("no [[pool]] has this name");
        let similar = similar(pool, pools.keys().copied());
        self.tell(match similar.and_then(|name| pools.get_key_value(name)) {
            Some((name, defined)) => {
                problem.hint(format!("did you mean `{name}`?")).also(defined.clone(), "a similar pool")
            }
            None => problem.hint(format!("add a [[pool]] with name = \"{pool}\"")),
        });
    }

    fn unused_pools(&mut self, pools: Pools<'_>, used: &HashSet<&str>) {
        for (name, at) in pools.into_iter().filter(|(name, _)| !used.contains(name)) {
            self.tell(
                Problem::at(Code::UnusedPool, at, format!("no listener uses pool `{name}`"))
                    .label("not used"),
            );
        }
    }

    /// Settings that cannot do anything.
    fn effects(&mut self, listener: &file::Listener) {
        let idle = listener.idle_timeout.get().map(|time| time.0);
        let life = listener.max_lifetime.get().map(|time| time.0);
        if let Some((idle, life)) = idle.zip(life).filter(|(idle, life)| life <= idle) {
            let what = "`max_lifetime` ends every session before `idle_timeout` can";
            self.tell(
                Problem::at(Code::NoEffect, place(listener.max_lifetime.span()), what)
                    .label(format!("{life:?}, not longer than {idle:?}"))
                    .also(place(listener.idle_timeout.span()), "no effect"),
            );
        }
        let v4 = listener.bind.get().is_some_and(|bind| bind.0.0.ip().to_canonical().is_ipv4());
        if v4 && listener.only_v6.get() == Some(&true) {
            self.tell(
                Problem::at(Code::NoEffect, place(listener.only_v6.span()), "`only_v6` on an IPv4 address")
                    .label("no effect"),
            );
        }
    }
}

impl NameSpan for file::Listener {
    fn name_span(&self) -> Option<Range<usize>> {
        self.name.span().or_else(|| self.bind.span())
    }
}

/// The name, or what stands for it.
pub(super) fn name(listener: &file::Listener) -> Option<&str> {
    let given = listener.name.get().map(|name| name.0.as_str());
    given.or_else(|| listener.bind.get().map(|bind| bind.0.1.as_str()))
}

/// Where it accepts.
pub(super) fn bind(listener: &file::Listener) -> Option<Bind> {
    let address = listener.bind.get()?.0.0;
    // The kernel refuses an IPv4 address in IPv6 clothes on a socket of IPv6 alone.
    let v6 = address.ip().to_canonical().is_ipv6();
    let only_v6 = v6 && listener.only_v6.get().copied().unwrap_or(defaults::ONLY_V6);
    Some(Bind { address, only_v6 })
}

fn make_listener(listener: &file::Listener, target: Target, entry: Entry) -> Option<Listener> {
    Some(Listener {
        name: ListenerName::from(name(listener)?),
        bind: bind(listener)?,
        target,
        entry,
        idle_timeout: listener.idle_timeout.get().map_or(defaults::IDLE_TIMEOUT, |time| time.0),
        half_close_timeout: listener
            .half_close_timeout
            .get()
            .map_or(defaults::HALF_CLOSE_TIMEOUT, |time| time.0),
        max_lifetime: listener.max_lifetime.get().map(|time| time.0),
        backlog: listener.backlog.get().copied().unwrap_or(defaults::BACKLOG),
        keepalive: listener.keepalive.get().map_or(defaults::KEEPALIVE, sockets::keepalive),
        user_timeout: listener.user_timeout.get().map_or(defaults::USER_TIMEOUT, |time| time.0),
        fast_open: listener.fast_open.get().copied(),
        tuning: sockets::of_listener(listener),
    })
}

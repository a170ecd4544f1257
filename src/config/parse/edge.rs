//! What comes before a session has a pool: PROXY headers, routes, interception, and who may come in; and what endpoints
//! are given besides.

use std::ops::Range;

use ipnet::IpNet;
use toml::Spanned;

use super::{
    super::{
        Access, Admission, Entry, EntryTimes, Intercept, ProxyIn, ProxyOut, Route, Target, Tlv, Towards,
        defaults, file,
        keys::{Items, Key},
        problem::{Code, Problem},
        values::{CountText, NetText, TlvText},
        words::{ProxyInWord, ProxyOutWord},
    },
    Build, place,
};
use crate::ids::PoolName;

/// The least and the most that a ClientHello may be given, in bytes: four handshake messages are the most that rustls reads.
const HELLO: (u32, u32) = (4 << 10, 64 << 10);

impl Build<'_> {
    /// What comes before the pool. `None` only where a problem was told.
    pub(super) fn entry(&mut self, table: &Spanned<file::Listener>) -> Option<Entry> {
        let listener = table.get_ref();
        let intercept = listener.intercept.get().map_or(Intercept::Off, |word| word.0);
        let proxy_header = self.proxy_in(listener);
        let tls = listener.tls.get().map(|_| self.listener_tls(listener));
        let routes = listener.route.get().map(|all| all.0.as_slice()).unwrap_or_default();
        let routes: Vec<Option<Route>> = routes.iter().map(|route| self.route(route, listener)).collect();
        let hello = listener.hello_bytes.get().map_or(defaults::HELLO_BYTES, |size| size.0);
        if !(HELLO.0..=HELLO.1).contains(&hello) {
            self.tell(
                Problem::at(
                    Code::OutOfRange,
                    place(listener.hello_bytes.span()),
                    "`hello_bytes` is above 64KiB",
                )
                .label("no ClientHello is as long")
                .hint("write \"64KiB\" or less".to_owned()),
            );
        }
        let entry = Entry {
            proxy_header: proxy_header?,
            tls: match tls {
                Some(tls) => Some(tls?),
                None => None,
            },
            routes: routes.into_iter().collect::<Option<_>>()?,
            intercept,
            access: access(&listener.allow, &listener.deny),
            admission: Admission {
                sessions: listener.max_sessions.get().copied(),
                rate: listener.max_rate.get().copied(),
                source_sessions: listener.max_source_sessions.get().copied(),
                source_rate: listener.max_source_rate.get().copied(),
                bandwidth: count(&listener.session_bandwidth),
            },
            times: EntryTimes {
                header: listener.header_timeout.get().map_or(defaults::HEADER_TIMEOUT, |time| time.0),
                handshake: listener
                    .handshake_timeout
                    .get()
                    .map_or(defaults::HANDSHAKE_TIMEOUT, |time| time.0),
                hello_bytes: hello,
                at_once: listener.max_handshakes.get().copied().unwrap_or(defaults::MAX_HANDSHAKES),
            },
        };
        if entry.proxy_header == ProxyIn::Off {
            self.idle(
                &listener.header_timeout,
                "`header_timeout` without `proxy_header`",
                "no header is read",
            );
        }
        Some(entry)
    }

    /// Where sessions go that no route is for.
    pub(super) fn target(&mut self, table: &Spanned<file::Listener>) -> Option<Target> {
        let listener = table.get_ref();
        let as_asked = listener.as_asked.get() == Some(&true);
        let lost =
            self.sifted.lost(table.span().start, "pool") || self.sifted.lost(table.span().start, "route");
        match (listener.pool.get(), as_asked) {
            (Some(_), true) => {
                self.two_targets(listener.as_asked.span(), "a listener", listener.pool.span());
                None
            }
            (Some(pool), false) => Some(Target::Pool(PoolName::from(pool.0.as_str()))),
            (None, true) => {
                self.knows_destination(listener, listener.as_asked.span());
                Some(Target::AsAsked)
            }
            (None, false) if listener.route.get().is_some() => Some(Target::Refuse),
            (None, false) => {
                if !lost {
                    self.tell(
                        Problem::at(Code::MissingKey, table.span(), "`pool` is missing in [[listener]]")
                            .hint("add `pool = \"web\"`, or routes".to_owned()),
                    );
                }
                None
            }
        }
    }

    fn route(&mut self, table: &Spanned<file::Route>, listener: &file::Listener) -> Option<Route> {
        let route = table.get_ref();
        let target = self.route_target(table, listener);
        let tlv = route.tlv.get().map(tlvs).unwrap_or_default();
        let made = Route {
            sni: list(&route.sni, |name| name.0.clone()),
            alpn: list(&route.alpn, |protocol| protocol.0.clone()),
            source: list(&route.source, |network| network.0),
            destination: list(&route.destination, |destination| destination.0),
            tlv,
            target: target?,
            access: access(&route.allow, &route.deny),
        };
        let any = made.sni.is_empty()
            && made.alpn.is_empty()
            && made.source.is_empty()
            && made.destination.is_empty()
            && made.tlv.is_empty();
        if any
            && !["sni", "alpn", "source", "destination", "tlv"]
                .iter()
                .any(|key| self.sifted.lost(table.span().start, key))
        {
            self.tell(
                Problem::at(Code::Route, table.span(), "a route without a condition")
                    .label("every session would fit")
                    .hint(
                        "add `sni`, `alpn`, `source`, `destination` or `tlv`, or give the listener the pool"
                            .to_owned(),
                    ),
            );
            return None;
        }
        if !made.tlv.is_empty() && listener.proxy_header.get().is_none_or(|word| word.0 == ProxyInWord::Off) {
            self.idle(&route.tlv, "`tlv` without `proxy_header`", "no session has any");
        }
        Some(made)
    }

    fn route_target(&mut self, table: &Spanned<file::Route>, listener: &file::Listener) -> Option<Target> {
        let route = table.get_ref();
        let as_asked = route.as_asked.get() == Some(&true);
        let refuse = route.refuse.get() == Some(&true);
        match (route.pool.get(), as_asked, refuse) {
            (Some(pool), false, false) => Some(Target::Pool(PoolName::from(pool.0.as_str()))),
            (None, false, true) => Some(Target::Refuse),
            (None, true, false) => {
                self.knows_destination(listener, route.as_asked.span());
                Some(Target::AsAsked)
            }
            (None, false, false) => {
                if !self.sifted.lost(table.span().start, "pool") {
                    self.tell(
                        Problem::at(Code::Route, table.span(), "a route that leads nowhere")
                            .hint("add `pool`, `as_asked = true` or `refuse = true`".to_owned()),
                    );
                }
                None
            }
            _ => {
                let second = if refuse { route.refuse.span() } else { route.as_asked.span() };
                let first = route.pool.span().or_else(|| route.as_asked.span());
                self.two_targets(second, "a route", first);
                None
            }
        }
    }

    fn two_targets(&mut self, second: Option<Range<usize>>, what: &str, first: Option<Range<usize>>) {
        self.tell(
            Problem::at(Code::Route, place(second), format!("{what} that leads to two places"))
                .label("the second one")
                .hint("keep one of `pool`, `as_asked` and `refuse`".to_owned())
                .also(place(first), "the first one"),
        );
    }

    /// Tells where nothing says what a client asked for.
    fn knows_destination(&mut self, listener: &file::Listener, at: Option<Range<usize>>) {
        let intercept = listener.intercept.get().map_or(Intercept::Off, |word| word.0);
        let header = listener.proxy_header.get().map_or(ProxyInWord::Off, |word| word.0);
        if intercept == Intercept::Off && header == ProxyInWord::Off {
            self.tell(
                Problem::at(Code::Route, place(at), "`as_asked` where nothing says what a client asked for")
                    .label("would connect to this listener itself")
                    .hint("add `intercept = \"redirect\"` or \"tproxy\", or `proxy_header`".to_owned()),
            );
        }
    }

    fn proxy_in(&mut self, listener: &file::Listener) -> Option<ProxyIn> {
        let from = list(&listener.proxy_header_from, |network| network.0);
        match listener.proxy_header.get().map_or(ProxyInWord::Off, |word| word.0) {
            ProxyInWord::Off => {
                self.idle(
                    &listener.proxy_header_from,
                    "`proxy_header_from` without `proxy_header`",
                    "no header is read",
                );
                Some(ProxyIn::Off)
            }
            ProxyInWord::Required => Some(ProxyIn::Required(from)),
            ProxyInWord::Optional if !from.is_empty() => Some(ProxyIn::Optional(from)),
            ProxyInWord::Optional => {
                self.tell(
                    Problem::at(
                        Code::Edge,
                        place(listener.proxy_header.span()),
                        "an optional PROXY header that anybody may send",
                    )
                    .label("every client could claim every address")
                    .hint("add `proxy_header_from` with the networks of your balancers".to_owned()),
                );
                None
            }
        }
    }

    /// What endpoints are given. `None` only where a problem was told.
    pub(super) fn towards(&mut self, pool: &file::Pool) -> Option<Towards> {
        let tls = pool.tls.get().map(|table| self.pool_tls(table));
        let client_source = pool.client_source.get() == Some(&true);
        let header = match pool.proxy_header.get().map_or(ProxyOutWord::Off, |word| word.0) {
            ProxyOutWord::Off => None,
            ProxyOutWord::V1 => Some(ProxyOut::V1),
            ProxyOutWord::V2 => Some(ProxyOut::V2),
        };
        Some(Towards {
            tls: match tls {
                Some(tls) => Some(tls?),
                None => None,
            },
            proxy_header: header,
            client_source,
            endpoint_sessions: pool.max_endpoint_sessions.get().copied(),
            bandwidth: count(&pool.bandwidth),
        })
    }
}

/// What a list holds.
pub(super) fn list<T, U>(key: &Key<Items<T>>, value: impl Fn(&T) -> U) -> Vec<U> {
    key.get().into_iter().flat_map(|items| &items.0).map(|item| value(item.get_ref())).collect()
}

fn access(allow: &Key<Items<NetText>>, deny: &Key<Items<NetText>>) -> Access {
    let networks = |key: &Key<Items<NetText>>| -> Vec<IpNet> { list(key, |network| network.0) };
    Access { allow: networks(allow), deny: networks(deny) }
}

fn count(key: &Key<CountText>) -> Option<u64> {
    key.get().and_then(|count| count.0)
}

fn tlvs(table: &file::TlvTable) -> Vec<(Tlv, Vec<String>)> {
    let values = |key: &Key<Items<TlvText>>| list(key, |value| value.0.clone());
    [
        (Tlv::Authority, values(&table.authority)),
        (Tlv::Alpn, values(&table.alpn)),
        (Tlv::UniqueId, values(&table.unique_id)),
        (Tlv::Netns, values(&table.netns)),
        (Tlv::AwsVpcEndpoint, values(&table.aws_vpc_endpoint)),
        (Tlv::GcpPscConnection, values(&table.gcp_psc_connection)),
        (Tlv::AzurePrivateLink, values(&table.azure_private_link)),
    ]
    .into_iter()
    .filter(|(_, values)| !values.is_empty())
    .collect()
}

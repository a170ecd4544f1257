//! Addresses: no two sockets on one, and no endpoint that is this proxy itself.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    ops::Range,
};

use super::{
    super::{
        Address, Admin, AdminBind, Telemetry,
        file::File,
        problem::{Code, Problem},
    },
    Build, listeners, place,
};
use crate::net::{Bind, is_this_machine};

/// A socket that this proxy would bind.
struct Own {
    bind: Bind,
    what: String,
    /// Where that is written; `None`: it is a default.
    span: Option<Range<usize>>,
}

/// Own sockets, so that the ones that could overlap an address are found without looking at all.
#[derive(Default)]
struct Owned {
    all: Vec<Own>,
    /// By port and address as it is on the wire. Port 0 is never in here.
    exact: HashMap<(u16, IpAddr), usize>,
    by_port: HashMap<u16, Port>,
}

#[derive(Default)]
struct Port {
    all: Vec<usize>,
    /// Those of them that take in other addresses.
    wildcards: Vec<usize>,
}

impl Build<'_> {
    /// Tells of sockets that cannot be bound together, and of endpoints that are one of them.
    pub(super) fn addresses(&mut self, file: &File, admin: &Admin, telemetry: &Telemetry) {
        let mut owned = Owned::default();
        if let (AdminBind::Tcp(address), false) = (&admin.bind, self.lost("admin")) {
            let span = file.admin.get().and_then(|admin| admin.bind.span());
            self.own(&mut owned, Own { bind: plain(*address), what: "the admin API".to_owned(), span });
        }
        if let (Some(address), false) = (telemetry.bind, self.lost("telemetry")) {
            let span = file.telemetry.get().and_then(|telemetry| telemetry.bind.span());
            self.own(&mut owned, Own { bind: plain(address), what: "telemetry".to_owned(), span });
        }
        for listener in file.listener.get().into_iter().flat_map(|all| &all.0) {
            let listener = listener.get_ref();
            if let (Some(bind), Some(name)) = (listeners::bind(listener), listeners::name(listener)) {
                let what = format!("listener `{name}`");
                self.own(&mut owned, Own { bind, what, span: listener.bind.span() });
            }
        }
        let mut local = HashMap::new();
        let pools = file.pool.get().into_iter().flat_map(|all| &all.0);
        for endpoint in pools.filter_map(|pool| pool.get_ref().endpoint.get()).flat_map(|all| &all.0) {
            let key = &endpoint.get_ref().address;
            if let (Some(address), Some(span)) = (key.get(), key.span())
                && let Some(own) = owned.reached_by(&address.0, &mut local)
            {
                self.loops(own, span);
            }
        }
    }

    /// Tells of link-local addresses that are on no link in particular, which the kernel can neither bind nor connect
    /// (RFC 4007, section 11).
    pub(super) fn links(&mut self, file: &File) {
        for listener in file.listener.get().into_iter().flat_map(|all| &all.0) {
            let listener = listener.get_ref();
            let bind =
                listener.bind.get().map(|bind| bind.0.0).filter(|_| listener.interface.get().is_none());
            self.link("bind", bind, listener.bind.span(), "");
        }
        let telemetry = file.telemetry.get().map(|telemetry| &telemetry.bind);
        if let Some((address, at)) = telemetry.and_then(|key| Some((key.get()?.0, key.span()))) {
            self.link("bind", address, at, "");
        }
        let mut on_a_link = HashSet::new();
        for (name, cloud) in file.cloud.get().into_iter().flat_map(|clouds| &clouds.0) {
            let (name, cloud) = (name.get_ref().as_str(), cloud.get_ref());
            if cloud.interface.get().is_some() {
                on_a_link.insert(name);
                continue;
            }
            for source in cloud.source.get().into_iter().flat_map(|sources| &sources.0) {
                self.link("source", Some(SocketAddr::new(source.get_ref().0, 0)), Some(source.span()), name);
            }
        }
        let pools = file.pool.get().into_iter().flat_map(|all| &all.0);
        for endpoint in pools.filter_map(|pool| pool.get_ref().endpoint.get()).flat_map(|all| &all.0) {
            let endpoint = endpoint.get_ref();
            let cloud = endpoint.cloud.get().map(|cloud| cloud.0.as_str());
            if let (Some(Address::Socket(address)), Some(cloud)) = (
                endpoint.address.get().map(|address| &address.0),
                cloud.filter(|name| !on_a_link.contains(name)),
            ) {
                self.link("address", Some(*address), endpoint.address.span(), cloud);
            }
        }
    }

    fn link(&mut self, key: &str, address: Option<SocketAddr>, at: Option<Range<usize>>, cloud: &str) {
        let Some(SocketAddr::V6(address)) = address else { return };
        let (ip, port) = (address.ip(), address.port());
        if !ip.is_unicast_link_local() || address.scope_id() != 0 {
            return;
        }
        let hint = match (key, cloud) {
            ("source", cloud) => format!("set `interface` in [cloud.{cloud}]"),
            (_, "") => format!("write \"[{ip}%2]:{port}\" with the number that `ip link` shows"),
            (_, cloud) => format!(
                "write \"[{ip}%2]:{port}\" with the number that `ip link` shows, or set `interface` in [cloud.{cloud}]"
            ),
        };
        let what = format!("bad `{key}`: `{ip}` is on each link another machine");
        self.tell(Problem::at(Code::BadValue, place(at), what).label("on which link?").hint(hint));
    }

    fn own(&mut self, owned: &mut Owned, own: Own) {
        if let Some(other) = owned.overlapping(&own.bind) {
            let what = format!("{} and {} cannot both have {}", own.what, other.what, own.bind);
            let problem = Problem::at(Code::AddressTaken, place(own.span.clone()), what);
            self.tell(match &other.span {
                Some(span) => problem
                    .label(format!("overlaps {}", other.bind))
                    .hint("give one of them another port".to_owned())
                    .also(span.clone(), other.what.clone()),
                None => problem.label("taken by a default").hint(format!(
                    "use another port, or move {} (`bind` in [{}])",
                    other.what,
                    if other.what == "telemetry" { "telemetry" } else { "admin" },
                )),
            });
        }
        owned.add(own);
    }

    fn loops(&mut self, own: &Own, at: Range<usize>) {
        let problem = Problem::at(Code::Loop, at, format!("this endpoint is {} of this proxy", own.what))
            .label("would connect to itself")
            .hint("give the address of the service behind the proxy".to_owned());
        self.tell(match &own.span {
            Some(span) => problem.also(span.clone(), format!("accepts on {}", own.bind)),
            None => problem,
        });
    }
}

impl Owned {
    fn add(&mut self, own: Own) {
        let (port, ip) = (own.bind.address.port(), own.bind.address.ip().to_canonical());
        if port == 0 {
            return;
        }
        let index = self.all.len();
        self.exact.entry((port, ip)).or_insert(index);
        let here = self.by_port.entry(port).or_default();
        here.all.push(index);
        // One for each family says everything; more would only be searched.
        if ip.is_unspecified() && here.wildcards.len() < 4 {
            here.wildcards.push(index);
        }
        self.all.push(own);
    }

    /// An own socket that cannot be bound together with `bind`.
    fn overlapping(&self, bind: &Bind) -> Option<&Own> {
        let (port, ip) = (bind.address.port(), bind.address.ip().to_canonical());
        let here = self.by_port.get(&port)?;
        let same = self.exact.get(&(port, ip)).copied();
        let mut candidates = same.iter().chain(&here.wildcards).filter_map(|index| self.all.get(*index));
        let found = candidates.find(|own| own.bind.overlaps(bind));
        // A wildcard may overlap anything that came before it.
        let before = if ip.is_unspecified() { here.all.as_slice() } else { &[] };
        found.or_else(|| {
            before.iter().filter_map(|index| self.all.get(*index)).find(|own| own.bind.overlaps(bind))
        })
    }

    /// The own socket that answers at `address`, if one does.
    fn reached_by(&self, address: &Address, local: &mut HashMap<IpAddr, bool>) -> Option<&Own> {
        match address {
            Address::Socket(socket) => self.answers(socket.port(), socket.ip().to_canonical(), local),
            Address::Name { host, port } if is_localhost(host) => {
                let loopbacks = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
                loopbacks.into_iter().find_map(|ip| self.answers(*port, ip, local))
            }
            Address::Name { .. } => None,
        }
    }

    fn answers(&self, port: u16, ip: IpAddr, local: &mut HashMap<IpAddr, bool>) -> Option<&Own> {
        let here = self.by_port.get(&port)?;
        if let Some(own) = self.exact.get(&(port, ip)).and_then(|index| self.all.get(*index)) {
            return Some(own);
        }
        let wildcard =
            here.wildcards.iter().filter_map(|index| self.all.get(*index)).find(|own| own.bind.covers(ip));
        wildcard.filter(|_| ip.is_loopback() || *local.entry(ip).or_insert_with(|| is_this_machine(ip)))
    }
}

fn plain(address: SocketAddr) -> Bind {
    Bind { address, only_v6: false }
}

fn is_localhost(host: &str) -> bool {
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    host == "localhost" || host.ends_with(".localhost")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_local_address_is_on_one_link() {
        let lines = |bind: &str, cloud: &str, endpoint: &str| -> Vec<usize> {
            let text = format!(
                "version = 1\n[cloud.a]\n{cloud}\n[[pool]]\nname = \"p\"\n[pool.health.tcp]\n[[pool.endpoint]]\n\
                 address = \"{endpoint}:1\"\ncloud = \"a\"\n[[listener]]\n{bind}\npool = \"p\"\n"
            );
            match super::super::parse(&text, "x.toml", None) {
                Ok(_) => Vec::new(),
                Err(refused) => {
                    let problems = refused.0.problems().iter();
                    let of = |problem: &Problem| {
                        assert_eq!(problem.code, Code::BadValue, "{problem:?}");
                        refused.0.position(problem.span.as_ref().unwrap().start).0
                    };
                    problems.map(of).collect()
                }
            }
        };
        let (bind, free) = ("bind = \"127.0.0.1:0\"", "127.0.0.1");
        assert_eq!(lines(bind, "", free), [0_usize; 0]);
        assert_eq!(lines("bind = \"[fe80::1]:1\"", "", free), [11]);
        assert_eq!(lines("bind = \"[fe80::1%1]:1\"", "", free), [0_usize; 0]);
        assert_eq!(lines("bind = \"[fe80::1]:1\"\ninterface = \"lo\"", "", free), [0_usize; 0]);
        assert_eq!(lines(bind, "", "[fe80::2]"), [8]);
        assert_eq!(lines(bind, "", "[fe80::2%1]"), [0_usize; 0]);
        assert_eq!(lines(bind, "source = [\"fe80::1\"]", "[fe80::2%1]"), [3]);
        assert_eq!(lines(bind, "interface = \"lo\"\nsource = [\"fe80::1\"]", "[fe80::2]"), [0_usize; 0]);
    }
}

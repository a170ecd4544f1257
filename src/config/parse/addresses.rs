//! Addresses: no two sockets on one, and no endpoint that is this proxy itself.

use std::{
    collections::HashMap,
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

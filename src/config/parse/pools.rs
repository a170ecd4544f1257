//! Pools: endpoints in clouds that exist, a policy that covers them, one kind of probe.

use std::{
    collections::{HashMap, HashSet, hash_map::Entry},
    ops::Range,
};

use toml::Spanned;

use super::{
    super::{
        Address, Endpoint, Policy, Pool, defaults,
        file::{self, File},
        problem::{Code, Problem, similar},
        words::PolicyWord,
    },
    Build,
    judging::restraint,
    place,
};
use crate::ids::{CloudName, PoolName};

/// The clouds of a file: where each is defined.
type Clouds<'a> = HashMap<&'a str, Range<usize>>;

/// The clouds that the endpoints of a pool name, in their order.
struct Used<'a> {
    clouds: Vec<&'a str>,
    /// False if an endpoint was left out because of a problem: then a cloud may be missing here.
    complete: bool,
}

impl Build<'_> {
    /// `None` only where a problem was told.
    pub(super) fn pools(&mut self, file: &File) -> Option<Vec<Pool>> {
        let tables = file.pool.get().map(|pools| pools.0.as_slice()).unwrap_or_default();
        let clouds: Clouds<'_> = file
            .cloud
            .get()
            .into_iter()
            .flat_map(|clouds| &clouds.0)
            .map(|(name, _)| (name.get_ref().as_str(), name.span()))
            .collect();
        let mut names = HashMap::new();
        for table in tables {
            self.unique("pool", table.get_ref().name.get().map(|name| name.0.as_str()), table, &mut names);
        }
        let pools: Vec<Option<Pool>> = tables.iter().map(|table| self.pool(table, &clouds)).collect();
        self.unused_clouds(tables, clouds);
        self.preconnects(file, tables);
        pools.into_iter().collect()
    }

    /// Tells of a name that an earlier table has.
    pub(super) fn unique<T: NameSpan>(
        &mut self,
        kind: &str,
        name: Option<&str>,
        table: &Spanned<T>,
        names: &mut HashMap<String, Range<usize>>,
    ) {
        let Some(name) = name else {
            return;
        };
        let at = table.get_ref().name_span().unwrap_or_else(|| table.span());
        match names.entry(name.to_owned()) {
            Entry::Vacant(free) => {
                free.insert(at);
            }
            Entry::Occupied(first) => self.tell(
                Problem::at(Code::DuplicateName, at, format!("two {kind}s have the name `{name}`"))
                    .label("the second one")
                    .hint("give each its own name".to_owned())
                    .also(first.get().clone(), "the first one"),
            ),
        }
    }

    fn unused_clouds(&mut self, tables: &[Spanned<file::Pool>], mut clouds: Clouds<'_>) {
        for endpoint in
            tables.iter().filter_map(|table| table.get_ref().endpoint.get()).flat_map(|all| &all.0)
        {
            if let Some(cloud) = endpoint.get_ref().cloud.get() {
                clouds.remove(cloud.0.as_str());
            }
        }
        for (name, at) in clouds {
            self.tell(
                Problem::at(Code::UnusedCloud, at, format!("no endpoint stands in cloud `{name}`"))
                    .label("not used"),
            );
        }
    }

    fn pool(&mut self, table: &Spanned<file::Pool>, clouds: &Clouds<'_>) -> Option<Pool> {
        let (pool, at) = (table.get_ref(), table.span());
        let (endpoints, used) = self.endpoints(pool, &at, clouds);
        let policy = self.policy(pool, &at, &used);
        let health = self.health(pool, &at);
        let connecting = self.connecting(pool);
        let towards = self.towards(pool);
        let ejection = self.ejection(pool);
        Some(Pool {
            name: PoolName::from(pool.name.get()?.0.as_str()),
            policy: policy?,
            balance: pool.balance.get().map_or(defaults::BALANCE, |word| word.0),
            when_all_down: pool.when_all_down.get().map_or(defaults::WHEN_ALL_DOWN, |word| word.0),
            connect_timeout: pool.connect_timeout.get().map_or(defaults::CONNECT_TIMEOUT, |time| time.0),
            attempts: pool.attempts.get().copied().unwrap_or(defaults::ATTEMPTS),
            preconnect: pool.preconnect.get().copied().unwrap_or(defaults::PRECONNECT),
            connecting,
            towards: towards?,
            slow_start: pool.slow_start.get().map_or(defaults::SLOW_START, |time| time.0),
            health: health?,
            ejection,
            restraint: restraint(pool),
            endpoints: endpoints?,
        })
    }

    fn endpoints<'f>(
        &mut self,
        pool: &'f file::Pool,
        at: &Range<usize>,
        clouds: &Clouds<'_>,
    ) -> (Option<Vec<Endpoint>>, Used<'f>) {
        let tables = pool.endpoint.get().map(|all| all.0.as_slice()).unwrap_or_default();
        let mut used = Used { clouds: Vec::new(), complete: !self.sifted.lost(at.start, "endpoint") };
        let (mut seen, mut addresses) = (HashSet::new(), HashMap::new());
        let mut endpoints = Vec::with_capacity(tables.len());
        for table in tables {
            let endpoint = table.get_ref();
            match endpoint.cloud.get().map(|cloud| cloud.0.as_str()) {
                Some(cloud) => {
                    if seen.insert(cloud) {
                        used.clouds.push(cloud);
                    }
                    self.known_cloud(cloud, endpoint, clouds);
                }
                None => used.complete = false,
            }
            self.new_address(endpoint, &mut addresses);
            endpoints.push(make_endpoint(endpoint));
        }
        (endpoints.into_iter().collect(), used)
    }

    fn known_cloud(&mut self, cloud: &str, endpoint: &file::Endpoint, clouds: &Clouds<'_>) {
        if clouds.contains_key(cloud) || self.lost("cloud") {
            return;
        }
        let what = format!("cloud `{cloud}` is not defined");
        let problem = Problem::at(Code::UndefinedCloud, place(endpoint.cloud.span()), what);
        let similar = similar(cloud, clouds.keys().copied());
        self.tell(match similar.and_then(|name| clouds.get_key_value(name)) {
            Some((name, defined)) => problem
                .label(format!("no [cloud.{cloud}]"))
                .hint(format!("did you mean `{name}`?"))
                .also(defined.clone(), "a similar cloud"),
            None => problem.label("no such cloud").hint(format!("add [cloud.{cloud}]")),
        });
    }

    fn new_address(&mut self, endpoint: &file::Endpoint, addresses: &mut HashMap<String, Range<usize>>) {
        let Some(address) = endpoint.address.get() else {
            return;
        };
        let at = place(endpoint.address.span());
        match addresses.entry(canonical(&address.0)) {
            Entry::Vacant(free) => {
                free.insert(at);
            }
            Entry::Occupied(first) => self.tell(
                Problem::at(
                    Code::DuplicateEndpoint,
                    at,
                    format!("the pool has the endpoint {} twice", first.key()),
                )
                .label("the second one")
                .hint("keep one; `weight` gives it more sessions".to_owned())
                .also(first.get().clone(), "the first one"),
            ),
        }
    }

    fn policy(&mut self, pool: &file::Pool, at: &Range<usize>, used: &Used<'_>) -> Option<Policy> {
        let word = pool.policy.get().map_or(PolicyWord::Failover, |word| word.0);
        // With an unreadable policy neither of the two can be said to be wrong.
        let certain = !self.sifted.lost(at.start, "policy");
        let misfit = match word {
            PolicyWord::Failover => pool.weights.span().map(|span| (span, "weights", "weighted")),
            PolicyWord::Weighted => pool.order.span().map(|span| (span, "order", "failover")),
        };
        if let Some((span, key, policy)) = misfit.filter(|_| certain) {
            self.tell(
                Problem::at(Code::Policy, span, format!("`{key}` has no meaning under this policy"))
                    .label(format!("only for policy = \"{policy}\""))
                    .hint(format!("take it out, or write policy = \"{policy}\"")),
            );
        }
        match word {
            PolicyWord::Failover => Some(Policy::Failover { order: self.order(pool, used) }),
            PolicyWord::Weighted => self.weights(pool, at, used),
        }
    }

    fn order(&mut self, pool: &file::Pool, used: &Used<'_>) -> Vec<CloudName> {
        let Some(order) = pool.order.get() else {
            return used.clouds.iter().map(|cloud| CloudName::from(*cloud)).collect();
        };
        let named: Vec<(&str, Range<usize>)> =
            order.0.iter().map(|name| (name.get_ref().0.as_str(), name.span())).collect();
        self.covers("order", place(pool.order.span()), &named, used);
        named.iter().map(|(name, _)| CloudName::from(*name)).collect()
    }

    fn weights(&mut self, pool: &file::Pool, at: &Range<usize>, used: &Used<'_>) -> Option<Policy> {
        let Some(weights) = pool.weights.get() else {
            if !self.sifted.lost(at.start, "weights") && used.complete {
                let shares: Vec<_> =
                    used.clouds.iter().take(4).map(|cloud| format!("{cloud} = 50")).collect();
                self.tell(
                    Problem::at(Code::Policy, place(pool.policy.span()), "policy `weighted` needs `weights`")
                        .label("shares are missing")
                        .hint(format!("add weights = {{ {} }}", shares.join(", "))),
                );
            }
            return None;
        };
        let span = place(pool.weights.span());
        let named: Vec<(&str, Range<usize>)> =
            weights.0.iter().map(|(name, _)| (name.get_ref().as_str(), name.span())).collect();
        self.covers("weights", span.clone(), &named, used);
        if weights.0.iter().all(|(_, share)| share.get_ref().0 == 0) {
            self.tell(
                Problem::at(Code::Policy, span, "every share in `weights` is 0")
                    .label("nothing would take sessions")
                    .hint("give at least one cloud a share above 0".to_owned()),
            );
        }
        let weights = weights
            .0
            .iter()
            .map(|(name, share)| (CloudName::from(name.get_ref().as_str()), share.get_ref().0));
        Some(Policy::Weighted { weights: weights.collect() })
    }

    /// Tells where `named` is not the same set as the clouds that the pool uses.
    fn covers(&mut self, key: &str, at: Range<usize>, named: &[(&str, Range<usize>)], used: &Used<'_>) {
        let clouds: HashSet<&str> = used.clouds.iter().copied().collect();
        let mut seen = HashSet::new();
        for (name, span) in named {
            let problem = |what: String| Problem::at(Code::Policy, span.clone(), what);
            if !seen.insert(*name) {
                self.tell(problem(format!("`{key}` names cloud `{name}` twice")).label("the second time"));
            } else if !clouds.contains(name) && used.complete {
                let hint = match similar(name, used.clouds.iter().copied()) {
                    Some(similar) => format!("did you mean `{similar}`?"),
                    None => "take it out, or give the pool an endpoint there".to_owned(),
                };
                self.tell(
                    problem(format!("`{key}` names cloud `{name}`, where the pool has no endpoint"))
                        .label("no endpoint of this pool")
                        .hint(hint),
                );
            }
        }
        let left_out: Vec<&str> = used.clouds.iter().copied().filter(|cloud| !seen.contains(cloud)).collect();
        if !left_out.is_empty() {
            self.tell(
                Problem::at(Code::Policy, at, format!("`{key}` leaves out {}", left_out.join(", ")))
                    .label("not every cloud of the pool")
                    .hint(format!("name every cloud that an endpoint stands in: {}", used.clouds.join(", "))),
            );
        }
    }
}

/// A table that may have a name.
pub(super) trait NameSpan {
    /// Where the name stands.
    fn name_span(&self) -> Option<Range<usize>>;
}

impl NameSpan for file::Pool {
    fn name_span(&self) -> Option<Range<usize>> {
        self.name.span()
    }
}

fn make_endpoint(endpoint: &file::Endpoint) -> Option<Endpoint> {
    Some(Endpoint {
        address: endpoint.address.get()?.0.clone(),
        cloud: CloudName::from(endpoint.cloud.get()?.0.as_str()),
        region: endpoint.region.get().map(|region| region.0.clone()),
        zone: endpoint.zone.get().map(|zone| zone.0.clone()),
        weight: endpoint.weight.get().copied().unwrap_or(defaults::WEIGHT),
    })
}

/// One spelling for each thing that can be dialled.
fn canonical(address: &Address) -> String {
    match address {
        Address::Socket(socket) => {
            std::net::SocketAddr::new(socket.ip().to_canonical(), socket.port()).to_string()
        }
        Address::Name { host, port } => {
            format!("{}:{port}", host.trim_end_matches('.').to_ascii_lowercase())
        }
    }
}

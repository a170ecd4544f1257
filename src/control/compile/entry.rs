//! What comes before a pool, and what endpoints are given, as the data plane reads it.

use std::{collections::hash_map::Entry as Slot, net::SocketAddr, num::NonZeroU32, sync::Arc};

use rustls::pki_types::ServerName;
use tokio::time::Instant;

use super::super::{
    health::{Manner, Secure},
    inputs::{Inputs, Member},
};
use crate::{
    balance::Balance,
    config,
    ids::PoolName,
    state::{
        Access, Admission, Bandwidth, Condition, Connect, Entry, Limits, ListenerCell, Origination, Pool,
        ProxyIn, ProxyOut, Routes, ServerName as Sni, Termination, Towards,
    },
};

/// The entry of a listener; the one that it had, if nothing in it has changed. `None` where clients go straight to a pool.
pub(super) fn entry(
    inputs: &mut Inputs,
    cell: &Arc<ListenerCell>,
    config: &config::Entry,
) -> Option<Arc<Entry>> {
    let name = &cell.name;
    if config.is_plain() {
        inputs.entries.remove(name);
        return None;
    }
    let tls = config.tls.as_ref().and_then(|_| inputs.server_tls(name));
    let limits = limits(&config.admission);
    let before = inputs.entries.get(name);
    let kept = before.and_then(|(_, made)| made.admission.as_ref()).filter(|kept| kept.is_of(cell, limits));
    let admission = match kept {
        _ if limits.are_none() => None,
        Some(kept) => Some(Arc::clone(kept)),
        None => Some(Admission::new(cell, limits)),
    };
    if let Some((as_before, made)) = before {
        // What the files are made into is wrapped anew at each look at them.
        let settings = |tls: &Option<Arc<Termination>>| tls.as_ref().map(|tls| Arc::clone(&tls.config));
        let same_tls = is_same(settings(&made.tls).as_ref(), settings(&tls).as_ref());
        if *as_before == *config && same_tls && is_same(made.admission.as_ref(), admission.as_ref()) {
            return Some(Arc::clone(made));
        }
    }
    let made = Arc::new(Entry {
        proxy_header: match &config.proxy_header {
            config::ProxyIn::Off => ProxyIn::Off,
            config::ProxyIn::Required(from) => ProxyIn::Required(from.clone()),
            config::ProxyIn::Optional(from) => ProxyIn::Optional(from.clone()),
        },
        tls,
        routes: Routes::new(config.routes.iter().map(condition).collect()),
        intercept: config.intercept,
        header_timeout: config.times.header,
        handshake_timeout: config.times.handshake,
        hello_bytes: usize::try_from(config.times.hello_bytes).unwrap_or(usize::MAX),
        at_once: config.times.at_once,
        access: access(&config.access),
        route_access: config.routes.iter().map(|route| access(&route.access)).collect(),
        admission,
        bandwidth: config.admission.bandwidth,
    });
    inputs.entries.insert(name.clone(), (config.clone(), Arc::clone(&made)));
    Some(made)
}

/// True if both are the same object, or nothing.
pub(super) fn is_same<T: ?Sized>(a: Option<&Arc<T>>, b: Option<&Arc<T>>) -> bool {
    a.map(Arc::as_ptr) == b.map(Arc::as_ptr)
}

fn access(config: &config::Access) -> Access {
    Access::new(&config.allow, &config.deny)
}

fn limits(config: &config::Admission) -> Limits {
    Limits {
        sessions: config.sessions,
        rate: config.rate.and_then(NonZeroU32::new),
        source_sessions: config.source_sessions,
        source_rate: config.source_rate.and_then(NonZeroU32::new),
    }
}

fn condition(route: &config::Route) -> Condition {
    let name = |pattern: &config::SniPattern| match pattern {
        config::SniPattern::Exact(name) => Sni::Exact(name.as_str().into()),
        config::SniPattern::Below(name) => Sni::Below(name.as_str().into()),
    };
    let values = |values: &Vec<String>| values.iter().map(|value| value.as_str().into()).collect();
    Condition {
        sni: route.sni.iter().map(name).collect(),
        alpn: route.alpn.iter().map(|protocol| protocol.as_bytes().into()).collect(),
        source: route.source.clone(),
        destination: route.destination.iter().map(|wanted| (wanted.network, wanted.port)).collect(),
        tlvs: route.tlv.iter().map(|(tlv, all)| (*tlv, values(all))).collect(),
    }
}

/// What the endpoints of a pool are given.
pub(super) fn towards(inputs: &mut Inputs, pool: &config::Pool, members: &[Member], now: Instant) -> Towards {
    let config = &pool.towards;
    let tls = config.tls.as_ref().zip(inputs.client_tls(&pool.name)).map(|(settings, made)| {
        let names = members.iter().filter_map(|member| {
            let address = member.identity.address;
            Some((address, server_name(settings, member.host.as_deref(), address)?))
        });
        let protocol_of_client = settings.alpn.is_empty();
        Arc::new(Origination { config: made, names: names.collect(), protocol_of_client })
    });
    Towards {
        tls,
        proxy_header: config.proxy_header.map(version),
        client_source: config.client_source,
        endpoint_sessions: config.endpoint_sessions,
        bandwidth: bandwidth(inputs, pool, now),
    }
}

/// The pool's own bucket, which sessions that live hold: another rate is theirs as well.
fn bandwidth(inputs: &mut Inputs, pool: &config::Pool, now: Instant) -> Option<Arc<Bandwidth>> {
    let rate = pool.towards.bandwidth;
    let bandwidth = match (inputs.bandwidths.entry(pool.name.clone()), rate) {
        (Slot::Vacant(_), None) => return None,
        (Slot::Vacant(free), Some(rate)) => free.insert(Arc::new(Bandwidth::new(rate, now))),
        (Slot::Occupied(kept), _) => kept.into_mut(),
    };
    bandwidth.set(rate);
    rate.map(|_| Arc::clone(bandwidth))
}

const fn version(version: config::ProxyOut) -> ProxyOut {
    match version {
        config::ProxyOut::V1 => ProxyOut::V1,
        config::ProxyOut::V2 => ProxyOut::V2,
    }
}

/// How an endpoint is probed: as sessions are given to it, as far as the probe is to do that.
pub(in crate::control) fn manner(
    inputs: &Inputs,
    pool: &config::Pool,
    health: &config::Health,
    member: &Member,
) -> Manner {
    let settings = pool.towards.tls.as_ref().filter(|_| health.tls);
    let tls = settings.zip(inputs.client_tls(&pool.name)).map(|(settings, config)| {
        let name = server_name(settings, member.host.as_deref(), member.identity.address);
        Secure { config, name }
    });
    // At another port there is another service.
    Manner { tls, header: pool.towards.proxy_header.filter(|_| health.port.is_none()).map(version) }
}

/// The name that the certificate of an endpoint is for.
fn server_name(
    settings: &config::PoolTls,
    host: Option<&str>,
    address: SocketAddr,
) -> Option<ServerName<'static>> {
    let name = settings.server_name.as_deref().or(host).map(|name| name.strip_suffix('.').unwrap_or(name));
    match name {
        Some(name) => ServerName::try_from(name.to_owned()).ok(),
        None => Some(ServerName::from(address.ip().to_canonical())),
    }
}

/// The pool of sessions that go where their client asked: one attempt, as there is one address.
pub(in crate::control) fn as_asked() -> Arc<Pool> {
    let timeout = config::defaults::CONNECT_TIMEOUT;
    let total = timeout.saturating_mul(config::defaults::ATTEMPTS.into());
    let connect = Connect::plain(timeout, 1, total);
    Arc::new(Pool::new(PoolName::from(config::AS_ASKED), Balance::Random, Vec::new(), connect))
}

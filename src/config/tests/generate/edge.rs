//! Any edge that a listener or a pool can have.

use std::net::IpAddr;

use ipnet::IpNet;
use proptest::{collection::vec, option, prelude::*, sample::select};

use super::time;
use crate::{
    config::{
        Access, Admission, Authority, ClientCertificates, ClientTrust, Destination, Entry, EntryTimes,
        Identity, KeyPair, ListenerTls, NamePattern, PoolTls, ProxyIn, ProxyOut, Route, SniPattern, Target,
        TlsVersion, Tlv, Towards,
    },
    ids::PoolName,
    net::Intercept,
};

/// Where the sessions of a listener go, and what comes before that.
pub(super) fn entry(pools: Vec<String>) -> impl Strategy<Value = (Target, Entry)> {
    let times = (time(0, 86_000), time(0, 86_000), 4..65_u32, 1..1000_u32);
    let before = (proxy_in(), option::of(tls()), intercept(), access(), admission(), times);
    let first = PoolName::from(pools.first().map_or("", String::as_str));
    (target(pools.clone()), vec(route(pools), 0..4), before).prop_map(
        move |(target, mut routes, (proxy_header, tls, intercept, access, admission, times))| {
            let knows = intercept != Intercept::Off || proxy_header != ProxyIn::Off;
            // Nothing that would be warned of, or refused.
            for route in &mut routes {
                if proxy_header == ProxyIn::Off {
                    route.tlv.clear();
                }
                if route.target == Target::AsAsked && !knows {
                    route.target = Target::Refuse;
                }
                route.alpn.push("h2".to_owned());
            }
            let target = match target {
                Target::AsAsked if knows => Target::AsAsked,
                Target::AsAsked | Target::Refuse if !routes.is_empty() => Target::Refuse,
                Target::AsAsked | Target::Refuse => Target::Pool(first.clone()),
                pool @ Target::Pool(_) => pool,
            };
            let least = std::time::Duration::from_millis(1);
            let usual = EntryTimes::default();
            let times = EntryTimes {
                header: if proxy_header == ProxyIn::Off { usual.header } else { times.0 + least },
                handshake: times.1 + least,
                hello_bytes: times.2 << 10,
                at_once: times.3,
            };
            (target, Entry { proxy_header, tls, routes, intercept, access, admission, times })
        },
    )
}

/// What the endpoints of a pool are given.
pub(super) fn towards() -> impl Strategy<Value = Towards> {
    let header = select(vec![None, Some(ProxyOut::V1), Some(ProxyOut::V2)]);
    let limits = (option::of(1..1000_u32), option::of(1024..1_u64 << 50));
    (option::of(pool_tls()), header, any::<bool>(), limits).prop_map(
        |(tls, proxy_header, client_source, (endpoint_sessions, bandwidth))| Towards {
            tls,
            proxy_header,
            client_source,
            endpoint_sessions,
            bandwidth,
        },
    )
}

fn target(pools: Vec<String>) -> impl Strategy<Value = Target> {
    prop_oneof![
        4 => select(pools).prop_map(|pool| Target::Pool(PoolName::from(pool.as_str()))),
        1 => Just(Target::Refuse),
        1 => Just(Target::AsAsked),
    ]
}

fn network() -> impl Strategy<Value = IpNet> {
    let v4 = (any::<[u8; 4]>(), 0..33_u8).prop_map(|(ip, length)| (IpAddr::from(ip), length));
    let v6 = (any::<[u16; 8]>(), 0..129_u8).prop_map(|(ip, length)| (IpAddr::from(ip), length));
    prop_oneof![v4, v6].prop_map(|(ip, length)| IpNet::new(ip, length).unwrap().trunc())
}

fn host() -> impl Strategy<Value = String> {
    "[a-z][a-z0-9]{0,10}(\\.[a-z0-9]{0,5}[a-z]){0,3}"
}

fn proxy_in() -> impl Strategy<Value = ProxyIn> {
    prop_oneof![
        Just(ProxyIn::Off),
        vec(network(), 0..3).prop_map(ProxyIn::Required),
        vec(network(), 1..3).prop_map(ProxyIn::Optional),
    ]
}

fn intercept() -> impl Strategy<Value = Intercept> {
    select(vec![Intercept::Off, Intercept::Redirect, Intercept::Tproxy])
}

fn access() -> impl Strategy<Value = Access> {
    (vec(network(), 0..3), vec(network(), 0..3)).prop_map(|(allow, deny)| Access { allow, deny })
}

fn admission() -> impl Strategy<Value = Admission> {
    let limit = || option::of(1..10_000_000_u32);
    (limit(), limit(), limit(), limit(), option::of(1024..1_u64 << 50)).prop_map(
        |(sessions, rate, source_sessions, source_rate, bandwidth)| Admission {
            sessions,
            rate,
            source_sessions,
            source_rate,
            bandwidth,
        },
    )
}

fn version() -> impl Strategy<Value = TlsVersion> {
    select(vec![TlsVersion::V12, TlsVersion::V13])
}

fn pair() -> impl Strategy<Value = KeyPair> {
    ("/[^\\x00]{1,20}", "/[^\\x00]{1,20}")
        .prop_map(|(certificate, key)| KeyPair { certificate: certificate.into(), key: key.into() })
}

fn pattern() -> impl Strategy<Value = NamePattern> {
    prop_oneof![
        host().prop_map(NamePattern::Dns),
        host().prop_map(|name| NamePattern::DnsBelow(format!(".{name}"))),
        (host(), "[A-Za-z0-9]{1,8}").prop_map(|(a, b)| NamePattern::Spiffe(format!("spiffe://{a}/{b}"))),
        (host(), "[A-Za-z0-9]{1,8}")
            .prop_map(|(a, b)| NamePattern::SpiffeBelow(format!("spiffe://{a}/{b}/"))),
    ]
}

fn protocols() -> impl Strategy<Value = Vec<String>> {
    vec("[!-~]{1,20}", 0..3)
}

fn is_id(pattern: &NamePattern) -> bool {
    matches!(pattern, NamePattern::Spiffe(_) | NamePattern::SpiffeBelow(_))
}

/// Files, or SPIFFE: never both in one table.
fn tls() -> impl Strategy<Value = ListenerTls> {
    (files_tls(), prop::bool::weighted(0.2)).prop_map(|(mut tls, spiffe)| {
        if let (true, ClientCertificates::Optional(trust) | ClientCertificates::Required(trust)) =
            (spiffe, &mut tls.clients)
        {
            trust.ca = Authority::Spiffe;
            trust.names.retain(is_id);
        }
        if spiffe {
            tls.certificates = vec![Identity::Spiffe];
        }
        tls
    })
}

fn files_tls() -> impl Strategy<Value = ListenerTls> {
    let trust = || {
        ("/[^\\x00]{1,20}", vec(pattern(), 0..3))
            .prop_map(|(ca, names)| ClientTrust { ca: Authority::File(ca.into()), names })
    };
    let clients = prop_oneof![
        Just(ClientCertificates::Off),
        trust().prop_map(ClientCertificates::Optional),
        trust().prop_map(ClientCertificates::Required),
    ];
    let tickets = option::of((60..43_201_u64).prop_map(std::time::Duration::from_secs));
    (vec(pair(), 1..3), version(), protocols(), clients, tickets).prop_map(
        |(certificates, min_version, alpn, clients, tickets)| ListenerTls {
            certificates: certificates.into_iter().map(Identity::Files).collect(),
            min_version,
            alpn,
            clients,
            tickets,
        },
    )
}

fn pool_tls() -> impl Strategy<Value = PoolTls> {
    let ca = option::of("/[^\\x00]{1,20}");
    let files = (ca, option::of(pair()), prop::bool::weighted(0.2));
    (files, option::of(host()), vec(pattern(), 0..3), version(), protocols()).prop_map(
        |((ca, pair, spiffe), server_name, mut names, min_version, alpn)| {
            let (ca, identity) = if spiffe {
                names.retain(is_id);
                (Some(Authority::Spiffe), Some(Identity::Spiffe))
            } else {
                (ca.map(|ca| Authority::File(ca.into())), pair.map(Identity::Files))
            };
            PoolTls { ca, server_name, names, identity, min_version, alpn }
        },
    )
}

fn route(pools: Vec<String>) -> impl Strategy<Value = Route> {
    let sni = prop_oneof![
        host().prop_map(SniPattern::Exact),
        host().prop_map(|name| SniPattern::Below(format!(".{name}"))),
    ];
    let destination = (option::of(network()), option::of(1..u16::MAX))
        .prop_filter("neither", |(network, port)| network.is_some() || port.is_some())
        .prop_map(|(network, port)| Destination { network, port });
    let tlv = option::of(vec("[!-~]{1,20}", 1..3).prop_map(|values| (Tlv::AwsVpcEndpoint, values)));
    (vec(sni, 0..3), protocols(), vec(network(), 0..3), vec(destination, 0..3), tlv, target(pools), access())
        .prop_map(|(sni, alpn, source, destination, tlv, target, access)| Route {
            sni,
            alpn,
            source,
            destination,
            tlv: tlv.into_iter().collect(),
            target,
            access,
        })
}

//! What stands at the edge, with every default spelled out.

use std::fmt::{self, Display, Write as _};

use super::{bare, optional, text};
use crate::config::{
    Access, Admission, Authority, ClientCertificates, Entry, Identity, ListenerTls, PoolTls, ProxyIn,
    ProxyOut, Route, Target, Towards,
    names::{count_text, destination_text, network_text, rule_text, sni_text},
    sockets::size_text,
    values::time_text,
    words::Vocabulary as _,
};

/// The part of a listener that comes before a pool. Its tables come last: TOML gives them all that follows.
pub(super) fn write_entry(out: &mut String, entry: &Entry) -> fmt::Result {
    let (word, from) = match &entry.proxy_header {
        ProxyIn::Off => ("off", None),
        ProxyIn::Required(from) => ("required", Some(from)),
        ProxyIn::Optional(from) => ("optional", Some(from)),
    };
    writeln!(out, "proxy_header = {}", text(word))?;
    if let Some(from) = from {
        list(out, "proxy_header_from", from, |network| network_text(*network))?;
        writeln!(out, "header_timeout = {}", text(time_text(entry.times.header)))?;
    }
    writeln!(out, "intercept = {}", text(entry.intercept.word()))?;
    write_access(out, &entry.access)?;
    write_admission(out, &entry.admission)?;
    writeln!(out, "max_handshakes = {}", entry.times.at_once)?;
    writeln!(out, "handshake_timeout = {}", text(time_text(entry.times.handshake)))?;
    writeln!(out, "hello_bytes = {}", text(size_text(entry.times.hello_bytes)))?;
    if let Some(tls) = &entry.tls {
        write_listener_tls(out, tls)?;
    }
    entry.routes.iter().try_for_each(|route| write_route(out, route))
}

fn write_admission(out: &mut String, admission: &Admission) -> fmt::Result {
    for (key, limit) in [
        ("max_sessions", admission.sessions),
        ("max_rate", admission.rate),
        ("max_source_sessions", admission.source_sessions),
        ("max_source_rate", admission.source_rate),
    ] {
        bare(out, key, limit, "no limit")?;
    }
    optional(out, "session_bandwidth", admission.bandwidth.map(count_text).as_deref(), "no limit")
}

fn write_access(out: &mut String, access: &Access) -> fmt::Result {
    list(out, "allow", &access.allow, |network| network_text(*network))?;
    list(out, "deny", &access.deny, |network| network_text(*network))
}

fn write_listener_tls(out: &mut String, tls: &ListenerTls) -> fmt::Result {
    let pairs: Vec<String> = tls
        .certificates
        .iter()
        .filter_map(|identity| {
            let Identity::Files(pair) = identity else { return None };
            let (certificate, key) = (pair.certificate.to_string_lossy(), pair.key.to_string_lossy());
            Some(format!("{{ certificate = {}, key = {} }}", text(certificate), text(key)))
        })
        .collect();
    writeln!(out, "\n[listener.tls]")?;
    if tls.certificates.contains(&Identity::Spiffe) {
        writeln!(out, "spiffe = true")?;
    } else {
        writeln!(out, "certificates = [{}]", pairs.join(", "))?;
    }
    writeln!(out, "min_version = {}", text(tls.min_version.word()))?;
    list(out, "alpn", &tls.alpn, Clone::clone)?;
    let (word, trust) = match &tls.clients {
        ClientCertificates::Off => ("off", None),
        ClientCertificates::Optional(trust) => ("optional", Some(trust)),
        ClientCertificates::Required(trust) => ("required", Some(trust)),
    };
    writeln!(out, "client_certificates = {}", text(word))?;
    if let Some(trust) = trust {
        if let Authority::File(ca) = &trust.ca {
            writeln!(out, "client_ca = {}", text(ca.to_string_lossy()))?;
        }
        list(out, "client_names", &trust.names, rule_text)?;
    }
    let tickets = tls.tickets.map_or_else(|| "off".to_owned(), time_text);
    writeln!(out, "tickets = {}", text(tickets))
}

fn write_route(out: &mut String, route: &Route) -> fmt::Result {
    writeln!(out, "\n[[listener.route]]")?;
    list(out, "sni", &route.sni, sni_text)?;
    list(out, "alpn", &route.alpn, Clone::clone)?;
    list(out, "source", &route.source, |network| network_text(*network))?;
    list(out, "destination", &route.destination, |wanted| destination_text(*wanted))?;
    let tlvs: Vec<String> = route
        .tlv
        .iter()
        .map(|(tlv, values)| format!("{} = {}", tlv.as_str(), texts(values, Clone::clone)))
        .collect();
    bare(out, "tlv", (!tlvs.is_empty()).then(|| format!("{{ {} }}", tlvs.join(", "))), "any, or none")?;
    match &route.target {
        Target::Pool(pool) => writeln!(out, "pool = {}", text(pool))?,
        Target::AsAsked => writeln!(out, "as_asked = true")?,
        Target::Refuse => writeln!(out, "refuse = true")?,
    }
    write_access(out, &route.access)
}

/// The part of a pool that endpoints are given besides sessions.
pub(super) fn write_towards(out: &mut String, towards: &Towards) -> fmt::Result {
    let header = match towards.proxy_header {
        None => "off",
        Some(ProxyOut::V1) => "v1",
        Some(ProxyOut::V2) => "v2",
    };
    writeln!(out, "proxy_header = {}\nclient_source = {}", text(header), towards.client_source)?;
    bare(out, "max_endpoint_sessions", towards.endpoint_sessions, "no limit")?;
    optional(out, "bandwidth", towards.bandwidth.map(count_text).as_deref(), "no limit")?;
    match &towards.tls {
        Some(tls) => write_pool_tls(out, tls),
        None => writeln!(out, "# tls: off"),
    }
}

fn write_pool_tls(out: &mut String, tls: &PoolTls) -> fmt::Result {
    writeln!(out, "\n[pool.tls]")?;
    let path = |path: &std::path::PathBuf| path.to_string_lossy().into_owned();
    match &tls.ca {
        Some(Authority::Spiffe) => writeln!(out, "spiffe = true")?,
        Some(Authority::File(ca)) => writeln!(out, "ca = {}", text(path(ca)))?,
        None => optional(out, "ca", None, "those of the system")?,
    }
    optional(
        out,
        "server_name",
        tls.server_name.as_deref(),
        "the host name of the endpoint, or its IP address",
    )?;
    list(out, "names", &tls.names, rule_text)?;
    if let Some(Identity::Files(pair)) = &tls.identity {
        writeln!(out, "certificate = {}\nkey = {}", text(path(&pair.certificate)), text(path(&pair.key)))?;
    }
    writeln!(out, "min_version = {}", text(tls.min_version.word()))?;
    list(out, "alpn", &tls.alpn, Clone::clone)
}

/// A list that is left out when it is empty.
fn list<T>(out: &mut String, key: &str, items: &[T], write: impl Fn(&T) -> String) -> fmt::Result {
    bare(out, key, (!items.is_empty()).then(|| texts(items, write)), "none given")
}

fn texts<T, S: Display>(items: &[T], write: impl Fn(&T) -> S) -> String {
    let items: Vec<String> = items.iter().map(|item| text(write(item))).collect();
    format!("[{}]", items.join(", "))
}

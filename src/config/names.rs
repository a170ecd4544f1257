//! Reading and writing of networks, server names, names in certificates, and amounts without an upper end.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use bytesize::ByteSize;
use ipnet::IpNet;

use super::{
    Destination, NamePattern, SniPattern,
    problem::Code,
    values::{self, Mistake, time_text},
};

/// Reads a network, or an address for a network of one.
pub(super) fn network(text: &str) -> Result<IpNet, Mistake> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(IpNet::from(address));
    }
    let Ok(network) = text.parse::<IpNet>() else {
        return Err(Mistake::new(
            format!("`{text}` is not a network"),
            "write \"10.0.0.0/8\", \"2001:db8::/32\" or an address",
        ));
    };
    if network.trunc() == network {
        return Ok(network);
    }
    Err(Mistake::new(
        format!("`{text}` has bits beyond its length of {}", network.prefix_len()),
        format!("write \"{}\", or \"{}\" for the one address", network.trunc(), network.addr()),
    ))
}

/// A network as it would be written.
pub(super) fn network_text(network: IpNet) -> String {
    if network.prefix_len() == network.max_prefix_len() {
        network.addr().to_string()
    } else {
        network.to_string()
    }
}

/// Reads a server name, or `*.` and a name.
pub(super) fn sni(text: &str) -> Result<SniPattern, Mistake> {
    let plain = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    if plain.parse::<IpAddr>().is_ok() {
        return Err(Mistake::new(
            format!("`{text}` is an address: clients do not name those (RFC 6066, section 3)"),
            "use `destination` for addresses",
        ));
    }
    if let Some(below) = plain.strip_prefix('*')
        && below.strip_prefix('.').is_some_and(values::is_host_name)
    {
        return Ok(SniPattern::Below(below.to_owned()));
    }
    if values::is_host_name(&plain) {
        return Ok(SniPattern::Exact(plain));
    }
    Err(Mistake::new(
        format!("`{text}` is not a server name"),
        "write \"db.example.com\", or \"*.example.com\" for every name below",
    ))
}

/// A server name as it would be written.
pub(super) fn sni_text(pattern: &SniPattern) -> String {
    match pattern {
        SniPattern::Exact(name) => name.clone(),
        SniPattern::Below(below) => format!("*{below}"),
    }
}

/// Reads the name of a protocol. Names of other bytes exist only as GREASE (RFC 8701).
pub(super) fn alpn(text: &str) -> Result<String, Mistake> {
    let fine = (1..=255).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
    fine.then(|| text.to_owned()).ok_or_else(|| {
        Mistake::new(format!("`{text}` is not the name of a protocol"), "write \"h2\" or \"http/1.1\"")
    })
}

/// Reads a network, a port, or both.
pub(super) fn destination(text: &str) -> Result<Destination, Mistake> {
    let bad = || {
        Mistake::new(
            format!("`{text}` is neither a network nor a port"),
            "write \"10.0.0.0/8\", \"10.0.0.0/8:5432\", \"[2001:db8::/32]:443\" or \":5432\"",
        )
    };
    let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(bad);
    if let Ok(address) = text.parse::<SocketAddr>() {
        let port = Some(port(&address.port().to_string())?);
        return Ok(Destination { network: Some(IpNet::from(address.ip())), port });
    }
    if let Some(number) = text.strip_prefix(':').filter(|rest| !rest.contains(':')) {
        return Ok(Destination { network: None, port: Some(port(number)?) });
    }
    if let Some((network, number)) = text.strip_prefix('[').and_then(|rest| rest.split_once("]:")) {
        return Ok(Destination { network: Some(self::network(network)?), port: Some(port(number)?) });
    }
    match text.rsplit_once(':') {
        Some((network, number)) if !network.contains(':') => {
            Ok(Destination { network: Some(self::network(network)?), port: Some(port(number)?) })
        }
        _ => Ok(Destination { network: Some(network(text)?), port: None }),
    }
}

/// A destination as it would be written.
pub(super) fn destination_text(destination: Destination) -> String {
    match (destination.network, destination.port) {
        (None, port) => format!(":{}", port.unwrap_or_default()),
        (Some(network), None) => network_text(network),
        (Some(network @ IpNet::V4(_)), Some(port)) => format!("{}:{port}", network_text(network)),
        (Some(network @ IpNet::V6(_)), Some(port)) => format!("[{}]:{port}", network_text(network)),
    }
}

/// Reads the value of a TLV.
pub(super) fn tlv(text: &str) -> Result<String, Mistake> {
    let fine = (1..=256).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
    fine.then(|| text.to_owned()).ok_or_else(|| {
        Mistake::new(
            "it must have 1 to 256 printable characters without spaces",
            "write it as the session log shows it",
        )
        .coded(Code::OutOfRange)
    })
}

/// Reads a pattern for names in certificates.
pub(super) fn rule(text: &str) -> Result<NamePattern, Mistake> {
    let bad = || {
        Mistake::new(
            format!("`{text}` is neither a DNS name nor a SPIFFE id"),
            "write \"app.example.com\", \"*.example.com\" or \"spiffe://example.org/ns/prod/*\"",
        )
    };
    let Some(id) = text.strip_prefix("spiffe://") else {
        return match sni(text).map_err(|_| bad())? {
            SniPattern::Exact(name) => Ok(NamePattern::Dns(name)),
            SniPattern::Below(below) => Ok(NamePattern::DnsBelow(below)),
        };
    };
    // SPIFFE-ID, sections 2.1 to 2.4: at most 2048 bytes, lower-case domain, segments of few characters.
    let (body, below) = match id.strip_suffix("/*") {
        Some(body) => (body, true),
        None => (id, false),
    };
    let (domain, path) = body.split_once('/').map_or((body, None), |(domain, path)| (domain, Some(path)));
    let in_domain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-_".contains(&byte);
    let in_path = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    let segment = |part: &str| !part.is_empty() && part != "." && part != ".." && part.bytes().all(in_path);
    let fine = text.len() <= 2048
        && (1..=255).contains(&domain.len())
        && domain.bytes().all(in_domain)
        && path.is_none_or(|path| path.split('/').all(segment));
    match (fine, below) {
        (false, _) => Err(bad()),
        (true, false) => Ok(NamePattern::Spiffe(text.to_owned())),
        (true, true) => Ok(NamePattern::SpiffeBelow(format!("spiffe://{body}/"))),
    }
}

/// A pattern as it would be written.
pub(super) fn rule_text(pattern: &NamePattern) -> String {
    match pattern {
        NamePattern::Dns(name) | NamePattern::Spiffe(name) => name.clone(),
        NamePattern::DnsBelow(below) => format!("*{below}"),
        NamePattern::SpiffeBelow(below) => format!("{below}*"),
    }
}

/// Reads the name that a certificate is for.
pub(super) fn server_name(text: &str) -> Result<String, Mistake> {
    if text.parse::<IpAddr>().is_ok() || values::is_host_name(text) {
        return Ok(text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase());
    }
    Err(Mistake::new(
        format!("`{text}` is no name for a server"),
        "write \"db.example.com\" or an IP address",
    ))
}

/// Reads how long tickets are good.
pub(super) fn tickets(text: &str) -> Result<Option<Duration>, Mistake> {
    const LEAST: Duration = Duration::from_secs(60);
    const MOST: Duration = Duration::from_secs(12 * 3600);
    if text == "off" {
        return Ok(None);
    }
    let time = values::time(text)?;
    if (LEAST..=MOST).contains(&time) && time.subsec_nanos() == 0 {
        return Ok(Some(time));
    }
    Err(Mistake::new(
        format!("`{text}` is not within a minute and 12 hours of whole seconds"),
        format!("write \"{}\"", time_text(super::defaults::TICKET_LIFETIME)),
    )
    .coded(Code::OutOfRange))
}

/// Reads a number of bytes, without a limit that the kernel would set.
pub(super) fn count(text: &str) -> Result<Option<u64>, Mistake> {
    const LEAST: u64 = 1024;
    if text == "off" {
        return Ok(None);
    }
    let bare = text.trim();
    let bare = bare.strip_suffix("/s").unwrap_or(bare);
    if bare.parse::<f64>().is_ok() {
        return Err(Mistake::new(format!("`{bare}` has no unit"), format!("write \"{bare}B\"")));
    }
    let Some(ByteSize(bytes)) = bare.parse::<ByteSize>().ok().filter(|_| bare.ends_with(['B', 'b'])) else {
        return Err(Mistake::new(
            format!("`{text}` is not a number of bytes"),
            "write a number and a unit: \"256KiB\", \"4MiB\", \"2GiB\"",
        ));
    };
    if (LEAST..=1 << 50).contains(&bytes) {
        return Ok(Some(bytes));
    }
    Err(Mistake::new(format!("`{text}` is not within 1KiB and 1PiB"), "check the unit")
        .coded(Code::OutOfRange))
}

/// A number of bytes as it would be written.
pub(super) fn count_text(bytes: u64) -> String {
    match bytes {
        _ if bytes.is_multiple_of(1 << 30) => format!("{}GiB", bytes >> 30),
        _ if bytes.is_multiple_of(1 << 20) => format!("{}MiB", bytes >> 20),
        _ if bytes.is_multiple_of(1 << 10) => format!("{}KiB", bytes >> 10),
        _ => format!("{bytes}B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_have_no_bits_beyond_their_length() {
        for (text, written) in [
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("10.1.2.3", "10.1.2.3"),
            ("2001:db8::/32", "2001:db8::/32"),
            ("::1", "::1"),
        ] {
            assert_eq!(network_text(network(text).unwrap()), written);
        }
        assert!(network("10.0.0.1/8").unwrap_err().hint.unwrap().contains("10.0.0.0/8"));
        for text in ["", "10.0.0.0/33", "10.0.0/8", "x", "10.0.0.0/-1", "/8"] {
            assert!(network(text).is_err(), "{text}");
        }
    }

    #[test]
    fn server_names_are_plain_or_below_a_name() {
        assert_eq!(sni("DB.Example.com."), Ok(SniPattern::Exact("db.example.com".to_owned())));
        assert_eq!(sni("*.Example.com"), Ok(SniPattern::Below(".example.com".to_owned())));
        for text in ["", "*", "*.", "a*.example.com", "*example.com", "a.*.com", "10.0.0.1", "a b", "é.com"]
        {
            assert!(sni(text).is_err(), "{text}");
        }
    }

    #[test]
    fn destinations_are_networks_and_ports() {
        for text in [
            "10.0.0.0/8",
            "10.0.0.0/8:5432",
            "10.0.0.1:1",
            ":443",
            "[2001:db8::/32]:443",
            "[::1]:1",
            "2001:db8::/32",
        ] {
            assert_eq!(destination_text(destination(text).unwrap()), text);
        }
        for text in ["", ":", ":0", ":65536", "10.0.0.1:0", "x:1", "[::1]", "10.0.0.0/8:"] {
            assert!(destination(text).is_err(), "{text}");
        }
    }

    #[test]
    fn names_in_certificates_are_dns_or_spiffe() {
        for text in [
            "a.example.com",
            "*.example.com",
            "spiffe://example.org/db",
            "spiffe://example.org/*",
            "spiffe://a.b/c/d/*",
        ] {
            assert_eq!(rule_text(&rule(text).unwrap()), text);
        }
        for text in [
            "",
            "*",
            "spiffe://",
            "spiffe://A/b",
            "spiffe://a//b",
            "spiffe://a/..",
            "spiffe://a/b/",
            "https://a/b",
        ] {
            assert!(rule(text).is_err(), "{text}");
        }
    }

    #[test]
    fn amounts_have_units_or_are_off() {
        assert_eq!(count("off"), Ok(None));
        assert_eq!(count("2GiB"), Ok(Some(2 << 30)));
        assert_eq!(count("10MiB/s"), Ok(Some(10 << 20)));
        assert!(count("10").is_err() && count("1B").is_err() && count("x").is_err());
        assert_eq!(tickets("off"), Ok(None));
        assert_eq!(tickets("1h"), Ok(Some(Duration::from_secs(3600))));
        assert!(tickets("1s").is_err() && tickets("13h").is_err() && tickets("90").is_err());
    }

    #[test]
    fn protocols_and_tlvs_are_printable() {
        assert!(alpn("http/1.1").is_ok() && tlv("vpce-08d2bf15fac5001c9").is_ok());
        assert!(
            alpn("").is_err() && alpn("a b").is_err() && tlv("\n").is_err() && tlv(&"x".repeat(257)).is_err()
        );
        assert_eq!(server_name("DB.example.com.").as_deref(), Ok("db.example.com"));
        assert!(server_name("10.0.0.1").is_ok() && server_name("*.x").is_err());
    }
}

//! The names in a certificate (its SAN extension, RFC 5280 section 4.2.1.6), and the rules about them.

use std::net::IpAddr;

use rustls::pki_types::CertificateDer;
use x509_parser::{
    asn1_rs::Tag, certificate::X509Certificate, extensions::GeneralName, x509::AttributeTypeAndValue,
};

use crate::config::NamePattern;

/// Why the names of a certificate do not do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refused {
    /// None of them is allowed.
    #[error("{0}")]
    Name(String),
    /// They cannot be trusted to be what they look like.
    #[error("{0}")]
    Broken(String),
}

/// Who shows a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// A client: a wildcard is nobody's name.
    Client,
    /// An endpoint: a wildcard stands for one label (RFC 9525 section 6.3).
    Endpoint,
}

/// The names of a certificate. Those that no name can look like are told in `broken`.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// Lower case.
    pub(super) dns: Vec<String>,
    pub(super) uris: Vec<String>,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) broken: Option<String>,
    /// It may sign certificates, or says so: no leaf.
    signs: bool,
}

impl Names {
    pub(super) fn of(certificate: &X509Certificate<'_>) -> Self {
        let mut names = Self::default();
        match certificate.subject_alternative_name() {
            Ok(Some(found)) => found.value.general_names.iter().for_each(|name| names.take(name)),
            Ok(None) => {}
            Err(_) => names.broken = Some("the certificate has several SAN extensions".to_owned()),
        }
        names.signs = match certificate.key_usage() {
            Ok(usage) => usage.is_some_and(|usage| usage.value.key_cert_sign() || usage.value.crl_sign()),
            Err(_) => true,
        } || certificate.is_ca();
        names
    }

    /// All of them, escaped.
    pub(super) fn everything(&self) -> Vec<String> {
        let addresses = self.addresses.iter().map(IpAddr::to_string);
        self.dns.iter().chain(&self.uris).map(|name| shown(name)).chain(addresses).collect()
    }

    fn take(&mut self, name: &GeneralName<'_>) {
        match name {
            GeneralName::DNSName(name) if clean(name) => self.dns.push(name.to_ascii_lowercase()),
            GeneralName::URI(name) if clean(name) => self.uris.push((*name).to_owned()),
            GeneralName::DNSName(name) | GeneralName::URI(name) | GeneralName::RFC822Name(name)
                if !clean(name) =>
            {
                self.broken = Some(format!(
                    "a name in the certificate has characters that no name has: {}",
                    shown(name)
                ));
            }
            GeneralName::IPAddress(bytes) => self.addresses.extend(address(bytes)),
            GeneralName::Invalid(..) => {
                self.broken = Some("a name in the certificate cannot be read".to_owned());
            }
            _ => {}
        }
    }
}

/// Checks the names of a certificate: none may be broken, and if there are patterns, one of the names must match one of
/// them.
pub(super) fn check(
    certificate: &CertificateDer<'_>,
    patterns: &[NamePattern],
    side: Side,
) -> Result<(), Refused> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate)
        .map_err(|error| Refused::Broken(format!("the certificate cannot be read: {error}")))?;
    let names = Names::of(&parsed);
    if let Some(what) = &names.broken {
        return Err(Refused::Broken(what.clone()));
    }
    if patterns.is_empty() || patterns.iter().any(|pattern| matches(pattern, &names, side)) {
        return Ok(());
    }
    Err(Refused::Name(refusal(&names, patterns)))
}

/// The SPIFFE id of an X.509-SVID and its trust domain. A leaf has an id with a path (X.509-SVID, section 3.1).
pub(super) fn svid(certificate: &CertificateDer<'_>) -> Result<(String, String), Refused> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate)
        .map_err(|error| Refused::Broken(format!("the certificate cannot be read: {error}")))?;
    let names = Names::of(&parsed);
    if let Some(what) = &names.broken {
        return Err(Refused::Broken(what.clone()));
    }
    let parts = spiffe_id(&names).and_then(|id| Some((id, id.strip_prefix("spiffe://")?.split_once('/')?.0)));
    parts.map(|(id, domain)| (id.to_owned(), domain.to_owned())).ok_or_else(|| {
        let has = list(&names.everything());
        Refused::Name(format!(
            "the certificate has no SPIFFE id of a workload: it has {has}{}",
            because(&names)
        ))
    })
}

/// The common name in a certificate's subject (RFC 5280 section 4.1.2.6), if it has exactly one: who reads the first of
/// several and who reads the last would not agree. `None` also where it is empty, longer than 255 bytes, has a control
/// character, or is of no type whose characters are known (RFC 5280 section 4.1.2.4: TeletexString and UniversalString).
#[must_use]
pub fn common_name(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let mut names = parsed.subject().iter_common_name();
    let (name, None) = (names.next()?, names.next()) else { return None };
    let name = text(name)?;
    let right = !name.is_empty() && name.len() <= LONGEST_COMMON_NAME && !name.contains(char::is_control);
    right.then_some(name)
}

/// The longest common name, in bytes. The standard allows 64 characters (RFC 5280 appendix A.1, ub-common-name).
const LONGEST_COMMON_NAME: usize = 255;

fn text(value: &AttributeTypeAndValue<'_>) -> Option<String> {
    if value.attr_value().tag() != Tag::BmpString {
        return value.as_str().ok().map(ToOwned::to_owned);
    }
    let (units, rest) = value.as_slice().as_chunks();
    let units = units.iter().map(|unit| u16::from_be_bytes(*unit));
    char::decode_utf16(units).collect::<Result<_, _>>().ok().filter(|_| rest.is_empty())
}

fn matches(pattern: &NamePattern, names: &Names, side: Side) -> bool {
    match pattern {
        NamePattern::Dns(name) => names.dns.iter().any(|has| match (wildcard(has), side) {
            (None, _) => has == name,
            (Some(_), Side::Client) => false,
            (Some(rest), Side::Endpoint) => one_label_before(name, rest),
        }),
        NamePattern::DnsBelow(suffix) => names.dns.iter().any(|has| match (wildcard(has), side) {
            (None, _) => below(has, suffix),
            (Some(_), Side::Client) => false,
            (Some(rest), Side::Endpoint) => rest.ends_with(suffix.as_str()),
        }),
        NamePattern::Spiffe(id) => spiffe_id(names).is_some_and(|has| has == id),
        NamePattern::SpiffeBelow(start) => {
            spiffe_id(names).is_some_and(|has| has.len() > start.len() && has.starts_with(start.as_str()))
        }
    }
}

/// What comes after the star of `*.example.com`, with its dot. As in the library's own check, a star for all names of a
/// top-level domain is none.
fn wildcard(name: &str) -> Option<&str> {
    let rest = name.strip_prefix('*')?;
    rest.strip_prefix('.').is_some_and(|domain| domain.contains('.')).then_some(rest)
}

/// True if `name` is one label and then `rest`, which begins with a dot.
fn one_label_before(name: &str, rest: &str) -> bool {
    name.strip_suffix(rest).is_some_and(|label| !label.is_empty() && !label.contains('.'))
}

/// True if `name` is labels, none of them empty, and then `suffix`, which begins with a dot.
fn below(name: &str, suffix: &str) -> bool {
    let label = |label: &str| !label.is_empty() && !label.contains('*');
    name.strip_suffix(suffix).is_some_and(|labels| labels.split('.').all(label))
}

/// The SPIFFE id of a certificate, if it is an X.509-SVID: one URI name and no more, which keeps to the grammar, in a
/// leaf (X.509-SVID sections 2, 4.3 and 5.2; SPIFFE-ID section 2).
fn spiffe_id(names: &Names) -> Option<&str> {
    let [uri] = names.uris.as_slice() else { return None };
    if names.signs || uri.len() > LONGEST_ID {
        return None;
    }
    let (domain, path) = match uri.strip_prefix("spiffe://")?.split_once('/') {
        Some((domain, path)) => (domain, Some(path)),
        None => (uri.strip_prefix("spiffe://")?, None),
    };
    let domain_char = |c: char| matches!(c, 'a'..='z' | '0'..='9' | '.' | '-' | '_');
    let path_char = |c: char| matches!(c, 'a'..='z' | 'A'..='Z' | '0'..='9' | '.' | '-' | '_');
    let segment = |part: &str| !matches!(part, "" | "." | "..") && part.chars().all(path_char);
    let right = !domain.is_empty()
        && domain.chars().all(domain_char)
        && path.is_none_or(|path| path.split('/').all(segment));
    right.then_some(uri)
}

/// The longest SPIFFE id, in bytes (SPIFFE-ID section 2.3).
const LONGEST_ID: usize = 2048;

fn refusal(names: &Names, patterns: &[NamePattern]) -> String {
    let asked: Vec<_> = patterns.iter().map(written).collect();
    let wants_id = patterns
        .iter()
        .any(|pattern| matches!(pattern, NamePattern::Spiffe(_) | NamePattern::SpiffeBelow(_)));
    let has = list(&names.everything());
    let asked = list(&asked);
    let because = if wants_id { because(names) } else { "" };
    format!("no name in the certificate is allowed: it has {has}, allowed are {asked}{because}")
}

/// Why a certificate with URIs has no SPIFFE id.
fn because(names: &Names) -> &'static str {
    match names.uris.as_slice() {
        [_] if names.signs => "; its SPIFFE id does not count, as it may sign certificates",
        [_] if spiffe_id(names).is_none() => "; its URI is not a right SPIFFE id",
        [_, _, ..] => "; a certificate with several URIs has no SPIFFE id",
        _ => "",
    }
}

fn written(pattern: &NamePattern) -> String {
    match pattern {
        NamePattern::Dns(name) | NamePattern::Spiffe(name) => name.clone(),
        NamePattern::DnsBelow(suffix) => format!("*{suffix}"),
        NamePattern::SpiffeBelow(start) => format!("{start}*"),
    }
}

/// Names that one line of the log tells.
const TOLD: usize = 4;

fn list(names: &[String]) -> String {
    let told: Vec<_> = names.iter().take(TOLD).map(String::as_str).collect();
    match names.len().checked_sub(TOLD) {
        None | Some(0) if told.is_empty() => "none".to_owned(),
        None | Some(0) => told.join(", "),
        Some(more) => format!("{} and {more} more", told.join(", ")),
    }
}

/// What a peer wrote, safe for a line of the log: escaped, and at most 253 characters, the longest host name.
pub(super) fn shown(text: &str) -> String {
    text.chars().flat_map(char::escape_default).take(253).collect()
}

fn clean(name: &str) -> bool {
    name.bytes().all(|byte| byte.is_ascii_graphic())
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

//! Handshakes in words: why one failed, and what was agreed on in one that did not.

use std::{io, sync::Arc};

use rustls::{
    AlertDescription, CertificateError, CommonState, Error, HandshakeKind, InvalidMessage, PeerIncompatible,
    ProtocolVersion, pki_types::UnixTime, server::danger::ClientCertVerifier,
};

use super::{
    clients,
    names::{Refused, shown},
};

/// What was agreed on in a handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Negotiated {
    /// `TLSv1.2` or `TLSv1.3`.
    pub version: &'static str,
    /// The cipher suite, as RFCs write it: `TLS13_AES_256_GCM_SHA384`.
    pub suite: &'static str,
    /// The protocol (ALPN), escaped, if any.
    pub alpn: Option<String>,
    /// True if an earlier session was resumed.
    pub resumed: bool,
}

/// What was agreed on; `None` before the end of the handshake.
#[must_use]
pub fn negotiated(connection: &CommonState) -> Option<Negotiated> {
    Some(Negotiated {
        version: version_word(connection.protocol_version()?),
        suite: connection.negotiated_cipher_suite()?.suite().as_str().unwrap_or("unknown"),
        alpn: connection.alpn_protocol().map(|name| shown(&String::from_utf8_lossy(name))),
        resumed: connection.handshake_kind()? == HandshakeKind::Resumed,
    })
}

/// A version of TLS, as logs have it.
#[must_use]
pub const fn version_word(version: ProtocolVersion) -> &'static str {
    match version {
        ProtocolVersion::TLSv1_3 => "TLSv1.3",
        ProtocolVersion::TLSv1_2 => "TLSv1.2",
        ProtocolVersion::TLSv1_1 => "TLSv1.1",
        ProtocolVersion::TLSv1_0 => "TLSv1.0",
        ProtocolVersion::SSLv3 => "SSLv3",
        ProtocolVersion::SSLv2 => "SSLv2",
        _ => "unknown",
    }
}

/// Judges the certificate of a client that has resumed a session again: it was judged when the session began, and its
/// time may be over since. Fresh sessions, and clients without a certificate, pass.
///
/// # Errors
///
/// What a handshake would have failed with.
pub fn recheck(connection: &CommonState, clients: &Arc<dyn ClientCertVerifier>) -> Result<(), Error> {
    if connection.handshake_kind() != Some(HandshakeKind::Resumed) {
        return Ok(());
    }
    match connection.peer_certificates().and_then(<[_]>::split_first) {
        Some((leaf, rest)) => clients.verify_client_cert(leaf, rest, UnixTime::now()).map(drop),
        None if clients.client_auth_mandatory() => Err(Error::NoCertificatesPresented),
        None => Ok(()),
    }
}

/// Why a handshake failed: a word for metrics, and words for people.
///
/// The words for metrics are `no_certificate`, `certificate_expired` (or its time has not come), `unknown_ca`,
/// `name_not_allowed`, `bad_certificate`, `protocol_version`, `no_shared_cipher`, `no_shared_protocol`, `peer_alert`,
/// `not_tls`, `bad_message` and `other`; [`why_io`] adds `closed` and `reset`.
///
/// A client that was refused for its name is told of in full only if this is called on the thread of the handshake and
/// before it goes on with another one: right where the handshake returned, before the next await.
#[must_use]
pub fn why(error: &Error) -> (&'static str, String) {
    match error {
        Error::NoCertificatesPresented => {
            ("no_certificate", "the peer shows no certificate, and must show one".to_owned())
        }
        Error::InvalidCertificate(error) => certificate(error),
        Error::PeerIncompatible(error) => incompatible(error),
        Error::NoApplicationProtocol => {
            ("no_shared_protocol", "the peer offers no protocol (ALPN) that we speak".to_owned())
        }
        Error::AlertReceived(alert) => {
            ("peer_alert", format!("the peer refused with the alert {}", alert_word(*alert)))
        }
        Error::InvalidMessage(error) if not_tls(error) => {
            ("not_tls", "what the peer sent is not TLS".to_owned())
        }
        Error::InvalidMessage(error) => ("bad_message", format!("the peer sent a wrong message: {error:?}")),
        other => ("other", other.to_string()),
    }
}

/// Why a handshake failed, of what a stream says: an error of TLS inside, or the end of the connection.
///
/// The same holds as for [`why`].
#[must_use]
pub fn why_io(error: &io::Error) -> (&'static str, String) {
    if let Some(error) = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        return why(error);
    }
    match error.kind() {
        io::ErrorKind::UnexpectedEof => {
            ("closed", "the peer closed the connection in the middle of the handshake".to_owned())
        }
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
            ("reset", "the peer reset the connection in the middle of the handshake".to_owned())
        }
        _ => ("other", error.to_string()),
    }
}

fn certificate(error: &CertificateError) -> (&'static str, String) {
    let word = match error {
        CertificateError::Expired
        | CertificateError::ExpiredContext { .. }
        | CertificateError::NotValidYet
        | CertificateError::NotValidYetContext { .. } => "certificate_expired",
        CertificateError::UnknownIssuer => "unknown_ca",
        CertificateError::NotValidForName
        | CertificateError::NotValidForNameContext { .. }
        | CertificateError::ApplicationVerificationFailure => "name_not_allowed",
        CertificateError::Other(other) => match other.0.downcast_ref::<Refused>() {
            Some(Refused::Name(_)) => "name_not_allowed",
            _ => "bad_certificate",
        },
        _ => "bad_certificate",
    };
    (word, certificate_words(error))
}

fn certificate_words(error: &CertificateError) -> String {
    match error {
        CertificateError::Expired => "the peer's certificate has expired".to_owned(),
        CertificateError::ExpiredContext { time, not_after } => {
            format!("the peer's certificate has expired {} ago", span(*not_after, *time))
        }
        CertificateError::NotValidYet => "the time of the peer's certificate has not come".to_owned(),
        CertificateError::NotValidYetContext { time, not_before } => {
            format!("the time of the peer's certificate begins in {}", span(*time, *not_before))
        }
        CertificateError::UnknownIssuer => {
            "the peer's certificate comes from no authority that is trusted here".to_owned()
        }
        CertificateError::NotValidForNameContext { expected, presented } => {
            let presented: Vec<_> = presented.iter().take(4).map(|name| shown(bare(name))).collect();
            let has = if presented.is_empty() { "none".to_owned() } else { presented.join(", ") };
            format!("the peer's certificate is not for {}: it has {has}", shown(&expected.to_str()))
        }
        CertificateError::ApplicationVerificationFailure => clients::last_refusal()
            .unwrap_or_else(|| "no name in the certificate is one of client_names".to_owned()),
        CertificateError::Other(other) => other_words(other),
        other => format!("the peer's certificate is not right: {other}"),
    }
}

/// The name alone: the library writes `DnsName("db.example.com")`.
fn bare(presented: &str) -> &str {
    let inner = presented.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')'));
    inner.map_or(presented, |name| name.trim_matches('"'))
}

fn other_words(other: &rustls::OtherError) -> String {
    if let Some(refused) = other.0.downcast_ref::<Refused>() {
        return refused.to_string();
    }
    let words = format!("{:?}", other.0);
    if words == "CaUsedAsEndEntity" {
        return "the peer shows the certificate of an authority as its own (self-signed, it seems): it needs one that \
                an authority has signed"
            .to_owned();
    }
    format!("the peer's certificate is not right: {}", shown(&words))
}

fn span(from: UnixTime, to: UnixTime) -> String {
    let seconds = to.as_secs().saturating_sub(from.as_secs());
    humantime::format_duration(std::time::Duration::from_secs(seconds)).to_string()
}

fn incompatible(error: &PeerIncompatible) -> (&'static str, String) {
    match error {
        PeerIncompatible::Tls12NotOffered
        | PeerIncompatible::Tls12NotOfferedOrEnabled
        | PeerIncompatible::SupportedVersionsExtensionRequired
        | PeerIncompatible::ServerDoesNotSupportTls12Or13
        | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig => {
            ("protocol_version", "the peer speaks no version of TLS that is allowed here".to_owned())
        }
        PeerIncompatible::NoCipherSuitesInCommon
        | PeerIncompatible::NoKxGroupsInCommon
        | PeerIncompatible::NoSignatureSchemesInCommon
        | PeerIncompatible::NoEcPointFormatsInCommon
        | PeerIncompatible::NoCertificateRequestSignatureSchemesInCommon => {
            ("no_shared_cipher", format!("the peer and we have no algorithms in common: {error:?}"))
        }
        other => ("other", format!("the peer's TLS lacks something: {other:?}")),
    }
}

/// What other protocols look like to one who expects TLS records.
const fn not_tls(error: &InvalidMessage) -> bool {
    matches!(error, InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion)
}

/// An alert as RFC 8446 section 6 writes it.
fn alert_word(alert: AlertDescription) -> String {
    match alert {
        AlertDescription::UnknownCA => "unknown_ca".to_owned(),
        AlertDescription::BadRecordMac => "bad_record_mac".to_owned(),
        other => {
            let mut word = String::new();
            for c in format!("{other:?}").chars().take(48) {
                if c.is_ascii_uppercase() && !word.is_empty() {
                    word.push('_');
                }
                word.push(c.to_ascii_lowercase());
            }
            word
        }
    }
}

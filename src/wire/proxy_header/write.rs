//! Writing headers.

use std::net::{IpAddr, SocketAddr};

use proxy_header::{ProxiedAddress, ProxyHeader, SslInfo, Tlv};

use super::{
    Version, canonical,
    checksum::crc32c,
    tlvs::{self, LONGEST_AUTHORITY, LONGEST_UNIQUE_ID, Name, Tlvs},
};

/// The longest value that has no limit of its own. So a header stays far below the 65,551 bytes that one can have.
const LONGEST: usize = 1024;

/// What a header of version 2 says besides addresses. A value that is too long for its kind (255 bytes, a unique id 128,
/// what is passed on 1,024) is left out: cut, it would be another value.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outgoing<'a> {
    /// The server name that the client asked for.
    pub authority: Option<&'a str>,
    /// The protocol that the client and we have agreed on.
    pub alpn: Option<&'a [u8]>,
    /// The id of the session.
    pub unique_id: Option<&'a [u8]>,
    /// The client's TLS, if it ended here.
    pub tls: Option<OutgoingTls<'a>>,
    /// What a header that came in said: of this the ids of AWS, Google Cloud and Azure are passed on.
    pub passed_on: Option<&'a Tlvs>,
}

/// TLS that ended here.
#[derive(Clone, Copy, Debug)]
pub struct OutgoingTls<'a> {
    /// As OpenSSL names it: `TLSv1.2`, `TLSv1.3`.
    pub version: &'a str,
    /// The client has shown a certificate, and it was right.
    pub verified: bool,
    /// The common name in that certificate.
    pub common_name: Option<&'a str>,
}

/// A header. `addresses` are the client's and the one it asked for. If one is IPv6 and the other is not, the other is
/// mapped into IPv6 (RFC 4291 section 2.5.5.2). `None`: UNKNOWN in version 1, LOCAL in version 2. Version 1 says nothing
/// else; version 2 always has a checksum.
#[must_use]
pub fn write(
    version: Version,
    addresses: Option<(SocketAddr, SocketAddr)>,
    outgoing: &Outgoing<'_>,
) -> Vec<u8> {
    let addresses = addresses.map(|(source, destination)| {
        let (source, destination) = alike(canonical(source), canonical(destination));
        ProxiedAddress::stream(source, destination)
    });
    let mut bytes = Vec::with_capacity(128);
    let written = match version {
        Version::V1 => ProxyHeader::with_tlvs(addresses, []).encode_v1(&mut bytes),
        Version::V2 => {
            let mut header = ProxyHeader::with_tlvs(addresses, tlvs(outgoing));
            header.append_tlv(Tlv::Crc32c(0));
            let written = header.encode_v2(&mut bytes);
            let sum = crc32c(&[&bytes]);
            if let Some(last) = bytes.last_chunk_mut() {
                *last = sum.to_be_bytes();
            }
            written
        }
    };
    debug_assert!(written.is_ok(), "families are alike, lengths are bounded, memory does not end");
    bytes
}

/// Both IPv4, or both IPv6.
fn alike(source: SocketAddr, destination: SocketAddr) -> (SocketAddr, SocketAddr) {
    if source.is_ipv4() == destination.is_ipv4() {
        (source, destination)
    } else {
        (mapped(source), mapped(destination))
    }
}

fn mapped(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), address.port()),
        IpAddr::V6(_) => address,
    }
}

fn tlvs<'a>(outgoing: &Outgoing<'a>) -> Vec<Tlv<'a>> {
    let within = |longest: usize| move |value: &&'a [u8]| value.len() <= longest;
    let mut tlvs = Vec::new();
    tlvs.extend(outgoing.alpn.filter(within(LONGEST_AUTHORITY)).map(|alpn| Tlv::Alpn(alpn.into())));
    let authority = outgoing.authority.filter(|name| name.len() <= LONGEST_AUTHORITY);
    tlvs.extend(authority.map(|name| Tlv::Authority(name.into())));
    tlvs.extend(outgoing.unique_id.filter(within(LONGEST_UNIQUE_ID)).map(|id| Tlv::UniqueId(id.into())));
    tlvs.extend(outgoing.tls.map(ssl));
    for (name, kind, subtype) in [
        (Name::AwsVpcEndpoint, tlvs::AWS, &[tlvs::SUBTYPE][..]),
        (Name::GcpPscConnection, tlvs::GCP, &[]),
        (Name::AzurePrivateLink, tlvs::AZURE, &[tlvs::SUBTYPE]),
    ] {
        let value = outgoing.passed_on.and_then(|tlvs| tlvs.bytes(name)).filter(within(LONGEST));
        tlvs.extend(value.map(|value| Tlv::Custom(kind, [subtype, value].concat().into())));
    }
    tlvs
}

fn ssl(tls: OutgoingTls<'_>) -> Tlv<'_> {
    let mut ssl = SslInfo::new(true, tls.verified, tls.verified, u32::from(!tls.verified));
    ssl.append_tlv(Tlv::SslVersion(tls.version.into()));
    if let Some(name) = tls.common_name.filter(|name| tls.verified && name.len() <= LONGEST_AUTHORITY) {
        ssl.append_tlv(Tlv::SslCn(name.into()));
    }
    Tlv::Ssl(ssl)
}

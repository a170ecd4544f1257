//! Version 2: a binary block (the specification, section 2.2).

use proxy_header::{ParseConfig, Protocol, ProxyHeader};

use super::{BINARY, Header, Malformed, Tlvs, Version, plain};

/// Signature, command, family, length.
const FIXED: usize = 16;

/// The commands, with the version.
const LOCAL: u8 = 0x20;
const PROXY: u8 = 0x21;

/// Reads a block; `bytes` begin with [`BINARY`].
pub(super) fn read(bytes: &[u8], limit: usize) -> Result<Option<(Header, usize)>, Malformed> {
    let mut rest = bytes.iter().copied().skip(BINARY.len());
    let Some(command) = rest.next() else {
        return wait(bytes, limit);
    };
    if !matches!(command, LOCAL | PROXY) {
        return Err(Malformed::Command);
    }
    let Some(family) = rest.next() else {
        return wait(bytes, limit);
    };
    let size = addresses_of(family);
    if command == PROXY && size.is_none() {
        return Err(Malformed::Family);
    }
    let (Some(high), Some(low)) = (rest.next(), rest.next()) else {
        return wait(bytes, limit);
    };
    let total = FIXED + usize::from(u16::from_be_bytes([high, low]));
    let first_tlv = FIXED + size.unwrap_or_default();
    if total > limit {
        return Err(Malformed::TooLong);
    }
    if command == PROXY && total < first_tlv {
        return Err(Malformed::Length);
    }
    let Some(whole) = bytes.get(..total) else {
        return Ok(None);
    };
    let header = if command == LOCAL { local(whole, first_tlv) } else { proxied(whole, first_tlv) };
    Ok(Some((header?, total)))
}

fn wait(bytes: &[u8], limit: usize) -> Result<Option<(Header, usize)>, Malformed> {
    if bytes.len() >= limit { Err(Malformed::TooLong) } else { Ok(None) }
}

/// How many bytes the addresses of a family and transport take; `None`: there is no such pair.
fn addresses_of(family: u8) -> Option<usize> {
    match family {
        0x00 => Some(0),
        0x11 | 0x12 => Some(12),
        0x21 | 0x22 => Some(36),
        0x31 | 0x32 => Some(216),
        _ => None,
    }
}

/// All that a LOCAL header carries is to be discarded; but a checksum, if one can be found, must be right.
fn local(whole: &[u8], first_tlv: usize) -> Result<Header, Malformed> {
    match Tlvs::read(whole, first_tlv) {
        Err(Malformed::Checksum) => Err(Malformed::Checksum),
        _ => Ok(Header { version: Version::V2, addresses: None, tlvs: Tlvs::default() }),
    }
}

fn proxied(whole: &[u8], first_tlv: usize) -> Result<Header, Malformed> {
    let config = ParseConfig { include_tlvs: false, allow_v1: false, allow_v2: true };
    let (header, _) = ProxyHeader::parse(whole, config).map_err(|_| Malformed::Length)?;
    let over_tcp = header.proxied_address().filter(|addresses| addresses.protocol == Protocol::Stream);
    Ok(Header { version: Version::V2, addresses: over_tcp.map(plain), tlvs: Tlvs::read(whole, first_tlv)? })
}

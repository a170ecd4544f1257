//! PROXY protocol headers, versions 1 and 2: reading those of a balancer before us, writing ours to endpoints.
//!
//! Source of the format: `doc/proxy-protocol.txt` of HAProxy, named "the specification" here. Addresses are read and
//! headers written by the `proxy-header` crate. Around it stands what the specification demands and the crate does not:
//! a line of version 1 must be exact in spaces, ports and length (the crate takes any byte after `PROXY`, leading zeros and
//! plus signs, and lines of any length), TLVs must end where the header does, the checksum must be right (the crate
//! leaves both to its user), and what a LOCAL header carries is discarded (the crate refuses unknown families there).
//! Values of TLVs are taken as bytes, since the crate has no way to those that are not UTF-8.

mod block;
mod checksum;
mod line;
#[cfg(test)]
mod tests;
mod tlvs;
mod write;

use std::net::SocketAddr;

pub use self::{
    tlvs::{Name, Ssl, Tlvs},
    write::{Outgoing, OutgoingTls, write},
};

/// The longest header that is read where nothing else is said, in bytes.
pub const DEFAULT_LIMIT: usize = 4096;

/// How a header of version 1 begins.
const TEXT: &[u8] = b"PROXY ";

/// How a header of version 2 begins.
const BINARY: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// A version of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Version {
    /// A line of text, with addresses only.
    V1,
    /// Binary, with TLVs.
    V2,
}

/// What a header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The version it was written in.
    pub version: Version,
    /// The client's address, and the one it asked for; IPv4 as IPv4, even if it came mapped into IPv6. `None`: the
    /// connection's own are right (LOCAL, UNKNOWN, UNSPEC), or they are not of TCP over IP (UNIX sockets, datagrams).
    pub addresses: Option<(SocketAddr, SocketAddr)>,
    /// What else is said of the connection. Empty in version 1 and with LOCAL.
    pub tlvs: Tlvs,
}

/// Whether bytes are the beginning of a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Beginning {
    /// Too few to know.
    Maybe,
    /// They are not: payload.
    No,
    /// They are: whatever follows, it is a header or malformed.
    Yes(Version),
}

/// Why bytes are no header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Malformed {
    /// They begin like none.
    NoHeader,
    /// Longer than the limit, or than a line may be.
    TooLong,
    /// Version 1: spaces, line end, or words that are not as they must be.
    Line,
    /// Version 1: no address, or none of the family that was announced.
    Address,
    /// Version 1: no port.
    Port,
    /// Version 2: another version, or neither LOCAL nor PROXY.
    Command,
    /// Version 2: a family or transport that does not exist.
    Family,
    /// Version 2: too short for its addresses.
    Length,
    /// A TLV that does not end within the header, or is longer or shorter than its kind may be.
    Tlv,
    /// A TLV twice: who reads the first and who reads the last would not agree.
    RepeatedTlv,
    /// The checksum is wrong.
    Checksum,
}

/// Whether `bytes`, the first of a connection, can be the beginning of a header.
#[must_use]
pub fn begins_like_one(bytes: &[u8]) -> Beginning {
    for (signature, version) in [(TEXT, Version::V1), (BINARY, Version::V2)] {
        if bytes.starts_with(signature) {
            return Beginning::Yes(version);
        }
        if signature.starts_with(bytes) {
            return Beginning::Maybe;
        }
    }
    Beginning::No
}

/// Reads the header that `bytes`, the first of a connection, begin with, if it takes no more than `limit` bytes. `None`:
/// more are needed. With the header comes how many of them it took; the rest is payload.
///
/// To be called again with all bytes so far when more have come; the cost of a call is small and bounded.
///
/// # Errors
/// If they are no header and will not become one; known with the first byte, or field of a line, that does not fit.
pub fn read(bytes: &[u8], limit: usize) -> Result<Option<(Header, usize)>, Malformed> {
    match begins_like_one(bytes) {
        Beginning::Maybe if bytes.len() >= limit => Err(Malformed::TooLong),
        Beginning::Yes(_) if limit < TEXT.len() => Err(Malformed::TooLong),
        Beginning::Maybe => Ok(None),
        Beginning::No => Err(Malformed::NoHeader),
        Beginning::Yes(Version::V1) => line::read(bytes, limit),
        Beginning::Yes(Version::V2) => block::read(bytes, limit),
    }
}

impl Malformed {
    /// A word for it, for labels and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoHeader => "no_header",
            Self::TooLong => "header_too_long",
            Self::Line => "line",
            Self::Address => "address",
            Self::Port => "port",
            Self::Command => "command",
            Self::Family => "family",
            Self::Length => "length",
            Self::Tlv => "tlv",
            Self::RepeatedTlv => "repeated_tlv",
            Self::Checksum => "checksum",
        }
    }
}

/// As the crate gives them, IPv4 as IPv4.
fn plain(addresses: &proxy_header::ProxiedAddress) -> (SocketAddr, SocketAddr) {
    (canonical(addresses.source), canonical(addresses.destination))
}

/// IPv4 as IPv4, without scope and flow.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

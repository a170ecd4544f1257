//! What a header of version 2 says besides addresses.

use std::fmt::Write as _;

use super::{Malformed, checksum::crc32c};
use crate::wire::shown::Shown;

/// Types of TLVs (the specification, section 2.2).
pub(super) const ALPN: u8 = 0x01;
pub(super) const AUTHORITY: u8 = 0x02;
pub(super) const CHECKSUM: u8 = 0x03;
pub(super) const UNIQUE_ID: u8 = 0x05;
pub(super) const SSL: u8 = 0x20;
pub(super) const SSL_VERSION: u8 = 0x21;
pub(super) const SSL_CN: u8 = 0x22;
pub(super) const NETNS: u8 = 0x30;

/// Types of clouds, from the range that is free for applications. Another sender may use them for something else: a value
/// of another form is nobody's.
pub(super) const GCP: u8 = 0xe0;
pub(super) const AWS: u8 = 0xea;
pub(super) const AZURE: u8 = 0xee;

/// The one subtype of AWS (VPC endpoint id), and of Azure (link id of a private endpoint).
pub(super) const SUBTYPE: u8 = 1;

/// The longest values that HAProxy takes, too.
pub(super) const LONGEST_AUTHORITY: usize = 255;
pub(super) const LONGEST_UNIQUE_ID: usize = 128;

/// Type and length of a TLV.
const TLV_HEADER: usize = 3;

/// A TLV that has a name here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Name {
    /// 0x01: the protocol the client and the sender have agreed on.
    Alpn,
    /// 0x02: the server name that the client asked the sender for.
    Authority,
    /// 0x05: the sender's id of the connection, up to 128 bytes.
    UniqueId,
    /// 0x30: a network namespace.
    Netns,
    /// 0xEA, subtype 1: the id of a VPC endpoint. Elastic Load Balancing, "Proxy protocol".
    AwsVpcEndpoint,
    /// 0xE0: the id of a Private Service Connect connection, 64 bits, big endian.
    GcpPscConnection,
    /// 0xEE, subtype 1: the link id of a private endpoint, 32 bits, little endian. Azure Private Link service, "Getting
    /// connection information using TCP proxy v2".
    AzurePrivateLink,
}

/// What a header says besides addresses. What has no name here is dropped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tlvs {
    values: Vec<(Name, Box<[u8]>)>,
    ssl: Option<Ssl>,
}

/// What the sender says of the client's TLS (type 0x20).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ssl {
    /// Bits: over TLS (1), with a certificate on this connection (2), with one in this TLS session (4).
    client: u8,
    /// 0: the certificate was verified.
    verify: u32,
    version: Option<Box<[u8]>>,
    common_name: Option<Box<[u8]>>,
}

impl Tlvs {
    /// Whether nothing is said.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.values.is_empty() && self.ssl.is_none()
    }

    /// The value, without subtype.
    #[must_use]
    pub fn bytes(&self, name: Name) -> Option<&[u8]> {
        self.values.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_ref())
    }

    /// The value as it is compared. Numbers in decimal digits. An authority in lower case, without the one trailing dot it
    /// may have; `None` if that leaves nothing, another dot, or what is not printable ASCII. Any other value as it is, or in lower case hexadecimal digits where
    /// it is empty or not printable ASCII.
    #[must_use]
    pub fn text(&self, name: Name) -> Option<String> {
        let value = self.bytes(name)?;
        match name {
            Name::GcpPscConnection => {
                value.try_into().ok().map(|value| u64::from_be_bytes(value).to_string())
            }
            Name::AzurePrivateLink => {
                value.try_into().ok().map(|value| u32::from_le_bytes(value).to_string())
            }
            Name::Authority => {
                let text = printable(value)?;
                let name = text.strip_suffix('.').unwrap_or(text);
                (!name.is_empty() && !name.ends_with('.')).then(|| name.to_ascii_lowercase())
            }
            Name::Alpn | Name::UniqueId | Name::Netns | Name::AwsVpcEndpoint => {
                Some(printable(value).map_or_else(|| hexadecimal(value), ToOwned::to_owned))
            }
        }
    }

    /// The value for logs: numbers in decimal digits, everything else bounded and escaped.
    #[must_use]
    pub fn shown(&self, name: Name) -> Option<Shown> {
        match name {
            Name::GcpPscConnection | Name::AzurePrivateLink => Some(Shown::from(self.text(name)?.as_str())),
            _ => Some(Shown::from(self.bytes(name)?)),
        }
    }

    /// What is said of the client's TLS.
    #[must_use]
    pub fn ssl(&self) -> Option<&Ssl> {
        self.ssl.as_ref()
    }

    /// Reads what a header has from `first` to its end.
    pub(super) fn read(header: &[u8], first: usize) -> Result<Self, Malformed> {
        let mut tlvs = Self::default();
        let mut checked = false;
        for tlv in Walk::new(header, first) {
            let (kind, at, value) = tlv?;
            match kind {
                CHECKSUM if checked => return Err(Malformed::RepeatedTlv),
                CHECKSUM => {
                    check(header, at, value)?;
                    checked = true;
                }
                SSL if tlvs.ssl.is_some() => return Err(Malformed::RepeatedTlv),
                SSL => tlvs.ssl = Some(Ssl::read(value)?),
                _ => tlvs.keep(kind, value)?,
            }
        }
        Ok(tlvs)
    }

    fn keep(&mut self, kind: u8, value: &[u8]) -> Result<(), Malformed> {
        let (name, value) = match (kind, value) {
            (ALPN, _) => (Name::Alpn, value),
            (AUTHORITY, _) if value.len() > LONGEST_AUTHORITY => return Err(Malformed::Tlv),
            (AUTHORITY, _) => (Name::Authority, value),
            (UNIQUE_ID, _) if value.len() > LONGEST_UNIQUE_ID => return Err(Malformed::Tlv),
            (UNIQUE_ID, _) => (Name::UniqueId, value),
            (NETNS, _) => (Name::Netns, value),
            (AWS, [SUBTYPE, id @ ..]) => (Name::AwsVpcEndpoint, id),
            (GCP, [_, _, _, _, _, _, _, _]) => (Name::GcpPscConnection, value),
            (AZURE, [SUBTYPE, id @ ..]) if id.len() == 4 => (Name::AzurePrivateLink, id),
            _ => return Ok(()),
        };
        if self.bytes(name).is_some() {
            return Err(Malformed::RepeatedTlv);
        }
        self.values.push((name, value.into()));
        Ok(())
    }
}

impl Ssl {
    /// Whether the client came over TLS.
    #[must_use]
    pub fn over_tls(&self) -> bool {
        self.client & 1 != 0
    }

    /// Whether the client has shown a certificate, in this connection or in the session that it resumed, and the sender
    /// has found it right.
    #[must_use]
    pub fn verified(&self) -> bool {
        self.client & 6 != 0 && self.verify == 0
    }

    /// The version of TLS, for logs.
    #[must_use]
    pub fn version(&self) -> Option<Shown> {
        self.version.as_deref().map(Shown::from)
    }

    /// The common name in the client's certificate, for logs. Means nothing unless [`Ssl::verified`].
    #[must_use]
    pub fn common_name(&self) -> Option<Shown> {
        self.common_name.as_deref().map(Shown::from)
    }

    fn read(value: &[u8]) -> Result<Self, Malformed> {
        let [client, a, b, c, d, ..] = *value else {
            return Err(Malformed::Tlv);
        };
        let mut ssl =
            Self { client, verify: u32::from_be_bytes([a, b, c, d]), version: None, common_name: None };
        for tlv in Walk::new(value, 5) {
            let (kind, _, value) = tlv?;
            let slot = match kind {
                SSL_VERSION => &mut ssl.version,
                SSL_CN => &mut ssl.common_name,
                _ => continue,
            };
            if slot.replace(value.into()).is_some() {
                return Err(Malformed::RepeatedTlv);
            }
        }
        Ok(ssl)
    }
}

/// TLVs one after the other, each with where its value begins.
struct Walk<'a> {
    bytes: &'a [u8],
    next: usize,
}

impl<'a> Walk<'a> {
    fn new(bytes: &'a [u8], first: usize) -> Self {
        Self { bytes, next: first }
    }
}

impl<'a> Iterator for Walk<'a> {
    type Item = Result<(u8, usize, &'a [u8]), Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.next == self.bytes.len() {
            return None;
        }
        let rest = self.bytes.get(self.next..).unwrap_or_default();
        let tlv = match *rest {
            [kind, high, low, ..] => {
                let end = TLV_HEADER + usize::from(u16::from_be_bytes([high, low]));
                rest.get(TLV_HEADER..end).map(|value| (kind, self.next + TLV_HEADER, value))
            }
            _ => None,
        };
        self.next = tlv.map_or(self.bytes.len(), |(_, at, value)| at + value.len());
        Some(tlv.ok_or(Malformed::Tlv))
    }
}

/// The checksum is of the whole header, with zeros in its own place.
fn check(header: &[u8], at: usize, value: &[u8]) -> Result<(), Malformed> {
    let said = u32::from_be_bytes(value.try_into().map_err(|_| Malformed::Tlv)?);
    let before = header.get(..at).unwrap_or_default();
    let after = header.get(at + value.len()..).unwrap_or_default();
    if crc32c(&[before, &[0; 4], after]) == said { Ok(()) } else { Err(Malformed::Checksum) }
}

/// As text, if it is some and printable ASCII.
fn printable(bytes: &[u8]) -> Option<&str> {
    let fits = !bytes.is_empty() && bytes.iter().all(|byte| matches!(byte, b' '..=b'~'));
    std::str::from_utf8(bytes).ok().filter(|_| fits)
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

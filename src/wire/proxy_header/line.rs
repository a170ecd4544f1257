//! Version 1: one line of text (the specification, section 2.1).

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    str::{self, FromStr},
};

use proxy_header::{ParseConfig, ProxyHeader};

use super::{Header, Malformed, TEXT, Tlvs, Version, plain};

/// The longest line, with its end.
const LONGEST: usize = 107;

/// The longest an IPv4 and an IPv6 address, and a port, can be.
const V4: usize = 15;
const V6: usize = 45;
const PORT: usize = 5;

/// Reads a line; `bytes` begin with [`TEXT`].
pub(super) fn read(bytes: &[u8], limit: usize) -> Result<Option<(Header, usize)>, Malformed> {
    let most = limit.min(LONGEST);
    let seen = bytes.get(..most).unwrap_or(bytes);
    let Some(end) = seen.iter().position(|&byte| byte == b'\n') else {
        check(seen.strip_suffix(b"\r").unwrap_or(seen), seen.ends_with(b"\r"))?;
        return if seen.len() == most { Err(Malformed::TooLong) } else { Ok(None) };
    };
    let line = seen.get(..end).and_then(|line| line.strip_suffix(b"\r")).ok_or(Malformed::Line)?;
    check(line, true)?;
    let whole = seen.get(..=end).ok_or(Malformed::Line)?;
    let config = ParseConfig { include_tlvs: false, allow_v1: true, allow_v2: false };
    let (header, length) = ProxyHeader::parse(whole, config).map_err(|_| Malformed::Line)?;
    let addresses = header.proxied_address().map(plain);
    Ok(Some((Header { version: Version::V1, addresses, tlvs: Tlvs::default() }, length)))
}

/// Whether `line`, without its end, is as it must be; unless it is `whole`, as far as it goes.
fn check(line: &[u8], whole: bool) -> Result<(), Malformed> {
    if line.contains(&b'\r') {
        return Err(Malformed::Line);
    }
    let mut fields = line.strip_prefix(TEXT).ok_or(Malformed::Line)?.split(|&byte| byte == b' ').peekable();
    let mut count = 0;
    let mut family = b"".as_slice();
    while let Some(field) = fields.next() {
        let ended = whole || fields.peek().is_some();
        match (count, family) {
            (0, _) if ended && field == b"UNKNOWN" => return Ok(()), // whatever follows
            (0, _) => self::family(field, ended)?,
            (1 | 2, b"TCP4") => address::<Ipv4Addr>(field, ended, V4)?,
            (1 | 2, _) => address::<Ipv6Addr>(field, ended, V6)?,
            (3 | 4, _) => port(field, ended)?,
            _ => return Err(Malformed::Line),
        }
        if count == 0 {
            family = field;
        }
        count += 1;
    }
    if whole && count != 5 { Err(Malformed::Line) } else { Ok(()) }
}

fn family(field: &[u8], ended: bool) -> Result<(), Malformed> {
    let fits = |word: &&[u8]| if ended { *word == field } else { word.starts_with(field) };
    let words: [&[u8]; 3] = [b"TCP4", b"TCP6", b"UNKNOWN"];
    if words.iter().any(fits) { Ok(()) } else { Err(Malformed::Line) }
}

fn address<T: FromStr>(field: &[u8], ended: bool, longest: usize) -> Result<(), Malformed> {
    let fits = if ended {
        str::from_utf8(field).is_ok_and(|text| text.parse::<T>().is_ok())
    } else {
        field.len() <= longest
            && field.iter().all(|byte| byte.is_ascii_digit() || *byte == b'.' || longest == V6 && v6(*byte))
    };
    if fits { Ok(()) } else { Err(Malformed::Address) }
}

fn v6(byte: u8) -> bool {
    byte.is_ascii_hexdigit() || byte == b':'
}

/// Without leading zeros, which the specification forbids, and without the plus sign that Rust takes.
fn port(field: &[u8], ended: bool) -> Result<(), Malformed> {
    let digits = field.len() <= PORT && field.iter().all(u8::is_ascii_digit);
    let zero = field.len() > 1 && field.starts_with(b"0");
    let number = !ended || str::from_utf8(field).is_ok_and(|text| text.parse::<u16>().is_ok());
    if digits && !zero && number { Ok(()) } else { Err(Malformed::Port) }
}

//! The specification's headers, and what is none.

mod properties;
mod writing;

use std::net::{Ipv4Addr, Ipv6Addr};

use super::*;

type Addresses = Option<(SocketAddr, SocketAddr)>;

fn addresses(source: &str, destination: &str) -> Addresses {
    Some((source.parse().unwrap(), destination.parse().unwrap()))
}

fn all(bytes: &[u8]) -> Result<Option<(Header, usize)>, Malformed> {
    read(bytes, DEFAULT_LIMIT)
}

/// The header that these bytes are, whole and nothing else.
fn header(bytes: &[u8]) -> Header {
    let (header, length) = all(bytes).unwrap().unwrap();
    assert_eq!(length, bytes.len());
    header
}

/// A header of version 2.
fn binary(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(body.len()).unwrap().to_be_bytes();
    [BINARY, &[command, family], &length, body].concat()
}

const V4: &[u8] = &[192, 0, 2, 1, 198, 51, 100, 2, 0x30, 0x39, 1, 0xbb];

fn with_tlvs(tlvs: &[Vec<u8>]) -> Vec<u8> {
    binary(0x21, 0x11, &[V4, &tlvs.concat()].concat())
}

fn tlv(kind: u8, value: &[u8]) -> Vec<u8> {
    [&[kind], &u16::try_from(value.len()).unwrap().to_be_bytes()[..], value].concat()
}

/// The same header with a checksum that is right.
fn with_checksum(tlvs: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = with_tlvs(&[tlvs, &[tlv(3, &[0; 4])]].concat());
    let sum = checksum::crc32c(&[&bytes]);
    *bytes.last_chunk_mut().unwrap() = sum.to_be_bytes();
    bytes
}

/// Headers that must be taken, and what they say.
fn valid() -> Vec<(Vec<u8>, Addresses)> {
    let v6 = [&Ipv6Addr::LOCALHOST.octets()[..], &Ipv6Addr::LOCALHOST.octets(), &[0, 1, 0, 2]].concat();
    let mapped = Ipv4Addr::new(192, 0, 2, 1).to_ipv6_mapped().octets();
    let both_mapped = [&mapped[..], &mapped, &[0, 1, 0, 2]].concat();
    let four = addresses("192.0.2.1:12345", "198.51.100.2:443");
    let text = |line: &str| line.as_bytes().to_vec();
    vec![
        (
            text("PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n"),
            addresses("192.168.0.1:56324", "192.168.0.11:443"),
        ),
        (
            text("PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n"),
            addresses("255.255.255.255:65535", "255.255.255.255:65535"),
        ),
        (text("PROXY TCP4 0.0.0.0 0.0.0.0 0 0\r\n"), addresses("0.0.0.0:0", "0.0.0.0:0")),
        (text("PROXY TCP6 2001:DB8::1 ::1 1 65535\r\n"), addresses("[2001:db8::1]:1", "[::1]:65535")),
        (
            text(&format!("PROXY TCP6 {0} {0} 65535 65535\r\n", ["ffff"; 8].join(":"))),
            Some((
                SocketAddr::new(Ipv6Addr::from([255; 16]).into(), 65535),
                SocketAddr::new(Ipv6Addr::from([255; 16]).into(), 65535),
            )),
        ),
        (text("PROXY TCP6 ::ffff:192.0.2.1 ::2 1 2\r\n"), addresses("192.0.2.1:1", "[::2]:2")),
        (text("PROXY UNKNOWN\r\n"), None),
        (text(&format!("PROXY UNKNOWN {0} {0} 65535 65535\r\n", ["ffff"; 8].join(":"))), None),
        (text("PROXY UNKNOWN \t anything, \0 \x7f at all  \r\n"), None),
        (binary(0x21, 0x11, V4), four),
        (binary(0x21, 0x21, &v6), addresses("[::1]:1", "[::1]:2")),
        (binary(0x21, 0x21, &both_mapped), addresses("192.0.2.1:1", "192.0.2.1:2")),
        (with_tlvs(&[tlv(4, &[0; 300]), tlv(0xf3, b"what?")]), four),
        (with_checksum(&[tlv(2, b"a.example")]), four),
        (binary(0x20, 0x00, &[]), None),
        (binary(0x20, 0x11, V4), None),
        (binary(0x20, 0x11, &[1, 2, 3]), None),
        (binary(0x20, 0xff, &[9; 40]), None),
        (binary(0x21, 0x00, &[]), None),
        (binary(0x21, 0x12, V4), None),
        (binary(0x21, 0x22, &v6), None),
        (binary(0x21, 0x31, &[b'/'; 216]), None),
        (binary(0x21, 0x32, &[b'/'; 216]), None),
    ]
}

#[test]
fn headers_of_the_specification_are_read() {
    for (bytes, addresses) in valid() {
        assert_eq!(header(&bytes).addresses, addresses, "{}", bytes.escape_ascii());
    }
}

#[test]
fn every_piece_of_a_header_asks_for_more() {
    for (bytes, _) in valid() {
        for end in 0..bytes.len() {
            assert_eq!(all(&bytes[..end]), Ok(None), "{} of {}", end, bytes.escape_ascii());
        }
    }
}

#[test]
fn what_follows_a_header_is_payload() {
    for (bytes, addresses) in valid() {
        for payload in [&b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2\r\n"[..], b"\r\n", &[0xff; 5000]] {
            let (header, length) = all(&[&bytes, payload].concat()).unwrap().unwrap();
            assert_eq!((header.addresses, length), (addresses, bytes.len()));
        }
    }
}

/// What follows `PROXY `, and why it is no line.
const NO_LINES: &[(&str, Malformed)] = &[
    ("TCP4 192.0.2.1 192.0.2.2 65536 1\r\n", Malformed::Port),
    ("TCP4 192.0.2.1 192.0.2.2 -1 1\r\n", Malformed::Port),
    ("TCP4 192.0.2.1 192.0.2.2 +1 1\r\n", Malformed::Port),
    ("TCP4 192.0.2.1 192.0.2.2 1e3 1\r\n", Malformed::Port),
    ("TCP4 192.0.2.1 192.0.2.2 0x50 1\r\n", Malformed::Port),
    ("TCP4 192.0.2.1 192.0.2.2 080 1\r\n", Malformed::Port),
    ("TCP4 192.0.2.1 192.0.2.2 1 00\r\n", Malformed::Port),
    ("TCP4 192.0.2.1 192.0.2.2 1 65536\r\n", Malformed::Port),
    ("TCP4 192.0.2.1 192.0.2.2 1 \r\n", Malformed::Port),
    ("TCP4 192.0.2.1 192.0.2.2  1 2\r\n", Malformed::Port),
    ("TCP4 192.0.2.1 192.0.2.2 1 2 \r\n", Malformed::Line),
    ("TCP4 192.0.2.1 192.0.2.2 1 2 3\r\n", Malformed::Line),
    ("TCP4 192.0.2.1 192.0.2.2 1 2\n", Malformed::Line),
    ("TCP4 192.0.2.1 192.0.2.2 1 2\rX", Malformed::Line),
    ("TCP4 192.0.2.1 192.0.2.2 1 2\r\r\n", Malformed::Line),
    ("TCP4 192.0.2.1 192.0.2.2 1\r\n", Malformed::Line),
    ("TCP4 192.0.2.1 192.0.2.2 1 2\0\r\n", Malformed::Port),
    ("TCP4 192.0.2.1\0 192.0.2.2 1 2\r\n", Malformed::Address),
    ("TCP4 256.0.2.1 192.0.2.2 1 2\r\n", Malformed::Address),
    ("TCP4 192.0.2.01 192.0.2.2 1 2\r\n", Malformed::Address),
    ("TCP4 192.0.2 192.0.2.2 1 2\r\n", Malformed::Address),
    ("TCP4 192.0.2.1 192.0.2.256 1 2\r\n", Malformed::Address),
    ("TCP4 ::1 ::2 1 2\r\n", Malformed::Address),
    ("TCP4 192.0.2.1 ::2 1 2\r\n", Malformed::Address),
    ("TCP6 192.0.2.1 192.0.2.2 1 2\r\n", Malformed::Address),
    ("TCP6 ::1 192.0.2.2 1 2\r\n", Malformed::Address),
    ("TCP6 fe80::1%eth0 ::2 1 2\r\n", Malformed::Address),
    ("TCP6 1:2:3 ::2 1 2\r\n", Malformed::Address),
    ("TCP6 [::1] ::2 1 2\r\n", Malformed::Address),
    ("TCP4  192.0.2.1 192.0.2.2 1 2\r\n", Malformed::Address),
    ("TCP4\t192.0.2.1 192.0.2.2 1 2\r\n", Malformed::Line),
    ("TCP4 192.0.2.1\t192.0.2.2 1 2\r\n", Malformed::Address),
    (" TCP4 192.0.2.1 192.0.2.2 1 2\r\n", Malformed::Line),
    ("tcp4 192.0.2.1 192.0.2.2 1 2\r\n", Malformed::Line),
    ("TCP5 192.0.2.1 192.0.2.2 1 2\r\n", Malformed::Line),
    ("UDP4 192.0.2.1 192.0.2.2 1 2\r\n", Malformed::Line),
    ("TCP4\r\n", Malformed::Line),
    ("\r\n", Malformed::Line),
    ("UNKNOWN\n", Malformed::Line),
    ("UNKNOWNX\r\n", Malformed::Line),
    ("UNKNOWN a\rb\r\n", Malformed::Line),
];

#[test]
fn lines_that_are_not_exact_are_refused() {
    let long = "x".repeat(200);
    let longer = [format!("UNKNOWN {long}\r\n"), format!("UNKNOWN {}\r\n", "x".repeat(107 - 6 - 8 - 2 + 1))];
    let longer = longer.iter().map(|line| (line.as_str(), Malformed::TooLong));
    for (line, why) in NO_LINES.iter().copied().chain(longer) {
        let bytes = [TEXT, line.as_bytes()].concat();
        assert_eq!(all(&bytes), Err(why), "{line:?}");
        // One byte at a time it is refused, too, and never taken.
        let end = (0..=bytes.len()).find(|&end| all(&bytes[..end]) != Ok(None)).unwrap();
        assert!(all(&bytes[..end]).is_err(), "{line:?}");
    }
    for line in [
        "PROXYTCP4 1.1.1.1 2.2.2.2 1 2\r\n",
        "PROXY\tTCP4 1.1.1.1 2.2.2.2 1 2\r\n",
        "proxy UNKNOWN\r\n",
        "\0PROXY",
    ] {
        assert_eq!(all(line.as_bytes()), Err(Malformed::NoHeader), "{line:?}");
    }
    assert_eq!(all(&[TEXT, &[b'U'; 1]].concat()), Ok(None));
    assert_eq!(all(format!("PROXY UNKNOWN {}", "x".repeat(93)).as_bytes()), Err(Malformed::TooLong));
}

#[test]
fn garbage_is_refused_at_the_first_byte_that_cannot_be() {
    for (bytes, fits) in [
        (&b"GET / HTTP/1.1\r\n"[..], 0),
        (b"PROPFIND / HTTP/1.1\r\n", 3),
        (b"PROXY HTTP", 6),
        (b"PROXY TCP4 1.2.3.4x", 18),
        (b"PROXY TCP4 1.2.3.4 5.6.7.8 1x", 28),
        (b"PROXY TCP4 1.2.3.4567890123456", 26),
        (b"\r\n\r\n\0\r\nQUIT\r", 11),
        (b"\r\n\r\n\0\r\nQUIT\n\x22", 12),
        (b"\r\n\r\n\0\r\nQUIT\n\x21\x13", 13),
    ] {
        let known = (0..=bytes.len()).find(|&end| all(&bytes[..end]).is_err()).unwrap();
        assert_eq!(known, fits + 1, "{}", bytes.escape_ascii());
    }
}

#[test]
fn blocks_that_are_not_right_are_refused() {
    for command in (0..=255_u8).filter(|command| !matches!(command, 0x20 | 0x21)) {
        assert_eq!(all(&binary(command, 0x11, V4)), Err(Malformed::Command), "{command:02x}");
    }
    for family in (0..=255).filter(|family| !matches!(family, 0 | 0x11 | 0x12 | 0x21 | 0x22 | 0x31 | 0x32)) {
        assert_eq!(all(&binary(0x21, family, &[0; 216])), Err(Malformed::Family), "{family:02x}");
    }
    for (family, length) in [(0x11, 12), (0x12, 12), (0x21, 36), (0x22, 36), (0x31, 216), (0x32, 216)] {
        for short in 0..length {
            assert_eq!(
                all(&binary(0x21, family, &vec![0; short])),
                Err(Malformed::Length),
                "{family:02x} {short}"
            );
        }
        assert!(all(&binary(0x21, family, &vec![0; length])).is_ok());
    }
}

#[test]
fn tlvs_must_end_with_the_header() {
    for odd in [&[0xe5][..], &[0xe5, 0], &[0xe5, 0, 1], &[0xe5, 0xff, 0xff, 1, 2, 3], &[4, 0, 0, 4]] {
        assert_eq!(all(&with_tlvs(&[odd.to_vec()])), Err(Malformed::Tlv), "{odd:?}");
    }
    for wrong in [
        tlv(3, &[0; 3]),
        tlv(2, &[b'a'; 256]),
        tlv(5, &[1; 129]),
        tlv(0x20, &[1, 0, 0, 0]),
        tlv(0x20, &[1, 0, 0, 0, 0, 0x21, 0, 9, b'T']),
    ] {
        assert_eq!(all(&with_tlvs(&[wrong])), Err(Malformed::Tlv));
    }
}

#[test]
fn a_wrong_checksum_is_refused_and_so_is_every_changed_bit() {
    assert_eq!(all(&with_tlvs(&[tlv(3, &[0; 4])])), Err(Malformed::Checksum));
    let bytes = with_checksum(&[tlv(5, b"id")]);
    let right = header(&bytes);
    for bit in 0..bytes.len() * 8 {
        let mut changed = bytes.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        match all(&changed) {
            // LOCAL, or a type that is no checksum: then nothing of it is believed, or nothing was promised.
            Ok(Some((header, _))) => {
                assert!(bit / 8 == bytes.len() - 7, "bit {bit}: {header:?} for {right:?}");
            }
            Ok(None) => assert!(matches!(bit / 8, 14 | 15), "bit {bit}"),
            Err(_) => {}
        }
    }
    let local = {
        let mut bytes = bytes;
        bytes[12] = 0x20;
        bytes
    };
    assert_eq!(all(&local), Err(Malformed::Checksum));
}

#[test]
fn a_tlv_twice_is_refused_unless_it_means_nothing() {
    for twice in [
        tlv(1, b"h2"),
        tlv(2, b"a"),
        tlv(5, b"1"),
        tlv(0x30, b"ns"),
        tlv(0xea, b"\x01vpce-1"),
        tlv(0xe0, &[0; 8]),
        tlv(0xee, &[1, 0, 0, 0, 0]),
        tlv(0x20, &[1, 0, 0, 0, 0]),
    ] {
        assert_eq!(all(&with_tlvs(&[twice.clone(), tlv(4, b""), twice])), Err(Malformed::RepeatedTlv));
    }
    let inside = [&[1, 0, 0, 0, 0][..], &tlv(0x22, b"a"), &tlv(0x22, b"b")].concat();
    assert_eq!(all(&with_tlvs(&[tlv(0x20, &inside)])), Err(Malformed::RepeatedTlv));
    let once = with_checksum(&[]);
    let sum = once[once.len() - 7..].to_vec();
    assert!(all(&with_tlvs(&[sum.clone(), sum])).is_err());
    for nothing in [tlv(4, b"x"), tlv(0xe5, b"x"), tlv(0xea, b"\x02x"), tlv(0xe0, b"x"), tlv(0xee, b"\x01x")]
    {
        assert!(header(&with_tlvs(&[nothing.clone(), nothing])).tlvs.is_empty());
    }
}

#[test]
fn tlvs_have_texts_to_compare_and_texts_to_show() {
    let bytes = with_tlvs(&[
        tlv(1, b"h2"),
        tlv(2, b"DB.Example.COM."),
        tlv(5, &[0, 0xff, b'a']),
        tlv(0x30, b"blue"),
        tlv(0xea, b"\x01vpce-08d2bf15fac5001c9"),
        tlv(0xe0, &0x0102_0304_0506_0708_u64.to_be_bytes()),
        tlv(0xee, &[1, 0x78, 0x56, 0x34, 0x12]),
    ]);
    let tlvs = header(&bytes).tlvs;
    for (name, text, shown) in [
        (Name::Alpn, "h2", "h2"),
        (Name::Authority, "db.example.com", "DB.Example.COM."),
        (Name::UniqueId, "00ff61", r"\x00\xffa"),
        (Name::Netns, "blue", "blue"),
        (Name::AwsVpcEndpoint, "vpce-08d2bf15fac5001c9", "vpce-08d2bf15fac5001c9"),
        (Name::GcpPscConnection, "72623859790382856", "72623859790382856"),
        (Name::AzurePrivateLink, "305419896", "305419896"),
    ] {
        assert_eq!(tlvs.text(name).as_deref(), Some(text));
        assert_eq!(tlvs.shown(name).unwrap().as_str(), shown);
    }
    assert_eq!(header(&binary(0x21, 0x11, V4)).tlvs.text(Name::Alpn), None);
}

#[test]
fn an_authority_that_is_no_text_matches_nothing_and_is_shown_escaped() {
    for hostile in
        [&b"a\0.example"[..], b"\xff\xfe", b"a\r\nb", "bücher.example".as_bytes(), b"", b".", b"a.."]
    {
        let tlvs = header(&with_tlvs(&[tlv(2, hostile)])).tlvs;
        assert_eq!(tlvs.text(Name::Authority), None);
        let shown = tlvs.shown(Name::Authority).unwrap().to_string();
        assert!(shown.bytes().all(|byte| matches!(byte, b' '..=b'~')), "{shown}");
    }
}

#[test]
fn tls_of_the_client_is_read() {
    let parts =
        [&[7, 0, 0, 0, 0][..], &tlv(0x21, b"TLSv1.3"), &tlv(0x22, b"me\n"), &tlv(0x23, b"AES")].concat();
    let tlvs = header(&with_tlvs(&[tlv(0x20, &parts)])).tlvs;
    let ssl = tlvs.ssl().unwrap();
    assert!(ssl.over_tls() && ssl.verified());
    assert_eq!(ssl.version().unwrap().as_str(), "TLSv1.3");
    assert_eq!(ssl.common_name().unwrap().as_str(), r"me\x0a");
    for (client, verify) in [(1, 0), (7, 1), (0, 0)] {
        let tlvs = header(&with_tlvs(&[tlv(0x20, &[client, 0, 0, 0, verify])])).tlvs;
        assert!(!tlvs.ssl().unwrap().verified());
    }
}

#[test]
fn a_limit_is_kept() {
    let long = with_tlvs(&[tlv(4, &vec![0; 65_535 - 12 - 3])]);
    assert_eq!(long.len(), 16 + 65_535);
    assert_eq!(all(&long), Err(Malformed::TooLong));
    assert_eq!(all(&long[..16]), Err(Malformed::TooLong), "known from its length alone");
    assert!(read(&long, usize::MAX).unwrap().is_some());
    for (bytes, _) in valid() {
        assert!(read(&bytes, bytes.len()).unwrap().is_some());
        for limit in 0..bytes.len() {
            assert_eq!(read(&bytes, limit), Err(Malformed::TooLong), "{limit} for {}", bytes.escape_ascii());
        }
    }
}

#[test]
fn payload_is_told_from_a_header() {
    for (bytes, _) in valid() {
        let version = header(&bytes).version;
        let signature = if version == Version::V1 { 6 } else { 12 };
        for end in 0..bytes.len() {
            let expected = if end < signature { Beginning::Maybe } else { Beginning::Yes(version) };
            assert_eq!(begins_like_one(&bytes[..end]), expected);
        }
    }
    for payload in [&b"\x16\x03\x01"[..], b"GET", b"PROXYING", b"\r\n\r\n\r", b"QUIT\n"] {
        assert_eq!(begins_like_one(payload), Beginning::No);
    }
}

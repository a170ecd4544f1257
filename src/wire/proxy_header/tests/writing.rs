//! Our own headers, read back.

use super::*;

#[test]
fn lines_are_written_as_the_specification_has_them() {
    let line = |source, destination| {
        String::from_utf8(write(Version::V1, addresses(source, destination), &Outgoing::default())).unwrap()
    };
    assert_eq!(
        line("192.168.0.1:56324", "192.168.0.11:443"),
        "PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n"
    );
    assert_eq!(line("[2001:db8::1]:1", "[::1]:2"), "PROXY TCP6 2001:db8::1 ::1 1 2\r\n");
    assert_eq!(line("192.0.2.1:1", "[::1]:2"), "PROXY TCP6 ::ffff:192.0.2.1 ::1 1 2\r\n");
    assert_eq!(line("[::ffff:192.0.2.1]:1", "192.0.2.2:2"), "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n");
    assert_eq!(write(Version::V1, None, &Outgoing::default()), b"PROXY UNKNOWN\r\n");
}

#[test]
fn blocks_are_written_with_a_checksum_and_their_true_length() {
    let bytes = write(Version::V2, addresses("192.0.2.1:12345", "198.51.100.2:443"), &Outgoing::default());
    assert_eq!(bytes, with_checksum(&[]));
    let local = write(Version::V2, None, &Outgoing::default());
    assert_eq!(local[12..16], [0x20, 0, 0, 7]);
    assert_eq!(header(&local).addresses, None);
}

#[test]
fn all_that_is_known_of_a_session_is_written_and_read_back() {
    let passed_on = header(&with_tlvs(&[
        tlv(0xea, b"\x01vpce-1"),
        tlv(0xe0, &[1; 8]),
        tlv(0xee, &[1, 4, 3, 2, 1]),
        tlv(2, b"not.passed.on"),
    ]))
    .tlvs;
    let tls = OutgoingTls { version: "TLSv1.3", verified: true, common_name: Some("client one") };
    let outgoing = Outgoing {
        authority: Some("db.example"),
        alpn: Some(b"h2"),
        unique_id: Some(b"0042"),
        tls: Some(tls),
        passed_on: Some(&passed_on),
    };
    let header = header(&write(Version::V2, addresses("[2001:db8::1]:1", "192.0.2.1:2"), &outgoing));
    assert_eq!(header.addresses, addresses("[2001:db8::1]:1", "192.0.2.1:2"));
    assert_eq!(header.tlvs.text(Name::Authority).unwrap(), "db.example");
    for name in [Name::AwsVpcEndpoint, Name::GcpPscConnection, Name::AzurePrivateLink] {
        assert_eq!(header.tlvs.bytes(name), passed_on.bytes(name));
    }
    assert_eq!(header.tlvs.bytes(Name::Alpn), Some(&b"h2"[..]));
    assert_eq!(header.tlvs.bytes(Name::UniqueId), Some(&b"0042"[..]));
    let ssl = header.tlvs.ssl().unwrap();
    assert!(ssl.verified());
    assert_eq!(ssl.common_name().unwrap().as_str(), "client one");
}

#[test]
fn a_certificate_that_was_not_verified_lends_no_name() {
    let tls = OutgoingTls { version: "TLSv1.2", verified: false, common_name: Some("liar") };
    let outgoing = Outgoing { tls: Some(tls), ..Outgoing::default() };
    let header = header(&write(Version::V2, None, &outgoing));
    assert!(header.tlvs.is_empty(), "LOCAL says nothing");
    let bytes = write(Version::V2, addresses("192.0.2.1:1", "192.0.2.2:2"), &outgoing);
    let tlvs = self::header(&bytes).tlvs;
    assert!(tlvs.ssl().unwrap().over_tls() && !tlvs.ssl().unwrap().verified());
    assert_eq!(tlvs.ssl().unwrap().common_name(), None);
}

#[test]
fn values_that_are_too_long_are_left_out_whole() {
    let long = "x".repeat(256);
    let outgoing = Outgoing {
        authority: Some(&long),
        alpn: Some(long.as_bytes()),
        unique_id: Some(long.as_bytes()),
        ..Outgoing::default()
    };
    assert_eq!(
        write(Version::V2, addresses("192.0.2.1:12345", "198.51.100.2:443"), &outgoing),
        with_checksum(&[])
    );
}

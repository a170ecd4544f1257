//! PROXY headers: those of balancers before the proxy, and those that it writes to endpoints. nginx and HAProxy are the
//! other end in both directions.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use rcgen::DnType;
use rustls::{ClientConfig, ClientConnection, HandshakeKind, pki_types::ServerName};
use serde_json::Value;
use socket2::{Domain, Socket, Type};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    process::Command,
    time::{Instant, sleep},
};

use crate::harness::{
    Authority, Backend, Carrier, Ending, Files, Listener, Place, Process, Proxy, Setup, Speaker, ask_http,
    connect,
    header::{FOUR, MAGIC, crc32c, summed, tlv, two},
    listener, missing, on_both_carriers, pool, read_out, skip, soon,
};

on_both_carriers!(
    #[tokio::test]
    right_headers_are_believed_however_they_come_and_the_payload_is_left_as_it_is,
    wrong_headers_are_closed_and_nothing_of_them_reaches_an_endpoint,
    only_trusted_networks_are_believed,
    a_header_that_never_ends_is_closed_at_the_deadline,
    what_a_cloud_says_of_a_private_link_routes_its_sessions_and_stands_in_the_log,
    endpoints_are_told_whose_session_it_is_once,
    endpoints_are_told_what_was_agreed_on_over_tls_and_who_showed_a_certificate,
    what_a_balancer_tells_of_tls_is_passed_on_where_no_tls_is_seen_here,
    an_endpoint_behind_tls_is_told_before_the_handshake_and_the_next_one_too,
);

/// IPv6: 2001:db8::7 port 1234 to 2001:db8::9 port 443.
fn six() -> Vec<u8> {
    let address = |last: u8| [&[0x20, 0x01, 0x0d, 0xb8][..], &[0; 11], &[last]].concat();
    [address(7), address(9), vec![0x04, 0xd2, 0x01, 0xbb]].concat()
}

/// An endpoint that keeps what it was sent, and then says "well".
async fn keeper(place: &Place) -> Backend<Vec<u8>> {
    Backend::serve(place, |mut stream: TcpStream| async move {
        let (bytes, _) = read_out(&mut stream).await;
        drop(stream.write_all(b"well").await);
        bytes
    })
    .await
}

/// The line of the next session after the first `start` lines.
fn of(line: &Value, keys: [&str; 3]) -> [String; 3] {
    keys.map(|key| line[key].as_str().unwrap_or_default().to_owned())
}

/// Right headers, and the client that they name.
fn right() -> Vec<(&'static str, Vec<u8>, Option<&'static str>)> {
    let (four, six_text) = ("192.0.2.7:1234", "[2001:db8::7]:1234");
    let long = [FOUR, &tlv(4, &[0; 3000])].concat();
    let longest = b"PROXY TCP6 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n";
    vec![
        ("v1 TCP4", b"PROXY TCP4 192.0.2.7 198.51.100.9 1234 443\r\n".to_vec(), Some(four)),
        ("v1 TCP6", b"PROXY TCP6 2001:db8::7 2001:db8::9 1234 443\r\n".to_vec(), Some(six_text)),
        ("the longest", longest.to_vec(), Some("[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535")),
        ("v1 UNKNOWN", b"PROXY UNKNOWN\r\n".to_vec(), None),
        ("v1 UNKNOWN and more", b"PROXY UNKNOWN ffff::1 what ever 0 99999\r\n".to_vec(), None),
        ("v2 TCP4", two(1, 0x11, FOUR), Some(four)),
        ("v2 TCP6", two(1, 0x21, &six()), Some(six_text)),
        ("LOCAL", two(0, 0, &[]), None),
        ("LOCAL with a body", two(0, 0x11, FOUR), None),
        ("UNSPEC", two(1, 0, &[]), None),
        ("a TLV that nobody knows", two(1, 0x11, &[FOUR, &tlv(0xf0, b"?")].concat()), Some(four)),
        (
            "TLVs, none of them text",
            two(1, 0x11, &[FOUR, &tlv(5, b"\0\xff\x1b[2J"), &tlv(2, b"a\r\nb")].concat()),
            Some(four),
        ),
        ("a checksum", summed(FOUR), Some(four)),
        ("3 KiB of padding", two(1, 0x11, &long), Some(four)),
        (
            "a mapped address",
            two(
                1,
                0x21,
                &[
                    &[0; 10][..],
                    &[255, 255, 192, 0, 2, 7],
                    &[0; 10],
                    &[255, 255, 198, 51, 100, 9],
                    &[4, 0xd2, 1, 0xbb],
                ]
                .concat(),
            ),
            Some(four),
        ),
    ]
}

async fn right_headers_are_believed_however_they_come_and_the_payload_is_left_as_it_is(carrier: Carrier) {
    let place = Place::new();
    let mut backend = keeper(&place).await;
    let (proxy, address) =
        Proxy::before_on(carrier, &place, backend.address, "proxy_header = \"required\"").await;
    let payload = b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\nGET / and so on";
    for (what, header, client) in &right() {
        let bytes = [header.as_slice(), payload].concat();
        let small: Vec<&[u8]> =
            if header.len() < 200 { bytes.chunks(1).collect() } else { bytes.chunks(500).collect() };
        for segments in [vec![bytes.as_slice()], small, vec![header, payload]] {
            let before = proxy.lines();
            let mut stream = connect(address).await;
            let own = stream.local_addr().unwrap().to_string();
            let slow = segments.len() < 100;
            for segment in &segments {
                stream.write_all(segment).await.unwrap();
                if slow {
                    sleep(Duration::from_millis(1)).await;
                } else {
                    tokio::task::yield_now().await;
                }
            }
            stream.shutdown().await.unwrap();
            assert_eq!(read_out(&mut stream).await, (b"well".to_vec(), Ending::Clean), "{what}");
            assert_eq!(backend.next().await, payload, "{what}");
            let line = proxy.session_line(before).await;
            let wanted = match client {
                Some(client) => [(*client).to_owned(), own, "closed".to_owned()],
                None => [own, String::new(), "closed".to_owned()],
            };
            assert_eq!(of(&line, ["client", "via", "cause"]), wanted, "{what}: {line}");
        }
    }
    assert!(!proxy.said().bytes().any(|byte| byte < b' ' && byte != b'\n'), "control bytes in the log");
}

/// Wrong headers, and the word for what is wrong. Without one it depends on who looks first.
fn wrong() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let line = |rest: &str| format!("PROXY {rest}\r\n").into_bytes();
    let mut wrong_sum = summed(FOUR);
    *wrong_sum.last_mut().unwrap() ^= 1;
    vec![
        ("none", b"GET / HTTP/1.1\r\n\r\n".to_vec(), "no_header"),
        ("TLS", b"\x16\x03\x01\x02\x00\x01\x00".to_vec(), "no_header"),
        ("lower case", b"proxy TCP4 192.0.2.7 198.51.100.9 1234 443\r\n".to_vec(), "no_header"),
        ("port 65536", line("TCP4 192.0.2.7 198.51.100.9 65536 443"), "port"),
        ("port -1", line("TCP4 192.0.2.7 198.51.100.9 -1 443"), "port"),
        ("port 1e3", line("TCP4 192.0.2.7 198.51.100.9 1e3 443"), "port"),
        ("port 0443", line("TCP4 192.0.2.7 198.51.100.9 1234 0443"), "port"),
        ("port +443", line("TCP4 192.0.2.7 198.51.100.9 1234 +443"), "port"),
        ("octet 256", line("TCP4 192.0.2.256 198.51.100.9 1234 443"), "address"),
        ("IPv6 for TCP4", line("TCP4 ::1 ::1 1234 443"), "address"),
        ("IPv4 for TCP6", line("TCP6 192.0.2.7 198.51.100.9 1234 443"), "address"),
        ("a tab", line("TCP4 192.0.2.7\t198.51.100.9 1234 443"), "address"),
        ("two spaces", line("TCP4  192.0.2.7 198.51.100.9 1234 443"), "address"),
        ("TCP5", line("TCP5 192.0.2.7 198.51.100.9 1234 443"), "line"),
        ("no ports", line("TCP4 192.0.2.7 198.51.100.9"), ""),
        ("a word more", line("TCP4 192.0.2.7 198.51.100.9 1234 443 1"), ""),
        ("LF only", b"PROXY TCP4 192.0.2.7 198.51.100.9 1234 443\nGET / HTTP/1.1\r\n\r\n".to_vec(), ""),
        ("NUL", b"PROXY TCP4 192.0.2.7\0 198.51.100.9 1234 443\r\n".to_vec(), "address"),
        ("108 bytes without an end", [&b"PROXY UNKNOWN "[..], &[b'x'; 94]].concat(), ""),
        ("command 2", two(2, 0x11, FOUR), "command"),
        ("command 15", two(15, 0x11, FOUR), "command"),
        ("version 1", [MAGIC, &[0x11, 0x11, 0, 12], FOUR].concat(), "command"),
        ("version 3", [MAGIC, &[0x31, 0x11, 0, 12], FOUR].concat(), "command"),
        ("family 4", two(1, 0x41, FOUR), "family"),
        ("transport 3", two(1, 0x13, FOUR), "family"),
        ("short for TCP4", two(1, 0x11, &FOUR[..11]), "length"),
        ("short for TCP6", two(1, 0x21, &six()[..35]), "length"),
        ("a TLV past the end", two(1, 0x11, &[FOUR, &[4, 0, 9, 1]].concat()), "tlv"),
        ("half a TLV", two(1, 0x11, &[FOUR, &[4, 0]].concat()), "tlv"),
        (
            "a TLV inside SSL past its end",
            two(1, 0x11, &[FOUR, &tlv(0x20, &[1, 0, 0, 0, 0, 0x21, 0, 9, b'T'])].concat()),
            "tlv",
        ),
        ("a TLV twice", two(1, 0x11, &[FOUR, &tlv(2, b"a"), &tlv(2, b"b")].concat()), "repeated_tlv"),
        ("a wrong checksum", wrong_sum, "checksum"),
        (
            "65,535 bytes announced",
            [MAGIC, &[0x21, 0x11, 255, 255], FOUR, &[0; 8192]].concat(),
            "header_too_long",
        ),
    ]
}

async fn wrong_headers_are_closed_and_nothing_of_them_reaches_an_endpoint(carrier: Carrier) {
    let place = Place::new();
    let backend = keeper(&place).await;
    let (proxy, address) =
        Proxy::before_on(carrier, &place, backend.address, "proxy_header = \"required\"").await;
    for (what, bytes, word) in wrong() {
        let before = proxy.lines();
        let mut stream = connect(address).await;
        let begun = Instant::now();
        drop(stream.write_all(&bytes).await);
        let (answer, _) = read_out(&mut stream).await;
        assert!(
            answer.is_empty() && begun.elapsed() < Duration::from_secs(2),
            "{what}: {:?}",
            begun.elapsed()
        );
        let line = proxy.session_line(before).await;
        assert_eq!(
            (&line["cause"], &line["stage"]),
            (&"bad_header".into(), &"accept".into()),
            "{what}: {line}"
        );
        let refused = line["refused"].as_str().unwrap();
        assert!(word.is_empty() || refused == word, "{what}: {line}");
    }
    assert_eq!(backend.accepted(), 0);
}

/// Connects from this address of loopback.
async fn connect_from(source: Ipv4Addr, address: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::new(source.into(), 0).into()).unwrap();
    socket.set_nonblocking(true).unwrap();
    let socket = tokio::net::TcpSocket::from_std_stream(socket.into());
    soon("a connection", socket.connect(address)).await
}

async fn only_trusted_networks_are_believed(carrier: Carrier) {
    let place = Place::new();
    let mut backend = keeper(&place).await;
    let (required, optional) = (place.free(), place.free());
    let trust = |word: &str| format!("proxy_header = \"{word}\"\nproxy_header_from = [\"127.0.0.2/32\"]\n");
    let tables = pool("only", "", &[("aws", backend.address)])
        + &listener(required, "only", &trust("required"))
        + &listener(optional, "only", &trust("optional"));
    let proxy = Proxy::start(Setup::new(&place, tables).carrier(carrier)).await;
    let (trusted, stranger) = (Ipv4Addr::new(127, 0, 0, 2), Ipv4Addr::new(127, 0, 0, 3));
    let with = b"PROXY TCP4 192.0.2.7 198.51.100.9 1234 443\r\nhello".as_slice();
    for (source, address, bytes, wanted) in [
        (trusted, required, with, Some((b"hello".as_slice(), true))),
        (trusted, required, b"hello, hello", None),
        (stranger, required, with, None),
        (trusted, optional, with, Some((b"hello", true))),
        (trusted, optional, b"hello", Some((b"hello", false))),
        (trusted, optional, b"PROXIES are no headers", Some((b"PROXIES are no headers", false))),
        (stranger, optional, with, Some((with, false))),
    ] {
        let before = proxy.lines();
        // The reset of one that is not wanted may be faster than its own connect.
        let answer = match connect_from(source, address).await {
            Ok(mut stream) => {
                drop(stream.write_all(bytes).await);
                drop(stream.shutdown().await);
                read_out(&mut stream).await.0
            }
            Err(_) => Vec::new(),
        };
        let line = proxy.session_line(before).await;
        let Some((payload, believed)) = wanted else {
            assert!(answer.is_empty(), "{line}");
            assert_eq!(line["cause"], "bad_header", "{line}");
            continue;
        };
        assert_eq!(answer, b"well", "{line}");
        assert_eq!(backend.next().await, payload, "{line}");
        let client: SocketAddr = line["client"].as_str().unwrap().parse().unwrap();
        let told = if believed { IpAddr::from([192, 0, 2, 7]) } else { source.into() };
        assert_eq!(client.ip(), told, "{line}");
    }
    assert_eq!(backend.accepted(), 5);
}

async fn a_header_that_never_ends_is_closed_at_the_deadline(carrier: Carrier) {
    let place = Place::new();
    let backend = keeper(&place).await;
    let settings = "proxy_header = \"required\"\nheader_timeout = \"400ms\"";
    let (proxy, address) = Proxy::before_on(carrier, &place, backend.address, settings).await;
    let header = two(1, 0x11, FOUR);
    for (bytes, and_fin, cause) in [
        (&b""[..], false, "timed_out"),
        (b"P", false, "timed_out"),
        (b"PROXY TCP4 192.0.2.7 198.51", false, "timed_out"),
        (&header[..header.len() - 1], false, "timed_out"),
        (b"", true, "closed"),
        (&header[..20], true, "truncated"),
    ] {
        let before = proxy.lines();
        let mut stream = connect(address).await;
        let begun = Instant::now();
        stream.write_all(bytes).await.unwrap();
        if and_fin {
            stream.shutdown().await.unwrap();
        }
        assert!(read_out(&mut stream).await.0.is_empty());
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        let line = proxy.session_line(before).await;
        assert_eq!((&line["cause"], &line["stage"]), (&cause.into(), &"accept".into()), "{line}");
    }
    assert_eq!(backend.accepted(), 0);
}

async fn what_a_cloud_says_of_a_private_link_routes_its_sessions_and_stands_in_the_log(carrier: Carrier) {
    let place = Place::new();
    let [aws, gcp, azure, name, rest] = [
        Backend::named(&place, "aws").await,
        Backend::named(&place, "gcp").await,
        Backend::named(&place, "azure").await,
        Backend::named(&place, "name").await,
        Backend::named(&place, "rest").await,
    ];
    let bind = place.free();
    let mut routes = "proxy_header = \"required\"\n".to_owned();
    for (pool, tlv) in [
        ("aws", "aws_vpc_endpoint = [\"vpce-08d2bf15fac5001c9\"]"),
        ("gcp", "gcp_psc_connection = [\"18446744073709551614\"]"),
        ("azure", "azure_private_link = [\"67108865\"]"),
        ("name", "authority = [\"db.example.com\"]"),
    ] {
        routes += &format!("[[listener.route]]\npool = \"{pool}\"\n[listener.route.tlv]\n{tlv}\n");
    }
    let tables = [("aws", &aws), ("gcp", &gcp), ("azure", &azure), ("name", &name), ("rest", &rest)]
        .map(|(name, backend)| pool(name, "", &[("aws", backend.address)]))
        .concat()
        + &listener(bind, "rest", &routes);
    let proxy = Proxy::start(Setup::new(&place, tables).carrier(carrier)).await;
    let vpce = [&[1][..], b"vpce-08d2bf15fac5001c9"].concat();
    for (tlvs, wanted, key, text) in [
        (tlv(0xea, &vpce), "aws", "aws_vpc_endpoint", "vpce-08d2bf15fac5001c9"),
        (tlv(0xe0, &(u64::MAX - 1).to_be_bytes()), "gcp", "gcp_psc_connection", "18446744073709551614"),
        (tlv(0xee, &[1, 1, 0, 0, 4]), "azure", "azure_private_link", "67108865"),
        (tlv(2, b"DB.example.com."), "name", "authority", "db.example.com"),
        (tlv(0xea, b"\x01vpce-other"), "rest", "aws_vpc_endpoint", "vpce-other"),
        (tlv(0xea, b"\x02vpce-08d2bf15fac5001c9"), "rest", "aws_vpc_endpoint", ""),
        (tlv(0xea, b"\x01a\"b\\\r\n\x1b[2J"), "rest", "aws_vpc_endpoint", "6122625c0d0a1b5b324a"),
        (tlv(0xee, &[1, 1, 0, 0]), "rest", "azure_private_link", ""),
        (Vec::new(), "rest", "authority", ""),
    ] {
        let before = proxy.lines();
        let mut stream = connect(bind).await;
        stream.write_all(&summed(&[FOUR, &tlvs].concat())).await.unwrap();
        stream.write_all(b"?").await.unwrap();
        stream.shutdown().await.unwrap();
        assert_eq!(read_out(&mut stream).await.0, wanted.as_bytes(), "{tlvs:?}");
        let line = proxy.session_line(before).await;
        assert_eq!((line[key].as_str().unwrap_or_default(), &line["pool"]), (text, &wanted.into()), "{line}");
    }
}

/// The client, and where it went.
type Addresses = Option<(SocketAddr, SocketAddr)>;

/// Kinds and values.
type Tlvs = Vec<(u8, Vec<u8>)>;

/// A header of version 2: its addresses, its TLVs with the checksum looked at, and its length.
fn parse(bytes: &[u8]) -> (Addresses, Tlvs, usize) {
    assert_eq!(&bytes[..12], MAGIC, "{bytes:?}");
    let length = usize::from(u16::from_be_bytes([bytes[14], bytes[15]]));
    let whole = &bytes[..16 + length];
    let port = |at: usize| u16::from_be_bytes([whole[at], whole[at + 1]]);
    let ip = |at: usize| IpAddr::from(<[u8; 4]>::try_from(&whole[at..at + 4]).unwrap());
    let (addresses, mut at) = match (whole[12], whole[13]) {
        (0x20, _) => (None, whole.len()),
        (0x21, 0x11) => (Some(((ip(16), port(24)).into(), (ip(20), port(26)).into())), 28),
        other => panic!("{other:?}"),
    };
    let mut tlvs = Vec::new();
    while at < whole.len() {
        let end = at + 3 + usize::from(port(at + 1));
        let value = whole[at + 3..end].to_vec();
        if whole[at] == 3 {
            let mut zeroed = whole.to_vec();
            zeroed[at + 3..end].fill(0);
            assert_eq!(value, crc32c(&zeroed).to_be_bytes(), "checksum");
        }
        tlvs.push((whole[at], value));
        at = end;
    }
    (addresses, tlvs, whole.len())
}

fn value(tlvs: &[(u8, Vec<u8>)], kind: u8) -> Option<&[u8]> {
    tlvs.iter().find(|(known, _)| *known == kind).map(|(_, value)| value.as_slice())
}

async fn endpoints_are_told_whose_session_it_is_once(carrier: Carrier) {
    let place = Place::new();
    let mut backend = keeper(&place).await;
    let [one, two_, behind] = [(); 3].map(|()| place.free());
    let gone = place.free();
    let ends = [("aws", gone), ("gcp", backend.address)];
    let tables = pool("one", "proxy_header = \"v1\"\n", &ends)
        + &pool("two", "proxy_header = \"v2\"\n", &ends)
        + &listener(one, "one", "")
        + &listener(two_, "two", "")
        + &listener(behind, "two", "proxy_header = \"required\"\n");
    let proxy = Proxy::start(Setup::new(&place, tables).carrier(carrier)).await;

    let mut stream = connect(one).await;
    let own = stream.local_addr().unwrap();
    stream.write_all(b"hello").await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(read_out(&mut stream).await.0, b"well");
    let wanted = format!("PROXY TCP4 {} {} {} {}\r\nhello", own.ip(), one.ip(), own.port(), one.port());
    assert_eq!(String::from_utf8(backend.next().await).unwrap(), wanted);
    assert!(proxy.session_line(0).await.get("unique_id").is_none(), "no endpoint was told of any");

    let before = proxy.lines();
    let mut stream = connect(two_).await;
    let own = stream.local_addr().unwrap();
    stream.write_all(b"hello").await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(read_out(&mut stream).await.0, b"well");
    let said = backend.next().await;
    let (addresses, tlvs, length) = parse(&said);
    assert_eq!((addresses, &said[length..]), (Some((own, two_)), b"hello".as_slice()));
    assert!(value(&tlvs, 3).is_some() && value(&tlvs, 2).is_none(), "{tlvs:?}");
    let line = proxy.session_line(before).await;
    let id = String::from_utf8(value(&tlvs, 5).unwrap().to_vec()).unwrap();
    assert_eq!(line["unique_id"], id.as_str(), "{line}");
    let (process, number) = id.split_once('-').unwrap();
    assert_eq!((process.len(), number), (16, line["session"].to_string().as_str()), "{line}");

    // What came in goes out: addresses, and the ids of private links.
    let mut stream = connect(behind).await;
    let header = summed(&[FOUR, &tlv(0xea, b"\x01vpce-1"), &tlv(0xf1, b"?")].concat());
    stream.write_all(&[&header, b"hello".as_slice()].concat()).await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(read_out(&mut stream).await.0, b"well");
    let said = backend.next().await;
    let (addresses, tlvs, length) = parse(&said);
    let told = ("192.0.2.7:1234".parse().unwrap(), "198.51.100.9:443".parse().unwrap());
    assert_eq!((addresses, &said[length..]), (Some(told), b"hello".as_slice()));
    assert_eq!((value(&tlvs, 0xea), value(&tlvs, 0xf1)), (Some(b"\x01vpce-1".as_slice()), None));
}

async fn endpoints_are_told_what_was_agreed_on_over_tls_and_who_showed_a_certificate(carrier: Carrier) {
    let place = Place::new();
    let mut backend = keeper(&place).await;
    let edge = Authority::new("edge authority");
    let files = Files::new();
    let issued = edge.issue(&["edge.test"]);
    let clients = Authority::new("clients");
    let ca = files.put("clients.pem", &clients.pem);
    let asks = format!("client_certificates = \"optional\"\nclient_ca = \"{}\"", ca.display());
    let secure = files.listener("edge", &issued, &format!("alpn = [\"h2\"]\n{asks}"));
    let over_tls = place.free();
    let tables = pool("only", "proxy_header = \"v2\"\n", &[("aws", backend.address)])
        + &listener(over_tls, "only", &secure);
    let _proxy = Proxy::start(Setup::new(&place, tables).carrier(carrier)).await;

    let client = Speaker::new(&edge, None).alpn(&["h2"]);
    let mut stream = client.dial(over_tls, "edge.test").await.unwrap();
    stream.write_all(b"hello").await.unwrap();
    stream.shutdown().await.unwrap();
    stream.read_to_end(&mut Vec::new()).await.unwrap();
    let said = backend.next().await;
    let (_, tlvs, length) = parse(&said);
    assert_eq!(&said[length..], b"hello");
    assert_eq!((value(&tlvs, 1), value(&tlvs, 2)), (Some(b"h2".as_slice()), Some(b"edge.test".as_slice())));
    let ssl = value(&tlvs, 0x20).unwrap();
    assert_eq!((ssl[0], &ssl[8..]), (1, b"TLSv1.3".as_slice()), "{ssl:?}");
    assert_ne!(ssl[1..5], [0; 4], "no certificate, and yet it was found right");

    // With a certificate its name, also where the session is resumed and shows none.
    let named = clients
        .issue_as(&["app.test"], |params| params.distinguished_name.push(DnType::CommonName, "app one"));
    let client = Speaker::new(&edge, Some(&named)).resuming();
    for kind in [HandshakeKind::Full, HandshakeKind::Resumed] {
        let mut stream = client.dial(over_tls, "edge.test").await.unwrap();
        assert_eq!(stream.get_ref().1.handshake_kind(), Some(kind));
        stream.write_all(b"hello").await.unwrap();
        stream.shutdown().await.unwrap();
        stream.read_to_end(&mut Vec::new()).await.unwrap();
        let (_, tlvs, _) = parse(&backend.next().await);
        let ssl = value(&tlvs, 0x20).unwrap();
        let inner = [tlv(0x21, b"TLSv1.3"), tlv(0x22, b"app one")].concat();
        assert_eq!((ssl[0], &ssl[1..5], &ssl[5..]), (7, &[0; 4][..], inner.as_slice()), "{ssl:?}");
    }
}

async fn what_a_balancer_tells_of_tls_is_passed_on_where_no_tls_is_seen_here(carrier: Carrier) {
    let place = Place::new();
    let mut backend = keeper(&place).await;
    let (edge, files) = (Authority::new("edge authority"), Files::new());
    let [plain, hears, ends] = [(); 3].map(|()| place.free());
    let behind = "proxy_header = \"required\"\n";
    let secure = files.listener("edge", &edge.issue(&["edge.test", "127.0.0.1"]), "");
    let route = "[[listener.route]]\nsni = [\"edge.test\"]\npool = \"only\"\n";
    let tables = pool("only", "proxy_header = \"v2\"\n", &[("aws", backend.address)])
        + &listener(plain, "only", behind)
        + &listener(hears, "only", &format!("{behind}{route}"))
        + &listener(ends, "only", &format!("{behind}{secure}"));
    let proxy = Proxy::start(Setup::new(&place, tables).carrier(carrier)).await;
    let header = |authority: &[u8]| {
        let ssl = tlv(0x20, &[&[1, 0, 0, 0, 0][..], &tlv(0x21, b"TLSv1.3")].concat());
        summed(&[FOUR, &tlv(1, b"h3"), &tlv(2, authority), &tlv(5, b"id \xff\0"), &ssl].concat())
    };
    let told = |said: &[u8]| {
        let (_, tlvs, _) = parse(said);
        assert_eq!(value(&tlvs, 5), Some(b"id \xff\0".as_slice()), "{tlvs:?}");
        let value = |kind| value(&tlvs, kind).map(|value| String::from_utf8(value.to_vec()).unwrap());
        (value(1), value(2), value(0x20).is_some())
    };
    let text = |text: &str| Some(text.to_owned());

    for (authority, wanted) in [
        (b"DB.test.".as_slice(), text("DB.test.")),
        ("zoë.test".as_bytes(), text("zoë.test")),
        (b"\xff.test", None),
    ] {
        let before = proxy.lines();
        let mut stream = connect(plain).await;
        stream.write_all(&[&header(authority), b"hello".as_slice()].concat()).await.unwrap();
        stream.shutdown().await.unwrap();
        assert_eq!(read_out(&mut stream).await.0, b"well");
        assert_eq!(told(&backend.next().await), (text("h3"), wanted, false));
        let line = proxy.session_line(before).await;
        assert_eq!(line["unique_id"], "696420ff00", "what came in, in hexadecimal digits: {line}");
    }

    // A hello that is passed on as it is; without a name, it has none.
    let hello = |name: &'static str| {
        let name = ServerName::try_from(name).unwrap();
        let config = ClientConfig::builder().with_root_certificates(edge.roots()).with_no_client_auth();
        let mut bytes = Vec::new();
        ClientConnection::new(Arc::new(config), name).unwrap().write_tls(&mut bytes).unwrap();
        bytes
    };
    for (name, wanted) in [("edge.test", text("edge.test")), ("127.0.0.1", None)] {
        let mut stream = connect(hears).await;
        stream.write_all(&[header(b"db.test"), hello(name)].concat()).await.unwrap();
        stream.shutdown().await.unwrap();
        assert_eq!(read_out(&mut stream).await.0, b"well");
        assert_eq!(told(&backend.next().await), (None, wanted.clone(), false));

        let mut raw = connect(ends).await;
        raw.write_all(&header(b"db.test")).await.unwrap();
        let mut stream = Speaker::new(&edge, None).over(raw, name).await.unwrap();
        stream.shutdown().await.unwrap();
        stream.read_to_end(&mut Vec::new()).await.unwrap();
        assert_eq!(told(&backend.next().await), (None, wanted, true));
    }
}

async fn an_endpoint_behind_tls_is_told_before_the_handshake_and_the_next_one_too(carrier: Carrier) {
    let place = Place::new();
    let (authority, files) = (Authority::new("endpoints"), Files::new());
    let heard = |identity| {
        let acceptor = Listener::new(&identity);
        Backend::serve(&place, move |mut stream: TcpStream| {
            let acceptor = acceptor.clone();
            async move {
                let mut header = vec![0; 16];
                stream.read_exact(&mut header).await.unwrap();
                header.resize(16 + usize::from(u16::from_be_bytes([header[14], header[15]])), 0);
                stream.read_exact(&mut header[16..]).await.unwrap();
                let mut bytes = Vec::new();
                if let Ok(mut stream) = acceptor.accept(stream).await {
                    stream.read_to_end(&mut bytes).await.unwrap();
                    stream.write_all(b"well").await.unwrap();
                    stream.shutdown().await.unwrap();
                }
                (parse(&header).0, bytes)
            }
        })
    };
    let mut wrong = heard(authority.issue_expired(&["db.test"])).await;
    let mut right = heard(authority.issue(&["db.test"])).await;
    let ca = files.put("ca.pem", &authority.pem);
    let settings = format!(
        "proxy_header = \"v2\"\nhedge = false\n[pool.tls]\nca = \"{}\"\nserver_name = \"db.test\"\n",
        ca.display()
    );
    let bind = place.free();
    let tables = pool("only", &settings, &[("aws", wrong.address), ("gcp", right.address)])
        + &listener(bind, "only", "");
    let _proxy = Proxy::start(Setup::new(&place, tables).carrier(carrier)).await;
    let mut stream = connect(bind).await;
    let told = Some((stream.local_addr().unwrap(), bind));
    stream.write_all(b"hello").await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(read_out(&mut stream).await, (b"well".to_vec(), Ending::Clean));
    assert_eq!(wrong.next().await, (told, Vec::new()));
    assert_eq!(right.next().await, (told, b"hello".to_vec()));
}

#[tokio::test]
async fn a_header_before_tls_names_the_client_of_the_session() {
    let place = Place::new();
    let echo = Backend::named(&place, "answer").await;
    let edge = Authority::new("edge authority");
    let files = Files::new();
    let settings =
        "proxy_header = \"required\"\n".to_owned() + &files.listener("edge", &edge.issue(&["edge.test"]), "");
    let (proxy, address) = Proxy::before(&place, echo.address, &settings).await;
    let mut raw = connect(address).await;
    raw.write_all(&two(1, 0x11, FOUR)).await.unwrap();
    let mut stream = Speaker::new(&edge, None).over(raw, "edge.test").await.unwrap();
    stream.write_all(b"?").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = Vec::new();
    soon("the answer", stream.read_to_end(&mut answer)).await.unwrap();
    assert_eq!(answer, b"answer");
    let line = proxy.session_line(0).await;
    assert_eq!((&line["client"], &line["tls"]), (&"192.0.2.7:1234".into(), &"TLSv1.3".into()), "{line}");
}

/// nginx with this `stream { … }`.
async fn nginx(folder: &std::path::Path, stream: &str, address: SocketAddr) -> Process {
    let config = folder.join("nginx.conf");
    let shown = folder.display();
    let module = "/usr/lib/nginx/modules/ngx_stream_module.so";
    let text = format!(
        "load_module {module};\ndaemon off;\nmaster_process off;\nuser root;\nerror_log stderr warn;\n\
         pid {shown}/nginx.pid;\nevents {{ worker_connections 64; }}\nstream {{\n{stream}\n}}\n"
    );
    std::fs::write(&config, text).unwrap();
    let mut command = Command::new("nginx");
    command.env("PATH", format!("{}:/usr/sbin", std::env::var("PATH").unwrap()));
    command.arg("-p").arg(folder).arg("-c").arg(&config).args(["-e", "stderr"]);
    Process::start(command).listens(address).await
}

/// HAProxy with these sections.
async fn haproxy(folder: &std::path::Path, sections: &str, address: SocketAddr) -> Process {
    let config = folder.join("haproxy.cfg");
    let times = "timeout connect 5s\n timeout client 20s\n timeout server 20s";
    std::fs::write(&config, format!("global\n maxconn 100\ndefaults\n {times}\n{sections}\n")).unwrap();
    let mut command = Command::new("haproxy");
    command.env("PATH", format!("{}:/usr/sbin", std::env::var("PATH").unwrap()));
    command.arg("-db").arg("-f").arg(&config);
    Process::start(command).listens(address).await
}

/// True, and said so, where a program is not here.
fn lacks(test: &str) -> bool {
    let module = std::path::Path::new("/usr/lib/nginx/modules/ngx_stream_module.so").is_file();
    let reason = missing(&["nginx", "haproxy"])
        .or_else(|| (!module).then(|| "not installed: libnginx-mod-stream".to_owned()));
    reason.iter().for_each(|reason| skip(test, reason));
    reason.is_some()
}

#[tokio::test]
async fn nginx_and_haproxy_understand_our_headers() {
    if lacks("nginx_and_haproxy_understand") {
        return;
    }
    let place = Place::new();
    let folder = tempfile::tempdir().unwrap();
    let (web, accepting) = (place.free(), place.free());
    let server = format!(
        "server {{ listen {web} proxy_protocol; return \"$proxy_protocol_addr $proxy_protocol_port\"; }}"
    );
    let _nginx = nginx(folder.path(), &server, web).await;
    let answer = "%[src] %[src_port] %[dst_port] %[fc_pp_authority] %[fc_pp_unique_id,length]";
    let frontend = format!(
        "frontend f\n mode http\n bind {accepting} accept-proxy\n \
         http-request return status 200 content-type text/plain lf-string \"{answer}\"\n"
    );
    let _haproxy = haproxy(folder.path(), &frontend, accepting).await;
    let mut tables = String::new();
    let [n1, n2, h1, h2] =
        [("n1", "v1", web), ("n2", "v2", web), ("h1", "v1", accepting), ("h2", "v2", accepting)].map(
            |(name, version, address)| {
                let bind = place.free();
                tables += &pool(name, &format!("proxy_header = \"{version}\"\n"), &[("aws", address)]);
                tables += &listener(bind, name, "");
                bind
            },
        );
    let proxy = Proxy::start(Setup::new(&place, tables)).await;
    for bind in [n1, n2] {
        let mut stream = connect(bind).await;
        let own = stream.local_addr().unwrap();
        let said = read_out(&mut stream).await.0;
        assert_eq!(String::from_utf8(said).unwrap(), format!("{} {}", own.ip(), own.port()));
    }
    for (bind, id) in [(h1, ""), (h2, "some")] {
        let (status, said) = soon("an answer", ask_http(bind, "/")).await.unwrap();
        let ours = format!("\"listener\":\"at-{}\",\"pool\"", bind.port());
        let line = proxy.line("the session", |line| line.contains(&ours).then(|| line.to_owned())).await;
        let line: Value = serde_json::from_str(&line).unwrap();
        let client: SocketAddr = line["client"].as_str().unwrap().parse().unwrap();
        let wanted = format!("{} {} {}", client.ip(), client.port(), bind.port());
        assert!(status == 200 && said.starts_with(&wanted), "{said} is not {wanted}");
        let length = said.rsplit(' ').next().unwrap();
        assert_eq!(length.parse::<u32>().is_ok_and(|length| length > 0), !id.is_empty(), "{said}");
    }
}

#[tokio::test]
async fn headers_of_nginx_and_haproxy_are_understood() {
    if lacks("headers_of_nginx_and_haproxy") {
        return;
    }
    let place = Place::new();
    let folder = tempfile::tempdir().unwrap();
    let backend = Backend::named(&place, "well").await;
    let bind = place.free();
    let tables = pool("only", "", &[("aws", backend.address)])
        + &listener(bind, "only", "proxy_header = \"required\"\n");
    let proxy = Proxy::start(Setup::new(&place, tables)).await;
    let [one, v1, v2] = [(); 3].map(|()| place.free());
    let server = format!("server {{ listen {one}; proxy_pass {bind}; proxy_protocol on; }}");
    let _nginx = nginx(folder.path(), &server, one).await;
    let options = "send-proxy-v2 proxy-v2-options unique-id,crc32c";
    let sections = format!(
        "listen a\n mode tcp\n bind {v1}\n server s {bind} send-proxy\n\
         listen b\n mode tcp\n unique-id-format id-%ci-%cp\n bind {v2}\n server s {bind} {options}\n"
    );
    let _haproxy = haproxy(folder.path(), &sections, v1).await;
    for (through, id) in [(one, false), (v1, false), (v2, true)] {
        let mut stream = connect(through).await;
        let own = stream.local_addr().unwrap();
        stream.write_all(b"?").await.unwrap();
        // nginx has no half-closed sessions by default.
        let mut answer = [0; 4];
        soon("the answer", stream.read_exact(&mut answer)).await.unwrap();
        assert_eq!(&answer, b"well", "{through}");
        drop(stream);
        let ours = format!("\"client\":\"{own}\"");
        let line = proxy
            .line("our own address", |line| {
                line.contains(&ours).then(|| serde_json::from_str::<Value>(line).unwrap())
            })
            .await;
        let wanted = format!("id-{}-{}", own.ip(), own.port());
        assert_eq!(line["unique_id"].as_str(), id.then_some(wanted.as_str()), "{line}");
    }
}

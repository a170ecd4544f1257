//! Hellos of real clients, cut in every way, and all that is none.

use std::{fmt::Write as _, sync::Arc};

use proptest::prelude::*;
use rustls::{ClientConfig, ClientConnection, RootCertStore, crypto::aws_lc_rs, pki_types::ServerName};

use super::*;

/// What a rustls client says first.
fn real(name: &str, alpn: &[&str], versions: &[&'static rustls::SupportedProtocolVersion]) -> Vec<u8> {
    let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

fn usual() -> Vec<u8> {
    real("db.example.com", &["h2", "http/1.1"], rustls::ALL_VERSIONS)
}

fn look(bytes: &[u8]) -> Progress {
    Hello::new(DEFAULT_LIMIT).look(bytes)
}

fn done(name: Option<&str>, alpn: &[&str]) -> Progress {
    let alpn = alpn.iter().map(|name| name.as_bytes().into()).collect();
    Progress::Done(Said { sni: name.map(Into::into), alpn })
}

fn refused(why: Why) -> Progress {
    Progress::Refused(why)
}

/// The answer when the bytes come in pieces that end at each of `ends`.
fn in_pieces(bytes: &[u8], ends: impl IntoIterator<Item = usize>) -> (Progress, usize) {
    let mut hello = Hello::new(DEFAULT_LIMIT);
    for end in ends {
        let progress = hello.look(&bytes[..end]);
        if progress != Progress::More {
            return (progress, end);
        }
    }
    (Progress::More, bytes.len())
}

/// A hello made by hand: what is in it besides its extensions is what any client says.
struct Made {
    version: u16,
    session: Vec<u8>,
    suites: Vec<u16>,
    compressions: Vec<u8>,
    extensions: Option<Vec<u8>>,
}

impl Default for Made {
    fn default() -> Self {
        Self {
            version: 0x0303,
            session: vec![7; 32],
            suites: vec![0x1301, 0xc02b],
            compressions: vec![0],
            extensions: Some(Vec::new()),
        }
    }
}

impl Made {
    fn with(extensions: &[Vec<u8>]) -> Self {
        Self { extensions: Some(extensions.concat()), ..Self::default() }
    }

    fn message(&self) -> Vec<u8> {
        let mut body = self.version.to_be_bytes().to_vec();
        body.extend([9; 32]);
        body.push(u8::try_from(self.session.len()).unwrap());
        body.extend(&self.session);
        let suites: Vec<u8> = self.suites.iter().flat_map(|suite| suite.to_be_bytes()).collect();
        body.extend(sized(&suites));
        body.push(u8::try_from(self.compressions.len()).unwrap());
        body.extend(&self.compressions);
        if let Some(extensions) = &self.extensions {
            body.extend(sized(extensions));
        }
        message(1, &body)
    }

    fn bytes(&self) -> Vec<u8> {
        in_records(&self.message(), 16_384)
    }
}

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    [&[kind], &length[1..], body].concat()
}

/// With its length, in two bytes, before it.
fn sized(bytes: &[u8]) -> Vec<u8> {
    [&u16::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat()
}

fn extension(kind: u16, body: &[u8]) -> Vec<u8> {
    [kind.to_be_bytes().to_vec(), sized(body)].concat()
}

fn signatures() -> Vec<u8> {
    extension(13, &sized(&[4, 3, 8, 4]))
}

fn names(names: &[&[u8]]) -> Vec<u8> {
    let list: Vec<u8> = names.iter().flat_map(|name| [vec![0], sized(name)].concat()).collect();
    extension(0, &sized(&list))
}

fn named(name: &[u8]) -> Vec<u8> {
    Made::with(&[names(&[name]), signatures()]).bytes()
}

fn record(content: &[u8]) -> Vec<u8> {
    [&[22, 3, 1][..], &sized(content)].concat()
}

fn in_records(message: &[u8], size: usize) -> Vec<u8> {
    message.chunks(size).flat_map(record).collect()
}

fn from_hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

#[test]
fn hellos_of_real_clients_are_read() {
    let post_quantum = usual();
    assert!(post_quantum.len() > 1300, "with an ML-KEM share: {} bytes", post_quantum.len());
    assert_eq!(look(&post_quantum), done(Some("db.example.com"), &["h2", "http/1.1"]));
    let old = real("db.example.com", &[], &[&rustls::version::TLS12]);
    assert!(old.len() < 400);
    assert_eq!(look(&old), done(Some("db.example.com"), &[]));
    assert_eq!(look(&real("127.0.0.1", &["x"], rustls::ALL_VERSIONS)), done(None, &["x"]));
    assert_eq!(look(&from_hex(OPENSSL)), done(Some("mixed.example"), &["postgresql"]));
}

#[test]
fn any_cut_in_two_and_single_bytes_make_no_difference() {
    for bytes in
        [usual(), from_hex(OPENSSL), in_records(&Made::with(&[names(&[b"a.b"]), signatures()]).message(), 3)]
    {
        let whole = look(&bytes);
        assert!(matches!(whole, Progress::Done(_)), "{whole:?}");
        for cut in 1..bytes.len() {
            assert_eq!(in_pieces(&bytes, [cut, bytes.len()]), (whole.clone(), bytes.len()), "cut at {cut}");
        }
        assert_eq!(in_pieces(&bytes, 1..=bytes.len()), (whole, bytes.len()));
    }
}

#[test]
fn records_may_end_anywhere_in_a_hello() {
    let hello = usual();
    let message = &hello[5..];
    for cut in 1..message.len() {
        let (first, second) = message.split_at(cut);
        let bytes = [record(first), record(second)].concat();
        assert_eq!(look(&bytes), look(&hello), "cut at {cut}");
        assert_eq!(
            in_pieces(&bytes, (0..bytes.len()).step_by(97).skip(1).chain([bytes.len()])).0,
            look(&hello)
        );
    }
    for size in [1, 2, 5, 64, 255, 1000] {
        let bytes = in_records(message, size);
        assert_eq!(look(&bytes), look(&hello), "records of {size}");
        assert_eq!(in_pieces(&bytes, 1..=bytes.len()), (look(&hello), bytes.len()), "records of {size}");
    }
}

#[test]
fn long_hellos_are_read_up_to_the_limit_and_no_further() {
    for (padding, size) in [(15_000, 16_384), (20_000, 16_384), (32_000, 16_384), (25_000, 100)] {
        let made = Made::with(&[names(&[b"long.example"]), signatures(), extension(21, &vec![0; padding])]);
        let bytes = in_records(&made.message(), size);
        assert!(bytes.len() <= DEFAULT_LIMIT);
        assert_eq!(look(&bytes), done(Some("long.example"), &[]), "{padding}");
        let thousands = (0..bytes.len()).step_by(1000).skip(1).chain([bytes.len()]);
        assert_eq!(in_pieces(&bytes, thousands), (done(Some("long.example"), &[]), bytes.len()));
        assert_eq!(Hello::new(bytes.len()).look(&bytes), done(Some("long.example"), &[]));
        assert_eq!(Hello::new(bytes.len() - 1).look(&bytes), refused(Why::TooLong));
    }
    let longer = Made::with(&[signatures(), extension(21, &vec![0; 40_000])]).bytes();
    assert_eq!(look(&longer), refused(Why::TooLong));
    assert_eq!(Hello::new(usize::MAX).look(&longer), done(None, &[]));
    let (progress, at) = in_pieces(&longer, 1..=longer.len());
    assert_eq!(progress, refused(Why::TooLong));
    assert!(at <= 16_384 + 5, "what the first record announces is enough to know: {at}");
}

#[test]
fn sixteen_mebibytes_announced_are_refused_with_the_first_record() {
    let bytes = record(&[1, 0xff, 0xff, 0xff, 3, 3]);
    assert_eq!(look(&bytes), refused(Why::TooLong));
    assert_eq!(in_pieces(&bytes, 1..=bytes.len()).0, refused(Why::TooLong));
}

#[test]
fn what_follows_a_hello_is_not_looked_at() {
    let mut bytes = usual();
    let whole = look(&bytes);
    let early = [&[23, 3, 3][..], &sized(&[5; 16_000])].concat();
    for _ in 0..7 {
        bytes.extend(&early);
    }
    assert_eq!(look(&bytes), whole);
    let mut garbage = usual();
    garbage.extend([0xff; 100_000]);
    assert_eq!(look(&garbage), whole);
}

#[test]
fn server_names_are_in_lower_case_and_without_a_trailing_dot() {
    assert_eq!(look(&named(b"DB.Example.COM")), done(Some("db.example.com"), &[]));
    assert_eq!(look(&named(b"db.example.com.")), done(Some("db.example.com"), &[]));
    assert_eq!(look(&named(b"under_score.example")), done(Some("under_score.example"), &[]));
    assert_eq!(look(&named(b"xn--bcher-kva.example")), done(Some("xn--bcher-kva.example"), &[]));
}

#[test]
fn a_name_that_is_none_or_could_mean_two_things_is_refused() {
    for name in [
        b"a\0.example".as_slice(),
        b"b\xc3\xbccher.example",
        b"a b",
        b"a..b",
        b".",
        b"\r\n\x1b[2J",
        b"*.example",
    ] {
        assert_eq!(look(&named(name)), refused(Why::ServerName), "{name:?}");
    }
    assert_eq!(look(&named(&[b'a'; 300])), refused(Why::ServerName));
    assert_eq!(Hello::new(usize::MAX).look(&named(&[b'a'; 60_000])), refused(Why::ServerName));
    assert_eq!(look(&named(b"")), refused(Why::Malformed));
    let two_names = Made::with(&[names(&[b"a.example", b"b.example"]), signatures()]);
    assert_eq!(look(&two_names.bytes()), refused(Why::ServerName));
    let two_extensions = Made::with(&[names(&[b"a.example"]), names(&[b"b.example"]), signatures()]);
    assert_eq!(look(&two_extensions.bytes()), refused(Why::RepeatedExtension));
    let unknown_twice = Made::with(&[extension(0xfafa, &[]), extension(0xfafa, &[]), signatures()]);
    assert_eq!(look(&unknown_twice.bytes()), refused(Why::RepeatedExtension));
}

#[test]
fn an_address_or_nothing_is_no_name() {
    assert_eq!(look(&named(b"192.0.2.1")), done(None, &[]));
    assert_eq!(look(&named(b"2001:db8::1")), done(None, &[]));
    assert_eq!(look(&Made::with(&[signatures()]).bytes()), done(None, &[]));
}

#[test]
fn too_many_protocols_are_refused() {
    let offer = |count: usize| {
        let list: Vec<u8> = (0..count).flat_map(|_| [1, b'x']).collect();
        look(&Made::with(&[signatures(), extension(16, &sized(&list))]).bytes())
    };
    assert_eq!(offer(PROTOCOLS), done(None, &["x"; PROTOCOLS]));
    assert_eq!(offer(PROTOCOLS + 1), refused(Why::TooManyProtocols));
    assert_eq!(offer(0), refused(Why::Malformed));
}

#[test]
fn old_versions_and_unknown_suites_are_hellos_all_the_same() {
    for version in [0x0300, 0x0301, 0x0302, 0x0303, 0x0399] {
        let made =
            Made { version, suites: vec![0x0a0a], ..Made::with(&[names(&[b"old.example"]), signatures()]) };
        assert_eq!(look(&made.bytes()), done(Some("old.example"), &[]), "{version:04x}");
    }
}

#[test]
fn a_hello_that_rustls_cannot_use_is_told_apart_from_garbage() {
    let no_signatures = Made::with(&[names(&[b"a.example"])]);
    assert_eq!(look(&no_signatures.bytes()), Progress::NotLiked(Dislike::SignatureAlgorithms));
    let no_extensions = Made { version: 0x0301, extensions: None, ..Made::default() };
    assert_eq!(look(&no_extensions.bytes()), Progress::NotLiked(Dislike::SignatureAlgorithms));
    let deflate = Made { compressions: vec![1], ..Made::with(&[signatures()]) };
    assert_eq!(look(&deflate.bytes()), Progress::NotLiked(Dislike::Compression));
}

#[test]
fn lengths_that_do_not_fit_are_refused() {
    let good = Made::with(&[names(&[b"a.example"]), signatures()]).bytes();
    // In this order: session id, suites, compressions, extensions, the first extension, its list, its name.
    for at in [43, 76, 82, 84, 88, 90, 93] {
        for wrong in [0xff, good[at].wrapping_add(1), good[at].wrapping_sub(1)] {
            let mut bytes = good.clone();
            bytes[at] = wrong;
            assert!(matches!(look(&bytes), Progress::Refused(_)), "{wrong} at {at}: {:?}", look(&bytes));
        }
    }
    let session = Made { session: vec![0; 33], ..Made::with(&[signatures()]) };
    assert_eq!(look(&session.bytes()), refused(Why::Malformed));
    let trailing = message(1, &[&Made::default().message()[4..], &[0, 0]].concat());
    assert_eq!(look(&record(&trailing)), refused(Why::Malformed));
    let two = [Made::with(&[signatures()]).message(), message(1, &[])].concat();
    assert_eq!(look(&record(&two)), refused(Why::Malformed));
}

#[test]
fn other_protocols_are_refused_with_their_first_bytes() {
    for bytes in [
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".as_slice(),
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n",
        b"\x80\x2e\x01\x03\x01\x00\x15\x00\x00\x00\x10", // SSL 2
        b"\0\0\0\x08\x04\xd2\x16\x2f",                   // PostgreSQL: may we speak TLS?
        b"\xff\xff\xff\xff\xff",
        b"\x16\x02\x00\x00\x05\x01",
    ] {
        assert_eq!(look(bytes), refused(Why::NotTls), "{bytes:?}");
        let (progress, at) = in_pieces(bytes, 1..=bytes.len());
        assert_eq!(progress, refused(Why::NotTls));
        assert!(at <= 5, "{bytes:?}: {at}");
    }
}

#[test]
fn empty_records_are_refused_at_once() {
    assert_eq!(look(&[22, 3, 1, 0, 0]), refused(Why::EmptyRecord));
    assert_eq!(look(&[22, 3, 1, 0, 0].repeat(6000)), refused(Why::EmptyRecord));
    let bytes = [record(&usual()[5..50]), vec![22, 3, 1, 0, 0]].concat();
    assert_eq!(in_pieces(&bytes, 1..=bytes.len()), (refused(Why::EmptyRecord), bytes.len()));
    assert_eq!(look(&[23, 3, 3, 0, 0].repeat(100)), refused(Why::NotHello));
}

#[test]
fn other_messages_of_tls_are_refused() {
    for bytes in [
        vec![21, 3, 1, 0, 2, 2, 40],
        vec![20, 3, 3, 0, 1, 1],
        [&[23, 3, 3][..], &sized(&[0; 40])].concat(),
        record(&message(2, &Made::default().message()[4..])),
        record(&message(0, &[])),
        // A whole hello, under another type.
        [&[20, 3, 1], &usual()[3..]].concat(),
    ] {
        let progress = look(&bytes);
        assert!(
            matches!(progress, Progress::Refused(Why::NotHello | Why::Malformed)),
            "{bytes:?}: {progress:?}"
        );
        let (pieces, at) = in_pieces(&bytes, 1..=bytes.len());
        assert!(matches!(pieces, Progress::Refused(_)) && at <= bytes.len(), "{bytes:?}: {pieces:?}");
    }
}

#[test]
fn every_refusal_has_its_alert() {
    let fatal = |description| vec![21, 3, 3, 0, 2, 2, description];
    let protocols = extension(16, &sized(&[1, b'x'].repeat(PROTOCOLS + 1)));
    for (bytes, wanted) in [
        (record(&message(20, &[0; 12])), fatal(10)),
        (record(&message(0, &[])), fatal(10)),
        (vec![20, 3, 3, 0, 1, 1], fatal(10)),
        ([&[23, 3, 3][..], &sized(&[0; 40])].concat(), fatal(10)),
        (vec![22, 3, 1, 0x40, 0, 1, 255, 255, 255].into_iter().chain([0; 16_380]).collect(), fatal(50)),
        (Made::with(&[signatures(), protocols]).bytes(), fatal(40)),
        (b"GET / HTTP/1.1\r\n".to_vec(), fatal(50)),
        // Who has begun with an alert has gone, and is told nothing.
        (vec![21, 3, 1, 0, 2, 2, 40], Vec::new()),
    ] {
        let progress = look(&bytes);
        let Progress::Refused(why) = progress else { panic!("{bytes:?}: {progress:?}") };
        assert_eq!(alert(&bytes, why), wanted, "{why:?}");
    }
}

#[test]
fn a_hello_that_stalls_costs_nothing_here() {
    assert!(size_of::<Hello>() <= 64, "{}", size_of::<Hello>());
}

#[test]
fn single_bytes_in_records_of_one_byte_cost_few_looks() {
    // What counts is how often the bytes are given to rustls: once a doubling, and once when the hello is whole.
    let bytes = in_records(&usual()[5..], 1);
    let mut hello = Hello::new(DEFAULT_LIMIT);
    let mut looks = 0;
    for end in 1..=bytes.len() {
        let due = hello.due;
        let progress = hello.look(&bytes[..end]);
        assert_eq!(progress == Progress::More, end < bytes.len());
        looks += usize::from(hello.due != due);
    }
    assert!(looks <= 16, "{looks} looks for {} bytes", bytes.len());
}

#[test]
fn every_reason_has_a_word_of_its_own() {
    let whys = [
        Why::NotTls,
        Why::NotHello,
        Why::EmptyRecord,
        Why::TooLong,
        Why::ServerName,
        Why::RepeatedExtension,
        Why::TooManyProtocols,
        Why::Malformed,
    ];
    let dislikes = [Dislike::SignatureAlgorithms, Dislike::Compression, Dislike::Other];
    let words: std::collections::BTreeSet<&str> =
        whys.iter().map(|why| why.as_str()).chain(dislikes.iter().map(|dislike| dislike.as_str())).collect();
    assert_eq!(words.len(), whys.len() + dislikes.len());
}

proptest! {
    #[test]
    fn random_bytes_always_come_to_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        let mut hello = Hello::new(1000);
        let progress = hello.look(&bytes);
        prop_assert!(bytes.len() < 1000 || progress != Progress::More);
    }

    #[test]
    fn a_changed_hello_is_read_the_same_however_it_comes(
        changes in proptest::collection::vec((0_usize..1600, any::<u8>()), 1..8),
        step in 1_usize..400,
    ) {
        let mut bytes = Made::with(&[
            names(&[b"a.example"]), signatures(), extension(16, &sized(b"\x02h2")), extension(21, &[0; 1200]),
        ]).bytes();
        for (at, byte) in changes {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        let whole = look(&bytes);
        let ends = (0..bytes.len()).step_by(step).skip(1).chain([bytes.len()]);
        let (pieces, _) = in_pieces(&bytes, ends);
        match (&whole, &pieces) {
            // One that announces more than may come is known for it as soon as it has announced it.
            (Progress::More, Progress::More) | (Progress::Refused(_), Progress::Refused(_)) => {}
            _ => prop_assert_eq!(&whole, &pieces, "{}", hex(&bytes)),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
/// What `openssl s_client -servername Mixed.Example -alpn postgresql` (3.0) says first.
const OPENSSL: &str = "\
    160301014b0100014703031d27fe4ce8c8583df7a798bb7b91138d0d7eb52d9d15f1158d45e3082a5dfbee201b105598108c\
    c2b338762dc69b328740b4f2cb53f3e4bf506c8593236128c6db003e130213031301c02cc030009fcca9cca8ccaac02bc02f\
    009ec024c028006bc023c0270067c00ac0140039c009c0130033009d009c003d003c0035002f00ff010000c0000000120010\
    00000d4d697865642e4578616d706c65000b000403000102000a00160014001d0017001e0019001801000101010201030104\
    002300000010000d000b0a706f737467726573716c0016000000170000000d002a0028040305030603080708080809080a08\
    0b080408050806040105010601030303010302040205020602002b0009080304030303020301002d00020101003300260024\
    001d002097dad5d1bcdffcb4157f59fb64633d91c8247ef31f3700e86477f88251ff290e";

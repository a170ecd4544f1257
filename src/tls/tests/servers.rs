//! What a listener shows and agrees to.

use std::sync::Arc;

use rustls::{
    AlertDescription, CipherSuite, ClientConfig, ClientConnection, NamedGroup, RootCertStore,
    ServerConnection, pki_types::ServerName,
};

use super::{
    super::{
        Validity, negotiated,
        testing::{Authority, Files, listener, meet, pool, shake},
        why_io,
    },
    client, der, refused_by_listener, server, usual, why,
};
use crate::config::{Identity, NamePattern, PoolTls, TlsVersion};

/// A client of the library with settings that pools do not have.
fn plain(authority: &Authority, versions: &[&'static rustls::SupportedProtocolVersion]) -> ClientConfig {
    plain_with(authority, rustls::crypto::aws_lc_rs::default_provider(), versions)
}

fn plain_with(
    authority: &Authority,
    provider: rustls::crypto::CryptoProvider,
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> ClientConfig {
    use rustls::pki_types::{CertificateDer, pem::PemObject};

    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.pem.as_bytes()).unwrap()).unwrap();
    ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth()
}

fn edge() -> ServerName<'static> {
    "edge.example".try_into().unwrap()
}

#[test]
fn a_name_gets_its_certificate_exact_before_wildcard_and_all_others_the_first() {
    let (files, authority) = (Files::new(), Authority::new("ca"));
    let first = authority.issue(&["first.example"]);
    let wild = authority.issue(&["*.apps.example"]);
    let exact = authority.issue(&["a.apps.example", "B.Example"]);
    let pairs =
        [("first", &first), ("wild", &wild), ("exact", &exact)].map(|(name, of)| files.pair(name, of));
    let server = server(&listener(pairs.to_vec()), None).unwrap();
    // The client takes any of them, so that the test sees what is shown.
    let any = ["first.example", "x.apps.example", "b.example"].map(|name| NamePattern::Dns(name.to_owned()));
    let ca = files.put("ca.pem", &authority.pem);
    let client = client(&PoolTls { names: any.to_vec(), ..pool(ca) }).unwrap();

    let cases = [
        ("first.example", &first),
        ("a.apps.example", &exact),
        ("A.APPS.example", &exact),
        ("b.example", &exact),
        ("c.apps.example", &wild),
        ("c.apps.example.", &wild),
        ("d.c.apps.example", &first),
        ("apps.example", &first),
        ("unknown.example", &first),
        ("127.0.0.1", &first),
    ];
    for (name, certificate) in cases {
        let met = meet(&client, &server, name);
        assert!(met.is_well(), "{name}: {:?}", met.client_error);
        assert_eq!(met.shown(), &*der(certificate), "{name}");
    }
}

#[test]
fn a_client_gets_the_certificate_whose_key_it_can_check() {
    let (files, authority) = (Files::new(), Authority::new("ca"));
    let rsa_key = rcgen::KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap();
    let rsa = authority.issue_for(&rsa_key, &["edge.example"], |_| {});
    let ec = authority.issue(&["edge.example"]);
    let pairs = vec![files.pair("ec", &ec), files.pair("rsa", &rsa)];
    let server = server(&listener(pairs), None).unwrap();
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    provider
        .cipher_suites
        .retain(|suite| suite.suite() == CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256);
    let old = Arc::new(plain_with(&authority, provider, &[&rustls::version::TLS12]));
    let new = Arc::new(plain(&authority, rustls::ALL_VERSIONS));

    for (config, shown) in [(new, &ec), (old, &rsa)] {
        let client = ClientConnection::new(config, edge()).unwrap();
        let met = shake(client, ServerConnection::new(server.config.clone()).unwrap());
        assert!(met.is_well(), "{:?}", met.server_error);
        assert_eq!(met.shown(), &*der(shown));
    }
}

#[test]
fn the_newest_version_and_a_post_quantum_key_exchange_are_agreed_on() {
    let (files, authority) = (Files::new(), Authority::new("ca"));
    let (server, client) = usual(&files, &authority);
    let met = meet(&client, &server, "edge.example");
    assert!(met.is_well());
    let agreed = negotiated(&met.server).unwrap();
    assert_eq!((agreed.version, agreed.alpn, agreed.resumed), ("TLSv1.3", None, false));
    assert!(agreed.suite.starts_with("TLS13_"), "{}", agreed.suite);
    let group = met.server.negotiated_key_exchange_group().unwrap().name();
    assert_eq!(group, NamedGroup::X25519MLKEM768);
}

#[test]
fn a_client_with_an_older_version_than_allowed_is_refused() {
    let (files, authority) = (Files::new(), Authority::new("ca"));
    let mut settings = listener(vec![files.pair("edge", &authority.issue(&["edge.example"]))]);
    let old = Arc::new(plain(&authority, &[&rustls::version::TLS12]));
    let meet_old = |settings: &_| {
        let server = server(settings, None).unwrap();
        let client = ClientConnection::new(Arc::clone(&old), edge()).unwrap();
        shake(client, ServerConnection::new(server.config.clone()).unwrap())
    };
    let met = meet_old(&settings);
    assert!(met.is_well());
    assert_eq!(negotiated(&met.server).unwrap().version, "TLSv1.2");
    settings.min_version = TlsVersion::V13;
    let (word, _, alert) = refused_by_listener(&meet_old(&settings));
    assert_eq!((word, alert), ("protocol_version", AlertDescription::ProtocolVersion));
}

#[test]
fn a_client_without_a_shared_cipher_is_refused() {
    let (files, authority) = (Files::new(), Authority::new("ca"));
    let (server, _) = usual(&files, &authority);
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    provider
        .cipher_suites
        .retain(|suite| suite.suite() == CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256);
    let config = Arc::new(plain_with(&authority, provider, &[&rustls::version::TLS12]));
    let client = ClientConnection::new(config, edge()).unwrap();
    let met = shake(client, ServerConnection::new(server.config.clone()).unwrap());
    let (word, _, alert) = refused_by_listener(&met);
    assert_eq!((word, alert), ("no_shared_cipher", AlertDescription::HandshakeFailure));
}

#[test]
fn a_protocol_is_agreed_on_by_the_listeners_order_or_the_client_is_refused() {
    let (files, authority) = (Files::new(), Authority::new("ca"));
    let mut settings = listener(vec![files.pair("edge", &authority.issue(&["edge.example"]))]);
    settings.alpn = vec!["h2".to_owned(), "http/1.1".to_owned()];
    let server = server(&settings, None).unwrap();
    let ca = files.put("ca.pem", &authority.pem);
    let offering = |names: &[&str]| {
        let alpn = names.iter().map(|name| (*name).to_owned()).collect();
        client(&PoolTls { alpn, ..pool(ca.clone()) }).unwrap()
    };
    let met = meet(&offering(&["http/1.1", "h2"]), &server, "edge.example");
    assert_eq!(negotiated(&met.server).unwrap().alpn.as_deref(), Some("h2"));
    let met = meet(&offering(&[]), &server, "edge.example");
    assert!(met.is_well());
    assert_eq!(negotiated(&met.server).unwrap().alpn, None);
    let (word, _, alert) = refused_by_listener(&meet(&offering(&["imap"]), &server, "edge.example"));
    assert_eq!((word, alert), ("no_shared_protocol", AlertDescription::NoApplicationProtocol));
}

#[test]
fn what_is_not_tls_is_called_so() {
    let (files, authority) = (Files::new(), Authority::new("ca"));
    let (server, _) = usual(&files, &authority);
    for bytes in [&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..], b"SSH-2.0-OpenSSH_9.9\r\n"] {
        let mut connection = ServerConnection::new(server.config.clone()).unwrap();
        connection.read_tls(&mut &*bytes).unwrap();
        let error = connection.process_new_packets().unwrap_err();
        assert_eq!(why(&error).0, "not_tls", "{error:?}");
    }
}

#[test]
fn the_end_of_a_connection_in_a_handshake_has_a_word_too() {
    use std::io::{Error, ErrorKind};

    let inner = rustls::Error::NoCertificatesPresented;
    assert_eq!(why_io(&Error::new(ErrorKind::InvalidData, inner)).0, "no_certificate");
    assert_eq!(why_io(&ErrorKind::UnexpectedEof.into()).0, "closed");
    assert_eq!(why_io(&ErrorKind::ConnectionReset.into()).0, "reset");
    assert_eq!(why_io(&ErrorKind::TimedOut.into()).0, "other");
}

#[test]
fn an_expired_certificate_of_ours_is_in_force_and_known_to_be_expired() {
    let (files, authority) = (Files::new(), Authority::new("ca"));
    let old = authority.issue_as(&["edge.example", "*.edge.example", "192.0.2.1", "spiffe://td/edge"], |p| {
        p.not_before = rcgen::date_time_ymd(2001, 1, 1);
        p.not_after = rcgen::date_time_ymd(2002, 1, 1);
    });
    let server = server(&listener(vec![files.pair("edge", &old)]), None).unwrap();
    let [shown] = server.certificates.as_slice() else { panic!("one certificate") };
    assert_eq!(shown.file, files.path().join("edge.pem"));
    assert_eq!(shown.names, ["edge.example", "*.edge.example", "spiffe://td/edge", "192.0.2.1"]);
    assert_eq!((shown.not_before, shown.not_after), (978_307_200, 1_009_843_200));
    assert!(shown.serial.contains(':'), "{}", shown.serial);
    assert_eq!(shown.validity(978_307_199), Validity::NotYet);
    assert_eq!(shown.validity(1_009_843_200), Validity::Current);
    assert_eq!(shown.validity(1_009_843_201), Validity::Expired);
}

#[test]
fn keys_are_nowhere_in_what_debug_shows() {
    let (files, authority) = (Files::new(), Authority::new("ca"));
    let issued = authority.issue(&["edge.example"]);
    let pair = files.pair("edge", &issued);
    let server = server(&listener(vec![pair.clone()]), None).unwrap();
    let ca = files.put("ca.pem", &authority.pem);
    let client = client(&PoolTls { identity: Some(Identity::Files(pair)), ..pool(ca) }).unwrap();
    let text = format!("{server:?} {client:?}");
    assert!(text.contains("edge.example"));
    assert!(!text.contains("SigningKey") && !text.contains("keys:"), "{text}");
}

//! Which certificates of clients a listener takes, and what it says of the others.

use rcgen::{
    CertificateParams, DistinguishedName, DnType, DnValue, ExtendedKeyUsagePurpose, KeyUsagePurpose,
    string::{BmpString, TeletexString},
};
use rustls::AlertDescription;

use super::{
    super::testing::{Authority, Files, Issued, Met, listener, meet, pool},
    client, der, refused_by_listener, server,
};
use crate::config::{ClientCertificates, Identity, ListenerTls, NamePattern, PoolTls, TlsVersion};
use crate::tls::common_name;

/// A listener that asks for certificates of `clients`, and an authority of its own for what it shows.
struct Bench {
    files: Files,
    edge: Authority,
    clients: Authority,
}

impl Bench {
    fn new() -> Self {
        Self { files: Files::new(), edge: Authority::new("edge ca"), clients: Authority::new("client ca") }
    }

    fn required(&self, names: &[NamePattern]) -> ListenerTls {
        let pair = self.files.pair("edge", &self.edge.issue(&["edge.example"]));
        let trust = self.files.trust("clients.pem", &self.clients, names);
        ListenerTls { clients: ClientCertificates::Required(trust), ..listener(vec![pair]) }
    }

    fn optional(&self) -> ListenerTls {
        let settings = self.required(&[]);
        let ClientCertificates::Required(trust) = settings.clients else { panic!("required") };
        ListenerTls { clients: ClientCertificates::Optional(trust), ..settings }
    }

    fn meet(&self, settings: &ListenerTls, shows: Option<&Issued>) -> Met {
        let identity = shows.map(|issued| Identity::Files(self.files.pair("client", issued)));
        let ca = self.files.put("edge-ca.pem", &self.edge.pem);
        let client = client(&PoolTls { identity, ..pool(ca) }).unwrap();
        meet(&client, &server(settings, None).unwrap(), "edge.example")
    }

    fn issue(&self, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Issued {
        self.clients.issue_as(names, change)
    }
}

fn dns(name: &str) -> NamePattern {
    NamePattern::Dns(name.to_owned())
}

#[test]
fn a_client_without_a_certificate_passes_only_where_none_is_required() {
    let bench = Bench::new();
    assert!(bench.meet(&bench.optional(), None).is_well());
    for min_version in [TlsVersion::V12, TlsVersion::V13] {
        let settings = ListenerTls { min_version, ..bench.required(&[]) };
        let (word, words, alert) = refused_by_listener(&bench.meet(&settings, None));
        assert_eq!((word, alert), ("no_certificate", AlertDescription::CertificateRequired));
        assert!(words.contains("must show one"), "{words}");
    }
}

#[test]
fn a_right_certificate_passes() {
    let bench = Bench::new();
    let right = bench.issue(&["a.example"], |_| {});
    for settings in [bench.required(&[]), bench.optional(), bench.required(&[dns("a.example")])] {
        let met = bench.meet(&settings, Some(&right));
        assert!(met.is_well(), "{:?}", met.server_error);
        assert!(met.server.peer_certificates().is_some());
    }
}

#[test]
fn a_wrong_certificate_is_refused_with_its_alert_even_where_none_is_required() {
    let bench = Bench::new();
    let expired = bench.issue(&["a.example"], |p| p.not_after = rcgen::date_time_ymd(2020, 1, 1));
    let early = bench.issue(&["a.example"], |p| p.not_before = rcgen::date_time_ymd(4000, 1, 1));
    let stranger = Authority::new("client ca").issue(&["a.example"]);
    let for_servers =
        bench.issue(&["a.example"], |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]);
    let cases = [
        (&expired, "certificate_expired", AlertDescription::CertificateExpired, "has expired"),
        (&early, "certificate_expired", AlertDescription::CertificateExpired, "begins in"),
        // It has the name of the right authority, and another key.
        (&stranger, "bad_certificate", AlertDescription::DecryptError, "not right"),
        (&for_servers, "bad_certificate", AlertDescription::UnsupportedCertificate, "not right"),
    ];
    for settings in [bench.required(&[]), bench.optional()] {
        for (shows, word, alert, words) in &cases {
            let told = refused_by_listener(&bench.meet(&settings, Some(shows)));
            assert_eq!((told.0, told.2), (*word, *alert), "{}", told.1);
            assert!(told.1.contains(words), "{}", told.1);
        }
    }
}

#[test]
fn a_certificate_of_another_authority_is_refused_as_unknown() {
    let bench = Bench::new();
    let stranger = Authority::new("another ca").issue(&["a.example"]);
    let told = refused_by_listener(&bench.meet(&bench.required(&[]), Some(&stranger)));
    assert_eq!((told.0, told.2), ("unknown_ca", AlertDescription::UnknownCA));
    assert!(told.1.contains("no authority"), "{}", told.1);
}

#[test]
fn names_are_allowed_by_patterns_and_by_nothing_else() {
    let bench = Bench::new();
    let below = NamePattern::DnsBelow(".svc.example".to_owned());
    let id = NamePattern::Spiffe("spiffe://td/ns/a".to_owned());
    let ids = NamePattern::SpiffeBelow("spiffe://td/ns/".to_owned());
    let allowed = [
        (dns("a.example"), "a.example"),
        (dns("a.example"), "A.Example"),
        (below.clone(), "a.svc.example"),
        (below.clone(), "b.a.svc.example"),
        (id.clone(), "spiffe://td/ns/a"),
        (ids.clone(), "spiffe://td/ns/a"),
        (ids.clone(), "spiffe://td/ns/a/b"),
    ];
    for (pattern, name) in allowed {
        let shows = bench.issue(&["other.example", name], |_| {});
        let met = bench.meet(&bench.required(std::slice::from_ref(&pattern)), Some(&shows));
        assert!(met.is_well(), "{pattern:?} {name}: {:?}", met.server_error);
    }
    let refused = [
        (dns("a.example"), "b.example"),
        (dns("a.example"), "a.example.evil.example"),
        (dns("a.example"), "*.example"),
        (dns("a.b.example"), "*.b.example"),
        (below.clone(), "svc.example"),
        (below.clone(), "xsvc.example"),
        (below.clone(), ".svc.example"),
        (below, "*.svc.example"),
        (id.clone(), "spiffe://td/ns/a/b"),
        (id.clone(), "spiffe://td/ns/A"),
        (id, "td"),
        (ids.clone(), "spiffe://td/ns/"),
        (ids.clone(), "spiffe://td/nsx"),
        (ids.clone(), "spiffe://td/ns/../admin"),
        (ids.clone(), "spiffe://td/ns//a"),
        (ids.clone(), "spiffe://td/ns/a?b"),
        (ids.clone(), "spiffe://td/ns/%61"),
        (ids, "spiffe://td.evil/ns/a"),
    ];
    for (pattern, name) in refused {
        let shows = bench.issue(&[name], |_| {});
        let met = bench.meet(&bench.required(std::slice::from_ref(&pattern)), Some(&shows));
        let (word, words, alert) = refused_by_listener(&met);
        let expected = ("name_not_allowed", AlertDescription::AccessDenied);
        assert_eq!((word, alert), expected, "{pattern:?} {name}: {words}");
        assert!(words.contains("allowed are") && words.contains(name), "{name}: {words}");
    }
}

#[test]
fn a_certificate_with_two_uris_or_one_that_may_sign_has_no_spiffe_id() {
    let bench = Bench::new();
    let settings = bench.required(&[NamePattern::Spiffe("spiffe://td/a".to_owned())]);
    let two = bench.issue(&["spiffe://td/a", "spiffe://td/b"], |_| {});
    let (word, words, _) = refused_by_listener(&bench.meet(&settings, Some(&two)));
    assert_eq!(word, "name_not_allowed");
    assert!(words.contains("several URIs"), "{words}");

    let signs = bench.issue(&["spiffe://td/a"], |p| {
        p.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign];
    });
    let (word, words, _) = refused_by_listener(&bench.meet(&settings, Some(&signs)));
    assert_eq!(word, "name_not_allowed");
    assert!(words.contains("may sign"), "{words}");
}

#[test]
fn a_name_with_a_nul_or_a_line_break_refuses_the_whole_certificate() {
    let bench = Bench::new();
    for name in ["a.example\0.evil.example", "a.example\r\nINFO all is well", "spiffe://td/a\0b", "a b"] {
        let shows = bench.issue(&["a.example", name], |_| {});
        for patterns in [&[][..], &[dns("a.example")]] {
            let met = bench.meet(&bench.required(patterns), Some(&shows));
            let (word, words, alert) = refused_by_listener(&met);
            assert_eq!((word, alert), ("bad_certificate", AlertDescription::CertificateUnknown), "{words}");
            assert!(words.contains("characters that no name has"), "{words}");
            assert!(!words.contains(['\0', '\r', '\n']), "{words:?}");
        }
    }
}

#[test]
fn the_words_for_a_refused_name_are_told_once_and_never_for_another_client() {
    let bench = Bench::new();
    let settings = bench.required(&[dns("a.example")]);
    let shows = bench.issue(&["secret.example"], |_| {});
    let first = bench.meet(&settings, Some(&shows));
    let right = bench.issue(&["a.example"], |_| {});
    assert!(bench.meet(&settings, Some(&right)).is_well());
    let (word, words, _) = refused_by_listener(&first);
    assert_eq!(word, "name_not_allowed");
    assert!(!words.contains("secret"), "{words}");
    assert!(words.contains("client_names"), "{words}");
}

/// The common name of a certificate whose subject has these values for common names, and an organization.
fn common_name_of(values: &[DnValue]) -> Option<String> {
    // The same object identifier under two names: the crate keeps one value of each.
    let kinds = [DnType::CommonName, DnType::CustomDnType(vec![2, 5, 4, 3])];
    let issued = Bench::new().issue(&["a.example"], |params| {
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "an organization");
        for (kind, value) in kinds.into_iter().zip(values) {
            params.distinguished_name.push(kind, value.clone());
        }
    });
    common_name(&der(&issued))
}

#[test]
fn a_common_name_is_told_only_where_everybody_would_read_the_same() {
    let utf8 = |name: &str| DnValue::Utf8String(name.to_owned());
    let longest = "n".repeat(255);
    for name in ["client one", "Zoë", "a,b=c", &longest] {
        assert_eq!(common_name_of(&[utf8(name)]).as_deref(), Some(name));
    }
    let wide = DnValue::BmpString(BmpString::try_from("Zoë").unwrap());
    assert_eq!(common_name_of(&[wide]).as_deref(), Some("Zoë"));
    let unknown = DnValue::TeletexString(TeletexString::try_from("me").unwrap());
    for (what, values) in [
        ("none", vec![]),
        ("two", vec![utf8("one"), utf8("other")]),
        ("empty", vec![utf8("")]),
        ("a NUL", vec![utf8("root\0.example")]),
        ("a line break", vec![utf8("a\r\nb")]),
        ("too long", vec![utf8(&"n".repeat(256))]),
        ("characters that nobody knows", vec![unknown]),
    ] {
        assert_eq!(common_name_of(&values), None, "{what}");
    }
    assert_eq!(common_name(&vec![0x30, 0x80].into()), None, "no certificate");
}

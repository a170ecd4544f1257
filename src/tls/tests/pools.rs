//! Which certificates of endpoints a pool takes.

use std::net::IpAddr;

use rcgen::ExtendedKeyUsagePurpose;
use rustls::AlertDescription;

use super::{
    super::{
        Error,
        testing::{Authority, Files, Issued, Met, listener, meet, pool},
    },
    client, refused_by_client, server,
};
use crate::config::{Identity, KeyPair, NamePattern, PoolTls};

/// An endpoint with a certificate, and a pool whose settings name patterns, at `db.example`.
fn meets(authority: &Authority, shows: &Issued, names: &[NamePattern]) -> Met {
    let files = Files::new();
    let server = server(&listener(vec![files.pair("endpoint", shows)]), None).unwrap();
    let ca = files.put("ca.pem", &authority.pem);
    meet(&client(&PoolTls { names: names.to_vec(), ..pool(ca) }).unwrap(), &server, "db.example")
}

fn spiffe() -> NamePattern {
    NamePattern::Spiffe("spiffe://td/db".to_owned())
}

#[test]
fn an_endpoint_with_the_name_that_was_asked_for_is_taken() {
    let authority = Authority::new("ca");
    assert!(meets(&authority, &authority.issue(&["db.example"]), &[]).is_well());
    assert!(meets(&authority, &authority.issue(&["*.db.example", "db.example"]), &[]).is_well());
}

#[test]
fn an_endpoint_with_another_name_is_refused() {
    let authority = Authority::new("ca");
    let (word, words, alert) =
        refused_by_client(&meets(&authority, &authority.issue(&["other.example"]), &[]));
    assert_eq!((word, alert), ("name_not_allowed", AlertDescription::BadCertificate));
    assert!(words.contains("db.example") && words.contains("other.example"), "{words}");
}

#[test]
fn patterns_take_the_place_of_the_name_and_never_of_the_chain() {
    let authority = Authority::new("ca");
    let right = authority.issue(&["spiffe://td/db"]);
    assert!(meets(&authority, &right, &[spiffe()]).is_well());

    let only_the_name = authority.issue(&["db.example"]);
    let (word, words, _) = refused_by_client(&meets(&authority, &only_the_name, &[spiffe()]));
    assert_eq!(word, "name_not_allowed");
    assert!(words.contains("spiffe://td/db") && words.contains("db.example"), "{words}");

    let forged = Authority::new("another ca").issue(&["spiffe://td/db"]);
    let (word, _, alert) = refused_by_client(&meets(&authority, &forged, &[spiffe()]));
    assert_eq!((word, alert), ("unknown_ca", AlertDescription::UnknownCA));

    let expired = authority.issue_as(&["spiffe://td/db"], |p| p.not_after = rcgen::date_time_ymd(2020, 1, 1));
    let (word, _, alert) = refused_by_client(&meets(&authority, &expired, &[spiffe()]));
    assert_eq!((word, alert), ("certificate_expired", AlertDescription::CertificateExpired));

    let for_clients = authority.issue_as(&["spiffe://td/db"], |p| {
        p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    });
    let (word, _, _) = refused_by_client(&meets(&authority, &for_clients, &[spiffe()]));
    assert_eq!(word, "bad_certificate");

    let broken = authority.issue(&["spiffe://td/db", "x\0y"]);
    let (word, words, _) = refused_by_client(&meets(&authority, &broken, &[spiffe()]));
    assert_eq!(word, "bad_certificate", "{words}");
}

#[test]
fn an_endpoints_wildcard_is_one_label_of_a_pattern() {
    let authority = Authority::new("ca");
    let wild = authority.issue(&["*.svc.example"]);
    let dns = |name: &str| NamePattern::Dns(name.to_owned());
    let below = |name: &str| NamePattern::DnsBelow(name.to_owned());
    for pattern in [dns("a.svc.example"), below(".svc.example"), below(".example")] {
        assert!(meets(&authority, &wild, std::slice::from_ref(&pattern)).is_well(), "{pattern:?}");
    }
    for pattern in
        [dns("b.a.svc.example"), dns("svc.example"), dns("a.other.example"), below(".a.svc.example")]
    {
        let met = meets(&authority, &wild, std::slice::from_ref(&pattern));
        assert_eq!(refused_by_client(&met).0, "name_not_allowed", "{pattern:?}");
    }
    for (name, pattern) in [
        ("*.example", dns("a.example")),
        ("*.example", below(".example")),
        ("f*.a.example", below(".a.example")),
    ] {
        let met = meets(&authority, &authority.issue(&[name]), std::slice::from_ref(&pattern));
        assert_eq!(refused_by_client(&met).0, "name_not_allowed", "{name} {pattern:?}");
    }
}

#[test]
fn an_endpoint_that_signed_for_itself_is_refused_with_a_hint() {
    let files = Files::new();
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["db.example".to_owned()]).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let pem = params.self_signed(&key).unwrap().pem();
    let pair =
        KeyPair { certificate: files.put("self.pem", &pem), key: files.put("self.key", key.serialize_pem()) };
    let server = server(&listener(vec![pair.clone()]), None).unwrap();
    let trusting = client(&pool(pair.certificate)).unwrap();
    let (word, words, _) = refused_by_client(&meet(&trusting, &server, "db.example"));
    assert_eq!(word, "bad_certificate");
    assert!(words.contains("self-signed"), "{words}");
    let distrusting = client(&pool(files.put("ca.pem", &Authority::new("ca").pem))).unwrap();
    let (word, words, _) = refused_by_client(&meet(&distrusting, &server, "db.example"));
    assert!(["unknown_ca", "bad_certificate"].contains(&word), "{words}");
}

#[test]
fn a_pool_shows_its_certificate_where_it_is_asked_for() {
    use crate::config::{ClientCertificates, ListenerTls};

    let (files, authority) = (Files::new(), Authority::new("ca"));
    let pair = files.pair("endpoint", &authority.issue(&["db.example"]));
    let trust = files.trust("ca.pem", &authority, &[]);
    let ca = files.path().join("ca.pem");
    let asking = ListenerTls { clients: ClientCertificates::Required(trust), ..listener(vec![pair]) };
    let server = server(&asking, None).unwrap();
    let identity = Identity::Files(files.pair("proxy", &authority.issue(&["proxy.example"])));
    let shows = client(&PoolTls { identity: Some(identity), ..pool(ca.clone()) }).unwrap();
    assert_eq!(shows.certificate.as_ref().unwrap().names, ["proxy.example"]);
    assert!(meet(&shows, &server, "db.example").is_well());
    // What a peer's alert means is told too.
    let bare = meet(&client(&pool(ca)).unwrap(), &server, "db.example");
    let (word, words) = super::why(bare.client_error.as_ref().unwrap());
    assert_eq!(word, "peer_alert");
    assert!(words.ends_with("certificate_required"), "{words}");
}

#[test]
fn the_name_is_the_settings_then_the_hosts_then_the_address() {
    let (files, authority) = (Files::new(), Authority::new("ca"));
    let ca = files.put("ca.pem", &authority.pem);
    let v4: IpAddr = [192, 0, 2, 1].into();
    let mapped: IpAddr = "::ffff:192.0.2.1".parse().unwrap();
    let of = |server_name: Option<&str>, host, address| {
        let settings = PoolTls { server_name: server_name.map(str::to_owned), ..pool(ca.clone()) };
        client(&settings).unwrap().name_for(host, address).map(|name| name.to_str().into_owned())
    };
    assert_eq!(of(Some("db.example"), Some("host.example"), v4).unwrap(), "db.example");
    assert_eq!(of(Some("db.example."), None, v4).unwrap(), "db.example");
    assert_eq!(of(None, Some("host.example"), v4).unwrap(), "host.example");
    assert_eq!(of(None, Some("my_host"), v4).unwrap(), "my_host");
    assert_eq!(of(None, None, v4).unwrap(), "192.0.2.1");
    assert_eq!(of(None, None, mapped).unwrap(), "192.0.2.1");
    assert_eq!(of(None, Some("a b\n"), v4), Err(Error::Name("a b\\n".to_owned())));
    let settings = PoolTls { server_name: Some("no name".to_owned()), ..pool(ca) };
    assert_eq!(client(&settings).unwrap_err(), Error::Name("no name".to_owned()));
}

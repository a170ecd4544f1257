//! Peers that are judged by the bundles of trust domains.

use std::sync::Arc;

use rcgen::{CertificateParams, IsCa};
use rustls::{
    AlertDescription, HandshakeKind,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

use super::{
    super::{
        Error, Workload, client_with, server_with,
        testing::{Authority, Issued, Met, listener, meet, pool},
    },
    Client, Files, Server, client, refused_by_client, refused_by_listener, server,
};
use crate::config::{
    Authority as Trusted, ClientCertificates, ClientTrust, Identity, ListenerTls, NamePattern, PoolTls,
};

const FROM: &str = "unix:///run/api.sock";

fn der(authority: &Authority) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(authority.pem.as_bytes()).unwrap()
}

fn workload(issued: &Issued, bundles: &[(&str, &[&Authority])]) -> Result<Workload, Error> {
    let chain = CertificateDer::pem_slice_iter(issued.certificate.as_bytes()).map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_slice(issued.key.as_bytes()).unwrap();
    let bundles =
        bundles.iter().map(|(domain, all)| ((*domain).to_owned(), all.iter().map(|one| der(one)).collect()));
    Workload::new(FROM, chain, key, bundles.collect())
}

/// Two trust domains: each side has an identity in `one.test`, and knows the bundles of both.
struct Bench {
    one: Authority,
    two: Authority,
}

impl Bench {
    fn new() -> Self {
        Self { one: Authority::new("one"), two: Authority::new("two") }
    }

    fn ours(&self) -> Workload {
        workload(
            &self.one.issue(&["spiffe://one.test/proxy"]),
            &[("one.test", &[&self.one]), ("two.test", &[&self.two])],
        )
        .unwrap()
    }

    /// A listener whose clients must be one of these.
    fn server(&self, names: &[&str]) -> Server {
        server_with(&asking(names), Some(&self.ours()), None).unwrap()
    }

    /// A pool whose endpoints must be one of these.
    fn client(&self, names: &[&str]) -> Client {
        let settings = PoolTls { names: patterns(names), ..spiffe_pool() };
        client_with(&settings, Some(&self.ours())).unwrap()
    }

    /// A client with this identity comes to our listener.
    fn comes(&self, issued: &Issued, names: &[&str]) -> Met {
        let settings = PoolTls { names: patterns(&["spiffe://one.test/proxy"]), ..spiffe_pool() };
        let mut client = client_with(&settings, Some(&self.ours())).unwrap();
        // Whatever it shows: it need not be an identity that the library of workloads takes.
        let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(
            &PrivateKeyDer::from_pem_slice(issued.key.as_bytes()).unwrap(),
        )
        .unwrap();
        let chain =
            CertificateDer::pem_slice_iter(issued.certificate.as_bytes()).map(Result::unwrap).collect();
        let mut config = (*client.config).clone();
        config.client_auth_cert_resolver =
            Arc::new(rustls::sign::SingleCertAndKey::from(rustls::sign::CertifiedKey::new(chain, key)));
        client.config = Arc::new(config);
        meet(&client, &self.server(names), "edge.test")
    }

    /// Our pool goes to an endpoint that shows this.
    fn goes(&self, issued: &Issued, names: &[&str]) -> Met {
        let files = Files::new();
        let endpoint = server(&listener(vec![files.pair("endpoint", issued)]), None).unwrap();
        meet(&self.client(names), &endpoint, "db.test")
    }
}

fn asking(names: &[&str]) -> ListenerTls {
    let trust = ClientTrust { ca: Trusted::Spiffe, names: patterns(names) };
    ListenerTls {
        certificates: vec![Identity::Spiffe],
        clients: ClientCertificates::Required(trust),
        ..listener(Vec::new())
    }
}

fn spiffe_pool() -> PoolTls {
    PoolTls { ca: Some(Trusted::Spiffe), identity: Some(Identity::Spiffe), ..pool("/nowhere".into()) }
}

fn patterns(names: &[&str]) -> Vec<NamePattern> {
    let pattern = |name: &&str| match name.strip_suffix('*') {
        Some(start) => NamePattern::SpiffeBelow(start.to_owned()),
        None => NamePattern::Spiffe((*name).to_owned()),
    };
    names.iter().map(pattern).collect()
}

/// Who is taken as a client and as an endpoint: by name patterns, what is shown, and the word of the refusal.
fn cases(bench: &Bench) -> Vec<(&'static [&'static str], Issued, Option<&'static str>)> {
    let (one, two) = (&bench.one, &bench.two);
    let stranger = Authority::new("one");
    let expired = |params: &mut CertificateParams| params.not_after = rcgen::date_time_ymd(2020, 1, 1);
    vec![
        (&[], one.issue(&["spiffe://one.test/app"]), None),
        (&["spiffe://one.test/app"], one.issue(&["spiffe://one.test/app"]), None),
        (&["spiffe://two.test/app"], two.issue(&["spiffe://two.test/app"]), None),
        (&["spiffe://two.test/*"], two.issue(&["spiffe://two.test/a/b"]), None),
        // A domain that is federated comes in only where it is named.
        (&[], two.issue(&["spiffe://two.test/app"]), Some("name_not_allowed")),
        (&["spiffe://one.test/app"], one.issue(&["spiffe://one.test/other"]), Some("name_not_allowed")),
        // The authority of one domain speaks for no other.
        (&[], two.issue(&["spiffe://one.test/app"]), Some("unknown_ca")),
        (&["spiffe://one.test/*"], two.issue(&["spiffe://one.test/app"]), Some("unknown_ca")),
        (&["spiffe://two.test/*"], one.issue(&["spiffe://two.test/app"]), Some("unknown_ca")),
        (&["spiffe://three.test/*"], one.issue(&["spiffe://three.test/app"]), Some("unknown_ca")),
        (&[], stranger.issue(&["spiffe://one.test/app"]), Some("bad_certificate")),
        (&[], one.issue_as(&["spiffe://one.test/app"], expired), Some("certificate_expired")),
        // No identity at all, or none of a workload.
        (&[], one.issue(&["app.one.test"]), Some("name_not_allowed")),
        (&[], one.issue(&["spiffe://one.test"]), Some("name_not_allowed")),
        (&[], one.issue(&["spiffe://one.test/a", "spiffe://one.test/b"]), Some("name_not_allowed")),
        (&[], one.issue(&["spiffe://ONE.test/app"]), Some("name_not_allowed")),
    ]
}

#[test]
fn each_trust_domain_vouches_for_its_own_clients_only() {
    let bench = Bench::new();
    for (names, issued, word) in cases(&bench) {
        let met = bench.comes(&issued, names);
        match word {
            None => assert!(met.is_well(), "{names:?} {:?} {:?}", met.server_error, met.client_error),
            Some(word) => {
                let (found, words, alert) = refused_by_listener(&met);
                assert_eq!(found, word, "{names:?} {words}");
                assert_eq!(alert == AlertDescription::AccessDenied, word == "name_not_allowed", "{words}");
            }
        }
    }
}

#[test]
fn each_trust_domain_vouches_for_its_own_endpoints_only() {
    let bench = Bench::new();
    for (names, issued, word) in cases(&bench) {
        let met = bench.goes(&issued, names);
        match word {
            None => assert!(met.is_well(), "{names:?} {:?} {:?}", met.server_error, met.client_error),
            Some(word) => {
                let (found, words, _) = refused_by_client(&met);
                assert_eq!(found, word, "{names:?} {words}");
            }
        }
    }
}

#[test]
fn the_words_of_a_refusal_say_what_there_is_and_what_is_allowed() {
    let bench = Bench::new();
    let (_, words, _) = refused_by_listener(&bench.comes(&bench.two.issue(&["spiffe://two.test/app"]), &[]));
    assert!(words.contains("it has spiffe://two.test/app, allowed are spiffe://one.test/*"), "{words}");
    let (_, words, _) = refused_by_listener(&bench.comes(&bench.one.issue(&["app.one.test"]), &[]));
    assert!(words.contains("has no SPIFFE id of a workload: it has app.one.test"), "{words}");
}

#[test]
fn tickets_outlive_a_new_identity_and_not_a_new_bundle() {
    let bench = Bench::new();
    let client = bench.client(&[]);
    let resumes = |server: &Server| {
        let met = meet(&client, server, "edge.test");
        assert!(met.is_well(), "{:?} {:?}", met.client_error, met.server_error);
        met.server.handshake_kind() == Some(HandshakeKind::Resumed)
    };
    let first = bench.server(&[]);
    assert!(!resumes(&first));
    // `ours` is issued anew each time.
    let second = server_with(&asking(&[]), Some(&bench.ours()), Some(&first)).unwrap();
    assert_ne!(first.certificates[0].serial, second.certificates[0].serial);
    assert!(resumes(&second));
    let fewer =
        workload(&bench.one.issue(&["spiffe://one.test/proxy"]), &[("one.test", &[&bench.one])]).unwrap();
    let third = server_with(&asking(&[]), Some(&fewer), Some(&second)).unwrap();
    assert!(!resumes(&third));
}

#[test]
fn what_a_workload_api_says_is_checked_before_it_is_believed() {
    let bench = Bench::new();
    let own: &[(&str, &[&Authority])] = &[("one.test", &[&bench.one])];
    let words = |issued: &Issued, bundles: &[(&str, &[&Authority])]| {
        let error = workload(issued, bundles).unwrap_err();
        assert!(error.to_string().starts_with(FROM), "{error}");
        error.to_string()
    };
    let right = bench.one.issue(&["spiffe://one.test/proxy"]);
    let good = workload(&right, own).unwrap();
    assert_eq!(good.shown().names, ["spiffe://one.test/proxy"]);
    assert_eq!(good.shown().file.to_str(), Some(FROM));
    assert_eq!(good, workload(&right, own).unwrap());
    assert_ne!(good, workload(&right, &[("one.test", &[&bench.one]), ("two.test", &[&bench.two])]).unwrap());

    let other = bench.one.issue(&["spiffe://one.test/proxy"]);
    let mixed = Issued { certificate: right.certificate.clone(), key: other.key };
    assert!(words(&mixed, own).contains("private key is not that of our certificate"));
    let nobody = bench.one.issue(&["proxy.one.test"]);
    assert!(words(&nobody, own).contains("no SPIFFE id"));
    let signs = bench.one.issue_as(&["spiffe://one.test/proxy"], |params| {
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    });
    assert!(words(&signs, own).contains("may sign certificates"));
    assert!(words(&right, &[("two.test", &[&bench.two])]).contains("one.test has no authority"));
    assert!(words(&right, &[("one.test", &[])]).contains("one.test has no authority"));
    assert!(!format!("{good:?}").contains("key"), "{good:?}");
}

#[test]
fn settings_that_take_an_identity_from_nowhere_are_refused() {
    let error = server(&asking(&[]), None).unwrap_err();
    assert_eq!(error.to_string(), "no SPIFFE Workload API is asked");
    assert_eq!(client(&spiffe_pool()).unwrap_err(), error);
}

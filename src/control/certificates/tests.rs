//! Files that are replaced, well and badly.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::HandshakeKind;

use super::{Certificates, Notice, Owner, Refused, Wanted};
use crate::{
    config::{ClientCertificates, Identity, KeyPair, ListenerTls, PoolTls},
    ids::{ListenerName, PoolName},
    tls::{
        self, Error,
        testing::{Authority, Files, Issued, listener, meet, pool},
    },
};

fn edge() -> ListenerName {
    "edge".into()
}

fn owner() -> Owner {
    Owner::Listener(edge())
}

fn only(settings: ListenerTls) -> Wanted {
    Wanted { listeners: [(edge(), settings)].into(), ..Wanted::default() }
}

/// A listener whose files are in a directory of its own.
struct Bench {
    files: Files,
    authority: Authority,
    settings: ListenerTls,
}

impl Bench {
    fn new() -> (Self, Certificates) {
        let (files, authority) = (Files::new(), Authority::new("ca"));
        let pair = files.pair("edge", &authority.issue(&["first.example"]));
        let settings = listener(vec![pair]);
        let kept = Certificates::load(&only(settings.clone()), None).unwrap();
        (Self { files, authority, settings }, kept)
    }

    fn issue(&self, name: &str) -> Issued {
        self.authority.issue(&[name])
    }

    fn pair(&self) -> &KeyPair {
        match self.settings.certificates.first().unwrap() {
            Identity::Files(pair) => pair,
            Identity::Spiffe => panic!("files"),
        }
    }
}

/// The names that the listener shows.
fn shows(kept: &Certificates) -> Vec<String> {
    kept.server(&edge()).unwrap().certificates.iter().flat_map(|shown| shown.names.clone()).collect()
}

/// Looks once; the listener must have been renewed, and nothing else be told.
fn renewed(kept: &mut Certificates, name: &str) {
    let notices = kept.changed();
    let [Notice::Renewed { owner: whose, shown }] = notices.as_slice() else { panic!("{notices:?}") };
    assert_eq!(*whose, owner());
    assert_eq!(shown.first().unwrap().names, [name]);
    assert_eq!(shows(kept), [name]);
    assert_eq!(kept.changed(), [], "told once");
}

/// Looks once; the files must have been refused, and nothing be in force but what was.
fn refused(kept: &mut Certificates, name: &str, words: &str) {
    let before = Arc::clone(kept.server(&edge()).unwrap());
    let notices = kept.changed();
    let [Notice::Kept(refused)] = notices.as_slice() else { panic!("{notices:?}") };
    assert!(refused.to_string().starts_with("listener edge: "), "{refused}");
    assert!(refused.to_string().contains(words), "{refused}");
    assert_eq!(kept.changed(), [], "told once");
    assert!(Arc::ptr_eq(&before, kept.server(&edge()).unwrap()));
    assert_eq!(shows(kept), [name]);
    let told = kept.told();
    assert!(told.first().unwrap().alarm.as_ref().is_some_and(|alarm| alarm.contains(words)), "{told:?}");
}

#[test]
fn files_that_stay_lead_to_nothing_and_so_do_files_that_are_touched() {
    let (bench, mut kept) = Bench::new();
    let before = Arc::clone(kept.server(&edge()).unwrap());
    assert_eq!(kept.changed(), []);
    let text = fs::read(&bench.pair().certificate).unwrap();
    fs::write(&bench.pair().certificate, &text).unwrap();
    fs::write(bench.files.path().join("copy"), &text).unwrap();
    fs::rename(bench.files.path().join("copy"), &bench.pair().certificate).unwrap();
    assert_eq!(kept.changed(), []);
    assert!(Arc::ptr_eq(&before, kept.server(&edge()).unwrap()));
}

#[test]
fn files_that_are_written_in_place_are_seen() {
    let (bench, mut kept) = Bench::new();
    bench.files.pair("edge", &bench.issue("second.example"));
    renewed(&mut kept, "second.example");
    // At once again: of the same length, and perhaps with the same stamp.
    bench.files.pair("edge", &bench.issue("thirds.example"));
    renewed(&mut kept, "thirds.example");
}

#[test]
fn files_that_are_renamed_are_seen() {
    let (bench, mut kept) = Bench::new();
    let new = bench.files.pair("new", &bench.issue("second.example"));
    fs::rename(new.certificate, &bench.pair().certificate).unwrap();
    fs::rename(new.key, &bench.pair().key).unwrap();
    renewed(&mut kept, "second.example");
}

#[test]
fn a_directory_that_is_exchanged_as_kubernetes_does_it_is_seen() {
    let (files, authority) = (Files::new(), Authority::new("ca"));
    let publish = |generation: &str, name: &str| {
        let issued = authority.issue(&[name]);
        let dir = files.path().join(generation);
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("tls.crt"), issued.certificate).unwrap();
        fs::write(dir.join("tls.key"), issued.key).unwrap();
        symlink(Path::new(generation), files.path().join("..data_tmp")).unwrap();
        fs::rename(files.path().join("..data_tmp"), files.path().join("..data")).unwrap();
    };
    publish("..2026_01", "first.example");
    let link = |name: &str| {
        let path = files.path().join(name);
        symlink(Path::new("..data").join(name), &path).unwrap();
        path
    };
    let settings = listener(vec![KeyPair { certificate: link("tls.crt"), key: link("tls.key") }]);
    let mut kept = Certificates::load(&only(settings), None).unwrap();
    assert_eq!(kept.changed(), []);
    publish("..2026_02", "second.example");
    fs::remove_dir_all(files.path().join("..2026_01")).unwrap();
    renewed(&mut kept, "second.example");
}

#[test]
fn a_pair_that_is_half_replaced_leaves_the_old_in_force_until_it_is_whole() {
    let (bench, mut kept) = Bench::new();
    let new = bench.issue("second.example");
    fs::write(&bench.pair().certificate, &new.certificate).unwrap();
    refused(&mut kept, "first.example", "does not belong to the certificate");
    fs::write(&bench.pair().key, &new.key).unwrap();
    let notices = kept.changed();
    assert!(matches!(notices.as_slice(), [Notice::Renewed { .. }, Notice::Well(_)]), "{notices:?}");
    assert_eq!(shows(&kept), ["second.example"]);
    assert_eq!(kept.told().first().unwrap().alarm, None);
    assert_eq!(kept.changed(), []);
}

#[test]
fn each_reason_is_told_once_and_the_end_of_the_last_too() {
    let (bench, mut kept) = Bench::new();
    let text = fs::read(&bench.pair().certificate).unwrap();
    fs::write(&bench.pair().certificate, "").unwrap();
    refused(&mut kept, "first.example", "is empty");
    fs::write(&bench.pair().certificate, &text[..100]).unwrap();
    refused(&mut kept, "first.example", "ends in the middle");
    fs::remove_file(&bench.pair().certificate).unwrap();
    refused(&mut kept, "first.example", "cannot be read");
    fs::write(&bench.pair().certificate, &text).unwrap();
    let before = Arc::clone(kept.server(&edge()).unwrap());
    assert_eq!(kept.changed(), [Notice::Well(owner())]);
    assert!(Arc::ptr_eq(&before, kept.server(&edge()).unwrap()), "it is what is in force");
    assert_eq!(kept.changed(), []);
}

#[test]
fn the_wrong_files_of_one_leave_those_of_another_alone() {
    let (files, authority) = (Files::new(), Authority::new("ca"));
    let one = files.pair("one", &authority.issue(&["one.example"]));
    let two = files.pair("two", &authority.issue(&["two.example"]));
    let ca = files.put("ca.pem", &authority.pem);
    let proxy: PoolName = "db".into();
    let identity = Some(Identity::Files(files.pair("proxy", &authority.issue(&["proxy.example"]))));
    let wanted = Wanted {
        listeners: [("one".into(), listener(vec![one.clone()])), ("two".into(), listener(vec![two]))].into(),
        pools: [(proxy.clone(), PoolTls { identity, ..pool(ca.clone()) })].into(),
        ..Wanted::default()
    };
    let mut kept = Certificates::load(&wanted, None).unwrap();
    fs::write(&one.key, "").unwrap();
    files.pair("two", &authority.issue(&["new.example"]));
    files.pair("proxy", &authority.issue(&["new-proxy.example"]));
    let notices = kept.changed();
    let [Notice::Kept(first), Notice::Renewed { owner: second, .. }, Notice::Renewed { owner: third, shown }] =
        notices.as_slice()
    else {
        panic!("{notices:?}")
    };
    assert_eq!(first.owner, Owner::Listener("one".into()));
    assert_eq!(*second, Owner::Listener("two".into()));
    assert_eq!((third, shown.len()), (&Owner::Pool(proxy.clone()), 1));
    assert_eq!(kept.client(&proxy).unwrap().certificate.as_ref().unwrap().names, ["new-proxy.example"]);
    // Authorities are files too.
    fs::write(ca, "").unwrap();
    let notices = kept.changed();
    assert!(
        matches!(notices.as_slice(), [Notice::Kept(Refused { owner: Owner::Pool(_), .. })]),
        "{notices:?}"
    );
}

#[test]
fn a_config_wants_what_its_listeners_and_pools_have() {
    let text = r#"
        version = 1
        [cloud.aws]
        [[pool]]
        name = "db"
        tls = { ca = "/ca.pem" }
        [[pool.endpoint]]
        address = "192.0.2.1:5432"
        cloud = "aws"
        [[listener]]
        name = "edge"
        bind = "127.0.0.1:5432"
        pool = "db"
        tls = { certificates = [{ certificate = "/a.pem", key = "/a.key" }] }
        [[listener]]
        name = "plain"
        bind = "127.0.0.1:5433"
        pool = "db"
    "#;
    let config = crate::config::parse(text, "twinspan.toml").unwrap().config;
    let wanted = Wanted::of(&config);
    assert_eq!(wanted.listeners.into_keys().collect::<Vec<_>>(), [edge()]);
    assert_eq!(wanted.pools.into_keys().collect::<Vec<_>>(), [PoolName::from("db")]);
}

#[test]
fn a_load_is_whole_or_names_every_reason() {
    let (files, authority) = (Files::new(), Authority::new("ca"));
    let good = files.pair("good", &authority.issue(&["good.example"]));
    let missing = |name: &str| KeyPair { certificate: files.path().join(name), key: PathBuf::from("/none") };
    let wanted = Wanted {
        listeners: [
            ("a".into(), listener(vec![missing("a.pem")])),
            ("b".into(), listener(vec![good])),
            ("c".into(), listener(vec![missing("c.pem")])),
        ]
        .into(),
        pools: [("db".into(), pool(files.put("ca.pem", "")))].into(),
        ..Wanted::default()
    };
    let refused = Certificates::load(&wanted, None).unwrap_err();
    let owners: Vec<_> = refused.iter().map(|refused| refused.owner.to_string()).collect();
    assert_eq!(owners, ["listener a", "listener c", "pool db"]);
    assert!(matches!(refused.first().unwrap().error, Error::File { .. }));
}

#[test]
fn a_reload_takes_over_what_is_unchanged_and_the_sessions_of_what_is_not() {
    let (bench, kept) = Bench::new();
    let same = Certificates::load(&only(bench.settings.clone()), Some(&kept)).unwrap();
    assert!(Arc::ptr_eq(kept.server(&edge()).unwrap(), same.server(&edge()).unwrap()));

    let ca = bench.files.put("ca.pem", &bench.authority.pem);
    let client = tls::client(&pool(ca)).unwrap();
    let resumes = |kept: &Certificates| {
        let met = meet(&client, kept.server(&edge()).unwrap(), "first.example");
        assert!(met.is_well(), "{:?}", met.client_error);
        met.server.handshake_kind() == Some(HandshakeKind::Resumed)
    };
    assert!(!resumes(&kept));
    let settings = ListenerTls { alpn: vec!["h2".to_owned()], ..bench.settings.clone() };
    let other = Certificates::load(&only(settings), Some(&same)).unwrap();
    assert!(!Arc::ptr_eq(kept.server(&edge()).unwrap(), other.server(&edge()).unwrap()));
    assert!(resumes(&other));
    let gone = Certificates::load(&Wanted::default(), Some(&other)).unwrap();
    assert!(gone.server(&edge()).is_none() && gone.told().is_empty());
}

#[test]
fn sessions_survive_new_certificates_and_not_new_authorities_for_clients() {
    let (mut bench, _) = Bench::new();
    let clients = Authority::new("clients");
    let trust = bench.files.trust("clients.pem", &clients, &[]);
    bench.settings.clients = ClientCertificates::Required(trust);
    let mut kept = Certificates::load(&only(bench.settings.clone()), None).unwrap();
    let identity = bench.files.pair("client", &clients.issue(&["client.example"]));
    let identity = Some(Identity::Files(identity));
    let ca = bench.files.put("ca.pem", &bench.authority.pem);
    let client = tls::client(&PoolTls { identity, ..pool(ca) }).unwrap();
    let resumes = |kept: &Certificates| {
        let met = meet(&client, kept.server(&edge()).unwrap(), "first.example");
        assert!(met.is_well(), "{:?} {:?}", met.client_error, met.server_error);
        met.server.handshake_kind() == Some(HandshakeKind::Resumed)
    };
    assert!(!resumes(&kept));
    bench.files.pair("edge", &bench.issue("first.example"));
    renewed(&mut kept, "first.example");
    assert!(resumes(&kept));
    bench.files.put("clients.pem", format!("{}{}", clients.pem, Authority::new("more").pem));
    assert!(matches!(kept.changed().as_slice(), [Notice::Renewed { .. }]));
    assert!(!resumes(&kept));
}

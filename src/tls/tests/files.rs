//! What is said of files that are not right.

use super::{
    super::{
        Error,
        testing::{Authority, Files, listener, pool},
    },
    client, server,
};
use crate::config::{
    Authority as Trusted, ClientCertificates, ClientTrust, Identity, KeyPair, ListenerTls, PoolTls,
};

#[test]
fn a_pair_that_is_not_right_is_refused_with_the_file_and_the_reason() {
    let (files, authority) = (Files::new(), Authority::new("ca"));
    let (good, other) = (authority.issue(&["a.example"]), authority.issue(&["b.example"]));
    let half = |text: &str| text.chars().take(text.len() / 2).collect::<String>();
    let damaged = good.certificate.replacen('M', "!", 3);
    let block = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let sealed = good.key.replace("PRIVATE", "ENCRYPTED PRIVATE");
    let old_sealed = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: x\n\nAA==\n-----END RSA PRIVATE KEY-----\n";
    let nonsense = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    let two = format!("{}{}", good.key, other.key);
    let wrong_order = format!("{}{}", authority.pem, good.certificate);
    let cases: Vec<(&str, &str, &str, &str)> = vec![
        ("", &good.key, "a.pem", "is empty"),
        ("\n \n", &good.key, "a.pem", "is empty"),
        ("hello", &good.key, "a.pem", "has no certificate in PEM"),
        ("0\u{3}x", &good.key, "a.pem", "it is DER"),
        (&good.key, &good.certificate, "a.pem", "are the two files exchanged"),
        (&damaged, &good.key, "a.pem", "damaged"),
        (block, &good.key, "a.pem", "certificate 1 cannot be read"),
        (&good.certificate, "", "a.key", "is empty"),
        (&good.certificate, &good.certificate, "a.key", "are the two files exchanged"),
        (&good.certificate, &sealed, "a.key", "is encrypted"),
        (&good.certificate, old_sealed, "a.key", "is encrypted"),
        (&good.certificate, nonsense, "a.key", "is of a kind that is not known"),
        (&good.certificate, &two, "a.key", "has 2 private keys"),
        (&good.certificate, &other.key, "a.key", "does not belong to the certificate"),
        (&wrong_order, &good.key, "a.key", "must come first"),
    ];
    for (certificate, key, file, words) in cases {
        refused_pair(&files, certificate, key, file, words);
    }
    refused_pair(&files, &half(&good.certificate), &good.key, "a.pem", "ends in the middle");
    refused_pair(&files, &good.certificate, &half(&good.key), "a.key", "ends in the middle");
}

fn refused_pair(files: &Files, certificate: &str, key: &str, file: &str, words: &str) {
    let pair = KeyPair { certificate: files.put("a.pem", certificate), key: files.put("a.key", key) };
    let told = server(&listener(vec![pair]), None).unwrap_err().to_string();
    let start = format!("{}: ", files.path().join(file).display());
    assert!(told.starts_with(&start) && told.contains(words), "{told}");
    for secret in key.lines().filter(|line| line.len() > 40 && !line.starts_with('-')) {
        assert!(!told.contains(secret), "{told}");
    }
}

#[test]
fn a_file_that_is_none_is_refused() {
    let (files, authority) = (Files::new(), Authority::new("ca"));
    let mut pair = files.pair("a", &authority.issue(&["a.example"]));
    pair.certificate = files.path().to_owned();
    let told = server(&listener(vec![pair.clone()]), None).unwrap_err().to_string();
    assert!(told.ends_with("is not a file"), "{told}");
    pair.certificate = files.path().join("missing.pem");
    let told = server(&listener(vec![pair]), None).unwrap_err().to_string();
    assert!(told.contains("missing.pem: cannot be read: No such file"), "{told}");
}

#[test]
fn authorities_that_are_none_are_refused() {
    let (files, authority) = (Files::new(), Authority::new("ca"));
    let pair = files.pair("a", &authority.issue(&["a.example"]));
    let ca = files.put("ca.pem", "");
    let clients =
        ClientCertificates::Optional(ClientTrust { ca: Trusted::File(ca.clone()), names: Vec::new() });
    let told = server(&ListenerTls { clients, ..listener(vec![pair]) }, None).unwrap_err();
    assert_eq!(told, Error::File { file: ca.clone(), what: "is empty".to_owned() });
    assert_eq!(client(&pool(ca)).unwrap_err(), told);
}

#[test]
fn a_key_may_stand_among_other_things() {
    let (files, authority) = (Files::new(), Authority::new("ca"));
    let good = authority.issue(&["a.example"]);
    let all = files.put("all.pem", format!("# ours\n{}\n{}{}", good.key, good.certificate, authority.pem));
    let pair = KeyPair { certificate: all.clone(), key: all };
    assert_eq!(server(&listener(vec![pair]), None).unwrap().certificates.len(), 1);
}

#[test]
fn a_pools_identity_is_checked_as_a_listeners_certificate_is() {
    let (files, authority) = (Files::new(), Authority::new("ca"));
    let (a, b) = (authority.issue(&["a.example"]), authority.issue(&["b.example"]));
    let mixed = KeyPair { certificate: files.put("a.pem", &a.certificate), key: files.put("b.key", &b.key) };
    let ca = files.put("ca.pem", &authority.pem);
    let told = client(&PoolTls { identity: Some(Identity::Files(mixed)), ..pool(ca) }).unwrap_err();
    assert!(matches!(told, Error::Mismatch { .. }), "{told}");
}

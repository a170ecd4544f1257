//! The operator's files, PEM (RFC 7468): read whole, and said what is wrong with them.

use std::{
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    InconsistentKeys, RootCertStore,
    crypto::CryptoProvider,
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{Error as PemError, PemObject},
    },
    sign::CertifiedKey,
};

use super::{Error, Shown, Workload};
use crate::config::{Authority, ClientCertificates, Identity, KeyPair, ListenerTls, PoolTls};

/// Every file that a listener's settings name.
#[must_use]
pub fn files_of_listener(settings: &ListenerTls) -> Vec<PathBuf> {
    let mut files: Vec<_> = settings.certificates.iter().flat_map(files_of_identity).collect();
    if let ClientCertificates::Optional(trust) | ClientCertificates::Required(trust) = &settings.clients
        && let Authority::File(ca) = &trust.ca
    {
        files.push(ca.clone());
    }
    files
}

/// Every file that a pool's settings name.
#[must_use]
pub fn files_of_pool(settings: &PoolTls) -> Vec<PathBuf> {
    let ca = match &settings.ca {
        Some(Authority::File(ca)) => Some(ca.clone()),
        Some(Authority::Spiffe) | None => None,
    };
    ca.into_iter().chain(settings.identity.iter().flat_map(files_of_identity)).collect()
}

fn files_of_identity(identity: &Identity) -> Vec<PathBuf> {
    match identity {
        Identity::Files(pair) => vec![pair.certificate.clone(), pair.key.clone()],
        Identity::Spiffe => Vec::new(),
    }
}

/// A chain with its key, and what is told of it.
pub(super) fn identity(
    identity: &Identity,
    workload: Option<&Workload>,
    provider: &CryptoProvider,
) -> Result<(Arc<CertifiedKey>, Shown), Error> {
    match identity {
        Identity::Files(files) => {
            let key = Arc::new(pair(files, provider)?);
            let shown = Shown::of(&files.certificate, key.end_entity_cert().map_err(Error::Settings)?)?;
            Ok((key, shown))
        }
        Identity::Spiffe => {
            let workload = workload.ok_or_else(Error::no_workload)?;
            Ok((Arc::clone(workload.key()), workload.shown().clone()))
        }
    }
}

/// A chain and its key, if the key belongs to the chain's first certificate.
fn pair(pair: &KeyPair, provider: &CryptoProvider) -> Result<CertifiedKey, Error> {
    let chain = certificates(&pair.certificate)?;
    let key = key(&pair.key)?;
    let key = provider.key_provider.load_private_key(key).map_err(|_| {
        Error::file(&pair.key, "the private key is of a kind that is not known, or is damaged")
    })?;
    let certified = CertifiedKey::new(chain, key);
    match certified.keys_match() {
        Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => Ok(certified),
        Err(rustls::Error::InconsistentKeys(_)) => Err(mismatch(pair, &certified)),
        Err(error) => Err(Error::file(&pair.certificate, format!("the certificate cannot be used: {error}"))),
    }
}

/// The certificates of authorities. A file that has one that cannot be read is refused.
pub(super) fn authorities(path: &Path) -> Result<(Arc<RootCertStore>, Vec<CertificateDer<'static>>), Error> {
    let found = certificates(path)?;
    let mut store = RootCertStore::empty();
    for (number, certificate) in (1..).zip(&found) {
        store.add(certificate.clone()).map_err(|error| {
            Error::file(path, format!("certificate {number} cannot be an authority's: {error}"))
        })?;
    }
    Ok((Arc::new(store), found))
}

/// The system's certificates of authorities. Those that cannot be read are left out, unless none is left.
pub(super) fn system_authorities() -> Result<Arc<RootCertStore>, Error> {
    let found = rustls_native_certs::load_native_certs();
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(found.certs);
    if store.is_empty() {
        let reason = found.errors.first().map_or_else(|| "there are none".to_owned(), ToString::to_string);
        return Err(Error::NoSystemRoots(reason));
    }
    Ok(Arc::new(store))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let text = read(path)?;
    let found = CertificateDer::pem_slice_iter(&text)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| Error::file(path, damage(&error)))?;
    if found.is_empty() {
        return Err(Error::file(path, nothing(&text, "certificate")));
    }
    for (number, certificate) in (1..).zip(&found) {
        if let Err(error) = x509_parser::parse_x509_certificate(certificate) {
            return Err(Error::file(path, format!("certificate {number} cannot be read: {error}")));
        }
    }
    Ok(found)
}

fn key(path: &Path) -> Result<PrivateKeyDer<'static>, Error> {
    let text = read(path)?;
    if has(&text, b"-----BEGIN ENCRYPTED PRIVATE KEY-----") || has(&text, b"Proc-Type: 4,ENCRYPTED") {
        let what = "the private key is encrypted, and nobody is there to ask for the password: store it decrypted \
                    (`openssl pkey`), readable for this process alone";
        return Err(Error::file(path, what));
    }
    let mut found = PrivateKeyDer::pem_slice_iter(&text)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| Error::file(path, damage(&error)))?;
    match (found.pop(), found.len()) {
        (Some(key), 0) => Ok(key),
        (Some(_), others) => {
            Err(Error::file(path, format!("has {} private keys, and one is needed", others + 1)))
        }
        (None, _) => Err(Error::file(path, nothing(&text, "private key"))),
    }
}

/// The longest file, in bytes: all authorities of the world fit into half a mebibyte.
const LONGEST: u64 = 8 << 20;

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let told = |error: std::io::Error| Error::file(path, format!("cannot be read: {error}"));
    // A pipe would be waited for.
    if !fs::metadata(path).map_err(told)?.is_file() {
        return Err(Error::file(path, "is not a file"));
    }
    let mut text = Vec::new();
    let read =
        File::open(path).and_then(|file| file.take(LONGEST + 1).read_to_end(&mut text)).map_err(told)?;
    if u64::try_from(read).is_ok_and(|read| read <= LONGEST) {
        Ok(text)
    } else {
        Err(Error::file(path, "is longer than 8 MiB"))
    }
}

fn mismatch(pair: &KeyPair, certified: &CertifiedKey) -> Error {
    let belongs = |certificate: &CertificateDer<'static>| {
        CertifiedKey::new(vec![certificate.clone()], Arc::clone(&certified.key)).keys_match().is_ok()
    };
    let hint = if certified.cert.iter().skip(1).any(belongs) {
        ": it belongs to a later one in the file, and the certificate itself must come first"
    } else {
        ""
    };
    Error::Mismatch { certificate: pair.certificate.clone(), key: pair.key.clone(), hint }
}

/// What is wrong with a file in which nothing was found.
fn nothing(text: &[u8], wanted: &str) -> String {
    if text.iter().all(u8::is_ascii_whitespace) {
        return "is empty".to_owned();
    }
    if text.starts_with(&[0x30]) {
        return format!("has no {wanted}: it is DER, it seems, and must be PEM");
    }
    let other =
        [(&b"PRIVATE KEY-----"[..], "a private key"), (&b"BEGIN CERTIFICATE-----"[..], "a certificate")];
    match other.iter().find(|(mark, _)| has(text, mark)) {
        Some((_, other)) => format!("has {other}, and no {wanted}: are the two files exchanged?"),
        None => format!("has no {wanted} in PEM"),
    }
}

fn damage(error: &PemError) -> String {
    match error {
        PemError::MissingSectionEnd { .. } => "ends in the middle of a PEM block: is it complete?".to_owned(),
        PemError::Base64Decode(_) => "has a PEM block that is not base64: it is damaged".to_owned(),
        other => format!("is not right PEM: {other}"),
    }
}

fn has(text: &[u8], mark: &[u8]) -> bool {
    text.windows(mark.len()).any(|part| part == mark)
}

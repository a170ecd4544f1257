//! Certificates for tests, and the folder that they lie in.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair as Key,
    KeyUsagePurpose, SanType,
};
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tempfile::TempDir;

/// An authority that signs what tests need.
#[derive(Debug)]
pub(crate) struct Authority {
    issuer: Issuer<'static, Key>,
    /// Its own certificate.
    pub(crate) pem: String,
}

/// A certificate and its key, PEM.
#[derive(Clone, Debug)]
pub(crate) struct Issued {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = Key::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// A certificate for these names. Those that begin with `spiffe:` are URIs.
    pub(crate) fn issue(&self, names: &[&str]) -> Issued {
        self.issue_as(names, |_| {})
    }

    /// The same, with something changed.
    pub(crate) fn issue_as(&self, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Issued {
        let key = Key::generate().unwrap();
        let mut params = leaf(names);
        change(&mut params);
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        Issued { certificate, key: key.serialize_pem() }
    }

    /// One whose time is over.
    pub(crate) fn issue_expired(&self, names: &[&str]) -> Issued {
        self.issue_as(names, |params| params.not_after = rcgen::date_time_ymd(2020, 1, 1))
    }

    /// One whose time has not come.
    pub(crate) fn issue_early(&self, names: &[&str]) -> Issued {
        self.issue_as(names, |params| params.not_before = rcgen::date_time_ymd(4000, 1, 1))
    }

    /// What believes in it.
    pub(crate) fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.pem.as_bytes()).unwrap()).unwrap();
        Arc::new(roots)
    }
}

impl Issued {
    /// One that nobody but itself has signed.
    pub(crate) fn self_signed(names: &[&str]) -> Self {
        let key = Key::generate().unwrap();
        let certificate = leaf(names).self_signed(&key).unwrap().pem();
        Self { certificate, key: key.serialize_pem() }
    }

    pub(crate) fn chain(&self) -> Vec<CertificateDer<'static>> {
        vec![CertificateDer::from_pem_slice(self.certificate.as_bytes()).unwrap()]
    }

    pub(crate) fn private(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::from_pem_slice(self.key.as_bytes()).unwrap()
    }
}

fn leaf(names: &[&str]) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.subject_alt_names = names.iter().map(|name| san(name)).collect();
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    params
}

fn san(name: &str) -> SanType {
    if name.starts_with("spiffe:") {
        SanType::URI(name.try_into().unwrap())
    } else if let Ok(address) = name.parse() {
        SanType::IpAddress(address)
    } else {
        SanType::DnsName(name.try_into().unwrap())
    }
}

/// A folder of certificates and keys.
#[derive(Debug)]
pub(crate) struct Files(TempDir);

impl Files {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn put(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    /// Writes `NAME.pem` and `NAME.key`, and says them as the entry of a config file.
    pub(crate) fn pair(&self, name: &str, issued: &Issued) -> String {
        let certificate = self.put(&format!("{name}.pem"), &issued.certificate);
        let key = self.put(&format!("{name}.key"), &issued.key);
        entry(&certificate, &key)
    }

    /// `[listener.tls]` with one certificate for these names, and what else is said.
    pub(crate) fn listener(&self, name: &str, issued: &Issued, settings: &str) -> String {
        format!("[listener.tls]\ncertificates = [{}]\n{settings}\n", self.pair(name, issued))
    }
}

/// A certificate and its key, as the entry of a config file.
pub(crate) fn entry(certificate: &Path, key: &Path) -> String {
    format!("{{ certificate = \"{}\", key = \"{}\" }}", certificate.display(), key.display())
}

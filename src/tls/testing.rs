//! Certificates, files and handshakes for tests.

use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair as Key,
    KeyUsagePurpose, SanType,
};
use rustls::{ClientConnection, ConnectionCommon, Error, ServerConnection, SideData};
use tempfile::TempDir;

use super::{Client, Server};
use crate::config::{
    Authority as Trusted, ClientCertificates, ClientTrust, Identity, KeyPair, ListenerTls, NamePattern,
    PoolTls, TlsVersion,
};

/// An authority that signs what tests need.
pub(crate) struct Authority {
    issuer: Issuer<'static, Key>,
    pub(crate) pem: String,
}

/// A certificate and its key, PEM.
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

    pub(crate) fn issue(&self, names: &[&str]) -> Issued {
        self.issue_as(names, |_| {})
    }

    /// Names that begin with `spiffe:` are URIs.
    pub(crate) fn issue_as(&self, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Issued {
        self.issue_for(&Key::generate().unwrap(), names, change)
    }

    pub(crate) fn issue_for(
        &self,
        key: &Key,
        names: &[&str],
        change: impl FnOnce(&mut CertificateParams),
    ) -> Issued {
        let mut params = CertificateParams::default();
        params.subject_alt_names = names.iter().map(|name| san(name)).collect();
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        change(&mut params);
        let certificate = params.signed_by(key, &self.issuer).unwrap().pem();
        Issued { certificate, key: key.serialize_pem() }
    }
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

/// A directory of its own.
pub(crate) struct Files(pub(crate) TempDir);

impl Files {
    pub(crate) fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn put(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    pub(crate) fn pair(&self, name: &str, issued: &Issued) -> KeyPair {
        KeyPair {
            certificate: self.put(&format!("{name}.pem"), &issued.certificate),
            key: self.put(&format!("{name}.key"), &issued.key),
        }
    }

    pub(crate) fn trust(&self, name: &str, authority: &Authority, names: &[NamePattern]) -> ClientTrust {
        ClientTrust { ca: Trusted::File(self.put(name, &authority.pem)), names: names.to_vec() }
    }
}

pub(crate) fn listener(certificates: Vec<KeyPair>) -> ListenerTls {
    ListenerTls {
        certificates: certificates.into_iter().map(Identity::Files).collect(),
        min_version: TlsVersion::V12,
        alpn: Vec::new(),
        clients: ClientCertificates::Off,
        tickets: Some(std::time::Duration::from_secs(3600)),
    }
}

pub(crate) fn pool(ca: PathBuf) -> PoolTls {
    PoolTls {
        ca: Some(Trusted::File(ca)),
        server_name: None,
        names: Vec::new(),
        identity: None,
        min_version: TlsVersion::V12,
        alpn: Vec::new(),
    }
}

/// A handshake that is over, well or not.
pub(crate) struct Met {
    pub(crate) client: ClientConnection,
    pub(crate) server: ServerConnection,
    pub(crate) client_error: Option<Error>,
    pub(crate) server_error: Option<Error>,
}

/// A client that asks for `name` meets a listener.
pub(crate) fn meet(client: &Client, server: &Server, name: &str) -> Met {
    let name = client.name_for(Some(name), [127, 0, 0, 1].into()).unwrap();
    shake(
        ClientConnection::new(client.config.clone(), name).unwrap(),
        ServerConnection::new(server.config.clone()).unwrap(),
    )
}

/// Carries bytes both ways until there are none.
pub(crate) fn shake(client: ClientConnection, server: ServerConnection) -> Met {
    let mut met = Met { client, server, client_error: None, server_error: None };
    loop {
        let there = carry(&mut met.client, &mut met.server, &mut met.server_error);
        let back = carry(&mut met.server, &mut met.client, &mut met.client_error);
        if !there && !back {
            return met;
        }
    }
}

fn carry<A: SideData, B: SideData>(
    from: &mut ConnectionCommon<A>,
    to: &mut ConnectionCommon<B>,
    error: &mut Option<Error>,
) -> bool {
    let mut bytes = Vec::new();
    while from.wants_write() {
        from.write_tls(&mut bytes).unwrap();
    }
    let mut rest = bytes.as_slice();
    while !rest.is_empty() && error.is_none() {
        to.read_tls(&mut rest).unwrap();
        *error = to.process_new_packets().err();
    }
    !bytes.is_empty()
}

impl Met {
    /// True if both sides think so.
    pub(crate) fn is_well(&self) -> bool {
        self.client_error.is_none()
            && self.server_error.is_none()
            && !self.client.is_handshaking()
            && !self.server.is_handshaking()
    }

    /// The first certificate that the client was shown.
    pub(crate) fn shown(&self) -> &[u8] {
        self.client.peer_certificates().unwrap().first().unwrap()
    }
}

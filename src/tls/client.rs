//! TLS towards the endpoints of a pool.

use std::{fmt, net::IpAddr, sync::Arc};

use rustls::{ClientConfig, client::Resumption, pki_types::ServerName, sign::CertifiedKey};

use super::{
    Error, Workload, alpn,
    endpoints::{Endpoints, Roots},
    facts::Shown,
    files,
    names::shown,
    provider, versions,
};
use crate::config::{Authority, PoolTls};

/// What is spoken with the endpoints of a pool.
pub struct Client {
    /// For the handshakes. Without protocols of its own (ALPN) it offers those that a session is given.
    pub config: Arc<ClientConfig>,
    /// The certificate that we show, if we have one.
    pub certificate: Option<Shown>,
    server_name: Option<ServerName<'static>>,
}

/// Sessions with endpoints that may be resumed, for each pool.
const SESSIONS: usize = 256;

/// Makes what is spoken with the endpoints of a pool of its settings, as [`client_with`] does, where they take nothing from
/// a Workload API.
///
/// # Errors
///
/// As there.
pub fn client(settings: &PoolTls) -> Result<Client, Error> {
    client_with(settings, None)
}

/// Makes what is spoken with the endpoints of a pool of its settings and of what the SPIFFE Workload API says. Sessions
/// are resumed as long as this lives.
///
/// # Errors
///
/// If a file cannot be read or is not what it must be, a key does not belong to its certificate, the system has no
/// authorities where none are named, a Workload API is needed that is not there, or the server name is neither a host
/// name nor an address.
pub fn client_with(settings: &PoolTls, workload: Option<&Workload>) -> Result<Client, Error> {
    let provider = provider();
    let (roots, names) = match &settings.ca {
        Some(Authority::File(file)) => (Roots::All(files::authorities(file)?.0), settings.names.clone()),
        Some(Authority::Spiffe) => {
            let workload = workload.ok_or_else(Error::no_workload)?;
            (Roots::OfDomains(workload.roots()), workload.names(&settings.names))
        }
        None => (Roots::All(files::system_authorities()?), settings.names.clone()),
    };
    let algorithms = provider.signature_verification_algorithms;
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions(settings.min_version))
        .map_err(Error::Settings)?;
    let builder = match roots {
        // The library compares the name that was asked for. SPIFFE always has names.
        Roots::All(roots) if names.is_empty() => builder.with_root_certificates(roots),
        roots => {
            let verifier = Endpoints { roots, names, algorithms };
            builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier))
        }
    };
    let (mut config, certificate) = match &settings.identity {
        None => (builder.with_no_client_auth(), None),
        Some(identity) => {
            let (key, certificate) = files::identity(identity, workload, &provider)?;
            let resolver = Arc::new(rustls::sign::SingleCertAndKey::from(CertifiedKey::clone(&key)));
            (builder.with_client_cert_resolver(resolver), Some(certificate))
        }
    };
    config.alpn_protocols = alpn(&settings.alpn);
    config.enable_early_data = false;
    config.resumption = Resumption::in_memory_sessions(SESSIONS);
    let server_name = settings.server_name.as_deref().map(named).transpose()?;
    Ok(Client { config: Arc::new(config), certificate, server_name })
}

impl Client {
    /// The name that an endpoint is asked for, and whose certificate it must have unless patterns are named: the one of
    /// the settings, else the endpoint's host name, else its address.
    ///
    /// # Errors
    ///
    /// If the host name cannot be one.
    pub fn name_for(&self, host: Option<&str>, address: IpAddr) -> Result<ServerName<'static>, Error> {
        match (&self.server_name, host) {
            (Some(name), _) => Ok(name.clone()),
            (None, Some(host)) => named(host),
            (None, None) => Ok(ServerName::IpAddress(address.to_canonical().into())),
        }
    }
}

/// A name without the dot of the root, which never goes into a handshake (RFC 6066 section 3).
fn named(name: &str) -> Result<ServerName<'static>, Error> {
    let bare = name.strip_suffix('.').unwrap_or(name);
    ServerName::try_from(bare.to_owned()).map_err(|_| Error::Name(shown(name)))
}

/// Without the key.
impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("certificate", &self.certificate)
            .field("server_name", &self.server_name)
            .finish_non_exhaustive()
    }
}

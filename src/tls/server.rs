//! TLS that ends at a listener.

use std::{fmt, sync::Arc, time::Duration};

use rustls::{
    ServerConfig,
    pki_types::CertificateDer,
    server::{NoServerSessionStorage, WebPkiClientVerifier, danger::ClientCertVerifier},
};

use super::{Error, alpn, clients, facts::Shown, files, provider, sni::ByName, tickets::Tickets, versions};
use crate::config::{ClientCertificates, ClientTrust, ListenerTls};

/// What a listener speaks.
pub struct Server {
    /// For the handshakes.
    pub config: Arc<ServerConfig>,
    /// The certificates in it, in the order of the settings.
    pub certificates: Vec<Shown>,
    /// What judges the certificates of clients, if they are asked for: [`super::recheck`] takes it.
    pub clients: Option<Arc<dyn ClientCertVerifier>>,
    by_name: Arc<ByName>,
    tickets: Option<Arc<Tickets>>,
    rule: Rule,
}

/// What must be the same for sessions to be resumed.
#[derive(PartialEq, Eq)]
struct Rule {
    clients: ClientCertificates,
    authorities: Vec<CertificateDer<'static>>,
    life: Option<Duration>,
}

/// Makes what a listener speaks of its settings.
///
/// `before` is what the same listener spoke until now: its sessions may be resumed if the rule about client
/// certificates, their authorities and the life of tickets are what they were. It must never be another listener's.
///
/// # Errors
///
/// If a file cannot be read or is not what it must be, or a key does not belong to its certificate.
pub fn server(settings: &ListenerTls, before: Option<&Server>) -> Result<Server, Error> {
    let provider = provider();
    let mut by_name = ByName::default();
    let mut certificates = Vec::with_capacity(settings.certificates.len());
    for pair in &settings.certificates {
        let key = Arc::new(files::pair(pair, &provider)?);
        let leaf = key.end_entity_cert().map_err(Error::Settings)?;
        certificates.push(Shown::of(&pair.certificate, leaf)?);
        by_name.add(&key);
    }
    let (clients, authorities) = match &settings.clients {
        ClientCertificates::Off => (None, Vec::new()),
        ClientCertificates::Optional(trust) => trusting(trust, false)?,
        ClientCertificates::Required(trust) => trusting(trust, true)?,
    };
    let rule = Rule { clients: settings.clients.clone(), authorities, life: settings.tickets };
    let tickets = match (settings.tickets, before) {
        (None, _) => None,
        (Some(_), Some(before)) if before.rule == rule => before.tickets.clone(),
        (Some(life), _) => Some(Arc::new(Tickets::new(life)?)),
    };

    let by_name = Arc::new(by_name);
    let resolver = Arc::<ByName>::clone(&by_name);
    let verifier = clients.clone().unwrap_or_else(WebPkiClientVerifier::no_client_auth);
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(versions(settings.min_version))
        .map_err(Error::Settings)?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(resolver);
    config.alpn_protocols = alpn(&settings.alpn);
    config.max_early_data_size = 0;
    match &tickets {
        Some(tickets) => {
            config.ticketer = Arc::<Tickets>::clone(tickets);
            config.session_storage = Arc::<Tickets>::clone(tickets);
        }
        None => {
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
        }
    }
    Ok(Server { config: Arc::new(config), certificates, clients, by_name, tickets, rule })
}

type Trusting = (Option<Arc<dyn ClientCertVerifier>>, Vec<CertificateDer<'static>>);

fn trusting(trust: &ClientTrust, required: bool) -> Result<Trusting, Error> {
    let (roots, authorities) = files::authorities(&trust.ca)?;
    let verifier = clients::verifier(roots, trust.names.clone(), required, provider())?;
    Ok((Some(verifier), authorities))
}

impl Server {
    /// True if a certificate is for this name, in lower case, or with a leading dot for every name one label below it.
    #[must_use]
    pub fn has_certificate_for(&self, name: &str) -> bool {
        self.by_name.is_for(name)
    }

    /// Forgets ticket keys whose time is over. Handshakes do that too; a listener without any needs this.
    pub fn forget_old_keys(&self) {
        if let Some(tickets) = &self.tickets {
            tickets.roll();
        }
    }
}

/// Without the keys.
impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("certificates", &self.certificates).finish_non_exhaustive()
    }
}

//! TLS that ends at a listener.

use std::{fmt, sync::Arc, time::Duration};

use rustls::{
    ServerConfig,
    pki_types::CertificateDer,
    server::{NoServerSessionStorage, WebPkiClientVerifier, danger::ClientCertVerifier},
};

use super::{
    Error, Workload, alpn, clients, facts::Shown, files, provider, sni::ByName, tickets::Tickets, versions,
};
use crate::config::{Authority, ClientCertificates, ClientTrust, ListenerTls, NamePattern};

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
    trust: Trust,
    life: Option<Duration>,
}

/// Whose certificates of clients are right.
#[derive(Default, PartialEq, Eq)]
struct Trust {
    /// By the trust domain that they vouch for; of a file, for everybody: under no name.
    authorities: Vec<(String, Vec<CertificateDer<'static>>)>,
    names: Vec<NamePattern>,
}

/// Makes what a listener speaks of its settings, as [`server_with`] does, where they take nothing from a Workload API.
///
/// # Errors
///
/// As there.
pub fn server(settings: &ListenerTls, before: Option<&Server>) -> Result<Server, Error> {
    server_with(settings, None, before)
}

/// Makes what a listener speaks of its settings and of what the SPIFFE Workload API says.
///
/// `before` is what the same listener spoke until now: its sessions may be resumed if the rule about client
/// certificates, their authorities and the life of tickets are what they were. It must never be another listener's.
///
/// # Errors
///
/// If a file cannot be read or is not what it must be, a key does not belong to its certificate, or a Workload API is
/// needed that is not there.
pub fn server_with(
    settings: &ListenerTls,
    workload: Option<&Workload>,
    before: Option<&Server>,
) -> Result<Server, Error> {
    let provider = provider();
    let mut by_name = ByName::default();
    let mut certificates = Vec::with_capacity(settings.certificates.len());
    for identity in &settings.certificates {
        let (key, shown) = files::identity(identity, workload, &provider)?;
        certificates.push(shown);
        by_name.add(&key);
    }
    let (clients, trust) = match &settings.clients {
        ClientCertificates::Off => (None, Trust::default()),
        ClientCertificates::Optional(trust) => trusting(trust, workload, false)?,
        ClientCertificates::Required(trust) => trusting(trust, workload, true)?,
    };
    let rule = Rule { clients: settings.clients.clone(), trust, life: settings.tickets };
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

type Trusting = (Option<Arc<dyn ClientCertVerifier>>, Trust);

fn trusting(trust: &ClientTrust, workload: Option<&Workload>, required: bool) -> Result<Trusting, Error> {
    let (verifier, authorities, names) = match &trust.ca {
        Authority::File(ca) => {
            let (roots, found) = files::authorities(ca)?;
            let verifier = clients::verifier(roots, trust.names.clone(), required, provider())?;
            (verifier, vec![(String::new(), found)], trust.names.clone())
        }
        Authority::Spiffe => {
            let workload = workload.ok_or_else(Error::no_workload)?;
            let names = workload.names(&trust.names);
            let verifier = clients::verifier_of(workload, names.clone(), required, &provider())?;
            (verifier, workload.authorities(), names)
        }
    };
    Ok((Some(verifier), Trust { authorities, names }))
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

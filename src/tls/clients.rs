//! The certificates of clients: a chain to the operator's authorities, and then a name that is allowed.

use std::{cell::Cell, collections::BTreeMap, sync::Arc};

use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, RootCertStore, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, UnixTime},
    server::{
        WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};

use super::{
    Error, Workload,
    names::{self, Refused, Side},
};
use crate::config::NamePattern;

thread_local! {
    /// Why the last client on this thread was refused by the rule about names. The alert `access_denied` comes from an
    /// error that has no room for words, so they wait here until they are asked for.
    static REFUSAL: Cell<Option<String>> = const { Cell::new(None) };
}

/// The words for the last refusal by name on this thread, once.
pub(super) fn last_refusal() -> Option<String> {
    REFUSAL.take()
}

/// A verifier for what clients show.
pub(super) fn verifier(
    roots: Arc<RootCertStore>,
    names: Vec<NamePattern>,
    required: bool,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, Error> {
    let chain = chain(roots, Vec::new(), required, provider)?;
    Ok(Arc::new(Clients { chain, domains: None, names }))
}

/// A verifier for what clients show who are workloads of SPIFFE: each trust domain vouches for its own ids, and for no
/// others (X.509-SVID, section 5).
pub(super) fn verifier_of(
    workload: &Workload,
    names: Vec<NamePattern>,
    required: bool,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, Error> {
    let bundles = workload.roots();
    // Clients choose their certificate by these.
    let subjects: Vec<_> = bundles.values().flat_map(|roots| roots.subjects()).collect();
    let mut domains = BTreeMap::new();
    for (domain, roots) in bundles {
        domains.insert(domain, chain(roots, subjects.clone(), required, Arc::clone(provider))?);
    }
    let own = domains.get(workload.domain()).ok_or_else(Error::no_workload)?;
    Ok(Arc::new(Clients { chain: Arc::clone(own), domains: Some(domains), names }))
}

fn chain(
    roots: Arc<RootCertStore>,
    hints: Vec<DistinguishedName>,
    required: bool,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, Error> {
    let builder = WebPkiClientVerifier::builder_with_provider(roots, provider);
    let builder = if hints.is_empty() {
        builder
    } else {
        builder.clear_root_hint_subjects().add_root_hint_subjects(hints)
    };
    let builder = if required { builder } else { builder.allow_unauthenticated() };
    builder.build().map_err(|error| Error::Settings(rustls::Error::General(error.to_string())))
}

/// First the library checks the chain, then we check the names.
#[derive(Debug)]
struct Clients {
    /// What is the same for every client; and where there are no trust domains, the chain of each.
    chain: Arc<dyn ClientCertVerifier>,
    /// The chains of clients by their trust domain.
    domains: Option<BTreeMap<String, Arc<dyn ClientCertVerifier>>>,
    names: Vec<NamePattern>,
}

impl Clients {
    /// What judges the chain of this certificate.
    fn chain_of(
        &self,
        end_entity: &CertificateDer<'_>,
    ) -> Result<&Arc<dyn ClientCertVerifier>, rustls::Error> {
        let Some(domains) = &self.domains else { return Ok(&self.chain) };
        let (_, domain) = names::svid(end_entity).map_err(refusal)?;
        Ok(domains.get(&domain).ok_or(CertificateError::UnknownIssuer)?)
    }
}

/// A refusal by name, with its words for whoever asks; or a certificate that is not right at all.
fn refusal(refused: Refused) -> rustls::Error {
    match refused {
        Refused::Name(words) => {
            REFUSAL.set(Some(words));
            CertificateError::ApplicationVerificationFailure.into()
        }
        broken @ Refused::Broken(_) => CertificateError::Other(OtherError(Arc::new(broken))).into(),
    }
}

impl ClientCertVerifier for Clients {
    fn offer_client_auth(&self) -> bool {
        self.chain.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.chain.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        REFUSAL.set(None);
        let verified = self.chain_of(end_entity)?.verify_client_cert(end_entity, intermediates, now)?;
        names::check(end_entity, &self.names, Side::Client).map(|()| verified).map_err(refusal)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

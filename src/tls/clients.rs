//! The certificates of clients: a chain to the operator's authorities, and then a name that is allowed.

use std::{cell::Cell, sync::Arc};

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
    Error,
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
    let builder = WebPkiClientVerifier::builder_with_provider(roots, provider);
    let builder = if required { builder } else { builder.allow_unauthenticated() };
    let chain =
        builder.build().map_err(|error| Error::Settings(rustls::Error::General(error.to_string())))?;
    Ok(Arc::new(Clients { chain, names }))
}

/// First the library checks the chain, then we check the names.
#[derive(Debug)]
struct Clients {
    chain: Arc<dyn ClientCertVerifier>,
    names: Vec<NamePattern>,
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
        let verified = self.chain.verify_client_cert(end_entity, intermediates, now)?;
        match names::check(end_entity, &self.names, Side::Client) {
            Ok(()) => Ok(verified),
            Err(Refused::Name(words)) => {
                REFUSAL.set(Some(words));
                Err(CertificateError::ApplicationVerificationFailure.into())
            }
            Err(broken) => Err(CertificateError::Other(OtherError(Arc::new(broken))).into()),
        }
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

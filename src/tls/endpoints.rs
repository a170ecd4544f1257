//! The certificates of endpoints where the operator names patterns: the chain as ever, and a name that is allowed in
//! place of the name that was asked for.

use std::{collections::BTreeMap, sync::Arc};

use rustls::{
    CertificateError, DigitallySignedStruct, OtherError, RootCertStore, SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::ParsedCertificate,
};

use super::names::{self, Side};
use crate::config::NamePattern;

/// The authorities that are believed.
#[derive(Debug)]
pub(super) enum Roots {
    /// For every name.
    All(Arc<RootCertStore>),
    /// Those of each trust domain, for the ids of that domain and no others.
    OfDomains(BTreeMap<String, Arc<RootCertStore>>),
}

impl Roots {
    /// Those that may vouch for this certificate.
    fn of(&self, end_entity: &CertificateDer<'_>) -> Result<&RootCertStore, rustls::Error> {
        match self {
            Self::All(roots) => Ok(roots),
            Self::OfDomains(domains) => {
                let (_, domain) = names::svid(end_entity)
                    .map_err(|refused| CertificateError::Other(OtherError(Arc::new(refused))))?;
                let roots = domains.get(&domain).ok_or(CertificateError::UnknownIssuer)?;
                Ok(roots)
            }
        }
    }
}

/// A chain to one of `roots` (for a server, in its time), then a name that matches one of `names`.
#[derive(Debug)]
pub(super) struct Endpoints {
    pub(super) roots: Roots,
    /// Never empty.
    pub(super) names: Vec<NamePattern>,
    pub(super) algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Endpoints {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let parsed = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(
            &parsed,
            self.roots.of(end_entity)?,
            intermediates,
            now,
            self.algorithms.all,
        )?;
        // No patterns would allow every name.
        if self.names.is_empty() {
            return Err(CertificateError::NotValidForName.into());
        }
        names::check(end_entity, &self.names, Side::Endpoint)
            .map(|()| ServerCertVerified::assertion())
            .map_err(|refused| CertificateError::Other(OtherError(Arc::new(refused))).into())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

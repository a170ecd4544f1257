//! What a SPIFFE Workload API sends (SPIFFE Workload API, section 5.2: FetchX509SVID), one message after the other. Each
//! is all that holds from then on.

use std::{error::Error, pin::Pin};

use futures_util::{Stream, StreamExt as _};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use spiffe::{Certificate, WorkloadApiClient, WorkloadApiError, X509Context, transport::Endpoint};

use crate::{
    config::WorkloadApi,
    tls::{self, Workload},
};

/// A call that is answered for as long as both sides live.
pub(super) struct Feed {
    from: String,
    messages: Pin<Box<dyn Stream<Item = Result<X509Context, WorkloadApiError>> + Send>>,
}

impl Feed {
    /// Connects and asks. Takes as long as the other side does.
    pub(super) async fn open(api: &WorkloadApi) -> Result<Self, tls::Error> {
        let from = api.to_string();
        let endpoint = match api {
            WorkloadApi::Unix(path) => Endpoint::Unix(path.clone()),
            WorkloadApi::Tcp(address) => Endpoint::Tcp { host: address.ip(), port: address.port() },
        };
        let client = WorkloadApiClient::connect(endpoint).await.map_err(|error| failed(&from, &error))?;
        let messages = client.stream_x509_contexts().await.map_err(|error| failed(&from, &error))?;
        Ok(Self { from, messages: Box::pin(messages) })
    }

    /// The next message. Takes as long as nothing changes.
    pub(super) async fn next(&mut self) -> Result<Workload, tls::Error> {
        match self.messages.next().await {
            Some(Ok(message)) => workload(&self.from, &message),
            Some(Err(error)) => Err(failed(&self.from, &error)),
            None => Err(tls::Error::Workload(format!("{}: closed the stream", self.from))),
        }
    }
}

/// The first identity is the default one (section 5.2.1: several may be sent).
fn workload(from: &str, message: &X509Context) -> Result<Workload, tls::Error> {
    let missing = || tls::Error::Workload(format!("{from}: a message without an identity"));
    let svid = message.default_svid().ok_or_else(missing)?;
    let key = PrivatePkcs8KeyDer::from(svid.private_key().as_bytes().to_vec());
    let bundles = message.bundle_set().iter();
    let bundles = bundles.map(|(domain, bundle)| (domain.as_str().to_owned(), der(bundle.authorities())));
    Workload::new(from, der(svid.cert_chain()), key.into(), bundles.collect())
}

fn der(certificates: &[Certificate]) -> Vec<CertificateDer<'static>> {
    certificates.iter().map(|one| CertificateDer::from(one.as_bytes().to_vec())).collect()
}

/// The error with its reasons: the outermost says little.
fn failed(from: &str, error: &WorkloadApiError) -> tls::Error {
    let mut words = vec![error.to_string()];
    let mut inner = error.source();
    while let Some(error) = inner {
        let text = error.to_string();
        if !words.iter().any(|word| word.contains(&text)) {
            words.push(text);
        }
        inner = error.source();
    }
    tls::Error::Workload(format!("{from}: {}", words.join(": ")))
}

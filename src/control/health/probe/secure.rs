//! What an endpoint is given before it is asked: a PROXY header that names no client, and TLS.

use std::{fmt, sync::Arc};

use rustls::{ClientConfig, client::Resumption, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    time::timeout_at,
};
use tokio_rustls::TlsConnector;

use super::{Limit, Outcome, failed};
use crate::{
    state::ProxyOut,
    tls,
    wire::proxy_header::{self, Outgoing, Version},
};

/// What a probe gives its endpoint besides a question.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Manner {
    /// TLS.
    pub tls: Option<Secure>,
    /// A PROXY header first.
    pub header: Option<ProxyOut>,
}

/// TLS with an endpoint.
#[derive(Clone)]
pub struct Secure {
    /// What sessions speak.
    pub config: Arc<ClientConfig>,
    /// The name that its certificate is for; `None` if its host name can be in no certificate.
    pub name: Option<ServerName<'static>>,
}

/// A connection over which an endpoint is asked.
pub(super) type Stream = Box<dyn Channel>;

/// What a question needs.
pub(super) trait Channel: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Channel for T {}

impl Manner {
    /// Brings a connection to where a session would begin.
    pub(super) async fn prepare(
        &self,
        mut stream: TcpStream,
        is_http: bool,
        limit: Limit,
    ) -> Result<Stream, Outcome> {
        if let Some(version) = self.header {
            let version = match version {
                ProxyOut::V1 => Version::V1,
                ProxyOut::V2 => Version::V2,
            };
            // A fresh connection has room for it.
            let header = proxy_header::write(version, None, &Outgoing::default());
            stream.write_all(&header).await.map_err(|error| failed("send", &error))?;
        }
        match &self.tls {
            Some(secure) => secure.shake_hands(stream, is_http, limit).await,
            None => Ok(Box::new(stream)),
        }
    }
}

impl Secure {
    async fn shake_hands(&self, stream: TcpStream, is_http: bool, limit: Limit) -> Result<Stream, Outcome> {
        let Some(name) = self.name.clone() else {
            return Err(Outcome::Bad(
                "tls: the host name of the endpoint can be in no certificate".to_owned(),
            ));
        };
        let mut config = ClientConfig::clone(&self.config);
        // A session that is resumed shows no certificate.
        config.resumption = Resumption::disabled();
        if is_http {
            config.alpn_protocols = vec![b"http/1.1".to_vec()];
        }
        let shaking = Box::pin(TlsConnector::from(Arc::new(config)).connect(name, stream));
        match timeout_at(limit.at, shaking).await {
            Ok(Ok(stream)) => Ok(Box::new(stream)),
            Ok(Err(error)) => Err(Outcome::Bad(format!("tls: {}", tls::why_io(&error).1))),
            Err(_) => Err(Outcome::Bad(format!("tls: no handshake within {limit}"))),
        }
    }
}

impl PartialEq for Secure {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.config, &other.config) && self.name == other.name
    }
}

/// Without the settings, which have keys in them.
impl fmt::Debug for Secure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secure").field("name", &self.name).finish_non_exhaustive()
    }
}

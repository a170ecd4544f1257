//! Peers that speak TLS, in the test's own process.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use rustls::{
    ClientConfig, ServerConfig, SupportedProtocolVersion, client::Resumption, pki_types::ServerName,
    server::WebPkiClientVerifier,
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use super::{Authority, Issued, connect, soon};

/// TLS 1.2 and 1.3, each alone.
pub(crate) static VERSIONS: [&SupportedProtocolVersion; 2] =
    [&rustls::version::TLS12, &rustls::version::TLS13];

/// A client. It resumes sessions only where asked to.
#[derive(Clone, Debug)]
pub(crate) struct Speaker {
    /// What it is made of.
    pub(crate) config: ClientConfig,
}

impl Speaker {
    /// Believes in `authority`, and shows `identity`.
    pub(crate) fn new(authority: &Authority, identity: Option<&Issued>) -> Self {
        Self::of(authority, identity, &[&rustls::version::TLS13, &rustls::version::TLS12])
    }

    /// The same with these versions only.
    pub(crate) fn of(
        authority: &Authority,
        identity: Option<&Issued>,
        versions: &[&'static SupportedProtocolVersion],
    ) -> Self {
        let builder =
            ClientConfig::builder_with_protocol_versions(versions).with_root_certificates(authority.roots());
        let mut config = match identity {
            Some(issued) => builder.with_client_auth_cert(issued.chain(), issued.private()).unwrap(),
            None => builder.with_no_client_auth(),
        };
        config.resumption = Resumption::disabled();
        Self { config }
    }

    /// The same, offering these protocols.
    pub(crate) fn alpn(mut self, protocols: &[&str]) -> Self {
        self.config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        self
    }

    /// The same, with tickets.
    pub(crate) fn resuming(mut self) -> Self {
        self.config.resumption = Resumption::in_memory_sessions(16);
        self
    }

    /// Connects and shakes hands.
    pub(crate) async fn dial(
        &self,
        address: SocketAddr,
        name: &'static str,
    ) -> io::Result<client::TlsStream<TcpStream>> {
        self.over(connect(address).await, name).await
    }

    /// Shakes hands over a connection that is there.
    pub(crate) async fn over(
        &self,
        stream: TcpStream,
        name: &'static str,
    ) -> io::Result<client::TlsStream<TcpStream>> {
        let connector = TlsConnector::from(Arc::new(self.config.clone()));
        soon("a handshake", connector.connect(ServerName::try_from(name).unwrap(), stream)).await
    }
}

/// An endpoint.
#[derive(Clone)]
pub(crate) struct Listener(TlsAcceptor);

impl Listener {
    /// Shows `identity`.
    pub(crate) fn new(identity: &Issued) -> Self {
        let builder = ServerConfig::builder().with_no_client_auth();
        Self::of(builder.with_single_cert(identity.chain(), identity.private()).unwrap(), &[])
    }

    /// The same, and agrees on one of these protocols.
    pub(crate) fn speaking(identity: &Issued, protocols: &[&str]) -> Self {
        let builder = ServerConfig::builder().with_no_client_auth();
        Self::of(builder.with_single_cert(identity.chain(), identity.private()).unwrap(), protocols)
    }

    /// Shows `identity`, and wants a certificate of `authority` from each client.
    pub(crate) fn asking(identity: &Issued, authority: &Authority) -> Self {
        let verifier = WebPkiClientVerifier::builder(authority.roots()).build().unwrap();
        let builder = ServerConfig::builder().with_client_cert_verifier(verifier);
        Self::of(builder.with_single_cert(identity.chain(), identity.private()).unwrap(), &[])
    }

    fn of(mut config: ServerConfig, protocols: &[&str]) -> Self {
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        Self(TlsAcceptor::from(Arc::new(config)))
    }

    /// Shakes hands.
    pub(crate) async fn accept(&self, stream: TcpStream) -> io::Result<server::TlsStream<TcpStream>> {
        let shaking = tokio::time::timeout(Duration::from_secs(20), self.0.accept(stream));
        shaking.await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }
}

/// The error of TLS in an error of a stream.
pub(crate) fn tls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

//! TLS that ends here and TLS that begins here: who is let in, how sessions end, what new files change. Peers are
//! rustls in the test's own process, where a test needs to see each byte, and OpenSSL, curl, nginx and Python.

mod clients;
mod endpoints;
mod ends;
mod files;
mod programs;

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::client::TlsStream;

use crate::harness::{Authority, Backend, Carrier, Files, Issued, Place, Proxy, Setup, listener, pool, soon};

/// The name that listeners of these tests have.
const NAME: &str = "edge.test";

/// An authority, what it has signed for [`NAME`], and where the files are.
struct Edge {
    authority: Authority,
    issued: Issued,
    files: Files,
}

impl Edge {
    fn new() -> Self {
        let authority = Authority::new("edge authority");
        let issued = authority.issue(&[NAME]);
        Self { authority, issued, files: Files::new() }
    }

    /// TLS ends here, with these settings more.
    fn ends_here(&self, settings: &str) -> String {
        self.files.listener("edge", &self.issued, settings)
    }

    /// A proxy before one plain endpoint.
    async fn before(
        &self,
        carrier: Carrier,
        place: &Place,
        endpoint: SocketAddr,
        settings: &str,
    ) -> (Proxy, SocketAddr) {
        Proxy::before_on(carrier, place, endpoint, &self.ends_here(settings)).await
    }
}

/// A proxy with a TLS listener for each of these settings, all before one endpoint that sends everything back.
async fn listeners<const N: usize>(
    place: &Place,
    echo: &Backend,
    settings: [String; N],
) -> (Proxy, [SocketAddr; N]) {
    let mut tables = pool("only", "", &[("aws", echo.address)]);
    let addresses = settings.map(|settings| {
        let bind = place.free();
        tables += &listener(bind, "only", &settings);
        bind
    });
    (Proxy::start(Setup::new(place, tables)).await, addresses)
}

/// Asks something over a session that is there, of an endpoint that sends it back.
async fn answers(stream: &mut TlsStream<tokio::net::TcpStream>) -> std::io::Result<()> {
    let mut answer = [0; 4];
    stream.write_all(b"ping").await?;
    soon("an answer", stream.read_exact(&mut answer)).await?;
    assert_eq!(&answer, b"ping");
    Ok(())
}

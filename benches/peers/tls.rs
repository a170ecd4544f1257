//! Clients that speak TLS, or only say hello: blocking threads on the CPU of the load. What a handshake costs them is the
//! same whatever proxy they meet.

use std::{
    fs,
    io::{self, Read, Write},
    net::SocketAddr,
    path::Path,
    sync::Arc,
    thread,
    time::Duration,
};

use anyhow::Context;
use hdrhistogram::Histogram;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{
    ClientConfig, ClientConnection, HandshakeKind, RootCertStore, StreamOwned, client::Resumption,
    pki_types::ServerName,
};
use tokio::time::Instant;

use crate::{
    host,
    load::{self, REQUEST_BYTES, Tally},
    target::{Ask, REQUEST},
};

/// The name that clients ask for.
pub(crate) const NAME: &str = "bench.example.com";

/// Threads of a load: enough to keep a proxy busy that does the same work as they do.
const THREADS: usize = 8;

/// What the clients of a measurement do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// A whole handshake, an exchange of 128 B, `close_notify`.
    Full,
    /// The same, resumed.
    Resumed,
    /// As many bytes as come.
    Down,
    /// A ClientHello that somebody sends back.
    Hello,
}

/// Certificates as proxies and clients need them.
pub(crate) struct Papers {
    client: ClientConfig,
}

impl Papers {
    /// Makes an authority and a certificate of P-256, in `dir` as `cert.pem`, `key.pem` and, for HAProxy, `both.pem`.
    pub(crate) fn write(dir: &Path) -> anyhow::Result<Self> {
        let mut authority = CertificateParams::new(Vec::new())?;
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;
        let key = KeyPair::generate()?;
        let certificate = CertificateParams::new(vec![NAME.to_owned()])?.signed_by(&key, &authority)?;
        let (certificate, key) = (certificate.pem(), key.serialize_pem());
        for (name, text) in
            [("cert.pem", &certificate), ("key.pem", &key), ("both.pem", &format!("{certificate}{key}"))]
        {
            fs::write(dir.join(name), text)?;
        }
        let mut roots = RootCertStore::empty();
        roots.add(authority.der().clone())?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let client = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self { client })
    }

    fn config(&self, work: Work) -> Arc<ClientConfig> {
        let mut config = self.client.clone();
        config.resumption =
            if work == Work::Resumed { Resumption::in_memory_sessions(64) } else { Resumption::disabled() };
        Arc::new(config)
    }

    /// True once the proxy does what `work` asks for.
    pub(crate) fn answers(&self, to: SocketAddr, work: Work) -> bool {
        let mut client =
            Client { to, config: self.config(work), hello: hello(&self.client).unwrap_or_default() };
        match work {
            Work::Hello => client.say_hello().is_ok(),
            Work::Full | Work::Resumed | Work::Down => client.exchange().is_ok(),
        }
    }
}

/// The threads of a load, each with what it remembers of sessions.
pub(crate) struct Clients {
    clients: Vec<Client>,
    work: Work,
}

#[derive(Clone)]
struct Client {
    to: SocketAddr,
    config: Arc<ClientConfig>,
    hello: Vec<u8>,
}

impl Clients {
    pub(crate) fn new(to: SocketAddr, papers: &Papers, work: Work) -> anyhow::Result<Self> {
        let hello = hello(&papers.client)?;
        let client = || Client { to, config: papers.config(work), hello: hello.clone() };
        let threads = if work == Work::Down { 4 } else { THREADS };
        let mut clients: Vec<Client> = (0..threads).map(|_| client()).collect();
        if work == Work::Resumed {
            // The first of each has nothing to resume.
            clients
                .iter_mut()
                .try_for_each(|client| client.exchange().map(drop))
                .context("first sessions")?;
        }
        Ok(Self { clients, work })
    }

    pub(crate) fn run(&mut self, span: Duration) -> io::Result<Tally> {
        let (begun, work) = (Instant::now(), self.work);
        let until = begun + span;
        let done: Vec<(u64, u64)> = thread::scope(|scope| {
            let threads: Vec<_> =
                self.clients.iter_mut().map(|client| scope.spawn(move || client.work(work, until))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap_or((0, 1))).collect()
        });
        if host::interrupted() {
            return Err(io::Error::new(io::ErrorKind::Interrupted, "interrupted"));
        }
        let elapsed = begun.elapsed();
        let latency = Histogram::new(2).map_err(io::Error::other)?;
        let (units, errors) = done.into_iter().fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
        Ok(Tally { units, errors, elapsed, latency })
    }
}

impl Client {
    /// Units and failures until then.
    fn work(&mut self, work: Work, until: Instant) -> (u64, u64) {
        let (mut units, mut errors) = (0, 0);
        if work == Work::Down {
            return self.stream(until).map_or((0, 1), |bytes| (bytes, 0));
        }
        while Instant::now() < until && !host::interrupted() {
            let done = match work {
                Work::Hello => self.say_hello(),
                Work::Full | Work::Down => self.exchange().map(drop),
                Work::Resumed => self.exchange().and_then(|kind| match kind {
                    Some(HandshakeKind::Resumed) => Ok(()),
                    _ => Err(io::Error::other("not resumed")),
                }),
            };
            match done {
                Ok(()) => units += 1,
                Err(_) => errors += 1,
            }
        }
        (units, errors)
    }

    fn open(&self) -> io::Result<StreamOwned<ClientConnection, std::net::TcpStream>> {
        let name = ServerName::try_from(NAME).map_err(io::Error::other)?;
        let connection = ClientConnection::new(Arc::clone(&self.config), name).map_err(io::Error::other)?;
        Ok(StreamOwned::new(connection, load::connect(self.to)?))
    }

    /// A handshake and 128 B each way.
    fn exchange(&mut self) -> io::Result<Option<HandshakeKind>> {
        let mut stream = self.open()?;
        let mut bytes = ask(Ask::Reply { request: REQUEST_BYTES, reply: REQUEST_BYTES });
        stream.write_all(&bytes)?;
        stream.read_exact(&mut bytes)?;
        stream.conn.send_close_notify();
        stream.flush()?;
        Ok(stream.conn.handshake_kind())
    }

    fn stream(&mut self, until: Instant) -> io::Result<u64> {
        let mut stream = self.open()?;
        stream.write_all(&ask(Ask::Source))?;
        let (mut bytes, mut room) = (0, vec![0; 64 << 10]);
        while Instant::now() < until && !host::interrupted() {
            bytes += stream.read(&mut room)? as u64;
        }
        Ok(bytes)
    }

    fn say_hello(&mut self) -> io::Result<()> {
        let mut stream = load::connect(self.to)?;
        stream.write_all(&self.hello)?;
        let mut back = vec![0; self.hello.len()];
        stream.read_exact(&mut back)?;
        Ok(())
    }
}

fn ask(ask: Ask) -> [u8; REQUEST] {
    let mut bytes = [0; REQUEST];
    for (byte, value) in bytes.iter_mut().zip(ask.head()) {
        *byte = value;
    }
    bytes
}

/// What a client of today says first.
fn hello(config: &ClientConfig) -> anyhow::Result<Vec<u8>> {
    let mut connection = ClientConnection::new(Arc::new(config.clone()), ServerName::try_from(NAME)?)?;
    let mut bytes = Vec::new();
    while connection.wants_write() {
        connection.write_tls(&mut bytes)?;
    }
    Ok(bytes)
}

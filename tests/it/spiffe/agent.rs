//! An agent that serves the SPIFFE Workload API on a unix socket: one call of gRPC over HTTP/2, its messages put together
//! by hand, so that what the proxy understands does not depend on the library that it uses.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use h2::server::SendResponse;
use http::{HeaderMap, HeaderValue, Request, Response};
use rcgen::{IsCa, KeyUsagePurpose};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::watch,
    task::{JoinHandle, JoinSet},
};

use crate::harness::{Authority, Issued};

/// What the agent answers.
#[derive(Clone, Debug)]
pub(super) enum Said {
    /// This message, and the next as soon as there is one.
    Message(Bytes),
    /// The workload is nobody (gRPC status 7).
    Nobody,
    /// Nothing yet.
    Nothing,
}

/// An agent. It dies when dropped.
#[derive(Debug)]
pub(super) struct Agent {
    socket: PathBuf,
    said: watch::Sender<Said>,
    serving: Option<JoinHandle<()>>,
}

impl Agent {
    /// Serves at `socket`.
    pub(super) fn serve(socket: &Path, said: Said) -> Self {
        let mut agent = Self { socket: socket.to_owned(), said: watch::Sender::new(said), serving: None };
        agent.rise();
        agent
    }

    /// Says something new to all who listen.
    pub(super) fn say(&self, said: Said) {
        self.said.send_replace(said);
    }

    /// Dies with all its calls. Its socket stays, as after a crash.
    pub(super) async fn die(&mut self) {
        if let Some(serving) = self.serving.take() {
            serving.abort();
            drop(serving.await);
        }
    }

    /// Comes back.
    pub(super) fn rise(&mut self) {
        drop(std::fs::remove_file(&self.socket));
        let listener = UnixListener::bind(&self.socket).unwrap();
        let said = self.said.subscribe();
        self.serving = Some(tokio::spawn(async move {
            let mut calls = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                calls.spawn(connection(stream, said.clone()));
            }
        }));
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Some(serving) = &self.serving {
            serving.abort();
        }
    }
}

async fn connection(stream: UnixStream, said: watch::Receiver<Said>) {
    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
    let mut calls = JoinSet::new();
    while let Some(Ok((request, respond))) = connection.accept().await {
        assert_eq!(request.uri().path(), "/SpiffeWorkloadAPI/FetchX509SVID");
        calls.spawn(answer(request, respond, said.clone()));
    }
}

/// One call, for as long as both sides like. `None`: the other side is gone.
async fn answer(
    request: Request<h2::RecvStream>,
    mut respond: SendResponse<Bytes>,
    mut said: watch::Receiver<Said>,
) -> Option<()> {
    let head = || Response::builder().header("content-type", "application/grpc");
    // SPIFFE Workload Endpoint, section 6: without this header it may be somebody else's call.
    if request.headers().get("workload.spiffe.io").is_none_or(|value| value != "true") {
        respond.send_response(head().header("grpc-status", "3").body(()).unwrap(), true).ok()?;
        return None;
    }
    let mut body = respond.send_response(head().body(()).unwrap(), false).ok()?;
    loop {
        let now = said.borrow_and_update().clone();
        match now {
            Said::Message(message) => {
                let length = u32::try_from(message.len()).unwrap().to_be_bytes();
                let frame = [&[0], length.as_slice(), &message].concat();
                body.send_data(frame.into(), false).ok()?;
            }
            Said::Nobody => {
                let mut trailers = HeaderMap::new();
                trailers.insert("grpc-status", HeaderValue::from_static("7"));
                trailers.insert("grpc-message", HeaderValue::from_static("no identity issued"));
                body.send_trailers(trailers).ok()?;
                return None;
            }
            Said::Nothing => {}
        }
        said.changed().await.ok()?;
    }
}

/// An X.509-SVID: it says that it signs nothing but handshakes, which the standard wants of it.
pub(super) fn svid(authority: &Authority, names: &[&str]) -> Issued {
    authority.issue_as(names, |params| {
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    })
}

/// The message (X509SVIDResponse) with one identity, the bundle of its trust domain, and those of others.
pub(super) fn message(
    id: &str,
    issued: &Issued,
    bundle: &[&Authority],
    others: &[(&str, &Authority)],
) -> Said {
    let key = PrivateKeyDer::from_pem_slice(issued.key.as_bytes()).unwrap();
    let chain: Vec<u8> = issued.chain().iter().flat_map(|one| one.to_vec()).collect();
    let own: Vec<u8> = bundle.iter().flat_map(|one| root(one)).collect();
    let identity = [field(1, id.as_bytes()), field(2, &chain), field(3, key.secret_der()), field(4, &own)];
    let mut message = field(1, &identity.concat());
    for (domain, authority) in others {
        let entry = [field(1, format!("spiffe://{domain}").as_bytes()), field(2, &root(authority))];
        message.extend(field(3, &entry.concat()));
    }
    Said::Message(message.into())
}

fn root(authority: &Authority) -> Vec<u8> {
    CertificateDer::from_pem_slice(authority.pem.as_bytes()).unwrap().to_vec()
}

/// A field of bytes in a message of Protocol Buffers.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    let mut length = bytes.len();
    while length >= 0x80 {
        out.push(u8::try_from(length & 0x7f).unwrap() | 0x80);
        length >>= 7;
    }
    out.push(u8::try_from(length).unwrap());
    out.extend_from_slice(bytes);
    out
}

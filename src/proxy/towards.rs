//! What an endpoint is given before the session: a PROXY header, and TLS.

use std::{net::SocketAddr, os::fd::AsFd, sync::Arc};

use rustix::net::SendFlags;
use rustls::pki_types::ServerName;
use tokio::{
    io::Interest,
    time::{Instant, timeout},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{
    connect::{self, Begun, Established},
    peer::Peer,
    plain::Plain,
    racing,
    relay::Watched,
    session::Books,
};
use crate::{
    ids::EndpointIdentity,
    state::{Origination, Pool, ProxyOut},
    sys,
    telemetry::{Cause, End, Side, Stage},
    tls,
    wire::proxy_header::{self, Name, Outgoing, OutgoingTls, Version},
};

/// Finds an endpoint that takes the session, and tells it whose it is where the pool asks for that.
pub(super) async fn connect(
    client: &Watched<'_>,
    books: &mut Books,
    begun: Option<Begun>,
    mut tried: Vec<Arc<EndpointIdentity>>,
) -> Result<Established, End> {
    let mut begun = begun;
    loop {
        let established = racing::connect(client, books, begun.take(), tried.clone()).await?;
        let Some(version) = established.pool.towards.proxy_header else { return Ok(established) };
        let header = header(books, client, version);
        let more = connect::has_sent(client.get_ref());
        match send(&established.upstream, &header, more).await {
            Ok(()) => return Ok(established),
            Err(cause) => {
                let end = End { side: Side::Upstream, stage: Stage::Connect, cause };
                books.fail(end);
                tried.extend(books.endpoint.as_ref().map(|endpoint| Arc::clone(&endpoint.identity)));
            }
        }
    }
}

/// The header of this session.
fn header(books: &mut Books, client: &Watched<'_>, version: ProxyOut) -> Vec<u8> {
    let local = || {
        let address = rustix::net::getsockname(client.get_ref()).ok()?;
        SocketAddr::try_from(address).ok()
    };
    let destination = books.told().destination.or_else(local);
    let addresses = destination.map(|destination| (books.client, destination));
    match version {
        ProxyOut::V1 => proxy_header::write(Version::V1, addresses, &Outgoing::default()),
        ProxyOut::V2 => {
            identify(books);
            proxy_header::write(Version::V2, addresses, &known(books))
        }
    }
}

/// Gives the session an id that no other one has, unless it came with one.
fn identify(books: &mut Books) {
    let came_with = books.noted().and_then(|note| note.header.as_deref()?.bytes(Name::UniqueId));
    if came_with.is_none() {
        let id = books.shared.sessions.unique_id(books.number());
        books.note().unique_id = Some(id.into());
    }
}

/// What is known of a session besides addresses.
fn known(books: &Books) -> Outgoing<'_> {
    let (told, note) = (books.told(), books.noted());
    let came_in = note.and_then(|note| note.header.as_deref());
    // What was agreed on in TLS before us is of no use where there is TLS with us, too: that is another one.
    let before_us = came_in.filter(|_| note.is_some_and(|note| !note.hello));
    let authority = before_us.and_then(|tlvs| str::from_utf8(tlvs.bytes(Name::Authority)?).ok());
    let own_id = note.and_then(|note| note.unique_id.as_deref()).map(str::as_bytes);
    Outgoing {
        authority: told.sni.as_deref().or(authority),
        alpn: note
            .and_then(|note| note.alpn.as_deref())
            .or_else(|| before_us.and_then(|tlvs| tlvs.bytes(Name::Alpn))),
        unique_id: own_id.or_else(|| came_in.and_then(|tlvs| tlvs.bytes(Name::UniqueId))),
        tls: note.and_then(|note| {
            let common_name = note.common_name.as_deref();
            Some(OutgoingTls { version: note.tls?, verified: note.verified, common_name })
        }),
        passed_on: came_in,
    }
}

/// Sends all of it. `more`: the client's first bytes follow at once, and may travel in the same segment.
async fn send(upstream: &Peer, header: &[u8], more: bool) -> Result<(), Cause> {
    let mut flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    if more {
        flags |= SendFlags::MORE;
    }
    let mut left = header;
    while !left.is_empty() {
        match rustix::net::send(upstream, left, flags) {
            Ok(length) => left = left.get(length..).unwrap_or_default(),
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::AGAIN) => {
                // A fresh connection has room for any header, if its buffer is not a very small one.
                let watched = sys::readiness(upstream.as_fd(), Interest::WRITABLE);
                let watched = watched.map_err(|_| Cause::Exhausted)?;
                watched.ready(Interest::WRITABLE).await.map_err(|error| Cause::of(&error))?.clear_ready();
            }
            Err(error) => return Err(Cause::of(&error.into())),
        }
    }
    Ok(())
}

/// TLS with an endpoint.
pub(super) type Secured<'w> = Box<TlsStream<Plain<'w>>>;

/// Shakes hands with the endpoint that carries the session.
///
/// # Errors
/// It did not come to an end in time, or its certificate is not right: the end of the session, if nobody else takes it.
pub(super) async fn secure<'w>(
    upstream: &'w Watched<'w>,
    books: &mut Books,
    origination: &Origination,
    pool: &Pool,
) -> Result<Secured<'w>, End> {
    let endpoint = books.endpoint.as_ref().map(|endpoint| endpoint.address());
    let failed = |cause| End { side: Side::Upstream, stage: Stage::Connect, cause };
    let name: Option<&ServerName<'static>> = endpoint.and_then(|address| origination.names.get(&address));
    // An address that a name has lost since: another attempt knows more.
    let Some(name) = name.cloned() else { return Err(failed(Cause::Handshake)) };
    let connector = TlsConnector::from(Arc::clone(&origination.config));
    let agreed =
        books.noted().and_then(|note| note.alpn.as_deref()).filter(|_| origination.protocol_of_client);
    let shaking = match agreed {
        Some(protocol) => connector.with_alpn(vec![protocol.to_vec()]).connect(name, Plain(upstream)),
        None => connector.connect(name, Plain(upstream)),
    };
    let handshakes = &pool.cell.handshakes;
    match timeout(pool.connect.timeout, shaking).await {
        Ok(Ok(stream)) => {
            let resumed = tls::negotiated(stream.get_ref().1).is_some_and(|agreed| agreed.resumed);
            handshakes.count(if resumed { "resumed" } else { "ok" });
            books.connected = Some(Instant::now());
            if let Some(endpoint) = &books.endpoint {
                endpoint.cell.vouch();
            }
            Ok(Box::new(stream))
        }
        Err(_) => {
            handshakes.count("timed_out");
            Err(failed(Cause::TimedOut))
        }
        Ok(Err(error)) => match error.get_ref().and_then(|inner| inner.downcast_ref()) {
            Some(error) => {
                let (word, reason) = tls::why(error);
                handshakes.count(word);
                books.note().refused = Some((word, reason.into()));
                Err(failed(Cause::Handshake))
            }
            None => {
                handshakes.count(tls::why_io(&error).0);
                let closed = error.kind() == std::io::ErrorKind::UnexpectedEof;
                Err(failed(if closed { Cause::Reset } else { Cause::of(&error) }))
            }
        },
    }
}

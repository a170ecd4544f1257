//! What a client says before it has a pool: a PROXY header, a ClientHello, the TLS that ends here. Nothing of it but the
//! header and the handshake is taken from the client's socket, so that what follows finds the rest where it was.

mod destination;
mod header;
mod hearing;
mod hello;

use std::sync::Arc;

use rustix::net::RecvFlags;
use tokio::{
    io::Interest,
    time::{Instant, timeout_at},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

pub(super) use self::{
    destination::aim,
    hearing::{Glance, Hearing, glance},
};
use super::{plain::Plain, relay::Watched, session::Books};
use crate::{
    state::{Entry, ProxyIn, Termination},
    telemetry::{Cause, End, Side, Stage},
    tls,
};

/// TLS with a client.
pub(super) type Secured<'w> = Box<TlsStream<Plain<'w>>>;

/// Hears what the client says first, and leaves it in the books. TLS with it, if that ends here.
///
/// # Errors
/// The session is over: the client said nothing in time, or what may not be said here, or nobody serves it.
pub(super) async fn pass<'w>(
    client: &'w Watched<'w>,
    books: &mut Books,
    entry: &Entry,
) -> Result<Option<Secured<'w>>, End> {
    let _there = entry.begin(&books.listener).map_err(|why| books.refuse(why))?;
    destination::read(client.get_ref(), books, entry)?;
    header::read(client, books, entry).await?;
    if entry.proxy_header != ProxyIn::Off {
        books.admit(entry, books.client.ip())?;
    }
    destination::compare(client.get_ref(), books);
    let deadline = Instant::now() + entry.handshake_timeout;
    if entry.reads_hello() {
        hello::read(client, books, entry, deadline).await?;
    }
    destination::lead(books)?;
    match &entry.tls {
        Some(tls) => shake_hands(client, books, tls, deadline).await.map(Some),
        None => Ok(None),
    }
}

async fn shake_hands<'w>(
    client: &'w Watched<'w>,
    books: &mut Books,
    tls: &Termination,
    deadline: Instant,
) -> Result<Secured<'w>, End> {
    let acceptor = TlsAcceptor::from(Arc::clone(&tls.config));
    let Ok(shaken) = timeout_at(deadline, acceptor.accept(Plain(client))).await else {
        books.listener.handshakes.count("timed_out");
        return Err(ended(Side::Client, Stage::Accept, Cause::TimedOut));
    };
    // Why it failed can be asked only until this thread goes on with another one.
    let failed = |books: &mut Books, error: &rustls::Error| {
        let (word, reason) = tls::why(error);
        books.listener.handshakes.count(word);
        books.note().refused = Some((word, reason.into()));
        ended(Side::Client, Stage::Accept, Cause::Handshake)
    };
    let stream = match shaken {
        Ok(mut stream) => {
            // A question that came with the end of the handshake is not in the socket any more.
            let state = stream.get_mut().1.process_new_packets();
            books.asked = state.is_ok_and(|state| state.plaintext_bytes_to_read() > 0);
            Box::new(stream)
        }
        Err(error) => {
            return Err(match error.get_ref().and_then(|inner| inner.downcast_ref()) {
                Some(error) => failed(books, error),
                None => {
                    books.listener.handshakes.count(tls::why_io(&error).0);
                    let closed = error.kind() == std::io::ErrorKind::UnexpectedEof;
                    let cause = if closed { Cause::Closed } else { Cause::of(&error) };
                    ended(Side::Client, Stage::Accept, cause)
                }
            });
        }
    };
    let connection = stream.get_ref().1;
    if let Some(clients) = &tls.clients
        && let Err(error) = tls::recheck(connection, clients)
    {
        return Err(failed(books, &error));
    }
    if let Some(agreed) = tls::negotiated(connection) {
        books.listener.handshakes.count(if agreed.resumed { "resumed" } else { "ok" });
        let note = books.note();
        note.tls = Some(agreed.version);
        let shown = connection.peer_certificates();
        note.verified = shown.is_some();
        note.common_name = shown.and_then(<[_]>::first).and_then(tls::common_name).map(Into::into);
        note.alpn = connection.alpn_protocol().map(Into::into);
    }
    Ok(stream)
}

pub(super) const fn ended(side: Side, stage: Stage, cause: Cause) -> End {
    End { side, stage, cause }
}

/// What a look at the bytes so far has come to.
enum Look<T> {
    /// More are needed.
    More,
    Found(T),
}

/// Shows `look` what the client has sent so far, from its first byte, until it finds what it looks for. Nothing is taken from
/// the socket. `room`: the most that is shown.
async fn peruse<T>(
    client: &Watched<'_>,
    room: usize,
    deadline: Instant,
    mut look: impl FnMut(&[u8]) -> Result<Look<T>, End>,
) -> Result<T, End> {
    let mut seen = 0;
    let ended_by = |cause| ended(Side::Client, Stage::Accept, cause);
    loop {
        let Ok(ready) = timeout_at(deadline, client.ready(Interest::READABLE)).await else {
            return Err(ended_by(Cause::TimedOut));
        };
        let mut ready = ready.map_err(|error| ended_by(Cause::of(&error)))?;
        // Not kept across waits: a client that stalls costs no buffer.
        let mut bytes = vec![0; room.min(seen.max(FIRST) * 2)];
        let length = loop {
            match rustix::net::recv(client.get_ref(), &mut bytes[..], RecvFlags::PEEK | RecvFlags::DONTWAIT) {
                Ok((length, _)) if length == bytes.len() && length < room => {
                    bytes.resize(room.min(length * 2), 0);
                }
                Ok((length, _)) => break length,
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => break seen,
                Err(error) => return Err(ended_by(Cause::of(&error.into()))),
            }
        };
        if length == seen {
            if is_over(client) {
                return Err(ended_by(if seen == 0 { Cause::Closed } else { Cause::Truncated }));
            }
            ready.clear_ready();
            continue;
        }
        seen = length;
        if let Look::Found(found) = look(bytes.get(..length).unwrap_or_default())? {
            return Ok(found);
        }
        // Only now: who reads next finds it ready. What comes meanwhile raises an edge that is not seen before.
        ready.clear_ready();
        if length == room || is_over(client) {
            return Err(ended_by(Cause::Truncated));
        }
    }
}

/// What is looked at first: most hellos are shorter.
const FIRST: usize = 1024;

/// True when the client sends no more. A socket with unread bytes tells of its end by no read.
fn is_over(client: &Watched<'_>) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut sockets = [PollFd::new(client.get_ref(), PollFlags::RDHUP)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut sockets, Some(&now)).is_ok_and(|ready| ready > 0)
}

/// Takes so many bytes that were looked at already.
fn take(client: &Watched<'_>, length: usize) -> Result<(), End> {
    let mut bytes = vec![0; length];
    let taken = rustix::net::recv(client.get_ref(), &mut bytes[..], RecvFlags::DONTWAIT);
    match taken {
        Ok((taken, _)) if taken == length => Ok(()),
        _ => Err(ended(Side::Client, Stage::Accept, Cause::Reset)),
    }
}

#[cfg(test)]
mod tests {
    use crate::{
        state::{HANDSHAKES, REFUSALS},
        wire::{hello::Why, proxy_header::Malformed},
    };

    #[test]
    fn every_reason_to_refuse_a_client_has_a_count_of_its_own() {
        let hellos = [
            Why::NotTls,
            Why::NotHello,
            Why::EmptyRecord,
            Why::TooLong,
            Why::ServerName,
            Why::RepeatedExtension,
            Why::TooManyProtocols,
            Why::Malformed,
        ];
        let headers = [
            Malformed::NoHeader,
            Malformed::TooLong,
            Malformed::Line,
            Malformed::Address,
            Malformed::Port,
            Malformed::Command,
            Malformed::Family,
            Malformed::Length,
            Malformed::Tlv,
            Malformed::RepeatedTlv,
            Malformed::Checksum,
        ];
        let words = hellos.map(Why::as_str).into_iter().chain(headers.map(Malformed::as_str));
        for word in words.chain(["untrusted", "no_route", "loop"]) {
            assert_eq!(REFUSALS.iter().filter(|known| **known == word).count(), 1, "{word}");
        }
    }

    #[test]
    fn every_end_of_a_handshake_has_a_count_of_its_own() {
        use rustls::{AlertDescription, CertificateError, Error, InvalidMessage, PeerIncompatible};
        let errors = [
            Error::NoCertificatesPresented,
            Error::InvalidCertificate(CertificateError::Expired),
            Error::InvalidCertificate(CertificateError::UnknownIssuer),
            Error::InvalidCertificate(CertificateError::NotValidForName),
            Error::InvalidCertificate(CertificateError::BadEncoding),
            Error::PeerIncompatible(PeerIncompatible::Tls12NotOffered),
            Error::PeerIncompatible(PeerIncompatible::NoCipherSuitesInCommon),
            Error::NoApplicationProtocol,
            Error::AlertReceived(AlertDescription::UnknownCA),
            Error::InvalidMessage(InvalidMessage::InvalidContentType),
            Error::InvalidMessage(InvalidMessage::MissingData("x")),
            Error::DecryptError,
        ];
        let streams = [std::io::ErrorKind::UnexpectedEof, std::io::ErrorKind::ConnectionReset];
        let words = errors.iter().map(|error| crate::tls::why(error).0);
        let ends = streams.map(|kind| crate::tls::why_io(&kind.into()).0);
        let mut words: Vec<_> = words.chain(ends).chain(["ok", "resumed", "timed_out"]).collect();
        words.sort_unstable();
        let mut known = HANDSHAKES;
        known.sort_unstable();
        assert_eq!(words, known);
    }
}

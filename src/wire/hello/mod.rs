//! The first thing a TLS client says, its ClientHello (RFC 8446 section 4.1.2), read by rustls and by nothing of ours.
//!
//! rustls' `Acceptor` keeps two copies of a hello that has not ended, and eight KiB for it. So nobody keeps one: the caller
//! holds the bytes, which it must replay anyway, and each look is a fresh `Acceptor`. `frames.rs` says when a look is worth
//! it, so that the looks together cost no more than a few.

mod frames;
#[cfg(test)]
mod tests;

use rustls::{
    AlertDescription, Error, InvalidMessage, PeerIncompatible, PeerMisbehaved,
    server::{Acceptor, ClientHello},
};

use self::frames::Frames;

/// The longest hello that is read where nothing else is said, in bytes of the connection.
pub const DEFAULT_LIMIT: usize = 32 * 1024;

/// The most protocols a client may offer. Ordinary ones offer two or three; what we did not keep we could not route by.
const PROTOCOLS: usize = 32;

/// The content type of alerts.
const ALERT: u8 = 21;

/// The level of an alert that ends the connection.
const FATAL: u8 = 2;

/// A ClientHello on its way. Holds no bytes: 64 bytes, whatever has come in.
#[derive(Debug)]
pub struct Hello {
    limit: usize,
    frames: Frames,
    /// Look again once so much is there, whatever the frames say.
    due: usize,
}

/// What the bytes so far amount to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// No hello yet, but it may become one.
    More,
    /// A hello. What follows it in the bytes was not looked at.
    Done(Said),
    /// A hello by its form, but of a kind that rustls does not read to the end: its names are not known. Passed through
    /// unread it may well be understood by an endpoint; TLS cannot end here.
    NotLiked(Dislike),
    /// No hello, and it will not become one.
    Refused(Why),
}

/// What a client said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// The server name, in lower case, without the one trailing dot it may have. `None`: none was named, or an IP
    /// address, which RFC 6066 section 3 does not allow and clients send nonetheless.
    pub sni: Option<Box<str>>,
    /// The protocols on offer, as they were sent (RFC 7301), in the client's order. Empty: no such extension.
    pub alpn: Vec<Box<[u8]>>,
}

/// What rustls misses in a hello.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dislike {
    /// No signature algorithms: clients that know TLS 1.1 at best, and some of TLS 1.2.
    SignatureAlgorithms,
    /// Only with compression.
    Compression,
    /// Something else.
    Other,
}

/// Why bytes are no hello.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Why {
    /// Not TLS at all: another protocol, or SSL 2.
    NotTls,
    /// TLS, but another message than a hello.
    NotHello,
    /// A record without content.
    EmptyRecord,
    /// Longer than the limit, by what is here or by what it announces.
    TooLong,
    /// Two server names, or one that is no name.
    ServerName,
    /// An extension twice: who reads the first and who reads the last would not agree.
    RepeatedExtension,
    /// More protocols than anybody needs.
    TooManyProtocols,
    /// Lengths that do not fit, values that may not be.
    Malformed,
}

impl Hello {
    /// A hello of which nothing has come yet. `limit`: how many bytes of the connection it may take with all its
    /// records, at most 65,535 (rustls reads no longer ones).
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { limit: limit.min(usize::from(u16::MAX)), frames: Frames::default(), due: 1 }
    }

    /// What `so_far` amounts to: all bytes of the connection since its beginning, those shown before included. To be
    /// called once after each read; after any answer but [`Progress::More`] not again.
    pub fn look(&mut self, so_far: &[u8]) -> Progress {
        let within = so_far.get(..self.limit).unwrap_or(so_far);
        let full = within.len() == self.limit;
        if (self.frames.advance(within) || within.len() >= self.due || full) && !within.is_empty() {
            self.due = within.len().saturating_mul(2);
            if let Some(progress) = ask(within) {
                return progress;
            }
        }
        if full || self.frames.announced() > self.limit {
            return Progress::Refused(Why::TooLong);
        }
        Progress::More
    }
}

impl Dislike {
    /// A word for it, for labels and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::SignatureAlgorithms => "no_signature_algorithms",
            Self::Compression => "compression_required",
            Self::Other => "incompatible",
        }
    }
}

impl Why {
    /// A word for it, for labels and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotTls => "not_tls",
            Self::NotHello => "not_hello",
            Self::EmptyRecord => "empty_record",
            Self::TooLong => "hello_too_long",
            Self::ServerName => "server_name",
            Self::RepeatedExtension => "repeated_extension",
            Self::TooManyProtocols => "too_many_protocols",
            Self::Malformed => "malformed_hello",
        }
    }
}

/// The alert that tells a client why these bytes, the first of its connection, are no hello (RFC 8446 section 6.2): a
/// record, to be sent as it is. Empty for a client that has begun with an alert of its own: it has gone.
#[must_use]
pub fn alert(bytes: &[u8], why: Why) -> Vec<u8> {
    let mut acceptor = Acceptor::default();
    let (mut left, mut record) = (bytes, Vec::new());
    while !left.is_empty() && acceptor.read_tls(&mut left).is_ok_and(|length| length > 0) {
        match acceptor.accept() {
            Ok(None) => {}
            Ok(Some(_)) => break,
            Err((_, mut alert)) => {
                // Writing to memory cannot fail.
                alert.write_all(&mut record).unwrap_or_default();
                break;
            }
        }
    }
    if record.is_empty() && bytes.first() != Some(&ALERT) {
        // rustls' acceptor has none for another message than a hello, and our limits are not its own.
        let description = match why {
            Why::NotHello => AlertDescription::UnexpectedMessage,
            Why::TooManyProtocols => AlertDescription::HandshakeFailure,
            _ => AlertDescription::DecodeError,
        };
        record.extend([ALERT, 3, 3, 0, 2, FATAL, description.into()]);
    }
    record
}

/// What rustls makes of these bytes; `None`: not enough of them.
fn ask(bytes: &[u8]) -> Option<Progress> {
    let mut acceptor = Acceptor::default();
    let mut left = bytes;
    while !left.is_empty() {
        match acceptor.read_tls(&mut left) {
            Ok(0) => return None,
            Ok(_) => {}
            // Its buffer is full: 65,535 bytes of one message.
            Err(_) => return Some(Progress::Refused(Why::TooLong)),
        }
        match acceptor.accept() {
            Ok(None) => {}
            Ok(Some(accepted)) => return Some(said(&accepted.client_hello())),
            Err((error, _alert)) => return Some(judge(&error)),
        }
    }
    None
}

fn said(hello: &ClientHello<'_>) -> Progress {
    let mut alpn = Vec::new();
    for protocol in hello.alpn().into_iter().flatten() {
        if alpn.len() == PROTOCOLS {
            return Progress::Refused(Why::TooManyProtocols);
        }
        alpn.push(protocol.into());
    }
    let sni = hello.server_name().map(|name| name.strip_suffix('.').unwrap_or(name));
    Progress::Done(Said { sni: sni.map(|name| name.to_ascii_lowercase().into_boxed_str()), alpn })
}

/// What an error of rustls means for routing: which hellos are ill-formed, and which are merely not for it.
fn judge(error: &Error) -> Progress {
    Progress::Refused(match error {
        Error::PeerIncompatible(what) => return Progress::NotLiked(dislike(what)),
        Error::InvalidMessage(what) => invalid(what),
        Error::PeerMisbehaved(PeerMisbehaved::ServerNameMustContainOneHostName) => Why::ServerName,
        Error::InappropriateMessage { .. } | Error::InappropriateHandshakeMessage { .. } => Why::NotHello,
        // Among these: other handshake messages in the hello's last record.
        _ => Why::Malformed,
    })
}

fn dislike(what: &PeerIncompatible) -> Dislike {
    match what {
        PeerIncompatible::SignatureAlgorithmsExtensionRequired => Dislike::SignatureAlgorithms,
        PeerIncompatible::NullCompressionRequired => Dislike::Compression,
        _ => Dislike::Other,
    }
}

fn invalid(what: &InvalidMessage) -> Why {
    match what {
        InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion => Why::NotTls,
        InvalidMessage::InvalidEmptyPayload => Why::EmptyRecord,
        InvalidMessage::HandshakePayloadTooLarge => Why::TooLong,
        InvalidMessage::InvalidServerName => Why::ServerName,
        InvalidMessage::DuplicateExtension(_) => Why::RepeatedExtension,
        InvalidMessage::UnexpectedMessage(_) => Why::NotHello,
        _ => Why::Malformed,
    }
}

//! The ClientHello, looked at and left where it is.

use rustix::net::SendFlags;
use tokio::time::Instant;

use super::{Look, ended, peruse, take};
use crate::{
    proxy::{relay::Watched, session::Books},
    state::Entry,
    telemetry::{Cause, End, Side, Stage},
    wire::hello::{self, Hello, Progress, Said, Why},
};

/// The client has said this.
pub(super) fn heard(books: &mut Books, said: Said) {
    let told = books.tell_more();
    (told.sni, told.alpn) = (said.sni, said.alpn);
}

/// How a session ends whose client has sent no hello.
pub(super) fn refused(books: &mut Books, why: Why) -> End {
    books.turn_away(why.as_str(), "the client sent no ClientHello that can be routed".into());
    ended(Side::Client, Stage::Accept, Cause::BadHello)
}

/// Reads the server name and the protocols. A ClientHello that rustls does not read to its end goes the way of those that
/// name nothing; what is none ends the session, with an alert where TLS ends here.
pub(super) async fn read(
    client: &Watched<'_>,
    books: &mut Books,
    entry: &Entry,
    deadline: Instant,
) -> Result<(), End> {
    let mut begun = Hello::new(entry.hello_bytes);
    let mut no_hello = None;
    let said = peruse(client, entry.hello_bytes, deadline, |bytes| match begun.look(bytes) {
        Progress::More => Ok(Look::More),
        Progress::Done(said) => Ok(Look::Found(Some(said))),
        // Its names are not known; an endpoint may understand it, and rustls tells the client what is wrong.
        Progress::NotLiked(_) => Ok(Look::Found(None)),
        Progress::Refused(why) => {
            let alert = if entry.tls.is_some() { hello::alert(bytes, why) } else { Vec::new() };
            no_hello = Some((why, bytes.len(), alert));
            Err(ended(Side::Client, Stage::Accept, Cause::BadHello))
        }
    })
    .await;
    if let Some((why, length, alert)) = no_hello {
        if !alert.is_empty() {
            // Bytes that nobody has read would turn the end that follows into a reset, and that could overtake the alert.
            take(client, length).unwrap_or_default();
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            rustix::net::send(client.get_ref(), &alert, flags).unwrap_or_default();
        }
        return Err(refused(books, why));
    }
    if let Some(said) = said? {
        heard(books, said);
    }
    books.show();
    Ok(())
}

//! The ClientHello, looked at and left where it is.

use rustix::net::SendFlags;
use tokio::time::Instant;

use super::{Look, ended, peruse, take};
use crate::{
    proxy::{relay::Watched, session::Books},
    state::Entry,
    telemetry::{Cause, End, Side, Stage},
    wire::hello::{self, Hello, Progress},
};

/// Takes what a look at a client's first bytes has come to. True once nothing more has to come: a ClientHello that rustls
/// does not read to its end goes the way of those that name nothing, as an endpoint may understand it.
///
/// # Errors
/// What came is no ClientHello.
pub(super) fn learn(books: &mut Books, progress: Progress) -> Result<bool, End> {
    match progress {
        Progress::More => return Ok(false),
        Progress::Done(said) => {
            let told = books.tell_more();
            (told.sni, told.alpn) = (said.sni, said.alpn);
        }
        Progress::NotLiked(_) => {}
        Progress::Refused(why) => {
            books.turn_away(why.as_str(), "the client sent no ClientHello that can be routed".into());
            return Err(ended(Side::Client, Stage::Accept, Cause::BadHello));
        }
    }
    books.note().hello = true;
    Ok(true)
}

/// Reads the server name and the protocols. What is no hello ends the session, with an alert where TLS ends here; rustls
/// tells the client what is wrong with one that it does not read to its end.
pub(super) async fn read(
    client: &Watched<'_>,
    books: &mut Books,
    entry: &Entry,
    deadline: Instant,
) -> Result<(), End> {
    let mut begun = Hello::new(entry.hello_bytes);
    let mut answer = None;
    let found = peruse(client, entry.hello_bytes, deadline, |bytes| {
        let progress = begun.look(bytes);
        if let (Progress::Refused(why), Some(_)) = (&progress, &entry.tls) {
            answer = Some((bytes.len(), hello::alert(bytes, *why)));
        }
        Ok(if learn(books, progress)? { Look::Found(()) } else { Look::More })
    })
    .await;
    if let Some((length, alert)) = answer.filter(|(_, alert)| !alert.is_empty()) {
        // Bytes that nobody has read would turn the end that follows into a reset, and that could overtake the alert.
        take(client, length).unwrap_or_default();
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        rustix::net::send(client.get_ref(), &alert, flags).unwrap_or_default();
    }
    found?;
    books.show();
    Ok(())
}

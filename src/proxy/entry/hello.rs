//! The ClientHello, looked at and left where it is.

use tokio::time::Instant;

use super::{Look, ended, peruse};
use crate::{
    proxy::{relay::Watched, session::Books},
    state::Entry,
    telemetry::{Cause, End, Side, Stage},
    wire::hello::{Hello, Progress, Said},
};

/// Reads the server name and the protocols. Where TLS does not end here, what is no ClientHello goes the way of those that
/// name nothing.
pub(super) async fn read(
    client: &Watched<'_>,
    books: &mut Books,
    entry: &Entry,
    deadline: Instant,
) -> Result<(), End> {
    let mut hello = Hello::new(entry.hello_bytes);
    let mut refused = None;
    let said = peruse(client, entry.hello_bytes, deadline, |bytes| match hello.look(bytes) {
        Progress::More => Ok(Look::More),
        Progress::Done(said) => Ok(Look::Found(Some(said))),
        // Its names are not known; an endpoint may understand it, and rustls tells the client what is wrong.
        Progress::NotLiked(_) => Ok(Look::Found(None)),
        Progress::Refused(why) => {
            refused = Some(why);
            Err(ended(Side::Client, Stage::Accept, Cause::BadHello))
        }
    })
    .await;
    if let Some(why) = refused {
        books.turn_away(why.as_str(), "the client sent no ClientHello that can be routed".into());
    }
    if let Some(Said { sni, alpn }) = said? {
        let told = books.tell_more();
        (told.sni, told.alpn) = (sni, alpn);
    }
    books.show();
    Ok(())
}

//! A question over HTTP/1.1: one request, one connection, an answer of bounded size.

use std::{
    error::Error,
    future::poll_fn,
    io,
    pin::{Pin, pin},
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::{
    Request, Response, Uri,
    body::{Body, Incoming},
    client::conn::http1,
    header,
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncReadExt, ReadBuf, Take},
    time::timeout_at,
};

use super::{
    Limit, Outcome,
    answer::{Answer, LIMIT, quote},
    failed,
    secure::Stream,
};

/// The largest head of an answer, in bytes; hyper wants 8 KiB at the least, and takes no more than 100 lines.
const HEAD: usize = 16 * 1024;

/// The most bytes that are read of an answer, with interim ones (100 to 199) and the framing of small chunks.
const WHOLE: usize = HEAD + 8 * LIMIT;

/// How we name ourselves, for the logs of those who are asked.
const USER_AGENT: &str = concat!("twinspan-probe/", env!("CARGO_PKG_VERSION"));

/// What the answer must be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted<'a> {
    /// Accepted status codes, as inclusive ranges.
    pub(super) status: &'a [(u16, u16)],
    /// Text that the body must contain.
    pub(super) body: Option<&'a str>,
}

/// The question. Words that cannot be put into a request are our fault, not the endpoint's.
pub(super) fn request(path: &str, host: &str) -> Result<Request<Empty<Bytes>>, Outcome> {
    // Only ever the origin form: no authority can slip in by way of the path.
    let uri = Uri::builder().path_and_query(path).build();
    uri.and_then(|uri| {
        Request::get(uri)
            .header(header::HOST, host)
            .header(header::USER_AGENT, USER_AGENT)
            .header(header::CONNECTION, "close")
            .body(Empty::new())
    })
    .map_err(|error| Outcome::Local(format!("the request cannot be made: {error}")))
}

/// Asks over `stream` and judges the answer.
pub(super) async fn ask(
    stream: Stream,
    request: Request<Empty<Bytes>>,
    wanted: Wanted<'_>,
    limit: Limit,
) -> Result<(), Outcome> {
    let builder = &mut http1::Builder::new();
    builder.max_header_size(HEAD).max_buf_size(HEAD);
    let (read, write) = tokio::io::split(stream);
    let stream = tokio::io::join(Bounded(read.take(WHOLE as u64)), write);
    let (mut sender, connection) =
        builder.handshake(TokioIo::new(stream)).await.map_err(|error| refused(&error))?;
    let exchange = async {
        let answer = timeout_at(limit.at, sender.send_request(request)).await;
        let answer = answer.map_err(|_| Outcome::Bad(format!("no answer within {limit}")))?;
        judge(answer.map_err(|error| refused(&error))?, wanted, limit).await
    };
    let mut exchange = pin!(exchange);
    let mut connection = pin!(connection);
    tokio::select! {
        biased;
        result = &mut exchange => result,
        // All was read, or reading failed: the exchange learns of it through its own channel.
        _ = poll_fn(|cx| connection.as_mut().poll(cx)) => exchange.await,
    }
}

async fn judge(answer: Response<Incoming>, wanted: Wanted<'_>, limit: Limit) -> Result<(), Outcome> {
    let status = answer.status().as_u16();
    if !wanted.status.iter().any(|(low, high)| (*low..=*high).contains(&status)) {
        return Err(Outcome::Wrong(format!("status {status}, wanted {}", ranges(wanted.status))));
    }
    let mut body = answer.into_body();
    if let Some(text) = wanted.body {
        return search(&mut body, text.as_bytes(), limit).await;
    }
    if body.size_hint().upper().is_some_and(|size| size <= LIMIT as u64) {
        // Closing with bytes unread would be a reset, and a line in the endpoint's log. The verdict stands.
        let rest = async { while body.frame().await.is_some_and(|frame| frame.is_ok()) {} };
        drop(timeout_at(limit.at, rest).await);
    }
    Ok(())
}

/// Reads the body until `text` is seen.
async fn search(body: &mut Incoming, text: &[u8], limit: Limit) -> Result<(), Outcome> {
    let mut seen = Answer::default();
    while !seen.contains(text) {
        if seen.is_full() {
            let size = LIMIT / 1024;
            return Err(Outcome::Wrong(format!("the first {size} KiB of the body lack {}", quote(text))));
        }
        match timeout_at(limit.at, body.frame()).await {
            Err(_) => return Err(Outcome::Bad(format!("no {} in the body within {limit}", quote(text)))),
            Ok(Some(Err(error))) => return Err(refused(&error)),
            Ok(Some(Ok(frame))) => seen.add(frame.data_ref().map_or(&[], |bytes| bytes)),
            Ok(None) => {
                let got = quote(seen.bytes());
                return Err(Outcome::Wrong(format!("body lacks {}: got {got}", quote(text))));
            }
        }
    }
    Ok(())
}

/// Fails where it has given all that it may, and not before.
struct Bounded<R>(Take<R>);

impl<R: AsyncRead + Unpin> AsyncRead for Bounded<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.0.limit() == 0 {
            return Poll::Ready(Err(io::ErrorKind::FileTooLarge.into()));
        }
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

/// What hyper's error says about the endpoint. Its text holds no bytes of the answer.
fn refused(error: &hyper::Error) -> Outcome {
    let io = error.source().and_then(|source| source.downcast_ref::<io::Error>());
    if let Some(io) = io.filter(|io| io.raw_os_error().is_some()) {
        return failed("read", io);
    }
    if io.is_some_and(|io| io.kind() == io::ErrorKind::FileTooLarge) {
        return Outcome::Bad(format!("{} KiB without the end of the answer", WHOLE / 1024));
    }
    let short = error.is_incomplete_message() || error.is_canceled() || error.is_closed();
    Outcome::Bad(if short || io.is_some_and(|io| io.kind() == io::ErrorKind::UnexpectedEof) {
        String::from("closed before the end of the answer")
    } else if error.is_parse_too_large() {
        format!("the head of the answer is longer than {} KiB or 100 lines", HEAD / 1024)
    } else {
        format!("not an HTTP answer: {}", io.map_or_else(|| error.to_string(), io::Error::to_string))
    })
}

fn ranges(ranges: &[(u16, u16)]) -> String {
    let words = ranges.iter().map(|(low, high)| match low == high {
        true => low.to_string(),
        false => format!("{low}-{high}"),
    });
    words.collect::<Vec<_>>().join(", ")
}

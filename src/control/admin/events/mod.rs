//! `GET /api/v1/events`: the last events as a list, or all to come as server-sent events. A stream reads the journal's
//! ring whenever its reader has taken what came before, so a slow reader holds no memory; what the ring has lost by then
//! is told to it as a number.

#[cfg(test)]
mod tests;

use std::{
    convert::Infallible,
    fmt::{self, Write as _},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use axum::{
    Json,
    body::Body,
    extract::{Extension, Query, State, rejection::QueryRejection},
    http::{
        HeaderMap, StatusCode,
        header::{ACCEPT, CONNECTION, CONTENT_TYPE},
    },
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use hyper::body::Frame;
use serde::Deserialize;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::{Instant, sleep_until},
};

use super::{
    lease::Lease,
    routes::{Refusal, Site},
    status,
};
use crate::control::{Event, Journal, Selection};

/// Events that are given unless asked for another number.
const EVENTS: usize = 100;

/// Streams at once. They come on top of the connections that may wait for an answer.
pub(super) const FOLLOWERS: usize = 64;

/// A stream that has nothing to say says so in this interval: a reader can tell silence from death.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// Events in one piece of a stream.
const PIECE: usize = 16;

/// Header of a client that goes on where it was.
const LAST_EVENT_ID: &str = "last-event-id";

/// The query, as it was written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Asked {
    last: Option<String>,
    since_id: Option<String>,
    since: Option<String>,
    kind: Option<String>,
    pool: Option<String>,
    cloud: Option<String>,
    min_level: Option<String>,
    follow: Option<String>,
}

/// The query, understood.
#[derive(Clone, Debug, Default)]
struct Wish {
    selection: Selection,
    last: Option<usize>,
    not_before: Option<SystemTime>,
    after: Option<Place>,
}

/// A place in a timeline: `12`, or `1763803000123-12` to say of which run of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    run: Option<u64>,
    id: u64,
}

/// Answers with a list or a stream.
pub(super) async fn show(
    State(site): State<Site>,
    Extension(lease): Extension<Lease>,
    asked: Result<Query<Asked>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let Query(asked) = asked.map_err(|error| bad(error.body_text()))?;
    let follow = asked.follow()? || headers.get(ACCEPT).is_some_and(|accept| wants_stream(accept.as_bytes()));
    let mut wish = asked.understand().map_err(bad)?;
    if !follow {
        let (_, events) = wish.events(&site.view.journal);
        return Ok(Json(events.iter().map(|event| status::event(event)).collect::<Vec<_>>()).into_response());
    }
    if let Some(id) = headers.get(LAST_EVENT_ID) {
        let place = id.to_str().ok().and_then(Place::parse);
        wish.after = Some(place.ok_or_else(|| bad("`Last-Event-ID` must be one of this stream".into()))?);
    }
    let Ok(seat) = Arc::clone(&site.seats).try_acquire_owned() else {
        let full = format!("{FOLLOWERS} streams of events are open already");
        return Err(Refusal(StatusCode::SERVICE_UNAVAILABLE, full));
    };
    lease.stream();
    let stream = Stream::new(Feed::new(site, wish, lease, seat));
    // Nobody asks a second question on this connection.
    let head = [(CONTENT_TYPE, "text/event-stream"), (CONNECTION, "close")];
    Ok((head, Body::new(stream)).into_response())
}

fn bad(why: String) -> Refusal {
    Refusal(StatusCode::BAD_REQUEST, why)
}

fn wants_stream(accept: &[u8]) -> bool {
    accept.split(|byte| *byte == b',').any(|kind| {
        let kind = kind.split(|byte| *byte == b';').next().unwrap_or_default();
        kind.trim_ascii().eq_ignore_ascii_case(b"text/event-stream")
    })
}

impl Asked {
    fn follow(&self) -> Result<bool, Refusal> {
        match self.follow.as_deref() {
            None | Some("false" | "0") => Ok(false),
            Some("" | "true" | "1") => Ok(true),
            Some(_) => Err(bad("`follow` must be true or false".into())),
        }
    }

    fn understand(self) -> Result<Wish, String> {
        fn read<T>(
            text: Option<String>,
            read: impl FnOnce(&str) -> Option<T>,
            what: &str,
        ) -> Result<Option<T>, String> {
            text.map(|text| read(&text).ok_or_else(|| what.to_owned())).transpose()
        }
        let words = self.kind.as_deref().unwrap_or_default().split(',').filter(|word| !word.is_empty());
        let kinds = words.map(str::parse).collect::<Result<_, _>>();
        let min_level = self.min_level.as_deref().map(str::parse).transpose();
        let age = read(
            self.since,
            |text| humantime::parse_duration(text).ok(),
            "`since` must be a time span such as 10m",
        )?;
        Ok(Wish {
            selection: Selection {
                kinds: kinds.map_err(|error| format!("`kind`: {error}"))?,
                pool: self.pool,
                cloud: self.cloud,
                min_level: min_level.map_err(|error| format!("`min_level`: {error}"))?,
            },
            last: read(self.last, |text| text.parse().ok(), "`last` must be a number of events")?,
            not_before: age.and_then(|age| SystemTime::now().checked_sub(age)),
            after: read(self.since_id, Place::parse, "`since_id` must be the number of an event")?,
        })
    }
}

impl Place {
    fn parse(text: &str) -> Option<Self> {
        let (run, id) = match text.split_once('-') {
            Some((run, id)) => (Some(run.parse().ok()?), id),
            None => (None, text),
        };
        Some(Self { run, id: id.parse().ok()? })
    }

    /// The number to go on after: everything is new to who comes from another run of the process.
    fn number(self, journal: &Journal) -> u64 {
        if self.run.is_none_or(|run| run == journal.run()) { self.id } else { 0 }
    }
}

impl Wish {
    /// The events there are, and how many went lost before them.
    fn events(&self, journal: &Journal) -> (u64, Vec<Arc<Event>>) {
        let (lost, mut events) = match self.after {
            Some(place) => journal.since(place.number(journal)),
            None => (0, journal.last(usize::MAX)),
        };
        events.retain(|event| {
            self.selection.takes(event) && self.not_before.is_none_or(|earliest| event.time >= earliest)
        });
        let all = self.after.is_some() || self.not_before.is_some();
        let last = self.last.unwrap_or(if all { usize::MAX } else { EVENTS });
        (lost, events.split_off(events.len().saturating_sub(last)))
    }
}

/// What one follower is told next.
struct Feed {
    site: Site,
    selection: Selection,
    news: watch::Receiver<u64>,
    /// The number of the last event that was looked at.
    seen: u64,
    /// Events that were lost and are not told yet.
    lost: u64,
    /// When the next heartbeat is due; none before the first word, which goes out at once.
    beat: Option<Instant>,
    lease: Lease,
    over: bool,
    _seat: OwnedSemaphorePermit,
}

impl Feed {
    fn new(site: Site, wish: Wish, lease: Lease, seat: OwnedSemaphorePermit) -> Self {
        let journal = &site.view.journal;
        // Before the ring is read, so that nothing that comes in between is overlooked.
        let news = journal.subscribe();
        let newest = journal.last(1).first().map_or(0, |event| event.id);
        let (lost, events) = wish.events(journal);
        let seen = events.first().map_or(newest, |event| event.id - 1);
        Self {
            selection: wish.selection,
            news,
            seen,
            lost,
            beat: None,
            lease,
            over: false,
            _seat: seat,
            site,
        }
    }

    /// The next piece, once there is one; `None` at the end.
    async fn next(mut self) -> Option<(Self, Bytes)> {
        self.lease.moved();
        loop {
            let place = self.place();
            let mut text = self.read();
            if self.beat.is_none() {
                // How long a browser waits before it comes back, and where it goes on if nothing comes until then.
                text.insert_str(0, &format!("retry: 1000\n{place}\n"));
            }
            if text.is_empty() {
                if self.over {
                    return None;
                }
                let beat = self.beat.unwrap_or_else(Instant::now);
                tokio::select! {
                    biased;
                    changed = self.news.changed() => {
                        self.over |= changed.is_err();
                        continue;
                    }
                    // What has been told by now is the rest.
                    () = self.lease.over() => {
                        self.over = true;
                        continue;
                    }
                    () = sleep_until(beat) => text = format!(": still here\n{}\n", self.place()),
                }
            }
            self.beat = Some(Instant::now() + HEARTBEAT);
            return Some((self, text.into()));
        }
    }

    /// Where a client is that has been told everything so far.
    fn place(&self) -> String {
        format!("id: {}-{}\n", self.site.view.journal.run(), self.seen)
    }

    /// What there is to tell now.
    fn read(&mut self) -> String {
        let journal = &self.site.view.journal;
        let (lost, mut events) = journal.since(self.seen);
        self.seen = events.last().map_or(self.seen + lost, |event| event.id);
        events.retain(|event| self.selection.takes(event));
        if let Some(later) = events.get(PIECE) {
            self.seen = later.id - 1;
            events.truncate(PIECE);
        }
        let mut text = String::new();
        let lost = std::mem::take(&mut self.lost) + lost;
        if lost > 0 {
            // Writing to a String cannot fail.
            let _ = write!(text, "event: lost\ndata: {{\"lost\":{lost}}}\n\n");
        }
        for event in &events {
            text.push_str(&framed(journal.run(), event));
        }
        text
    }
}

/// An event as server-sent events write it. JSON has no line breaks, so the data is one line whatever the text has.
fn framed(run: u64, event: &Event) -> String {
    let told = status::event(event);
    let data = serde_json::to_string(&told).unwrap_or_default();
    format!("id: {run}-{}\nevent: {}\ndata: {data}\n\n", told.id, told.kind)
}

type Next = Pin<Box<dyn Future<Output = Option<(Feed, Bytes)>> + Send>>;

/// The body of a stream. Asked for its next piece only when the one before is on its way.
struct Stream(Option<Next>);

impl Stream {
    fn new(feed: Feed) -> Self {
        Self(Some(Box::pin(feed.next())))
    }
}

impl hyper::body::Body for Stream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let Some(next) = &mut self.0 else { return Poll::Ready(None) };
        let Poll::Ready(piece) = next.as_mut().poll(cx) else { return Poll::Pending };
        let (next, bytes) =
            piece.map(|(feed, bytes)| -> (Next, Bytes) { (Box::pin(feed.next()), bytes) }).unzip();
        self.0 = next;
        Poll::Ready(bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Stream").field(&self.0.is_some()).finish()
    }
}

/// Room for every follower.
pub(super) fn seats() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(FOLLOWERS))
}

//! Single sessions: listing them, and ending one. The only thing that the admin API changes.

use std::{str::FromStr, time::Duration};

use axum::{
    Json,
    extract::{Path, Query, State, rejection::QueryRejection},
    http::{
        HeaderMap, HeaderValue, Method, StatusCode,
        header::{HOST, ORIGIN},
    },
};
use serde::Deserialize;
use tokio::time::Instant;

use super::routes::{Refusal, Site};
use crate::{
    api::{LiveSession, LiveSessions},
    ids::SessionHandle,
    state::{self, NotEnded, SessionFilter, Whereabouts},
};

/// Sessions in an answer unless asked for another number.
const LIMIT: usize = 100;

/// The most sessions in an answer: they are some megabytes.
const MOST: usize = 10_000;

/// Tells what a browser's request comes from: `same-origin` and `none` are the operator's own doing.
const FETCH_SITE: &str = "sec-fetch-site";

/// The query of a listing, as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    limit: Option<String>,
    pool: Option<String>,
    endpoint: Option<String>,
    cloud: Option<String>,
    client: Option<String>,
    older_than: Option<String>,
}

/// `GET /api/v1/sessions`.
pub(super) async fn list(
    State(site): State<Site>,
    query: Result<Query<Wanted>, QueryRejection>,
) -> Result<Json<LiveSessions>, Refusal> {
    let Query(wanted) = query.map_err(|rejection| wrong(&rejection.body_text()))?;
    let (filter, limit) = wanted.read()?;
    let population = site.view.shared.sockets.sessions(filter, limit).await;
    let now = Instant::now();
    Ok(Json(LiveSessions {
        sessions: population.sessions.iter().map(|session| told(session, now)).collect(),
        total: population.matching,
        silent_workers: population.silent,
    }))
}

/// `DELETE /api/v1/sessions/{handle}`.
pub(super) async fn end(
    State(site): State<Site>,
    Path(handle): Path<String>,
) -> Result<Json<LiveSession>, Refusal> {
    let handle: SessionHandle = handle.parse().map_err(|error| wrong(&format!("{error}")))?;
    let ended = site.view.shared.sockets.end_session(handle).await.map_err(|reason| match reason {
        NotEnded::Gone => Refusal(
            StatusCode::NOT_FOUND,
            format!("no session has the handle {handle}: it has ended, or changed its place"),
        ),
        NotEnded::Silent => Refusal(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("worker {} did not answer within a second; it may still end the session", handle.worker),
        ),
    })?;
    let told = told(&ended, Instant::now());
    tracing::info!(session = told.session, %handle, client = %told.client, "an operator has ended a session");
    Ok(Json(told))
}

/// Refuses what a web page may have a visitor's browser ask for: whatever changes something is for the operator alone.
pub(super) fn refuse_foreign_pages(method: &Method, headers: &HeaderMap) -> Result<(), Refusal> {
    if method.is_safe() {
        return Ok(());
    }
    let ours = |origin: &HeaderValue| {
        let authority = origin.as_bytes().strip_prefix(b"http://");
        authority.is_some() && authority == headers.get(HOST).map(HeaderValue::as_bytes)
    };
    let near = |site: &HeaderValue| matches!(site.as_bytes(), b"same-origin" | b"none");
    if headers.get_all(ORIGIN).iter().all(ours) && headers.get_all(FETCH_SITE).iter().all(near) {
        return Ok(());
    }
    Err(Refusal(StatusCode::FORBIDDEN, "a web page of another origin may change nothing here".into()))
}

impl Wanted {
    fn read(self) -> Result<(SessionFilter, usize), Refusal> {
        let limit = match self.limit.as_deref().map(str::parse) {
            None => LIMIT,
            Some(Ok(limit @ 0..=MOST)) => limit,
            Some(_) => return Err(wrong(&format!("`limit` must be a number of sessions, at most {MOST}"))),
        };
        let filter = SessionFilter {
            pool: self.pool.as_deref().map(Into::into),
            endpoint: whereabouts("endpoint", self.endpoint.as_deref())?,
            cloud: self.cloud.as_deref().map(Into::into),
            client: whereabouts("client", self.client.as_deref())?,
            begun_by: self.older_than.as_deref().map(begun_by).transpose()?,
        };
        Ok((filter, limit))
    }
}

fn whereabouts(key: &str, text: Option<&str>) -> Result<Option<Whereabouts>, Refusal> {
    text.map(Whereabouts::from_str).transpose().map_err(|error| wrong(&format!("`{key}`: {error}")))
}

/// The time at which a session of this age began.
fn begun_by(age: &str) -> Result<Instant, Refusal> {
    let age: Duration =
        humantime::parse_duration(age).map_err(|_| wrong("`older_than` must be a time such as 90s or 2h"))?;
    Instant::now()
        .checked_sub(age)
        .ok_or_else(|| wrong("`older_than` is longer than this machine has been up"))
}

fn wrong(what: &str) -> Refusal {
    Refusal(StatusCode::BAD_REQUEST, what.into())
}

fn told(session: &state::LiveSession, now: Instant) -> LiveSession {
    let endpoint = session.endpoint.as_ref();
    LiveSession {
        handle: session.handle.to_string(),
        session: session.session,
        client: session.client.to_string(),
        listener: session.listener.to_string(),
        pool: session.pool.as_ref().map(ToString::to_string),
        endpoint: endpoint.map(|endpoint| endpoint.address.to_string()),
        cloud: endpoint.map(|endpoint| endpoint.cloud.to_string()),
        generation: session.generation.0,
        stage: session.stage.as_str().into(),
        age_seconds: now.saturating_duration_since(session.started).as_secs_f64(),
        to_upstream: session.to_upstream,
        to_client: session.to_client,
        attempts: session.attempts,
    }
}

//! Paths and who may ask for them. Only the end of a session changes anything: every other path is GET, and any other
//! method is told so.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Json, Router,
    body::Body,
    extract::{Request, State},
    http::{
        HeaderMap, HeaderValue, StatusCode, Uri, Version,
        header::{
            CACHE_CONTROL, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, TRANSFER_ENCODING,
            X_CONTENT_TYPE_OPTIONS,
        },
        uri::Authority,
    },
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{delete, get},
};
use tokio::sync::Semaphore;
use tracing::error;

use super::{Kind, events, metrics, rates::Sampler, readiness, sessions, status};
use crate::{
    api::{Problem, Status},
    config,
    control::View,
};

/// The largest body of a request that is read, in bytes.
const BODY: u64 = 64 * 1024;

const TEXT: &str = "text/plain; charset=utf-8";

/// What answers are made from.
#[derive(Clone)]
pub(super) struct Site {
    pub(super) view: Arc<View>,
    pub(super) sampler: Arc<Sampler>,
    /// Room for those who follow events.
    pub(super) seats: Arc<Semaphore>,
}

/// A request that is not answered as wished.
pub(super) struct Refusal(pub(super) StatusCode, pub(super) String);

/// The paths of one server. `bound` is its TCP address; a unix socket has none.
pub(super) fn router(
    kind: Kind,
    view: Arc<View>,
    sampler: Arc<Sampler>,
    bound: Option<SocketAddr>,
) -> Router {
    let telemetry = Router::new()
        .route("/livez", get(async || ([(CONTENT_TYPE, TEXT)], "ok\n")))
        .route("/healthz", get(async || ([(CONTENT_TYPE, TEXT)], "ok\n")))
        .route("/readyz", get(ready))
        .route("/metrics", get(scrape));
    let all = match kind {
        Kind::Telemetry => telemetry,
        Kind::Admin => telemetry
            .route("/api/v1/status", get(show_status))
            .route("/api/v1/events", get(events::show))
            .route("/api/v1/sessions", get(sessions::list))
            .route("/api/v1/sessions/{handle}", delete(sessions::end))
            .route("/config", get(show_config))
            .route("/config/effective", get(show_config)),
    };
    let hosts = match (kind, bound) {
        (Kind::Admin, Some(bound)) => Some(bound),
        // Whoever can open a unix socket has its permissions; telemetry is asked under the names of pods and services.
        (Kind::Admin, None) | (Kind::Telemetry, _) => None,
    };
    all.fallback(async |uri: Uri| {
        Refusal(StatusCode::NOT_FOUND, format!("there is nothing at {}", uri.path()))
    })
    .method_not_allowed_fallback(async |uri: Uri| {
        let only = if uri.path().starts_with("/api/v1/sessions/") { "DELETE" } else { "GET" };
        Refusal(StatusCode::METHOD_NOT_ALLOWED, format!("this path takes {only} only"))
    })
    .layer(middleware::from_fn(move |request: Request, next: Next| guard(hosts, request, next)))
    .with_state(Site { view, sampler, seats: events::seats() })
}

/// What every request must pass, and what every answer carries.
async fn guard(bound: Option<SocketAddr>, request: Request, next: Next) -> Response {
    let mut response = match admissible(&request, bound) {
        Ok(()) => next.run(request).await,
        Err(refusal) => {
            let mut response = refusal.into_response();
            // A body that was not read stands in the way of the next request.
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            response
        }
    };
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

fn admissible(request: &Request, bound: Option<SocketAddr>) -> Result<(), Refusal> {
    let headers = request.headers();
    if headers.get_all(HOST).iter().count() > 1 {
        return Err(Refusal(StatusCode::BAD_REQUEST, "more than one Host header".into()));
    }
    if headers.contains_key(TRANSFER_ENCODING) {
        return Err(Refusal(StatusCode::LENGTH_REQUIRED, "a body must say its length".into()));
    }
    let length = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| length > BODY) {
        return Err(Refusal(StatusCode::PAYLOAD_TOO_LARGE, format!("a body has at most {BODY} bytes")));
    }
    sessions::refuse_foreign_pages(request.method(), headers)?;
    let Some(bound) = bound else { return Ok(()) };
    if let Some(authority) = request.uri().authority() {
        foreign(authority.host(), bound)?;
    }
    match host(headers)? {
        Some(authority) => foreign(authority.host(), bound),
        None if request.version() == Version::HTTP_11 => {
            Err(Refusal(StatusCode::BAD_REQUEST, "the Host header is missing".into()))
        }
        None => Ok(()),
    }
}

fn host(headers: &HeaderMap) -> Result<Option<Authority>, Refusal> {
    let unreadable = || Refusal(StatusCode::BAD_REQUEST, "the Host header cannot be read".into());
    let parse = |value: &HeaderValue| Authority::try_from(value.as_bytes()).map_err(|_| unreadable());
    headers.get(HOST).map(parse).transpose()
}

/// A web page may point a name of its own at a loopback address and then ask us through the visitor's browser (DNS
/// rebinding): the name gives it away.
fn foreign(host: &str, bound: SocketAddr) -> Result<(), Refusal> {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    // A name may end in the dot of the root.
    let name = bare.strip_suffix('.').unwrap_or(bare);
    let ours = match bare.parse::<std::net::IpAddr>() {
        Ok(ip) => ip.to_canonical().is_loopback() || ip.to_canonical() == bound.ip().to_canonical(),
        Err(_) => name.eq_ignore_ascii_case("localhost"),
    };
    if ours {
        return Ok(());
    }
    Err(Refusal(
        StatusCode::FORBIDDEN,
        "the Host header names neither this machine's loopback nor the admin address".into(),
    ))
}

async fn ready(State(site): State<Site>, uri: Uri) -> Response {
    let verbose = uri
        .query()
        .is_some_and(|query| query.split('&').any(|part| part.split('=').next() == Some("verbose")));
    let readiness = readiness::readiness(&site.view, verbose);
    let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, [(CONTENT_TYPE, TEXT)], readiness.text).into_response()
}

async fn scrape(State(site): State<Site>) -> Result<Response, Refusal> {
    let page = aside(move || metrics::page(&site.view)).await??;
    Ok(([(CONTENT_TYPE, metrics::CONTENT_TYPE)], page).into_response())
}

async fn show_status(State(site): State<Site>) -> Result<Json<Status>, Refusal> {
    aside(move || status::status(&site.view, &site.sampler)).await.map(Json)
}

async fn show_config(State(site): State<Site>) -> Response {
    let text = config::effective(&site.view.overview.load().config);
    ([(CONTENT_TYPE, TEXT)], text).into_response()
}

/// Work that takes as long as there are endpoints: not on the thread that times the probes.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Refusal> {
    tokio::task::spawn_blocking(work).await.map_err(|error| broken(&error))
}

fn broken(error: &dyn std::error::Error) -> Refusal {
    error!(error = %error, "an answer of the admin or telemetry listener failed");
    Refusal(StatusCode::INTERNAL_SERVER_ERROR, "the answer could not be made; the log says more".into())
}

impl From<std::fmt::Error> for Refusal {
    fn from(error: std::fmt::Error) -> Self {
        broken(&error)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response<Body> {
        let Self(status, error) = self;
        (status, Json(Problem { error })).into_response()
    }
}

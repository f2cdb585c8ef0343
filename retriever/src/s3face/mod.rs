//! The files as objects of a bucket, `s3://{bucket}/{YYYYMMDD}/{uid}`, for every client of S3: read-only, on an address
//! of its own.
//!
//! The way of a request: this file refuses what cannot be, the library checks its signature and takes it apart, [`ops`]
//! answers. [`object`] reads one file with the same functions as the HTTP interface. [`listing`] makes pages of keys:
//! [`dates`] finds the dates there are, [`view`] knows the shards of a date, [`scan`] reads their indexes, and [`window`]
//! keeps the least keys. [`query`] has the rules of names and order.

mod config;
mod dates;
mod errors;
mod keys;
mod listing;
mod object;
mod ops;
mod query;
mod scan;
mod view;
mod window;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use des_shared::clock::Clock;
use des_shared::service::{self, Drain, Lanes, Shutdown};
use futures::StreamExt;
use s3s::host::SingleDomain;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s::{S3Error, S3ErrorCode};
use tokio::net::TcpListener;

use self::errors::{refused, s3_error};
use self::listing::Listings;
use crate::deadline::Deadline;
use crate::error::Error;
use crate::metrics::RetrieverMetrics;
use crate::serve::Files;

pub use config::S3FaceConfig;
pub use keys::S3Keys;

/// How much of the body of a refused request is read, in bytes, and for how long: a client that still writes does not
/// read the answer.
const REFUSED_BODY_BYTES: usize = 8 << 20;
const REFUSED_BODY_TIME: Duration = Duration::from_secs(2);
/// A listing may take so many times as long as a file: it reads the indexes of a date, or of many.
const LISTING_TIMES: u32 = 4;

/// What the operations share.
struct Front {
    files: Arc<Files>,
    listings: Listings,
    bucket: String,
    /// Unix milliseconds. S3 wants to know when a bucket was made.
    started_ms: u64,
    metrics: RetrieverMetrics,
}

/// The S3 face, not started yet.
pub(crate) struct S3Face {
    address: SocketAddr,
    keys: Option<S3Keys>,
    door: Door,
}

/// What stands in front of the library.
#[derive(Clone)]
struct Door {
    service: S3Service,
    /// Nobody needs a key, so signatures, which nobody can check, are not looked at.
    open: bool,
    /// How long an answer may take until it begins.
    deadline: Deadline,
    metrics: RetrieverMetrics,
}

impl S3Face {
    pub(crate) fn new(
        config: S3FaceConfig,
        (files, clock): (Arc<Files>, Arc<dyn Clock>),
        (deadline, metrics): (Deadline, RetrieverMetrics),
    ) -> Self {
        let (started_ms, listings) = (clock.now_ms(), Listings::new(files.clone(), clock));
        let front = Front { files, listings, bucket: config.bucket, started_ms, metrics: metrics.clone() };
        let mut service = S3ServiceBuilder::new(front);
        if let Some(keys) = &config.keys {
            service.set_auth(keys.clone());
        }
        if let Some(domain) = config.domain.and_then(|domain| SingleDomain::new(&domain).ok()) {
            service.set_host(domain);
        }
        let door = Door { service: service.build(), open: config.keys.is_none(), deadline, metrics };
        Self { address: config.address, keys: config.keys, door }
    }

    /// Binds. What it gives back serves as long as it is polled, and ends behind `shutdown`.
    pub(crate) async fn bind(
        self,
        lanes: Lanes,
        shutdown: Shutdown,
        drain: Drain,
    ) -> io::Result<(SocketAddr, impl Future<Output = io::Result<()>> + Send + use<>)> {
        let named = |e: io::Error| {
            let why = format!("cannot listen on {} for S3: {e}; choose another with --s3-face-listen", self.address);
            io::Error::new(e.kind(), why)
        };
        let listener = TcpListener::bind(self.address).await.map_err(named)?;
        let address = listener.local_addr()?;
        // Not the words of the service itself, which scripts look for.
        tracing::info!(%address, "serving S3");
        let watch = S3Keys::watch(self.keys, self.door.metrics.clone())?;
        let router = Router::new().fallback(enter).with_state(self.door);
        let serving = async move {
            tokio::select! {
                served = service::serve_with_notice(&lanes, listener, router, shutdown, drain) => served,
                never = watch => match never {},
            }
        };
        Ok((address, serving))
    }
}

async fn enter(State(door): State<Door>, request: Request) -> Response {
    let operation = operation(request.method(), request.uri());
    let response = door.answer(request, operation).await;
    door.metrics.s3_answered(operation, response.status());
    response
}

/// What a request is for, as a word for metrics.
fn operation(method: &Method, uri: &Uri) -> &'static str {
    let path = uri.path().trim_start_matches('/');
    let of_object = path.split_once('/').is_some_and(|(_, key)| !key.is_empty());
    match (method, of_object) {
        (&Method::GET, true) => "get",
        (&Method::HEAD, true) => "head",
        (&Method::GET, false) => "list",
        (&Method::HEAD, false) => "head_bucket",
        _ => "refused",
    }
}

impl Door {
    async fn answer(&self, request: Request, operation: &str) -> Response {
        let (mut parts, body) = request.into_parts();
        if !matches!(parts.method, Method::GET | Method::HEAD) {
            read_a_little(body).await;
            let why = "this S3 interface is read-only: files are packed by jobs and deleted over HTTP";
            let mut response = xml(refused(S3ErrorCode::MethodNotAllowed, why));
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        if is_version_2(&parts.headers, &parts.uri) {
            let why = "the authorization mechanism you have provided is not supported; use AWS4-HMAC-SHA256";
            return xml(refused(S3ErrorCode::InvalidRequest, why));
        }
        if self.open {
            parts.headers.remove(header::AUTHORIZATION);
            parts.uri = without_signature(&parts.uri);
        }
        let head = parts.method == Method::HEAD;
        let limit = self.limit(&parts.headers, operation);
        let request = Request::from_parts(parts, s3s::Body::empty());
        let answer = match limit {
            Ok(limit) => self.deadline.within(limit, self.service.call(request)).await,
            Err(error) => Err(error),
        };
        match answer {
            Ok(Ok(response)) => tidy(response.map(Body::new), head),
            Ok(Err(error)) => {
                tracing::error!("a request over S3 failed: {error:?}");
                xml(S3Error::new(S3ErrorCode::InternalError))
            }
            Err(error) => tidy(xml(s3_error(&error)), head),
        }
    }

    /// How long a request may take until its answer begins. What then streams is not cut.
    fn limit(&self, headers: &HeaderMap, operation: &str) -> Result<Duration, Error> {
        let times = if operation == "list" { LISTING_TIMES } else { 1 };
        Deadline { limit: self.deadline.limit * times, passed: self.deadline.passed.clone() }.of(headers)
    }
}

/// Signatures of version 2 hang on SHA-1, and nobody needs them any more.
fn is_version_2(headers: &HeaderMap, uri: &Uri) -> bool {
    let in_header = headers.get(header::AUTHORIZATION).is_some_and(|value| value.as_bytes().starts_with(b"AWS "));
    let query = uri.query().unwrap_or_default();
    in_header || query.split('&').any(|pair| pair.starts_with("AWSAccessKeyId=") || pair.starts_with("Signature="))
}

/// A presigned URL without what was signed.
fn without_signature(uri: &Uri) -> Uri {
    let Some(query) = uri.query().filter(|query| query.contains("X-Amz-")) else { return uri.clone() };
    let kept: Vec<&str> = query.split('&').filter(|pair| !pair.starts_with("X-Amz-")).collect();
    // A part of a URI that was one before.
    format!("{}?{}", uri.path(), kept.join("&")).parse().unwrap_or_else(|_| uri.clone())
}

/// These have no body, which the library gives every error.
fn tidy(mut response: Response, head: bool) -> Response {
    if response.status() == StatusCode::NOT_MODIFIED || (head && response.status().as_u16() >= 400) {
        response.headers_mut().remove(header::CONTENT_TYPE);
        *response.body_mut() = Body::empty();
    }
    response
}

fn xml(error: S3Error) -> Response {
    match error.to_http_response() {
        Ok(response) => response.map(Body::new),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

async fn read_a_little(body: Body) {
    let mut chunks = body.into_data_stream();
    let reading = async {
        let mut seen = 0;
        while let Some(Ok(chunk)) = chunks.next().await {
            seen += chunk.len();
            if seen > REFUSED_BODY_BYTES {
                return;
            }
        }
    };
    // The answer is the same whether the client finished or not.
    let _ = tokio::time::timeout(REFUSED_BODY_TIME, reading).await;
}

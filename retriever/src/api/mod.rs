//! The HTTP interface.

mod files;
mod request;

use std::sync::Arc;

use axum::Router;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use des_shared::service::Problem;

use crate::metrics::RetrieverMetrics;
use crate::serve::Files;

/// What the handlers share.
#[derive(Clone)]
pub(crate) struct Api {
    pub(crate) files: Arc<Files>,
    pub(crate) metrics: RetrieverMetrics,
}

/// The routes of files. `{*uid}` takes everything behind the slash, further slashes included.
pub(crate) fn router(api: Api) -> Router {
    let file = || get(files::get).fallback(method_not_allowed);
    Router::new().route("/files/{*uid}", file()).route("/files/", file()).with_state(api)
}

/// Everything else.
pub(crate) async fn not_found() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "no-such-resource", "files are at /files/{uid}?created_at=<RFC 3339>")
}

async fn method_not_allowed(method: Method) -> Response {
    let detail = format!("{method} is not possible here; GET and HEAD are");
    let mut response = Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", detail).into_response();
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
    response
}

//! The HTTP interface.

mod batch;
mod deleting;
mod files;
mod request;

use std::sync::Arc;

use axum::Router;
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use des_shared::clock::Clock;
use des_shared::config::Auth;
use des_shared::service::Problem;

use crate::batch::Batches;
use crate::error::Error;
use crate::metrics::RetrieverMetrics;
use crate::serve::Files;

/// What the handlers share.
#[derive(Clone)]
pub(crate) struct Api {
    pub(crate) files: Arc<Files>,
    pub(crate) batches: Arc<Batches>,
    pub(crate) metrics: RetrieverMetrics,
    /// Who may delete; nobody when there is none.
    pub(crate) deleters: Option<Auth>,
    pub(crate) clock: Arc<dyn Clock>,
}

/// The routes of files. `{*uid}` takes everything behind the slash, further slashes included.
pub(crate) fn router(api: Api) -> Router {
    let file = || get(files::get).delete(deleting::delete).fallback(method_not_allowed);
    Router::new()
        .route("/files/{*uid}", file())
        // GET and DELETE here are about the file whose uid is `batch`.
        .route("/files/batch", file().post(batch::post))
        .route("/files/", file())
        .route("/tombstones", get(deleting::list))
        .with_state(api)
}

/// What an operator must know is logged here, once; what the client did wrong is not.
fn log(error: &Error, uri: &Uri) {
    let path: String = uri.path().chars().take(300).collect();
    match error.status() {
        StatusCode::SERVICE_UNAVAILABLE => tracing::warn!(path, "not served: {error}"),
        status if status.is_server_error() => tracing::error!(path, "not served: {error}"),
        _ => tracing::debug!(path, "not served: {error}"),
    }
}

/// Everything else.
pub(crate) async fn not_found() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "no-such-resource", "files are at /files/{uid}?created_at=<RFC 3339>")
}

async fn method_not_allowed(method: Method) -> Response {
    let detail = format!("{method} is not possible here; GET, HEAD and DELETE are");
    let mut response = Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", detail).into_response();
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD, DELETE"));
    response
}

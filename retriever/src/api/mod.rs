//! The HTTP interface.

mod batch;
mod deleting;
mod files;
mod request;

use std::ops::Deref;
use std::sync::Arc;

use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use des_shared::clock::Clock;
use des_shared::features;
use des_shared::service::{Problem, Routes};

use crate::batch::Batches;
use crate::error::Error;
use crate::metrics::RetrieverMetrics;
use crate::serve::Files;

pub(crate) use request::file_of;

/// What the handlers share. Cloned several times for each request, so it is one pointer.
#[derive(Clone)]
pub(crate) struct Api(Arc<Shared>);

/// The content of [`Api`].
pub(crate) struct Shared {
    pub(crate) files: Arc<Files>,
    pub(crate) batches: Arc<Batches>,
    pub(crate) metrics: RetrieverMetrics,
    /// `Cache-Control` of files.
    pub(crate) cache_control: HeaderValue,
    pub(crate) clock: Arc<dyn Clock>,
}

impl From<Shared> for Api {
    fn from(shared: Shared) -> Self {
        Self(Arc::new(shared))
    }
}

impl Deref for Api {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

/// The routes of files. `{*uid}` takes everything behind the slash, further slashes included. A new route is a line here
/// and `#[utoipa::path]` on its handler.
pub(crate) fn routes(api: Api) -> Routes {
    Routes::new()
        .add(files::__path_get, files::get)
        .add(deleting::__path_delete, deleting::delete)
        // GET and DELETE there are about the file whose uid is `batch`.
        .also("/files/batch", "/files/{*uid}")
        .add(batch::__path_post, batch::post)
        .add(deleting::__path_list, deleting::list)
        .schema::<deleting::Buried>()
        .schema::<deleting::Page>()
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

/// Everything else. `*` is the server itself (RFC 9110 section 9.3.7).
pub(crate) async fn not_found(method: Method, uri: Uri) -> Response {
    if method == Method::OPTIONS && uri.path() == "*" {
        return (StatusCode::NO_CONTENT, [(header::ALLOW, "GET, HEAD, DELETE, OPTIONS")]).into_response();
    }
    if !cfg!(feature = "graphql") && uri.path() == "/graphql" {
        let detail = features::missing("graphql", "GraphQL");
        return Problem::new(StatusCode::NOT_IMPLEMENTED, "not-built-in", detail).into_response();
    }
    let detail = "files are at /files/{uid}?created_at=<RFC 3339>, the interface is described at /openapi.json";
    Problem::new(StatusCode::NOT_FOUND, "no-such-resource", detail).into_response()
}

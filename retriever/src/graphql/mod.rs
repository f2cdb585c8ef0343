//! `POST /graphql`: what is known of files and shards, for those who would rather ask one question than many.
//!
//! It answers from the same functions as `HEAD /files/{uid}`, so it is never of another opinion, and no bytes of files
//! come this way. [`schema`] says what can be asked, [`find`] finds a shard, [`weigh`] refuses a query that would cost
//! too much before anything of it is run.

mod find;
mod schema;
mod weigh;

use std::collections::BTreeMap;
use std::sync::Arc;

use async_graphql::{Request, Value};
use axum::body::{Body, to_bytes};
use axum::extract::{self, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use des_shared::service::{Problem, Routes, problems};
use utoipa::IntoResponses;
use utoipa::openapi::RefOr;

use self::schema::FileSchema;
use crate::serve::Files;

/// The longest request, in bytes: the most files, with uids of usual lengths, in variables.
const MAX_BODY_BYTES: usize = 1 << 20;

/// The route.
pub(crate) fn routes(files: Arc<Files>) -> Routes {
    Routes::new().add(__path_answer, answer).with_state(schema::new(files))
}

/// A query in GraphQL: metadata of files, of many of them, and of shards. What is wrong with a query that could be read is
/// told in the answer.
#[utoipa::path(
    post,
    path = "/graphql",
    tag = "files",
    request_body(content = Object, content_type = "application/json", description = "`query`, and optionally `variables` and \
        `operationName`.", example = json!({"query": "{ __typename }"})),
    responses((status = 200, description = "`data`, `errors`.", body = Object), QueryProblems)
)]
async fn answer(State(schema): State<FileSchema>, request: extract::Request) -> Response {
    let (parts, body) = request.into_parts();
    let request = match read(&parts.headers, body).await {
        Ok(request) => request,
        Err(problem) => return problem.into_response(),
    };
    let mut answer = schema.execute(request).await;
    // What the query itself has wrong gets a kind as well.
    for error in &mut answer.errors {
        let extensions = error.extensions.get_or_insert_default();
        if extensions.get("type").is_none() {
            extensions.set("type", "/problems/query-invalid");
            extensions.set("status", 400);
        }
    }
    let bytes = serde_json::to_vec(&answer).expect("an answer always encodes");
    let mut response = Response::new(Body::from(bytes));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Reads a request whose query is small enough to be looked at closer.
async fn read(headers: &HeaderMap, body: Body) -> Result<Request, Problem> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    // A page of another origin cannot send this type without being asked first.
    if !kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json")) {
        let detail = "send {\"query\": ..., \"variables\": ...} as application/json";
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "media-type-unsupported", detail));
    }
    let too_long = |_| {
        let detail = format!("the request is longer than {MAX_BODY_BYTES} bytes, or broke off");
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "request-too-large", detail)
    };
    let bytes = to_bytes(body, MAX_BODY_BYTES).await.map_err(too_long)?;
    let invalid = |why: String| Problem::new(StatusCode::BAD_REQUEST, "query-invalid", why);
    let mut request: Request =
        serde_json::from_slice(&bytes).map_err(|e| invalid(format!("the body is not a GraphQL request: {e}")))?;
    weigh::check_text(&request.query).map_err(&invalid)?;
    let document = async_graphql::parser::parse_query(&request.query).map_err(|e| invalid(e.to_string()))?;
    weigh::check_document(&document).map_err(invalid)?;
    request.set_parsed_query(document);
    // Nobody here reads these.
    request.extensions.0.clear();
    Ok(request)
}

/// What can go wrong before there is a query.
struct QueryProblems;

impl IntoResponses for QueryProblems {
    fn responses() -> BTreeMap<String, RefOr<utoipa::openapi::Response>> {
        problems(&[
            (StatusCode::BAD_REQUEST, "The body is no query, or one that asks for too much."),
            (StatusCode::UNAUTHORIZED, "A key is asked for."),
            (StatusCode::FORBIDDEN, "The key may not read."),
            (StatusCode::PAYLOAD_TOO_LARGE, "No query is that long."),
            (StatusCode::UNSUPPORTED_MEDIA_TYPE, "The body is not said to be JSON."),
            (StatusCode::TOO_MANY_REQUESTS, "The key is used too often."),
            (StatusCode::SERVICE_UNAVAILABLE, "It took too long."),
        ])
    }
}

/// An error of reading, with the kind and the status REST has for it.
fn refused(error: &crate::error::Error) -> async_graphql::Error {
    use async_graphql::ErrorExtensions;
    if error.status().is_server_error() {
        tracing::warn!("not answered: {error}");
    }
    async_graphql::Error::new(error.told()).extend_with(|_, extensions| {
        extensions.set("type", format!("/problems/{}", error.kind()));
        extensions.set("status", error.status().as_u16());
        if let Some(seconds) = error.retry_after_s() {
            extensions.set("retryAfter", Value::from(seconds));
        }
    })
}

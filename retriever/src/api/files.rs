//! `GET` and `HEAD /files/{uid}`.

use std::collections::BTreeMap;
use std::time::Instant;

use axum::body::Body as HttpBody;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, Method, Response as HttpResponse, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use des_shared::service::problems;
use futures::TryStreamExt;
use utoipa::IntoResponses;
use utoipa::openapi::{ContentBuilder, HeaderBuilder, RefOr, ResponseBuilder};

use super::{Api, request};
use crate::conditions::http_date;
use crate::error::Error;
use crate::represent;
use crate::serve::{Answer, Body};

/// Under what a browser may do with a file that it could run: show it, with its own styles, and nothing else. Files come
/// from users and share an origin with this interface.
const HARMLESS: HeaderValue =
    HeaderValue::from_static("sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:");

/// The bytes of a file, or of a part of it. HEAD answers the same from the index alone.
#[utoipa::path(
    method(get, head),
    path = "/files/{*uid}",
    tag = "files",
    params(
        ("uid" = String, Path, description = "The uid, percent-encoded as UTF-8. A slash in it may be sent as it is or as \
            %2F; where a component of it is . or .., only %2F keeps clients from resolving it.", example = "a/b.json"),
        ("created_at" = String, Query, format = DateTime, description = "The file's own, RFC 3339. A date or an offset whose plus has become \
            a space is understood.", example = "2025-03-10T12:00:00Z"),
        ("download" = Option<String>, Query, description = "Makes a browser save the file, under this name or, without a \
            value, under the uid's."),
        ("Range" = Option<String>, Header, description = "One range of bytes of the file itself; several are answered \
            with the whole."),
        ("If-Match" = Option<String>, Header), ("If-None-Match" = Option<String>, Header),
        ("If-Modified-Since" = Option<String>, Header), ("If-Unmodified-Since" = Option<String>, Header),
        ("If-Range" = Option<String>, Header),
        ("Accept-Encoding" = Option<String>, Header, description = "With zstd, a frame comes as it is stored."),
    ),
    responses(FileAnswers)
)]
pub(super) async fn get(State(api): State<Api>, method: Method, uri: Uri, headers: HeaderMap) -> Response {
    let (in_flight, began) = (api.metrics.request_began(), Instant::now());
    let response = match answer(&api, &method, &uri, &headers).await {
        Ok(response) => response,
        Err(error) => {
            super::log(&error, &uri);
            error.into_response()
        }
    };
    api.metrics.request_answered(response.status(), began.elapsed());
    drop(in_flight);
    response
}

/// What a file is answered with: anything, and what can go wrong.
struct FileAnswers;

impl IntoResponses for FileAnswers {
    fn responses() -> BTreeMap<String, RefOr<utoipa::openapi::Response>> {
        let mut all = problems(&[
            (StatusCode::BAD_REQUEST, "The uid is not UTF-8, or created_at is missing or no moment."),
            (StatusCode::UNAUTHORIZED, "A key is asked for."),
            (StatusCode::NOT_FOUND, "There is no such file."),
            (StatusCode::NOT_ACCEPTABLE, "Accept-Encoding refuses every form of the file."),
            (StatusCode::GONE, "The file was deleted."),
            (StatusCode::PRECONDITION_FAILED, "It is another version than If-Match or If-Unmodified-Since ask for."),
            (StatusCode::URI_TOO_LONG, "No uid is that long."),
            (StatusCode::RANGE_NOT_SATISFIABLE, "The range lies outside; Content-Range says the size."),
            (StatusCode::INTERNAL_SERVER_ERROR, "The file cannot be served as this service is configured."),
            (StatusCode::BAD_GATEWAY, "The stored bytes are damaged. They are never served."),
            (StatusCode::SERVICE_UNAVAILABLE, "The zone does not answer; Retry-After says when to ask again."),
        ]);
        let header = |about: &str| HeaderBuilder::new().description(Some(about)).build();
        let answer = |status: StatusCode, about: &str| {
            let answer = ResponseBuilder::new()
                .description(about)
                .header("ETag", header("Strong; another one for each encoding."))
                .header("Last-Modified", header("When the job of the file's shard was accepted."))
                .header("Cache-Control", header("Usually no-cache."))
                .header("Vary", header("Accept-Encoding"));
            (status.as_str().to_owned(), answer)
        };
        let anything = || ContentBuilder::new().build();
        let (ok, whole) = answer(StatusCode::OK, "The file.");
        all.insert(ok, whole.content("*/*", anything()).into());
        let (partial, part) =
            answer(StatusCode::PARTIAL_CONTENT, "The part that Range names; Content-Range says which.");
        all.insert(partial, part.content("*/*", anything()).into());
        let (known, nothing) = answer(StatusCode::NOT_MODIFIED, "The client has it already.");
        all.insert(known, nothing.into());
        all
    }
}

async fn answer(api: &Api, method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<Response, Error> {
    let wanted = request::wanted(method, uri, headers)?;
    let download = request::download(uri)?;
    let answer = api.files.answer(&wanted).await?;
    let length = HeaderValue::from(answer.length);
    let mut response = into_http(api, answer);
    if wanted.head {
        // Also of a 304, where the framework would say that it is 0 (RFC 9110 section 8.6).
        response.headers_mut().insert(header::CONTENT_LENGTH, length);
    }
    if let Some(name) = download {
        let name = if name.is_empty() { &wanted.uid } else { &name };
        put(response.headers_mut(), header::CONTENT_DISPOSITION, &represent::attachment(name));
    }
    Ok(response)
}

fn into_http(api: &Api, answer: Answer) -> Response {
    let mut response = HttpResponse::new(HttpBody::empty());
    *response.status_mut() = answer.status;
    let headers = response.headers_mut();
    put(headers, header::ETAG, &answer.etag);
    headers.insert(header::CACHE_CONTROL, api.cache_control.clone());
    headers.insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
    if let Some(modified) = answer.modified_s {
        // No date may lie in the future (RFC 9110 section 8.8.2.1), whatever the clock said of whoever packed it.
        put(headers, header::LAST_MODIFIED, &http_date(modified.min(api.clock.now_ms() / 1000)));
    }
    if answer.status == StatusCode::NOT_MODIFIED {
        return response;
    }
    put(headers, header::CONTENT_TYPE, &answer.content_type);
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if !represent::is_passive(&answer.content_type) {
        headers.insert(header::CONTENT_SECURITY_POLICY, HARMLESS);
    }
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(answer.length));
    if answer.zstd {
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("zstd"));
    }
    if let Some((range, size)) = &answer.part {
        put(headers, header::CONTENT_RANGE, &format!("bytes {}-{}/{size}", range.start, range.end - 1));
    }
    *response.body_mut() = match answer.body {
        Body::Empty => HttpBody::empty(),
        Body::Bytes(bytes) => HttpBody::from(bytes),
        Body::Stream(stream) => {
            let metrics = api.metrics.clone();
            // An error here breaks the connection off before Content-Length is reached, so nobody takes the file for
            // whole.
            HttpBody::from_stream(stream.inspect_err(move |error| {
                metrics.answer_broken_off();
                tracing::error!("an answer was broken off: {error}");
            }))
        }
    };
    response
}

/// Values made here are ASCII without control characters; `content_type` is checked where it is read.
fn put(headers: &mut HeaderMap, name: header::HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::try_from(value) {
        headers.insert(name, value);
    }
}

//! `GET` and `HEAD /files/{uid}`.

use std::time::Instant;

use axum::body::Body as HttpBody;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, Method, Response as HttpResponse, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use futures::TryStreamExt;

use super::{Api, request};
use crate::serve::{Answer, Body};

pub(super) async fn get(State(api): State<Api>, method: Method, uri: Uri, headers: HeaderMap) -> Response {
    let (in_flight, began) = (api.metrics.request_began(), Instant::now());
    let answer = match request::wanted(&method, &uri, &headers) {
        Ok(wanted) => api.files.answer(&wanted).await,
        Err(error) => Err(error),
    };
    let response = match answer {
        Ok(answer) => into_http(&api, answer),
        Err(error) => {
            super::log(&error, &uri);
            error.into_response()
        }
    };
    api.metrics.request_answered(response.status(), began.elapsed());
    drop(in_flight);
    response
}

fn into_http(api: &Api, answer: Answer) -> Response {
    let mut response = HttpResponse::new(HttpBody::empty());
    *response.status_mut() = answer.status;
    let headers = response.headers_mut();
    put(headers, header::ETAG, &answer.etag);
    // A uid can be packed again or deleted, so a cache may keep the bytes but has to ask whether they are still it.
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
    if answer.status == StatusCode::NOT_MODIFIED {
        return response;
    }
    put(headers, header::CONTENT_TYPE, &answer.content_type);
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
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

//! `POST /files/batch`.

use std::collections::BTreeMap;
use std::time::Instant;

use axum::body::Body as HttpBody;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::BytesMut;
use des_shared::service::{Problem, problems};
use futures::StreamExt;
use utoipa::IntoResponses;
use utoipa::openapi::{Content, RefOr, ResponseBuilder};

use super::Api;
use crate::batch::{Asked, Batch, Form, Turn, Unreadable, read_list};
use crate::negotiate::weight;

/// How many bytes of a list there may be for each file, on average.
const BYTES_A_FILE: usize = 1024;
/// Seconds after which a client may ask again when there was no turn for it.
const RETRY_S: u32 = 5;
/// Work on a longer list than this is done where it holds nobody up.
const OFFLOAD_BYTES: usize = 64 * 1024;

/// Many files in one answer, in the order asked for, with a report of what became of each at its end.
#[utoipa::path(
    post,
    path = "/files/batch",
    tag = "files",
    params(("Accept" = Option<String>, Header, description = "application/x-tar (also without it), application/zip or \
        multipart/mixed.")),
    request_body(content((Vec<Object> = "application/json"), (String = "application/x-ndjson")), description = "A list of \
        objects with `uid` and `created_at`; as JSON, or one a line.",
        example = json!([{"uid": "a.txt", "created_at": "2025-03-10T12:00:00Z"}])),
    responses(BatchAnswers)
)]
pub(super) async fn post(State(api): State<Api>, headers: HeaderMap, body: HttpBody) -> Response {
    let (in_flight, began) = (api.metrics.request_began(), Instant::now());
    let response = match begin(&api, &headers, body).await {
        Ok((batch, turn)) => answer(&api, batch, turn),
        Err(problem) => problem.into_response(),
    };
    api.metrics.request_answered(response.status(), began.elapsed());
    drop(in_flight);
    response
}

/// The answers of a batch.
struct BatchAnswers;

impl IntoResponses for BatchAnswers {
    fn responses() -> BTreeMap<String, RefOr<utoipa::openapi::Response>> {
        let mut all = problems(&[
            (StatusCode::BAD_REQUEST, "The list cannot be read; the detail says where."),
            (StatusCode::UNAUTHORIZED, "A key is asked for."),
            (StatusCode::FORBIDDEN, "The key may not read."),
            (StatusCode::NOT_ACCEPTABLE, "Accept names no form there is."),
            (StatusCode::REQUEST_TIMEOUT, "The list came too slowly."),
            (StatusCode::PAYLOAD_TOO_LARGE, "The list is too long; send several."),
            (StatusCode::TOO_MANY_REQUESTS, "The key is used too often."),
            (StatusCode::SERVICE_UNAVAILABLE, "Too many batches are under way; ask again."),
        ]);
        let form = |form: Form| (form.media_type().to_owned(), Content::default());
        let whole = ResponseBuilder::new().description("The files, and `_des/report.ndjson`.");
        let forms = [Form::Tar, Form::Zip, Form::Multipart].map(form);
        let whole = forms.into_iter().fold(whole, |whole, (name, content)| whole.content(name, content));
        all.insert("200".to_owned(), RefOr::T(whole.build()));
        all
    }
}

async fn begin(api: &Api, headers: &HeaderMap, body: HttpBody) -> Result<(Batch, Turn), Problem> {
    let accept: Vec<&str> = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
    let form = choose(&accept.join(",")).ok_or_else(|| {
        let detail = "a batch is answered as application/x-tar, application/zip or multipart/mixed; name one in Accept";
        Problem::new(StatusCode::NOT_ACCEPTABLE, "not-acceptable", detail)
    })?;
    // Before the list is read: lists in memory are bounded by turns.
    let turn = api.batches.turn().await.ok_or_else(|| {
        let detail = "as many batches as possible are being answered; ask again in a moment";
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "busy", detail).retry_after(RETRY_S)
    })?;
    let patience = api.batches.list_patience();
    let asked = match tokio::time::timeout(patience, list(api.batches.max_files, body)).await {
        Ok(asked) => asked?,
        Err(_) => {
            let detail = format!("the list did not arrive within {} ms", patience.as_millis());
            return Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "too-slow", detail));
        }
    };
    let boundary = api.batches.boundary();
    Ok((Batch { files: api.files.clone(), metrics: api.metrics.clone(), asked, form, boundary }, turn))
}

async fn list(max_files: usize, body: HttpBody) -> Result<Vec<Asked>, Problem> {
    let limit = max_files.max(64).saturating_mul(BYTES_A_FILE);
    let (mut text, mut length) = (BytesMut::new(), 0);
    let mut pieces = body.into_data_stream();
    while let Some(piece) = pieces.next().await {
        let piece =
            piece.map_err(|e| Problem::new(StatusCode::BAD_REQUEST, "list-broken-off", format!("the list: {e}")))?;
        length += piece.len();
        if length <= limit {
            text.extend_from_slice(&piece);
        } else if length > 4 * limit {
            // Up to here the list was read on, because who still sends hears no answer.
            break;
        }
    }
    if length > limit {
        let detail = format!("the list has more than {limit} bytes; send several");
        return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "list-too-long", detail));
    }
    let read = if text.len() > OFFLOAD_BYTES {
        des_shared::offload::offload(move || read_list(&text, max_files)).await
    } else {
        read_list(&text, max_files)
    };
    read.map_err(|error| match error {
        Unreadable::Wrong(detail) => Problem::new(StatusCode::BAD_REQUEST, "list-invalid", detail),
        Unreadable::TooMany { .. } => Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "list-too-long", error.to_string()),
    })
}

fn answer(api: &Api, batch: Batch, turn: Turn) -> Response {
    let (media_type, ending) = match batch.form {
        Form::Tar => (Form::Tar.media_type().to_owned(), Some("tar")),
        Form::Zip => (Form::Zip.media_type().to_owned(), Some("zip")),
        Form::Multipart => (format!("{}; boundary={}", Form::Multipart.media_type(), batch.boundary), None),
    };
    // No Content-Length: an answer that is broken off lacks its last chunk, and no client takes it for whole.
    let mut response = Response::new(HttpBody::from_stream(api.batches.start(batch, turn)));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::try_from(media_type).expect("letters and digits"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::VARY, HeaderValue::from_static("Accept"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if let Some(ending) = ending {
        let name = format!("attachment; filename=\"files.{ending}\"");
        headers.insert(header::CONTENT_DISPOSITION, HeaderValue::try_from(name).expect("letters"));
    }
    response
}

/// The form of the highest quality in `Accept`; among equals tar, then zip. Without the header tar.
fn choose(accept: &str) -> Option<Form> {
    const FORMS: [Form; 3] = [Form::Tar, Form::Zip, Form::Multipart];
    if accept.trim().is_empty() {
        return Some(Form::Tar);
    }
    let best = FORMS.into_iter().rev().map(|form| (quality(accept, form), form)).max_by(|a, b| a.0.total_cmp(&b.0))?;
    (best.0 > 0.0).then_some(best.1)
}

/// The weight that the most specific range of `Accept` for a form gives it.
fn quality(accept: &str, form: Form) -> f32 {
    let (kind, _) = form.media_type().split_once('/').expect("a media type");
    let mut best = (0, 0.0);
    for item in accept.split(',') {
        let mut parts = item.split(';').map(str::trim);
        let range = parts.next().unwrap_or_default().to_ascii_lowercase();
        let specific = match range.split_once('/') {
            _ if range == form.media_type() => 3,
            Some((group, "*")) if group == kind => 2,
            Some(("*", "*")) => 1,
            _ => continue,
        };
        if specific > best.0 {
            best = (specific, weight(parts));
        }
    }
    best.1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_is_the_one_the_client_likes_best() {
        let (tar, zip, multipart) = (Some(Form::Tar), Some(Form::Zip), Some(Form::Multipart));
        for (accept, form) in [
            ("", tar),
            ("*/*", tar),
            ("application/*", tar),
            ("application/x-tar", tar),
            ("application/zip", zip),
            ("Application/ZIP", zip),
            ("multipart/mixed", multipart),
            ("multipart/*", multipart),
            ("text/html, application/zip;q=0.9, */*;q=0.1", zip),
            ("application/zip;q=0.2, multipart/mixed;q=0.3", multipart),
            ("application/x-tar;q=0, */*", zip),
            ("application/x-tar;q=0.5;x=y , application/zip ; q=0.5", tar),
            ("text/html", None),
            ("application/zip;q=0", None),
            ("application/zip;q=nonsense", None),
            ("*/*;q=0", None),
        ] {
            assert_eq!(choose(accept), form, "{accept:?}");
        }
    }
}

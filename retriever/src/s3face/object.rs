//! Reading one file as an object.

use std::time::Instant;

use axum::body::Body as HttpBody;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use des_shared::created_at::CreatedAt;
use des_shared::ids::MAX_UID_BYTES;
use des_shared::routing::{Slot, shard_index};
use futures::TryStreamExt;
use s3s::dto::{ETag, StreamingBlob, Timestamp};
use s3s::{S3Error, S3ErrorCode, S3Result};
use time::OffsetDateTime;

use super::Front;
use super::errors::{log, refused, s3_error};
use super::query::parse_key;
use crate::error::Error;
use crate::serve::{Answer, Body, Wanted};

/// What a request for an object asks for, beside its key.
pub(super) struct Asked<'a> {
    pub(super) key: &'a str,
    pub(super) head: bool,
    pub(super) headers: &'a HeaderMap,
    pub(super) version: Option<&'a str>,
    pub(super) part: Option<i32>,
}

impl Asked<'_> {
    fn header(&self, name: &HeaderName) -> Option<String> {
        self.headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
    }

    /// The same in the words of the HTTP interface.
    fn wanted(&self, uid: &str, created_at: CreatedAt) -> Wanted {
        // A client of S3 takes the bytes for the object's, whatever Content-Encoding says: so no stored frames.
        Wanted {
            head: self.head,
            range: self.header(&header::RANGE),
            if_none_match: self.header(&header::IF_NONE_MATCH),
            ..Wanted::whole(uid, created_at)
        }
    }
}

impl Front {
    /// Answers a request for an object, and counts it.
    pub(super) async fn object(&self, asked: &Asked<'_>) -> S3Result<Answer> {
        let (in_flight, began) = (self.metrics.request_began(), Instant::now());
        let answer = self.find(asked).await;
        let status = match &answer {
            Ok(answer) => answer.status,
            Err(error) => error.status_code().unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
        };
        self.metrics.request_answered(status, began.elapsed());
        drop(in_flight);
        answer
    }

    async fn find(&self, asked: &Asked<'_>) -> S3Result<Answer> {
        if asked.version.is_some_and(|version| version != "null") {
            return Err(refused(S3ErrorCode::NoSuchVersion, "objects have no versions here"));
        }
        if asked.part.is_some_and(|part| part != 1) {
            return Err(refused(S3ErrorCode::InvalidArgument, "objects have one part here"));
        }
        let no_such_key =
            || refused(S3ErrorCode::NoSuchKey, "keys are {YYYYMMDD}/{uid}, and there is none of this name");
        let (date, uid) = parse_key(asked.key).ok_or_else(no_such_key)?;
        if uid.len() > MAX_UID_BYTES {
            return Err(s3_error(&Error::UidTooLong { bytes: uid.len() }));
        }
        let n_bits = self.files.places.zones().n_bits();
        let slot = Slot { date, index: shard_index(uid, n_bits), n_bits };
        let day = format!("{:04}-{:02}-{:02}", date.year, date.month, date.day);
        let created_at = CreatedAt::parse(&day).map_err(|_| no_such_key())?;
        match self.files.answer_in(slot, &asked.wanted(uid, created_at)).await {
            Ok(answer) => asked.conditions(answer),
            Err(error) => {
                log(&error, asked.key);
                Err(s3_error(&error))
            }
        }
    }
}

impl Asked<'_> {
    /// What of the conditions was not looked at yet. An answer that is not wanted after all has been read for nothing,
    /// which is rare: clients set `If-Match` to be sure that nothing changed.
    fn conditions(&self, answer: Answer) -> S3Result<Answer> {
        let date = |name: &HeaderName| {
            let seconds = httpdate::parse_http_date(&self.header(name)?).ok()?.duration_since(std::time::UNIX_EPOCH);
            seconds.ok().map(|since| since.as_secs())
        };
        let changed_s = answer.modified_s.unwrap_or_default();
        let fails = match self.header(&header::IF_MATCH) {
            Some(tags) => tags.trim() != "*" && tags.split(',').all(|tag| tag.trim() != answer.etag),
            None => date(&header::IF_UNMODIFIED_SINCE).is_some_and(|since| changed_s > since),
        };
        if fails {
            return Err(refused(S3ErrorCode::PreconditionFailed, "the object is another one by now"));
        }
        let unchanged = self.headers.get(header::IF_NONE_MATCH).is_none()
            && date(&header::IF_MODIFIED_SINCE).is_some_and(|since| changed_s <= since);
        if unchanged || answer.status == StatusCode::NOT_MODIFIED {
            return Err(not_modified(&answer));
        }
        Ok(answer)
    }
}

/// 304 is an error in the library's eyes; it has the tag all the same.
fn not_modified(answer: &Answer) -> S3Error {
    let mut error = S3Error::new(S3ErrorCode::NotModified);
    let mut headers = HeaderMap::new();
    if let Ok(etag) = HeaderValue::try_from(&answer.etag) {
        headers.insert(header::ETAG, etag);
    }
    error.set_headers(headers);
    error
}

/// The parts of an answer as the library has them.
pub(super) fn etag(quoted: &str) -> ETag {
    ETag::Strong(quoted.trim_matches('"').to_owned())
}

pub(super) fn timestamp(unix_s: u64) -> Timestamp {
    let time = OffsetDateTime::from_unix_timestamp(signed(unix_s));
    time.unwrap_or(OffsetDateTime::UNIX_EPOCH).into()
}

pub(super) fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

pub(super) fn content_range(answer: &Answer) -> Option<String> {
    answer.part.as_ref().map(|(range, size)| format!("bytes {}-{}/{size}", range.start, range.end - 1))
}

impl Front {
    /// The bytes, as they come in.
    pub(super) fn blob(&self, body: Body) -> StreamingBlob {
        let body = match body {
            Body::Empty => s3s::Body::empty(),
            Body::Bytes(bytes) => s3s::Body::from(bytes),
            Body::Stream(stream) => {
                let metrics = self.metrics.clone();
                // An error here breaks the connection off before Content-Length is reached, so nobody takes the file
                // for whole.
                s3s::Body::http_body_unsync(HttpBody::from_stream(stream.inspect_err(move |error| {
                    metrics.answer_broken_off();
                    tracing::error!("an answer was broken off: {error}");
                })))
            }
        };
        StreamingBlob::from(body)
    }
}

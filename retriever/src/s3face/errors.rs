//! What a client of S3 is told when a file is not served.

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use s3s::{S3Error, S3ErrorCode};

use crate::error::Error;

/// The error as S3 has it. Codes decide what clients do: they try again after `SlowDown`, `ServiceUnavailable` and
/// `InternalError`, and take `NoSuchKey` for an answer.
pub(super) fn s3_error(error: &Error) -> S3Error {
    let code = match error.status() {
        StatusCode::BAD_REQUEST => S3ErrorCode::InvalidArgument,
        StatusCode::URI_TOO_LONG => S3ErrorCode::KeyTooLongError,
        StatusCode::NOT_FOUND | StatusCode::GONE => S3ErrorCode::NoSuchKey,
        StatusCode::PRECONDITION_FAILED => S3ErrorCode::PreconditionFailed,
        StatusCode::RANGE_NOT_SATISFIABLE => S3ErrorCode::InvalidRange,
        // The words that make a client wait longer each time, and send less.
        StatusCode::SERVICE_UNAVAILABLE if matches!(error, Error::Busy | Error::DeadlinePassed { .. }) => {
            S3ErrorCode::SlowDown
        }
        StatusCode::SERVICE_UNAVAILABLE => S3ErrorCode::ServiceUnavailable,
        // Damage above all.
        _ => S3ErrorCode::InternalError,
    };
    let mut told = S3Error::with_message(code, error.told());
    // These take the place of the usual ones.
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/xml"));
    if let Some(seconds) = error.retry_after_s() {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    if let Error::RangeNotSatisfiable { size } = error
        && let Ok(value) = HeaderValue::try_from(format!("bytes */{size}"))
    {
        headers.insert(header::CONTENT_RANGE, value);
    }
    told.set_headers(headers);
    told
}

/// What an operator must know is logged, once; what the client did wrong is not.
pub(super) fn log(error: &Error, key: &str) {
    let key: String = key.chars().take(300).collect();
    match error.status() {
        StatusCode::SERVICE_UNAVAILABLE => tracing::warn!(key, "not served over S3: {error}"),
        status if status.is_server_error() => tracing::error!(key, "not served over S3: {error}"),
        _ => tracing::debug!(key, "not served over S3: {error}"),
    }
}

/// An error of a listing's or a request's own.
pub(super) fn refused(code: S3ErrorCode, message: impl Into<std::borrow::Cow<'static, str>>) -> S3Error {
    S3Error::with_message(code, message)
}

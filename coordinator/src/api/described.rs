//! What the descriptions of the routes share: the problems they answer with.

use std::collections::BTreeMap;

use axum::http::StatusCode as S;
use des_shared::service::problems;
use utoipa::IntoResponses;
use utoipa::openapi::RefOr;
use utoipa::openapi::response::Response;

/// Of every route.
const ANY: &[(S, &str)] = &[
    (S::BAD_REQUEST, "Something in the request is wrong; the detail says what would be right."),
    (S::UNAUTHORIZED, "A key is asked for."),
    (S::INTERNAL_SERVER_ERROR, "What is stored contradicts itself."),
    (S::SERVICE_UNAVAILABLE, "The queue or the state store does not answer; Retry-After says when to ask again."),
    (S::INSUFFICIENT_STORAGE, "The state store is full."),
];

/// Of every route.
pub(super) struct Problems;

impl IntoResponses for Problems {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        problems(ANY)
    }
}

/// Of routes of one job.
pub(super) struct JobProblems;

impl IntoResponses for JobProblems {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        problems(&[ANY, &[(S::NOT_FOUND, "There is no such job.")]].concat())
    }
}

/// Of routes that take a manifest.
pub(super) struct SubmitProblems;

impl IntoResponses for SubmitProblems {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        let own = [
            (S::FORBIDDEN, "The manifest lies outside of DES_SOURCE_ROOTS."),
            (S::REQUEST_TIMEOUT, "The manifest stopped coming."),
            (S::PAYLOAD_TOO_LARGE, "The manifest is too large to be sent inline."),
            (S::UNSUPPORTED_MEDIA_TYPE, "Neither JSON nor NDJSON."),
            (S::UNPROCESSABLE_ENTITY, "The Idempotency-Key was used for another submission."),
            (S::TOO_MANY_REQUESTS, "Too much waits; Retry-After says when to come again."),
        ];
        problems(&[ANY, &own].concat())
    }
}

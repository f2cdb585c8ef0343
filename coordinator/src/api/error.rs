//! Errors to HTTP: one exhaustive match.

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use des_shared::queue::QueueError;
use des_shared::service::Problem;
use des_shared::state::StateError;
use des_shared::store::StoreErrorKind;

use crate::error::Error;

/// Seconds after which a client should ask again while a dependency is down.
const RETRY_SECONDS: u32 = 5;
/// Seconds after which a submission that met a full queue should come again.
const FULL_SECONDS: u32 = 30;

impl Error {
    /// The problem a client is told.
    pub fn problem(&self) -> Problem {
        use StatusCode as S;
        let (status, kind) = match self {
            Self::BadRequest(_) => (S::BAD_REQUEST, "bad-request"),
            Self::BadOptions(_) => (S::BAD_REQUEST, "bad-options"),
            Self::BadManifest(_) => (S::BAD_REQUEST, "bad-manifest"),
            Self::UnsupportedMedia(_) => (S::UNSUPPORTED_MEDIA_TYPE, "unsupported-media-type"),
            Self::BodyTooLarge { .. } => (S::PAYLOAD_TOO_LARGE, "body-too-large"),
            Self::BodyAborted(_) => (S::REQUEST_TIMEOUT, "body-aborted"),
            Self::OutsideRoots(_) => (S::FORBIDDEN, "outside-source-roots"),
            Self::SourceMissing(_) => (S::BAD_REQUEST, "manifest-not-found"),
            Self::KeyReused(_) => (S::UNPROCESSABLE_ENTITY, "idempotency-key-reused"),
            Self::UnknownJob(_) => (S::NOT_FOUND, "unknown-job"),
            Self::WrongState { .. } => (S::CONFLICT, "wrong-state"),
            Self::NotDead(_) => (S::NOT_FOUND, "unknown-dead-task"),
            Self::QueueFull(_) => (S::TOO_MANY_REQUESTS, "queue-full"),
            Self::Busy(_) => (S::SERVICE_UNAVAILABLE, "busy"),
            Self::State(StateError::Store(error)) => match error.kind {
                StoreErrorKind::Full => (S::INSUFFICIENT_STORAGE, "state-store-full"),
                StoreErrorKind::Unavailable
                | StoreErrorKind::Throttled
                | StoreErrorKind::BreakerOpen
                | StoreErrorKind::Conflict
                | StoreErrorKind::Denied
                | StoreErrorKind::NoSuchBucket
                | StoreErrorKind::UploadGone => (S::SERVICE_UNAVAILABLE, "state-store-unavailable"),
                StoreErrorKind::NotFound
                | StoreErrorKind::AlreadyExists
                | StoreErrorKind::InvalidRange
                | StoreErrorKind::Invalid => (S::INTERNAL_SERVER_ERROR, "state-store"),
            },
            Self::State(StateError::Corrupt { .. }) => (S::INTERNAL_SERVER_ERROR, "state-corrupt"),
            Self::Queue(QueueError::Unavailable(_) | QueueError::UnknownJob(_)) => {
                (S::SERVICE_UNAVAILABLE, "queue-unavailable")
            }
            Self::Queue(QueueError::Stale { .. } | QueueError::Cancelled { .. } | QueueError::Invalid(_)) => {
                (S::INTERNAL_SERVER_ERROR, "queue")
            }
            Self::Machine(_) => (S::SERVICE_UNAVAILABLE, "machine"),
            Self::Inconsistent(_) => (S::INTERNAL_SERVER_ERROR, "inconsistent"),
        };
        let mut problem = Problem::new(status, kind, self.to_string());
        if let Self::BadOptions(errors) = self {
            problem = problem.with_errors(errors.clone());
        }
        if status == S::SERVICE_UNAVAILABLE {
            problem = problem.retry_after(RETRY_SECONDS);
        }
        if status == S::TOO_MANY_REQUESTS {
            problem = problem.retry_after(FULL_SECONDS);
        }
        problem
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let problem = self.problem();
        if problem.status().is_server_error() {
            tracing::warn!(status = problem.status().as_u16(), "request failed: {self}");
        }
        problem.into_response()
    }
}

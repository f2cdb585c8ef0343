//! How long a request may take until its answer begins.
//!
//! Everything done for a request is part of its handler's future: locating, reading, waiting for another request's
//! read, trying again. So the deadline needs no argument on its way down: when it passes, or the client goes away, the
//! future is dropped, and every call to a store with it.

use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use prometheus::IntCounter;

use crate::error::Error;

/// A client's own limit in milliseconds; it can only shorten the service's.
pub(crate) const HEADER: &str = "x-request-timeout-ms";

/// The limit of a request that says nothing.
#[derive(Clone, Debug)]
pub(crate) struct Deadline {
    pub(crate) limit: Duration,
    pub(crate) passed: IntCounter,
}

impl Deadline {
    /// How long a request with these headers may take.
    pub(crate) fn of(&self, headers: &HeaderMap) -> Result<Duration, Error> {
        Ok(asked(headers)?.map_or(self.limit, |asked| asked.min(self.limit)))
    }

    /// Does something within a time, or drops it, which is counted and logged.
    pub(crate) async fn within<T>(&self, limit: Duration, work: impl Future<Output = T>) -> Result<T, Error> {
        tokio::time::timeout(limit, work).await.map_err(|_| {
            self.passed.inc();
            let error = Error::DeadlinePassed { limit };
            tracing::warn!("not served: {error}");
            error
        })
    }
}

/// Drops a request whose answer has not begun in time.
pub(crate) async fn enforce(State(deadline): State<Deadline>, request: Request, next: Next) -> Response {
    let answer = match deadline.of(request.headers()) {
        Ok(limit) => deadline.within(limit, next.run(request)).await,
        Err(error) => Err(error),
    };
    answer.unwrap_or_else(Error::into_response)
}

fn asked(headers: &HeaderMap) -> Result<Option<Duration>, Error> {
    let Some(value) = headers.get(HEADER) else { return Ok(None) };
    let ms = value.to_str().ok().and_then(|text| text.trim().parse::<u64>().ok()).filter(|ms| *ms > 0);
    let wrong = || Error::BadRequest {
        kind: "timeout-invalid",
        detail: "X-Request-Timeout-Ms is not a number of milliseconds of at least 1".to_owned(),
    };
    ms.map(|ms| Some(Duration::from_millis(ms))).ok_or_else(wrong)
}

//! `/health`, `/health/live`, `/health/ready` and `/metrics`, the same for every service.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use futures::future::{BoxFuture, join_all};
use serde_json::json;

use super::Shutdown;
use crate::metrics::Metrics;

/// How long one readiness check may take.
const CHECK_TIMEOUT: Duration = Duration::from_secs(3);

/// Asks one dependency; the error says what is wrong.
pub type Check = Arc<dyn Fn() -> BoxFuture<'static, Result<(), String>> + Send + Sync>;

/// Everything a service must reach before it can do its work.
#[derive(Clone, Default)]
pub struct Readiness {
    checks: Vec<(String, Check)>,
    shutdown: Shutdown,
}

impl fmt::Debug for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.checks.iter().map(|(name, _)| name)).finish()
    }
}

impl Readiness {
    /// No checks; not ready once `shutdown` has begun, so that a balancer stops sending requests.
    pub fn new(shutdown: Shutdown) -> Self {
        Self { checks: Vec::new(), shutdown }
    }

    /// Adds a check named `name`.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, check: Check) -> Self {
        self.checks.push((name.into(), check));
        self
    }

    async fn ask(&self) -> Response {
        if self.shutdown.has_begun() {
            return (StatusCode::SERVICE_UNAVAILABLE, Json(json!({"status": "draining"}))).into_response();
        }
        let answers = join_all(self.checks.iter().map(|(name, check)| async move {
            let answer = match tokio::time::timeout(CHECK_TIMEOUT, check()).await {
                Ok(answer) => answer,
                Err(_) => Err(format!("no answer within {} s", CHECK_TIMEOUT.as_secs())),
            };
            (name.clone(), answer)
        }))
        .await;
        let ready = answers.iter().all(|(_, answer)| answer.is_ok());
        let checks: serde_json::Map<_, _> =
            answers.into_iter().map(|(name, a)| (name, json!(a.err().unwrap_or_else(|| "ok".to_owned())))).collect();
        let (code, status) =
            if ready { (StatusCode::OK, "ok") } else { (StatusCode::SERVICE_UNAVAILABLE, "unavailable") };
        (code, Json(json!({"status": status, "checks": checks}))).into_response()
    }
}

/// The routes every service has.
pub fn health_routes(readiness: Readiness, metrics: Metrics) -> Router {
    let ok = || async { Json(json!({"status": "ok"})) };
    Router::new()
        .route("/health", get(ok))
        .route("/health/live", get(ok))
        .route("/health/ready", get(|State(readiness): State<Readiness>| async move { readiness.ask().await }))
        .with_state(readiness)
        .route(
            "/metrics",
            get(|State(metrics): State<Metrics>| async move {
                ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], metrics.render())
            })
            .with_state(metrics),
        )
}

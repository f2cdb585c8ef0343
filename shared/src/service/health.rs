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
use serde_json::{Map, Value, json};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::Shutdown;
use crate::metrics::Metrics;

/// How long one readiness check may take.
const CHECK_TIMEOUT: Duration = Duration::from_secs(3);

/// Asks one dependency; the error says what is wrong.
pub type Check = Arc<dyn Fn() -> BoxFuture<'static, Result<(), String>> + Send + Sync>;

/// Something worth showing beside the checks; gives its value without asking anybody.
pub type Detail = Arc<dyn Fn() -> Value + Send + Sync>;

/// Everything a service must reach before it can do its work.
#[derive(Clone, Default)]
pub struct Readiness {
    checks: Vec<(String, Check)>,
    details: Vec<(&'static str, Detail)>,
    shutdown: Shutdown,
    kept_for: Duration,
    /// The last answer. Whoever asks holds it, so that many who ask at once ask once.
    last: Arc<Mutex<Option<(Instant, Answer)>>>,
}

/// What the checks said.
#[derive(Clone)]
struct Answer {
    ready: bool,
    checks: Map<String, Value>,
}

impl fmt::Debug for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.checks.iter().map(|(name, _)| name)).finish()
    }
}

impl Readiness {
    /// No checks; not ready once `shutdown` has begun, so that a balancer stops sending requests.
    pub fn new(shutdown: Shutdown) -> Self {
        Self { shutdown, ..Self::default() }
    }

    /// Adds a check named `name`.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, check: Check) -> Self {
        self.checks.push((name.into(), check));
        self
    }

    /// Adds something to show under `name`.
    #[must_use]
    pub fn with_detail(mut self, name: &'static str, detail: Detail) -> Self {
        self.details.push((name, detail));
        self
    }

    /// Believes an answer of the checks for so long. By default what was asked before a request is too old for it.
    #[must_use]
    pub fn kept_for(self, kept_for: Duration) -> Self {
        Self { kept_for, ..self }
    }

    async fn ask(&self) -> Response {
        if self.shutdown.has_begun() {
            return (StatusCode::SERVICE_UNAVAILABLE, Json(json!({"status": "draining"}))).into_response();
        }
        let Answer { ready, checks } = self.answer().await;
        let (code, status) =
            if ready { (StatusCode::OK, "ok") } else { (StatusCode::SERVICE_UNAVAILABLE, "unavailable") };
        let mut body = Map::from_iter([("status".to_owned(), json!(status)), ("checks".to_owned(), json!(checks))]);
        body.extend(self.details.iter().map(|(name, detail)| ((*name).to_owned(), detail())));
        (code, Json(body)).into_response()
    }

    async fn answer(&self) -> Answer {
        let arrived = Instant::now();
        let mut last = self.last.lock().await;
        let fresh = |asked: Instant| asked >= arrived || asked.elapsed() < self.kept_for;
        if let Some((_, answer)) = last.as_ref().filter(|(asked, _)| fresh(*asked)) {
            return answer.clone();
        }
        let asked = Instant::now();
        let answers = join_all(self.checks.iter().map(|(name, check)| async move {
            let answer = match tokio::time::timeout(CHECK_TIMEOUT, check()).await {
                Ok(answer) => answer,
                Err(_) => Err(format!("no answer within {} s", CHECK_TIMEOUT.as_secs())),
            };
            (name.clone(), answer)
        }))
        .await;
        let ready = answers.iter().all(|(_, answer)| answer.is_ok());
        let shown = |answer: Result<(), String>| json!(answer.err().unwrap_or_else(|| "ok".to_owned()));
        let checks = answers.into_iter().map(|(name, answer)| (name, shown(answer))).collect();
        let answer = Answer { ready, checks };
        *last = Some((asked, answer.clone()));
        answer
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

//! `/health`, `/health/live`, `/health/ready` and `/metrics`, the same for every service.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::future::{BoxFuture, join_all};
use serde::Serialize;
use serde_json::Value;
use tokio::sync::Mutex;
use tokio::time::Instant;
use utoipa::ToSchema;

use super::Shutdown;
use super::openapi::Routes;
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
    checks: BTreeMap<String, String>,
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
            let body = Ready { status: "draining", checks: None, details: BTreeMap::new() };
            return (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response();
        }
        let Answer { ready, checks } = self.answer().await;
        let (code, status) =
            if ready { (StatusCode::OK, "ok") } else { (StatusCode::SERVICE_UNAVAILABLE, "unavailable") };
        let details = self.details.iter().map(|(name, detail)| ((*name).to_owned(), detail())).collect();
        let body = Ready { status, checks: Some(checks), details };
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
        let shown = |answer: Result<(), String>| answer.err().unwrap_or_else(|| "ok".to_owned());
        let checks = answers.into_iter().map(|(name, answer)| (name, shown(answer))).collect();
        let answer = Answer { ready, checks };
        *last = Some((asked, answer.clone()));
        answer
    }
}

/// The answer of a process that runs.
#[derive(Debug, Serialize, ToSchema)]
struct Alive {
    /// `ok`.
    status: &'static str,
}

/// Whether a service can do its work.
#[derive(Debug, Serialize, ToSchema)]
struct Ready {
    /// `ok`, `unavailable` or `draining`.
    status: &'static str,
    /// What was asked, and `ok` or what is wrong with it; nothing is asked while it drains.
    #[serde(skip_serializing_if = "Option::is_none")]
    checks: Option<BTreeMap<String, String>>,
    /// What the service shows beside them.
    #[serde(flatten)]
    details: BTreeMap<String, Value>,
}

/// The routes every service has.
pub fn health_routes(readiness: Readiness, metrics: Metrics) -> Routes {
    let health = Routes::new()
        .add(__path_health, health)
        .add(__path_live, live)
        .add(__path_ready, ready)
        .schema::<Alive>()
        .schema::<Ready>()
        .with_state(readiness);
    health.merge(Routes::new().add(__path_render, render).with_state(metrics))
}

/// Whether the process runs; the same as `/health/live`.
#[utoipa::path(get, path = "/health", tag = "service", responses((status = 200, description = "It runs.", body = Alive)))]
async fn health() -> Json<Alive> {
    Json(Alive { status: "ok" })
}

/// Whether the process runs.
#[utoipa::path(get, path = "/health/live", tag = "service", responses((status = 200, description = "It runs.", body = Alive)))]
async fn live() -> Json<Alive> {
    Json(Alive { status: "ok" })
}

/// Whether it can do its work: everything it needs is really asked.
#[utoipa::path(
    get,
    path = "/health/ready",
    tag = "service",
    responses(
        (status = 200, description = "It can do its work.", body = Ready),
        (status = 503, description = "It is being stopped, or something it needs does not answer.", body = Ready),
    )
)]
async fn ready(State(readiness): State<Readiness>) -> Response {
    readiness.ask().await
}

/// What Prometheus reads.
#[utoipa::path(
    get,
    path = "/metrics",
    tag = "service",
    responses((status = 200, description = "Metrics as text.", content_type = "text/plain; version=0.0.4", body = String))
)]
async fn render(State(metrics): State<Metrics>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], metrics.render()).into_response()
}

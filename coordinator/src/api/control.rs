//! `POST /v1/jobs/{id}/pause | resume | cancel | retry` and `PATCH /v1/jobs/{id}`.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{Path, State};
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use des_shared::service::Problem;
use serde::Deserialize;

use super::described::JobProblems;
use super::{NoQuery, job_id, query};
use crate::Core;
use crate::control::{Order, ShareChange};
use crate::error::Error;
use crate::submit::Accepted;
use crate::view::JobBody;

/// What becomes of a cancelled job's shards.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Shards {
    /// What was published stays.
    #[default]
    Keep,
    /// It is deleted where no other job has it.
    Drop,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CancelQuery {
    #[serde(default)]
    shards: Shards,
}

/// Hands out no further shard of a job.
#[utoipa::path(
    post,
    path = "/v1/jobs/{id}/pause",
    tag = "jobs",
    params(("id" = String, Path, description = "The job.")),
    responses((status = 200, description = "The job.", body = JobBody), (status = 409, description = "The job is in a state in which that makes no sense.", content_type = "application/problem+json", body = Problem), JobProblems)
)]
pub(super) async fn pause(
    State(core): State<Arc<Core>>,
    Path(id): Path<String>,
    uri: Uri,
) -> Result<Json<JobBody>, Error> {
    let NoQuery {} = query(&uri)?;
    core.ordered(&id, Order::Pause).await.map(Json)
}

/// Goes on with a job.
#[utoipa::path(
    post,
    path = "/v1/jobs/{id}/resume",
    tag = "jobs",
    params(("id" = String, Path, description = "The job.")),
    responses((status = 200, description = "The job.", body = JobBody), (status = 409, description = "The job is in a state in which that makes no sense.", content_type = "application/problem+json", body = Problem), JobProblems)
)]
pub(super) async fn resume(
    State(core): State<Arc<Core>>,
    Path(id): Path<String>,
    uri: Uri,
) -> Result<Json<JobBody>, Error> {
    let NoQuery {} = query(&uri)?;
    core.ordered(&id, Order::Resume).await.map(Json)
}

/// Stops a job for good.
#[utoipa::path(
    post,
    path = "/v1/jobs/{id}/cancel",
    tag = "jobs",
    params(("id" = String, Path, description = "The job."), ("shards" = Option<String>, Query, description = "`keep` what was published, or `drop` it.")),
    responses((status = 200, description = "It has ended.", body = JobBody), (status = 202, description = "It is being ended.", body = JobBody), (status = 409, description = "The job is in a state in which that makes no sense.", content_type = "application/problem+json", body = Problem), JobProblems)
)]
pub(super) async fn cancel(State(core): State<Arc<Core>>, Path(id): Path<String>, uri: Uri) -> Result<Response, Error> {
    let CancelQuery { shards } = query(&uri)?;
    let body = core.ordered(&id, Order::Cancel { drop_shards: matches!(shards, Shards::Drop) }).await?;
    let status = if body.view.state.is_final() { StatusCode::OK } else { StatusCode::ACCEPTED };
    Ok((status, Json(body)).into_response())
}

/// Changes how a job competes.
#[utoipa::path(
    patch,
    path = "/v1/jobs/{id}",
    tag = "jobs",
    params(("id" = String, Path, description = "The job.")),
    request_body(content = Object, description = "`priority` -100 to 100, `weight` 1 to 1000, `max_running` 1 or more, or null; each optional."),
    responses((status = 200, description = "The job.", body = JobBody), (status = 409, description = "The job is in a state in which that makes no sense.", content_type = "application/problem+json", body = Problem), JobProblems)
)]
pub(super) async fn share(
    State(core): State<Arc<Core>>,
    Path(id): Path<String>,
    uri: Uri,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<JobBody>, Error> {
    let NoQuery {} = query(&uri)?;
    let expected = "expected {\"priority\": -100 to 100, \"weight\": 1 to 1000, \"max_running\": 1 or more, or null}, \
                    each of them optional";
    let body = body.map_err(|e| Error::BadRequest(format!("the body cannot be read: {e}; {expected}")))?;
    let change: ShareChange = serde_json::from_slice(&body)
        .map_err(|e| Error::BadRequest(format!("the body cannot be read: {e}; {expected}")))?;
    if change.is_empty() {
        return Err(Error::BadRequest(format!("the body changes nothing; {expected}")));
    }
    core.ordered(&id, Order::Share(change)).await.map(Json)
}

/// Packs again what failed.
#[utoipa::path(
    post,
    path = "/v1/jobs/{id}/retry",
    tag = "jobs",
    params(("id" = String, Path, description = "The job.")),
    responses((status = 202, description = "A new job; Location names it.", body = JobBody), (status = 200, description = "The job of an earlier retry.", body = JobBody), (status = 409, description = "The job is in a state in which that makes no sense.", content_type = "application/problem+json", body = Problem), (status = 429, description = "Too much waits.", content_type = "application/problem+json", body = Problem), JobProblems)
)]
pub(super) async fn retry(State(core): State<Arc<Core>>, Path(id): Path<String>, uri: Uri) -> Result<Response, Error> {
    let NoQuery {} = query(&uri)?;
    let record = core.job_record(job_id(&id)?).await?;
    core.room_for_more().await?;
    let accepted = core.retry_job(&record).await?;
    core.accepted(accepted).await
}

impl Core {
    async fn ordered(&self, id: &str, order: Order) -> Result<JobBody, Error> {
        let record = self.job_record(job_id(id)?).await?;
        self.order(&record, order).await?;
        self.view(&record).await
    }

    /// The answer to whatever made a job, or found the one that is there.
    pub(super) async fn accepted(&self, accepted: Accepted) -> Result<Response, Error> {
        let Accepted { record, new } = accepted;
        // The job is durable. Its view must not turn that into an error, so a new one is shown without asking anybody.
        let view = if new { self.view_of_new(&record) } else { self.view(&record).await? };
        let status = if new { StatusCode::ACCEPTED } else { StatusCode::OK };
        tracing::info!(job = %record.id, new, bytes = record.manifest_bytes, "submission accepted");
        Ok((status, [(header::LOCATION, format!("/v1/jobs/{}", record.id))], Json(view)).into_response())
    }
}

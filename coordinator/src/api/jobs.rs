//! `/v1/jobs`: submit, list, show, shards, failures.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, Uri, header};
use axum::response::{IntoResponse, Response};
use des_shared::ids::{JobId, TaskId, WorkerId};
use des_shared::job::{JobOptions, JobState};
use des_shared::layout;
use des_shared::queue::{QueueError, TaskState, TaskView};
use des_shared::receipt::{PublishedShard, Receipt};
use futures::stream::{self, StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::body::{ManifestRequest, Payload};
use super::described::{JobProblems, Problems, SubmitProblems};
use super::{NoQuery, job_id, page_limit, query};
use crate::Core;
use crate::error::Error;
use crate::metrics::Submission as Outcome;
use crate::planner::check_inline;
use crate::submit::{Accepted, MAX_IDEMPOTENCY_KEY_BYTES, Submission, idempotency_key};
use crate::view::{JobBody, JobDetail};

/// Jobs looked at in one request, whatever the filter lets through.
const MAX_SCAN: usize = 500;
/// Jobs or receipts read side by side.
const READS: usize = 8;

/// One page of jobs, newest first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct JobPage {
    /// The jobs. Fewer than the limit, even none, does not mean the end when a filter is set: `next` does.
    pub jobs: Vec<JobBody>,
    /// Pass as `cursor` for the page behind this one; `null` on the last.
    pub next: Option<String>,
}

/// One page of a job's shards, by number.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ShardPage {
    /// The shards; none while the job is being planned.
    pub shards: Vec<ShardView>,
    /// Shards of the job; `null` until the plan is complete.
    pub total: Option<u64>,
    /// Pass as `cursor` for the page behind this one; `null` on the last.
    pub next: Option<String>,
}

/// One planned shard and how far it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ShardView {
    /// Its number in the plan.
    pub number: u32,
    /// Where its task is; `null` when the queue cannot be asked and no receipt is there.
    pub state: Option<TaskState>,
    /// Bytes of its files, as the manifest says.
    pub source_bytes: u64,
    /// Attempts since the last progress.
    pub attempts: Option<u32>,
    /// Who works on it.
    pub worker: Option<WorkerId>,
    /// Why the last attempt failed.
    pub message: Option<String>,
    /// Files in the published shard; `null` until it is finished.
    pub files_packed: Option<u64>,
    /// Files in the failure list; `null` until it is finished.
    pub files_failed: Option<u64>,
    /// Where it was published.
    pub shard: Option<PublishedShard>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    state: Option<JobState>,
    cursor: Option<String>,
    limit: Option<usize>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ShardsQuery {
    cursor: Option<u32>,
    limit: Option<usize>,
}

/// Submits a manifest.
#[utoipa::path(
    post,
    path = "/v1/jobs",
    tag = "jobs",
    params(("Idempotency-Key" = Option<String>, Header, description = "The same key with the same submission is the same job.")),
    request_body(content((Object = "application/json"), (String = "application/x-ndjson")), description = "`{\"manifest\": [...] or {\"uri\"}, \"options\": {}}`, or the manifest itself as NDJSON with the options in the query."),
    responses((status = 202, description = "The job is new; Location names it.", body = JobBody), (status = 200, description = "The job was there already.", body = JobBody), SubmitProblems)
)]
pub(super) async fn submit(State(core): State<Arc<Core>>, request: Request) -> Result<Response, Error> {
    // A task of its own, so that a client that goes away cannot leave an upload behind: the body ends with an error
    // and the submission cleans up.
    let task = core.tasks.spawn({
        let core = Arc::clone(&core);
        async move { core.take_submission(request).await }
    });
    let outcome = task.await.unwrap_or_else(|e| Err(Error::Machine(format!("the submission broke off: {e}"))));
    match &outcome {
        Ok(Accepted { new: true, record }) => core.own_metrics.submitted(Outcome::Accepted, record.manifest_bytes),
        Ok(Accepted { new: false, .. }) => core.own_metrics.submitted(Outcome::Known, 0),
        Err(_) => core.own_metrics.submitted(Outcome::Refused, 0),
    }
    core.accepted(outcome?).await
}

/// Jobs, newest first.
#[utoipa::path(
    get,
    path = "/v1/jobs",
    tag = "jobs",
    params(("state" = Option<String>, Query, description = "Only jobs in this state."), ("cursor" = Option<String>, Query, description = "`next` of the page before."), ("limit" = Option<u32>, Query, minimum = 1, maximum = 200)),
    responses((status = 200, description = "A page of jobs, newest first.", body = JobPage), Problems)
)]
pub(super) async fn list(State(core): State<Arc<Core>>, uri: Uri) -> Result<Json<JobPage>, Error> {
    let ListQuery { state, cursor, limit } = query(&uri)?;
    let limit = page_limit(limit, 50, 200)?;
    let after = match cursor {
        Some(text) => {
            let job = text.parse().map_err(|_| Error::BadRequest("cursor is not one of this list's".to_owned()))?;
            Some(layout::newest_marker(job))
        }
        None => None,
    };
    core.job_page(state, after, limit).await.map(Json)
}

/// A job and its pace.
#[utoipa::path(
    get,
    path = "/v1/jobs/{id}",
    tag = "jobs",
    params(("id" = String, Path, description = "The job.")),
    responses((status = 200, description = "The job and its pace.", body = JobDetail), JobProblems)
)]
pub(super) async fn show(State(core): State<Arc<Core>>, Path(id): Path<String>, uri: Uri) -> Result<Response, Error> {
    let NoQuery {} = query(&uri)?;
    let record = core.job_record(job_id(&id)?).await?;
    Ok(Json(core.detail(&record).await?).into_response())
}

/// A job's shards.
#[utoipa::path(
    get,
    path = "/v1/jobs/{id}/shards",
    tag = "jobs",
    params(("id" = String, Path, description = "The job."), ("cursor" = Option<u32>, Query, description = "`next` of the page before."), ("limit" = Option<u32>, Query, minimum = 1, maximum = 500)),
    responses((status = 200, description = "A page of shards, by number.", body = Object), JobProblems)
)]
pub(super) async fn shards(
    State(core): State<Arc<Core>>,
    Path(id): Path<String>,
    uri: Uri,
) -> Result<Json<ShardPage>, Error> {
    let job = job_id(&id)?;
    let ShardsQuery { cursor, limit } = query(&uri)?;
    let limit = page_limit(limit, 100, 500)?;
    core.job_record(job).await?;
    core.shard_page(job, cursor.unwrap_or(0), limit).await.map(Json)
}

/// The files that failed, with their reasons.
#[utoipa::path(
    get,
    path = "/v1/jobs/{id}/failures",
    tag = "jobs",
    params(("id" = String, Path, description = "The job.")),
    responses((status = 200, description = "One line for each file that failed; a manifest again.", content_type = "application/x-ndjson", body = String), JobProblems)
)]
pub(super) async fn failures(
    State(core): State<Arc<Core>>,
    Path(id): Path<String>,
    uri: Uri,
) -> Result<Response, Error> {
    let job = job_id(&id)?;
    let NoQuery {} = query(&uri)?;
    core.job_record(job).await?;
    let mut lists = core.state().failures(job);
    // The first list is read before the status goes out, so that a store that is away is a 503 and not a cut answer.
    let first = lists.try_next().await?;
    let body = stream::iter(first.map(Ok)).chain(lists.inspect_err(move |e| {
        tracing::warn!(%job, "a failure list was cut: {e}");
    }));
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(body)).into_response())
}

/// The Idempotency-Key, if there is one.
fn key_of(headers: &HeaderMap) -> Result<Option<String>, Error> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
    let text = value.to_str().unwrap_or_default().trim();
    if text.is_empty() || text.len() > MAX_IDEMPOTENCY_KEY_BYTES {
        return Err(Error::BadRequest(format!(
            "Idempotency-Key is not 1 to {MAX_IDEMPOTENCY_KEY_BYTES} visible ASCII characters"
        )));
    }
    Ok(Some(text.to_owned()))
}

impl Core {
    async fn take_submission(&self, request: Request) -> Result<Accepted, Error> {
        self.room_for_more().await?;
        let bound_key = key_of(request.headers())?.map(|key| idempotency_key(&key));
        let ManifestRequest { options, payload } = self.manifest_request(request).await?;
        let options: JobOptions = options.resolve(&self.config.defaults).map_err(Error::BadOptions)?;
        let (body, base, _permit) = match payload {
            Payload::Stream(body) => (body, None, None),
            Payload::Remote(uri) => {
                let remote = self.open_manifest(&uri).await?;
                (remote.body, Some(remote.base), None)
            }
            Payload::Inline(manifest, permit) => {
                let config = self.quick_plan_config(&options);
                let checked = manifest.clone();
                self.offload(move || check_inline(&checked, config)).await?;
                (stream::once(futures::future::ready(Ok(manifest))).boxed(), None, Some(permit))
            }
        };
        self.submit(Submission { options, bound_key, base, body }).await
    }

    async fn job_page(&self, state: Option<JobState>, after: Option<String>, limit: usize) -> Result<JobPage, Error> {
        let mut jobs: Vec<JobBody> = Vec::new();
        let (mut after, mut scanned) = (after, 0);
        let next = loop {
            let wanted = (limit - jobs.len()).max(if state.is_some() { READS } else { 1 });
            let page = self.state().objects().list(layout::NEWEST_PREFIX, after.as_deref(), wanted).await?;
            let ids: Vec<JobId> = page.objects.iter().filter_map(|o| layout::job_of_newest_marker(&o.key)).collect();
            scanned += page.objects.len();
            let mut views = stream::iter(ids).map(|job| self.listed(job)).buffered(READS);
            let mut last = None;
            while let Some(listed) = views.next().await {
                let (job, view) = listed?;
                last = Some(job);
                jobs.extend(view.filter(|body| state.is_none_or(|state| body.view.state == state)));
                if jobs.len() == limit {
                    break;
                }
            }
            let more =
                page.next.is_some() || last != page.objects.last().and_then(|o| layout::job_of_newest_marker(&o.key));
            after = last.map(layout::newest_marker).or(page.next);
            match (more, last) {
                (false, _) => break None,
                (true, Some(last)) if jobs.len() == limit || scanned >= MAX_SCAN => break Some(last.to_string()),
                (true, _) => {}
            }
        };
        Ok(JobPage { jobs, next })
    }

    /// A job of the listing; no view when it never became one.
    async fn listed(&self, job: JobId) -> Result<(JobId, Option<JobBody>), Error> {
        match self.state().job(job).await? {
            Some(record) => Ok((job, Some(self.view(&record).await?))),
            None => Ok((job, None)),
        }
    }

    async fn shard_page(&self, job: JobId, from: u32, limit: usize) -> Result<ShardPage, Error> {
        let Some(plan) = self.state().plan(job).await? else {
            return Ok(ShardPage { shards: Vec::new(), total: None, next: None });
        };
        let sizes: Vec<u64> = plan.tasks.iter().skip(from as usize).take(limit).copied().collect();
        let receipts = self.receipts_between(job, from, sizes.len().max(1)).await?;
        // The receipts say everything about finished tasks; the queue is asked about the others only.
        let tasks = match self.queue().tasks(job, from, sizes.len().max(1)).await {
            Ok(tasks) => tasks,
            Err(QueueError::Unavailable(_) | QueueError::UnknownJob(_)) => Vec::new(),
            Err(e) => return Err(e.into()),
        };
        let shards: Vec<ShardView> = (from..)
            .zip(&sizes)
            .map(|(number, &source_bytes)| {
                let task = tasks.iter().find(|task| task.number == number);
                shard_view(TaskId { job, number }, source_bytes, task, receipts.get(&number))
            })
            .collect();
        let end = u64::from(from) + sizes.len() as u64;
        let next = (end < plan.tasks.len() as u64 && !sizes.is_empty()).then(|| end.to_string());
        Ok(ShardPage { shards, total: Some(plan.tasks.len() as u64), next })
    }
}

fn shard_view(id: TaskId, source_bytes: u64, task: Option<&TaskView>, receipt: Option<&Receipt>) -> ShardView {
    ShardView {
        number: id.number,
        state: receipt.map(|receipt| receipt.state).or(task.map(|task| task.state)),
        source_bytes,
        attempts: task.map(|task| task.attempts),
        worker: task.and_then(|task| task.worker),
        message: task.and_then(|task| task.message.clone()),
        files_packed: receipt.map(|receipt| receipt.totals.files_packed),
        files_failed: receipt.map(|receipt| receipt.totals.files_failed),
        shard: receipt.and_then(|receipt| receipt.shard.clone()),
    }
}

//! `/v1/dead`: tasks that were given up, with their histories.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{StatusCode, Uri};
use axum::response::Response;
use des_shared::ids::{JobId, TaskId};
use des_shared::layout;
use des_shared::receipt::DeadTask;
use futures::stream::{self, StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};

use super::described::{JobProblems, Problems};
use super::{NoQuery, job_id, page_limit, query};
use crate::Core;
use crate::error::Error;

/// Entries read side by side.
const READS: usize = 8;

/// One page of the dead list, by job and number, oldest job first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeadPage {
    /// The tasks.
    pub dead: Vec<DeadTask>,
    /// Pass as `cursor` for the page behind this one; `null` on the last.
    pub next: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DeadQuery {
    job: Option<JobId>,
    cursor: Option<String>,
    limit: Option<usize>,
}

/// Shards that were given up.
#[utoipa::path(
    get,
    path = "/v1/dead",
    tag = "upkeep",
    params(("job" = Option<String>, Query, description = "Only those of this job."), ("cursor" = Option<String>, Query, description = "`next` of the page before."), ("limit" = Option<u32>, Query, minimum = 1, maximum = 500)),
    responses((status = 200, description = "A page of them: `dead`, and `next`.", body = Object), Problems)
)]
pub(super) async fn list(State(core): State<Arc<Core>>, uri: Uri) -> Result<Json<DeadPage>, Error> {
    let DeadQuery { job, cursor, limit } = query(&uri)?;
    let limit = page_limit(limit, 100, 500)?;
    let after = match cursor {
        Some(text) => {
            let task = text.parse().map_err(|_| Error::BadRequest("cursor is not one of this list's".to_owned()))?;
            Some(layout::dead_entry(task))
        }
        None => None,
    };
    let prefix = job.map_or_else(|| layout::DEAD_PREFIX.to_owned(), layout::dead_prefix);
    core.dead_page(&prefix, after, limit).await.map(Json)
}

/// Packs the files of one again.
#[utoipa::path(
    post,
    path = "/v1/dead/{job}/{task}/retry",
    tag = "upkeep",
    params(("job" = String, Path, description = "The job."), ("task" = u32, Path, description = "The shard's number in it.")),
    responses((status = 202, description = "A new job; Location names it.", body = Object), (status = 200, description = "The job of an earlier retry.", body = Object), (status = 429, description = "Too much waits.", content_type = "application/problem+json", body = Object), JobProblems)
)]
pub(super) async fn retry(
    State(core): State<Arc<Core>>,
    Path((job, number)): Path<(String, String)>,
    uri: Uri,
) -> Result<Response, Error> {
    let NoQuery {} = query(&uri)?;
    let task = task_id(&job, &number)?;
    core.room_for_more().await?;
    let accepted = core.retry_task(task).await?;
    core.accepted(accepted).await
}

/// Takes one out of the list.
#[utoipa::path(
    delete,
    path = "/v1/dead/{job}/{task}",
    tag = "upkeep",
    params(("job" = String, Path, description = "The job."), ("task" = u32, Path, description = "The shard's number in it.")),
    responses((status = 204, description = "It is not in the list any more."), JobProblems)
)]
pub(super) async fn forget(
    State(core): State<Arc<Core>>,
    Path((job, number)): Path<(String, String)>,
    uri: Uri,
) -> Result<StatusCode, Error> {
    let NoQuery {} = query(&uri)?;
    let key = layout::dead_entry(task_id(&job, &number)?);
    // Dropping what is not there is a success: the answer of an earlier request may have been lost.
    core.state().delete(&key).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn task_id(job: &str, number: &str) -> Result<TaskId, Error> {
    let number = number
        .parse()
        .map_err(|_| Error::BadRequest(format!("{:?} is not the number of a task", super::shortened(number))))?;
    Ok(TaskId { job: job_id(job)?, number })
}

impl Core {
    async fn dead_page(&self, prefix: &str, after: Option<String>, limit: usize) -> Result<DeadPage, Error> {
        let page = self.state().objects().list(prefix, after.as_deref(), limit).await?;
        let tasks: Vec<TaskId> = page.objects.iter().filter_map(|o| layout::task_of_dead_entry(&o.key)).collect();
        let last = tasks.last().map(ToString::to_string);
        let entries: Vec<Option<DeadTask>> = stream::iter(tasks)
            .map(|task| async move { self.state().read(&layout::dead_entry(task)).await })
            .buffered(READS)
            .try_collect()
            .await?;
        // One that was dropped between the two is none.
        Ok(DeadPage { dead: entries.into_iter().flatten().collect(), next: page.next.and(last) })
    }
}

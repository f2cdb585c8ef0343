//! `/v1/queue` and `/v1/workers`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use des_shared::queue::{QueueStats, WorkerView};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::described::Problems;
use crate::Core;
use crate::error::Error;

/// The queue as an autoscaler sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct QueueView {
    /// Tasks a worker could start now: the one number to scale by.
    pub depth: u64,
    /// Age in milliseconds of the task that has waited longest; 0 when none waits.
    pub oldest_age_ms: u64,
    /// Tasks held by workers.
    pub in_flight: u64,
    /// Tasks waiting for a retry.
    pub delayed: u64,
    /// Tasks given up, of open jobs.
    pub dead: u64,
    /// Tasks of paused jobs among those that wait; they count in `depth` no more.
    pub paused: u64,
    /// Source bytes of everything that waits.
    pub waiting_bytes: u64,
    /// Jobs in the queue.
    pub jobs: u64,
}

/// The workers that sent a heartbeat lately.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Workers {
    workers: Vec<WorkerView>,
}

impl From<QueueStats> for QueueView {
    fn from(stats: QueueStats) -> Self {
        Self {
            // Workers find nothing to do in what is paused, so it must not call for more of them.
            depth: stats.pending.saturating_sub(stats.paused),
            oldest_age_ms: stats.oldest_pending_age_ms,
            in_flight: stats.leased,
            delayed: stats.delayed,
            dead: stats.dead,
            paused: stats.paused,
            waiting_bytes: stats.waiting_bytes,
            jobs: stats.jobs,
        }
    }
}

/// The queue as an autoscaler sees it.
#[utoipa::path(
    get,
    path = "/v1/queue",
    tag = "queue",
    responses((status = 200, description = "The queue.", body = QueueView), Problems)
)]
pub(super) async fn queue(State(core): State<Arc<Core>>) -> Result<Json<QueueView>, Error> {
    Ok(Json(core.queue().stats().await?.into()))
}

/// The workers.
#[utoipa::path(
    get,
    path = "/v1/workers",
    tag = "queue",
    responses((status = 200, description = "The workers that sent a heartbeat lately.", body = Object), Problems)
)]
pub(super) async fn workers(State(core): State<Arc<Core>>) -> Result<Json<Workers>, Error> {
    Ok(Json(Workers { workers: core.queue().workers().await? }))
}

//! `GET /v1/audit` looks, `POST /v1/audit` also mends what is safe. The answer is NDJSON, line by line as things are
//! found; the last line is the summary.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{Uri, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::stream;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::described::Problems;
use super::query;
use crate::Core;
use crate::audit::{Audit, Finding};
use crate::error::Error;

/// Lines that may wait for the client.
const LINES_AHEAD: usize = 64;

/// One line of an audit's answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum AuditLine {
    /// Something is wrong.
    Finding(Finding),
    /// Everything was looked at. Always the last line.
    Summary {
        /// Jobs of the state store.
        jobs: u64,
        /// Receipts read.
        receipts: u64,
        /// Shards asked for.
        shards: u64,
        /// Things that are or were wrong.
        findings: u64,
        /// Those of them that were mended.
        repaired: u64,
        /// How long it took.
        seconds: f64,
    },
    /// The audit could not go on; what comes before it holds.
    Error {
        /// Why.
        detail: String,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AuditQuery {
    /// Whether every receipt's shard is asked for.
    #[serde(default = "yes")]
    shards: bool,
}

fn yes() -> bool {
    true
}

/// Whether queue, state store and shards agree.
#[utoipa::path(
    get,
    path = "/v1/audit",
    tag = "upkeep",
    params(("shards" = Option<bool>, Query, description = "Whether every shard is asked for.")),
    responses((status = 200, description = "Findings, one a line; the last line is the summary.", content_type = "application/x-ndjson", body = String), Problems)
)]
pub(super) async fn look(State(core): State<Arc<Core>>, uri: Uri) -> Result<Response, Error> {
    start(core, &uri, false).await
}

/// The same, and mends what is safe.
#[utoipa::path(
    post,
    path = "/v1/audit",
    tag = "upkeep",
    params(("shards" = Option<bool>, Query, description = "Whether every shard is asked for.")),
    responses((status = 200, description = "Findings, one a line; the last line is the summary.", content_type = "application/x-ndjson", body = String), Problems)
)]
pub(super) async fn repair(State(core): State<Arc<Core>>, uri: Uri) -> Result<Response, Error> {
    start(core, &uri, true).await
}

async fn start(core: Arc<Core>, uri: &Uri, repair: bool) -> Result<Response, Error> {
    let AuditQuery { shards } = query(uri)?;
    let seat = Arc::clone(&core.auditors).try_acquire_owned();
    let seat = seat.map_err(|_| Error::Busy("an audit is under way; come again when it has ended".to_owned()))?;
    // Before the status goes out, so that a dependency that is away is a 503 and not an error in the middle.
    core.queue().ping().await?;
    core.state().objects().check().await?;
    let (sender, receiver) = mpsc::channel(LINES_AHEAD);
    let audit = Audit::new(Arc::clone(&core), repair, shards, sender);
    core.tasks.spawn(async move {
        let _seat = seat;
        audit.run().await;
    });
    let lines = stream::unfold(receiver, |mut receiver| async move {
        let line: AuditLine = receiver.recv().await?;
        let mut bytes = serde_json::to_vec(&line).expect("a line always encodes");
        bytes.push(b'\n');
        Some((Ok::<_, std::io::Error>(Bytes::from(bytes)), receiver))
    });
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response())
}

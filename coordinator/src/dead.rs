//! What became of a task that nobody will work on any more and that has no receipt: it is dead, or its job was
//! cancelled.
//!
//! A worker may have published the shard and died before it wrote the receipt, so the shard's own index is asked
//! before any file is called a failure. An unfinished upload of the task is dropped first, so that nothing can be
//! published from it afterwards.

use std::collections::HashSet;

use des_shared::control::ControlRecord;
use des_shared::ids::{FencingToken, TaskId, Uid};
use des_shared::layout;
use des_shared::queue::{Checkpoint, TaskState, TaskTotals, TaskView};
use des_shared::receipt::{DeadTask, FailedFile, FailureReason, PublishedShard, Receipt};
use des_shared::segment::{FileView, Segment};
use des_shared::state::Created;
use des_shared::store::{ObjectMeta, list_all};
use futures::stream::TryStreamExt;

use crate::Core;
use crate::error::Error;
use crate::upload::is_missing;

/// Marks removed side by side.
const REMOVALS: usize = 8;

/// A shard of a dead task that is there after all.
struct Found {
    zone: String,
    meta: ObjectMeta,
    uids: HashSet<Uid>,
}

impl Core {
    /// Writes the receipt of a dead task and enters it in the dead list, or finds the receipt that was written
    /// meanwhile.
    pub(crate) async fn bury(&self, task: TaskId, view: &TaskView) -> Result<Receipt, Error> {
        if let Some(receipt) = self.state().receipt(task).await? {
            return Ok(receipt);
        }
        let segment = self.state().segment(task).await?;
        self.drop_upload(&segment, view.checkpoint.as_ref()).await;
        let message = view.message.clone().unwrap_or_else(|| "no reason was kept".to_owned());
        let now = self.deps.clock.now_ms();
        let (receipt, failed) = match self.published(&segment).await? {
            Some(found) => receipt_of_found(&segment, found, now),
            None => {
                // Before the receipt, so that no task is dead without being in the list.
                let entry = dead_task(&segment, view, &message, now);
                self.state().write(&layout::dead_entry(task), &entry).await?;
                let text = format!("its task was given up: {message}");
                failed_receipt(&segment, FailureReason::TaskDead, &text, now)
            }
        };
        let receipt = match self.state().finish_task(&receipt, &failed).await? {
            Created::Ours => receipt,
            Created::Theirs(theirs) => {
                if theirs.state == TaskState::Committed {
                    self.state().delete(&layout::dead_entry(task)).await?;
                }
                theirs
            }
        };
        tracing::warn!(%task, state = ?receipt.state, failed = receipt.totals.files_failed, "closed a dead task: {message}");
        self.queue().settle(task, receipt.state, &receipt.totals).await?;
        Ok(receipt)
    }

    /// Writes the receipt of a task of a cancelled job. `None` as long as a worker may still finish it.
    pub(crate) async fn call_off(
        &self,
        task: TaskId,
        view: &TaskView,
        control: &ControlRecord,
    ) -> Result<Option<Receipt>, Error> {
        if let Some(receipt) = self.state().receipt(task).await? {
            return Ok(Some(receipt));
        }
        let began = view.token != FencingToken(0);
        let now = self.deps.clock.now_ms();
        // Who held the task is told with the next heartbeat and stops by itself when its lease would have run out.
        // Until then it may publish the shard, whose files must not be called failures meanwhile.
        let waited = now.saturating_sub(control.updated_ms);
        if began && u128::from(waited) < self.config.limits.cancel_grace.as_millis() {
            return Ok(None);
        }
        let segment = self.state().segment(task).await?;
        self.drop_upload(&segment, view.checkpoint.as_ref()).await;
        let found = if began { self.published(&segment).await? } else { None };
        let text = "its job was cancelled before it was packed";
        let (receipt, failed) = match found {
            Some(found) => receipt_of_found(&segment, found, now),
            None => failed_receipt(&segment, FailureReason::Cancelled, text, now),
        };
        Ok(Some(match self.state().finish_task(&receipt, &failed).await? {
            Created::Ours => receipt,
            Created::Theirs(theirs) => theirs,
        }))
    }

    /// Drops an unfinished upload and the marks of its parts. What cannot be dropped now is found later among the
    /// orphans, or goes with the job.
    async fn drop_upload(&self, segment: &Segment, checkpoint: Option<&Checkpoint>) {
        let Some(checkpoint) = checkpoint else { return };
        let outcome = async {
            let zone = self.deps.zones.zone_for(segment.slot.index).map_err(|e| Error::Inconsistent(e.to_string()))?;
            zone.store.abort_upload(&layout::shard_key(segment), &checkpoint.upload_id).await?;
            self.own_metrics.uploads_aborted(1);
            let objects = self.state().objects();
            list_all(objects.clone(), layout::checkpoint_prefix(segment.task))
                .map_ok(|mark| async move { objects.delete(&mark.key).await })
                .try_buffer_unordered(REMOVALS)
                .try_collect::<Vec<()>>()
                .await?;
            Ok::<_, Error>(())
        };
        if let Err(e) = outcome.await {
            tracing::warn!(task = %segment.task, "an unfinished upload stays for now: {e}");
        }
    }

    /// The task's shard, if it was published.
    async fn published(&self, segment: &Segment) -> Result<Option<Found>, Error> {
        let zone = self.deps.zones.zone_for(segment.slot.index).map_err(|e| Error::Inconsistent(e.to_string()))?;
        let key = layout::shard_key(segment);
        let meta = match zone.store.head(&key).await {
            Ok(meta) => meta,
            Err(e) if is_missing(&e) => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        let uids = (self.deps.inspector.0)(zone.store.clone(), key.clone()).await.map_err(|why| {
            Error::Inconsistent(format!("the shard {key} in zone {:?} cannot be read: {why}", zone.name))
        })?;
        Ok(Some(Found { zone: zone.name.clone(), meta, uids }))
    }
}

fn failure(file: FileView<'_>, reason: FailureReason, message: String) -> FailedFile {
    FailedFile {
        uid: file.uid(),
        created_at: file.created_at.to_string(),
        size_bytes: file.size_bytes,
        source_path: file.source.to_string(),
        reason,
        message,
    }
}

fn dead_task(segment: &Segment, view: &TaskView, message: &str, now: u64) -> DeadTask {
    DeadTask {
        job: segment.task.job,
        task: segment.task.number,
        shard: layout::shard_key(segment),
        files: segment.files.len() as u64,
        source_bytes: segment.source_bytes(),
        message: message.to_owned(),
        history: view.history.clone(),
        died_ms: now,
        retried_as: None,
    }
}

/// The receipt of a task none of whose files were packed.
fn failed_receipt(segment: &Segment, reason: FailureReason, text: &str, now: u64) -> (Receipt, Vec<FailedFile>) {
    let failed: Vec<_> = segment.files.iter().map(|file| failure(file, reason, text.to_owned())).collect();
    let totals = TaskTotals { files_failed: failed.len() as u64, ..TaskTotals::default() };
    let receipt = Receipt {
        task: segment.task,
        state: TaskState::Dead,
        shard: None,
        totals,
        token: FencingToken(0),
        finished_ms: now,
    };
    (receipt, failed)
}

fn receipt_of_found(segment: &Segment, found: Found, now: u64) -> (Receipt, Vec<FailedFile>) {
    let (packed, lost): (Vec<_>, Vec<_>) = segment.files.iter().partition(|file| found.uids.contains(&file.uid()));
    let text = "a shard of the same plan was published without this file";
    let failed: Vec<_> =
        lost.into_iter().map(|file| failure(file, FailureReason::NotInPublishedShard, text.to_owned())).collect();
    let sizes = |big: bool| -> u64 {
        let threshold = segment.options.big_file_threshold_bytes;
        packed.iter().map(|file| file.size_bytes).filter(|size| !big || *size > threshold).sum()
    };
    let totals = TaskTotals {
        files_packed: packed.len() as u64,
        files_failed: failed.len() as u64,
        source_bytes: sizes(false),
        // Big files lie beside the shard as they are.
        stored_bytes: found.meta.size + sizes(true),
    };
    let shard = PublishedShard {
        zone: found.zone,
        key: found.meta.key,
        size: found.meta.size,
        etag: found.meta.etag,
        entries: found.uids.len() as u64,
        digest: segment.digest().to_string(),
    };
    let receipt = Receipt {
        task: segment.task,
        state: TaskState::Committed,
        shard: Some(shard),
        totals,
        token: FencingToken(0),
        finished_ms: now,
    };
    (receipt, failed)
}

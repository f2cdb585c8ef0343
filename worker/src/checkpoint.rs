//! Checkpoints: the marks of uploaded parts in the state store, and the small record in the queue that counts them.
//!
//! Order of writes: the part, then its mark, then the queue's record. So a record never names what is not there, and
//! what the record does not name is simply done again: at most the parts in flight.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use des_shared::ids::{FencingToken, TaskId};
use des_shared::layout;
use des_shared::queue::{Checkpoint, Lease, QueueError, SharedQueue};
use des_shared::segment::SegmentDigest;
use des_shared::state::StateStore;
use des_shared::store::{PartTag, SharedStore, StoreErrorKind, list_all};
use futures::{StreamExt, TryStreamExt, stream};
use tokio::time::Instant;

use crate::error::PackError;
use crate::leases::LeaseGuard;
use crate::metrics::WorkerMetrics;
use crate::pack::{PackHooks, PartMark, Step};

/// Marks read or written at the same time.
const AT_ONCE: usize = 8;
/// With more holders than this in one checkpoint the marks are written again under one token: the record in the
/// queue is bounded.
const MAX_WRITERS: usize = 24;

/// The checkpoints of one lease.
#[derive(Debug)]
pub(crate) struct LeaseHooks {
    pub(crate) state: StateStore,
    pub(crate) queue: SharedQueue,
    pub(crate) lease: Arc<LeaseGuard>,
    pub(crate) metrics: WorkerMetrics,
    writers: Mutex<Vec<(FencingToken, u32)>>,
    marked: AtomicBool,
}

impl LeaseHooks {
    /// `writers` are the holders of the parts uploaded so far.
    pub(crate) fn new(
        state: StateStore,
        queue: SharedQueue,
        lease: Arc<LeaseGuard>,
        metrics: WorkerMetrics,
        writers: Vec<(FencingToken, u32)>,
    ) -> Self {
        Self { state, queue, lease, metrics, writers: Mutex::new(writers), marked: AtomicBool::new(false) }
    }

    /// Whether a mark was written.
    pub(crate) fn marked(&self) -> bool {
        self.marked.load(Ordering::Relaxed)
    }

    /// Forgets the holders of earlier parts: the upload begins again.
    pub(crate) fn begin_again(&self) {
        self.writers.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn wrote(&self, part: u32) -> Vec<(FencingToken, u32)> {
        let mut writers = self.writers.lock().unwrap_or_else(PoisonError::into_inner);
        match writers.last_mut() {
            Some((token, last)) if *token == self.lease.token => *last = part,
            _ => writers.push((self.lease.token, part)),
        }
        writers.clone()
    }
}

#[async_trait]
impl PackHooks for LeaseHooks {
    fn step(&self, step: &Step) {
        self.metrics.files_compressed(step);
    }

    async fn part_uploaded(&self, mark: &PartMark) -> Result<bool, PackError> {
        let (task, token) = (self.lease.task, self.lease.token);
        self.marked.store(true, Ordering::Relaxed);
        write_mark(&self.state, task, token, mark).await?;
        let checkpoint = Checkpoint {
            upload_id: mark.upload_id.clone(),
            parts: mark.tag.number,
            writers: self.wrote(mark.tag.number),
            next_file: mark.next_file,
            offset: mark.offset,
            files_packed: mark.progress.files_packed,
            files_failed: mark.progress.files_failed,
            source_bytes: mark.progress.source_bytes,
        };
        let asked = Instant::now();
        match self.queue.checkpoint(task, token, &checkpoint).await {
            Ok(answer) => {
                self.lease.renewed(answer, asked);
                self.metrics.checkpointed();
                Ok(true)
            }
            Err(e @ (QueueError::Stale { .. } | QueueError::Cancelled { .. } | QueueError::Invalid(_))) => {
                Err(e.into())
            }
            // The next part's record covers this one too. If the queue stays away, the lease's own deadline ends the task.
            Err(e) => {
                tracing::warn!("part {} is not checkpointed yet: {e}", mark.tag.number);
                Ok(false)
            }
        }
    }
}

async fn write_mark(state: &StateStore, task: TaskId, token: FencingToken, mark: &PartMark) -> Result<(), PackError> {
    state.write_bytes(&layout::checkpoint_part(task, token, mark.tag.number), mark.encode().into()).await?;
    Ok(())
}

/// The marks of a task whose lease names no checkpoint.
pub(crate) async fn listed(state: &StateStore, lease: &Lease) -> Result<Vec<String>, PackError> {
    if lease.checkpoint.is_some() {
        return Ok(Vec::new());
    }
    let marks = list_all(state.objects().clone(), layout::checkpoint_prefix(lease.task));
    Ok(marks.map_ok(|object| object.key).try_collect().await?)
}

/// Puts the checkpoint together that the queue has lost, from the marks of the newest holder's upload. Nothing in it is
/// trusted yet: [`load`] compares it with the store. Also the uploads that marks name and nobody can continue.
pub(crate) async fn recover(
    state: &StateStore,
    names: Vec<String>,
) -> Result<(Option<Checkpoint>, BTreeSet<String>), PackError> {
    let mut named = Vec::with_capacity(names.len());
    for name in names {
        named.extend(layout::part_of_checkpoint(&name).map(|(token, _)| (token, name)));
    }
    let read = stream::iter(named).map(|(token, name)| async move {
        let bytes = state.read_bytes(&name).await?;
        // What is damaged or gone is as if it had never been written.
        Ok::<_, PackError>(bytes.and_then(|bytes| PartMark::decode(&bytes).ok()).map(|mark| (token, mark)))
    });
    let marks: Vec<Option<(FencingToken, PartMark)>> = read.buffered(AT_ONCE).try_collect().await?;
    let mut marks: Vec<_> = marks.into_iter().flatten().collect();
    marks.sort_by_key(|(token, mark)| (*token, mark.tag.number));
    let mut orphans: BTreeSet<String> = marks.iter().map(|(_, mark)| mark.upload_id.clone()).collect();
    let Some(upload_id) = marks.last().map(|(_, mark)| mark.upload_id.clone()) else { return Ok((None, orphans)) };
    marks.retain(|(_, mark)| mark.upload_id == upload_id);
    let mut writers: Vec<(FencingToken, u32)> = Vec::new();
    let mut last = None;
    for number in 1.. {
        // Of two marks of one part the later holder's counts: it has replaced the part.
        let Some((token, mark)) = marks.iter().rev().find(|(_, mark)| mark.tag.number == number) else { break };
        match writers.last_mut() {
            Some((before, part)) if before == token => *part = number,
            _ => writers.push((*token, number)),
        }
        last = Some(mark);
    }
    let Some(last) = last else { return Ok((None, orphans)) };
    orphans.remove(&upload_id);
    let checkpoint = Checkpoint {
        upload_id,
        parts: last.tag.number,
        writers,
        next_file: last.next_file,
        offset: last.offset,
        files_packed: last.progress.files_packed,
        files_failed: last.progress.files_failed,
        source_bytes: last.progress.source_bytes,
    };
    Ok((Some(checkpoint), orphans))
}

/// Reads the marks that a checkpoint counts and compares them with each other and with the parts in the store.
///
/// # Errors
/// [`PackError::BadCheckpoint`] when anything disagrees; [`PackError::Store`] with `UploadGone` when the upload is.
pub(crate) async fn load(
    state: &StateStore,
    (store, key): (&SharedStore, &str),
    (task, digest): (TaskId, SegmentDigest),
    checkpoint: &Checkpoint,
) -> Result<Vec<PartMark>, PackError> {
    let bad = |why: String| Err(PackError::BadCheckpoint(why));
    let holder = |part: u32| checkpoint.writers.iter().find(|(_, last)| part <= *last).map(|(token, _)| *token);
    let mut names = Vec::new();
    for part in 1..=checkpoint.parts {
        let Some(token) = holder(part) else { return bad(format!("nobody is named for part {part}")) };
        names.push(layout::checkpoint_part(task, token, part));
    }
    let marks: Vec<PartMark> = stream::iter(names)
        .map(|name| async move {
            let bytes = state.read_bytes(&name).await?;
            let bytes = bytes.ok_or_else(|| PackError::BadCheckpoint(format!("{name} does not exist")))?;
            PartMark::decode(&bytes).map_err(|e| PackError::BadCheckpoint(format!("{name}: {e}")))
        })
        .buffered(AT_ONCE)
        .try_collect()
        .await?;
    agree((store, key), digest, &checkpoint.upload_id, &marks).await?;
    match marks.last() {
        None => bad("it counts no part".to_owned()),
        Some(last) if (last.offset, last.next_file) != (checkpoint.offset, checkpoint.next_file) => {
            bad(format!("the last mark ends at file {}, the queue says {}", last.next_file, checkpoint.next_file))
        }
        Some(_) => Ok(marks),
    }
}

/// Compares marks with their segment, with each other and with the parts in the store.
pub(crate) async fn agree(
    (store, key): (&SharedStore, &str),
    digest: SegmentDigest,
    upload_id: &str,
    marks: &[PartMark],
) -> Result<(), PackError> {
    let parts = store.list_parts(key, upload_id).await?;
    for (mark, number) in marks.iter().zip(1..) {
        check(mark, number, &digest.to_string(), upload_id, &parts)?;
    }
    let sum: u64 = marks.iter().map(|mark| mark.tag.size).sum();
    match marks.last() {
        Some(last) if last.offset != sum => {
            Err(PackError::BadCheckpoint(format!("{sum} bytes in the parts, rows for {}", last.offset)))
        }
        _ => Ok(()),
    }
}

fn check(mark: &PartMark, number: u32, digest: &str, upload_id: &str, parts: &[PartTag]) -> Result<(), PackError> {
    let bad = |why: &str| Err(PackError::BadCheckpoint(format!("part {number}: {why}")));
    if mark.digest != digest || mark.upload_id != upload_id || mark.tag.number != number {
        return bad("its mark is of another segment, upload or part");
    }
    match parts.iter().find(|part| part.number == number) {
        None => bad("the store does not have it"),
        Some(part) if *part != mark.tag => bad("the store has another one than its mark says"),
        Some(_) => Ok(()),
    }
}

/// The holders of the marks, written again under `token` when there are too many to name.
pub(crate) async fn settle_writers(
    state: &StateStore,
    (task, token): (TaskId, FencingToken),
    checkpoint: &Checkpoint,
    marks: &[PartMark],
) -> Result<Vec<(FencingToken, u32)>, PackError> {
    if checkpoint.writers.len() <= MAX_WRITERS {
        return Ok(checkpoint.writers.clone());
    }
    stream::iter(marks.iter().map(Ok))
        .try_for_each_concurrent(AT_ONCE, |mark| write_mark(state, task, token, mark))
        .await?;
    Ok(vec![(token, checkpoint.parts)])
}

/// Removes the marks of a finished task. What cannot be removed stays behind and does no harm.
pub(crate) async fn remove(state: &StateStore, task: TaskId) {
    let marks = list_all(state.objects().clone(), layout::checkpoint_prefix(task));
    let outcome =
        marks.try_for_each_concurrent(AT_ONCE, |object| async move { state.objects().delete(&object.key).await }).await;
    if let Err(e) = outcome {
        tracing::warn!("checkpoints of finished task {task} stay behind: {e}");
    }
}

/// Drops an upload that a checkpoint or a mark named.
pub(crate) async fn abort(store: &SharedStore, key: &str, upload_id: &str) {
    match store.abort_upload(key, upload_id).await {
        Ok(()) => {}
        Err(e) if e.kind == StoreErrorKind::UploadGone => {}
        Err(e) => tracing::warn!("an unfinished upload stays behind: {e}"),
    }
}

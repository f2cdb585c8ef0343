//! What became of a task that nobody will work on any more and that has no receipt.
//!
//! A worker may have published the shard and died before it wrote the receipt, so the shard's own index is asked
//! before any file is called a failure.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use des_shared::archive::RemoteShard;
use des_shared::ids::{FencingToken, TaskId, Uid};
use des_shared::layout;
use des_shared::queue::{TaskState, TaskTotals};
use des_shared::receipt::{FailedFile, FailureReason, PublishedShard, Receipt};
use des_shared::segment::{FileView, Segment};
use des_shared::state::Created;
use des_shared::store::{ObjectMeta, SharedStore};
use futures::future::{BoxFuture, FutureExt};
use futures::stream::StreamExt;

use crate::Core;
use crate::error::Error;
use crate::upload::is_missing;

/// Reads the uids in a published shard's index. The error says why it cannot be read.
pub type Inspect = dyn Fn(SharedStore, String) -> BoxFuture<'static, Result<HashSet<Uid>, String>> + Send + Sync;

/// Says which files a published shard holds: reads the index from the store, never the payloads.
#[derive(Clone)]
pub struct ShardInspector(Arc<Inspect>);

impl ShardInspector {
    /// From a function of the zone's store and the shard's key.
    pub fn new(
        inspect: impl Fn(SharedStore, String) -> BoxFuture<'static, Result<HashSet<Uid>, String>> + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(inspect))
    }
}

impl Default for ShardInspector {
    /// Reads real shards of any version.
    fn default() -> Self {
        Self::new(|store, key| read_index(store, key).boxed())
    }
}

async fn read_index(store: SharedStore, key: String) -> Result<HashSet<Uid>, String> {
    let shard = RemoteShard::open(store, &key).await.map_err(|e| e.to_string())?;
    let mut entries = shard.entries();
    let mut uids = HashSet::new();
    while let Some(entry) = entries.next().await {
        let entry = entry.map_err(|e| e.to_string())?;
        uids.insert(Uid::new(entry.uid).map_err(|e| e.to_string())?);
    }
    Ok(uids)
}

impl fmt::Debug for ShardInspector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ShardInspector")
    }
}

/// A shard of a dead task that is there after all.
struct Found {
    zone: String,
    meta: ObjectMeta,
    uids: HashSet<Uid>,
}

impl Core {
    /// Writes the receipt of a dead task, or finds the one that was written meanwhile.
    pub(crate) async fn bury(&self, task: TaskId) -> Result<Receipt, Error> {
        if let Some(receipt) = self.state().receipt(task).await? {
            return Ok(receipt);
        }
        let segment = self.state().segment(task).await?;
        let message = self.last_words(task).await?;
        let found = self.published(&segment).await?;
        let now = self.deps.clock.now_ms();
        let (receipt, failed) = match found {
            Some(found) => receipt_of_found(&segment, found, now),
            None => dead_receipt(&segment, &message, now),
        };
        let receipt = match self.state().finish_task(&receipt, &failed).await? {
            Created::Ours => receipt,
            Created::Theirs(theirs) => theirs,
        };
        tracing::warn!(%task, state = ?receipt.state, failed = receipt.totals.files_failed, "closed a dead task: {message}");
        self.queue().settle(task, receipt.state, &receipt.totals).await?;
        Ok(receipt)
    }

    /// Why the last attempt failed, as the queue remembers.
    async fn last_words(&self, task: TaskId) -> Result<String, Error> {
        let view = self.queue().tasks(task.job, task.number, 1).await?;
        let message = view.into_iter().find(|view| view.number == task.number).and_then(|view| view.message);
        Ok(message.unwrap_or_else(|| "no reason was kept".to_owned()))
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

fn dead_receipt(segment: &Segment, message: &str, now: u64) -> (Receipt, Vec<FailedFile>) {
    let text = format!("its task was given up: {message}");
    let failed: Vec<_> =
        segment.files.iter().map(|file| failure(file, FailureReason::TaskDead, text.clone())).collect();
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

#[cfg(test)]
mod tests {
    use super::*;
    use des_shared::segment::ShardFormat;
    use des_shared::shard::{Codec, PayloadInfo, ShardWriter};
    use des_shared::store::WriteOptions;
    use des_shared::store::local::LocalStore;

    #[tokio::test]
    async fn the_index_of_a_real_shard_tells_its_files() {
        let dir = tempfile::tempdir().expect("a folder");
        let store: SharedStore = Arc::new(LocalStore::open(dir.path()).expect("a store"));
        for format in [ShardFormat::V2, ShardFormat::V3] {
            let mut writer = ShardWriter::new(format, None, 7).expect("a writer");
            let mut bytes = writer.header().to_vec();
            for number in 0..700 {
                let payload = PayloadInfo::of(Codec::None, 1, b"x");
                writer.append(&format!("file-{number:04}"), &payload, None).expect("an entry");
                bytes.push(b'x');
            }
            writer.append_bigfile("large", [7; 32], 1 << 40, None).expect("an entry");
            bytes.extend(writer.finish().expect("a tail"));
            let key = format!("20250310_00_0000-{format}.des");
            store.put(&key, bytes.into(), &WriteOptions::create_only()).await.expect("a put");
            let inspector = ShardInspector::default();
            let uids = (inspector.0)(store.clone(), key.clone()).await.expect("an index");
            assert_eq!(uids.len(), 701, "{format}");
            assert!(uids.contains(&Uid::new("large").expect("a uid")));
            store.put(&key, "no shard".into(), &WriteOptions::overwrite()).await.expect("a put");
            assert!((inspector.0)(store.clone(), key).await.is_err(), "an unreadable shard proves nothing");
        }
    }
}

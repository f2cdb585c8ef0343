//! Packs one segment into one shard. Usable without a queue: the caller brings a store, sources and [`PackHooks`].
//!
//! ```text
//! order -> feed (read ahead, compress)  -> assemble (append rows, fill a part) -> upload -> hooks (checkpoint)
//!          several files at a time,        one file at a time,                   the next part is filled
//!          in order                        cut at file boundaries                meanwhile
//! ```
//!
//! Invariants: equal segments and equal files give equal bytes, whatever the threads do; memory is bounded by parts in
//! flight and the [`Budget`], never by the shard or a big file; one bad file never stops a shard; an object that
//! is there is never replaced.

mod assemble;
mod encode;
mod feed;
mod order;

pub(crate) use assemble::PART_ROOM;
pub(crate) use encode::join_blocking;
pub(crate) use order::BATCH_BYTES;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use des_shared::compact;
use des_shared::layout;
use des_shared::queue::TaskTotals;
use des_shared::receipt::{FailedFile, FailureReason};
use des_shared::segment::{Segment, SegmentDigest};
use des_shared::store::{PartTag, SharedStore};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::adopt;
use crate::budget::Budget;
use crate::checkpoint;
use crate::error::{Advice, PackError};
use crate::source::SourceOpener;
use crate::vitals::Vitals;
use assemble::Assembler;
use order::Order;

/// Key of the shard's user metadata that holds the full digest of its plan segment, where a store keeps metadata.
pub const DIGEST_METADATA: &str = "des-segment-digest";

/// Bytes of a part, where nothing else is asked for.
const PART_BYTES: usize = 8 << 20;

/// What to do when the key is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenTaken {
    /// The key has the digest in it: take what stands there for the result, and say which files it lacks.
    Adopt,
    /// The key says nothing about the content: fail with [`PackError::Taken`].
    Refuse,
}

/// Sizes and limits of a pack. None of them changes the shard's bytes.
#[derive(Clone, Debug)]
pub struct PackLimits {
    /// A part is cut at the first file boundary at or behind this many bytes. At least 5 MiB for S3.
    pub part_bytes: usize,
    /// Parts being uploaded while the next is filled.
    pub parts_in_flight: usize,
    /// Batches of files read and compressed ahead.
    pub batches_ahead: usize,
    /// Shared by all packs of the process.
    pub budget: Budget,
}

impl Default for PackLimits {
    fn default() -> Self {
        Self { part_bytes: PART_BYTES, parts_in_flight: 1, batches_ahead: 8, budget: Budget::default() }
    }
}

/// One shard to pack.
#[derive(Clone, Debug)]
pub struct PackJob {
    /// The files and the options that change bytes.
    pub segment: Arc<Segment>,
    /// The segment's digest.
    pub digest: SegmentDigest,
    /// Key of the shard in `store`.
    pub key: String,
    /// The zone's store; big files go there too.
    pub store: SharedStore,
    /// What to do when the key is taken.
    pub when_taken: WhenTaken,
    /// Sizes and limits.
    pub limits: PackLimits,
    /// When it is cancelled the pack ends with [`PackError::Draining`] after the next file, what is uploaded by then
    /// checkpointed.
    pub drain: CancellationToken,
    /// Signs of life and open uploads, for whoever may have to drop the pack.
    pub vitals: Vitals,
}

impl PackJob {
    /// A job as a task of the queue has it: the key from [`layout::shard_key`], and what is there is adopted.
    pub fn task(segment: Arc<Segment>, store: SharedStore, limits: PackLimits, drain: CancellationToken) -> Self {
        let digest = segment.digest();
        let key = layout::shard_key_with(&segment, digest);
        Self { segment, digest, key, store, when_taken: WhenTaken::Adopt, limits, drain, vitals: Vitals::default() }
    }
}

/// User metadata of a segment's shard.
pub(crate) fn metadata(digest: SegmentDigest) -> BTreeMap<String, String> {
    BTreeMap::from([(DIGEST_METADATA.to_owned(), digest.to_string())])
}

/// A file that is in no shard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileFailure {
    /// Its position in the segment's list.
    pub file: u32,
    /// The kind of failure.
    pub reason: FailureReason,
    /// What went wrong and what would be right.
    pub message: String,
}

impl FileFailure {
    /// The line of the failure list.
    pub fn describe(&self, segment: &Segment) -> Option<FailedFile> {
        let file = segment.files.get(self.file as usize)?.to_file();
        Some(FailedFile {
            uid: file.uid,
            created_at: file.created_at,
            size_bytes: file.size_bytes,
            source_path: file.source,
            reason: self.reason,
            message: self.message.clone(),
        })
    }
}

/// The object that holds the shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackedObject {
    /// Key in the store.
    pub key: String,
    /// Size in bytes.
    pub size: u64,
    /// Entity tag the store gave it.
    pub etag: String,
    /// Entries in its index.
    pub entries: u64,
}

/// What became of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packed {
    /// The shard; `None` when no file could be read.
    pub object: Option<PackedObject>,
    /// Files and bytes; stored bytes count the shard and its big files.
    pub totals: TaskTotals,
    /// Files in no shard, in order of their positions. `totals.files_failed` of them.
    pub failed: Vec<FileFailure>,
    /// Whether somebody else had published the shard before.
    pub adopted: bool,
}

impl Packed {
    /// The failure list.
    pub fn failed_files(&self, segment: &Segment) -> Vec<FailedFile> {
        self.failed.iter().filter_map(|failure| failure.describe(segment)).collect()
    }
}

/// How far a pack has come, in files and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Files in the shard so far.
    pub files_packed: u64,
    /// Files failed so far.
    pub files_failed: u64,
    /// Source bytes of the packed files.
    pub source_bytes: u64,
    /// Bytes of big files among them, stored beside the shard.
    pub big_bytes: u64,
}

/// An uploaded part, with all that another holder needs to go on behind it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartMark {
    /// Full digest of the segment, hex: a mark of other files or options is never continued.
    pub digest: String,
    /// The multipart upload.
    pub upload_id: String,
    /// The part.
    pub tag: PartTag,
    /// Index rows of the files that end in this part ([`des_shared::shard::ShardWriter::rows_since`]).
    pub rows: Vec<u8>,
    /// Failures since the part before.
    pub failed: Vec<FileFailure>,
    /// The shard's dictionary; in the first part only.
    pub dictionary: Option<Vec<u8>>,
    /// Position in packing order of the file behind this part.
    pub next_file: u32,
    /// Shard offset behind this part, in bytes.
    pub offset: u64,
    /// Sums up to here.
    pub progress: Progress,
}

impl PartMark {
    /// The mark as bytes.
    pub fn encode(&self) -> Vec<u8> {
        compact::encode(self)
    }

    /// Reads what [`Self::encode`] wrote.
    ///
    /// # Errors
    /// What is wrong, for anything else; never allocates more than a bound, whatever the bytes claim.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        compact::decode(bytes).map_err(|e| e.to_string())
    }
}

/// Whether marks can be continued: they belong to the job, follow one another, and the store has their parts.
///
/// # Errors
/// [`PackError::BadCheckpoint`] when anything disagrees; [`PackError::Store`] with `UploadGone` when the upload is.
pub async fn check_marks(job: &PackJob, marks: &[PartMark]) -> Result<(), PackError> {
    let Some(upload_id) = marks.first().map(|mark| mark.upload_id.as_str()) else { return Ok(()) };
    checkpoint::agree((&job.store, &job.key), job.digest, upload_id, marks).await
}

/// Something that happened to some files, for metrics and progress bars.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Step {
    /// How far the pack is now.
    pub progress: Progress,
    /// Bytes of these files before compression, big files not counted.
    pub raw_bytes: u64,
    /// Their stored bytes.
    pub stored_bytes: u64,
    /// Seconds they took to compress.
    pub compress_seconds: f64,
}

/// What a pack tells its caller while it runs.
#[async_trait]
pub trait PackHooks: fmt::Debug + Send + Sync {
    /// Some files were packed or have failed.
    fn step(&self, step: &Step);

    /// A part was uploaded. Called in the order of the parts, and awaited before the next call. Returns whether the
    /// mark is kept, so that the unfinished upload is worth keeping too.
    async fn part_uploaded(&self, mark: &PartMark) -> Result<bool, PackError>;
}

/// Hooks that do nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoHooks;

#[async_trait]
impl PackHooks for NoHooks {
    fn step(&self, _: &Step) {}

    async fn part_uploaded(&self, _: &PartMark) -> Result<bool, PackError> {
        Ok(false)
    }
}

/// Packs a segment. `marks` are those of an earlier, interrupted pack of the same segment, in order of their parts and
/// checked against the store; empty for a new one. Cancelled by dropping: nothing is touched then, and an unfinished
/// upload stays behind.
///
/// # Errors
/// [`PackError`]; its advice says what to do. An upload without a kept mark is aborted before.
pub async fn pack_segment(
    job: &PackJob,
    marks: Vec<PartMark>,
    sources: Arc<dyn SourceOpener>,
    hooks: &dyn PackHooks,
) -> Result<Packed, PackError> {
    if job.when_taken == WhenTaken::Adopt
        && let Some(packed) = adopt::published_before(job, sources.as_ref(), &[]).await?
    {
        // A folder gives a shard its name before it drops the upload: whoever was killed in between left it behind.
        if let Some(mark) = marks.first() {
            checkpoint::abort(&job.store, &job.key, &mark.upload_id).await;
        }
        return Ok(packed);
    }
    let order = Arc::new(Order::of(&job.segment));
    let mut assembler = Assembler::begin(job, &order, marks, sources.as_ref(), hooks).await?;
    let outcome = assembler.run(Arc::clone(&order), Arc::clone(&sources)).await;
    match outcome {
        Ok(end) => end.into_packed(job, sources.as_ref()).await,
        Err(e) => {
            // Everything that was started ends here, so that no upload can be begun behind the ones that are dropped.
            assembler.halt();
            job.vitals.stopped().await;
            assembler.give_up(&e).await;
            if e.advice() != Advice::Stop {
                job.vitals.drop_uploads(false).await;
            }
            Err(e)
        }
    }
}

/// The word used for a reason as a metric label.
pub(crate) fn reason_label(reason: FailureReason) -> &'static str {
    match reason {
        FailureReason::Missing => "missing",
        FailureReason::Cancelled => "cancelled",
        FailureReason::Unreadable => "unreadable",
        FailureReason::OutsideRoots => "outside_roots",
        FailureReason::SizeMismatch => "size_mismatch",
        FailureReason::Changed => "changed",
        FailureReason::NotAFile => "not_a_file",
        FailureReason::BadSource => "bad_source",
        FailureReason::TaskDead => "task_dead",
        FailureReason::NotInPublishedShard => "not_in_published_shard",
    }
}

//! Receipts: the durable proof of what became of a task, and the list of files that are in no shard.

use serde::{Deserialize, Serialize};

use crate::ids::{FencingToken, JobId, TaskId, Uid};
use crate::queue::{Attempt, TaskState, TaskTotals};

/// What became of a task. Written once (create-only): the first receipt is the truth. A task whose job was cancelled
/// is `dead` here, and its files failed as [`FailureReason::Cancelled`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// The task.
    pub task: TaskId,
    /// `committed` or `dead`.
    pub state: TaskState,
    /// The published shard; `None` when the task is dead or none of its files could be read.
    pub shard: Option<PublishedShard>,
    /// What it adds to its job.
    pub totals: TaskTotals,
    /// Token of the lease under which it was written; 0 for a coordinator's.
    pub token: FencingToken,
    /// Unix milliseconds.
    pub finished_ms: u64,
}

/// A shard as it stands in its zone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedShard {
    /// Name of the zone.
    pub zone: String,
    /// Key in the zone's store.
    pub key: String,
    /// Size in bytes.
    pub size: u64,
    /// Entity tag the store gave it.
    pub etag: String,
    /// Entries in its index.
    pub entries: u64,
    /// Full digest of the plan segment, hex.
    pub digest: String,
}

/// Why a file is in no shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureReason {
    /// The source does not exist.
    Missing,
    /// The source cannot be read.
    Unreadable,
    /// The source lies outside the allowed roots.
    OutsideRoots,
    /// The source has another size than the manifest says.
    SizeMismatch,
    /// The source changed while it was read.
    Changed,
    /// The source is not a regular file.
    NotAFile,
    /// The path or URI makes no sense.
    BadSource,
    /// Its task was given up.
    TaskDead,
    /// A shard of the same plan was published before, without this file.
    NotInPublishedShard,
    /// Its job was cancelled before the file was packed.
    Cancelled,
}

/// One line of a failure list. Its first four fields are a manifest entry again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedFile {
    /// The file.
    pub uid: Uid,
    /// As written in the manifest.
    pub created_at: String,
    /// As written in the manifest.
    pub size_bytes: u64,
    /// Resolved path or URI.
    pub source_path: String,
    /// The kind of failure.
    pub reason: FailureReason,
    /// What went wrong and what would be right.
    pub message: String,
}

/// A task that was given up, as it stands in the dead list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadTask {
    /// The job.
    pub job: JobId,
    /// The task's number in it.
    pub task: u32,
    /// The key its shard would have had.
    pub shard: String,
    /// Files it has.
    pub files: u64,
    /// Their bytes, as the manifest says.
    pub source_bytes: u64,
    /// Why the last attempt failed.
    pub message: String,
    /// The last failed attempts, oldest first.
    pub history: Vec<Attempt>,
    /// When it was entered here, Unix milliseconds.
    pub died_ms: u64,
    /// The job that packs its files again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retried_as: Option<JobId>,
}

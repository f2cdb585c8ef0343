//! What goes in and out of a queue: shares, leases, checkpoints, failures, counters and views.

use serde::{Deserialize, Serialize};

use super::QueueError;
#[cfg(doc)]
use super::{MAX_HISTORY, MAX_HISTORY_MESSAGE_BYTES, MAX_MESSAGE_BYTES, MAX_RUNNING, Queue};
use crate::ids::{FencingToken, TaskId, WorkerId};

/// How a job competes for workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobShare {
    /// Higher goes first; -100 to 100.
    pub priority: i32,
    /// Share of bytes served among jobs of one priority; 1 to 1000.
    pub weight: u32,
    /// Most tasks of the job that are leased at the same time; `None` for no bound. 1 to [`MAX_RUNNING`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_running: Option<u32>,
}

/// A task to queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewTask {
    /// Its number in the job's plan.
    pub number: u32,
    /// Bytes its files have together; what fairness counts.
    pub source_bytes: u64,
}

/// Where a task is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TaskState {
    /// Waits for a worker.
    Pending,
    /// A worker holds it.
    Leased,
    /// Failed and waits for its next attempt.
    Delayed,
    /// Its shard is published, its receipt written.
    Committed,
    /// Given up: its files are failures.
    Dead,
    /// Its job was cancelled.
    Cancelled,
}

impl TaskState {
    /// Whether nothing more happens to the task.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Committed | Self::Dead | Self::Cancelled)
    }
}

/// Permission to work on a task until the lease ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The task.
    pub task: TaskId,
    /// Proof of holding it; every change of the task asks for it.
    pub token: FencingToken,
    /// Which attempt this is, from 1, counted since the last progress.
    pub attempt: u32,
    /// How far an earlier holder came.
    pub checkpoint: Option<Checkpoint>,
}

/// A task whose receipt is written, as its holder commits it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FinishedTask {
    /// The task.
    pub task: TaskId,
    /// The token of the lease.
    pub token: FencingToken,
    /// What its receipt counts.
    pub totals: TaskTotals,
}

/// What became of an [`Queue::exchange`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exchanged {
    /// For each finished task, in order, what [`Queue::commit`] would have said.
    pub committed: Vec<Result<(), QueueError>>,
    /// The tasks to go on with.
    pub leases: Vec<Lease>,
}

/// How far the holder of a lease has come: small, because the rows of finished parts lie in the state store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// The multipart upload in progress.
    pub upload_id: String,
    /// Parts uploaded so far, numbered 1 to `parts`; their tags come from the store.
    pub parts: u32,
    /// The holder of each uploaded part, in runs: `(token, last part it uploaded)`; names the row objects.
    pub writers: Vec<(FencingToken, u32)>,
    /// Index of the next file in packing order.
    pub next_file: u32,
    /// Shard offset behind the last uploaded part, in bytes.
    pub offset: u64,
    /// Files packed so far.
    pub files_packed: u64,
    /// Files failed so far.
    pub files_failed: u64,
    /// Source bytes of the packed files.
    pub source_bytes: u64,
}

/// What a holder hears about its lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// It is still the holder's.
    Yes,
    /// It is still the holder's, who should hand the task back at the next part: the job is paused.
    HandBack,
    /// The job was cancelled: stop, drop the upload, say nothing more about the task.
    Cancelled,
    /// It is another's or nobody's: stop, touch nothing more.
    Lost,
}

/// A lease as its holder reports it with a heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldTask {
    /// The task.
    pub task: TaskId,
    /// The token of the lease.
    pub token: FencingToken,
    /// Source bytes packed so far, for people.
    pub done_bytes: u64,
}

/// One attempt that ended badly.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// When it ended (queue clock, Unix milliseconds).
    pub at_ms: u64,
    /// Who held the task.
    pub worker: Option<WorkerId>,
    /// Under which token.
    pub token: FencingToken,
    /// What went wrong, on one line. Cut at [`MAX_HISTORY_MESSAGE_BYTES`].
    pub message: String,
}

/// What a finished task adds to its job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskTotals {
    /// Files in a committed shard.
    pub files_packed: u64,
    /// Files in the failure list.
    pub files_failed: u64,
    /// Source bytes of the packed files.
    pub source_bytes: u64,
    /// Bytes stored: shards and big files.
    pub stored_bytes: u64,
}

/// Why a holder gives a task up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskFailure {
    /// Whether another attempt may help.
    pub permanent: bool,
    /// What went wrong, for people. Cut at [`MAX_MESSAGE_BYTES`].
    pub message: String,
}

/// What became of a failed task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailOutcome {
    /// It will be tried again at this time (queue clock, Unix milliseconds).
    Delayed {
        /// Earliest next claim.
        until_ms: u64,
    },
    /// No attempt is left, or none would help.
    Dead,
}

/// What one round of housekeeping did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tick {
    /// Tasks whose lease ran out and that wait again.
    pub expired: Vec<TaskId>,
    /// Tasks whose lease ran out once too often.
    pub died: Vec<TaskId>,
    /// Delayed tasks that wait again.
    pub revived: u64,
}

/// Counters of one job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobCounters {
    /// Tasks by state.
    pub pending: u64,
    /// Tasks held by workers.
    pub leased: u64,
    /// Tasks waiting for their next attempt.
    pub delayed: u64,
    /// Tasks finished.
    pub committed: u64,
    /// Tasks given up.
    pub dead: u64,
    /// Tasks cancelled.
    pub cancelled: u64,
    /// Sums over committed and settled tasks. A task that was given up adds nothing until it is settled.
    pub totals: TaskTotals,
    /// Sums over the checkpoints of open tasks (leased, delayed, or pending again), on top of `totals`. The offset of
    /// a checkpoint counts as stored bytes.
    pub in_progress: TaskTotals,
}

impl JobCounters {
    /// Tasks to which something will still happen.
    pub fn open(&self) -> u64 {
        self.pending + self.leased + self.delayed
    }
}

/// One task as the queue sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TaskView {
    /// The task's number in its job.
    pub number: u32,
    /// Where it is.
    pub state: TaskState,
    /// Attempts since the last progress.
    pub attempts: u32,
    /// Its holder, when leased.
    pub worker: Option<WorkerId>,
    /// The token of its last lease; 0 when it was never leased.
    pub token: FencingToken,
    /// Why the last attempt failed.
    pub message: Option<String>,
    /// The last failed attempts, oldest first, at most [`MAX_HISTORY`]. An expired lease is one of them.
    /// Empty again once the task is committed.
    pub history: Vec<Attempt>,
    /// How far it has come. A dead or cancelled task keeps its checkpoint until it is settled or forgotten, so that its
    /// upload can be dropped.
    pub checkpoint: Option<Checkpoint>,
}

/// The queue as an autoscaler sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueStats {
    /// Tasks a worker could start now.
    pub pending: u64,
    /// Tasks waiting for a retry.
    pub delayed: u64,
    /// Tasks held by workers.
    pub leased: u64,
    /// Tasks given up, of jobs still kept.
    pub dead: u64,
    /// Age in milliseconds of the task that has waited longest; 0 when none waits.
    pub oldest_pending_age_ms: u64,
    /// Jobs kept in the queue.
    pub jobs: u64,
    /// Pending tasks of paused jobs; they count in `pending` too.
    pub paused: u64,
    /// Source bytes of all pending and delayed tasks.
    pub waiting_bytes: u64,
}

/// A task a worker holds, as of its last heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerTask {
    /// The task.
    pub task: TaskId,
    /// Source bytes packed so far.
    pub done_bytes: u64,
    /// Source bytes of the task.
    pub source_bytes: u64,
}

/// A worker that sent a heartbeat lately.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerView {
    /// One run of one process.
    pub id: WorkerId,
    /// Host name and process id, for people.
    pub name: String,
    /// Tasks it can run side by side.
    pub slots: u32,
    /// Tasks it holds.
    pub leases: u32,
    /// Milliseconds since its last heartbeat.
    pub idle_ms: u64,
    /// The tasks it named in its last heartbeat and still holds.
    pub tasks: Vec<WorkerTask>,
}

/// What a worker says of itself with each heartbeat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerInfo {
    /// One run of one process.
    pub id: WorkerId,
    /// Host name and process id, for people.
    pub name: String,
    /// Tasks it can run side by side.
    pub slots: u32,
}

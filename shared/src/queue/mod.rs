//! The queue: which tasks wait, who holds which, and what became of them.
//!
//! One trait, two engines: [`memory`] (the model; runs one-machine mode) and [`redis`] (Lua scripts). Both pass
//! [`contract`], and the same random operations give the same answers on both. The queue delivers (perhaps twice), the
//! lease permits (perhaps two holders), and the receipt in the state store decides: everything here can be lost and
//! rebuilt from the state store.
//!
//! ```text
//!            claim            commit
//! pending ---------> leased ---------> committed
//!    ^  ^              | | |
//!    |  +-- release ---+ | +-- fail: permanent, or attempts used up --> dead
//!    |  +-- expired -----+
//!    +-- delayed <-- fail: transient (exponential backoff, full jitter)
//!
//! any open state -- cancel_job --> cancelled
//! ```
//!
//! A paused job keeps its tasks; none is handed out, and holders are asked to hand back at their next part.
//! `settle` takes any open task straight to `committed` or `dead`: reconciliation found its receipt.

pub mod contract;
pub mod memory;
pub mod redis;
mod values;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::ids::{FencingToken, JobId, TaskId, WorkerId};

/// A queue shared between tasks.
pub type SharedQueue = Arc<dyn Queue>;

/// Longest encoded checkpoint, in bytes: the queue's memory grows with tasks, never with files.
pub const MAX_CHECKPOINT_BYTES: usize = 2048;
/// Longest failure message kept with a task, in bytes.
pub const MAX_MESSAGE_BYTES: usize = 512;
/// Failed attempts remembered with a task, the newest.
pub const MAX_HISTORY: usize = 5;
/// Longest message of a remembered attempt, in bytes.
pub const MAX_HISTORY_MESSAGE_BYTES: usize = 200;

/// Most tasks one [`Queue::exchange`] commits: other clients wait while a step is under way.
pub const MAX_FINISHED: usize = 64;

/// Largest [`JobShare::max_running`].
pub const MAX_RUNNING: u32 = 100_000;

/// Settings of a queue, the same for every process of a namespace.
#[derive(Clone, Debug)]
pub struct QueueConfig {
    /// Key prefix and hash tag of one installation.
    pub namespace: String,
    /// How long a lease lives without a heartbeat.
    pub lease: Duration,
    /// Attempts a task gets before it is dead. Progress (a checkpoint) resets the count.
    pub max_attempts: u32,
    /// Upper bound of the first retry's delay; doubles with every attempt.
    pub backoff_base: Duration,
    /// Upper bound of any retry's delay.
    pub backoff_max: Duration,
}

impl Default for QueueConfig {
    fn default() -> Self {
        Self {
            namespace: "des".to_owned(),
            lease: Duration::from_secs(30),
            max_attempts: 5,
            backoff_base: Duration::from_secs(1),
            backoff_max: Duration::from_mins(1),
        }
    }
}

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

/// The task queue. Every method is one atomic step. Time is the queue's own (Redis TIME, or the engine's clock).
#[async_trait]
pub trait Queue: fmt::Debug + Send + Sync {
    /// Makes a job known. A known one is left as it is.
    async fn add_job(&self, job: JobId, share: JobShare) -> Result<(), QueueError>;

    /// Queues tasks of a known job; known tasks are left as they are. Returns how many were new. More than 1,000 tasks
    /// are several atomic steps.
    async fn add_tasks(&self, job: JobId, tasks: &[NewTask]) -> Result<u64, QueueError>;

    /// Leases up to `max` pending tasks (at most 1,000), fairly between jobs: the highest priority first, within it bytes
    /// shared by weight, within a job by number. Each lease has a token above all tokens before. Retries that are due
    /// become pending first, expired leases only in [`Queue::tick`]. Says the worker is alive.
    async fn claim(&self, worker: &WorkerInfo, max: usize) -> Result<Vec<Lease>, QueueError>;

    /// Renews leases and says the worker is alive. The answer says for each of `held`, in order, what became of it. A
    /// lease that ran out can be renewed and used until a tick takes it back: nobody else holds it.
    async fn heartbeat(&self, worker: &WorkerInfo, held: &[HeldTask]) -> Result<Vec<Held>, QueueError>;

    /// Records progress, renews the lease and resets the attempt count. Answers [`Held::Yes`] or [`Held::HandBack`]; the
    /// other two are errors here.
    async fn checkpoint(&self, task: TaskId, token: FencingToken, checkpoint: &Checkpoint) -> Result<Held, QueueError>;

    /// Drops a task's checkpoint: its upload is gone, the next holder starts again.
    async fn drop_checkpoint(&self, task: TaskId, token: FencingToken) -> Result<(), QueueError>;

    /// Finishes a task whose receipt is written, also when its job was paused meanwhile. Repeating it with the same token
    /// is fine: an answer may be lost.
    async fn commit(&self, task: TaskId, token: FencingToken, totals: &TaskTotals) -> Result<(), QueueError>;

    /// Commits the finished tasks, at most [`MAX_FINISHED`], then claims `free` tasks and one more for each that was
    /// committed: what [`Queue::commit`] and [`Queue::claim`] do, in one step. One task that is refused keeps no other from
    /// being committed. When no answer came, commit again and claim nothing with it: what was claimed comes back when
    /// its lease ends.
    async fn exchange(
        &self,
        worker: &WorkerInfo,
        finished: &[FinishedTask],
        free: usize,
    ) -> Result<Exchanged, QueueError>;

    /// Gives a task up for now or for good.
    async fn fail(&self, task: TaskId, token: FencingToken, failure: &TaskFailure) -> Result<FailOutcome, QueueError>;

    /// Hands a task back at once; costs no attempt.
    async fn release(&self, task: TaskId, token: FencingToken) -> Result<(), QueueError>;

    /// Takes a task to `committed` or `dead` whatever its state and holder: its receipt was found. The totals are
    /// counted once. A task the queue does not know is added in that state.
    async fn settle(&self, task: TaskId, state: TaskState, totals: &TaskTotals) -> Result<(), QueueError>;

    /// Housekeeping, at most `limit` tasks a call: expired leases and due retries become pending. Any process may call
    /// it at any time.
    async fn tick(&self, limit: usize) -> Result<Tick, QueueError>;

    /// The counters of a job; `None` when the queue does not know it.
    async fn job(&self, job: JobId) -> Result<Option<JobCounters>, QueueError>;

    /// Up to `limit` tasks of a job, by number, from `from` on.
    async fn tasks(&self, job: JobId, from: u32, limit: usize) -> Result<Vec<TaskView>, QueueError>;

    /// Every job the queue knows.
    async fn jobs(&self) -> Result<Vec<JobId>, QueueError>;

    /// Changes how a job competes, from the next claim on. Service it had in advance still counts, so that changing back
    /// and forth wins nothing.
    async fn set_share(&self, job: JobId, share: JobShare) -> Result<(), QueueError>;

    /// Pauses a job or lets it go on. Repeating it is fine. A cancelled job stays cancelled.
    async fn set_paused(&self, job: JobId, paused: bool) -> Result<(), QueueError>;

    /// Cancels a job: nothing of it is handed out any more, whatever is added later is cancelled at once, and at most
    /// `limit` open tasks (at most 250) become cancelled in this step. Holders are told at once. Returns how many are still open: call again until 0.
    async fn cancel_job(&self, job: JobId, limit: usize) -> Result<u64, QueueError>;

    /// Every invariant that does not hold, in words, at most a hundred. In bounded steps, so it can be asked of a live
    /// queue of any size; what is named is wrong, not merely under way.
    async fn audit(&self) -> Result<Vec<String>, QueueError>;

    /// Makes indexes and counters of a job agree with its tasks, and what is kept for all jobs with the jobs, in bounded
    /// steps. Returns how many things were wrong. A task that cannot be read is removed; add it again.
    async fn repair_job(&self, job: JobId) -> Result<u64, QueueError>;

    /// Forgets a job and its tasks, in bounded steps. From the first step on nobody knows it; a process that ends before
    /// the last one leaves the rest to [`Queue::tick`].
    async fn forget_job(&self, job: JobId) -> Result<(), QueueError>;

    /// Depth, age and holders.
    async fn stats(&self) -> Result<QueueStats, QueueError>;

    /// Workers whose last heartbeat is younger than two leases.
    async fn workers(&self) -> Result<Vec<WorkerView>, QueueError>;

    /// Takes or renews a named lock for `ttl`. `Some(token)` when `holder` has it now; the token stays the same while
    /// it is renewed in time and grows with each new holder.
    async fn lock(&self, name: &str, holder: &str, ttl: Duration) -> Result<Option<FencingToken>, QueueError>;

    /// Gives a named lock back if `holder` has it.
    async fn unlock(&self, name: &str, holder: &str) -> Result<(), QueueError>;

    /// Returns when a claim may succeed, or after `at_most`. May return early; never blocks a shared connection.
    async fn wait_for_work(&self, at_most: Duration);

    /// Whether the queue answers.
    async fn ping(&self) -> Result<(), QueueError>;
}

/// A queue operation that failed. The kind says what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueueError {
    /// The lease is no longer the caller's: stop the task, touch nothing more.
    #[error("task {task}: the lease with token {token} is no longer valid; another worker may hold the task")]
    Stale {
        /// The task.
        task: TaskId,
        /// The caller's token.
        token: FencingToken,
    },
    /// The job was cancelled: stop the task and drop its upload.
    #[error("task {task}: its job was cancelled")]
    Cancelled {
        /// The task.
        task: TaskId,
    },
    /// The queue has never heard of the job (or forgot it): reconciliation will bring it back.
    #[error("job {0} is not known to the queue")]
    UnknownJob(JobId),
    /// The queue cannot be reached or answered with an error: try again later.
    #[error("the queue is unavailable: {0}")]
    Unavailable(String),
    /// The queue holds something this version cannot read, or the caller asked for nonsense.
    #[error("the queue refused: {0}")]
    Invalid(String),
}

impl QueueError {
    /// Whether the same call may succeed later without anybody acting.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::UnknownJob(_))
    }
}

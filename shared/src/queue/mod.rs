//! The queue: which tasks wait, who holds which, and what became of them.
//!
//! One trait, two engines: [`memory`] (the model; runs one-machine mode) and `redis` (Lua scripts; feature `redis`). Both pass
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
#[cfg(feature = "redis")]
pub mod redis;
pub mod redis_options;
mod types;
mod values;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::clock::Dice;
use crate::ids::{FencingToken, JobId, TaskId};

pub use types::*;

/// A queue shared between tasks.
pub type SharedQueue = Arc<dyn Queue>;

/// The queue in the Redis at `options.url`. Connects when first used; [`Queue::ping`] says whether that works.
///
/// # Errors
/// [`QueueError::Invalid`] when the options cannot be used, or this build has no Redis client.
pub fn in_redis(
    options: &redis_options::RedisOptions,
    config: QueueConfig,
    dice: Arc<Dice>,
) -> Result<SharedQueue, QueueError> {
    #[cfg(feature = "redis")]
    return Ok(Arc::new(redis::RedisQueue::new(options, config, dice)?));
    #[cfg(not(feature = "redis"))]
    {
        let _ = (options, config, dice);
        Err(redis_options::no_client())
    }
}

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
    /// `limit` open tasks (at most 250) become cancelled in this step. Holders are told at once. Returns how many are
    /// still open: call again until 0.
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

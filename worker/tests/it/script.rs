//! A queue that goes deaf, goes away, or stops a worker at a checkpoint, when a test says so.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use des_shared::ids::{FencingToken, JobId, TaskId};
use des_shared::queue::{
    Checkpoint, Exchanged, FailOutcome, FinishedTask, Held, HeldTask, JobCounters, JobShare, Lease, NewTask, Queue,
    QueueError, QueueStats, SharedQueue, TaskFailure, TaskState, TaskTotals, TaskView, Tick, WorkerInfo, WorkerView,
};
use tokio::sync::watch;

#[derive(Debug)]
pub(crate) struct Script {
    inner: SharedQueue,
    /// Heartbeats are not sent, and every lease seems to be held: a zombie.
    pub(crate) deaf: AtomicBool,
    /// Nothing is answered.
    pub(crate) away: AtomicBool,
    /// Exchanges are carried out, and their answers are lost.
    pub(crate) mute: AtomicBool,
    pub(crate) exchanges: AtomicU64,
    /// Commits that claimed nothing.
    pub(crate) bare_commits: AtomicU64,
    /// No task can be handed back.
    pub(crate) takes_nothing_back: AtomicBool,
    /// No task is given out, as if other workers always asked first.
    pub(crate) gives_nothing_out: AtomicBool,
    /// After this many checkpoints every further one waits for ever, as if the process had been killed there.
    pub(crate) freeze_after: AtomicU64,
    pub(crate) checkpoints: watch::Sender<u64>,
    /// A heartbeat that names a task is asked behind the next commit, which returns once the answer is dealt with.
    pub(crate) beats_meet_commits: AtomicBool,
    /// Tasks it refused to take back.
    refused: watch::Sender<u64>,
    /// Heartbeats begun, heartbeats that wait for a commit, and commits done.
    beats: watch::Sender<u64>,
    waiting: watch::Sender<u64>,
    commits: watch::Sender<u64>,
}

impl Script {
    pub(crate) fn new(inner: SharedQueue) -> Arc<Self> {
        Arc::new(Self {
            inner,
            deaf: AtomicBool::new(false),
            away: AtomicBool::new(false),
            mute: AtomicBool::new(false),
            exchanges: AtomicU64::new(0),
            bare_commits: AtomicU64::new(0),
            takes_nothing_back: AtomicBool::new(false),
            gives_nothing_out: AtomicBool::new(false),
            refused: watch::Sender::new(0),
            freeze_after: AtomicU64::new(u64::MAX),
            checkpoints: watch::Sender::new(0),
            beats_meet_commits: AtomicBool::new(false),
            beats: watch::Sender::new(0),
            waiting: watch::Sender::new(0),
            commits: watch::Sender::new(0),
        })
    }

    /// Something was committed. Where beats meet commits, returns once the answer of a beat behind it was dealt with.
    async fn committed(&self) {
        self.commits.send_modify(|n| *n += 1);
        if self.beats_meet_commits.load(Ordering::SeqCst) {
            // The next one begins when the answer of the one before was dealt with.
            let before = *self.beats.borrow();
            self.beats.subscribe().wait_for(|n| *n > before).await.unwrap();
        }
    }

    fn check(&self) -> Result<(), QueueError> {
        if self.away.load(Ordering::SeqCst) { Err(QueueError::Unavailable("cut off".to_owned())) } else { Ok(()) }
    }

    /// How many tasks a worker may have that asks for this many.
    fn given_out(&self, asked: usize) -> usize {
        if self.gives_nothing_out.load(Ordering::SeqCst) { 0 } else { asked }
    }

    /// Returns after the n-th checkpoint was recorded.
    pub(crate) async fn checkpointed(&self, n: u64) {
        self.checkpoints.subscribe().wait_for(|done| *done >= n).await.unwrap();
    }

    /// Returns once somebody tried in vain to hand a task back.
    pub(crate) async fn somebody_was_refused(&self) {
        self.refused.subscribe().wait_for(|n| *n > 0).await.unwrap();
    }

    /// Returns once a heartbeat waits for a commit.
    pub(crate) async fn a_beat_waits(&self) {
        self.waiting.subscribe().wait_for(|n| *n > 0).await.unwrap();
    }
}

#[async_trait]
impl Queue for Script {
    async fn heartbeat(&self, worker: &WorkerInfo, held: &[HeldTask]) -> Result<Vec<Held>, QueueError> {
        self.check()?;
        if self.deaf.load(Ordering::SeqCst) {
            return Ok(vec![Held::Yes; held.len()]);
        }
        self.beats.send_modify(|n| *n += 1);
        if self.beats_meet_commits.load(Ordering::SeqCst) && !held.is_empty() {
            self.waiting.send_modify(|n| *n += 1);
            self.commits.subscribe().wait_for(|n| *n > 0).await.unwrap();
        }
        self.inner.heartbeat(worker, held).await
    }

    async fn checkpoint(&self, task: TaskId, token: FencingToken, checkpoint: &Checkpoint) -> Result<Held, QueueError> {
        self.check()?;
        let held = self.inner.checkpoint(task, token, checkpoint).await?;
        self.checkpoints.send_modify(|n| *n += 1);
        if *self.checkpoints.borrow() >= self.freeze_after.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        Ok(held)
    }

    async fn wait_for_work(&self, at_most: Duration) {
        self.inner.wait_for_work(at_most).await;
    }

    async fn add_job(&self, job: JobId, share: JobShare) -> Result<(), QueueError> {
        self.check()?;
        self.inner.add_job(job, share).await
    }

    async fn add_tasks(&self, job: JobId, tasks: &[NewTask]) -> Result<u64, QueueError> {
        self.check()?;
        self.inner.add_tasks(job, tasks).await
    }

    async fn claim(&self, worker: &WorkerInfo, max: usize) -> Result<Vec<Lease>, QueueError> {
        self.check()?;
        self.inner.claim(worker, self.given_out(max)).await
    }

    async fn drop_checkpoint(&self, task: TaskId, token: FencingToken) -> Result<(), QueueError> {
        self.check()?;
        self.inner.drop_checkpoint(task, token).await
    }

    async fn commit(&self, task: TaskId, token: FencingToken, totals: &TaskTotals) -> Result<(), QueueError> {
        self.check()?;
        self.bare_commits.fetch_add(1, Ordering::SeqCst);
        self.inner.commit(task, token, totals).await?;
        self.committed().await;
        Ok(())
    }

    async fn exchange(
        &self,
        worker: &WorkerInfo,
        finished: &[FinishedTask],
        free: usize,
    ) -> Result<Exchanged, QueueError> {
        self.check()?;
        self.exchanges.fetch_add(1, Ordering::SeqCst);
        let exchanged = self.inner.exchange(worker, finished, self.given_out(free)).await;
        if exchanged.is_ok() && !finished.is_empty() {
            self.committed().await;
        }
        if self.mute.load(Ordering::SeqCst) { Err(QueueError::Unavailable("lost".to_owned())) } else { exchanged }
    }

    async fn fail(&self, task: TaskId, token: FencingToken, failure: &TaskFailure) -> Result<FailOutcome, QueueError> {
        self.check()?;
        self.inner.fail(task, token, failure).await
    }

    async fn release(&self, task: TaskId, token: FencingToken) -> Result<(), QueueError> {
        self.check()?;
        if self.takes_nothing_back.load(Ordering::SeqCst) {
            self.refused.send_modify(|n| *n += 1);
            return Err(QueueError::Unavailable("told to refuse".to_owned()));
        }
        self.inner.release(task, token).await
    }

    async fn settle(&self, task: TaskId, state: TaskState, totals: &TaskTotals) -> Result<(), QueueError> {
        self.check()?;
        self.inner.settle(task, state, totals).await
    }

    async fn tick(&self, limit: usize) -> Result<Tick, QueueError> {
        self.check()?;
        self.inner.tick(limit).await
    }

    async fn job(&self, job: JobId) -> Result<Option<JobCounters>, QueueError> {
        self.check()?;
        self.inner.job(job).await
    }

    async fn tasks(&self, job: JobId, from: u32, limit: usize) -> Result<Vec<TaskView>, QueueError> {
        self.check()?;
        self.inner.tasks(job, from, limit).await
    }

    async fn jobs(&self) -> Result<Vec<JobId>, QueueError> {
        self.check()?;
        self.inner.jobs().await
    }

    async fn set_share(&self, job: JobId, share: JobShare) -> Result<(), QueueError> {
        self.check()?;
        self.inner.set_share(job, share).await
    }

    async fn set_paused(&self, job: JobId, paused: bool) -> Result<(), QueueError> {
        self.check()?;
        self.inner.set_paused(job, paused).await
    }

    async fn cancel_job(&self, job: JobId, limit: usize) -> Result<u64, QueueError> {
        self.check()?;
        self.inner.cancel_job(job, limit).await
    }

    async fn audit(&self) -> Result<Vec<String>, QueueError> {
        self.check()?;
        self.inner.audit().await
    }

    async fn repair_job(&self, job: JobId) -> Result<u64, QueueError> {
        self.check()?;
        self.inner.repair_job(job).await
    }

    async fn forget_job(&self, job: JobId) -> Result<(), QueueError> {
        self.check()?;
        self.inner.forget_job(job).await
    }

    async fn stats(&self) -> Result<QueueStats, QueueError> {
        self.check()?;
        self.inner.stats().await
    }

    async fn workers(&self) -> Result<Vec<WorkerView>, QueueError> {
        self.check()?;
        self.inner.workers().await
    }

    async fn lock(&self, name: &str, holder: &str, ttl: Duration) -> Result<Option<FencingToken>, QueueError> {
        self.check()?;
        self.inner.lock(name, holder, ttl).await
    }

    async fn unlock(&self, name: &str, holder: &str) -> Result<(), QueueError> {
        self.check()?;
        self.inner.unlock(name, holder).await
    }

    async fn ping(&self) -> Result<(), QueueError> {
        self.check()?;
        self.inner.ping().await
    }
}

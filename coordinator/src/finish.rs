//! Ends jobs whose tasks are all final.
//!
//! Invariant: the totals of an end are summed from receipts, never from the queue, and a job is not ended unless
//! packed + failed is what was accepted.

use des_shared::ids::{JobId, TaskId};
use des_shared::job::{EndRecord, JobRecord, JobState, PlanRecord};
use des_shared::layout;
use des_shared::queue::TaskState;
use des_shared::receipt::Receipt;

use crate::Core;
use crate::error::Error;

/// Receipts looked at at once.
const BATCH: usize = 1000;

/// Sums over receipts.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    files_packed: u64,
    files_failed: u64,
    stored_bytes: u64,
    committed: u64,
    dead: u64,
}

impl Sums {
    fn add(&mut self, receipt: &Receipt) {
        self.files_packed += receipt.totals.files_packed;
        self.files_failed += receipt.totals.files_failed;
        self.stored_bytes += receipt.totals.stored_bytes;
        if receipt.state == TaskState::Committed {
            self.committed += 1;
        } else {
            self.dead += 1;
        }
    }
}

impl Core {
    /// Ends a job of which the queue says that every task is final. False when it is not so after all.
    pub(crate) async fn finish(&self, record: &JobRecord, plan: &PlanRecord) -> Result<bool, Error> {
        let job = record.id;
        let mut sums = Sums::default();
        for (batch, sizes) in plan.tasks.chunks(BATCH).enumerate() {
            let first = (batch * BATCH) as u32;
            let receipts = self.receipts_between(job, first, sizes.len()).await?;
            for number in first..first + sizes.len() as u32 {
                match receipts.get(&number) {
                    Some(receipt) => sums.add(receipt),
                    None => match self.without_receipt(TaskId { job, number }).await? {
                        Some(receipt) => sums.add(&receipt),
                        None => return Ok(false),
                    },
                }
            }
        }
        if sums.files_packed + sums.files_failed != plan.files {
            self.own_metrics.end_refused();
            return Err(Error::Inconsistent(format!(
                "job {job} cannot be ended: {} packed + {} failed is not {} accepted; its receipts contradict its plan",
                sums.files_packed, sums.files_failed, plan.files
            )));
        }
        let state = if sums.files_failed == 0 { JobState::Completed } else { JobState::CompletedWithErrors };
        let end = EndRecord {
            state,
            error: None,
            files_packed: sums.files_packed,
            files_failed: sums.files_failed,
            stored_bytes: sums.stored_bytes,
            shards_committed: sums.committed,
            shards_dead: sums.dead,
            ended_ms: self.deps.clock.now_ms(),
        };
        self.end_job(job, &end).await?;
        Ok(true)
    }

    /// The receipt of a task that the queue calls final and that had none when the receipts were listed. `None` when
    /// it is open after all, or was made open because the queue was wrong.
    async fn without_receipt(&self, task: TaskId) -> Result<Option<Receipt>, Error> {
        let view = self.queue().tasks(task.job, task.number, 1).await?;
        match view.into_iter().find(|view| view.number == task.number).map(|view| view.state) {
            Some(TaskState::Dead) => self.bury(task).await.map(Some),
            Some(TaskState::Committed | TaskState::Cancelled) => {
                if let Some(receipt) = self.state().receipt(task).await? {
                    return Ok(Some(receipt));
                }
                // A commit without a receipt proves nothing. Forgetting the job lets the next round bring it in again
                // from what is proven; the task then finds its shard published, if it was.
                tracing::error!(%task, "the queue calls the task finished, but there is no receipt; it will run again");
                self.queue().forget_job(task.job).await?;
                Ok(None)
            }
            Some(TaskState::Pending | TaskState::Leased | TaskState::Delayed) | None => Ok(None),
        }
    }

    /// Writes the end, then lets go of what only open jobs need.
    pub(crate) async fn end_job(&self, job: JobId, end: &EndRecord) -> Result<(), Error> {
        if self.state().create(&layout::end(job), end).await? == des_shared::state::Created::Ours {
            self.own_metrics.job_ended(end.state);
            tracing::info!(%job, state = ?end.state, packed = end.files_packed, failed = end.files_failed, "job ended");
        }
        self.let_go(job).await
    }

    /// Removes an ended job from the queue and from the open jobs.
    pub(crate) async fn let_go(&self, job: JobId) -> Result<(), Error> {
        self.queue().forget_job(job).await?;
        self.state().delete(&layout::open_marker(job)).await?;
        Ok(())
    }
}

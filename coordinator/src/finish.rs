//! Ends jobs whose tasks are all final.
//!
//! Invariant: the totals of an end are summed from receipts, never from the queue, and a job is not ended unless
//! packed + failed is what was accepted. That holds for cancelled jobs too: what was not packed has failed.

use std::collections::BTreeMap;

use des_shared::control::{ControlRecord, Hold};
use des_shared::ids::{JobId, TaskId};
use des_shared::job::{EndRecord, JobRecord, JobState, PlanRecord};
use des_shared::layout;
use des_shared::queue::{TaskState, TaskView};
use des_shared::receipt::Receipt;
use des_shared::state::Created;
use futures::stream::{self, StreamExt, TryStreamExt};

use crate::Core;
use crate::error::Error;

/// Receipts looked at at once.
const BATCH: usize = 1000;
/// Tasks closed side by side.
const CLOSES: usize = 16;

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
        let control = self.state().control(job).await?;
        let Some(sums) = self.close_all(plan, job, &control).await? else { return Ok(false) };
        if sums.files_packed + sums.files_failed != plan.files {
            self.own_metrics.end_refused();
            return Err(Error::Inconsistent(format!(
                "job {job} cannot be ended: {} packed + {} failed is not {} accepted; its receipts contradict its plan",
                sums.files_packed, sums.files_failed, plan.files
            )));
        }
        if control.hold == Hold::Cancelled && control.drop_shards {
            self.drop_shards(record).await?;
        }
        let state = match (control.hold, sums.files_failed) {
            (Hold::Cancelled, _) => JobState::Cancelled,
            (Hold::None | Hold::Paused, 0) => JobState::Completed,
            (Hold::None | Hold::Paused, _) => JobState::CompletedWithErrors,
        };
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

    /// Sums over all receipts, written where a final task has none. `None` when a task is open after all.
    async fn close_all(&self, plan: &PlanRecord, job: JobId, control: &ControlRecord) -> Result<Option<Sums>, Error> {
        let mut sums = Sums::default();
        for (batch, sizes) in plan.tasks.chunks(BATCH).enumerate() {
            let first = (batch * BATCH) as u32;
            let receipts = self.receipts_between(job, first, sizes.len()).await?;
            for receipt in receipts.values() {
                sums.add(receipt);
            }
            let numbers = first..first + sizes.len() as u32;
            let lacking: Vec<u32> = numbers.filter(|number| !receipts.contains_key(number)).collect();
            if lacking.is_empty() {
                continue;
            }
            let tasks = self.queue().tasks(job, first, sizes.len()).await?;
            let tasks: BTreeMap<u32, TaskView> = tasks.into_iter().map(|task| (task.number, task)).collect();
            let mut closes = stream::iter(lacking)
                .map(|number| self.close(TaskId { job, number }, tasks.get(&number), control))
                .buffer_unordered(CLOSES);
            let mut open = false;
            while let Some(receipt) = closes.try_next().await? {
                match receipt {
                    Some(receipt) => sums.add(&receipt),
                    None => open = true,
                }
            }
            if open {
                return Ok(None);
            }
        }
        Ok(Some(sums))
    }

    /// The receipt of a task that the queue calls final and that had none when the receipts were listed. `None` when
    /// it is open after all, or was made open because the queue was wrong.
    async fn close(
        &self,
        task: TaskId,
        view: Option<&TaskView>,
        control: &ControlRecord,
    ) -> Result<Option<Receipt>, Error> {
        let Some(view) = view else { return Ok(None) };
        match view.state {
            TaskState::Dead => self.bury(task, view).await.map(Some),
            TaskState::Cancelled if control.hold == Hold::Cancelled => self.call_off(task, view, control).await,
            TaskState::Committed | TaskState::Cancelled => {
                if let Some(receipt) = self.state().receipt(task).await? {
                    return Ok(Some(receipt));
                }
                // A commit without a receipt proves nothing. Forgetting the job lets the next round bring it in again
                // from what is proven; the task then finds its shard published, if it was.
                tracing::error!(%task, "the queue calls the task finished, but there is no receipt; it will run again");
                self.queue().forget_job(task.job).await?;
                Ok(None)
            }
            TaskState::Pending | TaskState::Leased | TaskState::Delayed => Ok(None),
        }
    }

    /// Writes the end, then lets go of what only open jobs need.
    pub(crate) async fn end_job(&self, job: JobId, end: &EndRecord) -> Result<(), Error> {
        if self.state().create(&layout::end(job), end).await? == Created::Ours {
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

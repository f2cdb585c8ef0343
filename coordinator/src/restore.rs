//! Brings a planned job's tasks into the queue, whatever is there already: after planning, and after the queue lost
//! its data.
//!
//! Invariant: a task with a receipt is settled before any task is added, so that no worker can claim it again.

use std::collections::BTreeMap;

use des_shared::ids::{JobId, TaskId};
use des_shared::job::{JobRecord, PlanRecord};
use des_shared::layout;
use des_shared::queue::{JobCounters, NewTask, QueueError, TaskView};
use des_shared::receipt::Receipt;
use des_shared::state::StateError;
use futures::stream::{self, StreamExt, TryStreamExt};

use crate::Core;
use crate::error::Error;

/// Tasks brought in at once.
const BATCH: usize = 1000;
/// Receipts read side by side.
const READS: usize = 16;

/// Tasks of a job in any state.
pub(crate) fn known_tasks(counters: &JobCounters) -> u64 {
    counters.open() + counters.committed + counters.dead + counters.cancelled
}

impl Core {
    /// Makes the queue know the job and all its tasks, settled where there is a receipt.
    pub(crate) async fn restore(&self, record: &JobRecord, plan: &PlanRecord) -> Result<(), Error> {
        let job = record.id;
        self.no_shard_is_going().await?;
        self.queue().add_job(job, record.options.share).await?;
        // Before its tasks, so that none of a paused or cancelled job is handed out in between.
        self.apply_control(job).await?;
        for (batch, sizes) in plan.tasks.chunks(BATCH).enumerate() {
            let first = (batch * BATCH) as u32;
            let receipts = self.receipts_between(job, first, sizes.len()).await?;
            for receipt in receipts.values() {
                self.queue().settle(receipt.task, receipt.state, &receipt.totals).await?;
            }
            let tasks: Vec<NewTask> = (first..)
                .zip(sizes)
                .filter(|(number, _)| !receipts.contains_key(number))
                .map(|(number, &source_bytes)| NewTask { number, source_bytes })
                .collect();
            if !tasks.is_empty() {
                self.queue().add_tasks(job, &tasks).await?;
            }
        }
        self.own_metrics.job_restored();
        tracing::info!(%job, tasks = plan.tasks.len(), "queued");
        Ok(())
    }

    /// Settles tasks that have a receipt but are open in the queue: their worker died between the two, or the queue
    /// went back in time. Returns how many there were.
    pub(crate) async fn settle_finished(&self, job: JobId, tasks: u32) -> Result<u64, Error> {
        let mut settled = 0;
        for first in (0..tasks).step_by(BATCH) {
            let count = BATCH.min((tasks - first) as usize);
            let finished = self.receipt_numbers(job, first, count).await?;
            if finished.is_empty() {
                continue;
            }
            for task in self.queue().tasks(job, first, count).await? {
                if task.state.is_final() || finished.binary_search(&task.number).is_err() {
                    continue;
                }
                let id = TaskId { job, number: task.number };
                if let Some(receipt) = self.state().receipt(id).await? {
                    self.queue().settle(id, receipt.state, &receipt.totals).await?;
                    settled += 1;
                }
            }
        }
        Ok(settled)
    }

    /// Tasks as the queue sees them; none when it does not know the job (any more).
    pub(crate) async fn tasks_if_known(&self, job: JobId, first: u32, limit: usize) -> Result<Vec<TaskView>, Error> {
        match self.queue().tasks(job, first, limit).await {
            Err(QueueError::UnknownJob(_)) => Ok(Vec::new()),
            other => Ok(other?),
        }
    }

    /// The receipts of the tasks `first .. first + count`, by number.
    pub(crate) async fn receipts_between(
        &self,
        job: JobId,
        first: u32,
        count: usize,
    ) -> Result<BTreeMap<u32, Receipt>, Error> {
        let numbers = self.receipt_numbers(job, first, count).await?;
        stream::iter(numbers)
            .map(|number| async move {
                let task = TaskId { job, number };
                let receipt = self.state().receipt(task).await?.ok_or_else(|| StateError::Corrupt {
                    key: layout::receipt(task),
                    why: "it was listed and is not there".to_owned(),
                })?;
                Ok::<_, Error>((number, receipt))
            })
            .buffered(READS)
            .try_collect()
            .await
    }

    /// The numbers of the tasks `first .. first + count` that have a receipt, ascending.
    pub(crate) async fn receipt_numbers(&self, job: JobId, first: u32, count: usize) -> Result<Vec<u32>, Error> {
        let prefix = layout::receipt_prefix(job);
        let end = u64::from(first) + count as u64;
        let mut after = first.checked_sub(1).map(|number| layout::receipt(TaskId { job, number }));
        let mut numbers = Vec::new();
        loop {
            let page = self.state().objects().list(&prefix, after.as_deref(), BATCH).await?;
            for object in &page.objects {
                let Some(task) = layout::task_of_receipt(&object.key) else { continue };
                if u64::from(task.number) >= end {
                    return Ok(numbers);
                }
                // Numbers of more than eight digits sort before shorter ones; those below are not ours.
                if task.number >= first {
                    numbers.push(task.number);
                }
            }
            match page.next {
                Some(next) => after = Some(next),
                None => return Ok(numbers),
            }
        }
    }
}

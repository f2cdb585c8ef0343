//! Open jobs: state store against queue.

use des_shared::ids::{JobId, TaskId};
use des_shared::job::{EndRecord, JobRecord, PlanRecord};
use des_shared::layout;
use des_shared::queue::TaskState;
use des_shared::state::StateError;
use des_shared::store::StoreErrorKind;

use super::{Audit, FindingKind, Stop, of_job};
use crate::restore::known_tasks;

/// Looks that have to agree before something is called wrong.
const LOOKS: u32 = 3;
/// Looks after which what keeps moving is taken for alive.
const MOST_LOOKS: u32 = 20;
/// Tasks compared at once.
const BATCH: usize = 1000;

/// What of a job the queue lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lack {
    Job,
    /// It knows only so many tasks.
    Tasks(u64),
}

impl Audit {
    /// Everything about one job of the state store.
    pub(super) async fn job(&mut self, job: JobId) -> Result<(), Stop> {
        self.seen.jobs += 1;
        match self.job_readable(job).await {
            Err(Stop::Failed(crate::Error::State(StateError::Corrupt { key, why }))) => {
                let detail = format!("{key} cannot be read: {why}");
                self.tell(of_job(FindingKind::Unreadable, job, detail)).await
            }
            other => other,
        }
    }

    async fn job_readable(&mut self, job: JobId) -> Result<(), Stop> {
        // Without a record it is a submission under way or a leftover of one, which the reconciler removes in time.
        let Some(record) = self.core.state().job(job).await? else { return Ok(()) };
        let plan = self.core.state().plan(job).await?;
        let end = self.core.state().end(job).await?;
        if end.is_none() {
            self.marker(job).await?;
            if let Some(plan) = &plan {
                self.queued(&record, plan).await?;
                self.tasks(job, plan).await?;
            }
        }
        self.receipts(&record, plan.as_ref(), end.as_ref()).await
    }

    /// Whether the job has ended, or was removed, since it was looked at.
    pub(super) async fn is_over(&self, job: JobId) -> Result<bool, Stop> {
        let (end, record) = (self.core.state().end(job).await?, self.core.state().job(job).await?);
        Ok(end.is_some() || record.is_none())
    }

    async fn marker(&mut self, job: JobId) -> Result<(), Stop> {
        let key = layout::open_marker(job);
        for look in 0..LOOKS {
            if look > 0 {
                self.pause().await;
            }
            match self.core.state().objects().head(&key).await {
                Ok(_) => return Ok(()),
                Err(e) if e.kind == StoreErrorKind::NotFound => {}
                Err(e) => return Err(e.into()),
            }
            if self.is_over(job).await? {
                return Ok(());
            }
        }
        let mut finding = of_job(FindingKind::MarkerMissing, job, format!("the open job has no marker {key}"));
        if self.repair {
            self.core.state().write_bytes(&key, "{}".into()).await?;
            finding.repaired = true;
        }
        self.tell(finding).await
    }

    async fn lack(&self, job: JobId, plan: &PlanRecord) -> Result<Option<Lack>, Stop> {
        Ok(match self.core.queue().job(job).await? {
            None => Some(Lack::Job),
            Some(counters) if known_tasks(&counters) == plan.tasks.len() as u64 => None,
            Some(counters) => Some(Lack::Tasks(known_tasks(&counters))),
        })
    }

    /// Whether every task of an open job is in the queue. One that is being queued just now gets more from look to look.
    async fn queued(&mut self, record: &JobRecord, plan: &PlanRecord) -> Result<(), Stop> {
        let job = record.id;
        let (mut before, mut agreed) = (None, 0);
        for _ in 0..MOST_LOOKS {
            let Some(lack) = self.lack(job, plan).await? else { return Ok(()) };
            if self.is_over(job).await? {
                return Ok(());
            }
            agreed = if before == Some(lack) { agreed + 1 } else { 1 };
            before = Some(lack);
            if agreed == LOOKS {
                break;
            }
            self.pause().await;
        }
        let tasks = plan.tasks.len();
        let mut finding = match before {
            Some(_) if agreed < LOOKS => return Ok(()),
            Some(Lack::Tasks(known)) => {
                let detail = format!("the open job has {tasks} tasks, and the queue knows {known} of them");
                of_job(FindingKind::TasksNotQueued, job, detail)
            }
            _ => of_job(FindingKind::JobNotQueued, job, format!("the open job of {tasks} tasks is not in the queue")),
        };
        if self.repair {
            self.core.restore(record, plan).await?;
            finding.repaired = self.lack(job, plan).await?.is_none();
        }
        self.tell(finding).await
    }

    /// Tasks against receipts.
    async fn tasks(&mut self, job: JobId, plan: &PlanRecord) -> Result<(), Stop> {
        for first in (0..plan.tasks.len() as u32).step_by(BATCH) {
            // The queue first: whoever commits has written the receipt before.
            let tasks = self.core.tasks_if_known(job, first, BATCH).await?;
            let finished = self.core.receipt_numbers(job, first, BATCH).await?;
            let doubtful: Vec<u32> = tasks
                .iter()
                .filter(|task| {
                    let has_receipt = finished.binary_search(&task.number).is_ok();
                    match task.state {
                        TaskState::Committed => !has_receipt,
                        TaskState::Pending | TaskState::Leased | TaskState::Delayed => has_receipt,
                        // Both get theirs when the job is looked at next, or in the end.
                        TaskState::Dead | TaskState::Cancelled => false,
                    }
                })
                .map(|task| task.number)
                .collect();
            if doubtful.is_empty() {
                continue;
            }
            self.pause().await;
            for number in doubtful {
                self.task(TaskId { job, number }).await?;
            }
        }
        Ok(())
    }

    /// One doubtful task, looked at again.
    async fn task(&mut self, id: TaskId) -> Result<(), Stop> {
        let view = self.core.tasks_if_known(id.job, id.number, 1).await?;
        let state = view.iter().find(|task| task.number == id.number).map(|task| task.state);
        let receipt = self.core.state().receipt(id).await?;
        if self.is_over(id.job).await? {
            return Ok(());
        }
        let (kind, detail) = match (state, &receipt) {
            (Some(TaskState::Committed), None) => {
                (FindingKind::CommitWithoutReceipt, "the queue calls the task committed, and it has no receipt")
            }
            (Some(TaskState::Pending | TaskState::Leased | TaskState::Delayed), Some(receipt)) => {
                let age = self.core.deps.clock.now_ms().saturating_sub(receipt.finished_ms);
                // Its worker is about to commit, or died in between, which the reconciler finds in its next round.
                if u128::from(age) < self.core.config.limits.audit_settled.as_millis() {
                    return Ok(());
                }
                (FindingKind::ReceiptNotSettled, "the task has its receipt and is open in the queue")
            }
            _ => return Ok(()),
        };
        let mut finding = of_job(kind, id.job, format!("task {id}: {detail}"));
        finding.task = Some(id.number);
        if self.repair {
            match receipt {
                Some(receipt) => self.core.queue().settle(id, receipt.state, &receipt.totals).await?,
                // The job comes back from what is proven, see `Core::close`.
                None => self.bring_back(id.job).await?,
            }
            finding.repaired = true;
        }
        self.tell(finding).await
    }

    async fn bring_back(&self, job: JobId) -> Result<(), Stop> {
        self.core.queue().forget_job(job).await?;
        if let (Some(record), Some(plan)) = (self.core.state().job(job).await?, self.core.state().plan(job).await?) {
            self.core.restore(&record, &plan).await?;
        }
        Ok(())
    }

    /// Jobs of the queue that should not be there.
    pub(super) async fn queued_jobs(&mut self) -> Result<(), Stop> {
        for job in self.core.queue().jobs().await? {
            let mut stray = self.stray(job).await?;
            for _ in 1..LOOKS {
                if stray.is_none() {
                    break;
                }
                self.pause().await;
                // One that is being ended is forgotten a moment later.
                let there = self.core.queue().job(job).await?.is_some();
                stray = if there { self.stray(job).await? } else { None };
            }
            let Some((kind, detail)) = stray else { continue };
            let mut finding = of_job(kind, job, detail);
            if self.repair && kind == FindingKind::EndedJobQueued {
                self.core.queue().forget_job(job).await?;
                finding.repaired = true;
            }
            self.tell(finding).await?;
        }
        Ok(())
    }

    async fn stray(&self, job: JobId) -> Result<Option<(FindingKind, String)>, Stop> {
        let end: Option<EndRecord> = self.core.state().end(job).await?;
        Ok(match end {
            Some(end) => {
                let detail = format!("the job is {}, and the queue still keeps it", end.state.label());
                Some((FindingKind::EndedJobQueued, detail))
            }
            None if self.core.state().job(job).await?.is_none() => {
                let detail = "the queue keeps a job that the state store does not know: is it the right one, and the \
                              right namespace?";
                Some((FindingKind::UnknownJobQueued, detail.to_owned()))
            }
            None => None,
        })
    }
}

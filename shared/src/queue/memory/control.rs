//! What is done to whole jobs, and to tasks without a lease.

use std::collections::btree_map::Entry;

use super::state::{Hold, Job, State, Task, counter};
use crate::ids::{JobId, TaskId};
use crate::queue::values::progress;
use crate::queue::{JobCounters, JobShare, QueueError, TaskState, TaskTotals};

impl State {
    pub(super) fn settle(&mut self, id: TaskId, state: TaskState, totals: &TaskTotals) -> Result<(), QueueError> {
        let job = self.jobs.get_mut(&id.job).ok_or(QueueError::UnknownJob(id.job))?;
        if let Entry::Vacant(place) = job.tasks.entry(id.number) {
            // One that was never queued: as if it had been cancelled until now.
            place.insert(Task { state: TaskState::Cancelled, ..Task::new(0) });
            job.counters.cancelled += 1;
        }
        self.finish(id, state, totals);
        Ok(())
    }

    fn job_mut(&mut self, job: JobId) -> Result<&mut Job, QueueError> {
        self.jobs.get_mut(&job).ok_or(QueueError::UnknownJob(job))
    }

    pub(super) fn set_share(&mut self, id: JobId, share: JobShare) -> Result<(), QueueError> {
        let job = self.jobs.get_mut(&id).ok_or(QueueError::UnknownJob(id))?;
        self.order.change(id, &mut job.place, share);
        self.place(id);
        Ok(())
    }

    pub(super) fn set_paused(&mut self, id: JobId, paused: bool) -> Result<(), QueueError> {
        let job = self.job_mut(id)?;
        let pending = job.counters.pending;
        match (job.hold, paused) {
            (Hold::None, true) => {
                job.hold = Hold::Paused;
                self.paused += pending;
            }
            (Hold::Paused, false) => {
                job.hold = Hold::None;
                self.paused -= pending;
            }
            _ => {}
        }
        self.place(id);
        Ok(())
    }

    pub(super) fn cancel_job(&mut self, id: JobId, limit: usize) -> Result<u64, QueueError> {
        let job = self.job_mut(id)?;
        let pending = job.counters.pending;
        if std::mem::replace(&mut job.hold, Hold::Cancelled) == Hold::Paused {
            self.paused -= pending;
        }
        self.place(id);
        let job = self.job_mut(id)?;
        let in_state = |state| job.tasks.iter().filter(move |(_, task)| task.state == state).map(|(&number, _)| number);
        let open = [TaskState::Pending, TaskState::Leased, TaskState::Delayed].into_iter().flat_map(in_state);
        let open: Vec<u32> = open.take(limit).collect();
        for number in open {
            self.shift(TaskId { job: id, number }, TaskState::Cancelled, 0);
        }
        Ok(self.job_mut(id)?.counters.open())
    }

    pub(super) fn forget_job(&mut self, job: JobId) {
        let Some(entry) = self.jobs.get(&job) else { return };
        let numbers: Vec<u32> = entry.tasks.keys().copied().collect();
        for number in numbers {
            self.leave(TaskId { job, number });
        }
        if let Some(entry) = self.jobs.remove(&job) {
            self.order.leave(job, &entry.place);
        }
        if self.jobs.is_empty() {
            self.order.reset();
        }
    }

    /// Counts a job again. Nothing but a defect of this program can have put it out of order.
    pub(super) fn repair_job(&mut self, id: JobId) -> Result<u64, QueueError> {
        let job = self.job_mut(id)?;
        let counted = job.count();
        let wrong = u64::from(counted != job.counters);
        job.counters = counted;
        let pending = job.tasks.iter().filter(|(_, task)| task.state == TaskState::Pending).map(|(&number, _)| number);
        let pending = pending.collect();
        let wrong = wrong + u64::from(pending != job.pending);
        job.pending = pending;
        self.place(id);
        Ok(wrong)
    }
}

impl Job {
    /// The counters as the tasks give them.
    pub(super) fn count(&self) -> JobCounters {
        let mut counted = JobCounters::default();
        for task in self.tasks.values() {
            *counter(&mut counted, task.state) += 1;
            counted.totals.change(&task.totals, &TaskTotals::default());
            if let (false, Some(checkpoint)) = (task.state.is_final(), &task.checkpoint) {
                counted.in_progress.change(&progress(checkpoint), &TaskTotals::default());
            }
        }
        counted
    }
}

//! What the in-memory queue shows, and its locks.

use std::collections::BTreeMap;

use super::state::{Lock, State, Task, Worker};
use crate::ids::{FencingToken, JobId, WorkerId};
use crate::queue::{QueueConfig, QueueError, QueueStats, TaskState, TaskView, WorkerTask, WorkerView};

impl State {
    pub(super) fn tasks(&self, job: JobId, from: u32, limit: usize) -> Result<Vec<TaskView>, QueueError> {
        let job = self.jobs.get(&job).ok_or(QueueError::UnknownJob(job))?;
        let view = |(&number, task): (&u32, &Task)| TaskView {
            number,
            state: task.state,
            attempts: task.attempts,
            worker: task.worker,
            token: FencingToken(task.token),
            message: task.message.clone(),
            history: task.history.clone(),
            checkpoint: task.checkpoint.clone(),
        };
        Ok(job.tasks.range(from..).take(limit).map(view).collect())
    }

    pub(super) fn stats(&self, now: u64) -> QueueStats {
        QueueStats {
            pending: self.waiting.len() as u64,
            delayed: self.delayed.len() as u64,
            leased: self.leases.len() as u64,
            dead: self.dead,
            oldest_pending_age_ms: self.waiting.first().map_or(0, |&(since, _)| now.saturating_sub(since)),
            jobs: self.jobs.len() as u64,
            paused: self.paused,
            waiting_bytes: self.waiting_bytes,
        }
    }

    pub(super) fn workers(&self, now: u64, config: &QueueConfig) -> Vec<WorkerView> {
        let mut leases: BTreeMap<WorkerId, u32> = BTreeMap::new();
        for &(_, id) in &self.leases {
            if let Some(worker) = self.task(id).and_then(|task| task.worker) {
                *leases.entry(worker).or_default() += 1;
            }
        }
        let view = |(&id, worker): (&WorkerId, &Worker)| WorkerView {
            id,
            name: worker.name.clone(),
            slots: worker.slots,
            leases: leases.get(&id).copied().unwrap_or(0),
            idle_ms: now.saturating_sub(worker.seen_ms),
            tasks: self.running(worker),
        };
        let lately = super::lately(config);
        self.workers.iter().map(view).filter(|worker| worker.idle_ms < lately).collect()
    }

    /// The tasks a worker named and still holds.
    fn running(&self, worker: &Worker) -> Vec<WorkerTask> {
        let still = worker.tasks.iter().filter_map(|held| {
            let task = self.task(held.task)?;
            let still = task.state == TaskState::Leased && task.token == held.token.0;
            still.then_some(WorkerTask { task: held.task, done_bytes: held.done_bytes, source_bytes: task.bytes })
        });
        still.collect()
    }

    pub(super) fn lock(&mut self, now: u64, name: &str, holder: &str, ttl_ms: u64) -> Option<FencingToken> {
        let token = match self.locks.get(name) {
            Some(lock) if lock.until_ms > now && lock.holder != holder => return None,
            Some(lock) if lock.until_ms > now => lock.token,
            _ => self.next_token(now),
        };
        let lock = Lock { holder: holder.to_owned(), token, until_ms: now + ttl_ms };
        self.locks.insert(name.to_owned(), lock);
        Some(FencingToken(token))
    }

    pub(super) fn unlock(&mut self, name: &str, holder: &str) {
        if self.locks.get(name).is_some_and(|lock| lock.holder == holder) {
            self.locks.remove(name);
        }
    }
}

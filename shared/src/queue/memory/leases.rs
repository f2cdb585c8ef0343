//! Handing tasks out, and what their holders say.

use super::state::{Hold, State, Worker};
use crate::ids::{FencingToken, TaskId, WorkerId};
use crate::queue::values::{
    CLAIM_REVIVES, EXPIRED_ATTEMPT, EXPIRED_MESSAGE, MAX_EXACT, MAX_SHOWN_TASKS, MAX_WORKER_NAME_BYTES, backoff_bound,
    cut, history_message, jitter, millis,
};
use crate::queue::{
    Attempt, Checkpoint, Exchanged, FailOutcome, FinishedTask, Held, HeldTask, Lease, MAX_HISTORY, MAX_MESSAGE_BYTES,
    QueueConfig, QueueError, TaskFailure, TaskState, TaskTotals, Tick, WorkerInfo,
};

impl State {
    pub(super) fn claim(&mut self, now: u64, config: &QueueConfig, worker: &WorkerInfo, max: usize) -> Vec<Lease> {
        self.see(now, config, worker);
        self.revive(now, CLAIM_REVIVES);
        let mut leases = Vec::new();
        while leases.len() < max {
            let Some(lease) = self.claim_one(now, config, worker.id) else { break };
            leases.push(lease);
        }
        leases
    }

    fn claim_one(&mut self, now: u64, config: &QueueConfig, worker: WorkerId) -> Option<Lease> {
        let job = self.order.first()?;
        let entry = self.jobs.get_mut(&job)?;
        let number = *entry.pending.first()?;
        let bytes = entry.tasks.get(&number)?.bytes;
        self.order.serve(job, &mut entry.place, bytes);
        let id = TaskId { job, number };
        let token = self.next_token(now);
        self.shift(id, TaskState::Leased, now + millis(config.lease));
        let task = self.task_mut(id)?;
        task.worker = Some(worker);
        task.token = token;
        task.attempts = task.attempts.saturating_add(1);
        Some(Lease {
            task: id,
            token: FencingToken(token),
            attempt: task.attempts,
            checkpoint: task.checkpoint.clone(),
        })
    }

    pub(super) fn heartbeat(
        &mut self,
        now: u64,
        config: &QueueConfig,
        worker: &WorkerInfo,
        held: &[HeldTask],
    ) -> Vec<Held> {
        self.see(now, config, worker);
        let answers: Vec<Held> = held
            .iter()
            .map(|held| match self.held(held.task, held.token) {
                Ok(answer) => {
                    self.shift(held.task, TaskState::Leased, now + millis(config.lease));
                    answer
                }
                Err(QueueError::Cancelled { .. }) => Held::Cancelled,
                Err(_) => Held::Lost,
            })
            .collect();
        let named = held.iter().zip(&answers).filter(|(_, answer)| matches!(answer, Held::Yes | Held::HandBack));
        let named = named.map(|(held, _)| HeldTask { done_bytes: held.done_bytes.min(MAX_EXACT), ..*held });
        if let Some(worker) = self.workers.get_mut(&worker.id) {
            worker.tasks = named.take(MAX_SHOWN_TASKS).collect();
        }
        answers
    }

    pub(super) fn checkpoint(
        &mut self,
        now: u64,
        config: &QueueConfig,
        (id, token): (TaskId, FencingToken),
        checkpoint: Option<&Checkpoint>,
    ) -> Result<Held, QueueError> {
        let held = self.held(id, token)?;
        self.set_checkpoint(id, checkpoint.cloned());
        if checkpoint.is_some() {
            self.shift(id, TaskState::Leased, now + millis(config.lease));
            if let Some(task) = self.task_mut(id) {
                task.attempts = 0;
            }
        }
        Ok(held)
    }

    pub(super) fn commit(&mut self, id: TaskId, token: FencingToken, totals: &TaskTotals) -> Result<(), QueueError> {
        if self.task(id).is_some_and(|task| task.state == TaskState::Committed && task.token == token.0) {
            return Ok(());
        }
        self.held(id, token)?;
        self.finish(id, TaskState::Committed, totals);
        Ok(())
    }

    /// Everything of it at `now`.
    pub(super) fn exchange(
        &mut self,
        now: u64,
        config: &QueueConfig,
        worker: &WorkerInfo,
        (finished, free): (&[FinishedTask], usize),
    ) -> Exchanged {
        let committed: Vec<_> = finished.iter().map(|done| self.commit(done.task, done.token, &done.totals)).collect();
        let freed = committed.iter().filter(|answer| answer.is_ok()).count();
        Exchanged { leases: self.claim(now, config, worker, free + freed), committed }
    }

    pub(super) fn fail(
        &mut self,
        now: u64,
        config: &QueueConfig,
        (id, token): (TaskId, FencingToken),
        failure: &TaskFailure,
        roll: u64,
    ) -> Result<FailOutcome, QueueError> {
        self.held(id, token)?;
        self.remember(id, now, history_message(&failure.message));
        let Some(task) = self.task_mut(id) else { return Err(QueueError::UnknownJob(id.job)) };
        task.message = Some(cut(&failure.message, MAX_MESSAGE_BYTES).to_owned());
        let attempts = task.attempts;
        if failure.permanent || attempts >= config.max_attempts {
            self.shift(id, TaskState::Dead, 0);
            return Ok(FailOutcome::Dead);
        }
        let until_ms = now + jitter(roll, backoff_bound(config, attempts));
        self.shift(id, TaskState::Delayed, until_ms);
        Ok(FailOutcome::Delayed { until_ms })
    }

    pub(super) fn release(&mut self, now: u64, id: TaskId, token: FencingToken) -> Result<(), QueueError> {
        self.held(id, token)?;
        if let Some(task) = self.task_mut(id) {
            task.attempts = task.attempts.saturating_sub(1);
        }
        self.shift(id, TaskState::Pending, now);
        Ok(())
    }

    pub(super) fn tick(&mut self, now: u64, config: &QueueConfig, limit: usize) -> Tick {
        self.prune(now, config);
        let mut tick = Tick::default();
        let late = super::due(&self.leases, now, limit);
        let rest = limit - late.len();
        for id in late {
            if self.jobs.get(&id.job).is_some_and(|job| job.hold == Hold::Cancelled) {
                self.shift(id, TaskState::Cancelled, 0);
                continue;
            }
            self.remember(id, now, EXPIRED_ATTEMPT.to_owned());
            let Some(task) = self.task_mut(id) else { continue };
            if task.attempts >= config.max_attempts {
                task.message = Some(EXPIRED_MESSAGE.to_owned());
                self.shift(id, TaskState::Dead, 0);
                tick.died.push(id);
            } else {
                self.shift(id, TaskState::Pending, now);
                tick.expired.push(id);
            }
        }
        tick.revived = self.revive(now, rest);
        tick
    }

    fn see(&mut self, now: u64, config: &QueueConfig, worker: &WorkerInfo) {
        self.prune(now, config);
        let name = cut(&worker.name, MAX_WORKER_NAME_BYTES).to_owned();
        let new = Worker { name, slots: worker.slots, seen_ms: now, tasks: Vec::new() };
        let known = self.workers.remove(&worker.id);
        self.workers.insert(worker.id, Worker { tasks: known.map(|known| known.tasks).unwrap_or_default(), ..new });
    }

    fn revive(&mut self, now: u64, limit: usize) -> u64 {
        let mut revived = 0;
        for id in super::due(&self.delayed, now, limit) {
            self.shift(id, TaskState::Pending, now);
            revived += u64::from(self.task(id).is_some_and(|task| task.state == TaskState::Pending));
        }
        revived
    }

    /// The last step of a task; its totals replace those it had, so they are counted once. Its upload is done with.
    pub(super) fn finish(&mut self, id: TaskId, state: TaskState, totals: &TaskTotals) {
        self.set_checkpoint(id, None);
        self.shift(id, state, 0);
        let Some(job) = self.jobs.get_mut(&id.job) else { return };
        let Some(task) = job.tasks.get_mut(&id.number) else { return };
        job.counters.totals.change(totals, &task.totals);
        task.totals = *totals;
        if state == TaskState::Committed {
            task.message = None;
            task.history.clear();
        }
    }

    /// Adds an attempt that ended badly to the task's history. Its holder is still known.
    fn remember(&mut self, id: TaskId, at_ms: u64, message: String) {
        let Some(task) = self.task_mut(id) else { return };
        if task.history.len() >= MAX_HISTORY {
            task.history.remove(0);
        }
        task.history.push(Attempt { at_ms, worker: task.worker, token: FencingToken(task.token), message });
    }

    /// What the holder of a token hears; an error when the token is not that of the task's present lease.
    fn held(&self, id: TaskId, token: FencingToken) -> Result<Held, QueueError> {
        let job = self.jobs.get(&id.job).ok_or(QueueError::UnknownJob(id.job))?;
        let stale = Err(QueueError::Stale { task: id, token });
        let Some(task) = job.tasks.get(&id.number) else { return stale };
        if task.token != token.0 || token.0 == 0 {
            return stale;
        }
        match (task.state, job.hold) {
            (TaskState::Cancelled, _) | (TaskState::Leased, Hold::Cancelled) => Err(QueueError::Cancelled { task: id }),
            (TaskState::Leased, Hold::Paused) => Ok(Held::HandBack),
            (TaskState::Leased, Hold::None) => Ok(Held::Yes),
            _ => stale,
        }
    }
}

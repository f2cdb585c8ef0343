//! Everything the in-memory queue knows, and each change of it. Given the same calls at the same times it is always the
//! same; the Lua scripts of the Redis engine are held against it.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use super::fair::{FairOrder, Place};
use crate::ids::{FencingToken, JobId, TaskId, WorkerId};
use crate::queue::values::{
    CLAIM_REVIVES, EXPIRED_MESSAGE, MAX_WORKER_NAME_BYTES, backoff_bound, cut, jitter, millis, progress,
};
use crate::queue::{
    Checkpoint, FailOutcome, JobCounters, JobShare, Lease, MAX_MESSAGE_BYTES, NewTask, QueueConfig, QueueError,
    QueueStats, TaskFailure, TaskState, TaskTotals, TaskView, Tick, WorkerInfo, WorkerView,
};

#[derive(Debug)]
pub(super) struct Task {
    pub(super) bytes: u64,
    pub(super) state: TaskState,
    attempts: u32,
    token: u64,
    /// Pending: since when. Leased: until when. Delayed: until when. Milliseconds.
    pub(super) at: u64,
    pub(super) worker: Option<WorkerId>,
    pub(super) checkpoint: Option<Checkpoint>,
    message: Option<String>,
    pub(super) totals: TaskTotals,
}

impl Task {
    fn new(bytes: u64) -> Self {
        Self {
            bytes,
            state: TaskState::Pending,
            attempts: 0,
            token: 0,
            at: 0,
            worker: None,
            checkpoint: None,
            message: None,
            totals: TaskTotals::default(),
        }
    }
}

#[derive(Debug)]
pub(super) struct Job {
    pub(super) place: Place,
    pub(super) tasks: BTreeMap<u32, Task>,
    pub(super) pending: BTreeSet<u32>,
    pub(super) counters: JobCounters,
}

#[derive(Debug)]
struct Worker {
    name: String,
    slots: u32,
    seen_ms: u64,
}

#[derive(Debug)]
struct Lock {
    holder: String,
    token: u64,
    until_ms: u64,
}

/// The whole queue.
#[derive(Debug, Default)]
pub(super) struct State {
    last_token: u64,
    pub(super) jobs: BTreeMap<JobId, Job>,
    pub(super) order: FairOrder,
    pub(super) waiting: BTreeSet<(u64, TaskId)>,
    pub(super) leases: BTreeSet<(u64, TaskId)>,
    pub(super) delayed: BTreeSet<(u64, TaskId)>,
    pub(super) dead: u64,
    workers: BTreeMap<WorkerId, Worker>,
    locks: BTreeMap<String, Lock>,
    /// Moves on whenever somebody who waits for work should look again.
    pub(super) wakeups: u64,
}

/// The counter of a state.
pub(super) fn counter(counters: &mut JobCounters, state: TaskState) -> &mut u64 {
    match state {
        TaskState::Pending => &mut counters.pending,
        TaskState::Leased => &mut counters.leased,
        TaskState::Delayed => &mut counters.delayed,
        TaskState::Committed => &mut counters.committed,
        TaskState::Dead => &mut counters.dead,
        TaskState::Cancelled => &mut counters.cancelled,
    }
}

/// The first task ids of a set whose time has come.
fn due(set: &BTreeSet<(u64, TaskId)>, now: u64, limit: usize) -> Vec<TaskId> {
    set.iter().take_while(|&&(at, _)| at <= now).take(limit).map(|&(_, id)| id).collect()
}

impl State {
    pub(super) fn add_job(&mut self, job: JobId, share: JobShare) {
        self.jobs.entry(job).or_insert_with(|| Job {
            place: Place::new(share),
            tasks: BTreeMap::new(),
            pending: BTreeSet::new(),
            counters: JobCounters::default(),
        });
    }

    pub(super) fn add_tasks(&mut self, now: u64, job: JobId, tasks: &[NewTask]) -> Result<u64, QueueError> {
        let mut added = 0;
        for task in tasks {
            let known = &mut self.jobs.get_mut(&job).ok_or(QueueError::UnknownJob(job))?.tasks;
            if let Entry::Vacant(place) = known.entry(task.number) {
                place.insert(Task::new(task.source_bytes));
                self.enter(TaskId { job, number: task.number }, TaskState::Pending, now);
                added += 1;
            }
        }
        if self.jobs.contains_key(&job) { Ok(added) } else { Err(QueueError::UnknownJob(job)) }
    }

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
        held: &[(TaskId, FencingToken)],
    ) -> Vec<bool> {
        self.see(now, config, worker);
        held.iter()
            .map(|&(id, token)| {
                let mine = self.held(id, token).is_ok();
                if mine {
                    self.shift(id, TaskState::Leased, now + millis(config.lease));
                }
                mine
            })
            .collect()
    }

    pub(super) fn checkpoint(
        &mut self,
        now: u64,
        config: &QueueConfig,
        (id, token): (TaskId, FencingToken),
        checkpoint: Option<&Checkpoint>,
    ) -> Result<(), QueueError> {
        self.held(id, token)?;
        self.set_checkpoint(id, checkpoint.cloned());
        if checkpoint.is_some() {
            self.shift(id, TaskState::Leased, now + millis(config.lease));
            if let Some(task) = self.task_mut(id) {
                task.attempts = 0;
            }
        }
        Ok(())
    }

    pub(super) fn commit(&mut self, id: TaskId, token: FencingToken, totals: &TaskTotals) -> Result<(), QueueError> {
        if self.task(id).is_some_and(|task| task.state == TaskState::Committed && task.token == token.0) {
            return Ok(());
        }
        self.held(id, token)?;
        self.finish(id, TaskState::Committed, totals);
        Ok(())
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

    pub(super) fn settle(&mut self, id: TaskId, state: TaskState, totals: &TaskTotals) -> Result<(), QueueError> {
        let job = self.jobs.get_mut(&id.job).ok_or(QueueError::UnknownJob(id.job))?;
        if let Entry::Vacant(place) = job.tasks.entry(id.number) {
            place.insert(Task::new(0));
            self.enter(id, state, 0);
        }
        self.finish(id, state, totals);
        Ok(())
    }

    pub(super) fn tick(&mut self, now: u64, config: &QueueConfig, limit: usize) -> Tick {
        self.prune(now, config);
        let mut tick = Tick::default();
        for id in due(&self.leases, now, limit) {
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
        tick.revived = self.revive(now, limit - tick.expired.len() - tick.died.len());
        tick
    }

    pub(super) fn tasks(&self, job: JobId, from: u32, limit: usize) -> Result<Vec<TaskView>, QueueError> {
        let job = self.jobs.get(&job).ok_or(QueueError::UnknownJob(job))?;
        let view = |(&number, task): (&u32, &Task)| TaskView {
            number,
            state: task.state,
            attempts: task.attempts,
            worker: task.worker,
            token: FencingToken(task.token),
            message: task.message.clone(),
        };
        Ok(job.tasks.range(from..).take(limit).map(view).collect())
    }

    pub(super) fn forget_job(&mut self, job: JobId) {
        let Some(entry) = self.jobs.get(&job) else { return };
        let numbers: Vec<u32> = entry.tasks.keys().copied().collect();
        for number in numbers {
            self.leave(TaskId { job, number });
        }
        self.jobs.remove(&job);
    }

    pub(super) fn stats(&self, now: u64) -> QueueStats {
        QueueStats {
            pending: self.waiting.len() as u64,
            delayed: self.delayed.len() as u64,
            leased: self.leases.len() as u64,
            dead: self.dead,
            oldest_pending_age_ms: self.waiting.first().map_or(0, |&(since, _)| now.saturating_sub(since)),
            jobs: self.jobs.len() as u64,
        }
    }

    pub(super) fn workers(&self, now: u64, config: &QueueConfig) -> Vec<WorkerView> {
        let mut leases: BTreeMap<WorkerId, u32> = BTreeMap::new();
        for &(_, id) in &self.leases {
            if let Some(worker) = self.task(id).and_then(|task| task.worker) {
                *leases.entry(worker).or_default() += 1;
            }
        }
        let lately = 2 * millis(config.lease);
        let view = |(&id, worker): (&WorkerId, &Worker)| WorkerView {
            id,
            name: worker.name.clone(),
            slots: worker.slots,
            leases: leases.get(&id).copied().unwrap_or(0),
            idle_ms: now.saturating_sub(worker.seen_ms),
        };
        self.workers.iter().map(view).filter(|worker| worker.idle_ms < lately).collect()
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

    /// Grows with every call, and never below the clock in microseconds: a queue that forgot everything still grows.
    fn next_token(&mut self, now: u64) -> u64 {
        self.last_token = (self.last_token + 1).max(now.saturating_mul(1000));
        self.last_token
    }

    fn see(&mut self, now: u64, config: &QueueConfig, worker: &WorkerInfo) {
        self.prune(now, config);
        let name = cut(&worker.name, MAX_WORKER_NAME_BYTES).to_owned();
        self.workers.insert(worker.id, Worker { name, slots: worker.slots, seen_ms: now });
    }

    /// Forgets what nobody can see any more: workers that vanished and locks that ran out.
    fn prune(&mut self, now: u64, config: &QueueConfig) {
        let lately = 2 * millis(config.lease);
        self.workers.retain(|_, worker| now.saturating_sub(worker.seen_ms) < lately);
        self.locks.retain(|_, lock| lock.until_ms > now);
    }

    fn revive(&mut self, now: u64, limit: usize) -> u64 {
        let ready = due(&self.delayed, now, limit);
        for &id in &ready {
            self.shift(id, TaskState::Pending, now);
        }
        ready.len() as u64
    }

    /// The last step of a task; its totals replace those it had, so they are counted once.
    fn finish(&mut self, id: TaskId, state: TaskState, totals: &TaskTotals) {
        self.shift(id, state, 0);
        let Some(job) = self.jobs.get_mut(&id.job) else { return };
        let Some(task) = job.tasks.get_mut(&id.number) else { return };
        job.counters.totals.change(totals, &task.totals);
        task.totals = *totals;
        if state == TaskState::Committed {
            task.message = None;
        }
    }

    /// Whether the token is that of the task's present lease.
    fn held(&self, id: TaskId, token: FencingToken) -> Result<(), QueueError> {
        let job = self.jobs.get(&id.job).ok_or(QueueError::UnknownJob(id.job))?;
        match job.tasks.get(&id.number) {
            Some(task) if task.state == TaskState::Leased && task.token == token.0 => Ok(()),
            _ => Err(QueueError::Stale { task: id, token }),
        }
    }

    pub(super) fn task(&self, id: TaskId) -> Option<&Task> {
        self.jobs.get(&id.job)?.tasks.get(&id.number)
    }

    fn task_mut(&mut self, id: TaskId) -> Option<&mut Task> {
        self.jobs.get_mut(&id.job)?.tasks.get_mut(&id.number)
    }

    fn set_checkpoint(&mut self, id: TaskId, checkpoint: Option<Checkpoint>) {
        let Some(job) = self.jobs.get_mut(&id.job) else { return };
        let Some(task) = job.tasks.get_mut(&id.number) else { return };
        let sums = |checkpoint: &Option<Checkpoint>| checkpoint.as_ref().map(progress).unwrap_or_default();
        job.counters.in_progress.change(&sums(&checkpoint), &sums(&task.checkpoint));
        task.checkpoint = checkpoint;
    }

    /// The one place where a task changes its state.
    fn shift(&mut self, id: TaskId, to: TaskState, at: u64) {
        self.leave(id);
        self.enter(id, to, at);
        if to.is_final() {
            self.set_checkpoint(id, None);
        }
    }

    fn leave(&mut self, id: TaskId) {
        let Some(job) = self.jobs.get_mut(&id.job) else { return };
        let Some(task) = job.tasks.get_mut(&id.number) else { return };
        *counter(&mut job.counters, task.state) -= 1;
        match task.state {
            TaskState::Pending => {
                self.waiting.remove(&(task.at, id));
                job.pending.remove(&id.number);
                if job.pending.is_empty() {
                    self.order.leave(id.job, &job.place);
                }
            }
            TaskState::Leased => {
                self.leases.remove(&(task.at, id));
            }
            TaskState::Delayed => {
                self.delayed.remove(&(task.at, id));
            }
            TaskState::Dead => self.dead -= 1,
            TaskState::Committed | TaskState::Cancelled => {}
        }
    }

    fn enter(&mut self, id: TaskId, to: TaskState, at: u64) {
        let Some(job) = self.jobs.get_mut(&id.job) else { return };
        let Some(task) = job.tasks.get_mut(&id.number) else { return };
        *counter(&mut job.counters, to) += 1;
        task.state = to;
        task.at = at;
        if to != TaskState::Leased {
            task.worker = None;
        }
        match to {
            TaskState::Pending => {
                self.waiting.insert((at, id));
                if job.pending.is_empty() {
                    self.order.join(id.job, &mut job.place);
                }
                job.pending.insert(id.number);
                self.wakeups += 1;
            }
            TaskState::Leased => {
                self.leases.insert((at, id));
            }
            TaskState::Delayed => {
                self.delayed.insert((at, id));
                self.wakeups += 1;
            }
            TaskState::Dead => self.dead += 1,
            TaskState::Committed | TaskState::Cancelled => {}
        }
    }
}

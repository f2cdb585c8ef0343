//! Everything the in-memory queue knows, and the one way a task changes its state. Given the same calls at the same
//! times it is always the same; the Lua scripts of the Redis engine are held against it.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use super::fair::{FairOrder, Place};
use crate::ids::{JobId, TaskId, WorkerId};
use crate::queue::values::{MAX_WAITING_BYTES, progress, too_many_waiting};
use crate::queue::{
    Attempt, Checkpoint, HeldTask, JobCounters, JobShare, NewTask, QueueConfig, QueueError, TaskState, TaskTotals,
};

#[derive(Debug)]
pub(super) struct Task {
    pub(super) bytes: u64,
    pub(super) state: TaskState,
    pub(super) attempts: u32,
    pub(super) token: u64,
    /// Pending: since when. Leased: until when. Delayed: until when. Milliseconds.
    pub(super) at: u64,
    pub(super) worker: Option<WorkerId>,
    pub(super) checkpoint: Option<Checkpoint>,
    pub(super) message: Option<String>,
    pub(super) history: Vec<Attempt>,
    pub(super) totals: TaskTotals,
}

impl Task {
    pub(super) fn new(bytes: u64) -> Self {
        Self {
            bytes,
            state: TaskState::Pending,
            attempts: 0,
            token: 0,
            at: 0,
            worker: None,
            checkpoint: None,
            message: None,
            history: Vec::new(),
            totals: TaskTotals::default(),
        }
    }
}

/// Why a job's tasks are not handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hold {
    /// They are.
    None,
    /// Until it is resumed.
    Paused,
    /// For good.
    Cancelled,
}

#[derive(Debug)]
pub(super) struct Job {
    pub(super) place: Place,
    pub(super) hold: Hold,
    pub(super) tasks: BTreeMap<u32, Task>,
    pub(super) pending: BTreeSet<u32>,
    pub(super) counters: JobCounters,
}

impl Job {
    /// Whether a task of it can be handed out now.
    pub(super) fn is_ready(&self) -> bool {
        let below = |max: u32| self.counters.leased < u64::from(max);
        self.hold == Hold::None && !self.pending.is_empty() && self.place.share.max_running.is_none_or(below)
    }
}

#[derive(Debug)]
pub(super) struct Worker {
    pub(super) name: String,
    pub(super) slots: u32,
    pub(super) seen_ms: u64,
    /// What its last heartbeat named and held.
    pub(super) tasks: Vec<HeldTask>,
}

#[derive(Debug)]
pub(super) struct Lock {
    pub(super) holder: String,
    pub(super) token: u64,
    pub(super) until_ms: u64,
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
    /// Pending tasks of paused jobs.
    pub(super) paused: u64,
    /// Source bytes of all pending and delayed tasks.
    pub(super) waiting_bytes: u64,
    pub(super) workers: BTreeMap<WorkerId, Worker>,
    pub(super) locks: BTreeMap<String, Lock>,
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

/// Whether a task of that state will be handed out by and by.
pub(super) fn waits(state: TaskState) -> bool {
    matches!(state, TaskState::Pending | TaskState::Delayed)
}

impl State {
    pub(super) fn add_job(&mut self, job: JobId, share: JobShare) {
        self.jobs.entry(job).or_insert_with(|| Job {
            place: Place::new(share),
            hold: Hold::None,
            tasks: BTreeMap::new(),
            pending: BTreeSet::new(),
            counters: JobCounters::default(),
        });
    }

    pub(super) fn add_tasks(&mut self, now: u64, job: JobId, tasks: &[NewTask]) -> Result<u64, QueueError> {
        if !self.jobs.contains_key(&job) {
            return Err(QueueError::UnknownJob(job));
        }
        let more = tasks.iter().fold(0_u64, |sum, task| sum.saturating_add(task.source_bytes));
        let waiting = self.waiting_bytes.saturating_add(more);
        if waiting > MAX_WAITING_BYTES {
            return Err(too_many_waiting(waiting));
        }
        let mut added = 0;
        for task in tasks {
            let Some(entry) = self.jobs.get_mut(&job) else { break };
            if let Entry::Vacant(place) = entry.tasks.entry(task.number) {
                place.insert(Task::new(task.source_bytes));
                self.enter(TaskId { job, number: task.number }, TaskState::Pending, now);
                added += 1;
            }
        }
        Ok(added)
    }

    /// Grows with every call, and never below the clock in microseconds: a queue that forgot everything still grows.
    pub(super) fn next_token(&mut self, now: u64) -> u64 {
        self.last_token = (self.last_token + 1).max(now.saturating_mul(1000));
        self.last_token
    }

    /// Forgets what nobody can see any more: workers that vanished and locks that ran out.
    pub(super) fn prune(&mut self, now: u64, config: &QueueConfig) {
        let lately = super::lately(config);
        self.workers.retain(|_, worker| now.saturating_sub(worker.seen_ms) < lately);
        self.locks.retain(|_, lock| lock.until_ms > now);
    }

    pub(super) fn task(&self, id: TaskId) -> Option<&Task> {
        self.jobs.get(&id.job)?.tasks.get(&id.number)
    }

    pub(super) fn task_mut(&mut self, id: TaskId) -> Option<&mut Task> {
        self.jobs.get_mut(&id.job)?.tasks.get_mut(&id.number)
    }

    /// Replaces the checkpoint of a task and, while it is open, what that adds to its job.
    pub(super) fn set_checkpoint(&mut self, id: TaskId, checkpoint: Option<Checkpoint>) {
        let Some(job) = self.jobs.get_mut(&id.job) else { return };
        let Some(task) = job.tasks.get_mut(&id.number) else { return };
        if !task.state.is_final() {
            job.counters.in_progress.change(&sums(checkpoint.as_ref()), &sums(task.checkpoint.as_ref()));
        }
        task.checkpoint = checkpoint;
    }

    /// The one place where a task changes its state. What should wait again in a cancelled job is cancelled instead.
    /// A task that ends keeps its checkpoint, which no longer counts as progress.
    pub(super) fn shift(&mut self, id: TaskId, to: TaskState, at: u64) {
        self.leave(id);
        self.enter(id, to, at);
    }

    /// Takes a task out of everything its state put it in.
    pub(super) fn leave(&mut self, id: TaskId) {
        let Some(job) = self.jobs.get_mut(&id.job) else { return };
        let Some(task) = job.tasks.get_mut(&id.number) else { return };
        *counter(&mut job.counters, task.state) -= 1;
        if waits(task.state) {
            self.waiting_bytes -= task.bytes;
        }
        if !task.state.is_final() {
            job.counters.in_progress.change(&TaskTotals::default(), &sums(task.checkpoint.as_ref()));
        }
        match task.state {
            TaskState::Pending => {
                self.waiting.remove(&(task.at, id));
                job.pending.remove(&id.number);
                self.paused -= u64::from(job.hold == Hold::Paused);
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
        let to = if job.hold == Hold::Cancelled && waits(to) { TaskState::Cancelled } else { to };
        *counter(&mut job.counters, to) += 1;
        if waits(to) {
            self.waiting_bytes += task.bytes;
        }
        if !to.is_final() {
            job.counters.in_progress.change(&sums(task.checkpoint.as_ref()), &TaskTotals::default());
        }
        task.state = to;
        task.at = at;
        if to != TaskState::Leased {
            task.worker = None;
        }
        match to {
            TaskState::Pending => {
                self.waiting.insert((at, id));
                job.pending.insert(id.number);
                self.paused += u64::from(job.hold == Hold::Paused);
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
        self.place(id.job);
    }

    /// Puts a job into the order of service or takes it out, as its tasks, its hold and its cap say.
    pub(super) fn place(&mut self, id: JobId) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        match (job.is_ready(), self.order.contains(id, &job.place)) {
            (true, false) => {
                self.order.join(id, &mut job.place);
                self.wakeups += 1;
            }
            (false, true) => self.order.leave(id, &job.place),
            _ => {}
        }
    }
}

/// What a checkpoint adds to its job.
fn sums(checkpoint: Option<&Checkpoint>) -> TaskTotals {
    checkpoint.map(progress).unwrap_or_default()
}

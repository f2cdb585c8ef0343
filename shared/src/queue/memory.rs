//! The queue in memory: the model the Redis engine is held against, and the queue of one-machine mode. What a restart
//! loses, reconciliation brings back from the state store, as it does for Redis.

mod audit;
mod control;
mod fair;
mod leases;
mod state;
mod views;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Notify;

use self::state::State;
use super::values::{
    MAX_CLAIM, MAX_STEP, MAX_TICK, MAX_VIOLATIONS, check_finished, check_lock, check_settled, check_share, check_tasks,
    check_totals, encode_checkpoint, millis,
};
use super::{
    Checkpoint, Exchanged, FailOutcome, FinishedTask, Held, HeldTask, JobCounters, JobShare, Lease, NewTask, Queue,
    QueueConfig, QueueError, QueueStats, TaskFailure, TaskState, TaskTotals, TaskView, Tick, WorkerInfo, WorkerView,
};
use crate::clock::{Clock, Dice};
use crate::ids::{FencingToken, JobId, TaskId};

/// How long a worker is shown after its last heartbeat, in milliseconds.
fn lately(config: &QueueConfig) -> u64 {
    2 * millis(config.lease)
}

/// The first task ids of a set whose time has come.
fn due(set: &BTreeSet<(u64, TaskId)>, now: u64, limit: usize) -> Vec<TaskId> {
    set.iter().take_while(|&&(at, _)| at <= now).take(limit).map(|&(_, id)| id).collect()
}

/// The in-memory engine. Deterministic: the same calls with the same clock and dice give the same answers.
#[derive(Debug)]
pub struct MemoryQueue {
    config: QueueConfig,
    clock: Arc<dyn Clock>,
    dice: Arc<Dice>,
    state: Mutex<State>,
    wake: Notify,
}

/// A queue as it was at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot(State);

impl MemoryQueue {
    /// An empty queue.
    pub fn new(config: QueueConfig, clock: Arc<dyn Clock>, dice: Arc<Dice>) -> Self {
        Self { config, clock, dice, state: Mutex::default(), wake: Notify::new() }
    }

    /// Every violated invariant, in words; empty when all hold. Counts all tasks.
    pub fn audit(&self) -> Vec<String> {
        audit::violations(&self.state())
    }

    /// Loses everything, as a Redis without persistence does when it restarts. For tests of recovery.
    pub fn lose_everything(&self) {
        *self.state() = State::default();
    }

    /// Everything as it is now, for [`Self::go_back_to`].
    pub fn snapshot(&self) -> Snapshot {
        Snapshot(self.state().clone())
    }

    /// Forgets what happened since a snapshot, as a Redis that comes back with older data, or a replica that had not
    /// heard of everything. For tests of recovery.
    pub fn go_back_to(&self, snapshot: &Snapshot) {
        *self.state() = snapshot.0.clone();
        self.wake.notify_waiters();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing in the state panics half way through a change on purpose; if it did, the auditor would tell.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One atomic step. The clock is read under the lock, so time never goes backwards between two steps.
    fn step<T>(&self, change: impl FnOnce(&mut State, u64) -> T) -> T {
        let mut state = self.state();
        let before = state.wakeups;
        let answer = change(&mut state, self.clock.now_ms());
        let wake = state.wakeups != before;
        drop(state);
        if wake {
            self.wake.notify_waiters();
        }
        answer
    }
}

#[async_trait]
impl Queue for MemoryQueue {
    async fn add_job(&self, job: JobId, share: JobShare) -> Result<(), QueueError> {
        check_share(share)?;
        self.step(|state, _| state.add_job(job, share));
        Ok(())
    }

    async fn add_tasks(&self, job: JobId, tasks: &[NewTask]) -> Result<u64, QueueError> {
        check_tasks(tasks)?;
        self.step(|state, now| state.add_tasks(now, job, tasks))
    }

    async fn claim(&self, worker: &WorkerInfo, max: usize) -> Result<Vec<Lease>, QueueError> {
        Ok(self.step(|state, now| state.claim(now, &self.config, worker, max.min(MAX_CLAIM))))
    }

    async fn heartbeat(&self, worker: &WorkerInfo, held: &[HeldTask]) -> Result<Vec<Held>, QueueError> {
        Ok(self.step(|state, now| state.heartbeat(now, &self.config, worker, held)))
    }

    async fn checkpoint(&self, task: TaskId, token: FencingToken, checkpoint: &Checkpoint) -> Result<Held, QueueError> {
        encode_checkpoint(checkpoint)?;
        self.step(|state, now| state.checkpoint(now, &self.config, (task, token), Some(checkpoint)))
    }

    async fn drop_checkpoint(&self, task: TaskId, token: FencingToken) -> Result<(), QueueError> {
        self.step(|state, now| state.checkpoint(now, &self.config, (task, token), None))?;
        Ok(())
    }

    async fn commit(&self, task: TaskId, token: FencingToken, totals: &TaskTotals) -> Result<(), QueueError> {
        check_totals(totals)?;
        self.step(|state, _| state.commit(task, token, totals))
    }

    async fn exchange(
        &self,
        worker: &WorkerInfo,
        finished: &[FinishedTask],
        free: usize,
    ) -> Result<Exchanged, QueueError> {
        check_finished(finished)?;
        Ok(self.step(|state, now| state.exchange(now, &self.config, worker, (finished, free.min(MAX_CLAIM)))))
    }

    async fn fail(&self, task: TaskId, token: FencingToken, failure: &TaskFailure) -> Result<FailOutcome, QueueError> {
        let roll = self.dice.up_to(u64::from(u32::MAX));
        self.step(|state, now| state.fail(now, &self.config, (task, token), failure, roll))
    }

    async fn release(&self, task: TaskId, token: FencingToken) -> Result<(), QueueError> {
        self.step(|state, now| state.release(now, task, token))
    }

    async fn settle(&self, task: TaskId, state: TaskState, totals: &TaskTotals) -> Result<(), QueueError> {
        check_settled(state)?;
        check_totals(totals)?;
        self.step(|queue, _| queue.settle(task, state, totals))
    }

    async fn tick(&self, limit: usize) -> Result<Tick, QueueError> {
        Ok(self.step(|state, now| state.tick(now, &self.config, limit.min(MAX_TICK))))
    }

    async fn job(&self, job: JobId) -> Result<Option<JobCounters>, QueueError> {
        Ok(self.state().jobs.get(&job).map(|entry| entry.counters))
    }

    async fn tasks(&self, job: JobId, from: u32, limit: usize) -> Result<Vec<TaskView>, QueueError> {
        self.state().tasks(job, from, limit)
    }

    async fn jobs(&self) -> Result<Vec<JobId>, QueueError> {
        Ok(self.state().jobs.keys().copied().collect())
    }

    async fn set_share(&self, job: JobId, share: JobShare) -> Result<(), QueueError> {
        check_share(share)?;
        self.step(|state, _| state.set_share(job, share))
    }

    async fn set_paused(&self, job: JobId, paused: bool) -> Result<(), QueueError> {
        self.step(|state, _| state.set_paused(job, paused))
    }

    async fn cancel_job(&self, job: JobId, limit: usize) -> Result<u64, QueueError> {
        self.step(|state, _| state.cancel_job(job, limit.min(MAX_STEP)))
    }

    async fn audit(&self) -> Result<Vec<String>, QueueError> {
        let mut found = audit::violations(&self.state());
        found.truncate(MAX_VIOLATIONS);
        Ok(found)
    }

    async fn repair_job(&self, job: JobId) -> Result<u64, QueueError> {
        self.step(|state, _| state.repair_job(job))
    }

    async fn forget_job(&self, job: JobId) -> Result<(), QueueError> {
        self.step(|state, _| state.forget_job(job));
        Ok(())
    }

    async fn stats(&self) -> Result<QueueStats, QueueError> {
        Ok(self.step(|state, now| state.stats(now)))
    }

    async fn workers(&self) -> Result<Vec<WorkerView>, QueueError> {
        Ok(self.step(|state, now| state.workers(now, &self.config)))
    }

    async fn lock(&self, name: &str, holder: &str, ttl: Duration) -> Result<Option<FencingToken>, QueueError> {
        check_lock(name, holder)?;
        Ok(self.step(|state, now| state.lock(now, name, holder, millis(ttl))))
    }

    async fn unlock(&self, name: &str, holder: &str) -> Result<(), QueueError> {
        check_lock(name, holder)?;
        self.step(|state, _| state.unlock(name, holder));
        Ok(())
    }

    async fn wait_for_work(&self, at_most: Duration) {
        let woken = self.wake.notified();
        tokio::pin!(woken);
        // Registered before the look at the state, or a task added in between would wake nobody.
        woken.as_mut().enable();
        let due = self.step(|state, now| match (state.order.is_empty(), state.delayed.first()) {
            (false, _) => Some(Duration::ZERO),
            (true, Some(&(until, _))) => Some(Duration::from_millis(until.saturating_sub(now))),
            (true, None) => None,
        });
        let wait = due.unwrap_or(at_most).min(at_most);
        if !wait.is_zero() {
            // Running out of time is one of the two ways in which this wait ends well.
            let _elapsed = tokio::time::timeout(wait, woken).await;
        }
    }

    async fn ping(&self) -> Result<(), QueueError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::SharedQueue;
    use super::super::contract::{self, Engine};
    use super::*;
    use crate::clock::{ManualClock, SystemClock};

    struct Model {
        queue: Arc<MemoryQueue>,
        clock: Option<Arc<ManualClock>>,
    }

    #[async_trait]
    impl Engine for Model {
        fn queue(&self) -> SharedQueue {
            Arc::<MemoryQueue>::clone(&self.queue)
        }
        async fn advance(&self, by: Duration) {
            match &self.clock {
                Some(clock) => clock.advance(by),
                None => tokio::time::sleep(by + Duration::from_millis(2)).await,
            }
        }
        async fn lose_everything(&self) {
            self.queue.lose_everything();
        }
        async fn audit(&self) -> Vec<String> {
            self.queue.audit()
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn keeps_the_contract_on_a_held_clock() {
        contract::run(async |config| {
            let clock = Arc::new(ManualClock::new(1_700_000_000_000));
            let queue = MemoryQueue::new(config, Arc::<ManualClock>::clone(&clock), Arc::new(Dice::seeded(1)));
            Box::new(Model { queue: Arc::new(queue), clock: Some(clock) }) as Box<dyn Engine>
        })
        .await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn keeps_the_contract_on_the_machines_clock() {
        contract::run(async |config| {
            let queue = MemoryQueue::new(config, Arc::new(SystemClock), Arc::new(Dice::from_os()));
            Box::new(Model { queue: Arc::new(queue), clock: None }) as Box<dyn Engine>
        })
        .await;
    }
}

//! The queue in Redis: each step is one Lua script, so it happens wholly or not at all.
//!
//! All keys start with the hash tag `{namespace}` and share one slot. Time is the server's. What the keys hold is drawn
//! up in `docs/coordination.md` and in `scripts/prelude.lua`. Everything may be lost at any moment: reconciliation
//! brings jobs, tasks and results back from the state store, and tokens go on growing because they follow the clock.

mod connection;
mod finder;
mod place;
mod scripts;
mod wake;
mod wire;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use redis::{Script, Value};

use self::connection::Connections;
pub use self::place::{RedisOptions, RedisTls};
use self::scripts::{Scripts, TimeSource};
use self::wake::Wake;
use self::wire::Reply;
use super::values::{
    CLAIM_REVIVES, EXPIRED_MESSAGE, MAX_CLAIM, MAX_TICK, MAX_WORKER_NAME_BYTES, check_lock, check_settled, check_share,
    check_tasks, check_totals, cut, encode_checkpoint, millis, progress,
};
use super::{
    Checkpoint, FailOutcome, JobCounters, JobShare, Lease, MAX_MESSAGE_BYTES, NewTask, Queue, QueueConfig, QueueError,
    QueueStats, TaskFailure, TaskState, TaskTotals, TaskView, Tick, WorkerInfo, WorkerView,
};
use crate::clock::Dice;
use crate::ids::{FencingToken, JobId, TaskId};

/// Tasks a single script adds or lists: other clients wait while a script runs.
const CHUNK: usize = 1000;
/// Most violations an audit names.
const MAX_VIOLATIONS: usize = 100;

/// The Redis engine.
pub struct RedisQueue {
    config: QueueConfig,
    dice: Arc<Dice>,
    /// `{namespace}`, the start of every key.
    tag: String,
    connections: Arc<Connections>,
    scripts: Scripts,
    wake: Wake,
}

impl fmt::Debug for RedisQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisQueue")
            .field("config", &self.config)
            .field("connections", &self.connections)
            .finish_non_exhaustive()
    }
}

impl RedisQueue {
    /// A queue in the Redis at `options.url`. Connects when first used; [`Queue::ping`] says whether that works.
    ///
    /// # Errors
    /// [`QueueError::Invalid`] when the URL or the namespace cannot be used.
    pub fn new(options: &RedisOptions, config: QueueConfig, dice: Arc<Dice>) -> Result<Self, QueueError> {
        Self::with_time(options, config, dice, TimeSource::Server)
    }

    /// For tests: the scripts take the time from the key `{namespace}:clock` (Unix milliseconds, decimal) instead of
    /// the server's clock, so that both engines can share a manual one.
    ///
    /// # Errors
    /// As [`RedisQueue::new`].
    pub fn with_manual_time(options: &RedisOptions, config: QueueConfig, dice: Arc<Dice>) -> Result<Self, QueueError> {
        Self::with_time(options, config, dice, TimeSource::Key)
    }

    fn with_time(
        options: &RedisOptions,
        config: QueueConfig,
        dice: Arc<Dice>,
        time: TimeSource,
    ) -> Result<Self, QueueError> {
        let name = &config.namespace;
        if name.is_empty() || name.len() > 100 || name.contains(['{', '}']) {
            return Err(QueueError::Invalid(format!(
                "the queue's namespace is {name:?}; expected 1 to 100 bytes without braces"
            )));
        }
        let tag = format!("{{{name}}}");
        let connections = Arc::new(Connections::new(options, &tag, Arc::clone(&dice))?);
        Ok(Self { config, dice, tag, connections, scripts: Scripts::new(time), wake: Wake::default() })
    }

    /// Every violated invariant, in words, at most a hundred; empty when all hold. Reads the whole namespace in one
    /// step, which other clients wait for.
    ///
    /// # Errors
    /// [`QueueError`] when Redis does not answer or holds values of another type.
    pub async fn audit(&self) -> Result<Vec<String>, QueueError> {
        let reply = self.run(&self.scripts.audit, &[MAX_VIOLATIONS.to_string()]).await?;
        wire::single(always(reply)?, "list of violations")
    }

    async fn run(&self, script: &Script, args: &[String]) -> Result<Reply, QueueError> {
        wire::reply(self.connections.run(script, &self.tag, args).await?)
    }

    /// Runs a script about a job.
    async fn run_job(&self, script: &Script, job: JobId, args: &[String]) -> Result<Vec<Value>, QueueError> {
        match self.run(script, args).await? {
            Reply::Done(values) => Ok(values),
            Reply::Unknown => Err(QueueError::UnknownJob(job)),
            Reply::Stale => Err(out_of_place()),
        }
    }

    /// Runs a script that asks for a lease.
    async fn run_lease<const N: usize>(
        &self,
        script: &Script,
        task: TaskId,
        token: FencingToken,
        args: [String; N],
    ) -> Result<Vec<Value>, QueueError> {
        let [job, number] = wire::task_args(task);
        let mut all = vec![job, number, token.to_string()];
        all.extend(args);
        match self.run(script, &all).await? {
            Reply::Done(values) => Ok(values),
            Reply::Unknown => Err(QueueError::UnknownJob(task.job)),
            Reply::Stale => Err(QueueError::Stale { task, token }),
        }
    }

    fn lease_ms(&self) -> String {
        millis(self.config.lease).to_string()
    }

    fn worker_args(&self, worker: &WorkerInfo) -> Vec<String> {
        let info = format!("{} {}", worker.slots, cut(&worker.name, MAX_WORKER_NAME_BYTES));
        vec![worker.id.to_string(), info, self.lease_ms()]
    }

    /// How long until a claim may succeed, if the queue knows.
    async fn due(&self) -> Result<Option<Duration>, QueueError> {
        let reply = self.run(&self.scripts.due, &[]).await?;
        let ms: i64 = wire::single(always(reply)?, "time")?;
        Ok(u64::try_from(ms).ok().map(Duration::from_millis))
    }
}

/// The answer of a script that knows no refusal.
fn always(reply: Reply) -> Result<Vec<Value>, QueueError> {
    match reply {
        Reply::Done(values) => Ok(values),
        Reply::Unknown | Reply::Stale => Err(out_of_place()),
    }
}

fn out_of_place() -> QueueError {
    QueueError::Invalid("a script answered what it never answers; is another version running?".to_owned())
}

#[async_trait]
impl Queue for RedisQueue {
    async fn add_job(&self, job: JobId, share: JobShare) -> Result<(), QueueError> {
        check_share(share)?;
        let args = [job.to_string(), share.priority.to_string(), share.weight.to_string()];
        always(self.run(&self.scripts.add_job, &args).await?)?;
        Ok(())
    }

    async fn add_tasks(&self, job: JobId, tasks: &[NewTask]) -> Result<u64, QueueError> {
        check_tasks(tasks)?;
        let mut added = 0;
        let mut rest = tasks;
        loop {
            let (chunk, behind) = rest.split_at(rest.len().min(CHUNK));
            let mut args = vec![job.to_string()];
            for task in chunk {
                args.extend([wire::number(task.number), task.source_bytes.to_string()]);
            }
            added += wire::single::<u64>(self.run_job(&self.scripts.add_tasks, job, &args).await?, "count")?;
            rest = behind;
            if rest.is_empty() {
                return Ok(added);
            }
        }
    }

    async fn claim(&self, worker: &WorkerInfo, max: usize) -> Result<Vec<Lease>, QueueError> {
        let mut args = self.worker_args(worker);
        args.extend([max.min(MAX_CLAIM).to_string(), CLAIM_REVIVES.to_string()]);
        let values = always(self.run(&self.scripts.claim, &args).await?)?;
        let leases: Vec<(String, String, String, Option<String>)> = wire::single(values, "list of leases")?;
        leases.into_iter().map(wire::lease).collect()
    }

    async fn heartbeat(&self, worker: &WorkerInfo, held: &[(TaskId, FencingToken)]) -> Result<Vec<bool>, QueueError> {
        let mut args = self.worker_args(worker);
        for (task, token) in held {
            args.extend(wire::task_args(*task));
            args.push(token.to_string());
        }
        let answers: Vec<u8> =
            wire::single(always(self.run(&self.scripts.heartbeat, &args).await?)?, "list of answers")?;
        if answers.len() != held.len() {
            return Err(out_of_place());
        }
        Ok(answers.into_iter().map(|answer| answer == 1).collect())
    }

    async fn checkpoint(&self, task: TaskId, token: FencingToken, checkpoint: &Checkpoint) -> Result<(), QueueError> {
        let json = encode_checkpoint(checkpoint)?;
        let text = format!("{} {json}", wire::totals(&progress(checkpoint), ' '));
        self.run_lease(&self.scripts.checkpoint, task, token, [self.lease_ms(), text]).await?;
        Ok(())
    }

    async fn drop_checkpoint(&self, task: TaskId, token: FencingToken) -> Result<(), QueueError> {
        self.run_lease(&self.scripts.checkpoint, task, token, [self.lease_ms()]).await?;
        Ok(())
    }

    async fn commit(&self, task: TaskId, token: FencingToken, totals: &TaskTotals) -> Result<(), QueueError> {
        check_totals(totals)?;
        self.run_lease(&self.scripts.commit, task, token, [wire::totals(totals, ',')]).await?;
        Ok(())
    }

    async fn fail(&self, task: TaskId, token: FencingToken, failure: &TaskFailure) -> Result<FailOutcome, QueueError> {
        let roll = self.dice.up_to(u64::from(u32::MAX));
        let args = [
            u8::from(failure.permanent).to_string(),
            cut(&failure.message, MAX_MESSAGE_BYTES).to_owned(),
            self.config.max_attempts.to_string(),
            roll.to_string(),
            millis(self.config.backoff_base).to_string(),
            millis(self.config.backoff_max).min(u64::from(u32::MAX)).to_string(),
        ];
        let values = self.run_lease(&self.scripts.fail, task, token, args).await?;
        let outcome: String = wire::single(values, "outcome")?;
        match outcome.as_str() {
            "dead" => Ok(FailOutcome::Dead),
            until => Ok(FailOutcome::Delayed { until_ms: wire::parse(until, "time")? }),
        }
    }

    async fn release(&self, task: TaskId, token: FencingToken) -> Result<(), QueueError> {
        self.run_lease(&self.scripts.release, task, token, []).await?;
        Ok(())
    }

    async fn settle(&self, task: TaskId, state: TaskState, totals: &TaskTotals) -> Result<(), QueueError> {
        check_settled(state)?;
        check_totals(totals)?;
        let [job, number] = wire::task_args(task);
        let letter = if state == TaskState::Committed { "C" } else { "X" };
        let args = [job, number, letter.to_owned(), wire::totals(totals, ',')];
        self.run_job(&self.scripts.settle, task.job, &args).await?;
        Ok(())
    }

    async fn tick(&self, limit: usize) -> Result<Tick, QueueError> {
        let args = [
            limit.min(MAX_TICK).to_string(),
            self.config.max_attempts.to_string(),
            EXPIRED_MESSAGE.to_owned(),
            self.lease_ms(),
        ];
        let mut values = always(self.run(&self.scripts.tick, &args).await?)?.into_iter();
        let mut ids = |what| wire::task_ids(&wire::part::<Vec<String>>(values.next(), what)?);
        let (expired, died) = (ids("list of expired tasks")?, ids("list of dead tasks")?);
        Ok(Tick { expired, died, revived: wire::part(values.next(), "count")? })
    }

    async fn job(&self, job: JobId) -> Result<Option<JobCounters>, QueueError> {
        match self.run(&self.scripts.job, &[job.to_string()]).await? {
            Reply::Done(values) => {
                Ok(Some(wire::counters(&wire::single::<Vec<String>>(values, "set of job counters")?)?))
            }
            Reply::Unknown => Ok(None),
            Reply::Stale => Err(out_of_place()),
        }
    }

    async fn tasks(&self, job: JobId, from: u32, limit: usize) -> Result<Vec<TaskView>, QueueError> {
        let mut found: Vec<TaskView> = Vec::new();
        let mut from = from;
        loop {
            let page = (limit - found.len()).min(CHUNK);
            let args = [job.to_string(), from.to_string(), page.to_string()];
            let values = self.run_job(&self.scripts.tasks, job, &args).await?;
            let tasks: Vec<(String, Option<String>, Option<String>)> = wire::single(values, "list of tasks")?;
            let full = tasks.len() == page;
            for task in tasks {
                found.push(wire::task_view(task)?);
            }
            match found.last().and_then(|last| last.number.checked_add(1)) {
                Some(next) if full && found.len() < limit => from = next,
                _ => return Ok(found),
            }
        }
    }

    async fn jobs(&self) -> Result<Vec<JobId>, QueueError> {
        let values = always(self.run(&self.scripts.jobs, &[]).await?)?;
        wire::job_ids(&wire::single::<Vec<String>>(values, "list of jobs")?)
    }

    async fn forget_job(&self, job: JobId) -> Result<(), QueueError> {
        always(self.run(&self.scripts.forget_job, &[job.to_string()]).await?)?;
        Ok(())
    }

    async fn stats(&self) -> Result<QueueStats, QueueError> {
        let values = always(self.run(&self.scripts.stats, &[]).await?)?;
        wire::stats(&wire::single::<Vec<String>>(values, "set of counts")?)
    }

    async fn workers(&self) -> Result<Vec<WorkerView>, QueueError> {
        let values = always(self.run(&self.scripts.workers, &[self.lease_ms()]).await?)?;
        let workers: Vec<(String, String, Option<String>, String)> = wire::single(values, "list of workers")?;
        let mut workers: Vec<WorkerView> = workers.into_iter().map(wire::worker).collect::<Result<_, _>>()?;
        workers.sort_by_key(|worker| worker.id);
        Ok(workers)
    }

    async fn lock(&self, name: &str, holder: &str, ttl: Duration) -> Result<Option<FencingToken>, QueueError> {
        check_lock(name, holder)?;
        let args = [name.to_owned(), holder.to_owned(), millis(ttl).to_string()];
        let token: Option<String> = wire::single(always(self.run(&self.scripts.lock, &args).await?)?, "token")?;
        token.map(|token| Ok(FencingToken(wire::parse(&token, "token")?))).transpose()
    }

    async fn unlock(&self, name: &str, holder: &str) -> Result<(), QueueError> {
        check_lock(name, holder)?;
        always(self.run(&self.scripts.unlock, &[name.to_owned(), holder.to_owned()]).await?)?;
        Ok(())
    }

    async fn wait_for_work(&self, at_most: Duration) {
        self.wake.start(&self.connections, &format!("{}:wake", self.tag));
        let wait = async {
            let woken = self.wake.next();
            tokio::pin!(woken);
            // Registered before the look at the queue, or a word that comes in between would wake nobody.
            woken.as_mut().enable();
            match self.due().await {
                Ok(Some(due)) => {
                    // Running out of time is one of the two ways in which this wait ends well.
                    let _elapsed = tokio::time::timeout(due, woken).await;
                }
                // Without an answer there is nothing to do but wait; the next claim will say what is wrong.
                Ok(None) | Err(_) => woken.await,
            }
        };
        let _elapsed = tokio::time::timeout(at_most, wait).await;
    }

    async fn ping(&self) -> Result<(), QueueError> {
        self.connections.ping().await
    }
}

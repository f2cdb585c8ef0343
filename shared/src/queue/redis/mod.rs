//! The queue in Redis: each step is one Lua script, so it happens wholly or not at all.
//!
//! All keys start with the hash tag `{namespace}` and share one slot. Time is the server's. What the keys hold is drawn
//! up in `docs/coordination.md` and in `scripts/prelude.lua`. Everything may be lost at any moment: reconciliation
//! brings jobs, tasks and results back from the state store, and tokens go on growing because they follow the clock.

mod audit;
mod connection;
mod engine;
mod finder;
mod place;
mod scripts;
mod wake;
mod wire;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use redis::{Script, Value};

use self::connection::Connections;
use self::place::Place;
use self::scripts::{Scripts, TimeSource};
use self::wake::Wake;
use self::wire::Reply;
pub use super::redis_options::{RedisOptions, RedisTls};
use super::values::{MAX_WORKER_NAME_BYTES, cut, millis};
use super::{JobShare, QueueConfig, QueueError, WorkerInfo};
use crate::clock::Dice;
use crate::ids::{FencingToken, JobId, TaskId};

/// Tasks a single script adds, lists or looks at: other clients wait while a script runs.
const CHUNK: usize = 1000;

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
    /// A queue in the Redis at `options.url`. Connects when first used; [`super::Queue::ping`] says whether that works.
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

    async fn run(&self, script: &Script, args: &[String]) -> Result<Reply, QueueError> {
        wire::reply(self.connections.run(script, &self.tag, args).await?)
    }

    /// Runs a script about a job.
    async fn run_job(&self, script: &Script, job: JobId, args: &[String]) -> Result<Vec<Value>, QueueError> {
        match self.run(script, args).await? {
            Reply::Done(values) => Ok(values),
            Reply::Unknown => Err(QueueError::UnknownJob(job)),
            Reply::Stale | Reply::Cancelled => Err(out_of_place()),
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
            Reply::Cancelled => Err(QueueError::Cancelled { task }),
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

/// Whether `options` make sense; connects to nothing.
pub(super) fn check(options: &RedisOptions) -> Result<(), QueueError> {
    Place::of(options).map(drop)
}

/// A job and its share, as the scripts take them.
fn share_args(job: JobId, share: JobShare) -> [String; 4] {
    let JobShare { priority, weight, max_running } = share;
    [job.to_string(), priority.to_string(), weight.to_string(), max_running.unwrap_or(0).to_string()]
}

/// The answer of a script that knows no refusal.
fn always(reply: Reply) -> Result<Vec<Value>, QueueError> {
    match reply {
        Reply::Done(values) => Ok(values),
        Reply::Unknown | Reply::Stale | Reply::Cancelled => Err(out_of_place()),
    }
}

fn out_of_place() -> QueueError {
    QueueError::Invalid("a script answered what it never answers; is another version running?".to_owned())
}

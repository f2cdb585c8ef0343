//! Many simulated workers on one real Redis: tasks in a few processes, some of which vanish with what they hold.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use des_shared::clock::Dice;
use des_shared::ids::{JobId, WorkerId};
use des_shared::queue::redis::{RedisOptions, RedisQueue};
use des_shared::queue::{
    HeldTask, JobCounters, JobShare, Lease, NewTask, Queue, QueueConfig, QueueError, TaskTotals, WorkerInfo,
};
use serde::{Deserialize, Serialize};

use crate::servers::Redis;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Longest a run may take for each 10,000 tasks.
const LIMIT: Duration = Duration::from_mins(5);

/// How many of what.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SwarmOptions {
    /// Where Redis is; filled in by [`run`].
    pub url: String,
    /// Workers in all.
    pub workers: u32,
    /// Processes they are spread over.
    pub processes: u32,
    /// Tasks of the job.
    pub tasks: u32,
    /// Every worker of which this is a divisor of its number vanishes with the first task it gets; 0 for none.
    pub vanish_every: u32,
    /// Longest time a worker takes for a task.
    pub work: Duration,
    /// Lease time.
    pub lease: Duration,
    /// Whether every worker has connections of its own, as one process each would have.
    pub own_connections: bool,
    /// Number of the first worker of a process; filled in by [`run`].
    pub first: u32,
}

/// What one process saw.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Seen {
    /// Tasks whose commit was answered.
    pub commits: Vec<u32>,
    /// Workers that vanished.
    pub vanished: u32,
    /// Commits of a lease that was another's by then.
    pub stale: u32,
    /// Calls that were not answered.
    pub unavailable: u32,
    /// Time of each claim that got something, in microseconds.
    pub claim_us: Vec<u32>,
}

impl Seen {
    fn add(&mut self, other: Self) {
        self.commits.extend(other.commits);
        self.claim_us.extend(other.claim_us);
        self.vanished += other.vanished;
        self.stale += other.stale;
        self.unavailable += other.unavailable;
    }

    /// The time within which so many of a thousand claims were answered, in microseconds.
    pub fn claim_quantile(&self, per_mille: usize) -> u32 {
        let mut sorted = self.claim_us.clone();
        sorted.sort_unstable();
        let index = sorted.len() * per_mille / 1000;
        sorted.get(index.min(sorted.len().saturating_sub(1))).copied().unwrap_or(0)
    }
}

/// What became of a run.
#[derive(Debug)]
pub struct SwarmReport {
    /// All that the processes saw.
    pub seen: Seen,
    /// Answered commits, by task.
    pub times: BTreeMap<u32, u32>,
    /// The job's counters at the end.
    pub counters: JobCounters,
    /// The auditor's findings at the end.
    pub findings: Vec<String>,
    /// From the first worker's start to the last commit.
    pub took: Duration,
    /// Bytes Redis held before, and at its fullest.
    pub memory: (u64, u64),
    /// Clients Redis had at its fullest.
    pub clients: u64,
}

fn job() -> JobId {
    JobId::from_parts(1_700_000_000_000, [7; 10])
}

fn queue(options: &SwarmOptions, connections: usize) -> Result<Arc<RedisQueue>, QueueError> {
    let mut redis = RedisOptions::new(&options.url);
    redis.connections = connections;
    let config = QueueConfig { lease: options.lease, max_attempts: 100, ..QueueConfig::default() };
    Ok(Arc::new(RedisQueue::new(&redis, config, Arc::new(Dice::from_os()))?))
}

/// Starts a Redis and processes of `program` (with the options as JSON, as its only argument), and waits until every task
/// is done.
///
/// # Errors
/// When something cannot be started, breaks, or takes too long.
pub async fn run(program: &Path, mut options: SwarmOptions) -> Result<SwarmReport, Failure> {
    let redis = Redis::start().await?;
    options.url = redis.url();
    let queue = queue(&options, 1)?;
    let before = gauge(&redis, "used_memory:").await?;
    queue.add_job(job(), JobShare { priority: 0, weight: 1, max_running: None }).await?;
    let tasks: Vec<NewTask> = (0..options.tasks).map(|number| NewTask { number, source_bytes: 1 << 30 }).collect();
    queue.add_tasks(job(), &tasks).await?;
    let start = Instant::now();
    let mut processes = Vec::new();
    for n in 0..options.processes {
        let each = options.workers / options.processes;
        let part = SwarmOptions { first: n * each, workers: each, ..options.clone() };
        processes.push(Process::start(program, &part)?);
    }
    let (mut most, mut clients) = (0, 0);
    let limit = LIMIT.mul_f64(1.0 + f64::from(options.tasks) / 10_000.0);
    loop {
        // What a coordinator does.
        queue.tick(1000).await?;
        most = most.max(gauge(&redis, "used_memory:").await?);
        clients = clients.max(gauge(&redis, "connected_clients:").await?);
        let counters = queue.job(job()).await?.ok_or("the job is gone")?;
        if counters.open() == 0 {
            break;
        }
        if start.elapsed() > limit {
            return Err(format!("not done after {limit:?}: {counters:?}").into());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let took = start.elapsed();
    let mut seen = Seen::default();
    for process in processes {
        seen.add(tokio::task::spawn_blocking(|| process.finish()).await??);
    }
    let mut times = BTreeMap::new();
    for number in &seen.commits {
        *times.entry(*number).or_default() += 1;
    }
    let counters = queue.job(job()).await?.ok_or("the job is gone")?;
    let findings = queue.audit().await?;
    Ok(SwarmReport { seen, times, counters, findings, took, memory: (before, most), clients })
}

async fn gauge(redis: &Redis, name: &str) -> Result<u64, Failure> {
    let text: String = redis::from_redis_value(redis.command(&["INFO", "everything"]).await?)?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)).ok_or("INFO lacks a line")?;
    Ok(line.trim().parse()?)
}

/// One process; killed when it is dropped.
struct Process(Child);

impl Process {
    fn start(program: &Path, options: &SwarmOptions) -> Result<Self, Failure> {
        let mut command = Command::new(program);
        command.arg(serde_json::to_string(options)?).stdin(Stdio::piped()).stdout(Stdio::piped());
        Ok(Self(command.spawn()?))
    }

    /// Tells it that the work is done, and hears what it saw.
    fn finish(mut self) -> Result<Seen, Failure> {
        drop(self.0.stdin.take());
        let mut text = String::new();
        self.0.stdout.take().ok_or("no output")?.read_to_string(&mut text)?;
        Ok(serde_json::from_str(&text)?)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _reaped = self.0.wait();
    }
}

/// What a process does: workers side by side until its standard input closes. Returns what they saw.
///
/// # Errors
/// What no worker expects.
pub async fn process(options: SwarmOptions) -> Result<Seen, Failure> {
    let stop = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&stop);
    // A thread of its own: it ends with the process.
    std::thread::spawn(move || {
        let _ended = std::io::stdin().read_to_end(&mut Vec::new());
        told.store(true, Ordering::Relaxed);
    });
    let shared = queue(&options, 4)?;
    let mut workers = tokio::task::JoinSet::new();
    for n in options.first..options.first + options.workers {
        let queue = if options.own_connections { queue(&options, 1)? } else { Arc::clone(&shared) };
        let worker = Worker { queue, options: options.clone(), stop: Arc::clone(&stop), n, seen: Seen::default() };
        workers.spawn(worker.run());
    }
    let mut seen = Seen::default();
    while let Some(worker) = workers.join_next().await {
        seen.add(worker??);
    }
    Ok(seen)
}

struct Worker {
    queue: Arc<RedisQueue>,
    options: SwarmOptions,
    stop: Arc<AtomicBool>,
    n: u32,
    seen: Seen,
}

impl Worker {
    async fn run(mut self) -> Result<Seen, QueueError> {
        let mut id = [0; 16];
        id[..4].copy_from_slice(&self.n.to_be_bytes());
        let info = WorkerInfo { id: WorkerId::from_random(id), name: format!("swarm:{}", self.n), slots: 1 };
        let dice = Dice::seeded(u64::from(self.n));
        while !self.stop.load(Ordering::Relaxed) {
            let asked = Instant::now();
            match self.queue.claim(&info, 1).await {
                Ok(leases) if leases.is_empty() => self.queue.wait_for_work(Duration::from_secs(1)).await,
                Ok(leases) => {
                    self.seen.claim_us.push(u32::try_from(asked.elapsed().as_micros()).unwrap_or(u32::MAX));
                    if self.options.vanish_every > 0 && self.n.is_multiple_of(self.options.vanish_every) {
                        self.seen.vanished += 1;
                        return Ok(self.seen);
                    }
                    let half = dice.up_to(u64::try_from(self.options.work.as_micros()).unwrap_or(u64::MAX)) / 2;
                    for lease in &leases {
                        self.pack(&info, lease, Duration::from_micros(half)).await?;
                    }
                }
                Err(error) => self.failed(error).await?,
            }
        }
        Ok(self.seen)
    }

    async fn pack(&mut self, info: &WorkerInfo, lease: &Lease, half: Duration) -> Result<(), QueueError> {
        tokio::time::sleep(half).await;
        let held = HeldTask { task: lease.task, token: lease.token, done_bytes: 1 << 29 };
        if let Err(error) = self.queue.heartbeat(info, &[held]).await {
            self.failed(error).await?;
        }
        tokio::time::sleep(half).await;
        let totals = TaskTotals { files_packed: 1000, files_failed: 0, source_bytes: 1 << 30, stored_bytes: 1 << 29 };
        loop {
            match self.queue.commit(lease.task, lease.token, &totals).await {
                Ok(()) => {
                    self.seen.commits.push(lease.task.number);
                    return Ok(());
                }
                Err(QueueError::Stale { .. }) => {
                    self.seen.stale += 1;
                    return Ok(());
                }
                Err(error) => self.failed(error).await?,
            }
        }
    }

    async fn failed(&mut self, error: QueueError) -> Result<(), QueueError> {
        if !error.is_transient() {
            return Err(error);
        }
        self.seen.unavailable += 1;
        tokio::time::sleep(Duration::from_millis(50)).await;
        Ok(())
    }
}

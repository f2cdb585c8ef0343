//! How many tasks a second go through the queue on one Redis: claims and commits, next to scripts that do nothing on
//! the same connections in the same run. The ratio is what carries over to other machines.
//!
//! `cargo run --release -p des-bench --bin queue_rate -- [--tasks 20000] [--workers 8]`

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use des_shared::clock::{Dice, SystemClock};
use des_shared::ids::{JobId, WorkerId};
use des_shared::queue::memory::MemoryQueue;
use des_shared::queue::redis::{RedisOptions, RedisQueue};
use des_shared::queue::{JobShare, NewTask, QueueConfig, QueueError, SharedQueue, TaskTotals, WorkerInfo};

#[derive(Parser)]
struct Args {
    /// Tasks to claim and commit.
    #[arg(long, default_value_t = 20_000)]
    tasks: u32,
    /// Workers that do so side by side, one task at a time.
    #[arg(long, default_value_t = 8)]
    workers: u8,
}

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _reaped = self.0.wait();
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args = Args::parse();
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let dir = tempfile::tempdir()?;
    let child = Command::new("redis-server")
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir"])
        .arg(dir.path())
        .stdout(Stdio::null())
        .stdin(Stdio::null())
        .spawn()
        .map_err(|error| format!("cannot start redis-server ({error}): run scripts/setup first"))?;
    let _server = Server(child);
    let mut options = RedisOptions::new(format!("redis://127.0.0.1:{port}/0"));
    options.connections = usize::from(args.workers);
    let redis = Arc::new(RedisQueue::new(&options, QueueConfig::default(), Arc::new(Dice::from_os()))?);
    let deadline = Instant::now() + Duration::from_secs(10);
    while let Err(error) = des_shared::queue::Queue::ping(&*redis).await {
        if Instant::now() > deadline {
            return Err(error.into());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let queue: SharedQueue = redis;

    let plain = rate(args.workers, args.tasks, &queue, empty_script).await?;
    println!("scripts that do nothing: {plain:.0}/s");
    let redis = claim_and_commit(&args, &queue).await?;
    println!("claim + commit on Redis: {redis:.0} tasks/s; {:.2} of empty scripts / 2", redis / (plain / 2.0));
    let memory: SharedQueue =
        Arc::new(MemoryQueue::new(QueueConfig::default(), Arc::new(SystemClock), Arc::new(Dice::from_os())));
    let memory = claim_and_commit(&args, &memory).await?;
    println!("claim + commit in memory: {memory:.0} tasks/s");
    Ok(())
}

async fn claim_and_commit(args: &Args, queue: &SharedQueue) -> Result<f64, QueueError> {
    for n in 0..4_u8 {
        let job = JobId::from_parts(1_700_000_000_000, [n; 10]);
        queue.add_job(job, JobShare { priority: 0, weight: 1 + u32::from(n), max_running: None }).await?;
        let tasks: Vec<NewTask> =
            (0..args.tasks / 4).map(|number| NewTask { number, source_bytes: 1_000_000_000 }).collect();
        queue.add_tasks(job, &tasks).await?;
    }
    rate(args.workers, args.tasks / 4 * 4, queue, one_task).await
}

/// `unlock` of a lock nobody has: one script, one read, nothing written.
async fn empty_script(queue: SharedQueue, _worker: WorkerInfo) -> Result<(), QueueError> {
    queue.unlock("nobody", "nobody").await
}

async fn one_task(queue: SharedQueue, worker: WorkerInfo) -> Result<(), QueueError> {
    for lease in queue.claim(&worker, 1).await? {
        queue.commit(lease.task, lease.token, &TaskTotals::default()).await?;
    }
    Ok(())
}

/// Steps a second of `workers` side by side, `steps` in all.
async fn rate<F: Future<Output = Result<(), QueueError>> + Send>(
    workers: u8,
    steps: u32,
    queue: &SharedQueue,
    step: impl Fn(SharedQueue, WorkerInfo) -> F + Send + Copy + 'static,
) -> Result<f64, QueueError> {
    let start = Instant::now();
    let mut running = tokio::task::JoinSet::new();
    for n in 0..workers {
        let queue = Arc::clone(queue);
        let worker = WorkerInfo { id: WorkerId::from_random([n; 16]), name: format!("bench:{n}"), slots: 1 };
        running.spawn(async move {
            for _ in 0..steps / u32::from(workers) {
                step(Arc::clone(&queue), worker.clone()).await?;
            }
            Ok::<(), QueueError>(())
        });
    }
    while let Some(done) = running.join_next().await {
        done.map_err(|error| QueueError::Unavailable(error.to_string()))??;
    }
    Ok(f64::from(steps) / start.elapsed().as_secs_f64())
}

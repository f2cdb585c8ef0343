//! How many tasks a second go through the queue on one Redis, beside what the same Redis does at its best in the same
//! run: trivial commands on the same number of connections with the same number of calls under way, two round trips for
//! each claim and commit. The ratio is what carries over to other machines. With `--bullmq` also BullMQ, on the same Redis.
//!
//! `cargo run --release -p des-bench --bin queue_rate -- [--tasks 8000] [--rounds 5] [--bullmq]`

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use des_shared::clock::{Dice, SystemClock};
use des_shared::ids::{JobId, WorkerId};
use des_shared::queue::memory::MemoryQueue;
use des_shared::queue::redis::{RedisOptions, RedisQueue};
use des_shared::queue::{JobShare, NewTask, QueueConfig, QueueError, SharedQueue, TaskTotals, WorkerInfo};
use redis::aio::MultiplexedConnection;

type Failure = Box<dyn std::error::Error + Send + Sync>;

#[derive(Parser)]
struct Args {
    /// Tasks of one measurement.
    #[arg(long, default_value_t = 8000)]
    tasks: u32,
    /// Measurements of each kind, taken in turns; the median counts.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// `CONNECTIONSxCALLS`: connections, and calls under way on all of them together.
    #[arg(long, value_delimiter = ',', default_value = "1x1,1x8,1x64,4x64,8x8")]
    shapes: Vec<String>,
    /// Also measures BullMQ; `npm ci` in bench/bullmq comes first.
    #[arg(long)]
    bullmq: bool,
    /// Jobs the tasks are spread over, as they compete in the order of service.
    #[arg(long, default_value_t = 4)]
    jobs: u8,
}

struct Server {
    child: Child,
    url: String,
}

impl Server {
    fn start(dir: &Path) -> Result<Self, Failure> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let child = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir"])
            .arg(dir)
            .stdout(Stdio::null())
            .stdin(Stdio::null())
            .spawn()
            .map_err(|error| format!("cannot start redis-server ({error}): run scripts/setup first"))?;
        Ok(Self { child, url: format!("redis://127.0.0.1:{port}/0") })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// Connections, and calls under way.
#[derive(Clone, Copy)]
struct Shape {
    connections: usize,
    calls: u16,
}

impl Shape {
    fn read(text: &str) -> Result<Self, Failure> {
        let parts = text.split_once('x').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
        let (connections, calls) = parts.ok_or_else(|| format!("{text:?} is not like 4x64"))?;
        Ok(Self { connections, calls })
    }
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let args = Args::parse();
    let dir = tempfile::tempdir()?;
    let server = Server::start(dir.path())?;
    let queue = queue_at(&server.url, 1)?;
    let deadline = Instant::now() + Duration::from_secs(10);
    while let Err(error) = queue.ping().await {
        if Instant::now() > deadline {
            return Err(error.into());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    println!(
        "connections x calls: trivial EVALSHA pairs/s, SET+GET pairs/s, claim + commit tasks/s, ratio to the best"
    );
    for text in &args.shapes {
        compare(&args, &server.url, Shape::read(text)?).await?;
    }
    let memory: SharedQueue =
        Arc::new(MemoryQueue::new(QueueConfig::default(), Arc::new(SystemClock), Arc::new(Dice::from_os())));
    add(&args, &memory).await?;
    println!("claim + commit in memory: {:.0} tasks/s", claim_and_commit(&args, &memory, 8).await?);
    if args.bullmq {
        beside_bullmq(&args, &server.url).await?;
    }
    Ok(())
}

fn queue_at(url: &str, connections: usize) -> Result<SharedQueue, QueueError> {
    let mut options = RedisOptions::new(url);
    options.connections = connections;
    Ok(Arc::new(RedisQueue::new(&options, QueueConfig::default(), Arc::new(Dice::from_os()))?))
}

async fn compare(args: &Args, url: &str, shape: Shape) -> Result<(), Failure> {
    let (mut scripts, mut plain, mut ours) = (Vec::new(), Vec::new(), Vec::new());
    let (mut inside, mut cpu, mut cpu_trivial) = (Vec::new(), Vec::new(), Vec::new());
    let tasks = f64::from(args.tasks);
    for _ in 0..args.rounds {
        plain.push(ceiling(args, url, shape, false).await?);
        let before = Spent::read(url).await?;
        scripts.push(ceiling(args, url, shape, true).await?);
        cpu_trivial.push((Spent::read(url).await?.cpu - before.cpu) / tasks);
        flush(url).await?;
        let queue = queue_at(url, shape.connections)?;
        add(args, &queue).await?;
        let before = Spent::read(url).await?;
        ours.push(claim_and_commit(args, &queue, shape.calls).await?);
        let after = Spent::read(url).await?;
        inside.push((after.scripts - before.scripts) / tasks);
        cpu.push((after.cpu - before.cpu) / tasks);
    }
    let (scripts, plain, ours) = (median(scripts), median(plain), median(ours));
    let (inside, cpu, cpu_trivial) = (median(inside), median(cpu), median(cpu_trivial));
    let (connections, calls, ratio) = (shape.connections, shape.calls, ours / scripts.max(plain));
    println!(
        "{connections} x {calls}: {scripts:.0} {plain:.0} {ours:.0} {ratio:.2} (of EVALSHA {:.2}); the server's us a \
         task: {cpu:.1}, {inside:.1} of them in scripts; {cpu_trivial:.1} a trivial pair",
        ours / scripts
    );
    Ok(())
}

/// Microseconds the server has spent.
struct Spent {
    /// Wall clock, in scripts.
    scripts: f64,
    /// Processor time, in all.
    cpu: f64,
}

impl Spent {
    async fn read(url: &str) -> Result<Self, Failure> {
        let mut connection = redis::Client::open(url)?.get_multiplexed_async_connection().await?;
        let text: String = redis::cmd("INFO").arg("everything").query_async(&mut connection).await?;
        let number = |name: &str| -> f64 {
            let rest = text.split(name).nth(1).unwrap_or_default();
            let digits = rest.split(|c: char| !c.is_ascii_digit() && c != '.').next().unwrap_or_default();
            digits.parse().unwrap_or(0.0)
        };
        let cpu = (number("used_cpu_sys_main_thread:") + number("used_cpu_user_main_thread:")) * 1e6;
        let calls = text.lines().find(|line| line.starts_with("cmdstat_evalsha:")).unwrap_or_default();
        let scripts = calls.split("usec=").nth(1).and_then(|rest| rest.split(',').next()?.parse().ok()).unwrap_or(0.0);
        Ok(Self { scripts, cpu })
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

async fn flush(url: &str) -> Result<(), Failure> {
    let mut connection = redis::Client::open(url)?.get_multiplexed_async_connection().await?;
    redis::cmd("FLUSHALL").query_async::<()>(&mut connection).await?;
    Ok(())
}

/// Pairs of trivial calls a second, on the client library's own connections.
async fn ceiling(args: &Args, url: &str, shape: Shape, scripts: bool) -> Result<f64, Failure> {
    let client = redis::Client::open(url)?;
    let mut connections = Vec::new();
    for _ in 0..shape.connections {
        connections.push(client.get_multiplexed_async_connection().await?);
    }
    let hash: String = redis::cmd("SCRIPT").arg("LOAD").arg("return {'ok'}").query_async(&mut connections[0]).await?;
    let hash: Arc<str> = hash.into();
    rate(shape.calls, args.tasks, move |n| {
        let (mut connection, hash) = (connections[usize::from(n) % connections.len()].clone(), Arc::clone(&hash));
        async move { trivial_pair(&mut connection, &hash, scripts).await }
    })
    .await
}

async fn trivial_pair(connection: &mut MultiplexedConnection, hash: &str, scripts: bool) -> Result<u32, Failure> {
    if scripts {
        for _ in 0..2 {
            redis::cmd("EVALSHA").arg(hash).arg(1).arg("{des}").query_async::<Vec<String>>(connection).await?;
        }
    } else {
        redis::cmd("SET").arg("{des}:bench").arg("0123456789").query_async::<()>(connection).await?;
        redis::cmd("GET").arg("{des}:bench").query_async::<String>(connection).await?;
    }
    Ok(1)
}

async fn add(args: &Args, queue: &SharedQueue) -> Result<(), QueueError> {
    for n in 0..args.jobs {
        let job = JobId::from_parts(1_700_000_000_000, [n; 10]);
        queue.add_job(job, JobShare { priority: 0, weight: 1 + u32::from(n), max_running: None }).await?;
        let tasks: Vec<NewTask> = (0..args.tasks / u32::from(args.jobs))
            .map(|number| NewTask { number, source_bytes: 1_000_000_000 })
            .collect();
        queue.add_tasks(job, &tasks).await?;
    }
    Ok(())
}

/// Tasks a second, claimed one at a time as a free slot of a worker does it.
async fn claim_and_commit(args: &Args, queue: &SharedQueue, workers: u16) -> Result<f64, Failure> {
    let queue = Arc::clone(queue);
    rate(workers, args.tasks, move |n| {
        let queue = Arc::clone(&queue);
        let [high, low] = n.to_be_bytes();
        let mut id = [0; 16];
        id[..2].copy_from_slice(&[high, low]);
        let worker = WorkerInfo { id: WorkerId::from_random(id), name: format!("bench:{n}"), slots: 1 };
        async move {
            let leases = queue.claim(&worker, 1).await?;
            for lease in &leases {
                let totals =
                    TaskTotals { files_packed: 1000, files_failed: 0, source_bytes: 1 << 30, stored_bytes: 1 << 29 };
                queue.commit(lease.task, lease.token, &totals).await?;
            }
            Ok(u32::from(!leases.is_empty()))
        }
    })
    .await
}

/// Steps a second of `side_by_side` loops that share `steps`; all of them have to do something.
async fn rate<F>(
    side_by_side: u16,
    steps: u32,
    step: impl Fn(u16) -> F + Send + Clone + 'static,
) -> Result<f64, Failure>
where
    F: Future<Output = Result<u32, Failure>> + Send + 'static,
{
    let start = Instant::now();
    let mut running = tokio::task::JoinSet::new();
    let each = steps / u32::from(side_by_side);
    for n in 0..side_by_side {
        let step = step.clone();
        running.spawn(async move {
            let mut done = 0;
            for _ in 0..each {
                done += step(n).await?;
            }
            Ok::<u32, Failure>(done)
        });
    }
    let mut done = 0;
    while let Some(ended) = running.join_next().await {
        done += ended??;
    }
    if done != each * u32::from(side_by_side) {
        return Err(format!("{done} of {steps} steps had something to do").into());
    }
    Ok(f64::from(done) / start.elapsed().as_secs_f64())
}

/// Add, claim and commit, beside BullMQ's add, process and complete. The better of BullMQ's settings counts.
async fn beside_bullmq(args: &Args, url: &str) -> Result<(), Failure> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("bullmq/rate.js");
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..args.rounds {
        flush(url).await?;
        let queue = queue_at(url, 4)?;
        let start = Instant::now();
        add(args, &queue).await?;
        claim_and_commit(args, &queue, 64).await?;
        ours.push(f64::from(args.tasks) / start.elapsed().as_secs_f64());
        flush(url).await?;
        let output = Command::new("node").arg(&script).args([url, &args.tasks.to_string()]).output()?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr);
            return Err(format!("BullMQ did not run (npm ci in bench/bullmq comes first): {text}").into());
        }
        let text = String::from_utf8(output.stdout)?;
        let best = text.lines().filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).fold(0.0, f64::max);
        theirs.push(best);
        println!("BullMQ, add + process + complete of {} jobs:\n{}", args.tasks, text.trim_end());
    }
    let (ours, theirs) = (median(ours), median(theirs));
    println!(
        "add + claim + commit {ours:.0} tasks/s; BullMQ {theirs:.0} jobs/s at its best; {:.1} times",
        ours / theirs
    );
    Ok(())
}

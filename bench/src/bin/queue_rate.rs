//! How many tasks a second go through the queue on one Redis, beside what the same Redis does at its best in the same
//! run: trivial commands on the same number of connections with the same number of calls under way. The ratio is what
//! carries over to other machines. With `--bullmq` also BullMQ, on the same Redis.
//!
//! A task is claimed and committed in three ways: by a call each (two round trips); by workers of one slot, whose commit
//! brings the next task (one round trip); by one worker of as many slots, with a worker's own desk, which commits
//! together what is finished while a call is under way.
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
use des_shared::queue::{
    FinishedTask, JobShare, Lease, NewTask, QueueConfig, QueueError, SharedQueue, TaskTotals, WorkerInfo,
};
use des_worker::desk::Desk;
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
    /// Also measures BullMQ; `npm install` in bench/bullmq comes first.
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

/// How tasks are claimed and committed.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// A call each.
    TwoCalls,
    /// Workers of one slot, whose commit brings the next task.
    OneCall,
    /// One worker, as the real one does it.
    Desk,
}

/// What was measured of one kind of calls: tasks (or pairs) a second, and the server's processor time for each in
/// microseconds.
#[derive(Debug, Default)]
struct Measured {
    rates: Vec<f64>,
    cpu: Vec<f64>,
}

impl Measured {
    async fn add(
        &mut self,
        url: &str,
        tasks: u32,
        work: impl Future<Output = Result<f64, Failure>>,
    ) -> Result<(), Failure> {
        let before = cpu(url).await?;
        self.rates.push(work.await?);
        self.cpu.push((cpu(url).await? - before) / f64::from(tasks));
        Ok(())
    }

    fn rate(&self) -> f64 {
        median(&self.rates)
    }

    fn cpu(&self) -> f64 {
        median(&self.cpu)
    }
}

async fn compare(args: &Args, url: &str, shape: Shape) -> Result<(), Failure> {
    let (mut scripts, mut plain) = (Measured::default(), Measured::default());
    let mut ours = [Way::TwoCalls, Way::OneCall, Way::Desk].map(|way| (way, Measured::default()));
    for _ in 0..args.rounds {
        plain.add(url, args.tasks, ceiling(args, url, shape, false)).await?;
        scripts.add(url, args.tasks, ceiling(args, url, shape, true)).await?;
        for (way, measured) in &mut ours {
            flush(url).await?;
            let queue = queue_at(url, shape.connections)?;
            add(args, &queue).await?;
            measured.add(url, args.tasks, work(args, &queue, *way, shape.calls)).await?;
        }
    }
    let Shape { connections, calls } = shape;
    println!("{connections} connections, {calls} calls under way:");
    println!("  trivial EVALSHA: {:.0} pairs/s, the server's us a pair {:.1}", scripts.rate(), scripts.cpu());
    println!("  SET and GET: {:.0} pairs/s, {:.1}", plain.rate(), plain.cpu());
    for (way, measured) in &ours {
        println!(
            "  {way:?}: {:.0} tasks/s, {:.1}; of the EVALSHA pairs {:.2}, of the best {:.2}",
            measured.rate(),
            measured.cpu(),
            measured.rate() / scripts.rate(),
            measured.rate() / scripts.rate().max(plain.rate()),
        );
    }
    Ok(())
}

async fn work(args: &Args, queue: &SharedQueue, way: Way, calls: u16) -> Result<f64, Failure> {
    match way {
        Way::TwoCalls => claim_and_commit(args, queue, calls).await,
        Way::OneCall => exchange(args, queue, calls).await,
        Way::Desk => at_a_desk(args, queue, calls).await,
    }
}

/// Microseconds of processor time the server has spent.
async fn cpu(url: &str) -> Result<f64, Failure> {
    let mut connection = redis::Client::open(url)?.get_multiplexed_async_connection().await?;
    let text: String = redis::cmd("INFO").arg("cpu").query_async(&mut connection).await?;
    let number = |name: &str| -> f64 {
        let rest = text.split(name).nth(1).unwrap_or_default();
        let digits = rest.split(|c: char| !c.is_ascii_digit() && c != '.').next().unwrap_or_default();
        digits.parse().unwrap_or(0.0)
    };
    Ok((number("used_cpu_sys_main_thread:") + number("used_cpu_user_main_thread:")) * 1e6)
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
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

fn worker(n: u16, slots: u32) -> WorkerInfo {
    let [high, low] = n.to_be_bytes();
    let mut id = [0; 16];
    id[..2].copy_from_slice(&[high, low]);
    WorkerInfo { id: WorkerId::from_random(id), name: format!("bench:{n}"), slots }
}

fn finished(lease: &Lease) -> FinishedTask {
    let totals = TaskTotals { files_packed: 1000, files_failed: 0, source_bytes: 1 << 30, stored_bytes: 1 << 29 };
    FinishedTask { task: lease.task, token: lease.token, totals }
}

/// Tasks a second, claimed one at a time and committed by a call of its own.
async fn claim_and_commit(args: &Args, queue: &SharedQueue, workers: u16) -> Result<f64, Failure> {
    let queue = Arc::clone(queue);
    rate(workers, args.tasks, move |n| {
        let queue = Arc::clone(&queue);
        async move {
            let leases = queue.claim(&worker(n, 1), 1).await?;
            for FinishedTask { task, token, totals } in leases.iter().map(finished) {
                queue.commit(task, token, &totals).await?;
            }
            Ok(u32::from(!leases.is_empty()))
        }
    })
    .await
}

/// Tasks a second of workers of one slot, whose commit brings the next task.
async fn exchange(args: &Args, queue: &SharedQueue, workers: u16) -> Result<f64, Failure> {
    let start = Instant::now();
    let mut running = tokio::task::JoinSet::new();
    for n in 0..workers {
        let queue = Arc::clone(queue);
        running.spawn(async move {
            let (worker, mut done) = (worker(n, 1), 0_u32);
            let mut held = queue.claim(&worker, 1).await?;
            while let Some(lease) = held.pop() {
                let exchanged = queue.exchange(&worker, &[finished(&lease)], 0).await?;
                exchanged.committed.into_iter().collect::<Result<(), QueueError>>()?;
                (held, done) = (exchanged.leases, done + 1);
            }
            Ok::<u32, Failure>(done)
        });
    }
    let mut done = 0;
    while let Some(ended) = running.join_next().await {
        done += ended??;
    }
    check(args, done)?;
    Ok(f64::from(done) / start.elapsed().as_secs_f64())
}

/// Tasks a second of one worker with so many slots: its desk and its loop, with tasks that do nothing.
async fn at_a_desk(args: &Args, queue: &SharedQueue, slots: u16) -> Result<f64, Failure> {
    let start = Instant::now();
    let (mut desk, counter) = Desk::new(Arc::clone(queue), worker(0, u32::from(slots)), QueueConfig::default().lease);
    let mut running: tokio::task::JoinSet<Result<(), QueueError>> = tokio::task::JoinSet::new();
    let (mut done, tasks) = (0, args.tasks as usize);
    loop {
        while let Some(ended) = running.try_join_next() {
            ended??;
            done += 1;
        }
        if done >= tasks {
            break;
        }
        let free = usize::from(slots).saturating_sub(running.len());
        if (free == 0 || done + running.len() >= tasks) && !desk.has_finished() {
            tokio::select! {
                biased;
                () = desk.finished() => {}
                Some(ended) = running.join_next() => {
                    ended??;
                    done += 1;
                }
            }
            continue;
        }
        for lease in desk.exchange(free).await? {
            let counter = counter.clone();
            running.spawn(async move { counter.hand_in(finished(&lease)).await });
        }
    }
    check(args, u32::try_from(done)?)?;
    Ok(f64::from(args.tasks) / start.elapsed().as_secs_f64())
}

fn check(args: &Args, done: u32) -> Result<(), Failure> {
    let all = args.tasks / u32::from(args.jobs) * u32::from(args.jobs);
    if done == all { Ok(()) } else { Err(format!("{done} of {all} tasks were done").into()) }
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

/// Add, claim and commit, beside BullMQ's add, process and complete. The better of BullMQ's settings counts, and of ours
/// one worker of 64 slots on four connections.
async fn beside_bullmq(args: &Args, url: &str) -> Result<(), Failure> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("bullmq/rate.js");
    let (mut ours, mut theirs) = (Measured::default(), Measured::default());
    for _ in 0..args.rounds {
        flush(url).await?;
        let queue = queue_at(url, 4)?;
        let both = async {
            let start = Instant::now();
            add(args, &queue).await?;
            at_a_desk(args, &queue, 64).await?;
            Ok(f64::from(args.tasks) / start.elapsed().as_secs_f64())
        };
        ours.add(url, args.tasks, both).await?;
        flush(url).await?;
        let output = Command::new("node").arg(&script).args([url, &args.tasks.to_string()]).output()?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr);
            return Err(format!("BullMQ did not run (npm install in bench/bullmq comes first): {text}").into());
        }
        let text = String::from_utf8(output.stdout)?;
        let settings = text.lines().filter_map(|line| {
            let mut words = line.rsplit(' ');
            let cpu = words.next()?.parse::<f64>().ok()?;
            Some((words.next()?.parse::<f64>().ok()?, cpu))
        });
        let (rate, cpu) = settings.max_by(|a, b| a.0.total_cmp(&b.0)).ok_or("BullMQ printed no rate")?;
        theirs.rates.push(rate);
        theirs.cpu.push(cpu);
        println!(
            "BullMQ, add + process + complete of {} jobs: jobs/s, the server's us a job\n{}",
            args.tasks,
            text.trim_end()
        );
    }
    println!(
        "add + claim + commit {:.0} tasks/s; BullMQ {:.0} jobs/s at its best; {:.1} times. The server's us a task {:.1}; a \
         job of BullMQ {:.1}; {:.1} times",
        ours.rate(),
        theirs.rate(),
        ours.rate() / theirs.rate(),
        ours.cpu(),
        theirs.cpu(),
        theirs.cpu() / ours.cpu(),
    );
    Ok(())
}

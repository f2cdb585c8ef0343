//! How much faster several workers pack than one when S3 is far away: a real redis-server, a real SeaweedFS behind a TCP
//! proxy that adds latency, and workers of one slot each. Redis is near, as it would be.
//!
//! The workers are those of `des-worker`, each with its own connections to Redis and S3, in one process. Shards are
//! small, so that what is measured is waiting, not the two cores.
//!
//! `cargo run -p des-bench --bin worker_scaling -- [--tasks 240] [--latency-ms 50] [--rounds 1]`

use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use des_bench::latency::LatencyProxy;
use des_shared::clock::{Dice, SystemClock};
use des_shared::config::SourceRoots;
use des_shared::ids::{JobId, TaskId, Uid};
use des_shared::metrics::Metrics;
use des_shared::queue::redis::{RedisOptions, RedisQueue};
use des_shared::queue::{JobShare, NewTask, QueueConfig, SharedQueue};
use des_shared::routing::{NBits, ShardDate, Slot};
use des_shared::segment::{PackOptions, Segment, SegmentFile};
use des_shared::service::Shutdown;
use des_shared::state::StateStore;
use des_shared::store::SharedStore;
use des_shared::store::backend::{Backend, Layers};
use des_shared::store::metered::StoreMetrics;
use des_shared::store::s3::S3Config;
use des_shared::store::zones::Zones;
use des_tests::servers::{Redis, SeaweedFs};
use des_worker::config::{DEFAULT_HEARTBEAT, DEFAULT_STALL, WorkerOptions};
use des_worker::metrics::WorkerMetrics;
use des_worker::pack::PackLimits;
use des_worker::source::Sources;
use futures::{StreamExt, TryStreamExt, stream};

/// When the job was accepted, Unix milliseconds.
const ACCEPTED_MS: u64 = 1_700_000_000_000;

/// Measures the scaling of packing.
#[derive(Debug, Parser)]
struct Args {
    /// Shards to pack.
    #[arg(long, default_value_t = 240)]
    tasks: u32,
    /// Files in each shard.
    #[arg(long, default_value_t = 20)]
    files: u32,
    /// Bytes of each file.
    #[arg(long, default_value_t = 8000)]
    file_bytes: usize,
    /// Round trip added in front of S3, milliseconds.
    #[arg(long, default_value_t = 50)]
    latency_ms: u64,
    /// Numbers of workers.
    #[arg(long, value_delimiter = ',', default_value = "1,2,4,8")]
    workers: Vec<u32>,
    /// How often everything is measured; the median counts.
    #[arg(long, default_value_t = 1)]
    rounds: u32,
}

/// The servers, and how the workers reach them.
struct Place {
    redis: Redis,
    s3: Arc<SeaweedFs>,
    proxy: LatencyProxy,
    sources: tempfile::TempDir,
}

type Outcome<T> = Result<T, Box<dyn Error>>;

#[tokio::main]
async fn main() -> Outcome<()> {
    let args = Args::parse();
    let s3 = SeaweedFs::start().await?;
    let proxy = LatencyProxy::start(s3.port(), Duration::from_millis(args.latency_ms)).await?;
    let place = Place { redis: Redis::start().await?, s3: Arc::new(s3), proxy, sources: tempfile::tempdir()? };
    write_sources(place.sources.path(), &args)?;
    let mut times: BTreeMap<u32, Vec<f64>> = BTreeMap::new();
    for round in 0..args.rounds {
        for &workers in &args.workers {
            let (seconds, calls) = measure(&place, &args, round, workers).await?;
            times.entry(workers).or_default().push(seconds);
            eprintln!("round {round}: {workers} workers, {seconds:.2} s, S3 calls a shard: {calls}");
        }
    }
    let median = |seconds: &[f64]| {
        let mut sorted = seconds.to_vec();
        sorted.sort_by(f64::total_cmp);
        sorted[sorted.len() / 2]
    };
    let one = times.values().next().map(|seconds| median(seconds)).unwrap_or_default();
    println!("| workers | seconds | shards/s | times one |\n| --- | --- | --- | --- |");
    for (workers, seconds) in &times {
        let seconds = median(seconds);
        let rate = f64::from(args.tasks) / seconds;
        println!("| {workers} | {seconds:.2} | {rate:.1} | {:.2} |", one / seconds);
    }
    Ok(())
}

/// The same few files for every shard: what is read is in memory.
fn write_sources(dir: &Path, args: &Args) -> std::io::Result<()> {
    for n in 0..args.files {
        let dice = Dice::seeded(u64::from(n));
        // Hex digits: shrinks to half, as text does.
        let digit = |_| b"0123456789abcdef"[dice.up_to(15) as usize];
        std::fs::write(dir.join(n.to_string()), (0..args.file_bytes).map(digit).collect::<Vec<u8>>())?;
    }
    Ok(())
}

fn segment(place: &Place, args: &Args, task: TaskId) -> Outcome<Segment> {
    let mut files = Vec::new();
    for n in 0..args.files {
        files.push(SegmentFile {
            uid: Uid::new(format!("{}/{}/{n}", task.job, task.number))?,
            created_at: "2024-03-01T00:00:00Z".to_owned(),
            size_bytes: args.file_bytes as u64,
            source: place.sources.path().join(n.to_string()).display().to_string(),
        });
    }
    let index = task.number % NBits::default().slots();
    let slot = Slot { date: ShardDate { year: 2024, month: 3, day: 1 }, index, n_bits: NBits::default() };
    let options = PackOptions::default();
    Ok(Segment { task, slot, number: task.number, sequence: ACCEPTED_MS, options, files: files.into() })
}

/// Seconds from the first claim to the last commit, and the S3 calls of each shard.
async fn measure(place: &Place, args: &Args, round: u32, workers: u32) -> Outcome<(f64, String)> {
    let bucket = place.s3.new_bucket().await?;
    let job = JobId::from_parts(ACCEPTED_MS, [round as u8, workers as u8, 0, 0, 0, 0, 0, 0, 0, 0]);
    let queue = connect(place, job)?;
    let near = StateStore::new(Backend::S3(state_config(place.s3.config(&bucket))).open(&layers(None)).await?);
    let mut tasks = Vec::new();
    for number in 0..args.tasks {
        let segment = Arc::new(segment(place, args, TaskId { job, number })?);
        tasks.push(NewTask { number, source_bytes: segment.source_bytes() });
        near.put_segment(&segment).await?;
    }
    let (shutdown, mut running, registry) = (Shutdown::new(), Vec::new(), Metrics::new());
    let counted = StoreMetrics::register(registry.registry())?;
    for n in 0..workers {
        running.push(worker(place, &bucket, (job, n), counted.clone(), shutdown.clone()).await?);
    }
    queue.add_job(job, JobShare { priority: 0, weight: 1, max_running: None }).await?;
    let began = Instant::now();
    queue.add_tasks(job, &tasks).await?;
    loop {
        let counters = queue.job(job).await?.ok_or("the job is gone")?;
        if counters.committed == u64::from(args.tasks) {
            break;
        }
        if counters.dead + counters.delayed > 0 {
            return Err(format!("a task failed: {:?}", queue.tasks(job, 0, 3).await?).into());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let seconds = began.elapsed().as_secs_f64();
    shutdown.begin();
    let joined: Vec<()> = stream::iter(running).then(des_worker::RunningWorker::join).try_collect().await?;
    drop(joined);
    Ok((seconds, calls(&registry, args.tasks)))
}

fn connect(place: &Place, job: JobId) -> Outcome<SharedQueue> {
    let config = QueueConfig { namespace: format!("bench-{job}"), ..QueueConfig::default() };
    Ok(Arc::new(RedisQueue::new(&RedisOptions::new(place.redis.url()), config, Arc::new(Dice::from_os()))?))
}

fn layers(metrics: Option<StoreMetrics>) -> Layers {
    Layers { metrics, ..Layers::new(Arc::new(Dice::from_os())) }
}

fn state_config(config: S3Config) -> S3Config {
    S3Config { prefix: "_des".to_owned(), ..config }
}

/// A worker with connections of its own, S3 being far away.
async fn worker(
    place: &Place,
    bucket: &str,
    (job, n): (JobId, u32),
    counted: StoreMetrics,
    shutdown: Shutdown,
) -> Outcome<des_worker::RunningWorker> {
    let far =
        S3Config { endpoint_url: Some(format!("http://127.0.0.1:{}", place.proxy.port())), ..place.s3.config(bucket) };
    let layers = layers(Some(counted));
    let zone: SharedStore = Backend::S3(far.clone()).open(&layers).await?;
    let registry = Metrics::new();
    let roots = SourceRoots { folders: vec![std::fs::canonicalize(place.sources.path())?], buckets: Vec::new() };
    let deps = des_worker::Deps {
        queue: connect(place, job)?,
        state: StateStore::new(Backend::S3(state_config(far)).open(&layers).await?),
        zones: Arc::new(Zones::single(NBits::default(), zone)),
        sources: Arc::new(Sources::new(roots, BTreeMap::new())),
        clock: Arc::new(SystemClock),
        dice: Arc::new(Dice::from_os()),
        metrics: WorkerMetrics::register(&registry),
        registry,
    };
    let options = WorkerOptions {
        name: format!("bench:{n}"),
        slots: 1,
        lease: QueueConfig::default().lease,
        heartbeat: DEFAULT_HEARTBEAT,
        stall: DEFAULT_STALL,
        drain: Duration::from_secs(25),
        listen: None,
        limits: PackLimits::default(),
        probe_stores: false,
    };
    Ok(des_worker::start(options, deps, shutdown).await?)
}

/// Calls by operation for each shard, and how long one takes.
fn calls(registry: &Metrics, tasks: u32) -> String {
    let text = registry.render();
    let number = |prefix: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(prefix)?.strip_prefix(' '));
        line.and_then(|n| n.parse::<f64>().ok()).unwrap_or_default()
    };
    let mut shown = Vec::new();
    for operation in ["head", "get", "list", "put", "create_upload", "put_part", "complete_upload"] {
        let count = number(&format!("des_s3_call_seconds_count{{operation=\"{operation}\"}}"));
        let seconds = number(&format!("des_s3_call_seconds_sum{{operation=\"{operation}\"}}"));
        if count > 0.0 {
            let each = seconds * 1000.0 / count;
            shown.push(format!("{operation} {:.2} of {each:.1} ms", count / f64::from(tasks)));
        }
    }
    shown.join(", ")
}

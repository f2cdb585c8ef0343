//! How long a task waits for its next holder after its worker was killed, and after it was asked to stop: real
//! `des-worker` processes on a real redis-server, no coordinator.
//!
//! The zone is a server that takes the requests of a task and never answers: the task is at work whenever its worker goes, and no
//! processor time is used. The state store is a folder. Two workers of one slot; one holds the task, the other waits.
//!
//! `cargo build -p des-worker && cargo run -p des-bench --bin worker_takeover -- [--kills 50] [--stops 20] [--lease 2]`

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use clap::Parser;
use des_shared::clock::Dice;
use des_shared::ids::{FencingToken, JobId, TaskId, Uid};
use des_shared::queue::redis::{RedisOptions, RedisQueue};
use des_shared::queue::{JobShare, NewTask, QueueConfig, SharedQueue, TaskState};
use des_shared::routing::{NBits, ShardDate, Slot};
use des_shared::segment::{PackOptions, Segment, SegmentFile};
use des_shared::state::StateStore;
use des_shared::store::local::LocalStore;
use des_tests::cluster::program;
use des_tests::servers::{Redis, Supervised};
use nix::sys::signal::Signal;
use tokio::net::TcpListener;

/// Measures takeovers.
#[derive(Debug, Parser)]
struct Args {
    /// Workers killed with SIGKILL.
    #[arg(long, default_value_t = 50)]
    kills: usize,
    /// Workers stopped with SIGTERM.
    #[arg(long, default_value_t = 20)]
    stops: usize,
    /// Lease in seconds.
    #[arg(long, default_value_t = 2)]
    lease: u64,
}

type Outcome<T> = Result<T, Box<dyn Error>>;

struct Bench {
    folder: tempfile::TempDir,
    redis: Redis,
    zone_port: u16,
    queue: SharedQueue,
    task: TaskId,
    lease: u64,
    started: usize,
}

#[tokio::main]
async fn main() -> Outcome<()> {
    let args = Args::parse();
    let mut bench = Bench::start(args.lease).await?;
    let (mut holder, mut token) = (bench.worker()?, FencingToken(0));
    (_, token) = bench.held_after(token).await?;
    let mut killed = Vec::new();
    for _ in 0..args.kills {
        let next = bench.worker_ready().await?;
        let began = Instant::now();
        holder.kill()?;
        let at;
        (at, token) = bench.held_after(token).await?;
        killed.push(at.duration_since(began));
        holder = next;
    }
    let mut stopped = Vec::new();
    for _ in 0..args.stops {
        let next = bench.worker_ready().await?;
        let began = Instant::now();
        holder.signal(Signal::SIGTERM)?;
        let at;
        (at, token) = bench.held_after(token).await?;
        stopped.push(at.duration_since(began));
        holder.wait(Duration::from_secs(30)).await?;
        holder = next;
    }
    println!("| worker ended by | times | median | p99 | most |\n| --- | --- | --- | --- | --- |");
    show(&format!("SIGKILL, lease {} s", args.lease), killed);
    show("SIGTERM", stopped);
    Ok(())
}

fn show(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |percent: usize| times[(times.len() * percent).div_ceil(100).max(1) - 1];
    if let Some(most) = times.last() {
        println!("| {what} | {} | {:.2?} | {:.2?} | {most:.2?} |", times.len(), at(50), at(99));
    }
}

impl Bench {
    async fn start(lease: u64) -> Outcome<Self> {
        let folder = tempfile::tempdir()?;
        std::fs::create_dir(folder.path().join("state"))?;
        let redis = Redis::start().await?;
        let config = QueueConfig { lease: Duration::from_secs(lease), max_attempts: 1000, ..QueueConfig::default() };
        let queue = RedisQueue::new(&RedisOptions::new(redis.url()), config, Arc::new(Dice::from_os()))?;
        let job = JobId::from_parts(1_700_000_000_000, [1; 10]);
        let task = TaskId { job, number: 0 };
        let bench =
            Self { zone_port: stuck_server().await?, folder, redis, queue: Arc::new(queue), task, lease, started: 0 };
        let source = bench.folder.path().join("source");
        std::fs::write(&source, b"source")?;
        let state = StateStore::new(Arc::new(LocalStore::open(bench.folder.path().join("state"))?));
        state.put_segment(&Arc::new(segment(task, &source)?)).await?;
        bench.queue.add_job(job, JobShare { priority: 0, weight: 1, max_running: None }).await?;
        bench.queue.add_tasks(job, &[NewTask { number: 0, source_bytes: 6 }]).await?;
        Ok(bench)
    }

    fn worker(&mut self) -> Outcome<Supervised> {
        self.started += 1;
        let folder = self.folder.path().join(format!("worker-{}", self.started));
        std::fs::create_dir(&folder)?;
        let state = format!("file://{}", self.folder.path().join("state").display());
        let (lease, endpoint) = (self.lease.to_string(), format!("http://127.0.0.1:{}", self.zone_port));
        let (redis, roots) = (self.redis.url(), self.folder.path().display().to_string());
        let env = [
            ("DES_REDIS_URL", redis.as_str()),
            ("DES_BACKEND", "s3"),
            ("DES_S3_BUCKET", "zone"),
            ("DES_S3_ENDPOINT_URL", endpoint.as_str()),
            ("DES_STATE_URL", state.as_str()),
            ("DES_SOURCE_ROOTS", roots.as_str()),
            ("DES_LEASE_SECONDS", lease.as_str()),
            ("DES_MAX_ATTEMPTS", "1000"),
            ("DES_WORKER_SLOTS", "1"),
            ("DES_LISTEN", "127.0.0.1:0"),
            ("AWS_ACCESS_KEY_ID", "k"),
            ("AWS_SECRET_ACCESS_KEY", "s"),
            ("AWS_EC2_METADATA_DISABLED", "true"),
        ];
        Ok(Supervised::start(&folder, &program("des-worker")?, std::iter::empty::<&str>(), &env)?)
    }

    /// A worker that waits for work.
    async fn worker_ready(&mut self) -> Outcome<Supervised> {
        let worker = self.worker()?;
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.queue.workers().await?.iter().filter(|worker| worker.leases == 0 && worker.idle_ms < 1000).count()
            == 0
        {
            if Instant::now() > deadline {
                return Err(format!("a worker does not start: {}", worker.log_tail()).into());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(worker)
    }

    /// When the task is held under a newer token, and that token.
    async fn held_after(&self, token: FencingToken) -> Outcome<(Instant, FencingToken)> {
        let deadline = Instant::now() + Duration::from_mins(1);
        loop {
            let view = self.queue.tasks(self.task.job, 0, 1).await?.remove(0);
            if view.state == TaskState::Leased && view.token > token {
                return Ok((Instant::now(), view.token));
            }
            if Instant::now() > deadline {
                return Err(format!("nobody takes the task: {view:?}").into());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn segment(task: TaskId, source: &PathBuf) -> Outcome<Segment> {
    let slot = Slot { date: ShardDate { year: 2024, month: 3, day: 1 }, index: 0, n_bits: NBits::default() };
    let file = SegmentFile {
        uid: Uid::new("a")?,
        created_at: "2024-03-01T00:00:00Z".to_owned(),
        size_bytes: 6,
        source: Path::new(source).display().to_string(),
    };
    let options = PackOptions::default();
    Ok(Segment { task, slot, number: 0, sequence: 1_700_000_000_000, options, files: vec![file].into() })
}

/// An S3 server that answers what a worker tries under scratch keys before its first claim, as a server that refuses second
/// writers does, and takes every other request and never answers.
async fn stuck_server() -> std::io::Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    // Ends with the process.
    tokio::spawn(axum::serve(listener, Router::new().fallback(answer)).into_future());
    Ok(port)
}

async fn answer(request: Request) -> Response {
    if !request.uri().path().contains("/scratch/") {
        return std::future::pending().await;
    }
    let conditional = request.headers().contains_key("if-none-match");
    let upload = request.uri().query().is_some_and(|query| query.contains("uploadId"));
    let tag = [("etag", "\"1\"")];
    match (request.method().as_str(), conditional) {
        ("PUT" | "POST", true) => StatusCode::PRECONDITION_FAILED.into_response(),
        ("PUT", false) => (tag, "").into_response(),
        ("HEAD", _) => (tag, [("content-length", "5"), ("x-amz-meta-probe", "1")]).into_response(),
        ("POST", false) if !upload => {
            "<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>".into_response()
        }
        _ => StatusCode::NO_CONTENT.into_response(),
    }
}

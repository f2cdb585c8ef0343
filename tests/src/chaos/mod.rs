//! Chaos on the real thing: real Redis, real `SeaweedFS`, real processes, proxies in between, and faults by dice until so
//! many processes were killed. Then everything is checked.
//!
//! What can be promised is checked from outside: every file of every accepted job comes back, is in exactly one shard of
//! its job, no shard ever changed, and a killed worker's tasks soon ran again.

pub mod files;

mod check;
mod clients;
mod faults;
mod report;
mod watch;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use des_shared::ids::JobId;
use des_shared::state::StateStore;
use nix::sys::signal::Signal;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::cluster::{Cluster, ClusterOptions, Ports, Service};
use crate::proxy::{Proxy, Traffic};
use crate::servers::{Redis, RedisOptions, SeaweedFs};
use clients::submit_until_accepted;
use files::Files;
use watch::Watcher;

pub use check::Checked;
pub use report::{Counts, Report};
pub use watch::Wait;

/// Jobs that are open at the same time.
const OPEN_JOBS: usize = 3;
/// How long everything may take to come to its end once the faults are over.
const PATIENCE: Duration = Duration::from_mins(5);
/// Grace period of every service.
const DRAIN: Duration = Duration::from_secs(10);

/// What happens in a run.
#[derive(Clone, Debug)]
pub struct ChaosOptions {
    /// Of the dice that choose faults and moments. What the machine does between them is its own.
    pub seed: u64,
    /// Processes killed with SIGKILL before the faults end.
    pub kills: u32,
    /// The faults end after so long, however many were killed.
    pub at_most: Duration,
    /// Workers at any time.
    pub workers: usize,
    /// Files of each job.
    pub files: usize,
    /// Lease time.
    pub lease: Duration,
    /// Keeps every version of every object, to see whether any was written twice.
    pub versions: bool,
}

/// Why a run could not be made.
#[derive(Debug, thiserror::Error)]
#[error("chaos: {0}")]
pub struct ChaosError(pub String);

impl<E: std::error::Error> From<&E> for ChaosError {
    fn from(error: &E) -> Self {
        Self(error.to_string())
    }
}

pub(crate) fn failed(what: &str, why: impl fmt::Display) -> ChaosError {
    ChaosError(format!("{what}: {why}"))
}

/// Jobs that clients were told of.
type Told = Arc<Mutex<Vec<JobId>>>;

/// A cluster and what is being done to it.
struct Arena {
    options: ChaosOptions,
    rng: StdRng,
    cluster: Cluster,
    second: Service,
    files: Files,
    redis_proxy: Arc<Proxy>,
    s3_proxy: Arc<Proxy>,
    watcher: Watcher,
    state: StateStore,
    counts: Counts,
    /// Frozen processes and when they are woken.
    frozen: Vec<(Instant, i32)>,
    /// Workers that were asked to stop.
    leaving: Vec<(Instant, Service)>,
    /// Addresses of the coordinators, for clients.
    addresses: Arc<Mutex<Vec<String>>>,
    told: Told,
    clients: JoinSet<Result<(), String>>,
    wrong: Vec<String>,
}

/// Runs chaos and checks what is left.
///
/// # Errors
/// When servers or processes cannot be started; what the chaos broke is in the report.
pub async fn run(options: ChaosOptions) -> Result<Report, ChaosError> {
    let folder = tempfile::Builder::new().prefix("des-chaos-").tempdir().map_err(|e| failed("folder", e))?;
    let files = Files::write(folder.path(), options.files, options.seed).map_err(|e| failed("files", e))?;
    let mut arena = Arena::open(options, files).await?;
    let began = Instant::now();
    while arena.counts.kills() < arena.options.kills && began.elapsed() < arena.options.at_most {
        arena.look_around().await?;
        arena.fault().await?;
        let pause = arena.rng.random_range(100..1500);
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
    let chaos = began.elapsed();
    let calm = arena.calm_down().await?;
    arena.report(chaos, calm).await
}

impl Arena {
    async fn open(options: ChaosOptions, files: Files) -> Result<Self, ChaosError> {
        let s3 = SeaweedFs::shared().await.map_err(|e| failed("S3", e))?;
        let keep = RedisOptions { keep_data: true, ..RedisOptions::default() };
        let redis = Redis::start_with(keep).await.map_err(|e| failed("Redis", e))?;
        let redis_proxy = Arc::new(Proxy::start(redis.port()).await.map_err(|e| failed("proxy", e))?);
        let s3_proxy = Arc::new(Proxy::start(s3.port()).await.map_err(|e| failed("proxy", e))?);
        let ports = Ports { redis: redis_proxy.port(), s3: s3_proxy.port() };
        let env = [
            ("DES_MAX_ATTEMPTS", "100".to_owned()),
            ("DES_DRAIN_SECONDS", DRAIN.as_secs().to_string()),
            ("DES_WORKER_SLOTS", "2".to_owned()),
        ];
        let layout = ClusterOptions {
            workers: options.workers,
            lease: options.lease,
            source_root: files.root.clone(),
            max_shard_size: 1 << 20,
            env: env.map(|(name, value)| (name.to_owned(), value)).into(),
        };
        let mut cluster = Cluster::start_through(layout, redis, s3, ports).await.map_err(|e| failed("cluster", e))?;
        if options.versions {
            check::keep_versions(&cluster).await?;
        }
        let second = cluster.spawn_coordinator().map_err(|e| failed("coordinator", e))?;
        let state = check::state_of(&cluster).await?;
        let watcher = Watcher::start(&cluster)?;
        Ok(Self {
            rng: StdRng::seed_from_u64(options.seed),
            options,
            cluster,
            second,
            files,
            redis_proxy,
            s3_proxy,
            watcher,
            state,
            counts: Counts::default(),
            frozen: Vec::new(),
            leaving: Vec::new(),
            addresses: Arc::default(),
            told: Told::default(),
            clients: JoinSet::new(),
            wrong: Vec::new(),
        })
    }

    /// Keeps clients informed and jobs open, wakes what was frozen long enough, looks after what is stopping.
    async fn look_around(&mut self) -> Result<(), ChaosError> {
        self.wake(false);
        self.see_off();
        self.look_at_clients();
        if self.clients.is_empty() && self.open_jobs().await < OPEN_JOBS {
            self.submit();
        }
        Ok(())
    }

    fn note_client(&mut self, ended: Result<Result<(), String>, tokio::task::JoinError>) {
        match ended {
            Ok(Ok(())) => {}
            Ok(Err(why)) => self.wrong.push(why),
            Err(e) => self.wrong.push(format!("a client ended unexpectedly: {e}")),
        }
    }

    fn told(&self) -> Vec<JobId> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Jobs that have not ended, as far as the state store can be asked.
    async fn open_jobs(&self) -> usize {
        let mut open = 0;
        for job in self.told() {
            open += usize::from(!matches!(self.state.end(job).await, Ok(Some(_))));
        }
        open
    }

    /// Two clients submit the same job at the same moment.
    fn submit(&mut self) {
        self.counts.submitted += 1;
        let number = self.counts.submitted;
        // The threshold makes the shards of each job its own; no file is so large.
        let shard_bytes = if number.is_multiple_of(2) { 1 << 20 } else { 24 << 20 };
        let codec = ["none", "zstd", "lz4"][number as usize % 3];
        let format = ["v3", "v2"][number as usize / 3 % 2];
        let query = format!(
            "name=chaos-{number}&max_shard_size={shard_bytes}&codec={codec}&format={format}&big_file_threshold_bytes={}",
            10_000_000 + number
        );
        let (manifest, addresses) = (self.files.manifest(), Arc::clone(&self.addresses));
        let (told, state) = (Arc::clone(&self.told), self.state.clone());
        let key = number.is_multiple_of(2).then(|| format!("chaos-{number}"));
        self.clients.spawn(async move {
            let (one, two) = tokio::join!(
                submit_until_accepted(&addresses, (0, key.as_deref()), &query, &manifest),
                submit_until_accepted(&addresses, (1, key.as_deref()), &query, &manifest)
            );
            let (one, two) = (one?, two?);
            {
                let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
                told.push(one);
                if two != one {
                    told.push(two);
                }
            }
            let fine = one == two || (key.is_none() && check::one_after_the_other(&state, one, two).await?);
            if fine { Ok(()) } else { Err(format!("one submission became two jobs: {one} and {two}, key {key:?}")) }
        });
    }

    /// Wakes what was frozen long enough, or everything.
    fn wake(&mut self, all: bool) {
        let now = Instant::now();
        let (due, later) = self.frozen.drain(..).partition(|(until, _)| all || *until <= now);
        self.frozen = later;
        let due: Vec<(Instant, i32)> = due;
        let services = self.cluster.workers.iter().chain([&self.cluster.coordinator, &self.second]);
        for service in services.chain(self.leaving.iter().map(|(_, service)| service)) {
            if due.iter().any(|(_, pid)| *pid == service.pid()) {
                // It may have died meanwhile.
                let _gone = service.signal(Signal::SIGCONT);
            }
        }
    }

    /// Whoever was asked to stop ends with 0 within its grace period.
    fn see_off(&mut self) {
        let mut still = Vec::new();
        for (asked, mut service) in std::mem::take(&mut self.leaving) {
            match service.exit_code() {
                Ok(Some(0)) => {}
                Ok(None) if asked.elapsed() < DRAIN + Duration::from_secs(5) => still.push((asked, service)),
                other => self.wrong.push(format!(
                    "a worker that was asked to stop {:.1} s ago: {other:?}; {}",
                    asked.elapsed().as_secs_f64(),
                    last_lines(&service.log())
                )),
            }
        }
        self.leaving = still;
    }

    /// Ends every fault and waits for every job. Returns how long that took.
    async fn calm_down(&mut self) -> Result<Duration, ChaosError> {
        let began = Instant::now();
        for proxy in [&self.redis_proxy, &self.s3_proxy] {
            proxy.set(Traffic::Pass);
            proxy.cut();
        }
        self.wake(true);
        loop {
            self.wake(true);
            self.see_off();
            self.look_at_clients();
            if self.clients.is_empty() && self.open_jobs().await == 0 {
                return Ok(began.elapsed());
            }
            if began.elapsed() > PATIENCE {
                let open = self.open_jobs().await;
                self.wrong.push(format!("{open} jobs did not end within {PATIENCE:?} of calm"));
                return Ok(began.elapsed());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    fn look_at_clients(&mut self) {
        let addresses: Vec<String> = [self.cluster.coordinator.address(), self.second.address()]
            .into_iter()
            .flatten()
            .map(str::to_owned)
            .collect();
        *self.addresses.lock().unwrap_or_else(PoisonError::into_inner) = addresses;
        while let Some(ended) = self.clients.try_join_next() {
            self.note_client(ended);
        }
    }

    async fn report(mut self, chaos: Duration, calm: Duration) -> Result<Report, ChaosError> {
        let jobs = self.told();
        let checked = check::check(&self.cluster, &self.state, &jobs, &self.files, &mut self.wrong).await?;
        let (right, wrong) = crate::story::read_back(&self.cluster.retriever.url, &self.files.files).await;
        self.wrong.extend(wrong.into_iter().map(|why| format!("read back: {why}")));
        self.wrong.extend(self.watcher.audits().into_iter().map(|found| format!("audit: {found}")));
        let republished = self.watcher.republished();
        let mut checked = Checked { republished: checked.republished + republished.len(), ..checked };
        checked.shards = checked.shards.max(self.watcher.shards());
        self.wrong.extend(republished);
        if self.options.versions {
            let twice = check::written_twice(&self.cluster).await?;
            checked.republished += twice.len();
            self.wrong.extend(twice);
        }
        if let Err(e) = crate::story::verify_zones(&self.cluster).await {
            self.wrong.push(e.to_string());
        }
        Ok(Report { counts: self.counts, checked, waits: self.watcher.waits(), right, wrong: self.wrong, chaos, calm })
    }
}

fn last_lines(log: &str) -> String {
    let lines: Vec<&str> = log.lines().rev().take(3).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join(" | ")
}

//! A folder of sources, a zone, a state store and a queue; dropped without a trace.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use des_shared::clock::{Dice, ManualClock};
use des_shared::config::SourceRoots;
use des_shared::ids::{JobId, TaskId, Uid};
use des_shared::layout;
use des_shared::metrics::Metrics;
use des_shared::queue::memory::MemoryQueue;
use des_shared::queue::{JobCounters, JobShare, NewTask, Queue, QueueConfig, SharedQueue};
use des_shared::routing::{NBits, ShardDate, Slot};
use des_shared::segment::{CodecChoice, PackOptions, Segment, SegmentFile, ShardFormat};
use des_shared::service::Shutdown;
use des_shared::shard::{Location, Shard};
use des_shared::state::StateStore;
use des_shared::store::faults::FaultStore;
use des_shared::store::local::LocalStore;
use des_shared::store::metered::{MeteredStore, StoreMetrics};
use des_shared::store::zones::Zones;
use des_shared::store::{ByteRange, ObjectStore, SharedStore};
use des_worker::config::WorkerOptions;
use des_worker::metrics::WorkerMetrics;
use des_worker::pack::{PackJob, PackLimits};
use des_worker::source::{SourceOpener, Sources};
use des_worker::{Deps, RunningWorker, start};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

/// The smallest part a store accepts: keeps tests quick.
pub(crate) const PART: usize = 5 << 20;
pub(crate) const LEASE: Duration = Duration::from_secs(30);
const START_MS: u64 = 1_750_000_000_000;

pub(crate) struct World {
    dir: TempDir,
    pub(crate) zone: Arc<FaultStore>,
    pub(crate) state_store: Arc<FaultStore>,
    pub(crate) state: StateStore,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) queue: Arc<MemoryQueue>,
    pub(crate) store_metrics: Metrics,
    pub(crate) job: JobId,
}

impl World {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["src", "zone", "state"] {
            std::fs::create_dir(dir.path().join(folder)).unwrap();
        }
        let store_metrics = Metrics::new();
        let local: SharedStore = Arc::new(LocalStore::open(dir.path().join("zone")).unwrap());
        let counted = StoreMetrics::register(store_metrics.registry()).unwrap();
        let zone = Arc::new(FaultStore::scripted(Arc::new(MeteredStore::new(local, counted))));
        let state: SharedStore = Arc::new(LocalStore::open(dir.path().join("state")).unwrap());
        let state_store = Arc::new(FaultStore::scripted(state));
        let clock = Arc::new(ManualClock::new(START_MS));
        let config = QueueConfig { lease: LEASE, max_attempts: 3, ..QueueConfig::default() };
        let queue = Arc::new(MemoryQueue::new(config, clock.clone(), Arc::new(Dice::seeded(1))));
        let state = StateStore::new(state_store.clone());
        let job = JobId::from_parts(START_MS, [7; 10]);
        Self { dir, zone, state_store, state, clock, queue, store_metrics, job }
    }

    pub(crate) fn src(&self) -> PathBuf {
        std::fs::canonicalize(self.dir.path().join("src")).unwrap()
    }

    pub(crate) fn outside(&self) -> PathBuf {
        std::fs::canonicalize(self.dir.path()).unwrap()
    }

    /// Writes a source.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.src().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        path
    }

    /// A source with its line of a segment.
    pub(crate) fn file(&self, name: &str, bytes: &[u8]) -> SegmentFile {
        let path = self.write(name, bytes);
        line(name, bytes.len() as u64, &path)
    }

    pub(crate) fn roots(&self) -> SourceRoots {
        SourceRoots { folders: vec![self.src()], buckets: Vec::new() }
    }

    pub(crate) fn sources(&self) -> Arc<dyn SourceOpener> {
        Arc::new(Sources::new(self.roots(), BTreeMap::new()))
    }

    pub(crate) fn segment(&self, number: u32, options: PackOptions, files: Vec<SegmentFile>) -> Segment {
        let slot =
            Slot { date: ShardDate { year: 2024, month: 3, day: 1 }, index: 0x2a, n_bits: NBits::new(8).unwrap() };
        Segment {
            task: TaskId { job: self.job, number },
            slot,
            number,
            sequence: START_MS,
            options,
            files: files.into(),
        }
    }

    pub(crate) fn pack_job(&self, segment: &Segment) -> PackJob {
        let store: SharedStore = self.zone.clone();
        PackJob::task(Arc::new(segment.clone()), store, limits(), CancellationToken::new())
    }

    /// The published shard.
    pub(crate) async fn shard_bytes(&self, segment: &Segment) -> Bytes {
        self.zone.get(&layout::shard_key(segment), ByteRange::Full).await.unwrap().bytes
    }

    /// Every object of the zone, by key.
    pub(crate) fn objects(&self) -> Vec<String> {
        let mut keys = Vec::new();
        walk(&self.dir.path().join("zone"), "", &mut keys);
        keys.sort();
        keys
    }

    /// Every object of the state store whose key contains a text.
    pub(crate) fn state_objects(&self, containing: &str) -> Vec<String> {
        let mut keys = Vec::new();
        walk(&self.dir.path().join("state"), "", &mut keys);
        keys.retain(|key| key.contains(containing));
        keys
    }

    /// How often a store operation of the zone succeeded.
    pub(crate) fn calls(&self, operation: &str) -> u64 {
        let line = format!("des_s3_calls_total{{operation=\"{operation}\",status=\"ok\"}} ");
        let text = self.store_metrics.render();
        text.lines().find_map(|l| l.strip_prefix(&line)).map_or(0, |n| n.parse().unwrap())
    }

    /// How often the zone was asked for anything, whatever it answered.
    pub(crate) fn all_calls(&self) -> u64 {
        let text = self.store_metrics.render();
        let counts = text.lines().filter(|l| l.starts_with("des_s3_calls_total{")).filter_map(|l| l.rsplit(' ').next());
        counts.map(|n| n.parse::<u64>().unwrap()).sum()
    }

    /// Bytes written to the zone.
    pub(crate) fn bytes_written(&self) -> u64 {
        let text = self.store_metrics.render();
        let line = text.lines().find_map(|l| l.strip_prefix("des_s3_bytes_total{direction=\"written\"} "));
        line.map_or(0, |n| n.parse().unwrap())
    }

    /// Stores segments and queues them as tasks of the job.
    pub(crate) async fn submit(&self, segments: &[Segment]) {
        self.queue.add_job(self.job, JobShare { priority: 0, weight: 1, max_running: None }).await.unwrap();
        for segment in segments {
            self.state.put_segment(&Arc::new(segment.clone())).await.unwrap();
            let task = NewTask { number: segment.task.number, source_bytes: segment.source_bytes() };
            self.queue.add_tasks(self.job, &[task]).await.unwrap();
        }
    }

    /// A running worker on the world's queue or a wrapper of it.
    pub(crate) async fn worker(&self, queue: Option<SharedQueue>, sources: Arc<dyn SourceOpener>) -> Worker {
        self.worker_with(queue, sources, 1, LEASE).await
    }

    pub(crate) async fn worker_with(
        &self,
        queue: Option<SharedQueue>,
        sources: Arc<dyn SourceOpener>,
        slots: u32,
        lease: Duration,
    ) -> Worker {
        self.worker_as(queue, sources, |options| (options.slots, options.lease) = (slots, lease)).await
    }

    /// A running worker with other options than usual.
    pub(crate) async fn worker_as(
        &self,
        queue: Option<SharedQueue>,
        sources: Arc<dyn SourceOpener>,
        change: impl FnOnce(&mut WorkerOptions),
    ) -> Worker {
        let registry = Metrics::new();
        let zone: SharedStore = self.zone.clone();
        let deps = Deps {
            queue: queue.unwrap_or_else(|| self.queue.clone()),
            state: self.state.clone(),
            zones: Arc::new(Zones::single(NBits::new(8).unwrap(), zone)),
            sources,
            clock: self.clock.clone(),
            dice: Arc::new(Dice::from_os()),
            metrics: WorkerMetrics::register(&registry),
            registry: registry.clone(),
        };
        let mut options = worker_options();
        change(&mut options);
        let shutdown = Shutdown::new();
        let running = start(options, deps, shutdown.clone()).await.unwrap();
        Worker { running, shutdown, registry }
    }

    pub(crate) async fn counters(&self) -> JobCounters {
        self.queue.job(self.job).await.unwrap().unwrap()
    }

    /// Waits until the queue's counters are as wanted.
    pub(crate) async fn until(&self, what: &str, wanted: impl Fn(&JobCounters) -> bool) -> JobCounters {
        let queue = self.queue.clone();
        let job = self.job;
        eventually(what, || async { queue.job(job).await.unwrap().filter(|counters| wanted(counters)) }).await
    }

    /// The lease of every held task runs out.
    pub(crate) async fn expire_leases(&self) {
        // A heartbeat that comes between the two renews a lease: then once more.
        for _ in 0..100 {
            self.clock.advance(LEASE + Duration::from_secs(1));
            let tick = self.queue.tick(100).await.unwrap();
            if !tick.expired.is_empty() || !tick.died.is_empty() {
                return;
            }
        }
        panic!("no lease could be made to run out");
    }
}

pub(crate) struct Worker {
    pub(crate) running: RunningWorker,
    pub(crate) shutdown: Shutdown,
    registry: Metrics,
}

impl Worker {
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let text = self.registry.render();
        let value = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' '));
        value.map_or(0.0, |n| n.parse().unwrap())
    }

    pub(crate) async fn stop(self) {
        self.shutdown.begin();
        self.running.join().await.unwrap();
    }
}

/// One slot, frequent heartbeats, no port.
pub(crate) fn worker_options() -> WorkerOptions {
    WorkerOptions {
        name: "test".to_owned(),
        slots: 1,
        lease: LEASE,
        heartbeat: Duration::from_millis(100),
        stall: Duration::from_mins(10),
        drain: Duration::from_secs(20),
        listen: None,
        limits: limits(),
        probe_stores: false,
    }
}

pub(crate) fn limits() -> PackLimits {
    PackLimits { part_bytes: PART, ..PackLimits::default() }
}

pub(crate) fn line(uid: &str, size_bytes: u64, path: &Path) -> SegmentFile {
    SegmentFile {
        uid: Uid::new(uid).unwrap(),
        created_at: "2024-03-01T12:00:00Z".to_owned(),
        size_bytes,
        source: path.to_str().unwrap().to_owned(),
    }
}

pub(crate) fn options(format: ShardFormat, codec: CodecChoice) -> PackOptions {
    PackOptions { format, codec, ..PackOptions::default() }
}

/// Bytes that do not compress, the same for the same seed.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let dice = Dice::seeded(seed);
    let mut bytes = Vec::with_capacity(len + 64);
    while bytes.len() < len {
        bytes.extend_from_slice(&dice.bytes::<64>());
    }
    bytes.truncate(len);
    bytes
}

/// Text that compresses well and differs from file to file.
pub(crate) fn prose(seed: usize, len: usize) -> Vec<u8> {
    let mut text = String::new();
    while text.len() < len {
        let n = text.len() / 7 + seed * 13;
        writeln!(text, "{{\"id\": {n}, \"name\": \"record of kind {}\", \"seen\": true}}", n % 17).unwrap();
    }
    text.truncate(len);
    text.into_bytes()
}

/// Waits until `probe` answers, at most a minute.
pub(crate) async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut probe: impl FnMut() -> F) -> T {
    let deadline = tokio::time::Instant::now() + Duration::from_mins(1);
    loop {
        if let Some(answer) = probe().await {
            return answer;
        }
        assert!(tokio::time::Instant::now() < deadline, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Every file of a shard, big ones read beside it.
pub(crate) async fn contents(world: &World, segment: &Segment) -> BTreeMap<String, Vec<u8>> {
    let shard = Shard::open(world.shard_bytes(segment).await).unwrap();
    shard.verify().unwrap();
    let mut files = BTreeMap::new();
    for entry in shard.entries() {
        let entry = entry.unwrap();
        let bytes = match entry.location {
            Location::Inline(_) => shard.read(&entry).unwrap(),
            Location::BigFile { sha256, size } => {
                let key = layout::bigfile_key(&segment.options.bigfiles_prefix, &sha256);
                let bytes = world.zone.get(&key, ByteRange::Full).await.unwrap().bytes;
                assert_eq!(bytes.len() as u64, size);
                bytes
            }
        };
        files.insert(entry.uid.clone(), bytes.to_vec());
    }
    files
}

/// What the sources of a segment hold now.
pub(crate) fn expected(segment: &Segment) -> BTreeMap<String, Vec<u8>> {
    segment.files.iter().map(|f| (f.uid.to_string(), std::fs::read(f.source.to_string()).unwrap())).collect()
}

fn walk(dir: &Path, prefix: &str, keys: &mut Vec<String>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let name = format!("{prefix}{}", entry.file_name().to_str().unwrap());
        if entry.file_type().unwrap().is_dir() {
            walk(&entry.path(), &format!("{name}/"), keys);
        } else {
            keys.push(name);
        }
    }
}

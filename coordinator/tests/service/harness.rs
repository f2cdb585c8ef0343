//! A coordinator over folders and the in-memory queue, and a worker that packs nothing but writes true receipts.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use des_coordinator::{Config, Coordinator, Deps, Limits, Running, ShardInspector};
use des_shared::clock::{Clock, Dice, ManualClock, SystemClock};
use des_shared::config::{Auth, Listen, SourceRoots};
use des_shared::ids::{JobId, Uid, WorkerId};
use des_shared::job::{JobDefaults, JobState};
use des_shared::layout;
use des_shared::metrics::Metrics;
use des_shared::queue::memory::MemoryQueue;
use des_shared::queue::{Lease, QueueConfig, SharedQueue, TaskState, TaskTotals, WorkerInfo};
use des_shared::receipt::{PublishedShard, Receipt};
use des_shared::service::Shutdown;
use des_shared::state::StateStore;
use des_shared::store::local::LocalStore;
use des_shared::store::zones::Zones;
use des_shared::store::{ByteRange, ObjectStore, SharedStore, WriteOptions, list_all};
use futures::{FutureExt, TryStreamExt};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::doubles::{Moody, Plug};

/// Everything that outlives a coordinator.
pub(crate) struct World {
    dir: TempDir,
    pub(crate) memory: Arc<MemoryQueue>,
    pub(crate) queue: Arc<Plug>,
    /// The state store as coordinators see it.
    pub(crate) moods: Arc<Moody>,
    /// The state store as it is.
    pub(crate) state: StateStore,
    pub(crate) zone: SharedStore,
    bucket: SharedStore,
    pub(crate) limits: Limits,
    pub(crate) dice: Arc<Dice>,
    pub(crate) clock: Arc<dyn Clock>,
}

/// A running coordinator.
pub(crate) struct Service {
    pub(crate) url: String,
    pub(crate) http: reqwest::Client,
    shutdown: Shutdown,
    running: Running,
}

/// Status and JSON of an answer.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: reqwest::header::HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) async fn of(response: reqwest::Response) -> Self {
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        Self { status, headers, text: response.text().await.expect("a body") }
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e}: {}", self.text))
    }

    pub(crate) fn id(&self) -> JobId {
        self.json()["id"].as_str().unwrap_or_else(|| panic!("no id: {}", self.text)).parse().expect("a job id")
    }

    /// Checks that this is a problem whose text holds every one of `words`.
    pub(crate) fn assert_problem(&self, status: u16, words: &[&str]) {
        assert_eq!(self.status, status, "{}", self.text);
        assert_eq!(self.headers["content-type"], "application/problem+json");
        for word in words {
            assert!(self.text.contains(word), "{word:?} is missing in {}", self.text);
        }
    }
}

impl World {
    pub(crate) fn new() -> Self {
        Self::with_attempts(1)
    }

    /// With a queue that gives every task so many attempts.
    pub(crate) fn with_attempts(max_attempts: u32) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let folder =
            |name: &str| -> SharedStore { Arc::new(LocalStore::create(dir.path().join(name)).expect("a store")) };
        let state = folder("state");
        let dice = Arc::new(Dice::from_os());
        let config = QueueConfig { max_attempts, backoff_base: Duration::from_millis(1), ..QueueConfig::default() };
        let memory = Arc::new(MemoryQueue::new(config, Arc::new(SystemClock), Arc::clone(&dice)));
        let shared: SharedQueue = memory.clone();
        std::fs::create_dir(dir.path().join("in")).expect("a folder");
        let limits = Limits {
            tick: Duration::from_millis(10),
            reconcile: Duration::from_millis(50),
            lock: Duration::from_millis(500),
            cancel_grace: Duration::from_millis(50),
            events: Duration::from_millis(10),
            tidy: Duration::from_millis(50),
            audit_pause: Duration::from_millis(20),
            audit_settled: Duration::from_millis(100),
            ..Limits::default()
        };
        let (zone, bucket) = (folder("zone"), folder("bucket"));
        let moods = Moody::around(Arc::clone(&state));
        let queue = Plug::around(shared);
        Self {
            memory,
            queue,
            moods,
            state: StateStore::new(state),
            zone,
            bucket,
            limits,
            dice,
            dir,
            clock: Arc::new(SystemClock),
        }
    }

    /// Lets coordinators read a clock that the test moves.
    pub(crate) fn hold_clock(&mut self) -> Arc<ManualClock> {
        let clock = Arc::new(ManualClock::new(SystemClock.now_ms()));
        self.clock = clock.clone();
        clock
    }

    /// The folder that is a source root.
    pub(crate) fn root(&self) -> PathBuf {
        self.dir.path().join("in")
    }

    pub(crate) fn outside(&self) -> &Path {
        self.dir.path()
    }

    /// Puts an object into the bucket `data`, whose prefix `in/` is a source root.
    pub(crate) async fn put_object(&self, key: &str, bytes: impl Into<bytes::Bytes>) {
        self.bucket.put(key, bytes.into(), &WriteOptions::overwrite()).await.expect("a put");
    }

    pub(crate) fn config(&self) -> Config {
        let listen =
            Listen { address: ([127, 0, 0, 1], 0).into(), auth: Auth::default(), drain: Duration::from_secs(5) };
        let roots = SourceRoots {
            folders: vec![self.root().canonicalize().expect("it is there")],
            buckets: vec![("data".to_owned(), "in/".to_owned())],
        };
        let spool_dir = self.dir.path().to_owned();
        Config { listen, defaults: JobDefaults::default(), roots, spool_dir, limits: self.limits }
    }

    pub(crate) fn deps(&self) -> Deps {
        let inspector = ShardInspector::new(|store, key| {
            // The test's shards are lists of uids.
            async move {
                let fetched = store.get(&key, ByteRange::Full).await.map_err(|e| e.to_string())?;
                let uids: Vec<String> = serde_json::from_slice(&fetched.bytes).map_err(|e| e.to_string())?;
                uids.into_iter().map(|uid| Uid::new(uid).map_err(|e| e.to_string())).collect::<Result<HashSet<_>, _>>()
            }
            .boxed()
        });
        let moody: Arc<dyn ObjectStore> = self.moods.clone();
        Deps {
            queue: self.queue.clone(),
            state: StateStore::new(moody),
            zones: Arc::new(Zones::single(JobDefaults::default().n_bits, Arc::clone(&self.zone))),
            buckets: BTreeMap::from([("data".to_owned(), Arc::clone(&self.bucket))]),
            inspector,
            clock: Arc::clone(&self.clock),
            dice: Arc::clone(&self.dice),
            metrics: Metrics::new(),
        }
    }

    pub(crate) async fn start(&self) -> Service {
        let shutdown = Shutdown::new();
        let running = Coordinator::start(self.config(), self.deps(), shutdown.clone()).await.expect("it starts");
        let url = format!("http://{}", running.local_addr());
        Service { url, http: reqwest::Client::new(), shutdown, running }
    }

    /// Keys in the state store that start with `prefix`.
    pub(crate) async fn keys(&self, prefix: &str) -> Vec<String> {
        let all = list_all(self.state.objects().clone(), prefix.to_owned());
        all.map_ok(|object| object.key).try_collect().await.expect("a listing")
    }

    /// Job records in the state store.
    pub(crate) async fn job_records(&self) -> Vec<String> {
        self.keys("jobs/").await.into_iter().filter(|key| key.ends_with("/job.json")).collect()
    }

    pub(crate) fn worker(&self) -> WorkerInfo {
        WorkerInfo { id: WorkerId::from_random(self.dice.bytes()), name: "test".to_owned(), slots: 4 }
    }

    /// Claims up to `max` tasks, or waits for some.
    pub(crate) async fn claim(&self, max: usize) -> Vec<Lease> {
        use des_shared::queue::Queue;
        let worker = self.worker();
        until("a task to claim", async || {
            let leases = self.memory.claim(&worker, max).await.expect("a claim");
            (!leases.is_empty()).then_some(leases)
        })
        .await
    }

    /// Writes the receipt of a leased task, every file packed.
    pub(crate) async fn write_receipt(&self, lease: &Lease) -> Receipt {
        let segment = self.state.segment(lease.task).await.expect("a segment");
        let uids: Vec<String> = segment.files.iter().map(|file| file.uid.to_string()).collect();
        let key = layout::shard_key(&segment);
        let bytes = json!(uids).to_string();
        let meta = match self.zone.put(&key, bytes.into(), &WriteOptions::create_only()).await {
            Ok(meta) => meta,
            // The same work was done before.
            Err(_) => self.zone.head(&key).await.expect("a shard"),
        };
        let totals = TaskTotals {
            files_packed: segment.files.len() as u64,
            files_failed: 0,
            source_bytes: segment.source_bytes(),
            stored_bytes: meta.size,
        };
        let shard = PublishedShard {
            zone: "default".to_owned(),
            key,
            size: meta.size,
            etag: meta.etag,
            entries: totals.files_packed,
            digest: segment.digest().to_string(),
        };
        let receipt = Receipt {
            task: lease.task,
            state: TaskState::Committed,
            shard: Some(shard),
            totals,
            token: lease.token,
            finished_ms: SystemClock.now_ms(),
        };
        self.state.finish_task(&receipt, &[]).await.expect("a receipt");
        receipt
    }

    /// Packs leased tasks as a worker would.
    pub(crate) async fn pack(&self, leases: &[Lease]) {
        use des_shared::queue::Queue;
        for lease in leases {
            let receipt = self.write_receipt(lease).await;
            self.memory.commit(lease.task, lease.token, &receipt.totals).await.expect("a commit");
        }
    }

    /// Packs until the job has ended.
    pub(crate) async fn pack_all(&self, job: JobId) {
        use des_shared::queue::Queue;
        let worker = self.worker();
        until("the job to end", async || {
            let leases = self.memory.claim(&worker, 10).await.expect("a claim");
            self.pack(&leases).await;
            self.state.end(job).await.expect("a read").is_some().then_some(())
        })
        .await;
    }

    /// Packs until the job has ended or was removed, whatever the queue loses meanwhile.
    pub(crate) async fn pack_all_tolerantly(&self, job: JobId) {
        use des_shared::queue::Queue;
        let worker = self.worker();
        until("the job to end", async || {
            for lease in self.memory.claim(&worker, 10).await.expect("a claim") {
                let receipt = self.write_receipt(&lease).await;
                drop(self.memory.commit(lease.task, lease.token, &receipt.totals).await);
            }
            let ended = self.state.end(job).await.expect("a read").is_some();
            (ended || self.state.job(job).await.expect("a read").is_none()).then_some(())
        })
        .await;
    }

    /// Claims every task of a job that is alone in the queue.
    pub(crate) async fn claim_all(&self, job: JobId) -> Vec<Lease> {
        let tasks = self.planned(job).await.tasks.len();
        let mut leases = Vec::new();
        while leases.len() < tasks {
            leases.extend(self.claim(tasks - leases.len()).await);
        }
        leases
    }

    /// Whether a worker would get anything now.
    pub(crate) async fn nothing_to_claim(&self) -> bool {
        use des_shared::queue::Queue;
        self.memory.claim(&self.worker(), 10).await.expect("a claim").is_empty()
    }

    /// Gives a task up for good.
    pub(crate) async fn kill(&self, lease: &Lease, why: &str) {
        use des_shared::queue::{Queue, TaskFailure};
        let failure = TaskFailure { permanent: true, message: why.to_owned() };
        self.memory.fail(lease.task, lease.token, &failure).await.expect("a failure");
    }

    /// Begins the upload of a task's shard and checkpoints it, as a worker in the middle would. Returns its id.
    pub(crate) async fn begin_upload(&self, lease: &Lease) -> String {
        use des_shared::queue::{Checkpoint, Queue};
        let key = layout::shard_key(&self.state.segment(lease.task).await.expect("a segment"));
        let upload_id = self.zone.create_upload(&key, &BTreeMap::new()).await.expect("an upload");
        let checkpoint = Checkpoint {
            upload_id: upload_id.clone(),
            parts: 1,
            writers: vec![(lease.token, 1)],
            next_file: 1,
            offset: 8,
            files_packed: 1,
            files_failed: 0,
            source_bytes: 10,
        };
        let mark = layout::checkpoint_part(lease.task, lease.token, 1);
        self.state.write_bytes(&mark, "a mark".into()).await.expect("a write");
        self.memory.checkpoint(lease.task, lease.token, &checkpoint).await.expect("a checkpoint");
        upload_id
    }

    /// Waits until the queue knows all tasks of a job.
    pub(crate) async fn queued(&self, job: JobId) {
        use des_shared::queue::Queue;
        let tasks = self.planned(job).await.tasks.len() as u64;
        until("the tasks to be queued", async || {
            let counters = self.memory.job(job).await.expect("counters")?;
            let known = counters.open() + counters.committed + counters.dead + counters.cancelled;
            (known == tasks).then_some(())
        })
        .await;
    }

    pub(crate) async fn planned(&self, job: JobId) -> des_shared::job::PlanRecord {
        until("a plan", async || self.state.plan(job).await.expect("a read")).await
    }

    /// Waits for the end and checks that every file is accounted for.
    pub(crate) async fn ended(&self, job: JobId) -> des_shared::job::EndRecord {
        let end = until("an end", async || self.state.end(job).await.expect("a read")).await;
        if end.state != JobState::Failed {
            let plan = self.state.plan(job).await.expect("a read").expect("a plan");
            assert_eq!(end.files_packed + end.files_failed, plan.files);
        }
        end
    }
}

impl Service {
    pub(crate) fn post(&self, path: &str) -> reqwest::RequestBuilder {
        self.http.post(format!("{}{path}", self.url))
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        Answer::of(self.http.get(format!("{}{path}", self.url)).send().await.expect("an answer")).await
    }

    /// A POST without a body.
    pub(crate) async fn order(&self, path: &str) -> Answer {
        Answer::of(self.post(path).send().await.expect("an answer")).await
    }

    pub(crate) async fn patch(&self, path: &str, body: &Value) -> Answer {
        let request = self.http.patch(format!("{}{path}", self.url)).json(body);
        Answer::of(request.send().await.expect("an answer")).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        Answer::of(self.http.delete(format!("{}{path}", self.url)).send().await.expect("an answer")).await
    }

    pub(crate) async fn submit_json(&self, body: &Value) -> Answer {
        Answer::of(self.post("/v1/jobs").json(body).send().await.expect("an answer")).await
    }

    pub(crate) async fn submit_lines(&self, query: &str, body: impl Into<reqwest::Body>) -> Answer {
        let request = self.post(&format!("/v1/jobs{query}")).header("content-type", "application/x-ndjson").body(body);
        Answer::of(request.send().await.expect("an answer")).await
    }

    pub(crate) async fn stop(self) {
        self.shutdown.begin();
        self.running.join().await.expect("a clean end");
    }
}

/// One manifest entry.
pub(crate) fn entry(uid: &str) -> Value {
    json!({"uid": uid, "created_at": "2025-03-10T12:00:00Z", "size_bytes": 10, "source_path": format!("/data/{uid}")})
}

/// A manifest of lines.
pub(crate) fn lines(count: usize) -> String {
    let lines: Vec<String> = (0..count).map(|number| entry(&format!("file-{number}")).to_string()).collect();
    lines.join("\n") + "\n"
}

/// Asks until there is an answer; the deadline only ends a test that has failed.
pub(crate) async fn until<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = tokio::time::Instant::now() + Duration::from_mins(1);
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(tokio::time::Instant::now() < deadline, "waited too long for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

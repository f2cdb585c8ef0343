//! Packs the planned shards side by side into the output folder.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use async_trait::async_trait;
use des_shared::clock::Dice;
use des_shared::config::SourceRoots;
use des_shared::ids::{JobId, TaskId};
use des_shared::layout;
use des_shared::plan::{PlanError, PlannedShard, PlannedShards};
use des_shared::segment::{PackOptions, Segment};
use des_shared::store::SharedStore;
use des_shared::store::backend::{Backend, Layers};
use des_shared::store::local::LocalStore;
use des_shared::store::s3::S3Config;
use des_worker::error::PackError;
use des_worker::pack::{PackHooks, PackJob, PackLimits, Packed, PartMark, Step, WhenTaken, pack_segment};
use des_worker::source::{SourceOpener, Sources};
use futures::{StreamExt, stream};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::numbers::Numbers;
use super::{Names, Outcome, Request, plan, sequence};
use crate::error::CliError;
use crate::failures::{Failure, FailureList};
use crate::inspect::s3_defaults;
use crate::output::{Measure, Meter, Screen, count};

/// Planned shards read ahead of the packing.
const SHARDS_AHEAD: usize = 2;

/// What became of one planned shard.
#[derive(Clone, Debug)]
pub(super) struct Written {
    /// Name in the output folder; `None` when none of its files could be read.
    pub(super) key: Option<String>,
    /// Whether it was there before.
    pub(super) known: bool,
    /// Files in it.
    pub(super) files: u64,
    /// Their bytes, as the manifest says.
    pub(super) source_bytes: u64,
    /// Bytes on disk, big files included.
    pub(super) stored_bytes: u64,
}

/// What all shards of a run share.
struct Run {
    store: SharedStore,
    numbers: Option<Numbers>,
    sources: Arc<dyn SourceOpener>,
    options: PackOptions,
    sequence: u64,
    limits: PackLimits,
    stop: CancellationToken,
    view: Mutex<View>,
    failures: Mutex<FailureList>,
}

/// The progress people see.
struct View {
    meter: Option<Meter>,
    measure: Measure,
    failed: u64,
}

/// Reads the input, plans it and packs every shard. Ctrl-C ends it between two files; nothing half-written stays.
///
/// # Errors
/// When the input is wrong, or the output folder fails.
pub(super) async fn run(request: Request, save_failures: Option<PathBuf>, screen: Screen) -> Result<Outcome, CliError> {
    let started = Instant::now();
    let sequence = sequence()?;
    let failures = FailureList::create(save_failures)?;
    let meter = screen.meter("reading");
    let request = Arc::new(request);
    let planning = Arc::clone(&request);
    let plan = tokio::task::spawn_blocking(move || plan::make(&planning, failures, meter));
    let plan::Plan { shards, buckets, failures, skipped } =
        plan.await.map_err(|e| CliError::failed(format!("planning failed: {e}")))??;
    let before = failures.count();
    let planned = (shards.files(), shards.source_bytes());
    let run = Arc::new(Run::open(&request, sequence, &buckets, failures, screen.meter("packing")).await?);
    lock(&run.view).begin(planned, before);
    let outcome = tokio::select! {
        outcome = pack_all(&run, shards, request.side_by_side) => outcome,
        () = interrupted(&run.stop) => Err(CliError::Interrupted),
    };
    let took = started.elapsed();
    lock(&run.view).end();
    let shards = outcome?;
    let run = Arc::into_inner(run).ok_or_else(|| CliError::failed("a shard was still being packed at the end"))?;
    let failures = run.failures.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok(Outcome { shards, accepted: planned.0 + before, skipped, failures, took })
}

/// Asks the packing to stop at the first Ctrl-C and gives it up at the second.
async fn interrupted(stop: &CancellationToken) {
    if tokio::signal::ctrl_c().await.is_ok() {
        stop.cancel();
    }
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending::<()>().await;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // Counters and lists stay what they are even when the thread that held them panicked.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Run {
    async fn open(
        request: &Request,
        sequence: u64,
        buckets: &BTreeSet<String>,
        failures: FailureList,
        meter: Meter,
    ) -> Result<Self, CliError> {
        let store: SharedStore = Arc::new(LocalStore::create(&request.output_dir)?);
        let layers = Layers::new(Arc::new(Dice::from_os()));
        let mut stores = BTreeMap::new();
        for bucket in buckets {
            let config = S3Config { bucket: bucket.clone(), ..s3_defaults(&request.s3) };
            stores.insert(bucket.clone(), Backend::S3(config).open(&layers).await?);
        }
        // The user runs this, so whatever the user can read may be packed.
        let roots = SourceRoots {
            folders: vec![PathBuf::from("/")],
            buckets: buckets.iter().map(|bucket| (bucket.clone(), String::new())).collect(),
        };
        Ok(Self {
            numbers: (request.names == Names::Bare).then(|| Numbers::new(store.clone())),
            store,
            sources: Arc::new(Sources::new(roots, stores)),
            options: request.options.clone(),
            sequence,
            limits: PackLimits::default(),
            stop: CancellationToken::new(),
            view: Mutex::new(View { meter: Some(meter), measure: Measure::default(), failed: 0 }),
            failures: Mutex::new(failures),
        })
    }
}

/// All shards, a few at a time. After the first failure no further shard is begun, and those under way are finished.
async fn pack_all(run: &Arc<Run>, shards: PlannedShards, side_by_side: usize) -> Result<Vec<Written>, CliError> {
    let mut planned = read_ahead(shards);
    let stop = run.stop.clone();
    let shards =
        stream::poll_fn(
            move |context| {
                if stop.is_cancelled() { std::task::Poll::Ready(None) } else { planned.poll_recv(context) }
            },
        );
    // Numbers are given in the order of the plan, so they do not depend on which shard is packed first.
    let named = shards.enumerate().then(|(at, planned)| {
        let run = Arc::clone(run);
        async move {
            let planned = planned?;
            let number = match &run.numbers {
                Some(numbers) => numbers.take(&planned.slot).await?,
                None => planned.number,
            };
            Ok::<_, CliError>((at, planned, number))
        }
    });
    let packing = named
        .map(|named| {
            let run = Arc::clone(run);
            async move {
                let (at, planned, number) = named?;
                let packing = tokio::spawn(async move { run.pack_one(planned, number).await });
                let written = packing.await.map_err(|e| CliError::failed(format!("packing failed: {e}")))??;
                Ok::<_, CliError>((at, written))
            }
        })
        .buffer_unordered(side_by_side);
    let mut packing = pin!(packing);
    let (mut written, mut failed) = (Vec::new(), None);
    while let Some(outcome) = packing.next().await {
        match outcome {
            Ok(one) => written.push(one),
            Err(error) => {
                run.stop.cancel();
                failed.get_or_insert(error);
            }
        }
    }
    match failed {
        Some(error) => return Err(error),
        None if run.stop.is_cancelled() => return Err(CliError::Interrupted),
        None => {}
    }
    written.sort_by_key(|(at, _)| *at);
    Ok(written.into_iter().map(|(_, written)| written).collect())
}

/// The plan may lie on disk, so a thread of its own reads it.
fn read_ahead(shards: PlannedShards) -> mpsc::Receiver<Result<PlannedShard, PlanError>> {
    let (sender, receiver) = mpsc::channel(SHARDS_AHEAD);
    // Ends with the plan, or when nobody listens any more.
    drop(tokio::task::spawn_blocking(move || {
        for shard in shards {
            if sender.blocking_send(shard).is_err() {
                break;
            }
        }
    }));
    receiver
}

impl Run {
    async fn pack_one(&self, planned: PlannedShard, number: u32) -> Result<Written, CliError> {
        let task = TaskId { job: JobId::from_parts(self.sequence, [0; 10]), number: 0 };
        let mut segment = planned.into_segment(task, self.sequence, self.options.clone());
        segment.number = number;
        loop {
            let packing = Arc::new(segment);
            match self.attempt(&packing).await {
                Ok(packed) => return self.note(&packing, packed),
                Err(PackError::Draining) => return Err(CliError::Interrupted),
                // Another packer took the name since the folder was listed.
                Err(PackError::Taken { .. }) if let Some(numbers) = &self.numbers => {
                    segment = Arc::unwrap_or_clone(packing);
                    segment.number = numbers.take(&segment.slot).await?;
                }
                Err(error) => return Err(explain(error)),
            }
        }
    }

    async fn attempt(&self, segment: &Arc<Segment>) -> Result<Packed, PackError> {
        let (key, when_taken) = match &self.numbers {
            Some(_) => (layout::bare_shard_key(&segment.slot, segment.number), WhenTaken::Refuse),
            None => (layout::shard_key(segment), WhenTaken::Adopt),
        };
        let job = PackJob {
            segment: Arc::clone(segment),
            key,
            store: self.store.clone(),
            when_taken,
            limits: self.limits.clone(),
            drain: self.stop.clone(),
        };
        let watch = Watch { run: self, files: AtomicU64::new(0), bytes: AtomicU64::new(0) };
        let outcome = pack_segment(&job, Vec::new(), Arc::clone(&self.sources), &watch).await;
        // What counts is the outcome: an adopted shard took no steps, a failed attempt begins again.
        let (files, bytes) = match &outcome {
            Ok(packed) => (packed.totals.files_packed + packed.totals.files_failed, packed.totals.source_bytes),
            Err(_) => (0, 0),
        };
        watch.set(files, bytes);
        outcome
    }

    fn note(&self, segment: &Segment, packed: Packed) -> Result<Written, CliError> {
        if !packed.failed.is_empty() {
            let mut failures = lock(&self.failures);
            for file in packed.failed_files(segment) {
                failures.push(&Failure::from(file))?;
            }
            lock(&self.view).failed += packed.failed.len() as u64;
        }
        Ok(Written {
            key: packed.object.map(|object| object.key),
            known: packed.adopted,
            files: packed.totals.files_packed,
            source_bytes: packed.totals.source_bytes,
            stored_bytes: packed.totals.stored_bytes,
        })
    }
}

fn explain(error: PackError) -> CliError {
    match error {
        PackError::Store(error) => error.into(),
        PackError::Foreign { .. } => CliError::failed(error.to_string())
            .hint("something else stands under a shard's name; look at it with des verify, and move it away"),
        PackError::Shard(_) => {
            CliError::failed(error.to_string()).hint("this version of DES and the options do not fit")
        }
        other => CliError::failed(other.to_string()),
    }
}

/// Adds what one shard's pack says to the progress of the run.
struct Watch<'a> {
    run: &'a Run,
    files: AtomicU64,
    bytes: AtomicU64,
}

impl std::fmt::Debug for Watch<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Watch")
    }
}

impl Watch<'_> {
    fn set(&self, files: u64, bytes: u64) {
        let before = (self.files.swap(files, Ordering::Relaxed), self.bytes.swap(bytes, Ordering::Relaxed));
        let mut view = lock(&self.run.view);
        view.measure.files = (view.measure.files + files).saturating_sub(before.0);
        view.measure.bytes = (view.measure.bytes + bytes).saturating_sub(before.1);
        view.show();
    }
}

#[async_trait]
impl PackHooks for Watch<'_> {
    fn step(&self, step: &Step) {
        self.set(step.progress.files_packed + step.progress.files_failed, step.progress.source_bytes);
    }

    async fn part_uploaded(&self, _: &PartMark) -> Result<bool, PackError> {
        Ok(false)
    }
}

impl View {
    fn begin(&mut self, (files, bytes): (u64, u64), failed: u64) {
        self.measure.of_files = Some(files);
        self.measure.of_bytes = Some(bytes);
        self.failed = failed;
        self.show();
    }

    fn show(&mut self) {
        self.measure.note = if self.failed == 0 { String::new() } else { format!("{} failed", count(self.failed)) };
        if let Some(meter) = &mut self.meter {
            meter.set(&self.measure);
        }
    }

    fn end(&mut self) {
        if let Some(meter) = self.meter.take() {
            meter.finish();
        }
    }
}

//! Packs the planned shards side by side into the output folder.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use des_shared::clock::{Clock, Dice, SystemClock};
use des_shared::config::SourceRoots;
use des_shared::plan::{PlanError, PlannedShard, PlannedShards};
use des_shared::segment::PackOptions;
use des_shared::store::SharedStore;
use des_shared::store::backend::{Backend, Layers};
use des_shared::store::local::LocalStore;
use des_shared::store::s3_config::S3Config;
use des_worker::pack::PackLimits;
use des_worker::source::{SourceOpener, Sources};
use futures::{StreamExt, stream};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use super::numbers::Numbers;
use super::resume::Resume;
use super::{Names, Outcome, Request, SideBySide, plan, sequence};
use crate::error::CliError;
use crate::failures::FailureList;
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
pub(super) struct Run {
    pub(super) store: SharedStore,
    pub(super) numbers: Option<Numbers>,
    pub(super) sources: Arc<dyn SourceOpener>,
    pub(super) options: PackOptions,
    pub(super) sequence: u64,
    pub(super) limits: PackLimits,
    pub(super) stop: CancellationToken,
    pub(super) view: Mutex<View>,
    pub(super) failures: Mutex<FailureList>,
    /// What is kept for the case of an interruption; nothing when another process works on the same run.
    pub(super) resume: Option<Arc<Resume>>,
}

/// The progress people see.
pub(super) struct View {
    meter: Option<Meter>,
    pub(super) measure: Measure,
    pub(super) failed: u64,
}

/// Reads the input, plans it and packs every shard. Ctrl-C ends it between two files; what was done by then is kept,
/// out of the sight of readers, and the same run goes on behind it.
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
    let plan::Plan { shards, buckets, failures, skipped, fingerprint } =
        plan.await.map_err(|e| CliError::failed(format!("planning failed: {e}")))??;
    let before = failures.count();
    let planned = (shards.files(), shards.source_bytes());
    let store = LocalStore::create(&request.output_dir)?;
    let resume = open_resume(&request, fingerprint, sequence).await?;
    if let Some(resume) = resume.as_ref().filter(|resume| resume.is_resumed()) {
        screen.note("an earlier run of the same was interrupted; going on where it was");
        resume.drop_orphans(&(Arc::new(store.clone()) as SharedStore)).await?;
    }
    let kept = Kept { store: store.clone(), resume: resume.clone(), sequence };
    let run = Arc::new(Run::open(&request, kept, &buckets, failures, screen.meter("packing")).await?);
    lock(&run.view).begin(planned, before);
    let outcome = tokio::select! {
        outcome = pack_all(&run, shards, request.side_by_side) => outcome,
        () = interrupted(&run.stop) => Err(CliError::Interrupted),
    };
    let took = started.elapsed();
    lock(&run.view).end();
    let run = Arc::into_inner(run).ok_or_else(|| CliError::failed("a shard was still being packed at the end"));
    let (run, shards) = match (run, outcome) {
        (Ok(run), outcome) => (run, outcome),
        // After a second Ctrl-C. What is there stays there, for the next time.
        (Err(_), Err(error)) | (Err(error), Ok(_)) => return Err(error),
    };
    let Run { resume: shared, numbers, failures, .. } = run;
    drop((shared, numbers));
    let state = resume.and_then(Arc::into_inner).map(|resume| (store, resume));
    let shards = match shards {
        Ok(shards) => shards,
        Err(error) => {
            let kept = match state {
                Some((store, resume)) => resume.end(&store, false).await?,
                None => false,
            };
            return Err(if kept && matches!(error, CliError::Interrupted) { CliError::InterruptedKept } else { error });
        }
    };
    let failures = failures.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok(Outcome { shards, accepted: planned.0 + before, skipped, failures, took, state })
}

/// The state of the run, from an earlier process or new.
async fn open_resume(request: &Arc<Request>, run: String, sequence: u64) -> Result<Option<Arc<Resume>>, CliError> {
    let output = request.output_dir.clone();
    let now_ms = SystemClock.now_ms();
    let opened = tokio::task::spawn_blocking(move || Resume::open(&output, &run, sequence, now_ms));
    opened.await.map_err(|e| CliError::failed(format!("the state of the run cannot be read: {e}")))?
}

/// What a run goes on from.
struct Kept {
    store: LocalStore,
    resume: Option<Arc<Resume>>,
    sequence: u64,
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

pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // Counters and lists stay what they are even when the thread that held them panicked.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Run {
    async fn open(
        request: &Request,
        kept: Kept,
        buckets: &BTreeSet<String>,
        failures: FailureList,
        meter: Meter,
    ) -> Result<Self, CliError> {
        let Kept { store, resume, sequence } = kept;
        let store: SharedStore = Arc::new(store);
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
            numbers: (request.names == Names::Bare).then(|| Numbers::new(store.clone(), resume.clone())),
            store,
            sources: Arc::new(Sources::new(roots, stores)),
            options: request.options.clone(),
            sequence: resume.as_ref().and_then(|resume| resume.sequence()).unwrap_or(sequence),
            limits: PackLimits::default(),
            stop: CancellationToken::new(),
            view: Mutex::new(View { meter: Some(meter), measure: Measure::default(), failed: 0 }),
            failures: Mutex::new(failures),
            resume,
        })
    }
}

/// All shards, a few at a time. After the first failure no further shard is begun, and those under way are finished.
async fn pack_all(run: &Arc<Run>, shards: PlannedShards, side_by_side: SideBySide) -> Result<Vec<Written>, CliError> {
    let mut planned = read_ahead(shards);
    let stop = run.stop.clone();
    let shards =
        stream::poll_fn(
            move |context| {
                if stop.is_cancelled() { std::task::Poll::Ready(None) } else { planned.poll_recv(context) }
            },
        );
    let places = Arc::new(Semaphore::new(side_by_side.small));
    // Numbers are given in the order of the plan, so they do not depend on which shard is packed first.
    let named = shards.enumerate().then(|(at, planned)| {
        let (run, places) = (Arc::clone(run), Arc::clone(&places));
        async move {
            let planned = planned?;
            let needed = side_by_side.places(planned.files.len(), planned.source_bytes);
            let place = places.acquire_many_owned(needed).await.expect("the places are never closed");
            let number = match &run.numbers {
                Some(numbers) => numbers.take(&planned.slot).await?,
                None => planned.number,
            };
            Ok::<_, CliError>((at, planned, number, place))
        }
    });
    let packing = named
        .map(|named| {
            let run = Arc::clone(run);
            async move {
                let (at, planned, number, place) = named?;
                let packing = tokio::spawn(async move { run.pack_one(at, planned, number).await });
                let written = packing.await.map_err(|e| CliError::failed(format!("packing failed: {e}")))??;
                drop(place);
                Ok::<_, CliError>((at, written))
            }
        })
        .buffer_unordered(side_by_side.small);
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

impl View {
    fn begin(&mut self, (files, bytes): (u64, u64), failed: u64) {
        self.measure.of_files = Some(files);
        self.measure.of_bytes = Some(bytes);
        self.failed = failed;
        self.show();
    }

    pub(super) fn show(&mut self) {
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

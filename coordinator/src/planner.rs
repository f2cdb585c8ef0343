//! Plans jobs off the request: manifest to segments to plan record to queued tasks.
//!
//! Whoever holds `plan/{job}` plans. The lock saves work and is not what makes it right: a plan made twice writes the
//! same segments, the first plan record stands, and queueing twice changes nothing. A planner that dies half way is
//! followed by whoever reconciles next.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use des_shared::ids::{JobId, TaskId};
use des_shared::job::{EndRecord, JobOptions, JobRecord, JobState, PlanRecord};
use des_shared::layout;
use des_shared::manifest::{ManifestError, ManifestReader, SourceBase};
use des_shared::offload::has_other_threads;
use des_shared::plan::{PlanConfig, PlanError, PlannedShard};
use des_shared::queue::QueueError;
use des_shared::routing::DateRule;
use des_shared::state::Created;
use futures::stream::{self, Stream, StreamExt, TryStreamExt};
use tokio::sync::{Notify, mpsc};
use tracing::Instrument;

use crate::Core;
use crate::error::Error;
use crate::pipe::{PipeReader, pipe};
use crate::source::parse_base;

/// Planned shards that may wait to be written.
const SHARDS_AHEAD: usize = 2;
/// Segments written side by side.
const SEGMENT_WRITES: usize = 4;
/// Largest sum of source bytes a job may name: the queue counts with doubles, which are exact up to here.
const MAX_SOURCE_BYTES: u64 = 1 << 53;

/// Jobs that wait to be planned by this process. Bounded by the open jobs; 16 bytes each.
#[derive(Debug, Default)]
pub(crate) struct Planning {
    jobs: Mutex<Wanted>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct Wanted {
    waiting: BTreeSet<JobId>,
    active: BTreeSet<JobId>,
}

impl Planning {
    /// Asks for a job to be planned, or its tasks to be queued; asking again changes nothing.
    pub(crate) fn want(&self, job: JobId) {
        let mut jobs = self.lock();
        if !jobs.active.contains(&job) {
            jobs.waiting.insert(job);
            drop(jobs);
            self.wake.notify_one();
        }
    }

    /// The oldest job that waits.
    async fn next(&self) -> JobId {
        loop {
            {
                let mut jobs = self.lock();
                if let Some(job) = jobs.waiting.pop_first() {
                    jobs.active.insert(job);
                    if !jobs.waiting.is_empty() {
                        self.wake.notify_one();
                    }
                    return job;
                }
            }
            self.wake.notified().await;
        }
    }

    fn done(&self, job: JobId) {
        self.lock().active.remove(&job);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Wanted> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a job was not planned.
enum Setback {
    /// The manifest cannot be packed; trying again does not help.
    Manifest(String),
    /// Something else failed; the reconciler asks again.
    Later(Error),
    /// Somebody else holds the lock now.
    LockLost,
    /// The process is asked to stop.
    Stopping,
}

impl<E: Into<Error>> From<E> for Setback {
    fn from(error: E) -> Self {
        Self::Later(error.into())
    }
}

/// Plans one wanted job after the other until the shutdown.
pub(crate) async fn run(core: Arc<Core>) {
    loop {
        let job = tokio::select! {
            biased;
            () = core.shutdown.wait() => return,
            job = core.planning.next() => job,
        };
        let span = tracing::info_span!("plan", %job);
        let outcome = core.plan_under_lock(job).instrument(span.clone()).await;
        core.planning.done(job);
        let _entered = span.enter();
        match outcome {
            Ok(()) => {}
            Err(Setback::Manifest(why)) => tracing::warn!("the job failed: {why}"),
            Err(Setback::Later(error)) => tracing::warn!("planning has to wait: {error}"),
            Err(Setback::LockLost) => tracing::info!("another coordinator plans this job"),
            Err(Setback::Stopping) => return,
        }
    }
}

impl Core {
    async fn plan_under_lock(&self, job: JobId) -> Result<(), Setback> {
        let name = format!("plan/{job}");
        let ttl = self.config.limits.lock;
        if self.queue().lock(&name, &self.holder, ttl).await?.is_none() {
            return Err(Setback::LockLost);
        }
        let renewed = async {
            loop {
                tokio::time::sleep(ttl / 3).await;
                match self.queue().lock(&name, &self.holder, ttl).await {
                    Ok(Some(_)) => {}
                    Ok(None) => return,
                    // Planning goes on without the queue; two planners write the same.
                    Err(e) => tracing::warn!("the planning lock cannot be renewed: {e}"),
                }
            }
        };
        let outcome = tokio::select! {
            biased;
            () = self.shutdown.wait() => Err(Setback::Stopping),
            outcome = self.bring_in(job) => outcome,
            () = renewed => return Err(Setback::LockLost),
        };
        if let Err(e) = self.queue().unlock(&name, &self.holder).await {
            tracing::debug!("the planning lock ends by itself: {e}");
        }
        outcome
    }

    /// From wherever the job stands to queued tasks.
    async fn bring_in(&self, job: JobId) -> Result<(), Setback> {
        if self.state().end(job).await?.is_some() {
            return Ok(());
        }
        let Some(record) = self.state().job(job).await? else {
            return Ok(());
        };
        let plan = match self.state().plan(job).await? {
            Some(plan) => plan,
            None => match self.plan(&record).await {
                Ok(plan) => plan,
                Err(Setback::Manifest(why)) => {
                    self.fail_job(job, &why).await?;
                    return Err(Setback::Manifest(why));
                }
                Err(setback) => return Err(setback),
            },
        };
        self.restore(&record, &plan).await?;
        Ok(())
    }

    /// Ends a job that cannot be planned.
    async fn fail_job(&self, job: JobId, why: &str) -> Result<(), Error> {
        let end = EndRecord {
            state: JobState::Failed,
            error: Some(why.to_owned()),
            files_packed: 0,
            files_failed: 0,
            stored_bytes: 0,
            shards_committed: 0,
            shards_dead: 0,
            ended_ms: self.deps.clock.now_ms(),
        };
        self.end_job(job, &end).await
    }

    /// Reads the manifest, writes every segment, then the plan record.
    async fn plan(&self, record: &JobRecord) -> Result<PlanRecord, Setback> {
        let started = tokio::time::Instant::now();
        let base = parse_base(record.source_base.as_deref()).map_err(Setback::Manifest)?;
        if let Some(why) = self.manifest_is_gone(record).await? {
            return Err(Setback::Manifest(why));
        }
        let config = self.plan_config(&record.options);
        let plan = if has_other_threads() {
            self.plan_while_reading(record, base, config).await?
        } else {
            self.read_then_plan(record, &base, config).await?
        };
        let plan = match self.state().create(&layout::plan(record.id), &plan).await? {
            Created::Ours => plan,
            Created::Theirs(theirs) if theirs == plan => theirs,
            Created::Theirs(_) => {
                return Err(Error::Inconsistent(format!(
                    "job {} was planned before with another result; its first plan stands",
                    record.id
                ))
                .into());
            }
        };
        let seconds = started.elapsed().as_secs_f64();
        self.own_metrics.planned(plan.files, plan.tasks.len() as u64, seconds);
        tracing::info!(files = plan.files, tasks = plan.tasks.len(), bytes = plan.source_bytes, seconds, "planned");
        Ok(plan)
    }

    /// Reading, planning on a blocking thread, and writing, side by side.
    async fn plan_while_reading(
        &self,
        record: &JobRecord,
        base: SourceBase,
        config: PlanConfig,
    ) -> Result<PlanRecord, Setback> {
        let (writer, reader) = pipe();
        let (shards, mut planned) = mpsc::channel(SHARDS_AHEAD);
        let blocking = self.tasks.spawn_blocking(move || read_and_plan(reader, &base, config, &shards));
        let feed = self.feed_manifest(record, writer);
        let write = self.write_segments(record, stream::poll_fn(move |context| planned.poll_recv(context)));
        let ((), written, outcome) = tokio::join!(feed, write, blocking);
        let totals = match outcome.map_err(|e| Error::Machine(format!("planning broke off: {e}")))? {
            Ok(totals) => totals,
            Err(error) => return Err(setback_of(error)),
        };
        // A failed write ends the planner early, so its error comes before the missing totals.
        let tasks = written?;
        let Some((files, source_bytes)) = totals else {
            return Err(Error::Machine("planning broke off: nobody took its shards".to_owned()).into());
        };
        Ok(PlanRecord { files, source_bytes, tasks })
    }

    /// The same one after the other, in memory: on a runtime of one thread nobody could feed a planner that waits.
    /// Only simulations and tests have such a runtime.
    async fn read_then_plan(
        &self,
        record: &JobRecord,
        base: &SourceBase,
        config: PlanConfig,
    ) -> Result<PlanRecord, Setback> {
        let mut manifest = Vec::new();
        while (manifest.len() as u64) < record.manifest_bytes {
            let chunk = self.manifest_chunk(record, manifest.len() as u64).await.map_err(Error::from)?;
            manifest.extend_from_slice(&chunk);
        }
        let plan = plan_checked(manifest.as_slice(), base, config).map_err(setback_of)?;
        let (files, source_bytes) = (plan.files(), plan.source_bytes());
        let shards: Vec<PlannedShard> = plan.collect::<Result<_, _>>().map_err(setback_of)?;
        let tasks = self.write_segments(record, stream::iter(shards)).await?;
        Ok(PlanRecord { files, source_bytes, tasks })
    }

    /// How this coordinator plans a job of these options.
    pub(crate) fn plan_config(&self, options: &JobOptions) -> PlanConfig {
        PlanConfig {
            n_bits: options.n_bits,
            max_shard_size: options.max_shard_size,
            date_rule: DateRule::default(),
            memory_limit_bytes: self.config.limits.plan_memory_bytes,
            spool_dir: self.config.spool_dir.clone(),
        }
    }

    /// The same while a client waits: several of these run side by side, so each gets less memory.
    pub(crate) fn quick_plan_config(&self, options: &JobOptions) -> PlanConfig {
        let config = self.plan_config(options);
        PlanConfig { memory_limit_bytes: config.memory_limit_bytes / 4, ..config }
    }

    /// Writes segments as they are planned. Returns the source bytes of each task, by number.
    async fn write_segments(
        &self,
        record: &JobRecord,
        planned: impl Stream<Item = PlannedShard>,
    ) -> Result<Vec<u64>, Error> {
        let mut number = 0_u32;
        planned
            .map(|shard| {
                let task = TaskId { job: record.id, number };
                let source_bytes = shard.source_bytes;
                number = number.checked_add(1).ok_or_else(|| Error::Inconsistent("more than 2^32 tasks".to_owned()))?;
                Ok((source_bytes, Arc::new(shard.into_segment(task, record.accepted_ms, record.options.pack.clone()))))
            })
            .map_ok(|(source_bytes, segment)| async move {
                self.state().put_segment(&segment).await?;
                Ok::<_, Error>(source_bytes)
            })
            .try_buffered(SEGMENT_WRITES)
            .try_collect()
            .await
    }
}

/// Plans on a blocking thread. `None` when nobody takes the shards any more; files and source bytes otherwise.
fn read_and_plan(
    reader: PipeReader,
    base: &SourceBase,
    config: PlanConfig,
    shards: &mpsc::Sender<PlannedShard>,
) -> Result<Option<(u64, u64)>, PlanError> {
    let plan = plan_checked(reader, base, config)?;
    let totals = (plan.files(), plan.source_bytes());
    for shard in plan {
        if shards.blocking_send(shard?).is_err() {
            return Ok(None);
        }
    }
    Ok(Some(totals))
}

/// Plans a manifest and refuses sums the queue cannot count.
pub(crate) fn plan_checked(
    reader: impl io::Read,
    base: &SourceBase,
    config: PlanConfig,
) -> Result<des_shared::plan::PlannedShards, PlanError> {
    let mut claimed = 0_u64;
    let entries = ManifestReader::new(reader)?;
    let mut planner = des_shared::plan::Planner::new(config)?;
    for item in entries {
        let (position, entry) = item?;
        claimed = claimed.saturating_add(entry.size_bytes);
        if claimed > MAX_SOURCE_BYTES {
            let problem =
                format!("the files up to here have more than {MAX_SOURCE_BYTES} bytes together; expected at most that");
            return Err(ManifestError::Field { position, field: "size_bytes", problem }.into());
        }
        planner.push(position, &entry.resolved(position, base)?)?;
    }
    if planner.progress().files() == 0 {
        return Err(ManifestError::Empty.into());
    }
    planner.finish()
}

fn setback_of(error: PlanError) -> Setback {
    match Error::from_plan(error) {
        Error::BadManifest(text) => Setback::Manifest(text),
        other => Setback::Later(other),
    }
}

impl Error {
    /// Tells a wrong manifest from a machine or a store that failed.
    pub(crate) fn from_plan(error: PlanError) -> Self {
        match error {
            PlanError::Manifest(ManifestError::Read { .. }) | PlanError::Spool { .. } | PlanError::Config(_) => {
                Self::Machine(error.to_string())
            }
            // Everything else is about the manifest: the same bytes give the same answer again.
            other => Self::BadManifest(other.to_string()),
        }
    }
}

/// Whether the queue itself is out of reach.
pub(crate) fn queue_is_down(error: &Error) -> bool {
    matches!(error, Error::Queue(QueueError::Unavailable(_)))
}

/// Checks an inline manifest completely, as planning would: every field, and duplicates.
pub(crate) fn check_inline(manifest: &Bytes, config: PlanConfig) -> Result<(), Error> {
    plan_checked(manifest.as_ref(), &SourceBase::None, config).map(drop).map_err(Error::from_plan)
}

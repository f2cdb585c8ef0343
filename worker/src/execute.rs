//! One task, from its lease to its receipt, top to bottom.

use std::sync::Arc;

use des_shared::clock::{Clock, Dice};
use des_shared::queue::{Checkpoint, FinishedTask, Lease, QueueError, SharedQueue, TaskState};
use des_shared::receipt::{PublishedShard, Receipt};
use des_shared::retry::{RetryPolicy, retry};
use des_shared::segment::Segment;
use des_shared::state::{Created, StateStore};
use des_shared::store::zones::{Zone, Zones};

use crate::checkpoint::{self, LeaseHooks};
use crate::desk::Counter;
use crate::error::{Advice, PackError};
use crate::leases::LeaseGuard;
use crate::metrics::WorkerMetrics;
use crate::pack::{PackJob, PackLimits, Packed, PartMark, pack_segment};
use crate::source::SourceOpener;

/// How often one attempt begins the upload again before it counts as failed.
const ROUNDS: u32 = 3;

/// What every task needs.
#[derive(Debug)]
pub(crate) struct TaskContext {
    pub(crate) queue: SharedQueue,
    pub(crate) counter: Counter,
    pub(crate) state: StateStore,
    pub(crate) zones: Arc<Zones>,
    pub(crate) sources: Arc<dyn SourceOpener>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) dice: Arc<Dice>,
    pub(crate) metrics: WorkerMetrics,
    pub(crate) limits: PackLimits,
}

/// Packs the task's shard, writes its receipt and commits it. Safe to drop at any point: what is published has its key
/// once and for all, and everything else can be done again.
pub(crate) async fn execute(context: &TaskContext, lease: &Lease, guard: &Arc<LeaseGuard>) -> Result<(), PackError> {
    if guard.hand_back.is_cancelled() {
        return Err(PackError::Draining);
    }
    // Asked for at the same time: a far store takes as long for one as for both.
    let (known, segment, marks) = tokio::join!(
        context.state.receipt(lease.task),
        context.state.segment(lease.task),
        checkpoint::listed(&context.state, lease)
    );
    if let Some(receipt) = known? {
        tracing::info!("the task was finished before; its receipt is committed");
        return settle(context, guard, &receipt).await;
    }
    let segment = Arc::new(segment?);
    let zone = zone_of(context, &segment)?;
    let (store, limits) = (zone.store.clone(), context.limits.clone());
    let mut job = PackJob::task(Arc::clone(&segment), store, limits, guard.hand_back.clone());
    job.vitals = guard.vitals.clone();
    let record = match &lease.checkpoint {
        Some(record) => Some(record.clone()),
        // The queue may have lost it: the marks are enough to put it together again.
        None => {
            let (record, orphans) = checkpoint::recover(&context.state, marks?).await?;
            for upload_id in orphans {
                checkpoint::abort(&job.store, &job.key, &upload_id).await;
            }
            record
        }
    };
    if let Some(record) = &record {
        job.vitals.opened(&job.store, &job.key, &record.upload_id, true);
    }
    let (packed, marked) = pack(context, (lease, record.as_ref()), guard, &job).await?;
    let receipt = receipt(context, lease, &job, zone, &packed);
    let winner = match context.state.finish_task(&receipt, &packed.failed_files(&segment)).await? {
        Created::Ours => receipt,
        Created::Theirs(theirs) => theirs,
    };
    settle(context, guard, &winner).await?;
    context.metrics.shard_committed(&packed);
    if marked {
        checkpoint::remove(&context.state, lease.task).await;
    }
    tracing::info!(
        key = packed.object.as_ref().map(|object| object.key.as_str()),
        packed = winner.totals.files_packed,
        failed = winner.totals.files_failed,
        bytes = winner.totals.stored_bytes,
        adopted = packed.adopted,
        "task committed"
    );
    Ok(())
}

fn zone_of<'a>(context: &'a TaskContext, segment: &Segment) -> Result<&'a Zone, PackError> {
    let (ours, theirs) = (context.zones.n_bits(), segment.slot.n_bits);
    if ours != theirs {
        let why = format!("the task was planned for n_bits {}, this worker's zones have {}", theirs.get(), ours.get());
        return Err(PackError::Setup(why));
    }
    context.zones.zone_for(segment.slot.index).map_err(|e| PackError::Setup(e.to_string()))
}

/// Packs from the last checkpoint; from the start where that cannot be continued. Also says whether there may be marks.
async fn pack(
    context: &TaskContext,
    (lease, record): (&Lease, Option<&Checkpoint>),
    guard: &Arc<LeaseGuard>,
    job: &PackJob,
) -> Result<(Packed, bool), PackError> {
    let (state, queue) = (context.state.clone(), context.queue.clone());
    let (mut marks, writers) = match resume(context, (lease, record), job).await {
        Err(e) if e.advice() == Advice::BeginAgain => {
            begin_again(context, (lease, record), job, &e).await?;
            (Vec::new(), Vec::new())
        }
        other => other?,
    };
    let hooks = LeaseHooks::new(state, queue, Arc::clone(guard), context.metrics.clone(), writers);
    let mut round = 1;
    loop {
        match pack_segment(job, std::mem::take(&mut marks), Arc::clone(&context.sources), &hooks).await {
            Err(e) if e.advice() == Advice::BeginAgain && round < ROUNDS => {
                begin_again(context, (lease, record), job, &e).await?;
                hooks.begin_again();
                round += 1;
            }
            other => {
                return Ok((other?, record.is_some() || hooks.marked()));
            }
        }
    }
}

type Resumed = (Vec<PartMark>, Vec<(des_shared::ids::FencingToken, u32)>);

async fn resume(
    context: &TaskContext,
    (lease, record): (&Lease, Option<&Checkpoint>),
    job: &PackJob,
) -> Result<Resumed, PackError> {
    let Some(record) = record else { return Ok((Vec::new(), Vec::new())) };
    let identity = (lease.task, job.digest);
    let marks = checkpoint::load(&context.state, (&job.store, &job.key), identity, record).await?;
    let writers = checkpoint::settle_writers(&context.state, (lease.task, lease.token), record, &marks).await?;
    tracing::info!(parts = record.parts, next_file = record.next_file, "the task goes on behind its checkpoint");
    Ok((marks, writers))
}

async fn begin_again(
    context: &TaskContext,
    (lease, record): (&Lease, Option<&Checkpoint>),
    job: &PackJob,
    why: &PackError,
) -> Result<(), PackError> {
    tracing::warn!("the task begins again: {why}");
    context.queue.drop_checkpoint(lease.task, lease.token).await?;
    if let Some(record) = record {
        checkpoint::abort(&job.store, &job.key, &record.upload_id).await;
        job.vitals.closed(&job.key, &record.upload_id);
    }
    Ok(())
}

fn receipt(context: &TaskContext, lease: &Lease, job: &PackJob, zone: &Zone, packed: &Packed) -> Receipt {
    let shard = packed.object.as_ref().map(|object| PublishedShard {
        zone: zone.name.clone(),
        key: object.key.clone(),
        size: object.size,
        etag: object.etag.clone(),
        entries: object.entries,
        digest: job.digest.to_string(),
    });
    Receipt {
        task: lease.task,
        state: TaskState::Committed,
        shard,
        totals: packed.totals,
        token: lease.token,
        finished_ms: context.clock.now_ms(),
    }
}

/// Tells the queue what the receipt says. The first call of a worker that goes on brings the slot's next task; a worker
/// that stops, or hears nothing, commits and claims nothing with it.
async fn settle(context: &TaskContext, guard: &LeaseGuard, receipt: &Receipt) -> Result<(), PackError> {
    let finished = FinishedTask { task: guard.task, token: guard.token, totals: receipt.totals };
    let mut goes_on = !guard.hand_back.is_cancelled();
    guard.ending();
    retry(&RetryPolicy::PATIENT, &context.dice, QueueError::is_transient, || {
        let hand_in = std::mem::take(&mut goes_on);
        async move {
            match receipt.state {
                TaskState::Committed if hand_in => context.counter.hand_in(finished).await,
                TaskState::Committed => context.counter.commit(finished).await,
                // Given up by the coordinator while this worker had it.
                state => context.queue.settle(guard.task, state, &finished.totals).await,
            }
        }
    })
    .await?;
    Ok(())
}

//! What people decide about a job under way: pause, resume, cancel, another share.
//!
//! Invariant: the decision is in the state store before the queue hears of it, and the request is answered only then.
//! Whoever reconciles tells the queue again, so a decision outlives the queue's data and this process. Changes of one
//! job are made one after the other, under the lock `control/{job}`; a change while the queue is away has only this
//! process's own order, and of two coordinators the last writer wins. A cancellation is a record of its own that is
//! created once, so no other decision can take it back, however late it is written.

use std::time::Duration;

use des_shared::control::{ControlRecord, Hold};
use des_shared::ids::JobId;
use des_shared::job::{EndRecord, JobRecord, JobState, share_problems};
use des_shared::layout;
use des_shared::queue::{JobShare, QueueError};
use des_shared::state::Created;
use serde::{Deserialize, Deserializer};
use tokio::time::Instant;

use crate::Core;
use crate::error::Error;

/// Tasks cancelled in one step of the queue.
const CANCEL_STEP: usize = 1000;
/// Longest wait for another change of the same job.
const PATIENCE: Duration = Duration::from_secs(10);
/// Why a second cancellation is refused.
const SHARDS_DECIDED: &str =
    "what becomes of its shards was decided with the cancellation and cannot be changed any more";
/// Pause between two tries to take a lock.
const RETRY: Duration = Duration::from_millis(20);

/// A decision about a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Hand nothing out until it is resumed.
    Pause,
    /// Go on.
    Resume,
    /// Stop for good.
    Cancel {
        /// Delete the shards that were published.
        drop_shards: bool,
    },
    /// Compete differently.
    Share(ShareChange),
}

/// What changes of a share. What is left out stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ShareChange {
    priority: Option<i32>,
    weight: Option<u32>,
    #[serde(default, deserialize_with = "given")]
    max_running: Option<Bound>,
}

/// A bound on running tasks, or none: `null` takes it away, which is not the same as saying nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bound(Option<u32>);

/// Tells a field that is `null` from one that is not there.
fn given<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Bound>, D::Error> {
    Option::deserialize(deserializer).map(|bound| Some(Bound(bound)))
}

impl ShareChange {
    /// Whether nothing changes.
    pub(crate) fn is_empty(self) -> bool {
        self == Self::default()
    }

    fn of(self, share: JobShare) -> JobShare {
        JobShare {
            priority: self.priority.unwrap_or(share.priority),
            weight: self.weight.unwrap_or(share.weight),
            max_running: self.max_running.map_or(share.max_running, |bound| bound.0),
        }
    }
}

impl Order {
    /// The record after this decision. The error says why it makes no sense.
    fn after(self, record: &JobRecord, now: ControlRecord) -> Result<ControlRecord, Error> {
        let cancelled = now.hold == Hold::Cancelled;
        let refuse = |expected| Error::WrongState { job: record.id, is: "is being cancelled".to_owned(), expected };
        match self {
            Self::Cancel { drop_shards } if cancelled && drop_shards != now.drop_shards => Err(refuse(SHARDS_DECIDED)),
            Self::Cancel { drop_shards } => Ok(ControlRecord { hold: Hold::Cancelled, drop_shards, ..now }),
            _ if cancelled => Err(refuse("a cancelled job cannot be paused, resumed or changed")),
            Self::Pause => Ok(ControlRecord { hold: Hold::Paused, ..now }),
            Self::Resume => Ok(ControlRecord { hold: Hold::None, ..now }),
            Self::Share(change) => {
                let share = change.of(now.share_of(record));
                let wrong = share_problems(share);
                if wrong.is_empty() {
                    Ok(ControlRecord { share: Some(share), ..now })
                } else {
                    Err(Error::BadOptions(wrong))
                }
            }
        }
    }

    /// The same for a job that has ended: only a cancellation that has happened can be asked for again.
    fn after_end(self, job: JobId, end: &EndRecord, now: ControlRecord) -> Result<(), Error> {
        match self {
            Self::Cancel { drop_shards } if end.state == JobState::Cancelled && drop_shards == now.drop_shards => {
                Ok(())
            }
            _ => Err(Error::WrongState {
                job,
                is: format!("is {}", end.state.label()),
                expected: "only a job that has not ended can be paused, resumed, cancelled or changed",
            }),
        }
    }
}

impl Core {
    /// Carries a decision out. Durable when this returns.
    pub(crate) async fn order(&self, record: &JobRecord, order: Order) -> Result<(), Error> {
        let _ours = self.controls.lock().await;
        let lock = ControlLock::take(self, record.id).await?;
        let outcome = self.order_locked(record, order).await;
        lock.give_back(self).await;
        outcome
    }

    async fn order_locked(&self, record: &JobRecord, order: Order) -> Result<(), Error> {
        let job = record.id;
        let now = self.state().control(job).await?;
        if let Some(end) = self.state().end(job).await? {
            return order.after_end(job, &end, now);
        }
        let next = order.after(record, now)?;
        if next != now {
            let next = ControlRecord { updated_ms: self.deps.clock.now_ms(), ..next };
            self.keep(job, now, next).await?;
            tracing::info!(%job, hold = ?next.hold, share = ?next.share, drop_shards = next.drop_shards, "job control");
        }
        // What stands now: another coordinator may have cancelled the job meanwhile.
        let standing = self.state().control(job).await?;
        match self.tell_queue(job, &standing).await {
            // The record stands; whoever reconciles tells the queue when it is back.
            Err(Error::Queue(QueueError::Unavailable(why))) => {
                tracing::warn!(%job, "the queue hears of the decision later: {why}");
                Ok(())
            }
            other => other,
        }
    }

    /// Writes a decision. A cancellation is created once; what another one decided about the shards holds.
    async fn keep(&self, job: JobId, now: ControlRecord, next: ControlRecord) -> Result<(), Error> {
        if next.hold != Hold::Cancelled || now.hold == Hold::Cancelled {
            self.state().write(&layout::control(job), &next).await?;
            return Ok(());
        }
        match self.state().create(&layout::cancellation(job), &next).await? {
            Created::Theirs(theirs) if theirs.drop_shards != next.drop_shards => {
                Err(Error::WrongState { job, is: "is being cancelled".to_owned(), expected: SHARDS_DECIDED })
            }
            Created::Ours | Created::Theirs(_) => Ok(()),
        }
    }

    /// Makes the queue treat a job as was decided. A job without decisions is left alone.
    pub(crate) async fn apply_control(&self, job: JobId) -> Result<(), Error> {
        if self.state().control(job).await? == ControlRecord::default() {
            return Ok(());
        }
        // Read again under the lock, so that an older decision never replaces a newer one in the queue.
        let _ours = self.controls.lock().await;
        let lock = ControlLock::take(self, job).await?;
        let outcome = async {
            let control = self.state().control(job).await?;
            self.tell_queue(job, &control).await
        }
        .await;
        lock.give_back(self).await;
        outcome
    }

    async fn tell_queue(&self, job: JobId, control: &ControlRecord) -> Result<(), Error> {
        let told = async {
            if let Some(share) = control.share {
                self.queue().set_share(job, share).await?;
            }
            match control.hold {
                Hold::None => self.queue().set_paused(job, false).await,
                Hold::Paused => self.queue().set_paused(job, true).await,
                // The rest follows step by step, see `cancel_rest`.
                Hold::Cancelled => self.queue().cancel_job(job, CANCEL_STEP).await.map(drop),
            }
        };
        match told.await {
            // Not planned yet, or lost: it is told when its tasks come (back).
            Ok(()) | Err(QueueError::UnknownJob(_)) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// Cancels what a first step left open.
    pub(crate) async fn cancel_rest(&self, job: JobId) -> Result<(), Error> {
        while self.queue().cancel_job(job, CANCEL_STEP).await? > 0 {}
        Ok(())
    }
}

/// The order of changes of one job among all coordinators.
struct ControlLock {
    name: String,
    /// False when the queue is away.
    taken: bool,
}

impl ControlLock {
    async fn take(core: &Core, job: JobId) -> Result<Self, Error> {
        let name = format!("control/{job}");
        let deadline = Instant::now() + PATIENCE;
        loop {
            match core.queue().lock(&name, &core.holder, core.config.limits.lock).await {
                Ok(Some(_)) => return Ok(Self { name, taken: true }),
                Err(QueueError::Unavailable(_)) => return Ok(Self { name, taken: false }),
                Err(e) => return Err(e.into()),
                Ok(None) if Instant::now() > deadline => {
                    return Err(Error::Busy("the job is being changed by somebody else; come again".to_owned()));
                }
                Ok(None) => tokio::time::sleep(RETRY).await,
            }
        }
    }

    async fn give_back(self, core: &Core) {
        if self.taken
            && let Err(e) = core.queue().unlock(&self.name, &core.holder).await
        {
            tracing::debug!("the lock {} ends by itself: {e}", self.name);
        }
    }
}

//! Back-pressure: new jobs are refused while too much work waits, in the queue or on its way there.
//!
//! What a job brings is known once it is planned, and its tasks are in the queue a little later still. Until then it
//! counts from its plan; one that is not planned yet makes others wait a while for its plan. One submission at a time
//! is made durable while a limit is set, under the lock `admit`, so that two which arrive together at two
//! coordinators see each other. A queue that cannot be asked holds nothing up: what is accepted then is queued when it
//! is back.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use des_shared::ids::JobId;
use des_shared::job::PlanRecord;
use des_shared::layout;
use des_shared::store::list_all;
use futures::stream::TryStreamExt;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::Core;
use crate::error::Error;
use crate::planner::queue_is_down;
use crate::restore::known_tasks;

/// Name of the lock.
const LOCK: &str = "admit";
/// How often a lock that is taken, or a plan that is not there, is asked for again.
const ASK_AGAIN: Duration = Duration::from_millis(50);
/// A job that is not planned so long after it was accepted holds no other up: its manifest may be far away, or stuck.
const PLANNING_HOLDS_UP_MS: u64 = 60_000;

/// What this process knows of open jobs, so that each plan is read once. Bounded by the open jobs.
#[derive(Debug, Default)]
pub(crate) struct Pressure {
    plans: Mutex<BTreeMap<JobId, Planned>>,
}

/// A plan, as far as it counts here.
#[derive(Clone, Copy, Debug)]
struct Planned {
    tasks: u64,
    source_bytes: u64,
    /// The queue was seen to know all of it.
    queued: bool,
}

impl Planned {
    fn of(plan: &PlanRecord) -> Self {
        Self { tasks: plan.tasks.len() as u64, source_bytes: plan.source_bytes, queued: false }
    }
}

/// Work that is accepted and not in the queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Coming {
    tasks: u64,
    bytes: u64,
    /// Jobs of which nobody knows yet what they bring.
    unplanned: u64,
}

impl Core {
    /// Refuses new work while too much waits in the queue. Costs one question, so it comes before a manifest is read.
    pub(crate) async fn room_for_more(&self) -> Result<(), Error> {
        if !self.is_limited() {
            return Ok(());
        }
        match self.room_beside(Coming::default()).await {
            Err(error) if queue_is_down(&error) => Ok(()),
            other => other,
        }
    }

    fn is_limited(&self) -> bool {
        (self.config.limits.max_waiting_tasks, self.config.limits.max_waiting_bytes) != (0, 0)
    }

    /// Makes a submission durable if there is room for it.
    ///
    /// # Errors
    /// [`Error::QueueFull`] when there is none, [`Error::Busy`] when others took too long; then nothing of `accept` was
    /// done.
    pub(crate) async fn admit<T>(&self, accept: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        if !self.is_limited() {
            return accept.await;
        }
        let until = Instant::now() + self.config.limits.admission_wait;
        let Ok(_alone) = tokio::time::timeout_at(until, self.admission.lock()).await else {
            return Err(not_our_turn());
        };
        match self.wait_for_room(until).await {
            Ok(()) => {}
            Err(error) if queue_is_down(&error) => return accept.await,
            Err(error) => {
                self.open_admission().await;
                return Err(error);
            }
        }
        let accepted = tokio::select! {
            biased;
            accepted = accept => accepted,
            never = self.keep_admission() => match never {},
        };
        self.open_admission().await;
        accepted
    }

    /// Renews the lock. One that is lost all the same ends nothing: what is half accepted must be completed.
    async fn keep_admission(&self) -> std::convert::Infallible {
        let ttl = self.config.limits.lock;
        loop {
            tokio::time::sleep(ttl / 3).await;
            match self.queue().lock(LOCK, &self.holder, ttl).await {
                Ok(Some(_)) => {}
                Ok(None) => tracing::warn!("the lock {LOCK} was lost; more may be accepted than the limit says"),
                Err(e) => tracing::warn!("the lock {LOCK} cannot be renewed: {e}"),
            }
        }
    }

    async fn open_admission(&self) {
        if let Err(e) = self.queue().unlock(LOCK, &self.holder).await {
            tracing::debug!("the lock {LOCK} ends by itself: {e}");
        }
    }

    /// Returns holding the lock when there is room.
    async fn wait_for_room(&self, until: Instant) -> Result<(), Error> {
        loop {
            let ours = self.queue().lock(LOCK, &self.holder, self.config.limits.lock).await?.is_some();
            let unplanned = if ours {
                let coming = self.coming().await?;
                self.room_beside(coming).await?;
                if coming.unplanned == 0 {
                    return Ok(());
                }
                Some(coming.unplanned)
            } else {
                None
            };
            if Instant::now() >= until {
                return Err(match unplanned {
                    Some(jobs) => {
                        self.own_metrics.refused_for_pressure();
                        Error::QueueFull(format!("{jobs} jobs are being planned, and what they bring is not known yet"))
                    }
                    None => not_our_turn(),
                });
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }

    async fn room_beside(&self, coming: Coming) -> Result<(), Error> {
        let (most_tasks, most_bytes) = (self.config.limits.max_waiting_tasks, self.config.limits.max_waiting_bytes);
        let stats = self.queue().stats().await?;
        let tasks = stats.pending + stats.delayed + coming.tasks;
        let bytes = stats.waiting_bytes + coming.bytes;
        let full = if most_tasks > 0 && tasks >= most_tasks {
            format!("{tasks} tasks wait, and new jobs are refused from {most_tasks} on")
        } else if most_bytes > 0 && bytes >= most_bytes {
            format!("tasks of {bytes} bytes wait, and new jobs are refused from {most_bytes} on")
        } else {
            return Ok(());
        };
        self.own_metrics.refused_for_pressure();
        Err(Error::QueueFull(full))
    }

    /// Everything accepted that the queue does not know yet.
    async fn coming(&self) -> Result<Coming, Error> {
        let queued: BTreeSet<JobId> = self.queue().jobs().await?.into_iter().collect();
        let (mut coming, mut open) = (Coming::default(), BTreeSet::new());
        let mut plans = self.pressure.plans.lock().await;
        let mut markers = list_all(self.state().objects().clone(), layout::OPEN_PREFIX.to_owned());
        while let Some(marker) = markers.try_next().await? {
            let Some(job) = layout::job_of_open_marker(&marker.key) else { continue };
            open.insert(job);
            let known = match plans.get(&job) {
                Some(known) => *known,
                None => match self.state().plan(job).await? {
                    Some(plan) => Planned::of(&plan),
                    None => {
                        coming.unplanned += u64::from(self.is_being_planned(job).await?);
                        continue;
                    }
                },
            };
            let known = self.count(job, known, queued.contains(&job), &mut coming).await?;
            plans.insert(job, known);
        }
        plans.retain(|job, _| open.contains(job));
        Ok(coming)
    }

    /// Counts what the queue lacks of a planned job.
    async fn count(&self, job: JobId, known: Planned, in_queue: bool, coming: &mut Coming) -> Result<Planned, Error> {
        if known.queued && in_queue {
            return Ok(known);
        }
        let there =
            if in_queue { self.queue().job(job).await?.map_or(0, |counters| known_tasks(&counters)) } else { 0 };
        // The queue forgets a job only behind its end.
        if there == 0 && self.state().end(job).await?.is_some() {
            return Ok(known);
        }
        let lacking = known.tasks.saturating_sub(there);
        coming.tasks += lacking;
        // Tasks are of like size: this is for the moment in which they are being added.
        coming.bytes += (u128::from(known.source_bytes) * u128::from(lacking) / u128::from(known.tasks.max(1))) as u64;
        Ok(Planned { queued: lacking == 0, ..known })
    }

    /// Whether a job without a plan was accepted lately and is not over.
    async fn is_being_planned(&self, job: JobId) -> Result<bool, Error> {
        let Some(record) = self.state().job(job).await? else { return Ok(false) };
        let age = self.deps.clock.now_ms().saturating_sub(record.accepted_ms);
        Ok(age < PLANNING_HOLDS_UP_MS && self.state().end(job).await?.is_none())
    }
}

fn not_our_turn() -> Error {
    Error::Busy("other submissions are being accepted; come again".to_owned())
}

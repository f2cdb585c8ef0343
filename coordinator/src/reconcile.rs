//! Watches over the queue and all open jobs.
//!
//! Two rounds: every coordinator keeps the queue's house (expired leases, due retries, gauges), and the one that
//! holds the lock `reconcile` looks after the open jobs. In short steps it asks the queue about each of them, so that
//! an ended job is ended and a queue that lost its data is refilled within a tick or two; now and then it compares
//! everything with the state store.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use des_shared::ids::{FencingToken, JobId, TaskId};
use des_shared::job::{JobRecord, PlanRecord};
use des_shared::layout;
use des_shared::queue::{JobCounters, TaskState};
use des_shared::store::{ObjectMeta, list_all};
use futures::stream::{self, StreamExt, TryStreamExt};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

use crate::Core;
use crate::error::Error;
use crate::planner::queue_is_down;
use crate::restore::known_tasks;
use crate::submit::LEFTOVER_MS;

/// Name of the lock of the one who looks after jobs.
const LOCK: &str = "reconcile";
/// Tasks handled by one call of the queue's housekeeping.
const TICK_LIMIT: usize = 1000;
/// Jobs looked at side by side.
const JOBS_AT_ONCE: usize = 8;
/// A job with which something went wrong is left alone for so long.
const AFTER_TROUBLE: Duration = Duration::from_secs(5);
/// A job that cannot be ended yet is left alone for so many ticks.
const TICKS_BETWEEN_ENDS: u32 = 5;
/// Tasks looked through at once for dead ones.
const TASKS: usize = 1000;

/// Expired leases, due retries and gauges, until the shutdown.
pub(crate) async fn keep_house(core: Arc<Core>) {
    let mut trouble = Trouble::default();
    let mut ticks = tokio::time::interval(core.config.limits.tick);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = core.shutdown.wait() => return,
            _ = ticks.tick() => trouble.note("housekeeping of the queue", core.tick_queue().await),
        }
    }
}

/// Looks after the open jobs whenever this process holds the lock, until the shutdown.
pub(crate) async fn watch_over_jobs(core: Arc<Core>) {
    let mut trouble = Trouble::default();
    let mut watch = Watch::default();
    let mut ticks = tokio::time::interval(core.config.limits.tick);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = core.shutdown.wait() => break,
            _ = ticks.tick() => {}
        }
        let round = tokio::select! {
            biased;
            () = core.shutdown.wait() => break,
            round = core.look_after_jobs(&mut watch) => round,
        };
        trouble.note("reconciliation", round);
    }
    // The next one need not wait for the lock to run out.
    if let Err(e) = core.queue().unlock(LOCK, &core.holder).await {
        tracing::debug!("the lock {LOCK} ends by itself: {e}");
    }
}

/// Says once that something goes wrong, and once that it is over.
#[derive(Default)]
pub(crate) struct Trouble {
    last: Option<String>,
}

impl Trouble {
    pub(crate) fn note(&mut self, what: &str, outcome: Result<(), Error>) {
        match outcome {
            Ok(()) => {
                if self.last.take().is_some() {
                    tracing::info!("{what}: works again");
                }
            }
            Err(error) => {
                let text = error.to_string();
                if self.last.as_ref() != Some(&text) {
                    tracing::warn!("{what}: {text}");
                    self.last = Some(text);
                }
            }
        }
    }
}

/// What the holder of the lock remembers between rounds.
#[derive(Default)]
pub(crate) struct Watch {
    /// Planned open jobs.
    jobs: BTreeMap<JobId, Watched>,
    /// Open jobs without a plan, at the last sweep.
    unplanned: usize,
    last_sweep: Option<Instant>,
    /// Token of the lock in the last round.
    token: Option<FencingToken>,
    /// Jobs that are being ended: that can take longer than a round, which the others must not wait for.
    ending: JoinSet<(JobId, Look)>,
    ending_jobs: BTreeSet<JobId>,
}

struct Watched {
    record: Arc<JobRecord>,
    plan: Arc<PlanRecord>,
    /// Do not touch before; set after trouble.
    not_before: Option<Instant>,
    /// Dead tasks that have their receipt.
    buried: u64,
}

impl Watched {
    fn new(record: JobRecord, plan: PlanRecord) -> Self {
        Self { record: Arc::new(record), plan: Arc::new(plan), not_before: None, buried: 0 }
    }
}

/// What a look at one job found.
enum Look {
    /// Under way, with so many dead tasks.
    Under {
        dead: u64,
    },
    /// Every task is final.
    Over,
    Ended,
    /// Every task is final, but it cannot be ended now.
    NotYet,
    Trouble,
}

impl Core {
    async fn tick_queue(&self) -> Result<(), Error> {
        loop {
            let tick = self.queue().tick(TICK_LIMIT).await?;
            self.own_metrics.ticked(&tick);
            for task in &tick.died {
                tracing::warn!(%task, "a lease ran out and no attempt is left");
            }
            if tick.expired.len() + tick.died.len() + (tick.revived as usize) < TICK_LIMIT {
                break;
            }
        }
        self.own_metrics.queue_is(&self.queue().stats().await?);
        let workers = self.queue().workers().await?;
        self.own_metrics.workers_are(workers.len() as u64, workers.iter().map(|worker| u64::from(worker.slots)).sum());
        Ok(())
    }

    async fn look_after_jobs(self: &Arc<Self>, watch: &mut Watch) -> Result<(), Error> {
        let lock = self.queue().lock(LOCK, &self.holder, self.config.limits.lock).await.inspect_err(|_| {
            // What waited for the queue is to be brought in as soon as it is back.
            watch.last_sweep = None;
        })?;
        let Some(token) = lock else {
            *watch = Watch::default();
            self.own_metrics.jobs_are_open(0, 0);
            return Ok(());
        };
        if watch.token.replace(token) != Some(token) {
            // A lock that is renewed in time keeps its token. A new one means that the queue forgot the lock, and with
            // it everything else, or that somebody else looked after the jobs meanwhile.
            watch.last_sweep = None;
        }
        if watch.last_sweep.is_none_or(|last| last.elapsed() >= self.config.limits.reconcile) {
            self.sweep(watch).await?;
            watch.last_sweep = Some(Instant::now());
        }
        self.meet_new_jobs(watch).await?;
        while let Some(ended) = watch.ending.try_join_next() {
            // Which job a panic was about is not known; a round without any is as good as a retry.
            let Ok((job, look)) = ended else {
                *watch = Watch::default();
                return Err(Error::Machine("ending a job broke off".to_owned()));
            };
            watch.ending_jobs.remove(&job);
            self.looked(watch, job, &look);
        }
        let now = Instant::now();
        let due: Vec<_> = watch
            .jobs
            .values()
            .filter(|watched| watched.not_before.is_none_or(|time| time <= now))
            .filter(|watched| !watch.ending_jobs.contains(&watched.record.id))
            .map(|watched| (Arc::clone(&watched.record), Arc::clone(&watched.plan), watched.buried))
            .collect();
        let looks: Vec<_> = stream::iter(due)
            .map(|(record, plan, buried)| async move { (record.id, self.look(&record, &plan, buried).await) })
            .buffer_unordered(JOBS_AT_ONCE)
            .collect()
            .await;
        for (job, look) in looks {
            self.looked(watch, job, &look);
        }
        self.own_metrics.jobs_are_open(watch.unplanned as u64, watch.jobs.len() as u64);
        Ok(())
    }

    /// Draws the consequence of a look at a job.
    fn looked(self: &Arc<Self>, watch: &mut Watch, job: JobId, look: &Look) {
        if matches!(look, Look::Ended) {
            watch.jobs.remove(&job);
        }
        let Some(watched) = watch.jobs.get_mut(&job) else { return };
        match look {
            Look::Under { dead } => watched.buried = *dead,
            Look::Over => {
                let (core, record, plan) = (Arc::clone(self), Arc::clone(&watched.record), Arc::clone(&watched.plan));
                watch.ending_jobs.insert(job);
                watch.ending.spawn(async move { (job, core.end_of(&record, &plan).await) });
            }
            Look::Ended => {}
            Look::NotYet => watched.not_before = Some(Instant::now() + TICKS_BETWEEN_ENDS * self.config.limits.tick),
            Look::Trouble => watched.not_before = Some(Instant::now() + AFTER_TROUBLE),
        }
    }

    async fn end_of(&self, record: &JobRecord, plan: &PlanRecord) -> Look {
        match self.finish(record, plan).await {
            Ok(true) => Look::Ended,
            Ok(false) => Look::NotYet,
            Err(error) => {
                tracing::warn!(job = %record.id, "the job cannot be ended now: {error}");
                Look::Trouble
            }
        }
    }

    /// Compares everything open in the state store with the queue.
    async fn sweep(&self, watch: &mut Watch) -> Result<(), Error> {
        let mut found: Vec<(JobId, Option<Watched>)> = Vec::new();
        let mut markers = list_all(self.state().objects().clone(), layout::OPEN_PREFIX.to_owned())
            .map_err(Error::from)
            .map_ok(|marker| self.sort_out(marker))
            .try_buffer_unordered(JOBS_AT_ONCE);
        while let Some(sorted) = markers.try_next().await? {
            found.extend(sorted);
        }
        drop(markers);
        watch.unplanned = found.iter().filter(|(_, watched)| watched.is_none()).count();
        watch.jobs = found.into_iter().filter_map(|(job, watched)| Some((job, watched?))).collect();
        for watched in watch.jobs.values_mut() {
            if let Err(error) = self.compare(watched).await {
                if queue_is_down(&error) {
                    return Err(error);
                }
                tracing::warn!(job = %watched.record.id, "the job cannot be reconciled now: {error}");
                watched.not_before = Some(Instant::now() + AFTER_TROUBLE);
            }
        }
        self.forget_ended_jobs(watch).await
    }

    /// What the marker of an open job stands for. `None` when the job is not open.
    async fn sort_out(&self, marker: ObjectMeta) -> Result<Option<(JobId, Option<Watched>)>, Error> {
        let Some(job) = layout::job_of_open_marker(&marker.key) else { return Ok(None) };
        if self.state().end(job).await?.is_some() {
            self.let_go(job).await?;
            return Ok(None);
        }
        let Some(record) = self.state().job(job).await? else {
            if self.deps.clock.now_ms().saturating_sub(marker.last_modified_ms) > LEFTOVER_MS {
                self.discard(job).await;
            }
            return Ok(None);
        };
        let Some(plan) = self.state().plan(job).await? else {
            self.planning.want(job);
            return Ok(Some((job, None)));
        };
        Ok(Some((job, Some(Watched::new(record, plan)))))
    }

    /// Settles what has a receipt and is open in the queue.
    async fn compare(&self, watched: &Watched) -> Result<(), Error> {
        let job = watched.record.id;
        let tasks = watched.plan.tasks.len() as u32;
        match self.queue().job(job).await? {
            Some(counters) if known_tasks(&counters) == u64::from(tasks) => {
                // Decided while the queue was away, or on a queue that has gone back in time since.
                self.apply_control(job).await?;
                let settled = self.settle_finished(job, tasks).await?;
                if settled > 0 {
                    tracing::info!(%job, settled, "tasks with a receipt were open in the queue");
                }
                Ok(())
            }
            Some(_) | None => self.restore(&watched.record, &watched.plan).await,
        }
    }

    /// Jobs the queue knows and this process does not watch: planned by another coordinator since the last sweep.
    async fn meet_new_jobs(&self, watch: &mut Watch) -> Result<(), Error> {
        for job in self.queue().jobs().await? {
            if watch.jobs.contains_key(&job) {
                continue;
            }
            if let (None, Some(record), Some(plan)) =
                (self.state().end(job).await?, self.state().job(job).await?, self.state().plan(job).await?)
            {
                watch.unplanned = watch.unplanned.saturating_sub(1);
                watch.jobs.insert(job, Watched::new(record, plan));
            }
        }
        Ok(())
    }

    /// A queue that went back in time may know jobs that have ended.
    async fn forget_ended_jobs(&self, watch: &Watch) -> Result<(), Error> {
        for job in self.queue().jobs().await? {
            if !watch.jobs.contains_key(&job) && self.state().end(job).await?.is_some() {
                self.queue().forget_job(job).await?;
            }
        }
        Ok(())
    }

    /// One job, between sweeps.
    async fn look(&self, record: &JobRecord, plan: &PlanRecord, buried: u64) -> Look {
        let outcome = async {
            let counters = self.queue().job(record.id).await?;
            match counters {
                Some(counters) if known_tasks(&counters) == plan.tasks.len() as u64 => {
                    self.views.remember(record.id, counters, self.deps.clock.now_ms());
                    if counters.open() == 0 {
                        return Ok(Look::Over);
                    }
                    if counters.cancelled > 0 {
                        self.cancel_rest(record.id).await?;
                    }
                    if counters.dead != buried {
                        self.bury_dead(record.id).await?;
                    }
                    Ok(Look::Under { dead: counters.dead })
                }
                Some(JobCounters { .. }) | None => {
                    if self.state().end(record.id).await?.is_some() {
                        return Ok(Look::Ended);
                    }
                    tracing::warn!(job = %record.id, "the queue lost tasks of the job; bringing them back");
                    self.restore(record, plan).await?;
                    Ok(Look::Under { dead: 0 })
                }
            }
        };
        outcome.await.unwrap_or_else(|error: Error| {
            tracing::warn!(job = %record.id, "the job has to wait: {error}");
            Look::Trouble
        })
    }

    /// Closes dead tasks while others still run, so that they are in the dead list as soon as they are dead.
    async fn bury_dead(&self, job: JobId) -> Result<(), Error> {
        let mut from = 0;
        loop {
            let tasks = self.queue().tasks(job, from, TASKS).await?;
            for task in tasks.iter().filter(|task| task.state == TaskState::Dead) {
                self.bury(TaskId { job, number: task.number }, task).await?;
            }
            match tasks.last().and_then(|last| last.number.checked_add(1)) {
                Some(next) if tasks.len() == TASKS => from = next,
                _ => return Ok(()),
            }
        }
    }
}

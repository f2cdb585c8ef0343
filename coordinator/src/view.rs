//! A job as clients see it, from the state store and the queue.
//!
//! `end.json` decides when it is there. Until then `files.packed` and `files.failed` count finished tasks only; what
//! running tasks have packed so far is in `progress.in_progress`.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use des_shared::control::{ControlRecord, Hold};
use des_shared::ids::{JobId, WorkerId};
use des_shared::job::{
    ByteCounts, EndRecord, FileCounts, JobOptions, JobRecord, JobState, JobView, PlanRecord, ShardCounts,
};
use des_shared::queue::{JobCounters, QueueError, TaskTotals};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use utoipa::ToSchema;

use crate::Core;
use crate::error::Error;
use crate::pace::Paces;

/// Jobs whose plan's sums or counters are kept in memory.
const REMEMBERED: usize = 1000;
/// Most running tasks shown with a job.
const SHOWN_TASKS: usize = 200;

/// A [`JobView`], and whether its counts are old.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct JobBody {
    /// The job.
    #[serde(flatten)]
    pub view: JobView,
    /// What holds the job back: `paused`, or `cancelled` from the request to the end. Left out when nothing does.
    #[serde(default, skip_serializing_if = "Hold::is_none")]
    pub hold: Hold,
    /// True when the queue could not be asked: the counts are the last this coordinator saw, or zero. Left out
    /// otherwise.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stale: bool,
}

/// Pace of a job.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct JobProgress {
    /// What running tasks have done on top of the job's counts, as of their last checkpoints.
    #[schema(value_type = Object)]
    pub in_progress: TaskTotals,
    /// Source bytes packed so far, those of running tasks included; `null` when unknown.
    pub done_bytes: Option<u64>,
    /// Source bytes packed a second: over the last minute while it runs and that is known, else on average; `null`
    /// before anything was packed.
    pub bytes_per_second: Option<f64>,
    /// The same on average since the job was accepted.
    pub average_bytes_per_second: Option<f64>,
    /// Seconds until the end at this rate; `null` when unknown, held or ended.
    pub eta_seconds: Option<f64>,
    /// Source bytes over stored bytes of finished tasks; `null` when unknown.
    pub compression_ratio: Option<f64>,
}

/// A job with its pace.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct JobDetail {
    /// The job.
    #[serde(flatten)]
    pub body: JobBody,
    /// Its pace.
    pub progress: JobProgress,
    /// Its tasks that workers hold, as of their last heartbeats, at most 200.
    pub active: Vec<ActiveTask>,
}

/// A task a worker holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ActiveTask {
    /// The worker.
    #[schema(value_type = String)]
    pub worker: WorkerId,
    /// Its host name and process id, for people.
    pub name: String,
    /// The task's number in the job.
    pub number: u32,
    /// Source bytes packed so far.
    pub done_bytes: u64,
    /// Source bytes of the task.
    pub source_bytes: u64,
}

/// A plan's sums: all a view needs of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct PlanSums {
    files: u64,
    source_bytes: u64,
    tasks: u64,
}

/// What views remember. Plans never change; counters are the last seen.
#[derive(Debug, Default)]
pub(crate) struct Views {
    plans: Mutex<BTreeMap<JobId, PlanSums>>,
    counters: Mutex<BTreeMap<JobId, JobCounters>>,
    paces: Paces,
}

impl Views {
    /// Keeps the counters of a job for times when the queue is away.
    pub(crate) fn remember(&self, job: JobId, counters: JobCounters, now_ms: u64) {
        self.paces.note(job, now_ms, counters.totals.source_bytes + counters.in_progress.source_bytes);
        insert_bounded(&self.counters, job, counters);
    }

    fn last_counters(&self, job: JobId) -> JobCounters {
        self.counters.lock().unwrap_or_else(PoisonError::into_inner).get(&job).copied().unwrap_or_default()
    }
}

fn insert_bounded<T>(map: &Mutex<BTreeMap<JobId, T>>, job: JobId, value: T) {
    let mut map = map.lock().unwrap_or_else(PoisonError::into_inner);
    map.insert(job, value);
    if map.len() > REMEMBERED {
        // The oldest job is the least likely to be asked for.
        map.pop_first();
    }
}

/// Where a job stands.
struct Standing {
    plan: Option<PlanSums>,
    end: Option<EndRecord>,
    control: ControlRecord,
    counters: JobCounters,
    stale: bool,
}

impl Core {
    /// A job by id.
    pub(crate) async fn job_record(&self, job: JobId) -> Result<JobRecord, Error> {
        self.state().job(job).await?.ok_or(Error::UnknownJob(job))
    }

    /// A job that was accepted this moment.
    pub(crate) fn view_of_new(&self, record: &JobRecord) -> JobBody {
        let standing = Standing {
            plan: None,
            end: None,
            control: ControlRecord::default(),
            counters: JobCounters::default(),
            stale: false,
        };
        self.body_of(record, &standing)
    }

    /// A job as it stands everywhere.
    pub(crate) async fn view(&self, record: &JobRecord) -> Result<JobBody, Error> {
        let standing = self.stand(record.id).await?;
        Ok(self.body_of(record, &standing))
    }

    /// A job with its pace.
    pub(crate) async fn detail(&self, record: &JobRecord) -> Result<JobDetail, Error> {
        let standing = self.stand(record.id).await?;
        let progress = self.progress(record, &standing);
        let active =
            if standing.end.is_none() && !standing.stale { self.active_tasks(record.id).await } else { vec![] };
        Ok(JobDetail { body: self.body_of(record, &standing), progress, active })
    }

    /// What workers do for a job. Nothing when the queue cannot be asked: the counts say that they are stale.
    async fn active_tasks(&self, job: JobId) -> Vec<ActiveTask> {
        let workers = self.queue().workers().await.unwrap_or_default();
        let mut active: Vec<ActiveTask> = workers
            .into_iter()
            .flat_map(|worker| {
                let tasks = worker.tasks.into_iter().filter(|held| held.task.job == job);
                tasks.map(move |held| ActiveTask {
                    worker: worker.id,
                    name: worker.name.clone(),
                    number: held.task.number,
                    done_bytes: held.done_bytes,
                    source_bytes: held.source_bytes,
                })
            })
            .collect();
        active.sort_by(|a, b| (&a.name, a.worker, a.number).cmp(&(&b.name, b.worker, b.number)));
        active.truncate(SHOWN_TASKS);
        active
    }

    async fn stand(&self, job: JobId) -> Result<Standing, Error> {
        let (end, control, plan) = futures::try_join!(
            async { Ok(self.state().end(job).await?) },
            async { Ok(self.state().control(job).await?) },
            self.plan_sums(job)
        )?;
        let mut standing = Standing { plan, end, control, counters: JobCounters::default(), stale: false };
        if standing.end.is_none() && standing.plan.is_some() {
            match self.queue().job(job).await {
                Ok(Some(counters)) => {
                    self.views.remember(job, counters, self.deps.clock.now_ms());
                    standing.counters = counters;
                }
                // Planned this moment, or lost by the queue and about to be brought back.
                Ok(None) | Err(QueueError::Unavailable(_)) => {
                    standing.counters = self.views.last_counters(job);
                    standing.stale = true;
                }
                Err(e) => return Err(e.into()),
            }
        }
        Ok(standing)
    }

    async fn plan_sums(&self, job: JobId) -> Result<Option<PlanSums>, Error> {
        let known = self.views.plans.lock().unwrap_or_else(PoisonError::into_inner).get(&job).copied();
        if known.is_some() {
            return Ok(known);
        }
        let Some(PlanRecord { files, source_bytes, tasks }) = self.state().plan(job).await? else { return Ok(None) };
        let sums = PlanSums { files, source_bytes, tasks: tasks.len() as u64 };
        insert_bounded(&self.views.plans, job, sums);
        Ok(Some(sums))
    }

    fn body_of(&self, record: &JobRecord, standing: &Standing) -> JobBody {
        let Standing { plan, end, control, counters, stale } = standing;
        let state = match (end, plan) {
            (Some(end), _) => end.state,
            (None, Some(_)) if control.hold == Hold::Paused => JobState::Paused,
            (None, Some(_)) => JobState::Running,
            (None, None) => JobState::Planning,
        };
        let done = counters.totals;
        let (packed, failed, stored, committed, dead) = match end {
            Some(e) => (e.files_packed, e.files_failed, e.stored_bytes, e.shards_committed, e.shards_dead),
            None => (done.files_packed, done.files_failed, done.stored_bytes, counters.committed, counters.dead),
        };
        let updated_ms = match end {
            Some(end) => end.ended_ms,
            None if plan.is_some() => self.deps.clock.now_ms().max(record.accepted_ms),
            None => record.accepted_ms,
        };
        let view = JobView {
            id: record.id,
            name: record.options.name.clone(),
            state,
            options: JobOptions { share: control.share_of(record), ..record.options.clone() },
            files: FileCounts { total: plan.map(|p| p.files), packed, failed },
            bytes: ByteCounts { source: plan.map(|p| p.source_bytes), stored },
            shards: ShardCounts { total: plan.map(|p| p.tasks), committed, dead },
            created_at: rfc3339(record.accepted_ms),
            updated_at: rfc3339(updated_ms),
            error: end.as_ref().and_then(|end| end.error.clone()),
        };
        let hold = if end.is_some() { Hold::None } else { control.hold };
        JobBody { view, hold, stale: *stale }
    }

    fn progress(&self, record: &JobRecord, standing: &Standing) -> JobProgress {
        let Standing { plan, end, control, counters, .. } = standing;
        let now = self.deps.clock.now_ms();
        let until = end.as_ref().map_or(now, |end| end.ended_ms);
        let seconds = until.saturating_sub(record.accepted_ms) as f64 / 1000.0;
        let total = plan.map(|plan| plan.source_bytes);
        // An end has no sum of packed source bytes; without failures it is all of them.
        let (finished, stored) = match end {
            Some(end) => (total.filter(|_| end.files_failed == 0 && end.files_packed > 0), end.stored_bytes),
            None => (Some(counters.totals.source_bytes), counters.totals.stored_bytes),
        };
        let in_progress = if end.is_some() { TaskTotals::default() } else { counters.in_progress };
        let done = finished.map(|bytes| bytes + in_progress.source_bytes);
        let average = done.filter(|bytes| *bytes > 0 && seconds > 0.0).map(|bytes| bytes as f64 / seconds);
        let lately = if end.is_none() { self.views.paces.rate(record.id, now) } else { None };
        let rate = lately.or(average);
        let moves = end.is_none() && control.hold == Hold::None;
        let left = total.zip(done).map(|(total, done)| total.saturating_sub(done)).filter(|_| moves);
        JobProgress {
            in_progress,
            done_bytes: done,
            bytes_per_second: rate,
            average_bytes_per_second: average,
            eta_seconds: left.zip(rate.filter(|rate| *rate > 0.0)).map(|(left, rate)| left as f64 / rate),
            compression_ratio: finished.filter(|_| stored > 0).map(|bytes| bytes as f64 / stored as f64),
        }
    }
}

/// Unix milliseconds as RFC 3339 in UTC. Times beyond the year 9999 are shown as its end.
pub(crate) fn rfc3339(unix_ms: u64) -> String {
    let last = 253_402_300_799_999_u64;
    let nanos = i128::from(unix_ms.min(last)) * 1_000_000;
    OffsetDateTime::from_unix_timestamp_nanos(nanos)
        .ok()
        .and_then(|time| time.format(&Rfc3339).ok())
        .unwrap_or_else(|| format!("{unix_ms} ms after 1970-01-01"))
}

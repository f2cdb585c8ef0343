//! Looks whether queue, state store and shard buckets agree, on a live system, and mends what is safe.
//!
//! Each of the three is read at another moment, so what looks wrong is looked at again before it is called wrong:
//! what heals or moves meanwhile was only under way. Nothing is kept in memory but the task at hand, so an archive of
//! any size can be audited.

mod jobs;
mod shards;

use std::sync::Arc;

use des_shared::ids::JobId;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::Core;
use crate::api::audit::AuditLine;
use crate::error::Error;

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FindingKind {
    /// The queue contradicts itself. Repair: its indexes and counters are made again from its tasks.
    Queue,
    /// A planned open job is not in the queue. Repair: it is queued again.
    JobNotQueued,
    /// Tasks of an open job are not in the queue. Repair: they are queued again.
    TasksNotQueued,
    /// A task has its receipt and is open in the queue. Repair: it is settled.
    ReceiptNotSettled,
    /// The queue calls a task committed that has no receipt. Repair: it runs again, and finds its shard if it is there.
    CommitWithoutReceipt,
    /// The queue keeps a job that has ended. Repair: the queue forgets it.
    EndedJobQueued,
    /// The queue keeps a job the state store does not know. Not repaired: one of the two is not the right one.
    UnknownJobQueued,
    /// An open job has no marker, so no coordinator looks after it. Repair: the marker is written.
    MarkerMissing,
    /// An ended job's receipts are not what its end or its plan says. Not repaired.
    EndContradicted,
    /// A receipt's shard is not in its zone. Not repaired: its files are lost unless they can be packed again.
    ShardMissing,
    /// A receipt's shard has another size. Not repaired.
    ShardChanged,
    /// A record cannot be read. Not repaired.
    Unreadable,
}

impl FindingKind {
    fn label(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::JobNotQueued => "job_not_queued",
            Self::TasksNotQueued => "tasks_not_queued",
            Self::ReceiptNotSettled => "receipt_not_settled",
            Self::CommitWithoutReceipt => "commit_without_receipt",
            Self::EndedJobQueued => "ended_job_queued",
            Self::UnknownJobQueued => "unknown_job_queued",
            Self::MarkerMissing => "marker_missing",
            Self::EndContradicted => "end_contradicted",
            Self::ShardMissing => "shard_missing",
            Self::ShardChanged => "shard_changed",
            Self::Unreadable => "unreadable",
        }
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What kind of thing.
    pub kind: FindingKind,
    /// The job it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<JobId>,
    /// The task in that job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<u32>,
    /// What is wrong, for people.
    pub detail: String,
    /// Whether this audit mended it.
    pub repaired: bool,
}

/// What an audit looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Seen {
    jobs: u64,
    receipts: u64,
    shards: u64,
    findings: u64,
    repaired: u64,
}

/// Why an audit ends early.
enum Stop {
    /// Nobody reads on.
    Gone,
    /// Something cannot be read.
    Failed(Error),
}

impl<E: Into<Error>> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// One audit under way.
pub(crate) struct Audit {
    core: Arc<Core>,
    repair: bool,
    look_into_shards: bool,
    out: mpsc::Sender<AuditLine>,
    seen: Seen,
}

impl Audit {
    /// Ready to run; lines go to `out`.
    pub(crate) fn new(core: Arc<Core>, repair: bool, look_into_shards: bool, out: mpsc::Sender<AuditLine>) -> Self {
        Self { core, repair, look_into_shards, out, seen: Seen::default() }
    }

    /// Looks at everything. The last line is the summary; a stream without one was cut.
    pub(crate) async fn run(mut self) {
        let began = Instant::now();
        let shutdown = self.core.shutdown.clone();
        let outcome = tokio::select! {
            biased;
            () = shutdown.wait() => {
                Err(Stop::Failed(Error::Machine("the coordinator is being stopped; ask again".to_owned())))
            }
            outcome = self.look() => outcome,
        };
        let last = match outcome {
            Ok(()) => {
                let Seen { jobs, receipts, shards, findings, repaired } = self.seen;
                let seconds = began.elapsed().as_secs_f64();
                tracing::info!(jobs, receipts, shards, findings, repaired, seconds, "audit");
                AuditLine::Summary { jobs, receipts, shards, findings, repaired, seconds }
            }
            Err(Stop::Gone) => return,
            Err(Stop::Failed(error)) => {
                tracing::warn!("an audit was cut: {error}");
                AuditLine::Error { detail: error.to_string() }
            }
        };
        // Whoever asked may be gone by now.
        drop(self.out.send(last).await);
    }

    async fn look(&mut self) -> Result<(), Stop> {
        self.queue_itself().await?;
        let mut last = None;
        while let Some(job) = self.core.state().job_after(last).await? {
            self.job(job).await?;
            last = Some(job);
        }
        self.queued_jobs().await
    }

    async fn tell(&mut self, finding: Finding) -> Result<(), Stop> {
        self.seen.findings += 1;
        self.seen.repaired += u64::from(finding.repaired);
        self.core.own_metrics.found(finding.kind.label());
        tracing::warn!(kind = finding.kind.label(), job = ?finding.job, repaired = finding.repaired, "{}", finding.detail);
        self.out.send(AuditLine::Finding(finding)).await.map_err(|_| Stop::Gone)
    }

    /// Waits until what is under way has moved.
    async fn pause(&self) {
        tokio::time::sleep(self.core.config.limits.audit_pause).await;
    }

    /// What the queue says of itself. What is named is wrong, not merely under way.
    async fn queue_itself(&mut self) -> Result<(), Stop> {
        let wrong = self.core.queue().audit().await?;
        if wrong.is_empty() {
            return Ok(());
        }
        let mut still = wrong.clone();
        if self.repair {
            for job in self.core.queue().jobs().await? {
                self.core.queue().repair_job(job).await?;
            }
            still = self.core.queue().audit().await?;
        }
        for detail in wrong {
            let repaired = !still.contains(&detail);
            self.tell(Finding { kind: FindingKind::Queue, job: None, task: None, detail, repaired }).await?;
        }
        Ok(())
    }
}

fn of_job(kind: FindingKind, job: JobId, detail: String) -> Finding {
    Finding { kind, job: Some(job), task: None, detail, repaired: false }
}

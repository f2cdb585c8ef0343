//! Packs again what failed: the failure list of an ended job, or of one dead task, becomes the manifest of a new job.
//!
//! Asking again for the same gives the same job as long as that one is open or has packed everything; otherwise what
//! failed in it is tried next. Each step is a key in the state store that is bound once, so any number of
//! coordinators that are asked at once agree.

use bytes::Bytes;
use des_shared::ids::{JobId, TaskId};
use des_shared::job::{EndRecord, JobOptions, JobRecord, JobState};
use des_shared::layout;
use des_shared::receipt::{DeadTask, FailedFile};
use des_shared::state::StateError;
use futures::stream::{self, StreamExt, TryStreamExt};
use serde::Serialize;

use crate::Core;
use crate::error::Error;
use crate::submit::{Accepted, Submission, digest};
use crate::upload::ByteStream;

/// Whose failed files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failed {
    Job(JobId),
    Task(TaskId),
}

/// One line of the new manifest: the part of a [`FailedFile`] that was in the old one.
#[derive(Serialize)]
struct Line<'a> {
    uid: &'a str,
    created_at: &'a str,
    size_bytes: u64,
    source_path: &'a str,
}

/// What became of an earlier retry.
enum Outcome {
    Open,
    Packed,
    /// Some of its files failed again.
    Partly,
    /// It could not be planned.
    Failed,
}

impl From<&EndRecord> for Outcome {
    fn from(end: &EndRecord) -> Self {
        match end.state {
            JobState::Failed => Self::Failed,
            _ if end.files_failed == 0 => Self::Packed,
            _ => Self::Partly,
        }
    }
}

impl Core {
    /// Packs again what failed in a job.
    pub(crate) async fn retry_job(&self, record: &JobRecord) -> Result<Accepted, Error> {
        let job = record.id;
        let wrong = |is: &str, expected| Err(Error::WrongState { job, is: is.to_owned(), expected });
        let Some(end) = self.state().end(job).await? else {
            let state = self.view(record).await?.view.state;
            let is = format!("is {}", state.label());
            return wrong(&is, "what failed can be tried again when the job has ended; cancel it, or wait for its end");
        };
        match Outcome::from(&end) {
            Outcome::Partly => self.retry(Failed::Job(job), &["retry", &job.to_string()], &record.options).await,
            Outcome::Failed => wrong(
                "could not be planned",
                "its error says what is wrong with its manifest; correct that and submit it as a new job",
            ),
            Outcome::Open | Outcome::Packed => wrong(
                &format!("is {}", end.state.label()),
                "none of its files failed, so there is nothing to try again",
            ),
        }
    }

    /// Packs the files of a dead task again.
    pub(crate) async fn retry_task(&self, task: TaskId) -> Result<Accepted, Error> {
        let key = layout::dead_entry(task);
        let entry: DeadTask = self.state().read(&key).await?.ok_or(Error::NotDead(task))?;
        let record = self.job_record(task.job).await?;
        let accepted = self.retry(Failed::Task(task), &["retry-task", &task.to_string()], &record.options).await?;
        let child = accepted.record.id;
        if entry.retried_as != Some(child) {
            self.state().write(&key, &DeadTask { retried_as: Some(child), ..entry }).await?;
        }
        Ok(accepted)
    }

    async fn retry(&self, failed: Failed, first: &[&str], options: &JobOptions) -> Result<Accepted, Error> {
        let (mut failed, mut key) = (failed, layout::submission_key(&digest(first)));
        loop {
            let Some(child) = self.read_bound(&key).await? else {
                let body = self.failed_lines(failed).await?;
                let (options, bound_key) = (options.clone(), Some(key));
                return self.submit(Submission { options, bound_key, base: None, body }).await;
            };
            match self.state().end(child.id).await?.as_ref().map_or(Outcome::Open, Outcome::from) {
                Outcome::Open => {
                    // Whoever bound the key may have died before the job was there.
                    self.complete(&child).await?;
                    return Ok(Accepted { record: child, new: false });
                }
                Outcome::Packed => return Ok(Accepted { record: child, new: false }),
                Outcome::Partly => {
                    failed = Failed::Job(child.id);
                    key = layout::submission_key(&digest(&["retry", &child.id.to_string()]));
                }
                Outcome::Failed => {
                    key = layout::submission_key(&digest(&["retry-after", &key, &child.id.to_string()]));
                }
            }
        }
    }

    /// The failed files as a manifest.
    async fn failed_lines(&self, failed: Failed) -> Result<ByteStream, Error> {
        let lists = match failed {
            Failed::Job(job) => self.state().failures(job),
            Failed::Task(task) => {
                let list = match self.state().receipt(task).await? {
                    Some(receipt) => self.state().read_bytes(&layout::failures(task, receipt.token)).await?,
                    None => None,
                };
                let list = list.ok_or_else(|| Error::Busy(format!("task {task} is being closed; come again")))?;
                stream::once(futures::future::ready(Ok(list))).boxed()
            }
        };
        let lines = lists.map_err(Error::from).and_then(|list| futures::future::ready(manifest_of(&list)));
        Ok(lines.boxed())
    }
}

/// Manifest lines of a failure list.
fn manifest_of(list: &Bytes) -> Result<Bytes, Error> {
    let mut lines = Vec::with_capacity(list.len());
    for line in list.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let file: FailedFile = serde_json::from_slice(line)
            .map_err(|e| Error::State(StateError::Corrupt { key: "a failure list".to_owned(), why: e.to_string() }))?;
        let line = Line {
            uid: file.uid.as_str(),
            created_at: &file.created_at,
            size_bytes: file.size_bytes,
            source_path: &file.source_path,
        };
        serde_json::to_writer(&mut lines, &line).expect("strings and numbers always encode");
        lines.push(b'\n');
    }
    Ok(lines.into())
}

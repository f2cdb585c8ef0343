//! One planned shard of a run: packed, found finished, or continued behind its last uploaded part.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use des_shared::ids::{JobId, TaskId};
use des_shared::layout;
use des_shared::plan::PlannedShard;
use des_shared::segment::Segment;
use des_shared::store::StoreErrorKind;
use des_worker::error::{Advice, PackError};
use des_worker::pack::{NoHooks, PackHooks, PackJob, Packed, PartMark, Step, WhenTaken, check_marks, pack_segment};
use des_worker::vitals::Vitals;

use super::resume::Done;
use super::run::{Run, Written, lock};
use crate::error::CliError;
use crate::failures::Failure;

/// How often an upload that vanished is begun again.
const ROUNDS: u32 = 3;

impl Run {
    /// Packs one planned shard, unless an earlier process of the same run has done it.
    pub(super) async fn pack_one(&self, at: usize, planned: PlannedShard, number: u32) -> Result<Written, CliError> {
        if let Some(written) = self.done_before(at).await? {
            return Ok(written);
        }
        let task = TaskId { job: JobId::from_parts(self.sequence, [0; 10]), number: 0 };
        let mut segment = planned.into_segment(task, self.sequence, self.options.clone());
        segment.number = number;
        let mut round = 1;
        loop {
            let job = self.job(Arc::new(segment));
            match self.attempt(&job).await {
                Ok(packed) => return self.note(at, &job, packed),
                Err(e) if e.advice() == Advice::BeginAgain && round < ROUNDS => {
                    tracing::warn!("a shard is begun again: {e}");
                    self.forget(&job)?;
                    segment = Arc::unwrap_or_clone(job.segment);
                    round += 1;
                }
                Err(PackError::Draining) => return Err(CliError::Interrupted),
                // Another packer took the name since the folder was listed, or this run itself just before it was killed.
                Err(PackError::Taken { .. }) if let Some(numbers) = &self.numbers => {
                    if let Some(packed) = self.published_before(&job).await? {
                        return self.note(at, &job, packed);
                    }
                    self.forget(&job)?;
                    segment = Arc::unwrap_or_clone(job.segment);
                    segment.number = numbers.take(&segment.slot).await?;
                }
                Err(error) => return Err(explain(error)),
            }
        }
    }

    fn job(&self, segment: Arc<Segment>) -> PackJob {
        let digest = segment.digest();
        let (key, when_taken) = match &self.numbers {
            Some(_) => (layout::bare_shard_key(&segment.slot, segment.number), WhenTaken::Refuse),
            None => (layout::shard_key_with(&segment, digest), WhenTaken::Adopt),
        };
        let vitals = match self.resume.clone() {
            Some(resume) => Vitals::noting(move |key| resume.upload_begins(key)),
            None => Vitals::default(),
        };
        PackJob {
            segment,
            digest,
            key,
            store: self.store.clone(),
            when_taken,
            limits: self.limits.clone(),
            drain: self.stop.clone(),
            vitals,
        }
    }

    async fn attempt(&self, job: &PackJob) -> Result<Packed, PackError> {
        let digest = job.digest.to_string();
        let mut marks = self.resume.as_ref().map(|resume| resume.marks(&digest)).unwrap_or_default();
        if !marks.is_empty()
            && let Err(e) = check_marks(job, &marks).await
        {
            if e.advice() != Advice::BeginAgain {
                return Err(e);
            }
            tracing::warn!("a shard is begun again: {e}");
            job.store.abort_upload(&job.key, &marks[0].upload_id).await?;
            marks.clear();
        }
        let watch = Watch { run: self, digest, files: AtomicU64::new(0), bytes: AtomicU64::new(0) };
        let outcome = pack_segment(job, marks, Arc::clone(&self.sources), &watch).await;
        // What counts is the outcome: an adopted shard took no steps, a failed attempt begins again.
        let (files, bytes) = match &outcome {
            Ok(packed) => (packed.totals.files_packed + packed.totals.files_failed, packed.totals.source_bytes),
            Err(_) => (0, 0),
        };
        watch.set(files, bytes);
        outcome
    }

    /// The parts of a shard are of no use any more.
    fn forget(&self, job: &PackJob) -> Result<(), CliError> {
        self.resume.as_ref().map_or(Ok(()), |resume| resume.forget(&job.digest.to_string()))
    }

    /// What stands under a bare name that is taken, where this run has put it there itself: killed between that and its
    /// note. Nothing but this shard's files is in it then.
    async fn published_before(&self, job: &PackJob) -> Result<Option<Packed>, CliError> {
        if !self.resume.as_ref().is_some_and(|resume| resume.is_resumed()) {
            return Ok(None);
        }
        let job = PackJob { when_taken: WhenTaken::Adopt, ..self.job(Arc::clone(&job.segment)) };
        match pack_segment(&job, Vec::new(), Arc::clone(&self.sources), &NoHooks).await {
            Ok(packed) => {
                let entries = packed.object.as_ref().map_or(0, |object| object.entries);
                Ok(Some(packed).filter(|packed| packed.totals.files_packed == entries && entries > 0))
            }
            Err(PackError::Foreign { .. }) => Ok(None),
            Err(error) => Err(explain(error)),
        }
    }

    /// What an earlier process of this run has finished and that still is there.
    async fn done_before(&self, at: usize) -> Result<Option<Written>, CliError> {
        let Some(done) = self.resume.as_ref().and_then(|resume| resume.done(at)) else { return Ok(None) };
        if let Some((key, size)) = &done.object {
            match self.store.head(key).await {
                Ok(meta) if meta.size == *size => {}
                Ok(_) => return Ok(None),
                Err(e) if e.kind == StoreErrorKind::NotFound => return Ok(None),
                Err(e) => return Err(e.into()),
            }
        }
        self.count_failures(&done.failures)?;
        let mut view = lock(&self.view);
        view.measure.files += done.files + done.failures.len() as u64;
        view.measure.bytes += done.source_bytes;
        view.show();
        Ok(Some(Written {
            key: done.object.as_ref().map(|(key, _)| key.clone()),
            known: true,
            files: done.files,
            source_bytes: done.source_bytes,
            stored_bytes: done.stored_bytes,
        }))
    }

    fn count_failures(&self, failed: &[Failure]) -> Result<(), CliError> {
        if failed.is_empty() {
            return Ok(());
        }
        let mut failures = lock(&self.failures);
        failed.iter().try_for_each(|failure| failures.push(failure))?;
        lock(&self.view).failed += failed.len() as u64;
        Ok(())
    }

    fn note(&self, at: usize, job: &PackJob, packed: Packed) -> Result<Written, CliError> {
        let failures: Vec<Failure> = packed.failed_files(&job.segment).into_iter().map(Failure::from).collect();
        self.count_failures(&failures)?;
        let Packed { object, totals, adopted, .. } = packed;
        if let Some(resume) = &self.resume {
            let done = Done {
                at,
                object: object.as_ref().map(|object| (object.key.clone(), object.size)),
                files: totals.files_packed,
                source_bytes: totals.source_bytes,
                stored_bytes: totals.stored_bytes,
                failures,
            };
            resume.finished(&job.digest.to_string(), done)?;
        }
        Ok(Written {
            key: object.map(|object| object.key),
            known: adopted,
            files: totals.files_packed,
            source_bytes: totals.source_bytes,
            stored_bytes: totals.stored_bytes,
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
    digest: String,
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

    async fn part_uploaded(&self, mark: &PartMark) -> Result<bool, PackError> {
        let Some(resume) = &self.run.resume else { return Ok(false) };
        match resume.keep(&self.digest, mark) {
            Ok(()) => Ok(true),
            // Only an interruption would notice.
            Err(e) => {
                tracing::warn!("{e}");
                Ok(false)
            }
        }
    }
}

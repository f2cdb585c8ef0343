//! Puts ready files into parts, one after the other, and finishes the shard.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use des_shared::offload::offload;
use des_shared::queue::TaskTotals;
use des_shared::receipt::FailureReason;
use des_shared::shard::{ShardError, ShardWriter, choose_samples};
use des_shared::store::{ObjectMeta, StoreErrorKind, WriteMode, WriteOptions};

use super::encode::Encoders;
use super::feed::{Batch, Feed, Kitchen, Ready};
use super::order::{Order, is_big};
use super::{FileFailure, PackHooks, PackJob, Packed, PackedObject, PartMark, Progress, Step, WhenTaken};
use crate::adopt;
use crate::buffer::Fitted;
use crate::error::{Advice, PackError};
use crate::source::{SourceError, SourceOpener};
use crate::upload::Upload;

/// Room in a part's buffer behind the point where it is cut, so that a last small file does not move the buffer.
const SLACK_BYTES: usize = 1 << 20;
/// Room in the buffer of a usual part.
pub(crate) const PART_ROOM: usize = super::PART_BYTES + SLACK_BYTES;

/// What a mark needs besides the part's tag.
#[derive(Debug)]
pub(crate) struct Pending {
    rows: Vec<u8>,
    failed: Vec<FileFailure>,
    next_file: u32,
    offset: u64,
    progress: Progress,
}

/// The one place that changes the shard being written.
pub(crate) struct Assembler<'a> {
    job: &'a PackJob,
    hooks: &'a dyn PackHooks,
    digest: String,
    metadata: BTreeMap<String, String>,
    writer: Option<ShardWriter>,
    encoders: Encoders,
    /// The part being filled; nothing between two parts.
    buffer: Option<Fitted>,
    /// Where it begins in the shard.
    part_offset: u64,
    /// The uid being added.
    uid: String,
    upload: Upload<Pending>,
    next_file: usize,
    progress: Progress,
    failed: Vec<FileFailure>,
    marked_rows: u64,
    marked_failures: usize,
    mark_kept: bool,
}

/// How the writing ended.
pub(crate) enum End {
    /// The shard is published, or there was nothing to publish.
    Packed(Packed),
    /// The key was taken meanwhile; these files failed here.
    Taken(Vec<FileFailure>),
}

impl<'a> Assembler<'a> {
    pub(crate) async fn begin(
        job: &'a PackJob,
        order: &Order,
        marks: Vec<PartMark>,
        sources: &dyn SourceOpener,
        hooks: &'a dyn PackHooks,
    ) -> Result<Self, PackError> {
        let segment = &job.segment;
        let dictionary = match marks.first() {
            Some(first) => first.dictionary.clone(),
            None => train(job, order, sources).await?,
        };
        let encoders = Encoders::new(&segment.options, dictionary, &job.limits.budget)?;
        let writer = ShardWriter::new(segment.options.format, encoders.dictionary(), segment.sequence)?;
        let digest = job.digest;
        let metadata = super::metadata(digest);
        let mut this = Self {
            job,
            hooks,
            digest: digest.to_string(),
            upload: Upload::new(job.store.clone(), job.key.clone(), metadata.clone(), job.vitals.clone()),
            metadata,
            buffer: None,
            part_offset: 0,
            uid: String::new(),
            writer: Some(writer),
            encoders,
            next_file: 0,
            progress: Progress::default(),
            failed: Vec::new(),
            marked_rows: 0,
            marked_failures: 0,
            mark_kept: !marks.is_empty(),
        };
        if marks.is_empty() {
            let header = this.writer().header();
            this.store(&header)?;
            this.fail_duplicates(order);
        } else {
            this.restore(marks)?;
        }
        Ok(this)
    }

    fn writer(&mut self) -> &mut ShardWriter {
        self.writer.as_mut().expect("the writer is there until the shard is finished")
    }

    fn fail_duplicates(&mut self, order: &Order) {
        for &file in order.duplicates() {
            let message = "another file of this shard has the same uid; uids are unique on one date".to_owned();
            self.failed.push(FileFailure { file, reason: FailureReason::BadSource, message });
            self.progress.files_failed += 1;
        }
    }

    /// Goes on behind the last mark.
    fn restore(&mut self, marks: Vec<PartMark>) -> Result<(), PackError> {
        let bad = PackError::BadCheckpoint;
        let mut tags = Vec::with_capacity(marks.len());
        for mark in marks {
            if mark.digest != self.digest {
                return Err(bad(format!("part {} belongs to another segment", mark.tag.number)));
            }
            self.writer().restore(&mark.rows).map_err(|e| bad(e.to_string()))?;
            if self.writer().position() != mark.offset {
                let position = self.writer().position();
                return Err(bad(format!("its rows end at byte {position}, the mark says {}", mark.offset)));
            }
            self.failed.extend(mark.failed);
            (self.next_file, self.progress) = (mark.next_file as usize, mark.progress);
            tags.push(mark.tag);
            self.upload.resume(mark.upload_id, tags.clone());
        }
        self.part_offset = self.writer().position();
        self.marked_rows = self.writer().len();
        self.marked_failures = self.failed.len();
        Ok(())
    }

    /// Packs what is left and publishes the shard.
    pub(crate) async fn run(&mut self, order: Arc<Order>, sources: Arc<dyn SourceOpener>) -> Result<End, PackError> {
        let kitchen = Kitchen {
            segment: Arc::clone(&self.job.segment),
            order,
            store: self.job.store.clone(),
            sources,
            encoders: self.encoders.clone(),
            limits: self.job.limits.clone(),
            vitals: self.job.vitals.clone(),
        };
        let mut feed = Feed::start(kitchen, self.next_file);
        while let Some(batch) = self.next_batch(&mut feed).await? {
            let mut step = Step { compress_seconds: batch.compress_time.as_secs_f64(), ..Step::default() };
            let mut stored = batch.bytes.as_ref().map_or(&[][..], |bytes| &bytes[..]);
            for (at, ready) in batch.files.into_iter().enumerate() {
                self.add(ready, &mut stored, &mut step)?;
                self.next_file = batch.start + at + 1;
                if self.buffer.as_ref().is_some_and(|part| part.len() >= self.job.limits.part_bytes) {
                    self.cut().await?;
                }
            }
            step.progress = self.progress;
            self.job.vitals.progressed(self.progress.source_bytes);
            self.hooks.step(&step);
        }
        drop(feed);
        self.finish().await
    }

    /// The next files, while uploads are watched.
    async fn next_batch(&mut self, feed: &mut Feed) -> Result<Option<Batch>, PackError> {
        loop {
            if self.job.drain.is_cancelled() {
                self.settle_parts().await?;
                return Err(PackError::Draining);
            }
            let busy = self.upload.in_flight() > 0;
            tokio::select! {
                biased;
                () = self.job.drain.cancelled() => {}
                Some(done) = self.upload.finished(), if busy => {
                    let (tag, pending) = done?;
                    self.mark(tag, pending).await?;
                }
                batch = feed.next() => return batch.transpose(),
            }
        }
    }

    /// Adds a file. `stored` begins with its bytes when it is inline, and with the next file's afterwards.
    fn add(&mut self, ready: Ready, stored: &mut &[u8], step: &mut Step) -> Result<(), PackError> {
        let writer = self.writer.as_mut().expect("the writer is there until the shard is finished");
        let (Ready::Inline { file, .. } | Ready::Big { file, .. }) = ready else {
            if let Ready::Failed(failure) = ready {
                self.fail(failure);
            }
            return Ok(());
        };
        self.uid.clear();
        self.job.segment.files.uid(file).push_to(&mut self.uid);
        let (size, added) = match ready {
            Ready::Inline { info, .. } => {
                let (bytes, rest) = stored.split_at(info.stored_len as usize);
                *stored = rest;
                let added = writer.append(&self.uid, &info, None).map(|_| ());
                if added.is_ok() {
                    self.store(bytes)?;
                    step.raw_bytes += info.raw_len;
                    step.stored_bytes += info.stored_len;
                }
                (info.raw_len, added)
            }
            Ready::Big { big, .. } => {
                let added = writer.append_bigfile(&self.uid, big.sha256, big.size, None);
                if added.is_ok() {
                    self.progress.big_bytes += big.size;
                }
                (big.size, added)
            }
            Ready::Failed(_) => return Ok(()),
        };
        match added {
            Ok(()) => {
                self.progress.files_packed += 1;
                self.progress.source_bytes += size;
            }
            Err(e @ ShardError::BadInput { .. }) => {
                self.fail(FileFailure { file, reason: FailureReason::BadSource, message: e.to_string() });
            }
            Err(e) => return Err(e.into()),
        }
        Ok(())
    }

    /// The part being filled, with room for so many bytes more.
    fn part(&mut self, more: usize) -> Result<&mut Fitted, PackError> {
        let (pool, offset) = (self.job.limits.budget.parts(), self.part_offset);
        let no_memory = |e| PackError::Setup(format!("no memory for a part: {e}"));
        let part = match self.buffer.take() {
            Some(part) if part.room() >= more => part,
            Some(full) => {
                let mut larger = pool.take_for(offset, full.len() + more).map_err(no_memory)?;
                larger.extend_from_slice(full.content());
                larger
            }
            None => pool.take_for(offset, more.max(self.job.limits.part_bytes + SLACK_BYTES)).map_err(no_memory)?,
        };
        Ok(self.buffer.insert(part))
    }

    /// Adds a payload to the part.
    fn store(&mut self, bytes: &[u8]) -> Result<(), PackError> {
        self.part(bytes.len())?.extend_from_slice(bytes);
        Ok(())
    }

    /// The part that was filled, as it is sent: its buffer is used again when everybody has done with it.
    fn take_part(&mut self) -> Bytes {
        let part = self.buffer.take().map(Fitted::into_bytes).unwrap_or_default();
        self.part_offset += part.len() as u64;
        part
    }

    fn fail(&mut self, failure: FileFailure) {
        self.failed.push(failure);
        self.progress.files_failed += 1;
    }

    /// Ends the part behind the file that was added last.
    async fn cut(&mut self) -> Result<(), PackError> {
        while self.upload.in_flight() >= self.job.limits.parts_in_flight.max(1) {
            self.settle_one().await?;
        }
        let marked_rows = self.marked_rows;
        let writer = self.writer();
        let pending_rows = writer.rows_since(marked_rows);
        let (offset, rows) = (writer.position(), writer.len());
        let pending = Pending {
            rows: pending_rows,
            failed: self.failed[self.marked_failures..].to_vec(),
            next_file: u32::try_from(self.next_file).unwrap_or(u32::MAX),
            offset,
            progress: self.progress,
        };
        (self.marked_rows, self.marked_failures) = (rows, self.failed.len());
        let full = self.take_part();
        self.upload.start(full, pending).await?;
        Ok(())
    }

    async fn settle_one(&mut self) -> Result<(), PackError> {
        if let Some(done) = self.upload.finished().await {
            let (tag, pending) = done?;
            self.mark(tag, pending).await?;
        }
        Ok(())
    }

    async fn settle_parts(&mut self) -> Result<(), PackError> {
        while self.upload.in_flight() > 0 {
            self.settle_one().await?;
        }
        Ok(())
    }

    async fn mark(&mut self, tag: des_shared::store::PartTag, pending: Pending) -> Result<(), PackError> {
        let first = tag.number == 1;
        let mark = PartMark {
            digest: self.digest.clone(),
            upload_id: self.upload.id().unwrap_or_default().to_owned(),
            tag,
            rows: pending.rows,
            failed: pending.failed,
            dictionary: self.encoders.dictionary().filter(|_| first).map(<[u8]>::to_vec),
            next_file: pending.next_file,
            offset: pending.offset,
            progress: pending.progress,
        };
        if self.hooks.part_uploaded(&mark).await? {
            self.mark_kept = true;
            self.upload.keep();
        }
        Ok(())
    }

    /// Writes the tail and gives the shard its name.
    async fn finish(&mut self) -> Result<End, PackError> {
        self.settle_parts().await?;
        let Some(writer) = self.writer.take() else {
            return Err(PackError::Setup("the shard was finished twice".to_owned()));
        };
        let entries = writer.len();
        self.failed.sort_by_key(|failure| failure.file);
        if entries == 0 {
            self.upload.abort().await;
            return Ok(End::Packed(self.packed(None, 0)));
        }
        let tail = offload(move || writer.finish()).await?;
        self.store(&tail)?;
        drop(tail);
        let last = self.take_part();
        let outcome = match self.upload.id() {
            None => {
                let options = WriteOptions { mode: WriteMode::CreateOnly, metadata: self.metadata.clone() };
                self.job.store.put(&self.job.key, last, &options).await
            }
            Some(_) => {
                let (id, tags) = self.upload.last(last).await?;
                self.job.store.complete_upload(&self.job.key, id, tags, WriteMode::CreateOnly).await
            }
        };
        match outcome {
            Ok(meta) => {
                self.upload.completed();
                Ok(End::Packed(self.packed(Some(meta), entries)))
            }
            Err(e) if e.kind == StoreErrorKind::AlreadyExists => {
                self.upload.abort().await;
                Ok(End::Taken(std::mem::take(&mut self.failed)))
            }
            // Gone: perhaps because our own completion succeeded and its answer was lost.
            Err(e) if e.kind == StoreErrorKind::UploadGone => match self.job.store.head(&self.job.key).await {
                Ok(_) => {
                    self.upload.completed();
                    Ok(End::Taken(std::mem::take(&mut self.failed)))
                }
                Err(head) if head.kind == StoreErrorKind::NotFound => Err(PackError::UploadLost(e)),
                Err(head) => Err(head.into()),
            },
            // The parts are not the ones that were uploaded: somebody who lost the lease wrote some of them again.
            Err(e) if matches!(e.kind, StoreErrorKind::Invalid | StoreErrorKind::Conflict) => {
                Err(PackError::UploadLost(e))
            }
            Err(e) => Err(e.into()),
        }
    }

    fn packed(&mut self, meta: Option<ObjectMeta>, entries: u64) -> Packed {
        let stored_bytes = meta.as_ref().map_or(0, |meta| meta.size) + self.progress.big_bytes;
        Packed {
            object: meta.map(|meta| PackedObject { key: meta.key, size: meta.size, etag: meta.etag, entries }),
            totals: TaskTotals {
                files_packed: self.progress.files_packed,
                files_failed: self.progress.files_failed,
                source_bytes: self.progress.source_bytes,
                stored_bytes,
            },
            failed: std::mem::take(&mut self.failed),
            adopted: false,
        }
    }

    /// Called when the pack failed, first: parts under way are stopped.
    pub(crate) fn halt(&mut self) {
        self.upload.halt();
    }

    /// Called when the pack failed: an upload that nobody can or should continue is dropped.
    pub(crate) async fn give_up(&mut self, error: &PackError) {
        let keep = match error.advice() {
            Advice::Stop => true,
            Advice::HandBack | Advice::TryLater => self.mark_kept,
            Advice::BeginAgain | Advice::GiveUp | Advice::CleanUp => false,
        };
        if !keep {
            self.upload.abort().await;
        }
    }
}

impl End {
    pub(crate) async fn into_packed(self, job: &PackJob, sources: &dyn SourceOpener) -> Result<Packed, PackError> {
        match self {
            Self::Packed(packed) => Ok(packed),
            Self::Taken(_) if job.when_taken == WhenTaken::Refuse => Err(PackError::Taken { key: job.key.clone() }),
            Self::Taken(failed) => adopt::published_before(job, sources, &failed).await?.ok_or_else(|| {
                PackError::BadCheckpoint(format!("{} was there when it should be written, and then was not", job.key))
            }),
        }
    }
}

/// Learns the shard's dictionary from a sample of its files, where it pays.
async fn train(job: &PackJob, order: &Order, sources: &dyn SourceOpener) -> Result<Option<Vec<u8>>, PackError> {
    let segment = &job.segment;
    let size = |size: u64| if is_big(segment, size) { 0 } else { size };
    let files = order.all(segment).map(|file| (file.uid.to_string(), size(file.size_bytes)));
    let Some(choice) = choose_samples(&segment.options, files) else { return Ok(None) };
    let wanted = choice.files.iter().map(|at| order.file(segment, *at).to_file()).collect();
    let mut samples = Vec::with_capacity(choice.files.len());
    for answer in sources.read(wanted).await {
        match answer {
            Ok(bytes) => samples.push(bytes),
            // It will be read again as a file, and fail there.
            Err(SourceError::File { .. }) => samples.push(Bytes::new()),
            Err(SourceError::Worker(message)) => return Err(PackError::Sources(message)),
        }
    }
    let (budget, thread) = (job.limits.budget.clone(), job.limits.budget.thread().await);
    let level = segment.options.level;
    let learn = move || {
        let _thread = thread;
        let samples: Vec<&[u8]> = samples.iter().map(|bytes| &bytes[..]).collect();
        let mut workspace = budget.shelf().take_workspace();
        let dictionary = choice.train_in(&mut workspace, &samples, level);
        budget.shelf().put_workspace(workspace);
        dictionary
    };
    Ok(offload(learn).await)
}

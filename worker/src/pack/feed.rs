//! Reads and compresses files ahead of the assembler, in order, as far as the budget goes.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use des_shared::segment::{Segment, SegmentFile};
use des_shared::store::SharedStore;
use futures::{StreamExt, stream};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_util::task::AbortOnDropHandle;

use super::encode::{Encoders, Stored};
use super::order::{BatchPlan, Order};
use super::{FileFailure, PackLimits};
use crate::bigfile::{self, BigFile};
use crate::error::PackError;
use crate::source::{SourceError, SourceOpener};
use crate::vitals::Vitals;

/// One file, ready for the shard.
#[derive(Debug)]
pub(crate) enum Ready {
    Inline { file: u32, stored: Stored },
    Big { file: u32, big: BigFile },
    Failed(FileFailure),
}

/// Files that were handled together, in packing order.
#[derive(Debug)]
pub(crate) struct Batch {
    /// Position in packing order of the first.
    pub(crate) start: usize,
    pub(crate) files: Vec<Ready>,
    pub(crate) compress_time: Duration,
    /// Room in the budget; given back with the batch.
    _room: Option<OwnedSemaphorePermit>,
}

/// What the feed works with.
#[derive(Clone)]
pub(crate) struct Kitchen {
    pub(crate) segment: Arc<Segment>,
    pub(crate) order: Arc<Order>,
    pub(crate) store: SharedStore,
    pub(crate) sources: Arc<dyn SourceOpener>,
    pub(crate) encoders: Encoders,
    pub(crate) limits: PackLimits,
    pub(crate) vitals: Vitals,
}

/// The running feed. Dropping it stops it.
#[derive(Debug)]
pub(crate) struct Feed {
    batches: mpsc::Receiver<Result<Batch, PackError>>,
    task: AbortOnDropHandle<()>,
}

impl Feed {
    /// Begins with the file at a position in packing order.
    pub(crate) fn start(kitchen: Kitchen, from: usize) -> Self {
        let (sender, batches) = mpsc::channel(1);
        let kitchen = Arc::new(kitchen);
        let vitals = kitchen.vitals.clone();
        let task = vitals.spawn(async move {
            let ahead = kitchen.limits.batches_ahead.max(1);
            // Room is taken strictly in order, one batch after the other; only then may batches overtake each other.
            let with_room = stream::unfold((Arc::clone(&kitchen), from), |(kitchen, start)| async move {
                let plan = kitchen.order.batch(&kitchen.segment, start, kitchen.limits.part_bytes)?;
                let room = kitchen.limits.budget.bytes(plan.bytes).await;
                Some(((plan, room), (kitchen, plan.end)))
            });
            let cook = |(plan, room)| {
                let kitchen = Arc::clone(&kitchen);
                async move { kitchen.cook(plan, room).await }
            };
            let cooked = with_room.map(cook).buffered(ahead);
            let mut cooked = std::pin::pin!(cooked);
            while let Some(batch) = cooked.next().await {
                let last = batch.is_err();
                if sender.send(batch).await.is_err() || last {
                    return;
                }
            }
        });
        Self { batches, task }
    }

    /// The next batch; `None` when there are no more files. Safe to cancel.
    pub(crate) async fn next(&mut self) -> Option<Result<Batch, PackError>> {
        if let Some(batch) = self.batches.recv().await {
            return Some(batch);
        }
        // The channel also closes when the task panicked, and that is not the end of the files.
        match (&mut self.task).await {
            Err(e) if e.is_panic() => std::panic::resume_unwind(e.into_panic()),
            _ => None,
        }
    }
}

impl Kitchen {
    async fn cook(&self, plan: BatchPlan, room: OwnedSemaphorePermit) -> Result<Batch, PackError> {
        let positions = self.order.files(&plan);
        let (files, compress_time) = if plan.big {
            (vec![self.big(positions[0]).await?], Duration::ZERO)
        } else {
            self.small(positions).await?
        };
        self.vitals.sign();
        Ok(Batch { start: plan.start, files, compress_time, _room: Some(room) })
    }

    async fn big(&self, file: u32) -> Result<Ready, PackError> {
        let source = &self.segment.files.at(file).to_file();
        let prefix = &self.segment.options.bigfiles_prefix;
        let target = bigfile::Target {
            sources: self.sources.as_ref(),
            file: source,
            store: &self.store,
            prefix,
            part_bytes: self.limits.part_bytes,
            vitals: &self.vitals,
        };
        match target.store().await? {
            Ok(big) => Ok(Ready::Big { file, big }),
            Err(error) => failed(file, error).map(Ready::Failed),
        }
    }

    async fn small(&self, positions: &[u32]) -> Result<(Vec<Ready>, Duration), PackError> {
        let sources: Vec<SegmentFile> = positions.iter().map(|at| self.segment.files.at(*at).to_file()).collect();
        let mut failures = Vec::new();
        let mut raw: Vec<(u32, Bytes)> = Vec::with_capacity(positions.len());
        let answers = self.sources.read(sources).await;
        self.vitals.sign();
        if answers.len() != positions.len() {
            let message = format!("{} answers for {} files", answers.len(), positions.len());
            return Err(PackError::Sources(message));
        }
        for (&file, answer) in positions.iter().zip(answers) {
            match answer {
                Ok(bytes) => raw.push((file, bytes)),
                Err(error) => failures.push(failed(file, error)?),
            }
        }
        let (stored, time) = self.encoders.encode(&self.segment, raw).await?;
        // Both lists are in packing order: put them together again.
        let (mut stored, mut failures) = (stored.into_iter().peekable(), failures.into_iter().peekable());
        let mut ready = Vec::with_capacity(positions.len());
        for &file in positions {
            if let Some((file, stored)) = stored.next_if(|(at, _)| *at == file) {
                ready.push(Ready::Inline { file, stored });
            } else if let Some(failure) = failures.next_if(|failure| failure.file == file) {
                ready.push(Ready::Failed(failure));
            }
        }
        Ok((ready, time))
    }
}

/// A failure of one file, or the error that ends the attempt.
pub(crate) fn failed(file: u32, error: SourceError) -> Result<FileFailure, PackError> {
    match error {
        SourceError::File { reason, message } => Ok(FileFailure { file, reason, message }),
        SourceError::Worker(message) => Err(PackError::Sources(message)),
    }
}

//! Reads and compresses files ahead of the assembler, in order, as far as the budget goes.

use std::sync::Arc;
use std::time::Duration;

use des_shared::segment::Segment;
use des_shared::shard::PayloadInfo;
use des_shared::store::SharedStore;
use futures::{StreamExt, stream};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_util::task::AbortOnDropHandle;

use super::encode::{Cooked, Encoders, Small};
use super::order::{BatchPlan, Order};
use super::{FileFailure, PackLimits};
use crate::bigfile::{self, BigFile};
use crate::buffer::Pooled;
use crate::error::PackError;
use crate::source::{BUCKET_SCHEME, SourceError, SourceOpener};
use crate::vitals::Vitals;

/// One file, ready for the shard.
#[derive(Debug)]
pub(crate) enum Ready {
    /// Its stored bytes are the next of the batch's.
    Inline {
        file: u32,
        info: PayloadInfo,
    },
    Big {
        file: u32,
        big: BigFile,
    },
    Failed(FileFailure),
}

/// Files that were handled together, in packing order.
#[derive(Debug)]
pub(crate) struct Batch {
    /// Position in packing order of the first.
    pub(crate) start: usize,
    pub(crate) files: Vec<Ready>,
    /// Stored bytes of the inline ones, back to back.
    pub(crate) bytes: Option<Pooled>,
    pub(crate) compress_time: Duration,
    /// Room in the budget; given back with the batch.
    _room: OwnedSemaphorePermit,
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
        let start = plan.start;
        let batch = if plan.big {
            let files = vec![self.big(positions[0]).await?];
            Batch { start, files, bytes: None, compress_time: Duration::ZERO, _room: room }
        } else {
            let Cooked { files, bytes, time } = self.small(positions.to_vec(), plan.bytes).await?;
            Batch { start, files, bytes: Some(bytes), compress_time: time, _room: room }
        };
        self.vitals.sign();
        Ok(batch)
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

    async fn small(&self, positions: Vec<u32>, bytes: u64) -> Result<Cooked, PackError> {
        let files = &self.segment.files;
        let remote = positions.iter().any(|at| files.source(*at).starts_with(BUCKET_SCHEME));
        let small = Small { segment: Arc::clone(&self.segment), positions, bytes };
        if !remote && let Some(local) = self.sources.local() {
            return self.encoders.read_and_encode(small, local).await;
        }
        let wanted = small.positions.iter().map(|at| files.at(*at).to_file()).collect();
        let answers = self.sources.read(wanted).await;
        self.vitals.sign();
        self.encoders.encode(small, answers).await
    }
}

/// A failure of one file, or the error that ends the attempt.
pub(crate) fn failed(file: u32, error: SourceError) -> Result<FileFailure, PackError> {
    match error {
        SourceError::File { reason, message } => Ok(FileFailure { file, reason, message }),
        SourceError::Worker(message) => Err(PackError::Sources(message)),
    }
}

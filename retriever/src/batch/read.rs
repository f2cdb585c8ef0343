//! The reads of a window, side by side, within the budget.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use des_shared::archive::{ArchiveError, Span};
use futures::{StreamExt, stream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::BUDGET;
use super::asked::Asked;
use super::coalesce::{Piece, Read, coalesce};
use super::plan::{self, Here, Place, Planner};
use crate::error::Error;
use crate::locate::Located;
use crate::metrics::RetrieverMetrics;
use crate::places::Replica;
use crate::serve::Files;

/// Bytes of one permit of the budget.
pub(super) const UNIT: u64 = 1024;
/// Reads side by side.
const READS: usize = 16;

/// A file as far as a window has it.
#[derive(Debug)]
pub(super) enum Ready {
    /// Its stored bytes, checked.
    Stored(Arc<Replica>, Located, Bytes),
    /// Still to be read, by itself.
    Alone,
    /// Not to be had.
    Failed(Error),
}

/// Files that follow each other, ready to be sent.
#[derive(Debug)]
pub(super) struct Window {
    /// The number of the first in the list asked for.
    pub(super) first: usize,
    pub(super) files: Vec<Ready>,
    /// Held until the files are sent.
    paid: Option<OwnedSemaphorePermit>,
}

/// What reads the windows of one batch.
pub(super) struct Reader {
    pub(super) planner: Planner,
    pub(super) files: Arc<Files>,
    pub(super) asked: Arc<Vec<Asked>>,
    pub(super) budget: Arc<Semaphore>,
    pub(super) metrics: RetrieverMetrics,
}

/// A file of a window and where it is.
type Wanted = (usize, Here);

impl Reader {
    /// The next window; an empty one at the end.
    pub(super) async fn window(mut self) -> (Self, Window) {
        let (first, places) = self.planner.window().await;
        let mut window = Window { first, files: Vec::with_capacity(places.len()), paid: None };
        let mut wanted = Vec::new();
        for place in places {
            let ready = match place {
                Place::Failed(error) => Ready::Failed(error),
                Place::Alone => Ready::Alone,
                Place::Here(here) => {
                    wanted.push((window.files.len(), here));
                    Ready::Alone
                }
            };
            window.files.push(ready);
        }
        // Each round asks the stores behind those that failed in the one before.
        while !wanted.is_empty() {
            wanted = self.round(&mut window, wanted).await;
        }
        (self, window)
    }

    /// Reads files. Gives back those whose store failed, with their places in the zone's next one.
    async fn round(&self, window: &mut Window, wanted: Vec<Wanted>) -> Vec<Wanted> {
        let reads = plan_reads(&wanted);
        if window.paid.is_none() {
            let bytes: u64 = reads.iter().map(|read| read.range.end - read.range.start).sum();
            let units = u32::try_from(bytes.min(BUDGET).div_ceil(UNIT)).expect("the budget is small");
            // What a further round reads, this one failed to.
            window.paid = Some(self.budget.clone().acquire_many_owned(units).await.expect("never closed"));
        }
        let spans: Vec<(Read, Result<Span, ArchiveError>)> = stream::iter(reads.into_iter().map(|read| {
            let shard = &wanted[read.files[0]].1.located.shard;
            async move {
                let span = shard.read_span(read.range.clone()).await;
                (read, span)
            }
        }))
        .buffer_unordered(READS)
        .collect()
        .await;
        let mut spans_of: Vec<Option<Result<Span, Error>>> = Vec::new();
        spans_of.resize_with(wanted.len(), || None);
        for (read, span) in spans {
            for file in read.files {
                let zone = &wanted[file].1.replica.zone;
                spans_of[file] = Some(span.clone().map_err(|e| Error::at_zone(zone, e)));
            }
        }
        let mut again = Vec::new();
        for ((at, here), span) in wanted.into_iter().zip(spans_of) {
            match span {
                None => window.files[at] = self.checked(here, &Span::default()),
                Some(Ok(span)) => window.files[at] = self.checked(here, &span),
                // The single way lists anew, or asks everybody.
                Some(Err(Error::Moving { .. } | Error::Damaged { .. })) => {}
                Some(Err(error)) => again.push((at, here.store, error)),
            }
        }
        self.elsewhere(window, again).await
    }

    /// The file's bytes out of a span. What is damaged is read again by itself: it may have been the transport, and
    /// where it was not, a copy of the zone may do better.
    fn checked(&self, here: Here, span: &Span) -> Ready {
        match here.located.shard.stored_in(span, &here.located.entry) {
            Ok(stored) => Ready::Stored(here.replica, here.located, stored),
            Err(error) => {
                tracing::warn!("a file is read again by itself: {error}");
                self.metrics.batch_file_read_again();
                Ready::Alone
            }
        }
    }

    /// Looks for files whose store failed in the others of their zone.
    async fn elsewhere(&self, window: &mut Window, again: Vec<(usize, usize, Error)>) -> Vec<Wanted> {
        if let Some((_, _, error)) = again.first() {
            tracing::warn!(files = again.len(), "looking for files of a batch in the zone's other stores: {error}");
        }
        let searches = again.into_iter().map(|(at, store, error)| {
            let asked = &self.asked[window.first + at];
            async move { (at, plan::search(&self.files, asked, Some((store, error))).await) }
        });
        let places: Vec<(usize, Place)> = stream::iter(searches).buffered(READS).collect().await;
        let mut wanted = Vec::new();
        for (at, place) in places {
            match place {
                Place::Here(here) => wanted.push((at, here)),
                Place::Alone => {}
                Place::Failed(error) => window.files[at] = Ready::Failed(error),
            }
        }
        wanted
    }
}

/// Reads for all files but empty ones, of which nothing is stored.
fn plan_reads(wanted: &[Wanted]) -> Vec<Read> {
    let mut shards: HashMap<(u32, &str, &str), usize> = HashMap::new();
    let mut pieces = Vec::with_capacity(wanted.len());
    for (file, (_, here)) in wanted.iter().enumerate().filter(|(_, (_, here))| here.inline.stored_len > 0) {
        let object = here.located.shard.object();
        let next = shards.len();
        let shard = *shards.entry((here.replica.id, &object.key, &object.etag)).or_insert(next);
        pieces.push(Piece { shard, range: here.inline.range(), file });
    }
    coalesce(pieces)
}

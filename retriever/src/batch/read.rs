//! The reads of a window, side by side, within the budget.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use des_shared::archive::{ArchiveError, Span};
use futures::{StreamExt, TryStreamExt, stream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::BUDGET;
use super::coalesce::{Piece, Read, coalesce};
use super::patience::Patience;
use super::plan::{self, Here, Place, Planner};
use crate::error::Error;
use crate::fetch::Form;
use crate::locate::Located;
use crate::metrics::RetrieverMetrics;
use crate::places::Replica;
use crate::replicas::first_answer_from;
use crate::serve::Files;

/// Bytes of one permit of the budget.
pub(super) const UNIT: u64 = 1024;
/// Reads side by side.
const READS: usize = 16;

/// The slowest that a store may be before its zone's next one is asked for a long read too, in bytes a millisecond.
const SLOWEST: u64 = 4 << 10;

/// A file as far as a window has it.
#[derive(Debug)]
pub(super) enum Ready {
    /// Its stored bytes, checked.
    Stored(Arc<Replica>, Located, Bytes),
    /// Its own bytes, which were kept.
    Raw(Located, Bytes),
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
    pub(super) budget: Arc<Semaphore>,
    pub(super) patience: Patience,
    pub(super) metrics: RetrieverMetrics,
}

/// A file of a window and where it is.
type Wanted = (usize, Here);

/// What came of a read.
enum Got {
    /// The bytes of the read, from where its files were found.
    Span(Span),
    /// Its files, from another store of the zone.
    Files(Vec<(usize, Ready)>),
    /// The single way lists anew, or asks everybody.
    Nothing,
}

impl Reader {
    /// The next window; an empty one at the end.
    pub(super) async fn window(mut self) -> (Self, Window) {
        let (first, places) = self.planner.window().await;
        let mut window = Window { first, files: Vec::with_capacity(places.len()), paid: None };
        let (mut wanted, mut kept) = (Vec::new(), 0);
        for place in places {
            let ready = match place {
                Place::Failed(error) => Ready::Failed(error),
                Place::Alone => Ready::Alone,
                Place::Here(here) => match self.kept(&here).await {
                    Some((ready, bytes)) => {
                        kept += bytes;
                        ready
                    }
                    None => {
                        wanted.push((window.files.len(), here));
                        Ready::Alone
                    }
                },
            };
            window.files.push(ready);
        }
        let reads = plan_reads(&wanted);
        let bytes: u64 = kept + reads.iter().map(Read::bytes).sum::<u64>();
        window.paid = Some(self.pay(bytes).await);
        self.read_all(&mut window, (wanted, reads)).await;
        (self, window)
    }

    /// A hot file, with what it takes. Batches leave nothing in the cache themselves: what they read costs few calls, and
    /// would drive out what costs many.
    async fn kept(&self, here: &Here) -> Option<(Ready, u64)> {
        let (form, bytes) = self.files.fetcher.kept(&here.located, here.inline).await?;
        let len = bytes.len() as u64;
        let ready = match form {
            Form::Raw => Ready::Raw(here.located.clone(), bytes),
            Form::Stored => Ready::Stored(here.replica.clone(), here.located.clone(), bytes),
        };
        Some((ready, len))
    }

    /// What a second store is asked for beside the first is not paid for: one of the two is dropped.
    async fn pay(&self, bytes: u64) -> OwnedSemaphorePermit {
        let units = u32::try_from(bytes.min(BUDGET).div_ceil(UNIT)).expect("the budget is small");
        self.budget.clone().acquire_many_owned(units).await.expect("never closed")
    }

    /// Makes the reads side by side, and puts what came of them into the window.
    async fn read_all(&self, window: &mut Window, (wanted, reads): (Vec<Wanted>, Vec<Read>)) {
        let reading = stream::iter(reads.into_iter().map(|read| {
            let wanted = &wanted;
            async move { (self.read(wanted, &read).await, read) }
        }));
        let got: Vec<(Result<Got, Error>, Read)> = reading.buffer_unordered(READS).collect().await;
        for (got, read) in got {
            match got {
                Ok(Got::Span(span)) => {
                    for file in read.files {
                        let (at, here) = &wanted[file];
                        window.files[*at] = self.checked(here, &span);
                    }
                }
                Ok(Got::Files(files)) => files.into_iter().for_each(|(at, ready)| window.files[at] = ready),
                Ok(Got::Nothing) => {}
                Err(error) => {
                    for file in read.files {
                        window.files[wanted[file].0] = Ready::Failed(error.clone());
                    }
                }
            }
        }
        for (at, here) in wanted.iter().filter(|(_, here)| here.inline.stored_len == 0) {
            window.files[*at] = self.checked(here, &Span::default());
        }
    }

    /// Makes one read, in the store where its files were found, and when that fails or takes long, in the zone's others.
    async fn read(&self, wanted: &[Wanted], read: &Read) -> Result<Got, Error> {
        let here = &wanted[read.files[0]].1;
        let places = &self.files.places;
        let replicas = places.replicas(here.slot.index)?;
        let first = replicas.iter().position(|replica| replica.id == here.replica.id).unwrap_or_default();
        let patience = places.patience() + Duration::from_millis(read.bytes() / SLOWEST);
        let got = first_answer_from(replicas, (first, patience), |replica, _| async move {
            let got = if replica.id == here.replica.id {
                of_store(replica, span(here, read.range.clone()).await)?.map_or(Got::Nothing, Got::Span)
            } else {
                self.elsewhere(replica, wanted, read).await?
            };
            Ok(Some(got))
        });
        Ok(self.patience.within(&here.replica.zone, got).await?.unwrap_or(Got::Nothing))
    }

    /// The files of a read, from another store: it has them in other shards, or not at all.
    async fn elsewhere(&self, replica: &Arc<Replica>, wanted: &[Wanted], read: &Read) -> Result<Got, Error> {
        let searches = read.files.iter().copied().map(|file: usize| {
            let (at, here) = &wanted[file];
            async move {
                let place = plan::in_store(&self.files, replica, (here.slot, &here.located.entry.uid)).await?;
                Ok::<_, Error>(match place {
                    Some(Place::Here(here)) => Some((*at, here)),
                    _ => None,
                })
            }
        });
        let found: Vec<Option<Wanted>> = stream::iter(searches).buffered(READS).try_collect().await?;
        let found: Vec<Wanted> = found.into_iter().flatten().collect();
        let reads = plan_reads(&found).into_iter().map(|read| {
            let here = &found[read.files[0]].1;
            async move { Ok::<_, Error>((of_store(replica, span(here, read.range.clone()).await)?, read)) }
        });
        let spans: Vec<(Option<Span>, Read)> = stream::iter(reads).buffer_unordered(READS).try_collect().await?;
        let mut files = Vec::with_capacity(found.len());
        for (span, read) in spans {
            let Some(span) = span else { continue };
            for file in read.files {
                let (at, here) = &found[file];
                files.push((*at, self.checked(here, &span)));
            }
        }
        Ok(Got::Files(files))
    }

    /// The file's bytes out of a span. What is damaged is read again by itself: it may have been the transport, and
    /// where it was not, a copy of the zone may do better.
    fn checked(&self, here: &Here, span: &Span) -> Ready {
        match here.located.shard.stored_in(span, &here.located.entry) {
            Ok(stored) => Ready::Stored(here.replica.clone(), here.located.clone(), stored),
            Err(error) => {
                tracing::warn!("a file is read again by itself: {error}");
                self.metrics.batch_file_read_again();
                Ready::Alone
            }
        }
    }
}

async fn span(here: &Here, range: Range<u64>) -> Result<Span, ArchiveError> {
    here.located.shard.read_span(range).await
}

/// `None` where the single way does better: it lists anew, or asks everybody.
fn of_store(replica: &Replica, span: Result<Span, ArchiveError>) -> Result<Option<Span>, Error> {
    match span.map_err(|e| Error::at_zone(&replica.zone, e)) {
        Ok(span) => Ok(Some(span)),
        Err(Error::Moving { .. } | Error::Damaged { .. }) => Ok(None),
        Err(error) => Err(error),
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

//! A shard that is there already: read its own index and say what is really in it.
//!
//! Reached by a zombie, by a lost answer of our own, and by an earlier job with the same files and options. The key
//! holds the digest of files and options, so what stands there was made from the same plan; a file that it lacks has
//! failed for whoever made it.

use std::cmp::Ordering;
use std::collections::HashMap;

use des_shared::archive::{ArchiveError, RemoteShard, Source};
use des_shared::queue::TaskTotals;
use des_shared::receipt::FailureReason;
use des_shared::segment::FileList;
use des_shared::shard::{Entry, Location};
use des_shared::store::StoreErrorKind;
use futures::{StreamExt, TryStreamExt, stream};

use crate::error::PackError;
use crate::pack::{DIGEST_METADATA, FileFailure, PackJob, Packed, PackedObject};
use crate::source::{SourceError, SourceOpener};

/// Sources asked at the same time for why they are not in the shard.
const PROBES: usize = 16;

/// What became of the segment if its shard is published; `None` when it is not. `known` are failures of our own pack.
pub(crate) async fn published_before(
    job: &PackJob,
    sources: &dyn SourceOpener,
    known: &[FileFailure],
) -> Result<Option<Packed>, PackError> {
    let meta = match job.store.head(&job.key).await {
        Ok(meta) => meta,
        Err(e) if e.kind == StoreErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e.into()),
    };
    let digest = job.digest.to_string();
    if let Some(other) = meta.metadata.get(DIGEST_METADATA).filter(|other| **other != digest) {
        let why = format!("its metadata names the segment {other}; expected {digest}");
        return Err(PackError::Foreign { key: job.key.clone(), why });
    }
    let mut inventory = Inventory::new(&job.segment.files);
    let shard = RemoteShard::open_listed(Source::from(job.store.clone()), &meta).await;
    let shard = shard.map_err(|e| unreadable(&job.key, e))?;
    let mut entries = shard.entries();
    while let Some(entry) = entries.next().await {
        job.vitals.sign();
        inventory.found(&entry.map_err(|e| unreadable(&job.key, e))?);
    }
    let failed = inventory.missing(sources, known).await?;
    let totals = TaskTotals {
        files_packed: inventory.files,
        files_failed: failed.len() as u64,
        source_bytes: inventory.source_bytes,
        stored_bytes: meta.size + inventory.big_bytes,
    };
    let object = PackedObject { key: job.key.clone(), size: meta.size, etag: meta.etag, entries: inventory.entries };
    Ok(Some(Packed { object: Some(object), totals, failed, adopted: true }))
}

/// The files of the segment, ticked off as they are found.
struct Inventory<'a> {
    files_of: &'a FileList,
    /// Positions by uid.
    sorted: Vec<u32>,
    /// By position.
    seen: Vec<bool>,
    entries: u64,
    files: u64,
    source_bytes: u64,
    big_bytes: u64,
}

impl<'a> Inventory<'a> {
    fn new(files: &'a FileList) -> Self {
        let (sorted, seen) = (files.by_uid(), vec![false; files.len()]);
        Self { files_of: files, sorted, seen, entries: 0, files: 0, source_bytes: 0, big_bytes: 0 }
    }

    /// Where a uid stands first: of one that stands twice the first is packed.
    fn position(&self, uid: &str) -> Option<u32> {
        let order = |at: &u32| self.files_of.at(*at).uid.cmp_str(uid);
        let first = self.sorted.partition_point(|at| order(at) == Ordering::Less);
        self.sorted.get(first).filter(|at| order(at) == Ordering::Equal).copied()
    }

    fn found(&mut self, entry: &Entry) {
        self.entries += 1;
        if let Location::BigFile { size, .. } = entry.location {
            self.big_bytes += size;
        }
        let Some(at) = self.position(entry.uid.as_str()) else { return };
        let seen = &mut self.seen[at as usize];
        if entry.raw_len() == self.files_of.at(at).size_bytes && !std::mem::replace(seen, true) {
            self.files += 1;
            self.source_bytes += entry.raw_len();
        }
    }

    /// Every file that is not there, with our own reason where it fails for us too.
    async fn missing(&self, sources: &dyn SourceOpener, known: &[FileFailure]) -> Result<Vec<FileFailure>, PackError> {
        let known: HashMap<u32, &FileFailure> = known.iter().map(|failure| (failure.file, failure)).collect();
        let lacking = (0..self.files_of.len() as u32).filter(|at| !self.seen[*at as usize]);
        stream::iter(lacking)
            .map(|file| {
                let own = known.get(&file).map(|failure| (*failure).clone());
                async move {
                    match own {
                        Some(failure) => Ok(failure),
                        None => self.why(sources, file).await,
                    }
                }
            })
            .buffered(PROBES)
            .try_collect()
            .await
    }

    async fn why(&self, sources: &dyn SourceOpener, file: u32) -> Result<FileFailure, PackError> {
        match sources.open(&self.files_of.at(file).to_file()).await {
            Err(SourceError::File { reason, message }) => Ok(FileFailure { file, reason, message }),
            Err(SourceError::Worker(message)) => Err(PackError::Sources(message)),
            Ok(_) => {
                let message = "the shard of this plan was published before and lacks this file, which failed then; \
                               submit it in a manifest without the packed ones"
                    .to_owned();
                Ok(FileFailure { file, reason: FailureReason::NotInPublishedShard, message })
            }
        }
    }
}

/// Damage and foreign bytes stay as they are; an unreachable store does not.
fn unreadable(key: &str, error: ArchiveError) -> PackError {
    match error {
        ArchiveError::Store(e) if !matches!(e.kind, StoreErrorKind::Invalid | StoreErrorKind::InvalidRange) => e.into(),
        other => PackError::Foreign { key: key.to_owned(), why: other.to_string() },
    }
}

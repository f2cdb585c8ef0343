//! A shard that is there already: read its own index and say what is really in it.
//!
//! Reached by a zombie, by a lost answer of our own, and by an earlier job with the same files and options. The key
//! holds the digest of files and options, so what stands there was made from the same plan; a file that it lacks has
//! failed for whoever made it.

use std::collections::{HashMap, HashSet};

use des_shared::queue::TaskTotals;
use des_shared::receipt::FailureReason;
use des_shared::segment::SegmentFile;
use des_shared::shard::{
    Block, Directory, Entry, Footer, HEADER_LEN, Index, LegacyTail, Location, ShardError, TAIL_READ_BYTES, Tail,
    TailBytes,
};
use des_shared::store::{ByteRange, ObjectMeta, SharedStore, StoreErrorKind};
use futures::{StreamExt, TryStreamExt, stream};

use crate::error::PackError;
use crate::pack::{DIGEST_METADATA, FileFailure, PackJob, Packed, PackedObject};
use crate::source::{SourceError, SourceOpener};

/// Index blocks are read in stretches of about this many bytes.
const STRETCH_BYTES: u64 = 4 << 20;
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
    let digest = job.segment.digest().to_string();
    if let Some(other) = meta.metadata.get(DIGEST_METADATA).filter(|other| **other != digest) {
        let why = format!("its metadata names the segment {other}; expected {digest}");
        return Err(PackError::Foreign { key: job.key.clone(), why });
    }
    let mut inventory = Inventory::new(&job.segment.files);
    read_index(&job.store, &meta, &mut |entry| inventory.found(entry)).await?;
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
    files_of: &'a [SegmentFile],
    positions: HashMap<&'a str, u32>,
    seen: HashSet<u32>,
    entries: u64,
    files: u64,
    source_bytes: u64,
    big_bytes: u64,
}

impl<'a> Inventory<'a> {
    fn new(files: &'a [SegmentFile]) -> Self {
        // Of a uid that stands twice the first is packed.
        let mut positions = HashMap::with_capacity(files.len());
        for (at, file) in files.iter().enumerate() {
            positions.entry(file.uid.as_str()).or_insert(at as u32);
        }
        Self { files_of: files, positions, seen: HashSet::new(), entries: 0, files: 0, source_bytes: 0, big_bytes: 0 }
    }

    fn found(&mut self, entry: &Entry) {
        self.entries += 1;
        if let Location::BigFile { size, .. } = entry.location {
            self.big_bytes += size;
        }
        let Some(&at) = self.positions.get(entry.uid.as_str()) else { return };
        if entry.raw_len() == self.files_of[at as usize].size_bytes && self.seen.insert(at) {
            self.files += 1;
            self.source_bytes += entry.raw_len();
        }
    }

    /// Every file that is not there, with our own reason where it fails for us too.
    async fn missing(&self, sources: &dyn SourceOpener, known: &[FileFailure]) -> Result<Vec<FileFailure>, PackError> {
        let known: HashMap<u32, &FileFailure> = known.iter().map(|failure| (failure.file, failure)).collect();
        let lacking = (0..self.files_of.len() as u32).filter(|at| !self.seen.contains(at));
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
        match sources.open(&self.files_of[file as usize]).await {
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

/// Reads every entry of a shard of any version, in bounded stretches.
async fn read_index(
    store: &SharedStore,
    meta: &ObjectMeta,
    found: &mut (dyn FnMut(&Entry) + Send),
) -> Result<(), PackError> {
    let reader = Reader { store, key: &meta.key, size: meta.size };
    let fetched = store.get(&meta.key, ByteRange::Suffix(TAIL_READ_BYTES)).await?;
    let foreign = |e: ShardError| reader.foreign(&e);
    let tail = TailBytes::new(fetched.meta.size, fetched.bytes).map_err(foreign)?;
    match Tail::parse(&tail).map_err(foreign)? {
        Tail::V3(footer) => reader.v3(&tail, &footer, found).await,
        Tail::Legacy(legacy) => reader.legacy(&tail, legacy, found).await,
    }
}

struct Reader<'a> {
    store: &'a SharedStore,
    key: &'a str,
    size: u64,
}

impl Reader<'_> {
    fn foreign(&self, error: &ShardError) -> PackError {
        PackError::Foreign { key: self.key.to_owned(), why: format!("{error} ({} bytes)", self.size) }
    }

    async fn bytes(&self, tail: &TailBytes, range: std::ops::Range<u64>) -> Result<bytes::Bytes, PackError> {
        match tail.get(&range) {
            Some(bytes) => Ok(bytes),
            None => Ok(self.store.get(self.key, ByteRange::Span(range)).await?.bytes),
        }
    }

    async fn v3(
        &self,
        tail: &TailBytes,
        footer: &Footer,
        found: &mut (dyn FnMut(&Entry) + Send),
    ) -> Result<(), PackError> {
        let foreign = |e: ShardError| self.foreign(&e);
        let directory = self.bytes(tail, footer.directory_range()).await?;
        let directory = Directory::parse(footer, &directory).map_err(foreign)?;
        let mut number = 0;
        while let Some(first) = directory.block(number) {
            let start = first.range().start;
            let mut last = number;
            while directory.block(last + 1).is_some_and(|next| next.range().end - start <= STRETCH_BYTES) {
                last += 1;
            }
            let end = directory.block(last).map_or(first.range().end, |block| block.range().end);
            let stretch = self.bytes(tail, start..end).await?;
            for at in number..=last {
                let Some(block) = directory.block(at) else { break };
                let range = block.range();
                let bytes = &stretch[(range.start - start) as usize..(range.end - start) as usize];
                for entry in Block::parse(bytes, &block).map_err(foreign)?.entries() {
                    found(&entry.map_err(foreign)?);
                }
            }
            number = last + 1;
        }
        Ok(())
    }

    async fn legacy(
        &self,
        tail: &TailBytes,
        legacy: LegacyTail,
        found: &mut (dyn FnMut(&Entry) + Send),
    ) -> Result<(), PackError> {
        let foreign = |e: ShardError| self.foreign(&e);
        let header = self.bytes(tail, 0..HEADER_LEN).await?;
        let bytes = self.bytes(tail, legacy.index_range()).await?;
        let index = Index::parse(&header, legacy, bytes).map_err(foreign)?;
        for entry in index.entries() {
            found(&entry.map_err(foreign)?);
        }
        Ok(())
    }
}

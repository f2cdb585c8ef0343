//! Reads everything a shard has and reports everything that is wrong with it.
//!
//! Memory: one index (or index block), one batch of entries and one window of payloads.

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{StreamExt, TryStreamExt};

use super::bigfile::open_big_file;
use super::error::ArchiveError;
use super::remote::RemoteShard;
use super::source::{ReadKind, Source};
use crate::shard::{Codec, Decoder, Entry, Inline, Location, Part, ShardError, Version};
use crate::store::{ByteRange, ObjectMeta};

/// Payloads that lie together are read together up to this many bytes.
const WINDOW_BYTES: u64 = 8 << 20;
/// Bytes between two payloads that are rather read along than skipped with a request of their own.
const MAX_GAP_BYTES: u64 = 64 << 10;
/// Entries collected and sorted by place before their payloads are read.
const BATCH_ENTRIES: usize = 16 * 1024;
/// Bytes of uids and meta in a batch.
const BATCH_TEXT_BYTES: usize = 8 << 20;
/// Payloads larger than this that are stored as they are get checked piece by piece.
const STREAMED_BYTES: u64 = 64 << 20;
/// The largest payload that is decompressed.
const MAX_RAW_BYTES: u64 = 1 << 30;

/// How much is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// Header, footer, dictionary, directory and every index block, with their checksums and counts.
    Structure,
    /// Also every payload, decompressed, and every big file, hashed.
    Full,
}

/// How far a verification is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Files checked so far.
    pub entries: u64,
    /// Files the shard says it has.
    pub of_entries: u64,
    /// Stored bytes of files read so far, big files included.
    pub stored_bytes: u64,
}

/// What a verification tells while it runs.
#[derive(Debug)]
pub enum VerifyEvent {
    /// More was checked.
    Progress(Progress),
    /// Something is wrong. The rest is checked all the same.
    Problem(ArchiveError),
}

/// What was verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The shard's object.
    pub object: ObjectMeta,
    /// The format's version.
    pub version: Version,
    /// Files whose index entry could be read, big files included.
    pub entries: u64,
    /// How many of them are big files.
    pub big_files: u64,
    /// Sizes before compression in bytes, big files included.
    pub raw_bytes: u64,
    /// Stored bytes of all inline payloads.
    pub stored_bytes: u64,
    /// How many problems were reported.
    pub problems: u64,
}

/// Verifies the shard under `key`. Big files are looked at with [`Depth::Full`] when `bigfiles_prefix` says where they
/// are. Every problem is told to `on_event`, however many there are.
///
/// # Errors
/// When the shard cannot be opened at all, or the store fails: what was not read is not verified.
pub fn verify<'a>(
    source: impl Into<Source>,
    key: &'a str,
    depth: Depth,
    bigfiles_prefix: Option<&'a str>,
    on_event: &'a mut (dyn FnMut(VerifyEvent) + Send),
) -> BoxFuture<'a, Result<Report, ArchiveError>> {
    Box::pin(verify_shard(source.into(), key, depth, bigfiles_prefix, on_event))
}

async fn verify_shard(
    source: Source,
    key: &str,
    depth: Depth,
    bigfiles_prefix: Option<&str>,
    on_event: &mut (dyn FnMut(VerifyEvent) + Send),
) -> Result<Report, ArchiveError> {
    let shard = RemoteShard::open(source.clone(), key).await?;
    let report = Report {
        object: shard.object().clone(),
        version: shard.version(),
        entries: 0,
        big_files: 0,
        raw_bytes: 0,
        stored_bytes: 0,
        problems: 0,
    };
    let progress = Progress { of_entries: shard.len(), ..Progress::default() };
    let mut run = Run { shard: &shard, source, report, progress, on_event };
    if let Err(error) = shard.check_header().await {
        run.problem(error)?;
    }
    let mut entries = shard.entries();
    let mut batch = Batch::default();
    while let Some(entry) = entries.next().await {
        match entry {
            Ok(entry) => {
                run.count(&entry);
                if depth == Depth::Full {
                    batch.push(entry);
                }
            }
            Err(error) => run.problem(error)?,
        }
        if batch.is_full() {
            run.check(std::mem::take(&mut batch), bigfiles_prefix).await?;
        }
    }
    run.check(batch, bigfiles_prefix).await?;
    run.check_sum()?;
    Ok(run.report)
}

#[derive(Default)]
struct Batch {
    entries: Vec<Entry>,
    text_bytes: usize,
}

impl Batch {
    fn push(&mut self, entry: Entry) {
        self.text_bytes += entry.uid.len() + entry.meta.as_ref().map_or(0, |meta| meta.as_str().len());
        self.entries.push(entry);
    }

    fn is_full(&self) -> bool {
        self.entries.len() >= BATCH_ENTRIES || self.text_bytes >= BATCH_TEXT_BYTES
    }
}

/// Entries whose payloads are read with one request.
struct Window {
    range: std::ops::Range<u64>,
    entries: Vec<(Entry, Inline)>,
}

struct Run<'a> {
    shard: &'a RemoteShard,
    source: Source,
    report: Report,
    progress: Progress,
    on_event: &'a mut (dyn FnMut(VerifyEvent) + Send),
}

impl Run<'_> {
    /// Damage is reported and the verification goes on; a store that fails ends it.
    fn problem(&mut self, error: ArchiveError) -> Result<(), ArchiveError> {
        if matches!(error, ArchiveError::Store(_) | ArchiveError::Changed { .. }) {
            return Err(error);
        }
        self.report.problems += 1;
        (self.on_event)(VerifyEvent::Problem(error));
        Ok(())
    }

    fn count(&mut self, entry: &Entry) {
        self.report.entries += 1;
        self.report.raw_bytes = self.report.raw_bytes.saturating_add(entry.raw_len());
        match entry.location {
            Location::BigFile { .. } => self.report.big_files += 1,
            Location::Inline(inline) => {
                self.report.stored_bytes = self.report.stored_bytes.saturating_add(inline.stored_len);
            }
        }
    }

    fn checked(&mut self, entries: u64, stored_bytes: u64) {
        self.progress.entries += entries;
        self.progress.stored_bytes += stored_bytes;
        (self.on_event)(VerifyEvent::Progress(self.progress));
    }

    /// Reads and decompresses the payloads of a batch, in the order of their places.
    async fn check(&mut self, batch: Batch, bigfiles_prefix: Option<&str>) -> Result<(), ArchiveError> {
        let mut inline = Vec::new();
        for entry in batch.entries {
            match (entry.location, bigfiles_prefix) {
                (Location::Inline(place), _) => inline.push((entry, place)),
                (Location::BigFile { sha256, size }, Some(prefix)) => {
                    match read_big_file(&self.source, prefix, sha256, size).await {
                        Ok(()) => self.checked(1, size),
                        Err(error) => self.problem(error)?,
                    }
                }
                (Location::BigFile { .. }, None) => self.checked(1, 0),
            }
        }
        inline.sort_by_key(|(_, place)| place.offset);
        for window in windows(inline) {
            self.check_window(window).await?;
        }
        Ok(())
    }

    async fn check_window(&mut self, window: Window) -> Result<(), ArchiveError> {
        let (count, length) = (window.entries.len() as u64, window.range.end - window.range.start);
        if length > STREAMED_BYTES
            && let [(entry, place)] = &window.entries[..]
            && place.codec == Codec::None
        {
            if let Err(error) = self.check_streamed(entry, *place).await {
                self.problem(error)?;
            }
            self.checked(count, length);
            return Ok(());
        }
        let bytes = self.shard.remote().read(window.range.clone(), ReadKind::Payload).await?;
        let dictionary = self.shard.dictionary().cloned();
        let decode_all = move || -> Result<Vec<ShardError>, ShardError> {
            let mut decoder = Decoder::new()?.with_max_raw_len(MAX_RAW_BYTES);
            let mut wrong = Vec::new();
            for (entry, place) in &window.entries {
                let stored = slice(&bytes, place, window.range.start);
                if let Err(error) = decoder.decode(entry, stored, dictionary.as_deref()) {
                    wrong.push(error);
                }
            }
            Ok(wrong)
        };
        let wrong = super::offload(length * 8, decode_all).await.map_err(|e| self.shard.damaged(e))?;
        for error in wrong {
            self.problem(self.shard.damaged(error))?;
        }
        self.checked(count, length);
        Ok(())
    }

    /// A large payload that is stored as it is, piece by piece.
    async fn check_streamed(&mut self, entry: &Entry, place: Inline) -> Result<(), ArchiveError> {
        self.source.noted(ReadKind::Payload);
        let key = &self.shard.object().key;
        let fetched = self.source.store.get_stream(key, ByteRange::Span(place.range())).await?;
        self.shard.remote().check_same(&fetched.meta)?;
        let mut chunks = fetched.stream;
        let (mut crc, mut seen) = (0, 0);
        while let Some(chunk) = chunks.try_next().await? {
            crc = crc32c::crc32c_append(crc, &chunk);
            seen += chunk.len() as u64;
        }
        let detail = match place.crc32c {
            _ if seen != place.stored_len => format!("{seen} bytes, the index says {}", place.stored_len),
            Some(expected) if expected != crc => format!("CRC-32C {crc:08x}, the index says {expected:08x}"),
            _ => return Ok(()),
        };
        let uid = entry.uid.chars().take(120).collect();
        Err(self.shard.damaged(ShardError::CorruptEntry { uid, offset: place.offset, detail }))
    }

    /// The footer's sum can be compared only when every entry could be read.
    fn check_sum(&mut self) -> Result<(), ArchiveError> {
        let Some(footer) = self.shard.footer() else { return Ok(()) };
        if self.report.entries != footer.entry_count || self.report.raw_bytes == footer.raw_bytes {
            return Ok(());
        }
        let detail = format!("raw_bytes {}, the entries have {}", footer.raw_bytes, self.report.raw_bytes);
        let offset = footer.directory_range().end;
        self.problem(self.shard.damaged(ShardError::Corrupt { part: Part::Footer, offset, detail }))
    }
}

async fn read_big_file(source: &Source, prefix: &str, sha256: [u8; 32], size: u64) -> Result<(), ArchiveError> {
    let mut chunks = open_big_file(source, prefix, sha256, size).await?.stream;
    while chunks.try_next().await?.is_some() {}
    Ok(())
}

fn slice(bytes: &Bytes, place: &Inline, base: u64) -> Bytes {
    let range = place.range();
    bytes.slice((range.start - base) as usize..(range.end - base) as usize)
}

/// Groups payloads, sorted by offset, that one request can bring.
fn windows(sorted: Vec<(Entry, Inline)>) -> Vec<Window> {
    let mut windows: Vec<Window> = Vec::new();
    for (entry, place) in sorted {
        let range = place.range();
        match windows.last_mut() {
            Some(window)
                if range.start <= window.range.end.saturating_add(MAX_GAP_BYTES)
                    && range.end.max(window.range.end) - window.range.start <= WINDOW_BYTES =>
            {
                window.range.end = window.range.end.max(range.end);
                window.entries.push((entry, place));
            }
            _ => windows.push(Window { range, entries: vec![(entry, place)] }),
        }
    }
    windows
}

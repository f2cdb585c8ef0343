//! Objects beside the shards, named by their hash: streamed, and never given out whole when the hash is another.

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use sha2::{Digest, Sha256};

use super::error::ArchiveError;
use super::offload;
use super::source::{ReadKind, Source};
use crate::layout::bigfile_key;
use crate::shard::hex32;
use crate::store::{ByteRange, ObjectMeta, StoreError, StoreErrorKind};

/// Hashing costs more a byte than copying, so smaller pieces than elsewhere go to a blocking thread.
pub(super) const HASH_WEIGHT: u64 = 2;

/// A big file's bytes, as they come in.
pub struct BigFileStream {
    /// The object.
    pub meta: ObjectMeta,
    /// The bytes in order. The last piece is given out only when size and hash of everything are right; otherwise the
    /// stream ends in an error instead.
    pub stream: BoxStream<'static, Result<Bytes, ArchiveError>>,
}

impl std::fmt::Debug for BigFileStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BigFileStream").field("meta", &self.meta).finish_non_exhaustive()
    }
}

struct Checking {
    chunks: BoxStream<'static, Result<Bytes, StoreError>>,
    hasher: Sha256,
    seen: u64,
    held: Bytes,
    expected: Expected,
}

/// What the object of a big file must be.
#[derive(Clone)]
pub(super) struct Expected {
    url: String,
    pub(super) key: String,
    sha256: [u8; 32],
    size: u64,
}

impl Expected {
    pub(super) fn new(source: &Source, prefix: &str, sha256: [u8; 32], size: u64) -> Self {
        Self { url: source.store.url(), key: bigfile_key(prefix, &sha256), sha256, size }
    }

    pub(super) fn wrong(&self, detail: impl Into<String>) -> ArchiveError {
        ArchiveError::BigFile { url: self.url.clone(), key: self.key.clone(), detail: detail.into() }
    }

    /// Everything was read: there must be as much of it as the index says, with the hash it says.
    pub(super) fn check_whole(&self, seen: u64, actual: [u8; 32]) -> Result<(), ArchiveError> {
        if seen != self.size {
            return Err(self.wrong(format!("it ended after {seen} of {} bytes", self.size)));
        }
        if actual != self.sha256 {
            return Err(self.wrong(format!("its bytes have the SHA-256 {}", hex32(&actual))));
        }
        Ok(())
    }

    /// The object must have the size that the index says.
    pub(super) fn check_meta(&self, meta: &ObjectMeta) -> Result<(), ArchiveError> {
        if meta.size == self.size {
            return Ok(());
        }
        Err(self.wrong(format!("it has {} bytes, the index says {}", meta.size, self.size)))
    }

    /// An index leads to it, so a missing one is damage and not the absence of a file.
    pub(super) fn failed(&self, error: StoreError) -> ArchiveError {
        match error.kind {
            StoreErrorKind::NotFound => self.wrong("an index leads to it, and it is missing"),
            _ => error.into(),
        }
    }
}

/// Opens the big file of an index entry: `prefix` is the key prefix of big files, hash and size are the entry's.
///
/// # Errors
/// [`ArchiveError::BigFile`] when the object is missing or has another size.
pub async fn open_big_file(
    source: &Source,
    prefix: &str,
    sha256: [u8; 32],
    size: u64,
) -> Result<BigFileStream, ArchiveError> {
    let expected = Expected::new(source, prefix, sha256, size);
    source.noted(ReadKind::BigFile);
    let fetched = source.store.get_stream(&expected.key, ByteRange::Full).await.map_err(|e| expected.failed(e))?;
    expected.check_meta(&fetched.meta)?;
    let checking = Checking { chunks: fetched.stream, hasher: Sha256::new(), seen: 0, held: Bytes::new(), expected };
    let stream = stream::try_unfold(Some(checking), |state| async move {
        match state {
            Some(checking) => checking.next().await,
            None => Ok(None),
        }
    });
    Ok(BigFileStream { meta: fetched.meta, stream: stream.boxed() })
}

/// Whether a big file's object is there with the right size; its bytes are not read.
///
/// # Errors
/// As [`open_big_file`].
pub async fn check_big_file(
    source: &Source,
    prefix: &str,
    sha256: [u8; 32],
    size: u64,
) -> Result<ObjectMeta, ArchiveError> {
    let expected = Expected::new(source, prefix, sha256, size);
    let meta = source.store.head(&expected.key).await.map_err(|e| expected.failed(e))?;
    expected.check_meta(&meta)?;
    Ok(meta)
}

impl Checking {
    /// The piece before the newest, or the last one once everything is known to be right.
    async fn next(mut self) -> Result<Option<(Bytes, Option<Self>)>, ArchiveError> {
        while let Some(chunk) = self.chunks.next().await.transpose()? {
            if chunk.is_empty() {
                continue;
            }
            self.seen += chunk.len() as u64;
            if self.seen > self.expected.size {
                return Err(self.expected.wrong(format!("more than the {} bytes of the index", self.expected.size)));
            }
            let (mut hasher, piece) = (self.hasher, chunk.clone());
            self.hasher = offload(chunk.len() as u64 * HASH_WEIGHT, move || {
                hasher.update(&piece);
                hasher
            })
            .await;
            let ready = std::mem::replace(&mut self.held, chunk);
            if !ready.is_empty() {
                return Ok(Some((ready, Some(self))));
            }
        }
        self.expected.check_whole(self.seen, self.hasher.finalize().into())?;
        Ok((!self.held.is_empty()).then_some((self.held, None)))
    }
}

//! Parts of big files, checked without reading all of the file each time.
//!
//! An index holds the SHA-256 of a big file and nothing about its parts. So the first part that is asked for costs one
//! read of the whole: it is hashed, and a CRC-32C of each block is kept in memory once the hash is right. From then on a
//! part costs the blocks it lies in, each compared with its checksum before a byte of it is given out.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use sha2::{Digest, Sha256};
use tokio::sync::{Mutex, Semaphore};

use super::bigfile::{Expected, HASH_WEIGHT};
use super::error::ArchiveError;
use super::offload;
use super::source::{ReadKind, Source};
use crate::store::{ByteRange, StoreError};

/// Bytes of a block: what a small part costs.
const BLOCK_BYTES: u64 = 256 * 1024;

/// What is known of the blocks of one big file. The same for every copy of it: it is named by its hash.
#[derive(Debug)]
pub struct BigFileBlocks {
    sha256: [u8; 32],
    size: u64,
    sums: OnceLock<Arc<[u32]>>,
    reading: Mutex<Progress>,
}

/// How far the file has been hashed. Kept when whoever reads goes away, so that the next one goes on there.
#[derive(Debug, Default)]
struct Progress {
    running: Running,
    sums: Vec<u32>,
}

#[derive(Clone, Debug, Default)]
struct Running {
    hasher: Sha256,
    at: u64,
    /// Of the block that is not complete yet.
    sum: u32,
}

impl BigFileBlocks {
    /// Nothing is known yet of the file with this hash and size in bytes.
    pub fn new(sha256: [u8; 32], size: u64) -> Self {
        Self { sha256, size, sums: OnceLock::new(), reading: Mutex::default() }
    }

    /// Memory in bytes that the checksums of a file of `size` bytes take, for a cache that is bounded by bytes.
    pub fn heap_bytes(size: u64) -> u64 {
        size_of::<Self>() as u64 + size.div_ceil(BLOCK_BYTES) * size_of::<u32>() as u64
    }

    /// Reads and hashes the file unless that was done before; `prefix` is the key prefix of big files. One reader at a time
    /// for each file, and as many files at once as `turns` has permits. It can be dropped at any moment: what was read
    /// counts.
    ///
    /// # Errors
    /// [`ArchiveError::BigFile`] when the object is missing, or its size or hash is another.
    pub async fn learn(&self, source: &Source, prefix: &str, turns: &Semaphore) -> Result<(), ArchiveError> {
        if self.sums.get().is_some() {
            return Ok(());
        }
        let mut progress = self.reading.lock().await;
        if self.sums.get().is_some() {
            return Ok(());
        }
        let _turn = turns.acquire().await;
        let expected = Expected::new(source, prefix, self.sha256, self.size);
        self.read_on(source, &expected, &mut progress).await?;
        let Progress { running, sums } = std::mem::take(&mut *progress);
        // When it is wrong, the next try begins at the beginning: perhaps with another copy.
        expected.check_whole(running.at, running.hasher.finalize().into())?;
        // Nobody else can have set it: the lock is held.
        self.sums.get_or_init(|| sums.into());
        Ok(())
    }

    async fn read_on(&self, source: &Source, expected: &Expected, progress: &mut Progress) -> Result<(), ArchiveError> {
        if progress.running.at >= self.size {
            return Ok(());
        }
        let rest = progress.running.at..self.size;
        let mut chunks = open(source, expected, rest).await?;
        while let Some(chunk) = chunks.next().await.transpose()? {
            if chunk.len() as u64 > self.size - progress.running.at {
                *progress = Progress::default();
                return Err(expected.wrong(format!("more than the {} bytes of the index", self.size)));
            }
            let (mut running, last) = (progress.running.clone(), self.size);
            let (running, sums) = offload(chunk.len() as u64 * HASH_WEIGHT, move || {
                let sums = running.take(&chunk, last);
                (running, sums)
            })
            .await;
            progress.running = running;
            progress.sums.extend(sums);
        }
        Ok(())
    }

    /// The bytes of `range`, which lies inside the file and is not empty. The first block is read and checked before this
    /// returns, every other one before it is given out.
    ///
    /// # Errors
    /// [`ArchiveError::BigFile`] when the object is missing, has another size, or the first block is wrong; also for a
    /// file that [`BigFileBlocks::learn`] has not read.
    pub async fn read(
        &self,
        source: &Source,
        prefix: &str,
        range: Range<u64>,
    ) -> Result<BoxStream<'static, Result<Bytes, ArchiveError>>, ArchiveError> {
        let expected = Expected::new(source, prefix, self.sha256, self.size);
        let Some(sums) = self.sums.get().cloned() else {
            return Err(expected.wrong("nothing is known of its blocks yet"));
        };
        let at = range.start / BLOCK_BYTES * BLOCK_BYTES;
        let end = range.end.div_ceil(BLOCK_BYTES).saturating_mul(BLOCK_BYTES).min(self.size);
        let chunks = open(source, &expected, at..end).await?;
        let parts = Parts { chunks, buffer: BytesMut::new(), at, size: self.size, range, sums, expected };
        let first = parts.next().await?;
        let rest = stream::try_unfold(first.1, |state| async move {
            match state {
                Some(parts) => parts.next().await.map(|(part, parts)| Some((part, parts))),
                None => Ok(None),
            }
        });
        Ok(stream::iter([Ok(first.0)]).chain(rest).boxed())
    }
}

impl Running {
    /// Takes more of the file, which has `size` bytes, and gives the checksums of the blocks that are complete with it.
    fn take(&mut self, mut bytes: &[u8], size: u64) -> Vec<u32> {
        self.hasher.update(bytes);
        let mut sums = Vec::new();
        while !bytes.is_empty() {
            let room = (BLOCK_BYTES - self.at % BLOCK_BYTES).min(bytes.len() as u64);
            let (now, later) = bytes.split_at(room as usize);
            self.sum = crc32c::crc32c_append(self.sum, now);
            self.at += room;
            if self.at.is_multiple_of(BLOCK_BYTES) || self.at == size {
                sums.push(std::mem::take(&mut self.sum));
            }
            bytes = later;
        }
        sums
    }
}

/// A read of some blocks.
struct Parts {
    chunks: BoxStream<'static, Result<Bytes, StoreError>>,
    buffer: BytesMut,
    /// Where the buffer begins in the file: at a block.
    at: u64,
    size: u64,
    range: Range<u64>,
    sums: Arc<[u32]>,
    expected: Expected,
}

impl Parts {
    /// What of the next block lies in the range, and what comes behind it.
    async fn next(mut self) -> Result<(Bytes, Option<Self>), ArchiveError> {
        let len = BLOCK_BYTES.min(self.size - self.at);
        while (self.buffer.len() as u64) < len {
            match self.chunks.next().await.transpose()? {
                Some(chunk) => self.buffer.extend_from_slice(&chunk),
                None => return Err(self.expected.wrong(format!("a read of the block at {} ended early", self.at))),
            }
        }
        let block = self.buffer.split_to(len as usize).freeze();
        if self.sums.get((self.at / BLOCK_BYTES) as usize) != Some(&crc32c::crc32c(&block)) {
            let detail = format!("the {len} bytes at {} are not those that were there when it was hashed", self.at);
            return Err(self.expected.wrong(detail));
        }
        let (from, to) = (self.range.start.max(self.at) - self.at, self.range.end.min(self.at + len) - self.at);
        self.at += len;
        let more = self.at < self.range.end;
        Ok((block.slice(from as usize..to as usize), more.then_some(self)))
    }
}

async fn open(
    source: &Source,
    expected: &Expected,
    range: Range<u64>,
) -> Result<BoxStream<'static, Result<Bytes, StoreError>>, ArchiveError> {
    source.noted(ReadKind::BigFile);
    let fetched = source.store.get_stream(&expected.key, ByteRange::Span(range)).await;
    let fetched = fetched.map_err(|e| expected.failed(e))?;
    expected.check_meta(&fetched.meta)?;
    Ok(fetched.stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_summed_however_the_bytes_come() {
        let bytes: Vec<u8> = (0..3 * BLOCK_BYTES + 5).map(|n| (n % 251) as u8).collect();
        let expected: Vec<u32> = bytes.chunks(BLOCK_BYTES as usize).map(crc32c::crc32c).collect();
        for step in [1 << 20, BLOCK_BYTES as usize, 100_003, 7_777] {
            let mut running = Running::default();
            let sums: Vec<u32> = bytes.chunks(step).flat_map(|chunk| running.take(chunk, bytes.len() as u64)).collect();
            assert_eq!(sums, expected, "{step}");
            assert_eq!(running.hasher.finalize(), Sha256::digest(&bytes), "{step}");
        }
    }
}

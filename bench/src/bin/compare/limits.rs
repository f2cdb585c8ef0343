//! What the machine can do at all: loops around the bare system calls and libraries, with every buffer and context reused.

use std::fs::File;
use std::hint::black_box;
use std::io::Read;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use des_bench::corpus::Corpus;
use lz4_flex::block::{CompressTable, compress_into_with_table, get_maximum_output_size};
use sha2::{Digest, Sha256};

use super::Failure;

/// Files a thread takes at a time.
const BATCH: usize = 64;
/// Bytes that are copied and hashed.
const BLOCK: usize = 64 << 20;

/// What to do with each file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// Open, read, close.
    Read,
    /// And compress with zstd 3, one context for a thread.
    Zstd,
    /// And compress with LZ4, one table for a thread.
    Lz4,
}

enum Compressor {
    Nothing,
    Zstd(zstd::bulk::Compressor<'static>),
    Lz4(CompressTable),
}

/// One thread's buffers.
struct Hand {
    compressor: Compressor,
    raw: Vec<u8>,
    packed: Vec<u8>,
}

impl Hand {
    fn new(work: Work, largest: usize) -> Result<Self, Failure> {
        let compressor = match work {
            Work::Read => Compressor::Nothing,
            Work::Zstd => Compressor::Zstd(zstd::bulk::Compressor::new(3)?),
            Work::Lz4 => Compressor::Lz4(CompressTable::default()),
        };
        let room = get_maximum_output_size(largest).max(zstd::zstd_safe::compress_bound(largest));
        // One byte more than the largest file, so that a file that grew is noticed.
        Ok(Self { compressor, raw: vec![0; largest + 1], packed: vec![0; room] })
    }

    /// Stored bytes of one file.
    fn handle(&mut self, path: &std::path::Path, size: u64) -> Result<u64, Failure> {
        let read = File::open(path)?.read(&mut self.raw)?;
        if read as u64 != size {
            return Err(format!("{} has {read} bytes instead of {size}", path.display()).into());
        }
        let raw = &self.raw[..read];
        let stored = match &mut self.compressor {
            Compressor::Nothing => read,
            Compressor::Zstd(context) => context.compress_to_buffer(raw, &mut self.packed[..])?,
            Compressor::Lz4(table) => compress_into_with_table(raw, &mut self.packed, table)?,
        };
        black_box(&self.packed);
        Ok(stored.min(read) as u64)
    }
}

/// Seconds, and the bytes that would have been stored.
pub(super) fn all_files(corpus: &Corpus, work: Work, threads: usize) -> Result<(f64, u64), Failure> {
    let largest = corpus.files.iter().map(|file| file.size).max().unwrap_or_default() as usize;
    let paths: Vec<_> = corpus.files.iter().map(|file| (corpus.path(file), file.size)).collect();
    let next = AtomicUsize::new(0);
    let began = Instant::now();
    let stored = std::thread::scope(|scope| {
        let hands: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| {
                    let (mut hand, mut stored) = (Hand::new(work, largest)?, 0);
                    loop {
                        let from = next.fetch_add(BATCH, Ordering::Relaxed);
                        let Some(batch) = paths.get(from..paths.len().min(from + BATCH)) else { return Ok(stored) };
                        if batch.is_empty() {
                            return Ok(stored);
                        }
                        for (path, size) in batch {
                            stored += hand.handle(path, *size)?;
                        }
                    }
                })
            })
            .collect();
        let ended = hands.into_iter().map(|hand| hand.join().map_err(|_| "a thread panicked")?);
        ended.sum::<Result<u64, Failure>>()
    })?;
    Ok((began.elapsed().as_secs_f64(), stored))
}

/// GB/s of a memory copy and of SHA-256, on one core.
pub(super) fn bytes_per_second() -> (f64, f64) {
    let from: Vec<u8> = (0..BLOCK).map(|n| ((n * 31) >> 3) as u8).collect();
    let mut to = vec![0; BLOCK];
    to.copy_from_slice(&from);
    let rate = |work: &mut dyn FnMut()| {
        let began = Instant::now();
        work();
        BLOCK as f64 / began.elapsed().as_secs_f64() / 1e9
    };
    let copy = rate(&mut || to.copy_from_slice(black_box(&from)));
    black_box(&to);
    let hash = rate(&mut || {
        black_box(Sha256::digest(&from));
    });
    (copy, hash)
}

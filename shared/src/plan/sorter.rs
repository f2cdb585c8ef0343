//! An external merge sort of (key, payload) records. Keys are fixed-size byte strings, compared as such, so numbers
//! go in big-endian.
//!
//! Records collect in memory up to a limit, are sorted and written as a run, and runs are merged [`FAN_IN`] at a
//! time as soon as there are so many, so that open files and read buffers stay bounded, whatever the input's size.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, Write};
use std::ops::Range;

use super::PlanError;
use super::spool::Spool;

/// How many runs are merged at once.
const FAN_IN: usize = 32;
const BUFFER_BYTES: usize = 64 * 1024;
/// Records whose bytes are asked for together.
const AHEAD: usize = 16;
/// Bytes that come from memory together.
const CACHE_LINE: usize = 64;
/// What the vectors of a sorter are first given, so that a tiny plan stays tiny.
const FIRST_ROOM: usize = 1024;

/// A record in memory; its payload is a range of the shared buffer.
pub(super) struct Item<const N: usize> {
    key: [u8; N],
    payload: Range<usize>,
}

/// Takes records in any order. Keys are distinct.
pub(super) struct Sorter<const N: usize> {
    spool: Spool,
    limit: usize,
    items: Vec<Item<N>>,
    payloads: Vec<u8>,
    /// Runs by how often their records were merged.
    levels: Vec<Vec<File>>,
}

impl<const N: usize> Sorter<N> {
    /// A sorter that holds about `limit` bytes.
    pub(super) fn new(spool: Spool, limit: usize) -> Self {
        Self { spool, limit, items: Vec::new(), payloads: Vec::new(), levels: Vec::new() }
    }

    pub(super) fn push(&mut self, key: [u8; N], payload: &[u8]) -> Result<(), PlanError> {
        let needed = (self.items.len() + 1) * size_of::<Item<N>>() + self.payloads.len() + payload.len();
        if needed > self.limit && !self.items.is_empty() {
            self.flush()?;
        }
        self.make_room(payload.len());
        let start = self.payloads.len();
        self.payloads.extend_from_slice(payload);
        self.items.push(Item { key, payload: start..self.payloads.len() });
        Ok(())
    }

    /// Whether anything went to disk.
    pub(super) fn spilled(&self) -> bool {
        !self.levels.is_empty()
    }

    /// All records in the order of their keys.
    pub(super) fn finish(mut self) -> Result<Sorted<N>, PlanError> {
        self.sort();
        if !self.spilled() {
            return Ok(Sorted::Memory(Held { items: self.items, payloads: self.payloads, next: 0 }));
        }
        self.flush()?;
        // Not needed from here on; the merge's buffers take the place.
        self.items = Vec::new();
        self.payloads = Vec::new();
        let mut runs: Vec<File> = std::mem::take(&mut self.levels).into_iter().flatten().collect();
        while runs.len() > FAN_IN {
            // The first are the smallest, being merged the least often. Merge just enough of them.
            let few = (runs.len() - FAN_IN + 1).min(FAN_IN);
            let merged = merge_runs::<N>(&self.spool, runs.drain(..few).collect())?;
            runs.push(merged);
        }
        Ok(Sorted::Disk(Merge::new(self.spool, runs)?))
    }

    /// Grows by doubling, but never far beyond the limit: a doubled vector that stays half empty would cost as much
    /// address space as the plan is allowed.
    fn make_room(&mut self, payload: usize) {
        if self.items.len() == self.items.capacity() {
            let most = self.limit / size_of::<Item<N>>();
            let more = self.items.len().max(FIRST_ROOM).min(most.saturating_sub(self.items.len()).max(1));
            self.items.reserve_exact(more);
        }
        let free = self.payloads.capacity() - self.payloads.len();
        if free < payload {
            let most = self.limit.saturating_sub(self.payloads.len());
            let more = self.payloads.len().max(FIRST_ROOM).min(most).max(payload);
            self.payloads.reserve_exact(more);
        }
    }

    fn sort(&mut self) {
        self.items.sort_unstable_by(|a, b| order(&a.key, &b.key));
    }

    /// Writes what is in memory as a run.
    fn flush(&mut self) -> Result<(), PlanError> {
        if self.items.is_empty() {
            return Ok(());
        }
        self.sort();
        let mut run = RunWriter::create(&self.spool)?;
        for item in &self.items {
            run.write(&item.key, &self.payloads[item.payload.clone()])?;
        }
        let mut run = run.finish()?;
        self.items.clear();
        self.payloads.clear();
        let mut level = 0;
        loop {
            if self.levels.len() == level {
                self.levels.push(Vec::new());
            }
            self.levels[level].push(run);
            if self.levels[level].len() < FAN_IN {
                return Ok(());
            }
            run = merge_runs::<N>(&self.spool, std::mem::take(&mut self.levels[level]))?;
            level += 1;
        }
    }
}

fn merge_runs<const N: usize>(spool: &Spool, runs: Vec<File>) -> Result<File, PlanError> {
    let mut merge = Merge::<N>::new(spool.clone(), runs)?;
    let mut merged = RunWriter::create(spool)?;
    let mut payload = Vec::new();
    while let Some(key) = merge.next(&mut payload)? {
        merged.write(&key, &payload)?;
    }
    merged.finish()
}

/// Records in the order of their keys.
pub(super) enum Sorted<const N: usize> {
    Memory(Held<N>),
    Disk(Merge<N>),
}

/// A key and its payload.
pub(super) type Record<'a, const N: usize> = ([u8; N], &'a [u8]);

/// Sorted records that fit into memory. They can be read again when all have come by.
pub(super) struct Held<const N: usize> {
    items: Vec<Item<N>>,
    payloads: Vec<u8>,
    next: usize,
}

impl<const N: usize> Held<N> {
    /// The payload of the record at a position, from 0; `None` behind the end.
    fn payload(&self, at: usize) -> Option<&[u8]> {
        self.items.get(at).map(|item| &self.payloads[item.payload.clone()])
    }

    /// The payload at a position of somebody who goes from each to the next: a few are fetched from memory at once. They
    /// lie as they came, and each by itself would be waited for.
    pub(super) fn payload_in_turn(&self, at: usize) -> Option<&[u8]> {
        if at.is_multiple_of(AHEAD) {
            let ahead =
                self.items.iter().skip(at).take(AHEAD).flat_map(|item| item.payload.clone().step_by(CACHE_LINE));
            std::hint::black_box(ahead.fold(0, |all, at| all ^ self.payloads[at]));
        }
        self.payload(at)
    }

    fn next(&mut self) -> Option<Record<'_, N>> {
        let key = self.items.get(self.next)?.key;
        self.next += 1;
        Some((key, self.payload(self.next - 1)?))
    }
}

impl<const N: usize> Sorted<N> {
    /// The next key and its payload, which may lie in `buffer`.
    pub(super) fn next<'a>(&'a mut self, buffer: &'a mut Vec<u8>) -> Result<Option<Record<'a, N>>, PlanError> {
        match self {
            Self::Memory(held) => Ok(held.next()),
            Self::Disk(merge) => Ok(merge.next(buffer)?.map(|key| (key, buffer.as_slice()))),
        }
    }
}

/// Keys compare as bytes, here eight at a time.
fn order<const N: usize>(a: &[u8; N], b: &[u8; N]) -> Ordering {
    const { assert!(N.is_multiple_of(8), "a key is made of whole words") };
    let (a, b) = (a.as_chunks::<8>().0.iter(), b.as_chunks::<8>().0.iter());
    a.map(|word| u64::from_be_bytes(*word)).cmp(b.map(|word| u64::from_be_bytes(*word)))
}

/// Merges runs.
pub(super) struct Merge<const N: usize> {
    spool: Spool,
    runs: Vec<RunReader>,
    heads: BinaryHeap<Reverse<([u8; N], usize)>>,
}

impl<const N: usize> Merge<N> {
    fn new(spool: Spool, files: Vec<File>) -> Result<Self, PlanError> {
        let mut merge = Self { spool, runs: Vec::with_capacity(files.len()), heads: BinaryHeap::new() };
        for (number, mut file) in files.into_iter().enumerate() {
            file.rewind().map_err(|error| merge.spool.error("reading", error))?;
            merge.runs.push(RunReader { input: BufReader::with_capacity(BUFFER_BYTES, file), payload: Vec::new() });
            merge.advance(number)?;
        }
        Ok(merge)
    }

    fn next(&mut self, payload: &mut Vec<u8>) -> Result<Option<[u8; N]>, PlanError> {
        let Some(Reverse((key, number))) = self.heads.pop() else { return Ok(None) };
        std::mem::swap(payload, &mut self.runs[number].payload);
        self.advance(number)?;
        Ok(Some(key))
    }

    /// Reads the next record of a run and puts its key in line.
    fn advance(&mut self, number: usize) -> Result<(), PlanError> {
        let head = self.runs[number].next().map_err(|error| self.spool.error("reading", error))?;
        if let Some(key) = head {
            self.heads.push(Reverse((key, number)));
        }
        Ok(())
    }
}

struct RunReader {
    input: BufReader<File>,
    payload: Vec<u8>,
}

impl RunReader {
    fn next<const N: usize>(&mut self) -> std::io::Result<Option<[u8; N]>> {
        let mut length = [0; 4];
        // The writer ends every run with a length of all ones, so a file cut short is an error, not an end.
        self.input.read_exact(&mut length)?;
        let length = u32::from_le_bytes(length);
        if length == u32::MAX {
            return Ok(None);
        }
        let mut key = [0; N];
        self.input.read_exact(&mut key)?;
        self.payload.resize(length as usize, 0);
        self.input.read_exact(&mut self.payload)?;
        Ok(Some(key))
    }
}

struct RunWriter<'a> {
    spool: &'a Spool,
    output: BufWriter<File>,
    bytes: u64,
}

impl<'a> RunWriter<'a> {
    fn create(spool: &'a Spool) -> Result<Self, PlanError> {
        Ok(Self { spool, output: BufWriter::with_capacity(BUFFER_BYTES, spool.create()?), bytes: 0 })
    }

    fn write(&mut self, key: &[u8], payload: &[u8]) -> Result<(), PlanError> {
        let length =
            u32::try_from(payload.len()).ok().filter(|n| *n < u32::MAX).expect("records are a few MiB at most");
        self.bytes += (size_of::<u32>() + key.len() + payload.len()) as u64;
        self.output
            .write_all(&length.to_le_bytes())
            .and_then(|()| self.output.write_all(key))
            .and_then(|()| self.output.write_all(payload))
            .map_err(|error| self.spool.error("writing", error))
    }

    fn finish(mut self) -> Result<File, PlanError> {
        let ended = self.output.write_all(&u32::MAX.to_le_bytes());
        ended.map_err(|error| self.spool.error("writing", error))?;
        let file = self.output.into_inner().map_err(|error| self.spool.error("writing", error.into_error()))?;
        self.spool.wrote(self.bytes + size_of::<u32>() as u64);
        Ok(file)
    }
}

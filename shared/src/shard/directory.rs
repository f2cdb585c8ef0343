//! The directory of version 3: which index block can hold a uid.
//!
//! It keeps no whole uids but separators, the shortest prefix of a block's first uid that is greater than the last
//! uid of the block before. So it stays small whatever the uids are, and a lookup needs one binary search.

use std::ops::Range;

use super::codec::{compress_index, decompress_index};
use super::error::{Part, ShardError};
use super::footer::{Footer, HEADER_LEN};
use super::wire::{Cursor, common_prefix};
use crate::varint;

/// The largest directory after decompression, in bytes. Half a million blocks fit; the writer makes blocks larger
/// long before that.
pub(super) const MAX_DIRECTORY_RAW: usize = 16 << 20;
/// The most entries a block may have. The writer stops at 8,192; more would only serve to fill a reader's memory.
const MAX_BLOCK_ENTRIES: u32 = 65_536;
/// The smallest possible index block in bytes: a zstd frame of at least 9 bytes and the CRC-32C.
const MIN_BLOCK_LEN: u64 = 13;

/// One block while the directory is written.
pub(super) struct DirectoryRow {
    pub(super) separator: Vec<u8>,
    pub(super) entries: u32,
    pub(super) big_files: u32,
    pub(super) data_len: u64,
    pub(super) block_len: u64,
}

/// The stored form: a zstd frame of columns.
pub(super) fn encode(rows: &[DirectoryRow]) -> Result<Vec<u8>, ShardError> {
    let mut raw = Vec::with_capacity(rows.len() * 16);
    let mut suffixes = Vec::new();
    let mut previous: &[u8] = &[];
    let mut suffix_lens = Vec::with_capacity(rows.len());
    for row in rows {
        let shared = common_prefix(previous, &row.separator);
        varint::put(&mut raw, shared as u64);
        suffix_lens.push((row.separator.len() - shared) as u64);
        suffixes.extend_from_slice(&row.separator[shared..]);
        previous = &row.separator;
    }
    let mut column = |numbers: &mut dyn Iterator<Item = u64>| {
        for number in numbers {
            varint::put(&mut raw, number);
        }
    };
    column(&mut suffix_lens.into_iter());
    column(&mut rows.iter().map(|r| u64::from(r.entries)));
    column(&mut rows.iter().map(|r| u64::from(r.big_files)));
    column(&mut rows.iter().map(|r| r.data_len));
    column(&mut rows.iter().map(|r| r.block_len));
    raw.extend_from_slice(&suffixes);
    let separators: usize = rows.iter().map(|r| r.separator.len()).sum();
    if raw.len().max(separators) > MAX_DIRECTORY_RAW {
        return Err(ShardError::Usage(format!(
            "the shard needs {} index blocks, too many for its directory",
            rows.len()
        )));
    }
    compress_index(&raw)
}

#[derive(Clone, Copy, Debug)]
struct Row {
    separator_end: u32,
    entries: u32,
    big_files: u32,
    block_len: u64,
    block_start: u64,
    data_start: u64,
    data_len: u64,
}

/// The parsed directory of a version 3 shard.
#[derive(Clone, Debug)]
pub struct Directory {
    separators: Vec<u8>,
    rows: Vec<Row>,
}

/// One index block, as the directory describes it.
#[derive(Clone, Copy, Debug)]
pub struct BlockRef<'a> {
    /// Position among the blocks, from 0: with the shard's key, a key for a cache.
    pub number: usize,
    /// Files in the block.
    pub entries: u32,
    /// How many of them are big files.
    pub big_files: u32,
    /// Where the block starts in the shard.
    pub start: u64,
    /// Its stored length in bytes.
    pub len: u64,
    /// Where the payload of its first file starts.
    pub data_start: u64,
    /// Bytes of all its payloads together.
    pub data_len: u64,
    /// No uid of the block is less than this.
    pub(super) lower: &'a [u8],
    /// Every uid of the block is less than this; `None` for the last block.
    pub(super) upper: Option<&'a [u8]>,
}

impl BlockRef<'_> {
    /// The block's place in the shard.
    pub fn range(&self) -> Range<u64> {
        self.start..self.start + self.len
    }
}

impl Directory {
    /// Reads the stored directory, the bytes of [`Footer::directory_range`].
    ///
    /// # Errors
    /// [`ShardError`] when they are damaged or do not agree with the footer.
    pub fn parse(footer: &Footer, bytes: &[u8]) -> Result<Self, ShardError> {
        let corrupt = |detail: String| ShardError::corrupt(Part::Directory, footer.directory_offset, detail);
        if bytes.len() as u64 != u64::from(footer.directory_len) {
            let detail = format!("{} bytes of a directory of {}", bytes.len(), footer.directory_len);
            return Err(ShardError::Usage(detail));
        }
        let actual = crc32c::crc32c(bytes);
        if actual != footer.directory_crc32c {
            return Err(corrupt(format!("CRC-32C {actual:08x}, the footer says {:08x}", footer.directory_crc32c)));
        }
        let room = footer.blocks_end() - HEADER_LEN;
        if u64::from(footer.block_count) > room / MIN_BLOCK_LEN {
            return Err(corrupt(format!("{} index blocks do not fit into {room} bytes", footer.block_count)));
        }
        let raw = decompress_index(bytes, MAX_DIRECTORY_RAW).map_err(corrupt)?;
        // Positions inside the raw columns are told from the directory's start: there is no better place to name.
        let mut cursor = Cursor::new(&raw, Part::Directory, footer.directory_offset);
        let directory = Self::parse_columns(&mut cursor, footer.block_count as usize)?;
        directory.check(footer).map_err(corrupt)
    }

    fn parse_columns(cursor: &mut Cursor<'_>, count: usize) -> Result<Self, ShardError> {
        let shared = cursor.varints(count, "shared length")?;
        let suffix_lens = cursor.varints(count, "suffix length")?;
        let entries = cursor.varints(count, "entry count")?;
        let big_files = cursor.varints(count, "big file count")?;
        let data_lens = cursor.varints(count, "data length")?;
        let block_lens = cursor.varints(count, "block length")?;
        let separators = unfold(cursor, &shared, &suffix_lens, MAX_DIRECTORY_RAW)?;
        cursor.expect_end()?;
        let narrow = |n: u64| u32::try_from(n).map_err(|_| cursor.corrupt(format!("a block of {n} entries")));
        let rows = (0..count)
            .map(|i| {
                Ok(Row {
                    separator_end: separators.ends[i],
                    entries: narrow(entries[i])?,
                    big_files: narrow(big_files[i])?,
                    block_len: block_lens[i],
                    block_start: 0,
                    data_start: 0,
                    data_len: data_lens[i],
                })
            })
            .collect::<Result<_, ShardError>>()?;
        Ok(Self { separators: separators.bytes, rows })
    }

    /// Fills in the offsets and checks that everything adds up to the file.
    fn check(mut self, footer: &Footer) -> Result<Self, String> {
        if self.rows.first().is_some_and(|r| r.separator_end != 0) {
            return Err("the first separator is not empty".to_owned());
        }
        let mut place = Some(HEADER_LEN);
        for row in &mut self.rows {
            row.data_start = place.unwrap_or_default();
            place = place.and_then(|p| p.checked_add(row.data_len));
        }
        let mut entries = 0u64;
        for row in &mut self.rows {
            let entries_fit = (1..=MAX_BLOCK_ENTRIES).contains(&row.entries);
            if !entries_fit || row.big_files > row.entries || row.block_len < MIN_BLOCK_LEN {
                return Err(format!(
                    "a block of {} entries, {} of them big files, in {} bytes",
                    row.entries, row.big_files, row.block_len
                ));
            }
            row.block_start = place.unwrap_or_default();
            place = place.and_then(|p| p.checked_add(row.block_len));
            entries += u64::from(row.entries);
        }
        if place != Some(footer.blocks_end()) {
            return Err(format!("data and blocks end at {place:?} instead of {}", footer.blocks_end()));
        }
        if entries != footer.entry_count {
            return Err(format!("{entries} entries in the blocks, the footer says {}", footer.entry_count));
        }
        Ok(self)
    }

    fn separator(&self, number: usize) -> &[u8] {
        let from = if number == 0 { 0 } else { self.rows[number - 1].separator_end as usize };
        &self.separators[from..self.rows[number].separator_end as usize]
    }

    /// How many index blocks the shard has.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// True for a shard without files.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The block with this number, when there is one.
    pub fn block(&self, number: usize) -> Option<BlockRef<'_>> {
        let row = self.rows.get(number)?;
        Some(BlockRef {
            number,
            entries: row.entries,
            big_files: row.big_files,
            start: row.block_start,
            len: row.block_len,
            data_start: row.data_start,
            data_len: row.data_len,
            lower: self.separator(number),
            upper: (number + 1 < self.rows.len()).then(|| self.separator(number + 1)),
        })
    }

    /// All blocks in the order of their uids and of their places.
    pub fn blocks(&self) -> impl Iterator<Item = BlockRef<'_>> {
        (0..self.rows.len()).filter_map(|number| self.block(number))
    }

    /// The one block that can hold `uid`; `None` in a shard without files.
    pub fn find(&self, uid: &str) -> Option<BlockRef<'_>> {
        self.find_from(uid.as_bytes())
    }

    /// The first block that can hold uids from these bytes on, which need not be UTF-8; `None` in a shard without files.
    pub fn find_from(&self, uid: &[u8]) -> Option<BlockRef<'_>> {
        let (mut low, mut high) = (0, self.rows.len());
        while low < high {
            let middle = low + (high - low) / 2;
            if self.separator(middle) <= uid {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        self.block(low.checked_sub(1)?)
    }

    /// Memory held in bytes, for a cache that is bounded by bytes.
    pub fn heap_bytes(&self) -> usize {
        self.separators.capacity() + self.rows.capacity() * size_of::<Row>()
    }
}

/// Strings that were stored as what each adds to the one before.
pub(super) struct Strings {
    pub(super) bytes: Vec<u8>,
    pub(super) ends: Vec<u32>,
}

/// Restores front-coded strings: each must be greater than the one before, and all together at most `limit` bytes,
/// which is checked before anything is allocated.
pub(super) fn unfold(
    cursor: &mut Cursor<'_>,
    shared: &[u64],
    suffix_lens: &[u64],
    limit: usize,
) -> Result<Strings, ShardError> {
    let mut total = 0u64;
    for (i, (shared, suffix)) in shared.iter().zip(suffix_lens).enumerate() {
        total = total.saturating_add(*shared).saturating_add(*suffix);
        if total > limit as u64 {
            return Err(cursor.corrupt(format!("strings of more than {limit} bytes, at number {i}")));
        }
    }
    let mut out = Strings { bytes: Vec::with_capacity(total as usize), ends: Vec::with_capacity(shared.len()) };
    let mut previous = 0..0;
    for (i, (shared, suffix_len)) in shared.iter().zip(suffix_lens).enumerate() {
        let (shared, suffix) = (*shared as usize, cursor.take(*suffix_len as usize, "a string's end")?);
        let before = out.bytes[previous.clone()].get(..shared).is_some();
        // Greater than the one before: it goes on where that one ends, or differs upwards at the first own byte.
        let next_of_previous = out.bytes[previous.clone()].get(shared).copied();
        let ascends = match (suffix.first(), next_of_previous) {
            (Some(_), None) => true,
            (Some(own), Some(theirs)) => *own > theirs,
            (None, _) => i == 0,
        };
        if !before || !ascends {
            return Err(cursor.corrupt(format!("string number {i} is not greater than the one before")));
        }
        let start = out.bytes.len();
        out.bytes.extend_from_within(previous.start..previous.start + shared);
        out.bytes.extend_from_slice(suffix);
        previous = start..out.bytes.len();
        out.ends.push(out.bytes.len() as u32);
    }
    Ok(out)
}

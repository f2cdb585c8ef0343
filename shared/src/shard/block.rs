//! An index block of version 3: a few hundred entries, sorted by uid.
//!
//! Stored as `zstd(columns) | CRC-32C of each inline payload | SHA-256 of each big file | CRC-32C of all that`.
//! Checksums and hashes do not compress and would spoil the statistics of the rest, so they stay outside the frame.

use super::codec::{compress_index, decompress_index};
use super::directory::{BlockRef, unfold};
use super::entry::{Codec, Entry, Inline, Location};
use super::error::{Part, ShardError};
use super::meta::Meta;
use super::rows::{BIG_FILE, Body, CODEC_MASK, HAS_META, KNOWN_FLAGS, Row};
use super::wire::{Cursor, common_prefix};
use crate::varint;

/// The largest block, in bytes: of its columns after decompression, and of its uids written out.
pub(super) const MAX_BLOCK_RAW: usize = 8 << 20;

/// Collects rows and writes one block.
#[derive(Default)]
pub(super) struct BlockBuilder {
    shared: Vec<u8>,
    suffix_lens: Vec<u8>,
    suffixes: Vec<u8>,
    flags: Vec<u8>,
    stored: Vec<u8>,
    raw: Vec<u8>,
    crcs: Vec<u8>,
    hashes: Vec<u8>,
    meta_lens: Vec<u8>,
    metas: Vec<u8>,
    last_uid: Vec<u8>,
    weight: usize,
    data_len: u64,
}

/// A finished block.
pub(super) struct BuiltBlock {
    pub(super) bytes: Vec<u8>,
    pub(super) entries: u32,
    pub(super) big_files: u32,
    pub(super) data_len: u64,
}

impl BlockBuilder {
    /// Bytes a row adds to a block's weight: no less than it takes in a reader's memory or in the raw columns.
    pub(super) fn weight_of(row: &Row<'_>) -> usize {
        row.uid.len() + row.meta.map_or(0, str::len) + 64
    }

    pub(super) fn weight(&self) -> usize {
        self.weight
    }

    pub(super) fn len(&self) -> usize {
        self.flags.len()
    }

    /// The uid added last.
    pub(super) fn last_uid(&self) -> &[u8] {
        &self.last_uid
    }

    pub(super) fn push(&mut self, row: &Row<'_>) {
        let uid = row.uid.as_bytes();
        let shared = if self.flags.is_empty() { 0 } else { common_prefix(&self.last_uid, uid) };
        varint::put(&mut self.shared, shared as u64);
        varint::put(&mut self.suffix_lens, (uid.len() - shared) as u64);
        self.suffixes.extend_from_slice(&uid[shared..]);
        self.flags.push(row.flags());
        match row.body {
            Body::Inline { codec, stored_len, raw_len, crc32c } => {
                varint::put(&mut self.stored, stored_len);
                if codec != Codec::None {
                    varint::put(&mut self.raw, raw_len);
                }
                self.crcs.extend_from_slice(&crc32c.to_le_bytes());
            }
            Body::BigFile { sha256, size } => {
                varint::put(&mut self.raw, size);
                self.hashes.extend_from_slice(&sha256);
            }
        }
        if let Some(meta) = row.meta {
            varint::put(&mut self.meta_lens, meta.len() as u64);
            self.metas.extend_from_slice(meta.as_bytes());
        }
        self.last_uid.clear();
        self.last_uid.extend_from_slice(uid);
        self.weight += Self::weight_of(row);
        self.data_len += row.stored_len();
    }

    /// The stored block; the builder is empty again, except for the last uid.
    pub(super) fn finish(&mut self) -> Result<BuiltBlock, ShardError> {
        let mut this = std::mem::take(self);
        let columns = [
            &this.shared,
            &this.suffix_lens,
            &this.flags,
            &this.stored,
            &this.raw,
            &this.meta_lens,
            &this.suffixes,
            &this.metas,
        ];
        let raw: Vec<u8> = columns.into_iter().flatten().copied().collect();
        let mut bytes = compress_index(&raw)?;
        bytes.extend_from_slice(&this.crcs);
        bytes.extend_from_slice(&this.hashes);
        bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
        self.last_uid = std::mem::take(&mut this.last_uid);
        Ok(BuiltBlock {
            bytes,
            entries: this.flags.len() as u32,
            big_files: (this.hashes.len() / 32) as u32,
            data_len: this.data_len,
        })
    }
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    offset: u64,
    stored_len: u64,
    raw_len: u64,
    /// CRC-32C of an inline payload; position of a big file's hash.
    check: u32,
    uid_end: u32,
    meta_end: u32,
    flags: u8,
}

/// A parsed and checked index block.
#[derive(Clone, Debug)]
pub struct Block {
    uids: Vec<u8>,
    metas: Vec<u8>,
    hashes: Vec<[u8; 32]>,
    slots: Vec<Slot>,
}

impl Block {
    /// Reads a stored block, the bytes of [`BlockRef::range`].
    ///
    /// # Errors
    /// [`ShardError`] when they are damaged or do not agree with the directory.
    pub fn parse(bytes: &[u8], block: &BlockRef<'_>) -> Result<Self, ShardError> {
        let corrupt = |detail: String| ShardError::corrupt(Part::Block, block.start, detail);
        if bytes.len() as u64 != block.len {
            return Err(ShardError::Usage(format!("{} bytes of an index block of {}", bytes.len(), block.len)));
        }
        let (body, stored) =
            bytes.split_last_chunk::<4>().ok_or_else(|| corrupt("shorter than its checksum".to_owned()))?;
        let (stored, actual) = (u32::from_le_bytes(*stored), crc32c::crc32c(body));
        if stored != actual {
            return Err(corrupt(format!("CRC-32C {actual:08x}, {stored:08x} is written behind it")));
        }
        let inline = block.entries.saturating_sub(block.big_files);
        let outside = u64::from(inline) * 4 + u64::from(block.big_files) * 32;
        let frame_len = (body.len() as u64)
            .checked_sub(outside)
            .ok_or_else(|| corrupt(format!("checksums of {} entries do not fit into it", block.entries)))?;
        let (frame, outside) = body.split_at(frame_len as usize);
        let (crcs, hashes) = outside.split_at(inline as usize * 4);
        let raw = decompress_index(frame, MAX_BLOCK_RAW).map_err(corrupt)?;
        let mut cursor = Cursor::new(&raw, Part::Block, block.start);
        let parsed = Self::parse_columns(&mut cursor, block, crcs, hashes)?;
        parsed.check_uids(block).map_err(corrupt)?;
        Ok(parsed)
    }

    fn parse_columns(
        cursor: &mut Cursor<'_>,
        block: &BlockRef<'_>,
        crcs: &[u8],
        hashes: &[u8],
    ) -> Result<Self, ShardError> {
        let count = block.entries as usize;
        let shared = cursor.varints(count, "shared length")?;
        let suffix_lens = cursor.varints(count, "uid length")?;
        let flags = cursor.take(count, "flags")?;
        check_flags(flags, block).map_err(|detail| cursor.corrupt(detail))?;
        let mut slots = Vec::with_capacity(count);
        let mut crcs = crcs.chunks_exact(4).map(|c| u32::from_le_bytes([c[0], c[1], c[2], c[3]]));
        let (mut offset, mut big_files) = (block.data_start, 0);
        let data_end = block.data_start + block.data_len;
        for &flags in flags {
            let (stored_len, check) = if flags & BIG_FILE == 0 {
                (cursor.varint("stored length")?, crcs.next().unwrap_or_default())
            } else {
                big_files += 1;
                (0, big_files - 1)
            };
            slots.push(Slot { offset, stored_len, raw_len: stored_len, check, uid_end: 0, meta_end: 0, flags });
            offset = offset.checked_add(stored_len).filter(|end| *end <= data_end).ok_or_else(|| {
                cursor.corrupt(format!("a payload of {stored_len} bytes at {offset} goes beyond its data, {data_end}"))
            })?;
        }
        if offset != data_end {
            return Err(cursor.corrupt(format!("payloads end at {offset}, the directory says {data_end}")));
        }
        for slot in slots.iter_mut().filter(|s| s.flags & (BIG_FILE | CODEC_MASK) != 0) {
            slot.raw_len = cursor.varint("raw length")?;
        }
        let with_meta = flags.iter().filter(|f| *f & HAS_META != 0).count();
        let mut meta_lens = cursor.varints(with_meta, "meta length")?.into_iter();
        let uids = unfold(cursor, &shared, &suffix_lens, MAX_BLOCK_RAW)?;
        let mut meta_end = 0u64;
        for (slot, uid_end) in slots.iter_mut().zip(&uids.ends) {
            slot.uid_end = *uid_end;
            if slot.flags & HAS_META != 0 {
                meta_end = meta_end.saturating_add(meta_lens.next().unwrap_or_default());
            }
            // Larger than any block for numbers that lie; the bytes are then missing below.
            slot.meta_end = u32::try_from(meta_end).unwrap_or(u32::MAX);
        }
        let metas = cursor.take(usize::try_from(meta_end).unwrap_or(usize::MAX), "meta")?.to_vec();
        cursor.expect_end()?;
        Ok(Self { uids: uids.bytes, metas, hashes: hashes.chunks_exact(32).map(copy32).collect(), slots })
    }

    /// Uids are UTF-8, not empty, of a legal length and in the range that the directory leads here for.
    fn check_uids(&self, block: &BlockRef<'_>) -> Result<(), String> {
        for number in 0..self.slots.len() {
            let uid = self.uid_bytes(number);
            if uid.is_empty() || uid.len() > crate::ids::MAX_UID_BYTES {
                return Err(format!("entry {number} has a uid of {} bytes", uid.len()));
            }
            std::str::from_utf8(uid).map_err(|e| format!("the uid of entry {number} is not UTF-8: {e}"))?;
        }
        let Some(last) = self.slots.len().checked_sub(1) else { return Ok(()) };
        if self.uid_bytes(0) < block.lower || block.upper.is_some_and(|upper| self.uid_bytes(last) >= upper) {
            return Err("its uids are not those that the directory leads here for".to_owned());
        }
        Ok(())
    }

    fn uid_bytes(&self, number: usize) -> &[u8] {
        let from = if number == 0 { 0 } else { self.slots[number - 1].uid_end as usize };
        &self.uids[from..self.slots[number].uid_end as usize]
    }

    fn uid(&self, number: usize) -> &str {
        std::str::from_utf8(self.uid_bytes(number)).expect("checked when the block was parsed")
    }

    /// Files in the block.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// True when the block holds no files (a block that was read from a shard holds at least one).
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// The entry of `uid`, when the block holds it.
    ///
    /// # Errors
    /// [`ShardError::CorruptEntry`] when its meta is not the JSON object it should be.
    pub fn find(&self, uid: &str) -> Result<Option<Entry>, ShardError> {
        let (mut low, mut high) = (0, self.slots.len());
        while low < high {
            let middle = low + (high - low) / 2;
            match self.uid_bytes(middle).cmp(uid.as_bytes()) {
                std::cmp::Ordering::Equal => return self.entry(middle).map(Some),
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        Ok(None)
    }

    /// All entries in the order of their uids, which is that of their payloads.
    pub fn entries(&self) -> impl Iterator<Item = Result<Entry, ShardError>> + '_ {
        (0..self.slots.len()).map(|number| self.entry(number))
    }

    /// The same from these bytes on, which need not be UTF-8.
    pub fn entries_from(&self, uid: &[u8]) -> impl Iterator<Item = Result<Entry, ShardError>> + '_ {
        let (mut low, mut high) = (0, self.slots.len());
        while low < high {
            let middle = low + (high - low) / 2;
            if self.uid_bytes(middle) < uid {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        (low..self.slots.len()).map(|number| self.entry(number))
    }

    fn entry(&self, number: usize) -> Result<Entry, ShardError> {
        let slot = &self.slots[number];
        let location = if slot.flags & BIG_FILE != 0 {
            Location::BigFile { sha256: self.hashes[slot.check as usize], size: slot.raw_len }
        } else {
            Location::Inline(Inline {
                offset: slot.offset,
                stored_len: slot.stored_len,
                codec: Codec::from_number(slot.flags & CODEC_MASK).expect("two bits name four codecs"),
                raw_len: slot.raw_len,
                crc32c: Some(slot.check),
            })
        };
        let meta = if slot.flags & HAS_META == 0 {
            None
        } else {
            let from = if number == 0 { 0 } else { self.slots[number - 1].meta_end as usize };
            let text = std::str::from_utf8(&self.metas[from..slot.meta_end as usize])
                .map_err(|e| format!("meta is not UTF-8: {e}"))
                .and_then(Meta::from_stored)
                .map_err(|detail| ShardError::entry(self.uid(number), slot.offset, detail))?;
            Some(text)
        };
        Ok(Entry { uid: self.uid(number).to_owned(), location, meta })
    }

    /// Memory held in bytes, for a cache that is bounded by bytes.
    pub fn heap_bytes(&self) -> usize {
        self.uids.capacity()
            + self.metas.capacity()
            + self.hashes.capacity() * 32
            + self.slots.capacity() * size_of::<Slot>()
    }
}

fn copy32(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(bytes);
    hash
}

fn check_flags(flags: &[u8], block: &BlockRef<'_>) -> Result<(), String> {
    if let Some(odd) = flags.iter().find(|f| *f & !KNOWN_FLAGS != 0 || (*f & BIG_FILE != 0 && *f & CODEC_MASK != 0)) {
        return Err(format!("flags {odd:#04x} of an entry"));
    }
    let big_files = flags.iter().filter(|f| *f & BIG_FILE != 0).count();
    if big_files != block.big_files as usize {
        return Err(format!("{big_files} big files, the directory says {}", block.big_files));
    }
    Ok(())
}

//! The index of a shard that is being written, kept as compactly as the format itself: a row costs its uid plus
//! about 10 bytes. Chunks, not one vector: doubling a vector of a million rows would need three times its memory.

use super::entry::Codec;
use super::error::{Part, ShardError};
use super::meta::Meta;
use super::wire::Cursor;
use crate::varint;

/// Flags of a row, the same in memory, in checkpoints and in index blocks.
pub(super) const CODEC_MASK: u8 = 0b0011;
pub(super) const BIG_FILE: u8 = 0b0100;
pub(super) const HAS_META: u8 = 0b1000;
pub(super) const KNOWN_FLAGS: u8 = CODEC_MASK | BIG_FILE | HAS_META;

/// Bytes of a chunk before the next is started.
const CHUNK_BYTES: usize = 256 * 1024;

/// No less than a row's bytes beside uid and meta: lengths, flags, size and hash.
const MAX_FIXED_BYTES: usize = 64;

/// One row, borrowed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row<'a> {
    pub(super) uid: &'a str,
    pub(super) body: Body,
    pub(super) meta: Option<&'a str>,
}

/// What a row says about the file's bytes. Offsets follow from the order.
#[derive(Clone, Copy, Debug)]
pub(super) enum Body {
    Inline { codec: Codec, stored_len: u64, raw_len: u64, crc32c: u32 },
    BigFile { sha256: [u8; 32], size: u64 },
}

impl Row<'_> {
    pub(super) fn flags(&self) -> u8 {
        let body = match self.body {
            Body::Inline { codec, .. } => codec.number(),
            Body::BigFile { .. } => BIG_FILE,
        };
        body | if self.meta.is_some() { HAS_META } else { 0 }
    }

    pub(super) fn stored_len(&self) -> u64 {
        match self.body {
            Body::Inline { stored_len, .. } => stored_len,
            Body::BigFile { .. } => 0,
        }
    }

    pub(super) fn raw_len(&self) -> u64 {
        match self.body {
            Body::Inline { raw_len, .. } => raw_len,
            Body::BigFile { size, .. } => size,
        }
    }
}

struct Chunk {
    first_row: u64,
    /// Stored bytes of all payloads before this chunk's.
    stored_before: u64,
    bytes: Vec<u8>,
}

/// All rows of a shard in the order added.
#[derive(Default)]
pub(super) struct Rows {
    chunks: Vec<Chunk>,
    count: u64,
    stored: u64,
}

impl Rows {
    pub(super) fn len(&self) -> u64 {
        self.count
    }

    pub(super) fn push(&mut self, row: &Row<'_>) {
        let needed = row.uid.len() + row.meta.map_or(0, str::len) + MAX_FIXED_BYTES;
        // A chunk never grows past its first capacity, except for one row that is larger than that.
        if self.chunks.last().is_none_or(|c| c.bytes.len() + needed > CHUNK_BYTES) {
            let bytes = Vec::with_capacity(CHUNK_BYTES);
            self.chunks.push(Chunk { first_row: self.count, stored_before: self.stored, bytes });
        }
        let chunk = self.chunks.last_mut().expect("one was just added");
        encode(&mut chunk.bytes, row);
        self.count += 1;
        self.stored += row.stored_len();
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = Row<'_>> {
        self.chunks.iter().flat_map(|c| RowIter { cursor: Cursor::new(&c.bytes, Part::Rows, 0) })
    }

    /// The encoded rows from number `first` on, and the stored bytes of all payloads before them. Costs what these
    /// rows cost, not what all rows cost: a checkpoint is taken for each uploaded part.
    pub(super) fn encoded_since(&self, first: u64) -> (Vec<u8>, u64) {
        let start = self.chunks.partition_point(|c| c.first_row <= first).saturating_sub(1);
        let mut out = Vec::new();
        let mut stored = self.chunks.get(start).map_or(0, |c| c.stored_before);
        for chunk in self.chunks.iter().skip(start) {
            let mut rows = RowIter { cursor: Cursor::new(&chunk.bytes, Part::Rows, 0) };
            let skip = first.saturating_sub(chunk.first_row) as usize;
            stored += rows.by_ref().take(skip).map(|r| r.stored_len()).sum::<u64>();
            out.extend_from_slice(&chunk.bytes[rows.cursor.position()..]);
        }
        (out, stored)
    }

    /// Heap bytes held.
    pub(super) fn heap_bytes(&self) -> usize {
        self.chunks.iter().map(|c| c.bytes.capacity()).sum()
    }
}

struct RowIter<'a> {
    cursor: Cursor<'a>,
}

impl<'a> Iterator for RowIter<'a> {
    type Item = Row<'a>;
    fn next(&mut self) -> Option<Row<'a>> {
        (self.cursor.remaining() > 0).then(|| decode(&mut self.cursor).expect("rows were encoded here"))
    }
}

fn encode(out: &mut Vec<u8>, row: &Row<'_>) {
    varint::put(out, row.uid.len() as u64);
    out.extend_from_slice(row.uid.as_bytes());
    out.push(row.flags());
    match row.body {
        Body::Inline { codec, stored_len, raw_len, crc32c } => {
            varint::put(out, stored_len);
            if codec != Codec::None {
                varint::put(out, raw_len);
            }
            out.extend_from_slice(&crc32c.to_le_bytes());
        }
        Body::BigFile { sha256, size } => {
            varint::put(out, size);
            out.extend_from_slice(&sha256);
        }
    }
    if let Some(meta) = row.meta {
        varint::put(out, meta.len() as u64);
        out.extend_from_slice(meta.as_bytes());
    }
}

/// Reads one row; checks what bytes can be checked for (the order is the writer's to check).
pub(super) fn decode<'a>(cursor: &mut Cursor<'a>) -> Result<Row<'a>, ShardError> {
    let uid_len = cursor.varint("uid length")? as usize;
    let uid = text(cursor, uid_len, "uid")?;
    let flags = cursor.u8("flags")?;
    if flags & !KNOWN_FLAGS != 0 || (flags & BIG_FILE != 0 && flags & CODEC_MASK != 0) {
        return Err(cursor.corrupt(format!("flags {flags:#04x} of a row")));
    }
    let body = if flags & BIG_FILE != 0 {
        let size = cursor.varint("big file size")?;
        let mut sha256 = [0; 32];
        sha256.copy_from_slice(cursor.take(32, "sha256")?);
        Body::BigFile { sha256, size }
    } else {
        let codec = Codec::from_number(flags & CODEC_MASK).expect("two bits name four codecs");
        let stored_len = cursor.varint("stored length")?;
        let raw_len = if codec == Codec::None { stored_len } else { cursor.varint("raw length")? };
        Body::Inline { codec, stored_len, raw_len, crc32c: cursor.u32("crc32c")? }
    };
    let meta = if flags & HAS_META == 0 {
        None
    } else {
        let len = cursor.varint("meta length")? as usize;
        Some(text(cursor, len, "meta")?)
    };
    Ok(Row { uid, body, meta })
}

fn text<'a>(cursor: &mut Cursor<'a>, len: usize, what: &str) -> Result<&'a str, ShardError> {
    let bytes = cursor.take(len, what)?;
    std::str::from_utf8(bytes).map_err(|e| cursor.corrupt(format!("{what} is not UTF-8: {e}")))
}

/// Borrows an optional meta's text.
pub(super) fn meta_text(meta: Option<&Meta>) -> Option<&str> {
    meta.map(Meta::as_str)
}

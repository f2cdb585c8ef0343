//! The index of versions 1 and 2: read for ever, version 2 also written.
//!
//! These versions have no checksums. What makes the index unreadable as a whole is an error when it is opened; what
//! is wrong with one entry is an error when that entry is asked for, so the others stay readable.

use bytes::Bytes;

use super::entry::{Codec, Entry, Inline, Location, hex32, parse_hex32};
use super::error::{Part, ShardError};
use super::footer::{HEADER_LEN, LegacyTail, Version, legacy_footer_bytes, parse_header};
use super::meta::Meta;
use super::rows::{Body, Row, Rows};
use super::wire::Cursor;

const IS_BIG_FILE: u8 = 1;
/// Bytes of the shortest entry: a version 1 entry with an empty name is 35, a version 2 big file 17.
const MIN_ENTRY_LEN: usize = 17;

/// The parsed index of a version 1 or 2 shard: the index bytes themselves and 4 bytes an entry.
#[derive(Clone, Debug)]
pub struct Index {
    version: Version,
    tail: LegacyTail,
    bytes: Bytes,
    /// Where each entry starts in `bytes`, sorted by uid.
    positions: Vec<u32>,
}

impl Index {
    /// Reads the index from the shard's first [`HEADER_LEN`] bytes and its index section
    /// ([`LegacyTail::index_range`]). The bytes are kept as they are: a slice of a larger buffer keeps all of that
    /// buffer alive, so copy it first when the index goes into a cache. Of a uid that stands twice the last entry counts.
    ///
    /// # Errors
    /// [`ShardError`] when the entries cannot be told apart.
    pub fn parse(header: &[u8], tail: LegacyTail, bytes: Bytes) -> Result<Self, ShardError> {
        let version = parse_header(header)?;
        if version == Version::V3 {
            let detail = "version 3 in the header, but the footer of version 1 or 2".to_owned();
            return Err(ShardError::Corrupt { part: Part::Header, offset: 4, detail });
        }
        if bytes.len() as u64 != tail.index_end - tail.index_start {
            return Err(ShardError::Usage(format!("{} bytes of an index at {:?}", bytes.len(), tail.index_range())));
        }
        if u32::try_from(bytes.len()).is_err() {
            let detail = format!("{} bytes; this reader takes less than 4 GiB", bytes.len());
            return Err(ShardError::Unsupported { part: Part::Index, detail });
        }
        let mut cursor = Cursor::new(&bytes, Part::Index, tail.index_start);
        let count = entry_count(&mut cursor)?;
        let mut positions = Vec::with_capacity(count);
        for _ in 0..count {
            positions.push(cursor.position() as u32);
            read_entry(&mut cursor, version)?;
        }
        let mut index = Self { version, tail, bytes, positions };
        index.sort();
        Ok(index)
    }

    /// The version that the index section alone tells, without the header: the one of the two in which every entry makes
    /// sense and the last one ends where the section ends. `None` when that is not exactly one, so that the header has to
    /// tell. It cannot be mistaken for the other one's: a first payload at byte 8 gives flags of 8 when version 1 is read as
    /// 2, and lengths multiplied by 256 the other way round.
    pub fn version_without_header(tail: LegacyTail, bytes: &[u8]) -> Option<Version> {
        let fits = |version: &Version| {
            let mut cursor = Cursor::new(bytes, Part::Index, tail.index_start);
            let Ok(count @ 1..) = entry_count(&mut cursor) else { return false };
            let sound = |_| {
                let entry = read_entry(&mut cursor, *version);
                entry.is_ok_and(|e| e.flags <= IS_BIG_FILE && e.location(tail.index_start).is_ok())
            };
            (0..count).all(sound) && cursor.remaining() == 0
        };
        match [Version::V1, Version::V2].map(|version| fits(&version).then_some(version)) {
            [Some(version), None] | [None, Some(version)] => Some(version),
            _ => None,
        }
    }

    /// Sorts by uid; of equal uids only the last one stays.
    fn sort(&mut self) {
        let mut positions = std::mem::take(&mut self.positions);
        positions.sort_by(|a, b| self.uid_at(*a).cmp(self.uid_at(*b)).then(b.cmp(a)));
        positions.dedup_by(|next, kept| self.uid_at(*next) == self.uid_at(*kept));
        self.positions = positions;
    }

    fn uid_at(&self, position: u32) -> &[u8] {
        let entry = &self.bytes[position as usize..];
        &entry[2..2 + usize::from(u16::from_le_bytes([entry[0], entry[1]]))]
    }

    /// Which of the two versions the shard has.
    pub fn version(&self) -> Version {
        self.version
    }

    /// How many different uids the shard holds.
    pub fn len(&self) -> usize {
        self.positions.len()
    }

    /// True for a shard without files.
    pub fn is_empty(&self) -> bool {
        self.positions.is_empty()
    }

    /// The entry of `uid`, when the shard holds it.
    ///
    /// # Errors
    /// [`ShardError::CorruptEntry`] when the entry contradicts itself or points outside the data section.
    pub fn find(&self, uid: &str) -> Result<Option<Entry>, ShardError> {
        match self.positions.binary_search_by(|p| self.uid_at(*p).cmp(uid.as_bytes())) {
            Ok(at) => self.entry_at(self.positions[at]).map(Some),
            Err(_) => Ok(None),
        }
    }

    /// All entries in the order of their uids.
    pub fn entries(&self) -> impl Iterator<Item = Result<Entry, ShardError>> + '_ {
        self.positions.iter().map(|p| self.entry_at(*p))
    }

    /// The same from these bytes on, which need not be UTF-8.
    pub fn entries_from(&self, uid: &[u8]) -> impl Iterator<Item = Result<Entry, ShardError>> + '_ {
        let first = self.positions.partition_point(|p| self.uid_at(*p) < uid);
        self.positions[first..].iter().map(|p| self.entry_at(*p))
    }

    fn entry_at(&self, position: u32) -> Result<Entry, ShardError> {
        let start = position as usize;
        let base = self.tail.index_start + start as u64;
        let raw = read_entry(&mut Cursor::new(&self.bytes[start..], Part::Index, base), self.version)?;
        raw.check(self.tail.index_start).map_err(|detail| ShardError::entry(raw.uid, raw.offset(), detail))
    }

    /// Memory held in bytes, for a cache that is bounded by bytes.
    pub fn heap_bytes(&self) -> usize {
        self.bytes.len() + self.positions.capacity() * size_of::<u32>()
    }
}

/// How many entries there are: no more than the bytes can hold.
fn entry_count(cursor: &mut Cursor<'_>) -> Result<usize, ShardError> {
    let count = cursor.u32("entry count")? as usize;
    if count > cursor.remaining() / MIN_ENTRY_LEN {
        return Err(cursor.corrupt(format!("{count} entries do not fit into {} bytes", cursor.remaining())));
    }
    Ok(count)
}

/// An entry as it stands in the file.
struct RawEntry<'a> {
    uid: &'a str,
    flags: u8,
    body: RawBody<'a>,
    meta: &'a [u8],
}

enum RawBody<'a> {
    Inline { offset: u64, length: u64, codec: u8, compressed: u64, uncompressed: u64 },
    BigFile { hash: &'a [u8], size: u64 },
}

fn read_entry<'a>(cursor: &mut Cursor<'a>, version: Version) -> Result<RawEntry<'a>, ShardError> {
    let name_len = cursor.u16("name length")?;
    let name = cursor.take(usize::from(name_len), "name")?;
    let uid = std::str::from_utf8(name).map_err(|e| cursor.corrupt(format!("a uid that is not UTF-8: {e}")))?;
    let flags = if version == Version::V1 { 0 } else { cursor.u8("flags")? };
    let body = if flags & IS_BIG_FILE == 0 {
        RawBody::Inline {
            offset: cursor.u64("offset")?,
            length: cursor.u64("length")?,
            codec: cursor.u8("codec")?,
            compressed: cursor.u64("compressed size")?,
            uncompressed: cursor.u64("uncompressed size")?,
        }
    } else {
        let hash_len = cursor.u16("hash length")?;
        let hash = cursor.take(usize::from(hash_len), "hash")?;
        RawBody::BigFile { hash, size: cursor.u64("big file size")? }
    };
    let meta = if version == Version::V1 {
        &[]
    } else {
        let len = cursor.u32("meta length")?;
        cursor.take(len as usize, "meta")?
    };
    Ok(RawEntry { uid, flags, body, meta })
}

impl RawEntry<'_> {
    fn offset(&self) -> u64 {
        match self.body {
            RawBody::Inline { offset, .. } => offset,
            RawBody::BigFile { .. } => 0,
        }
    }

    /// The entry, when it does not contradict itself. Payloads lie between the header and `data_end`.
    fn check(&self, data_end: u64) -> Result<Entry, String> {
        let location = self.location(data_end)?;
        let meta = if self.meta.is_empty() {
            None
        } else {
            let text = std::str::from_utf8(self.meta).map_err(|e| format!("meta is not UTF-8: {e}"))?;
            Meta::parse(text)?
        };
        Ok(Entry { uid: self.uid.to_owned(), location, meta })
    }

    fn location(&self, data_end: u64) -> Result<Location, String> {
        Ok(match self.body {
            RawBody::Inline { offset, length, codec, compressed, uncompressed } => {
                let codec = match Codec::from_number(codec) {
                    Some(codec) if codec != Codec::ZstdDict => codec,
                    _ => return Err(format!("codec {codec}; versions 1 and 2 know 0, 1 and 2")),
                };
                if offset < HEADER_LEN || offset.checked_add(length).is_none_or(|end| end > data_end) {
                    return Err(format!(
                        "{length} bytes at {offset} are not inside the data, {HEADER_LEN} to {data_end}"
                    ));
                }
                if compressed != length {
                    return Err(format!("length {length}, but compressed size {compressed}"));
                }
                if codec == Codec::None && uncompressed != length {
                    return Err(format!("stored as it is, but {length} bytes of {uncompressed}"));
                }
                let (stored_len, raw_len) = (length, uncompressed);
                Location::Inline(Inline { offset, stored_len, codec, raw_len, crc32c: None })
            }
            RawBody::BigFile { hash, size } => {
                let sha256 = parse_hex32(hash).ok_or_else(|| {
                    format!("a big file's hash of {} bytes; expected 64 lower-case hex digits", hash.len())
                })?;
                Location::BigFile { sha256, size }
            }
        })
    }
}

/// The index section and footer of a version 2 shard.
pub(super) fn encode_v2(rows: &Rows) -> Result<Vec<u8>, ShardError> {
    let count = u32::try_from(rows.len())
        .map_err(|_| ShardError::Usage(format!("{} files; version 2 holds at most 2^32 - 1", rows.len())))?;
    check_unique(rows)?;
    let mut out = count.to_le_bytes().to_vec();
    let mut offset = HEADER_LEN;
    for row in rows.iter() {
        put_entry(&mut out, &row, offset);
        offset += row.stored_len();
    }
    let footer = legacy_footer_bytes(out.len() as u64);
    out.extend_from_slice(&footer);
    Ok(out)
}

fn put_entry(out: &mut Vec<u8>, row: &Row<'_>, offset: u64) {
    out.extend_from_slice(&(row.uid.len() as u16).to_le_bytes());
    out.extend_from_slice(row.uid.as_bytes());
    match row.body {
        Body::Inline { codec, stored_len, raw_len, .. } => {
            out.push(0);
            out.extend_from_slice(&offset.to_le_bytes());
            out.extend_from_slice(&stored_len.to_le_bytes());
            out.push(codec.number());
            out.extend_from_slice(&stored_len.to_le_bytes());
            out.extend_from_slice(&raw_len.to_le_bytes());
        }
        Body::BigFile { sha256, size } => {
            out.push(IS_BIG_FILE);
            let hash = hex32(&sha256);
            out.extend_from_slice(&(hash.len() as u16).to_le_bytes());
            out.extend_from_slice(hash.as_bytes());
            out.extend_from_slice(&size.to_le_bytes());
        }
    }
    let meta = row.meta.unwrap_or_default();
    out.extend_from_slice(&(meta.len() as u32).to_le_bytes());
    out.extend_from_slice(meta.as_bytes());
}

/// Version 2 keeps the order added, so a duplicate shows only when the uids are sorted.
fn check_unique(rows: &Rows) -> Result<(), ShardError> {
    let mut uids: Vec<&str> = rows.iter().map(|r| r.uid).collect();
    uids.sort_unstable();
    match uids.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(ShardError::input(pair[0], "it was added twice")),
        None => Ok(()),
    }
}

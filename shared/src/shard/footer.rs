//! Header and footer: the first and the last bytes of a shard, and what the last ones lead to.

use std::ops::Range;

use bytes::Bytes;

use super::error::{Part, ShardError};
use super::wire::Cursor;

/// Bytes of the header of every version.
pub const HEADER_LEN: u64 = 8;
/// How much of a shard's end is worth reading first: footer, directory (both together at most 64 KiB) and dictionary
/// (at most 112 KiB) of version 3 lie in it, and the whole index of many shards. One request instead of three.
pub const TAIL_READ_BYTES: u64 = 192 * 1024;
/// The longest dictionary a shard may hold, in bytes.
pub const MAX_DICTIONARY_BYTES: usize = 112 * 1024;

pub(super) const LEGACY_FOOTER_LEN: u64 = 12;
pub(super) const FOOTER_LEN: u64 = 72;

const HEADER_MAGIC: &[u8; 4] = b"DES2";
const LEGACY_FOOTER_MAGIC: &[u8; 4] = b"DESI";
const FOOTER_MAGIC: &[u8; 4] = b"DES3";

/// The version of the shard format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    /// Inline payloads only; read, never written.
    V1 = 1,
    /// Big files and meta.
    V2 = 2,
    /// Checksums, sorted and compressed index, dictionary.
    V3 = 3,
}

/// The header of a shard of `version`.
pub(super) fn header_bytes(version: Version) -> [u8; 8] {
    header_with(version as u8)
}

/// The same as a buffer, for who knows the version from the rest of the shard.
pub fn header_of(version: Version) -> Bytes {
    Bytes::copy_from_slice(&header_bytes(version))
}

fn header_with(version: u8) -> [u8; 8] {
    let mut header = [0; 8];
    header[..4].copy_from_slice(HEADER_MAGIC);
    header[4] = version;
    header
}

/// Reads the first 8 bytes of a shard.
///
/// # Errors
/// [`ShardError::Corrupt`] names the first wrong byte; [`ShardError::Unsupported`] an unknown version.
pub fn parse_header(bytes: &[u8]) -> Result<Version, ShardError> {
    let header = bytes.get(..HEADER_LEN as usize).ok_or_else(|| {
        ShardError::corrupt(Part::Header, bytes.len() as u64, format!("{} bytes; a header has 8", bytes.len()))
    })?;
    let version = header[4];
    let expected = header_with(version);
    if let Some(at) = header.iter().zip(expected).position(|(found, expected)| *found != expected) {
        let detail = format!("{:#04x} instead of {:#04x}", header[at], expected[at]);
        return Err(ShardError::corrupt(Part::Header, at as u64, detail));
    }
    match version {
        1 => Ok(Version::V1),
        2 => Ok(Version::V2),
        3 => Ok(Version::V3),
        n => Err(ShardError::Unsupported {
            part: Part::Header,
            detail: format!("version {n} at byte 4; this reader knows 1, 2 and 3"),
        }),
    }
}

/// The last bytes of a shard, as one suffix read brought them.
#[derive(Clone, Debug)]
pub struct TailBytes {
    start: u64,
    bytes: Bytes,
}

impl TailBytes {
    /// `bytes` are the last ones of a file of `file_size` bytes.
    ///
    /// # Errors
    /// [`ShardError::Usage`] when there are more of them than the file has.
    pub fn new(file_size: u64, bytes: Bytes) -> Result<Self, ShardError> {
        match file_size.checked_sub(bytes.len() as u64) {
            Some(start) => Ok(Self { start, bytes }),
            None => Err(ShardError::Usage(format!("a tail of {} bytes for a file of {file_size}", bytes.len()))),
        }
    }

    /// The bytes of a range of the file, when the tail holds all of them (shared, not copied).
    pub fn get(&self, range: &Range<u64>) -> Option<Bytes> {
        let from = usize::try_from(range.start.checked_sub(self.start)?).ok()?;
        let to = usize::try_from(range.end.checked_sub(self.start)?).ok()?;
        (from <= to && to <= self.bytes.len()).then(|| self.bytes.slice(from..to))
    }

    /// Size of the whole file in bytes.
    pub fn file_size(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }
}

/// What the last bytes of a shard say: which version family it is and what to read next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tail {
    /// Version 1 or 2: read the header ([`HEADER_LEN`] bytes at 0) and the index section, then
    /// [`Index::parse`](super::Index::parse). The header is needed because only it tells 1 from 2.
    Legacy(LegacyTail),
    /// Version 3: read the directory, then [`Directory::parse`](super::Directory::parse).
    V3(Footer),
}

/// The footer of versions 1 and 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LegacyTail {
    /// Where the index starts; the payloads end there.
    pub index_start: u64,
    /// Where the index ends and the footer starts.
    pub index_end: u64,
}

impl LegacyTail {
    /// The index section's place in the file.
    pub fn index_range(&self) -> Range<u64> {
        self.index_start..self.index_end
    }
}

impl Tail {
    /// Reads the footer out of the last bytes of a shard: at least 72 of them, or all when the file is smaller.
    ///
    /// # Errors
    /// [`ShardError`] when they are not the end of a shard.
    pub fn parse(tail: &TailBytes) -> Result<Self, ShardError> {
        let size = tail.file_size();
        if tail.bytes.len() as u64 >= FOOTER_LEN.min(size) {
            if tail.bytes.ends_with(FOOTER_MAGIC) {
                return Footer::parse(tail).map(Self::V3);
            }
            return parse_legacy(tail).map(Self::Legacy);
        }
        Err(ShardError::Usage(format!("a tail of {} bytes; at least {FOOTER_LEN} are needed", tail.bytes.len())))
    }
}

fn parse_legacy(tail: &TailBytes) -> Result<LegacyTail, ShardError> {
    let size = tail.file_size();
    let corrupt = |detail: String| ShardError::corrupt(Part::Footer, size.saturating_sub(LEGACY_FOOTER_LEN), detail);
    if size < HEADER_LEN + 4 + LEGACY_FOOTER_LEN {
        return Err(corrupt(format!("{size} bytes are too few for a shard")));
    }
    let start = tail.bytes.len() - LEGACY_FOOTER_LEN as usize;
    let mut cursor = Cursor::new(&tail.bytes[start..], Part::Footer, size - LEGACY_FOOTER_LEN);
    let magic = cursor.take(4, "magic")?;
    if magic != LEGACY_FOOTER_MAGIC {
        return Err(corrupt(format!(
            "the last bytes are neither those of version 3 (DES3) nor of 1 and 2 (DESI), but {magic:02x?}"
        )));
    }
    let index_len = cursor.u64("index size")?;
    let room = size - HEADER_LEN - LEGACY_FOOTER_LEN;
    if index_len < 4 || index_len > room {
        return Err(corrupt(format!("index size {index_len}; expected 4 to {room}")));
    }
    let index_end = size - LEGACY_FOOTER_LEN;
    Ok(LegacyTail { index_start: index_end - index_len, index_end })
}

/// The footer of version 1 or 2 for an index of `index_len` bytes.
pub(super) fn legacy_footer_bytes(index_len: u64) -> [u8; LEGACY_FOOTER_LEN as usize] {
    let mut out = [0; LEGACY_FOOTER_LEN as usize];
    out[..4].copy_from_slice(LEGACY_FOOTER_MAGIC);
    out[4..].copy_from_slice(&index_len.to_le_bytes());
    out
}

/// The footer of version 3.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Footer {
    /// Size of the whole shard in bytes (not stored; the footer must agree with it).
    pub file_size: u64,
    /// Where the dictionary starts; 0 when there is none.
    pub dict_offset: u64,
    /// The dictionary's length in bytes; 0 when there is none.
    pub dict_len: u32,
    /// CRC-32C of the dictionary.
    pub dict_crc32c: u32,
    /// Where the directory starts.
    pub directory_offset: u64,
    /// The directory's stored length in bytes.
    pub directory_len: u32,
    /// CRC-32C of the stored directory.
    pub directory_crc32c: u32,
    /// How many files the shard holds.
    pub entry_count: u64,
    /// Sum of the files' sizes before compression in bytes, big files included.
    pub raw_bytes: u64,
    /// When the job was accepted, Unix milliseconds: of two shards with the same uid, the higher sequence wins.
    pub sequence: u64,
    /// How many index blocks there are.
    pub block_count: u32,
}

impl Footer {
    /// The directory's place in the file.
    pub fn directory_range(&self) -> Range<u64> {
        self.directory_offset..self.directory_offset + u64::from(self.directory_len)
    }

    /// The dictionary's place in the file, when there is one.
    pub fn dictionary_range(&self) -> Option<Range<u64>> {
        (self.dict_len > 0).then(|| self.dict_offset..self.dict_offset + u64::from(self.dict_len))
    }

    /// Where data and index blocks end: at the dictionary, or at the directory when there is none.
    pub(super) fn blocks_end(&self) -> u64 {
        if self.dict_len > 0 { self.dict_offset } else { self.directory_offset }
    }

    pub(super) fn encode(&self) -> [u8; FOOTER_LEN as usize] {
        let mut out = Vec::with_capacity(FOOTER_LEN as usize);
        out.extend_from_slice(&self.dict_offset.to_le_bytes());
        out.extend_from_slice(&self.dict_len.to_le_bytes());
        out.extend_from_slice(&self.dict_crc32c.to_le_bytes());
        out.extend_from_slice(&self.directory_offset.to_le_bytes());
        out.extend_from_slice(&self.directory_len.to_le_bytes());
        out.extend_from_slice(&self.directory_crc32c.to_le_bytes());
        out.extend_from_slice(&self.entry_count.to_le_bytes());
        out.extend_from_slice(&self.raw_bytes.to_le_bytes());
        out.extend_from_slice(&self.sequence.to_le_bytes());
        out.extend_from_slice(&self.block_count.to_le_bytes());
        out.extend_from_slice(&0u32.to_le_bytes());
        out.extend_from_slice(&crc32c::crc32c(&out).to_le_bytes());
        out.extend_from_slice(FOOTER_MAGIC);
        out.try_into().expect("the fields above are 72 bytes")
    }

    fn parse(tail: &TailBytes) -> Result<Self, ShardError> {
        let file_size = tail.file_size();
        let base = file_size.saturating_sub(FOOTER_LEN);
        let corrupt = |detail: String| ShardError::corrupt(Part::Footer, base, detail);
        if file_size < HEADER_LEN + FOOTER_LEN {
            return Err(corrupt(format!("{file_size} bytes are too few for a shard of version 3")));
        }
        let bytes = &tail.bytes[tail.bytes.len() - FOOTER_LEN as usize..];
        let mut cursor = Cursor::new(bytes, Part::Footer, base);
        let footer = Self {
            file_size,
            dict_offset: cursor.u64("dict_offset")?,
            dict_len: cursor.u32("dict_len")?,
            dict_crc32c: cursor.u32("dict_crc32c")?,
            directory_offset: cursor.u64("directory_offset")?,
            directory_len: cursor.u32("directory_len")?,
            directory_crc32c: cursor.u32("directory_crc32c")?,
            entry_count: cursor.u64("entry_count")?,
            raw_bytes: cursor.u64("raw_bytes")?,
            sequence: cursor.u64("sequence")?,
            block_count: cursor.u32("block_count")?,
        };
        let flags = cursor.u32("flags")?;
        let (stored, actual) = (cursor.u32("footer_crc32c")?, crc32c::crc32c(&bytes[..64]));
        if stored != actual {
            return Err(corrupt(format!("CRC-32C {actual:08x} of its first 64 bytes, {stored:08x} is written in it")));
        }
        if flags != 0 {
            let detail = format!("flags {flags:#010x}; this reader knows none");
            return Err(ShardError::Unsupported { part: Part::Footer, detail });
        }
        footer.check_places().map_err(corrupt)?;
        Ok(footer)
    }

    /// Every byte of the file belongs to exactly one part, and no count is larger than the bytes allow.
    fn check_places(&self) -> Result<(), String> {
        let end = self.file_size - FOOTER_LEN;
        if self.directory_offset.checked_add(u64::from(self.directory_len)) != Some(end) {
            return Err(format!(
                "directory of {} bytes at {} does not end where the footer starts, at {end}",
                self.directory_len, self.directory_offset
            ));
        }
        if self.dict_len == 0 {
            if self.dict_offset != 0 || self.dict_crc32c != 0 {
                return Err("no dictionary, but its offset or checksum is not 0".to_owned());
            }
        } else if self.dict_len as usize > MAX_DICTIONARY_BYTES {
            return Err(format!("dictionary of {} bytes; at most {MAX_DICTIONARY_BYTES} are allowed", self.dict_len));
        } else if self.dict_offset.checked_add(u64::from(self.dict_len)) != Some(self.directory_offset) {
            return Err(format!(
                "dictionary of {} bytes at {} does not end where the directory starts, at {}",
                self.dict_len, self.dict_offset, self.directory_offset
            ));
        }
        if self.blocks_end() < HEADER_LEN {
            return Err(format!("dictionary or directory starts at {}, inside the header", self.blocks_end()));
        }
        Ok(())
    }
}

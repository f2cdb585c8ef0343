//! Writes a shard without doing IO: the caller writes the header, then each payload as it is added, then the tail.
//!
//! The rows of the index can be taken out as they grow and put into another writer later, so an interrupted pack goes
//! on elsewhere with the same bytes.

use serde::{Deserialize, Serialize};

use super::block::{BlockBuilder, MAX_BLOCK_RAW};
use super::directory::{self, DirectoryRow};
use super::encoder::PayloadInfo;
use super::entry::Codec;
use super::error::{Part, ShardError};
use super::footer::{FOOTER_LEN, Footer, HEADER_LEN, MAX_DICTIONARY_BYTES, Version, header_bytes};
use super::legacy;
use super::meta::{MAX_META_BYTES, Meta};
use super::rows::{self, Body, Row, Rows, meta_text};
use super::wire::{Cursor, common_prefix};
use crate::compact;
use crate::ids::MAX_UID_BYTES;
use crate::segment::ShardFormat;

/// Entries of an index block, unless the directory would become too long.
const BLOCK_ENTRIES: usize = 256;
/// Weight of an index block in bytes (uids, meta and 64 for each row), unless the directory would become too long.
const BLOCK_WEIGHT: usize = 256 * 1024;
/// Directory and footer together are kept below this, so that one tail read holds them.
const DIRECTORY_TARGET: usize = 64 * 1024 - FOOTER_LEN as usize;

/// Writes one shard of version 2 or 3.
pub struct ShardWriter {
    format: ShardFormat,
    dictionary: Vec<u8>,
    sequence: u64,
    rows: Rows,
    position: u64,
    raw_bytes: u64,
    last_uid: String,
}

/// Rows on their way from one writer to another.
#[derive(Serialize, Deserialize)]
struct RowsImage {
    first: u64,
    position: u64,
    rows: Vec<u8>,
    crc32c: u32,
}

impl ShardWriter {
    /// A writer for an empty shard. `sequence` is when the job was accepted, in Unix milliseconds; version 2 has no
    /// place for it.
    ///
    /// # Errors
    /// [`ShardError::Usage`] for a dictionary that is too long, or with version 2.
    pub fn new(format: ShardFormat, dictionary: Option<&[u8]>, sequence: u64) -> Result<Self, ShardError> {
        let dictionary = dictionary.unwrap_or_default().to_vec();
        if dictionary.len() > MAX_DICTIONARY_BYTES || (format == ShardFormat::V2 && !dictionary.is_empty()) {
            let detail = format!("a dictionary of {} bytes in a shard of format {format}", dictionary.len());
            return Err(ShardError::Usage(detail));
        }
        let (rows, last_uid) = (Rows::default(), String::new());
        Ok(Self { format, dictionary, sequence, rows, position: HEADER_LEN, raw_bytes: 0, last_uid })
    }

    /// The shard's first bytes, to be written before the first payload.
    pub fn header(&self) -> [u8; HEADER_LEN as usize] {
        header_bytes(match self.format {
            ShardFormat::V2 => Version::V2,
            ShardFormat::V3 => Version::V3,
        })
    }

    /// Adds a file whose stored bytes the caller writes next, and says at which offset they start. Version 3 wants
    /// the files in the byte order of their uids.
    ///
    /// # Errors
    /// [`ShardError::BadInput`] for a uid or meta the format cannot hold, the wrong order, or a duplicate (which
    /// version 2 notices only in [`ShardWriter::finish`]). Nothing was added then.
    pub fn append(&mut self, uid: &str, payload: &PayloadInfo, meta: Option<&Meta>) -> Result<u64, ShardError> {
        let &PayloadInfo { codec, stored_len, raw_len, crc32c } = payload;
        let offset = self.position;
        self.add(&Row { uid, body: Body::Inline { codec, stored_len, raw_len, crc32c }, meta: meta_text(meta) })?;
        Ok(offset)
    }

    /// Adds a file that is stored as an object of its own.
    ///
    /// # Errors
    /// As [`ShardWriter::append`].
    pub fn append_bigfile(
        &mut self,
        uid: &str,
        sha256: [u8; 32],
        size: u64,
        meta: Option<&Meta>,
    ) -> Result<(), ShardError> {
        self.add(&Row { uid, body: Body::BigFile { sha256, size }, meta: meta_text(meta) })
    }

    fn add(&mut self, row: &Row<'_>) -> Result<(), ShardError> {
        let bad = |detail: String| Err(ShardError::input(row.uid, detail));
        if row.uid.len() > MAX_UID_BYTES {
            return bad(format!("its uid is {} bytes long; at most {MAX_UID_BYTES} are possible", row.uid.len()));
        }
        if row.meta.is_some_and(|m| m.len() > MAX_META_BYTES) {
            return bad(format!("its meta is longer than {MAX_META_BYTES} bytes"));
        }
        if let Body::Inline { codec, stored_len, raw_len, .. } = row.body {
            if codec == Codec::ZstdDict && self.dictionary.is_empty() {
                return bad("it is compressed with a dictionary, and the shard has none".to_owned());
            }
            if codec == Codec::None && stored_len != raw_len {
                return bad(format!("stored as it is, but {stored_len} bytes of {raw_len}"));
            }
        }
        if self.format == ShardFormat::V3 {
            if row.uid.is_empty() {
                return bad("version 3 holds no empty uid".to_owned());
            }
            if self.rows.len() > 0 && row.uid <= self.last_uid.as_str() {
                let after = super::error::shown(&self.last_uid);
                return bad(format!("it does not sort behind {after:?}, which was added before it"));
            }
        }
        let position = self.position.checked_add(row.stored_len());
        let raw_bytes = self.raw_bytes.checked_add(row.raw_len());
        let (Some(position), Some(raw_bytes)) = (position, raw_bytes) else {
            return bad("the shard would be larger than 2^64 bytes".to_owned());
        };
        (self.position, self.raw_bytes) = (position, raw_bytes);
        row.uid.clone_into(&mut self.last_uid);
        self.rows.push(row);
        Ok(())
    }

    /// Where the next payload starts: the bytes written so far, header included.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// How many files were added.
    pub fn len(&self) -> u64 {
        self.rows.len()
    }

    /// True before the first file was added.
    pub fn is_empty(&self) -> bool {
        self.rows.len() == 0
    }

    /// Sum of the files' sizes before compression in bytes, big files included.
    pub fn raw_bytes(&self) -> u64 {
        self.raw_bytes
    }

    /// Memory held by the index so far, in bytes.
    pub fn heap_bytes(&self) -> usize {
        self.rows.heap_bytes() + self.dictionary.len()
    }

    /// The rows from number `first` on, for a checkpoint.
    pub fn rows_since(&self, first: u64) -> Vec<u8> {
        let (rows, stored) = self.rows.encoded_since(first);
        let image = RowsImage { first, position: HEADER_LEN + stored, crc32c: crc32c::crc32c(&rows), rows };
        compact::encode(&image)
    }

    /// Adds the rows of a checkpoint, those that follow the rows this writer already has.
    ///
    /// # Errors
    /// [`ShardError::Corrupt`] for damaged rows or rows of another place: the writer is then of no more use.
    pub fn restore(&mut self, checkpoint: &[u8]) -> Result<(), ShardError> {
        let corrupt = |detail: String| ShardError::corrupt(Part::Rows, 0, detail);
        let image: RowsImage = compact::decode(checkpoint).map_err(|e| corrupt(e.to_string()))?;
        let actual = crc32c::crc32c(&image.rows);
        if actual != image.crc32c {
            return Err(corrupt(format!("CRC-32C {actual:08x}, the checkpoint says {:08x}", image.crc32c)));
        }
        if (image.first, image.position) != (self.rows.len(), self.position) {
            return Err(corrupt(format!(
                "they start at row {} and byte {}; expected row {} and byte {}",
                image.first,
                image.position,
                self.rows.len(),
                self.position
            )));
        }
        let mut cursor = Cursor::new(&image.rows, Part::Rows, 0);
        while cursor.remaining() > 0 {
            let row = rows::decode(&mut cursor)?;
            self.add(&row)?;
        }
        Ok(())
    }

    /// The bytes behind the last payload: index, dictionary, footer.
    ///
    /// # Errors
    /// [`ShardError::BadInput`] for a duplicate in version 2; [`ShardError::Usage`] for an index beyond the format's
    /// limits.
    pub fn finish(self) -> Result<Vec<u8>, ShardError> {
        match self.format {
            ShardFormat::V2 => legacy::encode_v2(&self.rows),
            ShardFormat::V3 => self.finish_v3(),
        }
    }

    fn finish_v3(self) -> Result<Vec<u8>, ShardError> {
        let (mut out, blocks, directory) = build_index(&self.rows)?;
        let dict_offset = if self.dictionary.is_empty() { 0 } else { self.position + out.len() as u64 };
        out.extend_from_slice(&self.dictionary);
        let directory_offset = self.position + out.len() as u64;
        out.extend_from_slice(&directory);
        let narrow = |n: usize| u32::try_from(n).map_err(|_| ShardError::Usage(format!("{n} index blocks or bytes")));
        let footer = Footer {
            file_size: directory_offset + directory.len() as u64 + FOOTER_LEN,
            dict_offset,
            dict_len: narrow(self.dictionary.len())?,
            dict_crc32c: if self.dictionary.is_empty() { 0 } else { crc32c::crc32c(&self.dictionary) },
            directory_offset,
            directory_len: narrow(directory.len())?,
            directory_crc32c: crc32c::crc32c(&directory),
            entry_count: self.rows.len(),
            raw_bytes: self.raw_bytes,
            sequence: self.sequence,
            block_count: narrow(blocks)?,
        };
        out.extend_from_slice(&footer.encode());
        Ok(out)
    }
}

/// Index blocks back to back, their number, and the directory. Starts with small blocks, which make a lookup cheap,
/// and doubles them until the directory fits into one tail read.
fn build_index(rows: &Rows) -> Result<(Vec<u8>, usize, Vec<u8>), ShardError> {
    let (mut entries, mut weight) = (BLOCK_ENTRIES, BLOCK_WEIGHT);
    loop {
        let (blocks, places) = build_blocks(rows, entries, weight)?;
        let directory = directory::encode(&places);
        let fits = directory.as_ref().is_ok_and(|d| d.len() <= DIRECTORY_TARGET);
        if fits || weight * 2 > MAX_BLOCK_RAW {
            return Ok((blocks, places.len(), directory?));
        }
        (entries, weight) = (entries * 2, weight * 2);
    }
}

fn build_blocks(rows: &Rows, entries: usize, weight: usize) -> Result<(Vec<u8>, Vec<DirectoryRow>), ShardError> {
    let (mut out, mut places) = (Vec::new(), Vec::new());
    let mut builder = BlockBuilder::default();
    let mut separator = Vec::new();
    let mut flush = |builder: &mut BlockBuilder, separator: Vec<u8>| {
        let block = builder.finish()?;
        let block_len = block.bytes.len() as u64;
        out.extend_from_slice(&block.bytes);
        let (entries, big_files, data_len) = (block.entries, block.big_files, block.data_len);
        places.push(DirectoryRow { separator, entries, big_files, data_len, block_len });
        Ok::<_, ShardError>(())
    };
    for row in rows.iter() {
        let full = builder.len() >= entries || builder.weight() + BlockBuilder::weight_of(&row) > weight;
        if builder.len() > 0 && full {
            flush(&mut builder, std::mem::take(&mut separator))?;
            let uid = row.uid.as_bytes();
            separator.extend_from_slice(&uid[..=common_prefix(builder.last_uid(), uid)]);
        }
        builder.push(&row);
    }
    if builder.len() > 0 {
        flush(&mut builder, separator)?;
    }
    Ok((out, places))
}

//! From stored bytes to the file's bytes, every check included.

use bytes::Bytes;
use zstd::zstd_safe::DCtx;

use super::codec::{MAX_DICTIONARY_RAW, decompress_lz4, decompress_zstd, new_context};
use super::dictionary::Dictionary;
use super::entry::{Codec, Entry, Inline, Location};
use super::error::{ShardError, shown};

/// The most bytes one entry may decompress to unless the caller says otherwise: 4 GiB.
const DEFAULT_MAX_RAW_LEN: u64 = 4 << 30;

/// Decodes payloads one after the other. Reuses its context: make one for each thread, not for each file.
pub struct Decoder {
    context: DCtx<'static>,
    max_raw_len: u64,
}

impl Decoder {
    /// A decoder that refuses entries of more than 4 GiB.
    ///
    /// # Errors
    /// [`ShardError::Usage`] when there is no memory for a zstd context.
    pub fn new() -> Result<Self, ShardError> {
        Ok(Self { context: new_context().map_err(ShardError::Usage)?, max_raw_len: DEFAULT_MAX_RAW_LEN })
    }

    /// The same with another limit, in bytes after decompression.
    #[must_use]
    pub fn with_max_raw_len(mut self, max_raw_len: u64) -> Self {
        self.max_raw_len = max_raw_len;
        self
    }

    /// The bytes of a file, out of its stored bytes ([`Inline::range`]) and, for [`Codec::ZstdDict`], the shard's
    /// dictionary. Bytes stored as they are come back without a copy.
    ///
    /// # Errors
    /// [`ShardError::CorruptEntry`] for a wrong length, checksum or frame, or bytes behind the frame;
    /// [`ShardError::TooLarge`] beyond the limit; [`ShardError::Usage`] for a big file, or without the dictionary.
    pub fn decode(
        &mut self,
        entry: &Entry,
        stored: Bytes,
        dictionary: Option<&Dictionary>,
    ) -> Result<Bytes, ShardError> {
        let inline = check_stored(entry, &stored)?;
        if inline.raw_len > self.max_raw_len {
            let (uid, raw_len) = (shown(&entry.uid), inline.raw_len);
            return Err(ShardError::TooLarge { uid, raw_len, limit: self.max_raw_len });
        }
        let raw = match inline.codec {
            Codec::None if inline.raw_len == inline.stored_len => return Ok(stored),
            Codec::None => Err(format!("stored as it is, but {} bytes of {}", inline.stored_len, inline.raw_len)),
            Codec::Zstd => decompress_zstd(&mut self.context, &stored, inline.raw_len, None),
            Codec::Lz4 => decompress_lz4(&stored, inline.raw_len),
            Codec::ZstdDict if inline.raw_len > MAX_DICTIONARY_RAW => {
                Err(format!("{} bytes with a dictionary; at most {MAX_DICTIONARY_RAW} are allowed", inline.raw_len))
            }
            Codec::ZstdDict => match dictionary {
                Some(d) => decompress_zstd(&mut self.context, &stored, inline.raw_len, Some(d.prepared())),
                None => {
                    return Err(ShardError::Usage(format!(
                        "entry {:?} needs the shard's dictionary",
                        shown(&entry.uid)
                    )));
                }
            },
        };
        raw.map(Bytes::from).map_err(|detail| ShardError::entry(&entry.uid, inline.offset, detail))
    }
}

/// Decodes one payload; see [`Decoder::decode`], which is faster for many.
///
/// # Errors
/// As [`Decoder::decode`].
pub fn decode_payload(entry: &Entry, stored: Bytes, dictionary: Option<&Dictionary>) -> Result<Bytes, ShardError> {
    Decoder::new()?.decode(entry, stored, dictionary)
}

/// Checks stored bytes against the index without decompressing them: length and, where the version has it, CRC-32C.
/// For handing out a stored frame as it is.
///
/// # Errors
/// [`ShardError::CorruptEntry`] when they differ; [`ShardError::Usage`] for a big file.
pub fn check_stored(entry: &Entry, stored: &[u8]) -> Result<Inline, ShardError> {
    let Location::Inline(inline) = entry.location else {
        return Err(ShardError::Usage(format!("entry {:?} is a big file, an object of its own", shown(&entry.uid))));
    };
    let corrupt = |detail| Err(ShardError::entry(&entry.uid, inline.offset, detail));
    if stored.len() as u64 != inline.stored_len {
        return corrupt(format!("{} bytes, the index says {}", stored.len(), inline.stored_len));
    }
    match (inline.crc32c, inline.crc32c.map(|_| crc32c::crc32c(stored))) {
        (Some(expected), Some(actual)) if expected != actual => {
            corrupt(format!("CRC-32C {actual:08x}, the index says {expected:08x}"))
        }
        _ => Ok(inline),
    }
}

//! One file of a shard, as its index describes it.

use std::fmt;

use super::meta::Meta;

/// How an inline payload is stored. The numbers are those of the file format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Codec {
    /// As it is.
    None = 0,
    /// One zstd frame.
    Zstd = 1,
    /// One LZ4 frame (the frame format, not a bare block).
    Lz4 = 2,
    /// One zstd frame that needs the shard's dictionary. Version 3 only.
    ZstdDict = 3,
}

impl Codec {
    /// The codec of a format's number, `None` for an unknown one.
    pub fn from_number(number: u8) -> Option<Self> {
        [Self::None, Self::Zstd, Self::Lz4, Self::ZstdDict].get(usize::from(number)).copied()
    }

    /// The number that stands in the file.
    pub fn number(self) -> u8 {
        self as u8
    }
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Zstd => "zstd",
            Self::Lz4 => "lz4",
            Self::ZstdDict => "zstd-dict",
        })
    }
}

/// A payload inside the shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Inline {
    /// Where the stored bytes start, from the start of the shard.
    pub offset: u64,
    /// How many bytes are stored. Zero is legal: never ask a store for a range of zero bytes.
    pub stored_len: u64,
    /// How they are stored.
    pub codec: Codec,
    /// Size before compression in bytes.
    pub raw_len: u64,
    /// CRC-32C of the stored bytes; versions 1 and 2 have none.
    pub crc32c: Option<u32>,
}

impl Inline {
    /// The stored bytes' place in the shard.
    pub fn range(&self) -> std::ops::Range<u64> {
        // Every reader checked that the end lies inside the file, so this cannot wrap.
        self.offset..self.offset.saturating_add(self.stored_len)
    }
}

/// Where a file's bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Location {
    /// In the shard.
    Inline(Inline),
    /// In an object of its own beside the shard, named by its hash.
    BigFile {
        /// SHA-256 of the file's bytes.
        sha256: [u8; 32],
        /// Size in bytes.
        size: u64,
    },
}

/// One file of a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The file's name. Versions 1 and 2 may hold an empty one.
    pub uid: String,
    /// Where its bytes are.
    pub location: Location,
    /// What else was recorded with it.
    pub meta: Option<Meta>,
}

impl Entry {
    /// Size before compression in bytes.
    pub fn raw_len(&self) -> u64 {
        match self.location {
            Location::Inline(inline) => inline.raw_len,
            Location::BigFile { size, .. } => size,
        }
    }
}

/// Lower-case hexadecimal, as big files are named.
pub fn hex32(hash: &[u8; 32]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |four: u8| char::from(DIGITS[usize::from(four)]);
    hash.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

/// Reads 64 lower-case hexadecimal digits; anything else is `None`.
pub fn parse_hex32(text: &[u8]) -> Option<[u8; 32]> {
    let digit = |c: u8| match c {
        b'0'..=b'9' => Some(c - b'0'),
        b'a'..=b'f' => Some(c - b'a' + 10),
        _ => None,
    };
    let mut hash = [0; 32];
    if text.len() != 64 {
        return None;
    }
    for (byte, pair) in hash.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(hash)
}

//! A whole shard in memory: the plain way to list, read and verify one. Remote readers take the same parts one range
//! at a time.

use bytes::Bytes;

use super::block::Block;
use super::decode::Decoder;
use super::dictionary::Dictionary;
use super::directory::Directory;
use super::entry::{Codec, Entry, Location};
use super::error::{Part, ShardError};
use super::footer::{Footer, Tail, TailBytes, Version, parse_header};
use super::legacy::Index;

enum Kind {
    Legacy(Index),
    V3 { footer: Footer, directory: Directory, dictionary: Option<Dictionary> },
}

/// An opened shard.
pub struct Shard {
    bytes: Bytes,
    kind: Kind,
}

/// What a verified shard holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Files in the shard, big files included.
    pub entries: u64,
    /// How many of them are big files, whose bytes lie elsewhere and were not looked at.
    pub big_files: u64,
    /// Sizes before compression in bytes, big files included.
    pub raw_bytes: u64,
    /// Stored bytes of all payloads.
    pub stored_bytes: u64,
}

impl Shard {
    /// Opens a shard of any version. Index blocks of version 3 are read when they are needed.
    ///
    /// # Errors
    /// [`ShardError`] when header, footer, index, directory or dictionary are damaged or of an unknown version.
    pub fn open(bytes: impl Into<Bytes>) -> Result<Self, ShardError> {
        let bytes: Bytes = bytes.into();
        let tail = TailBytes::new(bytes.len() as u64, bytes.clone())?;
        let part = |range: std::ops::Range<u64>| bytes.slice(range.start as usize..range.end as usize);
        let kind = match Tail::parse(&tail)? {
            Tail::Legacy(legacy) => Kind::Legacy(Index::parse(&bytes, legacy, part(legacy.index_range()))?),
            Tail::V3(footer) => {
                check_v3_header(&bytes)?;
                let directory = Directory::parse(&footer, &part(footer.directory_range()))?;
                let dictionary =
                    footer.dictionary_range().map(|range| Dictionary::parse(&footer, &part(range))).transpose()?;
                Kind::V3 { footer, directory, dictionary }
            }
        };
        Ok(Self { bytes, kind })
    }

    /// The format's version.
    pub fn version(&self) -> Version {
        match &self.kind {
            Kind::Legacy(index) => index.version(),
            Kind::V3 { .. } => Version::V3,
        }
    }

    /// How many files the shard holds.
    pub fn len(&self) -> u64 {
        match &self.kind {
            Kind::Legacy(index) => index.len() as u64,
            Kind::V3 { footer, .. } => footer.entry_count,
        }
    }

    /// True for a shard without files.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The footer of a version 3 shard.
    pub fn footer(&self) -> Option<&Footer> {
        match &self.kind {
            Kind::Legacy(_) => None,
            Kind::V3 { footer, .. } => Some(footer),
        }
    }

    /// The entry of `uid`, when the shard holds it.
    ///
    /// # Errors
    /// [`ShardError`] when the part of the index that would hold it is damaged.
    pub fn find(&self, uid: &str) -> Result<Option<Entry>, ShardError> {
        match &self.kind {
            Kind::Legacy(index) => index.find(uid),
            Kind::V3 { directory, .. } => match directory.find(uid) {
                None => Ok(None),
                Some(block) => self.block(&block)?.find(uid),
            },
        }
    }

    fn block(&self, block: &super::directory::BlockRef<'_>) -> Result<Block, ShardError> {
        let range = block.range();
        Block::parse(&self.bytes[range.start as usize..range.end as usize], block)
    }

    /// All entries in the byte order of their uids, each or why it cannot be read. Of a damaged index block there is
    /// one error.
    pub fn entries(&self) -> Box<dyn Iterator<Item = Result<Entry, ShardError>> + '_> {
        match &self.kind {
            Kind::Legacy(index) => Box::new(index.entries()),
            Kind::V3 { directory, .. } => Box::new(directory.blocks().flat_map(|block| match self.block(&block) {
                Ok(block) => block.entries().collect(),
                Err(error) => vec![Err(error)],
            })),
        }
    }

    /// The bytes of an inline file of this shard.
    ///
    /// # Errors
    /// As [`Decoder::decode`].
    pub fn read(&self, entry: &Entry) -> Result<Bytes, ShardError> {
        self.read_with(&mut Decoder::new()?, entry)
    }

    /// The same with a decoder of the caller's, which is faster for many files.
    ///
    /// # Errors
    /// As [`Decoder::decode`].
    pub fn read_with(&self, decoder: &mut Decoder, entry: &Entry) -> Result<Bytes, ShardError> {
        let stored = match entry.location {
            Location::BigFile { .. } => Bytes::new(),
            Location::Inline(inline) => {
                let range = inline.range();
                if range.end > self.bytes.len() as u64 || range.start > range.end {
                    return Err(ShardError::Usage("the entry is not one of this shard".to_owned()));
                }
                self.bytes.slice(range.start as usize..range.end as usize)
            }
        };
        let dictionary = match &self.kind {
            Kind::V3 { dictionary, .. } => dictionary.as_ref(),
            Kind::Legacy(_) => None,
        };
        decoder.decode(entry, stored, dictionary).map_err(|error| match (error, entry.location) {
            // Here the whole shard is at hand: a missing dictionary is the shard's fault, not the caller's.
            (ShardError::Usage(detail), Location::Inline(inline))
                if inline.codec == Codec::ZstdDict && dictionary.is_none() =>
            {
                ShardError::entry(&entry.uid, inline.offset, detail)
            }
            (error, _) => error,
        })
    }

    /// Reads everything: every index block, every payload decompressed, every checksum and count.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn verify(&self) -> Result<Verified, ShardError> {
        let mut decoder = Decoder::new()?;
        let mut sum = Verified::default();
        for entry in self.entries() {
            let entry = entry?;
            sum.entries += 1;
            sum.raw_bytes = sum.raw_bytes.saturating_add(entry.raw_len());
            match entry.location {
                Location::BigFile { .. } => sum.big_files += 1,
                Location::Inline(inline) => {
                    sum.stored_bytes = sum.stored_bytes.saturating_add(inline.stored_len);
                    self.read_with(&mut decoder, &entry)?;
                }
            }
        }
        check_sums(&self.kind, sum)?;
        Ok(sum)
    }
}

/// The header of a shard whose footer is that of version 3.
///
/// # Errors
/// [`ShardError`] for anything else than a header of version 3.
pub fn check_v3_header(bytes: &[u8]) -> Result<(), ShardError> {
    match parse_header(bytes)? {
        Version::V3 => Ok(()),
        other => {
            let detail = format!("version {} in the header, but the footer of version 3", other as u8);
            Err(ShardError::corrupt(Part::Header, 4, detail))
        }
    }
}

fn check_sums(kind: &Kind, sum: Verified) -> Result<(), ShardError> {
    match kind {
        Kind::V3 { footer, .. } if footer.raw_bytes != sum.raw_bytes => {
            let detail = format!("raw_bytes {}, the entries have {}", footer.raw_bytes, sum.raw_bytes);
            Err(ShardError::corrupt(Part::Footer, footer.file_size - super::footer::FOOTER_LEN, detail))
        }
        _ => Ok(()),
    }
}

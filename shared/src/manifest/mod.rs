//! The manifest: which files to pack, one JSON object each, as a list or as one object a line (NDJSON), plain,
//! gzip or zstd.
//!
//! [`ManifestReader`] goes from any `std::io::Read` to entries without ever holding more than one of them, and
//! says where in the text each stands. [`SourceBase`] turns a relative `source_path` into an absolute one.

mod decompress;
mod element;
mod elements;
mod plain;
mod quick;
mod source;

use std::fmt;
use std::io::{self, Read};

use serde::{Deserialize, Serialize};

use crate::created_at::CreatedAt;
use crate::ids::Uid;

pub use decompress::Compression;
pub use source::{SourceBase, SourceError, SourceUri, resolve_source};

use decompress::Decompressed;
use elements::Elements;

/// The longest JSON object of one file, in bytes: 16 times the longest uid, and a bound on the reader's memory.
pub const MAX_ELEMENT_BYTES: usize = 1 << 20;

/// One file to pack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestEntry {
    /// The file's name in DES: the manifest's string, or its integer digit for digit.
    pub uid: Uid,
    /// Decides under which date it is filed. Keeps its text as written.
    pub created_at: CreatedAt,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Path or `s3://` URI as written; see [`ManifestEntry::resolved`].
    pub source_path: String,
}

impl ManifestEntry {
    /// The entry with its source made absolute.
    ///
    /// # Errors
    /// [`ManifestError::Field`] when the source cannot be resolved against this base.
    pub fn resolved(mut self, position: Position, base: &SourceBase) -> Result<Self, ManifestError> {
        if source::is_resolved(&self.source_path) {
            return Ok(self);
        }
        match resolve_source(base, &self.source_path) {
            Ok(source) => {
                self.source_path = source;
                Ok(self)
            }
            Err(error) => Err(ManifestError::Field { position, field: "source_path", problem: error.to_string() }),
        }
    }
}

/// How a manifest counts its entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PositionUnit {
    /// Lines of NDJSON, the first is 1; empty lines count.
    Line,
    /// Elements of a JSON list, the first is 1.
    Element,
}

/// Where an entry stands in its manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Position {
    /// What `number` counts.
    pub unit: PositionUnit,
    /// Line or element, from 1.
    pub number: u64,
    /// Where its object starts, in bytes of the decompressed text.
    pub byte: u64,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.unit {
            PositionUnit::Line => write!(f, "line {}", self.number),
            PositionUnit::Element => write!(f, "element {} (from byte {})", self.number, self.byte),
        }
    }
}

/// A place in the text, for errors of its syntax.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Line, from 1.
    pub line: u64,
    /// Column in bytes, from 1.
    pub column: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}", self.line, self.column)
    }
}

/// Why a manifest cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// The source of the bytes failed. Trying again may help.
    #[error("reading the manifest failed after {byte} bytes of its text: {source}")]
    Read {
        /// Bytes of decompressed text read before.
        byte: u64,
        /// What the source said.
        source: io::Error,
    },
    /// The compressed data is damaged or cut short. The manifest must be written again.
    #[error("the manifest's {compression} data is damaged or cut short after {byte} bytes of its text: {problem}")]
    Compression {
        /// What the first bytes promised.
        compression: Compression,
        /// Bytes of decompressed text read before.
        byte: u64,
        /// What the decompressor said.
        problem: String,
    },
    /// The text is not JSON where it should be. The manifest must be corrected.
    #[error("the manifest is not valid at {place}: {problem}")]
    Syntax {
        /// Where.
        place: Place,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// One entry is not what it should be. The manifest must be corrected.
    #[error("manifest {position}: {field}: {problem}")]
    Field {
        /// Which entry.
        position: Position,
        /// Which field of it.
        field: &'static str,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// There are no entries. Raised by whoever needs one, not by the reader.
    #[error("the manifest is empty; expected at least one object with uid, created_at, size_bytes and source_path")]
    Empty,
}

/// Reads a manifest entry by entry. Its memory is bounded by [`MAX_ELEMENT_BYTES`] and the decompressor's window,
/// whatever the manifest's size. It ends after the first error.
pub struct ManifestReader<R: Read> {
    elements: Elements<Decompressed<R>>,
    compression: Compression,
    entries: u64,
    ended: bool,
}

impl<R: Read> ManifestReader<R> {
    /// Looks at the first bytes of `input` and chooses the decompressor.
    ///
    /// # Errors
    /// [`ManifestError::Read`] when they cannot be read, [`ManifestError::Compression`] when the decompressor cannot
    /// be set up.
    pub fn new(input: R) -> Result<Self, ManifestError> {
        let input = Decompressed::new(input)?;
        let compression = input.compression();
        Ok(Self { elements: Elements::new(input), compression, entries: 0, ended: false })
    }

    /// How the manifest is compressed.
    pub fn compression(&self) -> Compression {
        self.compression
    }

    /// How many entries were read so far; after the end, how many there are.
    pub fn entries_read(&self) -> u64 {
        self.entries
    }

    /// How many bytes of decompressed text were consumed so far.
    pub fn bytes_read(&self) -> u64 {
        self.elements.offset()
    }

    fn read_entry(&mut self) -> Result<Option<(Position, ManifestEntry)>, ManifestError> {
        let Some(start) = self.elements.advance().map_err(|error| self.explain(error))? else { return Ok(None) };
        let entry = element::parse(self.elements.current(), start)?;
        self.entries += 1;
        Ok(Some((start.position, entry)))
    }

    /// Tells a failing source from damaged compression.
    fn explain(&self, error: elements::ElementsError) -> ManifestError {
        let byte = self.elements.offset();
        match error {
            elements::ElementsError::Syntax { place, problem } => ManifestError::Syntax { place, problem },
            elements::ElementsError::Read(error) => decompress::explain(error, self.compression, byte),
        }
    }
}

impl<R: Read> Iterator for ManifestReader<R> {
    type Item = Result<(Position, ManifestEntry), ManifestError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let item = self.read_entry().transpose();
        self.ended = !matches!(item, Some(Ok(_)));
        item
    }
}

#[cfg(test)]
mod fuzz_tests;
#[cfg(test)]
mod tests;

//! A plan segment: everything a worker needs to know to pack one shard, and the digest that names its result.
//!
//! Stored in the state store in the compact form of [`crate::compact`], in zstd (see [`crate::state`]).

mod files;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::compact;
use crate::ids::{TaskId, Uid};
use crate::routing::Slot;

pub use self::files::{FileList, FileView, Joined};

/// The shard formats this project writes. (Version 1 is only read.)
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ShardFormat {
    /// Version 2, readable by the existing implementation.
    V2,
    /// Version 3: checksums, a compressed block index, a dictionary.
    #[default]
    V3,
}

/// What a job asks of compression.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CodecChoice {
    /// Each file by its content: as `Zstd`, but what looks like noise is stored as it is.
    Auto,
    /// Store as it is.
    None,
    /// zstd frames, with the shard's dictionary in v3 where it pays.
    #[default]
    Zstd,
    /// LZ4 frames.
    Lz4,
}

macro_rules! text_enum {
    ($type:ty, $what:literal, $($name:literal => $value:expr),+ $(,)?) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                $(if *self == $value { return f.write_str($name); })+
                unreachable!("every variant has a name")
            }
        }
        impl FromStr for $type {
            type Err = String;
            fn from_str(text: &str) -> Result<Self, String> {
                match text {
                    $($name => Ok($value),)+
                    other => Err(format!("{other:?} is not a {}; expected one of: {}", $what, [$($name),+].join(", "))),
                }
            }
        }
    };
}
text_enum!(ShardFormat, "shard format", "v2" => ShardFormat::V2, "v3" => ShardFormat::V3);
text_enum!(CodecChoice, "codec", "auto" => CodecChoice::Auto, "none" => CodecChoice::None, "zstd" => CodecChoice::Zstd, "lz4" => CodecChoice::Lz4);

/// Every option that changes a shard's bytes. All of them enter the digest.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PackOptions {
    /// Shard format to write.
    pub format: ShardFormat,
    /// Compression asked for.
    pub codec: CodecChoice,
    /// Compression level, zstd's scale (1 to 22). Ignored by `none` and `lz4`.
    pub level: i32,
    /// Files larger than this many bytes become objects of their own.
    pub big_file_threshold_bytes: u64,
    /// Key prefix of those objects, beside the shard.
    pub bigfiles_prefix: String,
}

impl Default for PackOptions {
    fn default() -> Self {
        Self {
            format: ShardFormat::V3,
            codec: CodecChoice::Zstd,
            level: 3,
            big_file_threshold_bytes: 10 * 1024 * 1024,
            bigfiles_prefix: "_bigFiles".to_owned(),
        }
    }
}

/// One file of a segment, as the manifest named it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentFile {
    /// The file's name in DES.
    pub uid: Uid,
    /// `created_at` as written in the manifest, so that a failure list can become a manifest again.
    pub created_at: String,
    /// Size in bytes, as the manifest says. A source of another size is a failure of that file.
    pub size_bytes: u64,
    /// Absolute path or `s3://` URI, resolved against the manifest's place.
    pub source: String,
}

/// One planned shard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// The task that packs it.
    pub task: TaskId,
    /// Date and shard index all its files share.
    pub slot: Slot,
    /// NNNN of the object name: counts the shards of one slot in one plan from 0.
    pub number: u32,
    /// When the job was accepted, Unix milliseconds: goes into the v3 footer and decides between shards that hold
    /// the same uid. Not part of the digest.
    pub sequence: u64,
    /// Options that change bytes.
    pub options: PackOptions,
    /// The files in the order of the plan (input order). A v3 shard stores them sorted by uid.
    pub files: FileList,
}

/// SHA-256 over everything that decides a segment's bytes except the sequence.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SegmentDigest([u8; 32]);

impl SegmentDigest {
    /// The 16 lower-case hex digits that stand in the object name.
    pub fn short(&self) -> String {
        self.to_string()[..16].to_owned()
    }
}

impl fmt::Display for SegmentDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for SegmentDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Segment {
    /// Sum of the files' sizes in bytes, as the manifest says.
    pub fn source_bytes(&self) -> u64 {
        self.files.iter().map(|f| f.size_bytes).fold(0, u64::saturating_add)
    }

    /// The digest that names the shard: equal for equal work, whoever does it and whenever.
    pub fn digest(&self) -> SegmentDigest {
        // A version tag, then fields with their lengths, so that no two different segments hash the same text.
        let mut hash = Gathered::default();
        hash.text.extend_from_slice(b"des-segment-1\0");
        hash.field(&[self.slot.to_string().as_bytes()]);
        hash.field(&[&self.number.to_le_bytes()]);
        hash.field(&[self.options.format.to_string().as_bytes()]);
        hash.field(&[self.options.codec.to_string().as_bytes()]);
        hash.field(&[&self.options.level.to_le_bytes()]);
        hash.field(&[&self.options.big_file_threshold_bytes.to_le_bytes()]);
        hash.field(&[self.options.bigfiles_prefix.as_bytes()]);
        for file in self.files.iter() {
            hash.field(&file.uid.pieces());
            hash.field(&file.created_at.pieces());
            hash.field(&[&file.size_bytes.to_le_bytes()]);
            hash.field(&file.source.pieces());
        }
        SegmentDigest(hash.finish())
    }
}

/// Small pieces, hashed many at a time: each update of a hash costs more than such a piece.
#[derive(Default)]
struct Gathered {
    hash: Sha256,
    text: Vec<u8>,
}

impl Gathered {
    /// A field of one or more pieces, behind its length.
    fn field(&mut self, pieces: &[&[u8]]) {
        const AT_ONCE: usize = 4096;
        let len: usize = pieces.iter().map(|piece| piece.len()).sum();
        self.text.extend_from_slice(&(len as u64).to_le_bytes());
        for piece in pieces {
            self.text.extend_from_slice(piece);
        }
        if self.text.len() >= AT_ONCE {
            self.hash.update(&self.text);
            self.text.clear();
        }
    }

    fn finish(mut self) -> [u8; 32] {
        self.hash.update(&self.text);
        self.hash.finalize().into()
    }
}

/// A stored segment that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("not a plan segment: {0}")]
pub struct SegmentError(String);

/// Encodes a segment for the state store: the compact form in a zstd frame.
pub fn encode(segment: &Segment) -> Vec<u8> {
    // Neither end can fail: the writer is memory, and the level is one zstd has.
    let mut writer = zstd::stream::write::Encoder::new(Vec::new(), 3).expect("zstd has a level 3");
    compact::encode_into(segment, &mut writer).expect("memory takes all");
    writer.finish().expect("memory takes all")
}

/// Decodes what [`encode`] wrote.
///
/// # Errors
/// [`SegmentError`] for anything else; never allocates more than a bound, whatever the bytes claim.
pub fn decode(bytes: &[u8]) -> Result<Segment, SegmentError> {
    use std::io::{BufReader, Read};
    let decoder = zstd::stream::read::Decoder::new(bytes).map_err(|error| SegmentError(error.to_string()))?;
    let bounded = BufReader::new(decoder.take(compact::MAX_DECODED_BYTES as u64));
    compact::decode_from(bounded).map_err(|error| SegmentError(error.to_string()))
}

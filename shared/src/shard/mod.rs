//! The shard formats, as `docs/format.md` describes them, byte for byte. No IO in here: encoders return bytes,
//! decoders take them.
//!
//! Writing: [`choose_samples`] and [`SampleChoice::train`] make the dictionary, an [`Encoder`] for each thread
//! compresses payloads, one [`ShardWriter`] keeps the index: [`ShardWriter::header`], then the payloads as they are
//! appended, then [`ShardWriter::finish`].
//!
//! Reading from afar: one suffix read of [`TAIL_READ_BYTES`] makes a [`TailBytes`], [`Tail::parse`] tells what to read
//! next. Version 3: [`Directory`], then the one [`Block`] that can hold the uid, then the payload. Versions 1 and 2:
//! header and [`Index`], then the payload. Every step says its byte range, and [`TailBytes::get`] answers it when the
//! bytes are already here. [`Decoder::decode`] turns a payload into the file. [`Shard`] does all that in memory.
//!
//! Invariants of every decoder: lengths and counts are checked against the bytes that are there before anything is
//! allocated, wrong checksums are errors, and whatever the bytes are, there is an answer and never a panic.

mod block;
mod codec;
mod cover;
mod decode;
mod dictionary;
mod directory;
mod encoder;
mod entry;
mod error;
mod finalize;
mod footer;
mod legacy;
mod meta;
mod probe;
mod reader;
mod rows;
mod wire;
mod writer;

pub use block::Block;
pub use codec::{should_compress, zstd_window_len};
pub use cover::Workspace;
pub use decode::{Decoder, check_stored, decode_payload};
pub use dictionary::{Dictionary, PackDictionary, SampleChoice, choose_samples};
pub use directory::{BlockRef, Directory};
pub use encoder::{Encoded, EncodedHere, Encoder, PayloadInfo};
pub use entry::{Codec, Entry, Inline, Location, hex32, parse_hex32};
pub use error::{Part, ShardError};
pub use footer::{
    Footer, HEADER_LEN, LegacyTail, MAX_DICTIONARY_BYTES, TAIL_READ_BYTES, Tail, TailBytes, Version, header_of,
    parse_header,
};
pub use legacy::Index;
pub use meta::{MAX_META_BYTES, Meta};
pub use reader::{Shard, Verified, check_v3_header};
pub use writer::ShardWriter;

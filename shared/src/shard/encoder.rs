//! Compression, one payload at a time.

use std::borrow::Cow;
use std::io::Write;
use std::sync::Arc;

use lz4_flex::frame::{BlockSize, FrameEncoder, FrameInfo};
use zstd::zstd_safe::{self, CCtx, CParameter, InBuffer, OutBuffer, ResetDirective};

use super::codec::{MAX_DICTIONARY_FILE, should_compress};
use super::dictionary::PackDictionary;
use super::entry::Codec;
use super::error::ShardError;
use super::probe::looks_like_noise;
use crate::segment::{CodecChoice, PackOptions, ShardFormat};

/// From this level on, a file of the largest inline size can take longer than a second, up to a minute at 22.
const SLOW_LEVEL: i32 = 10;
/// Files from this size on are compressed step by step at a slow level.
const SLOW_BYTES: usize = 256 * 1024;
/// Bytes between two looks at whether anybody still wants the file: half a zstd block, so at most one block is finished
/// in between, about 0.1 s at level 22.
const STEP_BYTES: usize = 64 * 1024;

/// One payload as it will be stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded<'a> {
    /// The stored bytes: the file's own where compression did not shrink them.
    pub bytes: Cow<'a, [u8]>,
    /// What the index says about them.
    pub info: PayloadInfo,
}

/// One payload as it will be stored, in its encoder's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EncodedHere<'a> {
    /// The compressed bytes; `None` where the file's own are stored, because compression did not shrink them.
    pub compressed: Option<&'a [u8]>,
    /// What the index says about them.
    pub info: PayloadInfo,
}

/// What the index says about a stored payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PayloadInfo {
    /// How the bytes are stored.
    pub codec: Codec,
    /// Size before compression in bytes.
    pub raw_len: u64,
    /// Stored size in bytes.
    pub stored_len: u64,
    /// CRC-32C of the stored bytes.
    pub crc32c: u32,
}

impl PayloadInfo {
    /// Describes stored bytes.
    pub fn of(codec: Codec, raw_len: u64, stored: &[u8]) -> Self {
        Self { codec, raw_len, stored_len: stored.len() as u64, crc32c: crc32c::crc32c(stored) }
    }
}

enum Method {
    Store,
    Zstd { context: CCtx<'static>, slow: bool, dictionary: Option<Arc<PackDictionary>> },
    Lz4 { checksum: bool },
}

/// Compresses payloads one after the other. Reuses its contexts: make one for each thread, not for each file, and use it
/// for the next shard too ([`Self::set_dictionary`]).
pub struct Encoder {
    method: Method,
    /// Whether the options have a use for a dictionary.
    takes_dictionary: bool,
    /// Whether files are looked at before they are compressed: `auto`.
    probes: bool,
    scratch: Vec<u8>,
}

impl Encoder {
    /// An encoder for a shard's options and dictionary.
    ///
    /// # Errors
    /// [`ShardError::Usage`] for a level outside zstd's 1 to 22, or a dictionary where the options have no use for it.
    pub fn new(options: &PackOptions, dictionary: Option<Arc<PackDictionary>>) -> Result<Self, ShardError> {
        // Version 2 has no checksums of its own: the frames carry them, four bytes each. Version 3 has CRC-32C.
        let checksum = options.format == ShardFormat::V2;
        let method = match options.codec {
            CodecChoice::None => Method::Store,
            CodecChoice::Lz4 => Method::Lz4 { checksum },
            CodecChoice::Auto | CodecChoice::Zstd => {
                let context = zstd_context(options.level, checksum)?;
                Method::Zstd { context, slow: options.level >= SLOW_LEVEL, dictionary: None }
            }
        };
        let takes_dictionary = super::dictionary::is_possible(options);
        let probes = options.codec == CodecChoice::Auto;
        let mut this = Self { method, takes_dictionary, probes, scratch: Vec::new() };
        this.set_dictionary(dictionary)?;
        Ok(this)
    }

    /// Goes on with another shard of the same options, and its dictionary. What comes out is what a new encoder makes;
    /// what was allocated is used again.
    ///
    /// # Errors
    /// [`ShardError::Usage`] for a dictionary where the options have no use for it.
    pub fn set_dictionary(&mut self, new: Option<Arc<PackDictionary>>) -> Result<(), ShardError> {
        match &mut self.method {
            Method::Zstd { dictionary, .. } if self.takes_dictionary => *dictionary = new,
            _ if new.is_some() => {
                return Err(ShardError::Usage("a dictionary for a format or codec that has none".to_owned()));
            }
            _ => {}
        }
        Ok(())
    }

    /// Memory held in bytes, the dictionary not counted.
    pub fn heap_bytes(&self) -> usize {
        let context = match &self.method {
            Method::Zstd { context, .. } => context.sizeof(),
            Method::Store | Method::Lz4 { .. } => 0,
        };
        context + self.scratch.capacity()
    }

    /// The stored form of one file: as it is when its name (with `auto` also a look at it) says that it is compressed
    /// already, or when compression does not make it smaller.
    ///
    /// # Errors
    /// [`ShardError::Usage`] when the compression library fails, which it does only for want of memory.
    pub fn encode<'a>(&mut self, uid: &str, raw: &'a [u8]) -> Result<Encoded<'a>, ShardError> {
        let encoded = self.encode_unless(uid, raw, &|| false)?;
        let encoded = encoded.ok_or_else(|| ShardError::Usage("stopped although nobody asked for it".to_owned()))?;
        let bytes = encoded.compressed.map_or(Cow::Borrowed(raw), |compressed| Cow::Owned(compressed.to_vec()));
        Ok(Encoded { bytes, info: encoded.info })
    }

    /// [`Self::encode`] that can be stopped: `None` soon after `stopped` says so, also in the middle of a large file. The
    /// bytes are the same as those of [`Self::encode`], and the encoder's own: nothing is allocated for them.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn encode_unless(
        &mut self,
        uid: &str,
        raw: &[u8],
        stopped: &dyn Fn() -> bool,
    ) -> Result<Option<EncodedHere<'_>>, ShardError> {
        if stopped() {
            return Ok(None);
        }
        let codec = if raw.is_empty() || !should_compress(uid) || (self.probes && looks_like_noise(raw)) {
            Codec::None
        } else {
            match self.compress(raw, stopped)? {
                Some(codec) => codec,
                None => return Ok(None),
            }
        };
        let compressed = (codec != Codec::None).then_some(self.scratch.as_slice());
        let info = PayloadInfo::of(codec, raw.len() as u64, compressed.unwrap_or(raw));
        Ok(Some(EncodedHere { compressed, info }))
    }

    /// Leaves the compressed bytes in the scratch buffer; [`Codec::None`] when they are not fewer, `None` when stopped.
    fn compress(&mut self, raw: &[u8], stopped: &dyn Fn() -> bool) -> Result<Option<Codec>, ShardError> {
        self.scratch.clear();
        let codec = match &mut self.method {
            Method::Store => return Ok(Some(Codec::None)),
            Method::Zstd { context, slow, dictionary } => {
                self.scratch.reserve(zstd_safe::compress_bound(raw.len()));
                if let Some(dictionary) = dictionary.as_ref().filter(|_| raw.len() <= MAX_DICTIONARY_FILE) {
                    // The context refers to the dictionary from here on, which lives as long as this encoder.
                    context.ref_cdict(dictionary.prepared()).map_err(zstd_failed)?;
                    context.compress2(&mut self.scratch, raw).map_err(zstd_failed)?;
                    context.disable_dictionary().map_err(zstd_failed)?;
                    Codec::ZstdDict
                } else if *slow && raw.len() >= SLOW_BYTES {
                    match compress_in_steps(context, &mut self.scratch, raw, stopped)? {
                        Some(true) => Codec::Zstd,
                        Some(false) => Codec::None,
                        None => return Ok(None),
                    }
                } else {
                    context.compress2(&mut self.scratch, raw).map_err(zstd_failed)?;
                    Codec::Zstd
                }
            }
            Method::Lz4 { checksum } => {
                let info = lz4_frame_info(raw.len(), *checksum);
                let mut frame = FrameEncoder::with_frame_info(info, &mut self.scratch);
                let failed = |e: &dyn std::fmt::Display| ShardError::Usage(format!("LZ4 failed: {e}"));
                frame.write_all(raw).map_err(|e| failed(&e))?;
                frame.finish().map_err(|e| failed(&e))?;
                Codec::Lz4
            }
        };
        Ok(Some(if self.scratch.len() < raw.len() { codec } else { Codec::None }))
    }
}

/// Compresses a file piece by piece. Whether it shrank, or `None` when stopped. zstd's bytes differ from those of one
/// call for the whole, so what goes this way is decided by level and length alone.
fn compress_in_steps(
    context: &mut CCtx<'static>,
    out: &mut Vec<u8>,
    raw: &[u8],
    stopped: &dyn Fn() -> bool,
) -> Result<Option<bool>, ShardError> {
    context.reset(ResetDirective::SessionOnly).map_err(zstd_failed)?;
    context.set_pledged_src_size(Some(raw.len() as u64)).map_err(zstd_failed)?;
    let mut out = OutBuffer::around(out);
    for step in raw.chunks(STEP_BYTES) {
        let mut input = InBuffer::around(step);
        while input.pos() < step.len() {
            if stopped() {
                context.reset(ResetDirective::SessionOnly).map_err(zstd_failed)?;
                return Ok(None);
            }
            if out.pos() == out.capacity() {
                context.reset(ResetDirective::SessionOnly).map_err(zstd_failed)?;
                return Ok(Some(false));
            }
            context.compress_stream(&mut out, &mut input).map_err(zstd_failed)?;
        }
    }
    // The room is more than the file: when it does not do, the file did not shrink.
    if context.end_stream(&mut out).map_err(zstd_failed)? > 0 {
        context.reset(ResetDirective::SessionOnly).map_err(zstd_failed)?;
        return Ok(Some(false));
    }
    Ok(Some(true))
}

pub(super) fn zstd_failed(code: usize) -> ShardError {
    ShardError::Usage(format!("zstd failed: {}", zstd_safe::get_error_name(code)))
}

pub(super) fn zstd_context(level: i32, checksum: bool) -> Result<CCtx<'static>, ShardError> {
    if !(1..=zstd_safe::max_c_level()).contains(&level) {
        return Err(ShardError::Usage(format!("level {level}; expected 1 to {}", zstd_safe::max_c_level())));
    }
    let no_memory = || ShardError::Usage("no memory for a zstd context".to_owned());
    let mut context = CCtx::try_create().ok_or_else(no_memory)?;
    context.set_parameter(CParameter::CompressionLevel(level)).map_err(zstd_failed)?;
    context.set_parameter(CParameter::ChecksumFlag(checksum)).map_err(zstd_failed)?;
    super::dictionary::without_id(&mut context).map_err(zstd_failed)?;
    Ok(context)
}

fn lz4_frame_info(raw_len: usize, checksum: bool) -> FrameInfo {
    // The smallest block that holds the file: readers allocate by it.
    let block_size = match raw_len {
        0..=0x1_0000 => BlockSize::Max64KB,
        0x1_0001..=0x4_0000 => BlockSize::Max256KB,
        0x4_0001..=0x10_0000 => BlockSize::Max1MB,
        _ => BlockSize::Max4MB,
    };
    FrameInfo::new().block_size(block_size).content_size(Some(raw_len as u64)).content_checksum(checksum)
}

#[cfg(test)]
mod tests {
    use super::super::codec::{decompress_zstd, new_context};
    use super::*;

    /// Level 22 takes a large file far longer than a second; whoever stops does not wait for its end.
    #[test]
    fn a_slow_compression_is_stopped_between_two_blocks_and_otherwise_the_same() {
        let raw: Vec<u8> = (0..300_000_u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
        let options = PackOptions { level: 22, ..PackOptions::default() };
        let looks = std::cell::Cell::new(0);
        let mut encoder = Encoder::new(&options, None).unwrap();
        let stopped = encoder.encode_unless("a", &raw, &|| {
            looks.set(looks.get() + 1);
            looks.get() > 3
        });
        assert_eq!(stopped.unwrap(), None);
        assert_eq!(looks.get(), 4, "not even one step more");
        looks.set(0);
        let encoded = encoder.encode_unless("a", &raw, &|| {
            looks.set(looks.get() + 1);
            false
        });
        let encoded = encoded.unwrap().unwrap();
        let compressed = encoded.compressed.unwrap();
        assert!(looks.get() > raw.len() / STEP_BYTES, "{} looks", looks.get());
        let at_once = Encoder::new(&options, None).unwrap().encode("a", &raw).unwrap();
        assert_eq!((compressed, encoded.info), (&at_once.bytes[..], at_once.info));
        assert_eq!(encoded.info.codec, Codec::Zstd);
        let mut context = new_context().unwrap();
        assert_eq!(decompress_zstd(&mut context, compressed, raw.len() as u64, None).unwrap(), raw);
        // What does not shrink is kept as it is, also step by step.
        let dice = crate::clock::Dice::seeded(1);
        let noise: Vec<u8> = (0..10_000).flat_map(|_| dice.bytes::<64>()).collect();
        assert_eq!(encoder.encode("b", &noise).unwrap().info.codec, Codec::None);
    }
}

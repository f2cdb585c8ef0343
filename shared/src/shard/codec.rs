//! What is compressed at all, how the index is, and the bounds of decompression.

use std::io::Read;

use lz4_flex::frame::FrameDecoder;
use zstd::zstd_safe::{self, DCtx, DDict};

use super::encoder::{zstd_context, zstd_failed};
use super::error::ShardError;

/// Level of index blocks and directories: part of the format's bytes, so no option changes it. Higher ones gain less
/// than 3 % (docs/format.md has the measurement).
const INDEX_LEVEL: i32 = 3;
/// Names whose content is already compressed. The list is the existing implementation's, no more and no less.
const COMPRESSED_EXTENSIONS: [&str; 8] = ["jpg", "jpeg", "png", "gif", "zip", "gz", "bz2", "xz"];
/// Files up to this many bytes are compressed with the shard's dictionary; larger ones bring enough context of their
/// own, and a plain frame can be handed to HTTP clients as it is. From here on zstd would copy the dictionary's tables for
/// each file, and search by its slowest way.
pub(super) const MAX_DICTIONARY_FILE: usize = 16 * 1024;
/// The most a dictionary entry may be before compression, in bytes: what readers accept, above what is written.
pub(super) const MAX_DICTIONARY_RAW: u64 = 1 << 20;

/// False for names whose content is already compressed, judged by the extension of the last path component.
pub fn should_compress(uid: &str) -> bool {
    // The existing implementation asks Python's pathlib: empty and "." components do not count.
    let Some(name) = uid.rsplit('/').find(|part| !part.is_empty() && *part != ".") else { return true };
    match name.rfind('.') {
        Some(dot) if dot > 0 && dot + 1 < name.len() => {
            !COMPRESSED_EXTENSIONS.iter().any(|e| name[dot + 1..].eq_ignore_ascii_case(e))
        }
        _ => true,
    }
}

/// Compresses a part of the index.
pub(super) fn compress_index(raw: &[u8]) -> Result<Vec<u8>, ShardError> {
    let mut out = Vec::with_capacity(zstd_safe::compress_bound(raw.len()));
    zstd_context(INDEX_LEVEL, false)?.compress2(&mut out, raw).map_err(zstd_failed)?;
    out.shrink_to_fit();
    Ok(out)
}

/// Decompresses a part of the index: one zstd frame that says its size, which is at most `limit` bytes.
pub(super) fn decompress_index(frame: &[u8], limit: usize) -> Result<Vec<u8>, String> {
    let Ok(Some(raw_len)) = zstd_safe::get_frame_content_size(frame) else {
        return Err("not a zstd frame that says its size".to_owned());
    };
    if raw_len > limit as u64 {
        return Err(format!("{raw_len} bytes after decompression; at most {limit} are allowed"));
    }
    decompress_zstd(&mut new_context()?, frame, raw_len, None)
}

pub(super) fn new_context() -> Result<DCtx<'static>, String> {
    DCtx::try_create().ok_or_else(|| "no memory for a zstd context".to_owned())
}

/// Decompresses exactly one zstd frame of exactly `raw_len` bytes.
pub(super) fn decompress_zstd(
    context: &mut DCtx<'static>,
    frame: &[u8],
    raw_len: u64,
    dictionary: Option<&DDict<'static>>,
) -> Result<Vec<u8>, String> {
    if !frame.starts_with(&zstd_safe::MAGICNUMBER.to_le_bytes()) {
        return Err("not a zstd frame".to_owned());
    }
    let named = |code| format!("zstd: {}", zstd_safe::get_error_name(code));
    let frame_len = zstd_safe::find_frame_compressed_size(frame).map_err(named)?;
    if frame_len != frame.len() {
        return Err(format!("{} bytes behind the end of the zstd frame", frame.len() - frame_len));
    }
    match zstd_safe::get_frame_content_size(frame) {
        Ok(Some(size)) if size != raw_len => {
            return Err(format!("the zstd frame holds {size} bytes, the index says {raw_len}"));
        }
        Ok(_) => {}
        Err(_) => return Err("damaged zstd frame header".to_owned()),
    }
    // Four bytes of a frame make at most one block of 128 KiB: more cannot come out, whatever the index says.
    let possible = (frame.len() as u64 / 4).saturating_mul(128 * 1024);
    let mut raw = reserve(raw_len, possible)?;
    let result = match dictionary {
        Some(dictionary) => context.decompress_using_ddict(&mut raw, frame, dictionary),
        None => context.decompress(&mut raw, frame),
    };
    result.map_err(named)?;
    check_len(raw, raw_len)
}

/// Decompresses exactly one LZ4 frame of exactly `raw_len` bytes.
pub(super) fn decompress_lz4(frame: &[u8], raw_len: u64) -> Result<Vec<u8>, String> {
    let frame_len = lz4_frame_len(frame).ok_or("not a whole LZ4 frame")?;
    if frame_len != frame.len() {
        return Err(format!("{} bytes behind the end of the LZ4 frame", frame.len() - frame_len));
    }
    // A byte of an LZ4 block stands for at most 255 bytes.
    let mut raw = reserve(raw_len, (frame.len() as u64).saturating_mul(255))?;
    let decoder = FrameDecoder::new(frame);
    decoder.take(raw_len.saturating_add(1)).read_to_end(&mut raw).map_err(|e| format!("LZ4: {e}"))?;
    check_len(raw, raw_len)
}

/// Room for what the index promises, if the stored bytes can hold that much at all.
fn reserve(raw_len: u64, possible: u64) -> Result<Vec<u8>, String> {
    if raw_len > possible {
        return Err(format!("the index says {raw_len} bytes; the stored ones hold at most {possible}"));
    }
    let mut raw = Vec::new();
    // At least one byte: zstd wants a real address even for an empty file.
    raw.try_reserve_exact((raw_len as usize).max(1)).map_err(|e| format!("{raw_len} bytes: {e}"))?;
    Ok(raw)
}

fn check_len(raw: Vec<u8>, raw_len: u64) -> Result<Vec<u8>, String> {
    if raw.len() as u64 == raw_len {
        Ok(raw)
    } else {
        Err(format!("{} bytes after decompression, the index says {raw_len}", raw.len()))
    }
}

/// The length of the LZ4 frame at the start of `bytes`, found from its block lengths alone; `None` when it is cut
/// short. The decoder does not tell: it takes the end of the input for the end of the frame.
fn lz4_frame_len(bytes: &[u8]) -> Option<usize> {
    const MAGIC: [u8; 4] = 0x184D_2204u32.to_le_bytes();
    if !bytes.starts_with(&MAGIC) {
        return None;
    }
    let flags = *bytes.get(4)?;
    let has = |bit: u8| usize::from(flags >> bit & 1);
    // Magic, flags, block descriptor, content size, dictionary id, header checksum.
    let mut at = 4 + 2 + has(3) * 8 + has(0) * 4 + 1;
    loop {
        let size = u32::from_le_bytes(*bytes.get(at..)?.first_chunk::<4>()?);
        at += 4;
        if size == 0 {
            at += has(2) * 4;
            return (at <= bytes.len()).then_some(at);
        }
        at += (size & 0x7fff_ffff) as usize + has(4) * 4;
    }
}

/// The window a reader of this zstd frame must keep, in bytes; `None` when `frame` does not start as one.
///
/// HTTP allows the content coding `zstd` only for windows of up to 8 MiB (RFC 9659), so a stored frame with a larger
/// one must be decompressed before it is sent.
pub fn zstd_window_len(frame: &[u8]) -> Option<u64> {
    if !frame.starts_with(&zstd_safe::MAGICNUMBER.to_le_bytes()) {
        return None;
    }
    let descriptor = *frame.get(4)?;
    if descriptor & 0x20 != 0 {
        return zstd_safe::get_frame_content_size(frame).ok().flatten();
    }
    let window = *frame.get(5)?;
    let base = 1u64 << (10 + (window >> 3));
    Some(base + base / 8 * u64::from(window & 7))
}

//! The shard's zstd dictionary: what small similar files have in common, stored once.
//!
//! Which files it is learnt from, and whether it is used at all, follows from the file list and the files alone, so
//! every machine gets the same bytes.

use std::collections::BinaryHeap;

use zstd::zstd_safe::{self, CCtx, CDict, CParameter, DDict};

use super::codec::{MAX_DICTIONARY_FILE, should_compress};
use super::cover::{self, Workspace};
use super::error::{Part, ShardError};
use super::finalize::{MAX_FRONT, MIN_CONTENT, front};
use super::footer::{Footer, MAX_DICTIONARY_BYTES};
use crate::segment::{CodecChoice, PackOptions, ShardFormat};

/// Bytes of samples at most: twice as many gain 0.5 %, and the time grows with them.
const MAX_SAMPLES: u64 = 2 << 20;
/// Bytes of samples of small shards.
const MIN_SAMPLES: u64 = 256 * 1024;
/// In between, one byte in so many that would use the dictionary is a sample: learning from a byte takes about eight times
/// as long as compressing it.
const BYTES_PER_SAMPLE_BYTE: u64 = 16;
/// A dictionary is at most this part of the bytes it is for, so that it can pay at all.
const BYTES_PER_DICTIONARY_BYTE: u64 = 16;
/// With less than this many files or bytes to use it for, no dictionary is tried.
const MIN_FILES: usize = 16;
const MIN_BYTES: u64 = 32 * 1024;
/// Every eighth sample is kept out of the training and judges the result.
const HELD_OUT: usize = 8;
/// The statistics of a dictionary are learnt from so many bytes and files.
const STATISTICS_BYTES: usize = 64 * 1024;
const STATISTICS_FILES: usize = 16;

/// True when a shard with these options may hold a dictionary.
pub(super) fn is_possible(options: &PackOptions) -> bool {
    options.format == ShardFormat::V3 && matches!(options.codec, CodecChoice::Auto | CodecChoice::Zstd)
}

/// Which files of a shard to learn its dictionary from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SampleChoice {
    /// Positions in the list given, to be read and handed to [`SampleChoice::train`] in this order. At most 2 MiB
    /// of files, of at most 16 KiB each.
    pub files: Vec<usize>,
    /// Bytes of all files that would use the dictionary.
    eligible_bytes: u64,
}

/// Chooses the samples for a shard of `files`, each a uid with its size in bytes, in the order of the shard; `None` when
/// a dictionary cannot pay or the options have no use for one. Holds no more than the samples, however many files.
pub fn choose_samples<U: AsRef<str>>(
    options: &PackOptions,
    files: impl Iterator<Item = (U, u64)>,
) -> Option<SampleChoice> {
    if !is_possible(options) {
        return None;
    }
    let (mut eligible, mut eligible_bytes, mut held_bytes) = (0, 0, 0);
    // By the hash of the uid: as good as random, and the same everywhere. The heap gives up what lies behind the first
    // file that does not fit the budget.
    let mut held: BinaryHeap<(u32, usize, u64)> = BinaryHeap::new();
    for (at, (uid, size)) in files.enumerate() {
        if !(1..=MAX_DICTIONARY_FILE as u64).contains(&size) || !should_compress(uid.as_ref()) {
            continue;
        }
        (eligible, eligible_bytes, held_bytes) = (eligible + 1, eligible_bytes + size, held_bytes + size);
        held.push((crc32c::crc32c(uid.as_ref().as_bytes()), at, size));
        while let Some(&(_, _, last)) = held.peek()
            && held_bytes - last > MAX_SAMPLES
        {
            held.pop();
            held_bytes -= last;
        }
    }
    if eligible < MIN_FILES || eligible_bytes < MIN_BYTES {
        return None;
    }
    let mut room = (eligible_bytes / BYTES_PER_SAMPLE_BYTE).clamp(MIN_SAMPLES, MAX_SAMPLES);
    let chosen = held.into_sorted_vec().into_iter().map_while(|(_, at, size)| {
        room = room.checked_sub(size)?;
        Some(at)
    });
    Some(SampleChoice { files: chosen.collect(), eligible_bytes })
}

impl SampleChoice {
    /// Learns a dictionary from the chosen files' bytes; `None` when it would not pay: what it saves on files it has
    /// not seen, projected on the shard, must exceed its own size.
    pub fn train(&self, samples: &[&[u8]], level: i32) -> Option<Vec<u8>> {
        self.train_in(&mut Workspace::default(), samples, level)
    }

    /// [`Self::train`] with tables that were used before.
    pub fn train_in(&self, workspace: &mut Workspace, samples: &[&[u8]], level: i32) -> Option<Vec<u8>> {
        let (mut training, mut held_out) = (Vec::new(), Vec::new());
        for (at, sample) in samples.iter().enumerate() {
            if at % HELD_OUT == HELD_OUT - 1 {
                held_out.push(*sample);
            } else if !sample.is_empty() {
                training.push(*sample);
            }
        }
        let capacity = (self.eligible_bytes / BYTES_PER_DICTIONARY_BYTE).min(MAX_DICTIONARY_BYTES as u64) as usize;
        let content = cover::choose(workspace, &training, capacity.checked_sub(MAX_FRONT)?);
        let front = front(&content, for_statistics(&training), level)?;
        let mut judge = Judge::new(held_out, level)?;
        // The best content lies at the end, so a smaller dictionary is a shorter end of it.
        let (mut best, mut best_gain) = (None, 0);
        let mut size = content.len();
        while size >= MIN_CONTENT {
            let dictionary = [&front[..], &content[content.len() - size..]].concat();
            let gain = judge.gain(&dictionary, self.eligible_bytes)?;
            if gain <= best_gain && best.is_some() {
                break;
            }
            if gain > best_gain {
                (best, best_gain) = (Some(dictionary), gain);
            }
            size /= 2;
        }
        best
    }
}

/// The first samples, as many as the statistics are learnt from.
fn for_statistics<'a, 'b>(training: &'a [&'b [u8]]) -> &'a [&'b [u8]] {
    let mut bytes = 0;
    let enough = training.iter().position(|sample| {
        bytes += sample.len();
        bytes >= STATISTICS_BYTES
    });
    &training[..enough.map_or(training.len(), |at| (at + 1).max(STATISTICS_FILES).min(training.len()))]
}

/// Says what a dictionary is worth, by samples that it was not made from.
struct Judge<'a> {
    held_out: Vec<&'a [u8]>,
    level: i32,
    context: CCtx<'static>,
    buffer: Vec<u8>,
    raw: u64,
    plain: u64,
}

impl<'a> Judge<'a> {
    fn new(held_out: Vec<&'a [u8]>, level: i32) -> Option<Self> {
        let raw = held_out.iter().map(|sample| sample.len() as u64).sum();
        let mut context = CCtx::try_create()?;
        context.set_parameter(CParameter::CompressionLevel(level)).ok()?;
        without_id(&mut context).ok()?;
        let mut judge = Self { held_out, level, context, buffer: Vec::new(), raw, plain: 0 };
        judge.plain = judge.stored(None)?;
        (raw > 0).then_some(judge)
    }

    /// Bytes a dictionary saves in a shard with so many bytes of files for it, less its own.
    fn gain(&mut self, dictionary: &[u8], eligible_bytes: u64) -> Option<i128> {
        let with = self.stored(Some(&CDict::try_create(dictionary, self.level)?))?;
        // Integers only: a comparison of floats may differ between machines.
        let saved = i128::from(self.plain) - i128::from(with);
        Some(saved * i128::from(eligible_bytes) / i128::from(self.raw) - dictionary.len() as i128)
    }

    fn stored(&mut self, dictionary: Option<&CDict<'static>>) -> Option<u64> {
        let (context, buffer) = (&mut self.context, &mut self.buffer);
        if let Some(dictionary) = dictionary {
            context.ref_cdict(dictionary).ok()?;
        }
        let stored = self.held_out.iter().map(|sample| {
            buffer.clear();
            buffer.reserve(zstd_safe::compress_bound(sample.len()));
            let stored = context.compress2(buffer, sample).unwrap_or(sample.len());
            stored.min(sample.len()) as u64
        });
        let stored = stored.sum();
        // The dictionary ends before the context does.
        context.disable_dictionary().ok()?;
        Some(stored)
    }
}

/// Frames say no dictionary's id: that takes four bytes of each, and the shard has one dictionary only, with a checksum.
pub(super) fn without_id(context: &mut CCtx<'_>) -> zstd_safe::SafeResult {
    context.set_parameter(CParameter::DictIdFlag(false))
}

/// A dictionary digested for compression at one level; share it between the encoders of a shard.
pub struct PackDictionary {
    bytes: Vec<u8>,
    prepared: CDict<'static>,
}

impl PackDictionary {
    /// Digests a dictionary.
    ///
    /// # Errors
    /// [`ShardError::Usage`] for bytes that are no dictionary or too many.
    pub fn new(bytes: Vec<u8>, level: i32) -> Result<Self, ShardError> {
        check(&bytes).map_err(ShardError::Usage)?;
        let prepared = CDict::try_create(&bytes, level);
        match prepared {
            Some(prepared) => Ok(Self { bytes, prepared }),
            None => Err(ShardError::Usage("zstd does not accept the dictionary".to_owned())),
        }
    }

    /// The dictionary's bytes, as the shard stores them.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn prepared(&self) -> &CDict<'static> {
        &self.prepared
    }
}

/// A dictionary digested for decompression; share it between all readers of a shard.
pub struct Dictionary {
    prepared: DDict<'static>,
}

impl std::fmt::Debug for Dictionary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Dictionary({} bytes digested)", self.heap_bytes())
    }
}

impl Dictionary {
    /// Reads a shard's dictionary, the bytes of [`Footer::dictionary_range`].
    ///
    /// # Errors
    /// [`ShardError::Corrupt`] when they are damaged.
    pub fn parse(footer: &Footer, bytes: &[u8]) -> Result<Self, ShardError> {
        let corrupt = |detail: String| ShardError::corrupt(Part::Dictionary, footer.dict_offset, detail);
        if bytes.len() as u64 != u64::from(footer.dict_len) {
            let detail = format!("{} bytes of a dictionary of {}", bytes.len(), footer.dict_len);
            return Err(ShardError::Usage(detail));
        }
        let actual = crc32c::crc32c(bytes);
        if actual != footer.dict_crc32c {
            return Err(corrupt(format!("CRC-32C {actual:08x}, the footer says {:08x}", footer.dict_crc32c)));
        }
        check(bytes).map_err(corrupt)?;
        let prepared =
            DDict::try_create(bytes).ok_or_else(|| corrupt("zstd does not accept the dictionary".to_owned()))?;
        Ok(Self { prepared })
    }

    pub(super) fn prepared(&self) -> &DDict<'static> {
        &self.prepared
    }

    /// Memory held in bytes, for a cache that is bounded by bytes.
    pub fn heap_bytes(&self) -> usize {
        self.prepared.sizeof()
    }
}

/// Only dictionaries in zstd's own form, with its tables of statistics: small files need these more than the content.
fn check(bytes: &[u8]) -> Result<(), String> {
    const MAGIC: [u8; 4] = 0xEC30_A437u32.to_le_bytes();
    if bytes.len() > MAX_DICTIONARY_BYTES {
        return Err(format!("a dictionary of {} bytes; at most {MAX_DICTIONARY_BYTES} are allowed", bytes.len()));
    }
    if !bytes.starts_with(&MAGIC) {
        return Err("not a zstd dictionary: it does not start with 37 a4 30 ec".to_owned());
    }
    Ok(())
}

//! Made-up input for measurements of the parts: the same on every machine.

use std::fmt::Write;

use bytes::Bytes;
use des_shared::segment::ShardFormat;
use des_shared::shard::{
    Block, Codec, Directory, Entry, Footer, PayloadInfo, ShardError, ShardWriter, Tail, TailBytes,
};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// What uids are like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Uids {
    /// Nine digits, one in a thousand of all numbers taken.
    Numbers,
    /// 32 random hexadecimal digits.
    Random,
    /// Paths with much in common.
    Paths,
}

impl Uids {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::Numbers, Self::Random, Self::Paths];

    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Numbers => "9 digits",
            Self::Random => "32 random hex digits",
            Self::Paths => "paths of 43 bytes",
        }
    }
}

/// This many uids at most (what comes twice stands once), sorted.
pub fn uids(kind: Uids, count: usize, seed: u64) -> Vec<String> {
    let mut rng = StdRng::seed_from_u64(seed);
    let make = |number: usize| match kind {
        Uids::Numbers => format!("{:09}", rng.random_range(0..1_000_000_000)),
        Uids::Random => format!("{:032x}", rng.random::<u128>()),
        Uids::Paths => format!("customers/{:07}/documents/{number:010}.json", number / 9),
    };
    let mut uids: Vec<String> = (0..count).map(make).collect();
    uids.sort_unstable();
    uids.dedup();
    uids
}

/// What stands behind the payloads of a shard of such files, and the size of the whole shard.
///
/// # Errors
/// [`ShardError`] when the uids are not sorted.
pub fn index_bytes(uids: &[String], format: ShardFormat, seed: u64) -> Result<(u64, Bytes), ShardError> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut writer = ShardWriter::new(format, None, 0)?;
    for uid in uids {
        // Sizes as files have them: mostly small, some large, compressed to about a third.
        let scale = 1 << rng.random_range(8..17);
        let raw_len = 200 + rng.random_range(0..scale);
        let stored_len = raw_len / 3 + rng.random_range(0..40);
        writer.append(uid, &PayloadInfo { codec: Codec::Zstd, raw_len, stored_len, crc32c: rng.random() }, None)?;
    }
    let position = writer.position();
    let tail = Bytes::from(writer.finish()?);
    Ok((position + tail.len() as u64, tail))
}

/// The index of a version 3 shard without the shard.
pub struct Index {
    /// Bytes of blocks, directory and footer.
    pub bytes: usize,
    tail: TailBytes,
    footer: Footer,
    directory: Directory,
}

/// Makes one.
///
/// # Errors
/// [`ShardError`] when the uids are not sorted.
pub fn index(uids: &[String], seed: u64) -> Result<Index, ShardError> {
    let (size, tail) = index_bytes(uids, ShardFormat::V3, seed)?;
    let bytes = tail.len();
    let tail = TailBytes::new(size, tail)?;
    let Tail::V3(footer) = Tail::parse(&tail)? else {
        return Err(ShardError::Usage("not a shard of version 3".to_owned()));
    };
    let missing = || ShardError::Usage("the tail is the whole index".to_owned());
    let directory = Directory::parse(&footer, &tail.get(&footer.directory_range()).ok_or_else(missing)?)?;
    Ok(Index { bytes, tail, footer, directory })
}

impl Index {
    /// How many index blocks there are.
    pub fn len(&self) -> usize {
        self.footer.block_count as usize
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn block(&self, number: usize) -> Result<Block, ShardError> {
        let missing = || ShardError::Usage(format!("no block {number}"));
        let block = self.directory.block(number).ok_or_else(missing)?;
        Block::parse(&self.tail.get(&block.range()).ok_or_else(missing)?, &block)
    }

    /// All blocks, parsed, as a reader that has them in its cache.
    ///
    /// # Errors
    /// [`ShardError`] when one is damaged.
    pub fn blocks(&self) -> Result<Vec<Block>, ShardError> {
        (0..self.len()).map(|number| self.block(number)).collect()
    }

    /// A look-up with the parsed blocks.
    ///
    /// # Errors
    /// [`ShardError`] when the entry is damaged.
    pub fn find_in(&self, blocks: &[Block], uid: &str) -> Result<Option<Entry>, ShardError> {
        match self.directory.find(uid) {
            Some(block) => blocks[block.number].find(uid),
            None => Ok(None),
        }
    }

    /// A look-up that parses its block.
    ///
    /// # Errors
    /// [`ShardError`] when it is damaged.
    pub fn find(&self, uid: &str) -> Result<Option<Entry>, ShardError> {
        match self.directory.find(uid) {
            Some(block) => self.block(block.number)?.find(uid),
            None => Ok(None),
        }
    }
}

/// Adds a line of NDJSON: files of 28 days in no order.
pub fn manifest_line(number: u64, text: &mut String) {
    // SplitMix64's finaliser.
    let mut x = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^= x >> 31;
    let (day, hour, minute, size) = (x % 28 + 1, (x >> 8) % 24, (x >> 16) % 60, (x >> 40) >> ((x >> 32) & 15));
    writeln!(
        text,
        "{{\"uid\": \"customers/{:05}/scan-{number}.pdf\", \"created_at\": \"2025-03-{day:02}T{hour:02}:{minute:02}:00Z\", \
         \"size_bytes\": {size}, \"source_path\": \"/archive/inbox/2025/{:03}/{number}.bin\"}}",
        x % 90_000,
        number % 1000,
    )
    .expect("a string takes any text");
}

/// A JSON record of some hundred bytes.
pub fn record(rng: &mut StdRng) -> Vec<u8> {
    const KINDS: [&str; 4] = ["invoice", "delivery", "reminder", "credit note"];
    let (kind, id) = (KINDS[rng.random_range(0..KINDS.len())], rng.random::<u32>());
    let (amount, paid) = (rng.random_range(100..1_000_000), rng.random_bool(0.7));
    format!(
        "{{\"id\":{id},\"kind\":\"{kind}\",\"amount_cents\":{amount},\"currency\":\"EUR\",\"paid\":{paid},\
         \"customer\":{{\"number\":{},\"country\":\"DE\",\"language\":\"de\"}},\"lines\":[{{\"text\":\"Service {}\",\"quantity\":{}}}]}}",
        rng.random_range(1..100_000),
        rng.random_range(1..500),
        rng.random_range(1..20),
    )
    .into_bytes()
}

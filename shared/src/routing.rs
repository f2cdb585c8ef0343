//! Where a file belongs: `(uid, created_at)` to a slot, byte for byte as the existing implementation computes it
//! (the project's format document, "Routing").

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A calendar date as it stands in object names: `YYYYMMDD`. Years below 1000 are not padded, as the existing
/// implementation writes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ShardDate {
    /// 1 to 9999.
    pub year: u16,
    /// 1 to 12.
    pub month: u8,
    /// 1 to 31.
    pub day: u8,
}

impl fmt::Display for ShardDate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:02}{:02}", self.year, self.month, self.day)
    }
}

/// How many bits of a uid's number or checksum choose its shard: 4 to 16.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct NBits(u8);

/// One place of the archive: all shards of a slot share the object-name prefix `{date}_{HEX}_`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Slot {
    /// Date of the files.
    pub date: ShardDate,
    /// `0 .. 2^n_bits`.
    pub index: u32,
    /// The width the index was computed with.
    pub n_bits: NBits,
}

impl NBits {
    /// Checks the width.
    ///
    /// # Errors
    /// A sentence for people when it is not in 4 to 16.
    pub fn new(bits: u8) -> Result<Self, String> {
        if (4..=16).contains(&bits) { Ok(Self(bits)) } else { Err(format!("n_bits is {bits}; expected 4 to 16")) }
    }

    /// The number of bits.
    pub fn get(self) -> u8 {
        self.0
    }

    /// How many slots a date has: 2^bits.
    pub fn slots(self) -> u32 {
        1 << self.0
    }

    /// Digits of the hexadecimal shard index in object names: `max(1, bits / 4)`, as the existing implementation
    /// pads (9 bits are padded to two digits, though 0x1F0 needs three).
    pub fn hex_digits(self) -> usize {
        usize::from(self.0 / 4).max(1)
    }
}

impl TryFrom<u8> for NBits {
    type Error = String;
    fn try_from(bits: u8) -> Result<Self, String> {
        Self::new(bits)
    }
}

impl From<NBits> for u8 {
    fn from(bits: NBits) -> u8 {
        bits.0
    }
}

impl Default for NBits {
    fn default() -> Self {
        Self(8)
    }
}

impl FromStr for NBits {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        text.parse::<u8>()
            .map_err(|_| format!("n_bits is {text:?}; expected a whole number from 4 to 16"))
            .and_then(Self::new)
    }
}

impl Slot {
    /// The upper-case, zero-padded index of object names.
    pub fn hex(&self) -> String {
        format!("{:0width$X}", self.index, width = self.n_bits.hex_digits())
    }

    /// `{date}_{HEX}_`: what the names of this slot's shards start with, and no other object's may.
    pub fn object_prefix(&self) -> String {
        format!("{self}_")
    }
}

/// `{date}_{HEX}`.
impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}_{}", self.date, self.hex())
    }
}

//! Where a file belongs: `(uid, created_at)` to a slot, byte for byte as the existing implementation computes it
//! (the project's format document, "Routing").

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::created_at::CreatedAt;

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

/// Which date of `created_at` a file is filed under.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DateRule {
    /// The date in UTC: one instant has one place, however it is written. New shards follow this.
    #[default]
    Utc,
    /// The date as written, offset and all, as the existing tool files it. Only for packing in its place.
    Written,
}

impl DateRule {
    /// The date this rule takes.
    pub fn date(self, created_at: &CreatedAt) -> ShardDate {
        match self {
            Self::Utc => created_at.utc_date(),
            Self::Written => created_at.written_date(),
        }
    }
}

/// A text that is not a date or slot of an object name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{got:?} is not a {what}")]
pub struct RoutingParseError {
    got: String,
    what: &'static str,
}

impl RoutingParseError {
    fn new(what: &'static str, got: &str) -> Self {
        Self { got: got.chars().take(64).collect(), what }
    }
}

/// Only the canonical spelling: 5 to 8 digits, the year without padding, a day the calendar has.
impl FromStr for ShardDate {
    type Err = RoutingParseError;
    fn from_str(text: &str) -> Result<Self, RoutingParseError> {
        let bad = || RoutingParseError::new("date of the form YYYYMMDD", text);
        if !(5..=8).contains(&text.len()) || text.starts_with('0') || !text.bytes().all(|b| b.is_ascii_digit()) {
            return Err(bad());
        }
        let (year, month_day) = text.split_at(text.len() - 4);
        let (month, day) = month_day.split_at(2);
        let date = Self {
            year: year.parse().map_err(|_| bad())?,
            month: month.parse().map_err(|_| bad())?,
            day: day.parse().map_err(|_| bad())?,
        };
        let calendar_month = time::Month::try_from(date.month).map_err(|_| bad())?;
        time::Date::from_calendar_date(i32::from(date.year), calendar_month, date.day).map_err(|_| bad())?;
        Ok(date)
    }
}

impl Slot {
    /// Where a new shard has a file.
    pub fn for_new(uid: &str, created_at: &CreatedAt, n_bits: NBits, rule: DateRule) -> Self {
        Self { date: rule.date(created_at), index: shard_index(uid, n_bits), n_bits }
    }

    /// Reads `{date}_{HEX}` as [`Slot`] displays it for this width: upper case, padded, within the width.
    ///
    /// # Errors
    /// [`RoutingParseError`] for every other spelling, so that one slot has one name.
    pub fn parse(text: &str, n_bits: NBits) -> Result<Self, RoutingParseError> {
        let bad = || RoutingParseError::new("slot of the form YYYYMMDD_HEX", text);
        let (date, hex) = text.split_once('_').ok_or_else(bad)?;
        let slot = Self { date: date.parse()?, index: u32::from_str_radix(hex, 16).map_err(|_| bad())?, n_bits };
        if slot.index < n_bits.slots() && slot.hex() == hex { Ok(slot) } else { Err(bad()) }
    }

    /// Reads `{date}_{HEX}_`, what [`Slot::object_prefix`] gives.
    ///
    /// # Errors
    /// As [`Slot::parse`].
    pub fn parse_prefix(text: &str, n_bits: NBits) -> Result<Self, RoutingParseError> {
        let slot = text.strip_suffix('_').ok_or_else(|| RoutingParseError::new("slot prefix YYYYMMDD_HEX_", text))?;
        Self::parse(slot, n_bits)
    }
}

/// Where a look-up has to search, in this order: the slot of the UTC date, then, where it differs, the slot of the
/// date as written, in which archives of the existing implementation have the file.
pub fn candidate_slots(uid: &str, created_at: &CreatedAt, n_bits: NBits) -> Vec<Slot> {
    let index = shard_index(uid, n_bits);
    let mut slots = vec![Slot { date: created_at.utc_date(), index, n_bits }];
    if created_at.written_date() != created_at.utc_date() {
        slots.push(Slot { date: created_at.written_date(), index, n_bits });
    }
    slots
}

/// The shard index of a uid, `0 .. 2^n_bits`: a uid of decimal digits, of any length and any script, is a number
/// modulo 2^bits; every other uid is the CRC-32 of its UTF-8 bytes, masked. Digits without a decimal value
/// (superscripts, circled ones) are ordinary characters.
pub fn shard_index(uid: &str, n_bits: NBits) -> u32 {
    let mask = n_bits.slots() - 1;
    decimal_modulo(uid, mask).unwrap_or_else(|| crc32fast::hash(uid.as_bytes()) & mask)
}

/// The number a uid of decimal digits is, reduced by `mask` (2^n - 1) digit by digit; `None` for any other uid.
fn decimal_modulo(uid: &str, mask: u32) -> Option<u32> {
    if uid.is_empty() {
        return None;
    }
    uid.chars().try_fold(0_u32, |number, c| Some((number * 10 + decimal_digit(c)?) & mask))
}

fn decimal_digit(c: char) -> Option<u32> {
    if c.is_ascii() {
        return c.to_digit(10);
    }
    let code = u32::from(c);
    let block = DECIMAL_ZEROS.partition_point(|zero| *zero <= code).checked_sub(1)?;
    Some(code - DECIMAL_ZEROS[block]).filter(|digit| *digit < 10)
}

/// The zeros of Unicode's decimal digits (general category Nd); each is followed by its one to nine. Unicode 15.0,
/// the version the existing implementation routed with: a digit that a later version adds stays an ordinary
/// character, because a table that grew would move files away from where they were packed.
const DECIMAL_ZEROS: [u32; 68] = [
    0x0030, 0x0660, 0x06F0, 0x07C0, 0x0966, 0x09E6, 0x0A66, 0x0AE6, 0x0B66, 0x0BE6, 0x0C66, 0x0CE6, 0x0D66, 0x0DE6,
    0x0E50, 0x0ED0, 0x0F20, 0x1040, 0x1090, 0x17E0, 0x1810, 0x1946, 0x19D0, 0x1A80, 0x1A90, 0x1B50, 0x1BB0, 0x1C40,
    0x1C50, 0xA620, 0xA8D0, 0xA900, 0xA9D0, 0xA9F0, 0xAA50, 0xABF0, 0xFF10, 0x104A0, 0x10D30, 0x11066, 0x110F0,
    0x11136, 0x111D0, 0x112F0, 0x11450, 0x114D0, 0x11650, 0x116C0, 0x11730, 0x118E0, 0x11950, 0x11C50, 0x11D50,
    0x11DA0, 0x11F50, 0x16A60, 0x16AC0, 0x16B50, 0x1D7CE, 0x1D7D8, 0x1D7E2, 0x1D7EC, 0x1D7F6, 0x1E140, 0x1E2F0,
    0x1E4F0, 0x1E950, 0x1FBF0,
];

#[cfg(test)]
#[path = "routing_tests.rs"]
mod tests;

//! Tombstones: what says that a file is deleted. Each is an object of its own in the file's zone, outside the names of
//! shards, created once and never changed. It hides what has a lower sequence than its own time, so a file that is packed
//! again later is back.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use utoipa::ToSchema;

use crate::routing::Slot;
use crate::shard::hex32;

/// Prefix of all tombstones of a zone.
pub const TOMBSTONES_PREFIX: &str = "_tombstones/";
const SUFFIX: &str = ".json";

/// Who deleted a file, why and when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Tombstone {
    /// The file.
    pub uid: String,
    /// As given with the request.
    pub created_at: String,
    /// When, Unix milliseconds; hides shards with a lower sequence.
    pub deleted_ms: u64,
    /// The same for people, RFC 3339 in UTC.
    pub deleted_at: String,
    /// Who asked for it.
    pub deleted_by: String,
    /// Why.
    pub reason: String,
    /// Where it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ticket_id: Option<String>,
    /// Name of the key the request came with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_name: Option<String>,
}

/// A uid as it stands in the names of tombstones: the first half of its SHA-256.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UidHash([u8; 16]);

impl UidHash {
    /// Of a uid.
    pub fn of(uid: &str) -> Self {
        let digest = Sha256::digest(uid.as_bytes());
        Self(digest[..16].try_into().expect("a digest of 32 bytes"))
    }
}

impl Tombstone {
    /// What is asked for with a deletion, at a time in Unix milliseconds.
    pub fn new(uid: &str, created_at: &str, deleted_ms: u64, why: Reasons) -> Self {
        let Reasons { deleted_by, reason, ticket_id, key_name } = why;
        let (uid, created_at, deleted_at) = (uid.to_owned(), created_at.to_owned(), rfc3339(deleted_ms));
        Self { uid, created_at, deleted_ms, deleted_at, deleted_by, reason, ticket_id, key_name }
    }
}

/// What somebody who deletes a file says about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reasons {
    /// Who asked for it.
    pub deleted_by: String,
    /// Why.
    pub reason: String,
    /// Where it was asked for.
    pub ticket_id: Option<String>,
    /// Name of the key the request came with.
    pub key_name: Option<String>,
}

/// A time in Unix milliseconds for people, RFC 3339 in UTC.
pub fn rfc3339(unix_ms: u64) -> String {
    let time = OffsetDateTime::from_unix_timestamp_nanos(i128::from(unix_ms) * 1_000_000).ok();
    time.and_then(|time| time.format(&Rfc3339).ok()).unwrap_or_else(|| format!("{unix_ms} ms after 1970-01-01"))
}

/// Where the tombstones of a slot are.
pub fn prefix(slot: &Slot) -> String {
    format!("{TOMBSTONES_PREFIX}{}", slot.object_prefix())
}

/// Key of a tombstone: its name says all that a reader of the slot has to know.
pub fn key(slot: &Slot, uid: &str, deleted_ms: u64) -> String {
    let mut hash = hex32(&Sha256::digest(uid.as_bytes()).into());
    hash.truncate(32);
    format!("{}{hash}-{deleted_ms:013}{SUFFIX}", prefix(slot))
}

/// What the name of a tombstone says: the file, and the time in Unix milliseconds. `None` for any other object.
pub fn parse(slot: &Slot, key: &str) -> Option<(UidHash, u64)> {
    parse_behind(&prefix(slot), key)
}

/// The same for a key that is known to begin with `prefix`.
pub fn parse_behind(prefix: &str, key: &str) -> Option<(UidHash, u64)> {
    let (hash, time) = key.strip_prefix(prefix)?.strip_suffix(SUFFIX)?.split_once('-')?;
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase());
    if hash.len() != 32 || !digits(hash) || !time.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let mut bytes = [0; 16];
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&hash[2 * at..2 * at + 2], 16).ok()?;
    }
    Some((UidHash(bytes), time.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routing::{NBits, ShardDate};

    #[test]
    fn names_come_back() {
        let date = ShardDate { year: 2025, month: 3, day: 10 };
        let slot = Slot { date, index: 0x2a, n_bits: NBits::default() };
        let key = key(&slot, "a/ä b", 1_741_600_000_000);
        assert_eq!(parse(&slot, &key), Some((UidHash::of("a/ä b"), 1_741_600_000_000)));
        assert!(key.starts_with("_tombstones/20250310_2A_"), "{key}");
        let other = Slot { index: 1, ..slot };
        for wrong in [key.to_uppercase(), key.replace(".json", ""), key.replace('-', "_"), format!("{key}x")] {
            assert_eq!(parse(&slot, &wrong), None, "{wrong}");
        }
        assert_eq!(parse(&other, &key), None);
    }
}

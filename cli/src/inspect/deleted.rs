//! What was deleted: tombstones lie beside the shards they hide, under the name of the same slot.

use std::collections::HashMap;

use des_shared::archive::RemoteShard;
use des_shared::layout::parse_shard_name;
use des_shared::store::list_all;
use des_shared::tombstone::{TOMBSTONES_PREFIX, UidHash, parse_behind};
use futures::TryStreamExt;

use super::location::{Location, beside};
use crate::error::CliError;

/// The tombstones of one slot, by file: when it was deleted last, Unix milliseconds.
#[derive(Debug, Default)]
pub(super) struct Deleted {
    prefix: String,
    files: HashMap<UidHash, u64>,
}

impl Deleted {
    /// The tombstones of a shard's slot. Those that were read for the shard before are kept where it has the same.
    pub(super) async fn of(self, location: &Location, shard: &RemoteShard) -> Result<Self, CliError> {
        let key = &shard.object().key;
        // A file whose name says no slot has no tombstones.
        let Some(name) = parse_shard_name(key) else { return Ok(Self::default()) };
        let prefix = beside(key, &format!("{TOMBSTONES_PREFIX}{}_", name.slot));
        if prefix == self.prefix {
            return Ok(self);
        }
        let mut files = HashMap::new();
        let mut listed = list_all(location.store().clone(), prefix.clone());
        while let Some(object) = listed.try_next().await? {
            if let Some((file, time)) = parse_behind(&prefix, &object.key) {
                let latest = files.entry(file).or_insert(time);
                *latest = time.max(*latest);
            }
        }
        Ok(Self { prefix, files })
    }

    /// When a file of this shard was deleted, where that hides what the shard holds of it.
    pub(super) fn hides(&self, shard: &RemoteShard, uid: &str) -> Option<u64> {
        if self.files.is_empty() {
            return None;
        }
        self.files.get(&UidHash::of(uid)).copied().filter(|time| *time > shard.sequence())
    }
}

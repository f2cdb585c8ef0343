//! Numbers of shards with bare names: they go on from the highest in the output folder and are never used twice.
//!
//! The existing tool begins at 0 on every run and overwrites what an earlier run wrote. Here the folder is asked once for
//! each slot, and a name that somebody else takes in between is refused by the store and the next number is tried.

use std::collections::HashMap;
use std::sync::Arc;

use des_shared::layout::parse_shard_name;
use des_shared::routing::Slot;
use des_shared::store::{SharedStore, list_all};
use futures::TryStreamExt;
use tokio::sync::Mutex;

use super::resume::Resume;
use crate::error::CliError;

/// Gives out numbers.
pub(super) struct Numbers {
    store: SharedStore,
    next: Mutex<HashMap<String, u32>>,
    resume: Option<Arc<Resume>>,
}

impl Numbers {
    /// For the shards of this store. A run that goes on gives the numbers again that it gave before.
    pub(super) fn new(store: SharedStore, resume: Option<Arc<Resume>>) -> Self {
        let before = resume.as_ref().map(|resume| resume.slots().clone());
        let next = before.into_iter().flatten().collect();
        Self { store, next: Mutex::new(next), resume }
    }

    /// The next free number of a slot.
    ///
    /// # Errors
    /// When the store cannot be listed, or the numbers are used up.
    pub(super) async fn take(&self, slot: &Slot) -> Result<u32, CliError> {
        let name = slot.to_string();
        let mut next = self.next.lock().await;
        let number = match next.get(&name) {
            Some(number) => *number,
            None => {
                let first = self.highest(slot).await?.map_or(Some(0), |n| n.checked_add(1));
                let first = first.ok_or_else(|| used_up(&name))?;
                if let Some(resume) = &self.resume {
                    resume.slot_begun(&name, first)?;
                }
                first
            }
        };
        next.insert(name.clone(), number.checked_add(1).ok_or_else(|| used_up(&name))?);
        Ok(number)
    }

    async fn highest(&self, slot: &Slot) -> Result<Option<u32>, CliError> {
        let name = slot.to_string();
        let mut objects = list_all(self.store.clone(), slot.object_prefix());
        let mut highest = None;
        while let Some(object) = objects.try_next().await? {
            // Names with a digest count too: readers open both kinds in the order of their names.
            if let Some(shard) = parse_shard_name(&object.key).filter(|shard| shard.slot == name) {
                highest = highest.max(Some(shard.number));
            }
        }
        Ok(highest)
    }
}

fn used_up(slot: &str) -> CliError {
    CliError::failed(format!("every number of the slot {slot} is taken")).hint("choose another output folder")
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use des_shared::created_at::CreatedAt;
    use des_shared::routing::{DateRule, NBits};
    use des_shared::store::WriteOptions;
    use des_shared::store::local::LocalStore;

    #[tokio::test]
    async fn numbers_go_on_from_the_highest_of_the_slot() {
        let dir = tempfile::tempdir().unwrap();
        let store: SharedStore = Arc::new(LocalStore::open(dir.path()).unwrap());
        let created_at = CreatedAt::parse("2025-03-10T00:00:00Z").unwrap();
        let slot = |uid: &str| Slot::for_new(uid, &created_at, NBits::new(8).unwrap(), DateRule::Utc);
        for key in [
            "20250310_07_0000.des",
            "20250310_07_0041.des",
            "20250310_07_0042-0123456789abcdef.des",
            "20250310_070_0099.des",
        ] {
            store.put(key, Bytes::from_static(b"x"), &WriteOptions::create_only()).await.unwrap();
        }
        let numbers = Numbers::new(store, None);
        assert_eq!(numbers.take(&slot("7")).await.unwrap(), 43);
        assert_eq!(numbers.take(&slot("7")).await.unwrap(), 44);
        assert_eq!(numbers.take(&slot("8")).await.unwrap(), 0);
    }
}

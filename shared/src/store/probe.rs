//! Finds out what a store honours by trying it under scratch keys.

use std::collections::BTreeMap;

use bytes::Bytes;
use uuid::Uuid;

use crate::layout;

use super::{Capabilities, ObjectStore, StoreError, StoreErrorKind, WriteMode, WriteOptions};

/// Tries conditional writes and metadata under `prefix` and removes what it wrote, also after a failure.
pub(super) async fn probe(store: &dyn ObjectStore, prefix: &str) -> Result<Capabilities, StoreError> {
    #[expect(
        clippy::disallowed_methods,
        reason = "only the name of a scratch key: nothing a test replays depends on it"
    )]
    let key = layout::probe_key(prefix, Uuid::new_v4().as_u128());
    let tried = attempt(store, &key).await;
    let removed = store.delete(&key).await;
    let found = tried?;
    removed?;
    Ok(found)
}

async fn attempt(store: &dyn ObjectStore, key: &str) -> Result<Capabilities, StoreError> {
    let metadata = BTreeMap::from([("probe".to_owned(), "1".to_owned())]);
    let options = WriteOptions { mode: WriteMode::Overwrite, metadata };
    store.put(key, Bytes::from_static(b"probe"), &options).await?;
    let metadata = store.head(key).await?.metadata == options.metadata;
    let second = store.put(key, Bytes::from_static(b"again"), &WriteOptions::create_only()).await;
    let conditional_put = refused(second)?;
    let upload = store.create_upload(key, &BTreeMap::new()).await?;
    let conditional_complete = match store.put_part(key, &upload, 1, Bytes::from_static(b"part")).await {
        Ok(part) => {
            let completed = store.complete_upload(key, &upload, &[part], WriteMode::CreateOnly).await;
            refused(completed)
        }
        Err(error) => Err(error),
    };
    store.abort_upload(key, &upload).await?;
    Ok(Capabilities { conditional_put, conditional_complete: conditional_complete?, metadata })
}

/// Whether the second writer of a key was refused for that reason.
fn refused<T>(second: Result<T, StoreError>) -> Result<bool, StoreError> {
    match second {
        Ok(_) => Ok(false),
        Err(error) if error.kind == StoreErrorKind::AlreadyExists => Ok(true),
        Err(error) => Err(error),
    }
}

//! The multipart upload of a shard: begun with the first part, a few parts under way at a time, finished in order.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use des_shared::store::{PartTag, SharedStore, StoreError};
use tokio_util::task::AbortOnDropHandle;

use crate::vitals::Vitals;

/// The parts of one shard. `T` is what is remembered with a part until it is uploaded.
#[derive(Debug)]
pub(crate) struct Upload<T> {
    store: SharedStore,
    key: String,
    metadata: BTreeMap<String, String>,
    vitals: Vitals,
    id: Option<String>,
    tags: Vec<PartTag>,
    running: VecDeque<(AbortOnDropHandle<Result<PartTag, StoreError>>, T)>,
}

impl<T> Upload<T> {
    /// Nothing is sent before the first part.
    pub(crate) fn new(store: SharedStore, key: String, metadata: BTreeMap<String, String>, vitals: Vitals) -> Self {
        Self { store, key, metadata, vitals, id: None, tags: Vec::new(), running: VecDeque::new() }
    }

    /// Goes on behind parts that are uploaded already.
    pub(crate) fn resume(&mut self, id: String, tags: Vec<PartTag>) {
        self.vitals.opened(&self.store, &self.key, &id, true);
        (self.id, self.tags) = (Some(id), tags);
    }

    /// Somebody else can continue the upload.
    pub(crate) fn keep(&self) {
        if let Some(id) = &self.id {
            self.vitals.opened(&self.store, &self.key, id, true);
        }
    }

    /// The upload has become the object.
    pub(crate) fn completed(&mut self) {
        if let Some(id) = self.id.take() {
            self.vitals.closed(&self.key, &id);
        }
    }

    /// The upload's id, once it has begun.
    pub(crate) fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    /// Parts under way.
    pub(crate) fn in_flight(&self) -> usize {
        self.running.len()
    }

    /// Begins to upload the next part.
    pub(crate) async fn start(&mut self, bytes: Bytes, remember: T) -> Result<(), StoreError> {
        let id = match &self.id {
            Some(id) => id.clone(),
            None => {
                self.vitals.opening(&self.key);
                let id = self.store.create_upload(&self.key, &self.metadata).await?;
                self.vitals.opened(&self.store, &self.key, &id, false);
                self.id = Some(id.clone());
                id
            }
        };
        let number = u32::try_from(self.tags.len() + self.running.len() + 1).unwrap_or(u32::MAX);
        let (store, key) = (self.store.clone(), self.key.clone());
        let part = async move { store.put_part(&key, &id, number, bytes).await };
        self.running.push_back((self.vitals.spawn(part), remember));
        Ok(())
    }

    /// Waits for the oldest part under way; `None` when there is none. Safe to cancel.
    pub(crate) async fn finished(&mut self) -> Option<Result<(PartTag, T), StoreError>> {
        let outcome = match (&mut self.running.front_mut()?.0).await {
            Ok(outcome) => outcome,
            Err(e) if e.is_panic() => std::panic::resume_unwind(e.into_panic()),
            Err(e) => panic!("a part's upload was cancelled: {e}"),
        };
        let (handle, remembered) = self.running.pop_front()?;
        drop(handle);
        Some(outcome.map(|tag| {
            self.vitals.sign();
            self.tags.push(tag.clone());
            (tag, remembered)
        }))
    }

    /// Uploads the last part and gives the tags of all.
    pub(crate) async fn last(&mut self, bytes: Bytes) -> Result<(&str, &[PartTag]), StoreError> {
        let id = self.id.as_deref().unwrap_or_default();
        let number = u32::try_from(self.tags.len() + 1).unwrap_or(u32::MAX);
        let tag = self.store.put_part(&self.key, id, number, bytes).await?;
        self.tags.push(tag);
        Ok((id, &self.tags))
    }

    /// Stops the parts under way.
    pub(crate) fn halt(&mut self) {
        self.running.clear();
    }

    /// Drops the upload and its parts; a failure is only logged, because an upload that stays behind does no harm.
    pub(crate) async fn abort(&mut self) {
        self.running.clear();
        let Some(id) = self.id.take() else { return };
        self.vitals.closed(&self.key, &id);
        if let Err(e) = self.store.abort_upload(&self.key, &id).await {
            tracing::warn!("an unfinished upload stays behind: {e}");
        }
    }
}

//! An object store at the other end of the network.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use des_shared::clock::Clock;
use des_shared::layout::SHARD_SUFFIX;
use des_shared::store::memory::MemoryStore;
use des_shared::store::{
    ByteRange, Capabilities, Fetched, FetchedStream, ListPage, ObjectMeta, ObjectStore, PartTag, StoreError,
    StoreErrorKind, UploadMeta, WriteMode, WriteOptions,
};
use futures::FutureExt;
use futures::future::BoxFuture;

use crate::ledger::{PartWrite, ShardWrite};
use crate::net::{Node, Target};

/// A process's view of a store.
pub(crate) struct NetStore {
    node: Arc<Node>,
    target: Target,
    inner: Arc<MemoryStore>,
}

impl fmt::Debug for NetStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NetStore").field("target", &self.target).finish_non_exhaustive()
    }
}

/// Whether an object under this key is written once and stays as it is.
fn is_for_ever(target: Target, key: &str) -> bool {
    match target {
        Target::Zone => key.ends_with(SHARD_SUFFIX) || key.contains("_bigFiles/"),
        Target::State => {
            key.contains("/receipts/") || ["/job.json", "/plan.json", "/end.json"].iter().any(|end| key.ends_with(end))
        }
        Target::Sources | Target::Queue => false,
    }
}

impl NetStore {
    pub(crate) fn new(node: &Arc<Node>, target: Target, inner: &Arc<MemoryStore>) -> Self {
        Self { node: Arc::clone(node), target, inner: Arc::clone(inner) }
    }

    async fn ask<T: Send + 'static>(
        &self,
        operation: &'static str,
        key: &str,
        carry_out: impl Fn(Arc<MemoryStore>) -> BoxFuture<'static, Result<T, StoreError>> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (inner, url, lost_key) = (Arc::clone(&self.inner), self.inner.url(), key.to_owned());
        let away = move |why: &str| StoreError {
            kind: StoreErrorKind::Unavailable,
            operation,
            url: url.clone(),
            key: lost_key.clone(),
            message: why.to_owned(),
        };
        let what = format!("{operation} {:?} {key}", self.target);
        self.node.call(self.target, what, move || carry_out(Arc::clone(&inner)), away).await
    }

    /// A call that may change an object; the observer looks before and after.
    async fn change<T: Send + 'static>(
        &self,
        operation: &'static str,
        key: &str,
        carry_out: impl Fn(Arc<MemoryStore>) -> BoxFuture<'static, Result<T, StoreError>> + Send + Sync + 'static,
    ) -> Result<T, StoreError> {
        let (node, target, name) = (Arc::clone(&self.node), self.target, key.to_owned());
        let carry_out = Arc::new(carry_out);
        let watched = move |inner: Arc<MemoryStore>| {
            let (node, name, carry_out) = (Arc::clone(&node), name.clone(), Arc::clone(&carry_out));
            async move {
                let before = inner.get(&name, ByteRange::Full).await.ok().map(|fetched| fetched.bytes);
                let answer = carry_out(Arc::clone(&inner)).await;
                let after = inner.get(&name, ByteRange::Full).await.ok().map(|fetched| fetched.bytes);
                look(&node, target, (operation, &name, answer.is_ok()), before.as_ref(), after.as_ref());
                answer
            }
            .boxed()
        };
        self.ask(operation, key, watched).await
    }
}

/// What the observer thinks of a change.
fn look(
    node: &Node,
    target: Target,
    (operation, key, done): (&str, &str, bool),
    before: Option<&Bytes>,
    after: Option<&Bytes>,
) {
    let (ledger, at_ms) = (&node.net.ledger, node.net.clock.now_ms());
    let for_ever = is_for_ever(target, key);
    match (before, after) {
        (Some(before), Some(after)) if for_ever && before != after => {
            ledger.violation(format!("{target:?} {key}: {operation} by {} changed its bytes", node.name));
        }
        (Some(_), Some(_)) if for_ever && done && matches!(operation, "put" | "complete_upload") => {
            ledger.violation(format!("{target:?} {key}: {operation} by {} wrote it a second time", node.name));
        }
        (Some(_), None) if for_ever && !ledger.facts().may_delete => {
            ledger.violation(format!("{target:?} {key}: {} deleted it", node.name));
        }
        (None, Some(_)) if target == Target::State && for_ever => {
            ledger.facts().written.entry(key.to_owned()).or_insert(at_ms);
        }
        _ => {}
    }
    if target == Target::Zone && key.ends_with(SHARD_SUFFIX) && matches!(operation, "put" | "create_upload") {
        let write = ShardWrite { at_ms, node: node.name.clone(), key: key.to_owned() };
        ledger.facts().shard_writes.push(write);
    }
}

#[async_trait]
impl ObjectStore for NetStore {
    fn url(&self) -> String {
        self.inner.url()
    }

    async fn head(&self, key: &str) -> Result<ObjectMeta, StoreError> {
        let name = key.to_owned();
        self.ask("head", key, move |s| {
            let name = name.clone();
            async move { s.head(&name).await }.boxed()
        })
        .await
    }

    async fn get(&self, key: &str, range: ByteRange) -> Result<Fetched, StoreError> {
        let name = key.to_owned();
        self.ask("get", key, move |s| {
            let (name, range) = (name.clone(), range.clone());
            async move { s.get(&name, range).await }.boxed()
        })
        .await
    }

    async fn get_stream(&self, key: &str, range: ByteRange) -> Result<FetchedStream, StoreError> {
        let name = key.to_owned();
        self.ask("get_stream", key, move |s| {
            let (name, range) = (name.clone(), range.clone());
            async move { s.get_stream(&name, range).await }.boxed()
        })
        .await
    }

    async fn put(&self, key: &str, bytes: Bytes, options: &WriteOptions) -> Result<ObjectMeta, StoreError> {
        let (name, options) = (key.to_owned(), options.clone());
        self.change("put", key, move |s| {
            let (name, bytes, options) = (name.clone(), bytes.clone(), options.clone());
            async move { s.put(&name, bytes, &options).await }.boxed()
        })
        .await
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        let name = key.to_owned();
        self.change("delete", key, move |s| {
            let name = name.clone();
            async move { s.delete(&name).await }.boxed()
        })
        .await
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<ListPage, StoreError> {
        let (name, after) = (prefix.to_owned(), after.map(str::to_owned));
        self.ask("list", prefix, move |s| {
            let (name, after) = (name.clone(), after.clone());
            async move { s.list(&name, after.as_deref(), limit).await }.boxed()
        })
        .await
    }

    async fn create_upload(&self, key: &str, metadata: &BTreeMap<String, String>) -> Result<String, StoreError> {
        let (name, metadata) = (key.to_owned(), metadata.clone());
        self.change("create_upload", key, move |s| {
            let (name, metadata) = (name.clone(), metadata.clone());
            async move { s.create_upload(&name, &metadata).await }.boxed()
        })
        .await
    }

    async fn put_part(&self, key: &str, upload_id: &str, number: u32, bytes: Bytes) -> Result<PartTag, StoreError> {
        let (name, id, node) = (key.to_owned(), upload_id.to_owned(), Arc::clone(&self.node));
        self.ask("put_part", key, move |s| {
            let (name, id, bytes, node) = (name.clone(), id.clone(), bytes.clone(), Arc::clone(&node));
            async move {
                let tag = s.put_part(&name, &id, number, bytes).await?;
                let (at_ms, writer) = (node.net.clock.now_ms(), node.name.clone());
                let part = PartWrite { at_ms, node: writer, key: name, upload_id: id, number };
                node.net.ledger.facts().parts.push(part);
                Ok(tag)
            }
            .boxed()
        })
        .await
    }

    async fn list_parts(&self, key: &str, upload_id: &str) -> Result<Vec<PartTag>, StoreError> {
        let (name, id) = (key.to_owned(), upload_id.to_owned());
        self.ask("list_parts", key, move |s| {
            let (name, id) = (name.clone(), id.clone());
            async move { s.list_parts(&name, &id).await }.boxed()
        })
        .await
    }

    async fn complete_upload(
        &self,
        key: &str,
        upload_id: &str,
        parts: &[PartTag],
        mode: WriteMode,
    ) -> Result<ObjectMeta, StoreError> {
        let (name, id, parts) = (key.to_owned(), upload_id.to_owned(), parts.to_vec());
        self.change("complete_upload", key, move |s| {
            let (name, id, parts) = (name.clone(), id.clone(), parts.clone());
            async move { s.complete_upload(&name, &id, &parts, mode).await }.boxed()
        })
        .await
    }

    async fn abort_upload(&self, key: &str, upload_id: &str) -> Result<(), StoreError> {
        let (name, id) = (key.to_owned(), upload_id.to_owned());
        self.ask("abort_upload", key, move |s| {
            let (name, id) = (name.clone(), id.clone());
            async move { s.abort_upload(&name, &id).await }.boxed()
        })
        .await
    }

    async fn list_uploads(&self, prefix: &str, limit: usize) -> Result<Vec<UploadMeta>, StoreError> {
        let name = prefix.to_owned();
        self.ask("list_uploads", prefix, move |s| {
            let name = name.clone();
            async move { s.list_uploads(&name, limit).await }.boxed()
        })
        .await
    }

    async fn probe(&self, prefix: &str) -> Result<Capabilities, StoreError> {
        let name = prefix.to_owned();
        self.ask("probe", prefix, move |s| {
            let name = name.clone();
            async move { s.probe(&name).await }.boxed()
        })
        .await
    }

    async fn check(&self) -> Result<(), StoreError> {
        self.ask("check", "", move |s| async move { s.check().await }.boxed()).await
    }
}

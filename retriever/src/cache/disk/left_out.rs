//! Stands in for the cache on disk in a build without it. There is never one: opening it fails.
#![allow(clippy::unused_async, reason = "the interface is that of what it stands in for")]

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use des_shared::archive::{ReadCache, ReadKind};
use des_shared::features;

use super::{DiskConfig, DiskError};
use crate::metrics::RetrieverMetrics;

/// No value of this exists.
pub(crate) enum DiskCache {}

impl DiskCache {
    /// Says which feature is missing.
    pub(crate) async fn open(config: &DiskConfig, _metrics: RetrieverMetrics) -> Result<Arc<Self>, DiskError> {
        let why = features::missing("disk-cache", "the cache on disk");
        Err(DiskError { dir: config.dir.clone(), why })
    }

    pub(crate) async fn close(&self) {
        match *self {}
    }
}

#[async_trait]
impl ReadCache for DiskCache {
    async fn get(&self, _name: &str, _kind: ReadKind) -> Option<Bytes> {
        match *self {}
    }

    fn put(&self, _name: String, _kind: ReadKind, _bytes: &[u8]) {
        match *self {}
    }
}

//! Sources in buckets.

use async_trait::async_trait;
use bytes::Bytes;
use des_shared::receipt::FailureReason;
use des_shared::store::{ByteRange, FetchedStream, SharedStore, StoreError, StoreErrorKind};
use futures::StreamExt;

use super::{SourceError, SourceReader, wrong_size};

/// A bucket and what may be read of it.
#[derive(Clone, Debug)]
pub(super) struct Bucket {
    store: SharedStore,
    prefixes: Vec<String>,
}

impl Bucket {
    pub(super) fn new(store: SharedStore, prefixes: Vec<String>) -> Self {
        Self { store, prefixes }
    }

    pub(super) fn allows(&self, key: &str) -> bool {
        self.prefixes.iter().any(|prefix| key.starts_with(prefix.as_str()))
    }

    /// Reads a whole object of `size` bytes; one of another size is never loaded.
    pub(super) async fn read(&self, key: &str, size: u64) -> Result<Bytes, SourceError> {
        if size == 0 {
            // A range of no bytes asks the store nothing, so it would not notice a missing object.
            return self.check_size(key, size).await.map(|()| Bytes::new());
        }
        match self.store.get(key, ByteRange::Span(0..size)).await {
            Ok(fetched) if fetched.meta.size == size => Ok(fetched.bytes),
            Ok(fetched) => Err(wrong_size(fetched.meta.size, size)),
            // The range reached past the end: the object is shorter.
            Err(e) if e.kind == StoreErrorKind::InvalidRange => match self.check_size(key, size).await {
                Ok(()) => Err(SourceError::file(FailureReason::Changed, "the source changed while it was read")),
                Err(e) => Err(e),
            },
            Err(e) => Err(classify(&e)),
        }
    }

    async fn check_size(&self, key: &str, size: u64) -> Result<(), SourceError> {
        let meta = self.store.head(key).await.map_err(|e| classify(&e))?;
        if meta.size == size { Ok(()) } else { Err(wrong_size(meta.size, size)) }
    }
}

/// An object being read in chunks. One request, so it is one version of the object.
pub(super) struct BucketReader {
    fetched: FetchedStream,
    left: u64,
}

impl std::fmt::Debug for BucketReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BucketReader").field("left", &self.left).finish_non_exhaustive()
    }
}

impl BucketReader {
    pub(super) async fn open(bucket: &Bucket, key: &str, size: u64) -> Result<Self, SourceError> {
        bucket.check_size(key, size).await?;
        let range = ByteRange::Span(0..size);
        let fetched = bucket.store.get_stream(key, range).await.map_err(|e| classify(&e))?;
        if size > 0 && fetched.meta.size != size {
            return Err(wrong_size(fetched.meta.size, size));
        }
        Ok(Self { fetched, left: size })
    }
}

#[async_trait]
impl SourceReader for BucketReader {
    async fn next(&mut self) -> Result<Option<Bytes>, SourceError> {
        let changed = |message: &str| SourceError::file(FailureReason::Changed, message);
        match self.fetched.stream.next().await {
            Some(Ok(bytes)) => {
                self.left = self
                    .left
                    .checked_sub(bytes.len() as u64)
                    .ok_or_else(|| changed("more bytes came than the source has"))?;
                Ok(Some(bytes))
            }
            Some(Err(e)) => Err(classify(&e)),
            None if self.left == 0 => Ok(None),
            None => Err(changed("the source ended early")),
        }
    }
}

/// Whether one object is at fault, or the store.
fn classify(error: &StoreError) -> SourceError {
    let reason = match error.kind {
        StoreErrorKind::NotFound => FailureReason::Missing,
        StoreErrorKind::Denied => FailureReason::Unreadable,
        StoreErrorKind::InvalidRange | StoreErrorKind::Invalid => FailureReason::BadSource,
        StoreErrorKind::NoSuchBucket
        | StoreErrorKind::Unavailable
        | StoreErrorKind::Throttled
        | StoreErrorKind::BreakerOpen
        | StoreErrorKind::Conflict
        | StoreErrorKind::Full
        | StoreErrorKind::AlreadyExists
        | StoreErrorKind::UploadGone => return SourceError::Worker(error.to_string()),
    };
    SourceError::file(reason, error.to_string())
}

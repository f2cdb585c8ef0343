//! Sources: the files a shard is packed from, in folders and buckets that the installation allows.
//!
//! Invariants: nothing outside the allowed roots is read, also not through a symbolic link or a swap between check and
//! open; only regular files are read; a file whose size is not the manifest's, or that changes while it is read, is a
//! failure of that file. A fault of the worker or of a whole store is told apart from a fault of one file: it must
//! never fill a failure list.

mod bucket;
mod local;
mod quick;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use des_shared::config::SourceRoots;
use des_shared::receipt::FailureReason;
use des_shared::segment::SegmentFile;
use des_shared::store::SharedStore;
use futures::{FutureExt, StreamExt, stream};

use bucket::{Bucket, BucketReader};
use local::LocalReader;

pub use local::{BatchReader, LocalFiles};

/// Requests to buckets under way for one batch of files.
const BUCKET_READS: usize = 16;

/// A source that cannot be packed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// This file is at fault: it goes to the failure list.
    #[error("{message}")]
    File {
        /// The kind of failure.
        reason: FailureReason,
        /// What is wrong and what would be right.
        message: String,
    },
    /// The worker or the store of the sources is at fault: the task is tried again.
    #[error("{0}")]
    Worker(String),
}

impl SourceError {
    /// A fault of one file.
    pub fn file(reason: FailureReason, message: impl Into<String>) -> Self {
        Self::File { reason, message: message.into() }
    }
}

/// Opens sources. Implemented by [`Sources`]; tests bring their own.
#[async_trait]
pub trait SourceOpener: fmt::Debug + Send + Sync {
    /// Reads small files whole, each checked against the manifest's size. One answer for each file, in their order.
    async fn read(&self, files: Vec<SegmentFile>) -> Vec<Result<Bytes, SourceError>>;

    /// Files in folders (not `s3://`), where they can be read on the caller's thread as well: whoever
    /// compresses them there saves a hop and finds them in the processor's cache.
    fn local(&self) -> Option<LocalFiles> {
        None
    }

    /// Opens a file to be read in chunks.
    async fn open(&self, file: &SegmentFile) -> Result<Box<dyn SourceReader>, SourceError>;
}

/// A source being read.
#[async_trait]
pub trait SourceReader: Send + fmt::Debug {
    /// The next bytes, at most 1 MiB; `None` once every byte was read and the file is as it was when it was opened.
    async fn next(&mut self) -> Result<Option<Bytes>, SourceError>;
}

/// The sources of an installation.
#[derive(Clone, Debug)]
pub struct Sources {
    roots: Arc<SourceRoots>,
    buckets: BTreeMap<String, Bucket>,
}

/// Where a source lies.
enum Place<'a> {
    Local(&'a str),
    Bucket(&'a Bucket, &'a str),
}

impl Sources {
    /// Sources below `roots`. `stores` has a store for each bucket that the roots name; its keys are the bucket's.
    pub fn new(roots: SourceRoots, stores: BTreeMap<String, SharedStore>) -> Self {
        let mut buckets = BTreeMap::new();
        for (name, store) in stores {
            let prefixes = roots.buckets.iter().filter(|(b, _)| *b == name).map(|(_, prefix)| prefix.clone()).collect();
            buckets.insert(name, Bucket::new(store, prefixes));
        }
        Self { roots: Arc::new(roots), buckets }
    }

    fn place<'a>(&'a self, source: &'a str) -> Result<Place<'a>, SourceError> {
        let Some(rest) = source.strip_prefix(BUCKET_SCHEME) else {
            return Ok(Place::Local(source.strip_prefix("file://").unwrap_or(source)));
        };
        let bad = |message: String| Err(SourceError::file(FailureReason::BadSource, message));
        let Some((bucket, key)) = rest.split_once('/').filter(|(bucket, key)| !bucket.is_empty() && !key.is_empty())
        else {
            return bad(format!("{source:?} is not s3://BUCKET/KEY"));
        };
        match self.buckets.get(bucket).filter(|b| b.allows(key)) {
            Some(bucket) => Ok(Place::Bucket(bucket, key)),
            None => Err(SourceError::file(
                FailureReason::OutsideRoots,
                format!("{source} lies outside DES_SOURCE_ROOTS; allow its prefix there, or move it"),
            )),
        }
    }

    async fn read_remote(&self, at: usize, file: SegmentFile) -> (usize, Result<Bytes, SourceError>) {
        let answer = match self.place(&file.source) {
            Ok(Place::Bucket(bucket, key)) => bucket.read(key, file.size_bytes).await,
            Ok(Place::Local(path)) => Err(SourceError::Worker(format!("{path} was taken for an object in a bucket"))),
            Err(e) => Err(e),
        };
        (at, answer)
    }
}

#[async_trait]
impl SourceOpener for Sources {
    fn local(&self) -> Option<LocalFiles> {
        Some(LocalFiles { roots: Arc::clone(&self.roots) })
    }

    async fn read(&self, files: Vec<SegmentFile>) -> Vec<Result<Bytes, SourceError>> {
        let local = LocalFiles { roots: Arc::clone(&self.roots) };
        if !files.iter().any(|file| in_bucket(&file.source)) {
            return local.read_all(files).await;
        }
        let (remotes, locals): (Vec<_>, Vec<_>) =
            files.into_iter().enumerate().partition(|(_, file)| in_bucket(&file.source));
        let (places, locals): (Vec<usize>, Vec<SegmentFile>) = locals.into_iter().unzip();
        let mut answers: Vec<_> = places.into_iter().zip(local.read_all(locals).await).collect();
        let reads = remotes.into_iter().map(|(at, file)| self.read_remote(at, file).boxed());
        answers.extend(stream::iter(reads).buffer_unordered(BUCKET_READS).collect::<Vec<_>>().await);
        answers.sort_by_key(|(at, _)| *at);
        answers.into_iter().map(|(_, answer)| answer).collect()
    }

    async fn open(&self, file: &SegmentFile) -> Result<Box<dyn SourceReader>, SourceError> {
        Ok(match self.place(&file.source)? {
            Place::Local(path) => {
                Box::new(LocalReader::open(Arc::clone(&self.roots), path.to_owned(), file.size_bytes).await?)
            }
            Place::Bucket(bucket, key) => Box::new(BucketReader::open(bucket, key, file.size_bytes).await?),
        })
    }
}

/// What the sources begin with that are objects in a bucket; all others lie in folders.
pub(crate) const BUCKET_SCHEME: &str = "s3://";

fn in_bucket(source: &str) -> bool {
    source.starts_with(BUCKET_SCHEME)
}

/// The words for a size other than the manifest's.
fn wrong_size(actual: u64, expected: u64) -> SourceError {
    SourceError::file(
        FailureReason::SizeMismatch,
        format!("the source has {actual} bytes, the manifest says {expected}; correct the manifest or the file"),
    )
}

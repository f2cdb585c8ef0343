//! What can go wrong while a shard is read where it is.

use crate::shard::ShardError;
use crate::store::{StoreError, StoreErrorKind};

/// A read that failed: what, where, and why.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The store did not answer, or not well.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The shard's bytes are wrong, or a newer reader is needed.
    #[error("shard {url}/{key}: {source}")]
    Shard {
        /// The store's URL for people.
        url: String,
        /// The shard's key.
        key: String,
        /// What is wrong, with part, uid and offset.
        source: ShardError,
    },
    /// The object is not the one that was opened or listed: list and open again.
    #[error("shard {url}/{key}: another object has taken its place (ETag {before}, now {now})")]
    Changed {
        /// The store's URL for people.
        url: String,
        /// The shard's key.
        key: String,
        /// The entity tag expected.
        before: String,
        /// The entity tag found.
        now: String,
    },
    /// A big file's object is missing, has another size, or does not have the hash it is named by.
    #[error("big file {url}/{key}: {detail}")]
    BigFile {
        /// The store's URL for people.
        url: String,
        /// The object's key.
        key: String,
        /// What was found and what was expected.
        detail: String,
    },
}

impl ArchiveError {
    /// True when the stored bytes are at fault, so that asking again is of no use and an intact copy would help.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Shard { source, .. } => source.is_corrupt() || matches!(source, ShardError::Unsupported { .. }),
            Self::BigFile { .. } => true,
            // A server that answers another range than it was asked for.
            Self::Store(error) => matches!(error.kind, StoreErrorKind::Invalid | StoreErrorKind::InvalidRange),
            Self::Changed { .. } => false,
        }
    }

    /// True when the object that was listed is gone or was replaced: a fresh listing may lead to another.
    pub fn is_stale(&self) -> bool {
        match self {
            Self::Changed { .. } => true,
            Self::Store(error) => error.kind == StoreErrorKind::NotFound,
            Self::Shard { .. } | Self::BigFile { .. } => false,
        }
    }
}

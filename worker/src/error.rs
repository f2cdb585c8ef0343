//! Why a shard could not be packed, and what whoever holds the task should do about it.

use des_shared::queue::QueueError;
use des_shared::shard::ShardError;
use des_shared::state::StateError;
use des_shared::store::{StoreError, StoreErrorKind};

/// Why a pack ended without a shard. A bad file is never the reason: it goes to the failure list.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// The shard store failed.
    #[error("shard store: {0}")]
    Store(#[from] StoreError),
    /// The upload cannot be finished as it is: gone, or its parts are not the ones this holder uploaded.
    #[error("the upload has to begin again: {0}")]
    UploadLost(StoreError),
    /// The checkpoint and the store disagree.
    #[error("the checkpoint cannot be continued: {0}")]
    BadCheckpoint(String),
    /// The state store failed.
    #[error(transparent)]
    State(#[from] StateError),
    /// The queue failed, or took the lease away.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// No source can be read at the moment: the fault is not in one file.
    #[error("sources cannot be read: {0}")]
    Sources(String),
    /// The options or the files do not fit the shard format.
    #[error("the shard cannot be written: {0}")]
    Shard(#[from] ShardError),
    /// No zone keeps the shard, or another setting of the installation makes the task impossible.
    #[error("{0}")]
    Setup(String),
    /// The key is taken, and the caller wanted a new object.
    #[error("{key} is there already and is never overwritten")]
    Taken {
        /// The key.
        key: String,
    },
    /// The key is taken by something that is not this shard.
    #[error("{key} is taken by something that is not this shard: {why}")]
    Foreign {
        /// The key.
        key: String,
        /// What is wrong with what stands there.
        why: String,
    },
    /// The task's code panicked.
    #[error("the task panicked: {0}")]
    Panicked(String),
    /// The process is stopping; what was uploaded so far is checkpointed.
    #[error("the process is stopping")]
    Draining,
}

/// What the holder of the task does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advice {
    /// The lease is somebody else's: touch nothing more.
    Stop,
    /// Hand the task back; it costs no attempt.
    HandBack,
    /// Drop the checkpoint and the upload, begin again.
    BeginAgain,
    /// Another attempt later may help, once somebody acted or the fault has passed.
    TryLater,
    /// No attempt helps.
    GiveUp,
}

impl PackError {
    /// What to do.
    pub fn advice(&self) -> Advice {
        match self {
            Self::Queue(QueueError::Stale { .. } | QueueError::Cancelled { .. }) => Advice::Stop,
            Self::Draining => Advice::HandBack,
            Self::UploadLost(_) | Self::BadCheckpoint(_) => Advice::BeginAgain,
            Self::Store(e) if matches!(e.kind, StoreErrorKind::UploadGone | StoreErrorKind::Conflict) => {
                Advice::BeginAgain
            }
            // A full disk, wrong credentials or a missing bucket are mended by people while the task waits.
            // A panic too is tried again: attempts are bounded, and it may lie in this machine.
            Self::Store(_)
            | Self::Queue(_)
            | Self::Sources(_)
            | Self::State(StateError::Store(_))
            | Self::Setup(_)
            | Self::Panicked(_) => Advice::TryLater,
            // The segment or a record is damaged: it is written once, so it stays so.
            Self::State(StateError::Corrupt { .. }) | Self::Shard(_) | Self::Taken { .. } | Self::Foreign { .. } => {
                Advice::GiveUp
            }
        }
    }
}

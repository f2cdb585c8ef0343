//! What people decided about a job after it was accepted: the one record of a job that changes, and one that says it was
//! cancelled, which is written once.
//!
//! It lies in the state store and is written before the queue is told, so a decision outlives a queue that lost
//! everything and the coordinator that took it.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::job::JobRecord;
use crate::queue::JobShare;

/// Whether a job's tasks may be handed out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Hold {
    /// They may.
    #[default]
    None,
    /// Not until it is resumed.
    Paused,
    /// Never again. Nothing takes a job out of this.
    Cancelled,
}

impl Hold {
    /// Whether nothing holds the job.
    pub fn is_none(&self) -> bool {
        *self == Self::None
    }
}

/// `jobs/{job}/control.json`, and `jobs/{job}/cancelled.json` for a cancellation. A job that nobody touched has neither.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlRecord {
    /// Whether its tasks may be handed out.
    pub hold: Hold,
    /// Whether a cancelled job's published shards are deleted.
    #[serde(default)]
    pub drop_shards: bool,
    /// How it competes from now on; `None` as it was submitted.
    #[serde(default)]
    pub share: Option<JobShare>,
    /// When it was written, Unix milliseconds.
    pub updated_ms: u64,
}

impl ControlRecord {
    /// How the job competes.
    pub fn share_of(&self, record: &JobRecord) -> JobShare {
        self.share.unwrap_or(record.options.share)
    }
}

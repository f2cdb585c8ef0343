//! Jobs: what is asked for, what is kept, and the states between.
//!
//! ```text
//! planning -> running <-> paused -> completed | completed_with_errors | failed | cancelled
//! ```

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::ids::JobId;
use crate::queue::{JobShare, MAX_RUNNING};
use crate::routing::NBits;
use crate::segment::{CodecChoice, PackOptions, ShardFormat};

/// Where a job is. Derived from the state store: `end.json` decides, then `plan.json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// Accepted; its manifest is being read.
    Planning,
    /// Tasks are waiting or running.
    Running,
    /// No task is handed out until it is resumed.
    Paused,
    /// Every file is in a committed shard.
    Completed,
    /// Every file is in a committed shard or in the failure list, and that list is not empty.
    CompletedWithErrors,
    /// It could not be planned; no file was packed.
    Failed,
    /// Stopped on request.
    Cancelled,
}

impl JobState {
    /// The state as the interfaces spell it.
    pub fn label(self) -> &'static str {
        match self {
            Self::Planning => "planning",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Completed => "completed",
            Self::CompletedWithErrors => "completed_with_errors",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether nothing more happens to the job.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Completed | Self::CompletedWithErrors | Self::Failed | Self::Cancelled)
    }
}

/// What a submission may say. Everything is optional; an unknown name is an error.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobRequest {
    /// A name for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Width of the shard index, 4 to 16. Must be that of the zones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n_bits: Option<u8>,
    /// Source bytes after which a new shard begins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_shard_size: Option<u64>,
    /// Shard format.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<ShardFormat>,
    /// Compression.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub codec: Option<CodecChoice>,
    /// zstd level, 1 to 22.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub level: Option<i32>,
    /// Larger files become objects of their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub big_file_threshold_bytes: Option<u64>,
    /// Higher goes first; -100 to 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<i32>,
    /// Share among jobs of one priority; 1 to 1000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
    /// Most tasks of the job that workers hold at the same time; 1 to 100,000. No bound when it is not named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_running: Option<u32>,
}

/// Defaults of a job that says nothing (`DES_SHARD_FORMAT`, `DES_CODEC`, ...).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobDefaults {
    /// Width of the shard index: that of the zones.
    pub n_bits: NBits,
    /// Source bytes after which a new shard begins.
    pub max_shard_size: u64,
    /// Options that change bytes.
    pub pack: PackOptions,
}

impl Default for JobDefaults {
    fn default() -> Self {
        Self { n_bits: NBits::default(), max_shard_size: 1_000_000_000, pack: PackOptions::default() }
    }
}

/// A [`JobRequest`] with every default filled in and every value checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobOptions {
    /// A name for people; may be empty.
    pub name: String,
    /// Width of the shard index.
    pub n_bits: NBits,
    /// Source bytes after which a new shard begins.
    pub max_shard_size: u64,
    /// Options that change bytes.
    #[serde(flatten)]
    pub pack: PackOptions,
    /// How it competes for workers.
    #[serde(flatten)]
    pub share: JobShare,
}

impl JobRequest {
    /// Fills in `defaults` and checks every value.
    ///
    /// # Errors
    /// One sentence for each wrong value, all of them.
    pub fn resolve(&self, defaults: &JobDefaults) -> Result<JobOptions, Vec<String>> {
        let mut wrong = Vec::new();
        let mut check = |ok: bool, text: String| {
            if !ok {
                wrong.push(text);
            }
        };
        let n_bits = self.n_bits.unwrap_or(defaults.n_bits.get());
        check(
            n_bits == defaults.n_bits.get(),
            format!("n_bits is {n_bits}; this installation's zones are laid out for {}", defaults.n_bits.get()),
        );
        let name = self.name.clone().unwrap_or_default();
        check(name.len() <= 200, format!("name is {} bytes long; expected at most 200", name.len()));
        let max_shard_size = self.max_shard_size.unwrap_or(defaults.max_shard_size);
        check(
            (1..=MAX_SHARD_SIZE).contains(&max_shard_size),
            format!("max_shard_size is {max_shard_size}; expected 1 to {MAX_SHARD_SIZE} bytes"),
        );
        let level = self.level.unwrap_or(defaults.pack.level);
        check((1..=22).contains(&level), format!("level is {level}; expected 1 to 22"));
        let threshold = self.big_file_threshold_bytes.unwrap_or(defaults.pack.big_file_threshold_bytes);
        check(
            threshold <= MAX_INLINE_BYTES,
            format!("big_file_threshold_bytes is {threshold}; expected at most {MAX_INLINE_BYTES}"),
        );
        let share = JobShare {
            priority: self.priority.unwrap_or(0),
            weight: self.weight.unwrap_or(1),
            max_running: self.max_running,
        };
        wrong.extend(share_problems(share));
        if !wrong.is_empty() {
            return Err(wrong);
        }
        Ok(JobOptions {
            name,
            n_bits: defaults.n_bits,
            max_shard_size,
            pack: PackOptions {
                format: self.format.unwrap_or(defaults.pack.format),
                codec: self.codec.unwrap_or(defaults.pack.codec),
                level,
                big_file_threshold_bytes: threshold,
                bigfiles_prefix: defaults.pack.bigfiles_prefix.clone(),
            },
            share,
        })
    }
}

/// What is wrong with a share, one sentence each.
pub fn share_problems(share: JobShare) -> Vec<String> {
    let JobShare { priority, weight, max_running } = share;
    let mut wrong = Vec::new();
    if !(-100..=100).contains(&priority) {
        wrong.push(format!("priority is {priority}; expected -100 to 100"));
    }
    if !(1..=1000).contains(&weight) {
        wrong.push(format!("weight is {weight}; expected 1 to 1000"));
    }
    if let Some(max) = max_running
        && !(1..=MAX_RUNNING).contains(&max)
    {
        wrong.push(format!("max_running is {max}; expected 1 to {MAX_RUNNING}; pausing a job keeps all of it back"));
    }
    wrong
}

/// Largest `max_shard_size`: 40 GiB, which fits 10,000 parts of 8 MiB with room for big payloads.
pub const MAX_SHARD_SIZE: u64 = 40 << 30;
/// Largest payload kept inside a shard: it is compressed in memory.
pub const MAX_INLINE_BYTES: u64 = 64 << 20;

/// The accepted job as it stands in the state store. Written once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobRecord {
    /// The job.
    pub id: JobId,
    /// Its options.
    pub options: JobOptions,
    /// When it was accepted, Unix milliseconds: the sequence of its shards.
    pub accepted_ms: u64,
    /// SHA-256 of the manifest's bytes, hex.
    pub manifest_sha256: String,
    /// Size of the manifest as stored, bytes.
    pub manifest_bytes: u64,
    /// What relative source paths are relative to: a folder, an `s3://` prefix, or nothing.
    pub source_base: Option<String>,
    /// Key of the reservation that makes equal submissions one job (see `layout::submission_key`).
    pub submission_key: String,
}

/// The plan's summary, written after its last segment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanRecord {
    /// Files in the manifest.
    pub files: u64,
    /// Their bytes.
    pub source_bytes: u64,
    /// Source bytes of each task, by number.
    pub tasks: Vec<u64>,
}

/// How a job ended. Written once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndRecord {
    /// A final state.
    pub state: JobState,
    /// Why, when it failed.
    pub error: Option<String>,
    /// Files in committed shards.
    pub files_packed: u64,
    /// Files in the failure list.
    pub files_failed: u64,
    /// Bytes stored.
    pub stored_bytes: u64,
    /// Shards published.
    pub shards_committed: u64,
    /// Tasks given up.
    pub shards_dead: u64,
    /// Unix milliseconds.
    pub ended_ms: u64,
}

/// Files of a job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FileCounts {
    /// Files accepted; `null` until the plan is complete.
    pub total: Option<u64>,
    /// Files in committed shards.
    pub packed: u64,
    /// Files in the failure list.
    pub failed: u64,
}

/// Bytes of a job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ByteCounts {
    /// Bytes the manifest names; `null` until the plan is complete.
    pub source: Option<u64>,
    /// Bytes written to the shard store.
    pub stored: u64,
}

/// Shards of a job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ShardCounts {
    /// Shards planned; `null` until the plan is complete.
    pub total: Option<u64>,
    /// Shards published.
    pub committed: u64,
    /// Shards given up.
    pub dead: u64,
}

/// A job as every interface shows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct JobView {
    /// The job.
    #[schema(value_type = String, format = "uuid")]
    pub id: JobId,
    /// Name for people.
    pub name: String,
    /// Where it is.
    pub state: JobState,
    /// Its options.
    #[schema(value_type = Object)]
    pub options: JobOptions,
    /// Files: packed + failed = total when it has ended.
    pub files: FileCounts,
    /// Bytes.
    pub bytes: ByteCounts,
    /// Shards.
    pub shards: ShardCounts,
    /// RFC 3339, UTC.
    pub created_at: String,
    /// RFC 3339, UTC.
    pub updated_at: String,
    /// Why it failed.
    pub error: Option<String>,
}

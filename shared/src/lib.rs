//! What every part of DES shares.
//!
//! The modules follow the way of a file through the system:
//! [`manifest`] names the files, [`routing`] says where each belongs, [`plan`] groups them into
//! [`segment`]s, [`queue`] hands the segments out as leased tasks, [`shard`] turns a segment into bytes,
//! [`store`] keeps them under the keys of [`layout`], and [`state`] remembers what must outlive the queue.
//! [`config`], [`telemetry`] and [`service`] are what a process needs around that.

// Sizes and offsets are u64 on disk and usize in memory; the crates rely on the two being equally wide.
#[cfg(not(target_pointer_width = "64"))]
compile_error!("DES supports 64-bit targets only: shard offsets are kept in usize");

pub mod archive;
pub mod clock;
pub mod compact;
pub mod config;
pub mod control;
pub mod created_at;
pub mod features;
pub mod ids;
pub mod job;
pub mod layout;
pub mod manifest;
pub mod metrics;
pub mod offload;
pub mod plan;
pub mod queue;
pub mod receipt;
pub mod retry;
pub mod routing;
pub mod safe_name;
pub mod segment;
pub mod service;
pub mod shard;
pub mod state;
pub mod store;
pub mod telemetry;
pub mod tombstone;
mod varint;

//! The cache on disk, an optional part of a build (feature `disk-cache`).

#[cfg(feature = "disk-cache")]
mod foyer;
#[cfg(not(feature = "disk-cache"))]
mod left_out;

use std::path::PathBuf;

use des_shared::config::{Values, settings};
use des_shared::features;

#[cfg(feature = "disk-cache")]
pub(crate) use self::foyer::DiskCache;
#[cfg(not(feature = "disk-cache"))]
pub(crate) use self::left_out::DiskCache;

/// The smallest cache in bytes.
pub(crate) const MIN_BYTES: u64 = 16 << 20;

/// Where the cache is and how large.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskConfig {
    /// A folder for this process alone. It is created if it does not exist.
    pub dir: PathBuf,
    /// Bytes of directories and index blocks.
    pub index_bytes: u64,
    /// Bytes of payloads; 0 for none.
    pub payload_bytes: u64,
}

impl DiskConfig {
    /// Reads the settings named `DES_DISK_*`; `None` when there is to be no such cache, or something is wrong, which is
    /// noted.
    pub(crate) fn read(values: &mut Values) -> Option<Self> {
        let index = values.number(&settings::DISK_CACHE_BYTES, MIN_BYTES..=1 << 50);
        let payloads = values.number(&settings::DISK_PAYLOAD_BYTES, 0..=1 << 50);
        if payloads.is_some_and(|bytes| (1..MIN_BYTES).contains(&bytes)) {
            let name = settings::DISK_PAYLOAD_BYTES.name;
            values.problem(format!("{name}: expected 0 for none, or at least {MIN_BYTES}"));
        }
        let dir = values.text(&settings::DISK_CACHE_DIR).filter(|dir| !dir.is_empty()).map(PathBuf::from)?;
        if !cfg!(feature = "disk-cache") {
            let name = settings::DISK_CACHE_DIR.name;
            values.problem(format!("{name}: {}", features::missing("disk-cache", "the cache on disk")));
            return None;
        }
        let (index_bytes, payload_bytes) = index.zip(payloads)?;
        Some(Self { dir, index_bytes, payload_bytes })
    }
}

/// Why it could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("the disk cache in {dir} cannot be opened: {why}; give the service a folder of its own with room for it")]
pub(crate) struct DiskError {
    pub(super) dir: PathBuf,
    pub(super) why: String,
}

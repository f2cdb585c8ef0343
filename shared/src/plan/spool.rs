//! The spool folder: unlinked temporary files, and the counters of a plan under way.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::PlanError;

/// Counters that another thread can read while planning goes on. They only grow.
#[derive(Debug, Default)]
pub struct PlanProgress {
    files: AtomicU64,
    source_bytes: AtomicU64,
    grouped: AtomicU64,
    planned: AtomicU64,
    spooled_bytes: AtomicU64,
}

impl PlanProgress {
    /// Files taken in.
    pub fn files(&self) -> u64 {
        self.files.load(Ordering::Relaxed)
    }

    /// Sum of their sizes in bytes.
    pub fn source_bytes(&self) -> u64 {
        self.source_bytes.load(Ordering::Relaxed)
    }

    /// Files whose group is complete; follows [`PlanProgress::files`] after the last one was taken in.
    pub fn grouped(&self) -> u64 {
        self.grouped.load(Ordering::Relaxed)
    }

    /// Files of the shards handed out.
    pub fn planned(&self) -> u64 {
        self.planned.load(Ordering::Relaxed)
    }

    /// Bytes written to the spool folder.
    pub fn spooled_bytes(&self) -> u64 {
        self.spooled_bytes.load(Ordering::Relaxed)
    }

    pub(super) fn file_taken(&self, size_bytes: u64) {
        self.files.fetch_add(1, Ordering::Relaxed);
        self.source_bytes.fetch_add(size_bytes, Ordering::Relaxed);
    }

    pub(super) fn file_grouped(&self) {
        self.grouped.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn files_planned(&self, files: u64) {
        self.planned.fetch_add(files, Ordering::Relaxed);
    }
}

/// Makes spool files and names the folder in their errors.
#[derive(Clone, Debug)]
pub(super) struct Spool {
    dir: PathBuf,
    progress: Arc<PlanProgress>,
    #[cfg(test)]
    full: bool,
}

impl Spool {
    pub(super) fn new(dir: PathBuf, progress: Arc<PlanProgress>) -> Self {
        Self {
            dir,
            progress,
            #[cfg(test)]
            full: false,
        }
    }

    /// A spool on a full disk: every file it makes is the system's always-full device.
    #[cfg(test)]
    pub(super) fn on_full_disk(mut self) -> Self {
        self.full = true;
        self
    }

    /// A new file without a name: it is gone when its last handle is.
    pub(super) fn create(&self) -> Result<File, PlanError> {
        #[cfg(test)]
        if self.full {
            return File::options().write(true).open("/dev/full").map_err(|e| self.error("creating a file", e));
        }
        tempfile::tempfile_in(&self.dir).map_err(|error| self.error("creating a file", error))
    }

    pub(super) fn wrote(&self, bytes: u64) {
        self.progress.spooled_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn error(&self, action: &'static str, source: io::Error) -> PlanError {
        PlanError::Spool { dir: self.dir.clone(), action, written: self.progress.spooled_bytes(), source }
    }
}

//! Encoders and the tables for learning dictionaries between two uses. What a zstd context has allocated is about a
//! megabyte, the tables are two and a half, and memory that was used before costs no page faults.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use des_shared::segment::PackOptions;
use des_shared::shard::{Encoder, Workspace};

/// An encoder that has become larger is not kept: it had a large file or works at a high level, and making another costs
/// little beside that.
const LARGE_BYTES: usize = 8 << 20;

/// Encoders of one kind of job, the one that gave some back last, and workspaces. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Shelf {
    idle: Arc<Mutex<Idle>>,
    keep: usize,
}

#[derive(Default)]
struct Idle {
    options: Option<Arc<PackOptions>>,
    encoders: Vec<Encoder>,
    workspaces: Vec<Workspace>,
}

impl Shelf {
    /// Keeps at most `keep` of each.
    pub(crate) fn new(keep: usize) -> Self {
        Self { idle: Arc::default(), keep }
    }

    /// One for these options, with whatever dictionary it had before.
    pub(crate) fn take(&self, options: &Arc<PackOptions>) -> Option<Encoder> {
        let mut idle = self.idle();
        idle.is_for(options).then(|| idle.encoders.pop()).flatten()
    }

    /// Keeps an encoder that was made for these options. Those for others are dropped.
    pub(crate) fn put(&self, options: &Arc<PackOptions>, mut encoder: Encoder) {
        // A shelf that kept the last shard's dictionary would keep it for as long as nothing else is packed.
        if encoder.heap_bytes() > LARGE_BYTES || encoder.set_dictionary(None).is_err() {
            return;
        }
        let mut idle = self.idle();
        if !idle.is_for(options) {
            (idle.options, idle.encoders) = (Some(Arc::clone(options)), Vec::new());
        }
        if idle.encoders.len() < self.keep {
            idle.encoders.push(encoder);
        }
    }

    /// Tables for learning a dictionary.
    pub(crate) fn take_workspace(&self) -> Workspace {
        let used = self.idle().workspaces.pop();
        used.unwrap_or_default()
    }

    /// Keeps them for the next shard.
    pub(crate) fn put_workspace(&self, workspace: Workspace) {
        let mut idle = self.idle();
        if idle.workspaces.len() < self.keep {
            idle.workspaces.push(workspace);
        }
    }

    fn idle(&self) -> MutexGuard<'_, Idle> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Idle {
    fn is_for(&self, options: &Arc<PackOptions>) -> bool {
        self.options.as_ref().is_some_and(|ours| Arc::ptr_eq(ours, options) || ours == options)
    }
}

impl std::fmt::Debug for Shelf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shelf").field("keep", &self.keep).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_encoder_is_used_again_for_the_same_options_only() {
        let shelf = Shelf::new(1);
        let options = Arc::new(PackOptions::default());
        let other = Arc::new(PackOptions { level: 5, ..PackOptions::default() });
        let encoder = |options: &PackOptions| Encoder::new(options, None).unwrap();
        assert!(shelf.take(&options).is_none());
        shelf.put(&options, encoder(&options));
        shelf.put(&options, encoder(&options));
        assert!(shelf.take(&other).is_none());
        assert!(shelf.take(&Arc::new(PackOptions::default())).is_some(), "equal options");
        assert!(shelf.take(&options).is_none(), "no more than were to be kept");
        shelf.put(&options, encoder(&options));
        shelf.put(&other, encoder(&other));
        assert!(shelf.take(&options).is_none() && shelf.take(&other).is_some());
    }

    #[test]
    fn an_encoder_that_has_grown_is_dropped() {
        let shelf = Shelf::new(1);
        let options = Arc::new(PackOptions::default());
        let mut encoder = Encoder::new(&options, None).unwrap();
        let text: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect();
        encoder.encode("large", &text).unwrap();
        assert!(encoder.heap_bytes() > LARGE_BYTES);
        shelf.put(&options, encoder);
        assert!(shelf.take(&options).is_none());
    }
}

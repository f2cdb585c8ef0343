//! The worker's configuration, read and checked once.

use std::time::Duration;

use des_shared::config::{Listen, QueueSettings, Setting, SourceRoots, StateSettings, Values, ZoneSettings, settings};
use des_shared::telemetry::LogSettings;

/// The most tasks one worker runs side by side.
const MAX_SLOTS: u64 = 1024;

/// Default pause between heartbeats: a worker hears within a second that a lease is no longer its own.
pub const DEFAULT_HEARTBEAT: Duration = Duration::from_millis(750);
/// Default time without progress after which a task is hung: above every bound of a single store operation with its
/// retries.
pub const DEFAULT_STALL: Duration = Duration::from_mins(10);

/// Everything a worker process is told from outside.
#[derive(Clone, Debug)]
pub struct WorkerConfig {
    /// Where shards go.
    pub zones: ZoneSettings,
    /// Where receipts and checkpoints go.
    pub state: StateSettings,
    /// Where tasks come from.
    pub queue: QueueSettings,
    /// What may be read.
    pub roots: SourceRoots,
    /// Tasks side by side.
    pub slots: u32,
    /// Pause between heartbeats.
    pub heartbeat: Duration,
    /// Time without progress after which a task is hung.
    pub stall: Duration,
    /// Health and metrics; also how long a stopping worker may take.
    pub listen: Listen,
    /// Logs.
    pub log: LogSettings,
}

impl WorkerConfig {
    /// Every setting a worker has.
    pub fn settings() -> Vec<Setting> {
        let own = [settings::STATE_URL, settings::SOURCE_ROOTS, settings::WORKER_SLOTS, settings::LISTEN_WORKER];
        let pace = [settings::HEARTBEAT_MS, settings::STALL_SECONDS];
        [settings::QUEUE, settings::ZONES, &own, &pace, settings::PROCESS].concat()
    }

    /// Reads and checks all of them; what is wrong is noted in `values`.
    pub fn read(values: &mut Values) -> Option<Self> {
        let zones = ZoneSettings::read(values);
        let state = zones.as_ref().and_then(|zones| StateSettings::read(values, zones));
        let queue = QueueSettings::read(values);
        let roots = SourceRoots::read(values);
        let slots = match values.text(&settings::WORKER_SLOTS) {
            None => Some(default_slots()),
            Some(_) => values.number(&settings::WORKER_SLOTS, 1..=MAX_SLOTS).map(|n| n as u32),
        };
        let heartbeat = values.number(&settings::HEARTBEAT_MS, 50..=600_000).map(Duration::from_millis);
        let stall = values.number(&settings::STALL_SECONDS, 1..=604_800).map(Duration::from_secs);
        let listen = Listen::read(values, &settings::LISTEN_WORKER);
        let log = LogSettings::read(values);
        if roots.as_ref().is_some_and(|roots| roots.folders.is_empty() && roots.buckets.is_empty()) {
            values.problem(
                "DES_SOURCE_ROOTS (--source-roots): required; name the folders and s3:// prefixes sources may be read from",
            );
        }
        Some(Self {
            zones: zones?,
            state: state?,
            queue: queue?,
            roots: roots?,
            slots: slots?,
            heartbeat: heartbeat?,
            stall: stall?,
            listen: listen?,
            log: log?,
        })
    }
}

/// One slot a core.
pub fn default_slots() -> u32 {
    std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(1))
}

/// How a worker behaves, apart from what it is connected to.
#[derive(Clone, Debug)]
pub struct WorkerOptions {
    /// Host name and process id, for people.
    pub name: String,
    /// Tasks side by side.
    pub slots: u32,
    /// How long a lease lives without a heartbeat: the queue's own setting.
    pub lease: Duration,
    /// Pause between two heartbeats; never more than a third of the lease.
    pub heartbeat: Duration,
    /// A task without any progress for so long is taken for hung and fails.
    pub stall: Duration,
    /// How long a stopping worker may take.
    pub drain: Duration,
    /// Where health and metrics are served; nowhere when there is none.
    pub listen: Option<Listen>,
    /// Sizes and limits of packing.
    pub limits: crate::pack::PackLimits,
    /// Whether to find out before the first claim what the stores honour. Not needed for folders.
    pub probe_stores: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<WorkerConfig, String> {
        let mut values = Values::from_pairs(&WorkerConfig::settings(), pairs);
        let config = WorkerConfig::read(&mut values);
        values.finish(config).map_err(|e| e.to_string())
    }

    #[test]
    fn every_problem_is_named_at_once() {
        let text = read(&[("DES_WORKER_SLOTS", "0"), ("DES_LEASE_SECONDS", "x")]).unwrap_err();
        for name in ["DES_REDIS_URL", "DES_BASE_DIR", "DES_SOURCE_ROOTS", "DES_WORKER_SLOTS", "DES_LEASE_SECONDS"] {
            assert!(text.contains(name), "{name} is not in {text}");
        }
    }

    #[test]
    fn slots_default_to_the_cores() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().to_str().unwrap();
        let needed = [("DES_REDIS_URL", "redis://127.0.0.1/"), ("DES_BASE_DIR", root), ("DES_SOURCE_ROOTS", root)];
        let config = read(&needed).unwrap();
        assert_eq!(config.slots, default_slots());
        assert_eq!(config.listen.address.port(), 9100);
        let more = [needed.as_slice(), &[("DES_WORKER_SLOTS", "3"), ("DES_LISTEN", "127.0.0.1:0")]].concat();
        let config = read(&more).unwrap();
        assert_eq!((config.slots, config.listen.address.port()), (3, 0));
    }
}

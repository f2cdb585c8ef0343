//! The worker's metrics, one function for each event.

use des_shared::metrics::{Metrics, SECONDS};
use des_shared::queue::Lease;
use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts};

use crate::error::Advice;
use crate::pack::{Packed, Step};

/// Bounds of the compression ratio: source bytes for each stored byte.
const RATIOS: &[f64] = &[0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 20.0, 50.0];
/// Bounds of shard sizes in bytes.
const SIZES: &[f64] = &[1e4, 1e5, 1e6, 5e6, 1e7, 5e7, 1e8, 2.5e8, 5e8, 1e9, 2.5e9, 1e10];

/// Metrics of one worker process. Cheap to clone.
#[derive(Clone, Debug)]
pub struct WorkerMetrics {
    compression_ratio: Histogram,
    bytes_saved: IntCounter,
    compress_seconds: Histogram,
    shard_files: IntCounter,
    shard_size: Histogram,
    files_failed: IntCounterVec,
    tasks: IntCounterVec,
    leases_lost: IntCounter,
    takeovers: IntCounter,
    checkpoints: IntCounter,
    retries: IntCounter,
    busy: IntGauge,
}

impl WorkerMetrics {
    /// Registers them. Once in a process.
    pub fn register(registry: &Metrics) -> Self {
        let counter = |name: &str, help: &str| {
            registry.register(IntCounter::new(name, help).expect("the name of a metric is well formed"))
        };
        let labelled = |name: &str, help: &str, label: &str| {
            let counter = IntCounterVec::new(Opts::new(name, help), &[label]);
            registry.register(counter.expect("the name of a metric is well formed"))
        };
        let histogram = |name: &str, help: &str, buckets: &[f64]| {
            let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
            registry.register(Histogram::with_opts(options).expect("the name of a metric is well formed"))
        };
        let busy = IntGauge::new("des_worker_busy_slots", "Tasks running now.");
        Self {
            compression_ratio: histogram(
                "des_compression_ratio",
                "Bytes before compression for each stored byte, by batch of files.",
                RATIOS,
            ),
            bytes_saved: counter("des_bytes_saved_total", "Bytes that compression saved."),
            compress_seconds: histogram("des_compress_seconds", "Seconds to compress a batch of files.", SECONDS),
            shard_files: counter("des_shard_files_total", "Files in committed shards."),
            shard_size: histogram("des_shard_size_bytes", "Sizes of published shards.", SIZES),
            files_failed: labelled("des_worker_files_failed_total", "Files in failure lists, by reason.", "reason"),
            tasks: labelled("des_worker_tasks_total", "Tasks by how this worker ended them.", "outcome"),
            leases_lost: counter("des_worker_leases_lost_total", "Tasks stopped because their lease was lost."),
            takeovers: counter("des_worker_takeovers_total", "Tasks continued from another holder's checkpoint."),
            checkpoints: counter("des_worker_checkpoints_total", "Checkpoints written."),
            retries: counter("des_worker_retries_total", "Tasks begun that had failed before."),
            busy: registry.register(busy.expect("the name of a metric is well formed")),
        }
    }

    pub(crate) fn task_began(&self, lease: &Lease) {
        self.busy.inc();
        if lease.checkpoint.is_some() {
            self.takeovers.inc();
        }
        if lease.attempt > 1 {
            self.retries.inc();
        }
    }

    pub(crate) fn task_ended(&self, outcome: Option<Advice>) {
        self.busy.dec();
        let label = match outcome {
            None => "committed",
            Some(Advice::Stop) => {
                self.leases_lost.inc();
                "lease_lost"
            }
            Some(Advice::CleanUp) => "cancelled",
            Some(Advice::HandBack) => "handed_back",
            Some(Advice::BeginAgain | Advice::TryLater) => "failed",
            Some(Advice::GiveUp) => "given_up",
        };
        self.tasks.with_label_values(&[label]).inc();
    }

    pub(crate) fn files_compressed(&self, step: &Step) {
        if step.stored_bytes == 0 {
            return;
        }
        self.compression_ratio.observe(step.raw_bytes as f64 / step.stored_bytes as f64);
        self.bytes_saved.inc_by(step.raw_bytes.saturating_sub(step.stored_bytes));
        self.compress_seconds.observe(step.compress_seconds);
    }

    pub(crate) fn checkpointed(&self) {
        self.checkpoints.inc();
    }

    pub(crate) fn shard_committed(&self, packed: &Packed) {
        self.shard_files.inc_by(packed.totals.files_packed);
        if let Some(object) = &packed.object {
            self.shard_size.observe(object.size as f64);
        }
        for failure in &packed.failed {
            self.files_failed.with_label_values(&[crate::pack::reason_label(failure.reason)]).inc();
        }
    }
}

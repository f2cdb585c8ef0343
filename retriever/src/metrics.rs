//! The retriever's metrics, reached through functions named for events. No uid and no key is a label.

use std::time::Duration;

use axum::http::StatusCode;
use des_shared::archive::ReadKind;
use des_shared::metrics::{Metrics, SECONDS};
use des_shared::store::guarded::GuardMetrics;
use prometheus::{Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts};

/// Bounds in seconds for decompressing one file: from a few microseconds to a large one.
const DECOMPRESS_SECONDS: &[f64] = &[0.00001, 0.00005, 0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5];

/// What is kept, as a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CacheKind {
    /// Listings of shards.
    Listing,
    /// Listings of what is deleted.
    Tombstones,
    /// Opened shards.
    Directory,
    /// Index blocks.
    Block,
    /// Files.
    Payload,
    /// Directories and blocks on disk.
    DiskIndex,
    /// Stored bytes of files on disk.
    DiskPayload,
}

impl CacheKind {
    const ALL: [Self; 7] = [
        Self::Listing,
        Self::Tombstones,
        Self::Directory,
        Self::Block,
        Self::Payload,
        Self::DiskIndex,
        Self::DiskPayload,
    ];

    fn label(self) -> &'static str {
        match self {
            Self::Listing => "listing",
            Self::Tombstones => "tombstones",
            Self::Directory => "directory",
            Self::Block => "block",
            Self::Payload => "payload",
            Self::DiskIndex => "disk_index",
            Self::DiskPayload => "disk_payload",
        }
    }
}

/// The collectors. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct RetrieverMetrics {
    backend: &'static str,
    retrievals: IntCounterVec,
    /// Requests for files answered with 200: looking a metric up by its labels costs more than counting.
    served: IntCounter,
    seconds: Histogram,
    reads: IntCounterVec,
    payload_reads: IntCounter,
    decompress: Histogram,
    /// By [`CacheKind`].
    cache_hits: [IntCounter; CacheKind::ALL.len()],
    cache_misses: [IntCounter; CacheKind::ALL.len()],
    cache_bytes: IntGaugeVec,
    in_flight: IntGauge,
    broken_off: IntCounter,
    deadlines_passed: IntCounter,
    stood_in: IntCounterVec,
    guards: GuardMetrics,
    batch_files: IntCounterVec,
    batch_again: IntCounter,
    #[cfg_attr(not(feature = "s3-gateway"), expect(dead_code, reason = "only the S3 interface counts here"))]
    s3_face: IntCounterVec,
    #[cfg_attr(not(feature = "s3-gateway"), expect(dead_code, reason = "only the S3 interface counts here"))]
    s3_keys_broken: IntGauge,
}

/// A request under way; dropping it ends it.
#[derive(Debug)]
pub(crate) struct InFlight(IntGauge);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl RetrieverMetrics {
    pub(crate) fn register(metrics: &Metrics, backend: &'static str) -> Self {
        let counter = |name: &str, help: &str| IntCounter::new(name, help).expect("a well-formed name");
        let gauge = |name: &str, help: &str| IntGauge::new(name, help).expect("a well-formed name");
        let counters = |name: &str, help: &str, labels: &[&str]| {
            IntCounterVec::new(Opts::new(name, help), labels).expect("a well-formed name")
        };
        let seconds = HistogramOpts::new("des_retrieval_seconds", "Seconds until the answer's headers are ready.");
        let decompress = HistogramOpts::new("des_decompress_seconds", "Seconds to decompress one file.");
        let retrievals = counters("des_retrievals_total", "Requests for files by HTTP status.", &["backend", "status"]);
        let s3_face = counters(
            "des_s3_face_requests_total",
            "Requests to the S3 interface by what they were for and HTTP status.",
            &["operation", "status"],
        );
        let reads = counters("des_s3_range_calls_total", "Reads of shards by what they are for.", &["backend", "type"]);
        let hits = counters("des_cache_hit_total", "What was wanted and in a cache, by kind.", &["kind"]);
        let misses = counters("des_cache_miss_total", "What was wanted and not in a cache, by kind.", &["kind"]);
        let (hits, misses) = (metrics.register(hits), metrics.register(misses));
        let (retrievals, reads) = (metrics.register(retrievals), metrics.register(reads));
        let seconds = HistogramVec::new(seconds.buckets(SECONDS.to_vec()), &["backend"]).expect("a well-formed name");
        let cache_bytes = Opts::new("des_cache_bytes", "Bytes in a memory cache, as it weighs them, by kind.");
        let cache_bytes = IntGaugeVec::new(cache_bytes, &["kind"]).expect("a well-formed name");
        Self {
            backend,
            served: retrievals.with_label_values(&[backend, StatusCode::OK.as_str()]),
            retrievals,
            seconds: metrics.register(seconds).with_label_values(&[backend]),
            payload_reads: reads.with_label_values(&[backend, ReadKind::Payload.label()]),
            reads,
            decompress: metrics.register(
                Histogram::with_opts(decompress.buckets(DECOMPRESS_SECONDS.to_vec())).expect("a well-formed name"),
            ),
            cache_hits: CacheKind::ALL.map(|kind| hits.with_label_values(&[kind.label()])),
            cache_misses: CacheKind::ALL.map(|kind| misses.with_label_values(&[kind.label()])),
            cache_bytes: metrics.register(cache_bytes),
            in_flight: metrics.register(gauge("des_requests_in_flight", "Requests for files being answered.")),
            s3_face: metrics.register(s3_face),
            s3_keys_broken: metrics.register(gauge(
                "des_s3_face_keys_file_broken",
                "1 while the S3 interface's file of keys cannot be used and the old keys stay good.",
            )),
            broken_off: metrics.register(counter(
                "des_responses_broken_off_total",
                "Answers broken off in the middle because the bytes turned out wrong or the store failed.",
            )),
            deadlines_passed: metrics.register(counter(
                "des_request_deadlines_passed_total",
                "Requests given up because their answer did not begin in time.",
            )),
            stood_in: metrics.register(counters(
                "des_failovers_total",
                "Answers of a copy in place of its zone's own store.",
                &["zone", "store"],
            )),
            guards: GuardMetrics::register(metrics.registry()).expect("metric names are unique"),
            batch_files: metrics.register(counters(
                "des_batch_files_total",
                "Files of batches by HTTP status.",
                &["backend", "status"],
            )),
            batch_again: metrics.register(counter(
                "des_batch_files_read_again_total",
                "Files of batches that were damaged when read together with others, and were read again by themselves.",
            )),
        }
    }

    pub(crate) fn request_began(&self) -> InFlight {
        self.in_flight.inc();
        InFlight(self.in_flight.clone())
    }

    pub(crate) fn request_answered(&self, status: StatusCode, took: Duration) {
        match status {
            StatusCode::OK => self.served.inc(),
            status => self.retrievals.with_label_values(&[self.backend, status.as_str()]).inc(),
        }
        self.seconds.observe(took.as_secs_f64());
    }

    pub(crate) fn shard_read(&self, kind: ReadKind) {
        match kind {
            ReadKind::Payload => self.payload_reads.inc(),
            kind => self.reads.with_label_values(&[self.backend, kind.label()]).inc(),
        }
    }

    pub(crate) fn decompressed(&self, took: Duration) {
        self.decompress.observe(took.as_secs_f64());
    }

    /// Something was looked up in a cache.
    pub(crate) fn cache_asked(&self, kind: CacheKind, hit: bool) {
        let counters = if hit { &self.cache_hits } else { &self.cache_misses };
        counters[kind as usize].inc();
    }

    /// What a memory cache holds now. Opened shards and index blocks are one cache, under the first of the two.
    pub(crate) fn cache_weighs(&self, kind: CacheKind, bytes: u64) {
        self.cache_bytes.with_label_values(&[kind.label()]).set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// The metrics of the guards around all stores.
    pub(crate) fn guards(&self) -> &GuardMetrics {
        &self.guards
    }

    /// Counts what a copy answers.
    pub(crate) fn stood_in(&self, zone: &str, store: &str) -> IntCounter {
        self.stood_in.with_label_values(&[zone, store])
    }

    /// Counts the requests whose time was over.
    pub(crate) fn deadlines_passed(&self) -> IntCounter {
        self.deadlines_passed.clone()
    }

    pub(crate) fn batch_file(&self, status: u16) {
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        self.batch_files.with_label_values(&[self.backend, status.as_str()]).inc();
    }

    pub(crate) fn batch_file_read_again(&self) {
        self.batch_again.inc();
    }

    #[cfg(feature = "s3-gateway")]
    pub(crate) fn s3_answered(&self, operation: &str, status: StatusCode) {
        self.s3_face.with_label_values(&[operation, status.as_str()]).inc();
    }

    /// Whether the S3 interface's file of keys can be used as it is now.
    #[cfg(feature = "s3-gateway")]
    pub(crate) fn s3_keys_file_is(&self, usable: bool) {
        self.s3_keys_broken.set(i64::from(!usable));
    }

    pub(crate) fn answer_broken_off(&self) {
        self.broken_off.inc();
    }
}

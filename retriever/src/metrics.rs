//! The retriever's metrics, reached through functions named for events. No uid and no key is a label.

use std::time::Duration;

use axum::http::StatusCode;
use des_shared::archive::ReadKind;
use des_shared::metrics::{Metrics, SECONDS};
use prometheus::{Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts};

/// Bounds in seconds for decompressing one file: from a few microseconds to a large one.
const DECOMPRESS_SECONDS: &[f64] = &[0.00001, 0.00005, 0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5];

/// The collectors. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct RetrieverMetrics {
    backend: &'static str,
    retrievals: IntCounterVec,
    seconds: HistogramVec,
    reads: IntCounterVec,
    decompress: Histogram,
    cache_hits: IntCounter,
    cache_misses: IntCounter,
    cache_bytes: IntGauge,
    in_flight: IntGauge,
    broken_off: IntCounter,
    s3_face: IntCounterVec,
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
        Self {
            backend,
            retrievals: metrics.register(retrievals),
            seconds: metrics.register(
                HistogramVec::new(seconds.buckets(SECONDS.to_vec()), &["backend"]).expect("a well-formed name"),
            ),
            reads: metrics.register(reads),
            decompress: metrics.register(
                Histogram::with_opts(decompress.buckets(DECOMPRESS_SECONDS.to_vec())).expect("a well-formed name"),
            ),
            cache_hits: metrics.register(counter(
                "des_cache_hit_total",
                "Listings, shard indexes and index blocks that were in the cache.",
            )),
            cache_misses: metrics.register(counter(
                "des_cache_miss_total",
                "Listings, shard indexes and index blocks that had to be read.",
            )),
            cache_bytes: metrics.register(gauge("des_cache_bytes", "Bytes in the cache, as it weighs them.")),
            in_flight: metrics.register(gauge("des_requests_in_flight", "Requests for files being answered.")),
            s3_face: metrics.register(s3_face),
            broken_off: metrics.register(counter(
                "des_responses_broken_off_total",
                "Answers broken off in the middle because the bytes turned out wrong or the store failed.",
            )),
        }
    }

    pub(crate) fn request_began(&self) -> InFlight {
        self.in_flight.inc();
        InFlight(self.in_flight.clone())
    }

    pub(crate) fn request_answered(&self, status: StatusCode, took: Duration) {
        self.retrievals.with_label_values(&[self.backend, status.as_str()]).inc();
        self.seconds.with_label_values(&[self.backend]).observe(took.as_secs_f64());
    }

    pub(crate) fn shard_read(&self, kind: ReadKind) {
        self.reads.with_label_values(&[self.backend, kind.label()]).inc();
    }

    pub(crate) fn decompressed(&self, took: Duration) {
        self.decompress.observe(took.as_secs_f64());
    }

    pub(crate) fn cache_asked(&self, hit: bool) {
        if hit { self.cache_hits.inc() } else { self.cache_misses.inc() }
    }

    pub(crate) fn cache_weighs(&self, bytes: u64) {
        self.cache_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    pub(crate) fn s3_answered(&self, operation: &str, status: StatusCode) {
        self.s3_face.with_label_values(&[operation, status.as_str()]).inc();
    }

    pub(crate) fn answer_broken_off(&self) {
        self.broken_off.inc();
    }
}

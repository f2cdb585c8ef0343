//! Counts what is asked of stores. No key, bucket or uid is in a label.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use async_trait::async_trait;
use bytes::Bytes;
use prometheus::{Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry};

use super::call::Operation;
use super::{
    ByteRange, Capabilities, Fetched, FetchedStream, ListPage, ObjectMeta, ObjectStore, PartTag, SharedStore,
    StoreError, UploadMeta, WriteMode, WriteOptions,
};

/// Seconds: from a small read of a near store to an upload attempt that is about to be given up.
const BUCKETS: [f64; 13] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 20.0, 120.0];

const OPERATIONS: usize = Operation::Open as usize + 1;

/// The metrics of all stores of a process.
#[derive(Clone, Debug)]
pub struct StoreMetrics {
    calls: IntCounterVec,
    /// By [`Operation`]: looking a metric up by its labels costs more than counting.
    usual: Arc<[OnceLock<Usual>; OPERATIONS]>,
    seconds: HistogramVec,
    in_flight: IntGauge,
    bytes_read: IntCounter,
    bytes_written: IntCounter,
}

/// What a call that ends well counts in.
#[derive(Debug)]
struct Usual {
    ok: IntCounter,
    seconds: Histogram,
}

/// One call under way. Dropping it unfinished counts it as cancelled.
struct Running<'a> {
    metrics: &'a StoreMetrics,
    operation: Operation,
    began: Instant,
    finished: bool,
}

impl StoreMetrics {
    /// Registers the metrics: `des_s3_calls_total{operation,status}`, `des_s3_call_seconds{operation}`,
    /// `des_s3_calls_in_flight`, `des_s3_bytes_total{direction}`.
    ///
    /// # Errors
    /// When a metric of that name is registered already.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let calls = Opts::new("des_s3_calls_total", "Attempts of store operations by operation and outcome.");
        let seconds = HistogramOpts::new("des_s3_call_seconds", "Seconds an attempt of a store operation takes.");
        let bytes = Opts::new("des_s3_bytes_total", "Bytes read from and written to stores.");
        let bytes = IntCounterVec::new(bytes, &["direction"])?;
        let metrics = Self {
            calls: IntCounterVec::new(calls, &["operation", "status"])?,
            usual: Arc::default(),
            seconds: HistogramVec::new(seconds.buckets(BUCKETS.to_vec()), &["operation"])?,
            in_flight: IntGauge::new("des_s3_calls_in_flight", "Store operations under way.")?,
            bytes_read: bytes.with_label_values(&["read"]),
            bytes_written: bytes.with_label_values(&["written"]),
        };
        registry.register(Box::new(metrics.calls.clone()))?;
        registry.register(Box::new(metrics.seconds.clone()))?;
        registry.register(Box::new(metrics.in_flight.clone()))?;
        registry.register(Box::new(bytes))?;
        Ok(metrics)
    }

    fn call_started(&self, operation: Operation) -> Running<'_> {
        self.in_flight.inc();
        Running { metrics: self, operation, began: Instant::now(), finished: false }
    }

    fn usual(&self, operation: Operation) -> &Usual {
        self.usual[operation as usize].get_or_init(|| Usual {
            ok: self.calls.with_label_values(&[operation.label(), "ok"]),
            seconds: self.seconds.with_label_values(&[operation.label()]),
        })
    }

    fn bytes_read(&self, n: usize) {
        self.bytes_read.inc_by(n as u64);
    }

    fn bytes_written(&self, n: usize) {
        self.bytes_written.inc_by(n as u64);
    }
}

impl Running<'_> {
    fn finished<T>(mut self, result: Result<T, StoreError>) -> Result<T, StoreError> {
        let usual = self.metrics.usual(self.operation);
        match &result {
            Ok(_) => usual.ok.inc(),
            Err(error) => {
                self.metrics.calls.with_label_values(&[self.operation.label(), error.kind.label()]).inc();
            }
        }
        usual.seconds.observe(self.began.elapsed().as_secs_f64());
        self.finished = true;
        result
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.metrics.in_flight.dec();
        if !self.finished {
            self.metrics.calls.with_label_values(&[self.operation.label(), "cancelled"]).inc();
        }
    }
}

/// A store whose calls are counted.
#[derive(Debug)]
pub struct MeteredStore {
    inner: SharedStore,
    metrics: StoreMetrics,
}

impl MeteredStore {
    /// Wraps a store.
    pub fn new(inner: SharedStore, metrics: StoreMetrics) -> Self {
        Self { inner, metrics }
    }

    async fn counted<T>(
        &self,
        operation: Operation,
        call: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let running = self.metrics.call_started(operation);
        running.finished(call.await)
    }
}

#[async_trait]
impl ObjectStore for MeteredStore {
    fn url(&self) -> String {
        self.inner.url()
    }

    async fn head(&self, key: &str) -> Result<ObjectMeta, StoreError> {
        self.counted(Operation::Head, self.inner.head(key)).await
    }

    async fn get(&self, key: &str, range: ByteRange) -> Result<Fetched, StoreError> {
        let fetched = self.counted(Operation::Get, self.inner.get(key, range)).await?;
        self.metrics.bytes_read(fetched.bytes.len());
        Ok(fetched)
    }

    async fn get_stream(&self, key: &str, range: ByteRange) -> Result<FetchedStream, StoreError> {
        use futures::StreamExt;
        let fetched = self.counted(Operation::GetStream, self.inner.get_stream(key, range)).await?;
        let metrics = self.metrics.clone();
        let counted = fetched.stream.inspect(move |chunk| metrics.bytes_read(chunk.as_ref().map_or(0, Bytes::len)));
        Ok(FetchedStream { meta: fetched.meta, stream: counted.boxed() })
    }

    async fn put(&self, key: &str, bytes: Bytes, options: &WriteOptions) -> Result<ObjectMeta, StoreError> {
        let size = bytes.len();
        let meta = self.counted(Operation::Put, self.inner.put(key, bytes, options)).await?;
        self.metrics.bytes_written(size);
        Ok(meta)
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.counted(Operation::Delete, self.inner.delete(key)).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<ListPage, StoreError> {
        self.counted(Operation::List, self.inner.list(prefix, after, limit)).await
    }

    async fn create_upload(&self, key: &str, metadata: &BTreeMap<String, String>) -> Result<String, StoreError> {
        self.counted(Operation::CreateUpload, self.inner.create_upload(key, metadata)).await
    }

    async fn put_part(&self, key: &str, upload_id: &str, number: u32, bytes: Bytes) -> Result<PartTag, StoreError> {
        let size = bytes.len();
        let part = self.counted(Operation::PutPart, self.inner.put_part(key, upload_id, number, bytes)).await?;
        self.metrics.bytes_written(size);
        Ok(part)
    }

    async fn list_parts(&self, key: &str, upload_id: &str) -> Result<Vec<PartTag>, StoreError> {
        self.counted(Operation::ListParts, self.inner.list_parts(key, upload_id)).await
    }

    async fn complete_upload(
        &self,
        key: &str,
        upload_id: &str,
        parts: &[PartTag],
        mode: WriteMode,
    ) -> Result<ObjectMeta, StoreError> {
        let completing = self.inner.complete_upload(key, upload_id, parts, mode);
        self.counted(Operation::CompleteUpload, completing).await
    }

    async fn abort_upload(&self, key: &str, upload_id: &str) -> Result<(), StoreError> {
        self.counted(Operation::AbortUpload, self.inner.abort_upload(key, upload_id)).await
    }

    async fn list_uploads(&self, prefix: &str, limit: usize) -> Result<Vec<UploadMeta>, StoreError> {
        self.counted(Operation::ListUploads, self.inner.list_uploads(prefix, limit)).await
    }

    async fn probe(&self, prefix: &str) -> Result<Capabilities, StoreError> {
        self.counted(Operation::Probe, self.inner.probe(prefix)).await
    }

    async fn check(&self) -> Result<(), StoreError> {
        self.counted(Operation::Check, self.inner.check()).await
    }
}

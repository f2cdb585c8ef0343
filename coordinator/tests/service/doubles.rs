//! A store and a queue that can be told to fail.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use des_shared::ids::{FencingToken, JobId, TaskId};
use des_shared::queue::{
    Checkpoint, Exchanged, FailOutcome, FinishedTask, Held, HeldTask, JobCounters, JobShare, Lease, NewTask, Queue,
    QueueError, QueueStats, SharedQueue, TaskFailure, TaskState, TaskTotals, TaskView, Tick, WorkerInfo, WorkerView,
};
use des_shared::store::{
    ByteRange, Capabilities, Fetched, FetchedStream, ListPage, ObjectMeta, ObjectStore, PartTag, SharedStore,
    StoreError, StoreErrorKind, UploadMeta, WriteMode, WriteOptions,
};
use tokio::sync::Notify;

/// What happens to one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It goes through.
    Pass,
    /// It fails as a store that is away does, and does nothing.
    Fail,
    /// It does its work, and the answer is lost.
    LoseAnswer,
    /// It never comes back.
    Hang,
    /// The store says that there is nothing.
    Miss,
}

type Rule = Box<dyn FnMut(&str, &str) -> Fate + Send>;

/// A store whose calls meet a fate decided by a rule of operation and key.
pub(crate) struct Moody {
    inner: SharedStore,
    rule: Mutex<Rule>,
    pub(crate) hung: Notify,
    pub(crate) missed: Notify,
}

impl fmt::Debug for Moody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Moody")
    }
}

impl Moody {
    pub(crate) fn around(inner: SharedStore) -> Arc<Self> {
        Arc::new(Self {
            inner,
            rule: Mutex::new(Box::new(|_, _| Fate::Pass)),
            hung: Notify::new(),
            missed: Notify::new(),
        })
    }

    pub(crate) fn rule(&self, rule: impl FnMut(&str, &str) -> Fate + Send + 'static) {
        *self.rule.lock().expect("no panic under the lock") = Box::new(rule);
    }

    async fn meet<T>(
        &self,
        operation: &'static str,
        key: &str,
        call: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let fate = (self.rule.lock().expect("no panic under the lock"))(operation, key);
        let failed = |kind| StoreError {
            kind,
            operation,
            url: self.inner.url(),
            key: key.to_owned(),
            message: "told to fail".to_owned(),
        };
        match fate {
            Fate::Pass => call.await,
            Fate::Fail => Err(failed(StoreErrorKind::Unavailable)),
            Fate::LoseAnswer => call.await.and_then(|_| Err(failed(StoreErrorKind::Unavailable))),
            Fate::Miss => {
                self.missed.notify_one();
                Err(failed(StoreErrorKind::NotFound))
            }
            Fate::Hang => {
                self.hung.notify_one();
                std::future::pending().await
            }
        }
    }
}

#[async_trait]
impl ObjectStore for Moody {
    fn url(&self) -> String {
        self.inner.url()
    }
    async fn head(&self, key: &str) -> Result<ObjectMeta, StoreError> {
        self.meet("head", key, self.inner.head(key)).await
    }
    async fn get(&self, key: &str, range: ByteRange) -> Result<Fetched, StoreError> {
        self.meet("get", key, self.inner.get(key, range)).await
    }
    async fn get_stream(&self, key: &str, range: ByteRange) -> Result<FetchedStream, StoreError> {
        self.meet("get_stream", key, self.inner.get_stream(key, range)).await
    }
    async fn put(&self, key: &str, bytes: Bytes, options: &WriteOptions) -> Result<ObjectMeta, StoreError> {
        self.meet("put", key, self.inner.put(key, bytes, options)).await
    }
    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.meet("delete", key, self.inner.delete(key)).await
    }
    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<ListPage, StoreError> {
        self.meet("list", prefix, self.inner.list(prefix, after, limit)).await
    }
    async fn create_upload(&self, key: &str, metadata: &BTreeMap<String, String>) -> Result<String, StoreError> {
        self.meet("create_upload", key, self.inner.create_upload(key, metadata)).await
    }
    async fn put_part(&self, key: &str, upload: &str, number: u32, bytes: Bytes) -> Result<PartTag, StoreError> {
        self.meet("put_part", key, self.inner.put_part(key, upload, number, bytes)).await
    }
    async fn list_parts(&self, key: &str, upload: &str) -> Result<Vec<PartTag>, StoreError> {
        self.meet("list_parts", key, self.inner.list_parts(key, upload)).await
    }
    async fn complete_upload(
        &self,
        key: &str,
        upload: &str,
        parts: &[PartTag],
        mode: WriteMode,
    ) -> Result<ObjectMeta, StoreError> {
        self.meet("complete_upload", key, self.inner.complete_upload(key, upload, parts, mode)).await
    }
    async fn abort_upload(&self, key: &str, upload: &str) -> Result<(), StoreError> {
        self.meet("abort_upload", key, self.inner.abort_upload(key, upload)).await
    }
    async fn list_uploads(&self, prefix: &str, limit: usize) -> Result<Vec<UploadMeta>, StoreError> {
        self.meet("list_uploads", prefix, self.inner.list_uploads(prefix, limit)).await
    }
    async fn probe(&self, prefix: &str) -> Result<Capabilities, StoreError> {
        self.meet("probe", prefix, self.inner.probe(prefix)).await
    }
    async fn check(&self) -> Result<(), StoreError> {
        self.meet("check", "", self.inner.check()).await
    }
}

/// A queue that can be unplugged.
#[derive(Debug)]
pub(crate) struct Plug {
    inner: SharedQueue,
    pulled: AtomicBool,
    /// What the queue says is wrong with it, beside what is; gone when a job is repaired.
    pub(crate) planted: Mutex<Vec<String>>,
    /// So many more questions about a job find that it is not known, as if it was about to be brought back, or just
    /// forgotten.
    pub(crate) not_yet: AtomicU32,
}

impl Plug {
    pub(crate) fn around(inner: SharedQueue) -> Arc<Self> {
        Arc::new(Self { inner, pulled: AtomicBool::new(false), planted: Mutex::default(), not_yet: AtomicU32::new(0) })
    }

    pub(crate) fn pull(&self, pulled: bool) {
        self.pulled.store(pulled, Ordering::SeqCst);
    }

    fn queue(&self) -> Result<&SharedQueue, QueueError> {
        if self.pulled.load(Ordering::SeqCst) {
            return Err(QueueError::Unavailable("unplugged".to_owned()));
        }
        Ok(&self.inner)
    }
}

#[async_trait]
impl Queue for Plug {
    async fn add_job(&self, job: JobId, share: JobShare) -> Result<(), QueueError> {
        self.queue()?.add_job(job, share).await
    }
    async fn add_tasks(&self, job: JobId, tasks: &[NewTask]) -> Result<u64, QueueError> {
        self.queue()?.add_tasks(job, tasks).await
    }
    async fn claim(&self, worker: &WorkerInfo, max: usize) -> Result<Vec<Lease>, QueueError> {
        self.queue()?.claim(worker, max).await
    }
    async fn heartbeat(&self, worker: &WorkerInfo, held: &[HeldTask]) -> Result<Vec<Held>, QueueError> {
        self.queue()?.heartbeat(worker, held).await
    }
    async fn checkpoint(&self, task: TaskId, token: FencingToken, checkpoint: &Checkpoint) -> Result<Held, QueueError> {
        self.queue()?.checkpoint(task, token, checkpoint).await
    }
    async fn drop_checkpoint(&self, task: TaskId, token: FencingToken) -> Result<(), QueueError> {
        self.queue()?.drop_checkpoint(task, token).await
    }
    async fn commit(&self, task: TaskId, token: FencingToken, totals: &TaskTotals) -> Result<(), QueueError> {
        self.queue()?.commit(task, token, totals).await
    }
    async fn exchange(
        &self,
        worker: &WorkerInfo,
        finished: &[FinishedTask],
        free: usize,
    ) -> Result<Exchanged, QueueError> {
        self.queue()?.exchange(worker, finished, free).await
    }
    async fn fail(&self, task: TaskId, token: FencingToken, failure: &TaskFailure) -> Result<FailOutcome, QueueError> {
        self.queue()?.fail(task, token, failure).await
    }
    async fn release(&self, task: TaskId, token: FencingToken) -> Result<(), QueueError> {
        self.queue()?.release(task, token).await
    }
    async fn settle(&self, task: TaskId, state: TaskState, totals: &TaskTotals) -> Result<(), QueueError> {
        self.queue()?.settle(task, state, totals).await
    }
    async fn tick(&self, limit: usize) -> Result<Tick, QueueError> {
        self.queue()?.tick(limit).await
    }
    async fn job(&self, job: JobId) -> Result<Option<JobCounters>, QueueError> {
        let counters = self.queue()?.job(job).await?;
        let not_yet = self.not_yet.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
        Ok(counters.filter(|_| !not_yet))
    }
    async fn tasks(&self, job: JobId, from: u32, limit: usize) -> Result<Vec<TaskView>, QueueError> {
        self.queue()?.tasks(job, from, limit).await
    }
    async fn jobs(&self) -> Result<Vec<JobId>, QueueError> {
        self.queue()?.jobs().await
    }
    async fn set_share(&self, job: JobId, share: JobShare) -> Result<(), QueueError> {
        self.queue()?.set_share(job, share).await
    }
    async fn set_paused(&self, job: JobId, paused: bool) -> Result<(), QueueError> {
        self.queue()?.set_paused(job, paused).await
    }
    async fn cancel_job(&self, job: JobId, limit: usize) -> Result<u64, QueueError> {
        self.queue()?.cancel_job(job, limit).await
    }
    async fn audit(&self) -> Result<Vec<String>, QueueError> {
        let mut wrong = self.queue()?.audit().await?;
        wrong.extend(self.planted.lock().expect("no panic under the lock").iter().cloned());
        Ok(wrong)
    }
    async fn repair_job(&self, job: JobId) -> Result<u64, QueueError> {
        self.planted.lock().expect("no panic under the lock").clear();
        self.queue()?.repair_job(job).await
    }
    async fn forget_job(&self, job: JobId) -> Result<(), QueueError> {
        self.queue()?.forget_job(job).await
    }
    async fn stats(&self) -> Result<QueueStats, QueueError> {
        self.queue()?.stats().await
    }
    async fn workers(&self) -> Result<Vec<WorkerView>, QueueError> {
        self.queue()?.workers().await
    }
    async fn lock(&self, name: &str, holder: &str, ttl: Duration) -> Result<Option<FencingToken>, QueueError> {
        self.queue()?.lock(name, holder, ttl).await
    }
    async fn unlock(&self, name: &str, holder: &str) -> Result<(), QueueError> {
        self.queue()?.unlock(name, holder).await
    }
    async fn wait_for_work(&self, at_most: Duration) {
        if let Ok(queue) = self.queue() {
            queue.wait_for_work(at_most).await;
        }
    }
    async fn ping(&self) -> Result<(), QueueError> {
        self.queue()?.ping().await
    }
}

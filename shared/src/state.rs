//! The state store: what must survive the queue. Typed reads and writes over an object store and the keys of
//! [`crate::layout`].
//!
//! Records that decide something (`job.json`, `plan.json`, receipts, `end.json`) are created once and never change:
//! of two writers the first wins and the second reads what the first wrote. Of `control.json`, which people change,
//! the last writer's stands.

use std::sync::Arc;

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::control::ControlRecord;
use crate::ids::{JobId, TaskId};
use crate::job::{EndRecord, JobRecord, PlanRecord};
use crate::layout;
use crate::offload::offload;
use crate::receipt::{FailedFile, Receipt};
use crate::segment::{self, Segment};
use crate::store::{ByteRange, ObjectMeta, SharedStore, StoreError, StoreErrorKind, WriteOptions, list_all};

/// Largest JSON record read, in bytes. A plan of 10 million tasks stays below.
const MAX_RECORD_BYTES: u64 = 256 << 20;

/// A state-store operation that failed.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The store failed.
    #[error("state store: {0}")]
    Store(#[from] StoreError),
    /// A record is not what this version writes.
    #[error("state store: {key} is not readable: {why}")]
    Corrupt {
        /// The record.
        key: String,
        /// What is wrong with it.
        why: String,
    },
}

impl StateError {
    /// Whether the same call may succeed later without anybody acting.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Store(e) if e.kind.is_transient())
    }
}

/// What became of a create-once write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Created<T> {
    /// This write made the record.
    Ours,
    /// Somebody was first; this is what they wrote. (Also the answer to a repeated write of our own.)
    Theirs(T),
}

/// Typed access to the state store. Cheap to clone.
#[derive(Clone, Debug)]
pub struct StateStore {
    store: SharedStore,
}

impl StateStore {
    /// Over this store.
    pub fn new(store: SharedStore) -> Self {
        Self { store }
    }

    /// The object store beneath, for streams (manifests) and health checks.
    pub fn objects(&self) -> &SharedStore {
        &self.store
    }

    /// Reads a JSON record; `None` when there is none.
    ///
    /// # Errors
    /// [`StateError`] when the store fails or the record is unreadable.
    pub async fn read<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, StateError> {
        let Some(bytes) = self.read_bytes(key).await? else { return Ok(None) };
        let value = serde_json::from_slice(&bytes)
            .map_err(|e| StateError::Corrupt { key: key.to_owned(), why: e.to_string() })?;
        Ok(Some(value))
    }

    /// Reads a whole object; `None` when there is none.
    ///
    /// # Errors
    /// [`StateError`] when the store fails or the object is larger than any record of ours.
    pub async fn read_bytes(&self, key: &str) -> Result<Option<Bytes>, StateError> {
        let range = ByteRange::Suffix(MAX_RECORD_BYTES + 1);
        match self.store.get(key, range).await {
            Ok(fetched) if fetched.meta.size > MAX_RECORD_BYTES => {
                Err(StateError::Corrupt { key: key.to_owned(), why: format!("{} bytes long", fetched.meta.size) })
            }
            Ok(fetched) => Ok(Some(fetched.bytes)),
            Err(e) if e.kind == StoreErrorKind::NotFound => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Writes a JSON record unless there is one.
    ///
    /// # Errors
    /// [`StateError`] when the store fails or the record of another writer is unreadable.
    pub async fn create<T: Serialize + DeserializeOwned>(
        &self,
        key: &str,
        value: &T,
    ) -> Result<Created<T>, StateError> {
        // A record created and removed between the two calls is written again.
        loop {
            match self.store.put(key, to_json(value), &WriteOptions::create_only()).await {
                Ok(_) => return Ok(Created::Ours),
                Err(e) if e.kind == StoreErrorKind::AlreadyExists => {
                    if let Some(theirs) = self.read(key).await? {
                        return Ok(Created::Theirs(theirs));
                    }
                }
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Writes bytes, replacing what is there.
    ///
    /// # Errors
    /// [`StateError`] when the store fails.
    pub async fn write_bytes(&self, key: &str, bytes: Bytes) -> Result<ObjectMeta, StateError> {
        Ok(self.store.put(key, bytes, &WriteOptions::overwrite()).await?)
    }

    /// Writes a JSON record, replacing what is there.
    ///
    /// # Errors
    /// [`StateError`] when the store fails.
    pub async fn write<T: Serialize>(&self, key: &str, value: &T) -> Result<(), StateError> {
        self.write_bytes(key, to_json(value)).await.map(drop)
    }

    /// Removes a record; removing nothing is a success.
    ///
    /// # Errors
    /// [`StateError`] when the store fails.
    pub async fn delete(&self, key: &str) -> Result<(), StateError> {
        Ok(self.store.delete(key).await?)
    }

    /// The accepted job.
    ///
    /// # Errors
    /// [`StateError`] when the store fails or the record is unreadable.
    pub async fn job(&self, job: JobId) -> Result<Option<JobRecord>, StateError> {
        self.read(&layout::job_record(job)).await
    }

    /// The plan's summary; `None` while the job is being planned.
    ///
    /// # Errors
    /// [`StateError`] when the store fails or the record is unreadable.
    pub async fn plan(&self, job: JobId) -> Result<Option<PlanRecord>, StateError> {
        self.read(&layout::plan(job)).await
    }

    /// How the job ended; `None` while it is open.
    ///
    /// # Errors
    /// [`StateError`] when the store fails or the record is unreadable.
    pub async fn end(&self, job: JobId) -> Result<Option<EndRecord>, StateError> {
        self.read(&layout::end(job)).await
    }

    /// What people decided about the job; the default where nobody did.
    ///
    /// # Errors
    /// [`StateError`] when the store fails or the record is unreadable.
    pub async fn control(&self, job: JobId) -> Result<ControlRecord, StateError> {
        let (control, cancellation) = (layout::control(job), layout::cancellation(job));
        let (control, cancellation) =
            futures::try_join!(self.read::<ControlRecord>(&control), self.read::<ControlRecord>(&cancellation))?;
        let control = control.unwrap_or_default();
        Ok(match cancellation {
            Some(cancelled) => ControlRecord { share: control.share, ..cancelled },
            None => control,
        })
    }

    /// Writes a plan segment. A plan that is made again writes the same bytes.
    ///
    /// # Errors
    /// [`StateError`] when the store fails.
    pub async fn put_segment(&self, segment: &Arc<Segment>) -> Result<(), StateError> {
        let encoded = {
            let segment = Arc::clone(segment);
            offload(move || segment::encode(&segment)).await
        };
        self.write_bytes(&layout::segment(segment.task), encoded.into()).await?;
        Ok(())
    }

    /// Reads a plan segment.
    ///
    /// # Errors
    /// [`StateError`] when the store fails, or the segment is missing, unreadable or another task's.
    pub async fn segment(&self, task: TaskId) -> Result<Segment, StateError> {
        let key = layout::segment(task);
        let corrupt = |why: String| StateError::Corrupt { key: key.clone(), why };
        let bytes = self.read_bytes(&key).await?.ok_or_else(|| corrupt("it does not exist".to_owned()))?;
        let segment = offload(move || segment::decode(&bytes)).await.map_err(|e| corrupt(e.to_string()))?;
        if segment.task != task {
            return Err(corrupt(format!("it is the segment of task {}", segment.task)));
        }
        Ok(segment)
    }

    /// The receipt of a task; `None` while it is open.
    ///
    /// # Errors
    /// [`StateError`] when the store fails or the record is unreadable.
    pub async fn receipt(&self, task: TaskId) -> Result<Option<Receipt>, StateError> {
        self.read(&layout::receipt(task)).await
    }

    /// Writes a task's failure list and then its receipt: a receipt never stands without its list.
    ///
    /// # Errors
    /// [`StateError`] when the store fails.
    pub async fn finish_task(&self, receipt: &Receipt, failed: &[FailedFile]) -> Result<Created<Receipt>, StateError> {
        // Lists of several holders must not replace each other, so each lies under its token until the receipt, which
        // names that token, says which one counts.
        if !failed.is_empty() {
            let mut lines = Vec::new();
            for file in failed {
                serde_json::to_writer(&mut lines, file).expect("a failure always encodes");
                lines.push(b'\n');
            }
            self.write_bytes(&layout::failures(receipt.task, receipt.token), lines.into()).await?;
        }
        self.create(&layout::receipt(receipt.task), receipt).await
    }

    /// Every receipt of a job, in order of task number, read a few at a time.
    pub fn receipts(&self, job: JobId) -> BoxStream<'static, Result<Receipt, StateError>> {
        let state = self.clone();
        list_all(self.store.clone(), layout::receipt_prefix(job))
            .err_into()
            .map_ok(move |object| {
                let state = state.clone();
                async move {
                    let receipt: Option<Receipt> = state.read(&object.key).await?;
                    receipt.ok_or_else(|| StateError::Corrupt { key: object.key, why: "it vanished".to_owned() })
                }
            })
            .try_buffered(16)
            .boxed()
    }

    /// The failure lists of a job's finished tasks as NDJSON, in order of task number.
    pub fn failures(&self, job: JobId) -> BoxStream<'static, Result<Bytes, StateError>> {
        let state = self.clone();
        self.receipts(job)
            .try_filter(|receipt| futures::future::ready(receipt.totals.files_failed > 0))
            .and_then(move |receipt| {
                let state = state.clone();
                async move {
                    let key = layout::failures(receipt.task, receipt.token);
                    let list = state.read_bytes(&key).await?;
                    list.ok_or_else(|| StateError::Corrupt { key, why: "it does not exist".to_owned() })
                }
            })
            .boxed()
    }

    /// Every job in the store, oldest first.
    ///
    /// # Errors
    /// [`StateError`] when the store fails.
    pub async fn jobs(&self) -> Result<Vec<JobId>, StateError> {
        let mut jobs: Vec<JobId> = Vec::new();
        while let Some(job) = self.job_after(jobs.last().copied()).await? {
            jobs.push(job);
        }
        Ok(jobs)
    }

    /// The oldest job in the store that was accepted after `job`; the oldest of all without one.
    ///
    /// # Errors
    /// [`StateError`] when the store fails.
    pub async fn job_after(&self, job: Option<JobId>) -> Result<Option<JobId>, StateError> {
        // One job has many objects, so the listing hops from job to job instead of walking through all of them. '0' is
        // the byte behind '/': past everything of this job, before everything of the next.
        let mut after = job.map(|job| format!("{}{job}0", layout::JOBS_PREFIX));
        loop {
            let page = self.store.list(layout::JOBS_PREFIX, after.as_deref(), 1).await?;
            let Some(object) = page.objects.first() else { return Ok(None) };
            match layout::job_of_key(&object.key) {
                Some(job) => return Ok(Some(job)),
                None => after = Some(object.key.clone()),
            }
        }
    }
}

fn to_json<T: Serialize>(value: &T) -> Bytes {
    serde_json::to_vec(value).expect("a record always encodes").into()
}

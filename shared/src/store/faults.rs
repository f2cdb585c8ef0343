//! A wrapper that makes a store fail on purpose: by a script, or by seeded dice.
//!
//! A fault comes before the operation (nothing happened) or after it (it happened, the answer was lost). The second is
//! what conditional writes and completions have to survive.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, stream};
use tokio::time::Instant;

use super::call::Operation;
use super::{
    ByteRange, Capabilities, Fetched, FetchedStream, ListPage, ObjectMeta, ObjectStore, PartTag, SharedStore,
    StoreError, StoreErrorKind, UploadMeta, WriteMode, WriteOptions,
};
use crate::clock::Dice;

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The operation is not done.
    Before(StoreErrorKind),
    /// The operation is done, and its success is answered with this error. A failure stays what it is.
    After(StoreErrorKind),
    /// The operation is done after this wait.
    Delay(Duration),
    /// The operation is done, and its answer takes so many times as long as it would have.
    Slow(u32),
    /// A stream ends with [`StoreErrorKind::Unavailable`] after this many bytes. Other operations are not touched.
    Cut(u64),
}

/// One line of a script.
#[derive(Clone, Debug)]
pub struct Rule {
    operation: Option<Operation>,
    key_part: String,
    skip: u64,
    times: u64,
    fault: Fault,
}

impl Rule {
    /// Fails every operation.
    pub fn always(fault: Fault) -> Self {
        Self { operation: None, key_part: String::new(), skip: 0, times: u64::MAX, fault }
    }

    /// Fails the first operation of a kind, once.
    pub fn once(operation: Operation, fault: Fault) -> Self {
        Self { operation: Some(operation), times: 1, ..Self::always(fault) }
    }

    /// Only keys (or prefixes) that contain `part`.
    #[must_use]
    pub fn on_keys_with(self, part: impl Into<String>) -> Self {
        Self { key_part: part.into(), ..self }
    }

    /// Lets `skip` matching operations pass first.
    #[must_use]
    pub fn after(self, skip: u64) -> Self {
        Self { skip, ..self }
    }

    /// Fails `times` operations, then no more.
    #[must_use]
    pub fn times(self, times: u64) -> Self {
        Self { times, ..self }
    }

    /// The fault, if this operation's turn has come.
    fn apply(&mut self, operation: Operation, key: &str) -> Option<Fault> {
        if self.times == 0 || self.operation.is_some_and(|o| o != operation) || !key.contains(&self.key_part) {
            return None;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return None;
        }
        self.times -= 1;
        Some(self.fault)
    }
}

/// How often the dice choose a fault, in thousandths of the operations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Odds {
    /// [`Fault::Before`] with [`StoreErrorKind::Unavailable`].
    pub before: u16,
    /// [`Fault::After`] with [`StoreErrorKind::Unavailable`].
    pub after: u16,
    /// [`Fault::Cut`] within the first MiB.
    pub cut: u16,
    /// [`Fault::Delay`] of up to [`Self::longest`].
    pub delay: u16,
    /// The longest delay.
    pub longest: Duration,
    /// [`Fault::Slow`] by [`Self::factor`].
    pub slow: u16,
    /// How many times as long.
    pub factor: u32,
}

/// A store that fails on purpose.
pub struct FaultStore {
    inner: SharedStore,
    rules: Mutex<Vec<Rule>>,
    random: Option<(Odds, Arc<Dice>)>,
    injected: AtomicU64,
}

impl fmt::Debug for FaultStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultStore").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl FaultStore {
    /// A store that fails only where rules are added.
    pub fn scripted(inner: SharedStore) -> Self {
        Self { inner, rules: Mutex::default(), random: None, injected: AtomicU64::new(0) }
    }

    /// A store that also fails by dice.
    pub fn random(inner: SharedStore, odds: Odds, dice: Arc<Dice>) -> Self {
        Self { random: Some((odds, dice)), ..Self::scripted(inner) }
    }

    /// Adds a rule, also while the store is in use. The first rule whose turn has come decides.
    pub fn add(&self, rule: Rule) {
        self.lock().push(rule);
    }

    /// Removes all rules: the store is well again.
    pub fn heal(&self) {
        self.lock().clear();
    }

    /// How many faults there were, delays included.
    pub fn injected(&self) -> u64 {
        self.injected.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Rule>> {
        // A script is still a script when a test panicked while adding to it.
        self.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next_fault(&self, operation: Operation, key: &str) -> Option<Fault> {
        let scripted = self.lock().iter_mut().find_map(|rule| rule.apply(operation, key));
        let fault = scripted.or_else(|| self.random.as_ref().and_then(|(odds, dice)| odds.roll(dice)))?;
        // A fault that cannot happen to this operation is none.
        if matches!(fault, Fault::Cut(_)) && operation != Operation::GetStream {
            return None;
        }
        self.injected.fetch_add(1, Ordering::Relaxed);
        Some(fault)
    }

    fn error(&self, operation: Operation, key: &str, kind: StoreErrorKind) -> StoreError {
        StoreError {
            kind,
            operation: operation.label(),
            url: self.inner.url(),
            key: key.to_owned(),
            message: "injected fault".to_owned(),
        }
    }

    async fn faulty<T>(
        &self,
        operation: Operation,
        key: &str,
        call: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let fault = self.next_fault(operation, key);
        self.with_fault(fault, operation, key, call).await
    }

    async fn with_fault<T>(
        &self,
        fault: Option<Fault>,
        operation: Operation,
        key: &str,
        call: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        match fault {
            None | Some(Fault::Cut(_)) => call.await,
            Some(Fault::Before(kind)) => Err(self.error(operation, key, kind)),
            Some(Fault::After(kind)) => {
                call.await?;
                Err(self.error(operation, key, kind))
            }
            Some(Fault::Delay(wait)) => {
                tokio::time::sleep(wait).await;
                call.await
            }
            Some(Fault::Slow(factor)) => {
                let began = Instant::now();
                let answer = call.await;
                tokio::time::sleep(began.elapsed() * factor.saturating_sub(1)).await;
                answer
            }
        }
    }
}

impl Odds {
    fn roll(&self, dice: &Dice) -> Option<Fault> {
        let rolled = dice.up_to(999);
        let mut below = u64::from(self.before);
        if rolled < below {
            return Some(Fault::Before(StoreErrorKind::Unavailable));
        }
        below += u64::from(self.after);
        if rolled < below {
            return Some(Fault::After(StoreErrorKind::Unavailable));
        }
        below += u64::from(self.cut);
        if rolled < below {
            return Some(Fault::Cut(dice.up_to(1024 * 1024)));
        }
        below += u64::from(self.slow);
        if rolled < below {
            return Some(Fault::Slow(self.factor));
        }
        below += u64::from(self.delay);
        let longest = u64::try_from(self.longest.as_micros()).unwrap_or(u64::MAX);
        (rolled < below).then(|| Fault::Delay(Duration::from_micros(dice.up_to(longest))))
    }
}

/// Ends a stream with `error` after `bytes` bytes.
fn cut(fetched: FetchedStream, bytes: u64, error: StoreError) -> FetchedStream {
    let state = (fetched.stream, bytes, Some(error));
    let stream = stream::unfold(state, |(mut inner, left, mut error)| async move {
        if left == 0 {
            return error.take().map(|e| (Err(e), (inner, 0, None)));
        }
        match inner.next().await? {
            Ok(mut chunk) => {
                chunk.truncate(usize::try_from(left).unwrap_or(usize::MAX));
                let left = left - chunk.len() as u64;
                Some((Ok(chunk), (inner, left, error)))
            }
            Err(real) => Some((Err(real), (inner, 0, None))),
        }
    });
    FetchedStream { meta: fetched.meta, stream: stream.boxed() }
}

#[async_trait]
impl ObjectStore for FaultStore {
    fn url(&self) -> String {
        self.inner.url()
    }

    async fn head(&self, key: &str) -> Result<ObjectMeta, StoreError> {
        self.faulty(Operation::Head, key, self.inner.head(key)).await
    }

    async fn get(&self, key: &str, range: ByteRange) -> Result<Fetched, StoreError> {
        self.faulty(Operation::Get, key, self.inner.get(key, range)).await
    }

    async fn get_stream(&self, key: &str, range: ByteRange) -> Result<FetchedStream, StoreError> {
        let fault = self.next_fault(Operation::GetStream, key);
        let call = self.inner.get_stream(key, range);
        let fetched = self.with_fault(fault, Operation::GetStream, key, call).await?;
        match fault {
            Some(Fault::Cut(bytes)) => {
                Ok(cut(fetched, bytes, self.error(Operation::GetStream, key, StoreErrorKind::Unavailable)))
            }
            _ => Ok(fetched),
        }
    }

    async fn put(&self, key: &str, bytes: Bytes, options: &WriteOptions) -> Result<ObjectMeta, StoreError> {
        self.faulty(Operation::Put, key, self.inner.put(key, bytes, options)).await
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.faulty(Operation::Delete, key, self.inner.delete(key)).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<ListPage, StoreError> {
        self.faulty(Operation::List, prefix, self.inner.list(prefix, after, limit)).await
    }

    async fn create_upload(&self, key: &str, metadata: &BTreeMap<String, String>) -> Result<String, StoreError> {
        self.faulty(Operation::CreateUpload, key, self.inner.create_upload(key, metadata)).await
    }

    async fn put_part(&self, key: &str, upload_id: &str, number: u32, bytes: Bytes) -> Result<PartTag, StoreError> {
        self.faulty(Operation::PutPart, key, self.inner.put_part(key, upload_id, number, bytes)).await
    }

    async fn list_parts(&self, key: &str, upload_id: &str) -> Result<Vec<PartTag>, StoreError> {
        self.faulty(Operation::ListParts, key, self.inner.list_parts(key, upload_id)).await
    }

    async fn complete_upload(
        &self,
        key: &str,
        upload_id: &str,
        parts: &[PartTag],
        mode: WriteMode,
    ) -> Result<ObjectMeta, StoreError> {
        let completing = self.inner.complete_upload(key, upload_id, parts, mode);
        self.faulty(Operation::CompleteUpload, key, completing).await
    }

    async fn abort_upload(&self, key: &str, upload_id: &str) -> Result<(), StoreError> {
        self.faulty(Operation::AbortUpload, key, self.inner.abort_upload(key, upload_id)).await
    }

    async fn list_uploads(&self, prefix: &str, limit: usize) -> Result<Vec<UploadMeta>, StoreError> {
        self.faulty(Operation::ListUploads, prefix, self.inner.list_uploads(prefix, limit)).await
    }

    async fn probe(&self, prefix: &str) -> Result<Capabilities, StoreError> {
        self.faulty(Operation::Probe, prefix, self.inner.probe(prefix)).await
    }

    async fn check(&self) -> Result<(), StoreError> {
        self.faulty(Operation::Check, "", self.inner.check()).await
    }
}

#[cfg(test)]
mod tests;

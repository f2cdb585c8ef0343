//! One layer in front of a store that many people wait for: a limit on calls, a circuit breaker, and second calls for
//! slow reads.
//!
//! It stands inside [`RetryingStore`](super::retrying::RetryingStore) and sees every attempt; below it is
//! [`MeteredStore`](super::metered::MeteredStore), which counts every call, second ones too. Only the retriever has it: a
//! worker has time, and what it writes must not be sent twice.
//!
//! A call goes through it in this order: a place ([`limiter`]), a pass ([`breaker`]), then one call or two
//! ([`hedging`]). Dropping it stops everything it started.

mod breaker;
mod hedging;
mod limiter;
mod metrics;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use prometheus::IntGauge;
use tokio::time::Instant;

use self::breaker::{Breaker, Outcome, Pass, Refusal};
use self::hedging::{Hedging, Kind};
use self::limiter::Limiter;
use self::metrics::StoreGuardMetrics;
use super::call::Operation;
use super::{
    ByteRange, Capabilities, Fetched, FetchedStream, ListPage, ObjectMeta, ObjectStore, PartTag, SharedStore,
    StoreError, StoreErrorKind, UploadMeta, WriteMode, WriteOptions,
};
use crate::clock::Dice;

pub use breaker::BreakerState;
pub use metrics::GuardMetrics;

/// Bytes a second that a store delivers at least: large reads get more time by it.
const SLOWEST_BYTES_PER_S: u64 = 1 << 20;
/// A page of a listing takes as long as a read of so many bytes may.
const LIST_BYTES: u64 = 4 << 20;

/// The rules of a guard.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GuardOptions {
    /// Second calls for each call, 0 (none) to 1.
    pub hedge_share: f64,
    /// Calls at the same time.
    pub calls: usize,
    /// Calls that wait for their turn.
    pub line: usize,
    /// A small read or a listing that was given up unanswered after this long counts as a failure of the store.
    pub slow: Duration,
    /// A small read fails after this long without an answer.
    pub timeout: Duration,
}

impl Default for GuardOptions {
    fn default() -> Self {
        Self {
            hedge_share: 0.03,
            calls: 256,
            line: 1024,
            slow: Duration::from_millis(400),
            timeout: Duration::from_secs(5),
        }
    }
}

/// The state of the guard of one store, shared with whoever wants to know.
pub struct Guard {
    zone: String,
    store: String,
    options: GuardOptions,
    breaker: Breaker,
    limiter: Limiter,
    hedging: Hedging,
    metrics: Arc<StoreGuardMetrics>,
}

impl std::fmt::Debug for Guard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guard").field("zone", &self.zone).field("store", &self.store).finish_non_exhaustive()
    }
}

impl Guard {
    /// Name of the zone and of the store in it.
    pub fn name(&self) -> (&str, &str) {
        (&self.zone, &self.store)
    }

    /// What the breaker does with calls now.
    pub fn breaker(&self) -> BreakerState {
        self.breaker.state()
    }

    /// Whether a call would be let through: the breaker is closed, or wants to find out whether the store is back.
    pub fn would_pass(&self) -> bool {
        self.breaker.would_pass(Instant::now())
    }

    /// Calls the store may get at the same time now.
    pub fn call_limit(&self) -> usize {
        self.limiter.limit()
    }
}

/// One call on its way: what became of it is told the breaker also when it is dropped.
struct Running<'a> {
    guard: &'a Guard,
    pass: Pass,
    began: Instant,
    /// After this long without an answer it is the store's fault.
    slow: Duration,
    settled: bool,
}

impl Running<'_> {
    fn settle(mut self, outcome: Outcome) {
        self.settled = true;
        self.guard.breaker.settle(self.pass, outcome, Instant::now());
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if !self.settled {
            let slow = self.began.elapsed() >= self.slow;
            let outcome = if slow { Outcome::Failed } else { Outcome::Unknown };
            self.guard.breaker.settle(self.pass, outcome, Instant::now());
        }
    }
}

/// A call that wants a place, for the metric.
struct InLine<'a>(&'a IntGauge);

impl<'a> InLine<'a> {
    fn new(waiting: &'a IntGauge) -> Self {
        waiting.inc();
        Self(waiting)
    }
}

impl Drop for InLine<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// A store with a guard.
#[derive(Debug)]
pub struct GuardedStore {
    inner: SharedStore,
    guard: Arc<Guard>,
}

/// What a call is for the guard.
#[derive(Clone, Copy)]
struct Nature<'a> {
    operation: Operation,
    key: &'a str,
    /// Whether it may be sent twice.
    kind: Option<Kind>,
    /// How many bytes it may bring; `None`: it may take as long as it wants.
    bytes: Option<u64>,
}

impl GuardedStore {
    /// Wraps the store called `store` of a zone.
    pub fn new(
        inner: SharedStore,
        (zone, store): (&str, &str),
        options: GuardOptions,
        metrics: &GuardMetrics,
        dice: Arc<Dice>,
    ) -> Self {
        let metrics = Arc::new(metrics.of_store(zone, store));
        metrics.limit.set(i64::try_from(options.calls).unwrap_or(i64::MAX));
        let (told, place) = (metrics.clone(), format!("zone {zone}, store {store}"));
        let changed = move |before: BreakerState, state: BreakerState| {
            told.breaker.set(state.number());
            match (before, state) {
                (BreakerState::Closed, BreakerState::Open) => {
                    told.opened.inc();
                    tracing::warn!("{place}: circuit breaker open");
                }
                (_, BreakerState::Closed) => tracing::info!("{place}: circuit breaker closed"),
                (_, state) => tracing::debug!("{place}: circuit breaker {}", state.label()),
            }
        };
        let guard = Guard {
            zone: zone.to_owned(),
            store: store.to_owned(),
            options,
            breaker: Breaker::new(dice, Box::new(changed)),
            limiter: Limiter::new(options.calls, options.line),
            hedging: Hedging::new(options.hedge_share),
            metrics,
        };
        Self { inner, guard: Arc::new(guard) }
    }

    /// The guard, to look at.
    pub fn guard(&self) -> Arc<Guard> {
        self.guard.clone()
    }

    fn error(&self, nature: &Nature<'_>, kind: StoreErrorKind, message: String) -> StoreError {
        let (operation, key) = (nature.operation.label(), nature.key.to_owned());
        StoreError { kind, operation, url: self.inner.url(), key, message }
    }

    fn refused(&self, nature: &Nature<'_>, why: &Refusal) -> StoreError {
        self.guard.metrics.refused_open.inc();
        let why = match why {
            Refusal::Open(left) => {
                format!("it failed too often and is left alone for {} ms more", left.as_millis())
            }
            Refusal::Probing => "another call is finding out whether it is back".to_owned(),
        };
        self.error(nature, StoreErrorKind::BreakerOpen, why)
    }

    /// A read: at its place and with its pass, sent once or twice.
    async fn read<T, Call, Fut>(&self, nature: Nature<'_>, call: Call) -> Result<T, StoreError>
    where
        Call: Fn() -> Fut + Send + Sync,
        Fut: Future<Output = Result<T, StoreError>> + Send,
        T: Send,
    {
        let racing = async {
            match nature.kind {
                Some(kind) => self.raced(kind, &call).await,
                None => call().await,
            }
        };
        let Some(bytes) = nature.bytes else { return self.once(nature, racing).await };
        let timeout = scaled(self.guard.options.timeout, bytes);
        let timed = async {
            match tokio::time::timeout(timeout, racing).await {
                Ok(answer) => answer,
                Err(_) => {
                    let message = format!("no answer within {} ms", timeout.as_millis());
                    Err(self.error(&nature, StoreErrorKind::Unavailable, message))
                }
            }
        };
        self.once(nature, timed).await
    }

    /// Any call: at its place and with its pass.
    async fn once<T>(
        &self,
        nature: Nature<'_>,
        call: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let guard = &self.guard;
        // Nobody waits in line for what will be refused.
        if let Some(left) = guard.breaker.refused_for(Instant::now()) {
            return Err(self.refused(&nature, &Refusal::Open(left)));
        }
        let in_line = InLine::new(&guard.metrics.waiting);
        let Some(_place) = guard.limiter.enter().await else {
            guard.metrics.refused_line.inc();
            let message = format!("{} calls wait already", guard.options.line);
            return Err(self.error(&nature, StoreErrorKind::Throttled, message));
        };
        drop(in_line);
        let admitted = guard.breaker.admit_within(guard.options.slow).await;
        let pass = admitted.map_err(|why| self.refused(&nature, &why))?;
        let slow = match nature.kind {
            // A page may be long, but a store that is well has begun it by then. While listings are what everybody waits
            // for, they are all that tells of a store that hangs.
            Some(Kind::List) => guard.options.slow,
            _ => scaled(guard.options.slow, nature.bytes.unwrap_or(u64::MAX)),
        };
        let running = Running { guard, pass, began: Instant::now(), slow, settled: false };
        let answer = call.await;
        running.settle(self.heard(&answer));
        answer
    }

    /// What an answer says about the store.
    fn heard<T>(&self, answer: &Result<T, StoreError>) -> Outcome {
        let (guard, limit) = (&self.guard, |limiter: &Limiter| i64::try_from(limiter.limit()).unwrap_or(i64::MAX));
        match answer.as_ref().map_err(|error| error.kind) {
            Ok(_) => {
                if guard.limiter.succeeded() {
                    guard.metrics.limit.set(limit(&guard.limiter));
                }
                Outcome::Alive
            }
            // It is there, and busy: the limiter's matter.
            Err(StoreErrorKind::Throttled) => {
                guard.metrics.slow_downs.inc();
                if guard.limiter.slow_down(Instant::now()) {
                    guard.metrics.limit.set(limit(&guard.limiter));
                    let (zone, store) = guard.name();
                    tracing::warn!("zone {zone}, store {store} asks for fewer calls: {} now", guard.call_limit());
                }
                Outcome::Alive
            }
            Err(StoreErrorKind::Unavailable) => Outcome::Failed,
            Err(_) => Outcome::Alive,
        }
    }

    /// One call, and a second one when the first takes longer than usual and the budget allows it. The first answer
    /// counts; the other call is dropped.
    async fn raced<T, Call, Fut>(&self, kind: Kind, call: &Call) -> Result<T, StoreError>
    where
        Call: Fn() -> Fut,
        Fut: Future<Output = Result<T, StoreError>>,
    {
        let (guard, began) = (&self.guard, Instant::now());
        let delay = guard.hedging.call_began(kind);
        let mut first = pin!(call());
        let Some(mut wait) = delay else {
            let answer = first.await;
            return self.noted(kind, began, answer);
        };
        let mut found_none = false;
        let _place = loop {
            tokio::select! {
                biased;
                answer = &mut first => return self.noted(kind, began, answer),
                () = tokio::time::sleep(wait) => {}
            }
            if let Some(place) = self.may_send_again() {
                break place;
            }
            if !std::mem::replace(&mut found_none, true) {
                guard.metrics.hedges_over_budget.inc();
            }
            wait *= 2;
        };
        guard.metrics.hedges_sent.inc();
        let mut second = pin!(call());
        let (mut answer, was_second) = tokio::select! {
            biased;
            answer = &mut first => (answer, false),
            answer = &mut second => (answer, true),
        };
        if answer.as_ref().is_err_and(|error| error.kind.is_transient()) {
            answer = if was_second { first.await } else { second.await };
        } else if was_second {
            guard.metrics.hedges_won.inc();
        }
        self.noted(kind, began, answer)
    }

    /// A place for a second call, when budget and limit have one. A store that asked for fewer calls gets none.
    fn may_send_again(&self) -> Option<limiter::Place<'_>> {
        if self.guard.limiter.is_cut() {
            return None;
        }
        let place = self.guard.limiter.try_enter()?;
        self.guard.hedging.spend().then_some(place)
    }

    fn noted<T>(&self, kind: Kind, began: Instant, answer: Result<T, StoreError>) -> Result<T, StoreError> {
        if answer.is_ok() {
            self.guard.hedging.call_took(kind, began.elapsed());
        }
        answer
    }

    fn nature(operation: Operation, key: &str, kind: Option<Kind>, bytes: Option<u64>) -> Nature<'_> {
        Nature { operation, key, kind, bytes }
    }

    /// A write, or what else is neither sent twice nor cut off.
    async fn write<T>(
        &self,
        operation: Operation,
        key: &str,
        call: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        self.once(Self::nature(operation, key, None, None), call).await
    }
}

/// A time for small reads, for one of so many bytes.
fn scaled(time: Duration, bytes: u64) -> Duration {
    time.saturating_add(Duration::from_millis(bytes.saturating_mul(1000) / SLOWEST_BYTES_PER_S))
}

#[async_trait]
impl ObjectStore for GuardedStore {
    fn url(&self) -> String {
        self.inner.url()
    }

    async fn head(&self, key: &str) -> Result<ObjectMeta, StoreError> {
        let nature = Self::nature(Operation::Head, key, Some(Kind::Head), Some(0));
        self.read(nature, || self.inner.head(key)).await
    }

    async fn get(&self, key: &str, range: ByteRange) -> Result<Fetched, StoreError> {
        let nature = Self::nature(Operation::Get, key, Kind::of_read(&range), hedging::length(&range));
        self.read(nature, || self.inner.get(key, range.clone())).await
    }

    /// Only the beginning is guarded: whoever reads the stream sets its pace.
    async fn get_stream(&self, key: &str, range: ByteRange) -> Result<FetchedStream, StoreError> {
        let nature = Self::nature(Operation::GetStream, key, Some(Kind::Stream), Some(0));
        self.read(nature, || self.inner.get_stream(key, range.clone())).await
    }

    async fn put(&self, key: &str, bytes: Bytes, options: &WriteOptions) -> Result<ObjectMeta, StoreError> {
        self.write(Operation::Put, key, self.inner.put(key, bytes, options)).await
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.write(Operation::Delete, key, self.inner.delete(key)).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<ListPage, StoreError> {
        let nature = Self::nature(Operation::List, prefix, Some(Kind::List), Some(LIST_BYTES));
        self.read(nature, || self.inner.list(prefix, after, limit)).await
    }

    async fn create_upload(&self, key: &str, metadata: &BTreeMap<String, String>) -> Result<String, StoreError> {
        self.write(Operation::CreateUpload, key, self.inner.create_upload(key, metadata)).await
    }

    async fn put_part(&self, key: &str, upload_id: &str, number: u32, bytes: Bytes) -> Result<PartTag, StoreError> {
        self.write(Operation::PutPart, key, self.inner.put_part(key, upload_id, number, bytes)).await
    }

    async fn list_parts(&self, key: &str, upload_id: &str) -> Result<Vec<PartTag>, StoreError> {
        self.write(Operation::ListParts, key, self.inner.list_parts(key, upload_id)).await
    }

    async fn complete_upload(
        &self,
        key: &str,
        upload_id: &str,
        parts: &[PartTag],
        mode: WriteMode,
    ) -> Result<ObjectMeta, StoreError> {
        let completing = self.inner.complete_upload(key, upload_id, parts, mode);
        self.write(Operation::CompleteUpload, key, completing).await
    }

    async fn abort_upload(&self, key: &str, upload_id: &str) -> Result<(), StoreError> {
        self.write(Operation::AbortUpload, key, self.inner.abort_upload(key, upload_id)).await
    }

    async fn list_uploads(&self, prefix: &str, limit: usize) -> Result<Vec<UploadMeta>, StoreError> {
        self.write(Operation::ListUploads, prefix, self.inner.list_uploads(prefix, limit)).await
    }

    async fn probe(&self, prefix: &str) -> Result<Capabilities, StoreError> {
        self.inner.probe(prefix).await
    }

    /// Asks the store whatever the breaker says: readiness wants to know how it is now. Where the breaker waits for a
    /// probe, this is one.
    async fn check(&self) -> Result<(), StoreError> {
        let pass = self.guard.breaker.admit(Instant::now()).ok();
        let slow = self.guard.options.slow;
        let running =
            pass.map(|pass| Running { guard: &self.guard, pass, began: Instant::now(), slow, settled: false });
        let answer = self.inner.check().await;
        match running {
            Some(running) => running.settle(self.heard(&answer)),
            None if answer.is_ok() => self.guard.breaker.seen_alive(Instant::now()),
            None => {}
        }
        answer
    }
}

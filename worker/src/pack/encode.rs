//! Compression on blocking threads. An encoder is made once for each thread that is busy at the same time and used
//! again, for other shards too; its output depends on nothing but options, dictionary and file.
//!
//! A batch of files lies in one buffer, back to back, and what is stored of them takes their place: it is never more.

use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use des_shared::offload::{has_other_threads, offload};
use des_shared::segment::{PackOptions, Segment};
use des_shared::shard::{Encoder, PackDictionary};
use nix::sys::resource::{UsageWho, getrusage};
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinError;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::FileFailure;
use super::feed::{Ready, failed};
use crate::budget::Budget;
use crate::buffer::Pooled;
use crate::error::PackError;
use crate::source::{LocalFiles, SourceError};

/// Files are waited for when the thread that reads them had to wait once for so many.
const FILES_A_WAIT: usize = 8;
/// A batch whose files are in memory is read in a fraction of this.
const IN_MEMORY: Duration = Duration::from_millis(10);

/// Files as they will be stored.
#[derive(Debug)]
pub(crate) struct Cooked {
    /// What became of each, in packing order.
    pub(crate) files: Vec<Ready>,
    /// The stored bytes of those that are in the shard, back to back in the same order.
    pub(crate) bytes: Pooled,
    /// How long they took to compress.
    pub(crate) time: Duration,
}

/// A batch of small files of a segment.
#[derive(Clone)]
pub(crate) struct Small {
    pub(crate) segment: Arc<Segment>,
    /// Positions in its list, in packing order.
    pub(crate) positions: Vec<u32>,
    /// Sum of the files' sizes.
    pub(crate) bytes: u64,
}

/// The encoders of one shard.
#[derive(Clone)]
pub(crate) struct Encoders {
    options: Arc<PackOptions>,
    dictionary: Option<Arc<PackDictionary>>,
    budget: Budget,
}

impl Encoders {
    pub(crate) fn new(options: &PackOptions, dictionary: Option<Vec<u8>>, budget: &Budget) -> Result<Self, PackError> {
        let dictionary = dictionary.map(|bytes| PackDictionary::new(bytes, options.level)).transpose()?.map(Arc::new);
        let all = Self { options: Arc::new(options.clone()), dictionary, budget: budget.clone() };
        // Made here so that options which cannot work fail before anything is read.
        let first = all.encoder()?;
        all.give_back(first);
        Ok(all)
    }

    pub(crate) fn dictionary(&self) -> Option<&[u8]> {
        self.dictionary.as_ref().map(|dictionary| dictionary.bytes())
    }

    fn encoder(&self) -> Result<Encoder, PackError> {
        Ok(match self.budget.shelf().take(&self.options) {
            Some(mut encoder) => {
                encoder.set_dictionary(self.dictionary.clone())?;
                encoder
            }
            None => Encoder::new(&self.options, self.dictionary.clone())?,
        })
    }

    fn give_back(&self, encoder: Encoder) {
        self.budget.shelf().put(&self.options, encoder);
    }

    /// Reads files of folders and compresses them on the same thread, while they are in the processor's cache. Files that
    /// the system has in memory are read by those that compress only: more at the same time take each other's place. Files
    /// that are waited for are read by many, and keep nobody from compressing.
    pub(crate) async fn read_and_encode(&self, small: Small, local: LocalFiles) -> Result<Cooked, PackError> {
        let reader = self.budget.reader().await;
        let permit = Permit::default();
        if has_other_threads() && !self.budget.is_waiting() {
            permit.put(self.budget.thread().await);
        }
        let kept = permit.clone();
        let cooking = self.cook(small, move |encoders, small, cancelled| {
            let before = times_waited();
            let mut from = local.reader();
            let mut source = String::new();
            let raw = encoders.gather(small, cancelled, |at, out| {
                source.clear();
                small.segment.files.source(at).push_to(&mut source);
                from.read(&source, small.segment.files.size_bytes(at), out)
            });
            let waited = times_waited().saturating_sub(before);
            encoders.budget.waited(waited >= (small.positions.len() / FILES_A_WAIT).max(1));
            drop(reader);
            Ok((raw?, kept.take()))
        });
        permit.lend(cooking).await
    }

    /// Compresses files that were read already, one answer for each.
    pub(crate) async fn encode(
        &self,
        small: Small,
        answers: Vec<Result<Bytes, SourceError>>,
    ) -> Result<Cooked, PackError> {
        if answers.len() != small.positions.len() {
            let message = format!("{} answers for {} files", answers.len(), small.positions.len());
            return Err(PackError::Sources(message));
        }
        let mut answers = answers.into_iter();
        self.cook(small, move |encoders, small, cancelled| {
            let raw = encoders.gather(small, cancelled, |_, out| {
                let bytes = answers.next().unwrap_or_else(|| Err(SourceError::Worker("no answer".to_owned())))?;
                out.extend_from_slice(&bytes);
                Ok(())
            })?;
            Ok((raw, None))
        })
        .await
    }

    /// Gathers files and compresses them, both on one blocking thread. `gather` gives the permit with them if it has it.
    async fn cook(
        &self,
        small: Small,
        gather: impl FnOnce(&Self, &Small, &CancellationToken) -> Result<(Raw, Option<OwnedSemaphorePermit>), PackError>
        + Send
        + 'static,
    ) -> Result<Cooked, PackError> {
        let this = self.clone();
        // A blocking thread cannot be dropped: it looks whether anybody still waits for its answer.
        let unwanted = CancellationToken::new();
        let _until_dropped = unwanted.clone().drop_guard();
        offload(move || {
            let (raw, thread) = gather(&this, &small, &unwanted)?;
            let _thread = thread.unwrap_or_else(|| this.budget.thread_here());
            this.compress(&small, raw, &unwanted)
        })
        .await
    }

    /// Puts files back to back into a buffer. `fetch` appends one.
    fn gather(
        &self,
        small: &Small,
        unwanted: &CancellationToken,
        mut fetch: impl FnMut(u32, &mut Vec<u8>) -> Result<(), SourceError>,
    ) -> Result<Raw, PackError> {
        let room = small.bytes.saturating_add(1) as usize;
        let bytes = self.budget.batches().take(room);
        let mut bytes = bytes.map_err(|e| PackError::Setup(format!("no memory for {room} bytes of files: {e}")))?;
        let mut files = Vec::with_capacity(small.positions.len());
        for &at in &small.positions {
            if unwanted.is_cancelled() {
                return Err(PackError::Draining);
            }
            let start = bytes.len();
            files.push(match fetch(at, &mut bytes) {
                Ok(()) => Ok((at, bytes.len() - start)),
                Err(error) => Err(failed(at, error)?),
            });
        }
        Ok(Raw { files, bytes })
    }

    /// Compresses gathered files where they lie.
    fn compress(&self, small: &Small, raw: Raw, unwanted: &CancellationToken) -> Result<Cooked, PackError> {
        let began = Instant::now();
        let mut encoder = self.encoder()?;
        let Raw { files, mut bytes } = raw;
        let mut ready = Vec::with_capacity(files.len());
        let (mut from, mut to) = (0, 0);
        let mut uid = String::new();
        for file in files {
            let (file, len) = match file {
                Ok(found) => found,
                Err(failure) => {
                    ready.push(Ready::Failed(failure));
                    continue;
                }
            };
            uid.clear();
            small.segment.files.uid(file).push_to(&mut uid);
            let encoded = encoder.encode_unless(&uid, &bytes[from..from + len], &|| unwanted.is_cancelled())?;
            let Some(encoded) = encoded else { return Err(PackError::Draining) };
            let info = encoded.info;
            match encoded.compressed {
                None if from == to => {}
                None => bytes.copy_within(from..from + len, to),
                Some(stored) => bytes[to..to + stored.len()].copy_from_slice(stored),
            }
            ready.push(Ready::Inline { file, info });
            (from, to) = (from + len, to + info.stored_len as usize);
        }
        bytes.truncate(to);
        self.give_back(encoder);
        Ok(Cooked { files: ready, bytes, time: began.elapsed() })
    }
}

/// Files as they were read: each a position with its length, or why there is nothing of it.
struct Raw {
    files: Vec<Result<(u32, usize), FileFailure>>,
    bytes: Pooled,
}

/// How often this thread gave up its core because it could not go on.
fn times_waited() -> usize {
    // Whoever cannot know reads as if all files were in memory.
    let usage = getrusage(UsageWho::RUSAGE_THREAD).ok();
    usage.and_then(|usage| usize::try_from(usage.voluntary_context_switches()).ok()).unwrap_or(0)
}

/// A permit that can be taken from whoever holds it.
#[derive(Clone, Default)]
struct Permit(Arc<Mutex<Option<OwnedSemaphorePermit>>>);

impl Permit {
    fn put(&self, permit: OwnedSemaphorePermit) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(permit);
    }

    fn take(&self) -> Option<OwnedSemaphorePermit> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Waits for the work that holds it, and takes it away when that has it for longer than files in memory need: from a
    /// share that hangs no word comes that it does.
    async fn lend<T>(&self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        tokio::select! {
            biased;
            done = &mut work => return done,
            () = sleep(IN_MEMORY) => drop(self.take()),
        }
        work.await
    }
}

/// The answer of a task. Its panic becomes this task's, which its owner turns into a failed attempt.
pub(crate) async fn join_blocking<T>(handle: impl Future<Output = Result<T, JoinError>>) -> T {
    match handle.await {
        Ok(answer) => answer,
        Err(e) if e.is_panic() => std::panic::resume_unwind(e.into_panic()),
        // Only a runtime that is shutting down cancels it.
        Err(e) => panic!("a task was cancelled: {e}"),
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::{Semaphore, oneshot};

    use super::*;

    #[tokio::test]
    async fn a_permit_is_taken_from_whoever_waits_for_files() {
        let places = Arc::new(Semaphore::new(1));
        let permit = Permit::default();
        permit.put(Arc::clone(&places).acquire_owned().await.unwrap());
        let (files, hung) = oneshot::channel::<()>();
        let kept = permit.clone();
        let reading = tokio::spawn(async move {
            permit.lend(async { hung.await.unwrap() }).await;
        });
        let began = Instant::now();
        let other = tokio::time::timeout(Duration::from_secs(10), places.acquire()).await.unwrap().unwrap();
        assert!(began.elapsed() >= IN_MEMORY);
        files.send(()).unwrap();
        reading.await.unwrap();
        assert!(kept.take().is_none());
        drop(other);
    }

    #[tokio::test]
    async fn whoever_is_quick_keeps_the_permit_until_the_end() {
        let places = Arc::new(Semaphore::new(1));
        let permit = Permit::default();
        permit.put(Arc::clone(&places).acquire_owned().await.unwrap());
        let kept = permit.clone();
        let slow = async move {
            let mine = kept.take();
            sleep(2 * IN_MEMORY).await;
            mine.is_some()
        };
        assert!(permit.lend(slow).await);
        assert_eq!(places.available_permits(), 1);
    }

    #[test]
    fn waiting_is_counted() {
        let (_silent, nothing) = std::sync::mpsc::channel::<()>();
        let before = times_waited();
        for _ in 0..10 {
            nothing.recv_timeout(Duration::from_millis(1)).unwrap_err();
        }
        let waited = times_waited() - before;
        assert!((10..1000).contains(&waited), "{waited}");
    }
}

//! Compression on blocking threads. An encoder is made once for each thread that is busy at the same time and used
//! again, for other shards too; its output depends on nothing but options, dictionary and file.
//!
//! A batch of files lies in one buffer, back to back, and what is stored of them takes their place: it is never more.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use des_shared::offload::offload;
use des_shared::segment::{PackOptions, Segment};
use des_shared::shard::{Encoder, PackDictionary};
use tokio::task::JoinError;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::FileFailure;
use super::feed::{Ready, failed};
use crate::budget::Budget;
use crate::buffer::Pooled;
use crate::error::PackError;
use crate::source::{LocalFiles, SourceError};

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
        Ok(match self.budget.encoders().take(&self.options) {
            Some(mut encoder) => {
                encoder.set_dictionary(self.dictionary.clone())?;
                encoder
            }
            None => Encoder::new(&self.options, self.dictionary.clone())?,
        })
    }

    fn give_back(&self, encoder: Encoder) {
        self.budget.encoders().put(&self.options, encoder);
    }

    /// Reads files of folders and compresses them on the same thread, while they are in the processor's cache.
    pub(crate) async fn read_and_encode(&self, small: Small, local: LocalFiles) -> Result<Cooked, PackError> {
        let reader = self.budget.reader().await;
        self.cook(small, move |encoders, small, cancelled| {
            let mut from = local.reader();
            let mut source = String::new();
            let raw = encoders.gather(small, cancelled, |at, out| {
                source.clear();
                small.segment.files.source(at).push_to(&mut source);
                from.read(&source, small.segment.files.size_bytes(at), out)
            });
            drop(reader);
            raw
        })
        .await
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
            encoders.gather(small, cancelled, |_, out| {
                let bytes = answers.next().unwrap_or_else(|| Err(SourceError::Worker("no answer".to_owned())))?;
                out.extend_from_slice(&bytes);
                Ok(())
            })
        })
        .await
    }

    /// Gathers files and compresses them, both on one blocking thread.
    async fn cook(
        &self,
        small: Small,
        gather: impl FnOnce(&Self, &Small, &CancellationToken) -> Result<Raw, PackError> + Send + 'static,
    ) -> Result<Cooked, PackError> {
        let this = self.clone();
        // A blocking thread cannot be dropped: it looks whether anybody still waits for its answer.
        let unwanted = CancellationToken::new();
        let _until_dropped = unwanted.clone().drop_guard();
        offload(move || {
            let raw = gather(&this, &small, &unwanted)?;
            let _thread = this.budget.thread_here();
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

/// The answer of a task. Its panic becomes this task's, which its owner turns into a failed attempt.
pub(crate) async fn join_blocking<T>(handle: impl Future<Output = Result<T, JoinError>>) -> T {
    match handle.await {
        Ok(answer) => answer,
        Err(e) if e.is_panic() => std::panic::resume_unwind(e.into_panic()),
        // Only a runtime that is shutting down cancels it.
        Err(e) => panic!("a task was cancelled: {e}"),
    }
}

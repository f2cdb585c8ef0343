//! Compression on blocking threads. An encoder is made once for each thread that is busy at the same time and used
//! again; its output depends on nothing but options, dictionary and file.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use des_shared::offload::offload;
use des_shared::segment::{PackOptions, Segment};
use des_shared::shard::{Encoder, PackDictionary, PayloadInfo};
use tokio::task::JoinError;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::budget::Budget;
use crate::error::PackError;

/// An encoder that had a larger file is not kept: making another costs less than the file did.
const LARGE_FILE_BYTES: usize = 2 << 20;

/// One file as it will be stored.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) info: PayloadInfo,
    pub(crate) bytes: Bytes,
}

/// The encoders of one shard.
#[derive(Clone)]
pub(crate) struct Encoders {
    options: PackOptions,
    dictionary: Option<Arc<PackDictionary>>,
    idle: Arc<Mutex<Vec<Encoder>>>,
    budget: Budget,
}

impl Encoders {
    pub(crate) fn new(options: &PackOptions, dictionary: Option<Vec<u8>>, budget: &Budget) -> Result<Self, PackError> {
        let dictionary = dictionary.map(|bytes| PackDictionary::new(bytes, options.level)).transpose()?.map(Arc::new);
        let all = Self { options: options.clone(), dictionary, idle: Arc::default(), budget: budget.clone() };
        // Made here so that options which cannot work fail before anything is read.
        let first = all.encoder()?;
        all.give_back(first);
        Ok(all)
    }

    pub(crate) fn dictionary(&self) -> Option<&[u8]> {
        self.dictionary.as_ref().map(|dictionary| dictionary.bytes())
    }

    fn encoder(&self) -> Result<Encoder, PackError> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        Ok(match idle {
            Some(encoder) => encoder,
            None => Encoder::new(&self.options, self.dictionary.clone())?,
        })
    }

    fn give_back(&self, encoder: Encoder) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(encoder);
    }

    /// Compresses files, each a position in the segment's list with its bytes. Also says how long it took.
    pub(crate) async fn encode(
        &self,
        segment: &Arc<Segment>,
        files: Vec<(u32, Bytes)>,
    ) -> Result<(Vec<(u32, Stored)>, Duration), PackError> {
        let thread = self.budget.thread().await;
        let (this, segment) = (self.clone(), Arc::clone(segment));
        // A blocking thread cannot be dropped: it looks whether anybody still waits for its answer.
        let unwanted = CancellationToken::new();
        let _until_dropped = unwanted.clone().drop_guard();
        let work = move || {
            let _thread = thread;
            let began = Instant::now();
            let mut encoder = this.encoder()?;
            let largest = files.iter().map(|(_, raw)| raw.len()).max().unwrap_or(0);
            let mut stored = Vec::with_capacity(files.len());
            for (file, raw) in files {
                let uid = segment.files.at(file).uid();
                let encoded = encoder.encode_unless(uid.as_str(), &raw, &|| unwanted.is_cancelled())?;
                let Some(encoded) = encoded else { return Err(PackError::Draining) };
                let info = encoded.info;
                let bytes = match encoded.bytes {
                    std::borrow::Cow::Borrowed(_) => raw,
                    std::borrow::Cow::Owned(bytes) => bytes.into(),
                };
                stored.push((file, Stored { info, bytes }));
            }
            // Its buffer is as large as the largest file it had.
            if largest <= LARGE_FILE_BYTES {
                this.give_back(encoder);
            }
            Ok((stored, began.elapsed()))
        };
        offload(work).await
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

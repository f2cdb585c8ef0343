//! From an index entry to the file's bytes, in bounded memory.
//!
//! Whatever is read for an answer is paid for from a budget first and given back when the last byte has been sent.
//! Small files have a budget of their own, so that slow readers of large ones do not hold them up.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use des_shared::archive::{ArchiveError, offload, open_big_file};
use des_shared::job::MAX_INLINE_BYTES;
use des_shared::shard::{Codec, Decoder, Inline, ShardError};
use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::cache::{PayloadKey, Payloads};
use crate::error::Error;
use crate::locate::Located;
use crate::metrics::{CacheKind, RetrieverMetrics};
use crate::places::Replica;

/// Bytes of one permit of the budgets.
const UNIT: u64 = 1024;
/// Answers up to this many bytes are small.
const SMALL_BYTES: u64 = 256 * 1024;
/// Budgets in bytes. Together with the tails and blocks being read they stay below 100 MiB beside the cache.
const SMALL_BUDGET: u64 = 8 << 20;
const LARGE_BUDGET: u64 = 32 << 20;
/// What a stream of a big file holds at a time: two pieces, and what the connection has buffered.
pub(crate) const STREAM_BYTES: u64 = 1 << 20;
/// How long a request waits for its share.
const PATIENCE: Duration = Duration::from_secs(10);
/// A file from the cache costs nothing up to this size. A larger one is paid for: it may leave the cache while a slow
/// client still holds it.
const FREE_BYTES: usize = 16 * 1024;
/// Decoders kept for the next file; each takes some 100 KiB.
const IDLE_DECODERS: usize = 16;

/// Reads payloads.
pub(crate) struct Fetcher {
    small: Arc<Semaphore>,
    large: Arc<Semaphore>,
    decoders: Mutex<Vec<Decoder>>,
    payloads: Payloads,
    metrics: RetrieverMetrics,
}

/// Bytes together with the share of the budget that they take.
struct Paid {
    bytes: Bytes,
    _permit: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Paid {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// How an inline file is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Form {
    /// The file's own bytes.
    Raw,
    /// The stored frame.
    Stored,
}

impl Fetcher {
    /// With a cache of `cache_bytes` for files.
    pub(crate) fn new(cache_bytes: u64, metrics: RetrieverMetrics) -> Self {
        let budget = |bytes: u64| Arc::new(Semaphore::new((bytes / UNIT) as usize));
        Self {
            small: budget(SMALL_BUDGET),
            large: budget(LARGE_BUDGET),
            decoders: Mutex::new(Vec::with_capacity(IDLE_DECODERS)),
            payloads: Payloads::new(cache_bytes, metrics.clone()),
            metrics,
        }
    }

    /// A share of the budget for `bytes` bytes, held until it is dropped.
    pub(crate) async fn pay(&self, bytes: u64) -> Result<OwnedSemaphorePermit, Error> {
        let (budget, most) =
            if bytes <= SMALL_BYTES { (&self.small, SMALL_BUDGET) } else { (&self.large, LARGE_BUDGET) };
        // One answer larger than the whole budget gets all of it.
        let units = u32::try_from(bytes.min(most).div_ceil(UNIT)).expect("the budgets are small");
        match tokio::time::timeout(PATIENCE, budget.clone().acquire_many_owned(units)).await {
            Ok(permit) => Ok(permit.expect("never closed")),
            Err(_) => Err(Error::Busy),
        }
    }

    /// The bytes of an inline file, checked. They hold their share of the budget until they are dropped, unless they are
    /// few and in the cache.
    pub(crate) async fn inline(
        &self,
        replica: &Replica,
        located: &Located,
        inline: Inline,
        form: Form,
    ) -> Result<Bytes, Error> {
        let largest = inline.raw_len.max(inline.stored_len);
        if largest > MAX_INLINE_BYTES {
            let uid = located.entry.uid.chars().take(200).collect();
            return Err(Error::TooLarge { uid, bytes: largest, limit: MAX_INLINE_BYTES });
        }
        let kept = if form == Form::Raw { inline.raw_len } else { inline.stored_len };
        if !self.payloads.takes(kept) {
            let (bytes, mut permit) = self.read(replica, located, inline, form).await?;
            // The stored bytes are gone by now.
            let surplus = permit.num_permits().saturating_sub(kept.div_ceil(UNIT) as usize);
            drop(permit.split(surplus));
            return Ok(Bytes::from_owner(Paid { bytes, _permit: permit }));
        }
        let key = PayloadKey { object: located.object.clone(), inline, form };
        // What the cache keeps takes no share of the budget, which is for what is on its way.
        let load = move || async move { self.read(replica, located, inline, form).await.map(|(bytes, _)| bytes) };
        let bytes = self.payloads.get(key, load).await?;
        if bytes.len() <= FREE_BYTES {
            return Ok(bytes);
        }
        let permit = self.pay(bytes.len() as u64).await?;
        Ok(Bytes::from_owner(Paid { bytes, _permit: permit }))
    }

    /// What the cache has of a file, in whatever form; nothing is read, and nothing is kept that was not.
    pub(crate) async fn kept(&self, located: &Located, inline: Inline) -> Option<(Form, Bytes)> {
        let forms = [(Form::Raw, inline.raw_len), (Form::Stored, inline.stored_len)];
        if !forms.iter().any(|(_, bytes)| self.payloads.takes(*bytes)) {
            return None;
        }
        let mut found = None;
        for (form, _) in forms {
            let key = PayloadKey { object: located.object.clone(), inline, form };
            found = self.payloads.kept(&key).await.map(|bytes| (form, bytes));
            if found.is_some() {
                break;
            }
        }
        self.metrics.cache_asked(CacheKind::Payload, found.is_some());
        found
    }

    /// Reads and checks a file, with what it takes of the budget meanwhile.
    async fn read(
        &self,
        replica: &Replica,
        located: &Located,
        inline: Inline,
        form: Form,
    ) -> Result<(Bytes, OwnedSemaphorePermit), Error> {
        let decoded = form == Form::Raw && inline.codec != Codec::None;
        let permit = self.pay(inline.stored_len + if decoded { inline.raw_len } else { 0 }).await?;
        let wrap = |e: ArchiveError| Error::at_zone(&replica.zone, e);
        let stored = located.shard.read_stored(&located.entry).await.map_err(wrap)?;
        let bytes = match form {
            Form::Stored => stored,
            Form::Raw => self.decode(located, stored).await.map_err(|e| wrap(located.shard.damaged(e)))?,
        };
        Ok((bytes, permit))
    }

    /// The bytes of an inline file out of its stored ones.
    pub(crate) async fn decode(&self, located: &Located, stored: Bytes) -> Result<Bytes, ShardError> {
        let began = Instant::now();
        let mut decoder = match self.idle().pop() {
            Some(decoder) => decoder,
            None => Decoder::new()?.with_max_raw_len(MAX_INLINE_BYTES),
        };
        let (entry, dictionary) = (located.entry.clone(), located.shard.dictionary().cloned());
        let work = stored.len() as u64 + entry.raw_len();
        let (decoder, raw) = offload(work, move || {
            let raw = decoder.decode(&entry, stored, dictionary.as_deref());
            (decoder, raw)
        })
        .await;
        let mut idle = self.idle();
        if idle.len() < IDLE_DECODERS {
            idle.push(decoder);
        }
        drop(idle);
        self.metrics.decompressed(began.elapsed());
        raw
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Decoder>> {
        // A panic cannot leave a list of decoders half changed.
        self.decoders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The bytes of a big file, which end in an error when they are not those of its hash.
    pub(crate) async fn big_file(
        &self,
        replica: &Replica,
        prefix: &str,
        sha256: [u8; 32],
        size: u64,
    ) -> Result<BoxStream<'static, Result<Bytes, ArchiveError>>, Error> {
        let permit = self.pay(STREAM_BYTES.min(size)).await?;
        let opened = open_big_file(&replica.source, prefix, sha256, size).await;
        let stream = opened.map_err(|e| Error::at_zone(&replica.zone, e))?.stream;
        let paid = stream.map(move |chunk| {
            // Held as long as the stream.
            let _ = &permit;
            chunk
        });
        Ok(paid.boxed())
    }
}

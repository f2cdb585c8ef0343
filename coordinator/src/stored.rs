//! The manifest as it lies in the state store.

use std::io;

use bytes::Bytes;
use des_shared::job::JobRecord;
use des_shared::layout;
use des_shared::store::{ByteRange, StoreError};

use crate::Core;
use crate::error::Error;
use crate::pipe::PipeWriter;
use crate::upload::is_missing;

/// Bytes of a manifest read from the state store at once.
const CHUNK_BYTES: u64 = 4 << 20;
/// Times the store has to say that a manifest is not there, a tick apart, before it is believed.
const FIRM: u32 = 3;

impl Core {
    /// Reads the stored manifest piece by piece: each piece is a call of its own that the store's retries cover.
    pub(crate) async fn feed_manifest(&self, record: &JobRecord, writer: PipeWriter) {
        let mut at = 0;
        while at < record.manifest_bytes {
            match self.manifest_chunk(record, at).await {
                Ok(chunk) => {
                    at += chunk.len() as u64;
                    if writer.chunk(chunk).await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    // When the reader is gone it has an error of its own to tell.
                    let _gone = writer.fail(io::Error::other(error)).await;
                    return;
                }
            }
        }
        let _gone = writer.end().await;
    }

    /// The piece of the manifest that begins at `at`.
    pub(crate) async fn manifest_chunk(&self, record: &JobRecord, at: u64) -> Result<Bytes, StoreError> {
        let range = ByteRange::Span(at..record.manifest_bytes.min(at + CHUNK_BYTES));
        Ok(self.state().objects().get(&layout::manifest(record.id), range).await?.bytes)
    }

    /// Why the manifest can never be planned: it is not there any more, or not what was accepted. `None` when it is
    /// as it should be. Whatever the store is unsure of is an error, and the job waits.
    pub(crate) async fn manifest_is_gone(&self, record: &JobRecord) -> Result<Option<String>, Error> {
        let key = layout::manifest(record.id);
        let advice = "something other than DES changed the state store; submit the manifest again as a new job";
        let mut gone = None;
        for asked in 0..FIRM {
            if asked > 0 {
                tokio::time::sleep(self.config.limits.tick).await;
            }
            gone = match self.state().objects().head(&key).await {
                Ok(meta) if meta.size == record.manifest_bytes => return Ok(None),
                Ok(meta) => Some(format!(
                    "its manifest ({key}) has {} bytes in the state store, and {} were accepted: {advice}",
                    meta.size, record.manifest_bytes
                )),
                Err(e) if is_missing(&e) => {
                    // A store that has lost everything, or is another one, is not believed.
                    self.state().objects().check().await?;
                    self.job_record(record.id).await?;
                    Some(format!("its manifest ({key}) is not in the state store any more: {advice}"))
                }
                Err(e) => return Err(e.into()),
            };
        }
        Ok(gone)
    }
}

//! Big files: objects of their own, named by the SHA-256 of their bytes, beside the shard.
//!
//! The name must be known before the first byte is written, so a big file is read twice: to hash it, and to upload it.
//! What is uploaded is hashed again before it gets its name, so an object under a hash always has that hash.

use std::collections::BTreeMap;

use bytes::Bytes;
use des_shared::layout;
use des_shared::receipt::FailureReason;
use des_shared::segment::SegmentFile;
use des_shared::store::{
    MAX_PARTS, ObjectMeta, PartTag, SharedStore, StoreError, StoreErrorKind, WriteMode, WriteOptions,
};
use sha2::{Digest, Sha256};
use tokio_util::task::AbortOnDropHandle;

use crate::buffer;
use crate::error::PackError;
use crate::pack::join_blocking;
use crate::source::{SourceError, SourceOpener};
use crate::vitals::Vitals;

/// The most bytes a source gives at once.
const MAX_CHUNK_BYTES: usize = 1 << 20;
/// How often an upload that vanished is begun again.
const TRIES: u32 = 3;

/// A big file that is in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BigFile {
    pub(crate) sha256: [u8; 32],
    pub(crate) size: u64,
}

/// Either side can fail, with different consequences.
enum Failure {
    Source(SourceError),
    Pack(PackError),
}

impl From<SourceError> for Failure {
    fn from(error: SourceError) -> Self {
        Self::Source(error)
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Pack(error.into())
    }
}

/// A big file on its way into the store.
pub(crate) struct Target<'a> {
    pub(crate) sources: &'a dyn SourceOpener,
    pub(crate) file: &'a SegmentFile,
    pub(crate) store: &'a SharedStore,
    pub(crate) prefix: &'a str,
    pub(crate) part_bytes: usize,
    pub(crate) vitals: &'a Vitals,
}

impl Target<'_> {
    /// Puts the file into the store unless it is there already. The inner error is one of the source.
    pub(crate) async fn store(&self) -> Result<Result<BigFile, SourceError>, PackError> {
        let at_once = self.file.size_bytes <= self.part_bytes as u64;
        let outcome = if at_once { self.at_once().await } else { self.in_parts().await };
        match outcome {
            Ok(big) => Ok(Ok(big)),
            Err(Failure::Source(e)) => Ok(Err(e)),
            Err(Failure::Pack(e)) => Err(e),
        }
    }

    /// A file that fits into one part is read once.
    async fn at_once(&self) -> Result<BigFile, Failure> {
        let mut answers = self.sources.read(vec![self.file.clone()]).await;
        let bytes = answers.pop().unwrap_or_else(|| Err(SourceError::Worker("a read gave no answer".to_owned())))?;
        let sha256 = Sha256::digest(&bytes).into();
        let key = layout::bigfile_key(self.prefix, &sha256);
        match self.store.put(&key, bytes, &WriteOptions::create_only()).await {
            Ok(_) => {}
            Err(e) if e.kind == StoreErrorKind::AlreadyExists => {
                self.check_size(&self.store.head(&key).await?)?;
            }
            Err(e) => return Err(e.into()),
        }
        Ok(BigFile { sha256, size: self.file.size_bytes })
    }

    async fn in_parts(&self) -> Result<BigFile, Failure> {
        let sha256 = self.hash().await?;
        let key = layout::bigfile_key(self.prefix, &sha256);
        match self.store.head(&key).await {
            Ok(meta) => self.check_size(&meta)?,
            Err(e) if e.kind == StoreErrorKind::NotFound => self.upload(&key, &sha256).await?,
            Err(e) => return Err(e.into()),
        }
        Ok(BigFile { sha256, size: self.file.size_bytes })
    }

    fn check_size(&self, meta: &ObjectMeta) -> Result<(), Failure> {
        if meta.size == self.file.size_bytes {
            return Ok(());
        }
        let why = format!("{} bytes; the file with this hash has {}", meta.size, self.file.size_bytes);
        Err(Failure::Pack(PackError::Foreign { key: meta.key.clone(), why }))
    }

    async fn hash(&self) -> Result<[u8; 32], SourceError> {
        let mut reader = self.sources.open(self.file).await?;
        let mut hasher = Sha256::new();
        while let Some(chunk) = reader.next().await? {
            hasher.update(&chunk);
            self.vitals.sign();
        }
        Ok(hasher.finalize().into())
    }

    async fn upload(&self, key: &str, sha256: &[u8; 32]) -> Result<(), Failure> {
        let mut tries = 0;
        loop {
            tries += 1;
            self.vitals.opening(key);
            let id = self.store.create_upload(key, &BTreeMap::new()).await?;
            // From here on it is known to whoever drops this pack.
            self.vitals.opened(self.store, key, &id, false);
            let outcome = self.fill_and_complete(key, &id, sha256).await;
            self.vitals.closed(key, &id);
            if outcome.is_ok() {
                return Ok(());
            }
            if let Err(e) = self.store.abort_upload(key, &id).await {
                tracing::warn!("an unfinished upload of a big file stays behind: {e}");
            }
            match outcome {
                Err(Failure::Pack(PackError::Store(e))) if e.kind == StoreErrorKind::AlreadyExists => {
                    return self.check_size(&self.store.head(key).await?);
                }
                Err(Failure::Pack(PackError::Store(e)))
                    if matches!(e.kind, StoreErrorKind::UploadGone | StoreErrorKind::Conflict) && tries < TRIES => {}
                other => return other,
            }
        }
    }

    async fn fill_and_complete(&self, key: &str, id: &str, sha256: &[u8; 32]) -> Result<(), Failure> {
        let (tags, hash) = self.fill(key, id).await?;
        if hash != *sha256 {
            let message = "the source changed between the two times it was read".to_owned();
            return Err(SourceError::File { reason: FailureReason::Changed, message }.into());
        }
        self.store.complete_upload(key, id, &tags, WriteMode::CreateOnly).await?;
        Ok(())
    }

    fn part(&self, part_bytes: usize) -> Result<Vec<u8>, Failure> {
        // A chunk more than a part: parts are cut behind chunks.
        let room = buffer::with_room(part_bytes + MAX_CHUNK_BYTES);
        room.map_err(|e| Failure::Pack(PackError::Setup(format!("no memory for a part of {}: {e}", self.file.uid))))
    }

    /// Uploads the parts, one while the next is read.
    async fn fill(&self, key: &str, id: &str) -> Result<(Vec<PartTag>, [u8; 32]), Failure> {
        // Larger parts only where 10,000 of the usual ones are not enough.
        let part_bytes = (self.part_bytes as u64).max(self.file.size_bytes.div_ceil(u64::from(MAX_PARTS - 1))) as usize;
        let mut reader = self.sources.open(self.file).await?;
        let (mut tags, mut hasher, mut number) = (Vec::new(), Sha256::new(), 0);
        let mut running: Option<AbortOnDropHandle<Result<PartTag, StoreError>>> = None;
        let mut buffer = self.part(part_bytes)?;
        loop {
            let chunk = reader.next().await?;
            self.vitals.sign();
            if let Some(chunk) = &chunk {
                hasher.update(chunk);
                buffer.extend_from_slice(chunk);
            }
            if buffer.len() >= part_bytes || (chunk.is_none() && !buffer.is_empty()) {
                if let Some(before) = running.take() {
                    tags.push(join_blocking(before).await?);
                }
                number += 1;
                let next = if chunk.is_some() { self.part(part_bytes)? } else { Vec::new() };
                let bytes = Bytes::from(std::mem::replace(&mut buffer, next));
                let (store, key, id) = (self.store.clone(), key.to_owned(), id.to_owned());
                let part = async move { store.put_part(&key, &id, number, bytes).await };
                running = Some(self.vitals.spawn(part));
            }
            if chunk.is_none() {
                break;
            }
        }
        if let Some(last) = running.take() {
            tags.push(join_blocking(last).await?);
        }
        Ok((tags, hasher.finalize().into()))
    }
}

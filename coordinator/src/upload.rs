//! Streams bytes of unknown length into one object, hashing them, in memory bounded by one part.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use des_shared::store::{MAX_PARTS, PartTag, SharedStore, StoreError, StoreErrorKind, WriteMode, WriteOptions};
use futures::stream::{BoxStream, StreamExt};
use sha2::{Digest, Sha256};

use crate::error::Error;

/// Bytes as they come from a client or a store.
pub(crate) type ByteStream = BoxStream<'static, Result<Bytes, Error>>;

/// What was stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) bytes: u64,
    pub(crate) sha256: String,
}

/// Size of a part: 8 MiB for the first 8 GB, then 64 MiB, so that 10,000 parts reach past 500 GB.
fn part_size(number: u32) -> usize {
    if number <= 1000 { 8 << 20 } else { 64 << 20 }
}

/// Streams `body` to `key`. Nothing is left under the key when it fails.
pub(crate) async fn store(objects: &SharedStore, key: &str, body: ByteStream) -> Result<Stored, Error> {
    let mut parts = Parts { body, hash: Sha256::new(), bytes: 0, rest: Bytes::new() };
    let first = parts.next(part_size(1)).await?;
    if parts.rest.is_empty() {
        objects.put(key, first, &WriteOptions::overwrite()).await?;
        return Ok(parts.finish());
    }
    let upload = objects.create_upload(key, &BTreeMap::new()).await?;
    match store_parts(objects, (key, &upload), first, &mut parts).await {
        Ok(()) => Ok(parts.finish()),
        Err(error) => {
            if let Err(e) = objects.abort_upload(key, &upload).await {
                tracing::warn!("an unfinished upload stays behind: {e}");
            }
            Err(error)
        }
    }
}

async fn store_parts(
    objects: &SharedStore,
    (key, upload): (&str, &str),
    first: Bytes,
    parts: &mut Parts,
) -> Result<(), Error> {
    let mut tags: Vec<PartTag> = Vec::new();
    let mut part = first;
    while !part.is_empty() {
        let number = tags.len() as u32 + 1;
        if number > MAX_PARTS {
            return Err(Error::BadManifest(format!("the manifest is larger than {MAX_PARTS} parts; split it")));
        }
        tags.push(objects.put_part(key, upload, number, part).await?);
        part = parts.next(part_size(number + 1)).await?;
    }
    objects.complete_upload(key, upload, &tags, WriteMode::Overwrite).await?;
    Ok(())
}

/// A stream cut into parts of a given size.
struct Parts {
    body: ByteStream,
    hash: Sha256,
    bytes: u64,
    /// Bytes read beyond the last part; not empty as long as there is more to come.
    rest: Bytes,
}

impl Parts {
    /// The next part: `size` bytes, fewer only at the end.
    async fn next(&mut self, size: usize) -> Result<Bytes, Error> {
        let mut part = BytesMut::from(std::mem::take(&mut self.rest));
        while part.len() <= size {
            match self.body.next().await {
                Some(chunk) => part.extend_from_slice(&chunk?),
                None => break,
            }
        }
        // One byte more than a part says that this part is not the last.
        let mut part = part.freeze();
        if part.len() > size {
            self.rest = part.split_off(size);
        }
        self.hash.update(&part);
        self.bytes += part.len() as u64;
        Ok(part)
    }

    fn finish(self) -> Stored {
        Stored { bytes: self.bytes, sha256: hex(&self.hash.finalize()) }
    }
}

/// Lower-case hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a string");
        text
    })
}

/// Whether the store says that something is not there.
pub(crate) fn is_missing(error: &StoreError) -> bool {
    error.kind == StoreErrorKind::NotFound
}

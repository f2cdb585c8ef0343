//! Reading ranges of files.

use std::fs::{File, Metadata};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream;

use super::super::call::Call;
use super::super::{ByteRange, Fetched, FetchedStream, ObjectMeta, StoreError, StoreErrorKind};
use super::folder::{Folder, object_meta};
use super::handles::Handles;

/// Bytes of one chunk of a stream.
const CHUNK: u64 = 256 * 1024;

/// An open file and what is still to be read of it.
#[derive(Debug)]
pub(super) struct Reader {
    file: File,
    meta: ObjectMeta,
    left: u64,
}

/// Reads a range, and keeps the file open for the next one.
pub(super) fn get(folder: &Folder, handles: &Handles, call: &Call, range: &ByteRange) -> Result<Fetched, StoreError> {
    let Opened { path, file, metadata, meta } = Opened::new(folder, call)?;
    let span = call.resolve(range, meta.size)?;
    // The length was compared with the file's size, so a hostile range cannot ask for memory.
    let mut bytes = vec![0; (span.end - span.start) as usize];
    file.read_exact_at(&mut bytes, span.start).map_err(|e| broken(call, &e))?;
    // Below folders a link could be planted in the way, which looking at the file alone would not show.
    if !call.key.contains('/') {
        handles.keep(path, file, &metadata, &meta);
    }
    Ok(Fetched { meta, offset: span.start, bytes: bytes.into() })
}

/// A file, and what it says of itself: a writer may have replaced it since it was looked at.
struct Opened {
    path: PathBuf,
    file: File,
    metadata: Metadata,
    meta: ObjectMeta,
}

impl Opened {
    fn new(folder: &Folder, call: &Call) -> Result<Self, StoreError> {
        // Asked before opening: opening a FIFO would wait for a writer.
        folder.metadata(call)?;
        let path = folder.path(call)?;
        let file = File::open(&path).map_err(|e| folder.failed(call, &e))?;
        let metadata = file.metadata().map_err(|e| folder.failed(call, &e))?;
        let meta = object_meta(&call.key, &metadata);
        Ok(Self { path, file, metadata, meta })
    }
}

impl Reader {
    pub(super) fn open(folder: &Folder, call: &Call, range: &ByteRange) -> Result<Self, StoreError> {
        let Opened { mut file, meta, .. } = Opened::new(folder, call)?;
        let span = call.resolve(range, meta.size)?;
        file.seek(SeekFrom::Start(span.start)).map_err(|e| broken(call, &e))?;
        Ok(Self { file, meta, left: span.end - span.start })
    }

    pub(super) fn into_stream(self, call: Call) -> FetchedStream {
        let meta = self.meta.clone();
        let chunks = stream::try_unfold((self, call), |(mut reader, call)| async move {
            if reader.left == 0 {
                return Ok(None);
            }
            let inner = call.clone();
            let read = move || reader.next_chunk(&inner).map(|chunk| (reader, chunk));
            let (reader, chunk) = call.blocking(read).await?;
            Ok(Some((chunk, (reader, call))))
        });
        FetchedStream { meta, stream: chunks.boxed() }
    }

    fn next_chunk(&mut self, call: &Call) -> Result<Bytes, StoreError> {
        let mut chunk = vec![0; self.left.min(CHUNK) as usize];
        self.file.read_exact(&mut chunk).map_err(|e| broken(call, &e))?;
        self.left -= chunk.len() as u64;
        Ok(chunk.into())
    }
}

/// A read that failed in the middle of an open file.
fn broken(call: &Call, error: &io::Error) -> StoreError {
    let message = match error.kind() {
        io::ErrorKind::UnexpectedEof => "the file became shorter while it was read".to_owned(),
        _ => error.to_string(),
    };
    call.error(StoreErrorKind::Unavailable, message)
}

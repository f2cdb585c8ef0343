//! Reading ranges of files.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream;

use super::super::call::Call;
use super::super::{ByteRange, Fetched, FetchedStream, ObjectMeta, StoreError, StoreErrorKind};
use super::folder::{Folder, object_meta};

/// Bytes of one chunk of a stream.
const CHUNK: u64 = 256 * 1024;

/// An open file and what is still to be read of it.
#[derive(Debug)]
pub(super) struct Reader {
    file: File,
    meta: ObjectMeta,
    left: u64,
    offset: u64,
}

pub(super) fn get(folder: &Folder, call: &Call, range: &ByteRange) -> Result<Fetched, StoreError> {
    let reader = Reader::open(folder, call, range)?;
    // The length was compared with the file's size, so a hostile range cannot ask for memory.
    let mut bytes = vec![0; reader.left as usize];
    reader.file.read_exact_at(&mut bytes, reader.offset).map_err(|e| broken(call, &e))?;
    Ok(Fetched { meta: reader.meta, offset: reader.offset, bytes: bytes.into() })
}

impl Reader {
    pub(super) fn open(folder: &Folder, call: &Call, range: &ByteRange) -> Result<Self, StoreError> {
        // Asked before opening: opening a FIFO would wait for a writer.
        folder.metadata(call)?;
        let mut file = File::open(folder.path(call)?).map_err(|e| folder.failed(call, &e))?;
        // The open file says what it is: a writer may have replaced it since.
        let meta = object_meta(&call.key, &file.metadata().map_err(|e| folder.failed(call, &e))?);
        let span = call.resolve(range, meta.size)?;
        file.seek(SeekFrom::Start(span.start)).map_err(|e| broken(call, &e))?;
        Ok(Self { file, meta, left: span.end - span.start, offset: span.start })
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

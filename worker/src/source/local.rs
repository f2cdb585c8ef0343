//! Sources in folders.
//!
//! Most small files go the quick way ([`super::quick`]). Everything else goes the careful way: a path is resolved, checked against the roots, opened without following a last symbolic link and without waiting
//! (a FIFO has no writer), and then the opened file is asked where it really lies: a swap between check and open is seen.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use des_shared::config::SourceRoots;
use des_shared::receipt::FailureReason;
use des_shared::segment::SegmentFile;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use tokio_util::sync::CancellationToken;

use super::quick::{Quick, Roots};
use super::{SourceError, SourceReader, wrong_size};
use crate::buffer;

/// Bytes read at a time from a large file.
const CHUNK_BYTES: usize = 256 * 1024;

/// An opened source and what it was like then.
#[derive(Debug)]
struct Opened {
    file: File,
    before: Metadata,
}

/// Reads the files of folders on the caller's thread. Cheap to clone.
#[derive(Clone, Debug)]
pub struct LocalFiles {
    pub(super) roots: Arc<SourceRoots>,
}

impl LocalFiles {
    /// A reader for a few files, one after the other. Not to be kept: it holds the roots open.
    pub fn reader(&self) -> BatchReader<'_> {
        BatchReader { roots: &self.roots, quick: Roots::of(&self.roots) }
    }

    /// Reads files one after the other on one blocking thread: for small files a hop between threads costs as much as
    /// the read itself.
    pub(super) async fn read_all(self, files: Vec<SegmentFile>) -> Vec<Result<Bytes, SourceError>> {
        let count = files.len();
        if count == 0 {
            return Vec::new();
        }
        // A blocking thread cannot be dropped: between files it looks whether anybody still waits for its answer.
        let unwanted = CancellationToken::new();
        let _until_dropped = unwanted.clone().drop_guard();
        let wanted = move |_: &&SegmentFile| !unwanted.is_cancelled();
        let read = move || {
            let mut reader = self.reader();
            let mut one = |file: &SegmentFile| {
                let mut bytes = Vec::new();
                reader.read(&file.source, file.size_bytes, &mut bytes).map(|()| Bytes::from(bytes))
            };
            files.iter().take_while(wanted).map(&mut one).collect()
        };
        tokio::task::spawn_blocking(read).await.unwrap_or_else(|e| {
            let lost = SourceError::Worker(format!("the reading thread ended: {e}"));
            vec![Err(lost); count]
        })
    }
}

/// Reads a few files; see [`LocalFiles::reader`].
#[derive(Debug)]
pub struct BatchReader<'a> {
    roots: &'a SourceRoots,
    quick: Roots<'a>,
}

impl BatchReader<'_> {
    /// Appends a file to `out`: exactly `size` bytes, or nothing. Takes room for one byte more.
    ///
    /// # Errors
    /// What is wrong with the file, or with this machine.
    pub fn read(&mut self, source: &str, size: u64, out: &mut Vec<u8>) -> Result<(), SourceError> {
        let path = Path::new(source.strip_prefix("file://").unwrap_or(source));
        make_room(out, size)?;
        match self.quick.read(path, size, out) {
            Quick::Read => Ok(()),
            Quick::Changed { before, read, after } => Err(changed(before, read, after)),
            Quick::Unusual => {
                let start = out.len();
                read_carefully(self.roots, path, size, out).inspect_err(|_| out.truncate(start))
            }
        }
    }
}

/// Room for a file and the byte behind it, by which the end is found without growing the buffer.
fn make_room(out: &mut Vec<u8>, size: u64) -> Result<(), SourceError> {
    let no_memory = |e| SourceError::Worker(format!("no memory for a file of {size} bytes: {e}"));
    let needed = (size as usize).saturating_add(1);
    if out.capacity() == 0 {
        *out = buffer::with_room(needed).map_err(no_memory)?;
    }
    out.try_reserve_exact(needed).map_err(no_memory)
}

fn read_carefully(roots: &SourceRoots, path: &Path, size: u64, out: &mut Vec<u8>) -> Result<(), SourceError> {
    let mut opened = open(roots, path, size)?;
    // One byte more than expected: a file that grew shows.
    let taken = (&mut opened.file).take(size.saturating_add(1)).read_to_end(out);
    opened.check_unchanged(taken.map_err(|e| classify(&e, path))? as u64)
}

/// Opens a source and checks all that can be checked before reading.
fn open(roots: &SourceRoots, path: &Path, size: u64) -> Result<Opened, SourceError> {
    if !path.is_absolute() || path.as_os_str().as_encoded_bytes().contains(&0) {
        let message = format!("\"{}\" is neither an absolute path nor an s3:// URI", path.display());
        return Err(SourceError::file(FailureReason::BadSource, message));
    }
    let real = match std::fs::canonicalize(path) {
        Ok(real) => real,
        Err(e) => {
            let real = real_as_far_as_it_exists(path);
            // Whether something exists outside the roots is nobody's business.
            return Err(if is_below(roots, &real) {
                missing_root(roots, &real).unwrap_or_else(|| classify(&e, path))
            } else {
                outside(path)
            });
        }
    };
    if !is_below(roots, &real) {
        return Err(outside(path));
    }
    // Looked at before it is opened: opening a device can do something to it.
    let seen = std::fs::symlink_metadata(&real).map_err(|e| classify(&e, path))?;
    check_regular(&seen, path)?;
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let file =
        OpenOptions::new().read(true).custom_flags(flags.bits()).open(&real).map_err(|e| {
            if e.raw_os_error() == Some(Errno::ELOOP as i32) { outside(path) } else { classify(&e, path) }
        })?;
    let before = file.metadata().map_err(|e| classify(&e, path))?;
    check_regular(&before, path)?;
    if !opened_below(roots, &file, &before, &real) {
        return Err(outside(path));
    }
    if before.len() != size {
        return Err(wrong_size(before.len(), size));
    }
    Ok(Opened { file, before })
}

fn is_below(roots: &SourceRoots, path: &Path) -> bool {
    roots.folders.iter().any(|root| path.starts_with(root))
}

/// Where a path that cannot be resolved would lie: its existing beginning resolved, the rest taken by its letters.
fn real_as_far_as_it_exists(path: &Path) -> PathBuf {
    let resolved = path.ancestors().find_map(|ancestor| {
        let real = std::fs::canonicalize(ancestor).ok()?;
        Some(real.join(path.strip_prefix(ancestor).ok()?))
    });
    let whole = resolved.unwrap_or_else(|| path.to_owned());
    whole.components().fold(PathBuf::new(), |mut out, component| {
        match component {
            Component::ParentDir => {
                out.pop();
            }
            Component::CurDir => {}
            other => out.push(other),
        }
        out
    })
}

/// Whether the file that is open lies below a root, whatever happened to the path since it was checked.
fn opened_below(roots: &SourceRoots, file: &File, opened: &Metadata, real: &Path) -> bool {
    match std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())) {
        Ok(place) => is_below(roots, &place),
        // Without /proc: the checked path must still lead to the very file that is open.
        Err(_) => {
            let again = std::fs::canonicalize(real).and_then(|again| Ok((std::fs::symlink_metadata(&again)?, again)));
            again.is_ok_and(|(meta, again)| {
                is_below(roots, &again) && (meta.dev(), meta.ino()) == (opened.dev(), opened.ino())
            })
        }
    }
}

fn check_regular(metadata: &Metadata, path: &Path) -> Result<(), SourceError> {
    if metadata.is_file() {
        return Ok(());
    }
    let what = if metadata.is_dir() { "a folder" } else { "a device, pipe or socket" };
    let message = format!("{} is {what}, not a regular file", path.display());
    Err(SourceError::file(FailureReason::NotAFile, message))
}

fn outside(path: &Path) -> SourceError {
    let message = format!("{} lies outside DES_SOURCE_ROOTS; allow its folder there, or move it", path.display());
    SourceError::file(FailureReason::OutsideRoots, message)
}

/// A root that is gone (unmounted, say) makes every file look missing: that is no fault of the files.
fn missing_root(roots: &SourceRoots, path: &Path) -> Option<SourceError> {
    let gone = roots.folders.iter().find(|root| path.starts_with(root) && !root.is_dir())?;
    Some(SourceError::Worker(format!("the source root {} is not there", gone.display())))
}

/// Whether one file is at fault, or the machine.
fn classify(error: &io::Error, path: &Path) -> SourceError {
    let errno = error.raw_os_error().map(Errno::from_raw);
    let message = format!("{}: {error}", path.display());
    let reason = match (error.kind(), errno) {
        (
            _,
            Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::ESTALE | Errno::ETIMEDOUT | Errno::EHOSTDOWN),
        ) => {
            return SourceError::Worker(message);
        }
        (_, Some(Errno::ELOOP | Errno::ENAMETOOLONG)) | (ErrorKind::InvalidInput, _) => FailureReason::BadSource,
        (ErrorKind::NotFound | ErrorKind::NotADirectory, _) => FailureReason::Missing,
        _ => FailureReason::Unreadable,
    };
    SourceError::file(reason, message)
}

impl Opened {
    /// Called after the last byte: `read` bytes came, and the file must be as it was.
    fn check_unchanged(&self, read: u64) -> Result<(), SourceError> {
        let after = self.file.metadata().map_err(|e| SourceError::file(FailureReason::Unreadable, e.to_string()))?;
        let stamp = |m: &Metadata| (m.len(), m.mtime(), m.mtime_nsec());
        if read == self.before.len() && stamp(&after) == stamp(&self.before) {
            return Ok(());
        }
        Err(changed(self.before.len(), read, after.len()))
    }
}

fn changed(before: u64, read: u64, after: u64) -> SourceError {
    let message = format!(
        "the source changed while it was read: {before} bytes when it was opened, {read} read, {after} at the end"
    );
    SourceError::file(FailureReason::Changed, message)
}

/// A large file being read.
#[derive(Debug)]
pub(super) struct LocalReader {
    opened: Option<Opened>,
    path: PathBuf,
    read: u64,
}

impl LocalReader {
    pub(super) async fn open(roots: Arc<SourceRoots>, path: String, size: u64) -> Result<Self, SourceError> {
        let path = PathBuf::from(path);
        blocking(move || {
            let opened = open(&roots, &path, size)?;
            Ok(Self { opened: Some(opened), path, read: 0 })
        })
        .await
    }
}

#[async_trait]
impl SourceReader for LocalReader {
    async fn next(&mut self) -> Result<Option<Bytes>, SourceError> {
        let Some(mut opened) = self.opened.take() else { return Ok(None) };
        let (path, read) = (self.path.clone(), self.read);
        let (opened, chunk) = blocking(move || {
            let mut chunk = Vec::with_capacity(CHUNK_BYTES);
            let taken = (&mut opened.file).take(CHUNK_BYTES as u64).read_to_end(&mut chunk);
            taken.map_err(|e| classify(&e, &path))?;
            if chunk.is_empty() {
                opened.check_unchanged(read)?;
            }
            Ok((opened, chunk))
        })
        .await?;
        if chunk.is_empty() {
            return Ok(None);
        }
        self.read += chunk.len() as u64;
        if self.read > opened.before.len() {
            return Err(SourceError::file(FailureReason::Changed, "the source grew while it was read"));
        }
        self.opened = Some(opened);
        Ok(Some(chunk.into()))
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SourceError> + Send + 'static,
) -> Result<T, SourceError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(answer) => answer,
        Err(e) => Err(SourceError::Worker(format!("the reading thread ended: {e}"))),
    }
}

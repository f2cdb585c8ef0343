//! Writing large runs of bytes to a file past the system's page cache (`open(2)`, `O_DIRECT`).
//!
//! What a folder store writes is synced at once and seldom read soon. In the page cache it only takes the place of files
//! that are, and the copy costs more than the writing: a third of the processor time of packing without compression.
//!
//! The system takes whole blocks only, at places that are multiples of a block, from memory that is aligned likewise. What
//! lies before the first whole block and behind the last takes the usual way, and bytes that lie elsewhere in memory go
//! through a small aligned buffer. No page is ever written both ways at the same time: pages are the blocks here, and one
//! file is written by one thread at a time.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::param::page_size;

/// Bytes written at a time: more need not be in the processor's cache.
const STEP: usize = 1 << 20;
/// Shorter runs are not worth a wait for the disk of their own.
pub(super) const SMALLEST: usize = STEP / 4;

/// A file for bytes that are to be on disk soon.
#[derive(Debug)]
pub(super) struct DirectFile {
    file: File,
    direct: Option<Direct>,
}

/// The second way to the same file.
#[derive(Debug)]
struct Direct {
    file: File,
    /// Once it is needed, at least [`STEP`] bytes from an aligned place on.
    buffer: Vec<u8>,
}

impl DirectFile {
    /// The file that is open for writing and has this path. Not every file system can do without its cache; then all bytes
    /// take the usual way.
    pub(super) fn new(file: File, path: &Path) -> Self {
        let flags = OFlags::DIRECT | OFlags::NOFOLLOW;
        let direct = OpenOptions::new().write(true).custom_flags(flags.bits().cast_signed()).open(path).ok();
        let direct = direct.filter(|direct| is_same(&file, direct)).map(|file| Direct { file, buffer: Vec::new() });
        Self { file, direct }
    }

    /// Writes bytes to a place. They are on disk after the next sync of the file.
    pub(super) fn write_all_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let whole = whole_blocks(bytes.len(), offset);
        let Some(direct) = self.direct.as_mut().filter(|_| whole.len() >= SMALLEST) else {
            return self.file.write_all_at(bytes, offset);
        };
        self.file.write_all_at(&bytes[..whole.start], offset)?;
        match direct.write_all_at(&bytes[whole.clone()], offset + whole.start as u64) {
            // Refused after all, for want of an alignment that nobody tells of: never asked again.
            Err(e) if e.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
                self.direct = None;
                self.file.write_all_at(&bytes[whole.start..], offset + whole.start as u64)
            }
            Err(e) => Err(e),
            Ok(()) => self.file.write_all_at(&bytes[whole.end..], offset + whole.end as u64),
        }
    }

    pub(super) fn into_file(self) -> File {
        self.file
    }
}

impl Direct {
    /// Writes whole blocks.
    fn write_all_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let places = (offset..).step_by(STEP);
        if bytes.as_ptr().align_offset(page_size()) == 0 {
            return bytes.chunks(STEP).zip(places).try_for_each(|(step, place)| self.file.write_all_at(step, place));
        }
        self.buffer.resize(STEP + page_size(), 0);
        let aligned = self.buffer.as_ptr().align_offset(page_size());
        let room = self.buffer.get_mut(aligned..aligned + STEP).ok_or(io::ErrorKind::Unsupported)?;
        for (step, place) in bytes.chunks(STEP).zip(places) {
            room[..step.len()].copy_from_slice(step);
            self.file.write_all_at(&room[..step.len()], place)?;
        }
        Ok(())
    }
}

/// Whether both are the same file: what a path leads to may have changed.
fn is_same(one: &File, other: &File) -> bool {
    let identity = |file: &File| file.metadata().map(|metadata| (metadata.dev(), metadata.ino()));
    identity(one).and_then(|one| Ok(one == identity(other)?)).unwrap_or(false)
}

/// The part of a run of `len` bytes at a place that consists of whole pages of the file.
fn whole_blocks(len: usize, offset: u64) -> Range<usize> {
    let page = page_size();
    let first = (page - (offset % page as u64) as usize) % page;
    if first >= len {
        return len..len;
    }
    first..first + (len - first) / page * page
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::clock::Dice;

    #[test]
    fn whole_pages_are_told_from_the_rest() {
        let page = page_size();
        let at = |len, offset: usize| whole_blocks(len, offset as u64);
        assert_eq!(at(0, 0), 0..0);
        assert_eq!(at(page - 1, 0), 0..0);
        assert_eq!(at(page, 0), 0..page);
        assert_eq!(at(3 * page + 5, 0), 0..3 * page);
        assert_eq!(at(3 * page, 1), page - 1..3 * page - 1);
        assert_eq!(at(10, page - 5), 5..5);
        assert_eq!(at(10, page - 50), 10..10);
        assert_eq!(at(page + 5, page - 5), 5..5 + page);
    }

    #[test]
    fn bytes_written_behind_one_another_come_back_wherever_they_begin() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("file");
        let dice = Dice::seeded(7);
        for direct in [true, false] {
            let file = File::create(&path).expect("a file");
            let mut written = DirectFile::new(file, &path);
            if !direct {
                written.direct = None;
            }
            let mut expected = Vec::new();
            for len in [1, SMALLEST - 1, SMALLEST, 3 * STEP, STEP + 1, 0, 5 * page_size(), 2 * STEP - 7, STEP] {
                let bytes: Vec<u8> = (0..len.div_ceil(64)).flat_map(|_| dice.bytes::<64>()).take(len).collect();
                let mut room = vec![0; len + 2 * page_size()];
                // From memory where it fits the place in the file, so that no copy is needed, and one byte further.
                let fits = (room.as_ptr().align_offset(page_size()) + expected.len()) % page_size();
                for from in [fits, fits + 1] {
                    room[from..from + len].copy_from_slice(&bytes);
                    written.write_all_at(&room[from..from + len], expected.len() as u64).expect("written");
                }
                expected.extend_from_slice(&bytes);
                assert_eq!(written.file.metadata().expect("metadata").len(), expected.len() as u64);
            }
            // Again in the middle, over what is there.
            written.write_all_at(&expected[5..2 * STEP], 5).expect("written again");
            written.file.sync_data().expect("synced");
            assert!(fs::read(&path).expect("read") == expected, "direct: {direct}");
        }
    }

    #[test]
    fn an_error_is_passed_on_and_a_refusal_is_remembered() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("file");
        let none = DirectFile::new(File::create(&path).expect("a file"), &dir.path().join("none"));
        assert!(none.direct.is_none(), "what cannot be opened is not used");
        let another = dir.path().join("another");
        fs::write(&another, "").expect("a file");
        let moved = DirectFile::new(File::create(&path).expect("a file"), &another);
        assert!(moved.direct.is_none(), "nor is another file");
        let mut written = DirectFile::new(File::create(&path).expect("a file"), &path);
        let reading = File::open(&path).expect("open");
        written.direct = Some(Direct { file: reading, buffer: Vec::new() });
        let error = written.write_all_at(&vec![1; SMALLEST], 0).expect_err("open for reading only");
        assert_eq!(error.raw_os_error(), Some(Errno::BADF.raw_os_error()));
        assert!(written.direct.is_some());
        // Takes numbers only, and says to everything else what a file system says that wants other blocks.
        let picky = OpenOptions::new().write(true).open("/proc/self/oom_score_adj").expect("a file of the system's");
        written.direct = Some(Direct { file: picky, buffer: Vec::new() });
        let bytes = vec![b'x'; SMALLEST + 2 * page_size()];
        written.write_all_at(&bytes, 1).expect("the usual way");
        assert!(written.direct.is_none());
        assert!(fs::read(&path).expect("read")[1..] == bytes);
    }
}

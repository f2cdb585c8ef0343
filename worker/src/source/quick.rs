//! The quick way to a small local file: one look by name, one open that the kernel keeps below the root, one read, one
//! look at what was read. Eight components of a path cost one system call instead of one each.
//!
//! It decides only the usual case. Whatever is not a plain file of the expected size below a root, reached without a
//! link that leads out of it, is left to the careful way ([`super::local`]), which finds the same or says what is wrong.

use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use des_shared::config::SourceRoots;
use rustix::buffer::spare_capacity;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Stat, fstat, openat2, statat};
use rustix::io::Errno;

/// What became of a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Quick {
    /// All of it was read, and it is as it was.
    Read,
    /// It changed meanwhile.
    Changed {
        /// Bytes when it was looked at first.
        before: u64,
        /// Bytes that were read.
        read: u64,
        /// Bytes at the end.
        after: u64,
    },
    /// Not a case for the quick way; nothing was read.
    Unusual,
}

/// The roots of one batch of files, opened when the first file below them comes. Not kept longer: an open folder
/// would keep a share from being unmounted.
#[derive(Debug)]
pub(super) struct Roots<'a> {
    roots: Vec<(&'a Path, Option<Root>)>,
}

/// An opened root, or that it cannot be opened so.
type Root = Result<OwnedFd, Errno>;

impl<'a> Roots<'a> {
    pub(super) fn of(roots: &'a SourceRoots) -> Self {
        Self { roots: roots.folders.iter().map(|folder| (folder.as_path(), None)).collect() }
    }

    /// Appends a file of exactly `size` bytes to `out`, or leaves `out` as it is. There must be room for one byte more.
    pub(super) fn read(&mut self, path: &Path, size: u64, out: &mut Vec<u8>) -> Quick {
        let start = out.len();
        let outcome = self.try_read(path, size, out).unwrap_or(Quick::Unusual);
        if outcome != Quick::Read {
            out.truncate(start);
        }
        outcome
    }

    /// Any error at all is a case for the careful way.
    fn try_read(&mut self, path: &Path, size: u64, out: &mut Vec<u8>) -> Result<Quick, Errno> {
        let (root, rest) = self.below(path)?;
        // Looked at before it is opened: opening a device can do something to it.
        let before = statat(root, rest, AtFlags::SYMLINK_NOFOLLOW)?;
        if !FileType::from_raw_mode(before.st_mode).is_file() || len(&before) != size {
            return Ok(Quick::Unusual);
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let file = openat2(root, rest, flags, Mode::empty(), resolve)?;
        let start = out.len();
        // One byte more than expected is asked for: a file that grew shows.
        while !out.spare_capacity_mut().is_empty() {
            match rustix::io::read(&file, spare_capacity(out)) {
                // A regular file gives less than was asked for only at its end; the last look would show otherwise.
                Ok(_) if out.len() - start >= size as usize => break,
                Ok(0) => break,
                Ok(_) | Err(Errno::INTR) => {}
                Err(other) => return Err(other),
            }
        }
        let after = fstat(&file)?;
        let read = (out.len() - start) as u64;
        Ok(if (after.st_dev, after.st_ino) != (before.st_dev, before.st_ino) {
            // Another file took the name between look and open.
            Quick::Unusual
        } else if read == size && stamp(&after) == stamp(&before) {
            Quick::Read
        } else {
            Quick::Changed { before: len(&before), read, after: len(&after) }
        })
    }

    /// The root a path lies below by its letters, and the rest of it.
    fn below<'p>(&mut self, path: &'p Path) -> Result<(&OwnedFd, &'p [u8]), Errno> {
        let path = path.as_os_str().as_bytes();
        let found = self.roots.iter_mut().find_map(|(root, open)| {
            let root_bytes = root.as_os_str().as_bytes();
            let rest = path.strip_prefix(root_bytes)?;
            // The root "/" ends with the slash that others are followed by.
            let rest = if root_bytes.ends_with(b"/") { rest } else { rest.strip_prefix(b"/")? };
            Some((open.get_or_insert_with(|| open_root(root)), rest))
        });
        match found {
            Some((Ok(root), rest)) if !rest.is_empty() => Ok((root, rest)),
            Some((Err(error), _)) => Err(*error),
            _ => Err(Errno::XDEV),
        }
    }
}

/// A root's links were resolved when it was set: a link on the way to it now is not the root.
fn open_root(root: &Path) -> Root {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat2(CWD, root, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS)
}

fn len(stat: &Stat) -> u64 {
    u64::try_from(stat.st_size).unwrap_or(0)
}

fn stamp(stat: &Stat) -> (u64, i64, i64) {
    (len(stat), stat.st_mtime, i64::try_from(stat.st_mtime_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn read(roots: &mut Roots<'_>, path: &Path, size: u64) -> (Quick, Vec<u8>) {
        let mut out = Vec::with_capacity(64);
        out.extend_from_slice(b"before");
        let outcome = roots.read(path, size, &mut out);
        assert!(out.starts_with(b"before"));
        (outcome, out.split_off(6))
    }

    #[test]
    fn plain_files_are_read_and_everything_else_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let top = fs::canonicalize(dir.path()).unwrap();
        let root = top.join("root");
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::write(root.join("a/b/file"), b"12345").unwrap();
        fs::write(root.join("empty"), b"").unwrap();
        fs::write(top.join("outside"), b"12345").unwrap();
        symlink("a/b", root.join("inside")).unwrap();
        symlink(root.join("a"), root.join("absolute")).unwrap();
        symlink("..", root.join("out")).unwrap();
        symlink("a/b/file", root.join("last")).unwrap();
        nix::unistd::mkfifo(&root.join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let known = SourceRoots { folders: vec![root.clone()], buckets: Vec::new() };
        let mut roots = Roots::of(&known);
        let mut at = |path: &str, size| read(&mut roots, &root.join(path), size);
        assert_eq!(at("a/b/file", 5), (Quick::Read, b"12345".to_vec()));
        assert_eq!(at("inside/file", 5), (Quick::Read, b"12345".to_vec()), "a link that stays below the root");
        assert_eq!(at("empty", 0), (Quick::Read, Vec::new()));
        let unusual = ["a/b", "absolute/b/file", "out/outside", "../outside", "last", "pipe", "none", "a/b/file/"];
        for path in unusual {
            assert_eq!(at(path, 5), (Quick::Unusual, Vec::new()), "{path}");
        }
        for size in [4, 6] {
            assert_eq!(at("a/b/file", size), (Quick::Unusual, Vec::new()));
        }
        assert_eq!(read(&mut roots, &top.join("outside"), 5).0, Quick::Unusual);
        assert_eq!(read(&mut roots, &top.join("rootfile"), 5).0, Quick::Unusual);
        assert_eq!(read(&mut roots, Path::new("file"), 5).0, Quick::Unusual);
    }

    #[test]
    fn a_root_that_became_a_link_is_no_root() {
        let dir = tempfile::tempdir().unwrap();
        let top = fs::canonicalize(dir.path()).unwrap();
        fs::create_dir(top.join("other")).unwrap();
        fs::write(top.join("other/file"), b"12345").unwrap();
        symlink("other", top.join("root")).unwrap();
        let known = SourceRoots { folders: vec![top.join("root")], buckets: Vec::new() };
        assert_eq!(read(&mut Roots::of(&known), &top.join("root/file"), 5).0, Quick::Unusual);
        let whole = SourceRoots { folders: vec!["/".into()], buckets: Vec::new() };
        assert_eq!(read(&mut Roots::of(&whole), &top.join("other/file"), 5).0, Quick::Read);
        assert_eq!(read(&mut Roots::of(&whole), &top.join("root/file"), 5).0, Quick::Read);
    }
}

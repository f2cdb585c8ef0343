//! A folder as input: every regular file below it, in the order of their names.
//!
//! The uid is the path relative to the folder, joined with `/`; `created_at` is the time of the last change in UTC. Names
//! of one directory are sorted, so that the same folder is the same plan on every machine; memory is bounded by the
//! directories on the way to the current file, and one of them is open at a time. Symbolic links are not followed and what is no file is left out; both are
//! counted. What has no UTF-8 name or cannot be read is a failure of that file, never of the walk.

use std::ffi::OsString;
use std::fs::{self, DirEntry, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::vec;

use des_shared::created_at::CreatedAt;
use des_shared::ids::Uid;
use des_shared::manifest::ManifestEntry;
use des_shared::receipt::FailureReason;
use time::OffsetDateTime;
use time::macros::format_description;

use crate::error::CliError;
use crate::failures::Failure;

/// What the walk comes to.
#[derive(Debug)]
pub(crate) enum Found {
    /// A file to pack; its source is absolute.
    File(ManifestEntry),
    /// Something that should be packed and cannot be.
    Failed(Failure),
}

/// What was left out on purpose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Skipped {
    /// Symbolic links.
    pub(crate) links: u64,
    /// Sockets, pipes and devices.
    pub(crate) special: u64,
}

/// What a walk leaves out.
#[derive(Clone, Debug, Default)]
pub(crate) struct Leave {
    /// Directories with these names, wherever they are.
    pub(crate) names: &'static [&'static str],
    /// This directory, absolute and with links resolved: the output inside the input.
    pub(crate) folder: Option<PathBuf>,
}

struct Level {
    /// Path relative to the root; empty for the root itself.
    path: PathBuf,
    items: vec::IntoIter<Item>,
}

/// A name of a directory and what stands there.
struct Item {
    name: OsString,
    what: io::Result<What>,
}

enum What {
    Folder,
    File(Metadata),
    Link,
    Special,
}

/// An iterator over the files of a folder.
pub(crate) struct FolderWalk {
    root: PathBuf,
    leave: Leave,
    levels: Vec<Level>,
    skipped: Skipped,
}

impl FolderWalk {
    /// Begins at `folder`, which may itself be a symbolic link.
    ///
    /// # Errors
    /// When it is not a readable folder.
    pub(crate) fn open(folder: &Path, leave: Leave) -> Result<Self, CliError> {
        let root = fs::canonicalize(folder).map_err(|e| CliError::path("open the folder", folder, &e))?;
        let items = sorted_items(&root).map_err(|e| CliError::path("read the folder", folder, &e))?;
        let top = Level { path: PathBuf::new(), items };
        Ok(Self { root, leave, levels: vec![top], skipped: Skipped::default() })
    }

    /// What was left out so far.
    pub(crate) fn skipped(&self) -> Skipped {
        self.skipped
    }

    fn visit(&mut self, path: PathBuf, what: io::Result<What>) -> Option<Found> {
        let full = self.root.join(&path);
        match what {
            Err(e) => Some(failed(&path, &full, FailureReason::Unreadable, e.to_string())),
            Ok(What::Folder) => self.enter(path, &full),
            Ok(What::File(meta)) => Some(file(&path, &full, &meta)),
            Ok(What::Link) => {
                self.skipped.links += 1;
                None
            }
            Ok(What::Special) => {
                self.skipped.special += 1;
                None
            }
        }
    }

    fn enter(&mut self, path: PathBuf, full: &Path) -> Option<Found> {
        let is_left_out = |name: &&str| path.file_name().is_some_and(|own| own == *name);
        if self.leave.names.iter().any(is_left_out) || self.leave.folder.as_deref() == Some(full) {
            return None;
        }
        match sorted_items(full) {
            Ok(items) => {
                self.levels.push(Level { path, items });
                None
            }
            Err(e) => Some(failed(&path, full, FailureReason::Unreadable, format!("the folder cannot be read: {e}"))),
        }
    }
}

impl Iterator for FolderWalk {
    type Item = Found;

    fn next(&mut self) -> Option<Found> {
        loop {
            let level = self.levels.last_mut()?;
            let Some(Item { name, what }) = level.items.next() else {
                self.levels.pop();
                continue;
            };
            let path = level.path.join(name);
            if let Some(found) = self.visit(path, what) {
                return Some(found);
            }
        }
    }
}

/// What a directory holds, in the order of the names. Only files are looked at, relative to the open directory: a path
/// from the root would be walked again for each.
fn sorted_items(folder: &Path) -> io::Result<vec::IntoIter<Item>> {
    let item = |entry: DirEntry| {
        let what = entry.file_type().and_then(|kind| {
            Ok(if kind.is_symlink() {
                What::Link
            } else if kind.is_dir() {
                What::Folder
            } else if kind.is_file() {
                What::File(entry.metadata()?)
            } else {
                What::Special
            })
        });
        Item { name: entry.file_name(), what }
    };
    let mut items = fs::read_dir(folder)?.map(|entry| entry.map(item)).collect::<io::Result<Vec<_>>>()?;
    items.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Ok(items.into_iter())
}

fn file(path: &Path, full: &Path, meta: &Metadata) -> Found {
    let (Some(name), Some(source)) = (path.to_str(), full.to_str()) else {
        let why = "its path is not UTF-8, so it can be no uid; rename it".to_owned();
        return failed(path, full, FailureReason::BadSource, why);
    };
    let entry = Uid::new(name).map_err(|e| e.to_string()).and_then(|uid| {
        let created_at = changed_at(meta)?;
        Ok(ManifestEntry { uid, created_at, size_bytes: meta.len(), source_path: source.to_owned() })
    });
    match entry {
        Ok(entry) => Found::File(entry),
        Err(why) => failed(path, full, FailureReason::BadSource, why),
    }
}

fn failed(path: &Path, full: &Path, reason: FailureReason, message: String) -> Found {
    Found::Failed(Failure {
        uid: path.to_string_lossy().into_owned(),
        created_at: String::new(),
        size_bytes: 0,
        source_path: full.to_string_lossy().into_owned(),
        reason,
        message,
    })
}

/// The time of the last change as `created_at`, in UTC, to the microsecond.
fn changed_at(meta: &Metadata) -> Result<CreatedAt, String> {
    let wrong = |why: &dyn std::fmt::Display| {
        format!("the time of its last change (Unix second {}) cannot be its created_at: {why}", meta.mtime())
    };
    let time = OffsetDateTime::from_unix_timestamp(meta.mtime()).map_err(|e| wrong(&e))?;
    let micros = u32::try_from(meta.mtime_nsec() / 1000).unwrap_or(0);
    let time = time.replace_microsecond(micros).map_err(|e| wrong(&e))?;
    let text = if micros == 0 {
        time.format(format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]Z"))
    } else {
        time.format(format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]Z"))
    };
    CreatedAt::parse(&text.map_err(|e| wrong(&e))?).map_err(|e| wrong(&e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStrExt;
    use std::time::{Duration, UNIX_EPOCH};

    fn touch(path: &Path, bytes: &[u8], at: Duration) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
        fs::File::options().write(true).open(path).unwrap().set_modified(UNIX_EPOCH + at).unwrap();
    }

    #[test]
    fn files_come_in_the_order_of_their_names_and_the_rest_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        touch(&root.join("b/ü x.txt"), b"123", Duration::from_hours(24));
        touch(&root.join("b/a.txt"), b"", Duration::from_millis(1500));
        touch(&root.join("a"), b"1", Duration::from_secs(0));
        touch(&root.join("out/shard.des"), b"x", Duration::from_secs(0));
        touch(&root.join("c/target/x"), b"x", Duration::from_secs(0));
        std::os::unix::fs::symlink(root.join("a"), root.join("link")).unwrap();
        let leave = Leave { names: &["target"], folder: Some(fs::canonicalize(root.join("out")).unwrap()) };
        let mut walk = FolderWalk::open(root, leave).unwrap();
        let files: Vec<_> = walk
            .by_ref()
            .map(|found| match found {
                Found::File(f) => (f.uid.to_string(), f.created_at.as_str().to_owned(), f.size_bytes),
                Found::Failed(f) => panic!("{f:?}"),
            })
            .collect();
        let expected = [
            ("a", "1970-01-01T00:00:00Z", 1),
            ("b/a.txt", "1970-01-01T00:00:01.500000Z", 0),
            ("b/ü x.txt", "1970-01-02T00:00:00Z", 3),
        ];
        assert_eq!(files, expected.map(|(u, c, n)| (u.to_owned(), c.to_owned(), n)));
        assert_eq!(walk.skipped(), Skipped { links: 1, special: 0 });
    }

    #[test]
    fn a_name_that_is_not_utf8_is_a_failure_of_that_file() {
        let dir = tempfile::tempdir().unwrap();
        touch(&dir.path().join(std::ffi::OsStr::from_bytes(b"bad\xff")), b"1", Duration::ZERO);
        touch(&dir.path().join("good"), b"1", Duration::ZERO);
        let found: Vec<_> = FolderWalk::open(dir.path(), Leave::default()).unwrap().collect();
        assert!(matches!(&found[0], Found::Failed(f) if f.reason == FailureReason::BadSource), "{found:?}");
        assert!(matches!(&found[1], Found::File(f) if f.uid.as_str() == "good"), "{found:?}");
    }

    #[test]
    fn a_missing_folder_is_named() {
        let error = FolderWalk::open(Path::new("/no/such/folder"), Leave::default()).err().unwrap();
        assert!(error.to_string().contains("/no/such/folder"), "{error}");
    }
}

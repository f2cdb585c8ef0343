//! Listing in byte order of the keys, with memory for one page.
//!
//! A folder is read whole for each page (file systems give no order), but only the names that can be on the page are
//! kept, and only the folder that the prefix names is read, with those below it that the page reaches.

use std::collections::BinaryHeap;
use std::fs::{self, FileType};
use std::io;
use std::path::Path;

use super::super::call::Call;
use super::super::{ListPage, ObjectMeta, StoreError};
use super::folder::{Folder, is_hidden, object_meta};

/// One entry of a folder by the key text it begins: folders end in a slash, so that the order of entries is the order
/// of the keys in them.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    key: String,
}

struct Page<'a> {
    folder: &'a Folder,
    call: &'a Call,
    prefix: &'a str,
    after: Option<&'a str>,
    limit: usize,
    /// One more than the limit when there is a next page.
    found: Vec<ObjectMeta>,
}

pub(super) fn page(folder: &Folder, call: &Call, after: Option<&str>, limit: usize) -> Result<ListPage, StoreError> {
    let mut page = Page { folder, call, prefix: &call.key, after, limit, found: Vec::new() };
    let dir_key = call.key.rsplit_once('/').map_or("", |(dir, _)| dir);
    let dir = folder.walk(call, dir_key)?;
    let dir_key = if dir_key.is_empty() { String::new() } else { format!("{dir_key}/") };
    folder.check(call)?;
    page.read(&dir, &dir_key)?;
    let mut objects = page.found;
    let more = objects.len() > limit;
    objects.truncate(limit);
    let next = if more { objects.last().map(|object| object.key.clone()) } else { None };
    Ok(ListPage { objects, next })
}

impl Page<'_> {
    /// Adds the objects of one folder and of those below it. `dir_key` is "" or ends in a slash.
    fn read(&mut self, dir: &Path, dir_key: &str) -> Result<(), StoreError> {
        let mut from: Option<String> = None;
        loop {
            let room = self.limit + 1 - self.found.len();
            let batch = self.smallest(dir, dir_key, from.as_deref(), room)?;
            let complete = batch.len() < room;
            from = batch.last().map(|candidate| candidate.key.clone());
            for candidate in batch {
                self.take(&candidate.key)?;
                if self.found.len() > self.limit {
                    return Ok(());
                }
            }
            // Folders without objects can use up a batch without filling the page.
            if complete {
                return Ok(());
            }
        }
    }

    fn take(&mut self, key: &str) -> Result<(), StoreError> {
        let path = self.folder.root.join(key);
        if key.ends_with('/') {
            return self.read(&path, key);
        }
        match fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_file() => self.found.push(object_meta(key, &metadata)),
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {} // removed meanwhile
            Err(e) => return Err(self.folder.failed(self.call, &e)),
        }
        Ok(())
    }

    /// The `room` smallest entries of a folder that can hold keys of this page and come after the entry `from`.
    fn smallest(
        &self,
        dir: &Path,
        dir_key: &str,
        from: Option<&str>,
        room: usize,
    ) -> Result<Vec<Candidate>, StoreError> {
        let mut heap = BinaryHeap::new();
        let entries = match fs::read_dir(dir) {
            Ok(entries) => entries,
            // No such folder, no such objects.
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(Vec::new());
            }
            Err(e) => return Err(self.folder.failed(self.call, &e)),
        };
        for entry in entries {
            let entry = entry.map_err(|e| self.folder.failed(self.call, &e))?;
            let name = entry.file_name();
            // A name that is not UTF-8 cannot be a key.
            let Some(name) = name.to_str().filter(|name| !is_hidden(name)) else { continue };
            let kind = match entry.file_type() {
                Ok(kind) => kind,
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(self.folder.failed(self.call, &e)),
            };
            let Some(key) = entry_key(dir_key, name, kind) else { continue };
            if !self.may_hold(&key) || from.is_some_and(|from| key.as_str() <= from) {
                continue;
            }
            if heap.len() < room {
                heap.push(Candidate { key });
            } else if heap.peek().is_some_and(|largest: &Candidate| key < largest.key) {
                heap.pop();
                heap.push(Candidate { key });
            }
        }
        Ok(heap.into_sorted_vec())
    }

    /// Whether a file, or some file below a folder, is on this page.
    fn may_hold(&self, key: &str) -> bool {
        let in_prefix = key.starts_with(self.prefix) || (key.ends_with('/') && self.prefix.starts_with(key));
        let in_order = match self.after {
            None => true,
            Some(after) => key > after || (key.ends_with('/') && after.starts_with(key)),
        };
        in_prefix && in_order
    }
}

fn entry_key(dir_key: &str, name: &str, kind: FileType) -> Option<String> {
    if kind.is_dir() {
        Some(format!("{dir_key}{name}/"))
    } else if kind.is_file() {
        Some(format!("{dir_key}{name}"))
    } else {
        None
    }
}

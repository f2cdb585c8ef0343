//! Where the bytes of an upload's parts lie: in one file for each store that writes parts of it, one behind the other.
//! Parts that were written in their order by one store are the object already, and need not be copied.
//!
//! A part is recorded by an empty file whose name says where its bytes are: `part-NUMBER.DATA.OFFSET.LEN`, the last two
//! in hexadecimal. It is made once the bytes are on disk. Nobody writes into the data file of another store, so a
//! writer that was given up for dead cannot harm the parts of the one that took its place.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::super::PartTag;
use super::direct::DirectFile;

/// Uploads whose data files are kept open. A store that writes more at a time copies some of them at their end.
const OPEN_FILES: usize = 64;

/// A recorded part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Spot {
    pub(super) number: u32,
    /// Name of the data file.
    pub(super) data: String,
    pub(super) offset: u64,
    pub(super) len: u64,
}

impl Spot {
    /// The name of the file that records it.
    pub(super) fn name(&self) -> String {
        format!("part-{:05}.{}.{:x}.{:x}", self.number, self.data, self.offset, self.len)
    }

    /// Reads what [`Self::name`] wrote; nothing for the names of other files.
    pub(super) fn parse(name: &str) -> Option<Self> {
        let mut fields = name.strip_prefix("part-")?.split('.');
        let (number, data) = (fields.next()?.parse().ok()?, fields.next()?.to_owned());
        let mut hex = || u64::from_str_radix(fields.next()?, 16).ok();
        let spot = Self { number, data, offset: hex()?, len: hex()? };
        (spot.name() == name).then_some(spot)
    }

    pub(super) fn tag(&self) -> PartTag {
        PartTag { number: self.number, etag: format!("\"{}-{:x}\"", self.data, self.offset), size: self.len }
    }
}

/// A data file that this store writes.
#[derive(Debug)]
pub(super) struct Appender {
    /// Its name in the folder of the upload.
    pub(super) data: String,
    pub(super) file: File,
    /// Locked while a part is written, not while it is synced.
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// The same file, to write to.
    writer: DirectFile,
    /// Where the next part goes.
    end: u64,
    /// Parts that were there when this file was made, and those written to it since.
    numbers: HashSet<u32>,
}

impl Appender {
    fn create(dir: &Path) -> io::Result<Self> {
        let create = |path: &Path| OpenOptions::new().write(true).create_new(true).open(path);
        let made = tempfile::Builder::new().prefix("data").rand_bytes(16).make_in(dir, create)?;
        let (file, path) = made.into_parts();
        let path = path.keep().map_err(|e| e.error)?;
        let data = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        let mut numbers = HashSet::new();
        for entry in fs::read_dir(dir)? {
            numbers.extend(entry?.file_name().to_str().and_then(Spot::parse).map(|spot| spot.number));
        }
        let writer = DirectFile::new(file.try_clone()?, &path);
        Ok(Self { data, file, state: Mutex::new(State { writer, end: 0, numbers }) })
    }

    /// Puts a part behind those before it, on disk when this returns. Several may be under way. Also tells whether a part
    /// of this number is known to have been there before.
    pub(super) fn append(&self, number: u32, bytes: &[u8]) -> io::Result<(Spot, bool)> {
        let len = bytes.len() as u64;
        let (offset, again) = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            let offset = state.end;
            state.writer.write_all_at(bytes, offset)?;
            state.end += len;
            (offset, !state.numbers.insert(number))
        };
        self.file.sync_data()?;
        Ok((Spot { number, data: self.data.clone(), offset, len }, again))
    }

    /// Whether the parts are the beginning of this file, in this order.
    pub(super) fn holds(&self, parts: &[Spot]) -> bool {
        let mut end = 0;
        parts.iter().all(|spot| {
            let follows = spot.data == self.data && spot.offset == end;
            end += spot.len;
            follows
        })
    }
}

/// The data files of one store, by the folder of their upload.
#[derive(Debug, Default)]
pub(super) struct Appenders(Mutex<HashMap<PathBuf, Arc<Appender>>>);

impl Appenders {
    /// This store's data file of an upload, which is made where there is none.
    pub(super) fn of(&self, dir: &Path) -> io::Result<Arc<Appender>> {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(appender) = open.get(dir) {
            return Ok(appender.clone());
        }
        let appender = Arc::new(Appender::create(dir)?);
        if open.len() >= OPEN_FILES {
            // Any: whoever writes to it goes on, and its next part begins another file.
            let one = open.keys().next().cloned();
            one.and_then(|dir| open.remove(&dir));
        }
        open.insert(dir.to_owned(), appender.clone());
        Ok(appender)
    }

    /// The data file of an upload that ends. None when this store has none, or when somebody still writes to it: a part
    /// that was given up may be on its way yet, and must not reach an object.
    pub(super) fn end(&self, dir: &Path) -> Option<Appender> {
        let appender = self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(dir);
        appender.and_then(Arc::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_where_a_part_lies() {
        let spot = Spot { number: 12, data: "dataAb3".to_owned(), offset: 0x0123_4567_89ab, len: 0xf0 };
        assert_eq!(spot.name(), "part-00012.dataAb3.123456789ab.f0");
        assert_eq!(Spot::parse(&spot.name()), Some(spot));
        for other in ["key", "part-00001", "part-1.d.0.1", "part-00001.d.0", "part-00001.d.+1.1", "part-00001.d.0.1.2"]
        {
            assert_eq!(Spot::parse(other), None, "{other}");
        }
    }

    #[test]
    fn an_appender_in_use_is_not_handed_over() {
        let dir = tempfile::tempdir().expect("a folder");
        let appenders = Appenders::default();
        let busy = appenders.of(dir.path()).expect("a file");
        let parts = [(1, "one", false), (2, "two!", false), (2, "again", true)];
        let spots = parts.map(|(number, bytes, replaces)| {
            let (spot, again) = busy.append(number, bytes.as_bytes()).expect("written");
            assert_eq!(again, replaces, "{bytes}");
            spot
        });
        assert!(busy.holds(&spots) && busy.holds(&spots[..1]) && !busy.holds(&spots[1..]));
        assert!(appenders.end(dir.path()).is_none());
        drop(busy);
        let next = appenders.of(dir.path()).expect("another file");
        assert!(!next.holds(&spots) && next.holds(&[]));
        drop(next);
        assert!(appenders.end(dir.path()).is_some_and(|own| own.data != spots[0].data));
    }

    #[test]
    fn few_files_stay_open() {
        let dir = tempfile::tempdir().expect("a folder");
        let appenders = Appenders::default();
        for number in 0..100 {
            let upload = dir.path().join(number.to_string());
            std::fs::create_dir(&upload).expect("a folder");
            appenders.of(&upload).expect("a file");
        }
        assert_eq!(appenders.0.lock().expect("no panic").len(), OPEN_FILES);
    }
}

//! Files that are in no shard: counted, shown, saved. The list may be long, so it lives in a file beyond a few.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Seek, Write};
use std::path::PathBuf;

use des_shared::receipt::{FailedFile, FailureReason};
use serde::{Deserialize, Serialize};

use crate::error::CliError;
use crate::output::{Screen, count, number_of, visible};

/// How many failures JSON results hold; the rest is in the file of `--failures`.
const SHOWN: usize = 20;
/// How many of them people are shown.
const SHOWN_TO_PEOPLE: usize = 10;

/// One file that is in no shard. Its first four fields are a manifest entry again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Failure {
    /// The file; a name that is not UTF-8 is shown with replacement characters.
    pub(crate) uid: String,
    /// As written in the manifest; empty where nothing is known.
    pub(crate) created_at: String,
    /// As written in the manifest, bytes.
    pub(crate) size_bytes: u64,
    /// Resolved path or URI.
    pub(crate) source_path: String,
    /// The kind of failure.
    pub(crate) reason: FailureReason,
    /// What went wrong and what would be right.
    pub(crate) message: String,
}

impl From<FailedFile> for Failure {
    fn from(file: FailedFile) -> Self {
        Self {
            uid: file.uid.into(),
            created_at: file.created_at,
            size_bytes: file.size_bytes,
            source_path: file.source_path,
            reason: file.reason,
            message: file.message,
        }
    }
}

/// The failures of one run, kept as NDJSON on disk: in the file the user named, or in a temporary one.
pub(crate) struct FailureList {
    path: Option<PathBuf>,
    out: BufWriter<File>,
    count: u64,
    outside_roots: bool,
}

impl FailureList {
    /// An empty list, saved to `path` where one is given. An older file there is replaced.
    ///
    /// # Errors
    /// When the file cannot be created.
    pub(crate) fn create(path: Option<PathBuf>) -> Result<Self, CliError> {
        let file = match &path {
            Some(path) => File::options().read(true).write(true).create(true).truncate(true).open(path),
            None => tempfile::tempfile(),
        };
        let shown = path.clone().unwrap_or_else(std::env::temp_dir);
        let file = file.map_err(|e| CliError::path("write the list of failures to", &shown, &e))?;
        Ok(Self { path, out: BufWriter::new(file), count: 0, outside_roots: false })
    }

    /// Adds one.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(crate) fn push(&mut self, failure: &Failure) -> Result<(), CliError> {
        let outcome = serde_json::to_writer(&mut self.out, failure).map_err(std::io::Error::from);
        outcome.and_then(|()| self.out.write_all(b"\n")).map_err(|e| self.broken(&e))?;
        self.count += 1;
        self.outside_roots |= failure.reason == FailureReason::OutsideRoots;
        Ok(())
    }

    /// How many there are.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// The first few, for a result.
    ///
    /// # Errors
    /// When the file cannot be read back.
    pub(crate) fn first(&mut self) -> Result<Vec<Failure>, CliError> {
        self.out.flush().and_then(|()| self.out.rewind()).map_err(|e| self.broken(&e))?;
        let read = BufReader::new(self.out.get_ref()).lines().take(SHOWN).map(|line| {
            let line = line.map_err(|e| self.broken(&e))?;
            serde_json::from_str(&line).map_err(|e| self.broken(&e.into()))
        });
        let first = read.collect::<Result<Vec<_>, _>>()?;
        self.out.seek(std::io::SeekFrom::End(0)).map_err(|e| self.broken(&e))?;
        Ok(first)
    }

    /// Tells people which files failed and where the whole list is.
    ///
    /// # Errors
    /// When the file cannot be read back.
    pub(crate) fn show(&mut self, screen: Screen) -> Result<(), CliError> {
        if self.count == 0 {
            return Ok(());
        }
        let first = self.first()?;
        screen.note(&format!("{} could not be packed:", number_of(self.count, "file")));
        for failure in first.iter().take(SHOWN_TO_PEOPLE) {
            // Most messages name the source themselves.
            let source = if failure.message.contains(&failure.source_path) {
                String::new()
            } else {
                format!(" ({})", visible(&failure.source_path))
            };
            screen.note(&format!("  {}: {}{source}", shortened(&failure.uid), visible(&failure.message)));
        }
        let more = self.count.saturating_sub(SHOWN_TO_PEOPLE as u64);
        match &self.path {
            Some(path) => screen.note(&format!("The whole list is in {}; it is a manifest again.", path.display())),
            None if more > 0 => screen.note(&format!("  ... and {} more; --failures FILE saves them all", count(more))),
            None => {}
        }
        if self.outside_roots {
            let place = "DES_SOURCE_ROOTS where the services run, --source-root DIR for des dev";
            screen.note(&format!("Sources are read only below the source roots: {place}."));
        }
        Ok(())
    }

    /// Where the list is saved.
    pub(crate) fn path(&self) -> Option<String> {
        self.path.as_ref().map(|path| path.display().to_string())
    }

    fn broken(&self, error: &std::io::Error) -> CliError {
        let path = self.path.clone().unwrap_or_else(std::env::temp_dir);
        CliError::path("write the list of failures to", &path, error)
    }
}

/// A uid that does not fill the screen.
fn shortened(uid: &str) -> String {
    let mut text: String = uid.chars().take(120).collect();
    if text.len() < uid.len() {
        text.push_str("...");
    }
    visible(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(n: u64) -> Failure {
        Failure {
            uid: format!("u{n}"),
            created_at: "2024-01-01T00:00:00Z".into(),
            size_bytes: n,
            source_path: "/x".into(),
            reason: FailureReason::Missing,
            message: "gone".into(),
        }
    }

    #[test]
    fn the_first_few_can_be_read_at_any_time() {
        let mut list = FailureList::create(None).unwrap();
        list.push(&failure(0)).unwrap();
        assert_eq!(list.first().unwrap(), [failure(0)]);
        for n in 1..50 {
            list.push(&failure(n)).unwrap();
        }
        assert_eq!(list.count(), 50);
        assert_eq!(list.first().unwrap(), (0..SHOWN as u64).map(failure).collect::<Vec<_>>());
    }
}

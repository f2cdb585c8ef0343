//! What a run keeps beside the shards until it is finished, so that the same command goes on where it was interrupted.
//!
//! ```text
//! {output}/.des-tmp-pack/          no listing of the folder shows what begins so
//!   lock                           every packer at work in the folder shares it; whoever has it alone may tidy up
//!   {run}/journal                  one JSON line for each step; locked by the process that works on the run
//!   {run}/{digest}-{part:05}       the mark of an uploaded part of a shard that is not finished
//! ```
//!
//! `{run}` is the digest of the whole input and of every option that changes a byte or a name: another input is another
//! run and touches nothing of this one. What is lost with the machine's memory is only done again; what is on disk under
//! a shard's name is whole in any case.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use des_shared::store::SharedStore;
use des_shared::store::local::{LocalStore, TEMP_PREFIX};
use des_worker::pack::PartMark;
use serde::{Deserialize, Serialize};

use crate::error::CliError;
use crate::failures::Failure;

/// The journal's name.
const JOURNAL: &str = "journal";
/// How often a lock is tried whose file was removed meanwhile.
const TRIES: u32 = 100;

/// One line of the journal.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    /// The first: the sequence of all shards of the run.
    Run { sequence: u64 },
    /// The first number given to a shard of a slot, where names are bare.
    Slot { slot: String, first: u32 },
    /// An upload of this key is about to begin.
    Upload { key: String },
    /// A planned shard is finished.
    Done(Done),
}

/// A finished shard.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Done {
    /// Its place in the plan.
    pub(super) at: usize,
    /// Its name and size; nothing when none of its files could be read.
    pub(super) object: Option<(String, u64)>,
    /// Files in it.
    pub(super) files: u64,
    /// Their bytes.
    pub(super) source_bytes: u64,
    /// Bytes on disk.
    pub(super) stored_bytes: u64,
    /// Files that are not in it.
    pub(super) failures: Vec<Failure>,
}

/// What an earlier process of the same run has done.
#[derive(Debug, Default)]
struct Before {
    sequence: Option<u64>,
    slots: BTreeMap<String, u32>,
    uploads: BTreeSet<String>,
    done: HashMap<usize, Done>,
}

/// The kept state of a run. Shared by its shards.
#[derive(Debug)]
pub(super) struct Resume {
    base: PathBuf,
    dir: PathBuf,
    journal: Mutex<File>,
    shared: File,
    before: Before,
    began_ms: u64,
}

impl Resume {
    /// Opens the state of a run; blocks. `None` when another process is at work on the same run, which then is packed
    /// as if nothing were kept.
    ///
    /// # Errors
    /// When the output folder cannot be written.
    pub(super) fn open(output: &Path, run: &str, sequence: u64, now_ms: u64) -> Result<Option<Arc<Self>>, CliError> {
        let base = output.join(format!("{TEMP_PREFIX}pack"));
        let dir = base.join(run);
        let failed = |e: &io::Error| CliError::path("keep the state of the run in", &base, e);
        let shared = lock_path(&base.join("lock"), |file| file.lock_shared().map(|()| true)).map_err(|e| failed(&e))?;
        let Some(shared) = shared else { return Ok(None) };
        let alone = |file: &File| match file.try_lock() {
            Ok(()) => Ok(true),
            Err(TryLockError::WouldBlock) => Ok(false),
            Err(TryLockError::Error(e)) => Err(e),
        };
        let Some(mut journal) = lock_path(&dir.join(JOURNAL), alone).map_err(|e| failed(&e))? else {
            return Ok(None);
        };
        let before = Before::read(&mut journal).map_err(|e| failed(&e))?;
        let this = Self { base, dir, journal: Mutex::new(journal), shared, before, began_ms: now_ms };
        if this.before.sequence.is_none() {
            this.append(&Line::Run { sequence })?;
        }
        Ok(Some(Arc::new(this)))
    }

    /// Whether an earlier process of this run has left something.
    pub(super) fn is_resumed(&self) -> bool {
        self.before.sequence.is_some()
    }

    /// The sequence of the run's shards, where an earlier process has chosen it.
    pub(super) fn sequence(&self) -> Option<u64> {
        self.before.sequence
    }

    /// The first number of each slot that an earlier process has asked for.
    pub(super) fn slots(&self) -> &BTreeMap<String, u32> {
        &self.before.slots
    }

    /// What became of a planned shard in an earlier process.
    pub(super) fn done(&self, at: usize) -> Option<&Done> {
        self.before.done.get(&at)
    }

    /// A slot's first number was chosen.
    pub(super) fn slot_begun(&self, slot: &str, first: u32) -> Result<(), CliError> {
        self.append(&Line::Slot { slot: slot.to_owned(), first })
    }

    /// An upload is about to begin. When this cannot be written down, the upload may stay behind after a crash, no more.
    pub(super) fn upload_begins(&self, key: &str) {
        if let Err(e) = self.append(&Line::Upload { key: key.to_owned() }) {
            tracing::warn!("{e}");
        }
    }

    /// A planned shard is finished.
    pub(super) fn finished(&self, digest: &str, done: Done) -> Result<(), CliError> {
        self.append(&Line::Done(done))?;
        self.forget(digest)
    }

    /// The marks of a shard's parts, as far as they can be read; whether they fit together is for the caller to say.
    pub(super) fn marks(&self, digest: &str) -> Vec<PartMark> {
        let read = |number| fs::read(self.mark(digest, number)).ok().and_then(|bytes| PartMark::decode(&bytes).ok());
        (1..).map_while(read).collect()
    }

    /// Keeps the mark of a part.
    pub(super) fn keep(&self, digest: &str, mark: &PartMark) -> Result<(), CliError> {
        let path = self.mark(digest, mark.tag.number);
        let kept = || {
            let mut file = tempfile::NamedTempFile::new_in(&self.dir)?;
            file.write_all(&mark.encode())?;
            file.persist(&path).map_err(|e| e.error).map(drop)
        };
        kept().map_err(|e: io::Error| self.failed(&e))
    }

    /// Removes the marks of a shard.
    pub(super) fn forget(&self, digest: &str) -> Result<(), CliError> {
        for number in 1.. {
            match fs::remove_file(self.mark(digest, number)) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound => break,
                Err(e) => return Err(self.failed(&e)),
            }
        }
        Ok(())
    }

    /// Drops the uploads of an earlier process that no mark continues.
    ///
    /// # Errors
    /// When the folder fails.
    pub(super) async fn drop_orphans(&self, store: &SharedStore) -> Result<(), CliError> {
        if self.before.uploads.is_empty() {
            return Ok(());
        }
        let continued = self.continued().map_err(|e| self.failed(&e))?;
        for upload in store.list_uploads("", usize::MAX).await? {
            let ours = self.before.uploads.contains(&upload.key) && upload.started_ms < self.began_ms;
            if ours && !continued.contains(&upload.upload_id) {
                store.abort_upload(&upload.key, &upload.upload_id).await?;
            }
        }
        Ok(())
    }

    /// The uploads that marks continue.
    fn continued(&self) -> io::Result<BTreeSet<String>> {
        let mut ids = BTreeSet::new();
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            if path.to_str().is_some_and(|path| path.ends_with("-00001"))
                && let Ok(mark) = PartMark::decode(&fs::read(&path)?)
            {
                ids.insert(mark.upload_id);
            }
        }
        Ok(ids)
    }

    /// The run has ended. What can be continued is kept, otherwise nothing stays behind, not even what an earlier
    /// process was just writing when it was killed. Says whether something is kept.
    ///
    /// # Errors
    /// When the folder fails.
    pub(super) async fn end(self, store: &LocalStore, finished: bool) -> Result<bool, CliError> {
        let kept = !finished && self.has_something().map_err(|e| self.failed(&e))?;
        if kept {
            return Ok(true);
        }
        // Alone in the folder: nobody else's file is taken for a leftover, and the lock's own file can go.
        let alone = self.shared.try_lock().is_ok();
        // Before the state, which alone tells the next run that there may be leftovers.
        if alone && self.before.sequence.is_some() {
            store.remove_stale(self.began_ms).await?;
        }
        fs::remove_dir_all(&self.dir).map_err(|e| self.failed(&e))?;
        // Other runs that wait to be continued keep the folder.
        let base = &self.base;
        if alone && fs::read_dir(base).is_ok_and(|entries| entries.count() == 1) {
            let gone = fs::remove_file(base.join("lock")).and_then(|()| fs::remove_dir(base));
            gone.map_err(|e| CliError::path("remove", base, &e))?;
        }
        Ok(false)
    }

    /// Whether a finished shard or a part is written down.
    fn has_something(&self) -> io::Result<bool> {
        let done = fs::read_to_string(self.dir.join(JOURNAL))?.contains("{\"done\":");
        Ok(done || !self.continued()?.is_empty())
    }

    fn mark(&self, digest: &str, number: u32) -> PathBuf {
        self.dir.join(format!("{digest}-{number:05}"))
    }

    fn append(&self, line: &Line) -> Result<(), CliError> {
        let mut text = serde_json::to_vec(line).expect("a line always encodes");
        text.push(b'\n');
        // One write for each line: what a killed process left is whole, except perhaps for the last.
        let mut journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
        journal.write_all(&text).map_err(|e| self.failed(&e))
    }

    fn failed(&self, error: &io::Error) -> CliError {
        CliError::path("keep the state of the run in", &self.dir, error)
    }
}

impl Before {
    /// Reads the journal and leaves it ready for the next line. What cannot be read is as if it had not happened.
    fn read(journal: &mut File) -> io::Result<Self> {
        let mut text = Vec::new();
        journal.read_to_end(&mut text)?;
        let mut before = Self::default();
        for line in text.split(|byte| *byte == b'\n') {
            match serde_json::from_slice(line) {
                Ok(Line::Run { sequence }) => before.sequence = Some(sequence),
                Ok(Line::Slot { slot, first }) => drop(before.slots.entry(slot).or_insert(first)),
                Ok(Line::Upload { key }) => drop(before.uploads.insert(key)),
                Ok(Line::Done(done)) => drop(before.done.insert(done.at, done)),
                Err(_) => {}
            }
        }
        if !text.is_empty() && !text.ends_with(b"\n") {
            journal.write_all(b"\n")?;
        }
        Ok(before)
    }
}

/// Opens or creates a file and locks it. `None` when the lock is not to be had. A file that was removed between the two
/// is no lock any more: whoever comes next makes another one.
fn lock_path(path: &Path, lock: impl Fn(&File) -> io::Result<bool>) -> io::Result<Option<File>> {
    for _ in 0..TRIES {
        fs::create_dir_all(path.parent().unwrap_or(path))?;
        let file = match File::options().read(true).append(true).create(true).open(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            opened => opened?,
        };
        if !lock(&file)? {
            return Ok(None);
        }
        match fs::metadata(path) {
            Ok(there) if there.ino() == file.metadata()?.ino() => return Ok(Some(file)),
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    Err(io::Error::other("the lock is removed again and again"))
}

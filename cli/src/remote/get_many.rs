//! `des get --manifest`: many files from a retriever into a folder, by batches, several at once. What is there already is
//! not fetched again, so the same command goes on where it was interrupted.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use des_shared::manifest::{ManifestEntry, ManifestReader};
use des_shared::safe_name::safe_name;
use futures::{StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::get::Sink;
use super::parts::{Parts, PartsError};
use crate::args::GetArgs;
use crate::client::{Client, Service};
use crate::error::{CliError, Exit};
use crate::output::{Measure, Meter, Screen, bytes, count, duration, number_of, per_second, visible};

/// A batch has this many files at most, and a list of this many bytes.
const BATCH_FILES: usize = 1000;
const BATCH_LIST_BYTES: usize = 512 * 1024;
/// How often a batch is asked for again without any file more.
const TRIES: u32 = 4;
/// Failures that are shown and stand in JSON results; the rest is in the file of `--failures`.
const SHOWN: usize = 20;

/// Runs `des get --manifest`.
///
/// # Errors
/// When the manifest is wrong, the retriever cannot be reached, or the folder cannot be written.
pub(crate) async fn get_many(args: GetArgs, screen: Screen) -> Result<Exit, CliError> {
    let (Some(manifest), Some(folder)) = (&args.manifest, &args.output_dir) else {
        return Err(CliError::usage("--manifest and --output-dir go together"));
    };
    let client = Client::new(Service::Retriever, &args.retriever, &args.key)?;
    std::fs::create_dir_all(folder).map_err(|e| CliError::path("create", folder, &e))?;
    let outcome = Outcome::new(args.failures.clone(), screen)?;
    let fetching = Fetching { client, folder: folder.clone(), state: Mutex::new(outcome) };
    let batches = stream::iter(Batches::open(manifest)?);
    let work = batches.map(|batch| async { fetching.batch(batch?).await });
    tokio::select! {
        done = work.buffer_unordered(args.parallel).try_collect::<()>() => done?,
        _ = tokio::signal::ctrl_c() => return Err(CliError::InterruptedKept),
    }
    let outcome = fetching.state.into_inner().unwrap_or_else(PoisonError::into_inner);
    outcome.tell(folder, screen)
}

/// The manifest, a batch at a time.
struct Batches {
    reader: ManifestReader<Box<dyn Read + Send>>,
    ended: bool,
}

impl Batches {
    fn open(manifest: &Path) -> Result<Self, CliError> {
        let input: Box<dyn Read + Send> = if manifest == Path::new("-") {
            Box::new(io::stdin())
        } else {
            Box::new(File::open(manifest).map_err(|e| CliError::path("open the manifest", manifest, &e))?)
        };
        Ok(Self { reader: ManifestReader::new(input)?, ended: false })
    }
}

impl Iterator for Batches {
    type Item = Result<Vec<ManifestEntry>, CliError>;

    fn next(&mut self) -> Option<Self::Item> {
        let (mut batch, mut length) = (Vec::new(), 0);
        while !self.ended && batch.len() < BATCH_FILES && length < BATCH_LIST_BYTES {
            match self.reader.next() {
                None => self.ended = true,
                Some(Err(error)) => {
                    self.ended = true;
                    return Some(Err(error.into()));
                }
                Some(Ok((_, entry))) => {
                    length += entry.uid.as_str().len() + 64;
                    batch.push(entry);
                }
            }
        }
        (!batch.is_empty()).then_some(Ok(batch))
    }
}

/// What the batches share.
struct Fetching {
    client: Client,
    folder: PathBuf,
    state: Mutex<Outcome>,
}

/// A file asked for and not there yet.
struct Wanted {
    entry: ManifestEntry,
    path: PathBuf,
    /// How often an answer broke off before or in it.
    tries: u32,
}

/// A file that was not fetched. Its first four fields are a manifest entry again.
#[derive(Clone, Debug, Serialize)]
struct Failed {
    uid: String,
    created_at: String,
    size_bytes: u64,
    source_path: String,
    /// HTTP status; 0 where there was none.
    status: u16,
    message: String,
}

/// RFC 9457, what of it is shown.
#[derive(Default, Deserialize)]
struct Problem {
    #[serde(default)]
    detail: String,
}

impl Fetching {
    fn state(&self) -> MutexGuard<'_, Outcome> {
        // Counters and a list cannot be left half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn batch(&self, entries: Vec<ManifestEntry>) -> Result<(), CliError> {
        let mut wanted = VecDeque::new();
        for entry in entries {
            let path = self.folder.join(entry.created_at.utc_date().to_string()).join(safe_name(entry.uid.as_str()));
            // Files get their names when they are whole.
            let there = std::fs::symlink_metadata(&path).is_ok_and(|m| m.is_file() && m.len() == entry.size_bytes);
            if there {
                self.state().was_there();
            } else {
                wanted.push_back(Wanted { entry, path, tries: 0 });
            }
        }
        let mut refused = 0;
        while !wanted.is_empty() {
            let list: Vec<_> = wanted
                .iter()
                .map(|w| json!({"uid": w.entry.uid.as_str(), "created_at": w.entry.created_at.as_str()}))
                .collect();
            let parts = match self.client.batch(&list).await {
                Ok(response) => Parts::of(response).map_err(|e| CliError::failed(e.to_string()))?,
                Err(error) => {
                    refused += 1;
                    if refused == TRIES {
                        return Err(error);
                    }
                    tokio::time::sleep(Duration::from_secs(1 << refused)).await;
                    continue;
                }
            };
            match self.parts(parts, &mut wanted).await {
                Ok(()) => refused = 0,
                Err(Stopped::Here(error)) => return Err(error),
                Err(Stopped::There(PartsError::Wrong(why))) => {
                    return Err(CliError::failed(PartsError::Wrong(why).to_string()));
                }
                Err(Stopped::There(error)) => self.broken(&mut wanted, &error)?,
            }
        }
        Ok(())
    }

    /// The answer broke off in the first of the files, or before it. One that does so every time stands in nobody's way.
    fn broken(&self, wanted: &mut VecDeque<Wanted>, error: &PartsError) -> Result<(), CliError> {
        let Some(first) = wanted.front_mut() else { return Ok(()) };
        first.tries += 1;
        if first.tries == TRIES {
            let message = format!("{error}, {TRIES} times");
            self.state().failed(&first.entry, 0, message)?;
            wanted.pop_front();
        }
        Ok(())
    }

    /// Reads an answer; takes each file off the front of the list when it is settled.
    async fn parts(&self, mut parts: Parts, wanted: &mut VecDeque<Wanted>) -> Result<(), Stopped> {
        let mut number = 0;
        while let Some(head) = parts.next().await? {
            let Some(index) = head.index else { continue };
            let Some(file) = wanted.front().filter(|_| index == number) else {
                return Err(PartsError::Wrong("its files come in another order").into());
            };
            if head.status == 200 {
                self.file(&mut parts, file, head.length).await?;
            } else {
                let mut body = Vec::new();
                while let Some(piece) = parts.piece().await? {
                    body.extend_from_slice(&piece);
                    body.truncate(64 * 1024);
                }
                let problem: Problem = serde_json::from_slice(&body).unwrap_or_default();
                self.state().failed(&file.entry, head.status, problem.detail)?;
            }
            wanted.pop_front();
            number += 1;
        }
        if wanted.is_empty() { Ok(()) } else { Err(PartsError::Wrong("files are missing in it").into()) }
    }

    async fn file(&self, parts: &mut Parts, file: &Wanted, length: u64) -> Result<(), Stopped> {
        let parent = file.path.parent().unwrap_or(&self.folder);
        let opened = std::fs::create_dir_all(parent)
            .map_err(|e| CliError::path("create", parent, &e))
            .and_then(|()| Sink::open(Some(&file.path)));
        let mut sink = match opened {
            Ok(sink) => sink,
            // A name that this file system does not take, or a file where a folder must be: the others come all the same.
            Err(error) => return Ok(self.state().failed(&file.entry, 200, error.to_string())?),
        };
        while let Some(piece) = parts.piece().await? {
            sink.write(&piece)?;
        }
        match sink.name() {
            Ok(()) => self.state().fetched(length),
            Err(error) => self.state().failed(&file.entry, 200, error.to_string())?,
        }
        Ok(())
    }
}

/// Why reading an answer ended.
enum Stopped {
    /// Something on this machine.
    Here(CliError),
    /// The answer.
    There(PartsError),
}

impl From<CliError> for Stopped {
    fn from(error: CliError) -> Self {
        Self::Here(error)
    }
}

impl From<PartsError> for Stopped {
    fn from(error: PartsError) -> Self {
        Self::There(error)
    }
}

/// What came of it.
struct Outcome {
    meter: Meter,
    fetched: u64,
    bytes: u64,
    there: u64,
    failed: u64,
    first: Vec<Failed>,
    list: Option<(PathBuf, BufWriter<File>)>,
}

impl Outcome {
    fn new(failures: Option<PathBuf>, screen: Screen) -> Result<Self, CliError> {
        let list = failures.map(|path| match File::create(&path) {
            Ok(file) => Ok((path, BufWriter::new(file))),
            Err(e) => Err(CliError::path("write the list of failures to", &path, &e)),
        });
        let meter = screen.meter("fetching");
        Ok(Self { meter, fetched: 0, bytes: 0, there: 0, failed: 0, first: Vec::new(), list: list.transpose()? })
    }

    fn show(&mut self) {
        let mut notes = Vec::new();
        if self.there > 0 {
            notes.push(format!("{} there already", count(self.there)));
        }
        if self.failed > 0 {
            notes.push(format!("{} failed", count(self.failed)));
        }
        let files = self.fetched + self.there + self.failed;
        self.meter.set(&Measure { files, of_files: None, bytes: self.bytes, of_bytes: None, note: notes.join(", ") });
    }

    fn was_there(&mut self) {
        self.there += 1;
        self.show();
    }

    fn fetched(&mut self, bytes: u64) {
        self.fetched += 1;
        self.bytes += bytes;
        self.show();
    }

    fn failed(&mut self, entry: &ManifestEntry, status: u16, message: String) -> Result<(), CliError> {
        let failed = Failed {
            uid: entry.uid.as_str().to_owned(),
            created_at: entry.created_at.as_str().to_owned(),
            size_bytes: entry.size_bytes,
            source_path: entry.source_path.clone(),
            status,
            message,
        };
        if let Some((path, out)) = &mut self.list {
            let written = serde_json::to_writer(&mut *out, &failed).map_err(io::Error::from);
            let written = written.and_then(|()| out.write_all(b"\n"));
            written.map_err(|e| CliError::path("write the list of failures to", path, &e))?;
        }
        self.failed += 1;
        if self.first.len() < SHOWN {
            self.first.push(failed);
        }
        self.show();
        Ok(())
    }

    fn tell(self, folder: &Path, screen: Screen) -> Result<Exit, CliError> {
        let took = self.meter.finish();
        let path = match self.list {
            None => None,
            Some((path, mut out)) => {
                out.flush().map_err(|e| CliError::path("write the list of failures to", &path, &e))?;
                Some(path)
            }
        };
        if screen.json() {
            screen.object(&json!({
                "output_dir": folder, "files": {"fetched": self.fetched, "there": self.there, "failed": self.failed},
                "bytes": self.bytes, "failures": self.first, "failures_file": path,
            }))?;
        } else {
            let there = if self.there > 0 { format!(", {} there already", count(self.there)) } else { String::new() };
            let pace =
                format!("{} in {} ({}/s)", bytes(self.bytes), duration(took), bytes(per_second(self.bytes, took)));
            screen.note(&format!("{} fetched{there}: {pace} -> {}", number_of(self.fetched, "file"), folder.display()));
            if self.failed > 0 {
                screen.note(&format!("{} could not be fetched:", number_of(self.failed, "file")));
            }
            for failed in self.first.iter().take(SHOWN / 2) {
                screen.note(&format!("  {}: {}", visible(&failed.uid), visible(&failed.message)));
            }
            let more = self.failed.saturating_sub(SHOWN as u64 / 2);
            match path {
                Some(path) if self.failed > 0 => {
                    screen.note(&format!("The whole list is in {}; it is a manifest again.", path.display()));
                }
                None if more > 0 => {
                    screen.note(&format!("  ... and {} more; --failures FILE saves them all", count(more)));
                }
                _ => {}
            }
        }
        Ok(if self.failed > 0 { Exit::SomeFilesFailed } else { Exit::Done })
    }
}

//! Which files: a fair choice among all that are there, the same for the same seed, in memory for the chosen ones only.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use des_shared::clock::Dice;
use serde_json::json;

use crate::args::BenchArgs;
use crate::error::CliError;
use crate::folder::{FolderWalk, Found, Leave};
use crate::output::{Measure, Screen};

/// Where no folder is given: many small files, on most machines.
const USUAL_FOLDER: &str = "/usr/share";
/// Larger files say something about the disk, and nothing about small files.
const LARGEST: u64 = 10 << 20;
/// The day of all files.
pub(super) const DAY: &str = "2025-03-10T12:00:00Z";

/// What to choose from.
pub(super) struct Wanted {
    folders: Vec<PathBuf>,
    files: usize,
    bytes: u64,
    seed: u64,
    /// The benchmark's own folder.
    scratch: PathBuf,
}

impl Wanted {
    pub(super) fn new(args: &BenchArgs, scratch: &Path) -> Self {
        let folders = if args.folders.is_empty() { vec![USUAL_FOLDER.into()] } else { args.folders.clone() };
        Self { folders, files: args.files as usize, bytes: args.bytes, seed: args.seed, scratch: scratch.to_owned() }
    }
}

/// One file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Source {
    pub(super) path: PathBuf,
    pub(super) size: u64,
}

impl Source {
    /// Its absolute path.
    pub(super) fn uid(&self) -> String {
        self.path.to_string_lossy().trim_start_matches('/').to_owned()
    }
}

/// The files, in the order of their paths.
pub(super) struct Chosen {
    pub(super) files: Vec<Source>,
    pub(super) bytes: u64,
    pub(super) folders: Vec<PathBuf>,
    /// How many there were to choose from.
    pub(super) among: u64,
}

/// Walks the folders and keeps a sample.
///
/// # Errors
/// When a folder cannot be read, or there are no files.
pub(super) fn choose(wanted: &Wanted, screen: Screen) -> Result<Chosen, CliError> {
    let (dice, mut held, mut among) = (Dice::seeded(wanted.seed), Vec::new(), 0_u64);
    let mut meter = screen.meter("looking");
    for folder in &wanted.folders {
        let own = std::fs::canonicalize(&wanted.scratch).ok();
        let walk = FolderWalk::open(folder, Leave { names: &[], folder: own })?;
        for found in walk {
            let Found::File(entry) = found else { continue };
            if entry.size_bytes > LARGEST {
                continue;
            }
            let source = Source { path: entry.source_path.into(), size: entry.size_bytes };
            among += 1;
            // Every file has the same chance (a reservoir).
            if held.len() < wanted.files {
                held.push(source);
            } else if let Ok(at) = usize::try_from(dice.up_to(among - 1))
                && let Some(place) = held.get_mut(at)
            {
                *place = source;
            }
            meter.set(&Measure { files: among, ..Measure::default() });
        }
    }
    meter.finish();
    let chosen = within(held, wanted, among);
    if chosen.files.is_empty() {
        let names: Vec<_> = wanted.folders.iter().map(|folder| folder.display().to_string()).collect();
        return Err(CliError::failed(format!("there are no files to pack in {}", names.join(", "))).hint(
            "name folders with small files in them: des bench FOLDER; files above 10 MiB and beyond --bytes are left out",
        ));
    }
    Ok(chosen)
}

/// As many of the files as fit into the bytes, each once.
fn within(held: Vec<Source>, wanted: &Wanted, among: u64) -> Chosen {
    let (mut room, mut seen) = (wanted.bytes, HashSet::new());
    let mut files: Vec<Source> = held
        .into_iter()
        .filter(|file| match room.checked_sub(file.size) {
            // Folders may lie in one another.
            Some(rest) if seen.insert(file.path.clone()) => {
                room = rest;
                true
            }
            _ => false,
        })
        .collect();
    files.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    Chosen { bytes: wanted.bytes - room, files, folders: wanted.folders.clone(), among }
}

impl Chosen {
    /// Writes their manifest.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn write_manifest(&self, to: &Path) -> Result<(), CliError> {
        let write = || {
            let mut out = BufWriter::new(File::create(to)?);
            for file in &self.files {
                let line = json!({
                    "uid": file.uid(), "created_at": DAY, "size_bytes": file.size, "source_path": file.path,
                });
                writeln!(out, "{line}")?;
            }
            out.flush()
        };
        write().map_err(|e| CliError::path("write", to, &e))
    }
}

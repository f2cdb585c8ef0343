//! What the user points at: a manifest, a folder, or a manifest somewhere else.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use des_shared::manifest::{ManifestEntry, ManifestReader, Position, PositionUnit, SourceBase};

use crate::error::CliError;
use crate::failures::Failure;
use crate::folder::{FolderWalk, Found, Leave, Skipped};

/// An input that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Input {
    /// A local manifest.
    Manifest(PathBuf),
    /// A manifest on standard input.
    Stdin,
    /// A folder whose files are meant.
    Folder(PathBuf),
    /// A manifest that only a coordinator reads.
    Remote(String),
}

impl Input {
    /// Looks at what is there.
    ///
    /// # Errors
    /// When there is nothing, or something that is neither a file nor a folder.
    pub(crate) fn find(text: &str) -> Result<Self, CliError> {
        if text == "-" {
            return Ok(Self::Stdin);
        }
        if text.starts_with("s3://") || text.starts_with("file://") {
            return Ok(Self::Remote(text.to_owned()));
        }
        let path = PathBuf::from(text);
        let meta = std::fs::metadata(&path).map_err(|e| {
            CliError::path("open", &path, &e).hint("INPUT is a manifest or a folder; see des pack --help")
        })?;
        Ok(if meta.is_dir() { Self::Folder(path) } else { Self::Manifest(path) })
    }

    /// The entries, one after the other. `base` is what relative sources of a manifest are relative to; its own folder
    /// when not given.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub(crate) fn entries(&self, base: Option<SourceBase>, leave: Leave) -> Result<Entries, CliError> {
        let manifest = |input: Box<dyn Read + Send>, own: SourceBase| {
            let reader = ManifestReader::new(input)?;
            Ok(Entries::Manifest { reader: Box::new(reader), base: base.unwrap_or(own) })
        };
        match self {
            Self::Folder(path) => Ok(Entries::Folder { walk: FolderWalk::open(path, leave)?, number: 0 }),
            Self::Manifest(path) => {
                let file = File::open(path).map_err(|e| CliError::path("open the manifest", path, &e))?;
                manifest(Box::new(file), base_of(path)?)
            }
            Self::Stdin => manifest(Box::new(io::stdin()), current_folder()?),
            Self::Remote(uri) => Err(CliError::usage(format!("{uri} is read by a coordinator, not by this command"))
                .hint("give a local manifest or a folder, or use des submit")),
        }
    }
}

fn base_of(manifest: &Path) -> Result<SourceBase, CliError> {
    let path = std::path::absolute(manifest).map_err(|e| CliError::path("find the folder of", manifest, &e))?;
    Ok(SourceBase::Folder(path.parent().unwrap_or(Path::new("/")).to_owned()))
}

/// The current folder as a base of relative sources.
///
/// # Errors
/// When it was removed.
pub(crate) fn current_folder() -> Result<SourceBase, CliError> {
    let folder = std::env::current_dir().map_err(|e| CliError::failed(format!("there is no current folder: {e}")))?;
    Ok(SourceBase::Folder(folder))
}

/// One thing of an input.
#[derive(Debug)]
pub(crate) enum Item {
    /// A file to pack, its source absolute.
    File(Position, ManifestEntry),
    /// A file that is known to fail.
    Failed(Failure),
}

impl Item {
    /// About how many bytes of text it holds.
    pub(crate) fn text_bytes(&self) -> usize {
        match self {
            Self::File(_, entry) => entry.uid.as_str().len() + entry.source_path.len(),
            Self::Failed(failure) => failure.uid.len() + failure.source_path.len() + failure.message.len(),
        }
    }
}

/// The entries of an input. Ends after the first error.
pub(crate) enum Entries {
    /// From a manifest.
    Manifest {
        /// Reads it as a stream.
        reader: Box<ManifestReader<Box<dyn Read + Send>>>,
        /// What relative sources are relative to.
        base: SourceBase,
    },
    /// From a folder.
    Folder {
        /// Walks it.
        walk: FolderWalk,
        /// Files so far.
        number: u64,
    },
}

impl Entries {
    /// What a folder walk left out so far.
    pub(crate) fn skipped(&self) -> Skipped {
        match self {
            Self::Manifest { .. } => Skipped::default(),
            Self::Folder { walk, .. } => walk.skipped(),
        }
    }
}

impl Iterator for Entries {
    type Item = Result<Item, CliError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Self::Manifest { reader, base } => {
                let entry =
                    reader.next()?.and_then(|(position, entry)| Ok((position, entry.resolved(position, base)?)));
                Some(entry.map(|(position, entry)| Item::File(position, entry)).map_err(CliError::from))
            }
            Self::Folder { walk, number } => Some(Ok(match walk.next()? {
                Found::Failed(failure) => Item::Failed(failure),
                Found::File(entry) => {
                    *number += 1;
                    Item::File(Position { unit: PositionUnit::Element, number: *number, byte: 0 }, entry)
                }
            })),
        }
    }
}

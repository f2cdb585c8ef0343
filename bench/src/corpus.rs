//! A corpus of real small files: chosen with a seed from folders of this machine and copied, with their paths, so that
//! nothing changes underneath. The same files, seed and bounds give the same choice.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

/// Files looked at before choosing, at most.
const CANDIDATES: usize = 1_000_000;
/// The day of all files: with few bits of the shard index they fill few shards.
pub const DAY: &str = "2025-03-10T12:00:00Z";

/// One file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CorpusFile {
    /// Path below the corpus, and the file's uid.
    pub uid: String,
    /// Bytes.
    pub size: u64,
}

/// What to choose.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Folders to choose from, with all that is below them; [`usual_folders`] when empty.
    pub folders: Vec<PathBuf>,
    /// How many files.
    pub files: usize,
    /// No file has more bytes.
    pub largest: u64,
    /// Decides which.
    pub seed: u64,
}

/// Files in a folder, in the order of their paths.
#[derive(Clone, Debug)]
pub struct Corpus {
    /// Absolute path of the folder.
    pub root: PathBuf,
    /// The files.
    pub files: Vec<CorpusFile>,
    /// Sum of their sizes, bytes.
    pub bytes: u64,
}

/// Folders with many small files that most development machines have, those that exist.
pub fn usual_folders() -> Vec<PathBuf> {
    let home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::home_dir().map(|home| home.join(".cargo")))
        .unwrap_or_default();
    let mut folders = vec![home.join("registry/src"), PathBuf::from("/usr/share")];
    let libraries = fs::read_dir("/usr/lib").into_iter().flatten().flatten();
    folders
        .extend(libraries.filter(|entry| entry.file_name().to_string_lossy().starts_with("python3")).map(|e| e.path()));
    folders.retain(|folder| folder.is_dir());
    folders.sort();
    folders
}

impl Corpus {
    /// Chooses files and copies them below `into`, which is created.
    ///
    /// # Errors
    /// When nothing is found or the copies cannot be written.
    pub fn gather(into: &Path, wanted: &Wanted) -> io::Result<Self> {
        let folders = if wanted.folders.is_empty() { usual_folders() } else { wanted.folders.clone() };
        let mut candidates = Vec::new();
        for folder in &folders {
            walk(&fs::canonicalize(folder)?, &mut candidates)?;
        }
        candidates.retain(|(_, size)| *size <= wanted.largest);
        // The listing order of a folder is not the same everywhere; the choice must follow the seed alone.
        candidates.sort_unstable();
        candidates.dedup();
        candidates.shuffle(&mut StdRng::seed_from_u64(wanted.seed));
        fs::create_dir_all(into)?;
        let mut copied = 0;
        for (path, _) in candidates {
            if copied == wanted.files {
                break;
            }
            // A file that cannot be read, or vanished meanwhile, is not part of the corpus.
            let Ok(bytes) = fs::read(&path) else { continue };
            let copy = into.join(path.strip_prefix("/").unwrap_or(&path));
            fs::create_dir_all(copy.parent().unwrap_or(into))?;
            fs::write(copy, bytes)?;
            copied += 1;
        }
        if copied == 0 {
            return Err(io::Error::other(format!("no files were found below {folders:?}")));
        }
        Self::read(into)
    }

    /// The files that are in a folder.
    ///
    /// # Errors
    /// When it cannot be read, or holds no file.
    pub fn read(folder: &Path) -> io::Result<Self> {
        let root = fs::canonicalize(folder)?;
        let mut found = Vec::new();
        walk(&root, &mut found)?;
        found.sort_unstable();
        let files: Vec<CorpusFile> = found
            .into_iter()
            .filter_map(|(path, size)| {
                let uid = path.strip_prefix(&root).ok()?.to_str()?.to_owned();
                Some(CorpusFile { uid, size })
            })
            .collect();
        if files.is_empty() {
            return Err(io::Error::other(format!("there are no files in {}", root.display())));
        }
        Ok(Self { bytes: files.iter().map(|file| file.size).sum(), files, root })
    }

    /// Only some of its files.
    #[must_use]
    pub fn part(&self, files: Vec<CorpusFile>) -> Self {
        Self { root: self.root.clone(), bytes: files.iter().map(|file| file.size).sum(), files }
    }

    /// Where a file lies.
    pub fn path(&self, file: &CorpusFile) -> PathBuf {
        self.root.join(&file.uid)
    }

    /// Writes the manifest: a JSON list, which the existing packer reads too, or one object a line.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_manifest(&self, to: &Path) -> io::Result<()> {
        let list = to.extension().is_some_and(|extension| extension == "json");
        let mut out = BufWriter::new(File::create(to)?);
        for (at, file) in self.files.iter().enumerate() {
            let (before, after) = match (list, at) {
                (false, _) => ("", "\n"),
                (true, 0) => ("[", ""),
                (true, _) => (",\n", ""),
            };
            out.write_all(before.as_bytes())?;
            let (uid, size_bytes, source_path) = (&file.uid, file.size, self.path(file));
            let entry = serde_json::json!({ "uid": uid, "created_at": DAY, "size_bytes": size_bytes, "source_path": source_path });
            serde_json::to_writer(&mut out, &entry)?;
            out.write_all(after.as_bytes())?;
        }
        out.write_all(if list { b"]\n" } else { b"" })?;
        out.flush()
    }

    /// Writes the paths below the root, a line each.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn write_names(&self, to: &Path) -> io::Result<()> {
        let mut out = BufWriter::new(File::create(to)?);
        for file in &self.files {
            writeln!(out, "{}", file.uid)?;
        }
        out.flush()
    }

    /// Numbers for people.
    pub fn summary(&self) -> String {
        let mut sizes: Vec<u64> = self.files.iter().map(|file| file.size).collect();
        sizes.sort_unstable();
        format!(
            "{} files, {:.1} MiB, median {} bytes, largest {:.1} KiB",
            self.files.len(),
            self.bytes as f64 / f64::from(1 << 20),
            sizes[sizes.len() / 2],
            sizes[sizes.len() - 1] as f64 / 1024.0,
        )
    }
}

/// Adds the regular files below a folder that has a name every contestant can be told: UTF-8, on one line.
fn walk(root: &Path, found: &mut Vec<(PathBuf, u64)>) -> io::Result<()> {
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(e) if folder == root => return Err(e),
            // Not ours to read, or gone.
            Err(_) => continue,
        };
        for entry in entries.flatten() {
            let (Ok(kind), path) = (entry.file_type(), entry.path()) else { continue };
            if kind.is_dir() {
                folders.push(path);
            } else if kind.is_file()
                && path.to_str().is_some_and(|text| !text.contains(char::is_control))
                && let Ok(meta) = entry.metadata()
            {
                found.push((path, meta.len()));
                if found.len() >= CANDIDATES {
                    return Ok(());
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_chooses_the_same_files_and_another_seed_others() {
        let dir = tempfile::tempdir().unwrap();
        let from = dir.path().join("from");
        for number in 0..40 {
            let folder = from.join(format!("{}", number % 3));
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join(format!("{number}.txt")), vec![b'x'; number]).unwrap();
        }
        let gather = |name: &str, seed: u64| {
            let wanted = Wanted { folders: vec![from.clone()], files: 10, largest: 30, seed };
            Corpus::gather(&dir.path().join(name), &wanted).unwrap()
        };
        let (first, again, other) = (gather("a", 1), gather("b", 1), gather("c", 2));
        assert_eq!(first.files, again.files);
        assert_ne!(first.files, other.files);
        assert_eq!(first.files.len(), 10);
        assert!(first.files.iter().all(|file| file.size <= 30));
        let copied: usize = first.files.iter().map(|file| fs::read(first.path(file)).unwrap().len()).sum();
        assert_eq!(first.bytes, copied as u64);
        let (list, lines) = (dir.path().join("m.json"), dir.path().join("m.ndjson"));
        first.write_manifest(&list).unwrap();
        first.write_manifest(&lines).unwrap();
        let list: Vec<serde_json::Value> = serde_json::from_slice(&fs::read(list).unwrap()).unwrap();
        let lines = fs::read_to_string(lines).unwrap();
        let lines: Vec<serde_json::Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(list, lines);
        assert_eq!(list.len(), 10);
    }
}

//! A corpus of real files: what is installed on every development machine, copied before use so that nothing changes
//! underneath, with uids of every kind and dates that differ in UTC and as written.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use sha2::{Digest, Sha256};

/// Larger files are left out.
const LARGEST: u64 = 64 << 20;
/// From here on a file counts as a big one (the default threshold of big files).
const BIG: u64 = 10 << 20;
/// How many big files a corpus takes at the most.
const BIG_FILES: usize = 8;
/// How many files are looked at before choosing.
const CANDIDATES: usize = 400_000;

/// One file of a corpus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CorpusFile {
    /// Its name in DES.
    pub uid: String,
    /// As written in the manifest.
    pub created_at: String,
    /// Bytes.
    pub size: u64,
    /// Where its copy lies.
    pub path: PathBuf,
    /// SHA-256 of its bytes.
    pub sha256: [u8; 32],
}

/// A copied corpus and its manifest.
#[derive(Debug)]
pub struct Corpus {
    /// The files in manifest order.
    pub files: Vec<CorpusFile>,
    /// Sum of the sizes, bytes.
    pub bytes: u64,
    /// NDJSON manifest with absolute source paths.
    pub manifest: PathBuf,
    /// Folder of the copies: the source root.
    pub root: PathBuf,
}

impl Corpus {
    /// Chooses about `count` files with `seed`, copies them below `folder` and writes their manifest.
    ///
    /// # Errors
    /// When the copies cannot be written, or the machine has too few files.
    pub fn gather(folder: &Path, count: usize, seed: u64) -> io::Result<Self> {
        let chosen = choose(&mut StdRng::seed_from_u64(seed), count);
        if chosen.len() < count.min(100) {
            return Err(io::Error::other(format!("only {} files were found below {:?}", chosen.len(), roots())));
        }
        let root = folder.join("sources");
        let mut files = Vec::with_capacity(chosen.len());
        for (number, path) in chosen.iter().enumerate() {
            // A file that vanishes or cannot be read while the corpus is gathered is not part of it.
            let Ok(bytes) = fs::read(path) else { continue };
            files.push(copy_in(&root, number, path, &bytes)?);
        }
        let manifest = folder.join("manifest.ndjson");
        write_manifest(&manifest, &files)?;
        Ok(Self { bytes: files.iter().map(|file| file.size).sum(), files, manifest, root })
    }

    /// How many files have each kind of property, for people.
    pub fn summary(&self) -> String {
        let count = |test: &dyn Fn(&CorpusFile) -> bool| self.files.iter().filter(|file| test(file)).count();
        let mut sizes: Vec<u64> = self.files.iter().map(|file| file.size).collect();
        sizes.sort_unstable();
        format!(
            "{} files, {:.1} MiB; {} empty, median {} bytes, largest {:.1} MiB, {} above 10 MiB; uids: {} numeric, {} non-ASCII, {} with a slash",
            self.files.len(),
            self.bytes as f64 / f64::from(1 << 20),
            count(&|file| file.size == 0),
            sizes.get(sizes.len() / 2).copied().unwrap_or(0),
            sizes.last().copied().unwrap_or(0) as f64 / f64::from(1 << 20),
            count(&|file| file.size > BIG),
            count(&|file| file.uid.bytes().all(|b| b.is_ascii_digit())),
            count(&|file| !file.uid.is_ascii()),
            count(&|file| file.uid.contains('/')),
        )
    }
}

/// Folders with real small files, those that exist.
fn roots() -> Vec<PathBuf> {
    let home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::home_dir().map(|home| home.join(".cargo")))
        .unwrap_or_default();
    let mut roots = vec![home.join("registry/src")];
    roots.extend(["/usr/share", "/usr/include", "/usr/lib", "/usr/local/lib", "/opt"].map(PathBuf::from));
    roots.retain(|root| root.is_dir());
    roots
}

/// Chooses files: a few big ones, then a random sample of all others.
fn choose(rng: &mut StdRng, count: usize) -> Vec<PathBuf> {
    let (mut small, mut big) = (Vec::new(), BTreeMap::new());
    for root in roots() {
        walk(&root, CANDIDATES / roots().len().max(1), &mut small, &mut big);
    }
    // The listing order of a folder is not the same everywhere; the choice must follow the seed alone.
    small.sort_unstable();
    small.shuffle(rng);
    // The largest first: tens of MiB are what streaming has to cope with.
    let mut chosen: Vec<PathBuf> = big.into_values().rev().take(BIG_FILES.min(count / 20)).collect();
    chosen.extend(small.into_iter().take(count - chosen.len()));
    chosen.shuffle(rng);
    chosen
}

fn walk(root: &Path, most: usize, small: &mut Vec<PathBuf>, big: &mut BTreeMap<u64, PathBuf>) {
    let (mut folders, before) = (vec![root.to_owned()], small.len());
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries.flatten() {
            let Ok(kind) = entry.file_type() else { continue };
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() {
                match entry.metadata().map(|meta| meta.len()) {
                    Ok(size) if size > BIG && size <= LARGEST => drop(big.insert(size, entry.path())),
                    Ok(size) if size <= BIG => small.push(entry.path()),
                    _ => {}
                }
            }
        }
        if small.len() - before >= most {
            return;
        }
    }
}

/// Copies one file and gives it a uid and a date that follow from its number.
fn copy_in(root: &Path, number: usize, original: &Path, bytes: &[u8]) -> io::Result<CorpusFile> {
    let folder = root.join(format!("{:03}", number % 500));
    fs::create_dir_all(&folder)?;
    let path = folder.join(format!("{number:06}"));
    fs::write(&path, bytes)?;
    let name = original.to_string_lossy();
    let mut rng = StdRng::seed_from_u64(number as u64);
    let uid = match number % 4 {
        0 => format!("{}{number:06}", rng.random_range(1..1_000_000_000_000u64)),
        1 => format!("{number}{name}"),
        2 => format!("документ/{}/日本語-{number} é.{}", number % 97, extension(original)),
        _ => format!("{:08x}-{number}.{}", rng.random_range(0..u32::MAX), extension(original)),
    };
    let created_at = format!("2025-03-{:02}T{:02}:30:00{}", 10 + number % 4, number % 24, OFFSETS[number % 5]);
    Ok(CorpusFile { uid, created_at, size: bytes.len() as u64, path, sha256: Sha256::digest(bytes).into() })
}

/// Ways to write an offset; some move the date.
const OFFSETS: [&str; 5] = ["Z", "+00:00", "-05:00", "+05:30", ""];

fn extension(path: &Path) -> String {
    path.extension().map_or_else(|| "bin".to_owned(), |e| e.to_string_lossy().into_owned())
}

fn write_manifest(path: &Path, files: &[CorpusFile]) -> io::Result<()> {
    let mut out = BufWriter::new(fs::File::create(path)?);
    for file in files {
        let line = serde_json::json!({
            "uid": file.uid, "created_at": file.created_at, "size_bytes": file.size, "source_path": file.path,
        });
        serde_json::to_writer(&mut out, &line)?;
        out.write_all(b"\n")?;
    }
    out.flush()
}

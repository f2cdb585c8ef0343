//! The files that everybody serves: plain, in shards of both formats, and where each lies in its shard.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use des_shared::archive::RemoteShard;
use des_shared::layout::parse_shard_name;
use des_shared::shard::Location;
use des_shared::store::SharedStore;
use des_shared::store::local::LocalStore;
use futures::TryStreamExt;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tempfile::TempDir;
use tokio::process::Command;

use super::{Args, Failure};

/// The day of all files.
pub(super) const DAY: &str = "2025-03-10T12:00:00Z";

/// One file, and the place of its stored bytes.
#[derive(Debug)]
pub(super) struct File {
    pub(super) uid: String,
    pub(super) bytes: Vec<u8>,
    /// Shard, first and last byte of what is stored.
    pub(super) stored: Option<(String, u64, u64)>,
}

#[derive(Debug)]
pub(super) struct Corpus {
    folder: TempDir,
    pub(super) files: Vec<File>,
}

impl Corpus {
    /// Makes the files and packs them.
    pub(super) async fn make(args: &Args) -> Result<Self, Failure> {
        let mut corpus = Self { folder: tempfile::tempdir()?, files: made_up(args) };
        std::fs::create_dir(corpus.plain())?;
        let mut manifest = Vec::new();
        for file in &corpus.files {
            let path = corpus.plain().join(&file.uid);
            std::fs::write(&path, &file.bytes)?;
            manifest.push(serde_json::json!({
                "uid": file.uid, "created_at": DAY, "size_bytes": file.bytes.len(), "source_path": path,
            }));
        }
        let list = corpus.folder.path().join("manifest.json");
        std::fs::write(&list, serde_json::to_vec(&manifest)?)?;
        let bits = args.n_bits.to_string();
        for format in ["v3", "v2"] {
            let out = corpus.shards(format);
            let mut pack = Command::new(beside("des")?);
            pack.arg("pack").arg(&list).arg("-o").arg(&out).args(["--format", format, "--n-bits", &bits]);
            match format {
                "v2" => pack.arg("--bare-names"),
                _ => pack.args(["--codec", &args.codec.to_string()]),
            };
            let ended = pack.output().await?;
            if !ended.status.success() {
                return Err(format!("des pack: {}", String::from_utf8_lossy(&ended.stderr)).into());
            }
        }
        corpus.find_stored().await?;
        Ok(corpus)
    }

    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(super) fn plain(&self) -> PathBuf {
        self.folder.path().join("plain")
    }

    /// The folder of the shards of a format.
    pub(super) fn shards(&self, format: &str) -> PathBuf {
        self.folder.path().join(format)
    }

    pub(super) fn summary(&self) -> String {
        let bytes: usize = self.files.iter().map(|file| file.bytes.len()).sum();
        format!("{} files, {bytes} bytes", self.files.len())
    }

    async fn find_stored(&mut self) -> Result<(), Failure> {
        let store: SharedStore = Arc::new(LocalStore::open(self.shards("v3"))?);
        let listed = store.list("", None, 1000).await?;
        let mut places = std::collections::HashMap::new();
        for object in listed.objects.iter().filter(|object| parse_shard_name(&object.key).is_some()) {
            let shard = RemoteShard::open(store.clone(), &object.key).await?;
            let entries: Vec<_> = shard.entries().try_collect().await?;
            for entry in entries {
                if let Location::Inline(inline) = entry.location {
                    let last = inline.offset + inline.stored_len.max(1) - 1;
                    places.insert(entry.uid.clone(), (object.key.clone(), inline.offset, last));
                }
            }
        }
        for file in &mut self.files {
            file.stored = places.remove(&file.uid);
        }
        Ok(())
    }
}

/// A program of this build.
pub(super) fn beside(name: &str) -> Result<PathBuf, Failure> {
    let path = std::env::current_exe()?.with_file_name(name);
    if path.is_file() { Ok(path) } else { Err(format!("{} is not built", path.display()).into()) }
}

/// Text that compresses about as source code does, in sizes from an eighth to eight times the median.
fn made_up(args: &Args) -> Vec<File> {
    const WORDS: [&str; 16] = [
        "return ", "value", " = ", "self.", "index", "(", ")", ";\n", "    ", "length", "if ", "{\n", "}\n", "name",
        "error", ", ",
    ];
    let mut rng = StdRng::seed_from_u64(11);
    let make = |number: u32| {
        let length = args.file_bytes * (1 << rng.random_range(0..=6)) / 8;
        let mut bytes = Vec::with_capacity(length + 16);
        while bytes.len() < length {
            if rng.random_ratio(1, 4) {
                bytes.extend_from_slice(format!("{:x}", rng.random::<u32>()).as_bytes());
            } else {
                bytes.extend_from_slice(WORDS[rng.random_range(0..WORDS.len())].as_bytes());
            }
        }
        bytes.truncate(length);
        File { uid: format!("file-{number:06}.txt"), bytes, stored: None }
    };
    (0..args.files).map(make).collect()
}

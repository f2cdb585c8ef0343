//! Files for chaos: few places in the index, so that shards are large enough for several parts, and bytes that hardly
//! compress.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use des_shared::routing::{NBits, shard_index};
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use sha2::{Digest, Sha256};

use crate::cluster::N_BITS;
use crate::corpus::CorpusFile;

/// Places in the index that the files lie in: some in each zone.
const PLACES: [u32; 4] = [1, 6, 9, 14];

/// Files and the folder they lie in.
#[derive(Debug)]
pub struct Files {
    /// The files, in manifest order.
    pub files: Vec<CorpusFile>,
    /// Their folder: the source root.
    pub root: PathBuf,
}

impl Files {
    /// Writes `count` files below `folder`; what they are follows from `seed`.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write(folder: &Path, count: usize, seed: u64) -> io::Result<Self> {
        let bits: NBits = N_BITS.parse().map_err(io::Error::other)?;
        let mut rng = StdRng::seed_from_u64(seed);
        let root = folder.join("sources");
        fs::create_dir_all(&root)?;
        let mut files = Vec::with_capacity(count);
        for number in 0..count {
            let uid = loop {
                let uid = format!("chaos/{number}-{:08x}.bin", rng.random_range(0..u32::MAX));
                if PLACES.contains(&shard_index(&uid, bits)) {
                    break uid;
                }
            };
            let size = match number % 10 {
                0 => 0,
                1 => rng.random_range(500_000..1_500_000),
                _ => rng.random_range(1..60_000),
            };
            let mut bytes = vec![0; size];
            rng.fill_bytes(&mut bytes);
            let path = root.join(format!("{number:06}"));
            fs::write(&path, &bytes)?;
            let created_at = format!("2025-03-10T{:02}:30:00Z", number % 24);
            files.push(CorpusFile { uid, created_at, size: size as u64, path, sha256: Sha256::digest(&bytes).into() });
        }
        Ok(Self { files, root })
    }

    /// The manifest as NDJSON.
    pub fn manifest(&self) -> String {
        let line = |file: &CorpusFile| {
            serde_json::json!({
                "uid": file.uid, "created_at": file.created_at, "size_bytes": file.size, "source_path": file.path,
            })
            .to_string()
                + "\n"
        };
        self.files.iter().map(line).collect()
    }
}

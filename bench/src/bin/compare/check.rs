//! Whether what was packed is right.

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;

use des_bench::corpus::{Corpus, CorpusFile};
use des_shared::layout::SHARD_SUFFIX;
use des_shared::shard::{Decoder, Location, Shard};

use super::Failure;

/// Lets `des verify` read everything: it must find exactly the corpus, and nothing wrong.
pub(super) fn verified(des: &Path, shards: &Path, files: usize) -> Result<(), Failure> {
    let output = Command::new(des).args(["--json", "verify"]).arg(shards).output()?;
    let verdict: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    if !output.status.success() || verdict["ok"] != true || verdict["files"] != files {
        return Err(format!("des verify of {files} files: {verdict}").into());
    }
    Ok(())
}

/// Reads every file back out of the shards of a folder and compares it with its source. Big files are `des verify`'s.
pub(super) fn read_back(shards: &Path, corpus: &Corpus) -> Result<(), Failure> {
    let mut wanted: HashMap<&str, &CorpusFile> = corpus.files.iter().map(|file| (file.uid.as_str(), file)).collect();
    let mut decoder = Decoder::new()?;
    for item in std::fs::read_dir(shards)? {
        let path = item?.path();
        if !path.to_string_lossy().ends_with(SHARD_SUFFIX) {
            continue;
        }
        let shard = Shard::open(std::fs::read(&path)?)?;
        for entry in shard.entries() {
            let entry = entry?;
            let file = wanted.remove(entry.uid.as_str()).ok_or_else(|| format!("{:?} is not asked for", entry.uid))?;
            if matches!(entry.location, Location::BigFile { .. }) {
                continue;
            }
            if *shard.read_with(&mut decoder, &entry)? != *std::fs::read(corpus.path(file))? {
                return Err(format!("{:?} came back wrong from {}", entry.uid, path.display()).into());
            }
        }
    }
    match wanted.into_keys().next() {
        None => Ok(()),
        Some(uid) => Err(format!("{uid:?} is in no shard").into()),
    }
}

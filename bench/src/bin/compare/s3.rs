//! One worker into a real S3 server beside the same worker into a folder, and `rclone`, which uploads file by file.

use std::fs::{self, File};
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use des_bench::corpus::{Corpus, CorpusFile};
use des_shared::segment::PackOptions;
use des_shared::store::local::LocalStore;
use des_shared::store::s3::S3Store;
use des_shared::store::{ObjectStore, SharedStore, WriteOptions, list_all};
use des_tests::servers::SeaweedFs;
use futures::TryStreamExt;
use tokio::process::Command;

use super::report::{Measured, Ratio, Samples, Table, grouped};
use super::{Args, Failure, worker};

const FOLDER: &str = "DES, zstd 3, one worker into a folder";
const S3: &str = "DES, zstd 3, one worker into S3";
const RCLONE: &str = "rclone copy --transfers 32";

/// Packs into both and lets rclone upload, once in each round.
pub(super) fn measure(args: &Args, corpus: &Corpus, scratch: &Path) -> Result<Measured, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(rounds(args, corpus, scratch))
}

async fn rounds(args: &Args, corpus: &Corpus, scratch: &Path) -> Result<Measured, Failure> {
    let weed = SeaweedFs::start().await?;
    let manifest = scratch.join("manifest.ndjson");
    corpus.write_manifest(&manifest)?;
    let few = corpus.part(evenly(corpus, args.rclone_files));
    let mut samples = Samples::default();
    for round in 0..args.rounds {
        let mut note = |name: &str, files: usize, seconds: f64| {
            let rate = files as f64 / seconds;
            eprintln!("round {} {name}: {rate:.0} files/s", round + 1);
            samples.add(name, rate);
        };
        let out = scratch.join("out");
        let folder: SharedStore = Arc::new(LocalStore::create(&out)?);
        note(FOLDER, corpus.files.len(), packed(&folder, corpus, &manifest).await?);
        drop(folder);
        fs::remove_dir_all(&out)?;
        let config = weed.config(&used_bucket(&weed).await?);
        let bucket: SharedStore = Arc::new(S3Store::connect(&config).await?);
        note(S3, corpus.files.len(), packed(&bucket, corpus, &manifest).await?);
        note(RCLONE, few.files.len(), uploaded(&weed, &few, scratch).await?);
    }
    Ok(report(args, corpus, few.files.len(), &samples))
}

/// A bucket that was written to before: the server looks for room when the first object of a new one comes, and that can
/// take a second.
async fn used_bucket(weed: &SeaweedFs) -> Result<String, Failure> {
    let bucket = weed.new_bucket().await?;
    let store = S3Store::connect(&weed.config(&bucket)).await?;
    store.put("first", Bytes::from_static(b"first"), &WriteOptions::overwrite()).await?;
    store.delete("first").await?;
    Ok(bucket)
}

/// Seconds of packing the corpus; what came of it is verified.
async fn packed(store: &SharedStore, corpus: &Corpus, manifest: &Path) -> Result<f64, Failure> {
    let began = Instant::now();
    let segments = worker::planned(manifest, &PackOptions::default())?;
    worker::pack(store, segments, &corpus.root).await?;
    let seconds = began.elapsed().as_secs_f64();
    worker::verified(store, corpus.files.len()).await?;
    Ok(seconds)
}

/// Seconds rclone takes.
async fn uploaded(weed: &SeaweedFs, few: &Corpus, scratch: &Path) -> Result<f64, Failure> {
    let bucket = used_bucket(weed).await?;
    let (names, log) = (scratch.join("few"), scratch.join("rclone.log"));
    few.write_names(&names)?;
    let (key, secret) = SeaweedFs::credentials();
    let mut rclone = Command::new("rclone");
    rclone.args(["copy", "--transfers", "32", "--no-traverse", "--config", "", "--files-from-raw"]).arg(&names);
    rclone.arg(&few.root).arg(format!("weed:{bucket}"));
    let settings = [
        ("TYPE", "s3"),
        ("PROVIDER", "SeaweedFS"),
        ("ACCESS_KEY_ID", key),
        ("SECRET_ACCESS_KEY", secret),
        ("ENDPOINT", &weed.endpoint()),
        ("NO_CHECK_BUCKET", "true"),
    ];
    // What is set for another server, a bundle of certificates for example, is not for this one.
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("AWS_")) {
        rclone.env_remove(name);
    }
    for (name, value) in settings {
        rclone.env(format!("RCLONE_CONFIG_WEED_{name}"), value);
    }
    rclone.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&log)?).kill_on_drop(true);
    let began = Instant::now();
    let status = rclone.status().await.map_err(|e| format!("rclone: {e}"))?;
    let seconds = began.elapsed().as_secs_f64();
    let store: SharedStore = Arc::new(S3Store::connect(&weed.config(&bucket)).await?);
    let objects: Vec<_> = list_all(store, String::new()).try_collect().await?;
    if !status.success() || objects.len() != few.files.len() {
        let log = fs::read_to_string(log)?;
        return Err(format!("rclone: {status}, {} of {} files: {log}", objects.len(), few.files.len()).into());
    }
    Ok(seconds)
}

/// Files from everywhere in the corpus.
fn evenly(corpus: &Corpus, wanted: usize) -> Vec<CorpusFile> {
    let step = corpus.files.len().div_ceil(wanted.max(1)).max(1);
    corpus.files.iter().step_by(step).cloned().collect()
}

fn report(args: &Args, corpus: &Corpus, few: usize, samples: &Samples) -> Measured {
    let mut measured = Measured::new("s3");
    measured.say(&format!(
        "{}; {} rounds, medians. rclone uploads {} of the files. Every bucket had one object before. SeaweedFS, packing and rclone share the cores; SeaweedFS answers before \
         its bytes are synced.",
        corpus.summary(),
        args.rounds,
        grouped(few as f64)
    ));
    let mut table = Table::new(&["one worker", "files/s", "lowest to highest"]);
    for name in [FOLDER, S3, RCLONE] {
        if let Some(spread) = samples.spread(name) {
            let range = format!("{} to {}", grouped(spread.lowest), grouped(spread.highest));
            table.row(&[name.to_owned(), grouped(spread.median), range]);
        }
    }
    measured.table(&table);
    let ratios = [Ratio::of(samples, (S3, FOLDER), "0.8"), Ratio::of(samples, (S3, RCLONE), "20")];
    measured.ratios(&ratios.into_iter().flatten().collect::<Vec<_>>());
    measured
}

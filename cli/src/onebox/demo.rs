//! `des demo`: the whole way of a folder's files, from the manifest to the HTTP answer, in one process and one command.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use des_shared::config::SourceRoots;
use des_shared::job::{JobRequest, JobView};
use des_shared::routing::NBits;
use serde_json::json;

use super::cluster::{COORDINATOR_ADDRESS, Cluster, Port, RETRIEVER_ADDRESS, Setup};
use super::compare::{Comparison, compare};
use crate::args::{DemoArgs, KeyArgs};
use crate::client::{Client, Service};
use crate::error::{CliError, Exit};
use crate::failures::FailureList;
use crate::folder::{FolderWalk, Found, Leave, Skipped};
use crate::input::Input;
use crate::output::{Measure, Screen, bytes, count, duration, number_of, per_second, ratio, visible};
use crate::remote::{Sending, fetch_failures, skipped_text, wait_for};

/// Folders that are left out: history, tools and build results, often far larger than what they were made from.
const LEFT_OUT: &[&str] = &[".git", ".tools", "target"];

/// What is packed.
struct Corpus {
    folder: PathBuf,
    manifest: PathBuf,
    files: u64,
    bytes: u64,
    failures: FailureList,
    skipped: Skipped,
    /// The file of the `curl` line.
    example: Option<(String, String)>,
}

/// Runs `des demo`.
///
/// # Errors
/// When the folder cannot be read or a service fails.
pub(crate) async fn demo(args: DemoArgs, screen: Screen) -> Result<Exit, CliError> {
    let folder = choose_folder(args.folder.as_deref())?;
    // Dropped, and with it removed, at the end of this function, whatever happens in between.
    let scratch = tempfile::Builder::new().prefix("des-demo-").tempdir();
    let scratch = scratch.map_err(|e| CliError::path("create a folder in", &std::env::temp_dir(), &e))?;
    let data = args.keep.clone().unwrap_or_else(|| scratch.path().join("data"));
    screen.note(&format!("packing {} into {}", folder.display(), data.display()));
    let corpus = survey(&folder, &data, scratch.path(), screen)?;
    let port = |usual| if args.keep_running { Port::Usual(usual) } else { Port::Exactly(any_port()) };
    let setup = Setup {
        data: data.clone(),
        roots: SourceRoots { folders: vec![corpus.folder.clone()], buckets: Vec::new() },
        coordinator: port(COORDINATOR_ADDRESS),
        retriever: port(RETRIEVER_ADDRESS),
        slots: crate::pack::side_by_side(None),
        n_bits: None,
        // A demonstration has thousands of files at the most: 16 slots a day give shards worth the name.
        usual_bits: NBits::new(4).expect("4 is in 4 to 16"),
    };
    let cluster = Cluster::start(setup, screen).await?;
    let work = through(&cluster, corpus, screen);
    let outcome = tokio::select! {
        outcome = work => outcome,
        _ = tokio::signal::ctrl_c() => Err(CliError::Interrupted),
    };
    let exit = match outcome {
        Ok(mut story) => {
            story.tell(&args, &cluster, screen)?;
            story.exit()
        }
        Err(error) => {
            cluster.stop().await?;
            return Err(error);
        }
    };
    if args.keep_running {
        cluster.run_until_stopped().await?;
    }
    cluster.stop().await?;
    Ok(exit)
}

fn any_port() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

/// The folder given, or the checkout of the project around the current folder.
fn choose_folder(given: Option<&Path>) -> Result<PathBuf, CliError> {
    if let Some(folder) = given {
        return Ok(folder.to_owned());
    }
    let here = std::env::current_dir().map_err(|e| CliError::failed(format!("there is no current folder: {e}")))?;
    let is_checkout = |folder: &&Path| {
        ["Cargo.toml", "shared/Cargo.toml", "cli/Cargo.toml", "retriever/Cargo.toml"]
            .iter()
            .all(|f| folder.join(f).is_file())
    };
    here.ancestors().find(is_checkout).map(Path::to_owned).ok_or_else(|| {
        CliError::usage("no FOLDER was given, and the current folder is not in a checkout of DES")
            .hint("name any folder with files in it: des demo FOLDER")
    })
}

/// Walks the folder and writes its manifest.
fn survey(folder: &Path, data: &Path, scratch: &Path, screen: Screen) -> Result<Corpus, CliError> {
    let manifest = scratch.join("manifest.ndjson");
    let file = File::create(&manifest).map_err(|e| CliError::path("write", &manifest, &e))?;
    let mut out = BufWriter::new(file);
    let leave = Leave { names: LEFT_OUT, folder: std::fs::canonicalize(data).ok() };
    let mut walk = FolderWalk::open(folder, leave)?;
    let mut corpus = Corpus {
        folder: std::fs::canonicalize(folder).map_err(|e| CliError::path("open", folder, &e))?,
        manifest: manifest.clone(),
        files: 0,
        bytes: 0,
        failures: FailureList::create(None)?,
        skipped: Skipped::default(),
        example: None,
    };
    let mut meter = screen.meter("looking");
    for found in walk.by_ref() {
        let entry = match found {
            Found::Failed(failure) => {
                corpus.failures.push(&failure)?;
                continue;
            }
            Found::File(entry) => entry,
        };
        let line = json!({
            "uid": entry.uid, "created_at": entry.created_at.as_str(), "size_bytes": entry.size_bytes,
            "source_path": entry.source_path,
        });
        writeln!(out, "{line}").map_err(|e| CliError::path("write", &manifest, &e))?;
        corpus.files += 1;
        corpus.bytes = corpus.bytes.saturating_add(entry.size_bytes);
        if corpus.example.is_none() || entry.uid.as_str() == "README.md" {
            corpus.example = Some((entry.uid.to_string(), entry.created_at.as_str().to_owned()));
        }
        meter.set(&Measure { files: corpus.files, bytes: corpus.bytes, ..Measure::default() });
    }
    meter.finish();
    out.flush().map_err(|e| CliError::path("write", &manifest, &e))?;
    corpus.skipped = walk.skipped();
    if corpus.files == 0 {
        return Err(CliError::failed(format!("there are no files in {}", folder.display()))
            .hint("name a folder with files in it: des demo FOLDER"));
    }
    Ok(corpus)
}

/// What happened.
struct Story {
    corpus: Corpus,
    job: JobView,
    packing: Duration,
    comparison: Comparison,
}

/// Submits, waits, reads back.
async fn through(cluster: &Cluster, mut corpus: Corpus, screen: Screen) -> Result<Story, CliError> {
    let nobody = KeyArgs { api_key: None };
    let coordinator = Client::new(Service::Coordinator, cluster.coordinator(), &nobody)?;
    let retriever = Client::new(Service::Retriever, cluster.retriever(), &nobody)?;
    let started = Instant::now();
    let quiet = Screen::new(true);
    let list = FailureList::create(None)?;
    let (body, sending) = Sending::start(&Input::Manifest(corpus.manifest.clone()), Leave::default(), list)?;
    let options = JobRequest { name: Some("demo".to_owned()), ..JobRequest::default() };
    let answer = coordinator.submit_stream(body, &options, None).await;
    let id = sending.finish(answer, quiet).await?.submitted.job.id.to_string();
    let (job, _) = wait_for(&coordinator, &id, screen).await?;
    let packing = started.elapsed();
    if let Some(error) = &job.error {
        return Err(CliError::failed(format!("the job failed: {error}")));
    }
    fetch_failures(&coordinator, &id, &mut corpus.failures).await?;
    let comparison = compare(&retriever, &corpus.manifest, (corpus.files, corpus.bytes), screen).await?;
    Ok(Story { corpus, job, packing, comparison })
}

impl Story {
    fn exit(&self) -> Exit {
        let compared = self.comparison.equal == self.corpus.files;
        match (compared, self.corpus.failures.count()) {
            (true, 0) => Exit::Done,
            (true, _) => Exit::SomeFilesFailed,
            // What is in no shard cannot be served: that alone is not a failure of serving.
            (false, _)
                if self.comparison.equal == self.comparison.served
                    && self.comparison.equal == self.job.files.packed =>
            {
                Exit::SomeFilesFailed
            }
            (false, _) => Exit::Failed,
        }
    }

    fn reads_per_second(&self) -> u64 {
        per_second(self.comparison.served, self.comparison.took)
    }

    fn curl(&self, cluster: &Cluster, args: &DemoArgs) -> Result<Option<String>, CliError> {
        let Some((uid, created_at)) = &self.corpus.example else { return Ok(None) };
        let usual = format!("http://{RETRIEVER_ADDRESS}");
        let base = if args.keep_running { cluster.retriever() } else { &usual };
        let client = Client::new(Service::Retriever, base, &KeyArgs { api_key: None })?;
        Ok(Some(format!("curl '{}'", client.file_url(uid, created_at)?.as_str().replace('\'', "%27"))))
    }

    fn tell(&mut self, args: &DemoArgs, cluster: &Cluster, screen: Screen) -> Result<(), CliError> {
        let curl = self.curl(cluster, args)?;
        let (files, back) = (self.corpus.files, &self.comparison);
        let (source, stored) = (self.corpus.bytes, self.job.bytes.stored);
        if screen.json() {
            return screen.object(&json!({
                "ok": self.exit() == Exit::Done, "folder": self.corpus.folder,
                "files": {
                    "accepted": files + self.corpus.failures.count() - self.job.files.failed, "packed": self.job.files.packed,
                    "failed": self.corpus.failures.count(), "served": back.served, "compared": back.equal,
                },
                "bytes": { "source": source, "stored": stored, "served": back.bytes },
                "shards": self.job.shards.committed,
                "ratio": (stored > 0).then(|| source as f64 / stored as f64),
                "seconds": { "packing": self.packing.as_secs_f64(), "reading": back.took.as_secs_f64() },
                "reads_per_second": self.reads_per_second(), "wrong": back.wrong,
                "failures": self.corpus.failures.first()?, "curl": curl,
            }));
        }
        let rate = |n: u64, time: Duration| bytes(per_second(n, time));
        let mut lines = vec![
            String::new(),
            format!("{}: {}, {}", self.corpus.folder.display(), number_of(files, "file"), bytes(source)),
            format!(
                "  packed    {} into {} in {} ({}/s)",
                number_of(self.job.files.packed, "file"),
                number_of(self.job.shards.committed, "shard"),
                duration(self.packing),
                rate(source, self.packing),
            ),
            format!("  stored    {} for {}: {}", bytes(stored), bytes(source), ratio(source, stored)),
            format!(
                "  served    {} of {} files over HTTP in {} ({} reads/s, {}/s)",
                count(back.served),
                count(files),
                duration(back.took),
                count(self.reads_per_second()),
                rate(back.bytes, back.took),
            ),
            format!(
                "  compared  {} of {} files have the same SHA-256 as their source",
                count(back.equal),
                count(files)
            ),
        ];
        lines.extend(back.wrong.iter().map(|why| format!("  WRONG     {}", visible(why))));
        lines.push(String::new());
        lines.extend(self.next_steps(args, curl));
        lines.iter().try_for_each(|line| screen.line(line))?;
        if let Some(text) = skipped_text(self.corpus.skipped) {
            screen.note(&text);
        }
        self.corpus.failures.show(screen)
    }

    fn next_steps(&self, args: &DemoArgs, curl: Option<String>) -> Vec<String> {
        let mut lines = Vec::new();
        let folder = self.corpus.folder.display();
        match (&args.keep, args.keep_running) {
            (_, true) => lines.push("Still serving; Ctrl-C stops it. Try:".to_owned()),
            (Some(data), false) => {
                lines.push(format!("The shards are in {}. To serve them again:", data.join("shards").display()));
                lines.push(format!("  des dev --data {}", data.display()));
            }
            (None, false) => {
                lines.push("The shards were temporary and are gone. To keep serving them:".to_owned());
                lines.push(format!("  des demo {folder} --keep-running"));
            }
        }
        if let (false, Some(_)) = (args.keep_running, &curl) {
            lines.push("and, while that runs:".to_owned());
        }
        lines.extend(curl.map(|curl| format!("  {curl}")));
        lines
    }
}

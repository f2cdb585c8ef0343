//! From an input to the plan of its shards.

use std::collections::BTreeSet;
use std::sync::mpsc;
use std::thread;

use des_shared::manifest::{ManifestEntry, ManifestError, SourceUri};
use des_shared::plan::{PlanConfig, PlannedShards, Planner};
use sha2::{Digest, Sha256};

use super::Request;
use crate::error::CliError;
use crate::failures::FailureList;
use crate::folder::{Leave, Skipped};
use crate::input::{Entries, Item};
use crate::output::{Measure, Meter};

/// How often the reader of the input reports, in files.
const REPORT_EVERY: u64 = 512;
/// Items that the reader of the input hands over together, about as many bytes of text, and such bundles that it is
/// ahead of the planner.
const BUNDLE: usize = 256;
const BUNDLE_BYTES: usize = 256 * 1024;
const BUNDLES_AHEAD: usize = 4;

/// The plan of a run.
pub(super) struct Plan {
    pub(super) shards: PlannedShards,
    /// Buckets that sources lie in.
    pub(super) buckets: BTreeSet<String>,
    /// Files that failed before anything was packed.
    pub(super) failures: FailureList,
    pub(super) skipped: Skipped,
    /// Digest of the input and of every option that changes a byte or a name, in hex.
    pub(super) fingerprint: String,
}

/// Reads the whole input and groups it. Blocks; runs on a thread of its own.
///
/// # Errors
/// When the input cannot be read or is wrong: nothing has been written then.
pub(super) fn make(request: &Request, mut failures: FailureList, mut meter: Meter) -> Result<Plan, CliError> {
    let mut config = PlanConfig::new();
    config.n_bits = request.n_bits;
    config.max_shard_size = request.max_shard_size;
    config.date_rule = request.date_rule;
    if let Some(dir) = &request.spool_dir {
        config.spool_dir.clone_from(dir);
    }
    let leave = Leave { names: &[], folder: std::fs::canonicalize(&request.output_dir).ok() };
    let entries = request.input.entries(request.base.clone(), leave)?;
    let mut planner = Planner::new(config)?;
    let mut buckets = BTreeSet::new();
    let mut measure = Measure::default();
    let mut fingerprint = Fingerprint::new(request);
    let mut take = |item: Item| -> Result<(), CliError> {
        match item {
            Item::Failed(failure) => failures.push(&failure)?,
            Item::File(position, entry) => {
                if entry.source_path.starts_with("s3://")
                    && let Ok(uri) = SourceUri::parse(&entry.source_path)
                    && !buckets.contains(uri.bucket())
                {
                    buckets.insert(uri.bucket().to_owned());
                }
                fingerprint.add(&entry);
                planner.push(position, &entry)?;
                measure.files += 1;
                measure.bytes = measure.bytes.saturating_add(entry.size_bytes);
                if measure.files.is_multiple_of(REPORT_EVERY) {
                    meter.set(&measure);
                }
            }
        }
        Ok(())
    };
    let skipped = read_ahead(entries, &mut take)?;
    if measure.files == 0 && failures.count() == 0 && request.refuse_empty {
        return Err(match request.input {
            crate::input::Input::Folder(ref path) => {
                CliError::failed(format!("there are no files in {}", path.display()))
            }
            _ => ManifestError::Empty.into(),
        });
    }
    let shards = planner.finish()?;
    meter.finish();
    Ok(Plan { shards, buckets, failures, skipped, fingerprint: fingerprint.finish() })
}

/// Reads the input on a thread of its own while what was read before is planned here. Says what was left out.
fn read_ahead(mut entries: Entries, take: &mut impl FnMut(Item) -> Result<(), CliError>) -> Result<Skipped, CliError> {
    thread::scope(|scope| {
        let (sender, bundles) = mpsc::sync_channel::<Vec<Result<Item, CliError>>>(BUNDLES_AHEAD);
        let reader = scope.spawn(move || {
            loop {
                let (mut bundle, mut bytes) = (Vec::new(), 0);
                while bundle.len() < BUNDLE && bytes < BUNDLE_BYTES {
                    let Some(item) = entries.next() else { break };
                    bytes += item.as_ref().map_or(0, Item::text_bytes);
                    bundle.push(item);
                }
                // Nobody takes it when the planner has failed.
                if bundle.is_empty() || sender.send(bundle).is_err() {
                    return entries.skipped();
                }
            }
        });
        // The receiver is dropped here, before the reader is waited for.
        let outcome = bundles.into_iter().flatten().try_for_each(|item| take(item?));
        let skipped = reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        outcome.map(|()| skipped)
    })
}

/// The identity of a run.
struct Fingerprint(Sha256);

impl Fingerprint {
    fn new(request: &Request) -> Self {
        let mut this = Self(Sha256::new());
        let Request { options, n_bits, max_shard_size, date_rule, names, .. } = request;
        let epoch = std::env::var("SOURCE_DATE_EPOCH").unwrap_or_default();
        this.field(format!("{options:?} {n_bits:?} {max_shard_size} {date_rule:?} {names:?} {epoch:?}").as_bytes());
        this
    }

    fn add(&mut self, entry: &ManifestEntry) {
        self.field(entry.uid.as_str().as_bytes());
        self.field(entry.created_at.as_str().as_bytes());
        self.field(&entry.size_bytes.to_le_bytes());
        self.field(entry.source_path.as_bytes());
    }

    fn field(&mut self, bytes: &[u8]) {
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }

    fn finish(self) -> String {
        use std::fmt::Write;
        self.0.finalize().iter().take(16).fold(String::new(), |mut text, byte| {
            write!(text, "{byte:02x}").expect("writing to a string");
            text
        })
    }
}

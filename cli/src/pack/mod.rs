//! `des pack` and `des-pack`: packing on this machine, with no service at all.
//!
//! The way of a run: [`plan`] reads the input and groups it into shards, [`run`] packs them side by side into the output
//! folder, [`numbers`] names them where bare names are wanted, [`resume`] keeps what an interrupted run goes on from. Nothing is written before the whole plan stands, and a
//! shard appears under its name only when all of it is on disk.

mod drop_in;
mod numbers;
mod plan;
mod resume;
mod run;
mod shard;

use std::path::{Path, PathBuf};
use std::time::Duration;

use des_shared::clock::{Clock, SystemClock};
use des_shared::manifest::SourceBase;
use des_shared::plan::PlanConfig;
use des_shared::routing::{DateRule, NBits};
use des_shared::segment::PackOptions;
use des_shared::store::local::LocalStore;
use serde_json::json;

use self::resume::Resume;
use crate::args::{PackArgs, S3Args};
use crate::error::{CliError, Exit};
use crate::failures::FailureList;
use crate::input::Input;
use crate::output::{Screen, bytes, count, duration, ratio};
use crate::remote::skipped_text;

pub(crate) use drop_in::{DropInArgs, drop_in};

/// How shards are named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Names {
    /// By the digest of what is in them: the same work writes nothing new.
    Digest,
    /// By their slot and the next free number, as existing readers know them.
    Bare,
}

/// One run of the packer.
struct Request {
    input: Input,
    /// What relative sources are relative to; the manifest's own folder when `None`.
    base: Option<SourceBase>,
    output_dir: PathBuf,
    options: PackOptions,
    n_bits: NBits,
    max_shard_size: u64,
    date_rule: DateRule,
    names: Names,
    spool_dir: Option<PathBuf>,
    side_by_side: SideBySide,
    s3: S3Args,
    /// Whether nothing at all to pack is an error.
    refuse_empty: bool,
}

/// What became of a run.
struct Outcome {
    /// One for each planned shard, in the order of the plan.
    shards: Vec<run::Written>,
    /// Files of the input, those that failed included.
    accepted: u64,
    skipped: crate::folder::Skipped,
    failures: FailureList,
    took: Duration,
    /// What is kept in case the run is interrupted.
    state: Option<(LocalStore, Resume)>,
}

impl Outcome {
    fn sum(&self, of: impl Fn(&run::Written) -> u64) -> u64 {
        self.shards.iter().map(of).fold(0, u64::saturating_add)
    }

    /// The run is over. Called once the result has been said: whoever is killed before goes on here and says it again, and
    /// nobody who was told nothing packs everything a second time under new names.
    async fn put_away(self) -> Result<(), CliError> {
        match self.state {
            Some((store, resume)) => resume.end(&store, true).await.map(drop),
            None => Ok(()),
        }
    }
}

/// Files of a small shard at most, and their bytes: one part, and little to remember.
const SMALL_FILES: usize = 16_384;
const SMALL_BYTES: u64 = 4 << 20;
/// Small shards packed in the place of one.
const SMALL_FOR_ONE: usize = 8;

/// How many shards are packed at once. While a small one is made durable, which keeps no core busy, others are filled.
#[derive(Clone, Copy, Debug)]
struct SideBySide {
    shards: usize,
    small: usize,
}

impl SideBySide {
    fn new(asked: Option<u16>) -> Self {
        // One more than elsewhere: while one is made durable all cores have another. Whoever asks for a number gets it.
        let shards = side_by_side(asked) + usize::from(asked.is_none());
        Self { shards, small: if asked.is_some() { shards } else { shards * SMALL_FOR_ONE } }
    }

    /// How many places of [`Self::small`] a shard takes.
    fn places(self, files: usize, bytes: u64) -> u32 {
        let small = files <= SMALL_FILES && bytes <= SMALL_BYTES;
        u32::try_from(if small { 1 } else { self.small / self.shards }).unwrap_or(1)
    }
}

/// How many shards are worked on at once: as asked, or one a core, at least two, because reading and compressing alternate.
pub(crate) fn side_by_side(asked: Option<u16>) -> usize {
    match asked {
        Some(n) => usize::from(n),
        None => std::thread::available_parallelism().map_or(2, std::num::NonZero::get).max(2),
    }
}

/// Runs `des pack`.
///
/// # Errors
/// When the input is wrong or the output folder cannot be written.
pub(crate) async fn pack(args: PackArgs, screen: Screen) -> Result<Exit, CliError> {
    let request = Request {
        input: Input::find(&args.input)?,
        base: None,
        output_dir: args.output_dir.clone(),
        options: args.shard.pack_options(),
        n_bits: args.shard.n_bits,
        max_shard_size: args.shard.max_shard_size,
        date_rule: args.date_rule.into(),
        names: if args.bare_names { Names::Bare } else { Names::Digest },
        spool_dir: args.spool_dir,
        side_by_side: SideBySide::new(args.jobs),
        s3: args.s3,
        refuse_empty: true,
    };
    let mut outcome = run::run(request, args.failures, screen).await?;
    show(&mut outcome, &args.output_dir, screen)?;
    let exit = if outcome.failures.count() == 0 { Exit::Done } else { Exit::SomeFilesFailed };
    outcome.put_away().await?;
    Ok(exit)
}

/// A manifest to pack in format v3, for another command.
pub(crate) struct Work {
    pub(crate) manifest: PathBuf,
    pub(crate) output_dir: PathBuf,
    pub(crate) options: PackOptions,
    pub(crate) n_bits: NBits,
    pub(crate) jobs: Option<u16>,
}

/// What came of a [`Work`].
pub(crate) struct PackedManifest {
    pub(crate) files: u64,
    pub(crate) failed: u64,
    pub(crate) source_bytes: u64,
    pub(crate) stored_bytes: u64,
    /// From reading the manifest to the last durable shard.
    pub(crate) took: Duration,
}

/// Packs as `des pack` does, without saying so.
///
/// # Errors
/// As [`pack`].
pub(crate) async fn pack_manifest(work: Work, screen: Screen) -> Result<PackedManifest, CliError> {
    let request = Request {
        input: Input::Manifest(work.manifest),
        base: None,
        output_dir: work.output_dir,
        options: work.options,
        n_bits: work.n_bits,
        max_shard_size: PlanConfig::new().max_shard_size,
        date_rule: DateRule::default(),
        names: Names::Digest,
        spool_dir: None,
        side_by_side: SideBySide::new(work.jobs),
        s3: S3Args::default(),
        refuse_empty: true,
    };
    let outcome = run::run(request, None, screen).await?;
    let packed = PackedManifest {
        files: outcome.sum(|s| s.files),
        failed: outcome.failures.count(),
        source_bytes: outcome.sum(|s| s.source_bytes),
        stored_bytes: outcome.sum(|s| s.stored_bytes),
        took: outcome.took,
    };
    outcome.put_away().await?;
    Ok(packed)
}

fn show(outcome: &mut Outcome, output_dir: &Path, screen: Screen) -> Result<(), CliError> {
    let packed = outcome.sum(|s| s.files);
    let failed = outcome.failures.count();
    let (source, stored) = (outcome.sum(|s| s.source_bytes), outcome.sum(|s| s.stored_bytes));
    let present = outcome.shards.iter().filter(|s| s.key.is_some()).count() as u64;
    let known = outcome.shards.iter().filter(|s| s.key.is_some() && s.known).count() as u64;
    if screen.json() {
        return screen.object(&json!({
            "output_dir": output_dir,
            "files": { "accepted": outcome.accepted, "packed": packed, "failed": failed },
            "bytes": { "source": source, "stored": stored },
            "shards": { "written": present - known, "already_there": known },
            "skipped": { "symbolic_links": outcome.skipped.links, "special_files": outcome.skipped.special },
            "failures": outcome.failures.first()?, "failures_file": outcome.failures.path(),
            "seconds": outcome.took.as_secs_f64(),
        }));
    }
    let there = if known == 0 { String::new() } else { format!(", {} were there already", count(known)) };
    screen.line(&format!("packed into {}", output_dir.display()))?;
    screen.line(&format!(
        "  files   {} accepted = {} packed + {} failed",
        count(outcome.accepted),
        count(packed),
        count(failed)
    ))?;
    screen.line(&format!(
        "  bytes   {} of source, {} stored ({})",
        bytes(source),
        bytes(stored),
        ratio(source, stored)
    ))?;
    screen.line(&format!("  shards  {} written{there}", count(present - known)))?;
    screen.line(&format!("  time    {}", duration(outcome.took)))?;
    if let Some(text) = skipped_text(outcome.skipped) {
        screen.note(&text);
    }
    outcome.failures.show(screen)
}

/// The sequence of the shards of this run, Unix milliseconds: `SOURCE_DATE_EPOCH` where that is set, so that a build can
/// be repeated byte for byte, otherwise now.
fn sequence() -> Result<u64, CliError> {
    match std::env::var("SOURCE_DATE_EPOCH") {
        Ok(text) if !text.is_empty() => text
            .trim()
            .parse::<u64>()
            .ok()
            .and_then(|s| s.checked_mul(1000))
            .ok_or_else(|| CliError::usage(format!("SOURCE_DATE_EPOCH is {text:?}; expected seconds since 1970"))),
        _ => Ok(SystemClock.now_ms()),
    }
}

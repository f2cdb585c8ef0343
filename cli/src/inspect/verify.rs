//! `des verify`: everything shards promise, checked: structure, every checksum, every file decompressed, big files hashed.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use des_shared::archive::{self, ArchiveError, Depth, Report, VerifyEvent};
use des_shared::shard::ShardError;
use futures::TryStreamExt;
use serde_json::json;

use super::is_hopeless;
use super::location::{Location, beside};
use crate::args::VerifyArgs;
use crate::error::{CliError, Exit};
use crate::output::{Measure, Meter, Screen, bytes, count, duration, number_of, visible};

/// What was found so far, shared by the shards that are verified side by side.
struct Tally {
    screen: Screen,
    meter: Option<Meter>,
    measure: Measure,
    shards: u64,
    big_files: u64,
    raw_bytes: u64,
    stored_bytes: u64,
    problems: u64,
    damaged_shards: u64,
    /// A result that could not be written: everything stops.
    broken: Option<CliError>,
}

type Shared = Arc<Mutex<Tally>>;

/// Runs `des verify`.
///
/// # Errors
/// When a location cannot be read or holds no shards. Damage is not an error of the command: it is its result.
pub(crate) async fn verify(args: VerifyArgs, screen: Screen) -> Result<Exit, CliError> {
    let mut locations = Vec::new();
    let (mut shards, mut size) = (0_u64, 0_u64);
    for text in &args.locations {
        let location = Location::open(text, &args.s3).await?;
        let before = shards;
        let mut listed = location.shards("");
        // Listed twice, to know how far it is without keeping the list.
        while let Some(object) = listed.try_next().await? {
            shards += 1;
            size += object.size;
        }
        if shards == before {
            return Err(CliError::failed(format!("there are no shards in {}", location.url()))
                .hint("a shard is an object whose name ends with .des"));
        }
        locations.push(location);
    }
    let tally = Arc::new(Mutex::new(Tally::new(screen, shards, size)));
    for location in &locations {
        run(location, &args, &tally).await?;
    }
    conclude(&tally)
}

async fn run(location: &Location, args: &VerifyArgs, tally: &Shared) -> Result<(), CliError> {
    let side_by_side = crate::pack::side_by_side(args.jobs);
    let checks = location.shards("").map_ok(|object| {
        let prefix = args.deep.then(|| beside(&object.key, &args.place.bigfiles_prefix));
        let (store, tally) = (location.store().clone(), Arc::clone(tally));
        let check = tokio::spawn(async move {
            let mut problems = 0;
            let mut seen = 0;
            let mut on_event = |event| match event {
                VerifyEvent::Progress(progress) => {
                    let now = progress.stored_bytes.min(object.size);
                    lock(&tally).advance(now.saturating_sub(seen));
                    seen = now.max(seen);
                }
                VerifyEvent::Problem(error) => {
                    problems += 1;
                    lock(&tally).problem(&object.key, &error);
                }
            };
            let outcome = archive::verify(store, &object.key, Depth::Full, prefix.as_deref(), &mut on_event).await;
            lock(&tally).end(&object.key, object.size.saturating_sub(seen), problems, outcome)
        });
        async move { check.await.unwrap_or_else(|e| Err(CliError::failed(format!("verifying failed: {e}")))) }
    });
    checks.try_buffer_unordered(side_by_side).try_for_each(|()| futures::future::ok(())).await
}

fn lock(tally: &Shared) -> MutexGuard<'_, Tally> {
    // Counters stay counters even when the thread that held them panicked.
    tally.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Tally {
    fn new(screen: Screen, shards: u64, size: u64) -> Self {
        let mut meter = screen.meter("verifying");
        let measure = Measure { of_bytes: Some(size), note: number_of(shards, "shard"), ..Measure::default() };
        meter.set(&measure);
        Self {
            screen,
            meter: Some(meter),
            measure,
            shards: 0,
            big_files: 0,
            raw_bytes: 0,
            stored_bytes: 0,
            problems: 0,
            damaged_shards: 0,
            broken: None,
        }
    }

    fn advance(&mut self, bytes: u64) {
        self.measure.bytes += bytes;
        if let Some(meter) = &mut self.meter {
            meter.set(&self.measure);
        }
    }

    fn problem(&mut self, key: &str, error: &ArchiveError) {
        self.problems += 1;
        let (uid, offset) = match error {
            ArchiveError::Shard { source: ShardError::CorruptEntry { uid, offset, .. }, .. } => {
                (Some(uid.as_str()), Some(*offset))
            }
            ArchiveError::Shard { source: ShardError::Corrupt { offset, .. }, .. } => (None, Some(*offset)),
            _ => (None, None),
        };
        let written = if self.screen.json() {
            self.screen.object(&json!({ "shard": key, "uid": uid, "offset": offset, "problem": error.to_string() }))
        } else {
            let line = format!("DAMAGED  {}", visible(&error.to_string()));
            let screen = self.screen;
            match &self.meter {
                Some(meter) => meter.beside(|| screen.line(&line)),
                None => screen.line(&line),
            }
        };
        if let Err(error) = written {
            self.broken.get_or_insert(error);
        }
    }

    /// A shard is done: counts it, or says why it could not be opened.
    fn end(
        &mut self,
        key: &str,
        rest: u64,
        problems: u64,
        outcome: Result<Report, ArchiveError>,
    ) -> Result<(), CliError> {
        self.shards += 1;
        let damaged = match outcome {
            Ok(report) => {
                self.measure.files += report.entries;
                self.big_files += report.big_files;
                self.raw_bytes = self.raw_bytes.saturating_add(report.raw_bytes);
                self.stored_bytes = self.stored_bytes.saturating_add(report.stored_bytes);
                problems > 0
            }
            Err(error) if is_hopeless(&error) => return Err(error.into()),
            Err(error) => {
                self.problem(key, &error);
                true
            }
        };
        self.damaged_shards += u64::from(damaged);
        self.advance(rest);
        match self.broken.take() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }
}

fn conclude(tally: &Shared) -> Result<Exit, CliError> {
    let mut tally = lock(tally);
    let time = tally.meter.take().map(Meter::finish).unwrap_or_default();
    let screen = tally.screen;
    if screen.json() {
        screen.object(&json!({
            "ok": tally.problems == 0, "shards": tally.shards, "damaged_shards": tally.damaged_shards,
            "files": tally.measure.files, "big_files": tally.big_files, "raw_bytes": tally.raw_bytes,
            "stored_bytes": tally.stored_bytes, "problems": tally.problems,
        }))?;
    } else {
        let verdict = match tally.problems {
            0 => "everything is right".to_owned(),
            n => format!("{} in {}", number_of(n, "problem"), number_of(tally.damaged_shards, "shard")),
        };
        screen.line(&format!(
            "{}, {} ({} big), {} of content in {} verified in {}: {verdict}",
            number_of(tally.shards, "shard"),
            number_of(tally.measure.files, "file"),
            count(tally.big_files),
            bytes(tally.raw_bytes),
            bytes(tally.measure.bytes),
            duration(time),
        ))?;
    }
    Ok(if tally.problems == 0 { Exit::Done } else { Exit::Failed })
}

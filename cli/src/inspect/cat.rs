//! `des cat`: one file's bytes, from the shard that counts.
//!
//! Of several shards that hold the uid the one with the higher sequence wins, then the greater key, as for every reader.

use des_shared::archive::{ArchiveError, RemoteShard, Source, open_big_file};
use des_shared::created_at::CreatedAt;
use des_shared::routing::{Slot, candidate_slots};
use des_shared::shard::{Entry, Location as Place};
use des_shared::store::ObjectMeta;
use des_shared::tombstone::rfc3339;
use futures::TryStreamExt;
use serde_json::json;

use super::deleted::Deleted;
use super::is_hopeless;
use super::location::{Location, beside};
use crate::args::CatArgs;
use crate::error::{CliError, Exit};
use crate::output::{Measure, Screen};
use crate::remote::Sink;

/// Shards opened side by side while searching.
const SEARCH_WIDTH: usize = 8;

/// A shard that holds the uid.
struct Hit {
    shard: RemoteShard,
    entry: Entry,
}

impl Hit {
    fn rank(&self) -> (u64, &str) {
        (self.shard.sequence(), &self.shard.object().key)
    }
}

/// Runs `des cat`.
///
/// # Errors
/// When no shard holds the uid, its bytes are damaged, or the output cannot be written.
pub(crate) async fn cat(args: CatArgs, screen: Screen) -> Result<Exit, CliError> {
    if screen.json() && args.output.is_none() {
        return Err(CliError::usage("--json needs --output FILE: both would go to standard output"));
    }
    let location = Location::open(&args.location, &args.s3).await?;
    let slots = match (&args.created_at, location.is_one()) {
        (Some(text), false) => {
            let created_at = CreatedAt::parse_query(text).map_err(|e| CliError::usage(format!("--created-at: {e}")))?;
            candidate_slots(&args.uid, &created_at, args.n_bits)
        }
        _ => Vec::new(),
    };
    let Some(hit) = locate(&location, &args.uid, &slots, screen).await? else {
        return Err(absent(&args, &location, &slots));
    };
    if !args.deleted {
        // What was packed before a deletion is hidden by it, so the shard that counts decides.
        let deleted = Deleted::default().of(&location, &hit.shard).await?;
        if let Some(time) = deleted.hides(&hit.shard, &args.uid) {
            let time = rfc3339(time);
            return Err(CliError::failed(format!("{:?} was deleted at {time}", args.uid))
                .hint("its bytes are still in its shard; --deleted reads them"));
        }
    }
    write(&location, &hit, &args, screen).await?;
    Ok(Exit::Done)
}

fn absent(args: &CatArgs, location: &Location, slots: &[Slot]) -> CliError {
    let places: Vec<String> = slots.iter().map(|slot| format!("{}*", slot.object_prefix())).collect();
    let failed = CliError::failed(format!("no file {:?} in {}", args.uid, location.url()));
    if places.is_empty() {
        return failed.hint("des ls lists the uids that are there");
    }
    failed.hint(format!(
        "searched {}; check --created-at and --n-bits, or leave --created-at out to search every shard",
        places.join(" and ")
    ))
}

/// The winning shard: of the first slot that has the uid, or of all shards when there are no slots.
async fn locate(location: &Location, uid: &str, slots: &[Slot], screen: Screen) -> Result<Option<Hit>, CliError> {
    if slots.is_empty() {
        return search(location, uid, "", screen).await;
    }
    for slot in slots {
        if let Some(hit) = search(location, uid, &slot.object_prefix(), screen).await? {
            return Ok(Some(hit));
        }
    }
    Ok(None)
}

async fn search(location: &Location, uid: &str, prefix: &str, screen: Screen) -> Result<Option<Hit>, CliError> {
    let mut meter = screen.meter("searching");
    let looks = location.shards(prefix).map_ok(|object| async move { look(location, &object, uid).await });
    let mut looks = looks.try_buffer_unordered(SEARCH_WIDTH);
    let (mut best, mut damaged, mut measure) =
        (None::<Hit>, Vec::new(), Measure { note: "shards searched".to_owned(), ..Measure::default() });
    while let Some(found) = looks.try_next().await? {
        measure.files += 1;
        meter.set(&measure);
        match found {
            Ok(Some(hit)) if best.as_ref().is_none_or(|best| best.rank() < hit.rank()) => best = Some(hit),
            Ok(_) => {}
            Err(error) => damaged.push(error),
        }
    }
    meter.finish();
    match (&best, damaged.pop()) {
        // A damaged shard may be the one that holds it.
        (None, Some(error)) => return Err(error.into()),
        (Some(_), Some(error)) => screen.warn(&format!("{error}; the file was found in another shard")),
        (_, None) => {}
    }
    Ok(best)
}

/// Damage of one shard is a finding; a store that fails ends the search.
async fn look(
    location: &Location,
    object: &ObjectMeta,
    uid: &str,
) -> Result<Result<Option<Hit>, ArchiveError>, CliError> {
    let found = async {
        let shard = RemoteShard::open(location.store().clone(), &object.key).await?;
        let entry = shard.find(uid).await?;
        Ok(entry.map(|entry| Hit { shard, entry }))
    };
    match found.await {
        Err(error) if is_hopeless(&error) => Err(error.into()),
        other => Ok(other),
    }
}

async fn write(location: &Location, hit: &Hit, args: &CatArgs, screen: Screen) -> Result<(), CliError> {
    let key = &hit.shard.object().key;
    let mut sink = Sink::open(args.output.as_deref())?;
    match hit.entry.location {
        Place::Inline(_) => sink.write(&hit.shard.read(&hit.entry).await?)?,
        Place::BigFile { sha256, size } => {
            let source = Source::from(location.store().clone());
            let prefix = beside(key, &args.place.bigfiles_prefix);
            let mut pieces = open_big_file(&source, &prefix, sha256, size).await?.stream;
            while let Some(piece) = pieces.try_next().await? {
                sink.write(&piece)?;
            }
        }
    }
    sink.finish()?;
    if screen.json() {
        screen.object(&json!({
            "uid": args.uid, "shard": key, "size_bytes": hit.entry.raw_len(), "output": args.output,
        }))?;
    }
    Ok(())
}

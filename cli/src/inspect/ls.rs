//! `des ls`: every file of every shard, as a stream. Deleted files are still in their shards and are marked.

use des_shared::archive::RemoteShard;
use des_shared::shard::{Entry, Location as Place, hex32};
use des_shared::tombstone::rfc3339;
use futures::{StreamExt, TryStreamExt};
use serde_json::{Value, json};

use super::deleted::Deleted;
use super::is_hopeless;
use super::location::Location;
use crate::args::LsArgs;
use crate::error::{CliError, Exit};
use crate::output::{Lines, Screen, bytes, number_of, visible};

/// Runs `des ls`.
///
/// # Errors
/// When the location cannot be read, holds no shards, or standard output fails.
pub(crate) async fn ls(args: LsArgs, screen: Screen) -> Result<Exit, CliError> {
    let location = Location::open(&args.location, &args.s3).await?;
    let mut shards = location.shards("");
    let mut out = Lines::new();
    let (mut found, mut damaged, mut deleted) = (0_u64, 0_u64, Deleted::default());
    while let Some(object) = shards.try_next().await? {
        if found > 0 && !screen.json() {
            out.line("")?;
        }
        found += 1;
        match RemoteShard::open(location.store().clone(), &object.key).await {
            Ok(shard) => {
                deleted = deleted.of(&location, &shard).await?;
                damaged += list(&shard, &deleted, screen, &mut out).await?;
            }
            Err(error) if is_hopeless(&error) => return Err(error.into()),
            Err(error) => {
                damaged += 1;
                screen.warn(&error.to_string());
            }
        }
        out.flush()?;
    }
    if found == 0 {
        return Err(CliError::failed(format!("there are no shards in {}", location.url()))
            .hint("a shard is an object whose name ends with .des"));
    }
    Ok(if damaged == 0 { Exit::Done } else { Exit::Failed })
}

/// Lists one shard and returns how much of its index is damaged.
async fn list(shard: &RemoteShard, deleted: &Deleted, screen: Screen, out: &mut Lines) -> Result<u64, CliError> {
    let key = &shard.object().key;
    if !screen.json() {
        let version = shard.version() as u8;
        out.line(&format!("{key}  (v{version}, {}, {})", number_of(shard.len(), "file"), bytes(shard.object().size)))?;
        out.line("        SIZE        STORED  CODEC            OFFSET  UID")?;
    }
    let mut damaged = 0;
    let mut entries = shard.entries();
    while let Some(entry) = entries.next().await {
        match entry {
            Ok(entry) => {
                let deleted_at = deleted.hides(shard, &entry.uid).map(rfc3339);
                if screen.json() {
                    out.object(&as_json(key, &entry, deleted_at.as_deref()))?;
                } else {
                    let mark = deleted_at.map(|time| format!("  (deleted {time})")).unwrap_or_default();
                    out.line(&(as_text(&entry) + &mark))?;
                }
            }
            Err(error) if is_hopeless(&error) => return Err(error.into()),
            Err(error) => {
                damaged += 1;
                screen.warn(&error.to_string());
            }
        }
    }
    Ok(damaged)
}

fn as_text(entry: &Entry) -> String {
    let uid = visible(&entry.uid);
    match &entry.location {
        Place::Inline(at) => {
            let codec = at.codec.to_string();
            format!("{:>12}  {:>12}  {codec:<9}  {:>12}  {uid}", at.raw_len, at.stored_len, at.offset)
        }
        Place::BigFile { sha256, size } => {
            let hash = &hex32(sha256)[..12];
            format!("{size:>12}  {size:>12}  {:<9}  {hash:>12}  {uid}", "big file")
        }
    }
}

fn as_json(key: &str, entry: &Entry, deleted_at: Option<&str>) -> Value {
    let meta: Value =
        entry.meta.as_ref().map_or(Value::Null, |m| serde_json::from_str(m.as_str()).unwrap_or(Value::Null));
    match &entry.location {
        Place::Inline(at) => json!({
            "shard": key, "uid": entry.uid, "size_bytes": at.raw_len, "stored_bytes": at.stored_len,
            "codec": at.codec.to_string(), "offset": at.offset, "crc32c": at.crc32c.map(|crc| format!("{crc:08x}")),
            "big_file": Value::Null, "meta": meta, "deleted_at": deleted_at,
        }),
        Place::BigFile { sha256, size } => json!({
            "shard": key, "uid": entry.uid, "size_bytes": size, "stored_bytes": size,
            "codec": "none", "offset": Value::Null, "crc32c": Value::Null,
            "big_file": hex32(sha256), "meta": meta, "deleted_at": deleted_at,
        }),
    }
}

//! What can be asked.

use std::sync::Arc;

use async_graphql::{
    Context, EmptyMutation, EmptySubscription, InputObject, InputValueError, InputValueResult, Object, Scalar,
    ScalarType, Schema, SimpleObject, Value,
};
use des_shared::archive::RemoteShard;
use des_shared::created_at::CreatedAt;
use des_shared::ids::MAX_UID_BYTES;
use des_shared::shard::{Codec, Location, Version, hex32};
use futures::{StreamExt, stream};

use super::{refused, weigh};
use crate::error::Error;
use crate::keys::rfc3339;
use crate::locate::Located;
use crate::serve::{Answer, Files, Wanted};

/// Files of one list looked up side by side.
const AT_ONCE: usize = 16;
/// What looking up one file or shard counts for; every other field counts for 1.
const LOOK_UP: usize = 10;
/// The most a query may count for: a list as long as it may be, with every field there is.
const MAX_COMPLEXITY: usize = 4000;

pub(super) type FileSchema = Schema<Query, EmptyMutation, EmptySubscription>;

pub(super) fn new(files: Arc<Files>) -> FileSchema {
    Schema::build(Query, EmptyMutation, EmptySubscription)
        .limit_complexity(MAX_COMPLEXITY)
        .limit_depth(weigh::MAX_DEPTH)
        .data(files)
        .finish()
}

/// A whole number of up to 64 bits.
#[derive(Clone, Copy, Debug)]
struct Long(u64);

/// A whole number of up to 64 bits, as a JSON number
#[Scalar]
impl ScalarType for Long {
    fn parse(value: Value) -> InputValueResult<Self> {
        match &value {
            Value::Number(number) => number.as_u64().map(Self).ok_or_else(|| InputValueError::expected_type(value)),
            _ => Err(InputValueError::expected_type(value)),
        }
    }

    fn to_value(&self) -> Value {
        Value::from(self.0)
    }
}

/// Which file is meant.
#[derive(InputObject)]
struct FileKey {
    /// The file's uid
    uid: String,
    /// When it was created, RFC 3339, as its manifest said
    created_at: String,
}

/// One file. Of a deleted one only uid, createdAt and deletedAt are known.
#[derive(SimpleObject)]
struct File {
    uid: String,
    created_at: String,
    /// Bytes of the file
    size: Option<Long>,
    /// The strong entity tag REST has for the file's own bytes
    etag: Option<String>,
    content_type: Option<String>,
    /// How it is stored: none, zstd, lz4 or zstd-dictionary
    codec: Option<&'static str>,
    /// Bytes it takes in the store
    stored_size: Option<Long>,
    /// Of a large file, which is an object of its own
    sha256: Option<String>,
    /// The shard whose index has it
    shard: Option<Shard>,
    /// When it was deleted, RFC 3339; null for a file that can be read
    deleted_at: Option<String>,
}

/// One shard.
#[derive(SimpleObject)]
struct Shard {
    key: String,
    zone: String,
    format_version: i32,
    /// Files in it
    entries: Long,
    /// Size of the object
    bytes: Long,
    /// Bytes of its files before compression; null for versions 1 and 2, which do not say
    raw_bytes: Option<Long>,
    /// Null where it has none
    dictionary: Option<Dictionary>,
    /// Of two shards with the same file the higher sequence wins: Unix milliseconds
    sequence: Long,
}

/// What small files of a shard are compressed with.
#[derive(SimpleObject)]
struct Dictionary {
    bytes: Long,
    /// CRC-32C of its bytes, eight digits
    #[graphql(name = "crc32c")]
    crc32c: String,
}

/// What became of one file of a list.
#[derive(SimpleObject)]
struct Outcome {
    uid: String,
    created_at: String,
    /// Null when there is a problem
    file: Option<File>,
    problem: Option<ProblemView>,
}

/// What REST would have answered.
#[derive(SimpleObject)]
#[graphql(name = "Problem")]
struct ProblemView {
    /// A stable word for programs, such as /problems/file-not-found
    #[graphql(name = "type")]
    kind: String,
    status: i32,
    detail: String,
}

/// Where queries start.
pub(super) struct Query;

/// What is known of files and of the shards they lie in
#[Object]
impl Query {
    /// One file; an error of the kind /problems/file-not-found when there is none
    #[graphql(complexity = "LOOK_UP + child_complexity")]
    async fn file(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "The file's uid")] uid: String,
        #[graphql(desc = "When it was created, RFC 3339")] created_at: String,
    ) -> Option<async_graphql::Result<File>> {
        // An error inside of what may be null leaves the query's other answers alone.
        let files = ctx.data_unchecked::<Arc<Files>>();
        Some(look_up(files, uid, created_at).await.map_err(|e| refused(&e)))
    }

    /// Up to 100 files, in the order of the list. What is wrong with one of them says so in its place
    #[graphql(complexity = "list.len().saturating_mul(LOOK_UP.saturating_add(child_complexity))")]
    async fn files(
        &self,
        ctx: &Context<'_>,
        #[graphql(validator(max_items = 100))] list: Vec<FileKey>,
    ) -> Vec<Outcome> {
        let files = ctx.data_unchecked::<Arc<Files>>();
        let outcomes = list.into_iter().map(|FileKey { uid, created_at }| async move {
            let found = look_up(files, uid.clone(), created_at.clone()).await;
            let problem = found.as_ref().err().map(|error| ProblemView {
                kind: format!("/problems/{}", error.kind()),
                status: i32::from(error.status().as_u16()),
                detail: error.told(),
            });
            Outcome { uid, created_at, file: found.ok(), problem }
        });
        stream::iter(outcomes).buffered(AT_ONCE).collect().await
    }

    /// One shard by its key; an error of the kind /problems/shard-not-found when there is none
    #[graphql(complexity = "LOOK_UP + child_complexity")]
    async fn shard(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "Its object's name, such as 20250310_2A_0000-0123456789abcdef.des")] key: String,
    ) -> Option<async_graphql::Result<Shard>> {
        let files = ctx.data_unchecked::<Arc<Files>>();
        let shard = files.shard(&key).await.map_err(|e| refused(&e));
        Some(shard.map(|shard| describe(files, &shard)))
    }
}

/// What `HEAD` says of a file, and where it lies.
async fn look_up(files: &Files, uid: String, created_at: String) -> Result<File, Error> {
    let bad = |kind, detail: String| Error::BadRequest { kind, detail };
    if uid.is_empty() {
        return Err(bad("uid-missing", "the uid is empty".to_owned()));
    }
    if uid.len() > MAX_UID_BYTES {
        return Err(Error::UidTooLong { bytes: uid.len() });
    }
    let moment = CreatedAt::parse(&created_at).map_err(|e| bad("created-at-invalid", format!("createdAt: {e}")))?;
    let wanted = head_of(uid.clone(), moment);
    match files.answer(&wanted).await {
        Ok(Answer { etag, content_type, located: Some(located), .. }) => {
            let (codec, stored_size, sha256) = storage(&located);
            Ok(File {
                uid,
                created_at,
                size: Some(Long(located.entry.raw_len())),
                etag: Some(etag),
                content_type: Some(content_type),
                codec: Some(codec),
                stored_size: Some(Long(stored_size)),
                sha256,
                shard: Some(describe(files, &located.shard)),
                deleted_at: None,
            })
        }
        Ok(_) => unreachable!("HEAD always says where the file lies"),
        Err(Error::Deleted { deleted_ms, .. }) => Ok(File {
            uid,
            created_at,
            size: None,
            etag: None,
            content_type: None,
            codec: None,
            stored_size: None,
            sha256: None,
            shard: None,
            deleted_at: Some(rfc3339(deleted_ms)),
        }),
        Err(error) => Err(error),
    }
}

fn head_of(uid: String, created_at: CreatedAt) -> Wanted {
    Wanted { head: true, ..Wanted::whole(uid, created_at) }
}

/// Codec, stored bytes, and the hash where it is a large file.
fn storage(located: &Located) -> (&'static str, u64, Option<String>) {
    match located.entry.location {
        Location::BigFile { sha256, size } => ("none", size, Some(hex32(&sha256))),
        Location::Inline(inline) => {
            let codec = match inline.codec {
                Codec::None => "none",
                Codec::Zstd => "zstd",
                Codec::Lz4 => "lz4",
                Codec::ZstdDict => "zstd-dictionary",
            };
            (codec, inline.stored_len, None)
        }
    }
}

fn describe(files: &Files, shard: &RemoteShard) -> Shard {
    let object = shard.object();
    let footer = shard.footer();
    Shard {
        zone: files.zone_of(&object.key).map(|(zone, _)| zone.to_owned()).unwrap_or_default(),
        key: object.key.clone(),
        format_version: match shard.version() {
            Version::V1 => 1,
            Version::V2 => 2,
            Version::V3 => 3,
        },
        entries: Long(shard.len()),
        bytes: Long(object.size),
        raw_bytes: footer.map(|footer| Long(footer.raw_bytes)),
        dictionary: footer.filter(|footer| footer.dict_len > 0).map(|footer| Dictionary {
            bytes: Long(footer.dict_len.into()),
            crc32c: format!("{:08x}", footer.dict_crc32c),
        }),
        sequence: Long(shard.sequence()),
    }
}

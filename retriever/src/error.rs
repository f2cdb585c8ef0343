//! Why a file is not served, and the HTTP answer for each reason.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use des_shared::archive::ArchiveError;
use des_shared::ids::MAX_UID_BYTES;
use des_shared::service::Problem;
use des_shared::store::zones::NoZone;
use des_shared::store::{StoreError, StoreErrorKind};

/// Seconds after which a client may ask again when a zone does not answer.
const ZONE_RETRY_S: u32 = 5;
/// The same when somebody has to act first.
const REPAIR_RETRY_S: u32 = 60;

/// Why a file is not served.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The request cannot be understood.
    #[error("{detail}")]
    BadRequest {
        /// A stable word for programs.
        kind: &'static str,
        /// What is wrong and what would be right.
        detail: String,
    },
    /// The uid is longer than any uid can be.
    #[error("the uid has {bytes} bytes; at most {MAX_UID_BYTES} are possible")]
    UidTooLong {
        /// Its length in bytes after decoding.
        bytes: usize,
    },
    /// No shard holds the uid.
    #[error("there is no file {uid:?} of that day")]
    NotFound {
        /// The uid asked for.
        uid: String,
    },
    /// The range asked for lies outside the file.
    #[error("the file has {size} bytes, and the range lies outside of it")]
    RangeNotSatisfiable {
        /// The file's size in bytes.
        size: u64,
    },
    /// The zone's store does not answer.
    #[error("zone {zone:?} does not answer: {source}")]
    ZoneDown {
        /// The zone's name.
        zone: String,
        /// What the store said.
        source: StoreError,
    },
    /// The zone's store refuses: wrong credentials, or a bucket or folder that does not exist.
    #[error("zone {zone:?} cannot be used before somebody repairs its configuration: {source}")]
    ZoneUnusable {
        /// The zone's name.
        zone: String,
        /// What the store said.
        source: StoreError,
    },
    /// The shard was replaced or removed while it was read.
    #[error("zone {zone:?}: {source}")]
    Moving {
        /// The zone's name.
        zone: String,
        /// What was found.
        source: Box<ArchiveError>,
    },
    /// The stored bytes are wrong. They are never served.
    #[error("zone {zone:?}: {source}")]
    Damaged {
        /// The zone's name.
        zone: String,
        /// What is wrong: shard, uid and offset.
        source: Box<ArchiveError>,
    },
    /// A file inside a shard is larger than this service reads into memory.
    #[error("file {uid:?} has {bytes} bytes inside its shard; at most {limit} are served (`des cat` reads it)")]
    TooLarge {
        /// The uid asked for.
        uid: String,
        /// Its size in bytes, stored or raw.
        bytes: u64,
        /// What is served, in bytes.
        limit: u64,
    },
    /// The file is deleted.
    #[error("the file {uid:?} of that day was deleted")]
    Deleted {
        /// The uid asked for.
        uid: String,
        /// When, Unix milliseconds.
        deleted_ms: u64,
    },
    /// A slot has more shards or tombstones than anybody makes.
    #[error("zone {zone:?} has more than {limit} {what} of slot {slot}")]
    TooMany {
        /// The zone's name.
        zone: String,
        /// The slot.
        slot: String,
        /// Shards or tombstones.
        what: &'static str,
        /// The most that are searched.
        limit: usize,
    },
    /// The memory for answers is in use.
    #[error("too many large files are being sent; ask again in a moment")]
    Busy,
    /// No zone covers the shard index.
    #[error(transparent)]
    NoZone(#[from] NoZone),
}

impl Error {
    /// An error of reading an archive, seen from the zone.
    pub(crate) fn at_zone(zone: &str, source: ArchiveError) -> Self {
        let zone = zone.to_owned();
        if source.is_stale() {
            return Self::Moving { zone, source: Box::new(source) };
        }
        match source {
            ArchiveError::Store(source) => match source.kind {
                StoreErrorKind::Denied | StoreErrorKind::NoSuchBucket => Self::ZoneUnusable { zone, source },
                // An answer to another question than the one asked: no bytes of it can be believed.
                StoreErrorKind::Invalid | StoreErrorKind::InvalidRange => {
                    Self::Damaged { zone, source: Box::new(ArchiveError::Store(source)) }
                }
                StoreErrorKind::Unavailable
                | StoreErrorKind::Conflict
                | StoreErrorKind::Full
                | StoreErrorKind::NotFound
                | StoreErrorKind::AlreadyExists
                | StoreErrorKind::UploadGone => Self::ZoneDown { zone, source },
            },
            source => Self::Damaged { zone, source: Box::new(source) },
        }
    }

    /// True when another copy of the zone may do better.
    pub(crate) fn may_differ_elsewhere(&self) -> bool {
        matches!(self, Self::ZoneDown { .. } | Self::ZoneUnusable { .. } | Self::Moving { .. } | Self::Damaged { .. })
    }

    /// The HTTP status.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::BadRequest { .. } => StatusCode::BAD_REQUEST,
            Self::UidTooLong { .. } => StatusCode::URI_TOO_LONG,
            Self::NotFound { .. } => StatusCode::NOT_FOUND,
            Self::Deleted { .. } => StatusCode::GONE,
            Self::RangeNotSatisfiable { .. } => StatusCode::RANGE_NOT_SATISFIABLE,
            Self::ZoneDown { .. } | Self::ZoneUnusable { .. } | Self::Moving { .. } | Self::Busy => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::Damaged { .. } => StatusCode::BAD_GATEWAY,
            Self::TooLarge { .. } | Self::TooMany { .. } | Self::NoZone(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::BadRequest { kind, .. } => kind,
            Self::UidTooLong { .. } => "uid-too-long",
            Self::NotFound { .. } => "file-not-found",
            Self::Deleted { .. } => "file-deleted",
            Self::RangeNotSatisfiable { .. } => "range-not-satisfiable",
            Self::ZoneDown { .. } => "zone-unavailable",
            Self::ZoneUnusable { .. } => "zone-unusable",
            Self::Moving { .. } => "shard-replaced",
            Self::Damaged { .. } => "damaged-data",
            Self::TooLarge { .. } => "file-too-large",
            Self::TooMany { .. } => "too-many-objects",
            Self::Busy => "busy",
            Self::NoZone(_) => "no-zone",
        }
    }

    /// Seconds after which asking again may help.
    pub(crate) fn retry_after_s(&self) -> Option<u32> {
        match self {
            Self::ZoneDown { .. } => Some(ZONE_RETRY_S),
            Self::ZoneUnusable { .. } => Some(REPAIR_RETRY_S),
            Self::Moving { .. } | Self::Busy => Some(1),
            _ => None,
        }
    }

    /// What the client is told. How the stores are configured is for the log, not for clients.
    pub(crate) fn told(&self) -> String {
        match self {
            Self::ZoneDown { zone, .. } => format!("zone {zone:?} does not answer; ask again later"),
            Self::ZoneUnusable { zone, .. } => {
                format!("zone {zone:?} refuses this service's requests; its operator finds the reason in the log")
            }
            other => other.to_string(),
        }
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let problem = Problem::new(self.status(), self.kind(), self.told());
        let problem = match self.retry_after_s() {
            Some(seconds) => problem.retry_after(seconds),
            None => problem,
        };
        let mut response = problem.into_response();
        if let Self::RangeNotSatisfiable { size } = self {
            let value = HeaderValue::try_from(format!("bytes */{size}")).expect("digits are a header value");
            response.headers_mut().insert(header::CONTENT_RANGE, value);
        }
        response
    }
}

//! Looking into shards, wherever they lie: list, read one file, verify everything.

mod cat;
mod deleted;
mod location;
mod ls;
mod verify;

pub(crate) use cat::cat;
pub(crate) use location::s3_defaults;
pub(crate) use ls::ls;
pub(crate) use verify::verify;

use des_shared::archive::ArchiveError;
use des_shared::store::StoreErrorKind;

use crate::error::CliError;

impl From<ArchiveError> for CliError {
    fn from(error: ArchiveError) -> Self {
        match error {
            ArchiveError::Store(error) => error.into(),
            ArchiveError::Changed { .. } => Self::failed(error.to_string()).hint("run the command again"),
            ArchiveError::Shard { .. } | ArchiveError::BigFile { .. } => {
                Self::failed(error.to_string()).hint("des verify lists everything that is wrong there")
            }
        }
    }
}

/// Whether the store itself failed, so that going on with other shards makes no sense.
fn is_hopeless(error: &ArchiveError) -> bool {
    match error {
        ArchiveError::Store(error) => {
            matches!(
                error.kind,
                StoreErrorKind::Denied
                    | StoreErrorKind::NoSuchBucket
                    | StoreErrorKind::Unavailable
                    | StoreErrorKind::Throttled
            )
        }
        _ => false,
    }
}

//! What can go wrong for the person at the terminal: what, and what to do next. The kind decides the exit code.

use std::process::ExitCode;

use des_shared::config::ConfigErrors;
use des_shared::manifest::ManifestError;
use des_shared::plan::PlanError;
use des_shared::store::{StoreError, StoreErrorKind};

/// How the process ends. The numbers are part of the command's contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// Everything asked for was done.
    Done = 0,
    /// It could not be done, or something is damaged.
    Failed = 1,
    /// The command line is wrong.
    Usage = 2,
    /// It was done, but some files could not be packed or fetched.
    SomeFilesFailed = 3,
    /// Ctrl-C, as shells number it.
    Interrupted = 130,
    /// Whoever read the output went away, as shells number it.
    PipeClosed = 141,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// A command that could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    /// The command line or the configuration must be corrected.
    #[error("{message}")]
    Usage {
        /// What is wrong.
        message: String,
        /// What to do next.
        hint: Option<String>,
    },
    /// Something on the way failed.
    #[error("{message}")]
    Failed {
        /// What, where and why.
        message: String,
        /// What to do next.
        hint: Option<String>,
    },
    /// Ctrl-C.
    #[error("interrupted")]
    Interrupted,
    /// Ctrl-C, and the same command again goes on.
    #[error("interrupted; what is done so far is kept")]
    InterruptedKept,
    /// Standard output was closed by its reader.
    #[error("the output was closed")]
    PipeClosed,
}

impl CliError {
    /// Wrong usage.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::Usage { message: message.into(), hint: None }
    }

    /// A failure.
    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self::Failed { message: message.into(), hint: None }
    }

    /// With what to do next.
    pub(crate) fn hint(self, hint: impl Into<String>) -> Self {
        match self {
            Self::Usage { message, .. } => Self::Usage { message, hint: Some(hint.into()) },
            Self::Failed { message, .. } => Self::Failed { message, hint: Some(hint.into()) },
            other => other,
        }
    }

    /// An operation on a path that the system refused. The system's own text does not name the path.
    pub(crate) fn path(action: &str, path: &std::path::Path, error: &std::io::Error) -> Self {
        let failed = Self::failed(format!("cannot {action} {}: {error}", path.display()));
        match error.kind() {
            std::io::ErrorKind::StorageFull => failed.hint("free some space there or choose another place"),
            std::io::ErrorKind::PermissionDenied => failed.hint("check who owns it and its permissions"),
            _ => failed,
        }
    }

    /// What to do next, when that is known.
    pub(crate) fn hint_text(&self) -> Option<&str> {
        match self {
            Self::Usage { hint, .. } | Self::Failed { hint, .. } => hint.as_deref(),
            Self::InterruptedKept => Some("run the same command again: it goes on where this one was"),
            Self::Interrupted | Self::PipeClosed => None,
        }
    }

    /// The exit code it ends in.
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::Usage { .. } => Exit::Usage,
            Self::Failed { .. } => Exit::Failed,
            Self::Interrupted | Self::InterruptedKept => Exit::Interrupted,
            Self::PipeClosed => Exit::PipeClosed,
        }
    }
}

impl From<StoreError> for CliError {
    fn from(error: StoreError) -> Self {
        let hint = match error.kind {
            StoreErrorKind::Denied if error.url.starts_with("s3://") => {
                Some("check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or AWS_PROFILE) and what they may do")
            }
            StoreErrorKind::Denied => Some("check who owns it and its permissions"),
            StoreErrorKind::NoSuchBucket if error.url.starts_with("s3://") => {
                Some("check the bucket's name and --s3-endpoint-url (DES_S3_ENDPOINT_URL)")
            }
            StoreErrorKind::Full => Some("free some space there or choose another place"),
            StoreErrorKind::Unavailable | StoreErrorKind::Throttled => {
                Some("try again; nothing half-written is left under a final name")
            }
            _ => None,
        };
        Self::Failed { message: error.to_string(), hint: hint.map(str::to_owned) }
    }
}

impl From<ManifestError> for CliError {
    fn from(error: ManifestError) -> Self {
        let hint = match error {
            ManifestError::Read { .. } => None,
            ManifestError::Empty => Some(
                "a manifest is a JSON list, or one JSON object a line, of {\"uid\", \"created_at\", \"size_bytes\", \"source_path\"}",
            ),
            _ => Some("correct the manifest and run the same command again; nothing was written"),
        };
        Self::Failed { message: error.to_string(), hint: hint.map(str::to_owned) }
    }
}

impl From<PlanError> for CliError {
    fn from(error: PlanError) -> Self {
        match error {
            PlanError::Manifest(error) => error.into(),
            PlanError::Config(message) => Self::usage(message),
            PlanError::Duplicate(_) => Self::failed(error.to_string())
                .hint("correct the manifest and run the same command again; nothing was written"),
            PlanError::Spool { .. } => {
                Self::failed(error.to_string()).hint("choose another folder for temporary files with --spool-dir")
            }
            other => Self::failed(other.to_string()),
        }
    }
}

impl From<ConfigErrors> for CliError {
    fn from(error: ConfigErrors) -> Self {
        Self::usage(error.to_string())
    }
}

//! Identifiers that cross process boundaries, each a type of its own so that they cannot be mixed up.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The longest uid a shard can hold: its length is stored in 16 bits (FORMAT, index entry `name_len`).
pub const MAX_UID_BYTES: usize = u16::MAX as usize;

/// The name of a file inside DES: 1 to [`MAX_UID_BYTES`] bytes of UTF-8, compared byte by byte.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Uid(String);

/// Why a string is not a [`Uid`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UidError {
    /// The string is empty.
    #[error("the uid is empty; expected 1 to {MAX_UID_BYTES} bytes of UTF-8")]
    Empty,
    /// The string does not fit the 16-bit length of an index entry.
    #[error("the uid is {0} bytes long; expected at most {MAX_UID_BYTES}")]
    TooLong(usize),
}

impl Uid {
    /// Checks `value` and makes it a uid.
    ///
    /// # Errors
    /// [`UidError`] when it is empty or longer than [`MAX_UID_BYTES`].
    pub fn new(value: impl Into<String>) -> Result<Self, UidError> {
        let value = value.into();
        match value.len() {
            0 => Err(UidError::Empty),
            n if n > MAX_UID_BYTES => Err(UidError::TooLong(n)),
            _ => Ok(Self(value)),
        }
    }

    /// The uid as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Uid {
    type Error = UidError;
    fn try_from(value: String) -> Result<Self, UidError> {
        Self::new(value)
    }
}

impl From<Uid> for String {
    fn from(uid: Uid) -> Self {
        uid.0
    }
}

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One accepted request to pack a manifest. Version 7, so ids sort by the time of acceptance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct JobId(Uuid);

impl JobId {
    /// A job id for a moment (Unix milliseconds) and 10 random bytes.
    pub fn from_parts(unix_millis: u64, random: [u8; 10]) -> Self {
        Self(uuid::Builder::from_unix_timestamp_millis(unix_millis, &random).into_uuid())
    }

    /// The id as one number; greater for jobs accepted later.
    pub fn number(self) -> u128 {
        self.0.as_u128()
    }

    /// The moment it was made for, Unix milliseconds.
    pub fn unix_millis(self) -> u64 {
        (self.number() >> 80) as u64
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_hyphenated().fmt(f)
    }
}

impl FromStr for JobId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        // Only the canonical spelling: the id is part of object keys, so one job must have one spelling.
        match Uuid::try_parse(text) {
            Ok(id) if id.as_hyphenated().to_string() == text => Ok(Self(id)),
            _ => Err(IdError { what: "job id", got: text.chars().take(64).collect() }),
        }
    }
}

/// One shard of one job to pack: the `number`th segment of the job's plan, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TaskId {
    /// The job whose plan holds the segment.
    pub job: JobId,
    /// Position of the segment in the plan.
    pub number: u32,
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.job, self.number)
    }
}

impl FromStr for TaskId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let bad = || IdError { what: "task id (JOB/NUMBER)", got: text.chars().take(64).collect() };
        let (job, number) = text.split_once('/').ok_or_else(bad)?;
        Ok(Self { job: job.parse()?, number: number.parse().map_err(|_| bad())? })
    }
}

/// One run of one worker process; never reused, so an old process cannot pass for a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct WorkerId(Uuid);

impl WorkerId {
    /// A worker id from 16 random bytes.
    pub fn from_random(random: [u8; 16]) -> Self {
        Self(uuid::Builder::from_random_bytes(random).into_uuid())
    }
}

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_hyphenated().fmt(f)
    }
}

impl FromStr for WorkerId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        Uuid::try_parse(text).map(Self).map_err(|_| IdError { what: "worker id", got: text.chars().take(64).collect() })
    }
}

/// Fencing token of a lease: a number that only grows per namespace. Whoever holds the highest token of a task
/// holds the task; everything with a lower one is stale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FencingToken(pub u64);

impl fmt::Display for FencingToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A text that is not the identifier it was taken for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a {what}: {got:?}")]
pub struct IdError {
    what: &'static str,
    got: String,
}

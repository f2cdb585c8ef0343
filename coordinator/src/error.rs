//! Everything that can go wrong in the coordinator, each kind named for what the caller should do.

use des_shared::ids::{JobId, TaskId};
use des_shared::queue::QueueError;
use des_shared::state::StateError;
use des_shared::store::StoreError;

/// Why the coordinator cannot do something.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The request is wrong; the sender must correct it.
    #[error("{0}")]
    BadRequest(String),
    /// Several things are wrong with the request, one sentence each.
    #[error("the request has {} problems: {}", .0.len(), .0.join("; "))]
    BadOptions(Vec<String>),
    /// The manifest is wrong; the text names the place, the field and what was expected.
    #[error("{0}")]
    BadManifest(String),
    /// The body has a type or an encoding that is not read here.
    #[error("{0}")]
    UnsupportedMedia(String),
    /// An inline manifest is larger than is held in memory.
    #[error(
        "the JSON body is larger than {limit} bytes; send the manifest as application/x-ndjson (streamed, any size), or \
         put it where the coordinator can read it and send {{\"manifest\": {{\"uri\": ...}}}}"
    )]
    BodyTooLarge {
        /// Largest JSON body, bytes.
        limit: u64,
    },
    /// The sender stopped sending, or was too slow.
    #[error("the body ended early: {0}")]
    BodyAborted(String),
    /// The manifest of a `uri` may not be read.
    #[error("{0}")]
    OutsideRoots(String),
    /// The manifest of a `uri` is not there.
    #[error("{0}")]
    SourceMissing(String),
    /// An Idempotency-Key that belongs to another submission.
    #[error(
        "this Idempotency-Key belongs to job {0}, whose manifest or options are different; use a new key for a new job"
    )]
    KeyReused(JobId),
    /// No such job.
    #[error("there is no job {0}")]
    UnknownJob(JobId),
    /// What is asked for makes no sense in the state the job is in.
    #[error("job {job} {is}; {expected}")]
    WrongState {
        /// The job.
        job: JobId,
        /// What it is: `is completed`, `is being cancelled`.
        is: String,
        /// What would have been right.
        expected: &'static str,
    },
    /// No such task in the dead list.
    #[error("there is no task {0} in the dead list; GET /v1/dead shows what is")]
    NotDead(TaskId),
    /// Enough work waits already.
    #[error("{0}; come again later, or add workers")]
    QueueFull(String),
    /// Too many requests of one costly kind at once.
    #[error("{0}")]
    Busy(String),
    /// The state store failed.
    #[error(transparent)]
    State(#[from] StateError),
    /// The queue failed.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// The spool folder or another part of this machine failed; planning can be tried again.
    #[error("{0}")]
    Machine(String),
    /// What the stores hold contradicts itself; somebody must look.
    #[error("{0}")]
    Inconsistent(String),
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        Self::State(StateError::Store(error))
    }
}

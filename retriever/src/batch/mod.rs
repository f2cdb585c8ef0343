//! Many files in one answer.
//!
//! The way of a batch: [`asked`] reads the list, [`plan`] finds a window of files and cuts it by bytes, [`coalesce`]
//! makes few reads of their places, [`read`] makes those side by side, [`emit`] sends the files in the order asked for,
//! in the [`form`] the client takes. The next window is read while one is sent.
//!
//! Invariants:
//! - Every file asked for has one line in the report at the end, whatever became of it.
//! - An answer that does not reach its end is broken off, never ended: a client cannot take a part for the whole.
//! - A file is waited for as long as a single request for it would be, so a batch ends though a store hangs.
//! - A batch holds two windows at most, all batches together [`BUDGET`] bytes of them; a client that takes nothing for
//!   [`STALL`] is let go.

mod asked;
mod coalesce;
mod emit;
mod form;
mod patience;
mod plan;
mod read;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use des_shared::clock::Dice;
use des_shared::offload;
use futures::stream::{self, Stream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::task::AbortOnDropHandle;

use self::patience::Patience;
use crate::metrics::RetrieverMetrics;
use crate::serve::Files;

pub(crate) use asked::{Asked, Unreadable, read as read_list};
pub(crate) use emit::Broken;
pub(crate) use form::Form;

/// Batches answered side by side; further ones wait for a moment.
const BATCHES: usize = 16;
/// How long a batch waits for its turn, at most.
const TURN: Duration = Duration::from_secs(10);
/// How long a client may take to send its list, at most.
const LIST: Duration = Duration::from_mins(1);
/// Bytes of all windows together, as stored.
const BUDGET: u64 = 32 << 20;
/// How long a client may take nothing.
const STALL: Duration = Duration::from_mins(1);
/// Pieces made and not yet sent; each has [`emit::PIECE`] bytes or a little more.
const PIECES_AHEAD: usize = 4;

/// What all batches share.
pub(crate) struct Batches {
    /// The most files of one batch.
    pub(crate) max_files: usize,
    turns: Arc<Semaphore>,
    budget: Arc<Semaphore>,
    dice: Dice,
    stall: Duration,
    /// How long a request may take until its answer begins.
    deadline: Duration,
}

/// The right to answer a batch, given back when all of it is made.
pub(crate) struct Turn(OwnedSemaphorePermit);

/// One batch.
pub(crate) struct Batch {
    pub(crate) files: Arc<Files>,
    pub(crate) metrics: RetrieverMetrics,
    pub(crate) asked: Vec<Asked>,
    pub(crate) form: Form,
    /// [`Batches::boundary`].
    pub(crate) boundary: String,
}

impl Batches {
    pub(crate) fn new(max_files: usize) -> Self {
        Self {
            max_files,
            turns: Arc::new(Semaphore::new(BATCHES)),
            budget: Arc::new(Semaphore::new((BUDGET / read::UNIT) as usize)),
            dice: Dice::from_os(),
            stall: STALL,
            deadline: Duration::from_secs(30),
        }
    }

    /// With the deadline of all requests.
    pub(crate) fn within(self, deadline: Duration) -> Self {
        Self { deadline, ..self }
    }

    /// How long a client may take to send its list. With the wait for a turn before it this ends before the deadline, so
    /// that a client that is too slow hears that it is.
    pub(crate) fn list_patience(&self) -> Duration {
        LIST.min(self.deadline / 2)
    }

    #[cfg(test)]
    pub(crate) fn with_stall(self, stall: Duration) -> Self {
        Self { stall, ..self }
    }

    /// How many batches are being answered.
    #[cfg(test)]
    pub(crate) fn running(&self) -> usize {
        BATCHES - self.turns.available_permits()
    }

    /// What no file has in it but by a chance of one in 2^128: it separates the parts of an answer.
    pub(crate) fn boundary(&self) -> String {
        use std::fmt::Write;
        let random: [u8; 16] = self.dice.bytes();
        random.iter().fold("des-".to_owned(), |mut text, byte| {
            write!(text, "{byte:02x}").expect("writing to a string cannot fail");
            text
        })
    }

    /// Waits for a turn; `None` when there was none for too long.
    pub(crate) async fn turn(&self) -> Option<Turn> {
        let permit =
            tokio::time::timeout(TURN.min(self.deadline / 3), self.turns.clone().acquire_owned()).await.ok()?;
        Some(Turn(permit.expect("never closed")))
    }

    /// Begins to answer. The answer is made as far as the client takes it, and no further when it goes away.
    pub(crate) fn start(&self, batch: Batch, turn: Turn) -> impl Stream<Item = Result<Bytes, Broken>> + Send + use<> {
        let (pieces, taken) = mpsc::channel(PIECES_AHEAD);
        let (budget, stall) = (self.budget.clone(), self.stall);
        let patience = Patience::new(self.deadline, batch.files.places.patience());
        let work = async move {
            let Turn(_permit) = turn;
            emit::run(batch, (budget, patience), emit::Out::new(pieces, stall)).await
        };
        let feed = Feed { taken, task: Some(AbortOnDropHandle::new(offload::spawn(work))) };
        stream::unfold(feed, Feed::next)
    }
}

/// The pieces of an answer, and the task that makes them.
struct Feed {
    taken: mpsc::Receiver<Bytes>,
    task: Option<AbortOnDropHandle<Result<(), Broken>>>,
}

impl Feed {
    /// The next piece. That there is none left is the end only when the task says so.
    async fn next(mut self) -> Option<(Result<Bytes, Broken>, Self)> {
        if let Some(piece) = self.taken.recv().await {
            return Some((Ok(piece), self));
        }
        let outcome = match self.task.take()?.await {
            Ok(outcome) => outcome,
            Err(join) => Err(Broken::Panicked(join.to_string())),
        };
        match outcome {
            Ok(()) => None,
            Err(broken) => {
                tracing::error!("a batch was broken off: {broken}");
                Some((Err(broken), self))
            }
        }
    }
}

//! From what is asked for to a window of places: found many at once, cut by bytes.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use des_shared::routing::{Slot, candidate_slots};
use des_shared::shard::{Inline, Location};
use futures::{StreamExt, stream};

use super::asked::Asked;
use super::patience::{Patience, zone_of};
use crate::error::Error;
use crate::locate::{Found, Freshness, Located};
use crate::places::Replica;
use crate::replicas::first_answer;
use crate::serve::{Files, shown};

/// Files looked for before the first of them is read. All of them are found before anything else is done: a search that
/// nobody goes on with would hold up other requests that wait for the same index.
const FILES_AHEAD: usize = 2048;
/// Files looked for side by side.
const SEARCHES: usize = 256;
/// Stored bytes of the files of one window. A thousand files of 8 KiB are one.
pub(super) const WINDOW: u64 = 8 << 20;
/// Larger files are read by themselves, as a single request reads them: there is nothing to be won with others.
const SMALL: u64 = 1 << 20;

/// Where a file is, or what became of it.
#[derive(Debug)]
pub(super) enum Place {
    /// In a shard, small.
    Here(Here),
    /// To be answered as a single request is: a large file, or one of which something special is known.
    Alone,
    /// Answered already.
    Failed(Error),
}

/// A small file in a shard.
#[derive(Debug)]
pub(super) struct Here {
    pub(super) replica: Arc<Replica>,
    pub(super) slot: Slot,
    pub(super) located: Located,
    pub(super) inline: Inline,
}

/// The files of a batch, found as far as they are needed.
pub(super) struct Planner {
    files: Arc<Files>,
    asked: Arc<Vec<Asked>>,
    patience: Patience,
    found: VecDeque<Place>,
    /// The first file of `found`.
    at: usize,
}

impl Planner {
    pub(super) fn new(files: Arc<Files>, asked: Arc<Vec<Asked>>, patience: Patience) -> Self {
        Self { files, asked, patience, found: VecDeque::new(), at: 0 }
    }

    /// The next files, as many as fit into a window; none at the end.
    pub(super) async fn window(&mut self) -> (usize, Vec<Place>) {
        if self.found.is_empty() {
            let next = self.at..self.asked.len().min(self.at + FILES_AHEAD);
            self.found = self.search(next).await.into();
        }
        let (first, mut places, mut bytes) = (self.at, Vec::new(), 0);
        while let Some(place) = self.found.front() {
            let own = match place {
                Place::Here(here) => here.inline.stored_len,
                Place::Alone | Place::Failed(_) => 0,
            };
            if bytes + own > WINDOW && !places.is_empty() {
                break;
            }
            bytes += own;
            places.extend(self.found.pop_front());
        }
        self.at += places.len();
        (first, places)
    }

    async fn search(&self, numbers: Range<usize>) -> Vec<Place> {
        let searches = numbers.map(|number| {
            let (files, asked, patience) = (self.files.clone(), self.asked.clone(), self.patience.clone());
            async move { search(&files, &asked[number], &patience).await.unwrap_or_else(Place::Failed) }
        });
        stream::iter(searches).buffered(SEARCHES).collect().await
    }
}

/// Looks for a file as a single request does, in the stores of its zone. It reads no payload, and what is not simple is
/// left to that request's own way.
async fn search(files: &Files, asked: &Asked, patience: &Patience) -> Result<Place, Error> {
    let zone = zone_of(files, asked)?;
    for slot in candidate_slots(&asked.uid, &asked.created_at, files.places.zones().n_bits()) {
        let replicas = files.places.replicas(slot.index)?;
        let found =
            first_answer(replicas, files.places.patience(), |replica, _| in_store(files, replica, (slot, &asked.uid)));
        if let Some(place) = patience.within(zone, found).await? {
            return Ok(place);
        }
    }
    Err(Error::NotFound { uid: shown(&asked.uid) })
}

/// What one store has of a file of a slot; `None` when it has none.
pub(super) async fn in_store(
    files: &Files,
    replica: &Arc<Replica>,
    (slot, uid): (Slot, &str),
) -> Result<Option<Place>, Error> {
    match files.locator.find(replica, slot, uid, Freshness::Cached).await {
        Ok(found) if found.best.is_none() && found.damage.is_none() && found.deleted_ms.is_none() => Ok(None),
        Ok(found) => Ok(Some(place(replica, slot, found))),
        // The single way lists anew.
        Err(Error::Moving { .. }) => Ok(Some(Place::Alone)),
        Err(error) => Err(error),
    }
}

fn place(replica: &Arc<Replica>, slot: Slot, found: Found) -> Place {
    match found {
        Found { best: Some(located), damage: None, deleted_ms: None } => match located.entry.location {
            Location::Inline(inline) if inline.stored_len.max(inline.raw_len) <= SMALL => {
                Place::Here(Here { replica: replica.clone(), slot, located, inline })
            }
            Location::Inline(_) | Location::BigFile { .. } => Place::Alone,
        },
        _ => Place::Alone,
    }
}

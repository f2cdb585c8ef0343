//! From what is asked for to a window of places: found many at once, cut by bytes.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use des_shared::routing::{Slot, candidate_slots};
use des_shared::shard::{Inline, Location};
use futures::{StreamExt, stream};

use super::asked::Asked;
use crate::error::Error;
use crate::locate::{Found, Freshness, Located};
use crate::places::Replica;
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
    /// Which of the zone's stores that is.
    pub(super) store: usize,
    pub(super) located: Located,
    pub(super) inline: Inline,
}

/// The files of a batch, found as far as they are needed.
pub(super) struct Planner {
    files: Arc<Files>,
    asked: Arc<Vec<Asked>>,
    found: VecDeque<Place>,
    /// The first file of `found`.
    at: usize,
}

impl Planner {
    pub(super) fn new(files: Arc<Files>, asked: Arc<Vec<Asked>>) -> Self {
        Self { files, asked, found: VecDeque::new(), at: 0 }
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
            let (files, asked) = (self.files.clone(), self.asked.clone());
            async move { search(&files, &asked[number], None).await }
        });
        stream::iter(searches).buffered(SEARCHES).collect().await
    }
}

/// Looks for a file as a single request does. It reads no payload, and what is not simple is left to that request's own
/// way. `failed`: that store of its zone has it and does not give it out, so those behind it are asked.
pub(super) async fn search(files: &Files, asked: &Asked, failed: Option<(usize, Error)>) -> Place {
    for slot in candidate_slots(&asked.uid, &asked.created_at, files.places.zones().n_bits()) {
        let replicas = match files.places.replicas(slot.index) {
            Ok(replicas) => replicas,
            Err(error) => return Place::Failed(error),
        };
        if let Some(place) = in_slot(files, &asked.uid, slot, (replicas, failed.clone())).await {
            return place;
        }
    }
    Place::Failed(Error::NotFound { uid: shown(&asked.uid) })
}

/// `None`: this slot does not have it.
async fn in_slot(
    files: &Files,
    uid: &str,
    slot: Slot,
    (replicas, failed): (&[Arc<Replica>], Option<(usize, Error)>),
) -> Option<Place> {
    let (first, mut failed) = failed.map_or((0, None), |(store, error)| (store + 1, Some(error)));
    for (store, replica) in replicas.iter().enumerate().skip(first) {
        match files.locator.find(replica, slot, uid, Freshness::Cached).await {
            // A copy may lag behind: only the zone's own store knows that there is no such file.
            Ok(found) if found.best.is_none() && found.damage.is_none() && found.deleted_ms.is_none() => {
                return if store == 0 { None } else { Some(Place::Alone) };
            }
            Ok(found) => return Some(place(replica, store, found)),
            Err(error) if error.may_differ_elsewhere() => drop(failed.get_or_insert(error)),
            Err(error) => return Some(Place::Failed(error)),
        }
    }
    failed.map(Place::Failed)
}

fn place(replica: &Arc<Replica>, store: usize, found: Found) -> Place {
    match found {
        Found { best: Some(located), damage: None, deleted_ms: None } => match located.entry.location {
            Location::Inline(inline) if inline.stored_len.max(inline.raw_len) <= SMALL => {
                Place::Here(Here { replica: replica.clone(), store, located, inline })
            }
            Location::Inline(_) | Location::BigFile { .. } => Place::Alone,
        },
        _ => Place::Alone,
    }
}

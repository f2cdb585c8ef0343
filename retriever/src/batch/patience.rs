//! How long a batch waits for one file.
//!
//! A batch's answer begins at once, so the deadline of requests does not bound it. Each search and each read has that time
//! instead. Thousands of files in a zone that hangs would take it again and again, so once it has passed for a zone, what
//! comes after has a short time, until something of the zone answers again.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use des_shared::routing::candidate_slots;

use super::asked::Asked;
use crate::error::Error;
use crate::serve::Files;

/// The short time is so many times that after which a zone's next store is asked: enough for that one to answer.
const SHORT: u32 = 4;

/// The patience of one batch. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Patience {
    usual: Duration,
    short: Duration,
    /// The zones that were waited for in vain.
    late: Arc<Mutex<HashSet<String>>>,
}

impl Patience {
    /// `usual` is how long a single request may take, `failover` how long a store before the next one is asked.
    pub(super) fn new(usual: Duration, failover: Duration) -> Self {
        Self { usual, short: usual.min(failover * SHORT), late: Arc::default() }
    }

    /// Does something in a zone within its time, or drops it.
    pub(super) async fn within<T>(&self, zone: &str, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let limit = if self.late().contains(zone) { self.short } else { self.usual };
        if let Ok(outcome) = tokio::time::timeout(limit, work).await {
            self.late().remove(zone);
            return outcome;
        }
        self.late().insert(zone.to_owned());
        Err(Error::DeadlinePassed { limit })
    }

    fn late(&self) -> MutexGuard<'_, HashSet<String>> {
        // A panic cannot leave a set half changed.
        self.late.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The zone of a file: that of its shard index, whatever its date is.
pub(super) fn zone_of<'a>(files: &'a Files, asked: &Asked) -> Result<&'a str, Error> {
    let zones = files.places.zones();
    let slot = candidate_slots(&asked.uid, &asked.created_at, zones.n_bits())[0];
    Ok(&zones.zone_for(slot.index)?.name)
}

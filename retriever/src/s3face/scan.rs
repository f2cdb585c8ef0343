//! One pass over everything that the zones have of a date, for one window of a listing.
//!
//! Every shard is asked for its entries from the first wanted uid on, and stops as soon as the window holds enough lesser
//! ones. So memory is bounded by the window and the blocks being read, whatever the number of shards is; the order in
//! which shards are read does not matter. Where a zone has copies, each of its stores is read into a window of its own, and
//! the first that is done counts: a copy may lag behind, and what was deleted must not come back out of it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use des_shared::archive::{ArchiveError, EntriesFrom, RemoteShard};
use des_shared::routing::{NBits, ShardDate, shard_index};
use des_shared::shard::Entry;
use des_shared::store::zones::ShardRange;
use futures::{StreamExt, stream};

use super::query::{Query, behind};
use super::view::{DateView, Views};
use super::window::{File, Item, Window};
use crate::cache::{IndexCache, Listed};
use crate::error::Error;
use crate::fetch::Form;
use crate::locate::Located;
use crate::places::Replica;
use crate::replicas::{BesideDamage, first_answer};
use crate::represent;
use crate::serve::Files;

/// Shards of one zone read side by side for one listing.
const SHARDS_AT_ONCE: usize = 16;
/// Pages of a store's listing come one after the other, so nothing of a date comes for a longer while than of a file.
const SLOWER: u32 = 4;

/// What a pass works with.
pub(super) struct Pass {
    pub(super) query: Query,
    pub(super) date: ShardDate,
    /// `{date}/`.
    folder: String,
    /// The least bytes that a wanted uid can be.
    first: Vec<u8>,
    n_bits: NBits,
    most: usize,
    window: Arc<Mutex<Window>>,
    cache: Arc<IndexCache>,
    views: Arc<Views>,
    /// When the oldest listing used was asked for.
    asked_ms: AtomicU64,
}

/// Where the items of one store go, and how far its reading is.
struct Target {
    window: Arc<Mutex<Window>>,
    progress: Arc<AtomicU64>,
}

/// The stores of a zone that are read for the same listing: one that is only slow is not followed by the next.
#[derive(Default)]
struct Turns {
    begun: AtomicU64,
    failed: AtomicU64,
    /// Views, shards and blocks that came.
    progress: Arc<AtomicU64>,
}

impl Turns {
    /// Returns at once for the first; for others when all before failed, or nothing came for a while.
    async fn wait(&self, patience: Duration) {
        let number = self.begun.fetch_add(1, Ordering::Relaxed);
        let mut seen = 0;
        loop {
            let now = self.progress.load(Ordering::Relaxed);
            if self.failed.load(Ordering::Relaxed) >= number || now == seen {
                return;
            }
            seen = now;
            tokio::time::sleep(patience).await;
        }
    }
}

fn lock(window: &Mutex<Window>) -> MutexGuard<'_, Window> {
    // A panic elsewhere fails that listing; the window is its own.
    window.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How the reading of entries ended.
enum Taken {
    /// There were no more.
    All,
    /// The others are not wanted.
    Enough,
    /// The next wanted uid is at least this.
    Leap(Vec<u8>),
}

impl Pass {
    pub(super) fn new(
        query: &Query,
        date: ShardDate,
        window: Arc<Mutex<Window>>,
        (files, views): (&Files, &Arc<Views>),
    ) -> Self {
        let (folder, first, most) = (format!("{date}/"), query.first(), lock(&window).most());
        Self {
            query: query.clone(),
            date,
            first: first.strip_prefix(folder.as_bytes()).unwrap_or_default().to_vec(),
            folder,
            most,
            n_bits: files.places.zones().n_bits(),
            window,
            cache: files.locator.cache.clone(),
            views: views.clone(),
            asked_ms: AtomicU64::new(u64::MAX),
        }
    }

    pub(super) fn asked_ms(&self) -> u64 {
        self.asked_ms.load(Ordering::Relaxed)
    }

    /// Reads everything that the zone with these shard indexes has, from the first of its stores that can.
    pub(super) async fn zone(
        self: Arc<Self>,
        range: ShardRange,
        (replicas, patience): (Vec<Arc<Replica>>, Duration),
    ) -> Result<(), Error> {
        if let [only] = &replicas[..] {
            let target = Target { window: self.window.clone(), progress: Arc::default() };
            return self.store(range, only, &target).await;
        }
        let (turns, patience) = (Turns::default(), patience * SLOWER);
        let turns = &turns;
        let pass = &self;
        let found = first_answer(&replicas, patience, |replica, beside| async move {
            if beside == BesideDamage::Accept {
                // There is no half of a listing.
                return Ok(None);
            }
            let target =
                Target { window: Arc::new(Mutex::new(Window::new(pass.most))), progress: turns.progress.clone() };
            turns.wait(patience).await;
            match pass.store(range, replica, &target).await {
                Ok(()) => Ok(Some(target.window)),
                Err(error) => {
                    turns.failed.fetch_add(1, Ordering::Relaxed);
                    Err(error)
                }
            }
        });
        if let Some(window) = found.await? {
            let found = std::mem::replace(&mut *lock(&window), Window::new(0));
            lock(&self.window).take_over(found);
        }
        Ok(())
    }

    /// Reads one store. When an object was replaced or removed since it was listed, once more.
    async fn store(&self, range: ShardRange, replica: &Arc<Replica>, target: &Target) -> Result<(), Error> {
        match self.once(range, replica, target).await {
            Err(Error::Moving { .. }) => {
                self.views.forget(replica, self.date).await;
                self.once(range, replica, target).await
            }
            other => other,
        }
    }

    async fn once(&self, range: ShardRange, replica: &Arc<Replica>, target: &Target) -> Result<(), Error> {
        let view = &self.views.of(replica, self.date).await?;
        target.progress.fetch_add(1, Ordering::Relaxed);
        self.asked_ms.fetch_min(view.asked_ms, Ordering::Relaxed);
        let shards = (0..view.shards.len())
            .filter(|at| range.contains(view.shards[*at].0))
            .map(|at| async move { self.shard(replica, (view, at), target).await });
        let mut shards = stream::iter(shards).buffer_unordered(SHARDS_AT_ONCE);
        while let Some(done) = shards.next().await {
            done?;
        }
        Ok(())
    }

    async fn shard(&self, replica: &Replica, (view, at): (&DateView, usize), target: &Target) -> Result<(), Error> {
        let (slot, listed) = &view.shards[at];
        let shard = self.cache.shard(replica, listed).await?;
        target.progress.fetch_add(1, Ordering::Relaxed);
        let wrap = |e: ArchiveError| Error::at_zone(&replica.zone, e);
        let from_shard = Shard { index: &shard, listed, slot: *slot, view };
        let (mut from, mut next) = (self.first.clone(), 0);
        loop {
            let taken = match shard.entries_from(&from) {
                EntriesFrom::Here(entries) => self.take((&from_shard, target), entries).map_err(wrap)?,
                EntriesFrom::InBlocks(blocks) => {
                    next = blocks.start.max(next);
                    if next >= blocks.end {
                        return Ok(());
                    }
                    let block = self.cache.block(replica, &listed.id, &shard, next).await?;
                    target.progress.fetch_add(1, Ordering::Relaxed);
                    let entries = block.entries_from(&from).map(|entry| entry.map_err(|e| shard.damaged(e)));
                    match self.take((&from_shard, target), entries).map_err(wrap)? {
                        Taken::All => {
                            next += 1;
                            continue;
                        }
                        other => other,
                    }
                }
            };
            match taken {
                Taken::All | Taken::Enough => return Ok(()),
                Taken::Leap(uid) => from = uid,
            }
        }
    }

    /// What finds no room where all zones' items go is not wanted either.
    fn has_room_for(&self, target: &Target, key: &str) -> bool {
        lock(&target.window).has_room_for(key) && lock(&self.window).has_room_for(key)
    }

    /// Offers entries to the window, in their order.
    fn take(
        &self,
        (from, target): (&Shard<'_>, &Target),
        entries: impl Iterator<Item = Result<Entry, ArchiveError>>,
    ) -> Result<Taken, ArchiveError> {
        let mut key = self.folder.clone();
        for entry in entries {
            let entry = entry?;
            key.truncate(self.folder.len());
            key.push_str(&entry.uid);
            if !key.starts_with(&self.query.prefix) {
                return Ok(Taken::Enough);
            }
            let common = self.query.common_prefix(&key);
            if !self.has_room_for(target, common.unwrap_or(&key)) {
                return Ok(Taken::Enough);
            }
            if !from.shows(&entry, self.n_bits) {
                continue;
            }
            let Some(common) = common else {
                let item = from.file(entry);
                lock(&target.window).offer(&key, item);
                continue;
            };
            lock(&target.window).offer(common, Item::CommonPrefix);
            return Ok(match behind(common).strip_prefix(self.folder.as_bytes()) {
                Some(uid) => Taken::Leap(uid.to_vec()),
                // The whole date is one item.
                None => Taken::Enough,
            });
        }
        Ok(Taken::All)
    }
}

/// A shard of the date, opened.
struct Shard<'a> {
    index: &'a Arc<RemoteShard>,
    listed: &'a Listed,
    /// The shard index of its slot.
    slot: u32,
    view: &'a DateView,
}

impl Shard<'_> {
    /// Whether a reader would find the entry: it lies in the slot of its uid, and was not deleted after it was packed.
    fn shows(&self, entry: &Entry, n_bits: NBits) -> bool {
        let deleted_ms = self.view.deleted_ms(self.slot, &entry.uid);
        shard_index(&entry.uid, n_bits) == self.slot && deleted_ms.is_none_or(|time| time <= self.index.sequence())
    }

    fn file(&self, entry: Entry) -> Item {
        let size = entry.raw_len();
        let located = Located { object: self.listed.id.clone(), shard: self.index.clone(), entry };
        Item::File(File {
            size,
            etag: represent::etag(&located, Form::Raw),
            modified_s: represent::modified_s(&located).unwrap_or_default(),
            rank: (self.index.sequence(), self.listed.meta.key.as_str().into()),
        })
    }
}

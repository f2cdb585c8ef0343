//! Pages of a listing.
//!
//! A page is the start of a window of several pages, found in one pass over the shards of a date; the pages that follow
//! are taken from the window while the listing behind it is fresh.

use std::sync::{Arc, Mutex, PoisonError};

use des_shared::clock::Clock;
use des_shared::routing::ShardDate;
use futures::future::try_join_all;
use tokio::sync::Semaphore;

use super::dates::{Dates, Step};
use super::query::Query;
use super::scan::Pass;
use super::view::Views;
use super::window::{ITEM_OVERHEAD, Item, Window};
use crate::cache::memory::{CacheOptions, MemoryCache};
use crate::error::Error;
use crate::serve::Files;

/// Pages found in one pass.
const PAGES_AHEAD: usize = 8;
/// Dates gone through for one page. One that is not full by then is short, and the next one goes on.
const DATES_OF_PAGE: usize = 64;
/// Bytes of windows that are kept.
const KEPT_BYTES: u64 = 32 << 20;
/// Passes at the same time: each takes a window's memory.
const PASSES_AT_ONCE: usize = 8;

/// One page.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Page {
    /// In the order of their keys.
    pub(super) items: Vec<(String, Item)>,
    /// Where to go on, when there may be more.
    pub(super) next: Option<String>,
}

/// What a pass found.
struct Found {
    items: Vec<(String, Item)>,
    bytes: usize,
    /// Where to go on behind the last item.
    more: Option<String>,
    asked_ms: u64,
}

/// The rest of what a pass found, from an item on.
type Rest = (Arc<Found>, usize);

/// Makes pages.
pub(super) struct Listings {
    files: Arc<Files>,
    views: Arc<Views>,
    /// By what the next page will be asked for with.
    ahead: MemoryCache<Query, Rest>,
    passes: Semaphore,
}

impl Listings {
    pub(super) fn new(files: Arc<Files>, clock: Arc<dyn Clock>) -> Self {
        let views = Views::new(files.places.zones().n_bits(), clock, files.locator.listing_ttl);
        let weigher = |_: &Query, (found, _): &Rest| u32::try_from(found.bytes).unwrap_or(u32::MAX);
        let ahead = MemoryCache::weighed(CacheOptions { capacity: KEPT_BYTES, ..CacheOptions::default() }, weigher);
        Self { files, views: Arc::new(views), ahead, passes: Semaphore::new(PASSES_AT_ONCE) }
    }

    /// Up to `most` items behind the query's marker. Fewer do not mean that there are no more: [`Page::next`] says.
    pub(super) async fn page(&self, query: &Query, most: usize) -> Result<Page, Error> {
        if most == 0 || query.is_over() {
            return Ok(Page::default());
        }
        if let Some((found, from)) = self.ahead.get(query).await {
            let enough = found.items.len() - from >= most || found.more.is_none();
            if enough && self.views.is_fresh(found.asked_ms) {
                return Ok(self.cut(query, (found, from), most).await);
            }
        }
        let _permit = self.passes.acquire().await.expect("never closed");
        let dates_alone = query.delimiter.as_deref() == Some("/") && !query.prefix.contains('/');
        let found = if dates_alone { self.dates(query, most).await? } else { self.files(query, most).await? };
        Ok(self.cut(query, (Arc::new(found), 0), most).await)
    }

    /// The next items of what was found; the rest is kept for the next request.
    async fn cut(&self, query: &Query, (found, from): Rest, most: usize) -> Page {
        let end = found.items.len().min(from + most);
        let items = found.items[from..end].to_vec();
        let next = if end < found.items.len() {
            let marker = items.last().map(|(key, _)| key.clone());
            self.ahead.insert(Query { marker: marker.clone(), ..query.clone() }, (found, end)).await;
            marker
        } else {
            found.more.clone()
        };
        Page { items, next }
    }

    /// The dates, as common prefixes. That a date has shards is enough, though all their files may be deleted.
    async fn dates(&self, query: &Query, most: usize) -> Result<Found, Error> {
        let asked_ms = self.views.now_ms();
        let mut dates = Dates::new(&self.files.places, &query.prefix, &query.first())?;
        let mut items: Vec<(String, Item)> = Vec::new();
        let more = loop {
            match dates.next().await? {
                Step::Date(_) if items.len() == most => break items.last().map(|(key, _)| key.clone()),
                Step::Date(date) => items.push((format!("{date}/"), Item::CommonPrefix)),
                Step::End => break None,
                Step::Enough(marker) => break Some(marker),
            }
        };
        Ok(Found { bytes: items.len() * ITEM_OVERHEAD, items, more, asked_ms })
    }

    /// Files and their common prefixes.
    async fn files(&self, query: &Query, most: usize) -> Result<Found, Error> {
        let window = Arc::new(Mutex::new(Window::new(most * PAGES_AHEAD)));
        let mut asked_ms = self.views.now_ms();
        let mut more = None;
        match query.prefix.split_once('/') {
            Some((date, _)) => {
                // A date that is none has no files.
                if let Ok(date) = date.parse() {
                    asked_ms = asked_ms.min(self.date(query, date, &window).await?);
                }
            }
            None => {
                let mut dates = Dates::new(&self.files.places, &query.prefix, &query.first())?;
                for number in 0.. {
                    match dates.next().await? {
                        Step::Date(date) if number < DATES_OF_PAGE => {
                            asked_ms = asked_ms.min(self.date(query, date, &window).await?);
                            if window.lock().unwrap_or_else(PoisonError::into_inner).is_cut() {
                                break;
                            }
                        }
                        // As a marker: before all keys of this date.
                        Step::Date(date) => {
                            more = Some(date.to_string());
                            break;
                        }
                        Step::End => break,
                        Step::Enough(marker) => {
                            more = Some(marker);
                            break;
                        }
                    }
                }
            }
        }
        let window = std::mem::replace(&mut *window.lock().unwrap_or_else(PoisonError::into_inner), Window::new(0));
        let is_cut = window.is_cut();
        let (items, bytes) = window.into_items();
        if is_cut {
            more = items.last().map(|(key, _)| key.clone());
        }
        Ok(Found { items, bytes, more, asked_ms })
    }

    /// Goes through one date in all zones.
    async fn date(&self, query: &Query, date: ShardDate, window: &Arc<Mutex<Window>>) -> Result<u64, Error> {
        let places = &self.files.places;
        let pass = Arc::new(Pass::new(query, date, window.clone(), (&self.files, &self.views)));
        let mut zones = Vec::new();
        for zone in places.zones().all() {
            let replicas = places.replicas(zone.range.start)?.to_vec();
            zones.push(pass.clone().zone(zone.range, (replicas, places.patience())));
        }
        try_join_all(zones).await?;
        Ok(pass.asked_ms())
    }
}

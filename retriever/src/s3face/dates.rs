//! Which dates there are. Nobody keeps a list of them: the names of shards begin with their date, so a store's listing
//! is walked in leaps. A page of a store's listing shows one date or many, and the next one begins behind the last of
//! them, so a walk costs at most one call for each date and zone, and fewer where dates have few shards.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use des_shared::layout::parse_shard_name;
use des_shared::routing::ShardDate;
use des_shared::store::ObjectMeta;
use futures::future::try_join_all;

use crate::error::Error;
use crate::places::{Places, Replica};
use crate::replicas::first_answer;

/// Objects of one page of a store's listing.
const PAGE: usize = 1000;
/// Calls of each zone for one page of ours; what is not known by then is on the next page.
const MOST_CALLS: usize = 64;

/// A walk over the dates of all zones, from less to greater. Dates before the year 1000, which have fewer digits, are
/// left out: their names are not in the order of their keys.
pub(super) struct Dates {
    zones: Vec<ZoneDates>,
}

struct ZoneDates {
    replicas: Vec<Arc<Replica>>,
    prefix: String,
    known: VecDeque<ShardDate>,
    /// Where to go on; `None` at the end.
    after: Option<String>,
    calls: usize,
    /// How long a store may take before the next is asked too.
    patience: Duration,
}

/// What a walk says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Date(ShardDate),
    /// There are no more.
    End,
    /// There may be more behind this marker, and finding out costs more than one request may.
    Enough(String),
}

impl Dates {
    /// The dates whose keys can begin with `prefix` and be `first` or greater.
    pub(super) fn new(places: &Places, prefix: &str, first: &[u8]) -> Result<Self, Error> {
        let date = prefix.split('/').next().unwrap_or_default();
        let possible = date.len() <= 8 && date.bytes().all(|b| b.is_ascii_digit());
        let zones = places.zones().all().iter().map(|zone| {
            Ok(ZoneDates {
                replicas: places.replicas(zone.range.start)?.to_vec(),
                prefix: date.to_owned(),
                known: VecDeque::new(),
                after: possible.then(|| before(first)),
                calls: 0,
                patience: places.patience(),
            })
        });
        Ok(Self { zones: zones.collect::<Result<_, Error>>()? })
    }

    /// The next date.
    pub(super) async fn next(&mut self) -> Result<Step, Error> {
        try_join_all(self.zones.iter_mut().map(ZoneDates::fill)).await?;
        if self.zones.iter().any(|zone| zone.known.is_empty() && zone.after.is_some()) {
            let open = self.zones.iter().filter_map(|zone| match zone.known.front() {
                Some(date) => Some(date.to_string()),
                None => zone.after.clone(),
            });
            return Ok(Step::Enough(open.min().unwrap_or_default()));
        }
        let Some(date) = self.zones.iter().filter_map(|zone| zone.known.front()).min().copied() else {
            return Ok(Step::End);
        };
        for zone in &mut self.zones {
            if zone.known.front() == Some(&date) {
                zone.known.pop_front();
            }
        }
        Ok(Step::Date(date))
    }
}

/// A key before all shards of the first date that has a key of `first` or greater.
fn before(first: &[u8]) -> String {
    let digits = first.iter().take(8).take_while(|b| b.is_ascii_digit()).count();
    let date = String::from_utf8_lossy(&first[..digits]).into_owned();
    match first.get(digits) {
        // Behind all keys of the date.
        Some(next) if digits == 8 && *next > b'/' => behind(&date),
        // Between dates: what is greater than the digits, and what begins with them.
        Some(next) if digits < 8 && *next > b'9' => format!("{date}:"),
        // A date never begins with a zero.
        _ if date.is_empty() => "0:".to_owned(),
        _ => date,
    }
}

/// A key behind all shards of a date: their names go on with hexadecimal digits.
fn behind(date: &str) -> String {
    format!("{date}_~")
}

fn date_of(object: &ObjectMeta) -> Option<ShardDate> {
    let name = parse_shard_name(&object.key).filter(|_| !object.key.contains('/'))?;
    let (date, _) = name.slot.split_once('_')?;
    date.parse().ok().filter(|_| date.len() == 8)
}

impl ZoneDates {
    /// Asks until a date is known, or there is none, or enough was asked.
    async fn fill(&mut self) -> Result<(), Error> {
        while self.known.is_empty() && self.calls < MOST_CALLS {
            let Some(after) = &self.after else { return Ok(()) };
            self.calls += 1;
            let page = self.page(after).await?;
            let mut dates: Vec<ShardDate> = page.objects.iter().filter_map(date_of).collect();
            dates.dedup();
            self.after = match (page.next, page.objects.last()) {
                (Some(next), Some(last)) if last.key.as_str() < ":" => {
                    Some(date_of(last).map_or(next, |date| behind(&date.to_string())))
                }
                _ => None,
            };
            self.known = dates.into();
        }
        Ok(())
    }

    /// From the first of the zone's stores that answers.
    async fn page(&self, after: &str) -> Result<des_shared::store::ListPage, Error> {
        let page = first_answer(&self.replicas, self.patience, |replica, _| async move {
            let page = replica.source.store().list(&self.prefix, Some(after), PAGE).await;
            page.map(Some).map_err(|e| Error::at_zone(&replica.zone, e.into()))
        });
        Ok(page.await?.expect("a zone has a store, and each that answers has a page"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn walks_begin_before_the_first_date_that_is_wanted() {
        for (first, after) in [
            ("", "0:"),
            ("2025", "2025"),
            ("20250310", "20250310"),
            ("20250310/", "20250310"),
            ("20250310/a", "20250310"),
            ("202503100", "20250310_~"),
            ("20250310a", "20250310_~"),
            ("2025a", "2025:"),
            ("a", ":"),
        ] {
            assert_eq!(before(first.as_bytes()), after, "{first}");
        }
    }
}

//! The zones as the retriever sees them: for every zone its store and its copies, each behind a guard.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use des_shared::archive::{OnRead, Source};
use des_shared::service::{Check, Readiness};
use des_shared::store::SharedStore;
use des_shared::store::guarded::{BreakerState, Guard, GuardedStore};
use des_shared::store::retrying::RetryingStore;
use des_shared::store::zones::{Zone, Zones};
use futures::FutureExt;
use futures::future::join_all;
use prometheus::IntCounter;
use serde_json::json;
use tokio::sync::Semaphore;

use crate::Deps;
use crate::cache::disk::DiskCache;
use crate::config::Endurance;
use crate::error::Error;
use crate::metrics::RetrieverMetrics;
use crate::told::Told;

/// How long one store may take to say that it is there, and how long that is believed.
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);
const CHECKED_FOR: Duration = Duration::from_secs(1);
/// Tails and blocks read at the same time, of up to 64 KiB mostly, shared by all stores.
const READS_AT_ONCE: usize = 64;
/// Listings made at the same time, in pages of some 300 KB, shared by all stores.
const LISTS_AT_ONCE: usize = 32;

/// One store of a zone.
#[derive(Debug)]
pub(crate) struct Replica {
    /// Unique in the process; the store's name in cache keys.
    pub(crate) id: u32,
    /// The zone's name.
    pub(crate) zone: String,
    /// The store behind its guard; its reads are counted.
    pub(crate) source: Source,
    /// Whether it is worth asking.
    pub(crate) guard: Arc<Guard>,
    /// What may be read of it at the same time for the caches.
    pub(crate) turns: Turns,
    /// Answers it gave in place of the zone's own store.
    pub(crate) stood_in: IntCounter,
    /// That it failed and another was asked.
    pub(crate) told: Told,
}

/// How many reads for the caches may be under way at one store: each takes memory that is not the caches'. Every store has
/// turns of its own, so that one that hangs holds up no other.
#[derive(Debug)]
pub(crate) struct Turns {
    /// Tails and blocks.
    pub(crate) reads: Semaphore,
    /// Pages of listings.
    pub(crate) lists: Semaphore,
}

impl Turns {
    fn of(stores: usize) -> Self {
        let share = |all: usize, least: usize| Semaphore::new((all / stores.max(1)).max(least));
        Self { reads: share(READS_AT_ONCE, 8), lists: share(LISTS_AT_ONCE, 4) }
    }
}

/// All zones.
#[derive(Debug)]
pub(crate) struct Places {
    zones: Arc<Zones>,
    by_name: HashMap<String, Vec<Arc<Replica>>>,
    patience: Duration,
}

/// The stores of a zone and their names in it.
fn stores(zone: &Zone) -> impl Iterator<Item = (String, &SharedStore)> {
    let copies = zone.replicas.iter().enumerate().map(|(at, store)| (format!("copy-{}", at + 1), store));
    std::iter::once(("own".to_owned(), &zone.store)).chain(copies)
}

impl Places {
    /// Puts a guard, and around it the layer that tries again, around every store: the stores must try once. What is read
    /// goes through the cache on disk, where there is one.
    pub(crate) fn new(
        deps: &Deps,
        endurance: &Endurance,
        metrics: &RetrieverMetrics,
        disk: Option<&Arc<DiskCache>>,
    ) -> Self {
        let (zones, dice) = (deps.zones.clone(), &deps.dice);
        let read = metrics.clone();
        let on_read: OnRead = Arc::new(move |kind| read.shard_read(kind));
        let count = zones.all().iter().map(|zone| 1 + zone.replicas.len()).sum();
        let mut ids = 0..;
        let mut replica = |zone: &str, name: &str, store: &SharedStore| {
            let guarded =
                GuardedStore::new(store.clone(), (zone, name), endurance.guard, metrics.guards(), dice.clone());
            let guard = guarded.guard();
            let retrying = RetryingStore::new(Arc::new(guarded), endurance.retry, dice.clone());
            let source = Source::observed(Arc::new(retrying), on_read.clone());
            let source = match disk {
                Some(disk) => source.cached(disk.clone()),
                None => source,
            };
            Arc::new(Replica {
                id: ids.next().expect("zones are few"),
                zone: zone.to_owned(),
                source,
                guard,
                turns: Turns::of(count),
                stood_in: metrics.stood_in(zone, name),
                told: Told::default(),
            })
        };
        let by_name = zones
            .all()
            .iter()
            .map(|zone| {
                let replicas = stores(zone).map(|(name, store)| replica(&zone.name, &name, store));
                (zone.name.clone(), replicas.collect())
            })
            .collect();
        Self { zones, by_name, patience: endurance.failover_after }
    }

    pub(crate) fn zones(&self) -> &Zones {
        &self.zones
    }

    /// The stores of the zone of a shard index; never none.
    pub(crate) fn replicas(&self, index: u32) -> Result<&[Arc<Replica>], Error> {
        Ok(&self.by_name[&self.zones.zone_for(index)?.name])
    }

    /// How long a store may take before the next one of its zone is asked too.
    pub(crate) fn patience(&self) -> Duration {
        self.patience
    }

    /// Asks every zone, all of its stores side by side. One whose own store is down is still ready when a copy answers.
    pub(crate) fn readiness(&self, readiness: Readiness) -> Readiness {
        let mut readiness = readiness.kept_for(CHECKED_FOR);
        let mut guards = Vec::new();
        for zone in self.zones.all() {
            let replicas = self.by_name[&zone.name].clone();
            guards.extend(replicas.iter().map(|replica| replica.guard.clone()));
            let check: Check = Arc::new(move || ask(replicas.clone()).boxed());
            readiness = readiness.with(format!("zone {}", zone.name), check);
        }
        readiness.with_detail("stores", Arc::new(move || guards.iter().map(|guard| shown(guard)).collect()))
    }
}

fn shown(guard: &Guard) -> serde_json::Value {
    let (zone, store) = guard.name();
    json!({"zone": zone, "store": store, "breaker": guard.breaker().label(), "call_limit": guard.call_limit()})
}

async fn ask(replicas: Vec<Arc<Replica>>) -> Result<(), String> {
    let answers = join_all(replicas.iter().map(|replica| async move {
        match tokio::time::timeout(CHECK_TIMEOUT, replica.source.store().check()).await {
            Ok(answer) => answer.map_err(|error| error.to_string()),
            Err(_) => {
                let url = replica.source.store().url();
                Err(format!("{url}: no answer within {} s", CHECK_TIMEOUT.as_secs()))
            }
        }
    }))
    .await;
    let down: Vec<String> = answers.iter().filter_map(|answer| answer.clone().err()).collect();
    if down.len() == answers.len() {
        return Err(down.join("; "));
    }
    // The breaker says in the log when a store goes; this is for those that nobody reads from.
    let known = replicas.iter().any(|replica| replica.guard.breaker() != BreakerState::Closed);
    if !down.is_empty() && !known {
        tracing::warn!("the zone is ready, but not all of its stores are: {}", down.join("; "));
    }
    Ok(())
}

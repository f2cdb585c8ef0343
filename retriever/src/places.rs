//! The zones as the retriever sees them: for every zone its store and its copies, in the order in which they are
//! asked.

use std::collections::HashMap;
use std::sync::Arc;

use des_shared::archive::{OnRead, Source};
use des_shared::service::{Check, Readiness};
use des_shared::store::SharedStore;
use des_shared::store::zones::Zones;
use futures::FutureExt;

use crate::cache::disk::DiskCache;
use crate::error::Error;
use crate::metrics::RetrieverMetrics;

/// One store of a zone.
#[derive(Debug)]
pub(crate) struct Replica {
    /// Unique in the process; the store's name in cache keys.
    pub(crate) id: u32,
    /// The zone's name.
    pub(crate) zone: String,
    /// The store; its reads are counted.
    pub(crate) source: Source,
}

/// All zones.
#[derive(Debug)]
pub(crate) struct Places {
    zones: Arc<Zones>,
    by_name: HashMap<String, Vec<Arc<Replica>>>,
}

impl Places {
    pub(crate) fn new(zones: Arc<Zones>, metrics: &RetrieverMetrics, disk: Option<&Arc<DiskCache>>) -> Self {
        let metrics = metrics.clone();
        let on_read: OnRead = Arc::new(move |kind| metrics.shard_read(kind));
        let mut ids = 0..;
        let mut replica = |zone: &str, store: &SharedStore| {
            let source = Source::observed(store.clone(), on_read.clone());
            let source = match disk {
                Some(disk) => source.cached(disk.clone()),
                None => source,
            };
            Arc::new(Replica { id: ids.next().expect("zones are few"), zone: zone.to_owned(), source })
        };
        let by_name = zones
            .all()
            .iter()
            .map(|zone| {
                let stores = std::iter::once(&zone.store).chain(&zone.replicas);
                (zone.name.clone(), stores.map(|store| replica(&zone.name, store)).collect())
            })
            .collect();
        Self { zones, by_name }
    }

    pub(crate) fn zones(&self) -> &Zones {
        &self.zones
    }

    /// The stores of the zone of a shard index; never none.
    pub(crate) fn replicas(&self, index: u32) -> Result<&[Arc<Replica>], Error> {
        Ok(&self.by_name[&self.zones.zone_for(index)?.name])
    }

    /// Asks every zone. One whose own store is down is still ready when a copy answers.
    pub(crate) fn readiness(&self, mut readiness: Readiness) -> Readiness {
        for zone in self.zones.all() {
            let stores: Vec<SharedStore> = std::iter::once(&zone.store).chain(&zone.replicas).cloned().collect();
            let check: Check = Arc::new(move || ask(stores.clone()).boxed());
            readiness = readiness.with(format!("zone {}", zone.name), check);
        }
        readiness
    }
}

async fn ask(stores: Vec<SharedStore>) -> Result<(), String> {
    let mut problems = Vec::new();
    for store in stores {
        match store.check().await {
            Ok(()) => {
                if !problems.is_empty() {
                    tracing::warn!("a copy stands in: {}", problems.join("; "));
                }
                return Ok(());
            }
            Err(error) => problems.push(error.to_string()),
        }
    }
    Err(problems.join("; "))
}

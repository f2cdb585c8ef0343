//! The retriever: finds a file in its shard and serves it over HTTP.
//!
//! The way of a request: [`api`] reads it, [`serve`] goes through the dates where the file can be, [`replicas`] through
//! the stores of its zone, [`locate`] finds the entry with the help of [`cache`], [`fetch`] brings the checked bytes
//! ([`parts`] those of parts of big files), [`represent`], [`negotiate`] and [`conditions`] say what HTTP has to know.
//! [`batch`] answers many files at once, [`keys`] says who may, `graphql` is another way to ask, and [`s3face`] serves
//! the same files as objects of a bucket, on an address of its own. The cache on disk, `graphql` and the S3 interface are
//! cargo features.
//!
//! It needs the shards alone: neither Redis nor the state store. Any number of retrievers run side by side.

mod api;
mod batch;
mod cache;
mod conditions;
mod config;
mod deadline;
mod delete;
mod error;
mod fetch;
#[cfg(feature = "graphql")]
mod graphql;
mod keys;
mod locate;
mod metrics;
mod negotiate;
mod parts;
mod places;
mod replicas;
mod represent;
#[cfg_attr(not(feature = "s3-gateway"), path = "s3face_left_out.rs")]
mod s3face;
mod serve;
mod told;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use des_shared::clock::{Clock, Dice};
use des_shared::metrics::Metrics;
use des_shared::service::{self, Drain, Lanes, Readiness, Shutdown};
use des_shared::store::zones::Zones;
use futures::future::{BoxFuture, OptionFuture};
use tokio::task::JoinHandle;

use crate::batch::Batches;
use crate::cache::IndexCache;
use crate::cache::disk::DiskCache;
use crate::deadline::Deadline;
use crate::fetch::Fetcher;
use crate::keys::Gate;
use crate::locate::Locator;
use crate::metrics::RetrieverMetrics;
use crate::parts::Parts;
use crate::places::Places;
use crate::s3face::S3Face;
use crate::serve::Files;

pub use cache::disk::DiskConfig;
pub use config::{Config, Endurance, all_settings, blocking_threads};
pub use error::Error;
pub use keys::{Key, KeySettings, KeysFile, KeysFileError, Limit, NewKey, Scope, Scopes, SignError, UrlKeys};
pub use s3face::S3FaceConfig;
#[cfg(feature = "s3-gateway")]
pub use s3face::S3Keys;

/// What a retriever works with; opened by whoever starts it.
#[derive(Clone)]
pub struct Deps {
    /// Where shards are. Stores that try once: the retriever tries again by itself.
    pub zones: Arc<Zones>,
    /// Wall-clock time.
    pub clock: Arc<dyn Clock>,
    /// Jitter.
    pub dice: Arc<Dice>,
    /// The registry of the process.
    pub metrics: Metrics,
}

impl fmt::Debug for Deps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Deps").field("zones", &self.zones).finish_non_exhaustive()
    }
}

/// The retriever as a service.
#[derive(Debug)]
pub struct Retriever;

/// A running retriever.
#[derive(Debug)]
pub struct Running {
    address: SocketAddr,
    s3_address: Option<SocketAddr>,
    server: JoinHandle<io::Result<()>>,
}

impl Retriever {
    /// Binds, begins to serve, and returns. Stops when `shutdown` begins.
    ///
    /// # Errors
    /// When the address cannot be bound or the disk cache cannot be opened.
    pub fn start(config: Config, deps: Deps, shutdown: Shutdown) -> BoxFuture<'static, io::Result<Running>> {
        // Boxed: an async function is compiled where it is awaited, and all of this would be in every program anew.
        Box::pin(Self::bind_and_serve(config, deps, shutdown))
    }

    async fn bind_and_serve(config: Config, deps: Deps, shutdown: Shutdown) -> io::Result<Running> {
        let metrics = RetrieverMetrics::register(&deps.metrics, config.backend);
        let disk = match &config.disk {
            Some(disk) => Some(DiskCache::open(disk, metrics.clone()).await.map_err(io::Error::other)?),
            None => None,
        };
        let lanes = Lanes::start(config.serving_threads)?;
        let listener = service::bind(config.listen.address).await?;
        let address = listener.local_addr()?;
        let drain = Drain { notice: config.endurance.drain_notice, grace: config.listen.drain };
        let gate = Arc::new(Gate::new(&config, deps.clock.clone(), &deps.metrics));
        let watch = gate.watch()?;
        let files = Arc::new(files_over(&config, &deps, &metrics, disk.as_ref()));
        let s3_face = match config.s3_face.clone() {
            None => None,
            Some(face) => {
                let deadline = deadline(&config, &metrics);
                let face = S3Face::new(face, (files.clone(), deps.clock.clone()), (deadline, metrics.clone()));
                Some(face.bind(lanes.clone(), shutdown.clone(), drain).await?)
            }
        };
        let (s3_address, face) = s3_face.unzip();
        let router = gate.guard(router(&config, (deps, metrics, files), &shutdown));
        let serving = lanes.clone();
        let http = async move {
            tokio::select! {
                served = service::serve_with_notice(&serving, listener, router, shutdown, drain) => served,
                never = watch => match never {},
            }
        };
        let server = tokio::spawn(async move {
            let (http, face) = tokio::join!(http, OptionFuture::from(face));
            lanes.end().await;
            // Behind all of them: what is still answered while they drain goes through the disk.
            if let Some(disk) = disk {
                disk.close().await;
            }
            http.and(face.unwrap_or(Ok(())))
        });
        Ok(Running { address, s3_address, server })
    }
}

impl Running {
    /// The address it really listens on.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// The address at which the S3 interface really listens, when there is one.
    pub fn s3_addr(&self) -> Option<SocketAddr> {
        self.s3_address
    }

    /// Returns when it has stopped.
    ///
    /// # Errors
    /// When a listener failed.
    pub async fn join(self) -> io::Result<()> {
        self.server.await.map_err(io::Error::other)?
    }
}

/// Files without a cache on disk.
#[cfg(test)]
fn files(config: &Config, deps: &Deps, metrics: &RetrieverMetrics) -> Files {
    files_over(config, deps, metrics, None)
}

fn files_over(config: &Config, deps: &Deps, metrics: &RetrieverMetrics, disk: Option<&Arc<DiskCache>>) -> Files {
    let cache = Arc::new(IndexCache::new(config.cache_bytes, deps.clock.clone(), metrics.clone()));
    Files {
        places: Places::new(deps, &config.endurance, metrics, disk),
        locator: Locator { cache, listing_ttl: config.listing_ttl },
        fetcher: Fetcher::new(config.payload_cache_bytes, metrics.clone()),
        parts: Parts::new(),
        bigfiles_prefix: config.bigfiles_prefix.clone(),
    }
}

fn deadline(config: &Config, metrics: &RetrieverMetrics) -> Deadline {
    Deadline { limit: config.endurance.request_deadline, passed: metrics.deadlines_passed() }
}

fn router(
    config: &Config,
    (deps, metrics, files): (Deps, RetrieverMetrics, Arc<Files>),
    shutdown: &Shutdown,
) -> Router {
    let readiness = files.places.readiness(Readiness::new(shutdown.clone()));
    let deadline = deadline(config, &metrics);
    let api = api::Shared {
        files: files.clone(),
        batches: Arc::new(Batches::new(config.batch_max_files).within(config.endurance.request_deadline)),
        metrics,
        cache_control: config.cache_control(),
        clock: deps.clock.clone(),
    };
    let routes = api::routes(api.into());
    #[cfg(feature = "graphql")]
    let routes = routes.merge(graphql::routes(files));
    routes
        .merge(service::health_routes(readiness, deps.metrics))
        .finish("DES retriever", "Finds a file in its shard and serves it.")
        .fallback(api::not_found)
        .layer(axum::middleware::from_fn_with_state(deadline, deadline::enforce))
}

#[cfg(test)]
mod tests;

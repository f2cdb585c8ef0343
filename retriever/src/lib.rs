//! The retriever: finds a file in its shard and serves it over HTTP.
//!
//! The way of a request: [`api`] reads it, [`serve`] goes through the places where the file can be, [`locate`] finds
//! the entry with the help of [`cache`], [`fetch`] brings the checked bytes, [`represent`] says what HTTP has to know.
//! [`s3face`] serves the same files as objects of a bucket, on an address of its own.
//!
//! It needs the shards alone: neither Redis nor the state store. Any number of retrievers run side by side.

mod api;
mod cache;
mod config;
mod delete;
mod error;
mod fetch;
mod locate;
mod metrics;
mod places;
mod represent;
mod s3face;
mod serve;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use des_shared::clock::Clock;
use des_shared::metrics::Metrics;
use des_shared::service::{self, Readiness, Shutdown};
use des_shared::store::zones::Zones;
use tokio::task::JoinHandle;

use crate::api::Api;
use crate::cache::IndexCache;
use crate::fetch::Fetcher;
use crate::locate::Locator;
use crate::metrics::RetrieverMetrics;
use crate::places::Places;
use crate::s3face::S3Face;
use crate::serve::Files;

pub use config::{Config, all_settings, blocking_threads};
pub use error::Error;
pub use s3face::{S3FaceConfig, S3Keys};

/// What a retriever works with; opened by whoever starts it.
#[derive(Clone)]
pub struct Deps {
    /// Where shards are.
    pub zones: Arc<Zones>,
    /// Wall-clock time.
    pub clock: Arc<dyn Clock>,
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
    server: JoinHandle<io::Result<()>>,
    s3_face: Option<(SocketAddr, JoinHandle<io::Result<()>>)>,
}

impl Retriever {
    /// Binds, begins to serve, and returns. Stops when `shutdown` begins.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub async fn start(config: Config, deps: Deps, shutdown: Shutdown) -> io::Result<Running> {
        let listener = service::bind(config.listen.address).await?;
        let address = listener.local_addr()?;
        let drain = config.listen.drain;
        let metrics = RetrieverMetrics::register(&deps.metrics, config.backend);
        let files = Arc::new(files(&config, &deps, &metrics));
        let s3_face = match config.s3_face.clone() {
            None => None,
            Some(face) => {
                let face = S3Face::new(face, files.clone(), (deps.clock.clone(), metrics.clone()));
                Some(face.start(shutdown.clone(), drain).await?)
            }
        };
        // Where requests need a key, that of a deleter is one.
        let auth = match &config.deleters {
            Some(deleters) if config.listen.auth.required() => config.listen.auth.or(deleters),
            _ => config.listen.auth.clone(),
        };
        let router = service::with_auth(router(&config, deps, (files, metrics), &shutdown), auth);
        let server = tokio::spawn(service::serve(listener, router, shutdown, drain));
        Ok(Running { address, server, s3_face })
    }
}

impl Running {
    /// The address it really listens on.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// The address at which the S3 interface really listens, when there is one.
    pub fn s3_addr(&self) -> Option<SocketAddr> {
        self.s3_face.as_ref().map(|(address, _)| *address)
    }

    /// Returns when it has stopped.
    ///
    /// # Errors
    /// When a listener failed.
    pub async fn join(self) -> io::Result<()> {
        let served = self.server.await.map_err(io::Error::other)?;
        if let Some((_, face)) = self.s3_face {
            face.await.map_err(io::Error::other)??;
        }
        served
    }
}

fn files(config: &Config, deps: &Deps, metrics: &RetrieverMetrics) -> Files {
    let cache = Arc::new(IndexCache::new(config.cache_bytes, deps.clock.clone(), metrics.clone()));
    Files {
        places: Places::new(deps.zones.clone(), metrics),
        locator: Locator { cache, clock: deps.clock.clone(), listing_ttl: config.listing_ttl },
        fetcher: Fetcher::new(metrics.clone()),
        bigfiles_prefix: config.bigfiles_prefix.clone(),
    }
}

fn router(
    config: &Config,
    deps: Deps,
    (files, metrics): (Arc<Files>, RetrieverMetrics),
    shutdown: &Shutdown,
) -> Router {
    let readiness = files.places.readiness(Readiness::new(shutdown.clone()));
    api::router(Api { files, metrics, deleters: config.deleters.clone(), clock: deps.clock.clone() })
        .merge(service::health_routes(readiness, deps.metrics))
        .fallback(api::not_found)
}

#[cfg(test)]
mod tests;

//! Where a store is, and how to open it with its layers.

use std::path::PathBuf;
use std::sync::Arc;

use futures::future::BoxFuture;

use super::call::{Call, Operation};
use super::local::LocalStore;
use super::metered::{MeteredStore, StoreMetrics};
use super::retrying::RetryingStore;
use super::s3_config::S3Config;
use super::{SharedStore, StoreError};
use crate::clock::Dice;
use crate::features;
use crate::retry::RetryPolicy;

/// Where a store is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backend {
    /// An existing folder.
    Local {
        /// Its path.
        base_dir: PathBuf,
    },
    /// A bucket.
    S3(S3Config),
}

/// The answer of a build without the S3 client.
pub(crate) fn no_s3() -> String {
    features::missing("s3", "S3 buckets")
}

/// What is put around every store that is opened: metrics for each attempt, then the layer that tries again.
#[derive(Clone, Debug)]
pub struct Layers {
    /// Counts every attempt.
    pub metrics: Option<StoreMetrics>,
    /// How failures are tried again; [`RetryPolicy::NEVER`] leaves the layer out.
    pub retry: RetryPolicy,
    /// Jitter.
    pub dice: Arc<Dice>,
}

impl Layers {
    /// [`RetryPolicy::QUICK`], no metrics.
    pub fn new(dice: Arc<Dice>) -> Self {
        Self { metrics: None, retry: RetryPolicy::QUICK, dice }
    }

    /// Puts the layers around a store.
    pub fn around(&self, store: SharedStore) -> SharedStore {
        let store = match &self.metrics {
            Some(metrics) => Arc::new(MeteredStore::new(store, metrics.clone())),
            None => store,
        };
        if self.retry.attempts <= 1 {
            return store;
        }
        Arc::new(RetryingStore::new(store, self.retry, self.dice.clone()))
    }
}

impl Backend {
    /// Reads `s3://bucket/prefix` (region and endpoint from `defaults`) or `file:///dir`.
    ///
    /// # Errors
    /// [`Invalid`](super::StoreErrorKind::Invalid) when the text is neither.
    pub fn from_url(url: &str, defaults: &S3Config) -> Result<Self, StoreError> {
        let invalid = |why: String| Call::new(&url.into(), Operation::Open, "").invalid(why);
        if let Some(path) = url.strip_prefix("file://") {
            if !path.starts_with('/') {
                return Err(invalid("expected an absolute path: file:///dir".to_owned()));
            }
            return Ok(Self::Local { base_dir: PathBuf::from(path) });
        }
        let Some(rest) = url.strip_prefix("s3://") else {
            return Err(invalid("expected s3://bucket/prefix or file:///dir".to_owned()));
        };
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let config = S3Config { bucket: bucket.to_owned(), prefix: prefix.to_owned(), ..defaults.clone() };
        config.check().map_err(invalid)?;
        let backend = Self::S3(config);
        backend.check_built_in().map_err(invalid)?;
        Ok(backend)
    }

    /// Whether this build has the client for the store.
    ///
    /// # Errors
    /// Names the cargo feature that is missing.
    pub fn check_built_in(&self) -> Result<(), String> {
        match self {
            Self::S3(_) if !cfg!(feature = "s3") => Err(no_s3()),
            Self::S3(_) | Self::Local { .. } => Ok(()),
        }
    }

    /// The store for people.
    pub fn url(&self) -> String {
        match self {
            Self::Local { base_dir } => format!("file://{}", base_dir.display()),
            Self::S3(config) => config.url(),
        }
    }

    /// Opens the store with its layers. A folder must exist; a bucket is not asked.
    ///
    /// # Errors
    /// As [`LocalStore::open`] and `S3Store::connect`; [`Invalid`](super::StoreErrorKind::Invalid) when this build has no
    /// client for the store.
    pub fn open<'a>(&'a self, layers: &'a Layers) -> BoxFuture<'a, Result<SharedStore, StoreError>> {
        // Boxed: an async function is compiled where it is awaited, and the S3 client would be in every crate anew.
        Box::pin(async move {
            let store: SharedStore = match self {
                Self::Local { base_dir } => Arc::new(LocalStore::open(base_dir)?),
                #[cfg(feature = "s3")]
                Self::S3(config) => Arc::new(super::s3::S3Store::connect(config).await?),
                #[cfg(not(feature = "s3"))]
                Self::S3(config) => {
                    return Err(Call::new(&config.url().into(), Operation::Open, "").invalid(no_s3()));
                }
            };
            Ok(layers.around(store))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::StoreErrorKind;

    #[test]
    fn urls_name_stores() {
        let defaults = S3Config { region: Some("eu-west-1".into()), ..S3Config::default() };
        let expected = S3Config { bucket: "b".into(), prefix: "p/q".into(), ..defaults.clone() };
        assert_eq!(Backend::from_url("s3://b/p/q", &defaults).ok(), Some(Backend::S3(expected)));
        let expected = Backend::Local { base_dir: "/a/b".into() };
        assert_eq!(Backend::from_url("file:///a/b", &defaults).ok(), Some(expected));
        for url in ["", "b/p", "http://b", "s3://", "s3:///p", "file://a/b", "s3://b/../c"] {
            let error = Backend::from_url(url, &defaults).expect_err(url);
            assert_eq!(error.kind, StoreErrorKind::Invalid, "{url}");
        }
    }
}

//! Where shards lie: a file, a folder or an `s3://` prefix, all of them a store and some of its keys.

use std::path::Path;
use std::sync::Arc;

use des_shared::clock::Dice;
use des_shared::layout::SHARD_SUFFIX;
use des_shared::store::backend::{Backend, Layers};
use des_shared::store::s3_config::S3Config;
use des_shared::store::{ObjectMeta, SharedStore, list_all};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};

use crate::args::S3Args;
use crate::error::CliError;

/// One shard, or all shards below a place.
#[derive(Clone, Debug)]
pub(super) struct Location {
    store: SharedStore,
    only: Option<String>,
}

/// How buckets are reached.
pub(crate) fn s3_defaults(args: &S3Args) -> S3Config {
    S3Config { endpoint_url: args.s3_endpoint_url.clone(), region: args.s3_region.clone(), ..S3Config::default() }
}

impl Location {
    /// Opens what `text` names.
    ///
    /// # Errors
    /// When there is nothing, or the store cannot be opened.
    pub(super) async fn open(text: &str, s3: &S3Args) -> Result<Self, CliError> {
        let layers = Layers::new(Arc::new(Dice::from_os()));
        let (backend, only) = if text.starts_with("s3://") { remote(text, s3)? } else { local(Path::new(text))? };
        Ok(Self { store: backend.open(&layers).await?, only })
    }

    /// The store.
    pub(super) fn store(&self) -> &SharedStore {
        &self.store
    }

    /// Whether it is one shard.
    pub(super) fn is_one(&self) -> bool {
        self.only.is_some()
    }

    /// The store for people.
    pub(super) fn url(&self) -> String {
        match &self.only {
            Some(key) => format!("{}/{key}", self.store.url()),
            None => self.store.url(),
        }
    }

    /// Every shard whose key starts with `prefix`, in key order.
    pub(super) fn shards(&self, prefix: &str) -> BoxStream<'static, Result<ObjectMeta, CliError>> {
        if let Some(key) = self.only.clone() {
            let store = self.store.clone();
            return futures::stream::once(async move { Ok(store.head(&key).await?) }).boxed();
        }
        list_all(self.store.clone(), prefix.to_owned())
            .try_filter(|object| futures::future::ready(object.key.ends_with(SHARD_SUFFIX)))
            .map_err(CliError::from)
            .boxed()
    }
}

fn local(path: &Path) -> Result<(Backend, Option<String>), CliError> {
    let meta = std::fs::metadata(path).map_err(|e| CliError::path("open", path, &e))?;
    if meta.is_dir() {
        return Ok((Backend::Local { base_dir: path.to_owned() }, None));
    }
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path
        .file_name()
        .and_then(|n| n.to_str())
        .ok_or_else(|| CliError::usage(format!("{} is not the name of a shard", path.display())))?;
    Ok((Backend::Local { base_dir: folder.to_owned() }, Some(name.to_owned())))
}

fn remote(url: &str, s3: &S3Args) -> Result<(Backend, Option<String>), CliError> {
    let (place, only) = match url.rsplit_once('/') {
        Some((folder, name)) if name.ends_with(SHARD_SUFFIX) => (folder, Some(name.to_owned())),
        _ => (url, None),
    };
    let backend = Backend::from_url(place, &s3_defaults(s3))
        .map_err(|e| CliError::usage(format!("{url:?} is not a place of shards: {}", e.message)))?;
    Ok((backend, only))
}

/// The key prefix of what belongs to the shard under `key` and lies beside it: big files, tombstones.
pub(super) fn beside(key: &str, prefix: &str) -> String {
    match key.rsplit_once('/') {
        Some((folder, _)) => format!("{folder}/{prefix}"),
        None => prefix.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_in_a_bucket_is_one_shard() {
        let (backend, only) = remote("s3://b/p/20250310_0_0000.des", &S3Args::default()).unwrap();
        assert_eq!((backend.url().as_str(), only.as_deref()), ("s3://b/p", Some("20250310_0_0000.des")));
        let (backend, only) = remote("s3://b", &S3Args::default()).unwrap();
        assert_eq!((backend.url().as_str(), only), ("s3://b", None));
        assert!(remote("s3://", &S3Args::default()).is_err());
    }

    #[test]
    fn big_files_lie_beside_their_shard() {
        assert_eq!(beside("x.des", "_bigFiles"), "_bigFiles");
        assert_eq!(beside("a/b/x.des", "_bigFiles"), "a/b/_bigFiles");
    }
}

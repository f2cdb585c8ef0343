//! Manifests named by a URI: where they may lie, and their bytes.
//!
//! Invariant: only files below the configured roots are read, symbolic links resolved first. Which file was opened is
//! checked after opening it, so that a link changed in between leads nowhere.

use std::path::{Path, PathBuf};

use des_shared::config::SourceRoots;
use des_shared::manifest::{SourceBase, SourceUri};
use des_shared::store::ByteRange;
use futures::stream::{StreamExt, TryStreamExt};
use tokio_util::io::ReaderStream;

use crate::error::Error;
use crate::upload::{ByteStream, is_missing};
use crate::{Core, api};

/// Bytes read from a file at once.
const CHUNK_BYTES: usize = 256 * 1024;

/// A manifest somewhere else.
pub(crate) struct RemoteManifest {
    /// Its bytes.
    pub(crate) body: ByteStream,
    /// The folder or prefix it lies in: what relative source paths are relative to.
    pub(crate) base: String,
}

impl Core {
    /// Opens the manifest at `uri`: `file:///path` or `s3://bucket/key`, verbatim (no percent-encoding).
    pub(crate) async fn open_manifest(&self, uri: &str) -> Result<RemoteManifest, Error> {
        if uri.starts_with("s3://") {
            self.open_object(uri).await
        } else if let Some(path) = uri.strip_prefix("file://").filter(|path| path.starts_with('/')) {
            let base = base_text(SourceBase::of_manifest(path))?;
            let (roots, path) = (self.config.roots.clone(), PathBuf::from(path));
            let file = tokio::task::spawn_blocking(move || open_file(&roots, &path)).await;
            let file = file.map_err(|e| Error::Machine(format!("opening the manifest failed: {e}")))??;
            let name = uri.to_owned();
            let body = ReaderStream::with_capacity(tokio::fs::File::from_std(file), CHUNK_BYTES)
                .map_err(move |e| Error::Machine(format!("reading {name:?} failed: {e}")))
                .boxed();
            Ok(RemoteManifest { body, base })
        } else {
            Err(Error::BadRequest(format!(
                "manifest.uri is {:?}; expected s3://BUCKET/KEY or file:///PATH",
                api::shortened(uri)
            )))
        }
    }

    async fn open_object(&self, uri: &str) -> Result<RemoteManifest, Error> {
        let bad = |e: &dyn std::fmt::Display| Error::BadRequest(format!("manifest.uri: {e}"));
        let place = SourceUri::parse(uri).map_err(|e| bad(&e))?;
        if place.key().is_empty() || place.key().ends_with('/') {
            return Err(Error::BadRequest(format!("manifest.uri {uri:?} names a prefix; expected an object")));
        }
        let allowed = self
            .config
            .roots
            .buckets
            .iter()
            .any(|(bucket, prefix)| bucket == place.bucket() && place.key().starts_with(prefix.as_str()));
        // Keys have no folders to climb out of: `..` is a name like any other, but some servers resolve it.
        let climbs = place.key().split('/').any(|part| part == ".." || part == ".");
        let store = self.deps.buckets.get(place.bucket()).filter(|_| allowed && !climbs);
        let Some(store) = store else { return Err(outside(uri)) };
        let base = base_text(Ok(SourceBase::S3(place.folder())))?;
        let fetched = store.get_stream(place.key(), ByteRange::Full).await.map_err(|e| {
            if is_missing(&e) { Error::SourceMissing(format!("{uri:?} does not exist")) } else { e.into() }
        })?;
        Ok(RemoteManifest { body: fetched.stream.map_err(Error::from).boxed(), base })
    }
}

fn outside(uri: &str) -> Error {
    Error::OutsideRoots(format!(
        "{:?} does not lie below the coordinator's DES_SOURCE_ROOTS; submit the manifest itself, or have the root added",
        api::shortened(uri)
    ))
}

/// The text under which a base stands in the job record.
fn base_text(base: Result<SourceBase, des_shared::manifest::SourceError>) -> Result<String, Error> {
    match base.map_err(|e| Error::BadRequest(format!("manifest.uri: {e}")))? {
        SourceBase::Folder(folder) => folder
            .into_os_string()
            .into_string()
            .map_err(|_| Error::BadRequest("manifest.uri: the folder's path is not UTF-8".to_owned())),
        SourceBase::S3(prefix) => Ok(prefix.to_string()),
        SourceBase::None => Err(Error::BadRequest("manifest.uri: it lies nowhere".to_owned())),
    }
}

/// What [`base_text`] wrote.
pub(crate) fn parse_base(text: Option<&str>) -> Result<SourceBase, String> {
    match text {
        None => Ok(SourceBase::None),
        Some(text) if text.starts_with("s3://") => {
            SourceUri::parse(text).map(SourceBase::S3).map_err(|e| e.to_string())
        }
        Some(text) => Ok(SourceBase::Folder(PathBuf::from(text))),
    }
}

/// Opens a regular file below the roots.
fn open_file(roots: &SourceRoots, path: &Path) -> Result<std::fs::File, Error> {
    use std::os::unix::fs::MetadataExt;
    let name = path.display().to_string();
    let missing = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory => {
            Error::SourceMissing(format!("{name:?} does not exist"))
        }
        _ => Error::SourceMissing(format!("{name:?} cannot be read: {e}")),
    };
    let below = |real: &Path| roots.folders.iter().any(|root| real.starts_with(root));
    // Whoever may not read there is not told what exists there either.
    let real = path.canonicalize().map_err(|e| {
        let lexically_inside = below(path) && !path.components().any(|c| c == std::path::Component::ParentDir);
        if lexically_inside { missing(e) } else { outside(&name) }
    })?;
    if !below(&real) {
        return Err(outside(&name));
    }
    let kind = std::fs::metadata(&real).map_err(missing)?;
    if !kind.is_file() {
        return Err(Error::SourceMissing(format!("{name:?} is not a regular file")));
    }
    let file = std::fs::File::open(&real).map_err(missing)?;
    let opened = file.metadata().map_err(missing)?;
    let again = real.canonicalize().map_err(missing)?;
    let expected = std::fs::metadata(&again).map_err(missing)?;
    if !below(&again) || (opened.dev(), opened.ino()) != (expected.dev(), expected.ino()) {
        return Err(outside(&name));
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_survives_the_job_record() {
        for location in ["/data/in/manifest.json", "s3://bucket/a/b/manifest.ndjson", "s3://bucket/manifest"] {
            let base = SourceBase::of_manifest(location).expect("a location");
            let text = base_text(Ok(base.clone())).expect("a text");
            assert_eq!(parse_base(Some(&text)).as_ref(), Ok(&base), "{location}");
        }
        assert_eq!(parse_base(None), Ok(SourceBase::None));
    }

    #[test]
    fn only_regular_files_below_the_roots_are_opened() {
        let dir = tempfile::tempdir().expect("a folder");
        let (inside, outside) = (dir.path().join("in"), dir.path().join("out"));
        for folder in [&inside, &outside] {
            std::fs::create_dir(folder).expect("a folder");
            std::fs::write(folder.join("m"), b"x").expect("a file");
        }
        std::os::unix::fs::symlink(outside.join("m"), inside.join("link")).expect("a link");
        std::os::unix::fs::symlink(inside.join("m"), inside.join("good")).expect("a link");
        let roots = SourceRoots { folders: vec![inside.canonicalize().expect("it is there")], buckets: Vec::new() };
        for good in [inside.join("m"), inside.join("good")] {
            assert!(open_file(&roots, &good).is_ok(), "{good:?}");
        }
        for bad in [outside.join("m"), inside.join("link"), inside.join("../out/m"), outside.join("none")] {
            assert!(matches!(open_file(&roots, &bad), Err(Error::OutsideRoots(_))), "{bad:?}");
        }
        for missing in [inside.join("none"), inside.clone()] {
            assert!(matches!(open_file(&roots, &missing), Err(Error::SourceMissing(_))), "{missing:?}");
        }
        assert!(matches!(open_file(&SourceRoots::default(), &inside.join("m")), Err(Error::OutsideRoots(_))));
    }
}

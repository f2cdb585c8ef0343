//! Where a file's bytes come from: an absolute path or an `s3://` URI, and how a relative path becomes one.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// The longest object key S3 knows, in bytes.
const MAX_KEY_BYTES: usize = 1024;
const S3_SCHEME: &str = "s3://";

/// A source that cannot be resolved.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// There is nothing it could be relative to.
    #[error("{0:?} is relative, but this manifest has no place of its own; expected an absolute path or an s3:// URI")]
    RelativeWithoutBase(String),
    /// A scheme other than `s3`.
    #[error("{0:?} has a scheme that is not supported; expected a path or s3://BUCKET/KEY")]
    Scheme(String),
    /// Not an `s3://` URI of an object.
    #[error("{uri:?} is not an s3:// URI: {problem}; expected s3://BUCKET/KEY")]
    Uri {
        /// The text.
        uri: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Not a path.
    #[error("{path:?} {problem}")]
    Path {
        /// The text.
        path: String,
        /// What is wrong with it.
        problem: &'static str,
    },
}

/// `s3://BUCKET/KEY`, the key verbatim: S3 knows no percent-encoding, no `..` and no query in keys.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SourceUri {
    bucket: String,
    key: String,
}

impl SourceUri {
    /// Reads `s3://BUCKET/KEY`. The key may be empty or end with `/`, as a prefix does.
    ///
    /// # Errors
    /// [`SourceError::Uri`] says what is wrong.
    pub fn parse(uri: &str) -> Result<Self, SourceError> {
        let fail = |problem| SourceError::Uri { uri: uri.chars().take(128).collect(), problem };
        let rest = uri.strip_prefix(S3_SCHEME).ok_or_else(|| fail("it does not start with s3://"))?;
        let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
        let bucket_char = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        if bucket.is_empty() {
            return Err(fail("the bucket is missing"));
        }
        if bucket.len() > 255 || !bucket.chars().all(bucket_char) {
            return Err(fail("the bucket is not up to 255 letters, digits, dots, hyphens and underscores"));
        }
        if key.len() > MAX_KEY_BYTES {
            return Err(fail("the key is longer than 1024 bytes"));
        }
        Ok(Self { bucket: bucket.to_owned(), key: key.to_owned() })
    }

    /// The bucket.
    pub fn bucket(&self) -> &str {
        &self.bucket
    }

    /// The key, or a prefix of keys.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The prefix up to the key's last `/`: the folder of an object.
    #[must_use]
    pub fn folder(&self) -> Self {
        let end = self.key.rfind('/').map_or(0, |at| at + 1);
        Self { bucket: self.bucket.clone(), key: self.key[..end].to_owned() }
    }
}

impl FromStr for SourceUri {
    type Err = SourceError;
    fn from_str(uri: &str) -> Result<Self, SourceError> {
        Self::parse(uri)
    }
}

impl fmt::Display for SourceUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{S3_SCHEME}{}/{}", self.bucket, self.key)
    }
}

/// What relative paths of a manifest are relative to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceBase {
    /// A folder; absolute.
    Folder(PathBuf),
    /// A prefix in a bucket, empty or ending with `/`.
    S3(SourceUri),
    /// Nothing: the manifest came with a request.
    None,
}

impl SourceBase {
    /// The folder or prefix in which a manifest lies, from the manifest's own path or `s3://` URI.
    ///
    /// # Errors
    /// [`SourceError`] when the URI is wrong or the path cannot be made absolute.
    pub fn of_manifest(location: &str) -> Result<Self, SourceError> {
        if location.starts_with(S3_SCHEME) {
            return Ok(Self::S3(SourceUri::parse(location)?.folder()));
        }
        let bad = |problem| SourceError::Path { path: location.to_owned(), problem };
        let path = std::path::absolute(location).map_err(|_| bad("is not the path of a manifest"))?;
        let folder = path.parent().ok_or_else(|| bad("is not the path of a manifest"))?;
        Ok(Self::Folder(folder.to_owned()))
    }
}

/// An absolute path that [`resolve_source`] would leave as it is.
pub(super) fn is_resolved(path: &str) -> bool {
    // Bytes, because this is asked for every line of a manifest. What begins with a slash has no scheme.
    let plain = |segment: &[u8]| !matches!(segment, b"" | b"." | b"..");
    let rest = path.as_bytes().strip_prefix(b"/");
    rest.is_some_and(|rest| rest.split(|byte| *byte == b'/').all(plain) && !rest.contains(&0))
}

/// The absolute path or `s3://` URI of a manifest's `source_path`. Dots in paths are resolved by their text alone,
/// so that one file has one spelling in every plan; symbolic links are for the worker, which opens the file.
///
/// # Errors
/// [`SourceError`] says what is wrong with the path and what would be right.
pub fn resolve_source(base: &SourceBase, path: &str) -> Result<String, SourceError> {
    let bad = |problem| SourceError::Path { path: path.chars().take(128).collect(), problem };
    if path.is_empty() {
        return Err(bad("is empty; expected a path or an s3:// URI"));
    }
    if path.contains('\0') {
        return Err(bad("contains a zero byte; expected a path or an s3:// URI"));
    }
    if path.starts_with(S3_SCHEME) {
        let uri = SourceUri::parse(path)?;
        return if uri.key.is_empty() || uri.key.ends_with('/') {
            Err(SourceError::Uri { uri: path.to_owned(), problem: "it names no object, only a prefix" })
        } else {
            Ok(uri.to_string())
        };
    }
    if has_scheme(path) {
        return Err(SourceError::Scheme(path.chars().take(128).collect()));
    }
    if path.starts_with('/') {
        return local_path("", path);
    }
    match base {
        SourceBase::Folder(folder) => {
            let folder = folder.to_str().ok_or_else(|| bad("lies in a folder whose path is not UTF-8"))?;
            local_path(folder, path)
        }
        SourceBase::S3(prefix) => {
            let key = relative_key(&prefix.key, path)
                .ok_or_else(|| bad("does not name an object of the manifest's bucket"))?;
            SourceUri::parse(&format!("{S3_SCHEME}{}/{key}", prefix.bucket)).map(|uri| uri.to_string())
        }
        SourceBase::None => Err(SourceError::RelativeWithoutBase(path.chars().take(128).collect())),
    }
}

/// `path` in `folder`, as an absolute path. As in a file system, `..` at the root stays there.
fn local_path(folder: &str, path: &str) -> Result<String, SourceError> {
    let mut segments = Vec::new();
    for segment in folder.split('/').chain(path.split('/')) {
        match segment {
            "" | "." => {}
            ".." => {
                segments.pop();
            }
            name => segments.push(name),
        }
    }
    if names_folder(path) || segments.is_empty() {
        let problem = "names a folder; expected the path of a file";
        return Err(SourceError::Path { path: path.chars().take(128).collect(), problem });
    }
    Ok(format!("/{}", segments.join("/")))
}

/// The key of `path` under the prefix `folder`, whose own spelling is kept; `None` when it leads out of the bucket
/// or names no object.
fn relative_key(folder: &str, path: &str) -> Option<String> {
    let mut segments: Vec<&str> = folder.split('/').collect();
    // A prefix ends with '/', so the last piece is empty.
    segments.pop();
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => {
                segments.pop()?;
            }
            name => segments.push(name),
        }
    }
    (!names_folder(path) && !segments.is_empty()).then(|| segments.join("/"))
}

fn names_folder(path: &str) -> bool {
    matches!(path.rsplit('/').next(), Some("" | "." | ".."))
}

/// `scheme://`, as in a URI; a plain path may hold `://` behind a slash.
fn has_scheme(path: &str) -> bool {
    path.split_once("://").is_some_and(|(scheme, _)| {
        scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'))
    })
}

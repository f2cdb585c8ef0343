//! Where things lie: zones, the state store, and the roots sources may be read from.

use std::path::PathBuf;

use super::{Values, settings};
use crate::state::StateStore;
use crate::store::StoreError;
use crate::store::backend::{Backend, Layers, no_s3};
use crate::store::local::LocalStore;
use crate::store::s3_config::S3Config;
use crate::store::zones::ZonesConfig;

/// Zones and the width of the shard index, checked, not opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZoneSettings {
    /// One folder, one bucket, or the zones file.
    pub zones: ZonesConfig,
    /// `local`, `s3` or `multi_s3`: the label of the retriever's metrics.
    pub backend: &'static str,
}

impl ZoneSettings {
    /// Reads `settings::ZONES`, and the zones file where one is named.
    pub fn read(values: &mut Values) -> Option<Self> {
        let n_bits = values.read(&settings::N_BITS, str::parse)?;
        let single = |values: &mut Values, backend| match ZonesConfig::single(n_bits, backend) {
            Ok(zones) => Some(zones),
            Err(e) => {
                e.problems.into_iter().for_each(|problem| values.problem(problem));
                None
            }
        };
        let (backend, zones) = match values.text(&settings::BACKEND).unwrap_or_default().trim() {
            "local" => {
                let base_dir = required(values, &settings::BASE_DIR, "local")?;
                ("local", single(values, Backend::Local { base_dir: base_dir.into() })?)
            }
            "s3" => {
                let config = S3Config {
                    bucket: required(values, &settings::S3_BUCKET, "s3")?,
                    region: values.text(&settings::S3_REGION),
                    endpoint_url: values.text(&settings::S3_ENDPOINT_URL),
                    prefix: values.text(&settings::S3_PREFIX).unwrap_or_default(),
                    ..S3Config::default()
                };
                let backend = Backend::S3(config);
                if let Err(missing) = backend.check_built_in() {
                    values.problem(format!("DES_BACKEND (--backend): {missing}"));
                    return None;
                }
                ("s3", single(values, backend)?)
            }
            "multi_s3" => ("multi_s3", zones_file(values)?),
            other => {
                values.problem(format!("DES_BACKEND: {other:?} is not a backend; expected local, s3 or multi_s3"));
                return None;
            }
        };
        Some(Self { zones, backend })
    }

    /// S3 settings for buckets named by a URL alone (sources, the state store): region and endpoint of the first zone
    /// that is a bucket, or AWS's own where there is none.
    pub fn s3_defaults(&self) -> S3Config {
        let first = self.zones.zones().iter().find_map(|zone| match &zone.store {
            Backend::S3(config) => Some(config.clone()),
            Backend::Local { .. } => None,
        });
        S3Config { bucket: String::new(), prefix: String::new(), ..first.unwrap_or_default() }
    }
}

/// Reads the zones file of the `multi_s3` backend; every problem of it is noted.
fn zones_file(values: &mut Values) -> Option<ZonesConfig> {
    let path = required(values, &settings::ZONES_CONFIG, "multi_s3")?;
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) => {
            values.problem(format!("DES_ZONES_CONFIG: {path} cannot be read: {e}"));
            return None;
        }
    };
    match ZonesConfig::parse(&text) {
        Ok(zones) => Some(zones),
        Err(e) => {
            e.problems.into_iter().for_each(|problem| values.problem(format!("{path}: {problem}")));
            None
        }
    }
}

fn required(values: &mut Values, setting: &super::Setting, backend: &str) -> Option<String> {
    let text = values.text(setting);
    if text.is_none() {
        values.problem(format!("{} (--{}): required by the {backend} backend", setting.name, setting.flag));
    }
    text
}

/// Where the state store is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateSettings {
    /// A folder, or a bucket and prefix.
    pub backend: Backend,
}

impl StateSettings {
    /// Reads `settings::STATE_URL`; without it the state is `_des/` beside the first zone's shards.
    pub fn read(values: &mut Values, zones: &ZoneSettings) -> Option<Self> {
        let first = &zones.zones.zones()[0].store;
        let beside = match first {
            Backend::Local { base_dir } => Backend::Local { base_dir: base_dir.join("_des") },
            Backend::S3(config) => {
                let slash = if config.prefix.is_empty() || config.prefix.ends_with('/') { "" } else { "/" };
                Backend::S3(S3Config { prefix: format!("{}{slash}_des/", config.prefix), ..config.clone() })
            }
        };
        let defaults = zones.s3_defaults();
        let backend = match values.text(&settings::STATE_URL) {
            None => beside,
            Some(_) => {
                values.read(&settings::STATE_URL, |text| Backend::from_url(text, &defaults).map_err(|e| e.message))?
            }
        };
        Some(Self { backend })
    }

    /// Opens the state store; a folder is made where it is missing.
    ///
    /// # Errors
    /// When the folder cannot be made or the store cannot be opened.
    pub async fn open(&self, layers: &Layers) -> Result<StateStore, StoreError> {
        if let Backend::Local { base_dir } = &self.backend {
            LocalStore::create(base_dir)?;
        }
        Ok(StateStore::new(self.backend.open(layers).await?))
    }
}

/// Folders and `s3://` prefixes sources may be read from. Nothing is allowed when it is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceRoots {
    /// Absolute folders, symbolic links resolved.
    pub folders: Vec<PathBuf>,
    /// `(bucket, key prefix)`; the prefix is empty or ends with `/`.
    pub buckets: Vec<(String, String)>,
}

impl SourceRoots {
    /// Reads `settings::SOURCE_ROOTS`.
    pub fn read(values: &mut Values) -> Option<Self> {
        if values.text(&settings::SOURCE_ROOTS).is_none() {
            return Some(Self::default());
        }
        values.read(&settings::SOURCE_ROOTS, Self::parse)
    }

    /// Parses a comma-separated list.
    ///
    /// # Errors
    /// A sentence for people when an entry is neither an existing folder nor an `s3://` prefix.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut roots = Self::default();
        for item in text.split(',').map(str::trim).filter(|item| !item.is_empty()) {
            if let Some(rest) = item.strip_prefix("s3://") {
                let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
                if bucket.is_empty() {
                    return Err(format!("{item:?} names no bucket"));
                }
                if !cfg!(feature = "s3") {
                    return Err(format!("{item:?}: {}", no_s3()));
                }
                // A root is a folder: s3://b/in must not allow s3://b/internal.
                let slash = if prefix.is_empty() || prefix.ends_with('/') { "" } else { "/" };
                roots.buckets.push((bucket.to_owned(), format!("{prefix}{slash}")));
            } else {
                let path = item.strip_prefix("file://").unwrap_or(item);
                let real =
                    std::fs::canonicalize(path).map_err(|e| format!("{path:?} is not a readable folder: {e}"))?;
                if !real.is_dir() {
                    return Err(format!("{path:?} is not a folder"));
                }
                roots.folders.push(real);
            }
        }
        Ok(roots)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_problem_of_the_zones_is_named() {
        let read = |pairs: &[(&str, &str)]| {
            let mut values = Values::from_pairs(settings::ZONES, pairs);
            let zones = ZoneSettings::read(&mut values);
            values.finish(zones).map_err(|e| e.to_string())
        };
        assert!(read(&[("DES_BACKEND", "s3")]).unwrap_err().contains("DES_S3_BUCKET"));
        assert!(read(&[("DES_BACKEND", "tape")]).unwrap_err().contains("tape"));
        for bits in ["3", "17", "eight"] {
            let text = read(&[("DES_BASE_DIR", "/x"), ("DES_N_BITS", bits)]).unwrap_err();
            assert!(text.contains("DES_N_BITS") && text.contains("4 to 16"), "{text}");
        }
        assert_eq!(read(&[("DES_BASE_DIR", "/x")]).unwrap().zones.n_bits().get(), 8);
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("zones.yaml");
        let zone = |name, start, end| {
            format!("  - name: {name}\n    range: {{ start: {start}, end: {end} }}\n    s3: {{ bucket: {name} }}\n")
        };
        std::fs::write(&file, format!("n_bits: 8\nzones:\n{}{}", zone("a", 0, 100), zone("b", 90, 250))).unwrap();
        let text = read(&[("DES_BACKEND", "multi_s3"), ("DES_ZONES_CONFIG", file.to_str().unwrap())]).unwrap_err();
        assert!(text.contains("90") && text.contains("251"), "overlap and gap are both named: {text}");
    }

    #[test]
    fn the_state_lies_beside_the_first_zone_unless_it_is_named() {
        let state = |pairs: &[(&str, &str)]| {
            let all: Vec<_> = settings::ZONES.iter().chain(&[settings::STATE_URL]).copied().collect();
            let mut values = Values::from_pairs(&all, pairs);
            let zones = ZoneSettings::read(&mut values).unwrap();
            let state = StateSettings::read(&mut values, &zones);
            values.finish(state).map(|state| state.backend.url()).map_err(|e| e.to_string())
        };
        let s3 = [("DES_BACKEND", "s3"), ("DES_S3_BUCKET", "b"), ("DES_S3_PREFIX", "archive")];
        assert_eq!(state(&[("DES_BASE_DIR", "/x")]).unwrap(), "file:///x/_des");
        assert_eq!(state(&s3).unwrap(), "s3://b/archive/_des");
        assert_eq!(state(&[("DES_BASE_DIR", "/x"), ("DES_STATE_URL", "s3://c/d")]).unwrap(), "s3://c/d");
        assert!(state(&[("DES_BASE_DIR", "/x"), ("DES_STATE_URL", "ftp://c")]).unwrap_err().contains("DES_STATE_URL"));
    }

    #[test]
    fn a_root_is_a_folder_not_a_name_prefix() {
        let roots = SourceRoots::parse("s3://b/in, s3://c").unwrap();
        assert_eq!(roots.buckets, [("b".to_owned(), "in/".to_owned()), ("c".to_owned(), String::new())]);
        assert!(SourceRoots::parse("/no/such/folder").unwrap_err().contains("/no/such/folder"));
    }
}

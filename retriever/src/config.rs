//! Settings of the retriever, checked once.

use std::time::Duration;

use des_shared::config::{Auth, Listen, Setting, Values, ZoneSettings, settings};

use crate::s3face::S3FaceConfig;

/// Every setting the retriever reads. No Redis and no state store: it needs the shards alone.
pub fn all_settings() -> Vec<Setting> {
    let own = [
        settings::LISTEN_RETRIEVER,
        settings::CACHE_BYTES,
        settings::LISTING_TTL_SECONDS,
        settings::BIGFILES_PREFIX,
        settings::DELETE_API_KEY,
    ];
    [&own, settings::S3_FACE, settings::ZONES, settings::PROCESS].concat()
}

/// How many threads may read files and decompress: four a core, at least eight. The runtime's own limit is 512, and every
/// thread keeps some memory of its own: with one for each of 64 connections the peak was four times as high
/// (docs/benchmarks.md).
pub fn blocking_threads() -> usize {
    std::thread::available_parallelism().map_or(8, |cores| (4 * cores.get()).max(8))
}

/// What a running retriever needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where and to whom it listens.
    pub listen: Listen,
    /// The label of its metrics: `local`, `s3` or `multi_s3`.
    pub backend: &'static str,
    /// Memory for listings, directories, index blocks and dictionaries, in bytes.
    pub cache_bytes: u64,
    /// How long a listing of a slot's shards is trusted.
    pub listing_ttl: Duration,
    /// Key prefix of big files beside the shards.
    pub bigfiles_prefix: String,
    /// Who may delete; nobody when there is none.
    pub deleters: Option<Auth>,
    /// The S3 interface; none when there is none.
    pub s3_face: Option<S3FaceConfig>,
}

impl Config {
    /// Reads [`all_settings`] except those of the zones and the log, which whoever opens them reads. Without zones the
    /// answer is `None`, but every other problem is noted all the same.
    pub fn read(values: &mut Values, zones: Option<&ZoneSettings>) -> Option<Self> {
        let listen = Listen::read(values, &settings::LISTEN_RETRIEVER);
        let cache_bytes = values.number(&settings::CACHE_BYTES, 0..=1 << 50);
        let ttl = values.number(&settings::LISTING_TTL_SECONDS, 0..=86_400);
        let bigfiles_prefix = values.read(&settings::BIGFILES_PREFIX, |text| {
            let text = text.trim_matches('/');
            let usable = !text.is_empty() && text.split('/').all(|part| !matches!(part, "" | "." | ".."));
            if usable { Ok(text.to_owned()) } else { Err(format!("{text:?} is not a key prefix such as _bigFiles")) }
        });
        let deleters = Auth::read(values, &settings::DELETE_API_KEY);
        let s3_face = S3FaceConfig::read(values, listen.as_ref());
        Some(Self {
            deleters,
            listen: listen?,
            backend: zones?.backend,
            cache_bytes: cache_bytes?,
            listing_ttl: Duration::from_secs(ttl?),
            bigfiles_prefix: bigfiles_prefix?,
            s3_face,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_wrong_value_is_named_at_once() {
        let read = |pairs: &[(&str, &str)]| {
            let mut values = Values::from_pairs(&all_settings(), pairs);
            let zones = ZoneSettings::read(&mut values);
            let config = Config::read(&mut values, zones.as_ref());
            values.finish(config).map_err(|e| e.to_string())
        };
        let config = read(&[("DES_BASE_DIR", "/x")]).expect("defaults");
        assert_eq!((config.backend, config.cache_bytes), ("local", 256 << 20));
        assert_eq!((config.listing_ttl.as_secs(), config.bigfiles_prefix.as_str()), (5, "_bigFiles"));
        assert_eq!(config.listen.address.port(), 8000);
        let text = read(&[
            ("DES_N_BITS", "3"),
            ("DES_CACHE_BYTES", "much"),
            ("DES_LISTING_TTL_SECONDS", "-1"),
            ("DES_BIGFILES_PREFIX", "../x"),
        ])
        .expect_err("wrong");
        for name in ["DES_N_BITS", "DES_CACHE_BYTES", "DES_LISTING_TTL_SECONDS", "DES_BIGFILES_PREFIX"] {
            assert!(text.contains(name), "{text}");
        }
    }

    #[test]
    fn neither_redis_nor_a_state_store_is_a_setting() {
        assert!(all_settings().iter().all(|s| !s.name.contains("REDIS") && !s.name.contains("STATE")));
    }
}

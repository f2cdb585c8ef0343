//! Settings of the retriever, checked once.

use std::time::Duration;

use axum::http::HeaderValue;
use des_shared::config::{Auth, Listen, Setting, Values, ZoneSettings, settings};
use des_shared::retry::RetryPolicy;
use des_shared::store::guarded::GuardOptions;

use crate::cache::disk::DiskConfig;
use crate::keys::KeySettings;

use crate::s3face::S3FaceConfig;

/// Every setting the retriever reads. No Redis and no state store: it needs the shards alone.
pub fn all_settings() -> Vec<Setting> {
    let own = [
        settings::LISTEN_RETRIEVER,
        settings::CACHE_BYTES,
        settings::PAYLOAD_CACHE_BYTES,
        settings::DISK_CACHE_DIR,
        settings::DISK_CACHE_BYTES,
        settings::DISK_PAYLOAD_BYTES,
        settings::LISTING_TTL_SECONDS,
        settings::BIGFILES_PREFIX,
        settings::CACHE_CONTROL,
        settings::DELETE_API_KEY,
        settings::KEYS_FILE,
        settings::URL_SIGNING_KEYS,
        settings::URL_MAX_LIFETIME,
        settings::BATCH_MAX_FILES,
    ];
    [&own, settings::ENDURANCE, settings::S3_FACE, settings::ZONES, settings::PROCESS].concat()
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
    /// Memory for the files that are asked for most, in bytes; 0 for none.
    pub payload_cache_bytes: u64,
    /// The cache on disk; none when there is none.
    pub disk: Option<DiskConfig>,
    /// How long a listing of a slot's shards is trusted.
    pub listing_ttl: Duration,
    /// Key prefix of big files beside the shards.
    pub bigfiles_prefix: String,
    /// `Cache-Control` of files; the usual one when there is none.
    pub cache_control: Option<HeaderValue>,
    /// Who may delete; nobody when there is none.
    pub deleters: Option<Auth>,
    /// The S3 interface; none when there is none.
    pub s3_face: Option<S3FaceConfig>,
    /// The most files of one batch.
    pub batch_max_files: usize,
    /// Keys with names and scopes, and what signs URLs.
    pub keys: KeySettings,
    /// What it does when stores are slow or gone, and when it has to stop.
    pub endurance: Endurance,
    /// Threads that serve connections, each with those that were given to it; 0 to serve them on the runtime in which
    /// the retriever is started. A process has one for each core.
    pub serving_threads: usize,
}

/// What a retriever does when stores are slow or gone, and when it has to stop.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Endurance {
    /// How long a request may take until its answer begins.
    pub request_deadline: Duration,
    /// How long a store may take before the next one of its zone is asked too.
    pub failover_after: Duration,
    /// How calls to one store are tried again.
    pub retry: RetryPolicy,
    /// The guard around each store.
    pub guard: GuardOptions,
    /// How long a stopping service goes on taking requests while it says that it is not ready.
    pub drain_notice: Duration,
}

impl Default for Endurance {
    fn default() -> Self {
        Self {
            request_deadline: Duration::from_secs(30),
            failover_after: Duration::from_millis(500),
            retry: RetryPolicy::QUICK,
            guard: GuardOptions::default(),
            drain_notice: Duration::ZERO,
        }
    }
}

impl Endurance {
    fn read(values: &mut Values) -> Option<Self> {
        let deadline = values.number(&settings::REQUEST_DEADLINE_SECONDS, 1..=3600);
        let failover = values.number(&settings::FAILOVER_MS, 10..=60_000);
        let hedge = values.number(&settings::HEDGE_PERCENT, 0..=100);
        let calls = values.number(&settings::STORE_CALLS, 1..=65_536);
        let notice = values.number(&settings::DRAIN_NOTICE_SECONDS, 0..=3600);
        let failover_after = Duration::from_millis(failover?);
        let guard = GuardOptions {
            hedge_share: hedge? as f64 / 100.0,
            calls: calls? as usize,
            // Shorter than the time after which another store answers: only then the failure is seen as one.
            slow: failover_after * 4 / 5,
            ..GuardOptions::default()
        };
        Some(Self {
            request_deadline: Duration::from_secs(deadline?),
            failover_after,
            guard,
            drain_notice: Duration::from_secs(notice?),
            ..Self::default()
        })
    }
}

impl Config {
    /// Reads [`all_settings`] except those of the zones and the log, which whoever opens them reads. Without zones the
    /// answer is `None`, but every other problem is noted all the same.
    pub fn read(values: &mut Values, zones: Option<&ZoneSettings>) -> Option<Self> {
        let listen = Listen::read(values, &settings::LISTEN_RETRIEVER);
        let cache_bytes = values.number(&settings::CACHE_BYTES, 0..=1 << 50);
        let payload_cache_bytes = values.number(&settings::PAYLOAD_CACHE_BYTES, 0..=1 << 50);
        let disk = DiskConfig::read(values);
        let ttl = values.number(&settings::LISTING_TTL_SECONDS, 0..=86_400);
        let bigfiles_prefix = values.read(&settings::BIGFILES_PREFIX, |text| {
            let text = text.trim_matches('/');
            let usable = !text.is_empty() && text.split('/').all(|part| !matches!(part, "" | "." | ".."));
            if usable { Ok(text.to_owned()) } else { Err(format!("{text:?} is not a key prefix such as _bigFiles")) }
        });
        let cache_control = values.read(&settings::CACHE_CONTROL, |text| {
            let value = HeaderValue::from_str(text).ok().filter(|value| !value.is_empty() && value.to_str().is_ok());
            value.ok_or_else(|| format!("{text:?} is not a value of Cache-Control such as public, max-age=60"))
        });
        let deleters = Auth::read(values, &settings::DELETE_API_KEY);
        let s3_face = S3FaceConfig::read(values, listen.as_ref());
        let batch_max_files = values.number(&settings::BATCH_MAX_FILES, 1..=100_000);
        let keys = KeySettings::read(values);
        let endurance = Endurance::read(values);
        Some(Self {
            endurance: endurance?,
            deleters,
            keys: keys?,
            listen: listen?,
            backend: zones?.backend,
            cache_bytes: cache_bytes?,
            payload_cache_bytes: payload_cache_bytes?,
            disk,
            listing_ttl: Duration::from_secs(ttl?),
            bigfiles_prefix: bigfiles_prefix?,
            cache_control,
            batch_max_files: batch_max_files? as usize,
            s3_face,
            serving_threads: std::thread::available_parallelism().map_or(1, usize::from),
        })
    }

    /// What files are sent with. A uid can be packed again or deleted, so a cache may keep the bytes but has to ask whether
    /// they are still it, which costs no read of them. Where keys are asked for, no shared cache may keep them: it would
    /// not know the key.
    pub(crate) fn cache_control(&self) -> HeaderValue {
        let closed = self.listen.auth.required() || self.keys.closed();
        let usual = if closed { "private, no-cache" } else { "no-cache" };
        self.cache_control.clone().unwrap_or(HeaderValue::from_static(usual))
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
        assert_eq!((config.payload_cache_bytes, config.disk), (64 << 20, None));
        let config = read(&[("DES_BASE_DIR", "/x"), ("DES_DISK_CACHE_DIR", "/y")]).expect("with a disk");
        let disk = config.disk.expect("a cache");
        assert_eq!((disk.index_bytes, disk.payload_bytes), (1 << 30, 4 << 30));
        assert_eq!((config.listing_ttl.as_secs(), config.bigfiles_prefix.as_str()), (5, "_bigFiles"));
        assert_eq!(config.listen.address.port(), 8000);
        let endurance = Endurance { drain_notice: Duration::from_secs(2), ..Endurance::default() };
        assert_eq!(config.endurance, endurance, "the settings' defaults are those of the type");
        let text = read(&[
            ("DES_N_BITS", "3"),
            ("DES_FAILOVER_MS", "0"),
            ("DES_HEDGE_PERCENT", "101"),
            ("DES_CACHE_BYTES", "much"),
            ("DES_PAYLOAD_CACHE_BYTES", "-1"),
            ("DES_DISK_CACHE_BYTES", "7"),
            ("DES_DISK_PAYLOAD_BYTES", "7"),
            ("DES_LISTING_TTL_SECONDS", "-1"),
            ("DES_BIGFILES_PREFIX", "../x"),
            ("DES_CACHE_CONTROL", "no-cache\r\nX: y"),
        ])
        .expect_err("wrong");
        for name in [
            "DES_FAILOVER_MS",
            "DES_HEDGE_PERCENT",
            "DES_N_BITS",
            "DES_CACHE_BYTES",
            "DES_PAYLOAD_CACHE_BYTES",
            "DES_DISK_CACHE_BYTES",
            "DES_DISK_PAYLOAD_BYTES",
            "DES_LISTING_TTL_SECONDS",
            "DES_BIGFILES_PREFIX",
            "DES_CACHE_CONTROL",
        ] {
            assert!(text.contains(name), "{text}");
        }
    }

    #[test]
    fn neither_redis_nor_a_state_store_is_a_setting() {
        assert!(all_settings().iter().all(|s| !s.name.contains("REDIS") && !s.name.contains("STATE")));
    }
}

//! Every setting of every service, with its flag, help text and default.

use super::Setting;

macro_rules! settings {
    ($($(#[$doc:meta])* $const:ident = $name:literal, $flag:literal, $value:literal, $default:expr, $secret:literal, $help:literal;)+) => {
        $($(#[$doc])* pub const $const: Setting =
            Setting { name: $name, flag: $flag, value: $value, help: $help, default: $default, secret: $secret };)+
        /// All of them; a configuration file may name any.
        pub const ALL: &[Setting] = &[$($const),+];
    };
}

settings! {
    /// Redis of the coordinator and the workers.
    REDIS_URL = "DES_REDIS_URL", "redis-url", "URL", None, true, "Redis, for example redis://127.0.0.1:6379/0; rediss:// for TLS, redis+sentinel:// and redis+cluster:// as docs/operations.md says";
    /// Authorities trusted for Redis.
    REDIS_CA_FILE = "DES_REDIS_CA_FILE", "redis-ca-file", "FILE", None, false, "Certificates (PEM) of the authorities trusted for Redis with TLS, instead of the public ones";
    /// Own certificate for Redis.
    REDIS_CERT_FILE = "DES_REDIS_CERT_FILE", "redis-cert-file", "FILE", None, false, "Own certificate (PEM) for a Redis that asks for one";
    /// Key of the own certificate for Redis.
    REDIS_KEY_FILE = "DES_REDIS_KEY_FILE", "redis-key-file", "FILE", None, false, "Key (PEM) of the own certificate for Redis";
    /// Key prefix of one installation.
    NAMESPACE = "DES_NAMESPACE", "namespace", "NAME", Some("des"), false, "Key prefix of one installation in Redis";
    /// State store.
    STATE_URL = "DES_STATE_URL", "state-url", "URL", None, false, "State store: s3://bucket/prefix or file:///dir; by default _des/ beside the first zone's shards";
    /// Kind of zones.
    BACKEND = "DES_BACKEND", "backend", "KIND", Some("local"), false, "Where shards live: local, s3 or multi_s3";
    /// Folder of the local backend.
    BASE_DIR = "DES_BASE_DIR", "base-dir", "DIR", None, false, "Folder of the local backend";
    /// Width of the shard index.
    N_BITS = "DES_N_BITS", "n-bits", "BITS", Some("8"), false, "Bits of the shard index, 4 to 16 (multi_s3: from the zones file)";
    /// Bucket of the s3 backend.
    S3_BUCKET = "DES_S3_BUCKET", "s3-bucket", "NAME", None, false, "Bucket of the s3 backend";
    /// Region of the s3 backend.
    S3_REGION = "DES_S3_REGION", "s3-region", "REGION", None, false, "Region of the s3 backend; AWS's own variables otherwise, us-east-1 at last";
    /// Endpoint of the s3 backend.
    S3_ENDPOINT_URL = "DES_S3_ENDPOINT_URL", "s3-endpoint-url", "URL", None, false, "Endpoint of an S3-compatible server; AWS otherwise";
    /// Key prefix of the s3 backend.
    S3_PREFIX = "DES_S3_PREFIX", "s3-prefix", "PREFIX", Some(""), false, "Key prefix of the s3 backend, for example archive/";
    /// Zones file of the `multi_s3` backend.
    ZONES_CONFIG = "DES_ZONES_CONFIG", "zones-config", "FILE", None, false, "Zones file of the multi_s3 backend, YAML or JSON";
    /// Address of the coordinator.
    LISTEN_COORDINATOR = "DES_LISTEN", "listen", "ADDR", Some("127.0.0.1:8080"), false, "Address to listen on; any but loopback wants DES_API_KEYS or DES_ALLOW_ANONYMOUS";
    /// Keys of the HTTP interfaces.
    API_KEYS = "DES_API_KEYS", "api-keys", "KEYS", None, true, "Keys, separated by commas, one of which every request must carry in X-API-Key";
    /// Opt-out of keys.
    ALLOW_ANONYMOUS = "DES_ALLOW_ANONYMOUS", "allow-anonymous", "BOOL", Some("false"), false, "Serve without keys on addresses other than loopback";
    /// Where sources may lie.
    SOURCE_ROOTS = "DES_SOURCE_ROOTS", "source-roots", "ROOTS", None, false, "Folders and s3:// prefixes, separated by commas, that sources and manifests may be read from";
    /// Tasks a worker runs side by side.
    WORKER_SLOTS = "DES_WORKER_SLOTS", "slots", "N", None, false, "Tasks this worker runs side by side; one a core when not set";
    /// Lease time.
    LEASE_SECONDS = "DES_LEASE_SECONDS", "lease-seconds", "SECONDS", Some("30"), false, "How long a lease lives without a heartbeat";
    /// Pause between heartbeats.
    HEARTBEAT_MS = "DES_HEARTBEAT_MS", "heartbeat-ms", "MS", Some("750"), false, "How often a worker renews its leases and hears what became of them; at most a third of the lease";
    /// Longest time without progress.
    STALL_SECONDS = "DES_STALL_SECONDS", "stall-seconds", "SECONDS", Some("600"), false, "A task of a worker that makes no progress for so long is taken for hung, and fails";
    /// Attempts of a task.
    MAX_ATTEMPTS = "DES_MAX_ATTEMPTS", "max-attempts", "N", Some("5"), false, "Attempts of a task without progress before it is given up";
    /// Grace at the end.
    DRAIN_SECONDS = "DES_DRAIN_SECONDS", "drain-seconds", "SECONDS", Some("25"), false, "How long a stopping service may finish or hand back its work";
    /// Default shard format.
    SHARD_FORMAT = "DES_SHARD_FORMAT", "shard-format", "FORMAT", Some("v3"), false, "Shard format of a job that says nothing: v2 or v3";
    /// Default codec.
    CODEC = "DES_CODEC", "codec", "CODEC", Some("zstd"), false, "Compression of a job that says nothing: auto, none, zstd or lz4";
    /// Default level.
    LEVEL = "DES_LEVEL", "level", "LEVEL", Some("3"), false, "zstd level of a job that says nothing, 1 to 22";
    /// Default shard size.
    MAX_SHARD_SIZE = "DES_MAX_SHARD_SIZE", "max-shard-size", "BYTES", Some("1000000000"), false, "Source bytes after which a job that says nothing begins a new shard";
    /// Default big-file threshold.
    BIG_FILE_THRESHOLD = "DES_BIG_FILE_THRESHOLD_BYTES", "big-file-threshold-bytes", "BYTES", Some("10485760"), false, "Larger files become objects of their own";
    /// Prefix of big files.
    BIGFILES_PREFIX = "DES_BIGFILES_PREFIX", "bigfiles-prefix", "PREFIX", Some("_bigFiles"), false, "Key prefix of big files beside the shards";
    /// Bytes of the retriever's cache.
    CACHE_BYTES = "DES_CACHE_BYTES", "cache-bytes", "BYTES", Some("268435456"), false, "Memory for listings, index blocks and dictionaries of the retriever";
    /// Bytes of the retriever's cache of files.
    PAYLOAD_CACHE_BYTES = "DES_PAYLOAD_CACHE_BYTES", "payload-cache-bytes", "BYTES", Some("67108864"), false, "Memory for the files the retriever is asked for most; 0 for none";
    /// Folder of the retriever's disk cache.
    DISK_CACHE_DIR = "DES_DISK_CACHE_DIR", "disk-cache-dir", "DIR", None, false, "Folder in which the retriever keeps what it read of stores, also for after a restart; no disk cache when not set";
    /// Directories and blocks on disk.
    DISK_CACHE_BYTES = "DES_DISK_CACHE_BYTES", "disk-cache-bytes", "BYTES", Some("1073741824"), false, "Size of the disk cache of directories and index blocks, at least 16 MiB";
    /// Payloads on disk.
    DISK_PAYLOAD_BYTES = "DES_DISK_PAYLOAD_BYTES", "disk-payload-bytes", "BYTES", Some("4294967296"), false, "Size of the disk cache of files' stored bytes, at least 16 MiB; 0 for none";
    /// What caches may do with files.
    CACHE_CONTROL = "DES_CACHE_CONTROL", "cache-control", "VALUE", None, false, "Cache-Control of the retriever's files; no-cache when not set, with keys private, no-cache";
    /// Keys that may delete.
    DELETE_API_KEY = "DES_DELETE_API_KEY", "delete-api-key", "KEYS", None, true, "Keys, separated by commas, one of which a request to delete a file must carry in X-API-Key; without them nothing is deleted";
    /// File of keys with names and scopes.
    KEYS_FILE = "DES_KEYS_FILE", "keys-file", "FILE", None, false, "File of the retriever's keys with names and scopes (des key new makes its lines); read again when it changes";
    /// Secrets that sign URLs.
    URL_SIGNING_KEYS = "DES_URL_SIGNING_KEYS", "url-signing-keys", "ID:SECRET", None, true, "Secrets that sign URLs of files, id:secret pairs separated by commas; the first one signs, all are good";
    /// Longest life of a signed URL.
    URL_MAX_LIFETIME = "DES_URL_MAX_LIFETIME_SECONDS", "url-max-lifetime-seconds", "SECONDS", Some("604800"), false, "A signed URL that is good for longer than this is refused";
    /// The most files of one batch.
    BATCH_MAX_FILES = "DES_BATCH_MAX_FILES", "batch-max-files", "N", Some("10000"), false, "The most files that one POST /files/batch may ask for";
    /// Age of a listing.
    LISTING_TTL_SECONDS = "DES_LISTING_TTL_SECONDS", "listing-ttl-seconds", "SECONDS", Some("5"), false, "How long the retriever trusts a listing of a slot's shards";
    /// Time of a request.
    REQUEST_DEADLINE_SECONDS = "DES_REQUEST_DEADLINE_SECONDS", "request-deadline-seconds", "SECONDS", Some("30"), false, "How long a request to the retriever may take until its answer begins; X-Request-Timeout-Ms shortens it";
    /// Patience with a zone's own store.
    FAILOVER_MS = "DES_FAILOVER_MS", "failover-ms", "MS", Some("500"), false, "How long a store may take before the next one of its zone is asked too";
    /// Budget of second calls.
    HEDGE_PERCENT = "DES_HEDGE_PERCENT", "hedge-percent", "PERCENT", Some("3"), false, "Slow reads of a store are sent a second time, at most so many of a hundred; 0 for never";
    /// Most calls to a store.
    STORE_CALLS = "DES_STORE_CALLS", "store-calls", "N", Some("256"), false, "Calls the retriever makes to one store at the same time; fewer while the store asks for fewer";
    /// Notice before the end.
    DRAIN_NOTICE_SECONDS = "DES_DRAIN_NOTICE_SECONDS", "drain-notice-seconds", "SECONDS", Some("2"), false, "How long a stopping retriever still takes requests while it says that it is not ready; part of DES_DRAIN_SECONDS";
    /// Address of the S3 face.
    S3_FACE_LISTEN = "DES_S3_FACE_LISTEN", "s3-face-listen", "ADDR", None, false, "Address of the read-only S3 interface, for example 127.0.0.1:8001; none when not set";
    /// Bucket of the S3 face.
    S3_FACE_BUCKET = "DES_S3_FACE_BUCKET", "s3-face-bucket", "NAME", Some("des"), false, "Name of the one bucket of the S3 interface";
    /// Keys of the S3 face.
    S3_FACE_KEYS = "DES_S3_FACE_KEYS", "s3-face-keys", "PAIRS", None, true, "Access keys of the S3 interface with their secrets, access:secret, separated by commas";
    /// The same in a file.
    S3_FACE_KEYS_FILE = "DES_S3_FACE_KEYS_FILE", "s3-face-keys-file", "FILE", None, false, "File with access keys of the S3 interface, one access:secret a line";
    /// Domain of the S3 face.
    S3_FACE_DOMAIN = "DES_S3_FACE_DOMAIN", "s3-face-domain", "DOMAIN", None, false, "Domain of the S3 interface, so that requests to BUCKET.DOMAIN work beside those to DOMAIN/BUCKET";
    /// Where large manifests wait for planning.
    SPOOL_DIR = "DES_SPOOL_DIR", "spool-dir", "DIR", None, false, "Folder for temporary files of planning; the system's own when not set";
    /// Back-pressure by tasks.
    MAX_WAITING_TASKS = "DES_MAX_WAITING_TASKS", "max-waiting-tasks", "N", Some("0"), false, "Submissions are refused (429) while so many tasks wait; 0 for no limit";
    /// Back-pressure by bytes.
    MAX_WAITING_BYTES = "DES_MAX_WAITING_BYTES", "max-waiting-bytes", "BYTES", Some("0"), false, "Submissions are refused (429) while tasks of so many source bytes wait; 0 for no limit";
    /// Life of an ended job's records.
    JOB_RETENTION_DAYS = "DES_JOB_RETENTION_DAYS", "job-retention-days", "DAYS", Some("30"), false, "How long the records of an ended job stay in the state store; 0 for ever. Shards are never touched";
    /// Age at which an upload nobody knows is dropped.
    ORPHAN_HOURS = "DES_ORPHAN_HOURS", "orphan-hours", "HOURS", Some("24"), false, "Unfinished uploads older than this that no task knows are dropped; 0 for never";
    /// Log format.
    LOG_FORMAT = "DES_LOG_FORMAT", "log-format", "FORMAT", Some("text"), false, "Log lines: text or json";
    /// Log filter.
    LOG = "DES_LOG", "log", "FILTER", Some("info"), false, "Log filter, for example info or des_worker=debug,info";
}

/// Address of the retriever.
pub const LISTEN_RETRIEVER: Setting = Setting { default: Some("127.0.0.1:8000"), ..LISTEN_COORDINATOR };
/// Address of a worker's health and metrics.
pub const LISTEN_WORKER: Setting = Setting { default: Some("127.0.0.1:9100"), ..LISTEN_COORDINATOR };

/// Settings of zones, for all three services.
pub const ZONES: &[Setting] =
    &[BACKEND, BASE_DIR, N_BITS, S3_BUCKET, S3_REGION, S3_ENDPOINT_URL, S3_PREFIX, ZONES_CONFIG];
/// Settings of the queue, for the coordinator and the workers.
pub const QUEUE: &[Setting] =
    &[REDIS_URL, REDIS_CA_FILE, REDIS_CERT_FILE, REDIS_KEY_FILE, NAMESPACE, LEASE_SECONDS, MAX_ATTEMPTS];
/// Settings of what a job that says nothing gets.
pub const JOB_DEFAULTS: &[Setting] = &[SHARD_FORMAT, CODEC, LEVEL, MAX_SHARD_SIZE, BIG_FILE_THRESHOLD, BIGFILES_PREFIX];
/// Settings of what the coordinator takes in and what it tidies up.
pub const UPKEEP: &[Setting] = &[MAX_WAITING_TASKS, MAX_WAITING_BYTES, JOB_RETENTION_DAYS, ORPHAN_HOURS];
/// Settings of what the retriever does when stores are slow or gone, and when it has to stop.
pub const ENDURANCE: &[Setting] =
    &[REQUEST_DEADLINE_SECONDS, FAILOVER_MS, HEDGE_PERCENT, STORE_CALLS, DRAIN_NOTICE_SECONDS];
/// Settings of the retriever's S3 interface.
pub const S3_FACE: &[Setting] = &[S3_FACE_LISTEN, S3_FACE_BUCKET, S3_FACE_KEYS, S3_FACE_KEYS_FILE, S3_FACE_DOMAIN];
/// Settings of every service's process.
pub const PROCESS: &[Setting] = &[API_KEYS, ALLOW_ANONYMOUS, DRAIN_SECONDS, LOG_FORMAT, LOG];

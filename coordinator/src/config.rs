//! Settings of the coordinator, checked once.

use std::path::PathBuf;
use std::time::Duration;

use des_shared::config::{
    Listen, QueueSettings, Setting, SourceRoots, StateSettings, Values, ZoneSettings, job_defaults, settings,
};
use des_shared::job::JobDefaults;
use des_shared::telemetry::LogSettings;

/// Every setting the coordinator reads.
pub fn all_settings() -> Vec<Setting> {
    let own = [settings::LISTEN_COORDINATOR, settings::STATE_URL, settings::SOURCE_ROOTS, settings::SPOOL_DIR];
    [&own, settings::UPKEEP, settings::ZONES, settings::QUEUE, settings::JOB_DEFAULTS, settings::PROCESS].concat()
}

/// What a running coordinator needs to know. The places of its dependencies are not in it: see [`Places`].
#[derive(Clone, Debug)]
pub struct Config {
    /// Where and to whom it listens.
    pub listen: Listen,
    /// What a job gets that says nothing. Its `n_bits` must be that of the zones.
    pub defaults: JobDefaults,
    /// Where manifests named by `uri` may lie.
    pub roots: SourceRoots,
    /// An existing folder for temporary files of planning.
    pub spool_dir: PathBuf,
    /// Limits and rhythms.
    pub limits: Limits,
}

/// Limits and rhythms. The defaults suit production; tests choose shorter ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest JSON body of a submission, bytes. It is held in memory.
    pub inline_bytes: u64,
    /// JSON bodies of the largest size held in memory at once, or as many more smaller ones as fit their room. More
    /// wait for a while and are then told to come again.
    pub inline_requests: usize,
    /// A body from which nothing comes for so long is given up.
    pub body_idle: Duration,
    /// Jobs planned side by side by this process.
    pub planners: usize,
    /// Memory of one planning job, bytes; what is beyond goes to the spool folder.
    pub plan_memory_bytes: usize,
    /// How often the queue's housekeeping runs and open jobs are looked at.
    pub tick: Duration,
    /// How often open jobs are compared with the state store.
    pub reconcile: Duration,
    /// Life of the coordinator's own locks (`reconcile`, `plan/{job}`) without a renewal: the lease time of tasks, so
    /// that a dead coordinator is followed as soon as a dead worker.
    pub lock: Duration,
    /// How long after a cancellation a worker may still finish what it held: the lease time of tasks.
    pub cancel_grace: Duration,
    /// How often a client that watches a job is told how it stands.
    pub events: Duration,
    /// Clients that may watch jobs at the same time.
    pub watchers: usize,
    /// Submissions are refused while so many tasks wait; 0 for no limit.
    pub max_waiting_tasks: u64,
    /// Submissions are refused while tasks of so many source bytes wait; 0 for no limit.
    pub max_waiting_bytes: u64,
    /// How long a submission waits for its turn, and for what jobs that are being planned will bring, before it is
    /// refused. Only where one of the two limits above is set.
    pub admission_wait: Duration,
    /// How long the records of an ended job stay; `None` for ever.
    pub retention: Option<Duration>,
    /// Age at which an unfinished upload that no task knows is dropped; `None` for never.
    pub orphans: Option<Duration>,
    /// How often old jobs and orphaned uploads are looked for.
    pub tidy: Duration,
    /// Two looks at the same thing, so far apart, tell the auditor what is wrong from what is under way.
    pub audit_pause: Duration,
    /// A receipt the queue has not heard of is wrong only when it is older than this.
    pub audit_settled: Duration,
}

impl Limits {
    /// Lets locks and graces follow the lease time of tasks.
    #[must_use]
    pub fn with_lease(self, lease: Duration) -> Self {
        Self { lock: lease, cancel_grace: lease, audit_settled: (2 * lease).max(self.audit_settled), ..self }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            inline_bytes: 64 << 20,
            inline_requests: 4,
            body_idle: Duration::from_mins(1),
            planners: 2,
            plan_memory_bytes: 256 << 20,
            tick: Duration::from_secs(1),
            reconcile: Duration::from_secs(30),
            lock: Duration::from_secs(30),
            cancel_grace: Duration::from_secs(30),
            events: Duration::from_secs(1),
            watchers: 256,
            max_waiting_tasks: 0,
            max_waiting_bytes: 0,
            admission_wait: Duration::from_secs(10),
            retention: Some(Duration::from_hours(30 * 24)),
            orphans: Some(Duration::from_hours(24)),
            tidy: Duration::from_hours(1),
            audit_pause: Duration::from_secs(3),
            audit_settled: Duration::from_mins(2),
        }
    }
}

/// Where the dependencies are.
#[derive(Clone, Debug)]
pub struct Places {
    /// Zones of the shards.
    pub zones: ZoneSettings,
    /// The state store.
    pub state: StateSettings,
    /// The queue.
    pub queue: QueueSettings,
    /// Logs.
    pub log: LogSettings,
}

impl Config {
    /// Reads everything but the places of dependencies. Problems are noted also where there are no `zones`, because
    /// those have problems of their own.
    pub fn read(values: &mut Values, zones: Option<&ZoneSettings>) -> Option<Self> {
        let listen = Listen::read(values, &settings::LISTEN_COORDINATOR);
        let n_bits = zones.map(|zones| zones.zones.n_bits());
        let defaults = job_defaults(values, n_bits.unwrap_or_default());
        let roots = SourceRoots::read(values);
        let spool_dir = match values.text(&settings::SPOOL_DIR) {
            None => Some(std::env::temp_dir()),
            Some(_) => values.read(&settings::SPOOL_DIR, |text| {
                let dir = PathBuf::from(text);
                if dir.is_dir() { Ok(dir) } else { Err(format!("{text:?} is not an existing folder")) }
            }),
        };
        let limits = read_limits(values);
        n_bits?;
        Some(Self { listen: listen?, defaults: defaults?, roots: roots?, spool_dir: spool_dir?, limits: limits? })
    }
}

/// Reads `settings::UPKEEP`.
fn read_limits(values: &mut Values) -> Option<Limits> {
    let max_waiting_tasks = values.number(&settings::MAX_WAITING_TASKS, 0..=u64::MAX);
    let max_waiting_bytes = values.number(&settings::MAX_WAITING_BYTES, 0..=u64::MAX);
    let days = values.number(&settings::JOB_RETENTION_DAYS, 0..=36_500);
    let hours = values.number(&settings::ORPHAN_HOURS, 0..=87_600);
    let unless_zero = |hours: u64| (hours > 0).then(|| Duration::from_hours(hours));
    Some(Limits {
        max_waiting_tasks: max_waiting_tasks?,
        max_waiting_bytes: max_waiting_bytes?,
        retention: unless_zero(24 * days?),
        orphans: unless_zero(hours?),
        ..Limits::default()
    })
}

impl Places {
    /// Reads where zones, state store and queue are, and how to log.
    pub fn read(values: &mut Values) -> Option<Self> {
        let zones = ZoneSettings::read(values);
        let state = zones.as_ref().and_then(|zones| StateSettings::read(values, zones));
        let queue = QueueSettings::read(values);
        let log = LogSettings::read(values);
        Some(Self { zones: zones?, state: state?, queue: queue?, log: log? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<(Places, Config), String> {
        let mut values = Values::from_pairs(&all_settings(), pairs);
        let places = Places::read(&mut values);
        let config = Config::read(&mut values, places.as_ref().map(|places| &places.zones));
        values.finish(places.zip(config)).map_err(|e| e.to_string())
    }

    #[test]
    fn every_problem_is_named_at_once() {
        let pairs = [("DES_LEVEL", "0"), ("DES_SPOOL_DIR", "/no/such/folder"), ("DES_LISTEN", "0.0.0.0:80")];
        let text = read(&pairs).expect_err("problems");
        for name in ["DES_REDIS_URL", "DES_BASE_DIR", "DES_LEVEL", "DES_SPOOL_DIR", "DES_API_KEYS"] {
            assert!(text.contains(name), "{name} is missing in {text}");
        }
    }

    #[test]
    fn what_nobody_says_has_the_documented_defaults() {
        let pairs = [("DES_REDIS_URL", "redis://127.0.0.1/"), ("DES_BASE_DIR", "/x"), ("DES_N_BITS", "12")];
        let (places, config) = read(&pairs).expect("a configuration");
        assert_eq!(config.listen.address.to_string(), "127.0.0.1:8080");
        assert_eq!(config.defaults.n_bits.get(), 12);
        assert_eq!(config.defaults.max_shard_size, 1_000_000_000);
        assert_eq!(config.limits, Limits::default());
        assert_eq!(places.state.backend.url(), "file:///x/_des");
    }

    #[test]
    fn zero_means_no_limit_and_for_ever() {
        let places = [("DES_REDIS_URL", "redis://127.0.0.1/"), ("DES_BASE_DIR", "/x")];
        let upkeep = [
            ("DES_MAX_WAITING_TASKS", "7"),
            ("DES_MAX_WAITING_BYTES", "8"),
            ("DES_JOB_RETENTION_DAYS", "0"),
            ("DES_ORPHAN_HOURS", "0"),
        ];
        let limits = read(&[&places[..], &upkeep[..]].concat()).expect("a configuration").1.limits;
        assert_eq!((limits.max_waiting_tasks, limits.max_waiting_bytes), (7, 8));
        assert_eq!((limits.retention, limits.orphans), (None, None));
        let limits = read(&[&places[..], &[("DES_JOB_RETENTION_DAYS", "2"), ("DES_ORPHAN_HOURS", "3")]].concat());
        let limits = limits.expect("a configuration").1.limits;
        assert_eq!(limits.retention, Some(Duration::from_hours(48)));
        assert_eq!(limits.orphans, Some(Duration::from_hours(3)));
        let text = read(&[&places[..], &[("DES_ORPHAN_HOURS", "-1")]].concat()).expect_err("a problem");
        assert!(text.contains("DES_ORPHAN_HOURS"), "{text}");
    }

    #[test]
    fn locks_follow_the_lease_time() {
        let limits = Limits::default().with_lease(Duration::from_secs(3));
        assert_eq!((limits.lock, limits.cancel_grace), (Duration::from_secs(3), Duration::from_secs(3)));
        assert_eq!(limits.audit_settled, Limits::default().audit_settled, "never shorter than the usual rounds");
    }
}

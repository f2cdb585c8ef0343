//! What of keys is counted. No name of a key is a label.

use des_shared::metrics::Metrics;
use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts};

#[derive(Clone, Debug)]
pub(super) struct KeyMetrics {
    refused: IntCounterVec,
    reloads: IntCounterVec,
    broken: IntGauge,
    keys: IntGauge,
}

impl KeyMetrics {
    pub(super) fn register(metrics: &Metrics) -> Self {
        let counters = |name: &str, help: &str, label: &str| -> IntCounterVec {
            metrics.register(IntCounterVec::new(Opts::new(name, help), &[label]).expect("a well-formed name"))
        };
        let gauge = |name: &str, help: &str| -> IntGauge {
            metrics.register(IntGauge::new(name, help).expect("a well-formed name"))
        };
        let reloads = counters("des_keys_file_reloads_total", "Changes of the file of keys that were read.", "outcome");
        // There from the start, so that an alert can rest on it.
        for outcome in ["ok", "broken"] {
            let _: IntCounter = reloads.with_label_values(&[outcome]);
        }
        Self {
            refused: counters("des_requests_refused_total", "Requests that a key or signature did not let in.", "why"),
            reloads,
            broken: gauge(
                "des_keys_file_broken",
                "1 while the file of keys cannot be used and the old keys stay good.",
            ),
            keys: gauge("des_keys", "Keys that are known, those of the environment included."),
        }
    }

    pub(super) fn refused(&self, why: &str) {
        self.refused.with_label_values(&[why]).inc();
    }

    pub(super) fn keys_known(&self, count: usize) {
        self.keys.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    pub(super) fn file_read(&self) {
        self.reloads.with_label_values(&["ok"]).inc();
    }

    pub(super) fn file_broke(&self) {
        self.reloads.with_label_values(&["broken"]).inc();
    }

    /// Whether the file can be used as it is now.
    pub(super) fn file_is(&self, usable: bool) {
        self.broken.set(i64::from(!usable));
    }
}

//! What the guards of all stores show, by zone and store. No key, bucket or uid is in a label.

use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

/// The metrics of all guards of a process.
#[derive(Clone, Debug)]
pub struct GuardMetrics {
    breaker: IntGaugeVec,
    opened: IntCounterVec,
    refused: IntCounterVec,
    limit: IntGaugeVec,
    waiting: IntGaugeVec,
    slow_downs: IntCounterVec,
    hedges: IntCounterVec,
}

/// Those of one store.
#[derive(Debug)]
pub(super) struct StoreGuardMetrics {
    pub(super) breaker: IntGauge,
    pub(super) opened: IntCounter,
    pub(super) refused_open: IntCounter,
    pub(super) refused_line: IntCounter,
    pub(super) limit: IntGauge,
    pub(super) waiting: IntGauge,
    pub(super) slow_downs: IntCounter,
    pub(super) hedges_sent: IntCounter,
    pub(super) hedges_won: IntCounter,
    pub(super) hedges_over_budget: IntCounter,
}

impl GuardMetrics {
    /// Registers `des_store_breaker_state`, `des_store_breaker_opened_total`, `des_store_calls_refused_total`,
    /// `des_store_call_limit`, `des_store_calls_waiting`, `des_store_slow_downs_total` and `des_store_hedges_total`, each
    /// by `zone` and `store`.
    ///
    /// # Errors
    /// When a metric of that name is registered already.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        const BY_STORE: &[&str] = &["zone", "store"];
        let gauge = |name: &str, help: &str| {
            let gauge = IntGaugeVec::new(Opts::new(name, help), BY_STORE)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok::<_, prometheus::Error>(gauge)
        };
        let counter = |name: &str, help: &str, more: &[&str]| {
            let counter = IntCounterVec::new(Opts::new(name, help), &[BY_STORE, more].concat())?;
            registry.register(Box::new(counter.clone()))?;
            Ok::<_, prometheus::Error>(counter)
        };
        Ok(Self {
            breaker: gauge("des_store_breaker_state", "Circuit breaker: 0 closed, 1 half-open, 2 open.")?,
            opened: counter("des_store_breaker_opened_total", "How often the circuit breaker opened.", &[])?,
            refused: counter(
                "des_store_calls_refused_total",
                "Calls that were not made: the breaker is open, or too many wait in line.",
                &["reason"],
            )?,
            limit: gauge("des_store_call_limit", "Calls the store may get at the same time.")?,
            waiting: gauge("des_store_calls_waiting", "Calls that wait for their turn.")?,
            slow_downs: counter("des_store_slow_downs_total", "How often the store asked for fewer calls.", &[])?,
            hedges: counter(
                "des_store_hedges_total",
                "Second calls: sent, won (it answered first), over_budget (not sent).",
                &["outcome"],
            )?,
        })
    }

    pub(super) fn of_store(&self, zone: &str, store: &str) -> StoreGuardMetrics {
        let by_store = [zone, store];
        let with = |vec: &IntCounterVec, more: &str| vec.with_label_values(&[zone, store, more]);
        StoreGuardMetrics {
            breaker: self.breaker.with_label_values(&by_store),
            opened: self.opened.with_label_values(&by_store),
            refused_open: with(&self.refused, "breaker"),
            refused_line: with(&self.refused, "line"),
            limit: self.limit.with_label_values(&by_store),
            waiting: self.waiting.with_label_values(&by_store),
            slow_downs: self.slow_downs.with_label_values(&by_store),
            hedges_sent: with(&self.hedges, "sent"),
            hedges_won: with(&self.hedges, "won"),
            hedges_over_budget: with(&self.hedges, "over_budget"),
        }
    }
}

//! The Prometheus registry of a process and the metrics every service has.
//!
//! Metrics are reached through functions named for events. No uid and no key ever becomes a label.

use prometheus::{Encoder, Registry, TextEncoder};

/// The registry of one process. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    registry: Registry,
}

impl Metrics {
    /// An empty registry.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a collector and returns it.
    ///
    /// # Panics
    /// When its name is taken or malformed: names are literals, so that is a defect a first start shows.
    pub fn register<C: prometheus::core::Collector + Clone + 'static>(&self, collector: C) -> C {
        self.registry.register(Box::new(collector.clone())).expect("metric names are unique and well formed");
        collector
    }

    /// The registry itself, for parts that register their own collectors.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// The text exposition format.
    pub fn render(&self) -> String {
        let mut out = Vec::new();
        match TextEncoder::new().encode(&self.registry.gather(), &mut out) {
            Ok(()) => String::from_utf8_lossy(&out).into_owned(),
            Err(e) => format!("# metrics cannot be rendered: {e}\n"),
        }
    }
}

/// Bucket bounds in seconds for something that takes from a millisecond to a minute.
pub const SECONDS: &[f64] = &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

//! Benchmarks and measurements behind docs/benchmarks.md.

pub mod latency;

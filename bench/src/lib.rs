//! Benchmarks and measurements behind docs/benchmarks.md.

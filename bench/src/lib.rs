//! Benchmarks and measurements behind docs/benchmarks.md.

pub mod corpus;
pub mod latency;
pub mod made_up;

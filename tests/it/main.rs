//! The whole system, one module for each story.

mod bad_places;
mod bad_sources;
mod batch;
mod chaos;
mod described;
mod failover;
mod harness;
mod hedging;
mod main_story;
mod queue;
mod read_cost;
mod soak;
mod steering;
mod stopping;
mod stores;

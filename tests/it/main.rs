//! The whole system, one module for each story.

mod bad_places;
mod bad_sources;
mod batch;
mod chaos;
mod harness;
mod main_story;
mod queue;
mod soak;
mod steering;
mod stopping;
mod stores;

//! The whole system, one module for each story.

mod harness;
mod main_story;
mod queue;
mod stores;

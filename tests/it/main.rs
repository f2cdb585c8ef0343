//! The whole system, one module for each story.

mod harness;
mod stores;

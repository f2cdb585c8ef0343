//! Commands that talk to a running coordinator or retriever.

mod get;
mod status;
mod submit;
mod wait;

pub(crate) use get::{Sink, get};
pub(crate) use status::{jobs, status};
pub(crate) use submit::{Sending, skipped_text, submit};
pub(crate) use wait::{fetch_failures, wait_for};

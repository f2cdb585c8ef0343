//! Commands that talk to a running coordinator or retriever.

mod audit;
mod dead;
mod events;
mod get;
mod get_many;
mod orders;
mod parts;
mod status;
mod submit;
mod wait;
mod watch;

pub(crate) use audit::audit;
pub(crate) use dead::dead;
pub(crate) use get::{Sink, get};
pub(crate) use orders::{cancel, pause, resume, retry, share};
pub(crate) use status::{jobs, status};
pub(crate) use submit::{Sending, skipped_text, submit};
pub(crate) use wait::{fetch_failures, wait_for};

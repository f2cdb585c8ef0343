//! The coordinator as a service: a real listener, real HTTP, folders as stores, the in-memory queue.

mod bad_input;
mod doubles;
mod harness;
mod outage;
mod recovery;
mod showing;
mod submitting;

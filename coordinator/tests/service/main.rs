//! The coordinator as a service: a real listener, real HTTP, folders as stores, the in-memory queue.

mod audit;
mod bad_input;
mod cancel;
mod control;
mod dead;
mod described;
mod doubles;
mod events;
mod harness;
mod outage;
mod pressure;
mod recovery;
mod retry;
mod showing;
mod submitting;
mod upkeep;

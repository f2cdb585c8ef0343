//! The worker on real folders: packs alone, and whole workers on the in-memory queue.

mod adoption;
mod bad_files;
mod crash;
mod desk;
mod faults;
mod gate;
mod layers;
mod pack;
mod script;
mod sources;
mod stopping;
mod tasks;
mod victims;
mod world;

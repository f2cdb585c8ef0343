//! The real `des` and `des-pack`, run as people and scripts run them.

mod access;
mod bench;
mod drop_in;
mod getting;
mod interrupted;
mod namespaces;
mod pack;
mod services;
mod steering;
mod support;

//! Everything in one process: coordinator, worker and retriever over an in-memory queue and folders.
//!
//! [`cluster`] starts and stops them, `des dev` keeps them running on a data folder, `des demo` packs one folder through
//! them and reads every file back.

mod cluster;
mod compare;
mod demo;
mod dev;

pub(crate) use demo::demo;
pub(crate) use dev::dev;

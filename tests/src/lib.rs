//! What the tests of the whole system need: real servers, a proxy that breaks connections, a cluster of real
//! processes, a corpus of real files, and nothing left behind.

pub mod chaos;
pub mod cluster;
pub mod corpus;
pub mod proxy;
pub mod servers;
pub mod soak;
pub mod story;
pub mod swarm;

//! What the tests of the whole system need: real servers, a proxy that breaks connections, and nothing left behind.

pub mod proxy;
pub mod servers;

//! The shard formats from outside: files made elsewhere, files made before, and everything that can be wrong.

mod damage;
mod fuzz;
mod golden;
mod lookup;
mod measure;
mod round_trip;
mod support;
mod vectors;

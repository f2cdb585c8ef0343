//! Tests of the whole retriever: a folder with shards below it, its requests counted and made to fail.

mod bigfiles;
mod cost;
mod damage;
mod deleting;
mod disk;
mod endurance;
mod find;
mod http;
mod support;
mod vectors;
